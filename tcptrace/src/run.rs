//! The commands, and the loop of a live trace.

mod command;
mod replay;
mod report;
mod sees;
mod sockets;
mod top;
mod tracer;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::panic::resume_unwind;
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context as _, anyhow};
use tcptrace_common::layout::ABSENT;

use crate::cli::{ColorChoice, Command, Explain, ReportFormat, with_remedy};
use crate::config::file::{self, Line};
use crate::host;
use crate::kernel::btf::Btf;
use crate::kernel::doctor::Report;
use crate::kernel::facts::Facts;
use crate::kernel::layout::{self, Resolved};
use crate::kernel::load::Loader;
use crate::kernel::plan::{CAST, Processes, Wanted, plan};
use crate::kernel::privileges::required_missing;
use crate::kernel::symbols::{self, RCV_STATE_PROCESS};
use crate::sink::text::Color;
use crate::{explain, manual, selftest, sink};

/// Exit statuses besides 0.
pub mod status {
    /// Something failed.
    pub const FAILED: u8 = 1;
    /// The command line is wrong; clap's own too.
    pub const USAGE: u8 = 2;
    /// A privilege is missing.
    pub const PRIVILEGE: u8 = 3;
    /// The kernel lacks what was asked for.
    pub const KERNEL: u8 = 4;
    /// Events were lost, under `--strict`.
    pub const LOST: u8 = 5;
    /// What `--fail-on` names was found.
    pub const FOUND: u8 = 6;
    /// Left at once after a second signal.
    pub const INTERRUPTED: u8 = 130;
}

/// Why a command failed, and its exit status.
#[derive(Debug)]
pub struct Failure {
    /// See [`status`].
    pub status: u8,
    /// What failed, why, and what to do.
    pub error: anyhow::Error,
}

impl Failure {
    /// The command line asks for what cannot be.
    pub(crate) fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self {
            status: status::USAGE,
            error: error.into(),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self {
            status: status::FAILED,
            error,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        anyhow::Error::from(error).into()
    }
}

impl From<sink::Error> for Failure {
    fn from(error: sink::Error) -> Self {
        anyhow::Error::from(error).into()
    }
}

/// Does what the command line asks for; gives the exit status. What clap has to say, of a wrong option
/// or for `--help`, it prints itself, and ends the program.
///
/// # Errors
/// It could not be done.
pub fn run(args: Vec<OsString>) -> Result<u8, Failure> {
    let Line { cli, file } =
        file::read(&args).map_err(|error| match error.downcast::<clap::Error>() {
            Ok(error) => with_remedy(error).exit(),
            Err(error) => Failure::usage(error),
        })?;
    match cli.command {
        None if cli.trace.check_config => {
            tracer::check(&cli.trace)?;
            print("the configuration is right")
        }
        None => tracer::trace(&cli.trace, file.map(|file| (args, file)), None),
        Some(Command::Top(args)) => top::top(*args),
        Some(Command::Doctor {
            output,
            verbose,
            without,
        }) => doctor(output, verbose, without),
        Some(Command::Selftest(args)) => {
            if let Some(name) = &args.act {
                selftest::act(name)?;
                return Ok(0);
            }
            let options = selftest::Options {
                json: args.output == ReportFormat::Json,
                only: args.only,
                allow_host_changes: args.allow_host_changes,
                stories: args.stories,
                without: args.without,
            };
            Ok(match selftest::run(&options)? {
                selftest::Verdict::Passed => 0,
                selftest::Verdict::Failed => status::FAILED,
            })
        }
        Some(Command::Sockets(args)) => sockets::sockets(&args),
        Some(Command::Replay(args)) => replay::replay(&args),
        Some(Command::Report(args)) => report::report(&args),
        Some(Command::Explain(args)) => explain(&args),
        Some(Command::Schema) => print(sink::schema()),
        Some(Command::Man { command }) => man(command.as_deref()),
        Some(Command::Completions { shell }) => print(manual::completions(shell).trim_end()),
    }
}

/// This host, and where its kernel keeps each field.
struct Host {
    facts: Facts,
    resolved: Resolved,
    loader: Loader,
}

impl Host {
    /// Looks at it; programs do not read by what was taken out with `--without`.
    fn look(without: &[String]) -> Self {
        let (btf, rcv_state_process, loader) = thread::scope(|scope| {
            let symbol = scope.spawn(|| symbols::function(RCV_STATE_PROCESS));
            let loader = scope.spawn(Loader::new);
            let btf = Btf::from_kernel();
            (btf, joined(symbol), joined(loader))
        });
        let facts = Facts::gather(btf.as_ref(), rcv_state_process);
        let mut resolved = match &btf {
            Ok(btf) => layout::resolve(btf, facts.rcv_state_process.clone().ok()),
            Err(_) => Resolved::unknown(),
        };
        // Only what is compiled can call a function of the kernel's.
        if !facts.jit || without.iter().any(|way| way == CAST) {
            (resolved.layout.cast, resolved.layout.words) = (ABSENT, ABSENT);
        }
        Self {
            facts,
            resolved,
            loader,
        }
    }
}

/// What a thread found; a panic of its goes on here.
fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Everything can be asked for; attached is what the privileges allow, and detached again.
fn doctor(output: ReportFormat, verbose: bool, without: Vec<String>) -> Result<u8, Failure> {
    let Host {
        facts,
        resolved,
        loader,
    } = Host::look(&without);
    let wanted = Wanted {
        kinds: u32::MAX,
        processes: Processes::ALL,
        without,
    };
    let plan = plan(&wanted, &facts, &resolved.missing);
    let may_try =
        required_missing(&facts).is_empty() && facts.btf.is_ok() && facts.initial_pid_namespace;
    let attempts = may_try
        .then(|| tracer::try_out(loader, &resolved, &plan))
        .transpose()?;
    let report = Report {
        facts,
        plan,
        attempts,
        listed: host::sockets::coverage(),
    };
    match output {
        ReportFormat::Text => {
            let mut text = Vec::new();
            report.text(&mut text, verbose)?;
            print(&String::from_utf8_lossy(&text))
        }
        ReportFormat::Json => {
            print(&serde_json::to_string_pretty(&report.json()).context("the report is no JSON")?)
        }
    }
}

/// Whether standard output is to be coloured.
fn is_colored(choice: ColorChoice) -> bool {
    let color = match choice {
        ColorChoice::Auto => Color::Auto,
        ColorChoice::Always => Color::Always,
        ColorChoice::Never => Color::Never,
    };
    color.is_on(io::stdout().is_terminal(), |name| std::env::var_os(name))
}

/// The page of a name, or without a name what there is.
fn explain(args: &Explain) -> Result<u8, Failure> {
    let color = is_colored(args.color);
    if args.name.is_empty() {
        return print(explain::show::list(color).trim_end());
    }
    match explain::find(&args.name.join(" ")) {
        Ok(found) => print(explain::show::found(&found, color).trim_end()),
        Err(unknown) => Err(Failure::usage(unknown)),
    }
}

fn man(command: Option<&str>) -> Result<u8, Failure> {
    match manual::page(command) {
        Some(page) => print(page.trim_end()),
        None => Err(Failure::usage(anyhow!(
            "no manual page for {}: `tcptrace --help` lists the commands",
            command.unwrap_or_default()
        ))),
    }
}

/// Prints a command's answer; a reader that has gone does not mind.
fn print(text: &str) -> Result<u8, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.write_all(b"\n"))
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow!("cannot write to standard output: {error}").into())
        }
        _ => Ok(0),
    }
}
