//! Connections lost to a full accept queue: as many as the kernel counts, at the right listener.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tcptrace::event::{Kind, Overflow};
use tcptrace::host::listen_queues::{Full, ListenQueues};
use tcptrace::host::{holders, netns};
use tcptrace_tests::*;

/// Fills the queue of a listener with backlog 1 and lets `late` more clients knock in vain.
fn overflow_by_syn(
    server: &mut Actor,
    client: &mut Actor,
    addr: &str,
    late: usize,
) -> Result<SocketAddr> {
    let (listener, addr) = listen(server, addr, 1)?;
    client.connected(addr)?;
    client.connected(addr)?;
    server.wait_for_queue(listener, 2)?;
    let fds: Vec<Fd> = (0..late)
        .map(|_| client.connecting(addr))
        .collect::<Result<_, _>>()?;
    // Gone before their SYN is sent again, a second later.
    fds.into_iter().try_for_each(|fd| client.close(fd))?;
    Ok(addr)
}

/// Lets the last ACK of all handshakes come in at once where two find room.
fn overflow_by_ack(
    server: &mut Actor,
    client: &mut Actor,
    addr: &str,
    clients: usize,
) -> Result<(SocketAddr, Vec<Fd>)> {
    let (listener, addr) = listen(server, addr, 128)?;
    server.set(listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &[30])?;
    let fds: Vec<Fd> = (0..clients)
        .map(|_| client.connected(addr))
        .collect::<Result<_, _>>()?;
    server.listen(listener, 1)?;
    for fd in &fds {
        client.send(*fd, b"request")?;
    }
    server.wait_for_queue(listener, 2)?;
    Ok((addr, fds))
}

fn overflows(netns: &Netns, before: &Counters) -> Result<u64> {
    netns
        .counters()?
        .since(before, "TcpExtListenOverflows")
        .context("no such counter")
}

#[test]
fn dropped_syns_equal_the_kernels_counter() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let before = netns.counters()?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut addrs = vec![];
        for addr in LOOPBACKS {
            addrs.push(overflow_by_syn(&mut server, &mut client, addr, 30)?);
        }
        let counted = overflows(netns, &before)?;
        let events = Events::of(tracer)?.lost_connections();
        assert_eq!(counted, 90, "the provocation itself");
        assert_eq!(events.count(), counted);
        for addr in addrs {
            let events = events.local(addr);
            assert_eq!(events.pids(), [server.pid()].repeat(30));
            for event in &events.0 {
                assert_eq!(event.text("tcptrace.accept_queue.path"), Some("syn"));
                assert_eq!(event.number("tcptrace.accept_queue.len"), Some(2));
                assert_eq!(event.number("tcptrace.accept_queue.max"), Some(1));
                assert_eq!(event.text("network.connection.state"), Some("listen"));
            }
        }
        Ok(())
    });
}

#[test]
fn dropped_acks_equal_the_kernels_counter() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let before = netns.counters()?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut addrs = vec![];
        for addr in LOOPBACKS {
            let (addr, fds) = overflow_by_ack(&mut server, &mut client, addr, 10)?;
            fds.into_iter().try_for_each(|fd| client.abort(fd))?;
            addrs.push(addr);
        }
        let counted = overflows(netns, &before)?;
        let events = Events::of(tracer)?.lost_connections();
        assert!(counted >= 24, "the provocation itself: {counted}");
        assert_eq!(events.count(), counted);
        assert!(events.pids().iter().all(|pid| *pid == server.pid()));
        for addr in addrs {
            let paths = events.local(addr);
            let acks = paths.only(|e| e.text("tcptrace.accept_queue.path") == Some("ack"));
            assert_eq!(acks.count(), paths.count());
            assert!(acks.count() >= 8);
        }
        Ok(())
    });
}

#[test]
fn abort_on_overflow_resets_and_is_not_called_an_invalid_syn() {
    in_netns(|netns| {
        netns.sysctl("net.ipv4.tcp_abort_on_overflow", "1")?;
        let tracer = trace(netns, &[])?;
        let before = netns.counters()?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        for addr in LOOPBACKS {
            let (_, fds) = overflow_by_ack(&mut server, &mut client, addr, 10)?;
            for fd in &fds[2..] {
                client.wait_for(*fd, libc::POLLHUP)?;
            }
        }
        let counted = overflows(netns, &before)?;
        let resets = netns.counters()?.since(&before, "TcpOutRsts");
        let events = Events::of(tracer)?;
        assert_eq!((counted, resets), (24, Some(24)), "the provocation itself");
        for events in [events.lost_connections(), events.named("reset.sent")] {
            assert_eq!(events.pids(), [server.pid()].repeat(24));
        }
        assert_eq!(
            events
                .named("reset.sent")
                .error("accept_queue_overflow")
                .count(),
            24
        );
        assert_eq!(
            events.named("reset.received").pids(),
            [client.pid()].repeat(24)
        );
        Ok(())
    });
}

