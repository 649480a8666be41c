//! The servers that logs go to, each in the calling thread's namespace, with the configuration that
//! `docs/operations.md` shows.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::program::Program;
use crate::sockets::{Socket, wait_for_sockets};
use crate::{wait_for_process_state, wait_until};

const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// Where syslog-ng was unpacked: its package and rsyslog's cannot be installed together.
const SYSLOG_NG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/programs/syslog-ng");

/// Where rotel was installed from `PyPI`.
const ROTEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/rotel");

/// What rotel prints before an event's id.
const ROTEL_ID: &str = "-> tcptrace.event.id: Str(";

/// A server that writes what it gets to a file.
#[derive(Debug)]
pub struct LogServer {
    program: Program,
    directory: TempDir,
    /// What comes just before and after an event's id in the file.
    around_id: (&'static str, &'static str),
}

impl LogServer {
    /// The port that rsyslog and syslog-ng listen at.
    pub const PORT: u16 = 6514;
    /// Where rotel takes OTLP over gRPC.
    pub const OTLP_GRPC: &str = "127.0.0.1:4317";
    /// Where rotel takes OTLP over HTTP.
    pub const OTLP_HTTP: &str = "127.0.0.1:4318";

    /// rsyslog, at a TCP port, a UDP port and a Unix socket.
    ///
    /// # Errors
    /// When it cannot be started or does not serve.
    pub fn rsyslog() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let configuration = configure("rsyslog", directory.path())?;
        let mut command = Command::new("rsyslogd");
        command.args(["-n", "-i", "NONE", "-f"]).arg(configuration);
        let around_id = ("\"tcptrace.event.id\": \"", "\"");
        let server = Self::start(command, directory, around_id)?;
        wait_for_port(Self::PORT)?;
        let socket = server.socket();
        wait_until("rsyslog's socket", || Ok(socket.exists()))?;
        Ok(server)
    }

    /// syslog-ng, at a TCP port.
    ///
    /// # Errors
    /// When it cannot be started or does not serve.
    pub fn syslog_ng() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let configuration = configure("syslog-ng", directory.path())?;
        let libraries = format!("{SYSLOG_NG}/usr/lib/syslog-ng");
        let at = |name| directory.path().join(name);
        let mut command = Command::new(format!("{SYSLOG_NG}/usr/sbin/syslog-ng"));
        command
            .env("LD_LIBRARY_PATH", &libraries)
            .args(["--foreground", "--no-caps"])
            .arg(format!("--module-path={libraries}/3.38"))
            .arg("--cfgfile")
            .arg(configuration)
            .arg("--persist-file")
            .arg(at("persist"))
            .arg("--pidfile")
            .arg(at("pid"))
            .arg("--control")
            .arg(at("control"));
        let server = Self::start(command, directory, (" id=", " "))?;
        wait_for_port(Self::PORT)?;
        Ok(server)
    }

    /// socat, which takes one connection at this kind of listener, e.g. `TCP-LISTEN:5140`, and writes
    /// what it gets.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn socat(listen: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let command = socat(&[], listen, &directory);
        Self::start(command, directory, ("\"tcptrace.event.id\":\"", "\""))
    }

    /// socat, which ends a connection over which nothing has come for half a second.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn socat_that_leaves(listen: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let command = socat(&["-T", "0.5"], listen, &directory);
        Self::start(command, directory, ("\"tcptrace.event.id\":\"", "\""))
    }

    /// rotel, a receiver of OTLP at [`OTLP_GRPC`](Self::OTLP_GRPC) and [`OTLP_HTTP`](Self::OTLP_HTTP). Its
    /// lines are those with the id of an event, or all it prints of each when it is wanted `in_full`.
    ///
    /// # Errors
    /// When it cannot be started or does not serve.
    pub fn rotel(in_full: bool) -> Result<Self> {
        Self::start_rotel(tempfile::tempdir()?, in_full)
    }

    /// Starts rotel in the place of one that was killed, with the same file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_rotel(self) -> Result<Self> {
        Self::start_rotel(self.directory, false)
    }

    fn start_rotel(directory: TempDir, in_full: bool) -> Result<Self> {
        // The filter ends with what it reads from, which is the process that is killed.
        let script = if in_full {
            r#"exec "$@" > "$LOG""#
        } else {
            r#"exec "$@" > >(exec grep --line-buffered --fixed-strings -e "$ID" >> "$LOG")"#
        };
        let agent = fs::read_dir(format!("{ROTEL}/lib"))
            .context("`cargo xtask setup` installs rotel")?
            .next()
            .context("a Python without a version")??
            .path()
            .join("site-packages/rotel/rotel-agent");
        let mut command = Command::new("bash");
        command
            .args(["-c", script, "bash"])
            .arg(agent)
            .args(["start", "--exporter", "blackhole", "--disable-batching"])
            .args(["--debug-log", "logs", "--debug-log-verbosity", "detailed"])
            .args(["--otlp-grpc-endpoint", Self::OTLP_GRPC])
            .args(["--otlp-http-endpoint", Self::OTLP_HTTP])
            .arg("--pid-file")
            .arg(directory.path().join("pid"))
            .env("ID", ROTEL_ID)
            .env("LOG", directory.path().join("log"));
        let server = Self::start(command, directory, (ROTEL_ID, ")"))?;
        for address in [Self::OTLP_GRPC, Self::OTLP_HTTP] {
            let (_, port) = address.split_once(':').context("a port")?;
            wait_for_port(port.parse()?)?;
        }
        Ok(server)
    }

    /// Starts socat in the place of one that was killed, with the same file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_socat(self, listen: &str) -> Result<Self> {
        let command = socat(&[], listen, &self.directory);
        Self::start(command, self.directory, self.around_id)
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill(&mut self) -> Result<()> {
        self.program.kill()
    }

    /// Stops it, for good: only SIGKILL ends it now.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn stop_reading(&self) -> Result<()> {
        self.program.signal(Signal::SIGSTOP)?;
        wait_for_process_state(self.program.pid(), 'T')
    }

    fn start(
        command: Command,
        directory: TempDir,
        around_id: (&'static str, &'static str),
    ) -> Result<Self> {
        Ok(Self {
            program: Program::start(command)?,
            directory,
            around_id,
        })
    }

    /// A Unix socket of its own directory.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// The lines it wrote.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn lines(&self) -> Result<Vec<String>> {
        let path = self.directory.path().join("log");
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        Ok(text.lines().map(String::from).collect())
    }

    /// How many lines it has written.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn count(&self) -> Result<u64> {
        let file = match File::open(self.directory.path().join("log")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            file => file?,
        };
        let mut file = BufReader::with_capacity(1 << 20, file);
        let mut count = 0;
        while file.skip_until(b'\n')? > 0 {
            count += 1;
        }
        Ok(count)
    }

    /// The ids of the events it got, in order, once it has got so many.
    ///
    /// # Errors
    /// When it does not in time, or a line has no id.
    pub fn ids(&self, count: usize) -> Result<Vec<String>> {
        let mut lines = vec![];
        let waited = wait_until("a server to write what it got", || {
            lines = self.lines().map_err(std::io::Error::other)?;
            Ok(lines.len() >= count)
        });
        waited.with_context(|| format!("{} of {count} lines came", lines.len()))?;
        let (before, after) = self.around_id;
        let id = |line: &String| {
            let (_, rest) = line.split_once(before)?;
            Some(rest.split_once(after)?.0.to_owned())
        };
        let ids = lines
            .iter()
            .map(|line| id(line).with_context(|| format!("there is no id in {line}")));
        ids.collect()
    }
}

