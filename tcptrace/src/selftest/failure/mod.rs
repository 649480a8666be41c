//! The failures the selftest provokes, one file each, and the stage they are provoked on.

mod accept_queue;
mod address_in_use;
mod bad_descriptor;
mod close_wait;
mod closed_on_accept;
mod closed_unread;
mod connect_timeout;
mod exited;
mod expect;
mod fd_exhausted;
mod firewall;
mod gave_up;
mod host_files;
mod idle;
mod keepalive;
mod killed;
mod linger_zero;
mod listener_closed;
mod memory;
mod named;
mod not_connected;
mod peer_not_reading;
mod pool;
mod ports;
mod refused;
mod reset_by_peer;
mod shut_down;
mod socket_timeout;
mod stage;
mod stale;
mod states;
mod syn_queue;
mod unacknowledged;
mod unreachable;
mod write_after_close;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

pub(super) use expect::{Count, Expect};
pub(super) use named::Named;
pub(super) use stage::Stage;

/// All of them, in the order of the report.
pub(super) const FAILURES: &[&Failure] = &[
    &write_after_close::FAILURE,
    &idle::POOLED,
    &gave_up::PEER,
    &shut_down::FAILURE,
    &closed_unread::FAILURE,
    &exited::FAILURE,
    &closed_on_accept::FAILURE,
    &linger_zero::FAILURE,
    &reset_by_peer::FAILURE,
    &idle::SILENT,
    &listener_closed::FAILURE,
    &refused::HERE,
    &refused::REMOTE,
    &unreachable::FAILURE,
    &accept_queue::SYN,
    &accept_queue::ACK,
    &accept_queue::ABORT,
    &syn_queue::FAILURE,
    &fd_exhausted::FAILURE,
    &fd_exhausted::LEAK,
    &host_files::FAILURE,
    &close_wait::FAILURE,
    &bad_descriptor::FAILURE,
    &not_connected::FAILURE,
    &connect_timeout::FAILURE,
    &unacknowledged::RETRANSMIT,
    &unacknowledged::USER,
    &keepalive::FAILURE,
    &peer_not_reading::FAILURE,
    &socket_timeout::FAILURE,
    &connect_timeout::ABANDONED,
    &gave_up::WAITING,
    &pool::FAILURE,
    &ports::FAILURE,
    &address_in_use::FAILURE,
    &stale::FAILURE,
    &firewall::FAILURE,
    &killed::FAILURE,
    &memory::FAILURE,
    &states::FAILURE,
];

/// A failure that can be provoked.
pub(super) struct Failure {
    /// The cause it shows and, after a dot, which way to it. By this name it is chosen.
    pub(super) name: &'static str,
    /// What the application sees.
    pub(super) symptom: &'static str,
    /// The setting of the whole host it changes for a moment.
    pub(super) changes_host: Option<&'static str>,
    /// Provokes it, and says what must come of it.
    pub(super) provoke: fn(&Stage) -> Result<Shown>,
}

impl Failure {
    /// The identifier of the cause it shows; no cause's where nothing fails.
    pub(super) fn cause(&self) -> &'static str {
        self.name.split('.').next().unwrap_or_default()
    }
}

/// What must come of a failure, and nothing else.
#[derive(Default)]
pub(super) struct Shown {
    pub(super) events: Vec<Expect>,
    pub(super) findings: Vec<Named>,
}

/// Why this host cannot provoke a failure, as an error of [`Failure::provoke`].
#[derive(Debug)]
pub(super) struct Lacks(pub(super) String);

impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lacks {}

/// A way two sockets may talk.
#[derive(Clone, Copy)]
struct Family {
    name: &'static str,
    any_port: &'static str,
}

/// IPv4, IPv6, and IPv4 between IPv6 sockets.
const FAMILIES: [Family; 3] = [
    Family {
        name: "IPv4",
        any_port: "127.0.0.1:0",
    },
    Family {
        name: "IPv6",
        any_port: "[::1]:0",
    },
    Family {
        name: "v4-mapped",
        any_port: "[::ffff:127.0.0.1]:0",
    },
];

impl Family {
    fn addr(self) -> Result<SocketAddr> {
        Ok(self.any_port.parse()?)
    }
}

/// Data that came and data that went are told apart by the kernel's clock, and its ticks are up to
/// 10 ms long: a request that follows an answer more closely cannot be told from one it answers.
const TICK: Duration = Duration::from_millis(20);

/// The signal that shows RSTs without a full socket.
pub(super) const NO_SOCKET: &str = "reset sent without a connection";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Cause;

    #[test]
    fn every_cause_has_a_failure_of_its_name() {
        for cause in Cause::ALL {
            assert!(
                FAILURES.iter().any(|it| it.cause() == cause.as_str()),
                "{}",
                cause.as_str()
            );
        }
    }

    #[test]
    fn names_are_unique_and_every_other_one_says_that_nothing_fails() {
        let mut seen = std::collections::HashSet::new();
        for failure in FAILURES {
            assert!(seen.insert(failure.name), "{} twice", failure.name);
            let shows = Cause::ALL.iter().any(|it| it.as_str() == failure.cause());
            assert!(
                shows || failure.symptom.starts_with("(none"),
                "{}",
                failure.name
            );
        }
    }
}
