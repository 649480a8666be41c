//! A live trace: attach, say what is seen, loop until told to stop, account for everything.

mod reload;
mod service;
mod watch;

use std::ffi::OsString;
use std::fs::File;
use std::future::Future;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use caps::{Capability, CapsHashSet};
use nix::time::ClockId;
use tcptrace_common::filter::Config;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::command::{self, Held};
use super::{Failure, Host, sees, status};
use crate::cli::{Output, Trace};
use crate::config::{self, Filters, Selection};
use crate::decode::Decoder;
use crate::diagnose::{Analysis, Limits, Sees};
use crate::event::{Event, EventId, Flow, Kind, Reconciled, Summary, Timestamp};
use crate::host::attribution::{self, Verifier};
use crate::host::cgroup::Cgroups;
use crate::host::{counters::Counters, door, netns, snapshot, sockets};
use crate::kernel::confinement::{self, Part, confine};
use crate::kernel::doctor::{Attempt, Report};
use crate::kernel::facts::Facts;
use crate::kernel::layout::Resolved;
use crate::kernel::load::{Kernel, Loader, Setup};
use crate::kernel::plan::{ACCEPT_OVERFLOW, Plan, Planned, Wanted, plan};
use crate::kernel::privileges::{self, HOST_PIDS, grant_command, required_missing};
use crate::metrics::push::{self, Push};
use crate::metrics::{self, Metrics, server};
use crate::session::{Session, clock, monotonic};
use crate::sink::text::{self, Columns};
use crate::sink::{
    self, Access, Delivery, Endpoint, Exports, Format, Headers, Opener, Outputs, Rotation, Tls,
};
use crate::source::Source;
use crate::source::ring::Ring;
use reload::Reload;
use service::Service;
use watch::Watch;

/// Records taken before anything else gets a turn.
const BATCH: usize = 4096;
/// How often the kernel half is looked after.
const TICK: Duration = Duration::from_millis(250);

/// Programs that see who accepts a connection.
const ACCEPTS: [&str; 4] = [
    "sys_exit_accept4",
    "sys_exit_of_sockets",
    "fexit_inet_csk_accept_2",
    "fexit_inet_csk_accept_4",
];

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

/// `tcptrace [FILTER] [OUTPUT]`.
///
/// `reloaded` is the command line and the file it took options from.
pub(super) fn trace(
    args: &Trace,
    reloaded: Option<(Vec<OsString>, config::file::File)>,
) -> Result<u8, Failure> {
    let (selection, ring_bytes) = check(args)?;
    // Before anything is loaded: what is wrong with the request does not need the kernel.
    let opener = args.output_file.as_ref().map(|_| Opener::start());
    let opener = opener.transpose().context("no thread to open files")?;
    let (context, access) = (context()?, access(args)?);
    let (outputs, deliveries) = outputs(args, opener.as_ref(), &context, &access)?;
    let listeners = listeners(args)?;
    let mut filters = Filters::of(args, &selection)?;
    let host = Host::look(&args.without);
    check_privileges(&host)?;

    let wanted = Wanted {
        kinds: filters.config.kinds,
        children: filters.config.children != 0,
        without: args.without.clone(),
    };
    let plan = plan(&wanted, &host.facts, &host.resolved.missing);
    let setup = Setup {
        layout: host.resolved.layout,
        stand_ins: host.resolved.skips_nested,
        config: filters.config,
        ring_bytes,
        max_sockets: args.max_sockets,
    };
    let mut kernel = Kernel::load(host.loader, &setup)?;
    let command = if args.cmd.is_empty() {
        None
    } else {
        Some(Held::new(&args.cmd)?)
    };
    filters
        .values
        .pids
        .extend(command.as_ref().map(|held| held.pid));
    kernel.set_filters(&filters.values)?;
    let attempts = kernel.attach(&plan);
    check_attached(&plan, &attempts, selection.required())?;
    if !ACCEPTS.iter().any(|program| kernel.is_attached(program)) {
        kernel.watch_first_uses()?;
    }

    let report = Report {
        facts: host.facts,
        plan,
        attempts: Some(attempts),
        listed: sockets::coverage(),
    };
    let decoder = Decoder {
        clock_offset: clock(ClockId::CLOCK_REALTIME) - monotonic(),
        ns_per_jiffy: filters.config.ns_per_jiffy,
        reset_reasons: leak(host.resolved.reset_reasons),
    };
    let verifier = Verifier::new(attribution::Host {
        cgroups: Cgroups::open().ok(),
    });
    let analysis = Analysis::new(Limits::default(), sees_of(args, &report));
    let mut session = Session::new(decoder, selection, outputs, verifier, analysis, args.count);
    session.limit_rate(args.rate_limit);
    let pushes = publish(args, listeners, (&context, &access), &mut session)?;
    let service = Service::from_env()?;
    raise_priority();
    give_up_privileges(args, &report.facts, opener)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(live(Live {
        args,
        filters,
        report,
        kernel,
        session,
        deliveries,
        pushes,
        command,
        service,
        reload: reloaded.map(|(args, file)| Reload { args, file }),
    }))
}

