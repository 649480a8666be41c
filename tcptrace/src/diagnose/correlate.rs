//! Joins events into findings. Events in, findings out: time comes with the events and from
//! [`Analysis::advance`], facts about the host ride with the events.
//!
//! A failure shows at both ends of a connection, in an order that differs from case to case. So a
//! connection's events are gathered for a moment ([`SETTLE`]), then judged as a whole, and the verdict
//! joins the case of its cause, process and peer, which is told as one finding. What comes later of a
//! connection that was judged joins the same case.

use std::collections::VecDeque;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::Map;
use super::case::{Case, Story, after};
use super::connection::{Connection, Key, View};
use super::descriptors::Exhausted;
use super::exiting::Exited;
use super::judged::Judged;
use super::pooling::Pool;
use super::queueing::{self, FullQueue, FullSynQueue};
use super::subject::Subject;
use super::verdict::Verdict;
use super::{closing, connecting, timing, waiting, writing};
use crate::event::{Cause, Certainty, Event, Fact, Kind, Severity, Timestamp};

/// A connection is judged this long after its first event.
const SETTLE: Duration = Duration::from_millis(500);
/// One whose client left without an answer is given this long to show what the server does.
const HOLD: Duration = Duration::from_secs(5);
/// After so long without an event nothing is left to wait for. Beyond it time passes in one step: in a
/// recording somebody made up it may be centuries.
const LEAP: Duration = Duration::from_mins(10);

/// How much the analysis may remember, and how often it tells. What is over a limit is judged early or
/// forgotten, and counted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections whose events are being gathered.
    pub connections: usize,
    /// Findings that may still grow.
    pub cases: usize,
    /// Connections that were judged, for what comes late.
    pub judged: usize,
    /// When a finding that has grown is told again: after the first time, and each time after that.
    pub again: [Duration; 2],
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8_192,
            cases: 1_024,
            judged: 16_384,
            again: [Duration::from_secs(10), Duration::from_mins(1)],
        }
    }
}

/// What the hooks of this run leave no gap in. From what such a hook did not show something follows.
#[derive(Clone, Copy, Debug)]
pub struct Sees {
    /// Every RST that TCP of this host sends: one that was not seen was not TCP's.
    pub resets: bool,
    /// Every handshake whose last segment met a full accept queue, one by one: a RST sent for one is no
    /// news then.
    pub final_acks: bool,
}

impl Sees {
    /// All there is to see.
    pub const ALL: Self = Self {
        resets: true,
        final_acks: true,
    };
}

/// What the limits have cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections judged before all of their events may have come.
    pub early: u64,
    /// Findings that were closed to make room: what comes later is another one.
    pub evicted: u64,
    /// Failures no cause was found for: their events are all there is.
    pub unexplained: u64,
}

/// The state of the analysis.
#[derive(Debug)]
pub struct Analysis {
    limits: Limits,
    sees: Sees,
    connections: Map<Key, Connection>,
    spare: Vec<Connection>,
    /// In the order in which they are judged.
    settling: VecDeque<(Timestamp, Key)>,
    /// Those given more time.
    held: VecDeque<(Timestamp, Key)>,
    cases: Map<Subject, Case>,
    judged: Judged,
    /// How far time has passed.
    clock: Timestamp,
    /// Cases there have been.
    opened: u64,
    counts: Counts,
}

impl Analysis {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(limits: Limits, sees: Sees) -> Self {
        Self {
            limits,
            sees,
            connections: Map::with_capacity_and_hasher(limits.connections, RandomState::default()),
            spare: Vec::new(),
            settling: VecDeque::with_capacity(limits.connections),
            held: VecDeque::new(),
            cases: Map::with_capacity_and_hasher(limits.cases, RandomState::default()),
            judged: Judged::new(limits.judged),
            clock: Timestamp(0),
            opened: 0,
            counts: Counts::default(),
        }
    }

    /// What leaves no gap from now on.
    pub fn sees(&mut self, sees: Sees) {
        self.sees = sees;
    }

