//! A case: failures of one cause, process and peer, told as one finding.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::connection::View;
use super::descriptors::{self, Exhausted};
use super::exiting::Exited;
use super::leaking::Leak;
use super::pooling::Pool;
use super::queueing::{FullQueue, FullSynQueue};
use super::subject::{Subject, service};
use super::verdict::{Verdict, Words};
use super::waiting;
use crate::event::{
    Cause, Certainty, End, Errno, Event, EventId, Fact, Finding, Kind, Millis, Owner, Process,
    Severity, Socket, Stack, Timestamp,
};

/// The failures of one subject.
#[derive(Debug)]
pub(super) struct Case {
    /// Cases opened before it.
    pub(super) nth: u64,
    /// The finding's id, once somebody knows it.
    id: Option<EventId>,
    /// The run the finding is told in.
    run: u16,
    cause: Cause,
    hint: Option<Cause>,
    certainty: Certainty,
    severity: Severity,
    owner: Owner,
    actor: Option<Box<Process>>,
    socket: Option<Socket>,
    peer: Option<Process>,
    /// Where the process was in its code.
    stack: Option<Arc<Stack>>,
    /// The processes it stands for, as far as [`PIDS`].
    pids: Vec<u32>,
    /// What it is a consequence of.
    pub(super) caused_by: Option<EventId>,
    pub(super) count: u64,
    first: Timestamp,
    pub(super) last: Timestamp,
    evidence: Evidence,
    errors: Vec<(Errno, u64)>,
    intervals: Intervals,
    pub(super) story: Story,
    /// The first event of the connection that is told of.
    led_by: Option<(Timestamp, EventId)>,
    told: u32,
    told_count: u64,
    /// When it is told next.
    due: Timestamp,
}

/// What is told of a case, beyond its count.
#[derive(Debug)]
pub(super) enum Story {
    /// The words for its first failure; the others are like it.
    First(Words),
    Queue(Box<FullQueue>),
    SynQueue(FullSynQueue),
    Descriptors(Exhausted),
    Leak(Box<Leak>),
    Exit(Exited),
    Pool(Pool),
    /// Calls on a descriptor that was closed; the first of them.
    Closed(Box<Event>),
}

/// The first and the last events; of two that tell the same both are kept only when they happened at
/// different times.
#[derive(Debug, Default)]
struct Evidence {
    /// In order.
    first: Vec<(Timestamp, EventId)>,
    /// In order, and after the first.
    last: Vec<(Timestamp, EventId)>,
}

/// A case is told this long after its first failure, so that a storm is one from the start.
const SETTLE: Duration = Duration::from_millis(500);
/// A failure that comes later than this after the last one is another case.
const OPEN: Duration = Duration::from_mins(1);
/// Processes of one name told apart.
const PIDS: usize = 256;
/// A queue that has lost nothing for so long has recovered.
const EPISODE: Duration = Duration::from_secs(5);

impl Case {
    pub(super) fn new(
        nth: u64,
        subject: &Subject,
        verdict: &Verdict,
        story: Story,
        at: Timestamp,
    ) -> Self {
        Self {
            nth,
            id: None,
            run: subject.run,
            cause: subject.cause,
            hint: verdict.hint,
            certainty: verdict.certainty,
            severity: verdict.severity,
            owner: Owner::default(),
            actor: None,
            socket: None,
            peer: None,
            stack: None,
            pids: Vec::new(),
            caused_by: None,
            count: 0,
            first: at,
            last: at,
            evidence: Evidence::default(),
            errors: Vec::new(),
            intervals: Intervals::default(),
            story,
            led_by: None,
            told: 0,
            told_count: 0,
            due: after(at, SETTLE),
        }
    }

    /// Until it is told the connection that failed first is the one to tell of, whichever was judged
    /// first.
    pub(super) fn is_led_by(&mut self, first: (Timestamp, EventId)) -> bool {
        if self.led_by.is_none_or(|led_by| first < led_by) && self.told == 0 {
            self.led_by.replace(first).is_some() && matches!(self.story, Story::First(_))
        } else {
            false
        }
    }

