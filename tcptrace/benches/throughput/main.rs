//! What the agent takes for an event, by stage and by storm.
//!
//! - `cargo bench --bench throughput` says how long, on this machine.
//! - `… -- instructions` says how many instructions, which is the same on a busy machine, and fails
//!   where it is more than `instructions.txt` allows. Needs valgrind. `… -- instructions accept`
//!   writes that file anew.
//! - `… -- memory` feeds 50 million events and fails when the memory grows.

mod stages;
mod storms;

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use nix::time::{ClockId, clock_gettime};
use stages::{Agent, Stage};
use storms::Storm;

/// Storms of one measurement, of which the median counts.
const ROUNDS: usize = 15;
/// Storms whose instructions are counted, once with few and once with many. A single storm is not
/// enough: what is asked of `/proc` in each second, and so how often, is left to the clock.
const COUNTED: [usize; 2] = [2, 6];
/// Instructions in percent of those in the file: hash tables are seeded anew in each run.
const TOLERANCE: u64 = 5;
const INSTRUCTIONS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/benches/throughput/instructions.txt"
);
/// Events of `memory`, and after how many of them it must not grow any more.
const EVENTS: usize = 50_000_000;
const WARM: usize = 5_000_000;
/// Growth that is none, KiB. The table of connections may double once, by 1,680: what was forgotten takes
/// its room until it is written anew, in place only while no more than half of it is in use.
const FLAT: u64 = 2048;

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["--bench"] => times(),
        ["instructions", "--bench"] => instructions(false),
        ["instructions", "accept", "--bench"] => instructions(true),
        ["memory", "--bench"] => memory(),
        ["run", stage, storm, rounds] => run(stage, storm, rounds.parse().expect("a number")),
        _ => panic!("{args:?}: nothing, `instructions`, `instructions accept` or `memory`"),
    }
}

/// What `instructions` has counted: a stage and a storm, so many times. Whatever the clock lets wait for
/// more events is judged at the end, or the count would say how far that was.
fn run(stage: &str, storm: &str, rounds: usize) {
    let stage = Stage::ALL.into_iter().find(|it| it.name() == stage);
    let mut storms = Storm::all();
    let storm = storms.iter_mut().find(|it| it.name == storm);
    let (mut agent, storm) = (stage.expect("a stage").agent(), storm.expect("a storm"));
    for _ in 0..rounds {
        storm.again();
        agent.take(&storm.records);
    }
    if let Agent::Session(session) = &mut agent {
        session.finish().expect("nothing can fail");
    }
}

fn times() {
    println!("| stage | storm | ns for an event | events in a second |\n|---|---|---:|---:|");
    for stage in Stage::ALL {
        for mut storm in Storm::all() {
            let ns = time(stage, &mut storm);
            let (stage, storm) = (stage.name(), storm.name);
            println!("| {stage} | {storm} | {ns} | {} |", 1_000_000_000 / ns);
        }
    }
}

/// Nanoseconds of a processor for an event, after a storm to warm up. The processor's and not the
/// clock's: another program that runs meanwhile costs less then.
fn time(stage: Stage, storm: &mut Storm) -> u128 {
    let clock = || {
        let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock");
        std::time::Duration::from(time).as_nanos()
    };
    let mut agent = stage.agent();
    let mut rounds: Vec<_> = (0..=ROUNDS)
        .map(|_| {
            storm.again();
            let begun = clock();
            agent.take(&storm.records);
            (clock() - begun) / storm.records.len() as u128
        })
        .skip(1)
        .collect();
    rounds.sort_unstable();
    rounds[ROUNDS / 2]
}

fn instructions(accept: bool) {
    let known = fs::read_to_string(INSTRUCTIONS).unwrap_or_default();
    let mut now = String::new();
    let mut exceeded = false;
    println!("| stage | storm | instructions for an event | limit |\n|---|---|---:|---:|");
    for stage in Stage::ALL {
        for storm in Storm::all() {
            let name = format!("{}, {}", stage.name(), storm.name);
            // What the program does before and after the storms is not counted.
            let [few, many] = COUNTED.map(|rounds| count(stage, &storm, rounds));
            let storms = COUNTED[1] - COUNTED[0];
            let count = (many - few) / (storms * storm.records.len()) as u64;
            writeln!(now, "{name}: {count}").expect("memory takes it");
            let mut lines = known.lines().filter_map(|line| line.split_once(": "));
            let before = lines.find_map(|(known, count)| (known == name).then_some(count));
            let before: u64 = if accept {
                count
            } else {
                before.and_then(|it| it.parse().ok()).unwrap_or(0)
            };
            let limit = before + before * TOLERANCE / 100;
            exceeded |= count > limit;
            println!("| {} | {} | {count} | {limit} |", stage.name(), storm.name);
        }
    }
    if accept {
        fs::write(INSTRUCTIONS, now).expect("the source tree can be written");
    } else if exceeded {
        eprintln!("more instructions than {INSTRUCTIONS} allows: find out why, or accept them");
        std::process::exit(1);
    }
}

/// Instructions of this program, run under callgrind.
fn count(stage: Stage, storm: &Storm, rounds: usize) -> u64 {
    let this = std::env::current_exe().expect("its own path");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(this)
        .args(["run", stage.name(), storm.name, &rounds.to_string()])
        .output()
        .expect("valgrind is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    let count = said
        .lines()
        .find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    count.unwrap_or_else(|| panic!("valgrind counted nothing: {said}"))
}

fn memory() {
    let mut agent = Stage::Analysis.agent();
    let mut storms = Storm::all();
    let (mut fed, mut warm, mut next) = (0, 0, WARM);
    println!("| events | resident, KiB |\n|---:|---:|");
    while fed < EVENTS {
        for storm in &mut storms {
            storm.again();
            agent.take(&storm.records);
            fed += storm.records.len();
        }
        if fed >= next {
            println!("| {fed} | {} |", resident());
            warm = if warm == 0 { resident() } else { warm };
            next += WARM;
        }
    }
    let grown = resident().saturating_sub(warm);
    assert!(grown < FLAT, "{grown} KiB more after {fed} events");
}

/// Memory of this program, KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|it| it.parse().ok())
        .expect("a number of KiB")
}
