//! The loop of a trace: records as they come until it is told to stop, and the account of all there was.

use std::future::Future;
use std::io;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::time::ClockId;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::reload::Reload;
use super::sees_of;
use super::service::Service;
use super::targets::{self, Targets};
use super::watch::Watch;
use crate::cli::Trace;
use crate::config::Filters;
use crate::event::{Coverage, Event, EventId, Flow, Kind, Reconciled, Summary, Timestamp};
use crate::host::{counters::Counters, netns, snapshot};
use crate::kernel::doctor::Report;
use crate::kernel::load::Kernel;
use crate::kernel::plan::ACCEPT_OVERFLOW;
use crate::metrics::push::Push;
use crate::run::command::{self, Held};
use crate::run::top::Signals;
use crate::run::{Failure, sees, status};
use crate::session::{Session, clock};
use crate::sink::{self, Delivery, Exports, Messages, text};
use crate::source::Source;
use crate::source::ring::Ring;
use crate::top::{Screen, Shared};

/// Records taken before anything else gets a turn.
const BATCH: usize = 4096;
/// How often the kernel half is looked after.
const TICK: Duration = Duration::from_millis(250);

/// Why a trace ends.
#[derive(Debug)]
enum Stop {
    /// A signal, the time, the count, or no process is left to trace.
    Asked,
    /// Nobody reads the output any more.
    Closed,
    /// The command ended with this status.
    Command(u8),
}

/// Whether hooks and polling show all of what the kernel counts; `None` when nobody wants it.
#[derive(Clone, Copy)]
struct Shown {
    resets: Option<bool>,
    overflows: Option<bool>,
}

/// A trace that is attached and about to begin.
pub(super) struct Live<'a> {
    pub(super) args: &'a Trace,
    pub(super) filters: Filters,
    pub(super) report: Report,
    pub(super) kernel: Kernel,
    pub(super) targets: Targets,
    pub(super) session: Session,
    pub(super) deliveries: (Vec<Delivery>, Exports),
    pub(super) messages: Messages,
    pub(super) pushes: Vec<Push>,
    pub(super) command: Option<Held>,
    pub(super) service: Service,
    pub(super) reload: Option<Reload>,
    pub(super) screen: Option<(Screen, Shared)>,
}

impl Live<'_> {
    /// Begins it, sees it to its end and accounts for it; gives the exit status.
    pub(super) async fn run(self) -> Result<u8, Failure> {
        let Live {
            args,
            filters,
            report,
            mut kernel,
            targets,
            mut session,
            deliveries,
            messages,
            pushes,
            command,
            service,
            reload,
            screen,
        } = self;
        let begun = Instant::now();
        let mut source = Ring::new(kernel.take_ring()?)?;
        let stop = stop(args)?;
        // Who reads that it traces may ask for a new file at once.
        let hangup = signal(SignalKind::hangup())?;
        let coverage = coverage_of(args, &report, &session);
        let shown = Shown {
            resets: report.shows_resets(),
            overflows: report.shows_overflows(),
        };
        let mut watch = Watch::new(
            args,
            (kernel, targets),
            (deliveries, messages.clone()),
            filters.clone(),
            &session,
            report.polls(ACCEPT_OVERFLOW),
        )?;
        watch.serve(service, reload);
        let mut screen = screen.map(|it| fed(it, &mut watch)).transpose()?;
        let comparable = filters.is_open().then(Counters::read).transpose()?;
        session.reconcile_from_now(netns::current()?);
        let mut banner = Vec::new();
        text::banner(&coverage, &mut banner)?;
        messages.show(banner);
        let found = look_around(args, filters, messages.clone())?;
        let released = command.map(Held::release).transpose()?;
        let outcome = {
            let end = async {
                tokio::select! {
                    stop = stop => Ok(stop),
                    () = left(screen.as_mut()) => Ok(Stop::Asked),
                    ended = ended(released, args) => ended.map(Stop::Command),
                }
            };
            // Who reads that it traces finds all counters there.
            watch.begin(&session);
            match announce(&mut session, coverage) {
                Ok(()) => {
                    messages.say("tracing");
                    drive(&mut source, &mut session, &mut watch, found, hangup, end).await
                }
                Err(error) => Err(error.into()),
            }
        };
        watch.end(&session);
        // At once: to deliver what waits may take seconds.
        let closed = screen.map_or(Ok(()), |(screen, _)| screen.close());
        let stop = match outcome {
            Ok(stop) => stop,
            Err(failure) if is_closed(&failure) => Stop::Closed,
            Err(failure) => {
                // An output that failed takes no account of the others with it.
                let _ = watch.close_deliveries(&mut session).await;
                return Err(failure);
            }
        };

        // What is polled counts until here, as the kernel's counters do.
        let polled = watch.tell_full_queues(&mut session);
        let counters = comparable.map(|before| Counters::read().map(|after| (before, after)));
        session.reconcile_until_now();
        watch.detach();
        let account = polled.map_err(Failure::from).and_then(|()| {
            settle(
                &mut source,
                &mut session,
                &mut watch,
                begun.elapsed(),
                (counters, shown),
            )
        });
        // Also when another output failed: what was produced for one is sent or counted.
        let told = watch.close_deliveries(&mut session).await;
        for push in pushes {
            push.finish().await;
        }
        // A summary that nobody reads is no failure, wherever the pipe closed.
        match account.and(told.map_err(Failure::from)) {
            Err(failure) if !is_closed(&failure) => return Err(failure),
            _ => {}
        }
        closed?;
        say_summary(&watch.summary, &session, &messages)?;
        Ok(match stop {
            Stop::Command(status) if status != 0 => status,
            _ if args.strict && watch.summary.lost + watch.not_delivered() > 0 => status::LOST,
            _ => 0,
        })
    }
}