    /// Tells of this connection. What it does not know, another one may have.
    pub(super) fn lead(&mut self, view: View<'_>, story: Story) {
        self.story = story;
        let owner = view.this.owner();
        if owner.process.is_some() {
            self.owner = owner;
        }
        self.peer = peer(view).or(self.peer.take());
        self.socket = view.this.socket().cloned().or(self.socket.take());
        self.stack = view.this.stack().or(self.stack.take());
    }

    /// Takes one more connection of the same verdict, seen from the end it is told of.
    pub(super) fn add(&mut self, view: View<'_>, verdict: &Verdict) {
        self.count += 1;
        self.severity = self.severity.max(verdict.severity);
        self.certainty = self.certainty.max(verdict.certainty);
        self.hint = self.hint.or(verdict.hint);
        if let Some(ms) = verdict.interval_ms {
            self.intervals.add(ms);
        }
        if let Story::Exit(exited) = &mut self.story {
            exited.take(view);
        }
        if let Some(process) = view.this.process()
            && self.pids.len() < PIDS
            && !self.pids.contains(&process.pid)
        {
            self.pids.push(process.pid);
        }
        if self.owner.process.is_none() {
            self.owner = view.this.owner();
        }
        if self.peer.is_none() {
            self.peer = peer(view);
        }
        if self.stack.is_none() {
            self.stack = view.this.stack();
        }
        if self.socket.is_none() {
            self.socket = view.this.socket().cloned();
        }
        self.witness(view);
    }

    /// Takes what was seen of a connection as evidence, without counting it.
    pub(super) fn witness(&mut self, view: View<'_>) {
        for end in [view.this, view.other] {
            for (errno, count) in end.errnos() {
                self.error(errno, count);
            }
            for seen in end.seen() {
                self.actor = self.actor.take().or_else(|| seen.first.actor.clone());
                self.evidence.add((seen.first.time, seen.first.id));
                self.evidence.add(seen.last);
                self.at(seen.first.time);
                self.at(seen.last.0);
            }
        }
    }

    /// Takes one event as evidence; `count` failures of the case's own.
    pub(super) fn event(&mut self, event: &Event, count: u64) {
        self.count += count;
        if event.owner.confidence > self.owner.confidence || self.owner.process.is_none() {
            self.owner = event.owner.clone();
        }
        if self.socket.is_none() {
            self.socket.clone_from(&event.socket);
        }
        if self.stack.is_none() {
            self.stack = event.stack().cloned();
        }
        self.actor = self.actor.take().or_else(|| event.actor.clone());
        self.evidence.add((event.time, event.id));
        self.at(event.time);
    }

    /// Of several processes that hold the socket, the one that should have acted.
    pub(super) fn belongs_to(&mut self, process: Option<Process>) {
        if let Some(process) = process
            && self.owner.process.as_ref().map(|it| it.pid) != Some(process.pid)
        {
            self.owner.process = Some(process);
        }
    }

    /// An error that came late, from a failure told of already.
    pub(super) fn late_error(&mut self, event: &Event, errno: Errno) {
        self.error(errno, 1);
        self.evidence.add((event.time, event.id));
        self.at(event.time);
    }

    /// How grave and how sure it is by now.
    pub(super) fn grade(&mut self, severity: Severity, certainty: Certainty) {
        self.severity = severity;
        self.certainty = certainty;
    }

    /// What there is to tell is enough for a finding.
    pub(super) fn is_worth_telling(&self) -> bool {
        match &self.story {
            Story::Leak(leak) => leak.is_one(),
            Story::Exit(exited) => exited.is_a_failure(),
            Story::Pool(pool) => pool.is_flat(),
            _ => true,
        }
    }

    /// The process it is told of; 0: none is known.
    pub(super) fn pid(&self) -> u32 {
        self.owner.process.as_ref().map_or(0, |process| process.pid)
    }

    /// The process at the other end; 0: none is known.
    pub(super) fn peer_pid(&self) -> u32 {
        self.peer.as_ref().map_or(0, |process| process.pid)
    }

    /// The finding's id, from its first event: whoever has the same events gives it the same, in
    /// whatever order they came.
    pub(super) fn id(&mut self) -> EventId {
        let (evidence, cause, run) = (&self.evidence, self.cause, self.run);
        let first = || evidence.first.first().map_or(EventId(0), |&(_, id)| id);
        *self
            .id
            .get_or_insert_with(|| finding_id(first(), cause, 0).of_run(run))
    }

