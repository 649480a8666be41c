//! How many RSTs a second are told while those who send them want every CPU, and what becomes of the
//! rest.

use std::fs;
use std::io::{BufRead as _, BufReader, PipeReader, pipe};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::load::Workload;
use super::rival::Tracer;

/// Sizes of the ring that are tried.
const RINGS: [&str; 6] = ["256KiB", "1MiB", "4MiB", "16MiB", "64MiB", "128MiB"];
/// Connections that each workload resets.
const CONNECTIONS: u32 = 300_000;

/// What came of one storm.
pub(super) struct Storm {
    pub(super) ring: &'static str,
    /// RSTs the kernel counted in a second.
    pub(super) rate: f64,
    pub(super) counted: u64,
    /// RSTs in the output.
    pub(super) told: u64,
    /// RSTs the output says were lost.
    pub(super) lost: u64,
    /// From the signal to stop until it had ended.
    pub(super) stopped: Duration,
}

/// One storm for each size of the ring, by two workloads on these CPUs.
pub(super) fn measure(cpus: [usize; 2]) -> Result<Vec<Storm>> {
    let program = super::load::build()?;
    let rings = RINGS.into_iter();
    rings.map(|ring| storm(&program, ring, cpus)).collect()
}

fn storm(program: &Path, ring: &'static str, cpus: [usize; 2]) -> Result<Storm> {
    println!("a storm of RSTs, a ring of {ring}");
    let (from, to) = pipe()?;
    let reader = thread::spawn(move || read(from));
    let tracer = Tracer::start(&["--ring-buffer", ring], to.into())?;
    let mut workloads = cpus
        .map(|cpu| Workload::start(program, cpu))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    for workload in &mut workloads {
        // The answer says that it has entered its network namespace.
        workload.ask("getppid 1000")?;
    }
    let begun = Instant::now();
    thread::scope(|scope| {
        let ask = |workload: &mut Workload| workload.ask(&format!("resets {CONNECTIONS}"));
        let threads: Vec<_> = workloads
            .iter_mut()
            .map(|workload| scope.spawn(move || ask(workload)))
            .collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        anyhow::Ok(())
    })?;
    let took = begun.elapsed();
    let counted = workloads.iter().map(|it| resets(it.id()));
    let counted = counted.sum::<Result<u64>>()?;
    let stop = Instant::now();
    tracer.stop()?;
    let stopped = stop.elapsed();
    let read = reader.join().map_err(|_| anyhow!("the reader panicked"))?;
    let (told, lost) = read?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rate = counted as f64 / took.as_secs_f64();
    Ok(Storm {
        ring,
        rate,
        counted,
        told,
        lost,
        stopped,
    })
}

/// RSTs sent in the network namespace of a process.
fn resets(process: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/net/snmp"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, values) = lines.next().zip(lines.next()).context("no line for TCP")?;
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) = both
        .find(|(name, _)| *name == "OutRsts")
        .context("no OutRsts")?;
    Ok(value.parse()?)
}

/// RSTs among the records, and those said to be lost.
fn read(from: PipeReader) -> Result<(u64, u64)> {
    let (mut told, mut lost) = (0, 0);
    for line in BufReader::with_capacity(1 << 20, from).lines() {
        let line = line?;
        told += u64::from(line.contains(r#""event_name":"tcptrace.reset.sent""#));
        if line.contains(r#""tcptrace.lost.hook":"tcp_send_reset""#) {
            lost += count(&line).with_context(|| line.clone())?;
        }
    }
    Ok((told, lost))
}

fn count(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once(r#""tcptrace.lost.count":"#)?;
    rest.split([',', '}']).next()?.parse().ok()
}