/// What can be said of the options without a look at the host.
pub(super) fn check(args: &Trace) -> Result<(Selection, u32), Failure> {
    let usage = |error| Failure {
        status: status::USAGE,
        error,
    };
    let selection = selection(args).map_err(usage)?;
    if args.children && args.pid.is_empty() && args.cmd.is_empty() {
        let error = anyhow!("--children follows the children of --pid PID: name one");
        return Err(usage(error));
    }
    let again = |(nth, export)| args.export[..nth].contains(export);
    if let Some((_, export)) = args.export.iter().enumerate().find(|&it| again(it)) {
        let error = anyhow!("--export {export} is given twice: each destination has one account");
        return Err(usage(error));
    }
    let exports = args.export.iter().filter(|it| it.is_tls());
    let receivers = receivers(args).filter(|it| it.is_tls());
    let mut sealed = exports
        .map(|it| format!("--export {it}"))
        .chain(receivers.map(|it| format!("--metrics otlp={it}")));
    if args.tls_ca.is_none()
        && let Some(option) = sealed.next()
    {
        let error = anyhow!("{option}: say whom to trust with --tls-ca FILE");
        return Err(usage(error));
    }
    Ok((selection, ring_bytes(args.ring_buffer)?))
}

fn selection(args: &Trace) -> Result<Selection> {
    Selection::parse(&args.event, &args.errno, args.close_wait_after.is_zero())
}

/// Receivers of OTLP that counts are sent to.
fn receivers(args: &Trace) -> impl Iterator<Item = &Endpoint> {
    args.metrics.iter().filter_map(|to| match to {
        metrics::To::Receiver(endpoint) => Some(endpoint),
        metrics::To::Scrapers(_) => None,
    })
}

/// The ports on which counts are asked for.
fn listeners(args: &Trace) -> Result<Vec<TcpListener>> {
    let ports = args.metrics.iter().filter_map(|to| match to {
        metrics::To::Scrapers(address) => Some(server::bind(*address)),
        metrics::To::Receiver(_) => None,
    });
    ports.collect()
}

/// Starts to answer who scrapes, and to send counts to who receives them.
fn publish(
    args: &Trace,
    listeners: Vec<TcpListener>,
    (context, access): (&sink::Context, &Access),
    session: &mut Session,
) -> Result<Vec<Push>> {
    if args.metrics.is_empty() {
        return Ok(Vec::new());
    }
    let quiet = args.quiet;
    let say = move |what: &str| {
        if !quiet {
            // Nobody may be left to read it.
            let _ = writeln!(io::stderr(), "tcptrace: {}", text::printable(what));
        }
    };
    let metrics = Arc::new(Metrics::new());
    metrics.beat(monotonic());
    for listener in listeners {
        // The port may have been left to the kernel.
        let address = listener.local_addr()?;
        server::start(listener, Arc::clone(&metrics))?;
        say(&format!("metrics at http://{address}/metrics"));
    }
    let pushes = receivers(args).map(|endpoint| {
        let source = push::Source {
            endpoint: endpoint.clone(),
            access: access.clone(),
            metrics: Arc::clone(&metrics),
            resource: sink::resource(context),
        };
        Push::start(source, say)
    });
    let pushes = pushes.collect::<Result<_>>()?;
    session.count_in(metrics);
    Ok(pushes)
}

