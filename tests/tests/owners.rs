//! The owner is the process that was made to do it, whatever way the socket came to it.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tcptrace_tests::*;

const V4: &str = LOOPBACKS[0];
fn confidence(record: &Record) -> Option<&str> {
    record.text("tcptrace.owner.confidence")
}

#[test]
fn a_thread_is_named_beside_its_process() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut worker = thread(&mut server)?;
        ensure!(worker.tid() != server.pid());
        let listener = listen(&mut server, V4, 8)?;
        let pair = Pair::new(&mut worker, &mut client, listener)?;
        close_unread(&mut worker, &mut client, &pair, 3)?;
        let events = Events::of(tracer)?;
        let sent = events.named("reset.sent").at_server(&pair);
        let sent = sent.one()?;
        assert_eq!(sent.pid(), Some(server.pid().into()));
        assert_eq!(sent.number("thread.id"), Some(worker.tid().into()));
        assert_eq!(sent.text("process.executable.name"), Some("actor"));
        assert_eq!(confidence(sent), Some("exact"));
        Ok(())
    });
}

#[test]
fn a_socket_held_by_two_processes_lists_both() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut parent = actor("parent")?;
        let mut client = actor("client")?;
        let pair = connected(&mut parent, &mut client, V4)?;
        let child = fork(&mut parent)?;
        client.abort(pair.client)?;
        parent.wait_for(pair.server, libc::POLLHUP)?;
        tracer.wait_for("the RST", SOON, |record| record.name() == "reset.received")?;
        let events = Events::of(tracer)?;
        let received = events.named("reset.received").at_server(&pair);
        let received = received.one()?;
        assert_eq!(confidence(received), Some("shared"));
        let mut pids = [parent.pid(), child.pid()];
        pids.sort_unstable();
        assert_eq!(
            received.get("tcptrace.owner.pids"),
            Some(&serde_json::json!(pids))
        );
        Ok(())
    });
}

#[test]
fn a_child_that_uses_an_inherited_socket_owns_it() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut parent = actor("parent")?;
        let mut client = actor("client")?;
        let pair = connected(&mut parent, &mut client, V4)?;
        let mut child = fork(&mut parent)?;
        parent.close(pair.server)?;
        close_unread(&mut child, &mut client, &pair, 3)?;
        let events = Events::of(tracer)?;
        let sent = events.named("reset.sent").at_server(&pair);
        assert_eq!(sent.one()?.pid(), Some(child.pid().into()));
        Ok(())
    });
}

#[test]
fn a_socket_passed_on_belongs_to_the_process_that_uses_it() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut accepts = actor("accepts")?;
        let mut serves = actor("serves")?;
        let mut client = actor("client")?;
        let mut pair = connected(&mut accepts, &mut client, V4)?;
        let passed = pass(&mut accepts, pair.server, &mut serves)?;
        accepts.close(pair.server)?;
        pair.server = passed;
        close_unread(&mut serves, &mut client, &pair, 3)?;
        let events = Events::of(tracer)?;
        let sent = events.named("reset.sent").at_server(&pair);
        let sent = sent.one()?;
        assert_eq!(sent.pid(), Some(serves.pid().into()));
        assert_eq!(confidence(sent), Some("exact"));
        Ok(())
    });
}

#[test]
fn a_process_that_is_gone_at_once_is_still_named() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let listener = listen(&mut server, V4, 128)?;
        let mut ends: Vec<(SocketAddr, u32)> = vec![];
        for killed in [false, true].repeat(10) {
            let mut brief = actor("brief")?;
            let pair = Pair::new(&mut server, &mut brief, listener)?;
            server.send(pair.server, b"x")?;
            brief.wait_for_unread(pair.client, 1)?;
            if killed {
                brief.kill()?;
            } else {
                brief.exit(0)?;
            }
            ends.push((pair.client_addr, brief.pid()));
        }
        let events = Events::of(tracer)?.named("reset.sent");
        for (addr, pid) in ends {
            let sent = events.local(addr);
            let sent = sent.one()?;
            assert_eq!(sent.pid(), Some(pid.into()));
            // The file's name while /proc has it, else what the process called itself.
            let name = sent.text("process.executable.name");
            assert!(matches!(name, Some("actor" | "brief")), "{sent:?}");
        }
        Ok(())
    });
}

