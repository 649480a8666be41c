//! The analysis on lists of events: which finding each makes, in which words, and that no order of
//! arrival changes it.

use insta::assert_snapshot;
use proptest::prelude::*;

use super::scenes::*;
use super::{Analysis, Limits, Sees};
use crate::event::{
    Acceptor, Cause, Errno, Event, EventId, Exit, Fact, Held, Holding, Holdings, Kind, Nearby,
    Overflow, PeerFin, Pool, ResetSent, Side, Socket, SocketId, State, Timeout, Timestamp,
    Workload,
};

#[test]
fn a_close_with_unread_data_and_what_it_did_to_the_other_end() {
    assert_snapshot!(told(&closed_with_unread_data()), @"
    closed_with_unread_data pid 812 x1 high WARN
      envoy[812] closed fd 17 with 4312 bytes unread; 198 us later curl[990] got ECONNRESET on recvfrom and 1 more error
      not the network: 0 segments sent again, round trip 200 us
      fix read to the end before closing: 4312 bytes came after the 5688 that were read (a second request, a body nobody wanted, a TLS close_notify)
      fix if the rest of the input is not wanted: shutdown(SHUT_WR), read until the end of the stream or a short deadline, and only then close
    ");
}

#[test]
fn a_write_after_the_peers_close() {
    assert_snapshot!(told(&write_after_peer_close()), @"
    write_after_peer_close pid 990 x1 high WARN
      envoy[812] had closed 10.0.0.2:40000 > 10.0.0.1:8080 50 ms before; curl[990] still wrote 5 bytes and drew a RST, then got 2 EPIPE
      not the network: 0 segments sent again, round trip 200 us
      fix let curl[990] read (or poll for POLLRDHUP) and close when the read returns 0, before it writes again
      fix and ask why envoy[812] closed: a deadline, a limit, an error in its log
    ");
}

#[test]
fn a_client_that_left_before_the_answer() {
    assert_snapshot!(told(&peer_gave_up()), @"
    peer_gave_up pid 812 x1 high WARN
      curl[990] left 10.0.0.1:8080 > 10.0.0.2:40000 after it had waited 5.0 s for an answer; envoy[812] was still working: its answer of 300 bytes came 2.0 s too late and drew a RST
      not the network: 0 segments sent again, round trip 200 us
      fix find out why the answer takes longer than 5.0 s: that is the failure, the broken pipe is its echo
      fix or give the client more time than the slowest answer needs, and this server a deadline below the client's, so that it answers with an error instead of working for nobody
    ");
}

#[test]
fn a_client_that_left_a_server_that_never_answers() {
    let events = peer_gave_up();
    assert_snapshot!(told(&events[..2]), @"
    gave_up_waiting pid 990 x1 high INFO
      curl[990] closed fd 5 to 10.0.0.1:8080 after it had waited 5.0 s for an answer
      not the network: 0 segments sent again, round trip 200 us
      fix look at envoy[812]: its answer took longer than 5.0 s
      fix raise the deadline only if such an answer is worth waiting for
      fix 5 s is keep-alive of Node.js, Apache httpd and uvicorn, and a common client timeout: maybe this one
    ");
}

#[test]
fn a_killed_process_is_one_finding() {
    assert_snapshot!(told(&killed()), @"
    process_exited pid 812 x3 high ERROR
      envoy[812] was killed by SIGKILL, and 3 connections went down with it: 1 reset (7 bytes unread), 2 closed with a FIN
      not the network: this host sent the RST and FIN
      fix who sends SIGKILL? the OOM killer (dmesg, memory.events: oom_kill), a stop timeout (systemd TimeoutStopSec=, Kubernetes terminationGracePeriodSeconds), an operator
    ");
}

#[test]
fn an_ordinary_exit_is_none() {
    let mut events = killed();
    events.retain(|event| matches!(event.kind, Kind::StateChanged(_)));
    for event in &mut events {
        let process = event.owner.process.take();
        event.owner.process = process.map(|it| ended(it, Exit::Code(0)));
    }
    assert_eq!(told(&events), "");
}

#[test]
fn a_full_accept_queue_names_the_limit_and_what_the_acceptor_does() {
    let acceptor = Acceptor {
        process: envoy(),
        tid: 812,
        state: 'T',
        wait_channel: None,
        syscall: None,
        read_after_ms: 1,
    };
    let mut events: Vec<_> = (0..31)
        .map(|nth| {
            let kind = Kind::AcceptQueueOverflow(overflow());
            let mut socket = listener();
            let port = 40_000 + u16::try_from(nth).expect("a port");
            socket.flow.peer = Some(([10, 0, 0, 2], port).into());
            event(nth * 80_000, Some(envoy()), Some(socket), kind)
        })
        .collect();
    events[0].facts = vec![Fact::Acceptor(shared(acceptor)), Fact::Somaxconn(4_096)];
    let found = findings(&events);
    assert_eq!(found.len(), 2, "the first telling and the last");
    assert_snapshot!(told(&events[..1]), @"
    accept_queue_overflow pid 812 x1 high ERROR
      the accept queue of envoy[812] on 10.0.0.1:8080 was full (129 waiting, limit 128): 1 connection lost (1 SYN dropped); it last accepted 4.2 s before; its process is stopped
      not the network: the segments arrived here and were dropped by this host
      fix process 812 is stopped (SIGSTOP, a debugger, the freezer): kill -CONT 812
      fix listen() asked for 128 and net.core.somaxconn is 4096: raise the listen argument (nginx: listen … backlog=, Go reads somaxconn, Java: the backlog of ServerSocket); 1 connection lost
      fix confirm: ss -ltn (Recv-Q above Send-Q), nstat -az TcpExtListenOverflows TcpExtListenDrops
    ");
    let last = finding(&found[1]);
    assert_eq!((last.count, last.update, last.closed), (31, 1, true));
    assert!(
        last.fix
            .iter()
            .any(|fix| fix.contains("31 connections lost in 2.4 s")),
        "{last:?}"
    );
}

#[test]
fn a_polled_loss_is_the_same_finding_and_less_sure() {
    let polled = |count, queue_len| Overflow {
        path: None,
        count,
        queue_len,
        queue_max: queue_len.map(|_| 128),
        backlog: None,
        drops: None,
        last_accept_ago_us: None,
    };
    let lost = |at, count| {
        let kind = Kind::AcceptQueueOverflow(polled(count, Some(129)));
        event(at, Some(envoy()), Some(listener()), kind)
    };
    let mut first = lost(0, 31);
    first.facts = vec![Fact::Somaxconn(4_096)];
    assert_snapshot!(told(&[first.clone()]), @"
    accept_queue_overflow pid 812 x31 medium ERROR
      the accept queue of envoy[812] on 10.0.0.1:8080 was full (129 waiting, limit 128): at most 31 connections lost (31 handshake segments dropped)
      not the network: the segments arrived here and were dropped by this host
      fix let envoy[812] accept faster: a thread of its own, more workers
      fix net.core.somaxconn is 4096 and the limit 128: it was listen()'s argument, raise that; at most 31 connections lost
      fix confirm: ss -ltn (Recv-Q above Send-Q), nstat -az TcpExtListenOverflows TcpExtListenDrops
    ");
    let found = findings(&[first, lost(1_000_000, 11)]);
    assert_eq!(finding(found.last().expect("one")).count, 42);

    let mut nobody = listener();
    nobody.flow.local = ([0, 0, 0, 0], 0).into();
    let kind = Kind::AcceptQueueOverflow(polled(7, None));
    assert_snapshot!(told(&[event(0, None, Some(nobody), kind)]), @"
    accept_queue_overflow pid 0 x7 low ERROR
      the accept queue of some listener of this network namespace was full: at most 7 connections lost (7 handshake segments dropped)
      not the network: the segments arrived here and were dropped by this host
      fix find the listener: ss -ltnp in that namespace, several times (Recv-Q above Send-Q)
      fix the limit is the smaller of listen()'s argument and net.core.somaxconn: raise that one; at most 7 connections lost
      fix confirm: ss -ltn (Recv-Q above Send-Q), nstat -az TcpExtListenOverflows TcpExtListenDrops
    ");
    let at_start = Kind::AcceptQueueOverflow(polled(0, Some(129)));
    assert_eq!(findings(&[event(0, None, Some(listener()), at_start)]), []);
}

#[test]
fn a_full_table_of_connections_the_peer_closed_follows_from_the_leak() {
    let held = Held::Tcp {
        state: State::CloseWait,
        service: "10.0.0.5:5432".parse().expect("an address"),
        outbound: true,
    };
    let rows = vec![Holding {
        count: 931,
        what: held,
    }];
    let holdings = Fact::Holdings(shared(Holdings { rows, others: 93 }));
    let mut events: Vec<_> = (0..4_u16)
        .map(|nth| {
            let mut socket = at_client(State::CloseWait);
            socket.id.born += u64::from(nth);
            socket.flow.local.set_port(50_000 + nth);
            socket.eof_read = true;
            let kind = Kind::CloseWaitStuck(wait(1_000 + u64::from(nth)));
            event(u64::from(nth), Some(envoy()), Some(socket), kind)
        })
        .collect();
    let failed = Kind::FdExhausted(exhausted());
    events.push(with(
        holdings,
        event(700_000, Some(envoy()), Some(listener()), failed),
    ));
    let full = Kind::AcceptQueueOverflow(overflow());
    events.push(event(800_000, Some(envoy()), Some(listener()), full));
    assert_snapshot!(told(&events), @"
    close_wait_leak pid 812 x4 high ERROR
      envoy[812] holds 4 connections to 10.0.0.1:8080 that the peer has closed (CLOSE_WAIT), the oldest for 1.0 s; it has read the end of the stream of each, fd 5, 5, 5, 5
      not the peer and the network: the FIN arrived and was acknowledged
      fix envoy[812] reads the end of the stream and does not close: look at the path after a read of 0 bytes (Go: resp.Body.Close, defer conn.Close; Java: try-with-resources; Python: with)
      fix no sysctl helps: tcp_fin_timeout is about the other end, and keepalive at most ends the connection and leaves the descriptor open; a restart only buys time
    fd_exhausted pid 812 x1 high ERROR
      envoy[812] had no descriptor left: accept4 failed with EMFILE, 1024 of 1024 descriptors open: 931 CLOSE_WAIT to 10.0.0.5:5432
      not the network and the peers: the call failed before any of them was asked
      fix most of them are connections the peer has closed and envoy[812] never did: mend that leak (tcptrace explain close_wait_leak); a higher limit only fills later
      fix meanwhile clients of 10.0.0.1:8080 wait in the accept queue: expect accept_queue_overflow next
    accept_queue_overflow pid 812 x1 high ERROR
      the accept queue of envoy[812] on 10.0.0.1:8080 was full (129 waiting, limit 128): 1 connection lost (1 SYN dropped); it last accepted 4.2 s before; its accept fails with EMFILE
      not the network: the segments arrived here and were dropped by this host
      fix envoy[812] cannot accept (EMFILE): close what leaks or raise its limit; no backlog helps
      fix the limit 128 is the smaller of listen()'s argument (128) and net.core.somaxconn: raise that one; 1 connection lost
      fix confirm: ss -ltn (Recv-Q above Send-Q), nstat -az TcpExtListenOverflows TcpExtListenDrops
    ");
    let found = findings(&events);
    let of = |cause| {
        let found = found.iter().find(|it| finding(it).cause == cause);
        found.expect("it was found")
    };
    let (leak, fds) = (of(Cause::CloseWaitLeak), of(Cause::FdExhausted));
    assert_eq!(fds.caused_by, Some(leak.id));
    assert_eq!(of(Cause::AcceptQueueOverflow).caused_by, Some(fds.id));
}

#[test]
fn a_refusal_names_the_listener_that_may_be_meant() {
    let nearby = Nearby {
        address: "127.0.0.1:8080".parse().expect("an address"),
        netns: 2,
        owner: Some(envoy()),
    };
    let socket = Socket {
        rtt_us: None,
        ..at_client(State::SynSent)
    };
    let refusing = ResetSent {
        answers_segment: true,
        answers_syn: true,
        no_socket: true,
        syscall: None,
        ..reset()
    };
    let nowhere = Socket {
        id: SocketId::default(),
        side: None,
        ..at_server(State::Closed)
    };
    let events = [
        event(10, None, Some(nowhere), Kind::ResetSent(refusing)),
        event(
            11,
            Some(curl()),
            Some(socket.clone()),
            received(libc::ECONNREFUSED),
        ),
        with(
            Fact::Nearby([nearby].into()),
            event(12, Some(curl()), Some(socket), refused()),
        ),
    ];
    assert_snapshot!(told(&events), @"
    no_listener pid 990 x1 high WARN
      curl[990] was refused by 10.0.0.1:8080: nothing listens there; but there is a listener of envoy[812] on 127.0.0.1:8080 in network namespace 2
      not the network: the refusal came from this host
      fix connect to the address that is listened on, or let the service listen on 0.0.0.0 or [::]; for another namespace (a container) publish the port or use its address
    ");
    // The same from outside: this host sees the refusal alone.
    assert_snapshot!(told(&events[..1]), @"
    no_listener pid 0 x1 high INFO
      10.0.0.2 was refused: nothing listens on 10.0.0.1:8080
      not a firewall of this host: TCP itself refused
      fix if it should be served: is the service down, on another port, or bound to another address (ss -ltn)?
      fix many ports of one client are a port scan
    ");
    // And on the other host.
    assert_snapshot!(told(&events[1..]), @"
    refused_by_peer pid 990 x1 medium WARN
      curl[990] was refused by 10.0.0.1:8080 after 120 us
      not routing and DNS: something there answered at once
      fix on that host: ss -ltn, is anything listening on this port and address, or only on 127.0.0.1?
      fix does the name resolve to the host you mean, and is this the right port?
      fix an answer faster than the way there and back is a REJECT of this host: nft list ruleset, iptables-save -c
    ");
}

#[test]
fn a_late_acknowledgement_is_no_stale_connection() {
    let accepted = Socket {
        accepted_ago_us: Some(180),
        bytes_received: 0,
        bytes_sent: 0,
        ..at_server(State::Established)
    };
    let closes = event(
        10,
        Some(envoy()),
        Some(accepted),
        change(State::Established, State::FinWait1),
    );
    // The client has closed too, and is gone when the server acknowledges that.
    let gone = Socket {
        id: SocketId::default(),
        side: None,
        ..at_client(State::Closed)
    };
    let answer = ResetSent {
        answers_segment: true,
        no_socket: true,
        syscall: None,
        ..reset()
    };
    let causes = |events: &[Event]| {
        let found = findings(events);
        found.iter().map(|it| finding(it).cause).collect::<Vec<_>>()
    };
    let late = event(3_700, None, Some(gone), Kind::ResetSent(answer));
    assert_eq!(
        causes(&[closes.clone(), late.clone()]),
        [Cause::ClosedOnAccept]
    );
    // Data would have hurt it: then the connection was forgotten.
    let hurt = event(
        3_710,
        Some(envoy()),
        Some(at_server(State::FinWait1)),
        received(libc::ECONNRESET),
    );
    assert_eq!(causes(&[closes, late, hurt]), [Cause::StaleConnection]);
}

#[test]
fn a_reset_from_elsewhere_after_a_silence() {
    let socket = Socket {
        heard_ago_ms: Some(350_010),
        sent_ago_ms: Some(0),
        unacked: 48,
        ..at_client(State::Established)
    };
    let events = [event(
        10,
        Some(curl()),
        Some(socket),
        received(libc::ECONNRESET),
    )];
    assert_snapshot!(told(&events), @"
    reset_by_peer maybe idle_timeout pid 990 x1 medium WARN
      a RST from elsewhere ended 10.0.0.2:40000 > 10.0.0.1:8080 of curl[990]: it answered 48 bytes just written, 350.0 s after the peer was last heard
      not this host: it sent no RST
      fix nothing had been heard for 350.0 s: something may forget silent connections. Send keepalives more often than that (SO_KEEPALIVE with TCP_KEEPIDLE, the pool's own ping), or close pooled connections earlier
      fix 350 s is AWS NLB and NAT gateway idle timeout: maybe this one
      fix a RST whose TTL differs from the connection's other segments is not the peer's: tcpdump -nv 'tcp[tcpflags] & tcp-rst != 0'
    ");
}

#[test]
fn a_pool_that_is_flat_and_busy() {
    let pool = Pool {
        server: "10.0.0.9:3306".parse().expect("an address"),
        connections: 10,
        busy: 10,
        oldest_ms: 4_000,
    };
    let workload = |oldest| {
        Fact::Workload(shared(Workload {
            inbound: 43,
            inbound_oldest_ms: oldest,
            outbound: vec![pool.clone()],
        }))
    };
    let full = || Kind::AcceptQueueOverflow(overflow());
    let events = [
        with(
            workload(4_000),
            event(10, Some(envoy()), Some(listener()), full()),
        ),
        with(
            workload(9_000),
            event(4_000_010, Some(envoy()), Some(listener()), full()),
        ),
    ];
    let found = findings(&events);
    let pool = found
        .iter()
        .find(|it| finding(it).cause == Cause::PoolExhausted);
    let queue = found
        .iter()
        .rfind(|it| finding(it).cause == Cause::AcceptQueueOverflow);
    assert_eq!(
        queue.expect("the queue was full").caused_by,
        pool.map(|pool| pool.id)
    );
    assert_snapshot!(finding(pool.expect("the pool is")).title, @"envoy[812] has 10 connections to 10.0.0.9:3306, never more in 2 looks over 4.0 s, all waiting for an answer (the oldest for 4.0 s), while 43 clients of its own wait for it (the oldest for 9.0 s)");
}

#[test]
fn deadlines_show_as_a_common_interval() {
    let events: Vec<_> = (0..5_u16)
        .flat_map(|nth| {
            let mut pair = peer_gave_up();
            for event in &mut pair {
                event.id.0 += u64::from(nth) << 40;
                let socket = event.socket.as_mut().expect("a connection");
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
            }
            pair
        })
        .collect();
    let mut ordered = events;
    ordered.sort_by_key(|event| event.time);
    let found = findings(&ordered);
    let last = finding(found.last().expect("a finding"));
    assert_eq!((last.cause, last.count), (Cause::PeerGaveUp, 5));
    assert!(
        last.ruled_out
            .iter()
            .any(|it| it.starts_with("chance: 5.00 s on 5 connections")),
        "{last:?}"
    );
}

/// A listener answers a handshake it has no room for.
fn refused_by_a_full_queue() -> Event {
    let refused = ResetSent {
        answers_segment: true,
        queue_full: true,
        ..reset()
    };
    let mut at_listener = listener();
    at_listener.flow.peer = Some(CLIENT.parse().expect("an address"));
    event(
        10,
        Some(envoy()),
        Some(at_listener),
        Kind::ResetSent(refused),
    )
}

#[test]
fn a_refusal_that_only_its_rst_shows_is_of_the_full_queue() {
    let client = at_client(State::Established);
    let events = [
        refused_by_a_full_queue(),
        event(20, Some(curl()), Some(client), received(libc::ECONNRESET)),
    ];
    let gap = Sees {
        final_acks: false,
        ..Sees::ALL
    };
    let found = findings_of(gap, &events);
    let causes = found
        .iter()
        .map(|it| (finding(it).cause, finding(it).count));
    let only = [(Cause::AcceptQueueOverflow, 1)];
    assert_eq!(causes.collect::<Vec<_>>(), only, "{found:?}");
}

#[test]
fn a_refusal_is_not_polled_and_told_of_by_its_rst_too() {
    let polled = Overflow {
        path: None,
        count: 3,
        queue_len: None,
        queue_max: None,
        backlog: None,
        drops: None,
        last_accept_ago_us: None,
    };
    let polled = Kind::AcceptQueueOverflow(polled);
    let events = [
        refused_by_a_full_queue(),
        event(900_000, Some(envoy()), Some(listener()), polled),
    ];
    let gap = Sees {
        final_acks: false,
        ..Sees::ALL
    };
    let found = findings_of(gap, &events);
    assert_eq!(finding(found.last().expect("a finding")).count, 3);
}

#[test]
fn a_rst_over_loopback_that_was_not_seen_going_out_is_of_this_host() {
    let mut client = at_client(State::Established);
    client.flow.local = "127.0.0.1:40000".parse().expect("an address");
    client.flow.peer = Some("127.0.0.1:8080".parse().expect("an address"));
    let events = [event(
        20,
        Some(curl()),
        Some(client),
        received(libc::ECONNRESET),
    )];
    let gap = Sees {
        resets: false,
        ..Sees::ALL
    };
    let [told] = &findings_of(gap, &events)[..] else {
        panic!("one finding");
    };
    assert_eq!(finding(told).cause, Cause::ResetByPeer);
    assert!(
        finding(told)
            .title
            .starts_with("a RST of this host ended 127.0.0.1:40000")
    );
}

#[test]
fn a_storm_is_one_finding_and_nothing_is_lost_from_its_count() {
    let mut analysis = Analysis::new(Limits::default(), Sees::ALL);
    let mut found = Vec::new();
    let storm = 20_000_u64;
    for nth in 0..storm {
        for mut event in closed_with_unread_data() {
            event.id.0 += nth << 20;
            event.time.0 += nth * 50_000;
            let socket = event.socket.as_mut().expect("a connection");
            socket.id.born += nth * 10;
            let port = 1_024 + u16::try_from(nth % 60_000).expect("a port");
            match socket.side {
                Some(Side::Server) => socket.flow.peer.as_mut().expect("a peer").set_port(port),
                _ => socket.flow.local.set_port(port),
            }
            analysis.advance(event.time, &mut |it| found.push(it));
            analysis.take(&event, &mut |it| found.push(it));
        }
    }
    analysis.finish(Timestamp(NOON + storm * 50_000), &mut |it| found.push(it));
    let new = found.iter().filter(|it| finding(it).update == 0).count();
    assert_eq!(new, 1);
    let last = finding(found.last().expect("a finding"));
    assert_eq!(last.count, storm);
    assert_eq!(last.evidence.len(), crate::event::Finding::EVIDENCE);
    assert_eq!(last.evidence[0], EventId(10), "the first is kept");
    let errors: u64 = last.errors.iter().map(|(_, count)| count).sum();
    assert_eq!(errors, 2 * storm);
}

#[test]
fn late_errors_join_what_was_told() {
    let events = write_after_peer_close();
    let mut analysis = Analysis::new(Limits::default(), Sees::ALL);
    let mut found = Vec::new();
    let mut tell = |it| found.push(it);
    for event in &events[..2] {
        analysis.take(event, &mut tell);
    }
    let minute = Timestamp(NOON + 20_000_000_000);
    analysis.advance(minute, &mut tell);
    analysis.advance(Timestamp(minute.0 + 1_000_000_000), &mut tell);
    for event in &events[2..] {
        let mut late = event.clone();
        late.time.0 += 30_000_000_000;
        late.caused_by = Some(events[1].id);
        analysis.take(&late, &mut tell);
    }
    analysis.finish(Timestamp(NOON + 40_000_000_000), &mut tell);
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn memory_is_bounded_and_what_that_costs_is_counted() {
    let limits = Limits {
        connections: 4,
        cases: 2,
        judged: 4,
        ..Limits::default()
    };
    let mut analysis = Analysis::new(limits, Sees::ALL);
    let mut found = Vec::new();
    for nth in 0..10_u16 {
        let mut socket = at_server(State::Established);
        socket.flow.local.set_port(2_000 + nth);
        socket.id.born += u64::from(nth);
        let sent = ResetSent {
            unread: 1,
            ..reset()
        };
        let event = event(
            u64::from(nth),
            Some(envoy()),
            Some(socket),
            Kind::ResetSent(sent),
        );
        analysis.take(&event, &mut |it| found.push(it));
    }
    analysis.finish(Timestamp(NOON + 1), &mut |it| found.push(it));
    let counts = analysis.counts();
    assert_eq!((counts.early, counts.evicted), (6, 8));
    assert_eq!(found.len(), 10, "each was told all the same");
}

/// What of a finding must not depend on the order.
fn essence(event: &Event) -> impl PartialEq + std::fmt::Debug + use<> {
    let finding = finding(event);
    (
        (finding.id, finding.cause),
        finding.hint,
        finding.certainty,
        finding.severity,
        finding.count,
        finding.evidence.clone(),
        {
            let mut errors = finding.errors.clone();
            errors.sort_by_key(|(errno, _)| errno.0);
            errors
        },
        (
            finding.title.clone(),
            finding.fix.clone(),
            finding.ruled_out.clone(),
        ),
        event.owner.process.as_ref().map(|process| process.pid),
    )
}

fn gathered(events: &[Event]) -> Vec<Event> {
    let mut analysis = Analysis::new(Limits::default(), Sees::ALL);
    let mut found = Vec::new();
    for event in events {
        analysis.take(event, &mut |it| found.push(it));
    }
    analysis.finish(Timestamp(NOON), &mut |it| found.push(it));
    found
}

/// What happened to a connection, and 3 ms later to another one of the same two.
fn twice(scene: Vec<Event>) -> Vec<Event> {
    let mut again = scene.clone();
    for event in &mut again {
        event.id.0 += 1 << 40;
        event.time.0 += 3_000_000;
        event.caused_by = event.caused_by.map(|id| EventId(id.0 + (1 << 40)));
        let socket = event.socket.as_mut().expect("a connection");
        socket.id.born += 10;
        let ends = [Some(&mut socket.flow.local), socket.flow.peer.as_mut()];
        let client = ends.into_iter().flatten().find(|end| end.port() != 8080);
        client.expect("a client").set_port(40_001);
    }
    [scene, again].concat()
}

#[test]
fn who_tells_of_one_connection_knows_what_only_another_one_shows() {
    let mut events = twice(closed_with_unread_data());
    // Nothing came from the other end of the connection that failed first, which is judged last.
    let first_ends = events.len() / 2;
    let is_reset = |event: &Event| matches!(event.kind, Kind::ResetSent(_));
    let mut first: Vec<Event> = events.drain(..first_ends).filter(is_reset).collect();
    events.append(&mut first);
    let [one] = gathered(&events).try_into().expect("one finding");
    let told = finding(&one);
    assert_eq!(told.count, 2);
    assert_eq!(told.peer.as_ref().map(|it| it.pid), Some(curl().pid));
}

proptest! {
    #[test]
    fn no_order_of_arrival_changes_the_finding(
        scene in prop::sample::select(vec![
            closed_with_unread_data(),
            write_after_peer_close(),
            peer_gave_up(),
            twice(closed_with_unread_data()),
        ]),
        seed: u64,
    ) {
        let expected: Vec<_> = gathered(&scene).iter().map(essence).collect();
        let mut shuffled = scene;
        // Fisher and Yates, by a linear congruence.
        let mut state = seed | 1;
        for last in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let other = usize::try_from(state >> 33).expect("31 bits") % (last + 1);
            shuffled.swap(last, other);
        }
        let found: Vec<_> = gathered(&shuffled).iter().map(essence).collect();
        prop_assert_eq!(found, expected);
    }
}

/// Any event of a connection, sensible or not.
fn any_event() -> impl Strategy<Value = Event> {
    let state = prop::sample::select(vec![
        State::Established,
        State::SynSent,
        State::FinWait1,
        State::TimeWait,
        State::Closed,
        State::CloseWait,
        State::LastAck,
        State::Listen,
    ]);
    let errno = prop::sample::select(vec![
        libc::EPIPE,
        libc::ECONNRESET,
        libc::ETIMEDOUT,
        libc::ECONNREFUSED,
        libc::ENOTCONN,
        libc::EADDRINUSE,
        libc::EADDRNOTAVAIL,
        libc::EHOSTUNREACH,
        libc::EMFILE,
        libc::EBADF,
        libc::EACCES,
        libc::EAGAIN,
    ]);
    let times = (
        any::<[Option<u16>; 4]>(),
        any::<Option<(u32, u16)>>(),
        any::<[u16; 3]>(),
    );
    (
        0..12_u8,
        state,
        errno,
        any::<[bool; 12]>(),
        times,
        0..1_000_000_u64,
    )
        .prop_map(|(kind, state, errno, flag, (ago, fin, bytes), us)| {
            let mut socket = if flag[0] {
                at_server(state)
            } else {
                at_client(state)
            };
            socket.side = socket.side.filter(|_| flag[1]);
            [
                socket.received_ago_ms,
                socket.sent_ago_ms,
                socket.heard_ago_ms,
            ] = [ago[0], ago[1], ago[2]].map(|ago| ago.map(u64::from));
            socket.accepted_ago_us = ago[3].map(u64::from);
            socket.shutdown_ago_us = flag[2].then_some(7);
            [socket.bytes_received, socket.bytes_sent] = [bytes[0], bytes[1]].map(u64::from);
            socket.unread = bytes[2].into();
            socket.fin = fin.map(|(ago, waited)| PeerFin {
                written: flag[3].then_some(waited.into()),
                ..super::scenes::fin(ago.into(), flag[4].then_some(waited.into()))
            });
            if flag[5] {
                socket.flow.peer = None;
            }
            let reset = ResetSent {
                reason: None,
                unread: socket.unread,
                linger_zero: flag[6],
                answers_segment: flag[7],
                answers_syn: flag[8],
                no_socket: flag[9],
                queue_full: flag[10],
                unaccepted: flag[10],
                aborted: flag[11],
                syscall: None,
            };
            let process = flag[6].then(|| ended(envoy(), Exit::Signal(libc::SIGTERM)));
            let kind = match kind {
                0..=2 => Kind::ResetSent(reset),
                3 => received(errno),
                4 | 5 => failed(errno, flag[6]),
                6 => refused_with(flag[7].then_some(errno)),
                7 => change(State::Established, State::FinWait1),
                8 => change(State::CloseWait, State::LastAck),
                9 => Kind::ConnectionTimeout(Timeout {
                    errno: Errno(errno),
                    retransmits: bytes[0].into(),
                    probes: bytes[1].into(),
                    send_window: u32::from(flag[8]),
                    user_timeout_ms: flag[9].then_some(800),
                    keepalive: flag[10],
                }),
                10 => Kind::CloseWaitEntered(wait(0)),
                _ => Kind::CloseWaitStuck(wait(u64::from(bytes[0]))),
            };
            event(us, process.or(flag[1].then(curl)), Some(socket), kind)
        })
}

proptest! {
    #[test]
    fn whatever_is_found_has_words(events in prop::collection::vec(any_event(), 1..12)) {
        for event in gathered(&events) {
            let finding = finding(&event);
            prop_assert!(!finding.title.is_empty(), "{:?}", finding);
            prop_assert!(!finding.why.is_empty(), "{:?}", finding);
            prop_assert!(!finding.fix.is_empty(), "{:?}", finding);
            prop_assert!(finding.evidence.len() <= crate::event::Finding::EVIDENCE);
            prop_assert!(finding.count > 0);
        }
    }
}

/// What is found when after each event as much time passes as this, ms, in steps of `step`, ms.
fn found_in_time(events: &[(Event, u64)], step: u64) -> Vec<Event> {
    let mut analysis = Analysis::new(Limits::default(), Sees::ALL);
    let mut found = Vec::new();
    let mut tell = |it| found.push(it);
    let mut now = NOON;
    analysis.advance(Timestamp(now), &mut tell);
    for (event, passes) in events {
        let mut event = event.clone();
        event.time.0 += now - NOON;
        analysis.take(&event, &mut tell);
        for ms in (0..*passes).step_by(usize::try_from(step).expect("milliseconds")) {
            analysis.advance(Timestamp(now + ms * 1_000_000), &mut tell);
        }
        now += passes * 1_000_000;
        analysis.advance(Timestamp(now), &mut tell);
    }
    analysis.finish(Timestamp(now), &mut tell);
    found
}

proptest! {
    /// A live trace looks at the clock four times a second, a replay where its records say so.
    #[test]
    fn in_how_many_steps_time_passes_changes_nothing(
        events in prop::collection::vec(
            (any_event(), prop_oneof![Just(0), 0_u64..2_000, 0_u64..70_000]),
            1..24,
        ),
        step in 20_u64..9_000,
    ) {
        prop_assert_eq!(found_in_time(&events, step), found_in_time(&events, 100_000));
    }
}
