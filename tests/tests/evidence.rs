//! What the kernel half says of a socket beside the event itself: the evidence findings rest on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tcptrace_tests::*;

/// How long a peer waits before it gives up: what was not asked for shortly before counts as given
/// up after half a second.
const PATIENCE: Duration = Duration::from_millis(700);

/// What the kernel's clock for such things may be off: a jiffy at either end, of at most 10 ms.
const TICKS: u64 = 20;

/// Lets time pass: a wait has no other witness.
fn wait() -> u64 {
    let since = Instant::now();
    std::thread::sleep(PATIENCE);
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn change(events: &Events, from: &str, to: &str) -> Events {
    events.named("state.changed").only(|record| {
        record.text("tcptrace.state.previous") == Some(from)
            && record.text("network.connection.state") == Some(to)
    })
}

fn about(record: &Record, name: &str, expected: u64, at_most: u64) -> Result<()> {
    let number = record.number(name);
    ensure!(
        number.is_some_and(|number| number + TICKS >= expected && number <= at_most + TICKS),
        "{name}: {number:?} is not in {expected}..={at_most}: {record:?}"
    );
    Ok(())
}

fn about_us(record: &Record, name: &str, expected_ms: u64, at_most_ms: u128) -> Result<()> {
    let number = record.number(name).map(|number| number / 1000);
    ensure!(
        number.is_some_and(|ms| ms >= expected_ms && u128::from(ms) <= at_most_ms),
        "{name}: {number:?} ms is not in {expected_ms}..={at_most_ms}: {record:?}"
    );
    Ok(())
}

#[test]
fn a_peer_that_gives_up_has_waited_this_long() {
    in_netns(|netns| {
        let tracer = trace(netns, &["--event", "+state"])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        // How often was asked and answered before; whether the last question has no answer.
        for (addr, rounds, unanswered) in [
            (LOOPBACKS[0], 0, true),
            (LOOPBACKS[1], 0, true),
            (LOOPBACKS[2], 2, true),
            (LOOPBACKS[0], 3, true),
            (LOOPBACKS[0], 1, false),
            (LOOPBACKS[1], 4, false),
            (LOOPBACKS[2], 0, false),
        ] {
            let pair = connected(&mut server, &mut client, addr)?;
            for _ in 0..rounds {
                exchange(&mut server, &mut client, &pair)?;
            }
            if unanswered {
                client.send(pair.client, b"question")?;
                server.recv(pair.server, 8)?;
            }
            let since = Instant::now();
            let waited = wait();
            client.close(pair.client)?;
            server.wait_for(pair.server, libc::POLLRDHUP)?;
            let at_most = u64::try_from(since.elapsed().as_millis())?;
            server.send(pair.server, b"too late")?;
            server.wait_for(pair.server, libc::POLLHUP)?;
            let name = format!("{addr} {rounds} {unanswered}");
            let port = pair.client_addr.port();
            let at_server = move |record: &Record| {
                record.name() == "state.changed"
                    && record.number("network.peer.port") == Some(port.into())
            };
            let entered = tracer.wait_for("the FIN", SOON, |record| {
                at_server(record) && record.text("network.connection.state") == Some("close_wait")
            })?;
            if unanswered {
                about(&entered, "tcptrace.fin.waited_ms", waited, at_most).context(name.clone())?;
            } else {
                ensure!(
                    entered.number("tcptrace.fin.waited_ms").is_none(),
                    "{name}: {entered:?}"
                );
            }
            about(&entered, "tcptrace.fin.idle_ms", waited, at_most).context(name)?;
            ensure!(
                entered.number("tcptrace.fin.written") == Some(0),
                "{entered:?}"
            );
            let (asked, answered) = (rounds + u64::from(unanswered), rounds);
            ensure!(entered.number("tcptrace.socket.bytes_received") == Some(8 * asked));
            ensure!(entered.number("tcptrace.socket.bytes_sent") == Some(6 * answered));
            let gone = tracer.wait_for("the end", SOON, |record| {
                at_server(record) && record.text("network.connection.state") == Some("closed")
            })?;
            ensure!(gone.number("tcptrace.fin.written") == Some(8), "{gone:?}");
            ensure!(gone.number("tcptrace.socket.bytes_received") == Some(8 * asked));
            server.close(pair.server)?;
        }
        Ok(())
    });
}

#[test]
fn each_end_knows_its_side_and_its_age_and_what_was_accepted_when() {
    in_netns(|netns| {
        let tracer = trace(netns, &["--event", "+state"])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut pairs = vec![];
        for addr in LOOPBACKS {
            let (listener, addr) = listen(&mut server, addr, 8)?;
            let born = Instant::now();
            let fd = client.connected(addr)?;
            let queued = wait();
            let accepted = Instant::now();
            let at_server = server.accept(listener)?;
            let client_addr = client.local_addr(fd)?;
            let waited = wait();
            server.shutdown(at_server, libc::SHUT_WR)?;
            let ages = [born, accepted].map(|since| since.elapsed().as_millis());
            client.wait_for(fd, libc::POLLRDHUP)?;
            client.close(fd)?;
            let left = born.elapsed().as_millis();
            server.wait_for(at_server, libc::POLLHUP)?;
            pairs.push((addr, client_addr, queued + waited, waited, ages, left));
            server.close(at_server)?;
        }
        let events = Events::of(tracer)?;
        for (server_addr, client_addr, age, accepted, [at_most_age, at_most], at_most_left) in pairs
        {
            let at_server = events.local(server_addr).peer(client_addr);
            let shut = change(&at_server, "established", "fin_wait_1");
            let shut = shut.one()?;
            ensure!(
                shut.text("tcptrace.socket.side") == Some("server"),
                "{shut:?}"
            );
            about_us(shut, "tcptrace.socket.age_us", age, at_most_age)?;
            about_us(shut, "tcptrace.socket.accepted_ago_us", accepted, at_most)?;
            ensure!(shut.number("tcptrace.socket.shutdown_ago_us").is_none());
            let at_client = events.local(client_addr).peer(server_addr);
            let left = change(&at_client, "close_wait", "last_ack");
            let left = left.one()?;
            ensure!(
                left.text("tcptrace.socket.side") == Some("client"),
                "{left:?}"
            );
            about_us(left, "tcptrace.socket.age_us", age, at_most_left)?;
            ensure!(left.number("tcptrace.socket.accepted_ago_us").is_none());
            let gone = change(&at_server, "fin_wait_2", "closed");
            let gone = gone.one()?;
            ensure!(
                gone.number("tcptrace.socket.shutdown_ago_us").is_some(),
                "{gone:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_service_answers_once_one_of_its_connections_has() {
    in_netns(|netns| {
        let tracer = trace(netns, &["--event", "+state"])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let (listener, addr) = listen(&mut server, LOOPBACKS[0], 8)?;
        let mut connect =
            || -> Result<Pair> { Ok(Pair::new(&mut server, &mut client, (listener, addr))?) };
        // The early one is born before anybody has answered.
        let (silent, early, answered, late) = (connect()?, connect()?, connect()?, connect()?);
        client.close(silent.client)?;
        server.wait_for(silent.server, libc::POLLRDHUP)?;
        server.send(answered.server, b"answer")?;
        client.recv(answered.client, 6)?;
        for pair in [&answered, &early, &late] {
            client.close(pair.client)?;
            server.wait_for(pair.server, libc::POLLRDHUP)?;
        }
        let last = Pair::new(&mut server, &mut client, (listener, addr))?;
        client.close(last.client)?;
        server.wait_for(last.server, libc::POLLRDHUP)?;
        let events = Events::of(tracer)?;
        for (pair, answers) in [
            (&silent, false),
            (&early, true),
            (&late, true),
            (&last, true),
        ] {
            let entered = change(&events.at_server(pair), "established", "close_wait");
            let entered = entered.one()?;
            let told = entered.get("tcptrace.socket.service_answers").is_some();
            ensure!(told == answers, "{entered:?}");
        }
        Ok(())
    });
}

#[test]
fn a_full_listener_says_when_it_last_accepted() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        for (addr, accepts) in [(LOOPBACKS[0], true), (LOOPBACKS[1], false)] {
            let (listener, addr) = listen(&mut server, addr, 1)?;
            client.connected(addr)?;
            if accepts {
                server.accept(listener)?;
                client.connected(addr)?;
            }
            let since = Instant::now();
            let waited = wait();
            client.connected(addr)?;
            server.wait_for_queue(listener, 2)?;
            client.connecting(addr)?;
            let lost = tracer.wait_for("the dropped SYN", SOON, |record| {
                record.name() == "accept_queue.overflow"
                    && record.number("network.local.port") == Some(addr.port().into())
            })?;
            if accepts {
                let at_most = since.elapsed().as_millis();
                about_us(&lost, "tcptrace.accept_queue.idle_us", waited, at_most)?;
            } else {
                ensure!(
                    lost.number("tcptrace.accept_queue.idle_us").is_none(),
                    "{lost:?}"
                );
            }
            ensure!(lost.number("tcptrace.socket.accepted_ago_us").is_none());
        }
        Ok(())
    });
}

#[test]
fn the_reset_for_data_after_a_close_names_who_closed() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut client = actor("client")?;
        let mut closers = vec![];
        for addr in LOOPBACKS {
            for exits in [None, Some(3)] {
                let mut server = actor("server")?;
                let pair = connected(&mut server, &mut client, addr)?;
                let since = Instant::now();
                let closer = server.pid();
                match exits {
                    None => server.close(pair.server)?,
                    Some(status) => server.exit(status)?,
                }
                client.wait_for(pair.client, libc::POLLRDHUP)?;
                let waited = wait();
                client.send(pair.client, b"too late")?;
                client.wait_for(pair.client, libc::POLLHUP)?;
                closers.push((pair, closer, waited, since.elapsed().as_millis(), exits));
            }
        }
        let events = Events::of(tracer)?.named("reset.sent");
        for (pair, closer, waited, at_most, exits) in closers {
            let sent = events.at_server(&pair);
            let sent = sent.one()?;
            ensure!(sent.pid() == Some(closer.into()), "{sent:?}");
            ensure!(sent.number("tcptrace.socket.fd") == Some(pair.server.try_into()?));
            ensure!(sent.text("tcptrace.owner.confidence") == Some("exact"));
            ensure!(
                sent.text("tcptrace.socket.side") == Some("server"),
                "{sent:?}"
            );
            ensure!(
                sent.number("tcptrace.exit.code") == exits.map(|code| code.try_into().unwrap_or(0))
            );
            about_us(sent, "tcptrace.socket.shutdown_ago_us", waited, at_most)?;
        }
        Ok(())
    });
}

