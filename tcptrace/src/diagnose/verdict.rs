//! What a connection's events come to: a cause, whose it is, and the words for it.

use std::fmt::{self, Write as _};

use super::connection::{End, Seen, View};
use crate::event::{
    Cause, Certainty, Count, Fact, Micros, Millis, Process, Severity, Side, Socket, Timestamp,
};

/// A connection's verdict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) cause: Cause,
    pub(super) hint: Option<Cause>,
    pub(super) certainty: Certainty,
    pub(super) severity: Severity,
    /// A time that may be somebody's deadline, ms: where it is common to several connections it is.
    pub(super) interval_ms: Option<u64>,
    /// It is told of the end whose view it was reached from; else of the other one.
    pub(super) of_this: bool,
}

impl Verdict {
    /// Of this end, by the kernel's own doing, for one connection.
    pub(super) fn new(cause: Cause) -> Self {
        Self {
            cause,
            hint: None,
            certainty: Certainty::High,
            severity: Severity::Warn,
            interval_ms: None,
            of_this: true,
        }
    }

    /// Of the other end.
    pub(super) fn of_other(mut self) -> Self {
        self.of_this = false;
        self
    }

    pub(super) fn certainty(mut self, certainty: Certainty) -> Self {
        self.certainty = certainty;
        self
    }

    pub(super) fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    pub(super) fn hint(mut self, hint: Option<Cause>) -> Self {
        self.hint = hint;
        self
    }

    pub(super) fn interval(mut self, ms: Option<u64>) -> Self {
        self.interval_ms = ms;
        self
    }

    /// What a client does by itself is normal life; what a server does to its client is not.
    pub(super) fn by(self, end: &End) -> Self {
        match end.side() {
            Some(Side::Client) => self.severity(Severity::Info),
            _ => self,
        }
    }
}

/// A verdict in words.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Words {
    pub(super) title: String,
    pub(super) why: String,
    pub(super) fix: Vec<String>,
    pub(super) ruled_out: Vec<String>,
}

impl Words {
    pub(super) fn new(title: String, why: impl Into<String>) -> Self {
        Self {
            title,
            why: why.into(),
            ..Self::default()
        }
    }

    pub(super) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix.push(fix.into());
        self
    }

    pub(super) fn ruled_out(mut self, what: impl Into<String>) -> Self {
        self.ruled_out.push(what.into());
        self
    }

    /// Says what of the network is ruled out by the numbers of these ends.
    pub(super) fn not_the_network(self, view: View<'_>) -> Self {
        let sockets = || view.this.sockets().chain(view.other.sockets());
        let retransmits = sockets().filter_map(|socket| socket.retransmits).max();
        match (retransmits, sockets().find_map(|socket| socket.rtt_us)) {
            (Some(0), Some(rtt)) => self.ruled_out(format!(
                "the network: 0 segments sent again, round trip {}",
                Micros(rtt.into())
            )),
            (Some(0), None) => self.ruled_out("the network: 0 segments sent again"),
            _ => self,
        }
    }
}

/// Who did or suffered it: `nginx[12]`, or what stands in where nobody is known.
pub(super) fn who<'a>(end: &'a End, or: &'a str) -> impl fmt::Display + 'a {
    let process = end.process();
    fmt::from_fn(move |f| named(process, or).fmt(f))
}

/// The other end's process, or what stands in.
pub(super) fn peer<'a>(view: View<'a>, or: &'a str) -> impl fmt::Display + 'a {
    let process = view.peer();
    fmt::from_fn(move |f| named(process, or).fmt(f))
}

/// A process, or what stands in.
pub(super) fn named<'a>(process: Option<&'a Process>, or: &'a str) -> impl fmt::Display + 'a {
    fmt::from_fn(move |f| match process {
        Some(process) => write!(f, "{process}"),
        None => f.write_str(or),
    })
}

/// ` fd 17`, or nothing.
pub(super) fn fd(socket: Option<&Socket>) -> impl fmt::Display + use<> {
    let fd = socket.and_then(|socket| socket.fd);
    fmt::from_fn(move |f| fd.map_or(Ok(()), |fd| write!(f, " fd {fd}")))
}

/// What the program at an end got for it, and how much later: `; 0.2 ms later curl[990] got
/// ECONNRESET on recvfrom`. Nothing where no call has failed yet.
pub(super) fn then_got(end: &End, since: Timestamp) -> impl fmt::Display + use<> {
    let mut text = String::new();
    if let Some((seen, call)) = end.first_error() {
        let later = Micros(seen.first.time.0.saturating_sub(since.0) / 1_000);
        let who = named(end.process(), "the other end");
        // A String takes all.
        let _ = write!(text, "; {later} later {who} got {}", call.errno);
        if let Some(syscall) = call.syscall {
            let _ = write!(text, " on {syscall}");
        }
        let others: u64 = end.errors().map(|(seen, _)| seen.count).sum();
        if others > 1 {
            let _ = write!(text, " and {}", Count(others - 1, "more error"));
        }
    } else if end.reset_received().is_some() {
        let who = named(end.process(), "the other end");
        let _ = write!(text, "; {who} has not noticed yet");
    }
    fmt::from_fn(move |f| f.write_str(&text))
}

/// The connection's serving end and its client, as text.
pub(super) fn connection(socket: Option<&Socket>) -> impl fmt::Display + use<> {
    let flow = socket.map(|socket| socket.flow);
    fmt::from_fn(move |f| match flow {
        Some(flow) => write!(f, "{flow}"),
        None => f.write_str("a connection"),
    })
}

/// The event's first fact of a sort.
pub(super) fn fact<'a, T>(seen: &'a Seen, pick: impl Fn(&'a Fact) -> Option<T>) -> Option<T> {
    seen.first.facts.iter().find_map(pick)
}

/// `5.0 s`, for a time that may not be known.
pub(super) fn time(ms: Option<u64>) -> impl fmt::Display {
    fmt::from_fn(move |f| match ms {
        Some(ms) => write!(f, "{}", Millis(ms)),
        None => f.write_str("some time"),
    })
}

use fmt::Display as _;
