//! An explained failure: what several events together mean.

use super::{Cause, Errno, EventId, Process, Timestamp};

/// One explained failure, or many of the same cause, process and peer.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The id of the finding's first record. Updates carry it too: it names the finding.
    pub id: EventId,
    /// 0: told for the first time; else how often it was told before.
    pub update: u32,
    /// Nothing more will be told of it: the failures have stopped, or the trace ends.
    pub closed: bool,
    /// Why.
    pub cause: Cause,
    /// What may be behind the cause, when the evidence points there without proving it.
    pub hint: Option<Cause>,
    /// How sure the cause is.
    pub certainty: Certainty,
    /// How grave it is.
    pub severity: Severity,
    /// Failures it stands for: connections, lost handshakes or calls, as the title says.
    pub count: u64,
    /// When the first of them happened.
    pub first: Timestamp,
    /// When the last of them happened.
    pub last: Timestamp,
    /// The events it rests on, in order of time: at most [`Finding::EVIDENCE`], the first and the
    /// last of more.
    pub evidence: Vec<EventId>,
    /// The errors programs got from it, and how often.
    pub errors: Vec<(Errno, u64)>,
    /// The process at the other end, when it is on this host.
    pub peer: Option<Process>,
    /// What happened, in one sentence with the numbers of this case.
    pub title: String,
    /// Why that leads to the error.
    pub why: String,
    /// What to change, the most likely first.
    pub fix: Vec<String>,
    /// What it is not, with the numbers that say so.
    pub ruled_out: Vec<String>,
}

impl Finding {
    /// Ids kept as evidence.
    pub const EVIDENCE: usize = 16;
}

/// How sure a cause is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Certainty {
    /// A story that fits; others do as well.
    Low,
    /// The evidence points there, and something that cannot be seen could still say otherwise.
    Medium,
    /// The kernel's own doing was seen.
    High,
}

impl Certainty {
    /// The word in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// How grave something is, in OpenTelemetry's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Normal life.
    Info = 9,
    /// One connection or call failed.
    Warn = 13,
    /// A service fails, or events were lost.
    Error = 17,
}

impl Severity {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }
}
