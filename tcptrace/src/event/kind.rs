//! What happened: one variant for each event name of the stream.

use std::borrow::Cow;

use super::Finding;
use super::cause::Cause;
use super::names::{Errno, ResetReason, State, Syscall};
use super::owner::Comm;
use super::sockets::Sockets;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// This end sent a RST.
    ResetSent(ResetSent),
    /// A RST came in.
    ResetReceived(ResetReceived),
    /// The peer closed and this end has not.
    CloseWaitEntered(CloseWait),
    /// It stays that way.
    CloseWaitStuck(CloseWait),
    /// Connections were lost because the accept queue was full, or the queue was found full at the
    /// start.
    AcceptQueueOverflow(Overflow),
    /// SYNs were dropped or answered with cookies because too many handshakes were half done.
    SynQueueOverflow(SynQueue),
    /// A call on a socket failed.
    SocketError(CallError),
    /// A connection attempt failed.
    ConnectFailed(ConnectFailed),
    /// The kernel gave a connection up.
    ConnectionTimeout(Timeout),
    /// No descriptor was left.
    FdExhausted(FdExhausted),
    /// A call named a descriptor that is not open, or that is no socket.
    FdInvalid(CallError),
    /// A change of state.
    StateChanged(StateChange),
    /// A segment was sent again.
    Retransmit(Retransmit),
    /// Why something failed.
    Finding(Box<Finding>),
    /// What is seen on this kernel, and what is not.
    Coverage(Coverage),
    /// Another process is traced, or none any more.
    TargetChanged(Target),
    /// Events the kernel could not hand over.
    EventsLost(Loss),
    /// Records that an export could not deliver.
    ExportDropped(Dropped),
    /// Events that were not printed, because there were more of them in a second than asked for.
    EventsSuppressed(Suppressed),
    /// The counts of a whole run.
    Summary(Box<Summary>),
    /// What one look over the host's sockets found; of no trace.
    Sockets(Box<Sockets>),
}

impl Kind {
    /// Names of all kinds a user can choose with `--event`, without the prefix `tcptrace.`.
    pub const SELECTABLE: [&'static str; 14] = [
        "reset.sent",
        "reset.received",
        "close_wait.entered",
        "close_wait.stuck",
        "accept_queue.overflow",
        "syn_queue.overflow",
        "socket.error",
        "connect.failed",
        "connection.timeout",
        "fd.exhausted",
        "fd.invalid",
        "state.changed",
        "retransmit",
        "finding",
    ];

    /// The whole of a name in the stream that a user can choose.
    #[must_use]
    pub fn selectable_name(name: &str) -> Option<&'static str> {
        const NAMES: [&str; 14] = [
            "tcptrace.reset.sent",
            "tcptrace.reset.received",
            "tcptrace.close_wait.entered",
            "tcptrace.close_wait.stuck",
            "tcptrace.accept_queue.overflow",
            "tcptrace.syn_queue.overflow",
            "tcptrace.socket.error",
            "tcptrace.connect.failed",
            "tcptrace.connection.timeout",
            "tcptrace.fd.exhausted",
            "tcptrace.fd.invalid",
            "tcptrace.state.changed",
            "tcptrace.retransmit",
            "tcptrace.finding",
        ];
        NAMES.into_iter().find(|it| *it == name)
    }

    /// Its place in [`SELECTABLE`](Self::SELECTABLE); `None` for what is about the stream itself.
    #[must_use]
    pub fn selectable(&self) -> Option<usize> {
        Some(match self {
            Self::ResetSent(_) => 0,
            Self::ResetReceived(_) => 1,
            Self::CloseWaitEntered(_) => 2,
            Self::CloseWaitStuck(_) => 3,
            Self::AcceptQueueOverflow(_) => 4,
            Self::SynQueueOverflow(_) => 5,
            Self::SocketError(_) => 6,
            Self::ConnectFailed(_) => 7,
            Self::ConnectionTimeout(_) => 8,
            Self::FdExhausted(_) => 9,
            Self::FdInvalid(_) => 10,
            Self::StateChanged(_) => 11,
            Self::Retransmit(_) => 12,
            Self::Finding(_) => 13,
            Self::Coverage(_)
            | Self::TargetChanged(_)
            | Self::EventsLost(_)
            | Self::EventsSuppressed(_)
            | Self::ExportDropped(_)
            | Self::Summary(_)
            | Self::Sockets(_) => return None,
        })
    }

    /// The event's name in the stream.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ResetSent(_) => "tcptrace.reset.sent",
            Self::ResetReceived(_) => "tcptrace.reset.received",
            Self::CloseWaitEntered(_) => "tcptrace.close_wait.entered",
            Self::CloseWaitStuck(_) => "tcptrace.close_wait.stuck",
            Self::AcceptQueueOverflow(_) => "tcptrace.accept_queue.overflow",
            Self::SynQueueOverflow(_) => "tcptrace.syn_queue.overflow",
            Self::SocketError(_) => "tcptrace.socket.error",
            Self::ConnectFailed(_) => "tcptrace.connect.failed",
            Self::ConnectionTimeout(_) => "tcptrace.connection.timeout",
            Self::FdExhausted(_) => "tcptrace.fd.exhausted",
            Self::FdInvalid(_) => "tcptrace.fd.invalid",
            Self::StateChanged(_) => "tcptrace.state.changed",
            Self::Retransmit(_) => "tcptrace.retransmit",
            Self::Finding(_) => "tcptrace.finding",
            Self::Coverage(_) => "tcptrace.coverage",
            Self::TargetChanged(_) => "tcptrace.target.changed",
            Self::EventsLost(_) => "tcptrace.events.lost",
            Self::ExportDropped(_) => "tcptrace.export.dropped",
            Self::EventsSuppressed(_) => "tcptrace.events.suppressed",
            Self::Summary(_) => "tcptrace.summary",
            Self::Sockets(found) => found.name(),
        }
    }
}

