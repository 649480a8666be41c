//! Descriptors: none was left, or one was used after it was closed.

use std::fmt::Write as _;
use std::sync::Arc;

use super::verdict::Words;
use crate::event::{
    CallError, Count, End, Errno, Event, Fact, FdExhausted, Held, Holdings, State, Syscall,
};

/// A process, or the host, without descriptors.
#[derive(Debug, Default)]
pub(super) struct Exhausted {
    errno: Option<Errno>,
    syscall: Option<Syscall>,
    open: Option<u64>,
    limit: Option<u64>,
    holdings: Option<Arc<Holdings>>,
    listener: Option<std::net::SocketAddr>,
}

impl Exhausted {
    pub(super) fn take(&mut self, event: &Event, fds: &FdExhausted) {
        self.errno = Some(fds.errno);
        self.syscall = self.syscall.or(fds.syscall);
        self.open = self.open.or(fds.open);
        self.limit = self.limit.or(fds.limit);
        let local = event.socket.as_ref().map(|socket| socket.flow.local);
        self.listener = self.listener.or(local);
        if self.holdings.is_none() {
            self.holdings = event.facts.iter().find_map(|fact| match fact {
                Fact::Holdings(holdings) => Some(Arc::clone(holdings)),
                _ => None,
            });
        }
    }

    /// The error.
    pub(super) fn errno(&self) -> Option<Errno> {
        self.errno
    }

    /// So many leaked connections, or those found in the table, are most of it.
    pub(super) fn is_filled_by(&self, leaked: u64) -> bool {
        self.open
            .is_some_and(|open| leaked.max(self.leaked()) * 2 >= open)
    }

    /// Connections in CLOSE_WAIT in the table.
    fn leaked(&self) -> u64 {
        let Some(holdings) = &self.holdings else {
            return 0;
        };
        let rows = holdings.rows.iter().filter(|it| is_close_wait(&it.what));
        rows.map(|row| row.count).sum()
    }

    pub(super) fn words(&self, owner: &str, count: u64) -> Words {
        let errno = self.errno.map_or(String::new(), |errno| errno.to_string());
        let call = self
            .syscall
            .map_or("a call".to_owned(), |it| it.to_string());
        let whole_host = self.errno == Some(Errno(libc::ENFILE));
        let full = match (self.open, self.limit) {
            (Some(open), Some(limit)) => format!(", {open} of {limit} descriptors open"),
            (None, Some(limit)) => format!(", limit {limit}"),
            _ => String::new(),
        };
        let held = self.holdings.as_deref().map_or(String::new(), held);
        let mut title = format!(
            "{owner} had no descriptor left: {call} failed {count} times with {errno}{full}{held}"
        );
        if count == 1 {
            title = title.replacen(" 1 times", "", 1);
        }
        let why = if whole_host {
            "The host's table of open files (fs.file-max) is full: every process fails, whoever filled it."
        } else {
            "Every socket is a descriptor, and the process has as many as its limit (RLIMIT_NOFILE) \
             allows. A connection that cannot be accepted stays in the queue, which fills in turn; an event \
             loop spins on it meanwhile."
        };
        let words = Words::new(title, why);
        let words = if self.is_filled_by(0) {
            words.fix(format!(
                "most of them are connections the peer has closed and {owner} never did: mend that leak \
                 (tcptrace explain close_wait_leak); a higher limit only fills later"
            ))
        } else if whole_host {
            words
                .fix("find who holds them: lsof -nP | awk '{print $2}' | sort | uniq -c | sort -n | tail")
                .fix("raise fs.file-max if the load is honest")
        } else {
            words.fix(format!(
                "if the load is honest, raise the limit (systemd: LimitNOFILE=, ulimit -n) of {owner}; if \
                 the number only ever grows, find what is not closed: ls -l /proc/PID/fd"
            ))
        };
        let words = match self.listener {
            Some(listener) => words.fix(format!(
                "meanwhile clients of {} wait in the accept queue: expect accept_queue_overflow next",
                End(listener)
            )),
            None => words,
        };
        words.ruled_out("the network and the peers: the call failed before any of them was asked")
    }
}

fn is_close_wait(what: &Held) -> bool {
    matches!(
        what,
        Held::Tcp {
            state: State::CloseWait,
            ..
        }
    )
}

/// The three largest rows: `: 931 CLOSE_WAIT to 10.0.0.5:5432, 40 file, 12 eventpoll`.
fn held(holdings: &Holdings) -> String {
    let rows = holdings.rows.iter().take(3).map(|row| match &row.what {
        Held::Tcp {
            state,
            service,
            outbound,
        } => {
            let way = match (state, outbound) {
                (State::Listen, _) => "on",
                (_, true) => "to",
                (_, false) => "at",
            };
            format!("{} {state} {way} {}", row.count, End(*service))
        }
        Held::Other(sort) => format!("{} {sort}", row.count),
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        String::new()
    } else {
        format!(": {}", rows.join(", "))
    }
}

/// A call on a descriptor that is not open.
pub(super) fn use_after_close(event: &Event, call: &CallError, owner: &str, count: u64) -> Words {
    let on = call
        .syscall
        .map_or("a call".to_owned(), |it| it.to_string());
    let fd = call.fd.map_or(String::new(), |fd| format!(" on fd {fd}"));
    let mut title = format!(
        "{owner} called {on}{fd}, which is not open, and got {}",
        call.errno
    );
    if count > 1 {
        let _ = write!(title, " ({})", Count(count, "time"));
    }
    if let Some(socket) = &event.socket {
        let _ = write!(
            title,
            "; that descriptor was last the connection {}",
            socket.flow
        );
        if let Some(ago) = socket.shutdown_ago_us {
            let _ = write!(title, ", closed {} before", crate::event::Micros(ago));
        }
    }
    Words::new(
        title,
        "The descriptor was closed before the call, often by another thread, or closed twice. Worse than \
         the error is what may happen instead: the number is given to the next file, and the call hits that.",
    )
    .fix("give the descriptor one owner that closes it once; look for close in error paths and destructors")
    .fix("with threads: do not close while another one may still read or write; shutdown first, join, then close")
    .ruled_out("the peer and the network: the call never reached a socket")
}
