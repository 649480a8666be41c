//! The domain: what the kernel did, to which flow, and whose it is. Knows no bytes, no eBPF and no
//! format.

mod cause;
mod facts;
mod finding;
mod flow;
mod kind;
mod names;
mod owner;
mod sockets;
mod stack;
mod units;

use std::sync::Arc;

pub use cause::Cause;
pub use facts::{
    Acceptor, Fact, Held, Holding, Holdings, Nearby, Pool, PortHolder, Ports, Workload,
};
pub use finding::{Certainty, Finding, Severity};
pub use flow::{Address, End, Flow, SocketId, address};
pub use kind::{
    CallError, CloseWait, ConnectFailed, Coverage, Dropped, FdExhausted, Kind, Loss, Overflow,
    OverflowPath, Reconciled, ResetReceived, ResetSent, Retransmit, Signal, StateChange, Summary,
    SummaryRow, Suppressed, SynQueue, Target, Timeout, Turn,
};
pub use names::{Errno, ResetReason, State, Syscall};
pub use owner::{Comm, Confidence, Container, Exit, Owner, Process};
pub use sockets::{
    CloseWaits, LimitedBy, Listener, NamespaceSockets, ProcessSockets, Sockets, States, TimeWaits,
    Unowned,
};
pub use stack::{Frame, Stack};
pub use units::{Count, Micros, Millis};

/// One thing the kernel did, complete in itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Unique in this run.
    pub id: EventId,
    /// When it happened.
    pub time: Timestamp,
    /// The event that caused it, when one is known.
    pub caused_by: Option<EventId>,
    /// The socket, where there is one.
    pub socket: Option<Socket>,
    /// Whose socket it is; for an event without a socket, whose call it was.
    pub owner: Owner,
    /// The process that acted, when it is not the owner: the one that ran `ss -K`, the one that
    /// closed the listener.
    /// Boxed, because it is rare and every event would be larger for it.
    pub actor: Option<Box<Process>>,
    /// What the host said of it just after; empty for most.
    pub facts: Vec<Fact>,
    /// What happened.
    pub kind: Kind,
}

/// Names an event in one run: unique, and below 2^53. Above it is which run of a replay that is; a live
/// trace is run 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub u64);

impl EventId {
    /// Bits that name it in its run.
    const OWN: u32 = 53;
    /// Runs that can be told apart.
    pub const RUNS: usize = 1 << (u64::BITS - Self::OWN);

    /// The id without its run.
    #[must_use]
    pub fn in_run(self) -> u64 {
        self.0 & ((1 << Self::OWN) - 1)
    }

    /// Which run it is of, below [`RUNS`](Self::RUNS).
    #[must_use]
    pub fn run(self) -> u16 {
        // Eleven bits.
        (self.0 >> Self::OWN) as u16
    }

    /// The same id in another run.
    #[must_use]
    pub fn of_run(self, run: u16) -> Self {
        Self(u64::from(run) << Self::OWN | self.in_run())
    }
}

/// Wall clock, nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

/// A socket at the moment of an event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Socket {
    /// Which socket: stays the same over its life and is never given to another.
    pub id: SocketId,
    /// Its two ends.
    pub flow: Flow,
    /// The state it was in, before anything this event changed.
    pub state: Option<State>,
    /// The owner's descriptor for it.
    pub fd: Option<i32>,
    /// Inode number of its file, as in `socket:[N]`.
    pub inode: Option<u64>,
    /// Bytes received and never read.
    pub unread: u32,
    /// Bytes written and not acknowledged.
    pub unacked: u32,
    /// Segments sent again in its life; `None` where nobody could look.
    pub retransmits: Option<u32>,
    /// Smoothed round trip, microseconds; `None` before the first sample.
    pub rtt_us: Option<u32>,
    /// Milliseconds since data last came from the peer.
    pub received_ago_ms: Option<u64>,
    /// Milliseconds since data was last sent.
    pub sent_ago_ms: Option<u64>,
    /// The program has read the end of the stream.
    pub eof_read: bool,
    /// `O_NONBLOCK` is set on its file.
    pub nonblocking: bool,
    /// Which end of the connection it is; `None` on a listener, before the connection, and for one
    /// older than the tracer.
    pub side: Option<Side>,
    /// Microseconds since its life began (the call of `connect`, or the final ACK); `None` when that
    /// was before the tracer's.
    pub age_us: Option<u64>,
    /// Microseconds since `accept` handed it over.
    pub accepted_ago_us: Option<u64>,
    /// Milliseconds since the peer acknowledged or sent anything.
    pub heard_ago_ms: Option<u64>,
    /// Bytes the peer sent in its life.
    pub bytes_received: u64,
    /// Bytes sent in its life, those sent again not counted twice.
    pub bytes_sent: u64,
    /// Microseconds since this end shut down its sending, by `shutdown` or `close`.
    pub shutdown_ago_us: Option<u64>,
    /// What was so when the peer's FIN came, if one came.
    pub fin: Option<PeerFin>,
    /// Another connection of the same listener has been seen to send: whoever serves it answers.
    pub service_answers: bool,
}

/// Which end of a connection a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// It called `connect`.
    Client,
    /// It came in through a listener.
    Server,
}

impl Side {
    /// The word in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// The peer's FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerFin {
    /// Microseconds since it came.
    pub ago_us: u64,
    /// Bytes this end has written since; `None` where nobody looked.
    pub written: Option<u32>,
    /// Milliseconds from the last byte the peer sent to its FIN, when this end had sent nothing in
    /// between: what the peer waited for an answer.
    pub waited_ms: Option<u64>,
    /// Milliseconds before the FIN in which neither end sent data.
    pub idle_ms: u64,
}

impl Event {
    /// The event's name in the stream.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// Where in its code the process was that acted.
    #[must_use]
    pub fn stack(&self) -> Option<&Arc<Stack>> {
        self.facts.iter().find_map(|fact| match fact {
            Fact::Stack(stack) => Some(stack),
            _ => None,
        })
    }
}
