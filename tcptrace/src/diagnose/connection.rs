//! One connection in trouble: what was seen at each of its ends, whatever the order it was told in.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::event::{
    CallError, Cause, Confidence, ConnectFailed, Errno, Event, EventId, Exit, Fact, Flow, Kind,
    Owner, PortHolder, Process, ResetReceived, ResetSent, Side, Socket, SocketId, Stack, State,
    StateChange, Timeout, Timestamp,
};

/// Names a connection whichever of its ends is asked.
///
/// Both addresses as IPv6 (v4-mapped), the ports, and the network namespace of a loopback address, which
/// names another connection in every one; other addresses name the same one in both of the
/// namespaces it connects. In five words, because each event is looked up several times by it, and
/// what is remembered of many connections should fit into a processor's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key([u64; 5]);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Not as a slice: that would be hashed as bytes, with its length.
        self.0.iter().for_each(|&word| state.write_u64(word));
    }
}

impl Key {
    /// The connection of a flow seen in this run, and which of its ends the flow is told from.
    pub(super) fn of(flow: &Flow, run: u16) -> Option<(Self, usize)> {
        let (local, peer) = (flow.local, flow.peer?);
        if local.port() == 0 || local.ip().is_unspecified() {
            return None;
        }
        let (mine, its) = (words(local), words(peer));
        let end = usize::from(mine > its);
        let (low, high) = if end == 0 { (mine, its) } else { (its, mine) };
        let netns = if local.ip().is_loopback() {
            // The first namespace has the same number on every host.
            flow.netns ^ u32::from(run) << 16
        } else {
            0
        };
        let ports = low[2] << 48 | high[2] << 32 | u64::from(netns);
        Some((Self([low[0], low[1], high[0], high[1], ports]), end))
    }
}

/// An address in two words and its port in one.
fn words(end: SocketAddr) -> [u64; 3] {
    let address = match end.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let word = |segments: [u16; 4]| {
        let segments = segments.into_iter().map(u64::from);
        segments.fold(0, |word, segment| word << 16 | segment)
    };
    let [high @ .., _, _, _, _] = address.segments();
    let [_, _, _, _, low @ ..] = address.segments();
    [word(high), word(low), end.port().into()]
}

/// What was seen of a connection.
#[derive(Debug, Default)]
pub(super) struct Connection {
    ends: [End; 2],
    /// When the first of its events was told.
    pub(super) begun: Timestamp,
    /// It has been given more time once already.
    pub(super) held: bool,
}

/// What was seen at one end.
#[derive(Debug, Default)]
pub(super) struct End {
    seen: Vec<Seen>,
}

/// Events of one sort: the first of them, and how many there were.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) first: Event,
    pub(super) last: (Timestamp, EventId),
    pub(super) count: u64,
}

/// Sorts kept at one end; no failure has more.
const SORTS: usize = 12;

impl Connection {
    /// Takes an event seen at one of the ends. False: it is of another socket than those before, which
    /// had the same addresses.
    pub(super) fn take(&mut self, end: usize, event: &Event) -> bool {
        self.ends[end].take(event)
    }

    /// Forgets everything, and keeps its memory.
    pub(super) fn clear(&mut self) {
        for end in &mut self.ends {
            end.seen.clear();
        }
        self.held = false;
    }

    /// The ends, each with the other.
    pub(super) fn views(&self) -> [View<'_>; 2] {
        let [a, b] = &self.ends;
        [View { this: a, other: b }, View { this: b, other: a }]
    }

    /// Sockets of the ends, where they have been seen.
    pub(super) fn sockets(&self) -> [Option<SocketId>; 2] {
        [self.ends[0].id(), self.ends[1].id()]
    }

    /// Every sort of event seen.
    pub(super) fn seen(&self) -> impl Iterator<Item = &Seen> {
        self.ends.iter().flat_map(|end| &end.seen)
    }

    /// The first event there was.
    pub(super) fn first(&self) -> (Timestamp, EventId) {
        let first = self.seen().map(|seen| (seen.first.time, seen.first.id));
        first.min().unwrap_or((self.begun, EventId(0)))
    }
}

/// A connection seen from one of its ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) this: &'a End,
    pub(super) other: &'a End,
}

