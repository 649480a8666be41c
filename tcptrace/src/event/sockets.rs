//! What one look over the sockets of a host finds: the records of `tcptrace sockets`.

use std::cmp::Ordering;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::{Severity, Side, State};

/// One thing found.
#[derive(Clone, Debug, PartialEq)]
pub enum Sockets {
    /// A network namespace that was looked into.
    Namespace(NamespaceSockets),
    /// What a process holds.
    Process(ProcessSockets),
    /// Sockets that belong to no row of a process.
    Unowned(Unowned, States),
    /// A listener and its queues.
    Listener(Listener),
    /// Connections in CLOSE_WAIT of one holder and service; the event's socket is the oldest.
    CloseWait(CloseWaits),
    /// Connections in TIME_WAIT of one service.
    TimeWait(TimeWaits),
    /// A single socket.
    Socket {
        /// How long at least it has been in CLOSE_WAIT, where it is and that is known.
        close_wait_ms: Option<u64>,
    },
}

/// How many sockets are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct States([u64; 12]);

impl States {
    /// One more.
    pub fn add(&mut self, state: State) {
        self.0[state as usize] += 1;
    }

    /// Those of one state.
    #[must_use]
    pub fn of(&self, state: State) -> u64 {
        self.0[state as usize]
    }

    /// All.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The sum of both.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] + other.0[at]))
    }
}

/// A network namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamespaceSockets {
    /// Its number.
    pub inode: u32,
    /// It is the one that was looked from.
    pub own: bool,
    /// Its name under `/run/netns`, or that of its mount.
    pub name: Option<String>,
    /// Those of its sockets that were asked for.
    pub states: States,
    /// Times an accept queue was found full since the namespace began (`TcpExtListenOverflows`).
    pub overflows: Option<u64>,
    /// Connections that listeners lost since then, whyever (`TcpExtListenDrops`).
    pub listen_drops: Option<u64>,
    /// SYNs dropped since then because the SYN queue was full (`TcpExtTCPReqQFullDrop`).
    pub syn_drops: Option<u64>,
    /// SYNs answered with cookies instead (`TcpExtTCPReqQFullDoCookies`).
    pub syn_cookies: Option<u64>,
}

/// What a process holds. A socket that several hold is counted with each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessSockets {
    /// Its sockets, one for each whatever the number of its descriptors.
    pub states: States,
    /// Descriptors open, of any sort.
    pub open: u64,
    /// How many it may have; `None` where that may not be read.
    pub limit: Option<u64>,
}

impl ProcessSockets {
    /// Open descriptors in percent of the limit.
    #[must_use]
    pub fn percent(&self) -> Option<u64> {
        let limit = self.limit.filter(|&limit| limit > 0)?;
        Some(self.open.saturating_mul(100) / limit)
    }
}

/// Why a socket belongs to no process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unowned {
    /// It waits for `accept`.
    NotAccepted,
    /// Only the kernel has it: half-done handshakes, what is left after a close.
    NoProcess,
    /// Its holder was not seen: a process that may not be read, or nobody with a descriptor.
    NotSeen,
}

impl Unowned {
    /// The word in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAccepted => "not_accepted",
            Self::NoProcess => "no_process",
            Self::NotSeen => "not_seen",
        }
    }
}

/// A listener's queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// Connections that wait for `accept`.
    pub len: u32,
    /// The limit of that queue, where the kernel tells; it holds one more.
    pub max: Option<u32>,
    /// Segments the listener dropped so far, where the kernel tells: a lost SYN is one, a lost final
    /// ACK two.
    pub drops: Option<u32>,
    /// Handshakes half done.
    pub half_done: u32,
    /// `net.core.somaxconn` of its namespace now.
    pub somaxconn: Option<u32>,
}

/// Where the limit of an accept queue comes from: it is the smaller of what `listen` was called with
/// and `net.core.somaxconn` at that time, and the kernel keeps only the result.
/// <https://github.com/torvalds/linux/blob/v6.18/net/socket.c> (`__sys_listen_socket`)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitedBy {
    /// What `listen` was called with.
    Listen,
    /// somaxconn, unless the program asked for just as much.
    Somaxconn,
    /// A somaxconn that has been lowered since, or what `listen` was called with then.
    LoweredSomaxconn,
}

impl LimitedBy {
    /// The word in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Listen => "listen",
            Self::Somaxconn => "somaxconn",
            Self::LoweredSomaxconn => "lowered_somaxconn",
        }
    }
}

impl Listener {
    /// Where its limit comes from.
    #[must_use]
    pub fn limited_by(&self) -> Option<LimitedBy> {
        Some(match self.max?.cmp(&self.somaxconn?) {
            Ordering::Less => LimitedBy::Listen,
            Ordering::Equal => LimitedBy::Somaxconn,
            Ordering::Greater => LimitedBy::LoweredSomaxconn,
        })
    }

    /// The next connection is lost.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.max.is_some_and(|max| self.len > max)
    }

    /// The queue in percent of its limit, also above 100.
    #[must_use]
    pub fn percent(&self) -> Option<u64> {
        Some(u64::from(self.len) * 100 / u64::from(self.max?.max(1)))
    }
}

