//! What the host says of an event, on the event: who holds what, who listens where, who waits.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tcptrace::selftest::actor::Arg;
use tcptrace_tests::*;

const V4: &str = "127.0.0.1:0";

/// The lines of an attribute that is a list.
fn lines(record: &Record, name: &str) -> Vec<String> {
    let lines = record.get(name).and_then(|it| it.as_array());
    let lines = lines.into_iter().flatten().filter_map(|it| it.as_str());
    lines.map(str::to_owned).collect()
}

#[test]
fn a_full_table_says_what_is_in_it() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("database")?;
        let mut client = actor("leaky")?;
        let (listener, addr) = listen(&mut server, V4, 128)?;
        for _ in 0..40 {
            let pair = Pair::new(&mut server, &mut client, (listener, addr))?;
            server.close(pair.server)?;
            client.wait_for(pair.client, libc::POLLRDHUP)?;
        }
        client.limit_descriptors(60)?;
        while client.socket(libc::AF_INET, 0).is_ok() {}
        for _ in 0..2 {
            client.socket(libc::AF_INET, 0).expect_err("EMFILE");
        }
        let open = std::fs::read_dir(format!("/proc/{}/fd", client.pid()))?.count();
        let events = Events::of(tracer)?.named("fd.exhausted");
        assert_eq!(events.pids(), [client.pid()].repeat(3));
        let told = events.only(|event| event.get("tcptrace.fd.held").is_some());
        let held = lines(told.one()?, "tcptrace.fd.held");
        let first = held.first().map(String::as_str);
        let expected = format!("40 tcp CLOSE_WAIT out {addr}");
        assert_eq!(first, Some(expected.as_str()), "{held:?}");
        let rows = held
            .iter()
            .filter_map(|row| row.split(' ').next()?.parse::<u64>().ok());
        let others = told.one()?.number("tcptrace.fd.held_others");
        assert_eq!(rows.sum::<u64>() + others.unwrap_or_default(), open as u64);
        Ok(())
    });
}

#[test]
fn a_full_queue_says_that_its_server_is_stopped() {
    in_netns(|netns| {
        netns.sysctl("net.core.somaxconn", "77")?;
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let (listener, addr) = listen(&mut server, V4, 1)?;
        let asked = Pair::new(&mut server, &mut client, (listener, addr))?;
        client.send(asked.client, b"request")?;
        server.wait_for_unread(asked.server, 7)?;
        for _ in 0..2 {
            client.connected(addr)?;
        }
        server.wait_for_queue(listener, 2)?;
        server.signal(Signal::SIGSTOP)?;
        wait_for_process_state(server.pid(), 'T')?;
        let fds: Vec<Fd> = (0..10)
            .map(|_| client.connecting(addr))
            .collect::<Result<_, _>>()?;
        fds.into_iter().try_for_each(|fd| client.close(fd))?;
        let told = tracer.wait_for("the acceptor", SOON, |record| {
            record.get("tcptrace.acceptor.state").is_some()
        })?;
        server.signal(Signal::SIGCONT)?;
        let events = Events::of(tracer)?.lost_connections();
        assert_eq!(events.count(), 10);
        let only = events.only(|event| event.get("tcptrace.acceptor.state").is_some());
        assert_eq!(only.one()?, &told);
        assert_eq!(told.text("tcptrace.acceptor.state"), Some("T"));
        let pid = Some(u64::from(server.pid()));
        assert_eq!(told.number("tcptrace.acceptor.pid"), pid);
        assert_eq!(told.number("tcptrace.acceptor.tid"), pid);
        let somaxconn = told.number("tcptrace.accept_queue.somaxconn");
        assert_eq!(somaxconn, Some(77));
        assert_eq!(told.number("tcptrace.work.inbound"), Some(1));
        assert_eq!(told.get("tcptrace.fd.held"), None, "far from its limit");
        Ok(())
    });
}

/// A process that has the listener in an epoll instance and does something else.
fn worker(server: &mut Actor, listener: Fd) -> Result<Actor> {
    let mut worker = fork(server)?;
    let epoll = worker.sys(libc::SYS_epoll_create1, &[0.into()])?.value;
    // struct epoll_event, at most 16 bytes long.
    let event = [&libc::EPOLLIN.to_ne_bytes()[..], &[0; 12]].concat();
    let (add, event) = (libc::EPOLL_CTL_ADD.into(), event[..].into());
    let args = [Arg::Int(epoll), add, listener.into(), event];
    worker.sys(libc::SYS_epoll_ctl, &args)?;
    // It reads its next order.
    wait_for_process_state(worker.pid(), 'S')?;
    Ok(worker)
}

