//! The servers that half the world runs, each in the calling thread's namespace with a directory of
//! its own, which goes when they do.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::program::{Ended, Program};
use crate::sockets::{Socket, wait_for_sockets};
use crate::wait_until;

/// nginx with one worker.
#[derive(Debug)]
pub struct Nginx {
    master: Program,
    worker: u32,
    directory: TempDir,
}

impl Nginx {
    /// Where it listens.
    pub const ADDR: &str = "127.0.0.1:8080";

    /// Starts it and waits until it serves. `server` goes into its `server` block, where `$root` is
    /// a directory with the file `large` of 64 MiB; `listen` follows the address.
    ///
    /// # Errors
    /// When it cannot be started or does not serve.
    pub fn start(listen: &str, server: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let root = directory
            .path()
            .to_str()
            .context("a strange temporary directory")?;
        fs::File::create(directory.path().join("large"))?.set_len(64 << 20)?;
        fs::write(directory.path().join("index.html"), "hello\n")?;
        let (addr, server) = (Self::ADDR, server.replace("$root", root));
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {root}/{kind};"))
            .concat();
        let configuration = format!(
            "daemon off; user root; worker_processes 1; pid {root}/pid; error_log {root}/error;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log {root}/access; {temporary}\n\
             server {{ listen {addr} {listen}; root {root}; {server} }} }}\n"
        );
        let path = directory.path().join("conf");
        fs::write(&path, configuration)?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&path);
        let master = Program::start(command)?;
        let mut nginx = Self {
            master,
            worker: 0,
            directory,
        };
        wait_until_it_accepts(&nginx.master, Self::ADDR)?;
        nginx.worker = nginx.current_worker()?;
        Ok(nginx)
    }

    /// The master, which made the listener.
    #[must_use]
    pub fn master(&self) -> &Program {
        &self.master
    }

    /// The worker it started with.
    #[must_use]
    pub fn worker(&self) -> u32 {
        self.worker
    }

    /// The worker it has now, once it has one.
    ///
    /// # Errors
    /// When it has none in time.
    pub fn current_worker(&self) -> Result<u32> {
        let mut worker = None;
        wait_until("nginx to have a worker", || {
            worker = self.workers().first().copied();
            Ok(worker.is_some())
        })?;
        worker.context("nginx has no worker")
    }

    fn workers(&self) -> Vec<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.master.pid());
        let workers = fs::read_to_string(path).unwrap_or_default();
        let pids = workers.split_whitespace();
        pids.filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Sends its worker a signal.
    ///
    /// # Errors
    /// When the worker has ended already.
    pub fn signal_worker(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.worker.cast_signed()), signal)?)
    }

    /// Waits until its error log or its access log has a line with this text.
    ///
    /// # Errors
    /// When it has none in time, with the logs.
    pub fn wait_for_log(&self, text: &str) -> Result<()> {
        let logs = || {
            let log = |name| fs::read_to_string(self.directory.path().join(name));
            log("error").unwrap_or_default() + &log("access").unwrap_or_default()
        };
        wait_until(text, || Ok(logs().contains(text)))
            .with_context(|| format!("nginx logged:\n{}", logs()))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let workers = self.workers();
        // The master first: it would replace a worker that dies.
        _ = self.master.kill();
        for worker in workers {
            _ = kill(Pid::from_raw(worker.cast_signed()), Signal::SIGKILL);
        }
    }
}

/// redis without persistence.
#[derive(Debug)]
pub struct Redis {
    /// The server.
    pub server: Program,
    _directory: TempDir,
}

impl Redis {
    /// Where it listens.
    pub const ADDR: &str = "127.0.0.1:6379";

    /// Starts it with further settings, e.g. `["--timeout", "1"]`, and waits until it serves.
    ///
    /// # Errors
    /// When it cannot be started or does not serve.
    pub fn start(settings: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(directory.path()).args(settings);
        let server = Program::start(command)?;
        wait_until_it_accepts(&server, Self::ADDR)?;
        Ok(Self {
            server,
            _directory: directory,
        })
    }

    /// Runs `redis-cli` with these arguments to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn cli(&self, args: &[&str]) -> Result<Ended> {
        let mut command = Command::new("redis-cli");
        command.args(args);
        Program::start(command)?.finish()
    }
}

/// Runs curl to its end: quiet but for errors.
///
/// # Errors
/// When it cannot be started.
pub fn curl(args: &[&str]) -> Result<(u32, Ended)> {
    let curl = start_curl(args)?;
    Ok((curl.pid(), curl.finish()?))
}

/// Starts curl: quiet but for errors.
///
/// # Errors
/// When it cannot be started.
pub fn start_curl(args: &[&str]) -> Result<Program> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error"]).args(args);
    Program::start(command)
}

/// Starts a command line of the shell, for pipelines.
///
/// # Errors
/// When it cannot be started.
pub fn shell(line: &str) -> Result<Program> {
    let mut command = Command::new("sh");
    command.args(["-c", line]);
    Program::start(command)
}

fn wait_until_it_accepts(server: &Program, addr: &str) -> Result<()> {
    let addr: SocketAddr = addr.parse()?;
    wait_until("a server to accept", || {
        let alive = Path::new("/proc")
            .join(server.pid().to_string())
            .join("exe");
        if alive.read_link().is_err() {
            return Err(std::io::Error::other("the server has ended"));
        }
        Ok(TcpStream::connect(addr).is_ok())
    })?;
    // It has closed its end as well: nothing of this is left for a test to see.
    wait_for_sockets(0, |socket| {
        let open = [Socket::ESTABLISHED, Socket::CLOSE_WAIT].contains(&socket.state);
        open && socket.local_port == addr.port()
    })
}
