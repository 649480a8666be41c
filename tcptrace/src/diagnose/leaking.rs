//! Connections the peer has closed and the process has not.

use std::collections::HashSet;

use super::verdict::Words;
use super::waiting;
use crate::event::{CloseWait, Count, Event, Millis, Severity, SocketId, Timestamp};

/// Old enough that no program means it.
const OLD_MS: u64 = 10_000;
/// A program that still works on the request it was sent may take this long to notice.
const WORKING_MS: u64 = 60_000;
/// So many at a time are no accident.
const SEVERAL: u64 = 3;
/// Connections told apart by their address.
const KNOWN: usize = 4_096;

/// What one process leaves open to one peer or port.
#[derive(Debug, Default)]
pub(super) struct Leak {
    known: HashSet<SocketId>,
    held: u64,
    oldest_ms: u64,
    at_least: bool,
    unread: u64,
    eof_read: u64,
    fds: Vec<i32>,
    first: Option<Timestamp>,
    last: Timestamp,
    /// It was enough to call it a leak.
    called: bool,
}

impl Leak {
    /// Takes one more telling of a connection that waits to be closed. True: another connection.
    pub(super) fn take(&mut self, event: &Event, wait: &CloseWait) -> bool {
        let Some(socket) = &event.socket else {
            return false;
        };
        let new = wait.at_start || self.known.len() < KNOWN && self.known.insert(socket.id);
        if new {
            self.held += u64::from(wait.count);
            self.unread += u64::from(socket.unread);
            self.eof_read += u64::from(socket.eof_read);
            if self.fds.len() < 5 {
                self.fds.extend(socket.fd);
            }
        }
        self.first.get_or_insert(event.time);
        self.last = event.time;
        if wait.age_ms >= self.oldest_ms {
            (self.oldest_ms, self.at_least) = (wait.age_ms, wait.at_least);
        }
        let works = waiting::peer_waited_ms(socket).is_some();
        let limit = if works { WORKING_MS } else { OLD_MS };
        self.called |= wait.age_ms >= limit || self.held >= SEVERAL && !works;
        new
    }

    /// Connections it leaves open.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Enough to say so.
    pub(super) fn is_one(&self) -> bool {
        self.called
    }

    pub(super) fn severity(&self) -> Severity {
        if self.held >= SEVERAL {
            Severity::Error
        } else {
            Severity::Warn
        }
    }

    pub(super) fn words(&self, owner: &str, peer: &str) -> Words {
        let bound = if self.at_least { "at least " } else { "" };
        let read = match (self.eof_read, self.held) {
            (0, _) => "it has not read the end of the stream of any",
            (read, held) if read >= held => "it has read the end of the stream of each",
            _ => "it has read the end of the stream of some",
        };
        let unread = match self.unread {
            0 => String::new(),
            bytes => format!(", {} unread", Count(bytes, "byte")),
        };
        let fds: Vec<_> = self.fds.iter().map(ToString::to_string).collect();
        let fds = if fds.is_empty() {
            String::new()
        } else {
            format!(", fd {}", fds.join(", "))
        };
        let more = if self.held > self.fds.len() as u64 && !fds.is_empty() {
            ", …"
        } else {
            ""
        };
        Words::new(
            format!(
                "{owner} holds {} {peer} that the peer has closed (CLOSE_WAIT), the oldest for \
                 {bound}{}{}; {read}{unread}{fds}{more}",
                Count(self.held, "connection"),
                Millis(self.oldest_ms),
                self.growth()
            ),
            "The peer has closed, and the connection stays until the program closes it too: no timer of the \
             kernel does. Each keeps a descriptor and memory, and one day accept or socket fails with EMFILE.",
        )
        .fix(if self.eof_read > 0 {
            format!("{owner} reads the end of the stream and does not close: look at the path after a read of 0 bytes (Go: resp.Body.Close, defer conn.Close; Java: try-with-resources; Python: with)")
        } else {
            format!("{owner} does not even read: a handler that is stuck, or a pool that forgot the connection (return or close it on every path, set idle timeouts and checks of idle connections)")
        })
        .fix("no sysctl helps: tcp_fin_timeout is about the other end, and keepalive at most ends the connection and \
             leaves the descriptor open; a restart only buys time")
        .ruled_out("the peer and the network: the FIN arrived and was acknowledged")
    }

    fn growth(&self) -> String {
        let Some(first) = self.first else {
            return String::new();
        };
        let seconds = self.last.0.saturating_sub(first.0) / 1_000_000_000;
        if seconds < 10 || self.held < SEVERAL {
            return String::new();
        }
        format!(", {} more a minute", self.held * 60 / seconds)
    }
}
