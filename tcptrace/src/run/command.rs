//! `-- CMD`: a command that begins only when the trace has.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use caps::CapsHashSet;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::sync::oneshot;

use crate::kernel::confinement::{Part, confine};
use crate::kernel::privileges::keep_only;

/// A process that waits to become the command.
#[derive(Debug)]
pub(super) struct Held {
    /// Its number, which the command will have.
    pub(super) pid: u32,
    release: File,
    thread: JoinHandle<()>,
    ended: oneshot::Receiver<io::Result<ExitStatus>>,
}

impl Held {
    /// Forks and waits.
    pub(super) fn new(command: &[OsString]) -> Result<Self> {
        let (program, args) = command.split_first().context("no command was given")?;
        let (told, tell) = pipe2(OFlag::O_CLOEXEC)?;
        let (wait, release) = pipe2(OFlag::O_CLOEXEC)?;
        let mut child = Command::new(program);
        child.args(args);
        let (tell_fd, wait_fd) = (tell.as_raw_fd(), wait.as_raw_fd());
        let release_fd = release.as_raw_fd();
        let hold = move || {
            // Its own copy would keep it waiting for ever, should this tracer be killed.
            // SAFETY: close may be called between fork and exec, and nothing else there knows this
            // descriptor.
            unsafe { libc::close(release_fd) };
            let pid = std::process::id().to_ne_bytes();
            // SAFETY: write may be called between fork and exec, and the descriptor is open there.
            unsafe { libc::write(tell_fd, pid.as_ptr().cast(), pid.len()) };
            let mut byte = 0_u8;
            // SAFETY: read may be called between fork and exec, and the descriptor is open there.
            let released = unsafe { libc::read(wait_fd, (&raw mut byte).cast(), 1) };
            if released == 1 {
                Ok(())
            } else {
                Err(io::ErrorKind::Interrupted.into())
            }
        };
        // SAFETY: the closure calls only what may be called between fork and exec.
        unsafe { child.pre_exec(hold) };
        let (send, ended) = oneshot::channel();
        // `spawn` returns only when the child has become the command, so it waits elsewhere.
        let thread = thread::Builder::new()
            .name("command".into())
            .spawn(move || {
                let _open_until_exec = (tell, wait);
                let ended = child.spawn().and_then(|mut child| {
                    // The command was forked with the privileges of who started us; to wait for it
                    // takes none. Where this fails, so has the same in the main thread.
                    let _ = keep_only(&CapsHashSet::new()).and_then(|()| confine(Part::Reader));
                    child.wait()
                });
                // The run may be over.
                let _ = send.send(ended);
            })?;
        let mut pid = [0; 4];
        File::from(told)
            .read_exact(&mut pid)
            .context("the command could not be forked")?;
        Ok(Self {
            pid: u32::from_ne_bytes(pid),
            release: release.into(),
            thread,
            ended,
        })
    }

    /// Lets it go; the result comes when it has ended.
    pub(super) fn release(mut self) -> Result<oneshot::Receiver<io::Result<ExitStatus>>> {
        self.release
            .write_all(b"!")
            .context("the command did not wait")?;
        drop(self.thread);
        Ok(self.ended)
    }
}

/// The status a shell would report.
pub(super) fn status(ended: io::Result<ExitStatus>, command: &OsString) -> Result<u8> {
    let status = ended
        .map_err(|error| anyhow!("cannot run {}: {error}", command.display()))
        .context("the command never started")?;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(super::status::FAILED))
}
