//! The events that must come of a failure.

use std::net::SocketAddr;

use serde_json::Value;

use crate::selftest::actor::{Actor, Pair};
use crate::selftest::holds;
use crate::selftest::tracer::Record;

/// How often an event must have come.
#[derive(Clone, Copy, Debug)]
pub(in crate::selftest) enum Count {
    /// Exactly so often.
    Exactly(u64),
    /// As often as this counter of the kernel grew in the namespace.
    Counter(&'static str),
}

/// Events that must come of a failure.
pub(in crate::selftest) struct Expect {
    pub(in crate::selftest) what: String,
    pub(in crate::selftest) event: &'static str,
    pub(in crate::selftest) count: Count,
    pub(in crate::selftest) owner: Option<u32>,
    pub(in crate::selftest) says: Vec<(&'static str, Value)>,
    /// The signal, as the coverage names it, without which no such event can come.
    pub(in crate::selftest) signal: &'static str,
    select: Vec<(&'static str, Value)>,
}

impl Expect {
    /// One event of this name.
    pub(super) fn new(event: &'static str, what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            event,
            count: Count::Exactly(1),
            owner: None,
            says: vec![],
            signal: match event {
                "reset.sent" => "reset sent",
                "reset.received" => "reset received",
                "fd.exhausted" => "descriptors exhausted in accept, accept4, socket",
                "fd.invalid" => "invalid descriptors",
                _ => "state changes",
            },
            select: vec![],
        }
    }

    pub(super) fn times(mut self, count: u64) -> Self {
        self.count = Count::Exactly(count);
        self
    }

    /// As often as the kernel counted.
    pub(super) fn times_counted(mut self, counter: &'static str) -> Self {
        self.count = Count::Counter(counter);
        self
    }

    /// Seen through this signal of the coverage.
    pub(super) fn through(mut self, signal: &'static str) -> Self {
        self.signal = signal;
        self
    }

    /// Who must be named as the owner.
    pub(super) fn owner(mut self, actor: &Actor) -> Self {
        self.owner = Some(actor.pid());
        self
    }

    /// Only events of this owner are meant.
    pub(super) fn only_of(self, actor: &Actor) -> Self {
        self.with("process.pid", actor.pid()).owner(actor)
    }

    /// What the event must say.
    pub(super) fn says(mut self, attribute: &'static str, value: impl Into<Value>) -> Self {
        self.says.push((attribute, value.into()));
        self
    }

    /// Which events are meant.
    pub(super) fn with(mut self, attribute: &'static str, value: impl Into<Value>) -> Self {
        self.select.push((attribute, value.into()));
        self
    }

    pub(super) fn local(self, addr: SocketAddr) -> Self {
        self.with("network.local.port", addr.port()).says(
            "network.local.address",
            addr.ip().to_canonical().to_string(),
        )
    }

    pub(super) fn peer(self, addr: SocketAddr) -> Self {
        self.with("network.peer.port", addr.port())
            .says("network.peer.address", addr.ip().to_canonical().to_string())
    }

    /// At the server's end of this connection.
    pub(super) fn at_server(self, pair: &Pair) -> Self {
        self.local(pair.server_addr).peer(pair.client_addr)
    }

    /// At the client's end of this connection.
    pub(super) fn at_client(self, pair: &Pair) -> Self {
        self.local(pair.client_addr).peer(pair.server_addr)
    }

    /// True for an event this is about.
    pub(in crate::selftest) fn selects(&self, record: &Record, netns: u32) -> bool {
        // Without a socket there is no namespace, and the process is what is known.
        let here = match record.number("tcptrace.netns") {
            Some(inode) => inode == u64::from(netns),
            None => record.pid() == self.owner.map(u64::from),
        };
        record.name() == self.event && here && holds(record, &self.select)
    }

    /// True when the event says what it must.
    pub(in crate::selftest) fn is_right(&self, record: &Record) -> bool {
        holds(record, &self.says)
    }
}
