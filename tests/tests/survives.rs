//! Whatever becomes of a tracer, the kernel and other tracers are as if it had not been: killed at any
//! moment, started beside another, stopped for a while.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tcptrace_tests::*;

/// Nothing is left in the kernel without a process that holds it but what was before.
fn ensure_clean(before: &BTreeSet<bpf::Object>) -> Result<()> {
    let mut left = vec![];
    let clean = wait_until("everything to be gone from the kernel", || {
        let now = bpf::held_by_nobody().map_err(std::io::Error::other)?;
        left = now.difference(before).copied().collect();
        Ok(left.is_empty())
    });
    clean.with_context(|| format!("left behind: {left:?}"))?;
    Ok(())
}

fn quietly(command: &mut Command) -> Result<Child> {
    let silent = command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(silent.stderr(Stdio::null()).spawn()?)
}

/// Starts a tracer and kills it as soon as it holds this many objects of the kernel's.
fn kill_once_it_holds(count: usize, netns: &Netns) -> Result<usize> {
    let mut command = tcptrace();
    command.arg("--netns").arg(netns.path());
    let mut tracer = quietly(&mut command)?;
    let mut held = 0;
    wait_until("a tracer that holds that much", || {
        held = bpf::held_by(tracer.id())?.len();
        ensure_runs(&mut tracer)?;
        Ok(held >= count)
    })?;
    tracer.kill()?;
    tracer.wait()?;
    Ok(held)
}

fn ensure_runs(child: &mut Child) -> std::io::Result<()> {
    match child.try_wait()? {
        None => Ok(()),
        Some(status) => Err(std::io::Error::other(format!("it ended: {status}"))),
    }
}

#[test]
fn killed_while_it_starts_it_leaves_nothing() {
    in_netns(|netns| {
        let before = bpf::held_by_nobody()?;
        let tracer = trace(netns, &[])?;
        let all = bpf::held_by(tracer.pid())?.len();
        ensure!(all > 20, "a tracer that traces holds only {all} objects");
        tracer.signal(Signal::SIGKILL)?;
        drop(tracer);
        ensure_clean(&before)?;
        for tenth in 0..=10 {
            let wanted = all * tenth / 10;
            let held = kill_once_it_holds(wanted, netns)?;
            ensure_clean(&before).with_context(|| format!("killed with {held} of {all}"))?;
        }
        Ok(())
    });
}

#[test]
fn killed_in_a_storm_or_while_it_ends_it_leaves_nothing() {
    in_netns(|netns| {
        let before = bpf::held_by_nobody()?;
        for interrupted in [false, true] {
            let tracer = trace(netns, &[])?;
            let mut client = actor("client")?;
            client.begin("be_refused", &[1.into(), 20_000.into()])?;
            tracer.wait_for("the storm", SOON, |it| it.name() == "connect.failed")?;
            if interrupted {
                tracer.signal(Signal::SIGINT)?;
            }
            // Kills it.
            drop(tracer);
            client.finish()?;
            ensure_clean(&before).with_context(|| format!("interrupted: {interrupted}"))?;
        }
        Ok(())
    });
}

/// A command waits for its trace to begin. Whose tracer is killed before never begins.
#[test]
fn a_command_whose_tracer_is_killed_before_it_traces_never_runs() {
    in_netns(|netns| {
        let before = bpf::held_by_nobody()?;
        let directory = tempfile::tempdir()?;
        let ran = directory.path().join("ran");
        let mut command = tcptrace();
        command.arg("--netns").arg(netns.path());
        let mut tracer = quietly(command.args(["--", "touch"]).arg(&ran))?;
        let child = |tracer: u32| -> Option<u32> {
            let threads = std::fs::read_dir(format!("/proc/{tracer}/task")).ok()?;
            let children = threads
                .flatten()
                .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
            children.collect::<String>().split(' ').next()?.parse().ok()
        };
        wait_until("the command that waits", || {
            ensure_runs(&mut tracer)?;
            Ok(child(tracer.id()).is_some())
        })?;
        let waiting = child(tracer.id()).context("it was there")?;
        tracer.kill()?;
        tracer.wait()?;
        let gone = format!("/proc/{waiting}/exe");
        wait_until("the end of the command", || {
            Ok(std::fs::read_link(&gone).is_err())
        })?;
        ensure!(!ran.exists(), "it ran although nothing was traced");
        ensure_clean(&before)
    });
}

/// Resets sent, as a trace saw them and as it says it lost them.
fn seen_and_lost(trace: &Trace) -> Result<(u64, u64)> {
    let events = Events::from_trace(trace)?;
    let lost = events.named("events.lost");
    let lost = lost
        .0
        .iter()
        .filter(|it| it.text("tcptrace.lost.hook") == Some("tcp_send_reset"));
    let lost = lost.map(|it| it.number("tcptrace.lost.count").context("no count"));
    Ok((events.named("reset.sent").count(), lost.sum::<Result<_>>()?))
}

#[test]
fn one_beside_another_both_see_everything() {
    const REFUSED: usize = 2_000;
    in_netns(|netns| {
        let before = netns.counters()?;
        let first = trace(netns, &[])?;
        let second = trace(netns, &[])?;
        let mut client = actor("client")?;
        client.call("be_refused", &[1.into(), REFUSED.into()])?;
        let alone = REFUSED as u64;
        assert_eq!(seen_and_lost(&second.stop()?)?, (alone, 0));
        // The other goes on.
        client.call("be_refused", &[1.into(), REFUSED.into()])?;
        assert_eq!(seen_and_lost(&first.stop()?)?, (2 * alone, 0));
        let counted = netns.counters()?.since(&before, "TcpOutRsts");
        ensure!(counted == Some(2 * alone), "the provocation: {counted:?}");
        Ok(())
    });
}

#[test]
fn stopped_for_a_while_it_loses_exactly_what_it_says() {
    // A minute in the full run.
    let while_stopped = Duration::from_secs(volume(6) as u64);
    in_netns(|netns| {
        let before = netns.counters()?;
        let tracer = trace(netns, &["--event", "reset.sent", "--ring-buffer", "1MiB"])?;
        let mut client = actor("client")?;
        client.call("be_refused", &[1.into(), 100.into()])?;
        tracer.signal(Signal::SIGSTOP)?;
        wait_for_process_state(tracer.pid(), 'T')?;
        let begun = Instant::now();
        while begun.elapsed() < while_stopped {
            client.call("be_refused", &[1.into(), 5_000.into()])?;
        }
        tracer.signal(Signal::SIGCONT)?;
        let woken = netns.counters()?;
        client.call("be_refused", &[1.into(), 100.into()])?;
        let trace = tracer.stop()?;
        let (seen, lost) = seen_and_lost(&trace)?;
        let counted = netns.counters()?.since(&before, "TcpOutRsts");
        assert_eq!(Some(seen + lost), counted, "{lost} lost");
        ensure!(lost > 0, "the provocation itself: nothing was lost");
        ensure!(woken.since(&before, "TcpOutRsts") > Some(5_000), "a storm");
        Ok(())
    });
}
