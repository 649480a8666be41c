//! `cargo xtask throughput`: what the agent takes for an event, and docs/throughput.md.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::{self, cargo};
use crate::setup;

const PAGE: &str = "docs/throughput.md";

/// What the page says before its tables.
const METHOD: &str = "\
Raw records of storms, as the ring would have them, are fed to the agent from memory, on one core. What
it writes goes nowhere. A storm is 28,232 connections, one from each ephemeral port, that fail in one
way, over and over with new sockets; the owner is found in `/proc` as always.

- **resets**: a server closes with unread data; the client's end and the server's end of each RST.
- **refusals**: a connect where nothing listens; the RST, the RST that came in, the failed call.
- **broken pipes**: a client leaves, the answer draws a RST, the next write fails with EPIPE.
- **states**: three changes of state of a connection that ends as it should.

A record goes as far as a stage:

- **decode**: bytes become an event.
- **analysis**: also counted, kept as evidence, and judged with the other events of its connection;
  only findings are printed. The goal is 1,000,000 events in a second.
- **text**: the same, and each event is a line of columns.
- **json**: the same, and each event is a line of JSON. The goal is 500,000 lines in a second.

No stage asks the allocator for memory for an event (`tcptrace/tests/allocations.rs`).

RSTs take most: a line of JSON has some 1,690 bytes. On the processor of 2026-11-22 four tenths of its
time are the analysis; of all, by `perf record -e cpu-clock`, 9 % is copying, 5 % each are strings, other
values, names and remembering what was judged, and no other part has more than 4 %. In 15 runs with
nothing but these lines one took 1,710 to 2,070 ns there: the goal, 2,000, lies within.
";

/// Measures, and writes the page. With `accept` the instructions that are counted become the ones
/// allowed.
pub(crate) fn run(accept: bool) -> Result<()> {
    if process::find("valgrind").is_none() {
        setup::install_packages(&["valgrind"])?;
    }
    let times = tables(&[])?;
    let instructions = tables(if accept {
        &["instructions", "accept"]
    } else {
        &["instructions"]
    })?;
    let memory = tables(&["memory"])?;
    let date = process::answer(Command::new("date").arg("+%Y-%m-%d")).context("no date")?;
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let cpu = cpu.map_or("", |model| model.trim_start_matches(['\t', ':', ' ']));
    let mut page = String::from("# What the agent manages\n\n");
    writeln!(
        page,
        "Written by `cargo xtask throughput` on {} ({cpu}).\n\n{METHOD}",
        date.trim_end()
    )?;
    writeln!(
        page,
        "## Time\n\nOf a processor, for an event: the median of 15 storms.\n\n{times}"
    )?;
    writeln!(
        page,
        "## Instructions\n\nCounted by callgrind, which knows no SHA or AVX-512 instructions: a measure of change, the \
         same on a\nbusy machine. Over the limit, 5 % above \
         `tcptrace/benches/throughput/instructions.txt`, the command\nfails.\n\n{instructions}"
    )?;
    write!(
        page,
        "## Memory\n\nOf the benchmark, which holds all storms at once (100 MB), after so many events to the \
         analysis. The\ntable of connections may double once, by 1,680. The command fails when it grows by \
         2 MiB after the first\nline.\n\n{memory}"
    )?;
    fs::write(process::workspace().join(PAGE), page)?;
    println!("wrote {PAGE}");
    Ok(())
}

/// The lines of the benchmark's table.
fn tables(args: &[&str]) -> Result<String> {
    let mut command = cargo("bench");
    command
        .args(["--package", "tcptrace", "--bench", "throughput", "--"])
        .args(args);
    let lines = process::run_and_keep(&mut command)?;
    let table = lines.iter().filter(|line| line.starts_with('|'));
    Ok(table.fold(String::new(), |page, line| page + line + "\n"))
}
