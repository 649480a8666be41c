//! Failures as lists of events, for the tests of the analysis: what the kernel half tells of each,
//! in the order of its clock.

use std::sync::Arc;

use super::{Analysis, Limits, Sees};
use crate::event::{
    CallError, CloseWait, Comm, Confidence, ConnectFailed, Errno, Event, EventId, Exit, Fact,
    FdExhausted, Finding, Flow, Kind, Overflow, OverflowPath, Owner, PeerFin, Process, ResetReason,
    ResetReceived, ResetSent, Side, Socket, SocketId, State, StateChange, Syscall, Timestamp,
};

pub(super) const SERVER: &str = "10.0.0.1:8080";
pub(super) const CLIENT: &str = "10.0.0.2:40000";

/// The wall clock of all scenes, ns.
pub(super) const NOON: u64 = 1_795_176_000_000_000_000;

pub(super) fn envoy() -> Process {
    process(812, "envoy")
}

pub(super) fn curl() -> Process {
    process(990, "curl")
}

fn process(pid: u32, name: &str) -> Process {
    Process {
        pid,
        tid: Some(pid),
        comm: Comm::from(name),
        ..Process::default()
    }
}

/// An event `us` after noon, whose id is that time.
pub(super) fn event(
    us: u64,
    process: Option<Process>,
    socket: Option<Socket>,
    kind: Kind,
) -> Event {
    let owner = match process {
        Some(process) => Owner {
            confidence: Confidence::Exact,
            process: Some(process),
            ..Owner::default()
        },
        None => Owner::default(),
    };
    Event {
        id: EventId(us),
        time: Timestamp(NOON + us * 1_000),
        caused_by: None,
        socket,
        owner,
        actor: None,
        facts: Vec::new(),
        kind,
    }
}

fn flow(local: &str, peer: Option<&str>) -> Flow {
    Flow {
        local: local.parse().expect("an address"),
        peer: peer.map(|peer| peer.parse().expect("an address")),
        ipv6_socket: false,
        netns: 1,
    }
}

/// The server's end of a connection in which both have spoken.
pub(super) fn at_server(state: State) -> Socket {
    Socket {
        id: SocketId { sk: 1, born: 1 },
        flow: flow(SERVER, Some(CLIENT)),
        state: Some(state),
        fd: Some(17),
        side: Some(Side::Server),
        retransmits: Some(0),
        rtt_us: Some(200),
        bytes_received: 100,
        bytes_sent: 1_000,
        received_ago_ms: Some(100),
        sent_ago_ms: Some(100),
        heard_ago_ms: Some(100),
        ..Socket::default()
    }
}

/// Its client's end.
pub(super) fn at_client(state: State) -> Socket {
    Socket {
        id: SocketId { sk: 2, born: 2 },
        flow: flow(CLIENT, Some(SERVER)),
        fd: Some(5),
        side: Some(Side::Client),
        bytes_received: 1_000,
        bytes_sent: 100,
        ..at_server(state)
    }
}

/// A listener at the server's address.
pub(super) fn listener() -> Socket {
    Socket {
        id: SocketId { sk: 3, born: 3 },
        flow: flow(SERVER, None),
        state: Some(State::Listen),
        fd: Some(3),
        ..Socket::default()
    }
}

/// A RST nothing else is known of.
pub(super) fn reset() -> ResetSent {
    ResetSent {
        reason: None,
        unread: 0,
        linger_zero: false,
        answers_segment: false,
        answers_syn: false,
        no_socket: false,
        queue_full: false,
        unaccepted: false,
        aborted: false,
        syscall: Some(Syscall(i32::try_from(libc::SYS_close).expect("a number"))),
    }
}

pub(super) fn reason(name: &'static str) -> ResetReason {
    ResetReason(name.into())
}

pub(super) fn received(errno: i32) -> Kind {
    Kind::ResetReceived(ResetReceived {
        errno: Some(Errno(errno)),
        orphan: false,
    })
}

pub(super) fn failed(errno: i32, send: bool) -> Kind {
    let syscall = if send {
        libc::SYS_sendto
    } else {
        libc::SYS_recvfrom
    };
    Kind::SocketError(CallError {
        syscall: Some(Syscall(i32::try_from(syscall).expect("a number"))),
        send: Some(send),
        errno: Errno(errno),
        len: None,
        timeout: false,
        fd: None,
    })
}

