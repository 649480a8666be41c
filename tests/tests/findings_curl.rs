//! What curl runs into and does to servers: what it prints, and the one finding that says why.

use std::os::unix::process::ExitStatusExt;

use anyhow::ensure;
use nix::sys::signal::Signal;
use tcptrace_tests::findings::{findings, only_finding};
use tcptrace_tests::hosts::OtherHost;
use tcptrace_tests::program::Go;
use tcptrace_tests::servers::{Nginx, curl, shell, start_curl};
use tcptrace_tests::sockets::wait_for_unread_answer;
use tcptrace_tests::*;

const LARGE: &str = "http://127.0.0.1:8080/large";

#[test]
fn a_port_where_nobody_listens() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let (client, ended) = curl(&["http://127.0.0.1:9/"])?;
        ended.ensure(7, "Failed to connect to 127.0.0.1 port 9")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "no_listener", client)?;
        finding.ensure(1, 0)?;
        ensure!(finding.has_error("ECONNREFUSED"), "{finding:?}");
        Ok(())
    });
}

#[test]
fn a_listener_on_another_address_is_named() {
    in_netns(|netns| {
        let mut server = Go::start()?;
        server.done("listen 127.0.0.2:8000")?;
        let tracer = trace(netns, &[])?;
        let (client, ended) = curl(&["http://127.0.0.1:8000/"])?;
        ended.ensure(7, "Failed to connect to 127.0.0.1 port 8000")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "no_listener", client)?;
        ensure!(finding.text().contains("127.0.0.2"), "{finding:?}");
        Ok(())
    });
}

#[test]
fn a_server_that_does_not_answer_in_time() {
    in_netns(|netns| {
        let mut server = Go::start()?;
        server.done("serve 127.0.0.1:8000 1m")?;
        let tracer = trace(netns, &[])?;
        let (client, ended) = curl(&["--max-time", "1", "http://127.0.0.1:8000/never"])?;
        ended.ensure(28, "Operation timed out after 1")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "gave_up_waiting", client)?;
        finding.ensure(1, server.pid())?;
        ensure!(finding.severity() == "INFO", "{finding:?}");
        Ok(())
    });
}

#[test]
fn interrupted_in_the_middle_of_a_body() {
    in_netns(|netns| {
        let nginx = Nginx::start("", "")?;
        let tracer = trace(netns, &[])?;
        let client = start_curl(&["--limit-rate", "1M", "--output", "/dev/null", LARGE])?;
        let pid = client.pid();
        wait_for_unread_answer(8080, 1 << 16)?;
        client.signal(Signal::SIGINT)?;
        ensure!(client.finish()?.status.signal() == Some(2));
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "process_exited", pid)?;
        finding.ensure(1, nginx.worker())?;
        let signal = finding.last.number("tcptrace.exit.signal");
        ensure!(signal == Some(2), "{finding:?}");
        ensure!(finding.severity() == "INFO", "{finding:?}");
        Ok(())
    });
}

#[test]
fn a_pipe_that_closes_in_the_middle_of_a_body() {
    in_netns(|netns| {
        let nginx = Nginx::start("", "")?;
        let tracer = trace(netns, &[])?;
        let line = format!(
            "sh -c 'echo pid $$ >&2; exec curl --silent --show-error {LARGE}' | head -c 100"
        );
        let pipeline = shell(&line)?;
        let pid = pipeline.wait_for_text("pid ")?;
        let pid = pid.trim_start_matches("pid ").parse()?;
        pipeline
            .finish()?
            .ensure(0, "(23) Failure writing output")?;
        let events = Events::of(tracer)?;
        // Whether bytes were unread when curl closed is a matter of microseconds.
        let all = findings(&events)?;
        ensure!(all.len() == 1, "{all:?}");
        let finding = &all[0];
        let (whose, other) = match finding.cause() {
            "closed_with_unread_data" => (pid, nginx.worker()),
            "write_after_peer_close" => (nginx.worker(), pid),
            _ => anyhow::bail!("{finding:?}"),
        };
        ensure!(finding.pid() == whose, "{finding:?}");
        finding.ensure(1, other)?;
        ensure!(finding.severity() == "INFO", "{finding:?}");
        Ok(())
    });
}

#[test]
fn a_host_that_is_silent() {
    in_netns(|netns| {
        let _host = OtherHost::connected()?;
        let tracer = trace(netns, &[])?;
        let (client, ended) = curl(&["--connect-timeout", "1", "http://192.0.2.9/"])?;
        ended.ensure(28, "imeout")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "connect_abandoned", client)?;
        finding.ensure(1, 0)?;
        ensure!(finding.severity() == "INFO", "{finding:?}");
        Ok(())
    });
}

#[test]
fn a_host_that_is_silent_for_longer_than_the_kernel_tries() {
    in_netns(|netns| {
        let _host = OtherHost::connected()?;
        // One more SYN after a second, and two seconds for its answer.
        netns.sysctl("net.ipv4.tcp_syn_retries", "1")?;
        let tracer = trace(netns, &[])?;
        let (client, ended) = curl(&["http://192.0.2.9/"])?;
        ended.ensure(28, "Failed to connect to 192.0.2.9 port 80 after 3")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "connect_timeout", client)?;
        finding.ensure(1, 0)?;
        ensure!(finding.has_error("ETIMEDOUT"), "{finding:?}");
        Ok(())
    });
}
