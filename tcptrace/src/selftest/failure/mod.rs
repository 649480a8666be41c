//! The failures the selftest provokes, one file each, and the stage they are provoked on.

mod accept_queue;
mod bad_descriptor;
mod close_wait;
mod closed_unread;
mod exited;
mod fd_exhausted;
mod host_files;
mod linger_zero;
mod listener_closed;
mod not_connected;
mod ports;
mod refused;
mod reset_by_peer;
mod socket_timeout;
mod states;
mod timeouts;
mod write_after_close;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::actor::{Actor, Pair};
use super::netns::Netns;
use super::tracer::{Record, Tracer};

/// All of them, in the order of the report.
pub(super) const FAILURES: &[&Failure] = &[
    &write_after_close::FAILURE,
    &closed_unread::FAILURE,
    &exited::FAILURE,
    &linger_zero::FAILURE,
    &reset_by_peer::FAILURE,
    &listener_closed::FAILURE,
    &refused::FAILURE,
    &accept_queue::SYN,
    &accept_queue::ACK,
    &accept_queue::ABORT,
    &fd_exhausted::FAILURE,
    &host_files::FAILURE,
    &close_wait::FAILURE,
    &bad_descriptor::FAILURE,
    &not_connected::FAILURE,
    &timeouts::CONNECT,
    &timeouts::ESTABLISHED,
    &socket_timeout::FAILURE,
    &ports::FAILURE,
    &states::FAILURE,
];

/// A failure that can be provoked.
pub(super) struct Failure {
    /// The cause it shows, by which `--only` chooses it.
    pub(super) name: &'static str,
    /// What the application sees.
    pub(super) symptom: &'static str,
    /// It needs a setting of the whole host.
    pub(super) changes_host: bool,
    /// Provokes it, and says which events tell of it.
    pub(super) provoke: fn(&Stage) -> Result<Vec<Expect>>,
}

/// Where one failure is provoked: a namespace of its own, and the tracer that looks on.
pub(super) struct Stage {
    pub(super) netns: Netns,
    tracer: Arc<Tracer>,
}

impl Stage {
    pub(super) fn new(netns: Netns, tracer: Arc<Tracer>) -> Self {
        Self { netns, tracer }
    }

    /// Waits until the tracer has told of what is expected.
    fn wait_for(&self, expect: &Expect) -> Result<()> {
        let netns = self.netns.inode();
        let selected = |record: &Record| expect.selects(record, netns);
        self.tracer
            .wait_for(&expect.what, Duration::from_secs(10), selected)
            .map(drop)
    }
}

/// A new process of this name.
fn actor(name: &str) -> Result<Actor> {
    let mut command = super::myself()?;
    command.args(["selftest", "--act", name]);
    Ok(Actor::spawn(command)?)
}

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

/// What the coverage says where a RST without a full socket is not seen.
pub(super) const NO_SOCKET: &str = "a RST for a closed port";

/// How often an event must have come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Count {
    /// Exactly so often.
    Exactly(u64),
    /// As often as this counter of the kernel grew in the namespace.
    Counter(&'static str),
}

/// Events that must come of a failure.
pub(super) struct Expect {
    pub(super) what: String,
    pub(super) event: &'static str,
    pub(super) count: Count,
    pub(super) owner: Option<u32>,
    pub(super) says: Vec<(&'static str, Value)>,
    /// The signal, as the coverage names it, without which no such event can come.
    pub(super) signal: &'static str,
    /// What the coverage says of a signal that does not show this case.
    pub(super) limit: Option<&'static str>,
    select: Vec<(&'static str, Value)>,
}

impl Expect {
    /// One event of this name.
    fn new(event: &'static str, what: impl Into<String>) -> Self {
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
            limit: None,
            select: vec![],
        }
    }

    fn times(mut self, count: u64) -> Self {
        self.count = Count::Exactly(count);
        self
    }

    /// As often as the kernel counted.
    fn times_counted(mut self, counter: &'static str) -> Self {
        self.count = Count::Counter(counter);
        self
    }

    /// Seen through this signal of the coverage.
    fn through(mut self, signal: &'static str) -> Self {
        self.signal = signal;
        self
    }

    /// Not seen where the coverage of the signal says this.
    fn unless(mut self, limit: &'static str) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Who must be named as the owner.
    fn owner(mut self, actor: &Actor) -> Self {
        self.owner = Some(actor.pid());
        self
    }

    /// What the event must say.
    fn says(mut self, attribute: &'static str, value: impl Into<Value>) -> Self {
        self.says.push((attribute, value.into()));
        self
    }

    /// Which events are meant.
    fn with(mut self, attribute: &'static str, value: impl Into<Value>) -> Self {
        self.select.push((attribute, value.into()));
        self
    }

    fn local(self, addr: SocketAddr) -> Self {
        self.with("network.local.port", addr.port()).says(
            "network.local.address",
            addr.ip().to_canonical().to_string(),
        )
    }

    fn peer(self, addr: SocketAddr) -> Self {
        self.with("network.peer.port", addr.port())
            .says("network.peer.address", addr.ip().to_canonical().to_string())
    }

    /// At the server's end of this connection.
    fn at_server(self, pair: &Pair) -> Self {
        self.local(pair.server_addr).peer(pair.client_addr)
    }

    /// At the client's end of this connection.
    fn at_client(self, pair: &Pair) -> Self {
        self.local(pair.client_addr).peer(pair.server_addr)
    }

    /// True for an event this is about.
    pub(super) fn selects(&self, record: &Record, netns: u32) -> bool {
        // Without a socket there is no namespace, and the process is what is known.
        let here = match record.number("tcptrace.netns") {
            Some(inode) => inode == u64::from(netns),
            None => record.pid() == self.owner.map(u64::from),
        };
        record.name() == self.event && here && super::holds(record, &self.select)
    }

    /// True when the event says what it must.
    pub(super) fn is_right(&self, record: &Record) -> bool {
        super::holds(record, &self.says)
    }
}
