//! A real server: Debian's nginx with a worker that hangs, and a client that dies mid-answer.

use anyhow::ensure;
use nix::sys::signal::Signal;
use tcptrace_tests::servers::Nginx;
use tcptrace_tests::*;

#[test]
fn a_worker_that_hangs_is_named_for_the_connections_it_loses() {
    in_netns(|netns| {
        let nginx = Nginx::start("backlog=2", "")?;
        let worker = nginx.worker();
        let mut client = actor("client")?;
        let tracer = trace(netns, &[])?;
        let before = netns.counters()?;
        nginx.signal_worker(Signal::SIGSTOP)?;
        wait_for_process_state(worker, 'T')?;
        let addr = Nginx::ADDR.parse()?;
        let fds: Vec<Fd> = (0..20)
            .map(|_| client.connecting(addr))
            .collect::<Result<_, _>>()?;
        fds.into_iter().try_for_each(|fd| client.close(fd))?;
        let counted = netns
            .counters()?
            .since(&before, "TcpExtListenOverflows")
            .unwrap_or(0);
        let overflows = Events::of(tracer)?.lost_connections();
        ensure!(counted == 17, "the provocation itself: {counted}");
        assert_eq!(overflows.count(), counted);
        for event in &overflows.0 {
            assert_eq!(event.number("tcptrace.accept_queue.max"), Some(2));
            assert_eq!(event.text("process.executable.name"), Some("nginx"));
            // The master made the listener and the worker holds it: one of them, and both listed.
            let listed = event.get("tcptrace.owner.pids");
            let mut both = [nginx.master().pid(), worker];
            both.sort_unstable();
            assert_eq!(listed, Some(&serde_json::json!(both)), "{event:?}");
        }
        Ok(())
    });
}

#[test]
fn a_client_killed_in_the_middle_of_an_answer() {
    in_netns(|netns| {
        let nginx = Nginx::start("backlog=2", "")?;
        let worker = nginx.worker();
        let mut client = actor("client")?;
        let tracer = trace(netns, &[])?;
        let fd = client.connected(Nginx::ADDR.parse()?)?;
        let end = client.local_addr(fd)?;
        client.send(fd, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")?;
        client.wait_for(fd, libc::POLLIN)?;
        client.kill()?;
        let at_worker = |record: &Record| {
            record.name() == "reset.received"
                && record.number("network.peer.port") == Some(end.port().into())
        };
        tracer.wait_for("the RST at the worker", SOON, at_worker)?;
        let events = Events::of(tracer)?;
        let sent = events
            .named("reset.sent")
            .local(end)
            .error("process_exited");
        assert_eq!(
            sent.0.first().and_then(Record::pid),
            Some(client.pid().into())
        );
        let received = events.named("reset.received").peer(end);
        assert_eq!(received.pids(), [worker]);
        let errors = events.named("socket.error").peer(end);
        assert!(errors.pids().iter().all(|pid| *pid == worker), "{errors:?}");
        Ok(())
    });
}