impl<'a> View<'a> {
    /// The process at the other end: seen there, or found by the host.
    pub(super) fn peer(self) -> Option<&'a Process> {
        self.other.process().or_else(|| self.this.other_end())
    }

    /// The run in which this end was seen; where it was not, the other.
    pub(super) fn run(self) -> u16 {
        let mut seen = self.this.seen().chain(self.other.seen());
        seen.next().map_or(0, |seen| seen.first.id.run())
    }

    /// The same connection from its other end.
    pub(super) fn turned(self) -> Self {
        Self {
            this: self.other,
            other: self.this,
        }
    }
}

macro_rules! accessors {
    ($($(#[$doc:meta])* $name:ident: $variant:ident($type:ty);)*) => {
        $(
            $(#[$doc])*
            pub(super) fn $name(&self) -> Option<(&Seen, &$type)> {
                self.seen.iter().find_map(|seen| match &seen.first.kind {
                    Kind::$variant(what) => Some((seen, what)),
                    _ => None,
                })
            }
        )*
    };
}

impl End {
    accessors! {
        reset_received: ResetReceived(ResetReceived);
        timeout: ConnectionTimeout(Timeout);
        connect_failed: ConnectFailed(ConnectFailed);
    }

    /// The RST this end sent of itself, else the one it answered a segment with.
    pub(super) fn reset_sent(&self) -> Option<(&Seen, &ResetSent)> {
        let resets = self.seen.iter().filter_map(|seen| match &seen.first.kind {
            Kind::ResetSent(reset) => Some((seen, reset)),
            _ => None,
        });
        resets.min_by_key(|(_, reset)| reset.answers_segment)
    }

    /// A process closed or shut down this end, in a way that matters.
    pub(super) fn closed(&self) -> Option<(&Seen, &StateChange)> {
        self.seen.iter().find_map(|seen| match &seen.first.kind {
            Kind::StateChanged(change) if matches!(change.to, State::FinWait1 | State::LastAck) => {
                Some((seen, change))
            }
            _ => None,
        })
    }

    /// The calls that failed.
    pub(super) fn errors(&self) -> impl Iterator<Item = (&Seen, &CallError)> {
        self.seen.iter().filter_map(|seen| match &seen.first.kind {
            Kind::SocketError(call) => Some((seen, call)),
            _ => None,
        })
    }

    /// The first call that failed, by the kernel's clock.
    pub(super) fn first_error(&self) -> Option<(&Seen, &CallError)> {
        self.errors().min_by_key(|(seen, _)| seen.first.time)
    }

    /// The errors a program got here: of calls, and of what failed without one.
    pub(super) fn errnos(&self) -> impl Iterator<Item = (Errno, u64)> {
        self.seen.iter().filter_map(|seen| match &seen.first.kind {
            Kind::SocketError(call) => Some((call.errno, seen.count)),
            Kind::ConnectFailed(connect) => Some((connect.errno?, seen.count)),
            _ => None,
        })
    }

    /// Who held the port this end wanted, where the host said.
    pub(super) fn port_holder(&self) -> Option<&PortHolder> {
        let mut facts = self.seen.iter().flat_map(|seen| &seen.first.facts);
        facts.find_map(|fact| match fact {
            Fact::PortHolder(holder) => Some(&**holder),
            _ => None,
        })
    }

    /// Who holds the other end, where the host said.
    fn other_end(&self) -> Option<&Process> {
        let mut facts = self.seen.iter().flat_map(|seen| &seen.first.facts);
        facts.find_map(|fact| match fact {
            Fact::OtherEnd(process) => Some(&**process),
            _ => None,
        })
    }

    /// Where the process was in its code when it first did something of all this.
    pub(super) fn stack(&self) -> Option<Arc<Stack>> {
        let told = self.seen.iter().filter_map(|seen| {
            let stack = seen.first.stack()?;
            Some((seen.first.time, stack))
        });
        told.min_by_key(|&(time, _)| time)
            .map(|(_, stack)| Arc::clone(stack))
    }

    /// Every sort of event seen here.
    pub(super) fn seen(&self) -> impl Iterator<Item = &Seen> {
        self.seen.iter()
    }

    /// Nothing was seen here.
    pub(super) fn is_unseen(&self) -> bool {
        self.seen.is_empty()
    }

    /// Whose it is: the surest of what its events say, and of several the first. A connection nobody
    /// had accepted is the doing of whoever closed its listener.
    pub(super) fn owner(&self) -> Owner {
        match self.listener_closer() {
            Some(closer) => Owner {
                confidence: Confidence::Exact,
                process: Some(closer.clone()),
                ..Owner::default()
            },
            None => self.surest().cloned().unwrap_or_default(),
        }
    }

    /// The process it belongs to.
    pub(super) fn process(&self) -> Option<&Process> {
        self.listener_closer()
            .or_else(|| self.surest()?.process.as_ref())
    }

    fn surest(&self) -> Option<&Owner> {
        let sure = |confidence| match confidence {
            Confidence::Unknown => 0,
            Confidence::Inherited => 1,
            Confidence::Seeded => 2,
            Confidence::Shared => 3,
            Confidence::Exact => 4,
        };
        let surest = self
            .seen
            .iter()
            .map(|seen| &seen.first)
            .max_by_key(|event| (sure(event.owner.confidence), std::cmp::Reverse(event.time)));
        surest.map(|event| &event.owner)
    }

    /// How its process ended, when that is what closed it.
    pub(super) fn exit(&self) -> Option<Exit> {
        let owners = self
            .seen
            .iter()
            .filter_map(|seen| seen.first.owner.process.as_ref());
        owners
            .chain(self.listener_closer())
            .find_map(|process| process.exit)
    }

    fn listener_closer(&self) -> Option<&Process> {
        let (seen, reset) = self.reset_sent()?;
        seen.first.actor.as_deref().filter(|_| reset.unaccepted)
    }

    /// The socket as the first event saw it that had one.
    pub(super) fn socket(&self) -> Option<&Socket> {
        let sockets = self.seen.iter().filter(|seen| seen.first.socket.is_some());
        let first = sockets.min_by_key(|seen| (seen.first.time, seen.first.id));
        first.and_then(|seen| seen.first.socket.as_ref())
    }

    /// Which end of the connection it is.
    pub(super) fn side(&self) -> Option<Side> {
        self.sockets().find_map(|socket| socket.side)
    }

    /// The socket at each sort of event.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.seen
            .iter()
            .filter_map(|seen| seen.first.socket.as_ref())
    }

    fn id(&self) -> Option<SocketId> {
        self.sockets().map(|socket| socket.id).find(|id| id.sk != 0)
    }

    fn take(&mut self, event: &Event) -> bool {
        let id = event.socket.as_ref().map(|socket| socket.id);
        if let (Some(mine), Some(its)) = (self.id(), id)
            && its.sk != 0
            && mine != its
        {
            return false;
        }
        if let Some(seen) = self
            .seen
            .iter_mut()
            .find(|seen| is_same(&seen.first, event))
        {
            seen.take(event);
        } else if self.seen.len() < SORTS {
            // Most ends show one or two sorts, and there are thousands of ends: room for more would
            // spread what is used over as many pages.
            self.seen.reserve_exact(1);
            self.seen.push(Seen {
                first: event.clone(),
                last: (event.time, event.id),
                count: 1,
            });
        }
        true
    }
}

impl Seen {
    fn take(&mut self, event: &Event) {
        self.count += 1;
        if (event.time, event.id) < (self.first.time, self.first.id) {
            self.first = event.clone();
        }
        self.last = self.last.max((event.time, event.id));
    }

    /// The cause its event tells by itself.
    pub(super) fn cause(&self) -> Option<Cause> {
        super::cause(&self.first)
    }

    /// The socket as its first event saw it.
    pub(super) fn socket(&self) -> Option<&Socket> {
        self.first.socket.as_ref()
    }
}

/// Two events of one sort: a second one adds nothing but a number.
fn is_same(one: &Event, other: &Event) -> bool {
    match (&one.kind, &other.kind) {
        (Kind::SocketError(one), Kind::SocketError(other)) => {
            one.errno == other.errno && one.send == other.send && one.timeout == other.timeout
        }
        (Kind::ResetSent(one), Kind::ResetSent(other)) => {
            one.answers_segment == other.answers_segment
        }
        (Kind::StateChanged(one), Kind::StateChanged(other)) => {
            (one.from, one.to) == (other.from, other.to)
        }
        (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
    }
}