/// What cannot go unseen of the sockets traced. A filter that is about one end alone leaves out the RST
/// of the other.
fn sees_of(args: &Trace, report: &Report) -> Sees {
    let both_ends = args.local_port.is_empty() && args.peer_port.is_empty() && args.peer.is_empty();
    Sees {
        resets: both_ends && report.shows_resets() == Some(true),
        final_acks: report.shows_final_acks(),
    }
}

/// Whether hooks and polling show all of what the kernel counts; `None` when nobody wants it.
#[derive(Clone, Copy)]
struct Shown {
    resets: Option<bool>,
    overflows: Option<bool>,
}

/// A storm that fills every core leaves the agent less of one than it needs to keep up. It takes the
/// boost auditd takes for the same reason; without the privilege it goes on as it is.
/// <https://man7.org/linux/man-pages/man5/auditd.conf.5.html> (`priority_boost`)
fn raise_priority() {
    const BOOST: libc::c_int = 4;
    // SAFETY: the call reads its arguments only.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -BOOST) };
}

/// From here on the program reads: what it needed to attach is given up, for root too, and what its
/// threads do not do they can do no longer.
fn give_up_privileges(args: &Trace, facts: &Facts, opener: Option<Opener>) -> Result<()> {
    if facts.has(Capability::CAP_SYS_ADMIN)
        && let Err(error) = door::keep()
        && !args.quiet
    {
        // Nobody may be left to read it.
        let _ = writeln!(
            io::stderr(),
            "tcptrace: other network namespaces are not looked into: {error:#}"
        );
    }
    if let (Some(path), Some(opener)) = (&args.output_file, opener) {
        // What was opened in somebody else's directory must be opened there again.
        let mut opens = CapsHashSet::new();
        if !privileges::rehearse(&opens, || sink::File::may_open(path))? {
            opens = [
                Capability::CAP_DAC_OVERRIDE,
                Capability::CAP_DAC_READ_SEARCH,
            ]
            .into();
        }
        // Behind links its directory may be another one.
        let files: Vec<_> = path
            .canonicalize()
            .into_iter()
            .chain([path.clone()])
            .collect();
        opener.run(move || {
            privileges::keep_only(&opens)?;
            confinement::keep_to(files.iter().map(|path| sink::directory_of(path)))?;
            confine(Part::Files)
        })??;
    }
    privileges::keep_only(&privileges::kept(facts))?;
    if !facts.confinement.seccomp && !args.quiet {
        // Nobody may be left to read it.
        let _ = writeln!(
            io::stderr(),
            "tcptrace: every call may still be made: this kernel has no seccomp"
        );
    }
    confine(Part::Reader)
}

/// Some dozen names, once in the life of the program.
fn leak(reasons: Vec<(u32, String)>) -> Vec<(u32, &'static str)> {
    let leaked = reasons
        .into_iter()
        .map(|(number, name)| (number, &*name.leak()));
    leaked.collect()
}

/// What `doctor` knows of a plan: everything is attached for a moment.
pub(super) fn try_out(loader: Loader, resolved: &Resolved, plan: &Plan) -> Result<Vec<Attempt>> {
    let setup = Setup {
        layout: resolved.layout,
        stand_ins: resolved.skips_nested,
        config: Config {
            kinds: u32::MAX,
            ..Config::OFF
        },
        ring_bytes: 1 << 16,
        max_sockets: 1024,
    };
    let mut kernel = Kernel::load(loader, &setup)?;
    Ok(kernel.attach(plan))
}

