//! `cargo xtask overhead`: what tracing costs on this kernel, measured side by side with not
//! tracing, and recorded in docs/performance.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{build, process};

/// What runs under the tracer, one operation of each described in the page.
const LOADS: [Load; 4] = [
    Load("ping-pong", 40_000),
    Load("churn", 10_000),
    Load("getppid", 2_000_000),
    Load("recv", 1_000_000),
];

/// What provokes events: as many connections, each reset by one end and so received by the other.
const RESETS: Load = Load("resets", 2_000);

/// The tracers compared, by their arguments; the first is none at all, and shows the noise.
const TRACERS: [Option<&[&str]>; 6] = [
    None,
    Some(&[]),
    Some(&["--event", "+fd.invalid"]),
    Some(&["--last-user"]),
    Some(&["--event", "reset"]),
    Some(&["--without", "tracepoint"]),
];

/// The tracers whose programs the kernel times: the default, and all that costs on request.
const TIMED: [&[&str]; 2] = [&[], &["--event", "+fd.invalid", "--last-user"]];

/// The kernel's switch for timing eBPF programs.
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Measures in `pairs` rounds, and writes the page.
pub(crate) fn run(pairs: u32) -> Result<()> {
    ensure!(
        process::is_root(),
        "measuring needs root, to trace and to make a network namespace: run it in a root shell"
    );
    build::run()?;
    let workload = build_workload()?;
    let (tracing, working) = two_cpus()?;
    // The tracer inherits this; the workload moves itself away.
    pin(tracing)?;
    let mut workload = Workload::start(&workload, working)?;

    let samples = side_by_side(&mut workload, pairs)?;
    let timed = TIMED
        .iter()
        .map(|arguments| by_program(&mut workload, arguments))
        .collect::<Result<Vec<_>>>()?;

    let mut page = introduction(pairs)?;
    page += &ratios(&samples);
    page += "\n## What the kernel counts for each program\n\n";
    page += PROGRAMS;
    for timed in &timed {
        page += &timed.table();
    }
    print!("\n{page}");
    let path = process::workspace().join("docs/performance.md");
    fs::create_dir_all(process::workspace().join("docs"))?;
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// Something to do, and how often one measurement does it.
#[derive(Clone, Copy)]
struct Load(&'static str, u32);

/// Nanoseconds of one operation, measured in turn.
struct Pair {
    without: f64,
    with: f64,
}

/// Samples by load and tracer, in the order of [`LOADS`] and [`TRACERS`]. Every round takes each
/// tracer in turn, so that a slow minute of the machine slows all of them.
fn side_by_side(workload: &mut Workload, pairs: u32) -> Result<Vec<Vec<Vec<Pair>>>> {
    let mut samples: Vec<Vec<Vec<Pair>>> = LOADS
        .iter()
        .map(|_| TRACERS.iter().map(|_| Vec::new()).collect())
        .collect();
    for round in 1..=pairs {
        println!("round {round} of {pairs}");
        for (nth, arguments) in TRACERS.iter().enumerate() {
            check_alone()?;
            let without = workload.measure_all()?;
            let tracer = arguments
                .map(|arguments| Tracer::start(arguments, Stdio::null()))
                .transpose()?;
            let with = workload.measure_all()?;
            if let Some(tracer) = tracer {
                tracer.stop()?;
            }
            for ((samples, without), with) in samples.iter_mut().zip(without).zip(with) {
                samples[nth].push(Pair { without, with });
            }
        }
    }
    Ok(samples)
}

/// What the programs of one tracer did for each load.
struct Timed {
    arguments: &'static [&'static str],
    /// By load, in the order of [`LOADS`], [`RESETS`] last.
    runs: Vec<(Load, Programs)>,
    sent: usize,
    received: usize,
    /// Records of any other event.
    others: usize,
}

/// By program.
type Programs = BTreeMap<String, Runs>;

/// How often a program ran, and how long in all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Runs {
    count: u64,
    nanoseconds: u64,
}

