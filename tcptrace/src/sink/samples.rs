//! One event of every kind, as the tests of the outputs use them.

mod sockets;

use std::net::SocketAddr;
use std::sync::Arc;

use jiff::tz::TimeZone;

use super::Context;
use super::text::Columns;
use crate::event::{
    Acceptor, CallError, Cause, Certainty, CloseWait, Comm, Confidence, ConnectFailed, Container,
    Coverage, Dropped, Errno, Event, EventId, Fact, FdExhausted, Finding, Flow, Frame, Held,
    Holding, Holdings, Kind, Loss, Nearby, Overflow, OverflowPath, Owner, PeerFin, Pool,
    PortHolder, Ports, Process, Reconciled, ResetReason, ResetReceived, ResetSent, Retransmit,
    Severity, Side, Socket, SocketId, Stack, State, StateChange, Summary, SummaryRow, Suppressed,
    SynQueue, Syscall, Target, Timeout, Timestamp, Turn, Workload,
};

pub(crate) use sockets::sockets;

pub(crate) fn context() -> Context {
    Context {
        run: 0x5eed_0001,
        key: [7; 16],
        host_name: "node-1".to_owned(),
        host_id: Some("0123456789abcdef0123456789abcdef".to_owned()),
        boot_id: Some("01234567-89ab-cdef-0123-456789abcdef".to_owned()),
        node_name: Some("node-1".to_owned()),
        replayed: None,
    }
}

pub(crate) fn columns() -> Columns {
    Columns {
        color: false,
        header: true,
        width: 120,
        zone: TimeZone::UTC,
    }
}

pub(crate) fn flow(local: &str, peer: Option<&str>) -> Flow {
    let local = local.parse().expect("an address and a port");
    let peer = peer.map(|peer| peer.parse().expect("an address and a port"));
    Flow {
        local,
        peer,
        ipv6_socket: false,
        netns: 4_026_531_840,
    }
}

/// A connection of nginx in `state`, with every field set.
fn socket(state: State) -> Socket {
    Socket {
        id: SocketId {
            sk: 0xffff_8881_2345_6780,
            born: 99,
        },
        flow: flow("10.0.0.1:8080", Some("203.0.113.7:51234")),
        state: Some(state),
        fd: Some(17),
        inode: Some(81_234),
        unread: 0,
        unacked: 0,
        retransmits: Some(0),
        rtt_us: Some(230),
        received_ago_ms: Some(1_250),
        sent_ago_ms: Some(61_000),
        eof_read: false,
        nonblocking: true,
        side: Some(Side::Server),
        age_us: Some(75_002_300),
        accepted_ago_us: Some(75_001_200),
        heard_ago_ms: Some(1_250),
        bytes_received: 1_024,
        bytes_sent: 65_536,
        shutdown_ago_us: Some(412),
        fin: Some(PeerFin {
            ago_us: 1_250_400,
            written: Some(88),
            waited_ms: Some(5_000),
            idle_ms: 5_000,
        }),
        service_answers: true,
    }
}

pub(crate) fn nginx() -> Process {
    Process {
        pid: 1_234,
        tid: Some(1_240),
        comm: Comm::from("nginx"),
        uid: 33,
        exe: Some("/usr/sbin/nginx".into()),
        cgroup: None,
        container: Some(Arc::new(Container {
            id: "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9".to_owned(),
            pod: Some("1b4c6d7e-0123-4567-89ab-cdef01234567".to_owned()),
        })),
        exit: None,
    }
}

/// An event on a connection of nginx.
pub(crate) fn event(socket: Option<Socket>, kind: Kind) -> Event {
    Event {
        id: EventId(0x400_0000_0002),
        // 2026-11-20T11:10:03.123456789Z
        time: Timestamp(1_795_173_003_123_456_789),
        caused_by: None,
        socket,
        owner: Owner {
            confidence: Confidence::Exact,
            process: Some(nginx()),
            holders: Arc::default(),
            creator: None,
            checked_after_ms: None,
        },
        actor: None,
        facts: Vec::new(),
        kind,
    }
}

