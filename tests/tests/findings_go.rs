//! What Go programs run into, with the netpoller and net/http: what they print, and the one finding
//! that says why.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tcptrace_tests::findings::{Finding, exact_findings, findings, only_finding};
use tcptrace_tests::program::{Go, with_descriptors};
use tcptrace_tests::sockets::wait_for_close_wait;
use tcptrace_tests::*;

/// A listener as Go makes it when no address is asked for: IPv6, with v4-mapped clients.
const ANY: &str = "listen :0";

/// A server with a connection `a` to the client's `a`.
fn connected_programs() -> Result<(Go, Go)> {
    let (mut server, mut client) = (Go::start()?, Go::start()?);
    let port = listening_port(&mut server, ANY)?;
    client.done(&format!("dial a 127.0.0.1:{port} 5s"))?;
    server.done("accept a")?;
    Ok((server, client))
}

fn listening_port(server: &mut Go, listen: &str) -> Result<u16> {
    let addr = server.done(listen)?;
    let port = addr.rsplit(':').next().context("no port")?;
    Ok(port.parse()?)
}

fn http_server(idle: &str) -> Result<(Go, String)> {
    let mut server = Go::start()?;
    let port = listening_port(&mut server, &format!("serve :0 {idle}"))?;
    Ok((server, format!("http://127.0.0.1:{port}")))
}

fn ensure_severity(finding: &Finding, severity: &str) -> Result<()> {
    ensure!(finding.severity() == severity, "{finding:?}");
    Ok(())
}

#[test]
fn a_handler_slower_than_its_client_waits() {
    in_netns(|netns| {
        let (server, url) = http_server("1m")?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        let get = format!("get {url}/work?for=1500ms 700ms");
        client.fails(&get, "Client.Timeout exceeded while awaiting headers")?;
        let line = server.program().wait_for_text("answer: write tcp")?;
        ensure!(line.ends_with("write: broken pipe"), "{line}");
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "peer_gave_up", server.pid())?;
        finding.ensure(1, client.pid())?;
        ensure!(finding.has_error("EPIPE"), "{finding:?}");
        ensure_severity(&finding, "WARN")
    });
}

#[test]
fn a_server_that_never_answers() {
    in_netns(|netns| {
        let (server, url) = http_server("1m")?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        let get = format!("get {url}/never 700ms");
        client.fails(&get, "Client.Timeout exceeded while awaiting headers")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "gave_up_waiting", client.pid())?;
        finding.ensure(1, server.pid())?;
        ensure_severity(&finding, "INFO")
    });
}

#[test]
fn a_server_that_aborts() {
    in_netns(|netns| {
        let (mut server, mut client) = connected_programs()?;
        let tracer = trace(netns, &[])?;
        client.done("send a 10")?;
        server.done("recv a 10")?;
        server.done("linger_0 a")?;
        server.done("close a")?;
        client.fails("recv a 1", "read: connection reset by peer")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "linger_zero", server.pid())?;
        finding.ensure(1, client.pid())?;
        ensure!(finding.has_error("ECONNRESET"), "{finding:?}");
        ensure_severity(&finding, "WARN")
    });
}

#[test]
fn a_server_that_does_not_read_the_request_to_its_end() {
    in_netns(|netns| {
        let (mut server, mut client) = connected_programs()?;
        let tracer = trace(netns, &[])?;
        client.done("send a 4000")?;
        server.done("recv a 1500")?;
        server.done("close a")?;
        client.fails("recv a 1", "read: connection reset by peer")?;
        client.fails("send a 1", "write: broken pipe")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "closed_with_unread_data", server.pid())?;
        finding.ensure(1, client.pid())?;
        ensure!(finding.has_error("ECONNRESET"), "{finding:?}");
        ensure!(
            finding.text().replace(',', "").contains("2500"),
            "{finding:?}"
        );
        ensure_severity(&finding, "WARN")
    });
}

