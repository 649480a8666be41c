//! A kernel without `sock_diag`: what `/proc/PID/net/tcp` tells stands in, and what it leaves out is said.

use anyhow::Context;
use tcptrace_tests::sock_diag::without_sock_diag;
use tcptrace_tests::*;

#[test]
fn what_is_wrong_at_the_start_is_told_with_what_is_known() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut pairs = vec![];
        for addr in LOOPBACKS {
            let pair = connected(&mut server, &mut client, addr)?;
            client.send(pair.client, b"unread")?;
            client.close(pair.client)?;
            server.wait_for(pair.server, libc::POLLRDHUP)?;
            pairs.push(pair);
        }
        let mut command = tcptrace();
        let path = netns.path();
        let path = path.to_str().context("a path in /proc")?;
        command.args(["-o", "json", "--netns", path]);
        without_sock_diag(&mut command)?;
        let tracer = Tracer::start(command)?;
        for pair in &pairs {
            let port = u64::from(pair.client_addr.port());
            tracer.wait_for("a stuck connection", SOON, |record| {
                record.name() == "close_wait.stuck"
                    && record.number("network.peer.port") == Some(port)
            })?;
        }
        let events = Events::of(tracer)?;
        let coverage = events.named("coverage").only(|record| {
            record.text("tcptrace.coverage.signal") == Some("queues and ages of sockets")
        });
        let coverage = coverage.one()?;
        assert_eq!(
            coverage.text("tcptrace.coverage.way"),
            Some("/proc/PID/net/tcp, tcp6")
        );
        let note = coverage.text("tcptrace.coverage.note").unwrap_or_default();
        assert!(note.contains("modprobe tcp_diag"), "{note}");

        let stuck = events.named("close_wait.stuck");
        for pair in &pairs {
            let stuck = stuck.at_server(pair);
            let stuck = stuck.one()?;
            assert_eq!(stuck.pid(), Some(server.pid().into()));
            assert_eq!(stuck.number("tcptrace.socket.unread"), Some(6));
            // It was seen twice, a second apart; what only tcp_info knows is not there.
            assert_eq!(stuck.number("tcptrace.close_wait.age_ms"), Some(1_000));
            assert!(stuck.get("tcptrace.close_wait.at_least").is_some());
            assert!(stuck.get("tcptrace.socket.retransmits").is_none());
            assert!(stuck.get("tcptrace.idle_ms").is_none());
        }
        assert_eq!(stuck.count(), 3);
        Ok(())
    });
}
