//! Storms of resets and of timers: none is lost at the defaults, and what a ring made tiny loses is counted.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Write as _, pipe};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use tcptrace_tests::*;

/// Connections that time out together.
const BURST: u64 = 900;

/// Connections that are given up together while their program asks for nothing but errors.
const GIVEN_UP: usize = 300;

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

/// How many records there are of each name: too many to be read as JSON.
fn counts(mut lines: impl BufRead) -> Result<HashMap<String, u64>> {
    let mut counts = HashMap::new();
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        let (_, rest) = line
            .split_once("\"event_name\":\"tcptrace.")
            .with_context(|| format!("no name: {line}"))?;
        let name = rest.split('"').next().unwrap_or_default();
        *counts.entry(name.to_owned()).or_default() += 1;
        line.clear();
    }
    Ok(counts)
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
fn two_hundred_thousand_refused_connections_and_none_lost() {
    in_netns(|netns| {
        // Counted as they come: together they are most of a gigabyte.
        let (from, to) = pipe()?;
        let counts = std::thread::spawn(|| counts(BufReader::with_capacity(1 << 20, from)));
        let mut command = tcptrace();
        command.args(["-o", "json", "--strict", "--netns"]);
        command.arg(netns.path());
        let tracer = Tracer::start_into(command, to)?;
        let counted = storm(netns, 100_000)?;
        let trace = tracer.stop()?;
        ensure!(counted == 200_000, "the provocation itself: {counted}");
        let counts = counts
            .join()
            .map_err(|_| anyhow!("the reader panicked"))??;
        let count = |name| counts.get(name).copied().unwrap_or(0);
        let all = ["reset.sent", "reset.received", "connect.failed"].map(count);
        let said = trace.stderr.join("\n");
        assert_eq!((all, count("events.lost")), ([counted; 3], 0), "{said}");
        assert_eq!(trace.status.code(), Some(0), "{said}");
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
        let counted = storm(netns, volume(50_000))?;
        let trace = tracer.stop()?;
        let lost = lost(&trace.stdout, "tcp_send_reset")?;
        ensure!(lost > 0, "the provocation itself: nothing was lost");
        let counts = counts(trace.stdout.join("\n").as_bytes())?;
        assert_eq!(counts.get("reset.sent").unwrap_or(&0) + lost, counted);
        assert_eq!(trace.status.code(), Some(5), "{}", trace.stderr.join("\n"));
        Ok(())
    });
}

#[test]
fn a_burst_of_timers_beside_a_storm_is_seen_once_or_counted() {
    in_netns(|netns| {
        let mut deaf = actor("is-deaf")?;
        let (listener, addr) = listen(&mut deaf, LOOPBACKS[0], 0)?;
        actor("crowd")?.connected(addr)?;
        deaf.wait_for_queue(listener, 1)?;
        let port = addr.port().to_string();
        let tracer = trace(netns, &["--event", "connect.failed", "--port", &port])?;
        let before = netns.counters()?;
        let mut client = actor("client")?;
        for _ in 0..BURST {
            let fd = client.connecting(addr)?;
            client.set(fd, libc::IPPROTO_TCP, libc::TCP_SYNCNT, &[1])?;
        }
        let each = volume(60_000);
        storm(netns, each)?;
        let all = BURST + 2 * u64::try_from(each)?;
        wait_until("the timeouts", || {
            let counters = netns.counters().map_err(io::Error::other)?;
            Ok(counters.since(&before, "TcpAttemptFails") == Some(all))
        })?;
        let trace = tracer.stop()?;
        let events = Events::from_trace(&trace)?;
        let failed = events.named("connect.failed").error("ETIMEDOUT");
        let ends: HashSet<_> = failed
            .0
            .iter()
            .map(|it| it.number("network.local.port"))
            .collect();
        assert_eq!(failed.count(), ends.len() as u64, "one was told twice");
        // Where the kernel skips a program, its stand-in steps in but for a few nanoseconds.
        let lost = lost(&trace.stdout, "inet_sock_set_state")?;
        assert!(
            failed.count() + lost >= BURST,
            "{} and {lost}",
            failed.count()
        );
        Ok(())
    });
}

/// A connection whose peer reads nothing, and which is given up after so many milliseconds.
fn unread(listener: &TcpListener, ms: u32) -> Result<[TcpStream; 2]> {
    let peer = TcpStream::connect(listener.local_addr()?)?;
    let (mut writer, _) = listener.accept()?;
    setsockopt(&writer, sockopt::TcpUserTimeout, &ms)?;
    writer.set_nonblocking(true)?;
    let full = writer.write_all(&vec![0; 64 << 20]).err();
    let full = full.map(|error| error.kind());
    ensure!(full == Some(io::ErrorKind::WouldBlock), "{full:?}");
    Ok([writer, peer])
}

/// The kernel leaves the error first, and changes the state when it has freed what was to be sent.
#[test]
fn connections_given_up_are_told_though_a_program_takes_their_errors_before_the_state_changes() {
    for list in ["connection.timeout", "+state"] {
        in_netns(|netns| {
            let listener = TcpListener::bind(LOOPBACKS[0])?;
            let tracer = trace(netns, &["--event", list])?;
            let before = netns.counters()?;
            let pairs = (0..GIVEN_UP).map(|_| unread(&listener, 500));
            let pairs = pairs.collect::<Result<Vec<_>>>()?;
            for [writer, _] in &pairs {
                let error = loop {
                    if let Some(error) = writer.take_error()? {
                        break error.raw_os_error();
                    }
                };
                ensure!(error == Some(libc::ETIMEDOUT), "{error:?}");
            }
            let given_up = "TcpExtTCPAbortOnTimeout";
            let counted = || netns.counters().map_err(io::Error::other);
            wait_until("the last end", || {
                Ok(counted()?.since(&before, given_up) == Some(GIVEN_UP as u64))
            })?;
            // What went by unseen shows when a socket is destroyed.
            drop(pairs);
            let trace = tracer.stop()?;
            let events = Events::from_trace(&trace)?;
            let told = events.named("connection.timeout");
            let as_it_was = told.error("ETIMEDOUT").count();
            assert_eq!(as_it_was, told.count());
            let unseen = lost(&trace.stdout, "inet_sock_set_state")?;
            assert_eq!(as_it_was + unseen, GIVEN_UP as u64);
            ensure!(as_it_was > 10 * unseen, "{unseen} went by unseen");
            Ok(())
        });
    }
}
