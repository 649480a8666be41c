//! What clients of redis run into: what they and redis say, and the one finding that says why.

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tcptrace_tests::findings::{no_finding, only_finding};
use tcptrace_tests::program::Go;
use tcptrace_tests::servers::Redis;
use tcptrace_tests::sockets::wait_for_close_wait;
use tcptrace_tests::*;

/// A client in Go with a connection `a` that redis has answered once.
fn client() -> Result<Go> {
    let mut client = Go::start()?;
    client.done(&format!("dial a {} 5s", Redis::ADDR))?;
    client.done("say a PING")?;
    ensure!(client.done("recv a 100")? == "7", "+PONG was expected");
    Ok(client)
}

#[test]
fn one_client_too_many_that_listens() {
    in_netns(|netns| {
        let redis = Redis::start(&["--maxclients", "1"])?;
        let _first = client()?;
        let mut second = Go::start()?;
        let tracer = trace(netns, &[])?;
        second.done(&format!("dial a {} 5s", Redis::ADDR))?;
        // It is told why, and the connection ends in order: nothing for TCP to explain.
        let told = "-ERR max number of clients reached\r\n".len();
        ensure!(second.done("recv a 100")? == told.to_string());
        second.fails("recv a 100", "EOF")?;
        second.done("close a")?;
        no_finding(&Events::of(tracer)?)?;
        drop(redis);
        Ok(())
    });
}

#[test]
fn one_client_too_many_that_has_asked_already() {
    in_netns(|netns| {
        let redis = Redis::start(&["--maxclients", "1"])?;
        let _first = client()?;
        let mut second = Go::start()?;
        let tracer = trace(netns, &[])?;
        redis.server.signal(Signal::SIGSTOP)?;
        wait_for_process_state(redis.server.pid(), 'T')?;
        second.done(&format!("dial a {} 5s", Redis::ADDR))?;
        second.done("say a PING")?;
        redis.server.signal(Signal::SIGCONT)?;
        // redis answers and closes without reading the question. The answer is still read.
        let told = "-ERR max number of clients reached\r\n".len();
        ensure!(second.done("recv a 100")? == told.to_string());
        second.fails("recv a 100", "read: connection reset by peer")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "closed_with_unread_data", redis.server.pid())?;
        finding.ensure(1, second.pid())?;
        ensure!(finding.has_error("ECONNRESET"), "{finding:?}");
        Ok(())
    });
}

#[test]
fn a_connection_closed_by_client_kill() {
    in_netns(|netns| {
        let redis = Redis::start(&[])?;
        let mut client = client()?;
        let tracer = trace(netns, &[])?;
        redis
            .cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])?
            .ensure(0, "1")?;
        wait_for_close_wait(1)?;
        client.done("say a PING")?;
        client.fails("say a PING", "write: broken pipe")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "write_after_peer_close", client.pid())?;
        finding.ensure(1, redis.server.pid())?;
        ensure!(finding.has_error("EPIPE"), "{finding:?}");
        Ok(())
    });
}

#[test]
fn a_connection_idle_for_longer_than_redis_allows() {
    in_netns(|netns| {
        let redis = Redis::start(&["--timeout", "1"])?;
        let tracer = trace(netns, &[])?;
        let mut client = client()?;
        // redis looks once a second.
        wait_for_close_wait(1)?;
        client.done("say a PING")?;
        client.fails("say a PING", "write: broken pipe")?;
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "write_after_peer_close", client.pid())?;
        finding.ensure(1, redis.server.pid())?;
        let hint = finding.hint();
        ensure!(hint == Some("stale_pooled_connection"), "{finding:?}");
        Ok(())
    });
}

#[test]
fn redis_killed_with_clients_connected() {
    in_netns(|netns| {
        let redis = Redis::start(&[])?;
        let mut clients = [client()?, client()?, client()?];
        let tracer = trace(netns, &[])?;
        redis.server.signal(Signal::SIGKILL)?;
        for client in &mut clients {
            client.fails("recv a 1", "EOF")?;
        }
        let events = Events::of(tracer)?;
        let finding = only_finding(&events, "process_exited", redis.server.pid())?;
        ensure!(finding.count() == 3, "{finding:?}");
        let clients = clients.map(|client| client.pid());
        ensure!(clients.contains(&finding.peer()), "{finding:?}");
        let signal = finding.last.number("tcptrace.exit.signal");
        ensure!(signal == Some(9), "{finding:?}");
        ensure!(finding.severity() == "ERROR", "{finding:?}");
        Ok(())
    });
}
