//! What the screen shows, made of events and of what is polled. It reads no clock and does no IO, and its
//! memory is bounded whatever comes.

mod history;
mod told;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::event::{
    Comm, Container, Coverage, Errno, Event, EventId, Finding, Flow, Kind, Owner, Timestamp,
};
pub(super) use history::History;
use told::Told;

type Map<K, V> = HashMap<K, V, RandomState>;

/// A process: its number, and in a replay the run it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pid {
    /// See [`EventId::run`].
    pub run: u16,
    /// 0 stands for all processes that are not known.
    pub pid: u32,
}

impl Pid {
    /// Of a live trace.
    #[must_use]
    pub fn live(pid: u32) -> Self {
        Self { run: 0, pid }
    }
}

/// An address somebody listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// See [`EventId::run`].
    pub run: u16,
    /// Its network namespace.
    pub netns: u32,
    /// The address.
    pub address: SocketAddr,
}

/// A process to which something happened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Process {
    /// Its command name.
    pub comm: Comm,
    /// Its executable.
    pub exe: Option<Arc<str>>,
    /// Its container.
    pub container: Option<Arc<Container>>,
    /// RSTs its sockets sent.
    pub resets_sent: u64,
    /// RSTs its sockets received.
    pub resets_received: u64,
    /// Connections the kernel gave up.
    pub timeouts: u64,
    /// What its calls returned, most first; at most [`Process::ERRORS`] sorts.
    pub errors: Vec<(Errno, u64)>,
    /// Connections that its peers have closed and it has not.
    pub close_wait: u64,
    /// When the oldest of these began to wait.
    pub close_wait_since: Option<Timestamp>,
    /// It began before it could be seen.
    pub close_wait_is_older: bool,
    /// The oldest of them, oldest first; at most [`Process::FLOWS`].
    pub close_wait_flows: Vec<(Flow, Timestamp)>,
    /// Descriptors it has open, and how many it may have.
    pub fds: Option<Descriptors>,
    /// Findings about it.
    pub findings: u64,
    /// It is not there any more.
    pub gone: bool,
    /// Events of it.
    pub events: History,
    /// When something last happened to it.
    pub last: Timestamp,
    /// What the look around at the start said of the oldest.
    told_since: Option<Timestamp>,
}

impl Process {
    /// Sorts of errors counted one by one.
    pub const ERRORS: usize = 16;
    /// Connections in CLOSE_WAIT kept.
    pub const FLOWS: usize = 64;

    /// Errors of every sort.
    #[must_use]
    pub fn all_errors(&self) -> u64 {
        self.errors.iter().map(|(_, count)| count).sum()
    }

    fn count_error(&mut self, errno: Errno) {
        let known = self.errors.iter().position(|&(known, _)| known == errno);
        let Some(mut nth) = known.or_else(|| {
            // What is left out is rare: the most frequent came first.
            (self.errors.len() < Self::ERRORS).then(|| {
                self.errors.push((errno, 0));
                self.errors.len() - 1
            })
        }) else {
            return;
        };
        self.errors[nth].1 += 1;
        while nth > 0 && self.errors[nth].1 > self.errors[nth - 1].1 {
            self.errors.swap(nth, nth - 1);
            nth -= 1;
        }
    }

    fn holds_something(&self) -> bool {
        self.close_wait > 0 || (self.fds.is_some_and(Descriptors::is_short) && !self.gone)
    }
}

/// Descriptors of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// Open now.
    pub open: u64,
    /// How many may be.
    pub limit: u64,
}

impl Descriptors {
    /// Of the limit, per cent.
    #[must_use]
    pub fn percent(self) -> u64 {
        let percent = u128::from(self.open) * 100 / u128::from(self.limit.max(1));
        u64::try_from(percent).unwrap_or(u64::MAX)
    }

    /// Nine of ten are taken.
    #[must_use]
    pub fn is_short(self) -> bool {
        self.percent() >= 90
    }
}