pub(super) fn refused() -> Kind {
    refused_with(Some(libc::ECONNREFUSED))
}

pub(super) fn refused_with(errno: Option<i32>) -> Kind {
    Kind::ConnectFailed(ConnectFailed {
        errno: errno.map(Errno),
        attempts: 1,
        duration_us: Some(120),
    })
}

pub(super) fn change(from: State, to: State) -> Kind {
    Kind::StateChanged(StateChange {
        from,
        to,
        duration_us: None,
        errno: None,
    })
}

pub(super) fn wait(age_ms: u64) -> CloseWait {
    CloseWait {
        age_ms,
        at_least: false,
        count: 1,
        at_start: false,
    }
}

pub(super) fn overflow() -> Overflow {
    Overflow {
        path: Some(OverflowPath::Syn),
        count: 1,
        queue_len: Some(129),
        queue_max: Some(128),
        backlog: Some(128),
        drops: Some(1),
        last_accept_ago_us: Some(4_200_000),
    }
}

pub(super) fn exhausted() -> FdExhausted {
    FdExhausted {
        syscall: Some(Syscall(i32::try_from(libc::SYS_accept4).expect("a number"))),
        errno: Errno(libc::EMFILE),
        open: Some(1_024),
        limit: Some(1_024),
        read_after_ms: Some(1),
    }
}

/// The peer's FIN, `ago_us` before.
pub(super) fn fin(ago_us: u64, waited_ms: Option<u64>) -> PeerFin {
    PeerFin {
        ago_us,
        written: Some(0),
        waited_ms,
        idle_ms: 100,
    }
}

pub(super) fn with(fact: Fact, mut event: Event) -> Event {
    event.facts.push(fact);
    event
}

pub(super) fn ended(mut process: Process, exit: Exit) -> Process {
    process.exit = Some(exit);
    process
}

/// envoy closes with 4,312 bytes unread; curl's read and write fail.
pub(super) fn closed_with_unread_data() -> Vec<Event> {
    let sent = ResetSent {
        reason: Some(reason("TCP_ABORT_ON_CLOSE")),
        unread: 4_312,
        ..reset()
    };
    let closing = Socket {
        bytes_received: 10_000,
        ..at_server(State::Established)
    };
    vec![
        event(
            10,
            Some(curl()),
            Some(at_client(State::Established)),
            received(libc::ECONNRESET),
        ),
        event(12, Some(envoy()), Some(closing), Kind::ResetSent(sent)),
        event(
            210,
            Some(curl()),
            Some(at_client(State::Closed)),
            failed(libc::ECONNRESET, false),
        ),
        event(
            300,
            Some(curl()),
            Some(at_client(State::Closed)),
            failed(libc::EPIPE, true),
        ),
    ]
}

/// envoy closes; curl writes on: the first write draws a RST, two more fail.
pub(super) fn write_after_peer_close() -> Vec<Event> {
    let answer = ResetSent {
        answers_segment: true,
        no_socket: true,
        syscall: None,
        ..reset()
    };
    let closed = Socket {
        shutdown_ago_us: Some(50_000),
        ..at_server(State::TimeWait)
    };
    let written = Socket {
        fin: Some(PeerFin {
            written: Some(5),
            ..fin(50_000, None)
        }),
        ..at_client(State::CloseWait)
    };
    vec![
        event(10, Some(envoy()), Some(closed), Kind::ResetSent(answer)),
        event(12, Some(curl()), Some(written), received(libc::EPIPE)),
        event(
            90,
            Some(curl()),
            Some(at_client(State::Closed)),
            failed(libc::EPIPE, true),
        ),
        event(
            95,
            Some(curl()),
            Some(at_client(State::Closed)),
            failed(libc::EPIPE, true),
        ),
    ]
}

