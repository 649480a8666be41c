//! The same failures over and over, in namespaces and by processes that come and go, under one tracer:
//! what it counts is what the kernel counts, every owner is who did it, its memory stays flat, and each of
//! several outputs has its records or they are counted as lost.
//!
//! Ten seconds in the usual run; `cargo xtask soak` sets `TCPTRACE_SOAK_SECONDS`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, PipeReader, Read, pipe};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, poll};
use tcptrace_tests::accounts::account;
use tcptrace_tests::http::get;
use tcptrace_tests::*;

/// How much the tracer's resident memory may grow once every sort of failure was there: what its tables
/// take until they reach their limits, and the queues of two exports until they are full.
const GROWTH: u64 = (24 << 20) + 2 * (16 << 20);

/// Where JSON Lines go, to a reader that dies and comes back.
const LINES: &str = "tcp://127.0.0.1:5140";

const METRICS: &str = "127.0.0.1:9847";

/// When the output file is moved aside. One that was moved is kept.
const ROTATION: u64 = 8 << 20;

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
        let is_skipped = matches!(record.text("error.type"), Some("unseen" | "recursion"));
        ensure!(record.name() != "events.lost" || is_skipped, "{line}");
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
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|it| it.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.context("no VmRSS")? << 10)
}

/// Waits until there is something to read, or the run is over: gives whether there is.
fn comes(from: &impl AsFd, over: &AtomicBool) -> Result<bool> {
    loop {
        // Before it is looked: what came until then is read.
        let is_over = over.load(Ordering::Acquire);
        let mut readable = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        if poll(&mut readable, 100_u8)? > 0 {
            return Ok(true);
        }
        if is_over {
            return Ok(false);
        }
    }
}

/// Reads lines until it has had enough, and dies with what it has not read. Gives how many.
fn lines(mut from: TcpStream, over: &AtomicBool) -> Result<u64> {
    const ENOUGH: usize = 2 << 20;
    let mut buffer = vec![0; 64 << 10];
    let (mut lines, mut bytes) = (0, 0);
    while bytes < ENOUGH && comes(&from, over)? {
        let came = from.read(&mut buffer)?;
        if came == 0 {
            break;
        }
        bytes += came;
        lines += buffer[..came].split(|&it| it == b'\n').count() as u64 - 1;
    }
    Ok(lines)
}

/// Reads lines, dies, comes back, until the run is over. Gives how many lines it read, and how often it
/// came back.
fn read_lines_and_die(over: &AtomicBool) -> Result<(u64, u64)> {
    let (mut all, mut times) = (0, 0);
    loop {
        let listener = TcpListener::bind("127.0.0.1:5140")?;
        if !comes(&listener, over)? {
            return Ok((all, times));
        }
        let (stream, _) = listener.accept()?;
        drop(listener);
        all += lines(stream, over)?;
        times += 1;
    }
}

/// Takes every message until the run is over, and gives how many.
fn read_messages(from: &UnixDatagram, over: &AtomicBool) -> Result<u64> {
    let mut all = 0;
    let mut buffer = [0; 64];
    while comes(from, over)? {
        from.recv(&mut buffer)?;
        all += 1;
    }
    Ok(all)
}

/// The metrics count what both exports were sent, and what they lost.
fn scrape(syslog: &str) -> Result<()> {
    let (status, body) = get(METRICS, "/metrics", "*/*")?;
    ensure!(status.contains("200"), "{status}");
    for to in [LINES, syslog] {
        let name = format!("tcptrace_export_records_sent_total{{to=\"{to}\"}} ");
        let sent = body.lines().find_map(|it| it.strip_prefix(&name));
        let _: u64 = sent.with_context(|| body.clone())?.parse()?;
    }
    Ok(())
}

/// The file and the one before it have whole records, and no others are kept.
fn ensure_rotated(path: &Path) -> Result<()> {
    let directory = path.parent().context("a directory")?;
    let mut files = 0;
    for file in fs::read_dir(directory)? {
        let file = file?.path();
        if file.extension().is_none() {
            // The socket.
            continue;
        }
        files += 1;
        let text = fs::read_to_string(&file)?;
        ensure!(
            text.is_empty() || text.ends_with("}\n"),
            "{}",
            file.display()
        );
        ensure!(text.len() as u64 <= ROTATION + (64 << 10), "{}", text.len());
    }
    ensure!((1..=2).contains(&files), "{files} files");
    Ok(())
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// All provocations at once, each on a thread of its own, and a scrape beside them.
fn rounds(tracer: &Tracer, all: &All, syslog: &str) -> Result<()> {
    let seconds = std::env::var("TCPTRACE_SOAK_SECONDS");
    let seconds = seconds.map_or(Ok(10), |seconds| seconds.parse())?;
    let begun = Instant::now();
    let mut rounds = 0_u64;
    let mut warm = None;
    while begun.elapsed() < Duration::from_secs(seconds) || warm.is_none() {
        std::thread::scope(|scope| {
            let acts = [churn, refuse, time_out, churn];
            let threads = acts.map(|act| scope.spawn(move || round(all, act)));
            let scraped = scrape(syslog);
            threads.into_iter().for_each(join);
            scraped
        })?;
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
    Ok(())
}

/// Says that the run is over when it goes, also by a panic: who reads waits for that.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn soak() -> Result<()> {
    let all = All::default();
    let directory = tempfile::tempdir()?;
    let (file, socket) = (
        directory.path().join("events.json"),
        directory.path().join("syslog"),
    );
    let server = UnixDatagram::bind(&socket)?;
    let syslog = format!("syslog=unix:{}", socket.display());
    let (from, to) = pipe()?;
    let reader = std::thread::spawn({
        let all = Arc::clone(&all);
        // Without a reader the tracer ends, and nothing more is seen: that is why.
        move || {
            read(from, &all).inspect_err(|error| println!("the stream is read no more: {error:?}"))
        }
    });
    let mut command = tcptrace();
    command
        .args(["-o", "json", "--event", "all", "--metrics", METRICS])
        .args(["--export", LINES, "--export", &syslog])
        .arg("--output-file")
        .arg(&file)
        .args(["--rotate-size", &ROTATION.to_string()])
        .args(["--rotate-keep", "1"]);
    let tracer = Tracer::start_into(command, to)?;
    let over = AtomicBool::new(false);
    let (trace, (lines, deaths), messages) = std::thread::scope(|scope| {
        let dies = scope.spawn(|| read_lines_and_die(&over));
        let stays = scope.spawn(|| read_messages(&server, &over));
        let ends = Ends(&over);
        let went = rounds(&tracer, &all, &syslog);
        let trace = went.and_then(|()| tracer.stop());
        drop(ends);
        anyhow::Ok((trace?, join(dies)?, join(stays)?))
    })?;
    ensure!(trace.status.success(), "{}", trace.stderr.join("\n"));
    let (to_lines, to_syslog) = (account(&trace, LINES)?, account(&trace, &syslog)?);
    println!("{to_lines:?}, {lines} read by {deaths} readers; {to_syslog:?}, {messages} read");
    // What a reader had not read when it died is gone, and what it had not said it has came again.
    ensure!(lines > 0 && deaths > 1, "{lines} lines, {deaths} deaths");
    ensure!(to_syslog.sent == messages, "{to_syslog:?}, not {messages}");
    ensure_rotated(&file)?;
    match reader.join() {
        Ok(read) => read,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// In a namespace of its own for the ports it takes: what is traced is what is in all of them.
#[test]
fn everything_is_seen_and_nobody_wrongly_named_however_long_it_lasts() {
    in_netns(|_| soak());
}
