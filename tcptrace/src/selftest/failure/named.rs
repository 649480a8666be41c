//! The findings that must come of a failure: its name, and whom it names.

use serde_json::Value;

use super::Count;
use crate::event::Cause;
use crate::selftest::actor::Actor;
use crate::selftest::tracer::Record;

/// One finding that must come, exactly once.
pub(in crate::selftest) struct Named {
    pub(in crate::selftest) what: String,
    pub(in crate::selftest) cause: Cause,
    /// Whom it names; `None`: nobody.
    pub(in crate::selftest) process: Option<u32>,
    /// The process at the other end, when it is to be named.
    pub(in crate::selftest) peer: Option<u32>,
    /// What it counts; `None` where the number means nothing.
    pub(in crate::selftest) count: Option<Count>,
    /// What may be behind the cause.
    pub(in crate::selftest) hint: Option<Cause>,
    /// The finding it follows from.
    pub(in crate::selftest) follows: Option<Cause>,
    /// What else it must say.
    pub(in crate::selftest) says: Vec<(&'static str, Value)>,
}

impl Named {
    /// A finding that counts one failure.
    pub(in crate::selftest) fn new(cause: Cause, what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            cause,
            process: None,
            peer: None,
            count: Some(Count::Exactly(1)),
            hint: None,
            follows: None,
            says: vec![],
        }
    }

    /// Whose finding it is.
    pub(in crate::selftest) fn of(mut self, actor: &Actor) -> Self {
        self.process = Some(actor.pid());
        self
    }

    /// Who is at the other end.
    pub(in crate::selftest) fn with(mut self, peer: &Actor) -> Self {
        self.peer = Some(peer.pid());
        self
    }

    pub(in crate::selftest) fn times(mut self, count: u64) -> Self {
        self.count = Some(Count::Exactly(count));
        self
    }

    /// As often as the kernel counted.
    pub(in crate::selftest) fn times_counted(mut self, counter: &'static str) -> Self {
        self.count = Some(Count::Counter(counter));
        self
    }

    /// Its count says nothing of the failure.
    pub(in crate::selftest) fn times_unknown(mut self) -> Self {
        self.count = None;
        self
    }

    pub(in crate::selftest) fn hint(mut self, hint: Cause) -> Self {
        self.hint = Some(hint);
        self
    }

    /// It says that it follows from the finding of this cause.
    pub(in crate::selftest) fn follows(mut self, cause: Cause) -> Self {
        self.follows = Some(cause);
        self
    }

    /// What it must say.
    pub(in crate::selftest) fn says(
        mut self,
        attribute: &'static str,
        value: impl Into<Value>,
    ) -> Self {
        self.says.push((attribute, value.into()));
        self
    }

    /// True for a telling of the finding this is about.
    pub(in crate::selftest) fn selects(&self, record: &Record) -> bool {
        record.text("tcptrace.cause") == Some(self.cause.as_str())
            && record.pid() == self.process.map(u64::from)
    }
}
