//! `tcptrace selftest`: provokes the failures tcptrace is for, each in a network namespace of its
//! own, and says which were seen, explained and laid at the right door. It drives the program from outside:
//! another tcptrace does the tracing, and only its output counts.

pub mod actor;
mod failure;
mod findings;
pub mod netns;
mod report;
pub mod tracer;

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use jiff::Timestamp;
use serde_json::Value;

use actor::Actor;
use failure::{FAILURES, Failure, Shown, Stage};
use netns::{Counters, Netns};
use report::Report;
use tracer::{Trace, Tracer};

/// What to provoke and how to tell.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Print the result as JSON instead of a table.
    pub json: bool,
    /// Only the failures of these names; empty: all.
    pub only: Vec<String>,
    /// Also those that need a setting of the whole host changed for a moment.
    pub allow_host_changes: bool,
    /// Show beside the table what a person at the terminal would have read.
    pub stories: bool,
    /// The ways of attaching the tracer is to do without.
    pub without: Vec<String>,
}

/// Where the kernel let changes of state go by unseen, on which everything tcptrace says of a connection
/// rests, a failure proves nothing: so often the failures are provoked in all.
const ATTEMPTS: u32 = 5;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that this kernel can show was seen, with the right owner.
    Passed,
    /// Something was not.
    Failed,
}

/// Provokes the failures, and prints the result to stdout.
///
/// # Errors
/// When the test itself cannot be done: no privileges, no namespaces, a tracer that does not start.
pub fn run(options: &Options) -> Result<Verdict> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the selftest needs root for its private network namespaces: run it with sudo");
    }
    let (failures, skipped) = choose(options)?;
    let mut attempts = 1..ATTEMPTS;
    let (report, text) = loop {
        let unseen = tracer::unseen();
        let (outcomes, trace, text) = provoke_all(&failures, options)?;
        let report = Report::new(&outcomes, &skipped, &trace.records()?);
        if report.passed() || tracer::unseen() == unseen || attempts.next().is_none() {
            break (report, text);
        }
        eprintln!(
            "tcptrace: the kernel let changes of state go by unseen: provoking the failures again"
        );
    };
    let mut stdout = io::stdout().lock();
    let printed = if options.json {
        report.print_json(&mut stdout)
    } else {
        report.print_table(
            &text.map(|trace| trace.stdout).unwrap_or_default(),
            &mut stdout,
        )
    };
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to stdout")
        }
        _ if report.passed() => Ok(Verdict::Passed),
        _ => Ok(Verdict::Failed),
    }
}

/// What `tcptrace selftest --act NAME` does: be an actor of this name until stdin ends.
///
/// # Errors
/// When the pipes break.
pub fn act(name: &str) -> Result<()> {
    actor::serve(name, actor::no_verb).context("an actor of the selftest")
}

/// A failure once it has been provoked.
struct Outcome {
    failure: &'static Failure,
    /// Kept until the records are read: until then nothing else bears its number.
    netns: Netns,
    /// Every process that acted in it.
    pids: Vec<u32>,
    /// From before the first thing it did to after the last.
    period: RangeInclusive<Timestamp>,
    before: Counters,
    after: Counters,
    shown: Result<Shown>,
}

/// A failure that was not provoked, and why.
struct Skipped {
    failure: &'static Failure,
    reason: String,
}

/// Wall time as the stream tells it: a clock that is set meanwhile moves neither.
#[derive(Clone, Copy)]
struct Clock {
    wall: Timestamp,
    since: Instant,
}

impl Clock {
    /// The tracer compares its two clocks by reading one after the other, and so does this one: on
    /// a busy host they differ by the time another program ran in between.
    const SLACK: Duration = Duration::from_millis(100);

    fn start() -> Self {
        Self {
            wall: Timestamp::now(),
            since: Instant::now(),
        }
    }

    fn now(self) -> Result<Timestamp> {
        Ok(self.wall.checked_add(self.since.elapsed())?)
    }
}