#[test]
fn a_client_that_writes_after_the_server_has_closed() {
    in_netns(|netns| {
        let (mut server, mut client) = connected_programs()?;
        let tracer = trace(netns, &[])?;
        client.done("send a 10")?;
        server.done("recv a 10")?;
        server.done("send a 10")?;
        client.done("recv a 10")?;
        server.done("close a")?;
        client.done("send a 10")?;
        client.fails("send a 10", "write: broken pipe")?;
        client.fails("send a 10", "write: broken pipe")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "write_after_peer_close", client.pid())?;
        finding.ensure(1, server.pid())?;
        ensure!(finding.has_error("EPIPE"), "{finding:?}");
        ensure_severity(&finding, "WARN")
    });
}

#[test]
fn a_pool_that_keeps_connections_longer_than_the_server() {
    in_netns(|netns| {
        let (server, url) = http_server("1s")?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        let addr = url.trim_start_matches("http://");
        client.done(&format!("dial a {addr} 5s"))?;
        ensure!(client.done("request a /")? == "200, 6 bytes");
        // The server closes after its second.
        wait_for_close_wait(1)?;
        client.fails("request a /", "EOF")?;
        client.fails("request a /", "write: broken pipe")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "write_after_peer_close", client.pid())?;
        finding.ensure(1, server.pid())?;
        ensure!(
            finding.hint() == Some("stale_pooled_connection"),
            "{finding:?}"
        );
        Ok(())
    });
}

#[test]
fn a_write_after_its_own_half_close() {
    in_netns(|netns| {
        let (_server, mut client) = connected_programs()?;
        let tracer = trace(netns, &[])?;
        client.done("half_close a")?;
        client.fails("send a 10", "write: broken pipe")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "write_after_shutdown", client.pid())?;
        ensure!(finding.count() == 1, "{finding:?}");
        Ok(())
    });
}

#[test]
fn a_server_that_drops_connections_at_once() {
    in_netns(|netns| {
        let (mut server, mut client) = (Go::start()?, Go::start()?);
        let port = listening_port(&mut server, ANY)?;
        server.done("accept_all drop")?;
        let tracer = trace(netns, &[])?;
        // Left open: who holds the other end is looked for just after.
        for nth in 0..5 {
            client.done(&format!("dial c{nth} 127.0.0.1:{port} 5s"))?;
            client.fails(&format!("recv c{nth} 1"), "EOF")?;
        }
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "closed_on_accept", server.pid())?;
        finding.ensure(5, client.pid())
    });
}

#[test]
fn a_server_killed_with_connections_open() {
    in_netns(|netns| {
        let (mut server, mut client) = (Go::start()?, Go::start()?);
        let port = listening_port(&mut server, ANY)?;
        for name in ["a", "b", "c", "d"] {
            client.done(&format!("dial {name} 127.0.0.1:{port} 5s"))?;
            server.done(&format!("accept {name}"))?;
        }
        let tracer = trace(netns, &[])?;
        client.done("send a 10")?;
        client.done("send b 10")?;
        server.program().signal(Signal::SIGKILL)?;
        // The same end looks like two: what was sent and not read makes a RST, nothing a FIN.
        client.fails("recv a 1", "read: connection reset by peer")?;
        client.fails("recv b 1", "read: connection reset by peer")?;
        client.fails("recv c 1", "EOF")?;
        client.fails("recv d 1", "EOF")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "process_exited", server.pid())?;
        finding.ensure(4, client.pid())?;
        ensure!(
            finding.last.number("tcptrace.exit.signal") == Some(9),
            "{finding:?}"
        );
        ensure_severity(&finding, "ERROR")
    });
}

#[test]
fn a_dial_to_a_port_where_nobody_listens() {
    in_netns(|netns| {
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        client.fails("dial a 127.0.0.1:9 1s", "connect: connection refused")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "no_listener", client.pid())?;
        finding.ensure(1, 0)?;
        ensure!(finding.has_error("ECONNREFUSED"), "{finding:?}");
        Ok(())
    });
}

