//! The page: the goals and whether they are met, then what was measured.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::capacity::Storm;
use super::footprint::Footprint;
use super::load::{ERRORS, LOADS, Load, NGINX};
use super::programs::Runs;
use super::rival::Rival;
use super::{Absent, Sample, TIMED, Timed, machine};
use crate::process;

const DEFAULTS: Rival = Rival::Tcptrace(&[]);
const FLOOR: Rival = Rival::Empty(&[]);

/// What was measured.
pub(super) struct Results<'a> {
    pub(super) pairs: u32,
    pub(super) samples: &'a [Sample],
    pub(super) absent: &'a [Absent],
    pub(super) timed: &'a [Timed],
    pub(super) footprint: &'a Footprint,
    pub(super) storms: &'a [Storm],
}

/// The whole page.
pub(super) fn write(results: &Results) -> Result<String> {
    let date = process::answer(Command::new("date").args(["-u", "+%Y-%m-%d"]))
        .context("date does not run")?;
    let mut page = format!(
        "# What tracing costs\n\nWritten by `cargo xtask overhead --pairs {}` on {}: {}.\n",
        results.pairs,
        date.trim_end(),
        machine()?,
    );
    page += "\n## Goals\n\n";
    page += GOALS;
    page += "\n| goal | limit | measured | empty programs | |\n|---|---:|---:|---:|---|\n";
    for Goal {
        about,
        limit,
        measured,
        floor,
        unit,
    } in goals(results)
    {
        let floor = floor.map_or(String::new(), |floor| format!("{floor:.1} {unit}"));
        let met = if measured <= limit {
            "met"
        } else {
            "**not met**"
        };
        let _ = writeln!(
            page,
            "| {about} | {limit:.1} {unit} | {measured:.1} {unit} | {floor} | {met} |"
        );
    }
    page += "\n";
    page += WHY;
    page += &over_the_floor(results);
    page += "\n## Side by side\n\n";
    page += METHOD;
    for Load { name, about, .. } in LOADS.into_iter().chain([NGINX]) {
        let _ = writeln!(page, "- **{name}**: {about}.");
    }
    page += &ratios(results.samples);
    for (rival, reason) in results.absent {
        let _ = writeln!(page, "\n{} is missing: {reason}.", rival.title());
    }
    page += "\n## What the kernel counts for each program\n\n";
    page += PROGRAMS;
    for timed in results.timed {
        page += &table(timed);
    }
    page += "\n## Capacity\n\n";
    page += CAPACITY;
    page += &capacity(results.storms);
    page += "\n## Memory and start\n\n";
    page += MEMORY;
    page += &held(results.footprint);
    Ok(page)
}

const GOALS: &str = "\
A loss is by how much the median ratio below is above 1. *Empty programs* return at once: what they
lose is the kernel's price for being asked at all, the floor. The bare loopback loads have a hook in
every call and are the worst there is.
";

const WHY: &str = "\
What a goal that is not met is spent on, by `perf record -e cpu-clock` and the verifier's counts on Linux
6.18; *empty programs* has what of it is the kernel's own price:

- An event handed over describes the socket, its owner, the task and its call, and writes 328 bytes into
  the ring. Of `sock_send_length` under a send that fails 55 % is its own code, 21 % room in the ring, 14 %
  asking the kernel about the task, 6 % finding what is remembered, 3 % the clock. Of `tcp_send_reset`
  53 % is its own code, which also looks for who closed, 13 % reading by a helper what is longer than a
  word, 13 % the task, 9 % the ring, 6 % the clock, 4 % finding what is remembered. A filter by port is
  asked first, which still reads the ends of the connection and finds the port in a table; what empty
  programs take is all there is for it.
- A short connection changes state ten times. Each time `inet_sock_set_state` looks up the socket, takes
  the time and writes what is remembered, some 320 ns: 48 % its own code, 18 % finding what is remembered,
  12 % the clock, 9 % entering and leaving tables, 7 % reading by a helper, 6 % asking about the task,
  which is done for two of the ten. A third of the time of its own code passes where it is entered and
  where the clock and the search come back. The goal leaves some 600 ns beyond empty programs; ten
  lookups and clocks alone are 950. And each change and each end is seen by two programs, the second of
  which works where the kernel skips the first: 12 times some 60 ns, which empty programs pay once.
