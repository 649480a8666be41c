//! One run between its source and its outputs: completes events from `/proc`, chooses what is
//! printed, counts everything. No reactor and no kernel, so that tests drive it with bytes.

mod facts;
mod limit;
pub mod stacks;
mod stream;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::config::Selection;
use crate::decode::Decoder;
use crate::diagnose::{self, Analysis};
use crate::event::{
    Comm, Event, EventId, FdExhausted, Kind, Loss, Owner, Summary, SummaryRow, Timestamp,
};
use crate::host::attribution::{Question, Verifier};
use crate::host::process::{self, Processes};
use crate::metrics::Metrics;
use crate::sink::{Error, Outputs};
use facts::Facts;
use stacks::{Stacks, Wanted};
pub use stream::Stream;

/// As the analysis hashes.
type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A run's state.
pub struct Session {
    /// What the kernel half's numbers mean.
    pub decoder: Decoder,
    verifier: Verifier,
    processes: Processes,
    facts: Facts,
    stacks: Option<Stacks>,
    stream: Stream,
    own_ids: u64,
}

/// Set in the ids of events the agent makes itself: no CPU and no hook of the kernel half has it.
const OWN: u64 = 1 << 52;

impl Session {
    /// A run that prints what `selection` chooses, findings as `analysis` makes them, and is over after
    /// `limit` events.
    #[must_use]
    pub fn new(
        decoder: Decoder,
        selection: Selection,
        outputs: Outputs,
        verifier: Verifier,
        analysis: Analysis,
        limit: Option<u64>,
    ) -> Self {
        Self {
            decoder,
            verifier,
            processes: Processes::default(),
            facts: Facts::of_host(),
            stacks: None,
            stream: Stream::new(selection, outputs, analysis, limit),
            own_ids: 0,
        }
    }

    /// Waits for the stacks of who acted.
    pub fn show_stacks(&mut self, stacks: Stacks) {
        self.stacks = Some(stacks);
    }

    /// Prints at most this many events a second of one kind, cause and process.
    pub fn limit_rate(&mut self, limit: Option<u32>) {
        self.stream.limit_rate(limit);
    }

    /// What is printed.
    #[must_use]
    pub fn selection(&self) -> &Selection {
        &self.stream.selection
    }

    /// Prints what another selection chooses, which must be [within](Selection::is_within) the first.
    pub fn select(&mut self, selection: Selection) {
        self.stream.select(selection);
    }

    /// Counts what is seen here too, from now on.
    pub fn count_in(&mut self, metrics: Arc<Metrics>) {
        self.stream.metrics = Some(metrics);
    }

    /// Where it is counted for those who scrape.
    #[must_use]
    pub fn metrics(&self) -> Option<&Arc<Metrics>> {
        self.stream.metrics.as_ref()
    }

