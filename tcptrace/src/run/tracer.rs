//! A live trace: attach, say what is seen, loop until told to stop, account for everything.

mod live;
mod reload;
mod service;
mod targets;
mod top;
mod watch;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use caps::{Capability, CapsHashSet};
use nix::time::ClockId;
use tcptrace_common::filter::Config;

use super::command::Held;
use super::top::OnScreen;
use super::{Failure, Host, status};
use crate::cli::{Output, Trace};
use crate::config::{self, Filters, Selection};
use crate::decode::Decoder;
use crate::diagnose::{Analysis, Limits, Sees};
use crate::event::EventId;
use crate::host::attribution::{self, Verifier};
use crate::host::cgroup::Cgroups;
use crate::host::{self, door, sockets};
use crate::kernel::confinement::{self, Part, confine};
use crate::kernel::doctor::{Attempt, Report};
use crate::kernel::facts::Facts;
use crate::kernel::layout::Resolved;
use crate::kernel::load::{Kernel, Loader, Setup};
use crate::kernel::plan::{Plan, Planned, Processes, Wanted, plan};
use crate::kernel::privileges::{self, HOST_PIDS, grant_command, required_missing};
use crate::metrics::push::{self, Push};
use crate::metrics::{self, Metrics, server};
use crate::session::stacks::{self, Stacks};
use crate::session::{Session, clock, monotonic};
use crate::sink::text::Columns;
use crate::sink::{
    self, Access, Delivery, Endpoint, Exports, Format, Headers, Messages, Outputs, Rotation,
    Speaker, Tls,
};
use crate::source;
use crate::top::{Screen, Shared};
use live::Live;
use reload::Reload;
use service::Service;
use targets::Targets;

/// Programs that see who accepts a connection.
const ACCEPTS: [&str; 4] = [
    "sys_exit_accept4",
    "sys_exit_of_sockets",
    "fexit_inet_csk_accept_2",
    "fexit_inet_csk_accept_4",
];

/// The program that sees successors of processes.
const SUCCESSORS: &str = "sched_process_exec";

/// `tcptrace [FILTER] [OUTPUT]`.
///
/// `reloaded` is the command line and the file it took options from. On a screen there is nothing on
/// standard output but that.
pub(super) fn trace(
    args: &Trace,
    reloaded: Option<(Vec<OsString>, config::file::File)>,
    on_screen: Option<OnScreen>,
) -> Result<u8, Failure> {
    let (selection, ring_bytes) = check(args)?;
    let speaker = Speaker::start(args.quiet, only_write)?;
    let messages = speaker.messages();
    // Before anything is loaded: what is wrong with the request does not need the kernel.
    let (context, access) = (context()?, access(args)?);
    let view = on_screen.as_ref().map(|it| it.shared.clone());
    let (outputs, deliveries) = outputs(args, (&context, &access), view)?;
    let listeners = listeners(args)?;
    let mut filters = Filters::of(args, &selection)?;
    if !args.wait {
        config::check_pids(args.filter.pid.iter().copied())?;
    }
    let Attached {
        mut kernel,
        report,
        targets,
        command,
        reset_reasons,
    } = attach(args, &mut filters, ring_bytes, selection.required())?;
    let decoder = Decoder {
        clock_offset: clock(ClockId::CLOCK_REALTIME) - monotonic(),
        ns_per_jiffy: filters.config.ns_per_jiffy,
        reset_reasons: leak(reset_reasons),
    };
    let verifier = Verifier::new(attribution::Host {
        cgroups: Cgroups::open().ok(),
    });
    let analysis = Analysis::new(Limits::default(), sees_of(args, &report));
    let mut session = Session::new(decoder, selection, outputs, verifier, analysis, args.count);
    session.limit_rate(args.rate_limit);
    let pushes = publish(
        args,
        listeners,
        (&context, &access),
        (&mut session, &messages),
    )?;
    let service = Service::from_env()?;
    let screen = on_screen.map(show).transpose()?;
    if args.stack {
        if !report.facts.has(privileges::MAP_FILES) {
            messages.say(format_args!(
                "--stack names no functions of programs without {}: run it with sudo",
                privileges::MAP_FILES
            ));
        }
        session.show_stacks(name_stacks(&mut kernel, &report.facts)?);
    }
    raise_priority();
    give_up_privileges(&report.facts, &messages)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let live = Live {
        args,
        filters,
        report,
        kernel,
        targets,
        session,
        deliveries,
        messages,
        pushes,
        command,
        service,
        reload: reloaded.map(|(args, file)| Reload { args, file }),
        screen,
    };
    runtime.block_on(live.run())
}

/// What is attached.
struct Attached {
    kernel: Kernel,
    report: Report,
    targets: Targets,
    command: Option<Held>,
    reset_reasons: Vec<(u32, String)>,
}

