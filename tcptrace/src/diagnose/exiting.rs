//! A process that ended with connections open.

use super::connection::View;
use super::verdict::Words;
use crate::event::{Count, Exit, Side};
use std::fmt::Write as _;

/// What one process took down with it.
#[derive(Debug, Default)]
pub(super) struct Exited {
    exit: Option<Exit>,
    reset: u64,
    closed: u64,
    unread: u64,
    queued: u64,
    of_a_server: bool,
}

impl Exited {
    pub(super) fn take(&mut self, view: View<'_>) {
        self.exit = self.exit.or(view.this.exit());
        match view.this.reset_sent() {
            Some((_, reset)) => {
                self.reset += 1;
                self.unread += u64::from(reset.unread);
                self.queued += u64::from(reset.unaccepted);
            }
            None => self.closed += 1,
        }
        self.of_a_server |= view.this.side() == Some(Side::Server);
    }

    /// Somebody lost something: an ordinary end closes what is open, and nobody minds.
    pub(super) fn is_a_failure(&self) -> bool {
        let crash = match self.exit {
            Some(Exit::Signal(signal)) => {
                !matches!(
                    signal,
                    libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGPIPE | libc::SIGQUIT
                ) || self.of_a_server
            }
            Some(Exit::Code(code)) => code != 0 && self.of_a_server,
            None => false,
        };
        self.reset > 0 || crash
    }

    pub(super) fn words(&self, owner: &str) -> Words {
        let how = match self.exit {
            Some(Exit::Signal(signal)) => format!("was killed by {}", signal_name(signal)),
            Some(Exit::Code(code)) => format!("exited with {code}"),
            None => "ended".to_owned(),
        };
        let total = self.reset + self.closed;
        let mut parts = Vec::new();
        if self.reset > 0 {
            let mut part = format!("{} reset", self.reset);
            if self.queued > 0 {
                let _ = write!(part, " ({} of them still in the accept queue)", self.queued);
            } else if self.unread > 0 {
                let _ = write!(part, " ({} unread)", Count(self.unread, "byte"));
            }
            parts.push(part);
        }
        if self.closed > 0 {
            parts.push(format!("{} closed with a FIN", self.closed));
        }
        let fix = match self.exit {
            Some(Exit::Signal(libc::SIGKILL)) => {
                "who sends SIGKILL? the OOM killer (dmesg, memory.events: oom_kill), a stop timeout \
                 (systemd TimeoutStopSec=, Kubernetes terminationGracePeriodSeconds), an operator"
            }
            Some(Exit::Signal(
                libc::SIGSEGV | libc::SIGABRT | libc::SIGBUS | libc::SIGILL | libc::SIGFPE,
            )) => "it crashed: coredumpctl info, and the program's own log",
            _ => {
                "on SIGTERM: stop accepting, answer what is in work, close each connection, then exit"
            }
        };
        Words::new(
            format!(
                "{owner} {how}, and {} went down with it: {}",
                Count(total, "connection"),
                parts.join(", ")
            ),
            "The kernel closes what a process leaves open: connections with unread bytes are reset, those \
             without get a FIN. So the same end looks different to its peers: ECONNRESET here, end of \
             stream and then EPIPE there.",
        )
        .fix(fix)
        .ruled_out("the network: this host sent the RST and FIN")
    }
}

/// A signal's name, as `kill -l` has it, or its number.
fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => format!("signal {signal}"),
    }
}
