//! Real programs as a test's actors: started in its namespace, what they print kept, ended with it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;

use crate::{Netns, SOON};

type Lines = Arc<(Mutex<Vec<String>>, Condvar)>;

/// A running program. Dropping it kills it, and so does the end of the thread that started it.
#[derive(Debug)]
pub struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines,
    readers: Vec<JoinHandle<()>>,
}

/// How a program ended and all it printed.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// The lines of stdout and stderr, each in order.
    pub lines: Vec<String>,
}

impl Program {
    /// Starts it with a pipe for its stdin.
    ///
    /// # Errors
    /// When it cannot be started: it is then named with the package that holds it, or should.
    pub fn start(mut command: Command) -> Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let prepare = || {
            // A shell that put the tests in the background has them ignore it.
            // SAFETY: the default needs no handler of ours, and sigaction is async-signal-safe.
            unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }?;
            Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)
        };
        // SAFETY: prctl and sigaction are async-signal-safe and touch no memory.
        unsafe { command.pre_exec(prepare) };
        let mut child = command.spawn().with_context(|| {
            let program = command.get_program().display();
            format!("cannot start {program}: `cargo xtask setup` installs what the tests start")
        })?;
        let lines = Lines::default();
        let mut readers = vec![];
        if let Some(stdout) = child.stdout.take() {
            readers.push(keep_lines(stdout, &lines));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(keep_lines(stderr, &lines));
        }
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            lines,
            readers,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to its stdin.
    ///
    /// # Errors
    /// When it has ended.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its stdin is closed")?;
        Ok(writeln!(stdin, "{line}")?)
    }

    /// The first line from number `from` on for which this holds, once it is printed, and its number.
    ///
    /// # Errors
    /// When it does not come in time, with what came instead.
    pub fn line(&self, from: usize, wanted: impl Fn(&str) -> bool) -> Result<(usize, String)> {
        let find = |lines: &[String]| {
            let mut numbered = lines.iter().enumerate().skip(from);
            let found = numbered.find(|(_, line)| wanted(line));
            found.map(|(number, line)| (number, line.clone()))
        };
        let (lines, changed) = &*self.lines;
        let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        let (lines, _) = changed
            .wait_timeout_while(lines, SOON, |lines| find(lines).is_none())
            .unwrap_or_else(PoisonError::into_inner);
        find(&lines)
            .with_context(|| format!("a line was expected, these came:\n{}", lines.join("\n")))
    }

    /// Waits until it has printed a line with this text.
    ///
    /// # Errors
    /// When it does not in time, with what it printed instead.
    pub fn wait_for_text(&self, text: &str) -> Result<String> {
        let (_, line) = self
            .line(0, |line| line.contains(text))
            .with_context(|| format!("{text:?} is what was expected"))?;
        Ok(line)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid().cast_signed()), signal)?)
    }

    /// Closes its stdin and waits for its end.
    ///
    /// # Errors
    /// When its output cannot be read.
    pub fn finish(mut self) -> Result<Ended> {
        drop(self.stdin.take());
        let status = self.child.wait()?;
        for reader in self.readers.drain(..) {
            if reader.join().is_err() {
                bail!("a reader of a program's output panicked");
            }
        }
        let lines = std::mem::take(&mut *self.lock());
        Ok(Ended { status, lines })
    }

    /// Kills it with SIGKILL and waits until it is gone: by then its descriptors are closed.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.lines.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            _ = self.child.kill();
            _ = self.child.wait();
        }
    }
}

impl Ended {
    /// Whether it printed this.
    #[must_use]
    pub fn printed(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.contains(text))
    }

    /// Fails unless it ended with this exit code and printed this text.
    ///
    /// # Errors
    /// With all it printed.
    pub fn ensure(&self, code: i32, text: &str) -> Result<()> {
        ensure!(
            self.status.code() == Some(code) && self.printed(text),
            "exit code {code} and {text:?} were expected, came {} and:\n{}",
            self.status,
            self.lines.join("\n")
        );
        Ok(())
    }
}

