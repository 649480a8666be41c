//! `tcptrace replay`: recordings through the analysis and the outputs of a live trace; and the loop that
//! `tcptrace report` shares with it.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use nix::time::ClockId;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use super::{Failure, is_colored, sees, status, tracer};
use crate::cli::{Recorded, Replay};
use crate::config::Selection;
use crate::diagnose::{Analysis, Limits, Sees};
use crate::event::{Count, Event, Kind, Timestamp};
use crate::replay::{Recordings, Step};
use crate::session::{Stream, clock};
use crate::sink::text::{self, printable};
use crate::sink::{self, Context, Direct, Outputs};

/// Time passes for the analysis in the steps of a live trace.
const TICK: u64 = 250_000_000;
/// How long files that are followed are left alone when nothing has come.
const PAUSE: Duration = Duration::from_millis(250);
/// What comes from several files that are followed is put in order for so long.
const FRESH: u64 = 1_000_000_000;
/// Steps between two looks at the clock.
const ROUND: u32 = 4096;
/// How often it is said how far it is.
const SAID: Duration = Duration::from_millis(200);

/// `tcptrace replay FILE…`.
pub(super) fn replay(args: &Replay) -> Result<u8, Failure> {
    let selection = Selection::parse(&args.event, &args.errno, false).map_err(usage)?;
    let mut outputs = Outputs::of_replay();
    let format = tracer::format(args.output, is_colored(args.color), !args.no_header);
    outputs.add(
        format,
        Box::new(Direct::new(io::stdout(), "standard output")),
    );
    let analysis = Analysis::new(Limits::default(), sees::UNTOLD);
    let stream = Stream::new(selection, outputs, analysis, args.count);
    let mut run = Run::new(&args.recorded, args.follow, args.quiet, stream)?;
    match run.run() {
        Err(failure) if failure.error.downcast_ref() == Some(&sink::Error::Closed) => Ok(0),
        Err(failure) => Err(failure),
        Ok(()) => {
            if !args.quiet {
                run.summarise()?;
            }
            Ok(0)
        }
    }
}

fn usage(error: anyhow::Error) -> Failure {
    Failure {
        status: status::USAGE,
        error,
    }
}

