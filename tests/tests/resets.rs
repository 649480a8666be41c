//! Every RST the kernel counts is seen once, with its cause, its ends and its owner.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use tcptrace_tests::*;

#[test]
fn resets_of_every_kind_equal_the_kernels_counters() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let before = netns.counters()?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        for addr in LOOPBACKS {
            // Unread data, at either end.
            let pair = connected(&mut server, &mut client, addr)?;
            close_unread(&mut server, &mut client, &pair, 100)?;
            let pair = connected(&mut server, &mut client, addr)?;
            server.send(pair.server, b"answer")?;
            client.wait_for_unread(pair.client, 6)?;
            client.close(pair.client)?;
            server.wait_for(pair.server, libc::POLLHUP)?;
            // SO_LINGER 0, at either end.
            let pair = connected(&mut server, &mut client, addr)?;
            server.abort(pair.server)?;
            let pair = connected(&mut server, &mut client, addr)?;
            client.abort(pair.client)?;
            server.wait_for(pair.server, libc::POLLHUP)?;
            // A listener closes on two queued connections; then nobody listens there.
            let (listener, addr) = listen(&mut server, addr, 8)?;
            client.connected(addr)?;
            client.connected(addr)?;
            server.wait_for_queue(listener, 2)?;
            server.close(listener)?;
            client.connected(addr).expect_err("nobody listens");
        }
        let after = netns.counters()?;
        let events = Events::of(tracer)?.named("reset.sent");

        let grown = |name| after.since(&before, name).unwrap_or(0);
        ensure!(
            grown("TcpOutRsts") == 3 * 7,
            "the provocation itself: {}",
            grown("TcpOutRsts")
        );
        assert_eq!(events.count(), grown("TcpOutRsts"));
        let unread = events.error("closed_with_unread_data");
        assert_eq!(unread.count(), grown("TcpExtTCPAbortOnClose"));
        assert_eq!(unread.pids(), [server.pid(), client.pid()].repeat(3));
        let linger = events.error("linger_zero");
        assert_eq!(linger.count(), grown("TcpExtTCPAbortOnData"));
        assert_eq!(linger.pids(), [server.pid(), client.pid()].repeat(3));
        let listener = events.error("listener_closed");
        assert_eq!(listener.pids(), [server.pid()].repeat(6));
        assert_eq!(events.error("no_listener").count(), 3);
        Ok(())
    });
}

/// With a helper, and where the kernel has `bpf_rdonly_cast` without.
#[test]
fn both_ways_of_reading_the_kernels_memory_tell_the_same() {
    // What two tracers may say differently: their own ids, and what time it was.
    const OWN: [&str; 7] = ["id", "caused", "ago", "idle", "age", "duration", "checked"];
    fn said(events: &Events) -> Vec<String> {
        let kinds = [
            "reset.sent",
            "reset.received",
            "socket.error",
            "state.changed",
        ];
        let events = events.only(|record| kinds.contains(&record.name()));
        let mut said: Vec<String> = Vec::new();
        for record in &events.0 {
            let lasting = told(record).into_iter().filter(|(key, _)| {
                let mut words = key.split(['.', '_']);
                key.starts_with("process.") || !words.any(|word| OWN.contains(&word))
            });
            let lasting: Vec<_> = lasting
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            said.push(format!("{} {}", record.name(), lasting.join(" ")));
        }
        said.sort();
        said
    }
    in_netns(|netns| {
        let args = ["--event", "reset,socket.error,state"];
        let tracers = [
            trace(netns, &args)?,
            trace(netns, &[&args[..], &["--without", "cast"]].concat())?,
        ];
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        for addr in LOOPBACKS {
            let pair = connected(&mut server, &mut client, addr)?;
            client.send(pair.client, b"request")?;
            server.wait_for_unread(pair.server, 7)?;
            server.recv(pair.server, 3)?;
            server.send(pair.server, b"answer")?;
            client.wait_for_unread(pair.client, 6)?;
            server.close(pair.server)?;
            client.wait_for(pair.client, libc::POLLHUP)?;
            client
                .send(pair.client, b"more")
                .expect_err("the connection was reset");
            client.close(pair.client)?;
            client
                .connected(SocketAddr::new(pair.server_addr.ip(), 1))
                .expect_err("refused");
        }
        let [cast, helper] = tracers.map(Events::of);
        let (cast, helper) = (said(&cast?), said(&helper?));
        ensure!(
            cast.iter()
                .any(|it| it.contains("tcptrace.socket.unread=4")),
            "{cast:#?}"
        );
        assert_eq!(cast.len(), helper.len());
        for (cast, helper) in cast.iter().zip(&helper) {
            assert_eq!(cast, helper);
        }
        Ok(())
    });
}

#[test]
fn unread_bytes_and_state_are_exact() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut expected = vec![];
        for addr in LOOPBACKS {
            for (sent, read, half_closed) in [
                (1, 0, false),
                (4000, 0, false),
                (4000, 1500, false),
                (5, 0, true),
                (9, 3, true),
            ] {
                let pair = connected(&mut server, &mut client, addr)?;
                client.send(pair.client, &vec![b'x'; sent])?;
                server.wait_for_unread(pair.server, u32::try_from(sent)?)?;
                if read > 0 {
                    server.recv(pair.server, read)?;
                }
                if half_closed {
                    client.shutdown(pair.client, libc::SHUT_WR)?;
                    server.wait_for(pair.server, libc::POLLRDHUP)?;
                }
                server.close(pair.server)?;
                let state = if half_closed {
                    "close_wait"
                } else {
                    "established"
                };
                expected.push((pair, sent - read, state));
            }
        }
        let events = Events::of(tracer)?.named("reset.sent");
        for (pair, unread, state) in expected {
            let event = events.at_server(&pair);
            let event = event.one()?;
            assert_eq!(
                event.number("tcptrace.socket.unread"),
                Some(unread as u64),
                "{event:?}"
            );
            assert_eq!(
                event.text("network.connection.state"),
                Some(state),
                "{event:?}"
            );
            assert_eq!(event.text("error.type"), Some("closed_with_unread_data"));
            assert_eq!(
                event.number("tcptrace.socket.fd"),
                Some(pair.server.try_into()?)
            );
        }
        Ok(())
    });
}