#[test]
fn of_several_holders_the_acceptor_is_named() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut client = actor("client")?;
        let none = [0_u8; 8];
        let mut overflow = |workers: usize, stopped: Option<usize>| {
            let mut server = actor("server")?;
            let (listener, addr) = listen(&mut server, V4, 1)?;
            let workers = (0..workers)
                .map(|_| worker(&mut server, listener))
                .collect::<Result<Vec<_>>>()?;
            // As nginx's master does.
            let suspend = format!("sys {}", libc::SYS_rt_sigsuspend);
            server.begin(&suspend, &[none[..].into(), none.len().into()])?;
            if let Some(stopped) = stopped {
                workers[stopped].signal(Signal::SIGSTOP)?;
                wait_for_process_state(workers[stopped].pid(), 'T')?;
            }
            for _ in 0..2 {
                client.connected(addr)?;
            }
            let more = client.connecting(addr)?;
            let told = tracer.wait_for("the acceptor", SOON, |record| {
                record.number("network.local.port") == Some(addr.port().into())
                    && record.get("tcptrace.acceptor.pid").is_some()
            })?;
            client.close(more)?;
            let state = told.text("tcptrace.acceptor.state").map(str::to_owned);
            let pid = told.number("tcptrace.acceptor.pid");
            assert_eq!(told.text("tcptrace.acceptor.name"), Some("actor"));
            let mut holders = vec![server.pid()];
            holders.extend(workers.iter().map(Actor::pid));
            let listed = told.get("tcptrace.owner.pids");
            assert_eq!(listed, Some(&serde_json::json!(holders)));
            let nth = workers.iter().position(|it| pid == Some(it.pid().into()));
            anyhow::Ok((nth, state))
        };
        // Not the one that made the listener, which waits for its child.
        assert_eq!(overflow(1, None)?, (Some(0), Some("S".into())));
        // Two have it, and the stopped one is why.
        assert_eq!(overflow(3, Some(1))?, (Some(1), Some("T".into())));
        Events::of(tracer)?;
        Ok(())
    });
}

#[test]
fn a_refusal_names_the_listeners_that_could_have_been_meant() {
    in_netns(|here| {
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let (end, ended) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || -> Result<()> {
                let netns = Netns::enter()?;
                let mut other = actor("container")?;
                let (_, addr) = listen(&mut other, V4, 8)?;
                _ = tell.send((netns.inode(), other.pid(), addr));
                // Ends with the test.
                _ = ended.recv();
                Ok(())
            });
            let (there, other, meant) = told.recv()?;
            let mut server = actor("server")?;
            let beside = SocketAddr::from(([127, 0, 0, 2], meant.port()));
            listen(&mut server, &beside.to_string(), 8)?;
            let tracer = trace(here, &[])?;
            let mut client = actor("client")?;
            client.connected(meant).expect_err("ECONNREFUSED");
            let events = Events::of(tracer)?.named("connect.failed");
            let failed = events.one()?;
            assert_eq!(failed.text("error.type"), Some("ECONNREFUSED"));
            assert_eq!(
                lines(failed, "tcptrace.nearby"),
                [
                    format!("{beside} netns {} server[{}]", here.inode(), server.pid()),
                    format!("{meant} netns {there} container[{other}]"),
                ]
            );
            drop(end);
            Ok(())
        })
    });
}

#[test]
fn a_taken_port_names_its_holder_and_used_up_ports_are_counted() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let (_, addr) = listen(&mut server, "0.0.0.0:8080", 8)?;
        netns.sysctl("net.ipv4.ip_local_port_range", "40000 40000")?;
        let to = SocketAddr::from(([127, 0, 0, 1], addr.port()));
        client.connected(to)?;
        client.connected(to).expect_err("EADDRNOTAVAIL");
        let fd = client.socket(libc::AF_INET, 0)?;
        client.bind(fd, to).expect_err("EADDRINUSE");
        let events = Events::of(tracer)?;
        let bind = events.named("socket.error");
        let bind = bind.one()?;
        let holder = |name: &str| bind.get(&format!("tcptrace.port.holder.{name}")).cloned();
        assert_eq!(holder("address"), Some("0.0.0.0".into()));
        assert_eq!(holder("port"), Some(8080.into()));
        assert_eq!(holder("state"), Some("listen".into()));
        assert_eq!(holder("pid"), Some(server.pid().into()));
        let failed = events.named("connect.failed");
        let failed = failed.one()?;
        for (name, expected) in [
            ("first", 40_000),
            ("last", 40_000),
            ("in_use", 1),
            ("time_wait", 0),
        ] {
            let number = failed.number(&format!("tcptrace.ports.{name}"));
            assert_eq!(number, Some(expected), "{name}");
        }
        Ok(())
    });
}

