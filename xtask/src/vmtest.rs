//! `cargo xtask vmtest`: tcptrace on other kernels, each in an emulated machine that has nothing
//! but the kernel, tcptrace and the live tests.
//!
//! A machine runs `tcptrace doctor`, which says what its kernel shows, `tcptrace selftest`, which
//! proves it, and the live tests that need no other program than a shell. Everything it wrote is in
//! `target/vm/ROW.log`.

mod console;
mod initramfs;
mod kernel;
mod machine;
mod payload;
mod report;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context as _, Result, ensure};

use console::Console;
use kernel::Kernel;
pub(crate) use kernel::SERIES;
use payload::{Payload, TESTS};
use report::Outcome;

use crate::process;

/// What is run, one machine a row: a kernel, and the ways of attaching tcptrace has to do without.
/// Where a kernel has no tracepoint for something a trampoline or a kprobe serves, or the end of a
/// system call; each of these is the choice somewhere.
const ROWS: [(&str, &[&str]); 8] = [
    ("5.10", &[]),
    ("5.10", &["fentry", "fexit"]),
    ("5.10", &["fentry", "fexit", "kprobe"]),
    ("6.1", &[]),
    ("6.1", &["kprobe"]),
    ("6.12", &[]),
    ("6.18", &[]),
    ("newest", &[]),
];

/// The live tests a machine runs when tcptrace may use all ways. The others start programs of the host
/// that a machine has not, or are about no kernel.
const LIVE: [&str; 10] = [
    "resets",
    "errors",
    "close_wait",
    "overflow",
    "owners",
    "filters",
    "follow",
    "evidence",
    "output_file",
    "without_sock_diag",
];

/// How many of them `cargo xtask test` has time for, on the oldest kernel and on the newest.
const QUICK: usize = 3;

/// Those it runs on the kernels in between, each of which loses connections in its own way.
const BETWEEN: [&str; 1] = ["overflow"];

/// How many machines run at once: each keeps one CPU busy.
const AT_ONCE: usize = 2;

/// How long a machine may take for the selftest, and again for each file of live tests, on a busy host.
const LIMIT: Duration = Duration::from_mins(5);

/// One machine to run.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    series: &'static str,
    without: Vec<String>,
    tests: &'static [&'static str],
}

impl Row {
    fn name(&self) -> String {
        match self.without.as_slice() {
            [] => self.series.to_owned(),
            ways => format!("{} without {}", self.series, ways.join(", ")),
        }
    }

    /// A file of its machine.
    fn file(&self, directory: &Path, extension: &str) -> PathBuf {
        let name = self.name().replace(", ", "-").replace(' ', "-");
        directory.join(format!("{name}.{extension}"))
    }

    /// What the machine is told to do, as the guest reads it.
    fn commands(&self) -> String {
        let without = self.without.iter().map(|way| format!("\t--without\t{way}"));
        let without = without.collect::<Vec<_>>().concat();
        let commands = ["doctor", "selftest"]
            .map(|command| format!("{command}\t/bin/tcptrace\t{command}\t-o\tjson{without}\n"));
        let test = |test| format!("{test}\t{TESTS}/{test}\t--test-threads=1\n");
        let all = commands.into_iter().chain(self.tests.iter().map(test));
        all.collect::<Vec<_>>().concat()
    }
}

/// `cargo xtask vmtest`: the kernels of these series without these ways; with neither, every row. What
/// came of the rows of all ways last goes into docs/kernels.md.
pub(crate) fn run(series: &[String], without: &[String]) -> Result<()> {
    let is_wanted = |it: &&str| series.is_empty() || series.iter().any(|series| series == it);
    let rows: Vec<Row> = if without.is_empty() {
        all_rows()
            .into_iter()
            .filter(|row| is_wanted(&row.series))
            .collect()
    } else {
        let row = |series| Row {
            series,
            without: without.to_vec(),
            tests: &[],
        };
        SERIES.into_iter().filter(is_wanted).map(row).collect()
    };
    let outcomes = run_rows(&rows, &directory())?;
    if without.is_empty() {
        write_page()?;
    }
    require_success(&outcomes)
}