/// An address that is listened on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listener {
    /// Sockets that share it (`SO_REUSEPORT`).
    pub sockets: u32,
    /// Connections waiting for `accept`, of the socket that has most of them.
    pub len: Option<u32>,
    /// The limit of that queue, which holds one more.
    pub max: Option<u32>,
    /// The backlog the program asked for.
    pub backlog: Option<u32>,
    /// How long its queue was.
    pub depth: History,
    /// Connections lost to a full queue, as far as they were told.
    pub lost: u64,
    /// The same by second.
    pub losses: History,
    /// Connections accepted since the start; `None` where nobody counts.
    pub accepted: Option<u64>,
    /// The same by second.
    pub accepts: History,
    /// When a connection was last accepted.
    pub last_accept: Option<Timestamp>,
    /// Whose it is.
    pub owner: Option<(Pid, Comm)>,
    /// It is not there any more.
    pub gone: bool,
    /// When it was last seen or told of.
    pub last: Timestamp,
    /// The count of the kernel half at the last look.
    counted: Option<u32>,
}

impl Listener {
    /// The next connection is lost.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.gone && self.len.zip(self.max).is_some_and(|(len, max)| len > max)
    }

    /// How full its queue is, in thousandths of what it holds.
    #[must_use]
    pub fn fullness(&self) -> u64 {
        match (self.len, self.max) {
            (Some(len), Some(max)) if !self.gone => u64::from(len) * 1000 / (u64::from(max) + 1),
            _ => 0,
        }
    }
}

/// A finding as it was last told.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The event that told it.
    pub event: Box<Event>,
}

impl Found {
    /// What was found.
    #[must_use]
    pub fn finding(&self) -> Option<&Finding> {
        match &self.event.kind {
            Kind::Finding(finding) => Some(finding),
            _ => None,
        }
    }
}

/// A listener as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Its network namespace.
    pub netns: u32,
    /// Its address.
    pub address: SocketAddr,
    /// Connections waiting for `accept`.
    pub len: u32,
    /// The limit, where the kernel tells it.
    pub max: Option<u32>,
}

/// What was seen of the host by looking at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Network namespaces that were looked into.
    pub namespaces: HashSet<u32>,
    /// The listeners there.
    pub listeners: Vec<Listening>,
    /// Only those are wanted that the kernel half told of: it knows whose they are.
    pub only_known: bool,
    /// Descriptors of the processes asked for; `None` where one is gone.
    pub descriptors: Vec<(u32, Option<Descriptors>)>,
}

/// A listener as the kernel half knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepting {
    /// Its network namespace.
    pub netns: u32,
    /// Its address.
    pub address: SocketAddr,
    /// Connections accepted, by a counter that wraps.
    pub accepted: u32,
    /// When the last one was.
    pub last_accept: Option<Timestamp>,
    /// The backlog the program asked for, where that was seen.
    pub backlog: Option<u32>,
    /// Whose it is.
    pub owner: Option<(u32, Comm)>,
}

/// A connection in CLOSE_WAIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Whose it is; pid 0: nobody is known.
    pub owner: (Pid, Comm),
    /// The connection.
    pub flow: Flow,
    /// Since when, as far as it was seen.
    pub since: Timestamp,
    /// It was there before the tracer.
    pub older: bool,
    /// How many this stands for: what a recording tells of those at its start.
    pub count: u32,
}

/// All that is shown.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// When it is.
    pub now: Timestamp,
    /// When it began.
    pub began: Timestamp,
    /// Processes to which something happened, or that hold something.
    pub processes: Map<Pid, Process>,
    /// Listeners.
    pub listeners: Map<Place, Listener>,
    /// What was found, by the first to the last that was told.
    pub findings: VecDeque<Found>,
    /// The last events, oldest first.
    pub timeline: VecDeque<Event>,
    /// How each signal is seen.
    pub coverage: Vec<Coverage>,
    /// Events taken.
    pub taken: u64,
    /// The same by second.
    pub events: History,
    /// Events that were lost on the way.
    pub lost: u64,
    /// Rows that made room for others.
    pub forgotten: u64,
    /// Whether anything has changed since it was drawn.
    pub changed: bool,
    /// When the kernel half was last asked who accepts; 0: never.
    asked: Timestamp,
    /// When the present second began.
    second: Timestamp,
    /// Of a recording; who looks on is told by the kernel half.
    told: Option<Told>,
}

/// A second, ns.
const SECOND: u64 = 1_000_000_000;
/// What is gone stays on the screen for so long.
const REMEMBERED: u64 = 60 * SECOND;

impl View {
    /// Processes kept.
    pub const PROCESSES: usize = 1024;
    /// Listeners kept.
    pub const LISTENERS: usize = 1024;
    /// Findings kept.
    pub const FINDINGS: usize = 512;
    /// Events kept.
    pub const EVENTS: usize = 4096;
    /// Processes whose descriptors are asked for.
    pub const ASKED: usize = 256;