#[test]
fn both_ends_of_a_reset_name_each_other() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut pairs = vec![];
        for addr in LOOPBACKS {
            let pair = connected(&mut server, &mut client, addr)?;
            close_unread(&mut server, &mut client, &pair, 7)?;
            pairs.push(pair);
        }
        let events = Events::of(tracer)?;
        for (pair, family) in pairs.iter().zip(["ipv4", "ipv6", "ipv4"]) {
            let sent = events.named("reset.sent").at_server(pair);
            let received = events.named("reset.received").at_client(pair);
            let (sent, received) = (sent.one()?, received.one()?);
            assert_eq!(sent.pid(), Some(server.pid().into()));
            assert_eq!(received.pid(), Some(client.pid().into()));
            assert_eq!(sent.text("network.type"), Some(family));
            assert_eq!(received.text("network.type"), Some(family));
            assert_eq!(received.text("error.type"), Some("ECONNRESET"));
            assert_eq!(sent.number("tcptrace.netns"), Some(netns.inode().into()));
            let community = |record: &Record| record.get("tcptrace.flow.community_id").cloned();
            assert!(community(sent).is_some());
            assert_eq!(community(sent), community(received));
        }
        Ok(())
    });
}

#[test]
fn a_closed_port_answers_without_an_owner() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut refusals = vec![];
        for addr in LOOPBACKS {
            let (listener, addr) = listen(&mut server, addr, 8)?;
            server.close(listener)?;
            client.connected(addr).expect_err("nobody listens");
            refusals.push(addr);
        }
        let events = Events::of(tracer)?;
        for addr in refusals {
            let sent = events.named("reset.sent").local(addr);
            let sent = sent.one()?;
            assert_eq!(sent.text("error.type"), Some("no_listener"));
            assert_eq!(sent.pid(), None, "nobody owns a closed port: {sent:?}");
            assert_eq!(sent.text("tcptrace.owner.confidence"), Some("unknown"));
            let failed = events.named("connect.failed").peer(addr);
            let failed = failed.one()?;
            assert_eq!(failed.text("error.type"), Some("ECONNREFUSED"));
            assert_eq!(failed.pid(), Some(client.pid().into()));
            assert_eq!(failed.number("tcptrace.connect.attempts"), Some(1));
        }
        Ok(())
    });
}

#[test]
fn writing_to_a_closed_connection_draws_one_reset_from_its_former_end() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let before = netns.counters()?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut pairs = vec![];
        for addr in LOOPBACKS {
            let pair = connected(&mut server, &mut client, addr)?;
            server.close(pair.server)?;
            client.wait_for(pair.client, libc::POLLRDHUP)?;
            client.send(pair.client, b"too late")?;
            client.wait_for(pair.client, libc::POLLHUP)?;
            pairs.push(pair);
        }
        let grown = netns.counters()?.since(&before, "TcpOutRsts");
        let events = Events::of(tracer)?;
        assert_eq!(Some(events.named("reset.sent").count()), grown);
        for pair in pairs {
            events.named("reset.sent").at_server(&pair).one()?;
            let received = events.named("reset.received").at_client(&pair);
            let received = received.one()?;
            assert_eq!(
                received.text("network.connection.state"),
                Some("close_wait")
            );
            assert_eq!(received.text("error.type"), Some("EPIPE"));
            assert_eq!(received.pid(), Some(client.pid().into()));
        }
        Ok(())
    });
}

#[test]
fn the_exit_of_a_process_is_told_with_its_status() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut client = actor("client")?;
        let mut ends: Vec<(Pair, u32, &str, u64)> = vec![];
        for addr in LOOPBACKS {
            for killed in [false, true] {
                let mut server = actor("server")?;
                let pair = connected(&mut server, &mut client, addr)?;
                client.send(pair.client, b"request")?;
                server.wait_for_unread(pair.server, 7)?;
                if killed {
                    server.kill()?;
                    ends.push((pair, server.pid(), "tcptrace.exit.signal", 9));
                } else {
                    server.exit(3)?;
                    ends.push((pair, server.pid(), "tcptrace.exit.code", 3));
                }
            }
        }
        let events = Events::of(tracer)?.named("reset.sent");
        for (pair, pid, how, status) in ends {
            let event = events.at_server(&pair);
            let event = event.one()?;
            check_exit(event, pid, how, status)?;
        }
        Ok(())
    });
}

fn check_exit(event: &Record, pid: u32, how: &str, status: u64) -> Result<()> {
    ensure!(event.pid() == Some(pid.into()), "{event:?}");
    ensure!(
        event.text("error.type") == Some("process_exited"),
        "{event:?}"
    );
    ensure!(event.number(how) == Some(status), "{event:?}");
    ensure!(
        event.number("tcptrace.socket.unread") == Some(7),
        "{event:?}"
    );
    Ok(())
}