#[test]
fn the_same_port_in_two_namespaces_is_two_listeners() {
    in_netns(|here| {
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let (go, wait) = std::sync::mpsc::channel::<()>();
            let there = scope.spawn(move || -> Result<(u32, u64)> {
                let netns = Netns::enter()?;
                let mut server = actor("there")?;
                let mut client = actor("client")?;
                _ = tell.send(netns.inode());
                wait.recv()?;
                let before = netns.counters()?;
                overflow_by_syn(&mut server, &mut client, "127.0.0.1:8080", 20)?;
                Ok((server.pid(), overflows(&netns, &before)?))
            });
            let inode = told.recv()?;
            let (mine, other) = (here.inode().to_string(), inode.to_string());
            let tracer = trace_unfiltered(&["--netns", &mine, "--netns", &other])?;
            let mut server = actor("here")?;
            let mut client = actor("client")?;
            overflow_by_syn(&mut server, &mut client, "127.0.0.1:8080", 10)?;
            go.send(())?;
            let (pid, counted) = there.join().expect("the other namespace's thread")?;
            let events = Events::of(tracer)?.lost_connections();
            let of = |inode: u32| {
                events
                    .only(move |event| event.number("tcptrace.netns") == Some(inode.into()))
                    .pids()
            };
            assert_eq!(counted, 20, "the provocation itself");
            assert_eq!(of(inode), [pid].repeat(20));
            assert_eq!(of(here.inode()), [server.pid()].repeat(10));
            Ok(())
        })
    });
}

#[test]
fn of_four_workers_on_one_port_the_stopped_one_is_named() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let before = netns.counters()?;
        let mut workers = vec![];
        let mut addr: SocketAddr = LOOPBACKS[0].parse()?;
        for backlog in [128, 128, 128, 1] {
            let mut worker = actor("worker")?;
            let fd = worker.socket(libc::AF_INET, 0)?;
            worker.set(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, &[1])?;
            worker.bind(fd, addr)?;
            worker.listen(fd, backlog)?;
            addr = worker.local_addr(fd)?;
            workers.push(worker);
        }
        let stopped = &workers[3];
        stopped.signal(Signal::SIGSTOP)?;
        wait_for_process_state(stopped.pid(), 'T')?;
        let mut client = actor("client")?;
        let fds: Vec<Fd> = (0..64)
            .map(|_| client.connecting(addr))
            .collect::<Result<_, _>>()?;
        fds.into_iter().try_for_each(|fd| client.close(fd))?;
        let counted = overflows(netns, &before)?;
        let events = Events::of(tracer)?.lost_connections();
        // Of 64 clients about 16 fall to each worker; that fewer than 3 do has odds below 1e-5.
        assert!(counted > 0, "the provocation itself");
        assert_eq!(
            events.pids(),
            vec![stopped.pid(); usize::try_from(counted)?]
        );
        Ok(())
    });
}

/// Polls what this kernel's hooks would tell one by one.
fn poll(queues: &mut ListenQueues) -> Result<Vec<(Full, Overflow)>> {
    let polled = queues.poll(Duration::ZERO).into_iter();
    let overflow = |full: Full| match full.kind.clone() {
        Kind::AcceptQueueOverflow(overflow) => Ok((full, overflow)),
        other => bail!("not of an accept queue: {other:?}"),
    };
    polled.map(overflow).collect()
}

/// As every record tells an address.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[test]
fn polled_overflows_equal_the_kernels_counter() {
    in_netns(|netns| {
        let here = netns::numbered(netns.inode(), None);
        let mut queues = ListenQueues::new(vec![here], true, true);
        let before = netns.counters()?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        for (addr, late) in LOOPBACKS.into_iter().zip([30, 20, 10]) {
            let addr = overflow_by_syn(&mut server, &mut client, addr, late)?;
            let polled = poll(&mut queues)?;
            let [(full, overflow)] = &polled[..] else {
                bail!("one listener lost connections: {polled:?}")
            };
            assert_eq!(full.socket.flow.local, canonical(addr));
            let (owners, _) = holders::find(full.socket.inode.context("it has a file")?);
            let pids: Vec<_> = owners.iter().map(|owner| owner.pid).collect();
            assert_eq!(pids, [server.pid()]);
            let lost = u32::try_from(late)?;
            let expected = Overflow {
                path: None,
                count: lost.into(),
                queue_len: Some(2),
                queue_max: Some(1),
                backlog: None,
                drops: Some(lost),
                last_accept_ago_us: None,
            };
            assert_eq!(*overflow, expected);
        }
        assert_eq!(poll(&mut queues)?, [], "nothing since");
        // A final ACK counts twice in a listener's drops, and once here.
        let one = overflow_by_syn(&mut server, &mut client, LOOPBACKS[0], 20)?;
        let (other, _) = overflow_by_ack(&mut server, &mut client, LOOPBACKS[1], 10)?;
        let polled = poll(&mut queues)?;
        let mut listeners: Vec<_> = polled.iter().map(|it| it.0.socket.flow.local).collect();
        listeners.sort_unstable();
        let mut expected = [one, other].map(canonical);
        expected.sort_unstable();
        assert_eq!(listeners, expected);
        let sum: u64 = polled.iter().map(|(_, overflow)| overflow.count).sum();
        assert_eq!(60 + sum, overflows(netns, &before)?);
        assert!(sum >= 28, "the provocation itself: {sum}");
        Ok(())
    });
}
