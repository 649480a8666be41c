//! What runs under the tracers: the workload of `tests/src/bin/workload.rs`, and nginx under wrk in the
//! same network namespace.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::process::{self, answer};

/// Something to do, and how often one measurement does it.
#[derive(Clone, Copy)]
pub(super) struct Load {
    pub(super) name: &'static str,
    operations: u32,
    /// What one operation is.
    pub(super) about: &'static str,
}

const fn load(name: &'static str, operations: u32, about: &'static str) -> Load {
    Load {
        name,
        operations,
        about,
    }
}

/// What every tracer is measured with.
pub(super) const LOADS: [Load; 6] = [
    load(
        "ping-pong",
        40_000,
        "one byte each way on one connection, between two threads",
    ),
    load(
        "churn",
        10_000,
        "connect, accept, one byte each way, end of file, close",
    ),
    load(
        "bulk",
        2_000,
        "1 MiB from one thread to another, which answers with a byte",
    ),
    load(
        "resets",
        10_000,
        "connect, accept, close with SO_LINGER 0: two events",
    ),
    load(
        "getppid",
        2_000_000,
        "the shortest system call: what every call of the host pays",
    ),
    load(
        "recv",
        1_000_000,
        "a non-blocking receive on an idle socket, which fails with EAGAIN",
    ),
];

/// A send that fails with EPIPE: an event for each.
pub(super) const ERRORS: Load = load("errors", 10_000, "a send that fails with EPIPE: one event");

/// What a web server does all day.
pub(super) const NGINX: Load = load(
    "nginx",
    0,
    "an answer of one worker to one of wrk's 16 connections",
);

/// How long wrk asks, s.
const WRK_SECONDS: u32 = 2;

/// One measurement.
#[derive(Clone, Copy)]
pub(super) struct Measured {
    /// Of one operation.
    pub(super) nanoseconds: f64,
    pub(super) operations: f64,
}

/// The workloads, waiting to be asked.
pub(super) struct Bench {
    workload: Workload,
    nginx: Nginx,
}

impl Bench {
    /// Starts the servers on this CPU.
    pub(super) fn start(cpu: usize) -> Result<Self> {
        let mut workload = Workload::start(&build()?, cpu)?;
        // Its first answer says that it has entered its network namespace.
        workload.ask("getppid 1000")?;
        let nginx = Nginx::start(workload.child.id(), cpu)?;
        Ok(Self { workload, nginx })
    }

    pub(super) fn measure(&mut self, load: Load) -> Result<Measured> {
        if load.name == NGINX.name {
            return self.nginx.serve();
        }
        let question = format!("{} {}", load.name, load.operations);
        Ok(Measured {
            nanoseconds: self.workload.ask(&question)?,
            operations: load.operations.into(),
        })
    }
}

/// The program that does what a line asks.
pub(super) struct Workload {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Workload {
    pub(super) fn start(program: &Path, cpu: usize) -> Result<Self> {
        let mut child = Command::new(program)
            .arg(cpu.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self {
            questions: child.stdin.take().context("stdin is a pipe")?,
            answers: BufReader::new(child.stdout.take().context("stdout is a pipe")?),
            child,
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn ask(&mut self, question: &str) -> Result<f64> {
        writeln!(self.questions, "{question}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        answer
            .trim_end()
            .parse()
            .with_context(|| format!("the workload {question} failed; its reason stands above"))
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // Gone already: nothing is left to stop.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processes that hold connections open, each in a network namespace of its own.
pub(super) struct Crowd(#[expect(dead_code, reason = "held for their drop alone")] Vec<Workload>);

impl Crowd {
    /// Opens as many sockets: connections count two, and a process holds no more than its
    /// descriptors allow.
    pub(super) fn gather(sockets: u32) -> Result<Self> {
        const EACH: u32 = 9_000;
        let program = build()?;
        let mut left = sockets / 2;
        let mut crowd = Vec::new();
        while left > 0 {
            let now = left.min(EACH);
            let mut workload = Workload::start(&program, 0)?;
            workload.ask(&format!("hold {now}"))?;
            crowd.push(workload);
            left -= now;
        }
        Ok(Self(crowd))
    }
}

/// nginx with one process, in the network namespace of the workload.
struct Nginx {
    child: Child,
    /// A process in the namespace.
    namespace: u32,
}

const NGINX_PORT: u16 = 8080;

impl Nginx {
    fn start(namespace: u32, cpu: usize) -> Result<Self> {
        let directory = process::workspace().join("target/overhead");
        fs::create_dir_all(&directory)?;
        let (config, pid) = (directory.join("nginx.conf"), directory.join("nginx.pid"));
        fs::write(
            &config,
            format!(
                "daemon off; master_process off; pid {}; error_log stderr crit;\n\
                 events {{ worker_connections 512; }}\n\
                 http {{ access_log off; keepalive_requests 1000000000;\n\
                 server {{ listen {NGINX_PORT}; location / {{ return 200 ok; }} }} }}\n",
                pid.display()
            ),
        )?;
        // Not there the first time.
        let _ = fs::remove_file(&pid);
        let mut nginx = within(namespace, &["taskset", "-c", &cpu.to_string()]);
        nginx.arg(process::find("nginx").context("nginx is missing: `cargo xtask setup`")?);
        nginx.arg("-c").arg(&config).arg("-p").arg(&directory);
        let mut nginx = Self {
            child: nginx.spawn().context("cannot start nginx")?,
            namespace,
        };
        while !pid.exists() {
            ensure!(nginx.child.try_wait()?.is_none(), "nginx ended: see above");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(nginx)
    }

    /// Lets wrk ask, on the CPU this process runs on.
    fn serve(&self) -> Result<Measured> {
        let url = format!("http://127.0.0.1:{NGINX_PORT}/");
        let seconds = format!("{WRK_SECONDS}s");
        let words = ["wrk", "-t1", "-c16", "-d", &seconds, &url];
        let said = answer(&mut within(self.namespace, &words))
            .context("wrk is missing or failed: `cargo xtask setup`")?;
        let per_second = per_second(&said).with_context(|| format!("wrk said: {said}"))?;
        Ok(Measured {
            nanoseconds: 1e9 / per_second,
            operations: per_second * f64::from(WRK_SECONDS),
        })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Gone already: nothing is left to stop.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command in the network namespace of a process.
fn within(process: u32, words: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{process}/ns/net"));
    command.args(words);
    command
}

/// Requests per second, unless any failed.
fn per_second(said: &str) -> Option<f64> {
    if said.contains("Socket errors") || said.contains("Non-2xx") {
        return None;
    }
    let line = said.lines().find_map(|it| it.strip_prefix("Requests/sec:"));
    line?.trim().parse().ok()
}

pub(super) fn build() -> Result<PathBuf> {
    let target: &Path = &process::workspace().join("target");
    process::run(
        process::cargo("build")
            .args(["--release", "--package", "tcptrace-tests"])
            .args(["--bin", "workload", "--target-dir"])
            .arg(target)
            .env_remove("AYA_BUILD_SKIP"),
    )?;
    Ok(target.join("release/workload"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_believed_only_without_errors() {
        let good = "  20 requests in 1.00s, 2KB read\nRequests/sec:     20.50\nTransfer/sec: 2KB\n";
        assert_eq!(per_second(good), Some(20.5));
        let bad = format!("  Socket errors: connect 0, read 1, write 0, timeout 0\n{good}");
        assert_eq!(per_second(&bad), None);
    }
}
