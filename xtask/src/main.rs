//! `cargo xtask`: everything a developer types.

mod apt;
mod build;
mod cross;
mod demo;
mod dependencies;
mod dist;
mod fuzz;
mod index;
mod overhead;
mod pipelines;
mod process;
mod setup;
mod soak;
mod test;
mod throughput;
mod tidy;
mod vmtest;

use std::process::ExitCode;

use clap::Parser;
use clap::builder::PossibleValuesParser;

/// What a developer of tcptrace types.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Install what building and testing need, where it is missing.
    Setup,
    /// Build target/release/tcptrace.
    Build,
    /// Build, then provoke failures in a private network namespace and show what tcptrace says.
    Demo,
    /// Run every check: format, lints, documentation, unit tests, live tests, selftest.
    Test {
        /// Run the long live tests too, and record the run in docs/test-full.md.
        #[arg(long, conflicts_with = "filter")]
        full: bool,
        /// Run only the unit and live tests whose name contains this, without the other checks.
        filter: Option<String>,
    },
    /// Measure what tracing costs on this kernel, and write docs/performance.md. Needs root, two
    /// CPUs, and a machine that is idle and has no other tracer.
    Overhead {
        /// Measurements without and with the tracer, in turn, for each way to run it.
        #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
        pairs: u32,
    },
    /// Measure what the agent takes for an event, by stage and by kind of storm, and write
    /// docs/throughput.md. Fails on more instructions than are allowed, and when memory grows. Takes
    /// ten minutes.
    Throughput {
        /// Allow the instructions that are counted now.
        #[arg(long)]
        accept: bool,
    },
    /// Make everything that is shipped (static binary, .deb, .rpm, crates) in target/dist, and try each:
    /// the .deb in a fresh Debian, its service under that Debian's systemd.
    Dist,
    /// Send a million records through each export to a real server, hold what was sent and what was lost
    /// against what was produced, and write that part of docs/performance.md. Needs root.
    Pipelines,
    /// Boot other kernels in emulated machines and run the selftest and live tests in each. With no
    /// options all there are. docs/kernels.md has what came of each last.
    Vmtest {
        /// Only this series, like 6.12; may be given again. `newest` is the newest packaged.
        #[arg(long, value_name = "SERIES", value_parser = PossibleValuesParser::new(vmtest::SERIES))]
        kernel: Vec<String>,
        /// Let tcptrace do without this way of attaching, like fentry; may be given again.
        #[arg(long, value_name = "WAY")]
        without: Vec<String>,
    },
    /// Fuzz what reads bytes that others write. New findings go to fuzz/artifacts.
    Fuzz {
        /// Only this reader; all of them otherwise.
        target: Option<String>,
        /// How long each.
        #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
    },
    /// Provoke the same failures over and over, and hold what tcptrace says of them against the kernel.
    Soak {
        /// How long.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
        minutes: u32,
    },
    /// Check what no other tool checks in the source files and the index of the pages.
    Tidy {
        /// Write docs/explain.md anew first.
        #[arg(long)]
        fix: bool,
    },
}

fn main() -> ExitCode {
    let outcome = match Task::parse() {
        Task::Setup => setup::run(),
        Task::Build => build::run(),
        Task::Demo => demo::run(),
        Task::Test { full, filter } => test::run(full, filter.as_deref()),
        Task::Dist => dist::run(),
        Task::Overhead { pairs } => overhead::run(pairs),
        Task::Pipelines => pipelines::run(),
        Task::Throughput { accept } => throughput::run(accept),
        Task::Vmtest { kernel, without } => vmtest::run(&kernel, &without),
        Task::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Task::Soak { minutes } => soak::run(minutes),
        Task::Tidy { fix } => tidy::run(fix),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