    /// One that knows only what events tell.
    #[must_use]
    pub fn replayed() -> Self {
        Self {
            told: Some(Told::default()),
            ..Self::default()
        }
    }

    /// Takes an event.
    pub fn apply(&mut self, event: &Event) {
        self.changed = true;
        match &event.kind {
            Kind::Finding(finding) => return self.found(event, finding),
            Kind::EventsLost(loss) => {
                self.lost += loss.count;
                return;
            }
            Kind::Coverage(coverage) => {
                self.coverage
                    .retain(|known| known.signal != coverage.signal);
                if self.coverage.len() < Self::ASKED {
                    self.coverage.push(coverage.clone());
                }
                return;
            }
            Kind::TargetChanged(_)
            | Kind::EventsSuppressed(_)
            | Kind::ExportDropped(_)
            | Kind::Summary(_) => return,
            _ => {}
        }
        self.taken += 1;
        self.events.add(1);
        if let Some(told) = &mut self.told {
            told.apply(event);
        }
        self.count(event);
        if let Kind::AcceptQueueOverflow(overflow) = &event.kind
            && let Some(socket) = &event.socket
        {
            let listener = self.listener(place(event.id, &socket.flow), event.time);
            listener.lost += overflow.count;
            listener.losses.add(overflow.count);
            listener.len = overflow.queue_len.or(listener.len);
            listener.max = overflow.queue_max.or(listener.max);
            listener.backlog = overflow.backlog.or(listener.backlog);
            listener.depth.reach(overflow.queue_len.unwrap_or_default());
            if let Some(ago) = overflow.last_accept_ago_us {
                let at = Timestamp(event.time.0.saturating_sub(ago.saturating_mul(1000)));
                listener.last_accept = listener.last_accept.max(Some(at));
            }
            if let Some(process) = &event.owner.process {
                let pid = pid(event.id, &event.owner);
                listener.owner = Some((pid, process.comm));
            }
        }
        if self.timeline.len() == Self::EVENTS {
            self.timeline.pop_front();
        }
        self.timeline.push_back(event.clone());
    }

    /// Counts an event for its process.
    fn count(&mut self, event: &Event) {
        let process = self.process(pid(event.id, &event.owner), event.time);
        process.events.add(1);
        if let Some(owner) = &event.owner.process {
            process.comm = owner.comm;
            process.exe.clone_from(&owner.exe);
            process.container.clone_from(&owner.container);
        }
        match &event.kind {
            Kind::ResetSent(_) => process.resets_sent += 1,
            Kind::ResetReceived(_) => process.resets_received += 1,
            Kind::ConnectionTimeout(_) => process.timeouts += 1,
            Kind::SocketError(call) | Kind::FdInvalid(call) => process.count_error(call.errno),
            Kind::ConnectFailed(failed) => {
                failed
                    .errno
                    .into_iter()
                    .for_each(|it| process.count_error(it));
            }
            Kind::FdExhausted(fds) => {
                // What the look around found before any call failed.
                if fds.syscall.is_some() {
                    process.count_error(fds.errno);
                }
                if let Some((open, limit)) = fds.open.zip(fds.limit)
                    && fds.errno == Errno(libc::EMFILE)
                {
                    process.fds = Some(Descriptors { open, limit });
                }
            }
            Kind::CloseWaitStuck(wait) => {
                let age = wait.age_ms.saturating_mul(1_000_000);
                let since = Timestamp(event.time.0.saturating_sub(age));
                if wait.at_start {
                    let told = process.told_since.unwrap_or(since);
                    process.told_since = Some(told.min(since));
                }
            }
            _ => {}
        }
    }

    fn found(&mut self, event: &Event, finding: &Finding) {
        let known = self
            .findings
            .iter()
            .position(|known| known.finding().is_some_and(|it| it.id == finding.id));
        let known = known.and_then(|nth| self.findings.remove(nth));
        if known.is_none() {
            self.process(pid(event.id, &event.owner), event.time)
                .findings += 1;
        }
        if self.findings.len() >= Self::FINDINGS {
            self.findings.pop_front();
            self.forgotten += 1;
        }
        self.findings.push_back(Found {
            event: Box::new(event.clone()),
        });
    }