/// Lets a command start in another namespace.
#[must_use]
pub fn inside(netns: &Netns, mut command: Command) -> Command {
    let path = netns.path();
    // SAFETY: opening a file and setns are async-signal-safe. The path was allocated before the
    // fork; to open it allocates nothing, as it is shorter than the buffer on the stack.
    unsafe {
        command.pre_exec(move || {
            let namespace = std::fs::File::open(&path)?;
            Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
        });
    }
    command
}

/// Lets a command start with a limit of open descriptors that it cannot raise.
#[must_use]
pub fn with_descriptors(limit: u64, mut command: Command) -> Command {
    // SAFETY: setrlimit is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?));
    }
    command
}

/// A Go program that does over TCP what it is told: `tests/programs/go`.
#[derive(Debug)]
pub struct Go {
    program: Program,
    /// Lines that are answered already.
    read: usize,
}

impl Go {
    /// Starts one.
    ///
    /// # Errors
    /// When it cannot be built or started.
    pub fn start() -> Result<Self> {
        Self::start_as(Self::command()?)
    }

    /// Starts one by this command, made from [`Go::command`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_as(command: Command) -> Result<Self> {
        let program = Program::start(command)?;
        Ok(Self { program, read: 0 })
    }

    /// The command that starts one; the first use in a test program builds it.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn command() -> Result<Command> {
        static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let built = BUILT.get_or_init(|| build_go().map_err(|error| format!("{error:#}")));
        match built {
            Ok(path) => Ok(Command::new(path)),
            Err(error) => bail!("{error}"),
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// The process.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Asks for something and returns the answer, which begins with `error: ` where Go returned an
    /// error.
    ///
    /// # Errors
    /// When it has ended or does not answer.
    pub fn ask(&mut self, request: &str) -> Result<String> {
        self.begin(request)?;
        self.answer()
    }

    /// Asks for what must succeed.
    ///
    /// # Errors
    /// As [`Go::ask`], and with the error Go returned.
    pub fn done(&mut self, request: &str) -> Result<String> {
        let answer = self.ask(request)?;
        ensure!(!answer.starts_with("error: "), "{request}: {answer}");
        Ok(answer)
    }

    /// Asks for what must fail with an error that holds this text.
    ///
    /// # Errors
    /// As [`Go::ask`], and when it succeeds or fails otherwise.
    pub fn fails(&mut self, request: &str, text: &str) -> Result<()> {
        let answer = self.ask(request)?;
        ensure!(
            answer.starts_with("error: ") && answer.contains(text),
            "{request}: {text:?} was expected, came: {answer}"
        );
        Ok(())
    }

    /// Asks and does not wait for the answer.
    ///
    /// # Errors
    /// When it has ended.
    pub fn begin(&mut self, request: &str) -> Result<()> {
        self.program.tell(request)
    }

    /// The answer to [`Go::begin`].
    ///
    /// # Errors
    /// When it does not come.
    pub fn answer(&mut self) -> Result<String> {
        let (number, line) = self
            .program
            .line(self.read, |line| line.starts_with("= "))?;
        self.read = number + 1;
        Ok(line.trim_start_matches("= ").to_owned())
    }

    /// Ends it normally: its stdin closes and its `main` returns.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub fn exit(self) -> Result<()> {
        let ended = self.program.finish()?;
        ensure!(ended.status.success(), "{ended:?}");
        Ok(())
    }
}

/// Builds the Go program beside the test programs, without the network and without a C compiler.
fn build_go() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let built = test.parent().and_then(Path::parent);
    let built = built.context("a test outside target")?.join("go");
    let program = built.join("talker");
    let output = Command::new("go")
        .args([OsStr::new("build"), OsStr::new("-trimpath")])
        .args([OsStr::new("-o"), program.as_os_str()])
        .arg(".")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/programs/go"))
        .env("GOCACHE", built.join("cache"))
        .env("GOFLAGS", "")
        .env("GOPROXY", "off")
        .env("CGO_ENABLED", "0")
        .output()
        .context("cannot start go: `cargo xtask setup` installs it")?;
    ensure!(
        output.status.success(),
        "go build failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(program)
}

fn keep_lines(from: impl Read + Send + 'static, to: &Lines) -> JoinHandle<()> {
    let to = Arc::clone(to);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            // A program killed in the middle of a line leaves half of one.
            let Ok(line) = line else { break };
            to.0.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
            to.1.notify_all();
        }
    })
}