- There bpftrace loses less, as `same.bt` does less: it remembers the number of a process or the time, at
  four of the ten changes, and nothing when a connection is accepted or a socket ends, where the programs
  here take some 400 ns beyond empty ones each: for how the owner is known, for who made the socket, and
  to tell a change the kernel let go by unseen.
- For an answer nginx receives, sends and frees a segment once each, and leaves three to four calls. Nearly
  all of what it loses is what the empty programs lose: being entered. Those without the exits of calls
  say how much of it these are. Where fentry is allowed `consume_skb` is not asked.
- For a ping-pong the programs take next to nothing beyond empty ones, as their time says. By how much the
  two losses differ is by how much two such ratios differ from one run to the next.
- The start is the verifier's for three fifths: 149,000 instructions, on all CPUs at once.

Below is what the programs take beyond the floor, in nanoseconds for one operation, the most first.

";

const METHOD: &str = "\
Each number comes from a pair: the load without a tracer, then at once with it. Every round measures
one pair for each row, in turn. The load runs on one CPU, over loopback (which hides what a network
card adds) in a network namespace of its own; the tracer, `tcptrace -o json … > /dev/null`, runs on
another, and wrk beside it. An operation is timed in 1000 batches, of which the median counts; of
nginx it is the time per request over a second. *bpftrace* runs `xtask/src/overhead/same.bt` and prints
to a file.

The ratio of a pair is *with* divided by *without*. The table has medians over the pairs, and of the
ratios the middle half and the extremes as well. *No tracer* compares the load with itself: what
lies within its extremes is noise.

";

const PROGRAMS: &str = "\
With `kernel.bpf_stats_enabled` the kernel times each run of a program, the reading of the clock
included: the empty programs show how much that is. A cell has the average of a run in nanoseconds,
and how often the program ran for one operation. With **resets** `tcp_send_reset` and
`tcp_receive_reset` hand over an event each time they run, and with **errors** `sock_send_length`
does; under `--port 1` nothing passes the filter. Programs run for the other processes of the machine
too; what ran for less than one operation in 200 is left out.
";

const CAPACITY: &str = "\
Two workloads, one on each of two CPUs, reset connections as fast as they can, each of them two events of
the defaults; the tracer has no CPU of its own, nor has who reads its JSON from a pipe. *Neither* are
RSTs that the kernel counted and the output has neither as a record nor as lost.

| ring | RSTs a second | counted | told | lost | neither | stopped after, ms |
|---|---:|---:|---:|---:|---:|---:|
";

const MEMORY: &str = "\
The kernel's maps are preallocated; the ring is one of them, and not counted again where it is mapped
into the process. Sockets remembered are set by `--max-sockets`, the ring by
`--ring-buffer`; the kernel half's other tables are of fixed size.
";

/// What is promised, and what is.
struct Goal {
    about: String,
    limit: f64,
    measured: f64,
    /// What is measured of empty programs.
    floor: Option<f64>,
    unit: &'static str,
}