#[test]
fn a_dial_without_a_route() {
    in_netns(|netns| {
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        client.fails("dial a 192.0.2.1:80 1s", "connect: network is unreachable")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "unreachable", client.pid())?;
        ensure!(
            finding.count() == 1 && finding.has_error("ENETUNREACH"),
            "{finding:?}"
        );
        Ok(())
    });
}

#[test]
fn a_dial_with_all_ports_taken() {
    in_netns(|netns| {
        netns.sysctl("net.ipv4.ip_local_port_range", "40000 40001")?;
        let (mut server, mut client) = (Go::start()?, Go::start()?);
        let port = listening_port(&mut server, "listen 127.0.0.1:8000")?;
        client.done(&format!("dial a 127.0.0.1:{port} 1s"))?;
        client.done(&format!("dial b 127.0.0.1:{port} 1s"))?;
        let tracer = trace(netns, &[])?;
        let dial = format!("dial c 127.0.0.1:{port} 1s");
        client.fails(&dial, "connect: cannot assign requested address")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "ports_exhausted", client.pid())?;
        // Go tries thrice: the error may be spurious.
        ensure!(
            finding.count() == 3 && finding.has_error("EADDRNOTAVAIL"),
            "{finding:?}"
        );
        Ok(())
    });
}

#[test]
fn a_port_that_another_process_holds() {
    in_netns(|netns| {
        let (mut holder, mut server) = (Go::start()?, Go::start()?);
        let port = listening_port(&mut holder, ANY)?;
        let tracer = trace(netns, &[])?;
        let listen = format!("listen :{port}");
        server.fails(&listen, "bind: address already in use")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "address_in_use", server.pid())?;
        finding.ensure(1, holder.pid())?;
        ensure!(finding.has_error("EADDRINUSE"), "{finding:?}");
        Ok(())
    });
}

#[test]
fn an_accept_loop_without_descriptors() {
    in_netns(|netns| {
        let mut server = Go::start_as(with_descriptors(24, Go::command()?))?;
        let port = listening_port(&mut server, "serve :0 1m")?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        for name in 0..30 {
            client.done(&format!("dial {name} 127.0.0.1:{port} 5s"))?;
        }
        let line = server.program().wait_for_text("http: Accept error")?;
        ensure!(line.contains("accept4: too many open files"), "{line}");
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "fd_exhausted", server.pid())?;
        ensure!(
            finding.count() >= 1 && finding.has_error("EMFILE"),
            "{finding:?}"
        );
        ensure!(
            finding.text().contains("24"),
            "the limit is not told: {finding:?}"
        );
        ensure_severity(&finding, "ERROR")
    });
}

#[test]
fn a_server_that_never_closes() {
    in_netns(|netns| {
        let (mut server, mut client) = (Go::start()?, Go::start()?);
        let port = listening_port(&mut server, ANY)?;
        server.done("accept_all leak")?;
        let tracer = trace(netns, &[])?;
        for _ in 0..12 {
            client.done(&format!("dial a 127.0.0.1:{port} 5s"))?;
            client.done("send a 10")?;
            client.done("close a")?;
            server.program().wait_for_text("leaked after 10 bytes")?;
        }
        wait_for_leak(&tracer)?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "close_wait_leak", server.pid())?;
        ensure!(finding.count() == 12, "{finding:?}");
        ensure_severity(&finding, "ERROR")
    });
}

#[test]
fn a_client_that_never_closes_a_body() {
    in_netns(|netns| {
        let (_server, url) = http_server("1m")?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        ensure!(client.done(&format!("hoard {url}/last 7"))? == "7");
        wait_for_leak(&tracer)?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "close_wait_leak", client.pid())?;
        ensure!(finding.count() == 7, "{finding:?}");
        Ok(())
    });
}

fn wait_for_leak(tracer: &Tracer) -> Result<()> {
    let leak = |record: &Record| record.text("tcptrace.cause") == Some("close_wait_leak");
    tracer.wait_for("the leak", SOON, |record| {
        record.name() == "finding" && leak(record)
    })?;
    Ok(())
}