    /// Nothing is gathered or may still grow: time that passes changes nothing.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.connections.is_empty() && self.cases.is_empty()
    }

    /// What the limits have cost.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes one event. Findings come of it later, by [`advance`](Self::advance); where a limit is
    /// reached, at once.
    pub fn take(&mut self, event: &Event, tell: &mut impl FnMut(Event)) {
        for fact in &event.facts {
            if let Fact::Workload(workload) = fact
                && let Some(pool) = Pool::of(workload, event.time)
            {
                self.pool(event, pool, tell);
            }
        }
        if !self.sees.final_acks
            && let Some(lost) = queueing::refused(event)
        {
            self.overflow(&lost, tell);
        }
        match &event.kind {
            Kind::AcceptQueueOverflow(_) => self.overflow(event, tell),
            Kind::SynQueueOverflow(queue) => {
                let subject = Subject::of_process(Cause::SynQueueOverflow, event);
                let severity = if queue.cookies {
                    Severity::Warn
                } else {
                    Severity::Error
                };
                let case = self.case(subject, event, severity, tell, || {
                    Story::SynQueue(FullSynQueue::default())
                });
                case.event(event, queue.count);
                if let Story::SynQueue(full) = &mut case.story {
                    full.take(queue);
                }
            }
            Kind::FdExhausted(fds) if fds.syscall.is_some() => {
                let subject = Subject::of_process(Cause::FdExhausted, event).anywhere();
                let case = self.case(subject, event, Severity::Error, tell, || {
                    Story::Descriptors(Exhausted::default())
                });
                case.event(event, 1);
                case.late_error(event, fds.errno);
                if let Story::Descriptors(exhausted) = &mut case.story {
                    exhausted.take(event, fds);
                }
            }
            // Shells close what may be open: it matters where the descriptor was a connection.
            Kind::FdInvalid(call) if call.errno.0 == libc::EBADF && event.socket.is_some() => {
                let subject = Subject::of_process(Cause::UseAfterClose, event).anywhere();
                let case = self.case(subject, event, Severity::Warn, tell, || {
                    Story::Closed(Box::new(event.clone()))
                });
                case.event(event, 1);
                case.late_error(event, call.errno);
            }
            Kind::CloseWaitStuck(wait) => {
                let subject = Subject::of_socket(Cause::CloseWaitLeak, event);
                let case = self.case(subject, event, Severity::Warn, tell, || {
                    Story::Leak(Box::default())
                });
                if let Story::Leak(leak) = &mut case.story {
                    let new = leak.take(event, wait);
                    let severity = leak.severity();
                    case.event(event, u64::from(new) * u64::from(wait.count));
                    case.grade(severity, Certainty::High);
                }
            }
            Kind::CloseWaitEntered(_) | Kind::StateChanged(_) if !waiting::matters(event) => {}
            Kind::CloseWaitEntered(_)
            | Kind::StateChanged(_)
            | Kind::ResetSent(_)
            | Kind::ResetReceived(_)
            | Kind::SocketError(_)
            | Kind::ConnectFailed(_)
            | Kind::ConnectionTimeout(_) => self.on_a_connection(event, tell),
            // A table near its limit at the start is one of these: nothing has failed yet.
            Kind::FdExhausted(_)
            | Kind::FdInvalid(_)
            | Kind::Retransmit(_)
            | Kind::Coverage(_)
            | Kind::TargetChanged(_)
            | Kind::EventsLost(_)
            | Kind::ExportDropped(_)
            | Kind::EventsSuppressed(_)
            | Kind::Summary(_)
            | Kind::Sockets(_)
            | Kind::Finding(_) => {}
        }
    }

    /// Time has passed: judges the connections that have settled, and tells the findings that are due,
    /// each when it is due: in how many steps time came here changes nothing.
    pub fn advance(&mut self, now: Timestamp, tell: &mut impl FnMut(Event)) {
        let soon = now.min(after(self.clock, LEAP));
        while let Some(due) = self.next_due().filter(|&due| due <= soon) {
            self.clock = self.clock.max(due);
            self.step(self.clock, tell);
        }
        self.clock = self.clock.max(now);
        if soon < now {
            self.step(now, tell);
        }
    }

    /// When time changes something next.
    fn next_due(&self) -> Option<Timestamp> {
        let queues = [&self.settling, &self.held].into_iter();
        let connections = queues.filter_map(|queue| Some(queue.front()?.0));
        connections
            .chain(self.cases.values().map(Case::next_due))
            .min()
    }

    fn step(&mut self, now: Timestamp, tell: &mut impl FnMut(Event)) {
        while let Some(&(due, key)) = self.settling.front()
            && due <= now
        {
            self.settling.pop_front();
            self.settle(key, true, tell);
        }
        while let Some(&(due, key)) = self.held.front()
            && due <= now
        {
            self.held.pop_front();
            self.settle(key, false, tell);
        }
        self.tell_due(now, tell);
    }

    /// The trace ends: judges and tells all there is.
    pub fn finish(&mut self, now: Timestamp, tell: &mut impl FnMut(Event)) {
        while let Some((_, key)) = self.settling.pop_front() {
            self.settle(key, false, tell);
        }
        while let Some((_, key)) = self.held.pop_front() {
            self.settle(key, false, tell);
        }
        let mut subjects: Vec<_> = self.cases.keys().copied().collect();
        subjects.sort_by_key(|subject| self.cases[subject].nth);
        for subject in subjects {
            self.tell(subject, now, true, tell);
        }
        self.cases.clear();
    }

    fn on_a_connection(&mut self, event: &Event, tell: &mut impl FnMut(Event)) {
        let key = event
            .socket
            .as_ref()
            .and_then(|it| Key::of(&it.flow, event.id.run()));
        if self.is_late(key, event) {
            return;
        }
        let Some((key, end)) = key else {
            // No other end to wait for.
            let mut alone = self.spare();
            alone.begun = event.time;
            alone.take(0, event);
            self.judge(&alone, None, tell);
            self.recycle(alone);
            return;
        };
        if let Some(connection) = self.connections.get_mut(&key) {
            if connection.take(end, event) {
                return;
            }
            // The same addresses and ports, and another connection: the one before is complete.
            self.settle(key, false, tell);
        }
        if self.connections.len() >= self.limits.connections {
            self.make_room(tell);
        }
        let mut connection = self.spare();
        connection.begun = event.time;
        connection.take(end, event);
        self.connections.insert(key, connection);
        self.settling.push_back((after(event.time, SETTLE), key));
    }

    /// Something more of a failure that was told or will be told already.
    fn is_late(&mut self, key: Option<(Key, usize)>, event: &Event) -> bool {
        let Some(subject) = self.judged.subject_of(key, event) else {
            return false;
        };
        if let Some(case) = self.cases.get_mut(&subject) {
            match &event.kind {
                Kind::SocketError(call) => case.late_error(event, call.errno),
                _ => case.event(event, 0),
            }
        }
        true
    }

    /// Judges a connection; one that may still show more is given more time, once.
    fn settle(&mut self, key: Key, may_wait: bool, tell: &mut impl FnMut(Event)) {
        // Gone already, if its address was used again.
        let Some(mut connection) = self.connections.remove(&key) else {
            return;
        };
        if may_wait && !connection.held && is_open_question(&connection) {
            connection.held = true;
            self.held.push_back((after(connection.begun, HOLD), key));
            self.connections.insert(key, connection);
            return;
        }
        self.judge(&connection, Some(key), tell);
        self.recycle(connection);
    }

    fn judge(&mut self, connection: &Connection, key: Option<Key>, tell: &mut impl FnMut(Event)) {
        if let Some(subject) = self.full_queue(connection) {
            if let Some(case) = self.cases.get_mut(&subject) {
                witness(case, connection);
                self.judged.remember(key, connection, subject);
            }
            return;
        }
        let Some((view, verdict)) = verdict(connection, self.sees.resets) else {
            let failed = connection
                .seen()
                .any(|seen| matches!(seen.first.kind, Kind::SocketError(_)));
            self.counts.unexplained += u64::from(failed);
            return;
        };
        let told_of = if verdict.of_this { view } else { view.turned() };
        let subject = self.fold(Subject::of(&verdict, told_of));
        let story = || story(view, told_of, &verdict);
        let case = self.entry(subject, &verdict, connection.begun, tell, story);
        if case.is_led_by(connection.first()) {
            case.lead(told_of, story());
        }
        case.add(told_of, &verdict);
        self.judged.remember(key, connection, subject);
    }

    /// The listener that lost this connection, if that is what happened to it.
    fn full_queue(&self, connection: &Connection) -> Option<Subject> {
        let views = connection.views();
        let lost = |view: &View<'_>| {
            view.other.is_unseen() && !view.this.is_unseen()
                || view
                    .other
                    .seen()
                    .any(|seen| seen.cause() == Some(Cause::AcceptQueueOverflow))
        };
        let socket = views.iter().find(|view| lost(view)).and_then(|view| {
            let mine = view.this.socket();
            mine.or(view.other.socket())
        })?;
        let ends = [Some(socket.flow.local), socket.flow.peer];
        let netns = socket.flow.netns;
        let found = self.cases.iter().filter(|(subject, case)| {
            let Story::Queue(queue) = &case.story else {
                return false;
            };
            let Some(listener) = queue.listener() else {
                return false;
            };
            let same_host = connection.seen().any(|it| it.first.id.run() == subject.run);
            ends.iter().flatten().any(|end| {
                let same_address = end.ip() == listener.ip();
                end.port() == listener.port()
                    && (same_address || same_host && listener.ip().is_unspecified())
                    && (subject.netns == netns && same_host || !end.ip().is_loopback())
            })
        });
        let first = found.min_by_key(|(_, case)| case.nth);
        first.map(|(subject, _)| *subject)
    }

    fn overflow(&mut self, event: &Event, tell: &mut impl FnMut(Event)) {
        let Some((overflow, listener)) = queueing::overflow(event) else {
            return;
        };
        // Found full at the start: nothing was seen to be lost yet.
        if overflow.count == 0 {
            return;
        }
        let subject = Subject {
            port: listener.map_or(0, |listener| listener.port()),
            ..Subject::of_process(Cause::AcceptQueueOverflow, event)
        };
        let case = self.case(subject, event, Severity::Error, tell, || {
            Story::Queue(Box::new(FullQueue::new(listener, event.time)))
        });
        if overflow.is_polled() {
            let known = listener.is_some();
            let certainty = if known {
                Certainty::Medium
            } else {
                Certainty::Low
            };
            case.grade(Severity::Error, certainty);
        }
        let Story::Queue(queue) = &mut case.story else {
            return;
        };
        let new = queue.take(event, overflow);
        let acceptor = queue.acceptor();
        case.event(event, new);
        case.belongs_to(acceptor);
    }

    fn pool(&mut self, event: &Event, pool: Pool, tell: &mut impl FnMut(Event)) {
        let subject = Subject {
            port: pool.server().port(),
            peer: Some(pool.server().ip()),
            ..Subject::of_process(Cause::PoolExhausted, event)
        };
        if let Some(case) = self.cases.get_mut(&subject)
            && let Story::Pool(known) = &mut case.story
        {
            if known.again(&pool) {
                case.event(event, 1);
            } else {
                case.story = Story::Pool(pool);
            }
            return;
        }
        let verdict = Verdict::new(Cause::PoolExhausted).certainty(Certainty::Low);
        let story = || Story::Pool(pool);
        let case = self.entry(subject, &verdict, event.time, tell, story);
        case.event(event, 1);
    }

    /// The open case of a subject that is no connection, or a new one.
    fn case(
        &mut self,
        subject: Subject,
        event: &Event,
        severity: Severity,
        tell: &mut impl FnMut(Event),
        story: impl FnOnce() -> Story,
    ) -> &mut Case {
        let is_over = |case: &Case| case.is_over(event.time);
        if self.cases.get(&subject).is_some_and(is_over) {
            self.close(subject, event.time, tell);
        }
        let verdict = Verdict::new(subject.cause).severity(severity);
        self.entry(subject, &verdict, event.time, tell, story)
    }

    fn entry(
        &mut self,
        subject: Subject,
        verdict: &Verdict,
        at: Timestamp,
        tell: &mut impl FnMut(Event),
        story: impl FnOnce() -> Story,
    ) -> &mut Case {
        if self.cases.len() >= self.limits.cases
            && !self.cases.contains_key(&subject)
            && let Some(oldest) = self.oldest()
        {
            self.counts.evicted += 1;
            self.close(oldest, at, tell);
        }
        let opened = &mut self.opened;
        self.cases.entry(subject).or_insert_with(|| {
            *opened += 1;
            Case::new(*opened, &subject, verdict, story(), at)
        })
    }

    fn oldest(&self) -> Option<Subject> {
        let oldest = self
            .cases
            .iter()
            .min_by_key(|(_, case)| (case.last, case.nth));
        oldest.map(|(subject, _)| *subject)
    }

    /// One process that fails with very many peers is one finding.
    fn fold(&self, subject: Subject) -> Subject {
        const PEERS: usize = 16;
        let many = Subject {
            peer: None,
            ..subject
        };
        if self.cases.contains_key(&subject) {
            subject
        } else if self.cases.contains_key(&many) {
            many
        } else {
            let alike = self
                .cases
                .keys()
                .filter(|it| Subject { peer: None, ..**it } == many);
            if alike.count() < PEERS { subject } else { many }
        }
    }

    fn tell_due(&mut self, now: Timestamp, tell: &mut impl FnMut(Event)) {
        let mut due: Vec<_> = self
            .cases
            .iter()
            .filter(|(_, case)| case.next_due() <= now)
            .map(|(subject, case)| (case.nth, *subject))
            .collect();
        due.sort_unstable_by_key(|(nth, _)| *nth);
        for (_, subject) in due {
            if self.cases[&subject].is_over(now) {
                self.close(subject, now, tell);
            } else {
                self.tell(subject, now, false, tell);
            }
        }
    }

    fn close(&mut self, subject: Subject, now: Timestamp, tell: &mut impl FnMut(Event)) {
        self.tell(subject, now, true, tell);
        self.cases.remove(&subject);
    }

    fn tell(&mut self, subject: Subject, now: Timestamp, over: bool, tell: &mut impl FnMut(Event)) {
        let follows_from = self.causing(&subject).and_then(|(cause, errno)| {
            let cause = self.cases.get_mut(&cause)?;
            Some((cause.id(), errno))
        });
        let Some(case) = self.cases.get_mut(&subject) else {
            return;
        };
        if let Some((id, errno)) = follows_from {
            case.caused_by = Some(id);
            if let (Story::Queue(queue), Some(errno)) = (&mut case.story, errno) {
                queue.is_failing(errno);
            }
        }
        if let Some(finding) = case.tell(now, over, self.limits.again) {
            tell(finding);
        }
    }

    /// The finding of the same process that this one follows from.
    fn causing(&self, subject: &Subject) -> Option<(Subject, Option<crate::event::Errno>)> {
        let mine = self.cases.get(subject)?;
        // The process whose failure may be behind this one.
        let (causes, pid): (&[Cause], _) = match subject.cause {
            Cause::AcceptQueueOverflow => (&[Cause::FdExhausted, Cause::PoolExhausted], mine.pid()),
            Cause::FdExhausted => (&[Cause::CloseWaitLeak], mine.pid()),
            Cause::CloseWaitLeak => (&[Cause::PoolExhausted], mine.pid()),
            // The peer left because its own peer had left, or waits for its pool itself.
            Cause::PeerGaveUp => (&[Cause::PoolExhausted, Cause::PeerGaveUp], mine.pid()),
            Cause::GaveUpWaiting => (&[Cause::PoolExhausted], mine.peer_pid()),
            _ => return None,
        };
        causes.iter().find_map(|cause| {
            let pid = if *cause == Cause::PeerGaveUp {
                mine.peer_pid()
            } else {
                pid
            };
            let others = self.cases.iter().filter(|(other, case)| {
                other.cause == *cause
                    && other.run == subject.run
                    && case.pid() == pid
                    && pid != 0
                    && case.is_worth_telling()
                    && follows(mine, case)
            });
            let (other, case) = others.min_by_key(|(_, case)| case.nth)?;
            let errno = match &case.story {
                Story::Descriptors(exhausted) => exhausted.errno(),
                _ => None,
            };
            Some((*other, errno))
        })
    }

    fn make_room(&mut self, tell: &mut impl FnMut(Event)) {
        let next = self.settling.pop_front().or_else(|| self.held.pop_front());
        if let Some((_, key)) = next {
            self.counts.early += 1;
            self.settle(key, false, tell);
        }
    }

    fn spare(&mut self) -> Connection {
        self.spare.pop().unwrap_or_default()
    }

    fn recycle(&mut self, mut connection: Connection) {
        connection.clear();
        self.spare.push(connection);
    }
}

