//! What happens to nginx and behind it: what nginx and its clients say, and the findings that say
//! why.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tcptrace_tests::findings::{exact_findings, no_finding, only_finding};
use tcptrace_tests::program::Go;
use tcptrace_tests::servers::{Nginx, curl, start_curl};
use tcptrace_tests::sockets::{Socket, sockets, wait_for_close_wait, wait_for_sockets};
use tcptrace_tests::*;

const URL: &str = "http://127.0.0.1:8080/";

/// Passes everything on to port 9000.
const PROXY: &str = "location / { proxy_pass http://127.0.0.1:9000; }";

/// Connections whose handshakes nginx has not accepted yet.
fn queued(client: &mut Actor, count: usize) -> Result<Vec<Fd>> {
    let addr = Nginx::ADDR.parse()?;
    let connect = |_| Ok(client.connected(addr)?);
    (0..count).map(connect).collect()
}

fn stop_worker(nginx: &Nginx) -> Result<()> {
    nginx.signal_worker(Signal::SIGSTOP)?;
    wait_for_process_state(nginx.worker(), 'T')
}

#[test]
fn a_worker_that_hangs() {
    in_netns(|netns| {
        let nginx = Nginx::start("backlog=2", "")?;
        let mut client = actor("client")?;
        let tracer = trace(netns, &[])?;
        let before = netns.counters()?;
        stop_worker(&nginx)?;
        let addr = Nginx::ADDR.parse()?;
        let fds: Vec<Fd> = (0..20)
            .map(|_| client.connecting(addr))
            .collect::<Result<_, _>>()?;
        fds.into_iter().try_for_each(|fd| client.close(fd))?;
        let lost = netns.counters()?.since(&before, "TcpExtListenOverflows");
        let events = Events::of(tracer)?;
        ensure!(lost == Some(17), "the provocation itself: {lost:?}");
        let finding = only_finding(&events, "accept_queue_overflow", nginx.worker())?;
        ensure!(finding.count() == 17, "{finding:?}");
        ensure!(finding.severity() == "ERROR", "{finding:?}");
        // The one who should accept is stopped, which is why: said, and not only the queue.
        ensure!(finding.text().contains("stopped"), "{finding:?}");
        Ok(())
    });
}

#[test]
fn an_upstream_that_closes_without_reading_the_request() {
    in_netns(|netns| {
        let nginx = Nginx::start("", PROXY)?;
        let mut upstream = Go::start()?;
        upstream.done("listen 127.0.0.1:9000")?;
        let tracer = trace(netns, &[])?;
        let client = start_curl(&["--write-out", "%{http_code}", URL])?;
        upstream.done("accept a")?;
        upstream.done("recv a 4")?;
        upstream.done("close a")?;
        client.finish()?.ensure(0, "502")?;
        nginx.wait_for_log("104: Connection reset by peer")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "closed_with_unread_data", upstream.pid())?;
        finding.ensure(1, nginx.worker())?;
        ensure!(finding.has_error("ECONNRESET"), "{finding:?}");
        Ok(())
    });
}

#[test]
fn an_upstream_that_dies() {
    in_netns(|netns| {
        let nginx = Nginx::start("", PROXY)?;
        let mut upstream = Go::start()?;
        upstream.done("listen 127.0.0.1:9000")?;
        let tracer = trace(netns, &[])?;
        let client = start_curl(&["--write-out", "%{http_code}", URL])?;
        upstream.done("accept a")?;
        upstream.done("recv a 4096")?;
        upstream.program().signal(Signal::SIGKILL)?;
        client.finish()?.ensure(0, "502")?;
        nginx.wait_for_log("upstream prematurely closed connection")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "process_exited", upstream.pid())?;
        finding.ensure_unless_gone(1, nginx.worker())?;
        let signal = finding.last.number("tcptrace.exit.signal");
        ensure!(signal == Some(9), "{finding:?}");
        ensure!(finding.severity() == "ERROR", "{finding:?}");
        Ok(())
    });
}

#[test]
fn an_upstream_that_is_not_there() {
    in_netns(|netns| {
        let nginx = Nginx::start("", PROXY)?;
        let tracer = trace(netns, &[])?;
        let (_, ended) = curl(&["--write-out", "%{http_code}", URL])?;
        ended.ensure(0, "502")?;
        nginx.wait_for_log("111: Connection refused")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "no_listener", nginx.worker())?;
        finding.ensure(1, 0)
    });
}

#[test]
fn a_client_that_gives_up_while_the_upstream_works() {
    in_netns(|netns| {
        let nginx = Nginx::start("", PROXY)?;
        let mut upstream = Go::start()?;
        upstream.done("serve 127.0.0.1:9000 1m")?;
        let tracer = trace(netns, &[])?;
        let url = format!("{URL}work?for=2s");
        let (client, ended) = curl(&["--max-time", "1", &url])?;
        ended.ensure(28, "Operation timed out after 1")?;
        nginx.wait_for_log("\" 499 ")?;
        let line = upstream.program().wait_for_text("answer: write tcp")?;
        ensure!(line.ends_with("write: broken pipe"), "{line}");
        let events = Events::of(tracer)?;
        // Two connections, one after the other: nginx hangs up on the upstream because curl did.
        let wanted = [
            ("peer_gave_up", nginx.worker()),
            ("peer_gave_up", upstream.pid()),
        ];
        let findings = exact_findings(&events, &wanted)?;
        findings[0].ensure(1, client)?;
        findings[1].ensure(1, nginx.worker())?;
        ensure!(findings[1].has_error("EPIPE"), "{findings:?}");
        Ok(())
    });
}

