//! What is compared: tcptrace in several ways, empty programs at its hooks, and the tools people use
//! today for a part of what it shows.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::floor::{Floor, Hook};
use super::programs;
use crate::{build, process};

/// A way to trace, or not to.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Rival {
    /// The workload against itself: what lies within its extremes is noise.
    None,
    /// With these arguments.
    Tcptrace(&'static [&'static str]),
    /// Programs that return at once, at the hooks tcptrace has with these arguments.
    Empty(&'static [&'static str]),
    /// As at the defaults, but for the exits of system calls.
    EmptyWithoutCalls,
    /// `same.bt`.
    Bpftrace,
    /// One of Debian's libbpf-tools.
    Tool(&'static str),
}

/// Everything compared side by side.
pub(super) const RIVALS: [Rival; 11] = [
    Rival::None,
    Rival::Tcptrace(&[]),
    Rival::Empty(&[]),
    Rival::EmptyWithoutCalls,
    Rival::Tcptrace(&["--event", "reset"]),
    Rival::Tcptrace(&["--without", "tracepoint"]),
    Rival::Tcptrace(&["--event", "+fd.invalid"]),
    Rival::Tcptrace(&["--last-user"]),
    Rival::Bpftrace,
    Rival::Tool("tcpstates"),
    Rival::Tool("tcplife"),
];

/// How long a tool may take to attach.
const PATIENCE: Duration = Duration::from_secs(20);

impl Rival {
    /// As a table calls it.
    pub(super) fn title(self) -> String {
        let words = |arguments: &[&str]| match arguments {
            [] => "the defaults".to_owned(),
            _ => format!("`{}`", arguments.join(" ")),
        };
        match self {
            Self::None => "no tracer".to_owned(),
            Self::Tcptrace(arguments) => format!("tcptrace, {}", words(arguments)),
            Self::Empty(arguments) => format!("empty programs, {}", words(arguments)),
            Self::EmptyWithoutCalls => "empty programs, no exits of calls".to_owned(),
            Self::Bpftrace => "bpftrace, the same events".to_owned(),
            Self::Tool(name) => format!("{name} (libbpf-tools)"),
        }
    }

    /// It is measured with nginx too.
    pub(super) fn serves(self) -> bool {
        use Rival::{Bpftrace, Empty, EmptyWithoutCalls, Tcptrace};
        matches!(
            self,
            Self::None | Bpftrace | Tcptrace([]) | Empty([]) | EmptyWithoutCalls
        )
    }

    /// Returns when it traces. Records go to `output`.
    pub(super) fn start(self, output: Stdio) -> Result<Running> {
        Ok(match self {
            Self::None => Running::Nothing,
            Self::Tcptrace(arguments) => Running::Tracer(Tracer::start(arguments, output)?),
            Self::Empty(arguments) => Running::Floor(Floor::attach(&hooks(arguments)?)?),
            Self::EmptyWithoutCalls => {
                let mut hooks = hooks(&[])?;
                hooks.retain(|hook| matches!(hook, Hook::Raw(_)));
                Running::Floor(Floor::attach(&hooks)?)
            }
            Self::Bpftrace => Running::Tool(bpftrace()?),
            Self::Tool(name) => Running::Tool(tool(name)?),
        })
    }
}

/// Where tcptrace attaches with these arguments, as long as it runs.
fn hooks(arguments: &[&str]) -> Result<Vec<Hook>> {
    let tracer = Tracer::start(arguments, Stdio::null())?;
    let hooks = programs::hooks(tracer.id())?;
    tracer.stop()?;
    ensure!(!hooks.is_empty(), "tcptrace has attached nothing");
    Ok(hooks)
}

/// Something that traces until it is stopped.
pub(super) enum Running {
    Nothing,
    Tracer(Tracer),
    Floor(#[expect(dead_code, reason = "held for its drop alone")] Floor),
    Tool(Tool),
}

impl Running {
    /// The process that holds its programs.
    pub(super) fn holder(&self) -> u32 {
        match self {
            Self::Nothing | Self::Floor(_) => std::process::id(),
            Self::Tracer(tracer) => tracer.id(),
            Self::Tool(tool) => tool.0.id(),
        }
    }

