//! `tcptrace replay`: recordings through the analysis and the outputs of a live trace; and the loop that
//! `tcptrace report` shares with it.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use nix::time::ClockId;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use super::{Failure, is_colored, sees, tracer};
use crate::cli::{Recorded, Replay};
use crate::config::Selection;
use crate::diagnose::{Analysis, Limits, Sees};
use crate::event::{Count, Event, Kind, Timestamp};
use crate::replay::{Due, Recordings, Step};
use crate::session::{Stream, clock};
use crate::sink::text::{self, printable};
use crate::sink::{self, Context, Direct, Outputs};

/// Time passes in such steps for the analysis of a run that does not say how it passed.
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
    let selection = Selection::parse(&args.event, &args.errno, false).map_err(Failure::usage)?;
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

/// How fast what was recorded is taken.
pub(super) trait Pace {
    /// Waits until it is this time in the recording; `None`: the recording is over. False: nobody wants
    /// more.
    fn wait(&mut self, until: Option<Timestamp>) -> bool;
}

/// Plays recordings at a pace, until nobody wants more. What they leave to be said is not said, as it would
/// be drawn over, but given back.
///
/// # Errors
/// One cannot be read, or the output failed.
pub(super) fn play(
    recorded: &Recorded,
    selection: Selection,
    outputs: Outputs,
    pace: &mut dyn Pace,
) -> Result<Vec<String>, Failure> {
    let analysis = Analysis::new(Limits::default(), sees::UNTOLD);
    let stream = Stream::new(selection, outputs, analysis, None);
    let mut run = Run::new(recorded, false, true, stream)?;
    run.pace = Some(pace);
    run.run()?;
    while run.pace.as_mut().is_some_and(|pace| pace.wait(None)) {}
    Ok(run.unsaid)
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
    runs: Vec<OfRun>,
    /// When the first and the last event happened.
    period: Option<(Timestamp, Timestamp)>,
    /// How far time has passed for the analysis.
    clock: Timestamp,
    /// When it was last said how far it is; `None`: never.
    progress: Option<Instant>,
    /// `None`: as fast as it can be taken.
    pace: Option<&'a mut dyn Pace>,
    /// Nobody wants more.
    over: bool,
    /// What was to be said at a pace.
    unsaid: Vec<String>,
}

/// What is known of a run that was recorded.
struct OfRun {
    /// What leaves no gap.
    sees: Sees,
    /// Its records say how time passed for the analysis.
    tells_time: bool,
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
            return Err(Failure::usage(anyhow!("--from is later than --to")));
        }
        Ok(Self {
            recorded,
            follow,
            quiet,
            recordings: Recordings::open(files, follow)?,
            stream,
            contexts: Vec::new(),
            runs: Vec::new(),
            period: None,
            clock: Timestamp(0),
            progress: None,
            pace: None,
            over: false,
            unsaid: Vec::new(),
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
        while !self.stream.is_full() && !self.over {
            let step = self.recordings.step()?;
            for context in self.recordings.new_runs() {
                self.stream.add_run(context.clone());
                self.contexts.push(context);
                self.runs.push(OfRun {
                    sees: sees::UNTOLD,
                    tells_time: false,
                });
            }
            self.say();
            let mut patience = Duration::ZERO;
            match step {
                Step::Due(due) => self.due(due)?,
                Step::Read => {}
                Step::End => break,
                Step::Waits => {
                    let now = clock(ClockId::CLOCK_REALTIME);
                    let fresh = Timestamp(now.saturating_sub(FRESH));
                    while let Some(due) = self.recordings.overdue(fresh) {
                        self.due(due)?;
                    }
                    if !self.time_is_told() {
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
        while let Some(due) = self.recordings.overdue(Timestamp(u64::MAX)) {
            self.due(due)?;
        }
        let end = self.recordings.counts().last.max(self.clock);
        if !self.time_is_told() {
            self.pass(end)?;
        }
        self.stream.finish(end)?;
        Ok(self.stream.flush()?)
    }

    /// Every run says how time passed.
    fn time_is_told(&self) -> bool {
        self.runs.iter().all(|run| run.tells_time)
    }

    fn due(&mut self, due: Due) -> Result<(), Failure> {
        if let Some(pace) = &mut self.pace {
            let time = match &due {
                Due::Event(event) => event.time,
                Due::Time { until, .. } => *until,
            };
            self.over = self.over || !pace.wait(Some(time));
            if self.over {
                return Ok(());
            }
        }
        match due {
            Due::Event(event) => self.take(&event),
            Due::Time { run, until } => {
                if let Some(run) = self.runs.get_mut(usize::from(run)) {
                    run.tells_time = true;
                }
                Ok(self.pass(until)?)
            }
        }
    }

    fn take(&mut self, event: &Event) -> Result<(), Failure> {
        let run = self.runs.get_mut(usize::from(event.id.run()));
        let tells_time = run.as_ref().is_some_and(|run| run.tells_time);
        if let Kind::Coverage(coverage) = &event.kind
            && let Some(run) = run
        {
            run.sees = sees::read(run.sees, coverage);
            // A connection may have its ends in two runs.
            let all = |holds: fn(&Sees) -> bool| self.runs.iter().all(|run| holds(&run.sees));
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
        if !tells_time && event.time.0 >= self.clock.0.saturating_add(TICK) {
            self.pass(event.time)?;
        }
        if event.kind.selectable().is_some() {
            self.stream.take(event)?;
        } else {
            self.stream.note(event)?;
        }
        Ok(())
    }

    fn pass(&mut self, to: Timestamp) -> Result<(), sink::Error> {
        self.clock = self.clock.max(to);
        self.stream.advance(self.clock)
    }

    /// What the recordings leave to be said.
    fn say(&mut self) {
        let said: Vec<_> = self.recordings.said().collect();
        if said.is_empty() {
            return;
        }
        if self.pace.is_some() {
            self.unsaid.extend(said);
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
        let runs = u64::try_from(self.runs.len()).unwrap_or(u64::MAX);
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
