//! The same failures over and over, in namespaces and by processes that come and go, under one tracer:
//! what it counts is what the kernel counts, every owner is who did it, and its memory stays flat.
//!
//! Ten seconds in the usual run; `cargo xtask soak` sets `TCPTRACE_SOAK_SECONDS`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, PipeReader, pipe};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use tcptrace_tests::*;

/// How much the tracer's resident memory may grow once every sort of failure was there: what its tables
/// take until they reach their limits.
const GROWTH: u64 = 24 << 20;

/// What came of one namespace.
#[derive(Debug)]
struct Seen {
    /// What happened earlier was in another namespace, whose number this one was given.
    since: SystemTime,
    /// Events by name, and by error where they have one.
    events: BTreeMap<String, u64>,
    /// Owners there were, and the first record of each.
    owners: BTreeMap<u64, String>,
}

/// All namespaces, by their number. A number is given again once its namespace is gone: whoever has
/// made one begins with nothing, and takes what came when all its processes are gone. A finding may
/// come later still.
type All = Arc<Mutex<BTreeMap<u64, Seen>>>;

fn read(from: PipeReader, all: &All) -> Result<()> {
    for line in BufReader::new(from).lines() {
        let line = line?;
        let record = Record(serde_json::from_str(&line).with_context(|| line.clone())?);
        note_unseen(&line);
        let is_unseen = record.text("error.type") == Some("unseen");
        ensure!(record.name() != "events.lost" || is_unseen, "{line}");
        let Some(netns) = record.number("tcptrace.netns") else {
            continue;
        };
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        let happened = happened(&record).with_context(|| line.clone())?;
        let Some(seen) = all.get_mut(&netns).filter(|seen| seen.since <= happened) else {
            continue;
        };
        let name = match record.text("error.type") {
            Some(error) => format!("{} {error}", record.name()),
            None => record.name().to_owned(),
        };
        *seen.events.entry(name).or_default() += 1;
        if let Some(pid) = record.pid() {
            seen.owners.entry(pid).or_insert(line);
        }
    }
    Ok(())
}

/// A finding comes when its story is over, and happened when its first event did.
fn happened(record: &Record) -> Option<SystemTime> {
    let first = record.text("tcptrace.finding.first");
    let first = first.map(|it| it.parse().ok());
    first.unwrap_or_else(|| record.time()).map(SystemTime::from)
}

impl Seen {
    fn since(since: SystemTime) -> Self {
        Self {
            since,
            events: BTreeMap::new(),
            owners: BTreeMap::new(),
        }
    }

    fn named(&self, name: &str) -> u64 {
        let events = self.events.iter();
        let named = events.filter(|(it, _)| it.split(' ').next() == Some(name));
        named.map(|(_, count)| count).sum()
    }
}

/// Does this in a namespace of its own with actors of its own, and holds what came of it against the
/// kernel's counters and the actors, until it is right or 10 s are over.
fn round(all: &All, act: fn(&Netns) -> Result<Expected>) {
    in_netns(|netns| {
        let number = u64::from(netns.inode());
        let take = |then: &mut dyn FnMut(&Seen) -> bool| {
            let all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all.get(&number).is_some_and(then)
        };
        all.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, Seen::since(SystemTime::now()));
        let expected = act(netns)?;
        let resets = netns.counters()?.since(&Counters::default(), "TcpOutRsts");
        let resets = resets.context("no such counter")?;
        let came = wait_until("everything to be seen", || {
            Ok(take(&mut |seen| {
                seen.named("reset.sent") == resets
                    && expected.timeouts.is_none_or(|it| {
                        let closed = seen.events.get("state.changed ETIMEDOUT");
                        seen.named("connection.timeout") == it && closed == Some(&it)
                    })
                    && expected
                        .refused
                        .is_none_or(|it| seen.named("connect.failed") == it)
            }))
        });
        let seen = all
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&number)
            .context("it was there")?;
        came.with_context(|| format!("{resets} RSTs, {expected:?}, came: {seen:?}"))?;
        let stranger = seen
            .owners
            .iter()
            .find(|(pid, _)| !expected.pids.contains(pid));
        ensure!(
            stranger.is_none(),
            "{:?} owned by {stranger:?}",
            expected.pids
        );
        Ok(())
    });
}