/// Loads the kernel half and attaches it, with the filters' values in place. Kinds that are `required`
/// must be seen.
fn attach(
    args: &Trace,
    filters: &mut Filters,
    ring_bytes: u32,
    required: u32,
) -> Result<Attached, Failure> {
    let host = Host::look(&args.without);
    check_privileges(&host)?;

    let wanted = Wanted {
        kinds: filters.config.kinds,
        processes: Processes {
            by_pid: filters.config.pid != 0,
            children: filters.config.children != 0,
            successors: args.follow,
        },
        without: args.without.clone(),
    };
    if args.stack && host.resolved.layout.has_task_pt_regs != 1 {
        return Err(Failure {
            status: status::KERNEL,
            error: anyhow!(
                "--stack: this kernel gives no program the registers of a call \
                 (bpf_task_pt_regs): it takes Linux 5.15"
            ),
        });
    }
    let plan = plan(&wanted, &host.facts, &host.resolved.missing);
    let setup = Setup {
        layout: host.resolved.layout,
        stand_ins: host.resolved.skips_nested,
        config: filters.config,
        ring_bytes,
        max_sockets: args.max_sockets,
    };
    let (mut kernel, types) = Kernel::load(host.loader, &setup)?;
    let command = if args.cmd.is_empty() {
        None
    } else {
        Some(Held::new(&args.cmd)?)
    };
    let before = Targets::there(args);
    let held: Vec<_> = command.iter().map(|held| held.pid).collect();
    filters.values.pids.clone_from(&held);
    filters.values.pids.extend(before.iter().map(|it| it.pid));
    kernel.set_filters(&filters.values)?;
    let attempts = kernel.attach(&plan, types);
    check_attached(&plan, &attempts, required)?;
    if args.follow && !kernel.is_attached(SUCCESSORS) {
        return Err(Failure {
            status: status::KERNEL,
            error: anyhow!(
                "--follow: this kernel does not show which programs are started; `tcptrace doctor` \
                 says more"
            ),
        });
    }
    let targets = Targets::new(args, &before, &mut kernel)?;
    filters.values.pids = held;
    filters.values.pids.extend(targets.pids());
    if !ACCEPTS.iter().any(|program| kernel.is_attached(program)) {
        kernel.watch_first_uses()?;
    }

    let report = Report {
        facts: host.facts,
        plan,
        attempts: Some(attempts),
        listed: sockets::coverage(),
    };
    Ok(Attached {
        kernel,
        report,
        targets,
        command,
        reset_reasons: host.resolved.reset_reasons,
    })
}

/// Takes the terminal over, on a thread that can do nothing else.
fn show(on_screen: OnScreen) -> Result<(Screen, Shared)> {
    let OnScreen {
        shared,
        title,
        theme,
    } = on_screen;
    let screen = Screen::start(shared.clone(), title, theme, || {
        privileges::keep_only(&CapsHashSet::new())?;
        confine(Part::Screen)
    })?;
    Ok((screen, shared))
}

/// Names stacks, on a thread that can do nothing else.
fn name_stacks(kernel: &mut Kernel, facts: &Facts) -> Result<Stacks> {
    /// A stack may lie behind one that another processor is still writing: a moment each, so often.
    const MOMENT: Duration = Duration::from_millis(1);
    const MOMENTS: usize = 20;
    let mut ring = source::stacks::Stacks::new(kernel.take_stacks()?);
    let kept = privileges::kept_for_stacks(facts);
    let begin = move || {
        let mut names = host::stacks::Stacks::new();
        move |id: EventId, wanted| {
            let mut stack = ring.take(id.0);
            for _ in 0..MOMENTS {
                if stack.is_some() {
                    break;
                }
                thread::sleep(MOMENT);
                stack = ring.take(id.0);
            }
            stack
                .filter(|_| wanted == stacks::Wanted(true))
                .map(|it| names.name(&it))
        }
    };
    Stacks::start(begin, move || {
        privileges::keep_only(&kept)?;
        confine(Part::Stacks)
    })
}