#[test]
fn the_closer_is_known_when_its_socket_is_gone_for_good() {
    in_netns(|netns| {
        // What waits for the peer's FIN waits for a second here.
        std::fs::write("/proc/sys/net/ipv4/tcp_fin_timeout", "1")?;
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut pairs = vec![];
        for addr in LOOPBACKS {
            for listens in [true, false] {
                let (listener, addr) = listen(&mut server, addr, 8)?;
                let pair = Pair::new(&mut server, &mut client, (listener, addr))?;
                server.close(pair.server)?;
                if !listens {
                    server.close(listener)?;
                }
                client.wait_for(pair.client, libc::POLLRDHUP)?;
                pairs.push((pair, listens));
            }
        }
        for (pair, _) in &pairs {
            wait_until("the server's end gone", || is_gone(pair))?;
            // An end that closed while the ACK of its FIN waited for its lock stays a full socket,
            // and leaves with a RST: then the reset is seen before the data.
            if client.send(pair.client, b"too late").is_ok() {
                client.wait_for(pair.client, libc::POLLHUP)?;
            }
        }
        let events = Events::of(tracer)?.named("reset.sent");
        for (pair, listens) in pairs {
            let sent = events.at_server(&pair);
            let sent = sent.one()?;
            ensure!(
                sent.pid() == Some(server.pid().into()),
                "{listens}: {sent:?}"
            );
            ensure!(sent.number("tcptrace.socket.fd") == Some(pair.server.try_into()?));
            ensure!(sent.number("tcptrace.socket.shutdown_ago_us") >= Some(1_000_000));
            let state = sent.text("network.connection.state");
            let gone = listens.then_some("listen");
            ensure!(state == gone || state == Some("fin_wait_2"), "{sent:?}");
        }
        Ok(())
    });
}