    pub(super) fn stop(self) -> Result<()> {
        match self {
            Self::Tracer(tracer) => tracer.stop(),
            Self::Nothing | Self::Floor(_) | Self::Tool(_) => Ok(()),
        }
    }
}

/// A running tcptrace.
pub(super) struct Tracer {
    child: Child,
    stderr: BufReader<ChildStderr>,
    /// From its start until it traced.
    pub(super) took: Duration,
}

impl Tracer {
    /// Returns when it has attached and looked around.
    pub(super) fn start(arguments: &[&str], output: Stdio) -> Result<Self> {
        let begun = Instant::now();
        let mut child = Command::new(build::binary())
            .args(["-o", "json"])
            .args(arguments)
            .stdout(output)
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start tcptrace")?;
        let stderr = BufReader::new(child.stderr.take().context("stderr is a pipe")?);
        let mut tracer = Self {
            child,
            stderr,
            took: Duration::ZERO,
        };
        let mut said = String::new();
        while !said.ends_with("tcptrace: tracing\n") {
            if tracer.stderr.read_line(&mut said)? == 0 {
                bail!("tcptrace {} ended: {said}", arguments.join(" "));
            }
        }
        tracer.took = begun.elapsed();
        while tracer.is_looking_around()? {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(tracer)
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// At the start a thread reads what /proc says of sockets; that is over soon, and not the
    /// cost looked for.
    fn is_looking_around(&self) -> Result<bool> {
        let mut names = fs::read_dir(format!("/proc/{}/task", self.id()))?
            .map(|task| fs::read_to_string(task?.path().join("comm")))
            // A thread that ends meanwhile.
            .filter_map(Result::ok);
        Ok(names.any(|name| name.trim_end() == "snapshot"))
    }

    pub(super) fn stop(mut self) -> Result<()> {
        interrupt(&self.child)?;
        let mut said = String::new();
        self.stderr.read_to_string(&mut said)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "tcptrace: {status}: {said}");
        Ok(())
    }
}

impl Drop for Tracer {
    /// A measurement that failed leaves no tracer behind.
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A tool of others; dropping it ends it.
pub(super) struct Tool(Child);

impl Drop for Tool {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

fn bpftrace() -> Result<Tool> {
    let script = process::workspace().join("xtask/src/overhead/same.bt");
    let output = output("bpftrace.out")?;
    let mut command = Command::new(program("bpftrace")?);
    // To standard output it writes each line at once, to a file of its own only what fills a buffer.
    let command = command.args(["-B", "line"]).arg(script);
    let command = command.stdout(File::create(&output)?);
    start("bpftrace", command, |_| {
        Ok(fs::read_to_string(&output)?.contains("ready\n"))
    })
}

fn tool(name: &'static str) -> Result<Tool> {
    let mut command = Command::new(program(name)?);
    start(name, command.stdout(Stdio::null()), |process| {
        Ok(!programs::hooks(process)?.is_empty())
    })
}

fn program(name: &str) -> Result<PathBuf> {
    process::find(name).with_context(|| format!("{name} is missing: run `cargo xtask setup`"))
}

/// A file for what a tool prints, empty now.
fn output(name: &str) -> Result<PathBuf> {
    let path = process::workspace().join("target/overhead").join(name);
    File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Starts a tool and waits until it traces; if it does not, the error is what it says.
fn start(
    name: &'static str,
    command: &mut Command,
    is_ready: impl Fn(u32) -> Result<bool>,
) -> Result<Tool> {
    let errors = output(&format!("{name}.err"))?;
    let child = command.stderr(File::create(&errors)?).spawn();
    let mut tool = Tool(child.with_context(|| format!("cannot start {name}"))?);
    let begun = Instant::now();
    while !is_ready(tool.0.id())? {
        if tool.0.try_wait()?.is_some() || begun.elapsed() >= PATIENCE {
            let errors = fs::read_to_string(&errors)?;
            let errors: Vec<&str> = errors.lines().collect();
            bail!("{name} does not trace here: {}", errors.join("; "));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(tool)
}

fn end(child: &mut Child) {
    if let Ok(None) = child.try_wait() {
        // Gone just now: nothing is left to stop.
        let _ = interrupt(child);
        let _ = child.wait();
    }
}

fn interrupt(child: &Child) -> Result<()> {
    let pid = Pid::from_raw(child.id().cast_signed());
    kill(pid, Signal::SIGINT).context("cannot stop a tracer")
}