/// What must come of a round, besides the kernel's RSTs.
#[derive(Debug, Default)]
struct Expected {
    pids: BTreeSet<u64>,
    timeouts: Option<u64>,
    refused: Option<u64>,
}

/// One process with both ends of many connections, killed in the midst of them.
fn churn(_: &Netns) -> Result<Expected> {
    let mut actor = actor("churns")?;
    actor.call("churn", &[200.into()])?;
    actor.begin("churn", &[1_000_000.into()])?;
    let pids = [actor.pid().into()].into();
    wait_for_process_state(actor.pid(), 'R')?;
    actor.kill()?;
    Ok(Expected {
        pids,
        ..Expected::default()
    })
}

fn refuse(_: &Netns) -> Result<Expected> {
    const TIMES: u16 = 500;
    let mut client = actor("is-refused")?;
    client.call("be_refused", &[1.into(), usize::from(TIMES).into()])?;
    Ok(Expected {
        pids: [client.pid().into()].into(),
        refused: Some(TIMES.into()),
        ..Expected::default()
    })
}

/// Closed by the timers of sockets whose peer has fallen silent.
fn time_out(netns: &Netns) -> Result<Expected> {
    let (mut server, mut client) = (actor("falls-silent")?, actor("gives-up")?);
    let mut pairs = vec![];
    for _ in 0..8 {
        let pair = connected(&mut server, &mut client, LOOPBACKS[0])?;
        let (level, option) = (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT);
        client.set(pair.client, level, option, &[300])?;
        pairs.push(pair);
    }
    netns.set_loopback(false)?;
    for pair in &pairs {
        client.send(pair.client, b"into the void")?;
    }
    for pair in &pairs {
        client.wait_for(pair.client, libc::POLLHUP)?;
    }
    Ok(Expected {
        pids: [server.pid().into(), client.pid().into()].into(),
        timeouts: Some(pairs.len() as u64),
        ..Expected::default()
    })
}

fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|it| it.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.context("no VmRSS")? << 10)
}

#[test]
fn everything_is_seen_and_nobody_wrongly_named_however_long_it_lasts() -> Result<()> {
    let seconds = std::env::var("TCPTRACE_SOAK_SECONDS");
    let seconds = seconds.map_or(Ok(10), |seconds| seconds.parse())?;
    let all = All::default();
    let (from, to) = pipe()?;
    let reader = std::thread::spawn({
        let all = Arc::clone(&all);
        move || read(from, &all)
    });
    let mut command = tcptrace();
    command.args(["-o", "json", "--event", "all"]);
    let tracer = Tracer::start_into(command, to)?;
    let begun = Instant::now();
    let mut rounds = 0_u64;
    let mut warm = None;
    while begun.elapsed() < Duration::from_secs(seconds) || warm.is_none() {
        // Each on a thread of its own, all at once.
        std::thread::scope(|scope| {
            let acts = [churn, refuse, time_out, churn];
            let threads = acts.map(|act| {
                let all = &all;
                scope.spawn(move || round(all, act))
            });
            for thread in threads {
                if let Err(panic) = thread.join() {
                    std::panic::resume_unwind(panic);
                }
            }
        });
        rounds += 1;
        if rounds == 3 {
            warm = Some(resident(tracer.pid())?);
        }
    }
    let (warm, last) = (warm.context("it was measured")?, resident(tracer.pid())?);
    println!(
        "{rounds} rounds, {} MiB resident, then {}",
        warm >> 20,
        last >> 20
    );
    ensure!(last < warm + GROWTH, "from {warm} bytes to {last}");
    let trace = tracer.stop()?;
    ensure!(trace.status.success(), "{}", trace.stderr.join("\n"));
    match reader.join() {
        Ok(read) => read,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
