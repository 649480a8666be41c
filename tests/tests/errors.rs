//! What the stream says of failed calls is what the program was told, call by call, with its cause.

use std::time::Duration;

use anyhow::{Context, Result};
use tcptrace_tests::*;

const V4: &str = LOOPBACKS[0];

/// The errors of a process in the stream, in order.
fn errors_of(events: &Events, pid: u32) -> Vec<u64> {
    let of_calls = events.only(|event| {
        matches!(event.name(), "socket.error" | "fd.exhausted" | "fd.invalid")
            && event.pid() == Some(pid.into())
    });
    of_calls
        .0
        .iter()
        .filter_map(|event| event.number("tcptrace.syscall.errno"))
        .collect()
}

fn id(record: &Record) -> Result<&str> {
    record
        .text("tcptrace.event.id")
        .context("a record without an id")
}

#[test]
fn a_train_of_errors_points_to_the_reset_that_caused_it() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut trains = vec![];
        for addr in LOOPBACKS {
            let pair = connected(&mut server, &mut client, addr)?;
            server.abort(pair.server)?;
            client.wait_for(pair.client, libc::POLLHUP)?;
            client.recv(pair.client, 1).expect_err("ECONNRESET, once");
            for _ in 0..5 {
                client.send(pair.client, b"x").expect_err("EPIPE");
            }
            trains.push(pair);
        }
        let events = Events::of(tracer)?;
        for pair in trains {
            let here = events.at_client(&pair);
            let reset = here.named("reset.received");
            let reset = id(reset.one()?)?.to_owned();
            let errors = here.named("socket.error");
            let names: Vec<_> = errors
                .0
                .iter()
                .filter_map(|e| e.text("error.type"))
                .collect();
            assert_eq!(
                names,
                ["ECONNRESET", "EPIPE", "EPIPE", "EPIPE", "EPIPE", "EPIPE"]
            );
            for error in &errors.0 {
                assert_eq!(
                    error.text("tcptrace.caused_by"),
                    Some(reset.as_str()),
                    "{error:?}"
                );
            }
        }
        Ok(())
    });
}

#[test]
fn the_stream_tells_what_the_program_was_told() {
    in_netns(|_| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let pid = client.pid().to_string();
        let tracer = trace_unfiltered(&["--event", "+fd.invalid", "--pid", &pid])?;
        let pair = connected(&mut server, &mut client, V4)?;
        server.abort(pair.server)?;
        client.wait_for(pair.client, libc::POLLHUP)?;
        client.recv(pair.client, 1).expect_err("ECONNRESET");
        client.recv(pair.client, 1)?;
        client.send(pair.client, b"x").expect_err("EPIPE");

        let fresh = client.socket(libc::AF_INET6, 0)?;
        client.recv(fresh, 1).expect_err("ENOTCONN");
        client.send(fresh, b"x").expect_err("EPIPE");
        client.close(fresh)?;
        client.send(fresh, b"x").expect_err("EBADF");

        let pair = connected(&mut server, &mut client, V4)?;
        client.set_receive_timeout(pair.client, Duration::from_millis(20))?;
        client
            .recv(pair.client, 1)
            .expect_err("EAGAIN, after 20 ms");
        client.shutdown(pair.client, libc::SHUT_WR)?;
        client.send(pair.client, b"x").expect_err("EPIPE");

        client.limit_descriptors(5)?;
        while client.socket(libc::AF_INET, 0).is_ok() {}

        let told: Vec<u64> = client
            .failed()
            .iter()
            .filter_map(|failed| failed.errno.try_into().ok())
            .collect();
        let expected = [
            libc::ECONNRESET,
            libc::EPIPE,
            libc::ENOTCONN,
            libc::EPIPE,
            libc::EBADF,
            libc::EAGAIN,
            libc::EPIPE,
            libc::EMFILE,
        ];
        assert_eq!(
            told,
            expected.map(|errno| u64::try_from(errno).unwrap_or(0))
        );
        assert_eq!(errors_of(&Events::of(tracer)?, client.pid()), told);
        Ok(())
    });
}

