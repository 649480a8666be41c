//! `cargo xtask test`: every check, cheapest first; the first that fails ends the run.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::process::{self, cargo};
use crate::{build, cross, dist, setup, tidy, vmtest};

const CARGO_DENY: &str = "0.20.2";

/// Runs the checks, or only the unit and live tests that `filter` names. A `full` run includes the
/// long live tests and is recorded in the documentation.
pub(crate) fn run(full: bool, filter: Option<&str>) -> Result<()> {
    let mut record = Record::default();
    let outcome = if filter.is_some() {
        named_tests(&mut record, filter)
    } else {
        all_checks(&mut record, full)
    };
    println!("\n{}", record.table());
    outcome?;
    if full {
        record.save()?;
    }
    Ok(())
}

fn all_checks(record: &mut Record, full: bool) -> Result<()> {
    record.step("setup", || setup::run().map(Outcome::silent))?;
    record.step("format", || check(cargo("fmt").args(["--all", "--check"])))?;
    record.step("tidy", || tidy::run(false).map(Outcome::silent))?;
    record.step("clippy", || check(&mut clippy()))?;
    record.step("clippy, kernel half", || check(&mut clippy_kernel_half()))?;
    record.step("documentation", || check(&mut documentation()))?;
    record.step("unit tests", || unit_tests(None)?.require_some())?;
    record.step("release build", || build::release().map(Outcome::silent))?;
    record.step("check for arm64", || cross::check().map(Outcome::silent))?;
    if full {
        record.step("packages", || dist::run().map(Outcome::silent))?;
    }
    record.step("live tests", || live_tests(full, None)?.require_some())?;
    record.step("selftest", selftest)?;
    record.step("Kafka", || kafka()?.require_some())?;
    if full {
        record.step("licences and sources", || deny().map(Outcome::silent))?;
    }
    record.step("other kernels", || vmtest::check(full).map(Outcome::told))
}

fn named_tests(record: &mut Record, filter: Option<&str>) -> Result<()> {
    record.step("setup", || setup::run().map(Outcome::silent))?;
    record.step("unit tests", || unit_tests(filter))?;
    record.step("release build", || build::release().map(Outcome::silent))?;
    record.step("live tests", || live_tests(false, filter))?;
    ensure!(
        record.passed() > 0,
        "no test has a name that contains the filter"
    );
    Ok(())
}

fn check(command: &mut Command) -> Result<Outcome> {
    process::run(command).map(Outcome::silent)
}

fn clippy() -> Command {
    let mut command = cargo("clippy");
    command
        .args(["--workspace", "--exclude", "tcptrace-ebpf", "--all-targets"])
        .args(["--", "--deny", "warnings"]);
    command
}

/// Lints the kernel half as if it were for this machine: the project's own clippy has no `core`
/// for BPF. Such a program without `std` cannot unwind, and aya-ebpf needs unstable features;
/// build output apart, because both settings would make everything else stale.
fn clippy_kernel_half() -> Command {
    let mut command = cargo("clippy");
    command
        .args(["--package", "tcptrace-ebpf", "--target-dir"])
        .arg(process::workspace().join("target/clippy-ebpf"))
        .args(["--", "--deny", "warnings"])
        .env("CARGO_PROFILE_DEV_PANIC", "abort")
        .env("RUSTC_BOOTSTRAP", "aya_ebpf");
    command
}

/// Builds the documentation, in which `DOCS_RS` leaves out the kernel half as docs.rs does.
fn documentation() -> Command {
    let mut command = cargo("doc");
    command
        .args(["--workspace", "--exclude", "tcptrace-ebpf", "--no-deps"])
        .env("RUSTDOCFLAGS", "--deny warnings")
        .env("DOCS_RS", "1");
    command
}

fn unit_tests(filter: Option<&str>) -> Result<Outcome> {
    let lines = process::run_and_keep(cargo("test").args(filter))?;
    Ok(Outcome::of_tests(&lines))
}

