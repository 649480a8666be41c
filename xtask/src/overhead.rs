//! `cargo xtask overhead`: what tracing costs on this kernel, measured side by side with not
//! tracing, with empty programs and with other tools, and recorded in docs/performance.md.

mod capacity;
mod floor;
mod footprint;
mod load;
mod page;
mod programs;
mod rival;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;

use crate::{build, pipelines, process};
use load::{Bench, ERRORS, LOADS, Load, Measured, NGINX};
use programs::{Programs, Switch};
use rival::{RIVALS, Rival};

/// The rivals whose programs the kernel times: the default, its floor, a filter nothing passes, all that
/// costs each call on request, and what costs each failure.
const TIMED: [Rival; 5] = [
    Rival::Tcptrace(&[]),
    Rival::Empty(&[]),
    Rival::Tcptrace(&["--port", "1"]),
    Rival::Tcptrace(&["--event", "+fd.invalid", "--last-user"]),
    Rival::Tcptrace(&["--stack"]),
];

/// Measures in `pairs` rounds, and writes the page.
pub(crate) fn run(pairs: u32) -> Result<()> {
    ensure!(
        process::is_root(),
        "measuring needs root, to trace and to make a network namespace: run it in a root shell"
    );
    build::run()?;
    see_tracepoints()?;
    let (tracing, working) = two_cpus()?;
    // The tracers inherit this; the workloads move themselves away.
    pin(tracing)?;
    let mut bench = Bench::start(working)?;

    let (samples, absent) = side_by_side(&mut bench, pairs)?;
    let timed = TIMED
        .iter()
        .map(|&rival| timed(&mut bench, rival))
        .collect::<Result<Vec<_>>>()?;
    drop(bench);
    share([tracing, working])?;
    let storms = capacity::measure([tracing, working])?;
    let footprint = footprint::measure()?;

    let page = page::write(&page::Results {
        pairs,
        samples: &samples,
        absent: &absent,
        timed: &timed,
        footprint: &footprint,
        storms: &storms,
    })?;
    print!("\n{page}");
    let path = process::workspace().join("docs/performance.md");
    fs::create_dir_all(process::workspace().join("docs"))?;
    let before = fs::read_to_string(&path).unwrap_or_default();
    let page = page + pipelines::kept(&before);
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// Nanoseconds of one operation, measured in turn.
struct Pair {
    without: f64,
    with: f64,
}

/// What one rival did to one load.
struct Sample {
    load: Load,
    rival: Rival,
    pairs: Vec<Pair>,
}

/// A tool that does not run on this kernel, and why.
type Absent = (Rival, String);

/// Every round takes each rival in turn, so that a slow minute of the machine slows all of them.
fn side_by_side(bench: &mut Bench, rounds: u32) -> Result<(Vec<Sample>, Vec<Absent>)> {
    let mut samples: Vec<Sample> = Vec::new();
    for load in LOADS.into_iter().chain([NGINX]) {
        let rivals = RIVALS.into_iter();
        let rivals = rivals.filter(|rival| load.name != NGINX.name || rival.serves());
        samples.extend(rivals.map(|rival| Sample {
            load,
            rival,
            pairs: Vec::new(),
        }));
    }
    let mut absent: Vec<Absent> = Vec::new();
    for round in 1..=rounds {
        println!("round {round} of {rounds}");
        for rival in RIVALS {
            if absent.iter().any(|(it, _)| *it == rival) {
                continue;
            }
            check_alone()?;
            let mut samples: Vec<&mut Sample> =
                samples.iter_mut().filter(|it| it.rival == rival).collect();
            let without = measure(bench, &samples)?;
            let running = match rival.start(Stdio::null()) {
                Ok(running) => running,
                // A tool of others may need what this kernel lacks.
                Err(error) if matches!(rival, Rival::Bpftrace | Rival::Tool(_)) => {
                    println!("{}: {error:#}", rival.title());
                    absent.push((rival, format!("{error:#}")));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let with = measure(bench, &samples)?;
            running.stop()?;
            for ((sample, without), with) in samples.iter_mut().zip(without).zip(with) {
                sample.pairs.push(Pair { without, with });
            }
        }
    }
    samples.retain(|it| !it.pairs.is_empty());
    Ok((samples, absent))
}

fn measure(bench: &mut Bench, samples: &[&mut Sample]) -> Result<Vec<f64>> {
    let loads = samples.iter().map(|it| it.load);
    loads
        .map(|load| Ok(bench.measure(load)?.nanoseconds))
        .collect()
}

/// What the programs of one rival did for each load.
struct Timed {
    rival: Rival,
    runs: Vec<(Load, Measured, Programs)>,
    /// Records of events that were handed over, by name.
    records: Vec<(&'static str, usize)>,
}

/// The events the loads provoke.
const PROVOKED: [&str; 3] = ["reset.sent", "reset.received", "socket.error"];

/// Lets the kernel time a rival's programs.
fn timed(bench: &mut Bench, rival: Rival) -> Result<Timed> {
    println!("timing the programs of {}", rival.title());
    let path = process::workspace().join("target/overhead/records.jsonl");
    let running = rival.start(File::create(&path)?.into())?;
    let holder = running.holder();
    let mut runs = Vec::new();
    let switch = Switch::on()?;
    for load in LOADS.into_iter().chain([ERRORS, NGINX]) {
        let before = programs::of(holder)?;
        let measured = bench.measure(load)?;
        let programs = programs::since(&before, programs::of(holder)?);
        runs.push((load, measured, programs));
    }
    drop(switch);
    running.stop()?;
    let records = fs::read_to_string(&path)?;
    let count = |event| {
        let name = format!(r#""event_name":"tcptrace.{event}""#);
        records.lines().filter(|line| line.contains(&name)).count()
    };
    Ok(Timed {
        rival,
        runs,
        records: PROVOKED.map(|event| (event, count(event))).into(),
    })
}

/// Empty programs and the tools of others look for tracepoints in one place or the other: they are in
/// both, for this process and its children.
fn see_tracepoints() -> Result<()> {
    let places = [
        ("tracefs", "/sys/kernel/tracing", "events"),
        ("debugfs", "/sys/kernel/debug", "tracing/events"),
    ];
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace of its own")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("cannot keep mounts")?;
    for (kind, place, tracepoints) in places {
        if !Path::new(place).join(tracepoints).exists() {
            let plain = MsFlags::empty();
            mount(Some(kind), place, Some(kind), plain, None::<&str>).with_context(|| {
                format!("cannot mount {kind} at {place} for the tools compared")
            })?;
        }
    }
    Ok(())
}

/// Another tracer would be in both halves of a pair, and hide its like.
fn check_alone() -> Result<()> {
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let name = fs::read_to_string(process.path().join("comm"));
        // What is no process, or is gone by now, has no name.
        if name.is_ok_and(|name| name == "tcptrace\n") {
            let pid = process.file_name();
            bail!(
                "another tcptrace (process {}) is running and would be measured too: end it and \
                 measure again",
                pid.display()
            );
        }
    }
    Ok(())
}

/// One CPU for the tracer and one for the workload: the last, which interrupts seek least.
fn two_cpus() -> Result<(usize, usize)> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let mut cpus = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false));
    let (first, last) = (cpus.next(), cpus.next_back());
    first
        .zip(last)
        .context("measuring needs two CPUs: one for the tracer and one for the workload")
}

fn pin(cpu: usize) -> Result<()> {
    share([cpu; 1])
}

fn share<const N: usize>(cpus: [usize; N]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).context("cannot choose a CPU")
}

/// The tool's version, the kernel and the CPUs, as the page names them.
pub(crate) fn machine() -> Result<String> {
    let version =
        process::answer(Command::new(build::binary()).arg("--version")).context("no version")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unnamed", |(_, name)| name);
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor"));
    Ok(format!(
        "{}, kernel {}, {} CPUs ({cpu})",
        version.trim_end(),
        kernel.trim_end(),
        cpus.count()
    ))
}