/// Recordings on their way through the analysis.
pub(super) struct Run<'a> {
    recorded: &'a Recorded,
    follow: bool,
    quiet: bool,
    pub(super) recordings: Recordings,
    stream: Stream,
    /// The runs there are, as they recorded themselves.
    pub(super) contexts: Vec<Context>,
    /// What leaves no gap, by run.
    seen: Vec<Sees>,
    /// When the first and the last event happened.
    period: Option<(Timestamp, Timestamp)>,
    /// How far time has passed for the analysis.
    clock: Timestamp,
    /// When it was last said how far it is; `None`: never.
    progress: Option<Instant>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        recorded: &'a Recorded,
        follow: bool,
        quiet: bool,
        stream: Stream,
    ) -> Result<Self, Failure> {
        let Recorded { files, from, to } = recorded;
        if from.zip(*to).is_some_and(|(from, to)| from > to) {
            return Err(usage(anyhow!("--from is later than --to")));
        }
        Ok(Self {
            recorded,
            follow,
            quiet,
            recordings: Recordings::open(files, follow)?,
            stream,
            contexts: Vec::new(),
            seen: Vec::new(),
            period: None,
            clock: Timestamp(0),
            progress: None,
        })
    }

    /// Reads them to their end, or until a signal or the stream ends it.
    pub(super) fn run(&mut self) -> Result<(), Failure> {
        let outcome = self.read();
        self.clear_progress();
        outcome
    }

    fn read(&mut self) -> Result<(), Failure> {
        let mut signals = self.follow.then(Stop::new).transpose()?;
        let mut round = 0;
        while !self.stream.is_full() {
            let step = self.recordings.step()?;
            for context in self.recordings.new_runs() {
                self.stream.add_run(context.clone());
                self.contexts.push(context);
                self.seen.push(sees::UNTOLD);
            }
            self.say();
            let mut patience = Duration::ZERO;
            match step {
                Step::Event(event) => self.take(&event)?,
                Step::Read => {}
                Step::End => break,
                Step::Waits => {
                    let now = clock(ClockId::CLOCK_REALTIME);
                    let fresh = Timestamp(now.saturating_sub(FRESH));
                    while let Some(event) = self.recordings.overdue(fresh) {
                        self.take(&event)?;
                    }
                    if self.period.is_some() {
                        self.pass(fresh)?;
                    }
                    self.stream.flush()?;
                    self.recordings.renew()?;
                    patience = PAUSE;
                }
            }
            round += 1;
            if round % ROUND == 0 || !patience.is_zero() {
                self.show_progress();
                if signals.as_mut().is_some_and(|it| it.is_asked(patience)) {
                    break;
                }
            }
        }
        while let Some(event) = self.recordings.overdue(Timestamp(u64::MAX)) {
            self.take(&event)?;
        }
        let end = self.recordings.counts().last.max(self.clock);
        self.pass(end)?;
        self.stream.finish(end)?;
        Ok(self.stream.flush()?)
    }

    fn take(&mut self, event: &Event) -> Result<(), Failure> {
        if let Kind::Coverage(coverage) = &event.kind
            && let Some(sees) = self.seen.get_mut(usize::from(event.id.run()))
        {
            *sees = sees::read(*sees, coverage);
            // A connection may have its ends in two runs.
            let all = |holds: fn(&Sees) -> bool| self.seen.iter().all(holds);
            self.stream.sees(Sees {
                resets: all(|it| it.resets),
                final_acks: all(|it| it.final_acks),
            });
        }
        let Recorded { from, to, .. } = *self.recorded;
        let is_before = from.is_some_and(|from| event.time < from);
        if is_before || to.is_some_and(|to| event.time > to) {
            if matches!(event.kind, Kind::Coverage(_)) {
                // It holds for the whole run.
                self.stream.note(event)?;
            }
            return Ok(());
        }
        let (first, last) = self.period.unwrap_or((event.time, event.time));
        self.period = Some((first.min(event.time), last.max(event.time)));
        self.pass(event.time)?;
        if event.kind.selectable().is_some() {
            self.stream.take(event)?;
        } else {
            self.stream.note(event)?;
        }
        Ok(())
    }

    /// Lets time pass, and leaps where nothing happens meanwhile.
    fn pass(&mut self, to: Timestamp) -> Result<(), sink::Error> {
        while self.clock.0.saturating_add(TICK) <= to.0 {
            if self.stream.is_idle() {
                self.clock = to;
                break;
            }
            self.clock = Timestamp(self.clock.0 + TICK);
            self.stream.advance(self.clock)?;
        }
        Ok(())
    }

    /// What the recordings leave to be said.
    fn say(&mut self) {
        let said: Vec<_> = self.recordings.said().collect();
        if said.is_empty() {
            return;
        }
        self.clear_progress();
        for said in said {
            // Nobody may be left to read it.
            let _ = writeln!(io::stderr(), "tcptrace: {}", printable(&said));
        }
    }

    /// On a terminal that records do not go to as well.
    fn show_progress(&mut self) {
        let is_due = self.progress.is_none_or(|last| last.elapsed() >= SAID);
        if !is_due || self.quiet || self.follow || io::stdout().is_terminal() {
            return;
        }
        let mut stderr = io::stderr();
        if stderr.is_terminal() {
            self.progress = Some(Instant::now());
            // Nobody may be left to read it.
            let _ = write!(stderr, "\r\x1b[K{}", self.recordings.progress());
        }
    }

    fn clear_progress(&mut self) {
        if self.progress.take().is_some() {
            // Nobody may be left to read it.
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    /// The counts, for a person: and whether the events recorded explain what was found when they came.
    fn summarise(&self) -> io::Result<()> {
        let (first, last) = self.period.unwrap_or_default();
        let duration = Duration::from_nanos(last.0.saturating_sub(first.0));
        let summary = self.stream.tally().summary(duration, 0);
        let mut stderr = io::stderr();
        text::summary(&summary, &mut stderr)?;
        let counts = self.recordings.counts();
        let runs = u64::try_from(self.seen.len()).unwrap_or(u64::MAX);
        writeln!(
            stderr,
            "tcptrace: {} of {}; they carry {}",
            Count(counts.records, "record"),
            Count(runs, "run"),
            Count(counts.findings, "finding"),
        )?;
        if counts.unread > 0 {
            let unread = Count(counts.unread, "line");
            writeln!(stderr, "tcptrace: {unread} could not be read")?;
        }
        Ok(())
    }
}

/// SIGINT or SIGTERM, which end what would follow files for ever.
struct Stop {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no clock and no signals")?;
        let entered = runtime.enter();
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        drop(entered);
        Ok(Self {
            runtime,
            interrupt,
            terminate,
        })
    }

    /// It is asked for within this time.
    fn is_asked(&mut self, patience: Duration) -> bool {
        let Self {
            runtime,
            interrupt,
            terminate,
        } = self;
        let any = async {
            tokio::select! {
                _ = interrupt.recv() => (),
                _ = terminate.recv() => (),
            }
        };
        runtime.block_on(async { timeout(patience, any).await.is_ok() })
    }
}