fn goals(results: &Results) -> Vec<Goal> {
    let loss = |load: Load, rival| Some((ratio_of(results.samples, load, rival)? - 1.0) * 100.0);
    let goal = |about: String, limit, measured, floor, unit| {
        Some(Goal {
            about,
            limit: limit?,
            measured: measured?,
            floor,
            unit,
        })
    };
    let throughput = |rival| {
        let ratio = ratio_of(results.samples, NGINX, rival)?;
        Some((1.0 - 1.0 / ratio) * 100.0)
    };
    let mut goals = vec![goal(
        "nginx under wrk: throughput lost".to_owned(),
        Some(2.0),
        throughput(DEFAULTS),
        throughput(FLOOR),
        "%",
    )];
    let [ping_pong, churn, _, resets, ..] = LOADS;
    for load in [ping_pong, churn] {
        goals.push(goal(
            format!("{}: loss, 1.3 × the floor's + 1", load.name),
            loss(load, FLOOR).map(|loss| 1.3 * loss.max(0.0) + 1.0),
            loss(load, DEFAULTS),
            loss(load, FLOOR),
            "%",
        ));
    }
    for load in [ping_pong, churn, resets, NGINX] {
        goals.push(goal(
            format!("{}: loss, below bpftrace's", load.name),
            loss(load, Rival::Bpftrace),
            loss(load, DEFAULTS),
            loss(load, FLOOR),
            "%",
        ));
    }
    let time = |rival, load: Load| {
        let timed = results.timed.iter().find(|it| it.rival == rival)?;
        timed.all(load)
    };
    for load in [ping_pong, churn] {
        goals.push(goal(
            format!(
                "{}: programs' time per operation, 1.3 × the floor's + 200",
                load.name
            ),
            time(FLOOR, load).map(|time| 1.3 * time + 200.0),
            time(DEFAULTS, load),
            time(FLOOR, load),
            "ns",
        ));
    }
    let run = |rival, load: Load, program| {
        let timed = results.timed.iter().find(|it| it.rival == rival)?;
        timed.run(load, program)
    };
    for (load, program) in [
        (resets, "tcp_receive_reset"),
        (resets, "tcp_send_reset"),
        (ERRORS, "sock_send_length"),
    ] {
        goals.push(goal(
            format!("`{program}`: an event filtered out"),
            Some(60.0),
            run(TIMED[2], load, program),
            run(FLOOR, load, program),
            "ns",
        ));
        goals.push(goal(
            format!("`{program}`: an event handed over"),
            Some(600.0),
            run(DEFAULTS, load, program),
            run(FLOOR, load, program),
            "ns",
        ));
    }
    let starts = &results.footprint.starts;
    goals.push(goal(
        "from exec until it traces".to_owned(),
        Some(300.0),
        starts
            .get(starts.len() / 2)
            .map(|took| took.as_secs_f64() * 1e3),
        None,
        "ms",
    ));
    let most = results.footprint.held.iter().map(|it| it.resident).max();
    goals.push(goal(
        "resident memory, at most".to_owned(),
        Some(64.0),
        most.map(mebibytes),
        None,
        "MiB",
    ));
    goals.into_iter().flatten().collect()
}

/// By program, the nanoseconds of one operation that are not the floor's.
fn over_the_floor(results: &Results) -> String {
    let timed = |rival| results.timed.iter().find(|it| it.rival == rival);
    let (Some(ours), Some(floor)) = (timed(DEFAULTS), timed(FLOOR)) else {
        return String::new();
    };
    let mut text = String::new();
    for load in LOADS.into_iter().chain([ERRORS, NGINX]) {
        let floor = floor.by_program(load);
        let mut over: Vec<(&str, f64)> = ours
            .by_program(load)
            .into_iter()
            .map(|(name, time)| (name, time - floor.get(name).copied().unwrap_or_default()))
            .filter(|&(_, time)| time >= 10.0)
            .collect();
        over.sort_by(|one, other| other.1.total_cmp(&one.1));
        if !over.is_empty() {
            let over = over.iter().map(|(name, time)| format!("{name} {time:.0}"));
            let over: Vec<String> = over.collect();
            let _ = writeln!(text, "- **{}**: {}.", load.name, over.join(", "));
        }
    }
    text
}

fn ratio_of(samples: &[Sample], load: Load, rival: Rival) -> Option<f64> {
    let sample = samples
        .iter()
        .find(|it| it.load.name == load.name && it.rival == rival)?;
    let [_, _, median, _, _] = quarters(sample.pairs.iter().map(|it| it.with / it.without));
    Some(median)
}

fn ratios(samples: &[Sample]) -> String {
    let mut text = String::new();
    let mut load = "";
    for Sample {
        load: Load { name, .. },
        rival,
        pairs,
    } in samples
    {
        if load != *name {
            load = name;
            let _ = write!(
                text,
                "\n### {name}\n\n\
                 | tracer | without, ns | with, ns | ratio | middle half | extremes |\n\
                 |---|---:|---:|---:|---:|---:|\n"
            );
        }
        let [_, _, without, _, _] = quarters(pairs.iter().map(|it| it.without));
        let [_, _, with, _, _] = quarters(pairs.iter().map(|it| it.with));
        let [min, low, median, high, max] = quarters(pairs.iter().map(|it| it.with / it.without));
        let _ = writeln!(
            text,
            "| {} | {without:.0} | {with:.0} | {median:.3} | {low:.3} – {high:.3} \
             | {min:.3} – {max:.3} |",
            rival.title()
        );
    }
    text
}

impl Timed {
    /// Nanoseconds of all programs for one operation.
    fn all(&self, load: Load) -> Option<f64> {
        let (_, measured, programs) = self.runs.iter().find(|it| it.0.name == load.name)?;
        let sum: u64 = programs.values().map(|runs| runs.nanoseconds).sum();
        Some(float(sum) / measured.operations)
    }