#[test]
fn each_worker_on_a_shared_port_owns_what_it_accepted() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut client = actor("client")?;
        let mut addr: SocketAddr = V4.parse()?;
        let mut workers = vec![];
        for _ in 0..4 {
            let mut worker = actor("worker")?;
            let fd = worker.socket(libc::AF_INET, libc::SOCK_NONBLOCK)?;
            worker.set(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, &[1])?;
            worker.bind(fd, addr)?;
            worker.listen(fd, 128)?;
            addr = worker.local_addr(fd)?;
            workers.push((worker, fd));
        }
        for _ in 0..40 {
            let fd = client.connected(addr)?;
            client.send(fd, b"x")?;
        }
        let mut accepted = vec![];
        for (worker, listener) in &mut workers {
            while let Ok(fd) = worker.accept(*listener) {
                worker.wait_for_unread(fd, 1)?;
                worker.close(fd)?;
                accepted.push(worker.pid());
            }
        }
        let events = Events::of(tracer)?.named("reset.sent");
        assert_eq!(accepted.len(), 40, "the provocation itself");
        assert_eq!(events.pids(), accepted);
        Ok(())
    });
}

#[test]
fn a_connection_older_than_the_tracer_has_its_owner() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut pairs = vec![];
        for addr in LOOPBACKS {
            pairs.push(connected(&mut server, &mut client, addr)?);
        }
        let (_, listener) = {
            let (fd, addr) = listen(&mut server, V4, 1)?;
            client.connected(addr)?;
            client.connected(addr)?;
            server.wait_for_queue(fd, 2)?;
            (fd, addr)
        };
        let tracer = trace(netns, &[])?;
        for pair in &pairs {
            client.abort(pair.client)?;
            server.wait_for(pair.server, libc::POLLHUP)?;
        }
        let late = client.connecting(listener)?;
        client.close(late)?;
        let events = Events::of(tracer)?;
        for pair in &pairs {
            let received = events.named("reset.received").at_server(pair);
            let received = received.one()?;
            assert_eq!(received.pid(), Some(server.pid().into()));
            assert_eq!(confidence(received), Some("seeded"));
        }
        let overflow = events.lost_connections().local(listener);
        assert_eq!(overflow.one()?.pid(), Some(server.pid().into()));
        Ok(())
    });
}

#[test]
fn a_nonblocking_client_behind_epoll_is_named() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        for addr in LOOPBACKS {
            let (listener, addr) = listen(&mut server, addr, 8)?;
            // As Go's runtime does it: connect, wait on epoll, ask for SO_ERROR.
            let mut netpoll = thread(&mut client)?;
            let fd = netpoll.connecting(addr)?;
            netpoll.wait_for(fd, libc::POLLOUT)?;
            let accepted = server.accept(listener)?;
            server.close(listener)?;
            let refused = netpoll.connecting(addr)?;
            netpoll.wait_for(refused, libc::POLLHUP)?;
            server.abort(accepted)?;
            netpoll.wait_for(fd, libc::POLLHUP)?;
            netpoll.recv(fd, 1).expect_err("the server has sent a RST");
        }
        let events = Events::of(tracer)?;
        assert_eq!(
            events.named("connect.failed").error("ECONNREFUSED").pids(),
            [client.pid()].repeat(3)
        );
        assert_eq!(
            events.named("reset.received").error("ECONNRESET").pids(),
            [client.pid()].repeat(3)
        );
        assert_eq!(
            events.named("socket.error").error("ECONNRESET").pids(),
            [client.pid()].repeat(3)
        );
        Ok(())
    });
}