/// curl leaves after 5 s; envoy's answer comes 2 s later.
pub(super) fn peer_gave_up() -> Vec<Event> {
    let left = Socket {
        sent_ago_ms: Some(5_000),
        received_ago_ms: Some(9_000),
        ..at_client(State::Established)
    };
    let asked = Socket {
        fin: Some(fin(0, Some(5_000))),
        ..at_server(State::CloseWait)
    };
    let late = Socket {
        fin: Some(PeerFin {
            written: Some(300),
            ..fin(2_000_000, Some(5_000))
        }),
        ..at_server(State::CloseWait)
    };
    let gone = Socket {
        shutdown_ago_us: Some(2_000_000),
        ..at_client(State::TimeWait)
    };
    let answer = ResetSent {
        answers_segment: true,
        syscall: None,
        ..reset()
    };
    vec![
        event(
            10,
            Some(curl()),
            Some(left),
            change(State::Established, State::FinWait1),
        ),
        event(
            12,
            Some(envoy()),
            Some(asked),
            Kind::CloseWaitEntered(wait(0)),
        ),
        event(2_000_010, Some(curl()), Some(gone), Kind::ResetSent(answer)),
        event(2_000_012, Some(envoy()), Some(late), received(libc::EPIPE)),
        event(
            2_000_100,
            Some(envoy()),
            Some(at_server(State::Closed)),
            failed(libc::EPIPE, true),
        ),
    ]
}

/// A worker with three connections is killed.
pub(super) fn killed() -> Vec<Event> {
    let dying = || Some(ended(envoy(), Exit::Signal(libc::SIGKILL)));
    let of = |nth: u16, mut socket: Socket| {
        socket.id.born += u64::from(nth) * 10;
        match socket.side {
            Some(Side::Server) => socket
                .flow
                .peer
                .as_mut()
                .expect("a peer")
                .set_port(40_000 + nth),
            _ => socket.flow.local.set_port(40_000 + nth),
        }
        Some(socket)
    };
    let sent = ResetSent {
        unread: 7,
        syscall: None,
        ..reset()
    };
    let fin = change(State::Established, State::FinWait1);
    vec![
        event(
            10,
            dying(),
            of(0, at_server(State::Established)),
            Kind::ResetSent(sent),
        ),
        event(
            11,
            Some(curl()),
            of(0, at_client(State::Established)),
            received(libc::ECONNRESET),
        ),
        event(
            12,
            dying(),
            of(1, at_server(State::Established)),
            fin.clone(),
        ),
        event(14, dying(), of(2, at_server(State::Established)), fin),
        event(
            90,
            Some(curl()),
            of(0, at_client(State::Closed)),
            failed(libc::ECONNRESET, false),
        ),
    ]
}

/// What an analysis makes of these events when the trace ends after them.
pub(super) fn findings(events: &[Event]) -> Vec<Event> {
    findings_of(Sees::ALL, events)
}

/// The same where there are gaps in what is seen.
pub(super) fn findings_of(sees: Sees, events: &[Event]) -> Vec<Event> {
    let mut analysis = Analysis::new(Limits::default(), sees);
    let mut found = Vec::new();
    for event in events {
        analysis.advance(event.time, &mut |finding| found.push(finding));
        analysis.take(event, &mut |finding| found.push(finding));
    }
    let end = events
        .iter()
        .map(|event| event.time)
        .max()
        .unwrap_or_default();
    analysis.finish(end, &mut |finding| found.push(finding));
    found
}

/// The finding in a finding's event.
pub(super) fn finding(event: &Event) -> &Finding {
    match &event.kind {
        Kind::Finding(finding) => finding,
        other => panic!("not a finding: {other:?}"),
    }
}

/// Findings as text, without what every finding of a cause says.
pub(super) fn told(events: &[Event]) -> String {
    let found = findings(events);
    let lines = found.iter().map(|event| {
        let finding = finding(event);
        let pid = event
            .owner
            .process
            .as_ref()
            .map_or(0, |process| process.pid);
        let hint = finding
            .hint
            .map_or(String::new(), |hint| format!(" maybe {}", hint.as_str()));
        format!(
            "{}{hint} pid {pid} x{} {} {}\n  {}\n  not {}\n  fix {}",
            finding.cause.as_str(),
            finding.count,
            finding.certainty.as_str(),
            finding.severity.as_str(),
            finding.title,
            finding.ruled_out.join("\n  not "),
            finding.fix.join("\n  fix "),
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

pub(super) fn shared<T>(value: T) -> Arc<T> {
    Arc::new(value)
}