/// This end sent a RST.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a piece of evidence of its own"
)]
pub struct ResetSent {
    /// The kernel's own word, where it gives one. It misleads: never print it as the cause.
    pub reason: Option<ResetReason>,
    /// Bytes received and never read when the socket was closed.
    pub unread: u32,
    /// `SO_LINGER` was on with a time of 0.
    pub linger_zero: bool,
    /// The RST answers a segment; else this end sent it unasked.
    pub answers_segment: bool,
    /// The segment it answers was a SYN.
    pub answers_syn: bool,
    /// There was no socket for the segment it answers.
    pub no_socket: bool,
    /// The listener it came from had no room left in its accept queue.
    pub queue_full: bool,
    /// The connection was still waiting for `accept` when its listener closed.
    pub unaccepted: bool,
    /// An administrator's `ss -K`, not the program.
    pub aborted: bool,
    /// The call that sent it; `None` in an interrupt or at exit.
    pub syscall: Option<Syscall>,
}

/// A RST came in.
#[derive(Clone, Debug, PartialEq)]
pub struct ResetReceived {
    /// What the application will see: ECONNREFUSED in SYN_SENT, EPIPE in CLOSE_WAIT, else
    /// ECONNRESET; `None` when the socket was closed already.
    pub errno: Option<Errno>,
    /// No process holds the socket any more.
    pub orphan: bool,
}

/// The peer closed and this end has not.
#[derive(Clone, Debug, PartialEq)]
pub struct CloseWait {
    /// How long so far; for a socket older than the tracer a lower bound.
    pub age_ms: u64,
    /// The age is a lower bound.
    pub at_least: bool,
    /// Sockets this record stands for: 1, or at the start all of one process and port.
    pub count: u32,
    /// Found at the start rather than seen.
    pub at_start: bool,
}

/// Connections were lost because the accept queue was full.
#[derive(Clone, Debug, PartialEq)]
pub struct Overflow {
    /// Where it was lost; `None` when the kernel's counters told it, and when the queue was found full
    /// at the start.
    pub path: Option<OverflowPath>,
    /// Times the kernel found the queue full: once where a hook saw it, as often as
    /// `TcpExtListenOverflows` has grown where that is polled, never when found at the start.
    pub count: u64,
    /// Connections waiting for `accept`; `None` where the listener is not known.
    pub queue_len: Option<u32>,
    /// The queue's limit, where it is known; it holds one more.
    pub queue_max: Option<u32>,
    /// The backlog the program asked `listen` for, where that was seen: the kernel limits the queue
    /// to the smaller of it and `somaxconn`.
    pub backlog: Option<u32>,
    /// The listener's own count of drops so far, where it is known.
    pub drops: Option<u32>,
    /// Microseconds since a connection was last accepted from it, where that was seen.
    pub last_accept_ago_us: Option<u64>,
}