/// A trace that is attached and about to begin.
struct Live<'a> {
    args: &'a Trace,
    filters: Filters,
    report: Report,
    kernel: Kernel,
    session: Session,
    deliveries: (Delivery, Exports),
    pushes: Vec<Push>,
    command: Option<Held>,
    service: Service,
    reload: Option<Reload>,
}

async fn live(live: Live<'_>) -> Result<u8, Failure> {
    let Live {
        args,
        filters,
        report,
        mut kernel,
        mut session,
        deliveries,
        pushes,
        command,
        service,
        reload,
    } = live;
    let begun = Instant::now();
    let mut source = Ring::new(kernel.take_ring()?)?;
    let stop = stop(args)?;
    // Who reads that it traces may ask for a new file at once.
    let hangup = signal(SignalKind::hangup())?;
    let mut coverage = report.coverage();
    sees::mark(&mut coverage, sees_of(args, &report));
    // What is polled is not planned by kind.
    coverage.retain(|it| it.signal != "syn_queue.overflow" || session.wants(&it.signal));
    let shown = Shown {
        resets: report.shows_resets(),
        overflows: report.shows_overflows(),
    };
    let polls_accept_queues = report.polls(ACCEPT_OVERFLOW);
    let (filters_open, around) = (filters.is_open(), filters.clone());
    let mut watch = Watch::new(
        args,
        kernel,
        deliveries,
        filters,
        &session,
        polls_accept_queues,
    )?;
    watch.serve(service, reload);
    let comparable = filters_open.then(Counters::read).transpose()?;
    session.reconcile_from_now(netns::current()?);
    if !args.quiet {
        text::banner(&coverage, &mut io::stderr())?;
    }
    let found = look_around(args, &around)?;
    let released = command.map(Held::release).transpose()?;
    let end = async {
        tokio::select! {
            stop = stop => Ok(stop),
            ended = ended(released, args) => ended.map(Stop::Command),
        }
    };
    let outcome = match announce(args, &mut session, coverage) {
        Ok(()) => {
            watch.begin(&session);
            drive(&mut source, &mut session, &mut watch, found, hangup, end).await
        }
        Err(error) => Err(error.into()),
    };
    watch.end(&session);
    let stop = match outcome {
        Ok(stop) => stop,
        Err(failure) if failure.error.downcast_ref() == Some(&sink::Error::Closed) => Stop::Closed,
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
    let duration = begun.elapsed();
    let account = polled.map_err(Failure::from).and_then(|()| {
        settle(
            &mut source,
            &mut session,
            &mut watch,
            duration,
            (counters, shown),
        )
    });
    // Also when another output failed: what was produced for one is sent or counted.
    let told = watch.close_deliveries(&mut session).await;
    for push in pushes {
        push.finish().await;
    }
    // A summary that nobody reads is no failure, wherever the pipe closed.
    let is_failure = |failure: &Failure| failure.error.downcast_ref() != Some(&sink::Error::Closed);
    let outcome = account.and(told.map_err(Failure::from));
    if let Some(failure) = outcome.err().filter(is_failure) {
        return Err(failure);
    }
    if !args.quiet {
        say_summary(&watch.summary, session.looks_skipped())?;
    }
    Ok(match stop {
        Stop::Command(status) if status != 0 => status,
        _ if args.strict && watch.summary.lost + watch.not_delivered() > 0 => status::LOST,
        _ => 0,
    })
}

/// The counts of the run, for a person.
fn say_summary(summary: &Summary, skipped: u64) -> io::Result<()> {
    text::summary(summary, &mut io::stderr())?;
    if skipped > 0 {
        // Nobody may be left to read it.
        let _ = writeln!(
            io::stderr(),
            "tcptrace: {skipped} events came without what /proc says of them: more would have been asked \
             than 20 times a second, or the answer took over a second"
        );
    }
    Ok(())
}

/// What is seen and what is not comes first in the stream.
fn announce(
    args: &Trace,
    session: &mut Session,
    coverage: Vec<crate::event::Coverage>,
) -> Result<(), sink::Error> {
    session.advance()?;
    for coverage in coverage {
        session.note(Kind::Coverage(coverage))?;
    }
    session.flush()?;
    if !args.quiet {
        // Nobody may be left to read it.
        let _ = writeln!(io::stderr(), "tcptrace: tracing");
    }
    Ok(())
}

/// What is looked after while records come.
trait Upkeep {
    /// Looks after everything that is due.
    fn tend(&mut self, session: &mut Session) -> Result<()>;

    /// Opens the outputs anew, and takes what has changed in the configuration.
    fn reload(&mut self, session: &mut Session) -> Result<()>;

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
                waiting = take(source, session)? == BATCH;
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
fn take(source: &mut impl Source, session: &mut Session) -> Result<usize, sink::Error> {
    let mut result = Ok(());
    let taken = source.drain(BATCH, |record| {
        if result.is_ok() {
            result = session.take(record);
        }
    });
    result.map(|()| taken)
}

/// Everything is detached: takes what is left and accounts for all there was.
fn settle(
    source: &mut impl Source,
    session: &mut Session,
    watch: &mut Watch,
    duration: Duration,
    (counters, shown): (Option<Result<(Counters, Counters)>>, Shown),
) -> Result<(), Failure> {
    while take(source, session)? > 0 {}
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
fn look_around(args: &Trace, filters: &Filters) -> Result<mpsc::Receiver<Event>> {
    let (send, found) = mpsc::channel(64);
    let filters = filters.clone();
    let close_wait_after = args.close_wait_after;
    let quiet = args.quiet;
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
        for note in snapshot.notes.into_iter().filter(|_| !quiet) {
            // Nobody may be left to read it.
            let _ = writeln!(io::stderr(), "tcptrace: at the start: {note}");
        }
    };
    thread::Builder::new().name("snapshot".into()).spawn(look)?;
    Ok(found)
}

fn check_privileges(host: &Host) -> Result<(), Failure> {
    let missing = required_missing(&host.facts);
    let error = if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(ToString::to_string).collect();
        anyhow!(
            "{} missing: the kernel opens eBPF only with it; {}",
            names.join(" and "),
            grant_command(&host.facts)
        )
    } else if !host.facts.initial_pid_namespace {
        // Rather nothing than the wrong process.
        anyhow!(
            "in this PID namespace processes have other numbers than the kernel gives; {HOST_PIDS}"
        )
    } else {
        return Ok(());
    };
    Err(Failure {
        status: status::PRIVILEGE,
        error,
    })
}

/// What everything rests on, and what was asked for by name, must be there; the rest is missed
/// aloud.
fn check_attached(plan: &Plan, attempts: &[Attempt], required: u32) -> Result<(), Failure> {
    for planned in plan
        .signals
        .iter()
        .filter(|it| it.core || it.asked_by & required != 0)
    {
        if is_seen(planned, attempts) {
            continue;
        }
        let tried = attempts
            .iter()
            .filter(|attempt| attempt.signal == planned.signal);
        let tried = tried.filter_map(|attempt| {
            let error = attempt.outcome.as_ref().err()?;
            Some(format!("{}: {error}", attempt.way))
        });
        let refused = planned.refused.iter().map(|refused| match &refused.remedy {
            Some(remedy) => format!("{}: {} ({remedy})", refused.way, refused.why),
            None => format!("{}: {}", refused.way, refused.why),
        });
        let why: Vec<_> = tried.chain(refused).collect();
        let error = anyhow!(
            "this kernel does not show {}: {}; `tcptrace doctor` says more",
            planned.signal.0,
            why.join("; ")
        );
        return Err(Failure {
            status: status::KERNEL,
            error,
        });
    }
    Ok(())
}

/// Some way to see it attached whole.
fn is_seen(planned: &Planned, attempts: &[Attempt]) -> bool {
    planned.candidates.iter().any(|candidate| {
        let way = candidate.rung.to_string();
        let mut tried = attempts
            .iter()
            .filter(|it| it.signal == planned.signal && it.way == way)
            .peekable();
        tried.peek().is_some() && tried.all(|attempt| attempt.outcome.is_ok())
    })
}

/// Where events go, and the threads that take them to standard output and to the exports.
fn outputs(
    args: &Trace,
    opener: Option<&Opener>,
    context: &sink::Context,
    access: &Access,
) -> Result<(Outputs, (Delivery, Exports)), Failure> {
    let mut outputs = Outputs::new(context.clone());
    let format = format(args.output, super::is_colored(args.color), !args.no_header);
    let (stdout, sink) = Delivery::stdout(|| {
        privileges::keep_only(&CapsHashSet::new())?;
        confine(Part::Reader)
    })?;
    outputs.add(format, Box::new(sink));
    if let (Some(path), Some(opener)) = (&args.output_file, opener) {
        let rotation = args.rotate_size.map(|size| Rotation {
            size,
            keep: args.rotate_keep,
        });
        outputs.add(
            Format::Json,
            Box::new(sink::File::open(path, rotation, opener.clone())?),
        );
    }
    let mut exports = Exports::default();
    for destination in &args.export {
        let (format, export) =
            exports.start(destination, access.clone(), |while_it_may_load_code| {
                privileges::keep_only(&CapsHashSet::new())?;
                while_it_may_load_code();
                confine(Part::Export)
            })?;
        outputs.add(format, Box::new(export));
    }
    Ok((outputs, (stdout, exports)))
}

/// The format for standard output.
pub(super) fn format(output: Output, color: bool, header: bool) -> Format {
    match output {
        Output::Columns => {
            let width = io::stdout().is_terminal().then(terminal_width).flatten();
            Format::Columns(Columns::new(color, header, width))
        }
        Output::Json => Format::Json,
        Output::Jsonpretty => Format::JsonPretty,
        Output::OtlpJson => Format::OtlpJson,
    }
}

/// What all records of this run have in common.
fn context() -> Result<sink::Context> {
    Ok(sink::Context {
        run: u32::from_ne_bytes(random()?),
        key: random()?,
        host_name: nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        host_id: line("/etc/machine-id"),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        // Set from `spec.nodeName`: the name of the host is often another.
        node_name: std::env::var("NODE_NAME").ok(),
        replayed: None,
    })
}

/// Whom destinations are trusted to be, and what they are told.
fn access(args: &Trace) -> Result<Access> {
    let identity = args.tls_cert.as_deref().zip(args.tls_key.as_deref());
    let tls = args.tls_ca.as_deref().map(|ca| Tls::read(ca, identity));
    Ok(Access {
        tls: tls.transpose()?,
        headers: Headers::from_env()?,
    })
}

/// The one line of a file; `None` without it.
fn line(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|line| !line.is_empty())
}

/// <https://man7.org/linux/man-pages/man4/tty_ioctl.4.html>
fn terminal_width() -> Option<usize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the call fills the structure it is given.
    let told = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (told == 0 && size.ws_col > 0).then_some(size.ws_col.into())
}

fn ring_bytes(asked: u64) -> Result<u32, Failure> {
    let page = rustix::param::page_size() as u64;
    let right = asked.is_power_of_two() && (page..=1 << 30).contains(&asked);
    u32::try_from(asked)
        .ok()
        .filter(|_| right)
        .ok_or_else(|| Failure {
            status: status::USAGE,
            error: anyhow!(
                "--ring-buffer {asked}: the kernel wants a power of two from {}KiB, a page of its \
                 memory, to 1GiB, e.g. 64MiB",
                page >> 10
            ),
        })
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut source = File::open("/dev/urandom").context("no random numbers")?;
    source.read_exact(&mut bytes).context("no random numbers")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use bytes::Bytes;
    use tcptrace_common::event as wire;

    use super::*;

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
        let mut outputs = Outputs::new(sink::Context {
            run: 1,
            key: [0; 16],
            host_name: "host".to_owned(),
            host_id: None,
            boot_id: None,
            node_name: None,
            replayed: None,
        });
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
