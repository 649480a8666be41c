//! What the network, another host or an administrator does to a program: what it prints, and the
//! one finding that says why.

use std::process::Command;

use anyhow::{Result, ensure};
use tcptrace_tests::findings::{Finding, only_finding};
use tcptrace_tests::hosts::OtherHost;
use tcptrace_tests::program::{Go, Program};
use tcptrace_tests::*;

const DIAL: &str = "dial a 192.0.2.2:8000 5s";

/// A server on another host with a connection `a` to the client's `a`.
fn far_server(host: &OtherHost, client: &mut Go) -> Result<Go> {
    let mut server = host.start_go()?;
    server.done("listen 192.0.2.2:8000")?;
    client.done(DIAL)?;
    server.done("accept a")?;
    Ok(server)
}

fn ensure_told(finding: &Finding, errno: &str, severity: &str) -> Result<()> {
    finding.ensure(1, 0)?;
    let right = finding.has_error(errno) && finding.severity() == severity;
    ensure!(right, "{errno} and {severity}: {finding:?}");
    Ok(())
}

#[test]
fn a_reset_from_another_host() {
    in_netns(|netns| {
        let host = OtherHost::connected()?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        let mut server = far_server(&host, &mut client)?;
        client.done("send a 10")?;
        server.done("recv a 10")?;
        server.done("linger_0 a")?;
        server.done("close a")?;
        client.fails("recv a 1", "read: connection reset by peer")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "reset_by_peer", client.pid())?;
        ensure_told(&finding, "ECONNRESET", "WARN")
    });
}

#[test]
fn a_refusal_by_another_host() {
    in_netns(|netns| {
        let _host = OtherHost::connected()?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        client.fails(DIAL, "connect: connection refused")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "refused_by_peer", client.pid())?;
        ensure_told(&finding, "ECONNREFUSED", "WARN")
    });
}

#[test]
fn a_host_that_is_silent() {
    in_netns(|netns| {
        let _host = OtherHost::connected()?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        let dial = format!("dial a {}:80 1200ms", OtherHost::SILENT);
        client.fails(&dial, "i/o timeout")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "connect_abandoned", client.pid())?;
        finding.ensure(1, 0)?;
        ensure!(finding.severity() == "INFO", "{finding:?}");
        Ok(())
    });
}

#[test]
fn a_host_that_vanishes_while_data_is_on_its_way() {
    in_netns(|netns| {
        netns.sysctl("net.ipv4.tcp_retries2", "2")?;
        let host = OtherHost::connected()?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        let _server = far_server(&host, &mut client)?;
        host.vanish()?;
        client.done("send a 10")?;
        client.fails("recv a 1", "read: connection timed out")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "retransmit_timeout", client.pid())?;
        ensure_told(&finding, "ETIMEDOUT", "ERROR")
    });
}

#[test]
fn a_host_that_vanishes_for_longer_than_tcp_user_timeout() {
    in_netns(|netns| {
        let host = OtherHost::connected()?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        let _server = far_server(&host, &mut client)?;
        client.done("user_timeout a 1s")?;
        host.vanish()?;
        client.done("send a 10")?;
        client.fails("recv a 1", "read: connection timed out")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "user_timeout", client.pid())?;
        ensure_told(&finding, "ETIMEDOUT", "ERROR")
    });
}

#[test]
fn a_host_that_vanishes_from_an_idle_connection() {
    in_netns(|netns| {
        netns.sysctl("net.ipv4.tcp_keepalive_probes", "1")?;
        let host = OtherHost::connected()?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        let _server = far_server(&host, &mut client)?;
        client.done("keep_alive a 1s")?;
        host.vanish()?;
        client.fails("recv a 1", "read: connection timed out")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "keepalive_timeout", client.pid())?;
        ensure_told(&finding, "ETIMEDOUT", "ERROR")
    });
}