/// Nobody reads the output any more.
fn is_closed(failure: &Failure) -> bool {
    failure.error.downcast_ref() == Some(&sink::Error::Closed)
}

/// How each signal that is wanted is seen.
fn coverage_of(args: &Trace, report: &Report, session: &Session) -> Vec<Coverage> {
    let mut coverage = report.coverage();
    sees::mark(&mut coverage, sees_of(args, report));
    // What is polled is not planned by kind.
    coverage.retain(|it| it.signal != "syn_queue.overflow" || session.wants(&it.signal));
    coverage
}

/// A screen that is told of what is looked at, and the signals it answers.
fn fed((screen, shared): (Screen, Shared), watch: &mut Watch) -> Result<(Screen, Signals)> {
    watch.feed(shared)?;
    Ok((screen, Signals::new()?))
}

/// The counts of the run, for a person.
fn say_summary(summary: &Summary, session: &Session, messages: &Messages) -> io::Result<()> {
    let mut counts = Vec::new();
    text::summary(summary, &mut counts)?;
    messages.show(counts);
    let stackless = session.stacks_skipped();
    if stackless > 0 {
        messages.say(format_args!(
            "{stackless} events came without their stack: there were more at a time than can be named, or it \
             took over 3 seconds"
        ));
    }
    let skipped = session.looks_skipped();
    if skipped > 0 {
        messages.say(format_args!(
            "{skipped} events came without what /proc says of them: more would have been asked than 20 times a \
             second, or the answer took over a second"
        ));
    }
    Ok(())
}

/// What is seen and what is not comes first in the stream.
fn announce(session: &mut Session, coverage: Vec<Coverage>) -> Result<(), sink::Error> {
    session.advance()?;
    for coverage in coverage {
        session.note(Kind::Coverage(coverage))?;
    }
    session.flush()
}

/// What is looked after while records come.
pub(super) trait Upkeep {
    /// Looks after everything that is due.
    fn tend(&mut self, session: &mut Session) -> Result<()>;

    /// Opens the outputs anew, and takes what has changed in the configuration.
    fn reload(&mut self, session: &mut Session) -> Result<()>;

    /// Looks who has ended and who has come, every [`LOOK`](targets::LOOK) while somebody may.
    fn look(&mut self, session: &mut Session) -> Result<()>;

    /// Somebody may come.
    fn awaits(&self) -> bool;

    /// Whether an event is of what is traced.
    fn admit(&mut self, event: &Event) -> Result<bool>;

    /// Nothing is left to trace.
    fn is_over(&self) -> bool;
}