/// Runs the tests that need root and the release binary, one at a time because they count what
/// the whole kernel does. None may be left out: a skipped live test proves nothing.
fn live_tests(full: bool, filter: Option<&str>) -> Result<Outcome> {
    let mut command = cargo("test");
    command
        // Not `--test '*'`, which names also those that need a feature.
        .args(["--package", "tcptrace-tests", "--tests"])
        .args(filter)
        .args(["--", "--test-threads=1"])
        .env("TCPTRACE_BIN", build::binary());
    if full {
        command.env("TCPTRACE_FULL", "1");
    }
    process::cargo_test_as_root(&mut command)?;
    let outcome = Outcome::of_tests(&process::run_and_keep(&mut command)?);
    ensure!(
        outcome.ignored == 0,
        "{} live tests were ignored",
        outcome.ignored
    );
    Ok(outcome)
}

/// Lints and tests the feature that is off by default, in a build of its own without optimisation.
fn kafka() -> Result<Outcome> {
    const FEATURES: [&str; 2] = ["--features", "tcptrace/kafka,tcptrace-tests/kafka"];
    let both = ["--package", "tcptrace", "--package", "tcptrace-tests"];
    process::run(cargo("clippy").args(both).args(FEATURES).args([
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    process::run(cargo("build").args(both).args(FEATURES))?;
    let mut unit_tests = cargo("test");
    unit_tests.args([
        "--package",
        "tcptrace",
        "--lib",
        "--features",
        "kafka",
        "kafka",
    ]);
    let mut outcome = Outcome::of_tests(&process::run_and_keep(&mut unit_tests)?);
    let mut live_tests = cargo("test");
    live_tests
        .args(both)
        .args(FEATURES)
        .args(["--test", "kafka", "--", "--test-threads=1"])
        .env(
            "TCPTRACE_BIN",
            process::workspace().join("target/debug/tcptrace"),
        );
    process::cargo_test_as_root(&mut live_tests)?;
    outcome.add(Outcome::of_tests(&process::run_and_keep(&mut live_tests)?));
    Ok(outcome)
}

/// Holds the dependencies against `deny.toml`. Advisories are asked for only where their database can be
/// had: they change without the tree.
fn deny() -> Result<()> {
    if process::find("cargo-deny").is_none() {
        println!("test: cargo install cargo-deny, about five minutes");
        let version = ["--version", CARGO_DENY, "--locked"];
        process::run(cargo("install").arg("cargo-deny").args(version))?;
    }
    process::run(cargo("deny").args(["check", "bans", "licenses", "sources"]))
}

fn selftest() -> Result<Outcome> {
    let mut command = process::as_root(build::binary());
    let lines = process::run_and_keep(command.arg("selftest"))?;
    let last = lines.into_iter().rev().find(|line| !line.trim().is_empty());
    Ok(Outcome::told(last.into_iter().collect()))
}

/// What a step has to say beyond that it succeeded.
#[derive(Default)]
struct Outcome {
    passed: u32,
    ignored: u32,
    lines: Vec<String>,
}

impl Outcome {
    fn silent((): ()) -> Self {
        Self::default()
    }

    fn told(lines: Vec<String>) -> Self {
        Self {
            lines,
            ..Self::default()
        }
    }

    /// Reads what `cargo test` writes: a line for each test program, and one for its result.
    fn of_tests(output: &[String]) -> Self {
        let mut outcome = Self::default();
        let mut program = String::new();
        for line in output.iter().map(|line| line.trim()) {
            if let Some(description) = line.strip_prefix("Running ") {
                program = program_name(description);
            } else if let Some(package) = line.strip_prefix("Doc-tests ") {
                program = format!("{package} (documentation)");
            } else if let Some(result) = line.strip_prefix("test result: ") {
                let (passed, ignored) = (count(result, "passed"), count(result, "ignored"));
                outcome.passed += passed;
                outcome.ignored += ignored;
                if passed + ignored > 0 {
                    outcome.lines.push(format!("{program}: {result}"));
                }
            }
        }
        outcome
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.ignored += other.ignored;
        self.lines.extend(other.lines);
    }

    fn require_some(self) -> Result<Self> {
        ensure!(self.passed > 0, "no test ran");
        Ok(self)
    }
}

/// `tcptrace, src/lib.rs` for `unittests src/lib.rs (target/debug/deps/tcptrace-651c)`.
fn program_name(description: &str) -> String {
    let (source, path) = description.split_once(" (").unwrap_or((description, ""));
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = file.split('-').next().unwrap_or(file);
    format!("{name}, {}", source.trim_start_matches("unittests "))
}

/// The number before a word: 12 for "passed" in `ok. 12 passed; 0 failed`.
fn count(result: &str, word: &str) -> u32 {
    result
        .split([';', '.'])
        .filter_map(|part| part.trim().strip_suffix(word))
        .find_map(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

/// The steps of this run.
#[derive(Default)]
struct Record {
    steps: Vec<Step>,
}

struct Step {
    name: &'static str,
    took: Duration,
    outcome: Result<Outcome, ()>,
}

impl Record {
    /// Runs one step and keeps its time, also when it fails.
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<Outcome>) -> Result<()> {
        println!("\n== {name}");
        let start = Instant::now();
        let result = work();
        let took = start.elapsed();
        let (outcome, result) = match result {
            Ok(outcome) => (Ok(outcome), Ok(())),
            Err(error) => (Err(()), Err(error.context(format!("{name} failed")))),
        };
        self.steps.push(Step {
            name,
            took,
            outcome,
        });
        result
    }

    fn passed(&self) -> u32 {
        let outcomes = self.steps.iter().flat_map(|step| &step.outcome);
        outcomes.map(|outcome| outcome.passed).sum()
    }

    /// The steps as a Markdown table, which a terminal shows well enough.
    fn table(&self) -> String {
        let mut table = String::from("| step | seconds | result |\n|---|---:|---|\n");
        for Step {
            name,
            took,
            outcome,
        } in &self.steps
        {
            let result = match outcome {
                Err(()) => "FAILED".to_owned(),
                Ok(outcome) if outcome.passed > 0 => format!("{} passed", outcome.passed),
                Ok(_) => "ok".to_owned(),
            };
            let seconds = took.as_secs_f32();
            let _ = writeln!(table, "| {name:<20} | {seconds:>7.1} | {result:<12} |");
        }
        table
    }

    /// Records a full run beside the other documentation.
    fn save(&self) -> Result<()> {
        let date = process::answer(Command::new("date").args(["-u", "+%Y-%m-%d"]))
            .context("date does not run")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let lines = self.steps.iter().flat_map(|step| &step.outcome);
        let lines: Vec<&str> = lines.flat_map(|it| &it.lines).map(String::as_str).collect();
        let page = format!(
            "# The last full test run\n\nWritten by `cargo xtask test --full` on {}, kernel {}.\n\n\
             {}\n```\n{}\n```\n",
            date.trim_end(),
            kernel.trim_end(),
            self.table(),
            lines.join("\n")
        );
        let path = process::workspace().join("docs/test-full.md");
        fs::create_dir_all(process::workspace().join("docs"))?;
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome_of(output: &str) -> Outcome {
        Outcome::of_tests(&output.lines().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn results_of_several_programs_add_up() {
        let outcome = outcome_of(
            "     Running unittests src/lib.rs (target/debug/deps/tcptrace-651c)\n\
             test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; \
             finished in 0.11s\n\
             \x20  Doc-tests tcptrace\n\
             test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
             \x20    Running tests/empty.rs (target/debug/deps/empty-0d64)\n\
             test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n",
        );
        assert_eq!((outcome.passed, outcome.ignored), (13, 1));
        assert_eq!(outcome.lines.len(), 2);
        assert!(outcome.lines[0].starts_with("tcptrace, src/lib.rs: ok. 12 passed"));
        assert!(outcome.lines[1].starts_with("tcptrace (documentation): ok. 1 passed"));
    }

    #[test]
    fn a_run_without_tests_is_a_failure() {
        let empty = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        assert!(outcome_of(empty).require_some().is_err());
        assert!(outcome_of("").require_some().is_err());
    }

    #[test]
    fn a_step_that_fails_is_named_and_recorded() {
        let mut record = Record::default();
        let error = record.step("lint", || anyhow::bail!("exit status: 1"));
        assert_eq!(
            error.expect_err("the step failed").to_string(),
            "lint failed"
        );
        assert!(record.table().contains("FAILED"));
    }
}