/// Too many handshakes were half done; told once a second for each network namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct SynQueue {
    /// SYNs this second.
    pub count: u64,
    /// They were answered with SYN cookies; else dropped.
    pub cookies: bool,
    /// Half-done handshakes of the listener that has most of them.
    pub len: Option<u32>,
    /// Its limit, that of its accept queue.
    pub max: Option<u32>,
}

/// On which way into the accept queue a connection was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OverflowPath {
    /// The SYN was dropped.
    Syn,
    /// The final ACK of the handshake was dropped, or answered with a RST under
    /// `tcp_abort_on_overflow`.
    Ack,
    /// The final ACK that carried a SYN cookie was dropped.
    Cookie,
}

impl Overflow {
    /// The kernel's counters told it, not a hook.
    #[must_use]
    pub fn is_polled(&self) -> bool {
        self.path.is_none() && self.count > 0
    }
}

impl OverflowPath {
    /// The word in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Ack => "ack",
            Self::Cookie => "cookie",
        }
    }
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq)]
pub struct CallError {
    /// The call; `None` under `io_uring` and where the kernel does not tell.
    pub syscall: Option<Syscall>,
    /// It was a send; `None` when it was neither send nor receive.
    pub send: Option<bool>,
    /// The error it returned.
    pub errno: Errno,
    /// Bytes it asked for.
    pub len: Option<u64>,
    /// `SO_RCVTIMEO` or `SO_SNDTIMEO` expired.
    pub timeout: bool,
    /// The descriptor it named.
    pub fd: Option<i32>,
}

/// A connection attempt failed.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectFailed {
    /// Why; `None` when the program gave up first.
    pub errno: Option<Errno>,
    /// SYNs sent.
    pub attempts: u32,
    /// From the call to the failure.
    pub duration_us: Option<u64>,
}

/// The kernel gave a connection up.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeout {
    /// The error the application sees.
    pub errno: Errno,
    /// Times the last segment was sent again.
    pub retransmits: u32,
    /// Probes without an answer.
    pub probes: u32,
    /// The peer's receive window; 0: it stopped reading.
    pub send_window: u32,
    /// `TCP_USER_TIMEOUT`, when set.
    pub user_timeout_ms: Option<u32>,
    /// A keepalive probe found the peer dead: a RST was sent as well.
    pub keepalive: bool,
}

/// No descriptor was left.
#[derive(Clone, Debug, PartialEq)]
pub struct FdExhausted {
    /// The call that failed; `None` when found at the start.
    pub syscall: Option<Syscall>,
    /// EMFILE: the process's limit; ENFILE: the host's.
    pub errno: Errno,
    /// Descriptors open just after.
    pub open: Option<u64>,
    /// The limit.
    pub limit: Option<u64>,
    /// Milliseconds after the event at which `open` and `limit` were read.
    pub read_after_ms: Option<u64>,
}

/// A change of state.
#[derive(Clone, Debug, PartialEq)]
pub struct StateChange {
    /// The state left.
    pub from: State,
    /// The state entered.
    pub to: State,
    /// Time in the state left; `None` when its begin was not seen.
    pub duration_us: Option<u64>,
    /// The error on the socket, when it went to CLOSE with one.
    pub errno: Option<Errno>,
}

/// A segment was sent again.
#[derive(Clone, Debug, PartialEq)]
pub struct Retransmit {
    /// Times in a row.
    pub attempt: u32,
}

/// What is seen on this kernel, and what is not.
#[derive(Clone, Debug, PartialEq)]
pub struct Coverage {
    /// The [signal](Signal), by name.
    pub signal: Cow<'static, str>,
    /// The way it is seen, e.g. `raw_tracepoint tcp_send_reset`; `None`: not at all.
    pub way: Option<String>,
    /// What that way does not show, or why there is none, and what to do.
    pub note: Option<String>,
    /// Nothing of it goes unseen: what the stream does not tell did not happen.
    pub complete: bool,
}