/// No socket is left at the server's end.
fn is_gone(pair: &Pair) -> std::io::Result<bool> {
    let mut sockets = std::fs::read_to_string("/proc/thread-self/net/tcp")?;
    sockets += &std::fs::read_to_string("/proc/thread-self/net/tcp6")?;
    let ports = [pair.server_addr, pair.client_addr].map(|addr| format!(":{:04X}", addr.port()));
    // The second and the third word of a line are this end and the other.
    Ok(!sockets.lines().any(|line| {
        let mut ends = line.split_whitespace().skip(1).zip(&ports);
        ends.all(|(end, port)| end.ends_with(port))
    }))
}

#[test]
fn a_new_connection_between_old_ends_is_not_charged_to_who_closed_the_old_one() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let (listener, addr) = listen(&mut server, LOOPBACKS[0], 8)?;
        let pair = Pair::new(&mut server, &mut client, (listener, addr))?;
        // The server's end closes first and is reset, so that nothing of it stays.
        server.abort(pair.server)?;
        server.close(listener)?;
        client.close(pair.client)?;
        let again = client.socket(libc::AF_INET, 0)?;
        client.bind(again, pair.client_addr)?;
        client.connect(again, addr).expect_err("nobody listens");
        let events = Events::of(tracer)?.named("reset.sent").error("no_listener");
        let refused = events.one()?;
        ensure!(refused.pid().is_none(), "{refused:?}");
        ensure!(refused.number("tcptrace.socket.shutdown_ago_us").is_none());
        Ok(())
    });
}

