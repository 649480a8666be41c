//! A storm of resets: none is lost at the defaults, and what a ring made tiny loses is counted.

use anyhow::{Context, Result, ensure};
use tcptrace_tests::*;

/// Two actors are refused as fast as they can; returns by how much `TcpOutRsts` grew.
fn storm(netns: &Netns, each: usize) -> Result<u64> {
    let before = netns.counters()?;
    let mut server = actor("server")?;
    let (listener, addr) = listen(&mut server, LOOPBACKS[0], 1)?;
    server.close(listener)?;
    let mut storms = [actor("storm-1")?, actor("storm-2")?];
    for storm in &mut storms {
        storm.begin(
            "be_refused",
            &[usize::from(addr.port()).into(), each.into()],
        )?;
    }
    for storm in &mut storms {
        ensure!(
            storm.finish()?.value == i64::try_from(each)?,
            "not all were refused"
        );
    }
    netns
        .counters()?
        .since(&before, "TcpOutRsts")
        .context("no such counter")
}

fn lost(events: &Events, hook: &str) -> u64 {
    let lost = events.named("events.lost");
    let lost = lost.only(|event| event.text("tcptrace.lost.hook") == Some(hook));
    lost.0
        .iter()
        .filter_map(|event| event.number("tcptrace.lost.count"))
        .sum()
}

#[test]
fn two_hundred_thousand_resets_and_none_lost() {
    in_netns(|netns| {
        // A file: how fast this test reads a pipe is not what is tested.
        let path = std::env::temp_dir().join(format!("tcptrace-storm-{}", netns.inode()));
        let mut command = tcptrace();
        command.args(["-o", "json", "--event", "reset.sent", "--strict"]);
        command.args(["--netns", &netns.inode().to_string()]);
        let tracer = Tracer::start_into(command, std::fs::File::create(&path)?)?;
        let counted = storm(netns, 100_000)?;
        let mut trace = tracer.stop()?;
        trace.stdout = std::fs::read_to_string(&path)?
            .lines()
            .map(String::from)
            .collect();
        std::fs::remove_file(&path)?;
        ensure!(counted == 200_000, "the provocation itself: {counted}");
        assert_eq!(trace.status.code(), Some(0), "{}", trace.stderr.join("\n"));
        let events = Events(trace.records()?);
        assert_eq!(events.named("reset.sent").count(), counted);
        assert_eq!(events.named("events.lost").count(), 0);
        Ok(())
    });
}

#[test]
fn what_a_tiny_ring_loses_is_counted_exactly() {
    in_netns(|netns| {
        let arguments = [
            "--event",
            "reset.sent",
            "--strict",
            "--ring-buffer",
            "16KiB",
        ];
        let tracer = trace(netns, &arguments)?;
        let counted = storm(netns, 50_000)?;
        let trace = tracer.stop()?;
        let events = Events(trace.records()?);
        let lost = lost(&events, "tcp_send_reset");
        ensure!(lost > 0, "the provocation itself: nothing was lost");
        assert_eq!(events.named("reset.sent").count() + lost, counted);
        assert_eq!(trace.status.code(), Some(5), "{}", trace.stderr.join("\n"));
        Ok(())
    });
}
