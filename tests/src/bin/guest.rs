//! The first process of a test machine (`cargo xtask vmtest`): makes a bare kernel a place where
//! the live tests run, does what `/commands` says, and turns the machine off.
//!
//! A command is a line of words with tabs between them: its name, the program, the arguments. All
//! output goes to the serial console in sections, which `xtask/src/vmtest/console.rs` reads:
//! `@@ begin NAME`, the output, `@@ end NAME STATUS MILLISECONDS`. At the very end comes `@@ done`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, sethostname};

/// File systems, in the order they need each other.
const MOUNTS: [(&str, &str); 9] = [
    ("devtmpfs", "/dev"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("tracefs", "/sys/kernel/tracing"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
];

const ENVIRONMENT: [(&str, &str); 2] = [("PATH", "/bin"), ("TCPTRACE_BIN", "/bin/tcptrace")];

/// The kernel's log as `syslog(2)` numbers what can be done with it.
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/syslog.h>
const SYSLOG_ACTION_READ_ALL: libc::c_int = 3;
const SYSLOG_ACTION_CONSOLE_LEVEL: libc::c_int = 8;

fn main() {
    if let Err(error) = run() {
        println!("the guest gives up: {error:#}");
    }
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    println!("the guest cannot power off: {error}");
}

fn run() -> Result<()> {
    for (kind, path) in MOUNTS {
        fs::create_dir_all(path)?;
        mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {path}"))?;
    }
    open_console().context("cannot open the console")?;
    // The console is for the tests: of the kernel's own messages only a panic still shows there.
    kernel_log(SYSLOG_ACTION_CONSOLE_LEVEL, &mut [], 1)?;
    sethostname("guest")?;
    section("modules", load_modules)?;
    for line in fs::read_to_string("/commands")?.lines() {
        let mut words = line.split('\t');
        let name = words.next().context("a command has a name")?;
        let mut command = Command::new(words.next().context("a command has a program")?);
        command.args(words).envs(ENVIRONMENT).stdin(Stdio::null());
        section(name, || status_of(&mut command))?;
    }
    section("dmesg", || {
        let mut messages = vec![0; 1 << 20];
        let length = libc::c_int::try_from(messages.len())?;
        let read = kernel_log(SYSLOG_ACTION_READ_ALL, &mut messages, length)?;
        io::stdout().write_all(&messages[..usize::try_from(read)?])?;
        Ok(0)
    })?;
    println!("@@ done");
    Ok(())
}

/// Takes the console for input and output: where the kernel started this process there was none.
fn open_console() -> io::Result<()> {
    let console = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/console")?;
    dup2_stdin(&console)?;
    dup2_stdout(&console)?;
    dup2_stderr(&console)?;
    Ok(())
}

/// Does the work of a section and reports it. An error of the work is a status like any other.
fn section(name: &str, work: impl FnOnce() -> Result<i32>) -> io::Result<()> {
    println!("@@ begin {name}");
    let start = Instant::now();
    let status = work().unwrap_or_else(|error| {
        println!("{error:#}");
        255
    });
    // What ran may have left half a line.
    println!("\n@@ end {name} {status} {}", start.elapsed().as_millis());
    io::stdout().flush()
}

/// Loads what lies in `/modules`, in the order of the names.
fn load_modules() -> Result<i32> {
    let mut paths: Vec<_> = fs::read_dir("/modules")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    paths.sort();
    for path in paths {
        finit_module(File::open(&path)?, c"", ModuleInitFlags::empty())
            .with_context(|| format!("cannot load {}", path.display()))?;
    }
    Ok(0)
}

/// Runs a command to its end, and returns its status as a shell would.
fn status_of(command: &mut Command) -> Result<i32> {
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let child = i32::try_from(child.id())?;
    // Orphans are this process's to bury: a test sees a process that is not as still alive.
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, status)) if pid.as_raw() == child => return Ok(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == child => {
                return Ok(128 + signal as i32);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait"),
        }
    }
}

/// `syslog(2)`: reads the kernel's log into `buffer`, or sets what `number` means for `action`.
fn kernel_log(action: libc::c_int, buffer: &mut [u8], number: libc::c_int) -> Result<libc::c_int> {
    // SAFETY: `number` is the length of the buffer, or the action does not touch it.
    let result = unsafe { libc::klogctl(action, buffer.as_mut_ptr().cast(), number) };
    Errno::result(result).context("cannot use the kernel's log")
}
