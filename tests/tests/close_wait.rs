//! Sockets in `CLOSE_WAIT`: told when they stay, counted when they pass, with their true age.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tcptrace_tests::*;

#[test]
fn a_socket_left_open_is_told_after_a_second() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut pairs = vec![];
        for addr in LOOPBACKS {
            let pair = connected(&mut server, &mut client, addr)?;
            client.close(pair.client)?;
            pairs.push(pair);
            // This one is closed in time.
            let pair = connected(&mut server, &mut client, addr)?;
            client.close(pair.client)?;
            server.wait_for(pair.server, libc::POLLRDHUP)?;
            server.close(pair.server)?;
        }
        let Some(last) = pairs.last() else {
            unreachable!("three were made")
        };
        let port = last.client_addr.port();
        tracer.wait_for("the last one stuck", SOON, |record| {
            record.name() == "close_wait.stuck"
                && record.number("network.peer.port") == Some(port.into())
        })?;
        let events = Events::of(tracer)?.named("close_wait.stuck");
        for pair in &pairs {
            let stuck = events.at_server(pair);
            let stuck = stuck.one()?;
            assert_eq!(stuck.pid(), Some(server.pid().into()));
            assert_eq!(
                stuck.number("tcptrace.socket.fd"),
                Some(pair.server.try_into()?)
            );
            let age = stuck.number("tcptrace.close_wait.age_ms").unwrap_or(0);
            assert!((1000..4000).contains(&age), "{age} ms");
        }
        assert_eq!(events.count(), 3);
        Ok(())
    });
}

#[test]
fn with_zero_every_entry_is_told_at_once() {
    in_netns(|netns| {
        let tracer = trace(netns, &["--close-wait-after", "0"])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut pairs = vec![];
        for addr in LOOPBACKS {
            for _ in 0..5 {
                let pair = connected(&mut server, &mut client, addr)?;
                client.close(pair.client)?;
                server.wait_for(pair.server, libc::POLLRDHUP)?;
                server.close(pair.server)?;
                pairs.push(pair);
            }
        }
        let events = Events::of(tracer)?.named("close_wait.entered");
        assert_eq!(events.count(), 15);
        for pair in pairs {
            let entered = events.at_server(&pair);
            let entered = entered.one()?;
            assert_eq!(entered.pid(), Some(server.pid().into()));
            assert_eq!(entered.text("network.connection.state"), Some("close_wait"));
        }
        Ok(())
    });
}

#[test]
fn what_was_there_before_is_told_with_its_age() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let since = Instant::now();
        let pair = connected(&mut server, &mut client, LOOPBACKS[0])?;
        client.close(pair.client)?;
        server.wait_for(pair.server, libc::POLLRDHUP)?;
        // An age needs time to pass: no state of the kernel stands for it.
        std::thread::sleep(Duration::from_millis(1500));
        let tracer = trace(netns, &[])?;
        let stuck = tracer.wait_for("the old one", SOON, |record| {
            record.name() == "close_wait.stuck"
        })?;
        let age = stuck.number("tcptrace.close_wait.age_ms").unwrap_or(0);
        let at_most = u64::try_from(since.elapsed().as_millis())?;
        ensure!(
            (1400..=at_most).contains(&age),
            "{age} ms of at most {at_most}"
        );
        assert_eq!(stuck.pid(), Some(server.pid().into()));
        assert_eq!(
            stuck.number("network.local.port"),
            Some(pair.server_addr.port().into())
        );
        Ok(())
    });
}