/// Lets the kernel time the tracer's programs.
fn by_program(workload: &mut Workload, arguments: &'static [&'static str]) -> Result<Timed> {
    println!("timing the programs of {}", shown(arguments));
    let records = process::workspace().join("target/overhead.jsonl");
    let tracer = Tracer::start(arguments, File::create(&records)?.into())?;
    let mut runs = Vec::new();
    let switch = Switch::on()?;
    for load in LOADS.into_iter().chain([RESETS]) {
        let before = tracer.programs()?;
        workload.measure(load)?;
        let mut programs = tracer.programs()?;
        for (name, runs) in &mut programs {
            let before = before.get(name).copied().unwrap_or_default();
            runs.count -= before.count;
            runs.nanoseconds -= before.nanoseconds;
        }
        runs.push((load, programs));
    }
    drop(switch);
    tracer.stop()?;
    let records = fs::read_to_string(&records)?;
    let of = |event: &str| {
        let name = format!(r#""event_name":"tcptrace.{event}""#);
        records.lines().filter(|line| line.contains(&name)).count()
    };
    let (sent, received) = (of("reset.sent"), of("reset.received"));
    Ok(Timed {
        arguments,
        runs,
        sent,
        received,
        others: records.lines().count() - sent - received - of("coverage") - of("summary"),
    })
}

/// The kernel times eBPF programs until this is dropped; a Ctrl-C meanwhile leaves it timing.
struct Switch(String);

impl Switch {
    fn on() -> Result<Self> {
        let before = fs::read_to_string(STATISTICS)?;
        fs::write(STATISTICS, "1").with_context(|| format!("cannot write {STATISTICS}"))?;
        Ok(Self(before))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Err(error) = fs::write(STATISTICS, &self.0) {
            eprintln!(
                "xtask: {STATISTICS} is still 1, it was {}: {error}",
                self.0.trim_end()
            );
        }
    }
}

/// The workload, waiting to be asked.
struct Workload {
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Workload {
    fn start(program: &Path, cpu: usize) -> Result<Self> {
        let mut child = Command::new(program)
            .arg(cpu.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        // It ends when nobody is left to ask.
        Ok(Self {
            questions: child.stdin.take().context("stdin is a pipe")?,
            answers: BufReader::new(child.stdout.take().context("stdout is a pipe")?),
        })
    }

    fn measure_all(&mut self) -> Result<Vec<f64>> {
        LOADS.iter().map(|&load| self.measure(load)).collect()
    }

    /// Nanoseconds of one operation.
    fn measure(&mut self, Load(name, operations): Load) -> Result<f64> {
        writeln!(self.questions, "{name} {operations}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        answer
            .trim_end()
            .parse()
            .with_context(|| format!("the workload {name} failed; its reason stands above"))
    }
}

/// A running tracer.
struct Tracer {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Tracer {
    /// Returns when it has attached and looked around.
    fn start(arguments: &[&str], output: Stdio) -> Result<Self> {
        let mut child = Command::new(build::binary())
            .args(["-o", "json"])
            .args(arguments)
            .stdout(output)
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start tcptrace")?;
        let stderr = BufReader::new(child.stderr.take().context("stderr is a pipe")?);
        let mut tracer = Self { child, stderr };
        let mut said = String::new();
        while !said.ends_with("tcptrace: tracing\n") {
            if tracer.stderr.read_line(&mut said)? == 0 {
                bail!("tcptrace {} ended: {said}", arguments.join(" "));
            }
        }
        while tracer.is_looking_around()? {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(tracer)
    }

    /// At the start a thread reads what /proc says of sockets; that is over soon, and not the
    /// cost looked for.
    fn is_looking_around(&self) -> Result<bool> {
        let mut names = fs::read_dir(format!("/proc/{}/task", self.child.id()))?
            .map(|task| fs::read_to_string(task?.path().join("comm")))
            // A thread that ends meanwhile.
            .filter_map(Result::ok);
        Ok(names.any(|name| name.trim_end() == "snapshot"))
    }

    /// Its attached programs.
    fn programs(&self) -> Result<Programs> {
        let mut infos = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.child.id()))? {
            // A descriptor that is closed meanwhile.
            infos.extend(fs::read_to_string(entry?.path()));
        }
        Ok(programs(&infos))
    }

    fn stop(mut self) -> Result<()> {
        self.interrupt()?;
        let mut said = String::new();
        self.stderr.read_to_string(&mut said)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "tcptrace: {status}: {said}");
        Ok(())
    }

    fn interrupt(&self) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGINT).context("cannot stop tcptrace")
    }
}

impl Drop for Tracer {
    /// A measurement that failed leaves no tracer behind.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // Gone just now: nothing is left to stop.
            let _ = self.interrupt();
            let _ = self.child.wait();
        }
    }
}

