//! A tracer under observation: started, waited for, stopped, and every record it wrote.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The line on stderr that says everything is attached and seeded.
pub const READY: &str = "tcptrace: tracing";

static UNSEEN: AtomicU64 = AtomicU64::new(0);

/// How often tracers of this process have said that the kernel let events go by without running a program:
/// whatever failed meanwhile proves nothing.
#[must_use]
pub fn unseen() -> u64 {
    UNSEEN.load(Relaxed)
}

/// Counts for [`unseen`] if this line of a tracer's says so, as text or JSON.
pub fn note_unseen(line: &str) {
    let is_lost = line.contains("events lost");
    if is_lost
        && [": unseen", ": recursion"]
            .iter()
            .any(|it| line.contains(it))
    {
        UNSEEN.fetch_add(1, Relaxed);
    }
}

/// How long a tracer may take to attach or to drain; loading is slow where the CPU is emulated.
const PATIENCE: Duration = Duration::from_mins(1);

/// One record of the stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Record(pub Value);

impl Record {
    /// The event's name without the prefix `tcptrace.`.
    #[must_use]
    pub fn name(&self) -> &str {
        let name = self
            .0
            .get("event_name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        name.strip_prefix("tcptrace.").unwrap_or(name)
    }

    /// An attribute.
    #[must_use]
    pub fn get(&self, attribute: &str) -> Option<&Value> {
        self.0.get("attributes")?.get(attribute)
    }

    /// An attribute that is a number.
    #[must_use]
    pub fn number(&self, attribute: &str) -> Option<u64> {
        self.get(attribute)?.as_u64()
    }

    /// An attribute that is text.
    #[must_use]
    pub fn text(&self, attribute: &str) -> Option<&str> {
        self.get(attribute)?.as_str()
    }

    /// When it happened.
    #[must_use]
    pub fn time(&self) -> Option<Timestamp> {
        self.0.get("timestamp")?.as_str()?.parse().ok()
    }

    /// The owner's process id.
    #[must_use]
    pub fn pid(&self) -> Option<u64> {
        self.number("process.pid")
    }
}

#[derive(Debug, Default)]
struct Output {
    stdout: Vec<String>,
    stderr: Vec<String>,
    /// How many readers have come to the end.
    ended: usize,
}

type Shared = Arc<(Mutex<Output>, Condvar)>;

/// A running tracer. Dropping it kills it.
#[derive(Debug)]
pub struct Tracer {
    child: Child,
    output: Shared,
    readers: Vec<JoinHandle<()>>,
}

/// What a tracer left behind.
#[derive(Debug)]
pub struct Trace {
    /// The lines of stdout.
    pub stdout: Vec<String>,
    /// The lines of stderr.
    pub stderr: Vec<String>,
    /// How it ended.
    pub status: ExitStatus,
}

impl Trace {
    /// The lines of stdout as records.
    ///
    /// # Errors
    /// When a line is not JSON.
    pub fn records(&self) -> Result<Vec<Record>> {
        self.stdout.iter().map(|line| parse(line)).collect()
    }
}

impl Tracer {
    /// Starts `command` and waits until it says that it is tracing.
    ///
    /// # Errors
    /// When it cannot be started or ends before it traces: then with what it said on stderr.
    pub fn start(command: Command) -> Result<Self> {
        Self::start_into(command, Stdio::piped())
    }