    /// Takes what was seen by looking.
    pub fn look(&mut self, looked: &Looked) {
        self.changed = true;
        let mut fullest: Map<Place, (Listening, u32)> = Map::default();
        for listening in &looked.listeners {
            let place = Place {
                run: 0,
                netns: listening.netns,
                address: listening.address,
            };
            let (first, sockets) = fullest.entry(place).or_insert((*listening, 0));
            *sockets += 1;
            if listening.len > first.len {
                *first = *listening;
            }
        }
        for (place, known) in &mut self.listeners {
            let looked_there = place.run == 0 && looked.namespaces.contains(&place.netns);
            if looked_there && place.address.port() != 0 && !fullest.contains_key(place) {
                known.gone = true;
                known.sockets = 0;
            }
        }
        for (place, (listening, sockets)) in fullest {
            if looked.only_known && !self.listeners.contains_key(&place) {
                continue;
            }
            let now = self.now;
            let listener = self.listener(place, now);
            listener.gone = false;
            listener.sockets = sockets;
            listener.len = Some(listening.len);
            listener.max = listening.max.or(listener.max);
            listener.depth.reach(listening.len);
        }
        for &(pid, descriptors) in &looked.descriptors {
            if let Some(process) = self.processes.get_mut(&Pid::live(pid)) {
                process.gone = descriptors.is_none();
                process.fds = descriptors.or(process.fds);
            }
        }
    }

    /// Takes what the kernel half knows of listeners: for each address the sum over those that share it.
    pub fn accepting(&mut self, all: &[Accepting], now: Timestamp) {
        self.changed = true;
        self.asked = now;
        let mut sums: Map<Place, Accepting> = Map::default();
        for one in all {
            let place = Place {
                run: 0,
                netns: one.netns,
                address: one.address,
            };
            let sum = sums.entry(place).or_insert(Accepting {
                accepted: 0,
                ..*one
            });
            sum.accepted = sum.accepted.wrapping_add(one.accepted);
            sum.last_accept = sum.last_accept.max(one.last_accept);
            sum.owner = sum.owner.or(one.owner);
        }
        for (place, sum) in sums {
            let now = self.now;
            if let Some((pid, comm)) = sum.owner {
                let process = self.process(Pid::live(pid), Timestamp(0));
                if process.comm == Comm::default() {
                    process.comm = comm;
                }
            }
            let listener = self.listener(place, now);
            // One that has closed takes its count with it.
            let grown = sum
                .accepted
                .wrapping_sub(listener.counted.unwrap_or(sum.accepted));
            let grown = if grown > u32::MAX / 2 { 0 } else { grown };
            listener.counted = Some(sum.accepted);
            listener.accepts.add(grown.into());
            *listener.accepted.get_or_insert_default() += u64::from(grown);
            listener.last_accept = listener.last_accept.max(sum.last_accept);
            listener.backlog = sum.backlog.or(listener.backlog);
            let owner = sum.owner.map(|(pid, comm)| (Pid::live(pid), comm));
            listener.owner = owner.or(listener.owner);
        }
    }

    /// Takes all connections that are in CLOSE_WAIT now.
    pub fn close_waits(&mut self, all: impl IntoIterator<Item = Waiting>) {
        self.changed = true;
        for process in self.processes.values_mut() {
            process.close_wait = 0;
            process.close_wait_flows.clear();
            process.close_wait_is_older = false;
        }
        for waiting in all {
            let (pid, comm) = waiting.owner;
            let process = self.process(pid, Timestamp(0));
            if process.comm == Comm::default() {
                process.comm = comm;
            }
            process.close_wait += u64::from(waiting.count);
            process.close_wait_is_older |= waiting.older;
            let flows = &mut process.close_wait_flows;
            let place = flows.partition_point(|&(_, since)| since <= waiting.since);
            if place < Process::FLOWS {
                flows.truncate(Process::FLOWS - 1);
                flows.insert(place, (waiting.flow, waiting.since));
            }
        }
        for process in self.processes.values_mut() {
            let oldest = process.close_wait_flows.first().map(|&(_, since)| since);
            // The look around at the start has asked the kernel how old they are.
            let told = process.told_since.filter(|_| process.close_wait_is_older);
            process.close_wait_since = oldest.map(|it| told.map_or(it, |told| told.min(it)));
        }
    }

