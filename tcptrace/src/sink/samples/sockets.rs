//! What one look over the sockets of a host may find.

use super::{end, event, flow, nginx, socket};
use crate::event::{
    CloseWaits, Confidence, Event, Kind, Listener, NamespaceSockets, Owner, ProcessSockets, Side,
    Socket, Sockets, State, States, TimeWaits, Unowned,
};

/// Each sort of it, the gravest of a sort first.
pub(crate) fn sockets() -> Vec<Event> {
    let (listeners, held) = (listeners(), process());
    let process = found(None, &[1_234], Sockets::Process(held));
    namespaces(held.states)
        .into_iter()
        .chain(close_waits())
        .chain(listeners)
        .chain([process])
        .chain(nobodys())
        .collect()
}

fn found(socket: Option<Socket>, owners: &[u32], kind: Sockets) -> Event {
    let (confidence, holders) = match owners {
        [] => (Confidence::Unknown, &[][..]),
        [_] => (Confidence::Exact, &[][..]),
        several => (Confidence::Shared, several),
    };
    let owner = Owner {
        confidence,
        process: (!owners.is_empty()).then(nginx),
        holders: holders.into(),
        ..Owner::default()
    };
    Event {
        owner,
        ..event(socket, Kind::Sockets(Box::new(kind)))
    }
}

fn states(counts: &[(State, u64)]) -> States {
    let mut states = States::default();
    for &(state, count) in counts {
        (0..count).for_each(|_| states.add(state));
    }
    states
}

fn process() -> ProcessSockets {
    ProcessSockets {
        states: states(&[
            (State::Established, 70),
            (State::CloseWait, 932),
            (State::Listen, 2),
            (State::LastAck, 1),
        ]),
        open: 1_010,
        limit: Some(1_024),
    }
}

fn namespaces(states_of_own: States) -> [Event; 2] {
    let own = NamespaceSockets {
        inode: 4_026_531_840,
        own: true,
        name: None,
        states: states_of_own,
        overflows: Some(31),
        listen_drops: Some(49),
        syn_drops: Some(0),
        syn_cookies: Some(7),
    };
    let other = NamespaceSockets {
        inode: 4_026_532_177,
        own: false,
        name: Some("blue".to_owned()),
        states: states(&[(State::SynReceived, 5), (State::TimeWait, 20)]),
        overflows: None,
        ..own.clone()
    };
    [own, other].map(|it| found(None, &[], Sockets::Namespace(it)))
}

fn client() -> Socket {
    Socket {
        flow: flow("10.0.0.1:40112", Some("10.0.0.5:5432")),
        ..socket(State::CloseWait)
    }
}

fn close_waits() -> [Event; 2] {
    let leak = CloseWaits {
        count: 931,
        age_ms: Some(10_800_000),
        eof_unread: 912,
        unread: 12_040,
        served: false,
    };
    let passing = CloseWaits {
        count: 1,
        age_ms: Some(12),
        served: true,
        ..CloseWaits::default()
    };
    [
        found(Some(client()), &[1_234], Sockets::CloseWait(leak)),
        found(
            Some(socket(State::CloseWait)),
            &[1_234, 1_235],
            Sockets::CloseWait(passing),
        ),
    ]
}

fn listeners() -> [Event; 2] {
    let listening = |at: &str| {
        Some(Socket {
            flow: flow(at, None),
            state: Some(State::Listen),
            inode: Some(81_200),
            fd: Some(6),
            ..Socket::default()
        })
    };
    let full = Listener {
        len: 129,
        max: Some(128),
        drops: Some(31),
        half_done: 5,
        somaxconn: Some(4_096),
    };
    let idle = Listener {
        max: Some(4_096),
        drops: Some(0),
        somaxconn: Some(4_096),
        ..Listener::default()
    };
    [
        found(listening("0.0.0.0:8080"), &[1_234], Sockets::Listener(full)),
        found(listening("[::]:22"), &[], Sockets::Listener(idle)),
    ]
}

/// What is in no process's row, and a single socket.
fn nobodys() -> [Event; 5] {
    let to_server = TimeWaits {
        count: 26_000,
        netns: 4_026_531_840,
        side: Some(Side::Client),
        service: end("10.0.0.5:443"),
        most: end("10.0.0.1:1").ip(),
        most_count: 26_000,
        addresses: 1,
        ports: Some(32_768..=60_999),
    };
    let from_clients = TimeWaits {
        count: 1_160,
        side: Some(Side::Server),
        service: end("10.0.0.1:8080"),
        most: end("203.0.113.7:1").ip(),
        most_count: 700,
        addresses: 14,
        ports: None,
        ..to_server.clone()
    };
    let waiting = states(&[(State::Established, 129)]);
    let over = states(&[(State::TimeWait, 160), (State::FinWait2, 4)]);
    let leaked = Sockets::Socket {
        close_wait_ms: Some(10_800_000),
    };
    [
        found(None, &[], Sockets::Unowned(Unowned::NotAccepted, waiting)),
        found(None, &[], Sockets::Unowned(Unowned::NoProcess, over)),
        found(None, &[], Sockets::TimeWait(to_server)),
        found(None, &[], Sockets::TimeWait(from_clients)),
        found(Some(client()), &[1_234], leaked),
    ]
}