fn socat(options: &[&str], listen: &str, directory: &TempDir) -> Command {
    let mut file = std::ffi::OsString::from("OPEN:");
    file.push(directory.path().join("log"));
    file.push(",creat,append");
    let mut command = Command::new("socat");
    command.args(options).arg("-u").arg(listen).arg(file);
    command
}

/// Waits until somebody listens at this port.
///
/// # Errors
/// When nobody does in time.
pub fn wait_for_port(port: u16) -> Result<()> {
    wait_for_sockets(1, |socket| {
        socket.state == Socket::LISTEN && socket.local_port == port
    })
}

/// The block of `docs/operations.md` in this language, with paths in `directory` for those of a host.
fn configure(language: &str, directory: &Path) -> Result<PathBuf> {
    let block = OPERATIONS
        .split_once(&format!("```{language}\n"))
        .and_then(|(_, rest)| rest.split_once("```"));
    let (block, _) = block.with_context(|| format!("docs/operations.md has no {language}"))?;
    let own = |name| directory.join(name).display().to_string();
    let block = block
        .replace("/var/log/tcptrace.log", &own("log"))
        .replace("/run/tcptrace.sock", &own("socket"));
    let path = directory.join("configuration");
    fs::write(&path, block)?;
    Ok(path)
}

/// journald, with a `/run` of the calling thread's own.
#[derive(Debug)]
pub struct Journald {
    _program: Program,
}

impl Journald {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start() -> Result<Self> {
        let nothing = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(nothing, "/", nothing, private, nothing)?;
        mount(
            Some("tmpfs"),
            "/run",
            Some("tmpfs"),
            MsFlags::empty(),
            nothing,
        )?;
        let settings = Path::new("/run/systemd/journald.conf.d");
        fs::create_dir_all(settings)?;
        fs::create_dir_all("/run/systemd/journal")?;
        let setting = "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nRateLimitBurst=0\n";
        fs::write(settings.join("test.conf"), setting)?;
        let program = Program::start(Command::new("/lib/systemd/systemd-journald"))?;
        let socket = Path::new("/run/systemd/journal/socket");
        wait_until("journald's socket", || Ok(socket.exists()))?;
        Ok(Self { _program: program })
    }

    /// The entries of tcptrace, once there are so many.
    ///
    /// # Errors
    /// When they do not come.
    pub fn entries(&self, count: usize) -> Result<Vec<Value>> {
        let mut entries = vec![];
        let waited = wait_until("entries in the journal", || {
            let output = Command::new("journalctl")
                .args(["--output=json", "--no-pager", "--quiet", "-t", "tcptrace"])
                .output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            entries = text
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            Ok(entries.len() >= count)
        });
        waited.with_context(|| format!("{} of {count} entries came", entries.len()))?;
        Ok(entries)
    }
}

/// Fails unless both hold the same ids, each once.
///
/// # Errors
/// With those that are missing and those that came more than once.
pub fn ensure_same(expected: &[String], came: &[String]) -> Result<()> {
    let set = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>();
    let (wanted, got) = (set(expected), set(came));
    let missing: Vec<_> = wanted.difference(&got).collect();
    let strange: Vec<_> = got.difference(&wanted).collect();
    ensure!(
        missing.is_empty() && strange.is_empty() && came.len() == got.len(),
        "{} of {} came, {} twice; missing: {missing:?}; of somebody else: {strange:?}",
        got.len(),
        wanted.len(),
        came.len() - got.len()
    );
    Ok(())
}