/// Connections in CLOSE_WAIT of one holder and service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloseWaits {
    /// How many.
    pub count: u32,
    /// How long the oldest has been in it at least; `None` where the kernel does not tell.
    pub age_ms: Option<u64>,
    /// Those of which nobody has read the end of the stream.
    pub eof_unread: u32,
    /// Bytes received and never read, of all.
    pub unread: u64,
    /// They came in through a listener; else this end connected.
    pub served: bool,
}

/// Connections in TIME_WAIT of one service. Whoever is in it closed first.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeWaits {
    /// How many.
    pub count: u64,
    /// Their namespace.
    pub netns: u32,
    /// Which end this one was, and so who closed first; `None` where nothing tells.
    pub side: Option<Side>,
    /// The serving end: the other of a client, else this one.
    pub service: SocketAddr,
    /// The address at the other end of the service that most of them have.
    pub most: IpAddr,
    /// How many have it.
    pub most_count: u64,
    /// Addresses at the other end.
    pub addresses: u32,
    /// `net.ipv4.ip_local_port_range`, of which each connection of a client takes a port.
    pub ports: Option<RangeInclusive<u16>>,
}

impl Sockets {
    /// Its name in the stream.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "tcptrace.sockets.netns",
            Self::Process(_) => "tcptrace.sockets.process",
            Self::Unowned(..) => "tcptrace.sockets.unowned",
            Self::Listener(_) => "tcptrace.sockets.listener",
            Self::CloseWait(_) => "tcptrace.sockets.close_wait",
            Self::TimeWait(_) => "tcptrace.sockets.time_wait",
            Self::Socket { .. } => "tcptrace.sockets.socket",
        }
    }

    /// How grave it is: what is lost now, what will be, and the rest.
    #[must_use]
    pub fn severity(&self) -> Severity {
        /// A connection passes through CLOSE_WAIT faster than this.
        const PASSES_MS: u64 = 1_000;
        /// Percent of descriptors, and of local ports to one peer.
        const NEARLY_ALL: u64 = 90;
        match self {
            Self::Listener(listener) if listener.is_full() => Severity::Error,
            Self::CloseWait(waits) if waits.age_ms.is_some_and(|age| age >= PASSES_MS) => {
                Severity::Warn
            }
            Self::Process(process) if process.percent().is_some_and(|it| it >= NEARLY_ALL) => {
                Severity::Warn
            }
            Self::TimeWait(waits)
                if waits.percent_of_ports().is_some_and(|it| it >= NEARLY_ALL) =>
            {
                Severity::Warn
            }
            _ => Severity::Info,
        }
    }
}

impl TimeWaits {
    /// How much of the local ports these take: from one address to one peer each has another.
    #[must_use]
    pub fn percent_of_ports(&self) -> Option<u64> {
        let ports = self
            .ports
            .as_ref()
            .filter(|_| self.side == Some(Side::Client))?;
        Some(self.most_count * 100 / (ports.len() as u64).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_takes_one_more_than_its_limit() {
        let listener = |len, max| Listener {
            len,
            max,
            ..Listener::default()
        };
        assert!(!listener(128, Some(128)).is_full());
        assert!(listener(129, Some(128)).is_full());
        assert!(listener(1, Some(0)).is_full());
        assert!(!listener(500, None).is_full());
        assert_eq!(listener(64, Some(128)).percent(), Some(50));
        assert_eq!(listener(1, Some(0)).percent(), Some(100));
    }

    #[test]
    fn what_is_nearly_used_up_is_a_warning() {
        let process = |open, limit| {
            Sockets::Process(ProcessSockets {
                open,
                limit,
                ..ProcessSockets::default()
            })
        };
        assert_eq!(process(899, Some(1000)).severity(), Severity::Info);
        assert_eq!(process(900, Some(1000)).severity(), Severity::Warn);
        assert_eq!(process(900, None).severity(), Severity::Info);
        let waits = |side, most_count| {
            Sockets::TimeWait(TimeWaits {
                count: 40_000,
                netns: 9,
                side,
                service: SocketAddr::from(([10, 0, 0, 5], 443)),
                most: IpAddr::from([10, 0, 0, 1]),
                most_count,
                addresses: 2,
                ports: Some(32_768..=60_999),
            })
        };
        assert_eq!(waits(Some(Side::Client), 25_408).severity(), Severity::Info);
        assert_eq!(waits(Some(Side::Client), 25_409).severity(), Severity::Warn);
        assert_eq!(waits(Some(Side::Server), 40_000).severity(), Severity::Info);
    }

    #[test]
    fn states_are_counted_apart() {
        let mut states = States::default();
        for state in [State::Closing, State::Closing, State::Established] {
            states.add(state);
        }
        assert_eq!((states.of(State::Closing), states.total()), (2, 3));
        let twice = states.with(&states);
        assert_eq!((twice.of(State::Closing), twice.total()), (4, 6));
    }
}