/// Changes of state that were seen, printed or not.
fn changes(tracer: Tracer) -> Result<u64> {
    let summary = Events::of(tracer)?.named("summary");
    let kinds = summary.one()?.get("tcptrace.summary.kinds").cloned();
    let kinds = kinds.context("kinds")?;
    let rows = kinds.as_array().context("an array")?;
    let rows = rows.iter().filter_map(|row| row.as_str());
    let counts = rows.filter(|row| row.contains("state.changed"));
    Ok(counts
        .filter_map(|row| row.split_whitespace().next()?.parse::<u64>().ok())
        .sum())
}

/// Both ends have had their say.
fn exchange(server: &mut Actor, client: &mut Actor, pair: &Pair) -> Result<()> {
    client.send(pair.client, b"question")?;
    server.recv(pair.server, 8)?;
    server.send(pair.server, b"answer")?;
    client.recv(pair.client, 6)?;
    Ok(())
}

fn close_client_first(server: &mut Actor, client: &mut Actor, pair: &Pair) -> Result<()> {
    client.close(pair.client)?;
    server.wait_for(pair.server, libc::POLLRDHUP)?;
    Ok(server.close(pair.server)?)
}

fn close_server_first(server: &mut Actor, client: &mut Actor, pair: &Pair) -> Result<()> {
    server.close(pair.server)?;
    client.wait_for(pair.client, libc::POLLRDHUP)?;
    Ok(client.close(pair.client)?)
}

#[test]
fn ordinary_closes_are_not_handed_over() {
    in_netns(|netns| {
        let mut client = actor("client")?;
        let mut server = actor("server")?;
        let mut listeners = vec![];
        for addr in LOOPBACKS {
            listeners.push(listen(&mut server, addr, 8)?);
        }
        let tracer = trace(netns, &[])?;
        for listener in listeners {
            let mut connect = || Pair::new(&mut server, &mut client, listener);
            let (one, other, idle) = (connect()?, connect()?, connect()?);
            for pair in [&one, &other, &idle] {
                exchange(&mut server, &mut client, pair)?;
            }
            close_client_first(&mut server, &mut client, &one)?;
            close_server_first(&mut server, &mut client, &other)?;
            wait();
            close_client_first(&mut server, &mut client, &idle)?;
        }
        ensure!(changes(tracer)? == 0);
        Ok(())
    });
}

#[test]
fn closes_that_may_explain_something_are_handed_over() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut client = actor("client")?;
        let mut server = actor("server")?;
        for addr in LOOPBACKS {
            let listener = listen(&mut server, addr, 8)?;
            // The client gives up, and the server closes without an answer: one close each.
            let pair = Pair::new(&mut server, &mut client, listener)?;
            client.send(pair.client, b"question")?;
            server.recv(pair.server, 8)?;
            wait();
            close_client_first(&mut server, &mut client, &pair)?;
            // The server turns the client away.
            let pair = Pair::new(&mut server, &mut client, listener)?;
            close_server_first(&mut server, &mut client, &pair)?;
            // A process exits that has had its answer.
            let mut leaver = actor("leaver")?;
            let pair = Pair::new(&mut server, &mut leaver, listener)?;
            exchange(&mut server, &mut leaver, &pair)?;
            leaver.exit(3)?;
            server.wait_for(pair.server, libc::POLLRDHUP)?;
            server.close(pair.server)?;
            // The listener itself.
            server.close(listener.0)?;
        }
        ensure!(changes(tracer)? == 3 * (2 + 1 + 1 + 1));
        Ok(())
    });
}