/// Those that were asked for, and of these the ones that may not be provoked.
fn choose(options: &Options) -> Result<(Vec<&'static Failure>, Vec<Skipped>)> {
    let names = || {
        FAILURES
            .iter()
            .map(|failure| failure.name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    if let Some(unknown) = options
        .only
        .iter()
        .find(|name| !FAILURES.iter().any(|failure| failure.name == **name))
    {
        bail!(
            "the selftest knows no failure named {unknown:?}. It knows: {}",
            names()
        );
    }
    let wanted = |failure: &&Failure| {
        options.only.is_empty() || options.only.iter().any(|name| name == failure.name)
    };
    let mut chosen = vec![];
    let mut skipped = vec![];
    for failure in FAILURES.iter().copied().filter(wanted) {
        match failure.changes_host {
            Some(setting) if !options.allow_host_changes => skipped.push(Skipped {
                failure,
                reason: format!(
                    "it changes {setting} of the whole host for a moment: add --allow-host-changes"
                ),
            }),
            _ => chosen.push(failure),
        }
    }
    if chosen.is_empty() {
        bail!("what was asked for changes a setting of the whole host: add --allow-host-changes");
    }
    Ok((chosen, skipped))
}

/// One thread a failure: each enters its namespace, waits until the tracers are up, and provokes.
/// Its processes live until the tracers have stopped: what ends them is no part of the failure.
fn provoke_all(
    failures: &[&'static Failure],
    options: &Options,
) -> Result<(Vec<Outcome>, Trace, Option<Trace>)> {
    let clock = Clock::start();
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let (finish, finished) = mpsc::channel();
        let mut starts = vec![];
        for failure in failures {
            let (start, started) = mpsc::channel::<Arc<Tracer>>();
            let (tell, finish) = (tell.clone(), finish.clone());
            starts.push(start);
            scope.spawn(move || {
                let netns = Netns::enter();
                _ = tell.send(
                    netns
                        .as_ref()
                        .map(Netns::path)
                        .map_err(|error| anyhow!("{error:#}")),
                );
                // No tracer comes when another thread's namespace failed: then nothing is to be
                // done.
                let (Ok(netns), Ok(tracer)) = (netns, started.recv()) else {
                    return;
                };
                let (outcome, cast) = match provoke(failure, Stage::new(netns, tracer), clock) {
                    Ok((outcome, cast)) => (Ok(outcome), cast),
                    Err(error) => (Err(error), vec![]),
                };
                _ = finish.send(outcome);
                // Until the other end is dropped.
                _ = started.recv();
                drop(cast);
            });
        }
        let namespaces: Vec<PathBuf> = told.iter().take(failures.len()).collect::<Result<_>>()?;
        let tracer = Arc::new(Tracer::start(tracer_command(
            &["-o", "json", "--event", "+fd.invalid,+state.changed"],
            options,
            &namespaces,
        )?)?);
        let text = (options.stories && !options.json)
            .then(|| {
                let args = ["--event", "+fd.invalid"];
                Tracer::start(tracer_command(&args, options, &namespaces)?)
            })
            .transpose()?;
        for start in &starts {
            start
                .send(Arc::clone(&tracer))
                .map_err(|_| anyhow!("a thread of the selftest ended"))?;
        }
        let mut outcomes: Vec<Outcome> = finished
            .iter()
            .take(failures.len())
            .collect::<Result<_>>()?;
        outcomes.sort_by_key(|outcome| {
            let name = outcome.failure.name;
            failures.iter().position(|failure| failure.name == name)
        });
        let tracer = Arc::into_inner(tracer).context("a thread kept the tracer")?;
        let trace = tracer.stop()?;
        let text = text.map(Tracer::stop).transpose()?;
        drop(starts);
        Ok((outcomes, trace, text))
    })
}

/// Provokes a failure; with its outcome come the processes that are still there.
fn provoke(failure: &'static Failure, stage: Stage, clock: Clock) -> Result<(Outcome, Vec<Actor>)> {
    let begun = clock.now()?.checked_sub(Clock::SLACK)?;
    let before = stage.netns.counters()?;
    let provoked = panic::catch_unwind(AssertUnwindSafe(|| (failure.provoke)(&stage)));
    let shown = provoked.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>();
        Err(anyhow!(
            "a call did not fail as it must: {}",
            said.map_or("it says no more", String::as_str)
        ))
    });
    let after = stage.netns.counters()?;
    let ended = clock.now()?.checked_add(Clock::SLACK)?;
    let left = stage.leave();
    let outcome = Outcome {
        failure,
        netns: left.netns,
        pids: left.pids,
        period: begun..=ended,
        before,
        after,
        shown,
    };
    Ok((outcome, left.cast))
}

fn tracer_command(args: &[&str], options: &Options, namespaces: &[PathBuf]) -> Result<Command> {
    let mut command = myself()?;
    command.args(args).args(["--color", "never"]);
    for way in &options.without {
        command.args(["--without", way]);
    }
    for namespace in namespaces {
        command.arg("--netns").arg(namespace);
    }
    Ok(command)
}

/// This very program, also when its file has been replaced or deleted since.
fn myself() -> Result<Command> {
    fs::metadata("/proc/self/exe").context("the selftest needs /proc")?;
    Ok(Command::new("/proc/self/exe"))
}

/// True when the attributes hold these values.
fn holds(record: &tracer::Record, wanted: &[(&'static str, Value)]) -> bool {
    wanted
        .iter()
        .all(|(name, value)| record.get(name) == Some(value))
}