#[test]
fn a_dial_that_times_out_at_a_full_accept_queue() {
    in_netns(|netns| {
        netns.sysctl("net.core.somaxconn", "2")?;
        let (mut server, mut client) = (Go::start()?, Go::start()?);
        let port = listening_port(&mut server, ANY)?;
        for name in ["a", "b", "c"] {
            client.done(&format!("dial {name} 127.0.0.1:{port} 5s"))?;
        }
        let tracer = trace(netns, &[])?;
        let before = netns.counters()?;
        for _ in 0..4 {
            let dial = format!("dial d 127.0.0.1:{port} 600ms");
            client.fails(&dial, "i/o timeout")?;
        }
        let lost = netns.counters()?.since(&before, "TcpExtListenOverflows");
        let events = Events::of(tracer)?;
        ensure!(lost == Some(4), "the provocation itself: {lost:?}");
        let finding = only_finding(&events, "accept_queue_overflow", server.pid())?;
        ensure!(finding.count() == 4, "{finding:?}");
        ensure_severity(&finding, "ERROR")
    });
}

#[test]
fn two_failures_of_two_connections_are_two_findings() {
    in_netns(|netns| {
        let (mut server, mut client) = (Go::start()?, Go::start()?);
        let port = listening_port(&mut server, ANY)?;
        for name in ["a", "b"] {
            client.done(&format!("dial {name} 127.0.0.1:{port} 5s"))?;
            server.done(&format!("accept {name}"))?;
        }
        let tracer = trace(netns, &[])?;
        for name in ["a", "b"] {
            client.done(&format!("send {name} 10"))?;
        }
        server.done("recv a 10")?;
        server.done("linger_0 a")?;
        server.done("close a")?;
        server.done("close b")?;
        client.fails("recv a 1", "read: connection reset by peer")?;
        client.fails("recv b 1", "read: connection reset by peer")?;
        let events = Events::of(tracer)?;
        let wanted = ["linger_zero", "closed_with_unread_data"].map(|it| (it, server.pid()));
        for finding in exact_findings(&events, &wanted)? {
            finding.ensure(1, client.pid())?;
        }
        Ok(())
    });
}

#[test]
fn a_pool_that_is_too_small_for_a_slow_database() {
    in_netns(|netns| {
        let (_database, slow) = http_server("1m")?;
        let (mut server, mut clients) = (Go::start()?, [Go::start()?, Go::start()?]);
        server.done(&format!("front 127.0.0.1:8000 {slow}/work?for=3500ms 2"))?;
        let tracer = trace(netns, &[])?;
        // Two requests are in work. The others wait for the pool, leave and come again, at times of
        // their own.
        for (client, timeout) in clients.iter_mut().zip(["1s", "1300ms"]) {
            client.begin(&format!("load http://127.0.0.1:8000/ 9 3 false {timeout}"))?;
        }
        for client in &mut clients {
            let answered = client.answer()?;
            ensure!(answered == "0 answered, 9 failed", "{answered}");
        }
        let events = Events::of(tracer)?;
        let findings = findings(&events)?;
        let of_pool = |it: &&Finding| it.cause() == "pool_exhausted" && it.pid() == server.pid();
        let pool = findings.iter().find(of_pool);
        let pool = pool.with_context(|| format!("no exhausted pool: {findings:#?}"))?;
        let confidence = pool.last.text("tcptrace.finding.confidence");
        ensure!(confidence == Some("low"), "{pool:?}");
        // All else is its consequence.
        let others = findings.iter().filter(|it| it.id() != pool.id());
        for finding in others {
            let cause = finding.last.text("tcptrace.caused_by");
            ensure!(cause == Some(pool.id()), "{findings:#?}");
            let causes = ["peer_gave_up", "gave_up_waiting", "close_wait_leak"];
            ensure!(causes.contains(&finding.cause()), "{findings:#?}");
        }
        Ok(())
    });
}