#[test]
fn a_client_of_a_connection_that_is_forgotten_here() {
    in_netns(|netns| {
        let host = OtherHost::connected()?;
        let (mut server, mut client) = (Go::start()?, host.start_go()?);
        server.done("listen 192.0.2.1:8000")?;
        client.done("dial a 192.0.2.1:8000 5s")?;
        server.done("accept a")?;
        // The RST is lost, so the client knows nothing of it.
        host.vanish()?;
        server.done("linger_0 a")?;
        server.done("close a")?;
        host.come_back()?;
        let tracer = trace(netns, &[])?;
        client.done("send a 10")?;
        client.fails("recv a 1", "read: connection reset by peer")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "stale_connection", server.pid())?;
        finding.ensure(1, 0)
    });
}

#[test]
fn a_peer_that_stops_reading() {
    in_netns(|netns| {
        let (mut server, mut client) = (Go::start()?, Go::start()?);
        server.done("listen 127.0.0.1:8000")?;
        client.done("dial a 127.0.0.1:8000 5s")?;
        server.done("accept a")?;
        let tracer = trace(netns, &[])?;
        server.done("user_timeout a 1s")?;
        server.fails("fill a", "write: connection timed out")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "peer_not_reading", server.pid())?;
        finding.ensure(1, client.pid())?;
        ensure!(finding.has_error("ETIMEDOUT"), "{finding:?}");
        Ok(())
    });
}

#[test]
fn a_connection_killed_by_ss() {
    in_netns(|netns| {
        let (mut server, mut client) = (Go::start()?, Go::start()?);
        server.done("listen 127.0.0.1:8000")?;
        client.done("dial a 127.0.0.1:8000 5s")?;
        server.done("accept a")?;
        let tracer = trace(netns, &[])?;
        let mut ss = Command::new("ss");
        ss.args(["-K", "dst", "127.0.0.1", "dport", "=", "8000"]);
        let ss = Program::start(ss)?;
        let administrator = u64::from(ss.pid());
        ensure!(ss.finish()?.status.success());
        client.fails("recv a 1", "software caused connection abort")?;
        server.fails("recv a 1", "connection reset by peer")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "killed_by_admin", client.pid())?;
        finding.ensure(1, server.pid())?;
        let actor = finding.last.number("tcptrace.actor.pid");
        ensure!(actor == Some(administrator), "{finding:?}");
        Ok(())
    });
}

/// A rule of this namespace that answers what goes to port 8000 with a RST.
fn reject_port_8000() -> Result<()> {
    let mut nft = Command::new("nft");
    nft.arg(
        "table ip tcptrace { \n chain out { \n type filter hook output priority 0 \n \
         tcp dport 8000 reject with tcp reset \n } \n }",
    );
    let ended = Program::start(nft)?.finish()?;
    ensure!(ended.status.success(), "{ended:?}");
    Ok(())
}

#[test]
fn a_firewall_that_answers_for_a_server_of_this_host() {
    in_netns(|netns| {
        let (mut server, mut client) = (Go::start()?, Go::start()?);
        server.done("listen 127.0.0.1:8000")?;
        reject_port_8000()?;
        let tracer = trace(netns, &[])?;
        let dial = "dial a 127.0.0.1:8000 5s";
        client.fails(dial, "connect: connection refused")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "rejected_by_firewall", client.pid())?;
        ensure_told(&finding, "ECONNREFUSED", "WARN")
    });
}

#[test]
fn a_firewall_that_answers_for_another_host() {
    in_netns(|netns| {
        let _host = OtherHost::connected()?;
        reject_port_8000()?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        client.fails(DIAL, "connect: connection refused")?;
        let events = Events::of(tracer)?;
        // It answers in the other host's name. Nothing tells the two apart, which must be said.
        let finding = only_finding(&events, "refused_by_peer", client.pid())?;
        ensure_told(&finding, "ECONNREFUSED", "WARN")?;
        let confidence = finding.last.text("tcptrace.finding.confidence");
        let right = confidence == Some("medium") && finding.text().contains("REJECT of this host");
        ensure!(right, "{finding:?}");
        Ok(())
    });
}