#[test]
fn shutdown_without_a_connection_fails_with_what_ended_it() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let pair = connected(&mut server, &mut client, LOOPBACKS[0])?;
        close_unread(&mut server, &mut client, &pair, 7)?;
        let shutdown = |actor: &mut Actor, fd| {
            let failed = actor.shutdown(fd, libc::SHUT_RDWR);
            let errno = failed.expect_err("no connection").raw_os_error();
            assert_eq!(errno, Some(libc::ENOTCONN));
        };
        shutdown(&mut client, pair.client);
        let (listener, addr) = listen(&mut server, LOOPBACKS[1], 8)?;
        let fresh = client.socket(libc::AF_INET, 0)?;
        shutdown(&mut client, fresh);
        let connection = client.connected(addr)?;
        client.shutdown(connection, libc::SHUT_RDWR)?;
        server.close(listener)?;
        let events = Events::of(tracer)?;
        let failed = events.named("socket.error").error("ENOTCONN");
        ensure!(failed.count() == 2, "{failed:?}");
        for (failed, fd) in failed.0.iter().zip([pair.client, fresh]) {
            ensure!(failed.pid() == Some(client.pid().into()), "{failed:?}");
            ensure!(failed.number("tcptrace.socket.fd") == Some(fd.try_into()?));
            ensure!(
                failed.text("tcptrace.syscall.name") == Some("shutdown"),
                "{failed:?}"
            );
        }
        let received = events.named("reset.received").at_client(&pair);
        let received = received.one()?.get("tcptrace.event.id").cloned();
        ensure!(failed.0[0].get("tcptrace.caused_by").cloned() == received);
        ensure!(failed.0[1].get("tcptrace.caused_by").is_none());
        Ok(())
    });
}

#[test]
fn a_descriptor_used_after_its_close_names_its_last_connection() {
    in_netns(|netns| {
        let tracer = trace(netns, &["--event", "+fd.invalid"])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut expected = vec![];
        let use_again = |actor: &mut Actor, fd| {
            let errno = actor.send(fd, b"x").expect_err("closed").raw_os_error();
            assert_eq!(errno, Some(libc::EBADF));
        };
        for addr in LOOPBACKS {
            // Closed first, closed last, after a shutdown, with bytes unread, and after a reset.
            let pair = connected(&mut server, &mut client, addr)?;
            server.close(pair.server)?;
            use_again(&mut server, pair.server);
            client.wait_for(pair.client, libc::POLLRDHUP)?;
            client.close(pair.client)?;
            use_again(&mut client, pair.client);
            expected.push((
                server.pid(),
                pair.server,
                pair.server_addr,
                pair.client_addr,
            ));
            expected.push((
                client.pid(),
                pair.client,
                pair.client_addr,
                pair.server_addr,
            ));

            let pair = connected(&mut server, &mut client, addr)?;
            client.shutdown(pair.client, libc::SHUT_WR)?;
            client.close(pair.client)?;
            use_again(&mut client, pair.client);
            expected.push((
                client.pid(),
                pair.client,
                pair.client_addr,
                pair.server_addr,
            ));

            let pair = connected(&mut server, &mut client, addr)?;
            close_unread(&mut server, &mut client, &pair, 7)?;
            use_again(&mut server, pair.server);
            client.close(pair.client)?;
            use_again(&mut client, pair.client);
            expected.push((
                server.pid(),
                pair.server,
                pair.server_addr,
                pair.client_addr,
            ));
            expected.push((
                client.pid(),
                pair.client,
                pair.client_addr,
                pair.server_addr,
            ));
        }
        let events = Events::of(tracer)?.named("fd.invalid");
        let used = events.only(|record| record.text("tcptrace.syscall.name") == Some("sendto"));
        ensure!(used.count() == expected.len() as u64, "{used:?}");
        for (pid, fd, local, peer) in expected {
            let used = used.local(local).peer(peer);
            let used = used.one()?;
            ensure!(used.pid() == Some(pid.into()), "{used:?}");
            ensure!(used.number("tcptrace.socket.fd") == Some(fd.try_into()?));
            ensure!(
                used.text("network.connection.state") == Some("closed"),
                "{used:?}"
            );
            ensure!(
                used.number("tcptrace.socket.shutdown_ago_us").is_some(),
                "{used:?}"
            );
            ensure!(used.text("error.type") == Some("EBADF"), "{used:?}");
        }
        Ok(())
    });
}