#[test]
fn a_listener_on_any_address_is_named_to_whoever_wants_one_of_its_port() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let listeners = [("0.0.0.0:8004", "0.0.0.0"), ("[::]:8006", "::")];
        for (addr, _) in listeners {
            listen(&mut server, addr, 8)?;
        }
        let wanted = [
            "127.0.0.1:8004",
            "0.0.0.0:8004",
            "[::]:8004",
            "[::1]:8006",
            "127.0.0.1:8006",
            "[::]:8006",
            "0.0.0.0:8006",
        ];
        let tracer = trace(netns, &[])?;
        for addr in wanted {
            listen(&mut client, addr, 8).expect_err("EADDRINUSE");
        }
        let events = Events::of(tracer)?.named("socket.error");
        assert_eq!(events.count(), wanted.len() as u64);
        for addr in wanted {
            let addr: SocketAddr = addr.parse()?;
            let events = events.local(addr);
            let event = events.one()?;
            let holder = |name: &str| event.get(&format!("tcptrace.port.holder.{name}")).cloned();
            let of = listeners[usize::from(addr.port() == 8006)].1;
            assert_eq!(holder("address"), Some(of.into()), "{addr}");
            assert_eq!(holder("state"), Some("listen".into()), "{addr}");
            assert_eq!(holder("pid"), Some(server.pid().into()), "{addr}");
            assert_eq!(holder("name"), Some("actor".into()), "{addr}");
        }
        Ok(())
    });
}

#[test]
fn a_connection_never_closed_says_what_its_process_waits_for() {
    in_netns(|netns| {
        let tracer = trace(netns, &["--close-wait-after", "1s"])?;
        let mut database = actor("database")?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let (listener, addr) = listen(&mut database, V4, 8)?;
        for _ in 0..3 {
            let query = Pair::new(&mut database, &mut server, (listener, addr))?;
            server.send(query.client, b"query")?;
            database.wait_for_unread(query.server, 5)?;
        }
        let gone = connected(&mut server, &mut client, V4)?;
        client.close(gone.client)?;
        let told = tracer.wait_for("the workload", SOON, |record| {
            record.name() == "close_wait.stuck" && record.get("tcptrace.work.inbound").is_some()
        })?;
        assert_eq!(told.pid(), Some(server.pid().into()));
        assert_eq!(told.number("tcptrace.work.inbound"), Some(0));
        let outbound = lines(&told, "tcptrace.work.outbound");
        let expected = format!("3 {addr} busy 3 oldest_ms ");
        assert!(
            matches!(&outbound[..], [one] if one.starts_with(&expected)),
            "{outbound:?}"
        );
        Ok(())
    });
}

#[test]
fn a_pool_is_looked_at_each_second_while_its_clients_leave() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut database = actor("database")?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let (listener, addr) = listen(&mut database, V4, 8)?;
        for _ in 0..2 {
            let query = Pair::new(&mut database, &mut server, (listener, addr))?;
            server.send(query.client, b"query")?;
            database.wait_for_unread(query.server, 5)?;
        }
        let front = listen(&mut server, V4, 8)?;
        let waiting = (0..6)
            .map(|_| {
                let pair = Pair::new(&mut server, &mut client, front)?;
                client.send(pair.client, b"request")?;
                server.recv(pair.server, 7)?;
                client.set_receive_timeout(pair.client, Duration::from_secs(1))?;
                anyhow::Ok(pair.client)
            })
            .collect::<Result<Vec<_>>>()?;
        for &fd in &waiting[..3] {
            client.recv(fd, 1).expect_err("EAGAIN after a second");
            client.close(fd)?;
        }
        let events = Events::of(tracer)?.named("close_wait.entered");
        assert_eq!(events.pids(), [server.pid()].repeat(3));
        let told = events.only(|event| event.get("tcptrace.work.inbound").is_some());
        assert_eq!(told.count(), 3, "a second lies between any two");
        let expected = format!("2 {addr} busy 2 oldest_ms ");
        for event in &told.0 {
            // Those who left wait for the pool all the same.
            assert_eq!(event.number("tcptrace.work.inbound"), Some(6));
            let outbound = lines(event, "tcptrace.work.outbound");
            let [pool] = &outbound[..] else {
                panic!("{outbound:?}");
            };
            assert!(pool.starts_with(&expected), "{pool}");
        }
        Ok(())
    });
}