/// Writes docs/kernels.md from what each row's machine wrote last, once all have run.
fn write_page() -> Result<()> {
    let mut outcomes = Vec::new();
    for row in all_rows() {
        let log = row.file(&directory(), "log");
        if !log.is_file() {
            println!(
                "vmtest: docs/kernels.md stays as it is: {} has not run",
                row.name()
            );
            return Ok(());
        }
        let kernel = kernel::get(&[row.series].into(), &directory())?;
        outcomes.push(judge(&row, &kernel[row.series], machine::read(&log), &log));
    }
    let path = process::workspace().join("docs/kernels.md");
    fs::write(&path, report::page(&outcomes))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Where kernels are kept, and what their machines wrote.
fn directory() -> PathBuf {
    process::workspace().join("target/vm")
}

/// The step of `cargo xtask test`: each kernel with all ways, and few live tests; in a full run all of
/// them, and every row.
pub(crate) fn check(full: bool) -> Result<Vec<String>> {
    if full {
        run(&[], &[])?;
        return Ok(vec!["see docs/kernels.md".to_owned()]);
    }
    let has_all_ways = |row: &Row| row.without.is_empty();
    let mut rows: Vec<Row> = all_rows().into_iter().filter(has_all_ways).collect();
    for row in &mut rows {
        let is_end = SERIES.first() == Some(&row.series) || SERIES.last() == Some(&row.series);
        row.tests = if is_end { &LIVE[..QUICK] } else { &BETWEEN };
    }
    let outcomes = run_rows(&rows, &directory().join("quick"))?;
    require_success(&outcomes)?;
    Ok(outcomes.iter().map(Outcome::line).collect())
}

fn all_rows() -> Vec<Row> {
    let row = |(series, without): (&'static str, &[&str])| Row {
        series,
        without: without.iter().map(ToString::to_string).collect(),
        tests: if without.is_empty() { &LIVE } else { &[] },
    };
    ROWS.into_iter().map(row).collect()
}

fn require_success(outcomes: &[Outcome]) -> Result<()> {
    let failed: Vec<&str> = outcomes
        .iter()
        .filter(|outcome| !outcome.faults.is_empty())
        .map(|outcome| outcome.name.as_str())
        .collect();
    ensure!(
        failed.is_empty(),
        "tcptrace fails on {}",
        failed.join("; on ")
    );
    Ok(())
}

/// Runs the rows, with their files in this directory, and returns what came of each in their order.
fn run_rows(rows: &[Row], files: &Path) -> Result<Vec<Outcome>> {
    let series: BTreeSet<&'static str> = rows.iter().map(|row| row.series).collect();
    let kernels = kernel::get(&series, &directory())?;
    let payload = Payload::build(&directory().join("payload"), &LIVE)?;
    fs::create_dir_all(files).with_context(|| format!("cannot create {}", files.display()))?;
    let left = Mutex::new(rows.iter().enumerate());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((nth, row)) = next else { return };
                    let outcome = test(row, &kernels[row.series], &payload, files);
                    print!("{}", outcome.summary());
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push((nth, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(nth, _)| *nth);
    Ok(done.into_iter().map(|(_, outcome)| outcome).collect())
}

/// Runs one machine. Whatever goes wrong in it is a fault of its outcome.
fn test(row: &Row, kernel: &Kernel, payload: &Payload, files: &Path) -> Outcome {
    let (initramfs, log) = (row.file(files, "cpio"), row.file(files, "log"));
    let limit = row.tests.iter().fold(LIMIT, |limit, _| limit + LIMIT);
    let console = payload
        .write(&initramfs, kernel, &row.commands())
        .and_then(|()| machine::boot(&kernel.image, &initramfs, &log, limit));
    judge(row, kernel, console, &log)
}

/// What came of a row whose machine wrote this into that log.
fn judge(row: &Row, kernel: &Kernel, console: Result<Console>, log: &Path) -> Outcome {
    let mut outcome = match console {
        Ok(console) => Outcome::of(&console),
        Err(error) => Outcome::failed(&error),
    };
    if row.without.is_empty() {
        outcome.require_every_signal();
    }
    outcome.name = row.name();
    outcome.version.clone_from(&kernel.version);
    let date = ["-u", "+%Y-%m-%d", "-r"];
    // Without a log there was no machine, which is a fault already.
    outcome.tested = process::answer(Command::new("date").args(date).arg(log)).unwrap_or_default();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_a_row_with_all_ways() {
        let rows = all_rows();
        let has_row = |series: &&str| {
            rows.iter()
                .any(|row| row.series == *series && row.without.is_empty())
        };
        assert!(SERIES.iter().all(has_row));
    }

    #[test]
    fn a_row_without_a_way_tells_doctor_and_selftest() {
        let row = Row {
            series: "6.1",
            without: vec!["kprobe".to_owned()],
            tests: &["resets"],
        };
        assert_eq!(
            row.commands(),
            "doctor\t/bin/tcptrace\tdoctor\t-o\tjson\t--without\tkprobe\n\
             selftest\t/bin/tcptrace\tselftest\t-o\tjson\t--without\tkprobe\n\
             resets\t/tests/deps/resets\t--test-threads=1\n"
        );
    }
}