    /// As many events were printed as were asked for.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.stream.is_full()
    }

    /// Takes one record of the kernel half, if the event it tells is admitted.
    ///
    /// # Errors
    /// An output failed.
    pub fn take(&mut self, bytes: &[u8], admit: impl FnOnce(&Event) -> bool) -> Result<(), Error> {
        let Ok(mut decoded) = self.decoder.decode(bytes) else {
            self.stream.tally.malformed += 1;
            return Ok(());
        };
        if !admit(&decoded.event) {
            return Ok(());
        }
        let now = monotonic();
        let age = Duration::from_nanos(now.saturating_sub(decoded.monotonic));
        if decoded.unconfirmed || decoded.shared {
            self.check(&mut decoded.event, decoded.shared, age);
        }
        let event = &mut decoded.event;
        if let Kind::FdExhausted(exhausted) = &mut event.kind {
            count_descriptors(&event.owner, exhausted, age);
        }
        if decoded.stack
            && let Some(stacks) = &mut self.stacks
        {
            let wanted = Wanted(self.stream.wants(event) && !self.stream.is_full());
            if stacks.holds(event, wanted, age, Duration::from_nanos(now)) {
                return Ok(());
            }
        }
        self.pass_on(event, age)
    }

    /// Asks `/proc` who holds the socket of an event that happened `age` ago.
    pub fn confirm(&mut self, event: &mut Event, age: Duration) {
        self.check(event, true, age);
    }

    fn check(&mut self, event: &mut Event, shared: bool, age: Duration) {
        let Some(socket) = &mut event.socket else {
            return;
        };
        let question = Question {
            inode: socket.inode,
            shared,
            delay_ms: millis(age),
        };
        let now = Duration::from_nanos(monotonic());
        self.verifier
            .check(&mut event.owner, &mut socket.fd, question, now);
    }

    /// Takes an event the agent found itself, `age` ago. It is held back while the host is asked
    /// about it; see [`Session::resume`].
    ///
    /// # Errors
    /// An output failed.
    pub fn publish(&mut self, mut event: Event, age: Duration) -> Result<(), Error> {
        self.pass_on(&mut event, age)
    }

    /// By reference as far as it goes: an event is large, and most are kept nowhere.
    fn pass_on(&mut self, event: &mut Event, age: Duration) -> Result<(), Error> {
        if self.is_full() {
            return Ok(());
        }
        if let Some(owner) = &mut event.owner.process
            && owner.exe.is_none()
            && let Some(details) = self.processes.get(owner.pid, age)
        {
            owner.exe.clone_from(&details.exe);
            owner.container.clone_from(&details.container);
        }
        // A finding is made of events that are not printed, too.
        if self.stream.wants(event) {
            let now = || Duration::from_nanos(monotonic());
            let questions = facts::questions(event);
            if self.facts.holds(event, questions, age, now) {
                return Ok(());
            }
        }
        self.stream.take(event)
    }

    /// Waits until the host has answered a question about an event that is held back.
    pub async fn answered(&self) {
        let stacks = async {
            match &self.stacks {
                Some(stacks) => stacks.answered().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.facts.answered() => {}
            () = stacks => {}
        }
    }

    /// Goes on with the events about which the host has answered, and with those that have waited
    /// too long.
    ///
    /// # Errors
    /// An output failed.
    pub fn resume(&mut self) -> Result<(), Error> {
        let now = Duration::from_nanos(monotonic());
        let named = self.stacks.as_mut().map(|stacks| stacks.ready(now));
        for (mut event, age) in named.unwrap_or_default() {
            self.pass_on(&mut event, age)?;
        }
        let ready = self.facts.ready(now);
        ready.iter().try_for_each(|event| self.stream.take(event))
    }

    /// Looks at the host that were not taken, so that events came without facts.
    #[must_use]
    pub fn looks_skipped(&self) -> u64 {
        self.facts.skipped()
    }

    /// Events that came without their stack, as it took too long or too many waited.
    #[must_use]
    pub fn stacks_skipped(&self) -> u64 {
        self.stacks.as_ref().map_or(0, Stacks::skipped)
    }

    /// Events of this name, without the prefix, are wanted.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.stream.selection.has(name) || self.stream.selection.has("finding")
    }

    /// Time has passed: tells the findings that are due. For the analysis it has not passed beyond an
    /// event that is held back: what it belongs to is not judged without it.
    ///
    /// # Errors
    /// An output failed.
    pub fn advance(&mut self) -> Result<(), Error> {
        let now = monotonic();
        if let Some(metrics) = &self.stream.metrics {
            metrics.beat(now);
        }
        self.tell_suppressed(now, false)?;
        let now = self.decoder.wall(now);
        let held = [
            self.facts.oldest(),
            self.stacks.as_ref().and_then(Stacks::oldest),
        ];
        let now = held.into_iter().flatten().fold(now, Timestamp::min);
        self.stream.advance(now)
    }

    /// Nothing more comes: goes on with the events that are held back, which takes a second at most,
    /// and tells all findings.
    ///
    /// # Errors
    /// An output failed.
    pub fn finish(&mut self) -> Result<(), Error> {
        let now = Duration::from_nanos(monotonic());
        let named = self.stacks.as_mut().map(|stacks| stacks.finish(now));
        for (mut event, age) in named.unwrap_or_default() {
            self.pass_on(&mut event, age)?;
        }
        let ready = self.facts.finish(Duration::from_nanos(monotonic()));
        for event in &ready {
            self.stream.take(event)?;
        }
        self.tell_suppressed(monotonic(), true)?;
        let now = self.decoder.wall(monotonic());
        self.stream.finish(now)
    }

    fn tell_suppressed(&mut self, now: u64, is_last: bool) -> Result<(), Error> {
        let told = self.stream.suppressed(Duration::from_nanos(now), is_last);
        let told: Vec<_> = told.collect();
        for (owner, suppressed) in told {
            if let Some(metrics) = &self.stream.metrics {
                metrics.suppressed(&suppressed);
            }
            self.note_of(owner, Kind::EventsSuppressed(suppressed))?;
        }
        Ok(())
    }

    /// Events the kernel half could not hand over.
    ///
    /// # Errors
    /// An output failed.
    pub fn lost(&mut self, loss: Loss) -> Result<(), Error> {
        self.note(Kind::EventsLost(loss))
    }

    /// Prints something about the stream itself.
    ///
    /// # Errors
    /// An output failed.
    pub fn note(&mut self, kind: Kind) -> Result<(), Error> {
        self.note_of(Owner::default(), kind)
    }

    /// Prints something about the stream that is about a process.
    ///
    /// # Errors
    /// An output failed.
    pub fn note_of(&mut self, owner: Owner, kind: Kind) -> Result<(), Error> {
        let event = Event {
            id: self.next_id(),
            time: self.decoder.wall(monotonic()),
            caused_by: None,
            socket: None,
            owner,
            actor: None,
            facts: Vec::new(),
            kind,
        };
        self.stream.note(&event)
    }

    /// An id for an event the agent makes itself.
    pub fn next_id(&mut self) -> EventId {
        self.own_ids += 1;
        EventId(OWN | self.own_ids)
    }

    /// Hands over what the outputs kept back.
    ///
    /// # Errors
    /// An output failed.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.stream.flush()
    }

    /// Opens the outputs anew.
    ///
    /// # Errors
    /// An output failed.
    pub fn reopen(&mut self) -> Result<(), Error> {
        self.stream.reopen()
    }

    /// The counts so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        self.stream.tally()
    }

    /// Only events in this namespace, and from now on, are compared with the kernel's counters.
    pub fn reconcile_from_now(&mut self, netns: u32) {
        let now = self.decoder.wall(monotonic());
        self.stream.tally.comparable = Some((netns, now..Timestamp(u64::MAX)));
    }

    /// Only events until now are compared with the kernel's counters.
    pub fn reconcile_until_now(&mut self) {
        let now = self.decoder.wall(monotonic());
        if let Some((_, period)) = &mut self.stream.tally.comparable {
            period.end = now;
        }
    }
}