/// Joins what `/proc/PID/fdinfo` says of programs (their runs) and of links (where they are
/// attached, which is what they are called).
/// <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/syscall.c> (`bpf_prog_show_fdinfo`,
/// `bpf_link_show_fdinfo`)
fn programs(infos: &[String]) -> Programs {
    let field = |info: &str, name| {
        let mut lines = info.lines().filter_map(|line| line.split_once(":\t"));
        lines
            .find(|&(key, _)| key == name)
            .map(|(_, value)| value.to_owned())
    };
    let number = |info: &str, name| field(info, name)?.parse::<u64>().ok();
    let names: BTreeMap<u64, String> = infos
        .iter()
        .filter_map(|info| Some((number(info, "prog_id")?, field(info, "tp_name")?)))
        .collect();
    let runs = infos.iter().filter_map(|info| {
        let runs = Runs {
            count: number(info, "run_cnt")?,
            nanoseconds: number(info, "run_time_ns")?,
        };
        Some((names.get(&number(info, "prog_id")?)?.clone(), runs))
    });
    runs.collect()
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

fn build_workload() -> Result<PathBuf> {
    let target = process::workspace().join("target");
    process::run(
        process::cargo("build")
            .args(["--release", "--package", "tcptrace-tests"])
            .args(["--bin", "workload", "--target-dir"])
            .arg(&target)
            .env_remove("AYA_BUILD_SKIP"),
    )?;
    Ok(target.join("release/workload"))
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
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("cannot choose a CPU")
}

const METHOD: &str = "\
Each number comes from a pair: the workload without a tracer, then at once with it. Every round
measures one pair for each row of a workload, in turn. The workload runs on one CPU, over loopback
(which hides what a network card adds) in a network namespace of its own; the tracer,
`tcptrace -o json … > /dev/null`, runs on another. None of these workloads has an event to hand
over. An operation is timed in 1000 batches, of which the median counts.

The ratio of a pair is *with* divided by *without*. The table has medians over the pairs, and of the
ratios the middle half and the extremes as well. *No tracer* compares the workload with itself: what
lies within its extremes is noise.

- **ping-pong**: one byte each way on one connection, between two threads.
- **churn**: connect, accept, one byte each way, end of file, close.
- **getppid**: the shortest system call: what every call of the host pays.
- **recv**: a non-blocking receive on an idle socket, which fails with EAGAIN.

";

const PROGRAMS: &str = "\
With `kernel.bpf_stats_enabled` the kernel times each run of a program, the reading of the clock
included. A cell has the average of a run in nanoseconds, and how often the program ran for one
operation. **resets** is a connection that its client resets: connect, accept, close with SO_LINGER
0. There `tcp_send_reset` and `tcp_receive_reset` hand over an event each time they run. Every other
cell is of programs that look, and keep what they know of sockets and their owners; whether any of
them handed over an event is counted below each table. Programs run for the other processes of the
machine too; what ran for less than one operation in 200 is left out.
";

/// What was measured, on what and how.
fn introduction(pairs: u32) -> Result<String> {
    let date = process::answer(Command::new("date").args(["-u", "+%Y-%m-%d"]))
        .context("date does not run")?;
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
        "# What tracing costs\n\n\
         Written by `cargo xtask overhead --pairs {pairs}` on {}: {}, kernel {}, {} CPUs \
         ({cpu}).\n\n## Side by side\n\n{METHOD}",
        date.trim_end(),
        version.trim_end(),
        kernel.trim_end(),
        cpus.count()
    ))
}