/// The loop: records as they come, the kernel half looked after now and then.
async fn drive(
    source: &mut impl Source,
    session: &mut Session,
    upkeep: &mut impl Upkeep,
    mut found: mpsc::Receiver<Event>,
    mut hangup: Signal,
    stop: impl Future<Output = Result<Stop>>,
) -> Result<Stop, Failure> {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut look = interval(targets::LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(stop);
    let mut waiting = false;
    loop {
        tokio::select! {
            biased;
            stop = &mut stop => return Ok(stop?),
            _ = hangup.recv() => upkeep.reload(session)?,
            () = session.answered() => session.resume()?,
            _ = tick.tick() => {
                session.resume()?;
                upkeep.tend(session)?;
                session.advance()?;
                if upkeep.is_over() {
                    return Ok(Stop::Asked);
                }
            }
            _ = look.tick(), if upkeep.awaits() => upkeep.look(session)?,
            Some(mut event) = found.recv() => {
                event.id = session.next_id();
                session.publish(event, Duration::ZERO)?;
            }
            ready = source.ready(), if !waiting => {
                ready.context("the ring buffer cannot be waited for")?;
                waiting = true;
            }
            // Signals and the clock get their turn in a storm too.
            () = tokio::task::yield_now(), if waiting => {
                waiting = take(source, session, upkeep)? == BATCH;
            }
        }
        if !waiting {
            session.flush()?;
        }
        if session.is_full() {
            return Ok(Stop::Asked);
        }
    }
}

/// Takes a batch of records.
fn take(
    source: &mut impl Source,
    session: &mut Session,
    upkeep: &mut impl Upkeep,
) -> Result<usize, Failure> {
    let mut result = Ok(());
    let mut admitted = Ok(());
    let taken = source.drain(BATCH, |record| {
        if result.is_ok() && admitted.is_ok() {
            result = session.take(record, |event| {
                upkeep.admit(event).unwrap_or_else(|error| {
                    admitted = Err(error);
                    false
                })
            });
        }
    });
    admitted?;
    result?;
    Ok(taken)
}

/// Everything is detached: takes what is left and accounts for all there was.
fn settle(
    source: &mut impl Source,
    session: &mut Session,
    watch: &mut Watch,
    duration: Duration,
    (counters, shown): (Option<Result<(Counters, Counters)>>, Shown),
) -> Result<(), Failure> {
    while take(source, session, watch)? > 0 {}
    watch.account(session)?;
    session.finish()?;
    let tally = session.tally();
    let mut summary = tally.summary(duration, watch.close_waits());
    if let Some(counters) = counters {
        let (before, after) = counters?;
        let against = |seen, name, all: Option<bool>| {
            Some(Reconciled {
                seen,
                counted: after.since(&before, name)?,
                partial: !all?,
            })
        };
        summary.resets = against(tally.resets(), "TcpOutRsts", shown.resets);
        summary.overflows = against(tally.overflows(), "TcpExtListenOverflows", shown.overflows);
    }
    watch.summary = summary.clone();
    session.note(Kind::Summary(Box::new(summary)))?;
    Ok(session.flush()?)
}

/// Ends on SIGINT, SIGTERM or after the time that was asked for; a second signal leaves at once.
fn stop(args: &Trace) -> Result<impl Future<Output = Stop> + use<>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let duration = args.duration;
    let (tell, told) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut any = async || {
            tokio::select! {
                _ = interrupt.recv() => (),
                _ = terminate.recv() => (),
            }
        };
        any().await;
        // The run may be over already.
        let _ = tell.send(());
        any().await;
        crate::top::restore();
        std::process::exit(status::INTERRUPTED.into());
    });
    Ok(async move {
        tokio::select! {
            _ = told => (),
            () = sleep(duration) => (),
        }
        Stop::Asked
    })
}

/// Waits until the screen is left; without one for ever.
async fn left(screen: Option<&mut (Screen, Signals)>) {
    match screen {
        Some((screen, signals)) => signals.end(screen).await,
        None => std::future::pending().await,
    }
}

async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

async fn ended(
    released: Option<tokio::sync::oneshot::Receiver<io::Result<std::process::ExitStatus>>>,
    args: &Trace,
) -> Result<u8> {
    let (Some(released), Some(program)) = (released, args.cmd.first()) else {
        return std::future::pending().await;
    };
    command::status(
        released.await.context("nobody waits for the command")?,
        program,
    )
}