    /// It is this late now.
    pub fn tick(&mut self, now: Timestamp) {
        if self.began == Timestamp(0) {
            (self.began, self.second) = (now, now);
        }
        self.now = self.now.max(now);
        // After a pause of the whole process one second stands for all of it.
        let over = self.now.0.saturating_sub(self.second.0) / SECOND;
        if over == 0 {
            return;
        }
        self.changed = true;
        self.second = Timestamp(self.second.0 + over * SECOND);
        for _ in 0..over.min(History::SECONDS as u64) {
            self.roll();
        }
        if let Some(told) = self.told.take() {
            self.close_waits(told.waiting());
            self.told = Some(told);
        }
        let now = self.now.0;
        let lately = |last: Timestamp| now.saturating_sub(last.0) < REMEMBERED;
        self.listeners.retain(|_, it| !it.gone || lately(it.last));
        self.processes
            .retain(|_, it| !it.gone || it.close_wait > 0 || lately(it.last));
    }

    fn roll(&mut self) {
        self.events.roll(0);
        for process in self.processes.values_mut() {
            process.events.roll(0);
        }
        for listener in self.listeners.values_mut() {
            listener.depth.roll(listener.len.unwrap_or_default());
            listener.losses.roll(0);
            listener.accepts.roll(0);
        }
    }

    /// How long ago that was, ns, when the kernel half was last asked: since then nobody knows.
    #[must_use]
    pub fn accepted_ago(&self, at: Timestamp) -> u64 {
        let asked = if self.asked == Timestamp(0) {
            self.now
        } else {
            self.asked
        };
        asked.0.saturating_sub(at.0)
    }

    /// Processes whose descriptors are worth a look, those with the latest events first.
    #[must_use]
    pub fn asks_for(&self) -> Vec<u32> {
        let live = self
            .processes
            .iter()
            .filter(|(pid, it)| pid.pid != 0 && !it.gone);
        let mut asked: Vec<_> = live.map(|(pid, it)| (it.last, pid.pid)).collect();
        asked.sort_unstable_by(|a, b| b.cmp(a));
        asked.truncate(Self::ASKED);
        asked.into_iter().map(|(_, pid)| pid).collect()
    }

    /// What was found, by the id of its first record.
    #[must_use]
    pub fn found_by(&self, id: EventId) -> Option<&Found> {
        let mut newest_first = self.findings.iter().rev();
        newest_first.find(|it| it.finding().is_some_and(|it| it.id == id))
    }

    /// Events of the timeline with one of these ids, oldest first.
    pub fn evidence<'a>(&'a self, ids: &'a [EventId]) -> impl Iterator<Item = &'a Event> {
        self.timeline.iter().filter(|it| ids.contains(&it.id))
    }

    fn process(&mut self, pid: Pid, time: Timestamp) -> &mut Process {
        if self.processes.len() >= Self::PROCESSES && !self.processes.contains_key(&pid) {
            let rank = |it: &Process| (it.holds_something(), it.last);
            self.forgotten += make_room(&mut self.processes, rank);
        }
        let process = self.processes.entry(pid).or_default();
        process.last = process.last.max(time);
        process
    }

    fn listener(&mut self, place: Place, time: Timestamp) -> &mut Listener {
        if self.listeners.len() >= Self::LISTENERS && !self.listeners.contains_key(&place) {
            let rank = |it: &Listener| (it.is_full() || it.lost > 0, it.last);
            self.forgotten += make_room(&mut self.listeners, rank);
        }
        let listener = self.listeners.entry(place).or_default();
        listener.last = listener.last.max(time);
        listener
    }
}

/// Takes out a quarter, those of the lowest rank; says how many.
fn make_room<K: Copy + Ord + std::hash::Hash, V, R: Ord>(
    rows: &mut Map<K, V>,
    rank: impl Fn(&V) -> R,
) -> u64 {
    let mut ranks: Vec<_> = rows.iter().map(|(&key, row)| (rank(row), key)).collect();
    ranks.sort_unstable();
    let out = ranks.len().div_ceil(4);
    for (_, key) in ranks.into_iter().take(out) {
        rows.remove(&key);
    }
    out as u64
}

fn pid(id: EventId, owner: &Owner) -> Pid {
    Pid {
        run: id.run(),
        pid: owner.process.as_ref().map_or(0, |it| it.pid),
    }
}

fn place(id: EventId, flow: &Flow) -> Place {
    Place {
        run: id.run(),
        netns: flow.netns,
        address: flow.local,
    }
}

#[cfg(test)]
mod tests;