#[test]
fn an_io_uring_server_is_named() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let listener = listen(&mut server, V4, 8)?;
        let mut pairs = vec![];
        for _ in 0..2 {
            let fd = client.connected(listener.1)?;
            client.send(fd, b"request")?;
            let accepted = server.call("uring_accept", &[listener.0.into()])?.value;
            let accepted = Fd::try_from(accepted)?;
            let request = server.call("uring_recv", &[accepted.into(), 7.into()])?;
            ensure!(request.memory == [b"request"]);
            pairs.push(Pair {
                server: accepted,
                client: fd,
                server_addr: listener.1,
                client_addr: client.local_addr(fd)?,
            });
        }
        let [reset, unread] = pairs[..] else {
            unreachable!("two were made")
        };
        client.abort(reset.client)?;
        server.wait_for(reset.server, libc::POLLHUP)?;
        let error = server.call("uring_recv", &[reset.server.into(), 7.into()]);
        ensure!(error.is_err_and(|error| error.raw_os_error() == Some(libc::ECONNRESET)));
        close_unread(&mut server, &mut client, &unread, 9)?;
        let events = Events::of(tracer)?;
        for (name, pair, error) in [
            ("reset.received", reset, "ECONNRESET"),
            ("socket.error", reset, "ECONNRESET"),
            ("reset.sent", unread, "closed_with_unread_data"),
        ] {
            let event = events.named(name).at_server(&pair);
            let event = event.one()?;
            assert_eq!(event.text("error.type"), Some(error));
            assert_eq!(event.pid(), Some(server.pid().into()), "{event:?}");
        }
        Ok(())
    });
}

#[test]
fn ten_thousand_other_sockets_lend_nobody_their_owner() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut churn = actor("churn")?;
        let listener = listen(&mut server, V4, 128)?;
        let others = volume(5000);
        let before = netns.counters()?;
        churn.begin("churn", &[others.into()])?;
        for _ in 0..200 {
            let pair = Pair::new(&mut server, &mut client, listener)?;
            close_unread(&mut server, &mut client, &pair, 1)?;
            client.close(pair.client)?;
        }
        churn.finish()?;
        let counted = netns.counters()?.since(&before, "TcpOutRsts");
        let events = Events::of(tracer)?;
        let sent = events.named("reset.sent");
        assert_eq!(Some(sent.count()), counted);
        let ours = sent.local(listener.1);
        assert_eq!(ours.pids(), [server.pid()].repeat(200));
        // Who reads a link of /proc holds its file for a moment, the tracer too: a close in that moment
        // ends with the reader. The server's FIN is first then, and may find no socket.
        let theirs = sent.only(|e| {
            e.number("network.local.port") != Some(listener.1.port().into())
                && e.0["attributes"].get("tcptrace.reset.no_socket").is_none()
        });
        assert_eq!(theirs.pids(), [churn.pid()].repeat(others));
        let received = events.named("reset.received").peer(listener.1);
        assert_eq!(received.pids(), [client.pid()].repeat(200));
        Ok(())
    });
}

#[test]
fn the_last_user_is_named_where_that_is_asked_for() {
    in_netns(|netns| {
        let (usual, last) = (trace(netns, &[])?, trace(netns, &["--last-user"])?);
        let mut accepts = actor("accepts")?;
        let mut serves = actor("serves")?;
        let mut client = actor("client")?;
        let pair = connected(&mut accepts, &mut client, V4)?;
        // Both keep it, so that /proc cannot tell them apart.
        let passed = pass(&mut accepts, pair.server, &mut serves)?;
        client.send(pair.client, b"request")?;
        ensure!(serves.recv(passed, 16)? == b"request");
        serves.send(passed, b"response")?;
        ensure!(client.recv(pair.client, 16)? == b"response");
        client.abort(pair.client)?;
        serves.wait_for(passed, libc::POLLHUP)?;
        for (tracer, owner) in [(usual, &accepts), (last, &serves)] {
            let received =
                tracer.wait_for("the RST", SOON, |record| record.name() == "reset.received")?;
            assert_eq!(received.pid(), Some(owner.pid().into()), "{received:?}");
            assert_eq!(Events::of(tracer)?.named("reset.received").count(), 1);
        }
        Ok(())
    });
}