fn other_end(record: &Record) -> Option<u64> {
    record.number("tcptrace.other_end.pid")
}

/// Runs `ip` in the calling thread's namespace.
fn ip(words: &str) -> Result<()> {
    let ended = Command::new("ip").args(words.split(' ')).status()?;
    ensure!(ended.success(), "ip {words}: {ended}");
    Ok(())
}

#[test]
fn an_exit_names_who_was_connected() {
    in_netns(|here| {
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let (meet, addr) = std::sync::mpsc::channel();
            let (end, ended) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || -> Result<()> {
                let there = Netns::enter()?;
                let mut container = actor("container")?;
                _ = tell.send((there.path(), container.pid()));
                let addr = addr.recv()?;
                ip("address add 192.0.2.2/24 dev end1")?;
                ip("link set end1 up")?;
                container.connected(addr)?;
                _ = tell.send((there.path(), container.pid()));
                // Ends with the test.
                _ = ended.recv();
                Ok(())
            });
            let (there, container) = told.recv()?;
            let there = there.display();
            ip(&format!(
                "link add end0 type veth peer name end1 netns {there}"
            ))?;
            ip("address add 192.0.2.1/24 dev end0")?;
            ip("link set end0 up")?;
            let mut server = actor("server")?;
            let mut client = actor("client")?;
            let (listener, addr) = listen(&mut server, "0.0.0.0:0", 8)?;
            let tracer = trace(here, &["--event", "state.changed"])?;
            meet.send(SocketAddr::from(([192, 0, 2, 1], addr.port())))?;
            told.recv()?;
            server.accept(listener)?;
            client.connected(SocketAddr::from(([127, 0, 0, 1], addr.port())))?;
            server.accept(listener)?;
            server.kill()?;
            let events = Events::of(tracer)?.only(|event| other_end(event).is_some());
            let of_exit = |event: &Record| event.number("tcptrace.exit.signal") == Some(9);
            assert!(events.0.iter().all(of_exit), "{events:?}");
            let mut found: Vec<_> = events.0.iter().filter_map(other_end).collect();
            found.sort_unstable();
            let mut expected = [container, client.pid()].map(u64::from);
            expected.sort_unstable();
            assert_eq!(found, expected);
            drop(end);
            Ok(())
        })
    });
}

#[test]
fn an_exit_with_many_connections_asks_about_a_few() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let (listener, addr) = listen(&mut server, V4, 8)?;
        for _ in 0..300 {
            Pair::new(&mut server, &mut client, (listener, addr))?;
        }
        let tracer = trace(netns, &["--event", "state.changed"])?;
        server.kill()?;
        let events = Events::of(tracer)?;
        let closed = |event: &Record| {
            event.text("tcptrace.state.previous") == Some("established")
                && event.number("tcptrace.exit.signal") == Some(9)
        };
        let closed = events.only(closed).local(addr);
        assert_eq!(closed.count(), 300);
        let told = closed.only(|event| other_end(event).is_some());
        assert!((1..=100).contains(&told.count()), "{}", told.count());
        let client = Some(client.pid().into());
        assert!(told.0.iter().all(|event| other_end(event) == client));
        Ok(())
    });
}

#[test]
fn who_does_not_read_is_named() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let pair = connected(&mut server, &mut client, V4)?;
        let (level, option) = (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT);
        server.set(pair.server, level, option, &[1_000])?;
        let (bytes, flags) = (vec![b'x'; 1 << 16], libc::MSG_DONTWAIT);
        let (fd, len) = (pair.server.into(), bytes.len().into());
        let args = [fd, bytes[..].into(), len, flags.into(), 0.into(), 0.into()];
        while server.sys(libc::SYS_sendto, &args).is_ok() {}
        server.wait_for(pair.server, libc::POLLHUP)?;
        // What went by unseen shows when the socket is used.
        server.recv(pair.server, 1).expect_err("ETIMEDOUT");
        let timeout = tracer.wait_for("a timeout", SOON, |record| {
            record.name() == "connection.timeout"
        })?;
        assert_eq!(timeout.pid(), Some(server.pid().into()));
        assert_eq!(other_end(&timeout), Some(client.pid().into()));
        assert_eq!(timeout.text("tcptrace.other_end.name"), Some("actor"));
        Events::of(tracer)?;
        Ok(())
    });
}