fn ratios(samples: &[Vec<Vec<Pair>>]) -> String {
    let mut table = String::from(
        "| workload | tracer | without, ns | with, ns | ratio | middle half | extremes |\n\
         |---|---|---:|---:|---:|---:|---:|\n",
    );
    for (Load(name, _), samples) in LOADS.iter().zip(samples) {
        for (arguments, pairs) in TRACERS.iter().zip(samples) {
            let [_, _, without, _, _] = quarters(pairs.iter().map(|it| it.without));
            let [_, _, with, _, _] = quarters(pairs.iter().map(|it| it.with));
            let [min, low, median, high, max] =
                quarters(pairs.iter().map(|it| it.with / it.without));
            let tracer = arguments.map_or_else(|| "no tracer".to_owned(), shown);
            let _ = writeln!(
                table,
                "| {name} | {tracer} | {without:.0} | {with:.0} | {median:.3} \
                 | {low:.3} – {high:.3} | {min:.3} – {max:.3} |"
            );
        }
    }
    table
}

impl Timed {
    fn table(&self) -> String {
        let mut table = format!("\n### {}\n\n| program |", shown(self.arguments));
        for (Load(name, _), _) in &self.runs {
            let _ = write!(table, " {name} |");
        }
        let _ = writeln!(table, "\n|---|{}", "---:|".repeat(self.runs.len()));
        let names: BTreeSet<&String> = self.runs.iter().flat_map(|(_, it)| it.keys()).collect();
        for name in names {
            let cells = self.runs.iter().map(|(Load(_, operations), programs)| {
                let runs = programs.get(name).copied().unwrap_or_default();
                runs.cell(*operations)
            });
            let cells: Vec<String> = cells.collect();
            if cells.iter().any(|cell| !cell.is_empty()) {
                let _ = writeln!(table, "| {name} | {} |", cells.join(" | "));
            }
        }
        let sums = self.runs.iter().map(|(Load(_, operations), programs)| {
            let sum: u64 = programs.values().map(|runs| runs.nanoseconds).sum();
            format!("{:.0}", ratio(sum, u64::from(*operations)))
        });
        let sums: Vec<String> = sums.collect();
        let _ = writeln!(table, "| all, ns per operation | {} |", sums.join(" | "));
        let _ = writeln!(
            table,
            "\nThe {} resets became {} records of a reset sent and {} of one received; there were {} \
             records of other events.",
            RESETS.1, self.sent, self.received, self.others
        );
        table
    }
}

impl Runs {
    /// `42 × 2.00`, or nothing for what other processes on the machine caused.
    fn cell(self, operations: u32) -> String {
        let each = ratio(self.count, u64::from(operations));
        if each < 0.005 {
            return String::new();
        }
        let run = ratio(self.nanoseconds, self.count);
        format!("{run:.0} × {each:.2}")
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts and times far below 2^52"
)]
fn ratio(of: u64, to: u64) -> f64 {
    of as f64 / to as f64
}

fn shown(arguments: &[&str]) -> String {
    if arguments.is_empty() {
        return "defaults".to_owned();
    }
    format!("`{}`", arguments.join(" "))
}

/// The least, the first quartile, the median, the third quartile and the greatest, each one of
/// the values.
fn quarters(values: impl Iterator<Item = f64>) -> [f64; 5] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    [0, last / 4, last / 2, last - last / 4, last].map(|rank| values[rank])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_divide_the_sorted_values() {
        let values = [7.0, 3.0, 9.0, 2.0, 1.0, 5.0, 8.0];
        let quarters = quarters(values.into_iter());
        assert_eq!(format!("{quarters:?}"), "[1.0, 2.0, 5.0, 8.0, 9.0]");
    }

    #[test]
    fn a_program_is_called_after_where_its_link_attaches_it() {
        let infos = [
            "pos:\t0\nprog_id:\t7\nrun_time_ns:\t300\nrun_cnt:\t3\n",
            "pos:\t0\nlink_type:\tperf\nprog_id:\t7\ntp_name:\tsys_exit_bind\n",
            // Not attached.
            "pos:\t0\nprog_id:\t8\nrun_time_ns:\t0\nrun_cnt:\t0\n",
            "pos:\t0\nflags:\t02\n",
        ];
        let runs = Runs {
            count: 3,
            nanoseconds: 300,
        };
        let found = programs(&infos.map(str::to_owned));
        assert_eq!(found, [("sys_exit_bind".to_owned(), runs)].into());
    }
}