/// What can be said of the options without a look at the host.
pub(super) fn check(args: &Trace) -> Result<(Selection, u32), Failure> {
    let selection = selection(args).map_err(Failure::usage)?;
    if args.children && args.filter.pid.is_empty() && args.cmd.is_empty() {
        let error = anyhow!("--children follows the children of --pid PID: name one");
        return Err(Failure::usage(error));
    }
    if args.follow && args.filter.pid.is_empty() {
        let error = anyhow!(
            "--follow goes on from the process of --pid PID: name one; --comm, --uid and --cgroup take \
             whoever comes"
        );
        return Err(Failure::usage(error));
    }
    let filter = &args.filter;
    let waits_for = [
        filter.pid.is_empty(),
        filter.comm.is_empty(),
        filter.cgroup.is_empty(),
    ];
    if args.wait && waits_for == [true; 3] {
        let error = anyhow!("--wait waits for --pid PID, --comm NAME or --cgroup PATH: name one");
        return Err(Failure::usage(error));
    }
    let again = |(nth, export)| args.export[..nth].contains(export);
    if let Some((_, export)) = args.export.iter().enumerate().find(|&it| again(it)) {
        let error = anyhow!("--export {export} is given twice: each destination has one account");
        return Err(Failure::usage(error));
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
        return Err(Failure::usage(error));
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
    (session, messages): (&mut Session, &Messages),
) -> Result<Vec<Push>> {
    if args.metrics.is_empty() {
        return Ok(Vec::new());
    }
    let metrics = Arc::new(Metrics::new());
    metrics.beat(monotonic());
    for listener in listeners {
        // The port may have been left to the kernel.
        let address = listener.local_addr()?;
        server::start(listener, Arc::clone(&metrics))?;
        messages.say(format_args!("metrics at http://{address}/metrics"));
    }
    let pushes = receivers(args).map(|endpoint| {
        let source = push::Source {
            endpoint: endpoint.clone(),
            access: access.clone(),
            metrics: Arc::clone(&metrics),
            resource: sink::resource(context),
        };
        let messages = messages.clone();
        Push::start(source, move |what| messages.say(what))
    });
    let pushes = pushes.collect::<Result<_>>()?;
    session.count_in(metrics);
    Ok(pushes)
}

/// What cannot go unseen of the sockets traced. A filter that is about one end alone leaves out the RST
/// of the other.
fn sees_of(args: &Trace, report: &Report) -> Sees {
    let filter = &args.filter;
    let both_ends =
        filter.local_port.is_empty() && filter.peer_port.is_empty() && filter.peer.is_empty();
    Sees {
        resets: both_ends && report.shows_resets() == Some(true),
        final_acks: report.shows_final_acks(),
    }
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
fn give_up_privileges(facts: &Facts, messages: &Messages) -> Result<()> {
    if facts.has(Capability::CAP_SYS_ADMIN)
        && let Err(error) = door::keep()
    {
        messages.say(format_args!(
            "other network namespaces are not looked into: {error:#}"
        ));
    }
    privileges::keep_only(&privileges::kept(facts))?;
    if !facts.confinement.seccomp {
        messages.say("every call may still be made: this kernel has no seccomp");
    }
    confine(Part::Reader)
}

/// What is left to a thread that writes to what is open.
fn only_write() -> Result<()> {
    privileges::keep_only(&CapsHashSet::new())?;
    confine(Part::Reader)
}

/// What is left to the thread that writes the output file: to open it anew, in its directory.
fn only_write_file(path: &Path) -> Result<()> {
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
    let behind = path.canonicalize().into_iter();
    let files: Vec<_> = behind.chain([path.to_owned()]).collect();
    privileges::keep_only(&opens)?;
    confinement::keep_to(files.iter().map(|path| sink::directory_of(path)))?;
    confine(Part::Files)
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
    let (mut kernel, types) = Kernel::load(loader, &setup)?;
    Ok(kernel.attach(plan, types))
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

/// Where events go, and the threads that take them there: to standard output and to the output file, in the
/// order in which they end, and to the exports.
fn outputs(
    args: &Trace,
    (context, access): (&sink::Context, &Access),
    view: Option<Shared>,
) -> Result<(Outputs, (Vec<Delivery>, Exports)), Failure> {
    let mut outputs = Outputs::new(context.clone());
    let format = format(args.output, super::is_colored(args.color), !args.no_header);
    let (stdout, sink) = Delivery::stdout(only_write)?;
    match view {
        Some(view) => outputs.add(Format::Unwritten, Box::new(view)),
        None => outputs.add(format, Box::new(sink)),
    }
    let mut local = vec![stdout];
    if let Some(path) = args.output_file.clone() {
        let rotation = args.rotate_size.map(|size| Rotation {
            size,
            keep: args.rotate_keep,
        });
        let file = sink::File::open(&path, rotation)?;
        let (delivery, sink) = Delivery::file(file, move || only_write_file(&path))?;
        outputs.add(Format::Json, Box::new(sink));
        local.push(delivery);
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
    Ok((outputs, (local, exports)))
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
pub(super) fn context() -> Result<sink::Context> {
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
    u32::try_from(asked).ok().filter(|_| right).ok_or_else(|| {
        Failure::usage(anyhow!(
            "--ring-buffer {asked}: the kernel wants a power of two from {}KiB, a page of its \
                 memory, to 1GiB, e.g. 64MiB",
            page >> 10
        ))
    })
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut source = File::open("/dev/urandom").context("no random numbers")?;
    source.read_exact(&mut bytes).context("no random numbers")?;
    Ok(bytes)
}