    /// As [`Tracer::start`], with its stdout elsewhere: no record comes back from here.
    ///
    /// # Errors
    /// As [`Tracer::start`].
    pub fn start_into(mut command: Command, stdout: impl Into<Stdio>) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped());
        // SAFETY: prctl is async-signal-safe and touches no memory.
        unsafe {
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let output = Shared::default();
        let mut readers = vec![];
        if let Some(stdout) = child.stdout.take() {
            readers.push(read_lines(stdout, &output, |output| &mut output.stdout));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(read_lines(stderr, &output, |output| &mut output.stderr));
        }
        let mut tracer = Self {
            child,
            output,
            readers,
        };
        tracer.wait_until_ready()?;
        Ok(tracer)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let ready = |output: &Output| output.stderr.iter().any(|line| line.starts_with(READY));
        let all = self.readers.len();
        self.wait_while(PATIENCE, |output| !ready(output) && output.ended < all);
        if ready(&self.lock()) {
            return Ok(());
        }
        _ = self.child.kill();
        let trace = self.join()?;
        bail!(
            "the tracer did not come up ({}). It said:\n{}",
            trace.status,
            trace.stderr.join("\n")
        )
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a record on the stream and returns it.
    ///
    /// # Errors
    /// When none comes in time, with what did come.
    pub fn wait_for(
        &self,
        what: &str,
        timeout: Duration,
        wanted: impl Fn(&Record) -> bool,
    ) -> Result<Record> {
        let mut found = None;
        let mut looked_at = 0;
        self.wait_while(timeout, |output| {
            let new = output.stdout.get(looked_at..).unwrap_or_default();
            found = new
                .iter()
                .filter_map(|line| parse(line).ok())
                .find(|record| wanted(record));
            looked_at = output.stdout.len();
            found.is_none() && output.ended < self.readers.len()
        });
        let tail = || {
            let output = self.lock();
            let from = output.stdout.len().saturating_sub(5);
            output.stdout[from..].join("\n")
        };
        found.with_context(|| format!("no record of {what} came. The last ones were:\n{}", tail()))
    }

    /// Waits until it has said this on stderr.
    ///
    /// # Errors
    /// When it does not in time, with what it did say.
    pub fn wait_until_said(&self, text: &str) -> Result<()> {
        let said = |output: &Output| output.stderr.iter().any(|line| line.contains(text));
        self.wait_while(PATIENCE, |output| {
            !said(output) && output.ended < self.readers.len()
        });
        let output = self.lock();
        let all = || {
            format!(
                "it did not say `{text}`, but:\n{}",
                output.stderr.join("\n")
            )
        };
        said(&output).then_some(()).with_context(all)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// Interrupts it and returns all it wrote.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(self) -> Result<Trace> {
        self.signal(Signal::SIGINT)?;
        self.finish()
    }

    /// Waits for its end and returns all it wrote.
    ///
    /// # Errors
    /// When it does not end.
    pub fn finish(mut self) -> Result<Trace> {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("the tracer did not end within {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.join()
    }

    fn join(&mut self) -> Result<Trace> {
        let status = self.child.wait()?;
        for reader in self.readers.drain(..) {
            if reader.join().is_err() {
                bail!("a reader of the tracer's output panicked");
            }
        }
        let output = std::mem::take(&mut *self.lock());
        Ok(Trace {
            stdout: output.stdout,
            stderr: output.stderr,
            status,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Output> {
        self.output.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False when the time ran out first.
    fn wait_while(&self, timeout: Duration, mut wait: impl FnMut(&Output) -> bool) -> bool {
        let result = self
            .output
            .1
            .wait_timeout_while(self.lock(), timeout, |output| wait(output));
        !result.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            _ = self.child.kill();
            _ = self.child.wait();
        }
    }
}

fn parse(line: &str) -> Result<Record> {
    serde_json::from_str(line)
        .map(Record)
        .with_context(|| format!("not a JSON record: {line}"))
}

fn read_lines(
    from: impl Read + Send + 'static,
    to: &Shared,
    which: fn(&mut Output) -> &mut Vec<String>,
) -> JoinHandle<()> {
    let to = Arc::clone(to);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            // A tracer killed mid-line leaves half a line: the end of the stream all the same.
            let Ok(line) = line else { break };
            note_unseen(&line);
            which(&mut to.0.lock().unwrap_or_else(PoisonError::into_inner)).push(line);
            to.1.notify_all();
        }
        to.0.lock().unwrap_or_else(PoisonError::into_inner).ended += 1;
        to.1.notify_all();
    })
}