#[test]
fn timeouts_of_every_kind_are_told_apart() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let data = connected(&mut server, &mut client, V4)?;
        let idle = connected(&mut server, &mut client, V4)?;
        client.set(
            data.client,
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            &[600],
        )?;
        client.set(idle.client, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &[1])?;
        for option in [libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL, libc::TCP_KEEPCNT] {
            client.set(idle.client, libc::IPPROTO_TCP, option, &[1])?;
        }
        netns.set_loopback(false)?;
        client.send(data.client, b"into the void")?;
        for pair in [data, idle] {
            client.wait_for(pair.client, libc::POLLHUP)?;
            client.recv(pair.client, 1).expect_err("ETIMEDOUT");
        }
        let events = Events::of(tracer)?;
        let timeouts = events.named("connection.timeout");
        for (pair, cause) in [(data, "user_timeout"), (idle, "keepalive_timeout")] {
            let timeout = timeouts.at_client(&pair);
            let timeout = timeout.one()?;
            assert_eq!(timeout.pid(), Some(client.pid().into()));
            assert_eq!(timeout.text("tcptrace.cause"), Some(cause));
            let error = events.named("socket.error").at_client(&pair);
            let error = error.one()?;
            assert_eq!(error.text("error.type"), Some("ETIMEDOUT"));
            assert_eq!(error.text("tcptrace.caused_by"), Some(id(timeout)?));
        }
        Ok(())
    });
}

#[test]
fn an_empty_queue_is_no_error_to_a_program_that_does_not_wait() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let (listener, addr) = listen(&mut server, V4, 8)?;
        let fd = client.connecting(addr)?;
        server.accept(listener)?;
        client.wait_for(fd, libc::POLLOUT)?;
        for _ in 0..100 {
            client.recv(fd, 1).expect_err("EAGAIN");
        }
        let events = Events::of(tracer)?;
        let told = errors_of(&events, client.pid());
        assert!(told.is_empty(), "{told:?}");
        Ok(())
    });
}

#[test]
fn descriptors_run_out_at_accept_with_their_limit() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let (listener, addr) = listen(&mut server, V4, 8)?;
        client.connected(addr)?;
        server.wait_for_queue(listener, 1)?;
        let limit = u64::try_from(listener)? + 1;
        server.limit_descriptors(limit)?;
        for _ in 0..7 {
            server.accept(listener).expect_err("EMFILE");
        }
        let events = Events::of(tracer)?.named("fd.exhausted");
        // Descriptors this process inherited may lie above the limit.
        let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid()))?.count() as u64;
        assert_eq!(events.pids(), [server.pid()].repeat(7));
        for event in &events.0 {
            assert_eq!(event.text("error.type"), Some("EMFILE"));
            assert_eq!(event.text("tcptrace.syscall.name"), Some("accept4"));
            assert_eq!(event.number("tcptrace.fd.limit"), Some(limit));
            assert_eq!(event.number("tcptrace.fd.open"), Some(open));
        }
        Ok(())
    });
}

#[test]
fn failed_binds_and_exhausted_ports_are_named() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let (_, addr) = listen(&mut server, V4, 8)?;
        netns.sysctl("net.ipv4.ip_local_port_range", "40000 40000")?;
        client.connected(addr)?;
        client.connected(addr).expect_err("EADDRNOTAVAIL");
        let fd = client.socket(libc::AF_INET, 0)?;
        client.bind(fd, addr).expect_err("EADDRINUSE");
        let events = Events::of(tracer)?;
        let failed = events.named("connect.failed").peer(addr);
        assert_eq!(failed.one()?.text("error.type"), Some("EADDRNOTAVAIL"));
        assert_eq!(failed.pids(), [client.pid()]);
        let bind = events.named("socket.error");
        assert_eq!(bind.one()?.text("error.type"), Some("EADDRINUSE"));
        assert_eq!(bind.one()?.text("tcptrace.syscall.name"), Some("bind"));
        assert_eq!(bind.pids(), [client.pid()]);
        Ok(())
    });
}