/// The loop may have taken a boost to keep up with a storm; who looks at the host has time.
fn lower_priority() {
    // SAFETY: the call reads its arguments only. On Linux 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
}

/// What ran out, read just after.
fn count_descriptors(owner: &Owner, exhausted: &mut FdExhausted, age: Duration) {
    let Some(owner) = &owner.process else { return };
    if exhausted.errno.0 == libc::ENFILE {
        let host = process::host_files().ok();
        exhausted.open = host.as_ref().map(|host| host.open);
        exhausted.limit = host.as_ref().map(|host| host.limit);
    } else {
        exhausted.open = process::open_files(owner.pid).ok();
        exhausted.limit = process::open_files_limit(owner.pid);
    }
    if exhausted.open.is_some() {
        exhausted.read_after_ms = Some(millis(age));
    }
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Tally {
    /// Events printed.
    pub printed: u64,
    /// Events lost.
    pub lost: u64,
    /// Records of another version of the kernel half.
    pub malformed: u64,
    kinds: Map<(&'static str, Option<Cow<'static, str>>), u64>,
    processes: Map<u32, (Comm, u64)>,
    listeners: Map<String, u64>,
    /// The namespace and period whose counts the kernel's counters are compared with.
    comparable: Option<(u32, Range<Timestamp>)>,
    resets: u64,
    overflows: u64,
}

impl Tally {
    /// Processes and listeners counted one by one; those that come later are in the totals only.
    const CAPACITY: usize = 4096;
    /// Processes and listeners named in a summary.
    const NAMED: usize = 10;

    fn saw(&mut self, event: &Event) {
        let error = match &event.kind {
            // By cause, whatever error it showed as.
            Kind::Finding(finding) => Some(Cow::Borrowed(finding.cause.as_str())),
            _ => diagnose::error_type(event),
        };
        *self.kinds.entry((event.name(), error)).or_default() += 1;
        if let Some(owner) = &event.owner.process
            && (self.processes.len() < Self::CAPACITY || self.processes.contains_key(&owner.pid))
        {
            let counted = self.processes.entry(owner.pid).or_insert((owner.comm, 0));
            *counted = (owner.comm, counted.1 + 1);
        }
        let Some(socket) = &event.socket else { return };
        let comparable = self.comparable.as_ref().is_some_and(|(netns, period)| {
            socket.flow.netns == *netns && period.contains(&event.time)
        });
        match &event.kind {
            Kind::ResetSent(_) if comparable => self.resets += 1,
            Kind::AcceptQueueOverflow(overflow) if overflow.count > 0 => {
                if comparable {
                    self.overflows += overflow.count;
                }
                let listener = match socket.flow.local {
                    local if local.port() != 0 => local.to_string(),
                    _ => format!("some listener of namespace {}", socket.flow.netns),
                };
                if self.listeners.len() < Self::CAPACITY || self.listeners.contains_key(&listener) {
                    *self.listeners.entry(listener).or_default() += overflow.count;
                }
            }
            _ => {}
        }
    }

    /// RSTs seen in our own namespace.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// Overflows seen in our own namespace.
    #[must_use]
    pub fn overflows(&self) -> u64 {
        self.overflows
    }

    /// The summary, without what the kernel's counters say.
    #[must_use]
    pub fn summary(&self, duration: Duration, close_waits: u64) -> Summary {
        let mut kinds: Vec<_> = self
            .kinds
            .iter()
            .map(|((name, error), &count)| SummaryRow {
                name,
                error: error.clone().map(Cow::into_owned),
                count,
            })
            .collect();
        kinds.sort_by(|a, b| {
            b.count
                .cmp(&a.count)
                .then_with(|| a.name.cmp(b.name))
                .then_with(|| a.error.cmp(&b.error))
        });
        let mut processes: Vec<_> = self
            .processes
            .iter()
            .map(|(&pid, &(comm, count))| (pid, comm, count))
            .collect();
        processes.sort_by_key(|&(pid, _, count)| (std::cmp::Reverse(count), pid));
        processes.truncate(Self::NAMED);
        let mut listeners: Vec<_> = self
            .listeners
            .iter()
            .map(|(name, &count)| (name.clone(), count))
            .collect();
        listeners.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        listeners.truncate(Self::NAMED);
        Summary {
            duration_ms: millis(duration),
            events: self.printed,
            lost: self.lost,
            close_waits,
            kinds,
            processes,
            listeners,
            resets: None,
            overflows: None,
        }
    }
}

/// The kernel's monotonic clock, ns.
#[must_use]
pub fn monotonic() -> u64 {
    clock(ClockId::CLOCK_MONOTONIC)
}

/// A clock, ns; these clocks cannot fail.
#[must_use]
pub fn clock(id: ClockId) -> u64 {
    let now = clock_gettime(id).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or_default()
}

/// A duration in milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use bytes::Bytes;
    use tcptrace_common::event::{self as wire, flag, hook, kind};

    use super::stream::Evidence;
    use super::*;
    use crate::diagnose::{Limits, Sees};
    use crate::event::Errno;
    use crate::host::attribution;
    use crate::sink::{Context, Format, Sink, samples};

    #[derive(Clone, Default)]
    struct Memory(Rc<RefCell<Vec<Event>>>);

    impl Sink for Memory {
        fn write(&mut self, event: &Event, _: &Bytes) -> Result<(), Error> {
            self.0.borrow_mut().push(event.clone());
            Ok(())
        }

        fn flush(&mut self) -> Result<(), Error> {
            Ok(())
        }
    }

    fn session(events: &[&str], errnos: &[Errno]) -> (Session, Memory) {
        let memory = Memory::default();
        let context = Context {
            run: 1,
            key: [0; 16],
            host_name: String::new(),
            host_id: None,
            boot_id: None,
            node_name: None,
            replayed: None,
        };
        let mut outputs = Outputs::new(context);
        outputs.add(Format::Json, Box::new(memory.clone()));
        let events: Vec<_> = events.iter().map(|&event| event.to_owned()).collect();
        let selection = Selection::parse(&events, errnos, false).expect("a selection");
        let decoder = Decoder {
            clock_offset: 0,
            ns_per_jiffy: 1,
            reset_reasons: Vec::new(),
        };
        let verifier = Verifier::new(attribution::Host::default());
        (
            Session::new(
                decoder,
                selection,
                outputs,
                verifier,
                Analysis::new(Limits::default(), Sees::ALL),
                None,
            ),
            memory,
        )
    }

    fn raw(kind: u8, id: u64, cause: u64, errno: i32) -> wire::Event {
        let mut raw: wire::Event = bytemuck::Zeroable::zeroed();
        (raw.kind, raw.id, raw.cause, raw.errno) = (kind, id, cause, errno);
        raw.hook = hook::SEND_LENGTH;
        raw.family = 2;
        raw.flags = flag::SEND;
        raw
    }

    fn feed(session: &mut Session, records: &[wire::Event]) {
        for record in records {
            session
                .take(bytemuck::bytes_of(record), |_| true)
                .expect("memory takes it");
        }
    }

    fn ids(memory: &Memory) -> Vec<u64> {
        memory.0.borrow().iter().map(|event| event.id.0).collect()
    }

    #[test]
    fn the_cause_of_what_is_printed_is_printed_before_it_and_once() {
        let (mut session, memory) = session(&["socket.error"], &[]);
        feed(
            &mut session,
            &[
                raw(kind::RESET_RECEIVED, 1, 0, 0),
                raw(kind::RESET_RECEIVED, 2, 0, 0),
                raw(kind::SOCKET_ERROR, 3, 2, libc::ECONNRESET),
                raw(kind::SOCKET_ERROR, 4, 2, libc::EPIPE),
            ],
        );
        assert_eq!(ids(&memory), [2, 3, 4]);
    }

    #[test]
    fn errors_that_were_not_asked_for_are_only_counted() {
        let (mut session, memory) = session(&[], &[Errno(libc::EPIPE)]);
        feed(
            &mut session,
            &[
                raw(kind::SOCKET_ERROR, 1, 0, libc::ECONNRESET),
                raw(kind::SOCKET_ERROR, 2, 0, libc::EPIPE),
                raw(kind::RESET_SENT, 3, 0, 0),
            ],
        );
        assert_eq!(ids(&memory), [2]);
        let summary = session.tally().summary(Duration::ZERO, 0);
        assert_eq!((summary.events, summary.kinds.len()), (1, 3));
    }

    #[test]
    fn polled_losses_count_as_often_as_the_kernel_counted() {
        let (mut session, _) = session(&[], &[]);
        let polled = samples::queue_polled();
        let netns = polled.socket.as_ref().map(|socket| socket.flow.netns);
        session.stream.tally.comparable =
            netns.map(|netns| (netns, Timestamp(0)..Timestamp(u64::MAX)));
        for event in [polled.clone(), polled, samples::queue_full()] {
            session
                .publish(event, Duration::ZERO)
                .expect("memory takes it");
        }
        session.finish().expect("memory takes it");
        assert_eq!(session.tally().overflows(), 31 + 31 + 1);
        let mut listeners = session.tally().summary(Duration::ZERO, 0).listeners;
        listeners.sort_unstable();
        let expected = [
            ("0.0.0.0:8080", 1),
            ("some listener of namespace 4026531840", 62),
        ];
        assert_eq!(
            listeners,
            expected.map(|(name, count)| (name.to_owned(), count))
        );
    }

    #[test]
    fn evidence_is_bounded() {
        let mut evidence = Evidence::new(true);
        let (session, _) = session(&[], &[]);
        for id in 0..2 * Evidence::CAPACITY as u64 {
            let record = raw(kind::RESET_RECEIVED, id, 0, 0);
            let decoded = session
                .decoder
                .decode(bytemuck::bytes_of(&record))
                .expect("a record");
            evidence.keep(&decoded.event);
        }
        assert_eq!(evidence.events.len(), Evidence::CAPACITY);
        assert_eq!(evidence.take(EventId(0)), None);
        assert!(
            evidence
                .take(EventId(2 * Evidence::CAPACITY as u64 - 1))
                .is_some()
        );
    }

    #[test]
    fn a_record_of_another_version_is_counted_not_guessed() {
        let (mut session, memory) = session(&[], &[]);
        session
            .take(b"not a record", |_| true)
            .expect("it is left out");
        assert_eq!(session.tally().malformed, 1);
        assert!(ids(&memory).is_empty());
    }

    #[test]
    fn losses_reach_the_stream_and_the_summary() {
        let (mut session, memory) = session(&[], &[]);
        let loss = Loss {
            hook: "tcp_send_reset".to_owned(),
            count: 7,
            reason: "ring_full",
        };
        session.lost(loss.clone()).expect("memory takes it");
        assert_eq!(memory.0.borrow()[0].kind, Kind::EventsLost(loss));
        assert_eq!(session.tally().summary(Duration::ZERO, 0).lost, 7);
    }
}