#[test]
fn a_reload_with_connections_queued_resets_none() {
    in_netns(|netns| {
        let nginx = Nginx::start("", "")?;
        let mut client = actor("client")?;
        stop_worker(&nginx)?;
        let fds = queued(&mut client, 3)?;
        let tracer = trace(netns, &[])?;
        // The master still has the listener, and its next worker accepts who waits.
        nginx.signal_worker(Signal::SIGKILL)?;
        for fd in fds {
            client.send(fd, b"GET / HTTP/1.0\r\n\r\n")?;
            client.wait_for(fd, libc::POLLRDHUP)?;
            ensure!(client.recv(fd, 1000)?.starts_with(b"HTTP/1.1 200"));
            client.close(fd)?;
        }
        no_finding(&Events::of(tracer)?)
    });
}

#[test]
fn a_graceful_end_resets_who_is_queued() {
    in_netns(|netns| {
        let nginx = Nginx::start("", "")?;
        let mut client = actor("client")?;
        stop_worker(&nginx)?;
        let fds = queued(&mut client, 3)?;
        let tracer = trace(netns, &[])?;
        // The worker finds the signal before the connections, and the master's copy of the listener
        // is closed by then.
        nginx.signal_worker(Signal::SIGQUIT)?;
        nginx.master().signal(Signal::SIGQUIT)?;
        wait_until("the master to close its listener", || {
            let sockets = sockets()?;
            let listener = sockets.iter().find(|it| it.state == Socket::LISTEN);
            let listener = listener.map(|it| format!("socket:[{}]", it.inode));
            let fds = std::fs::read_dir(format!("/proc/{}/fd", nginx.master().pid()))?;
            let mut held = fds.filter_map(|fd| fd.ok()?.path().read_link().ok());
            Ok(!held.any(|link| link.to_str() == listener.as_deref()))
        })?;
        nginx.signal_worker(Signal::SIGCONT)?;
        for fd in fds {
            client.wait_for(fd, libc::POLLHUP)?;
            let error = client.recv(fd, 1).expect_err("a reset");
            ensure!(error.raw_os_error() == Some(libc::ECONNRESET), "{error}");
        }
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "listener_closed", nginx.worker())?;
        finding.ensure(3, client.pid())?;
        ensure!(finding.has_error("ECONNRESET"), "{finding:?}");
        Ok(())
    });
}

#[test]
fn a_kill_resets_who_is_queued() {
    in_netns(|netns| {
        let nginx = Nginx::start("", "")?;
        let mut client = actor("client")?;
        stop_worker(&nginx)?;
        let fds = queued(&mut client, 3)?;
        let tracer = trace(netns, &[])?;
        nginx.master().signal(Signal::SIGKILL)?;
        wait_for_process_state(nginx.master().pid(), 'Z')?;
        nginx.signal_worker(Signal::SIGKILL)?;
        for fd in fds {
            client.wait_for(fd, libc::POLLHUP)?;
            let error = client.recv(fd, 1).expect_err("a reset");
            ensure!(error.raw_os_error() == Some(libc::ECONNRESET), "{error}");
        }
        let events = Events::of(tracer)?;
        // The listener closed because its process was killed: that is the one finding.
        let finding = only_finding(&events, "process_exited", nginx.worker())?;
        finding.ensure(3, client.pid())?;
        let signal = finding.last.number("tcptrace.exit.signal");
        ensure!(signal == Some(9), "{finding:?}");
        ensure!(finding.text().contains("accept queue"), "{finding:?}");
        Ok(())
    });
}

#[test]
fn a_worker_killed_with_a_client_waiting() {
    in_netns(|netns| {
        let nginx = Nginx::start("", "")?;
        let mut client = actor("client")?;
        let fd = client.connected(Nginx::ADDR.parse()?)?;
        // Accepted, and half a request: it waits for the rest.
        client.send(fd, b"GET / HTTP/1.0\r\n")?;
        wait_for_sockets(1, |socket| {
            let accepted = socket.local_port == 8080 && socket.state == Socket::ESTABLISHED;
            accepted && socket.inode != 0 && socket.unread == 0
        })?;
        let tracer = trace(netns, &[])?;
        nginx.signal_worker(Signal::SIGKILL)?;
        client.wait_for(fd, libc::POLLRDHUP)?;
        ensure!(client.recv(fd, 1)?.is_empty(), "an answer");
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "process_exited", nginx.worker())?;
        finding.ensure(1, client.pid())?;
        let signal = finding.last.number("tcptrace.exit.signal");
        ensure!(signal == Some(9), "{finding:?}");
        Ok(())
    });
}

#[test]
fn a_client_that_reuses_a_connection_nginx_has_closed() {
    in_netns(|netns| {
        let nginx = Nginx::start("", "keepalive_timeout 1s;")?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        client.done(&format!("dial a {} 5s", Nginx::ADDR))?;
        ensure!(client.done("request a /")? == "200, 6 bytes");
        wait_for_close_wait(1)?;
        client.fails("request a /", "EOF")?;
        client.fails("request a /", "write: broken pipe")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "write_after_peer_close", client.pid())?;
        finding.ensure(1, nginx.worker())?;
        let hint = finding.hint();
        ensure!(hint == Some("stale_pooled_connection"), "{finding:?}");
        Ok(())
    });
}