/// nginx closed with 512 bytes unread.
pub(crate) fn reset_sent() -> Event {
    let kind = Kind::ResetSent(ResetSent {
        reason: Some(ResetReason("TCP_ABORT_ON_CLOSE".into())),
        unread: 512,
        linger_zero: false,
        answers_segment: false,
        answers_syn: false,
        no_socket: false,
        queue_full: false,
        unaccepted: false,
        aborted: false,
        syscall: Some(Syscall(syscall_number("close"))),
    });
    event(Some(socket(State::CloseWait)), kind)
}

/// A write got EPIPE because of an earlier event; one of three holders made it.
pub(crate) fn write_failed() -> Event {
    let call = CallError {
        syscall: Some(Syscall(syscall_number("sendto"))),
        send: Some(true),
        errno: Errno(libc::EPIPE),
        len: Some(4_096),
        timeout: false,
        fd: Some(17),
    };
    let mut event = event(Some(socket(State::Closed)), Kind::SocketError(call));
    event.caused_by = Some(EventId(0x400_0000_0001));
    event.owner.confidence = Confidence::Shared;
    event.owner.holders = [1_234, 1_235, 1_236].into();
    event.owner.creator = Some(1_200);
    event.owner.checked_after_ms = Some(3);
    event
}

/// The listener of nginx lost a SYN.
pub(crate) fn queue_full() -> Event {
    let overflow = Overflow {
        path: Some(OverflowPath::Syn),
        count: 1,
        queue_len: Some(129),
        queue_max: Some(128),
        backlog: Some(511),
        drops: Some(31),
        last_accept_ago_us: Some(4_200_000),
    };
    let listener = Socket {
        flow: flow("0.0.0.0:8080", None),
        rtt_us: None,
        received_ago_ms: None,
        sent_ago_ms: None,
        ..socket(State::Listen)
    };
    event(Some(listener), Kind::AcceptQueueOverflow(overflow))
}

/// A SYN for a port without a listener: nobody's socket.
pub(crate) fn refused() -> Event {
    let mut event = reset_sent();
    event.owner = Owner::default();
    event.socket = Some(Socket {
        flow: flow("[2001:db8::1]:81", Some("[2001:db8::2]:40112")),
        ..Socket::default()
    });
    if let Kind::ResetSent(reset) = &mut event.kind {
        reset.reason = Some(ResetReason("NO_SOCKET".into()));
        reset.unread = 0;
        reset.answers_segment = true;
        reset.answers_syn = true;
        reset.no_socket = true;
        reset.queue_full = true;
        reset.syscall = None;
    }
    event
}

pub(crate) fn summary() -> Summary {
    Summary {
        duration_ms: 12_300,
        events: 31,
        lost: 0,
        close_waits: 5,
        kinds: vec![
            SummaryRow {
                name: "tcptrace.reset.sent",
                error: Some("linger_zero".to_owned()),
                count: 29,
            },
            SummaryRow {
                name: "tcptrace.retransmit",
                error: None,
                count: 2,
            },
        ],
        processes: vec![(1_234, Comm::from("nginx"), 31)],
        listeners: Vec::new(),
        resets: Some(Reconciled {
            seen: 29,
            counted: 31,
            partial: false,
        }),
        overflows: Some(Reconciled {
            seen: 0,
            counted: 0,
            partial: false,
        }),
    }
}

/// An event with what the host said of it.
fn with(mut event: Event, facts: &[Fact]) -> Event {
    event.facts = facts.to_vec();
    event
}

fn end(end: &str) -> SocketAddr {
    end.parse().expect("an address and a port")
}

fn holdings() -> Fact {
    let tcp = |count, state, service, outbound| Holding {
        count,
        what: Held::Tcp {
            state,
            service: end(service),
            outbound,
        },
    };
    let files = Holding {
        count: 40,
        what: Held::Other("file".to_owned()),
    };
    let holdings = Holdings {
        rows: vec![
            tcp(931, State::CloseWait, "10.0.0.5:5432", true),
            tcp(2, State::Listen, "[::]:8080", false),
            files,
        ],
        others: 51,
    };
    Fact::Holdings(holdings.into())
}

fn acceptor() -> Fact {
    let acceptor = Acceptor {
        process: nginx(),
        tid: 1_240,
        state: 'T',
        wait_channel: Some("do_signal_stop".to_owned()),
        syscall: Some(232),
        read_after_ms: 3,
    };
    Fact::Acceptor(acceptor.into())
}

