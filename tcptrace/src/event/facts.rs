//! What the host said of an event, read just after it. A fact rides with the event it was read for,
//! so that whoever has the events has the facts.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Process, Stack, State};

/// A descriptor table in a few rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// What it holds, most first; at most [`Holdings::ROWS`].
    pub rows: Vec<Holding>,
    /// Descriptors that belong to no row.
    pub others: u64,
}

impl Holdings {
    /// Rows kept.
    pub const ROWS: usize = 16;
}

/// Descriptors of one sort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// How many.
    pub count: u64,
    /// What they are.
    pub what: Held,
}

/// What a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    /// A TCP connection in this state: of a client to this server, or of a server at this address
    /// of its own.
    Tcp {
        /// Its state.
        state: State,
        /// The serving end.
        service: SocketAddr,
        /// The process is the client: `service` is the other end.
        outbound: bool,
    },
    /// Another sort, as `/proc` names it: `file`, `pipe`, `socket`, `eventfd`, `eventpoll`, ….
    Other(String),
}

/// The thread that should accept, at the moment it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptor {
    /// Its process. Where several hold the listener this need not be the event's owner.
    pub process: Process,
    /// The thread that waits for connections, or the main thread where none does.
    pub tid: u32,
    /// The scheduler's letter for its state: `R`, `S`, `D`, `T`, ….
    pub state: char,
    /// The kernel function it sleeps in, where `/proc` tells.
    pub wait_channel: Option<String>,
    /// The system call it is in, where `/proc` tells: its number.
    pub syscall: Option<i32>,
    /// Milliseconds after the event at which this was read.
    pub read_after_ms: u64,
}

/// A listener that could have been meant.
#[derive(Clone, Debug, PartialEq)]
pub struct Nearby {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its network namespace: the inode number.
    pub netns: u32,
    /// Who holds it, where `/proc` tells.
    pub owner: Option<Process>,
}

/// How far the ephemeral ports were used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// First of `net.ipv4.ip_local_port_range`.
    pub first: u16,
    /// Its last.
    pub last: u16,
    /// Sockets in TIME_WAIT to the address that was connected to, or to any where none was named.
    pub time_wait: u32,
    /// Other sockets to it that hold a port of the range.
    pub in_use: u32,
}

/// Who holds a port that somebody else wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct PortHolder {
    /// Its address.
    pub address: SocketAddr,
    /// The state of its socket.
    pub state: State,
    /// Who holds it, where `/proc` tells; nobody holds one in TIME_WAIT.
    pub owner: Option<Process>,
}

/// What a process was waiting for, and who waited for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Connections accepted whose last bytes are unanswered, also those the peer has closed since.
    pub inbound: u32,
    /// How long the oldest of them has waited, ms.
    pub inbound_oldest_ms: u64,
    /// Its own connections, by server, most first; at most [`Workload::ROWS`].
    pub outbound: Vec<Pool>,
}

impl Workload {
    /// Servers kept.
    pub const ROWS: usize = 8;
}

/// A process's connections to one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The server.
    pub server: SocketAddr,
    /// Connections established.
    pub connections: u32,
    /// Those that wait for an answer.
    pub busy: u32,
    /// How long the oldest of these has waited, ms.
    pub oldest_ms: u64,
}

/// Facts about what was refused or taken, by kind of event.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// Listeners on the port that refused, in other namespaces or on other addresses.
    Nearby(Arc<[Nearby]>),
    /// The ephemeral ports.
    Ports(Ports),
    /// Who holds the port.
    PortHolder(Arc<PortHolder>),
    /// What the process holds.
    Holdings(Arc<Holdings>),
    /// The thread that should accept.
    Acceptor(Arc<Acceptor>),
    /// `net.core.somaxconn` of the listener's namespace.
    Somaxconn(u32),
    /// What the process waits for.
    Workload(Arc<Workload>),
    /// Who holds the other end of the connection, on this host.
    OtherEnd(Arc<Process>),
    /// Where in its code the process was that acted; of a finding, the one it is told of.
    Stack(Arc<Stack>),
}