#[test]
fn who_gave_up_or_was_not_wanted_is_named() {
    in_netns(|netns| {
        let tracer = trace(netns, &["--event", "all", "--close-wait-after", "0"])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let listener = listen(&mut server, V4, 8)?;
        let unwanted = Pair::new(&mut server, &mut client, listener)?;
        server.close(unwanted.server)?;
        let waited = Pair::new(&mut server, &mut client, listener)?;
        client.send(waited.client, b"request")?;
        server.wait_for_unread(waited.server, 7)?;
        client.shutdown(waited.client, libc::SHUT_WR)?;
        server.wait_for(waited.server, libc::POLLRDHUP)?;
        let events = Events::of(tracer)?;
        let closed = events.named("state.changed").at_server(&unwanted);
        let closed = closed.only(|event| other_end(event).is_some());
        let client = Some(client.pid().into());
        assert_eq!(other_end(closed.one()?), client);
        let entered = events.named("close_wait.entered").at_server(&waited);
        let entered = entered.one()?;
        assert_eq!(other_end(entered), client, "{entered:?}");
        assert_eq!(entered.number("tcptrace.work.inbound"), Some(1));
        Ok(())
    });
}

/// Handshakes stay half done where the server wants to see data first. The queue holds five: one
/// more than its limit; on older kernels four.
fn flood(server: &mut Actor, client: &mut Actor, addr: &str, late: usize) -> Result<SocketAddr> {
    let (listener, addr) = listen(server, addr, 4)?;
    server.set(listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &[30])?;
    for _ in 0..5 {
        client.connecting(addr)?;
    }
    let fds: Vec<Fd> = (0..late)
        .map(|_| client.connecting(addr))
        .collect::<Result<_, _>>()?;
    // Gone before their SYN is sent again, a second later.
    fds.into_iter().try_for_each(|fd| client.close(fd))?;
    Ok(addr)
}

fn syn_flood(cookies: &str, counter: &str) {
    in_netns(|netns| {
        netns.sysctl("net.ipv4.tcp_syncookies", cookies)?;
        let tracer = trace(netns, &[])?;
        let before = netns.counters()?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let first = flood(&mut server, &mut client, V4, 20)?;
        tracer.wait_for("a SYN flood", SOON, |record| {
            record.name() == "syn_queue.overflow"
        })?;
        let second = flood(&mut server, &mut client, "[::1]:0", 30)?;
        // The last second's are told at the end.
        let kernel = netns.counters()?.since(&before, counter);
        let events = Events::of(tracer)?.named("syn_queue.overflow");
        assert!(kernel >= Some(50), "the provocation itself: {kernel:?}");
        let count = |event: &Record| event.number("tcptrace.syn_queue.count");
        let sum = events.0.iter().filter_map(count).sum::<u64>();
        assert_eq!(Some(sum), kernel);
        assert!(events.pids().iter().all(|pid| *pid == server.pid()));
        for addr in [first, second] {
            let events = events.local(addr);
            assert!(events.count() > 0, "{addr}");
            for event in &events.0 {
                let len = event.number("tcptrace.syn_queue.len");
                assert!(matches!(len, Some(4 | 5)), "{len:?}");
                assert_eq!(event.number("tcptrace.syn_queue.max"), Some(4));
                let sent = event.get("tcptrace.syn_queue.cookies").is_some();
                assert_eq!(sent, cookies == "1");
            }
        }
        Ok(())
    });
}

#[test]
fn dropped_handshakes_equal_the_kernels_counter() {
    syn_flood("0", "TcpExtTCPReqQFullDrop");
}

#[test]
fn handshakes_answered_with_cookies_equal_the_kernels_counter() {
    syn_flood("1", "TcpExtTCPReqQFullDoCookies");
}

#[test]
fn a_flood_in_a_namespace_nobody_named_is_seen() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let tracer = trace_unfiltered(&["--event", "syn_queue.overflow"])?;
        let before = netns.counters()?;
        netns.sysctl("net.ipv4.tcp_syncookies", "0")?;
        flood(&mut server, &mut client, V4, 20)?;
        let counted = netns.counters()?.since(&before, "TcpExtTCPReqQFullDrop");
        let inode = u64::from(netns.inode());
        let event = tracer.wait_for("a SYN flood", SOON, |record| {
            record.number("tcptrace.netns") == Some(inode)
        })?;
        let counted = counted.context("no such counter")?;
        assert_eq!(event.number("tcptrace.syn_queue.count"), Some(counted));
        assert_eq!(event.pid(), Some(server.pid().into()));
        Ok(())
    });
}