fn workload() -> Fact {
    let workload = Workload {
        inbound: 43,
        inbound_oldest_ms: 4_900,
        outbound: vec![Pool {
            server: end("10.0.0.9:3306"),
            connections: 10,
            busy: 10,
            oldest_ms: 900,
        }],
    };
    Fact::Workload(workload.into())
}

fn nearby() -> Fact {
    let listener = |address, netns, owner| Nearby {
        address: end(address),
        netns,
        owner,
    };
    let listeners = [
        listener("127.0.0.1:8080", 4_026_532_000, Some(nginx())),
        listener("[::1]:8080", 4_026_532_001, None),
    ];
    Fact::Nearby(listeners.into())
}

fn ports() -> Fact {
    Fact::Ports(Ports {
        first: 32_768,
        last: 60_999,
        time_wait: 28_231,
        in_use: 1,
    })
}

/// Given up by the kernel, and who held the other end.
fn unread(timeout: Timeout) -> Event {
    let kind = Kind::ConnectionTimeout(timeout);
    let event = event(Some(socket(State::Established)), kind);
    with(event, &[Fact::OtherEnd(nginx().into())])
}

fn stack() -> Fact {
    let frames = [
        Frame::of_kernel("ksys_write"),
        Frame::of_kernel("do_syscall_64"),
        Frame::of_program("libc.so.6+0xf8a10", None),
        Frame::of_program("ngx_write_fd", Some(("/src/os/unix/ngx_files.c", 226))),
        Frame::of_program("main", Some(("/src/core/nginx.c", 382))),
    ];
    Fact::Stack(Stack::new(frames, Some("libc.so.6 has no symbol there".to_owned())).into())
}

fn port_holder() -> Fact {
    let holder = PortHolder {
        address: end("[::]:8080"),
        state: State::Listen,
        owner: Some(nginx()),
    };
    Fact::PortHolder(holder.into())
}

pub(crate) fn finding() -> Finding {
    let told = |second: u64| Timestamp(1_763_637_000_000_000_000 + second * 1_000_000_000);
    Finding {
        id: EventId(7),
        update: 1,
        closed: true,
        cause: Cause::PeerGaveUp,
        hint: Some(Cause::IdleTimeout),
        certainty: Certainty::High,
        severity: Severity::Error,
        count: 43,
        first: told(0),
        last: told(60),
        evidence: (8..8 + 16).map(EventId).collect(),
        errors: vec![(Errno(libc::EPIPE), 41), (Errno(libc::ECONNRESET), 2)],
        peer: Some(nginx()),
        title: "curl[990] gave up after 5.00 s and closed on 43 connections".to_owned(),
        why: "An answer to a connection its peer has closed cannot be delivered.".to_owned(),
        fix: vec!["Answer sooner than 5 s, or let the client wait longer.".to_owned()],
        ruled_out: vec!["Not the network: 0 segments were sent again.".to_owned()],
    }
}

/// Some listener of nginx's namespace lost connections, by the kernel's counter.
pub(crate) fn queue_polled() -> Event {
    let overflow = Overflow {
        path: None,
        count: 31,
        queue_len: None,
        queue_max: None,
        backlog: None,
        drops: None,
        last_accept_ago_us: None,
    };
    let nobody = Socket {
        flow: flow("0.0.0.0:0", None),
        ..Socket::default()
    };
    let mut event = event(Some(nobody), Kind::AcceptQueueOverflow(overflow));
    event.owner = Owner::default();
    event
}

/// What the agent tells of several events together: the kinds that are not in [`all`].
pub(crate) fn verdicts() -> Vec<Event> {
    let flood = SynQueue {
        count: 1_200,
        cookies: true,
        len: Some(257),
        max: Some(256),
    };
    vec![
        event(Some(socket(State::Listen)), Kind::SynQueueOverflow(flood)),
        queue_polled(),
        event(
            Some(socket(State::CloseWait)),
            Kind::Finding(finding().into()),
        ),
    ]
}

