//! A healthy host gets no finding, and what is normal life for a server at most one that says so.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tcptrace_tests::findings::{no_finding, normal_life};
use tcptrace_tests::program::{Go, Program};
use tcptrace_tests::servers::{Nginx, Redis, curl, start_curl};
use tcptrace_tests::sockets::wait_for_unread_answer;
use tcptrace_tests::*;

const URL: &str = "http://127.0.0.1:8080/";

fn ordinary(args: &[&str]) -> Result<Program> {
    let test = std::env::current_exe()?;
    let built = test.parent().and_then(Path::parent);
    let mut command = Command::new(built.context("a test outside target")?.join("ordinary"));
    command.args(args);
    Program::start(command)
}

#[test]
fn ten_thousand_ordinary_connections() {
    in_netns(|netns| {
        let count = volume(10_000);
        let tracer = trace(netns, &[])?;
        let before = netns.counters()?;
        let server = ordinary(&[&["serve"], &LOOPBACKS[..]].concat())?;
        let (number, _) = server.line(LOOPBACKS.len() - 1, |_| true)?;
        let addrs = (0..=number).map(|at| Ok(server.line(at, |_| true)?.1));
        let addrs: Vec<String> = addrs.collect::<Result<_>>()?;
        let mut args = vec!["connect".to_owned(), count.to_string()];
        args.extend(addrs);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let client = ordinary(&args)?.finish()?;
        ensure!(client.status.success(), "{client:?}");
        let server = server.finish()?;
        ensure!(
            server.status.success() && !server.printed("error"),
            "{server:?}"
        );
        let after = netns.counters()?;
        let grown = |name| after.since(&before, name);
        let events = Events::of(tracer)?;
        ensure!(grown("TcpPassiveOpens") >= Some(count as u64));
        ensure!(
            grown("TcpOutRsts") == Some(0),
            "the connections were not in order"
        );
        no_finding(&events)
    });
}

#[test]
fn nginx_and_a_pool_of_connections_in_go() {
    in_netns(|netns| {
        let _nginx = Nginx::start("", "keepalive_requests 100;")?;
        let tracer = trace(netns, &[])?;
        let mut client = Go::start()?;
        // nginx closes each connection after its hundredth answer, or after its first.
        for (requests, keep_alive) in [(volume(4000), true), (volume(1000), false)] {
            let answered = client.done(&format!("load {URL} {requests} 8 {keep_alive} 0s"))?;
            ensure!(
                answered == format!("{requests} answered, 0 failed"),
                "{answered}"
            );
        }
        client.exit()?;
        for _ in 0..20 {
            let (_, ended) = curl(&[URL])?;
            ended.ensure(0, "hello")?;
        }
        no_finding(&Events::of(tracer)?)
    });
}

#[test]
fn a_proxy_in_front_of_a_server_in_go() {
    in_netns(|netns| {
        let mut upstream = Go::start()?;
        upstream.done("serve 127.0.0.1:9000 1m")?;
        let _nginx = Nginx::start("", "location / { proxy_pass http://127.0.0.1:9000; }")?;
        let tracer = trace(netns, &[])?;
        let mut client = Go::start()?;
        let requests = volume(1000);
        let answered = client.done(&format!("load {URL} {requests} 4 true 0s"))?;
        ensure!(
            answered == format!("{requests} answered, 0 failed"),
            "{answered}"
        );
        no_finding(&Events::of(tracer)?)
    });
}

#[test]
fn redis_and_its_benchmark() {
    in_netns(|netns| {
        let redis = Redis::start(&[])?;
        let tracer = trace(netns, &[])?;
        for (requests, keep_alive) in [(volume(10_000), "1"), (volume(1000), "0")] {
            let mut command = Command::new("redis-benchmark");
            command.args(["-q", "-c", "20", "-t", "set,get", "-k", keep_alive]);
            command.args(["-n", &requests.to_string()]);
            let ended = Program::start(command)?.finish()?;
            ended.ensure(0, "requests per second")?;
        }
        redis.cli(&["DBSIZE"])?.ensure(0, "1")?;
        no_finding(&Events::of(tracer)?)
    });
}

#[test]
fn a_pool_that_looks_before_it_reuses() {
    in_netns(|netns| {
        let mut server = Go::start()?;
        server.done("serve 127.0.0.1:8000 300ms")?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        // The server closes what is idle, the client sees it and makes a new connection.
        let reuse = "reuse http://127.0.0.1:8000/ 600ms 4";
        ensure!(client.done(reuse)? == "4 answered");
        no_finding(&Events::of(tracer)?)
    });
}

#[test]
fn health_checks_that_connect_and_close() {
    in_netns(|netns| {
        let _nginx = Nginx::start("", "")?;
        let mut checker = actor("checker")?;
        let tracer = trace(netns, &[])?;
        for _ in 0..50 {
            let fd = checker.connected(Nginx::ADDR.parse()?)?;
            checker.close(fd)?;
        }
        no_finding(&Events::of(tracer)?)
    });
}

#[test]
fn health_checks_that_connect_and_reset() {
    in_netns(|netns| {
        let _nginx = Nginx::start("", "")?;
        let mut checker = actor("checker")?;
        let tracer = trace(netns, &[])?;
        for _ in 0..50 {
            let fd = checker.connected(Nginx::ADDR.parse()?)?;
            checker.abort(fd)?;
        }
        let finding = normal_life(&Events::of(tracer)?)?;
        if let Some(finding) = finding {
            ensure!(
                finding.count() == 50 && finding.pid() == checker.pid(),
                "{finding:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn downloads_that_their_users_stop() {
    in_netns(|netns| {
        let nginx = Nginx::start("", "")?;
        let tracer = trace(netns, &[])?;
        let url = format!("{URL}large");
        for _ in 0..10 {
            let client = start_curl(&["--limit-rate", "1M", "--output", "/dev/null", &url])?;
            wait_for_unread_answer(8080, 1 << 16)?;
            client.signal(Signal::SIGINT)?;
            client.finish()?;
        }
        let finding = normal_life(&Events::of(tracer)?)?;
        if let Some(finding) = finding {
            ensure!(finding.count() == 10, "{finding:?}");
            ensure!(finding.peer() == nginx.worker(), "{finding:?}");
        }
        Ok(())
    });
}

#[test]
fn requests_that_a_client_in_go_cancels() {
    in_netns(|netns| {
        let mut server = Go::start()?;
        server.done("serve 127.0.0.1:8000 1m")?;
        let mut client = Go::start()?;
        let tracer = trace(netns, &[])?;
        let cancel = "cancel http://127.0.0.1:8000/while_asked 100ms 10";
        client.fails(cancel, "context canceled")?;
        let finding = normal_life(&Events::of(tracer)?)?;
        if let Some(finding) = finding {
            ensure!(finding.count() == 10, "{finding:?}");
        }
        Ok(())
    });
}