/// A consequence does not end before its cause begins, and a leak must be what fills the table.
fn follows(mine: &Case, cause: &Case) -> bool {
    if let (Story::Descriptors(exhausted), Story::Leak(leak)) = (&mine.story, &cause.story) {
        return exhausted.is_filled_by(leak.held());
    }
    mine.last >= cause.begun()
}

fn witness(case: &mut Case, connection: &Connection) {
    let [view, _] = connection.views();
    case.witness(view);
    if let Story::Queue(queue) = &mut case.story {
        let was_reset = connection
            .seen()
            .any(|seen| seen.cause() == Some(Cause::AcceptQueueOverflow));
        if was_reset {
            queue.was_reset();
        }
    }
}

/// The client left while the server still worked: whether it answers too late, closes or hangs is to
/// be seen.
fn is_open_question(connection: &Connection) -> bool {
    let [one, other] = connection.views();
    [one, other].into_iter().any(|view| {
        let asked = view
            .this
            .sockets()
            .any(|it| waiting::peer_waited_ms(it).is_some());
        let left = view.other.closed().is_some();
        asked
            && left
            && view.this.reset_received().is_none()
            && view.this.errors().next().is_none()
            && view.this.closed().is_none()
    })
}

/// The families of causes, the most certain evidence first, each from both ends.
fn verdict(connection: &Connection, sees_all_resets: bool) -> Option<(View<'_>, Verdict)> {
    type Family<'a> = &'a dyn Fn(View<'_>) -> Option<Verdict>;
    let families: [Family<'_>; 9] = [
        &timing::judge,
        &closing::judge,
        &|view| connecting::judge(view, sees_all_resets),
        &|view| writing::judge_reset(view, sees_all_resets),
        &closing::judge_exit,
        &waiting::closed_on_accept,
        &waiting::peer_gave_up,
        &waiting::gave_up_waiting,
        &writing::judge_error,
    ];
    let views = connection.views();
    families.into_iter().find_map(|judge| {
        // Of two verdicts of one family, the one that is surer.
        let verdicts = views
            .into_iter()
            .filter_map(|view| Some((view, judge(view)?)));
        verdicts.max_by_key(|(_, verdict)| verdict.certainty)
    })
}

fn story(view: View<'_>, told_of: View<'_>, verdict: &Verdict) -> Story {
    if verdict.cause == Cause::ProcessExited {
        return Story::Exit(Exited::default());
    }
    let words = match verdict.cause {
        Cause::PeerGaveUp => Some(waiting::tell_peer_gave_up(told_of, verdict)),
        Cause::GaveUpWaiting => Some(waiting::tell_gave_up_waiting(told_of, verdict)),
        Cause::ClosedOnAccept => Some(waiting::tell_closed_on_accept(told_of)),
        Cause::WriteAfterPeerClose if !verdict.of_this => writing::tell(told_of, verdict),
        _ => None,
    };
    let words = words
        .or_else(|| closing::tell(view, verdict))
        .or_else(|| connecting::tell(view, verdict.cause))
        .or_else(|| timing::tell(view, verdict.cause))
        .or_else(|| writing::tell(view, verdict));
    Story::First(words.unwrap_or_default())
}