/// An event of every kind that is told by itself.
pub(crate) fn all() -> Vec<Event> {
    let on = |state, kind| event(Some(socket(state)), kind);
    let wait = CloseWait {
        age_ms: 61_200,
        at_least: true,
        count: 1,
        at_start: true,
    };
    let errno = Errno(libc::EMFILE);
    let accept = Some(Syscall(syscall_number("accept4")));
    let exhausted = FdExhausted {
        syscall: accept,
        errno,
        open: Some(1_024),
        limit: Some(1_024),
        read_after_ms: Some(3),
    };
    let invalid = CallError {
        syscall: Some(Syscall(syscall_number("write"))),
        send: None,
        errno: Errno(libc::EBADF),
        len: None,
        timeout: false,
        fd: Some(17),
    };
    let connect = ConnectFailed {
        errno: Some(Errno(libc::ECONNREFUSED)),
        attempts: 1,
        duration_us: Some(310),
    };
    let timeout = Timeout {
        errno: Errno(libc::ETIMEDOUT),
        retransmits: 15,
        probes: 0,
        send_window: 65_535,
        user_timeout_ms: Some(30_000),
        keepalive: false,
    };
    let change = StateChange {
        from: State::Established,
        to: State::CloseWait,
        duration_us: Some(1_250_400),
        errno: None,
    };
    let coverage = Coverage {
        signal: "reset.sent".into(),
        way: Some("raw_tracepoint tcp_send_reset".to_owned()),
        note: Some("RSTs for closed ports are not seen".to_owned()),
        complete: true,
    };
    let gap = Coverage {
        signal: "accept_queue.overflow".into(),
        way: None,
        note: Some("needs kernel 6.6".to_owned()),
        complete: false,
    };
    let received = ResetReceived {
        errno: Some(Errno(libc::ECONNRESET)),
        orphan: false,
    };
    let bare = |kind| Event {
        owner: Owner::default(),
        ..event(None, kind)
    };
    vec![
        reset_sent(),
        refused(),
        on(State::Established, Kind::ResetReceived(received)),
        on(
            State::CloseWait,
            Kind::CloseWaitEntered(CloseWait {
                age_ms: 0,
                ..wait.clone()
            }),
        ),
        on(State::CloseWait, Kind::CloseWaitStuck(wait)),
        with(
            queue_full(),
            &[acceptor(), Fact::Somaxconn(4_096), workload()],
        ),
        with(write_failed(), &[port_holder()]),
        with(
            on(State::SynSent, Kind::ConnectFailed(connect)),
            &[nearby(), ports()],
        ),
        unread(timeout),
        with(event(None, Kind::FdExhausted(exhausted)), &[holdings()]),
        with(event(None, Kind::FdInvalid(invalid)), &[stack()]),
        on(State::Established, Kind::StateChanged(change)),
        on(
            State::Established,
            Kind::Retransmit(Retransmit { attempt: 3 }),
        ),
        bare(Kind::Coverage(coverage)),
        bare(Kind::Coverage(gap)),
        successor(),
        bare(Kind::EventsLost(lost())),
        bare(Kind::ExportDropped(dropped())),
        suppressed(),
        bare(Kind::Summary(Box::new(summary()))),
    ]
}

fn successor() -> Event {
    let target = Target {
        turn: Turn::Succeeded,
        previous: Some(100),
        why: "it is in nginx.service and runs the same program".to_owned(),
        after_ms: Some(12),
        left_out: 2,
    };
    event(None, Kind::TargetChanged(target))
}

fn lost() -> Loss {
    Loss {
        hook: "tcp_send_reset".to_owned(),
        count: 3,
        reason: "ring_full",
    }
}

fn dropped() -> Dropped {
    Dropped {
        to: "syslog=tcp://logs.example:6514".to_owned(),
        count: 37,
        reason: "queue_full",
        error: Some("cannot connect: Connection refused (os error 111)".to_owned()),
    }
}

fn suppressed() -> Event {
    let suppressed = Suppressed {
        name: "tcptrace.reset.sent",
        cause: Some(Cause::ClosedWithUnreadData),
        errno: None,
        count: 512,
    };
    event(None, Kind::EventsSuppressed(suppressed))
}

fn syscall_number(name: &str) -> i32 {
    let number = match name {
        "accept4" => libc::SYS_accept4,
        "close" => libc::SYS_close,
        "sendto" => libc::SYS_sendto,
        "write" => libc::SYS_write,
        _ => panic!("no sample uses {name}"),
    };
    i32::try_from(number).expect("numbers of system calls are small")
}