    /// When its first failure happened.
    pub(super) fn begun(&self) -> Timestamp {
        self.first
    }

    /// Nothing has happened for so long that the next failure is another case.
    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        now >= self.over()
    }

    fn over(&self) -> Timestamp {
        let open = match self.story {
            Story::Queue(_) => EPISODE,
            _ => OPEN,
        };
        after(self.last, open)
    }

    /// When it is told next, or over.
    pub(super) fn next_due(&self) -> Timestamp {
        self.due.min(self.over())
    }

    /// The finding as it stands, if it is new or has grown; what comes more is told after one of these.
    pub(super) fn tell(
        &mut self,
        now: Timestamp,
        over: bool,
        again: [Duration; 2],
    ) -> Option<Event> {
        if !self.is_worth_telling() {
            self.due = after(now, SETTLE);
            return None;
        }
        let step = again[usize::from(self.told > 0)];
        self.due = after(now, step);
        if self.told > 0 && self.told_count == self.count {
            return None;
        }
        let event = self.finding(now, over);
        self.told += 1;
        self.told_count = self.count;
        Some(event)
    }

    fn finding(&mut self, now: Timestamp, over: bool) -> Event {
        let id = self.id();
        let record = match self.told {
            0 => id,
            nth => finding_id(id, self.cause, nth).of_run(self.run),
        };
        let owner = match (&self.owner.process, self.pids.len()) {
            (None, _) => "an unknown process".to_owned(),
            (Some(process), 0..=1) => process.to_string(),
            (Some(process), pids) => format!("{process} (and {} more {})", pids - 1, process.comm),
        };
        let mut words = self.words(&owner);
        self.name_intervals(&mut words);
        let finding = Finding {
            id,
            update: self.told,
            closed: over,
            cause: self.cause,
            hint: self.hint,
            certainty: self.certainty,
            severity: self.severity,
            count: self.count,
            first: self.first,
            last: self.last,
            evidence: self.evidence.ids(),
            errors: self.errors.clone(),
            peer: self.peer.clone(),
            title: words.title,
            why: words.why,
            fix: words.fix,
            ruled_out: words.ruled_out,
        };
        Event {
            id: record,
            time: now,
            caused_by: self.caused_by,
            socket: self.socket.clone(),
            owner: self.owner.clone(),
            actor: self.actor.clone(),
            facts: self.stack.clone().map(Fact::Stack).into_iter().collect(),
            kind: Kind::Finding(Box::new(finding)),
        }
    }

    fn words(&self, owner: &str) -> Words {
        match &self.story {
            Story::First(words) => {
                let mut words = words.clone();
                if self.count > 1 {
                    let span = Millis(self.last.0.saturating_sub(self.first.0) / 1_000_000);
                    let _ = write!(words.title, " ({} times in all, over {span}", self.count);
                    if self.pids.len() > 1 {
                        let _ = write!(words.title, ", in {} processes", self.pids.len());
                    }
                    words.title.push(')');
                }
                words
            }
            Story::Queue(queue) => queue.words(owner),
            Story::SynQueue(queue) => {
                let at = self.socket.as_ref().map(|socket| socket.flow.local);
                queue.words(owner, at)
            }
            Story::Descriptors(exhausted) => exhausted.words(owner, self.count),
            Story::Leak(leak) => leak.words(owner, &self.whereto()),
            Story::Exit(exited) => exited.words(owner),
            Story::Pool(pool) => pool.words(owner),
            Story::Closed(event) => match &event.kind {
                Kind::FdInvalid(call) => {
                    descriptors::use_after_close(event, call, owner, self.count)
                }
                _ => Words::default(),
            },
        }
    }

    /// `to 10.0.0.5:5432` of a client's connections, `at port 8080` of a server's.
    fn whereto(&self) -> String {
        let Some(socket) = &self.socket else {
            return String::new();
        };
        match (service(socket), socket.flow.peer) {
            (service, Some(peer)) if service == peer => format!("to {}", End(peer)),
            (service, _) => format!("at {}", End(service)),
        }
    }

    /// A time that several connections have in common is a deadline.
    fn name_intervals(&mut self, words: &mut Words) {
        let Some((ms, count)) = self.intervals.common() else {
            return;
        };
        words.ruled_out.push(format!(
            "chance: {} on {count} connections is somebody's deadline",
            Seconds(ms)
        ));
        if let Some(known) = waiting::deadline(ms) {
            words.fix.push(known.to_string());
        }
        if matches!(self.cause, Cause::PeerGaveUp | Cause::GaveUpWaiting) {
            self.severity = self.severity.max(Severity::Warn);
            self.certainty = Certainty::High;
        }
    }

    fn error(&mut self, errno: Errno, count: u64) {
        match self.errors.iter_mut().find(|(known, _)| *known == errno) {
            Some((_, total)) => *total += count,
            None => self.errors.push((errno, count)),
        }
    }

    fn at(&mut self, time: Timestamp) {
        self.first = self.first.min(time);
        self.last = self.last.max(time);
    }
}