    /// Nanoseconds of each program for one operation.
    fn by_program(&self, load: Load) -> BTreeMap<&str, f64> {
        let runs = self.runs.iter().find(|it| it.0.name == load.name);
        let Some((_, measured, programs)) = runs else {
            return BTreeMap::new();
        };
        let times = programs.iter().map(|(name, runs)| {
            let time = float(runs.nanoseconds) / measured.operations;
            (name.as_str(), time)
        });
        times.collect()
    }

    /// Nanoseconds of one run of a program.
    fn run(&self, load: Load, program: &str) -> Option<f64> {
        let (.., programs) = self.runs.iter().find(|it| it.0.name == load.name)?;
        let runs = programs.get(program).filter(|runs| runs.count > 0)?;
        Some(float(runs.nanoseconds) / float(runs.count))
    }
}

fn table(timed: &Timed) -> String {
    let mut table = format!("\n### {}\n\n| program |", timed.rival.title());
    for (load, ..) in &timed.runs {
        let _ = write!(table, " {} |", load.name);
    }
    let _ = writeln!(table, "\n|---|{}", "---:|".repeat(timed.runs.len()));
    let names: BTreeSet<&String> = timed.runs.iter().flat_map(|it| it.2.keys()).collect();
    for name in names {
        let cells = timed.runs.iter().map(|(_, measured, programs)| {
            let runs = programs.get(name).copied().unwrap_or_default();
            runs.cell(measured.operations)
        });
        let cells: Vec<String> = cells.collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            let _ = writeln!(table, "| {name} | {} |", cells.join(" | "));
        }
    }
    let sums = timed.runs.iter().filter_map(|(load, ..)| timed.all(*load));
    let sums: Vec<String> = sums.map(|sum| format!("{sum:.0}")).collect();
    let _ = writeln!(table, "| all, ns per operation | {} |", sums.join(" | "));
    if matches!(timed.rival, Rival::Tcptrace(_)) {
        let records = timed.records.iter();
        let records: Vec<String> = records
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        let _ = writeln!(
            table,
            "\nRecords handed over and printed: {}.",
            records.join(", ")
        );
    }
    table
}

impl Runs {
    /// `42 × 2.00`, or nothing for what other processes on the machine caused.
    fn cell(self, operations: f64) -> String {
        let each = float(self.count) / operations;
        if each < 0.005 {
            return String::new();
        }
        let run = float(self.nanoseconds) / float(self.count);
        format!("{run:.0} × {each:.2}")
    }
}

fn capacity(storms: &[Storm]) -> String {
    let mut text = String::new();
    for storm in storms {
        let _ = writeln!(
            text,
            "| {} | {:.0} | {} | {} | {} | {} | {} |",
            storm.ring,
            storm.rate,
            storm.counted,
            storm.told,
            storm.lost,
            i128::from(storm.counted) - i128::from(storm.told) - i128::from(storm.lost),
            storm.stopped.as_millis(),
        );
    }
    text
}

fn held(footprint: &Footprint) -> String {
    let mut text = String::new();
    if let [first, .., last] = footprint.starts[..] {
        let median = footprint.starts[footprint.starts.len() / 2];
        let _ = writeln!(
            text,
            "\nFrom exec until it traces: {:.0} ms, the median of {} starts ({:.0} – {:.0}).",
            median.as_secs_f64() * 1e3,
            footprint.starts.len(),
            first.as_secs_f64() * 1e3,
            last.as_secs_f64() * 1e3
        );
    }
    text += "\n| | resident, MiB | kernel maps, MiB |\n|---|---:|---:|\n";
    for held in &footprint.held {
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.1} |",
            held.when.trim_end(),
            mebibytes(held.resident),
            mebibytes(held.maps)
        );
    }
    let idle = footprint.idle.iter();
    let idle: Vec<String> = idle
        .map(|(title, taken)| format!("{} µs with {title}", taken.as_micros()))
        .collect();
    let _ = writeln!(
        text,
        "\nWhen nothing happens it takes of a processor, in a second: {}.",
        idle.join(", ")
    );
    text
}

fn mebibytes(bytes: u64) -> f64 {
    float(bytes) / f64::from(1 << 20)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts, times and sizes far below 2^52"
)]
fn float(number: u64) -> f64 {
    number as f64
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
}