/// What is wrong already is looked for beside the loop: it may take a second.
fn look_around(
    args: &Trace,
    filters: Filters,
    messages: Messages,
) -> Result<mpsc::Receiver<Event>> {
    let (send, found) = mpsc::channel(64);
    let close_wait_after = args.close_wait_after;
    let look = move || {
        let include = |flow: Option<&Flow>, pid| filters.include(flow, pid);
        let request = snapshot::Request {
            close_wait_after,
            budget: Duration::from_secs(1),
            time: Timestamp(clock(ClockId::CLOCK_REALTIME)),
            include: &include,
        };
        // The loop gives out the ids.
        let snapshot = snapshot::take(&request, &mut || EventId(0));
        for event in snapshot.events {
            if send.blocking_send(event).is_err() {
                // The run is over.
                return;
            }
        }
        for note in snapshot.notes {
            messages.say(format_args!("at the start: {note}"));
        }
    };
    thread::Builder::new().name("snapshot".into()).spawn(look)?;
    Ok(found)
}
#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use bytes::Bytes;
    use tcptrace_common::event as wire;

    use super::super::raise_priority;
    use super::*;
    use crate::config::Selection;
    use crate::decode::Decoder;
    use crate::diagnose::{Analysis, Limits, Sees};
    use crate::host::attribution::{self, Verifier};
    use crate::sink::{Format, Outputs, samples};

    /// Records that are all there at once, and then none for ever.
    struct Recorded(Vec<wire::Event>, Rc<Cell<usize>>);

    impl Source for Recorded {
        async fn ready(&mut self) -> io::Result<()> {
            if self.0.is_empty() {
                std::future::pending().await
            } else {
                Ok(())
            }
        }

        fn drain(&mut self, limit: usize, mut each: impl FnMut(&[u8])) -> usize {
            let taken = self.0.len().min(limit);
            for record in self.0.drain(..taken) {
                each(bytemuck::bytes_of(&record));
            }
            self.1.set(self.0.len());
            taken
        }
    }

    /// Ends the loop once nothing is left of these records.
    struct UntilTaken(Rc<Cell<usize>>);

    impl Upkeep for UntilTaken {
        fn tend(&mut self, _: &mut Session) -> Result<()> {
            Ok(())
        }

        fn reload(&mut self, session: &mut Session) -> Result<()> {
            Ok(session.reopen()?)
        }

        fn look(&mut self, _: &mut Session) -> Result<()> {
            Ok(())
        }

        fn awaits(&self) -> bool {
            false
        }

        fn admit(&mut self, _: &Event) -> Result<bool> {
            Ok(true)
        }

        fn is_over(&self) -> bool {
            self.0.get() == 0
        }
    }

    #[derive(Clone, Default)]
    struct Memory(Rc<RefCell<Vec<String>>>);

    impl sink::Sink for Memory {
        fn write(&mut self, event: &Event, _: &Bytes) -> Result<(), sink::Error> {
            self.0.borrow_mut().push(event.name().to_owned());
            Ok(())
        }

        fn flush(&mut self) -> Result<(), sink::Error> {
            Ok(())
        }
    }

    struct Closed;

    impl sink::Sink for Closed {
        fn write(&mut self, _: &Event, _: &Bytes) -> Result<(), sink::Error> {
            Err(sink::Error::Closed)
        }

        fn flush(&mut self) -> Result<(), sink::Error> {
            Ok(())
        }
    }

    fn session(sink: Box<dyn sink::Sink>, limit: Option<u64>) -> Session {
        let mut outputs = Outputs::new(samples::context());
        outputs.add(Format::Json, sink);
        let decoder = Decoder {
            clock_offset: 0,
            ns_per_jiffy: 1,
            reset_reasons: Vec::new(),
        };
        let selection = Selection::parse(&[], &[], false).expect("the usual events");
        Session::new(
            decoder,
            selection,
            outputs,
            Verifier::new(attribution::Host::default()),
            Analysis::new(Limits::default(), Sees::ALL),
            limit,
        )
    }

    fn resets(count: usize) -> Recorded {
        let mut reset: wire::Event = bytemuck::Zeroable::zeroed();
        reset.kind = wire::kind::RESET_SENT;
        Recorded(vec![reset; count], Rc::new(Cell::new(count)))
    }

    fn run(source: &mut Recorded, session: &mut Session) -> Result<Stop, Failure> {
        raise_priority();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let mut upkeep = UntilTaken(Rc::clone(&source.1));
        runtime.expect("a runtime").block_on(async {
            let (_send, found) = mpsc::channel(1);
            let hangup = signal(SignalKind::hangup())?;
            let never = std::future::pending();
            drive(source, session, &mut upkeep, found, hangup, never).await
        })
    }

    #[test]
    fn every_record_is_printed_also_those_of_many_batches() {
        let memory = Memory::default();
        let mut session = session(Box::new(memory.clone()), None);
        let mut source = resets(3 * BATCH + 1);
        assert!(matches!(run(&mut source, &mut session), Ok(Stop::Asked)));
        assert_eq!(memory.0.borrow().len(), 3 * BATCH + 1);
        assert_eq!(session.tally().printed, 3 * BATCH as u64 + 1);
    }

    #[test]
    fn it_ends_at_the_count_that_was_asked_for() {
        let memory = Memory::default();
        let mut session = session(Box::new(memory.clone()), Some(2));
        assert!(matches!(run(&mut resets(5), &mut session), Ok(Stop::Asked)));
        assert_eq!(*memory.0.borrow(), ["tcptrace.reset.sent"; 2]);
    }

    #[test]
    fn a_reader_that_has_gone_is_told_from_a_failure() {
        let mut session = session(Box::new(Closed), None);
        let failure = run(&mut resets(1), &mut session).expect_err("the output is closed");
        assert_eq!(failure.error.downcast_ref(), Some(&sink::Error::Closed));
    }
}