/// What the coverage says of a signal: the way it is seen, and the note beside it.
fn coverage<'a>(events: &'a Events, signal: &str) -> Result<(Option<&'a str>, &'a str)> {
    let of_signal = |record: &&Record| record.text("tcptrace.coverage.signal") == Some(signal);
    let record = events.0.iter().find(of_signal);
    let record = record.with_context(|| format!("no coverage of {signal}"))?;
    Ok((
        record.text("tcptrace.coverage.way"),
        record.text("tcptrace.coverage.note").unwrap_or_default(),
    ))
}

#[test]
fn without_tracepoints_of_calls_another_way_shows_the_same() {
    in_netns(|netns| {
        let tracer = trace(netns, &["--without", "tracepoint"])?;
        let mut master = actor("master")?;
        let mut client = actor("client")?;
        let listener = listen(&mut master, V4, 8)?;
        let mut worker = fork(&mut master)?;
        // It looks only when there is nothing left to be found in /proc.
        tracer.signal(Signal::SIGSTOP)?;
        wait_for_process_state(tracer.pid(), 'T')?;
        let pair = Pair::new(&mut worker, &mut client, listener)?;
        client.send(pair.client, b"request")?;
        ensure!(worker.recv(pair.server, 16)? == b"request");
        client.abort(pair.client)?;
        worker.wait_for(pair.server, libc::POLLHUP)?;
        worker.close(pair.server)?;
        worker.limit_descriptors(1)?;
        worker.socket(libc::AF_INET, 0).expect_err("EMFILE");
        tracer.signal(Signal::SIGCONT)?;
        let events = Events::of(tracer)?;
        let received = events.named("reset.received").at_server(&pair);
        let received = received.one()?;
        assert_eq!(received.pid(), Some(worker.pid().into()));
        assert_eq!(confidence(received), Some("exact"));
        let exhausted = events.named("fd.exhausted");
        assert_eq!(exhausted.one()?.pid(), Some(worker.pid().into()));
        for signal in [
            "owners of accepted connections",
            "descriptors exhausted in accept, accept4, socket",
        ] {
            let (way, _) = coverage(&events, signal)?;
            let other = way.is_some_and(|way| !way.starts_with("tracepoint "));
            ensure!(other, "{signal}: {way:?}");
        }
        Ok(())
    });
}

#[test]
fn without_the_iterator_an_older_connection_has_no_wrong_owner() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let idle = connected(&mut server, &mut client, V4)?;
        let used = connected(&mut server, &mut client, V4)?;
        let tracer = trace(netns, &["--without", "iterator"])?;
        tracer.signal(Signal::SIGSTOP)?;
        wait_for_process_state(tracer.pid(), 'T')?;
        for pair in [idle, used] {
            // The RST arrives while the client runs, whose it is not.
            client.abort(pair.client)?;
            server.wait_for(pair.server, libc::POLLHUP)?;
        }
        server.recv(used.server, 1).expect_err("ECONNRESET");
        for pair in [idle, used] {
            server.close(pair.server)?;
        }
        tracer.signal(Signal::SIGCONT)?;
        let events = Events::of(tracer)?;
        let received = events.named("reset.received").at_server(&idle);
        let received = received.one()?;
        assert_eq!(
            (received.pid(), confidence(received)),
            (None, Some("unknown"))
        );
        let read = events.named("socket.error").at_server(&used);
        let read = read.one()?;
        assert_eq!(read.pid(), Some(server.pid().into()));
        assert_eq!(confidence(read), Some("exact"));
        let (way, note) = coverage(&events, "sockets older than the start")?;
        assert_eq!(way, None);
        assert!(note.contains("--without iterator"), "{note}");
        Ok(())
    });
}