/// What became of a process that was asked for; the owner of the event is that process.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// What became of it.
    pub turn: Turn,
    /// Whom it goes on for.
    pub previous: Option<u32>,
    /// How it is recognised.
    pub why: String,
    /// How long after its start that was; until then the other ends of its connections were not traced.
    pub after_ms: Option<u64>,
    /// Events of its own before that, which are not in the stream.
    pub left_out: u64,
}

/// What becomes of a process that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It ended, and its successor is waited for.
    Ended,
    /// It goes on for one that ended.
    Succeeded,
    /// It was waited for, and is there.
    Appeared,
}

impl Turn {
    const ALL: [Self; 3] = [Self::Ended, Self::Succeeded, Self::Appeared];

    /// The word in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Succeeded => "succeeded",
            Self::Appeared => "appeared",
        }
    }

    /// The turn of a word in a record.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.as_str() == word)
    }
}

/// A signal: something tcptrace can be asked to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signal(pub &'static str);

/// Events of one kind, cause and process that were counted instead of printed.
#[derive(Clone, Debug, PartialEq)]
pub struct Suppressed {
    /// Their name in the stream.
    pub name: &'static str,
    /// Their cause, as far as one event tells.
    pub cause: Option<Cause>,
    /// The error the program sees.
    pub errno: Option<Errno>,
    /// How many.
    pub count: u64,
}

/// Events the kernel could not hand over.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// The hook that had them, or the table that was full.
    pub hook: String,
    /// How many since the last such record.
    pub count: u64,
    /// Why: `ring_full`, `table_full` (what it would have told is unknown later), `recursion` (the kernel
    /// said that it skipped a program), `unseen` (it did not say so), `malformed` (of another version of the kernel half).
    pub reason: &'static str,
}

/// Records that an export could not deliver. The other outputs have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The export, as on the command line; `stdout` is standard output.
    pub to: String,
    /// How many since the last such record.
    pub count: u64,
    /// Why: `queue_full` (more waited than may), `too_large` (its destination takes no record of that size),
    /// `refused` (its destination said that it will not have it),
    /// `undelivered` (still waiting at the end).
    pub reason: &'static str,
    /// What failed last, if anything did.
    pub error: Option<String>,
}

/// The counts of a whole run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// How long it ran.
    pub duration_ms: u64,
    /// Events printed.
    pub events: u64,
    /// Events lost.
    pub lost: u64,
    /// Entries into CLOSE_WAIT, also those that passed quickly.
    pub close_waits: u64,
    /// Events by name and `error.type`, most first.
    pub kinds: Vec<SummaryRow>,
    /// Events by process, most first; at most 10.
    pub processes: Vec<(u32, Comm, u64)>,
    /// Overflows by listener, most first; at most 10.
    pub listeners: Vec<(String, u64)>,
    /// RSTs sent against TcpOutRsts; `None` under a filter.
    pub resets: Option<Reconciled>,
    /// Accept-queue overflows against TcpExtListenOverflows; `None` under a filter.
    pub overflows: Option<Reconciled>,
}

/// What was seen in this network namespace, held against the kernel's own counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reconciled {
    /// Seen.
    pub seen: u64,
    /// What the counter grew by meanwhile.
    pub counted: u64,
    /// Nothing on this kernel shows all of what is counted: what is missing is a gap, not a loss.
    pub partial: bool,
}

impl Reconciled {
    /// What the counter says and nobody saw.
    #[must_use]
    pub fn unseen(self) -> u64 {
        self.counted.saturating_sub(self.seen)
    }
}

/// Events of one name and outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct SummaryRow {
    /// The event's name.
    pub name: &'static str,
    /// Its `error.type`.
    pub error: Option<String>,
    /// How many.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::samples;

    #[test]
    fn every_kind_is_in_its_place() {
        for event in samples::all().into_iter().chain(samples::verdicts()) {
            let chosen = event.kind.selectable().map(|nth| Kind::SELECTABLE[nth]);
            let name = event.name().strip_prefix("tcptrace.");
            let is_of_the_stream = matches!(
                event.kind,
                Kind::Coverage(_)
                    | Kind::TargetChanged(_)
                    | Kind::EventsLost(_)
                    | Kind::EventsSuppressed(_)
                    | Kind::ExportDropped(_)
                    | Kind::Summary(_)
                    | Kind::Sockets(_)
            );
            assert_eq!(chosen, name.filter(|_| !is_of_the_stream));
        }
    }
}