impl Evidence {
    const HALF: usize = Finding::EVIDENCE / 2;

    fn add(&mut self, one: (Timestamp, EventId)) {
        let Err(place) = self.first.binary_search(&one) else {
            return;
        };
        let one = if place == Self::HALF {
            one
        } else {
            self.first.insert(place, one);
            if self.first.len() <= Self::HALF {
                return;
            }
            self.first.remove(Self::HALF)
        };
        // What is earlier than all of a full list would be the first to leave it again.
        if let Err(place) = self.last.binary_search(&one)
            && (place > 0 || self.last.len() < Self::HALF)
        {
            if self.last.len() == Self::HALF {
                self.last.remove(0);
                self.last.insert(place - 1, one);
            } else {
                self.last.insert(place, one);
            }
        }
    }

    fn ids(&self) -> Vec<EventId> {
        self.first
            .iter()
            .chain(&self.last)
            .map(|&(_, id)| id)
            .collect()
    }
}

/// Intervals of the same length, told apart as far as deadlines are.
#[derive(Debug, Default)]
struct Intervals(Vec<(u64, u64)>);

impl Intervals {
    /// Lengths told apart.
    const LENGTHS: usize = 16;
    /// So many of one length are no accident.
    const COMMON: u64 = 3;

    fn add(&mut self, ms: u64) {
        let is_alike = |at| waiting::is_near(ms, at) || waiting::is_near(at, ms);
        if let Some((at, count)) = self.0.iter_mut().find(|(at, _)| is_alike(*at)) {
            *at = ms.min(*at);
            *count += 1;
        } else if self.0.len() < Self::LENGTHS {
            self.0.push((ms, 1));
        }
    }

    fn common(&self) -> Option<(u64, u64)> {
        let most = self.0.iter().max_by_key(|&&(ms, count)| (count, ms))?;
        (most.1 >= Self::COMMON && most.0 >= waiting::LONG_MS).then_some(*most)
    }
}

/// `5.00 s`
struct Seconds(u64);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hundredths = (self.0 + 5) / 10;
        write!(f, "{}.{:02} s", hundredths / 100, hundredths % 100)
    }
}

/// The process at the other end, or the one that holds the port.
fn peer(view: View<'_>) -> Option<Process> {
    let holder = || view.this.port_holder()?.owner.as_ref();
    view.peer().or_else(holder).cloned()
}

/// Set in the ids of findings, see [`EventId`].
const FINDING: u64 = 1 << 52 | 1 << 51;

/// The id of a finding whose first event this is, or of its `nth` telling.
fn finding_id(first: EventId, cause: Cause, nth: u32) -> EventId {
    // The mixing of splitmix64, which spreads what is alike. <https://prng.di.unimi.it/splitmix64.c>
    let kind = (cause as u64) << 56;
    let step = (u64::from(nth) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut mixed = (first.in_run() ^ kind).wrapping_add(step);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    EventId(FINDING | (mixed ^ (mixed >> 31)) & ((1 << 51) - 1))
}

/// A time later by a duration.
pub(super) fn after(time: Timestamp, by: Duration) -> Timestamp {
    Timestamp(
        time.0
            .saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)),
    )
}
