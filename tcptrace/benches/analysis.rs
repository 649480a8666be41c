//! What the analysis costs per event: `cargo bench --bench analysis`.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tcptrace::diagnose::{Analysis, Limits, Sees};
use tcptrace::event::{
    Comm, Confidence, ConnectFailed, Errno, Event, EventId, Flow, Kind, Owner, Process,
    ResetReceived, ResetSent, Side, Socket, SocketId, State, Timestamp,
};

/// Connections that fail in one run.
const STORM: u64 = 20_000;

fn event(nth: u64, step: u64, owner: Option<u32>, socket: Socket, kind: Kind) -> Event {
    let owner = owner.map_or(Owner::default(), |pid| Owner {
        confidence: Confidence::Exact,
        process: Some(Process {
            pid,
            comm: Comm::from("worker"),
            exe: Some("/usr/bin/worker".into()),
            ..Process::default()
        }),
        ..Owner::default()
    });
    Event {
        id: EventId(nth * 8 + step),
        time: Timestamp(1_795_176_000_000_000_000 + nth * 20_000 + step * 1_000),
        caused_by: None,
        socket: Some(socket),
        owner,
        actor: None,
        facts: Vec::new(),
        kind,
    }
}

/// One end of the nth connection, and its other end.
fn ends(nth: u64) -> (Socket, Socket) {
    let port = 1_024 + u16::try_from(nth % 60_000).unwrap_or_default();
    let server = ([10, 0, 0, 1], 8_080).into();
    let client = ([10, 0, 0, 2], port).into();
    let end = |local, peer, sk, side| Socket {
        id: SocketId { sk, born: nth + 1 },
        flow: Flow {
            local,
            peer: Some(peer),
            ipv6_socket: false,
            netns: 1,
        },
        state: Some(State::Established),
        side: Some(side),
        ..Socket::default()
    };
    (
        end(server, client, nth * 2 + 1, Side::Server),
        end(client, server, nth * 2 + 2, Side::Client),
    )
}

/// Servers that close with unread data, and clients that notice.
fn resets() -> Vec<Event> {
    let reset = ResetSent {
        reason: None,
        unread: 512,
        linger_zero: false,
        answers_segment: false,
        answers_syn: false,
        no_socket: false,
        queue_full: false,
        unaccepted: false,
        aborted: false,
        syscall: None,
    };
    let received = ResetReceived {
        errno: Some(Errno(104)),
        orphan: false,
    };
    let pairs = (0..STORM).flat_map(|nth| {
        let (server, client) = ends(nth);
        [
            event(
                nth,
                1,
                Some(2),
                client,
                Kind::ResetReceived(received.clone()),
            ),
            event(nth, 2, Some(1), server, Kind::ResetSent(reset.clone())),
        ]
    });
    pairs.collect()
}

/// Clients that connect where nothing listens.
fn refusals() -> Vec<Event> {
    let reset = ResetSent {
        reason: None,
        unread: 0,
        linger_zero: false,
        answers_segment: true,
        answers_syn: true,
        no_socket: true,
        queue_full: false,
        unaccepted: false,
        aborted: false,
        syscall: None,
    };
    let received = ResetReceived {
        errno: Some(Errno(111)),
        orphan: false,
    };
    let failed = ConnectFailed {
        errno: Some(Errno(111)),
        attempts: 1,
        duration_us: Some(80),
    };
    let triples = (0..STORM).flat_map(|nth| {
        let (mut server, mut client) = ends(nth);
        (server.id, server.side) = (SocketId::default(), None);
        client.state = Some(State::SynSent);
        [
            event(nth, 1, None, server, Kind::ResetSent(reset.clone())),
            event(
                nth,
                2,
                Some(2),
                client.clone(),
                Kind::ResetReceived(received.clone()),
            ),
            event(nth, 3, Some(2), client, Kind::ConnectFailed(failed.clone())),
        ]
    });
    triples.collect()
}

fn analyse(events: &[Event]) -> usize {
    let mut analysis = Analysis::new(Limits::default(), Sees::ALL);
    let mut findings = 0;
    for event in events {
        analysis.take(event, &mut |_| findings += 1);
    }
    let end = events.last().map_or(Timestamp(0), |event| event.time);
    analysis.finish(end, &mut |_| findings += 1);
    findings
}

fn storms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("analysis");
    group.sample_size(20);
    for (name, events) in [("resets", resets()), ("refusals", refusals())] {
        group.throughput(Throughput::Elements(events.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_batched(|| (), |()| analyse(&events), BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, storms);
criterion_main!(benches);
