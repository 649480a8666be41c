//! A storm of resets: none is lost at the defaults, and what a ring made tiny loses is counted.

use std::fs::{self, File};

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

/// The number of records of this name: most are too many to be read as JSON.
fn count(lines: &[String], name: &str) -> u64 {
    let name = format!("\"event_name\":\"tcptrace.{name}\"");
    lines.iter().filter(|line| line.contains(&name)).count() as u64
}

fn lost(lines: &[String], hook: &str) -> Result<u64> {
    let mut lost = 0;
    for line in lines
        .iter()
        .filter(|line| line.contains("tcptrace.events.lost"))
    {
        let record = Record(serde_json::from_str(line)?);
        ensure!(record.text("tcptrace.lost.hook") == Some(hook), "{line}");
        lost += record.number("tcptrace.lost.count").context("no count")?;
    }
    Ok(lost)
}

#[test]
fn two_hundred_thousand_resets_and_none_lost() {
    in_netns(|netns| {
        // A file: how fast this test reads a pipe is not what is tested.
        let path = std::env::temp_dir().join(format!("tcptrace-storm-{}", netns.inode()));
        let mut command = tcptrace();
        command.args(["-o", "json", "--event", "reset.sent", "--strict"]);
        command.args(["--netns", &netns.inode().to_string()]);
        let tracer = Tracer::start_into(command, File::create(&path)?)?;
        let counted = storm(netns, 100_000)?;
        let trace = tracer.stop()?;
        let lines: Vec<_> = fs::read_to_string(&path)?
            .lines()
            .map(String::from)
            .collect();
        fs::remove_file(&path)?;
        ensure!(counted == 200_000, "the provocation itself: {counted}");
        assert_eq!(trace.status.code(), Some(0), "{}", trace.stderr.join("\n"));
        assert_eq!(count(&lines, "reset.sent"), counted);
        assert_eq!(count(&lines, "events.lost"), 0);
        Ok(())
    });
}

#[test]
fn what_a_tiny_ring_loses_is_counted_exactly() {
    in_netns(|netns| {
        let ring = ["--ring-buffer", "16KiB"];
        let tracer = trace(
            netns,
            &[&["--event", "reset.sent", "--strict"], &ring[..]].concat(),
        )?;
        let counted = storm(netns, 50_000)?;
        let trace = tracer.stop()?;
        let lost = lost(&trace.stdout, "tcp_send_reset")?;
        ensure!(lost > 0, "the provocation itself: nothing was lost");
        assert_eq!(count(&trace.stdout, "reset.sent") + lost, counted);
        assert_eq!(trace.status.code(), Some(5), "{}", trace.stderr.join("\n"));
        Ok(())
    });
}
