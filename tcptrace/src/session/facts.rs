//! Completes events with what the host says of them just after.
//!
//! A look may take a hundred milliseconds (every namespace, a table of ten thousand descriptors), so
//! it is taken on a thread, and the one event it is for is held back until the answer comes. The
//! events after it are not: each carries its own time. Nothing held is lost: what gets no answer in
//! time is printed without.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{millis, monotonic};
use crate::event::{Acceptor, Errno, Event, Fact, Kind, Side, State, StateChange};
use crate::host::attribution::Budget;
use crate::host::descriptors::Table;
use crate::host::{acceptor, holders, nearby, netns, ports, process, workload};

/// What is asked of the host: one subject, so that two events that ask the same get one answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Question {
    /// What a process holds.
    Holdings { pid: u32 },
    /// Why nobody accepts from a listener.
    AcceptQueue {
        pid: u32,
        fd: Option<i32>,
        inode: Option<u64>,
        netns: u32,
    },
    /// Who listens on the port that refused.
    Nearby { netns: u32, meant: SocketAddr },
    /// How far the ephemeral ports are used.
    Ports {
        netns: u32,
        pid: Option<u32>,
        peer: Option<SocketAddr>,
    },
    /// Who holds an address.
    PortHolder {
        netns: u32,
        pid: Option<u32>,
        wanted: SocketAddr,
    },
    /// What a process waits for.
    Workload { pid: u32 },
    /// Who holds the other end of a connection.
    OtherEnd {
        netns: u32,
        pid: Option<u32>,
        local: SocketAddr,
        peer: SocketAddr,
    },
}

impl Question {
    /// The same is not asked again for this long: later events of the subject carry no facts.
    fn interval(&self) -> Duration {
        match self {
            // Two looks show whether a pool grows.
            Self::Workload { .. } => Duration::from_secs(1),
            _ => Duration::from_secs(10),
        }
    }

    /// What is asked of a service that fails comes from another purse than what every refused or
    /// leaving client asks: a storm of those must not leave the one EMFILE without its snapshot.
    fn purse(&self) -> usize {
        match self {
            Self::Holdings { .. }
            | Self::AcceptQueue { .. }
            | Self::Ports { .. }
            | Self::PortHolder { .. } => 0,
            Self::Nearby { .. } | Self::Workload { .. } => 1,
            Self::OtherEnd { .. } => 2,
        }
    }
}

/// Purses of [`Question::purse`].
const PURSES: usize = 3;

/// What looks of one sort may cost.
struct Purse {
    looks: Budget,
    time: Budget,
}

/// Answers a question about an event that happened at this time of the monotonic clock, ns.
type Look = dyn Fn(&Question, u64) -> Vec<Fact> + Send + Sync;

/// Events that wait for what the host says of them.
pub(super) struct Facts {
    look: Arc<Look>,
    asks: Option<SyncSender<Ask>>,
    answers: Option<Receiver<Answer>>,
    answered: Arc<Notify>,
    held: BTreeMap<u64, Held>,
    next: u64,
    /// When each question was last asked, on the monotonic clock.
    asked: HashMap<Question, Duration>,
    purses: [Purse; PURSES],
    skipped: u64,
}

struct Ask {
    ticket: u64,
    questions: Vec<Question>,
    happened: u64,
}

struct Answer {
    ticket: u64,
    facts: Vec<Fact>,
    /// Of each purse.
    took: [Duration; PURSES],
}

struct Held {
    event: Event,
    since: Duration,
}

/// Looks per second, of each purse.
const LOOKS: u32 = 10;
/// Microseconds of the thread's time per second, a twentieth of a core for each purse. A look that
/// takes longer than is left is paid off before the next.
const TIME: u32 = 50_000;
/// Events held at a time.
const HELD: usize = 64;
/// Questions remembered.
const ASKED: usize = 4096;
/// How long an event is held at most.
const PATIENCE: Duration = Duration::from_secs(1);

impl Facts {
    /// Of this host.
    pub(super) fn of_host() -> Self {
        Self::new(Arc::new(look))
    }

    fn new(look: Arc<Look>) -> Self {
        Self {
            look,
            asks: None,
            answers: None,
            answered: Arc::default(),
            held: BTreeMap::new(),
            next: 0,
            asked: HashMap::new(),
            purses: std::array::from_fn(|_| Purse {
                looks: Budget::per_second(LOOKS),
                time: Budget::per_second(TIME),
            }),
            skipped: 0,
        }
    }

    /// Takes an event that happened `age` ago when one of these questions is to be asked; gives it
    /// back when none is. `now` is the monotonic clock.
    pub(super) fn hold(
        &mut self,
        event: Event,
        mut questions: Vec<Question>,
        age: Duration,
        now: Duration,
    ) -> Option<Event> {
        questions.retain(|question| self.is_due(question, now));
        if questions.is_empty() {
            return Some(event);
        }
        questions.retain(|question| self.may_ask(question, now));
        if questions.is_empty() || !self.ask(questions, now.saturating_sub(age), now) {
            self.skipped += 1;
            return Some(event);
        }
        self.held.insert(self.next, Held { event, since: now });
        None
    }

    /// It was not asked a moment ago; of the other ends of connections a few speak for the others.
    fn is_due(&self, question: &Question, now: Duration) -> bool {
        let before = self.asked.get(question);
        let is_fresh = before.is_some_and(|&it| now.saturating_sub(it) < question.interval());
        let few = !matches!(question, Question::OtherEnd { .. }) || self.may_ask(question, now);
        !is_fresh && few
    }

    /// Its purse has something left.
    fn may_ask(&self, question: &Question, now: Duration) -> bool {
        let purse = &self.purses[question.purse()];
        purse.looks.allows(now) && purse.time.allows(now)
    }

    fn ask(&mut self, questions: Vec<Question>, happened: Duration, now: Duration) -> bool {
        if self.held.len() >= HELD {
            return false;
        }
        if self.asked.len() >= ASKED {
            self.asked
                .retain(|question, &mut at| now.saturating_sub(at) < question.interval());
        }
        if self.asked.len() >= ASKED {
            return false;
        }
        self.next += 1;
        let ask = Ask {
            ticket: self.next,
            questions: questions.clone(),
            happened: u64::try_from(happened.as_nanos()).unwrap_or(u64::MAX),
        };
        if self.asks.is_none() {
            self.start();
        }
        let sent = self.asks.as_ref().map(|asks| asks.try_send(ask));
        if !matches!(sent, Some(Ok(()))) {
            return false;
        }
        for question in questions {
            self.purses[question.purse()].looks.charge(1, now);
            self.asked.insert(question, now);
        }
        true
    }

    /// Starts the thread that looks, with the first question. It ends with the last sender.
    fn start(&mut self) {
        let (asks, questions) = mpsc::sync_channel::<Ask>(HELD);
        let (tell, answers) = mpsc::sync_channel(HELD);
        let (look, answered) = (Arc::clone(&self.look), Arc::clone(&self.answered));
        let work = move || {
            lower_priority();
            for ask in questions {
                let mut answer = Answer {
                    ticket: ask.ticket,
                    facts: Vec::new(),
                    took: [Duration::ZERO; PURSES],
                };
                for question in &ask.questions {
                    let begun = Instant::now();
                    answer.facts.extend(look(question, ask.happened));
                    answer.took[question.purse()] += begun.elapsed();
                }
                if tell.send(answer).is_err() {
                    // The run is over.
                    return;
                }
                answered.notify_one();
            }
        };
        let started = thread::Builder::new().name("facts".into()).spawn(work);
        // Without a thread no look is taken, and each is counted as skipped.
        if started.is_ok() {
            (self.asks, self.answers) = (Some(asks), Some(answers));
        }
    }

    /// Waits until an answer has come.
    pub(super) async fn answered(&self) {
        self.answered.notified().await;
    }

    /// The events that wait no longer: those answered, and those whose answer takes too long.
    pub(super) fn ready(&mut self, now: Duration) -> Vec<Event> {
        let mut ready = Vec::new();
        while let Some(answer) = self.answers.as_ref().and_then(|it| it.try_recv().ok()) {
            ready.extend(self.complete(answer, now));
        }
        let late = |held: &Held| now.saturating_sub(held.since) >= PATIENCE;
        let late: Vec<_> = self
            .held
            .extract_if(.., |_, held| late(held))
            .map(|(_, held)| held.event)
            .collect();
        self.skipped += late.len() as u64;
        ready.extend(late);
        ready
    }

    /// All that wait: after a last moment for their answers.
    pub(super) fn finish(&mut self, now: Duration) -> Vec<Event> {
        let deadline = Instant::now() + PATIENCE;
        let mut ready = Vec::new();
        while !self.held.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self.answers.as_ref().map(|it| it.recv_timeout(left));
            let Some(Ok(answer)) = answer else { break };
            ready.extend(self.complete(answer, now));
        }
        self.skipped += self.held.len() as u64;
        ready.extend(
            std::mem::take(&mut self.held)
                .into_values()
                .map(|it| it.event),
        );
        ready
    }

    /// Looks that were not taken, because there were too many or they took too long.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// `None` when the event was not held any longer.
    fn complete(&mut self, answer: Answer, now: Duration) -> Option<Event> {
        for (purse, took) in self.purses.iter_mut().zip(answer.took) {
            let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            purse.time.charge(took, now);
        }
        let mut event = self.held.remove(&answer.ticket)?.event;
        event.facts.extend(answer.facts);
        Some(event)
    }
}

/// The loop may have taken a boost to keep up with a storm; a look has time.
fn lower_priority() {
    // SAFETY: the call reads its arguments only. On Linux 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
}

/// What is asked about an event: nothing about most.
pub(super) fn questions(event: &Event) -> Vec<Question> {
    let pid = pid(event);
    let workload = pid.map(|pid| Question::Workload { pid });
    let asked = match &event.kind {
        Kind::FdExhausted(exhausted) if exhausted.errno.0 == libc::EMFILE => {
            [pid.map(|pid| Question::Holdings { pid }), None]
        }
        Kind::AcceptQueueOverflow(_) => [accept_queue_of(event), workload],
        Kind::ConnectFailed(failed) => [failed.errno.and_then(|it| unconnected(event, it)), None],
        Kind::SocketError(call) if call.errno.0 == libc::EADDRINUSE => [unbound(event), None],
        Kind::CloseWaitStuck(_) => [workload, None],
        Kind::CloseWaitEntered(_) if peer_waited(event) => [workload, other_end(event)],
        // It stopped reading.
        Kind::ConnectionTimeout(timeout) if timeout.send_window == 0 => [other_end(event), None],
        Kind::StateChanged(change) if closes(change) && (exits(event) || is_unused(event)) => {
            [other_end(event), None]
        }
        _ => [None, None],
    };
    asked.into_iter().flatten().collect()
}

fn pid(event: &Event) -> Option<u32> {
    event.owner.process.as_ref().map(|owner| owner.pid)
}

fn accept_queue_of(event: &Event) -> Option<Question> {
    let socket = event.socket.as_ref()?;
    Some(Question::AcceptQueue {
        pid: pid(event)?,
        fd: socket.fd,
        inode: socket.inode,
        netns: socket.flow.netns,
    })
}

fn unconnected(event: &Event, errno: Errno) -> Option<Question> {
    let flow = event.socket.as_ref()?.flow;
    match errno.0 {
        libc::ECONNREFUSED => Some(Question::Nearby {
            netns: flow.netns,
            meant: flow.peer?,
        }),
        libc::EADDRNOTAVAIL => Some(Question::Ports {
            netns: flow.netns,
            pid: pid(event),
            peer: flow.peer,
        }),
        _ => None,
    }
}

fn unbound(event: &Event) -> Option<Question> {
    let flow = event.socket.as_ref()?.flow;
    let (netns, pid, wanted) = (flow.netns, pid(event), flow.local);
    Some(if wanted.port() == 0 {
        // Any port would have done, and none was left.
        let peer = None;
        Question::Ports { netns, pid, peer }
    } else {
        Question::PortHolder { netns, pid, wanted }
    })
}

fn other_end(event: &Event) -> Option<Question> {
    let flow = event.socket.as_ref()?.flow;
    Some(Question::OtherEnd {
        netns: flow.netns,
        pid: pid(event),
        local: flow.local,
        peer: flow.peer?,
    })
}

/// The peer waited for an answer, and closed.
fn peer_waited(event: &Event) -> bool {
    let fin = event.socket.as_ref().and_then(|socket| socket.fin);
    fin.is_some_and(|fin| fin.waited_ms.is_some())
}

/// This end goes first.
fn closes(change: &StateChange) -> bool {
    change.from == State::Established && change.to != State::CloseWait
}

fn exits(event: &Event) -> bool {
    let owner = event.owner.process.as_ref();
    owner.is_some_and(|owner| owner.exit.is_some())
}

/// A server closes what it accepted a moment ago, without a word.
fn is_unused(event: &Event) -> bool {
    event.socket.as_ref().is_some_and(|socket| {
        let soon = socket.accepted_ago_us.is_some_and(|us| us < 1_000_000);
        socket.side == Some(Side::Server) && socket.bytes_sent == 0 && soon
    })
}

/// Asks this host.
fn look(question: &Question, happened: u64) -> Vec<Fact> {
    match *question {
        Question::Holdings { pid } => {
            let table = Table::read(pid).ok();
            let holdings = table.map(|table| Fact::Holdings(Arc::new(table.holdings())));
            holdings.into_iter().collect()
        }
        Question::AcceptQueue {
            pid,
            fd,
            inode,
            netns,
        } => accept_queue(pid, fd, inode, netns, happened),
        Question::Nearby { netns, meant } => {
            let found = nearby::listeners(netns, meant, nearby::BUDGET);
            found
                .map(|found| Fact::Nearby(found.into()))
                .into_iter()
                .collect()
        }
        Question::Ports { netns, pid, peer } => {
            let ports = ports::ephemeral(&netns::numbered(netns, pid), peer);
            ports.map(Fact::Ports).into_iter().collect()
        }
        Question::PortHolder { netns, pid, wanted } => {
            let holder = ports::holder(&netns::numbered(netns, pid), wanted);
            let holder = holder.map(|holder| Fact::PortHolder(Arc::new(holder)));
            holder.into_iter().collect()
        }
        Question::Workload { pid } => {
            let workload = Table::read(pid).ok().and_then(|table| workload::of(&table));
            let workload = workload.map(|it| Fact::Workload(Arc::new(it)));
            workload.into_iter().collect()
        }
        Question::OtherEnd {
            netns,
            pid,
            local,
            peer,
        } => {
            let namespace = netns::numbered(netns, pid);
            let found = nearby::other_end(&namespace, (local, peer), nearby::BUDGET);
            let found = found.map(|process| Fact::OtherEnd(Arc::new(process)));
            found.into_iter().collect()
        }
    }
}

fn accept_queue(
    pid: u32,
    fd: Option<i32>,
    inode: Option<u64>,
    netns: u32,
    happened: u64,
) -> Vec<Fact> {
    let mut facts = Vec::new();
    facts.extend(acceptor(pid, fd, inode, happened).map(|it| Fact::Acceptor(Arc::new(it))));
    let namespace = netns::numbered(netns, Some(pid));
    facts.extend(acceptor::somaxconn(&namespace).map(Fact::Somaxconn));
    if is_short_of_descriptors(pid)
        && let Ok(table) = Table::read(pid)
    {
        facts.push(Fact::Holdings(Arc::new(table.holdings())));
    }
    facts
}

/// What a thread does is soon past: the owner is looked at before it is found out who else holds the
/// listener.
fn acceptor(pid: u32, fd: Option<i32>, inode: Option<u64>, happened: u64) -> Option<Acceptor> {
    let look = |holders: &acceptor::Holders| {
        let age = Duration::from_nanos(monotonic().saturating_sub(happened));
        acceptor::look(holders, millis(age))
    };
    let holds = |fd: &i32| inode.is_none_or(|inode| holders::verify(pid, *fd, inode));
    let fd = fd.filter(holds);
    let mut known = acceptor::Holders::from([(pid, fd.into_iter().collect())]);
    let first = fd.and_then(|_| look(&known));
    let Some(inode) = inode else {
        return first.or_else(|| look(&known));
    };
    for holder in holders::find(inode).0 {
        let fds = known.entry(holder.pid).or_default();
        if !fds.contains(&holder.fd) {
            fds.push(holder.fd);
        }
    }
    // An owner that gave it away is no holder any more.
    if known.values().any(|fds| !fds.is_empty()) {
        known.retain(|_, fds| !fds.is_empty());
    }
    if first.is_some() && known.len() == 1 {
        return first;
    }
    look(&known)
}

/// Nine tenths of those allowed are open.
fn is_short_of_descriptors(pid: u32) -> bool {
    let limit = process::open_files_limit(pid);
    process::open_files(pid)
        .ok()
        .zip(limit)
        .is_some_and(|(open, limit)| u128::from(open) * 10 >= u128::from(limit) * 9)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::event::{
        CloseWait, Exit, Flow, Owner, PeerFin, Process, Socket, StateChange, Timeout,
    };
    use crate::sink::samples;

    /// Holds back what [`questions`] say.
    fn hold(facts: &mut Facts, event: Event, now: Duration) -> Option<Event> {
        let questions = questions(&event);
        facts.hold(event, questions, Duration::ZERO, now)
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// A host that answers with the number of the question.
    #[derive(Clone, Default)]
    struct Host(Arc<Mutex<Vec<Question>>>);

    impl Host {
        fn facts(&self) -> Facts {
            let asked = Arc::clone(&self.0);
            Facts::new(Arc::new(move |question, _| {
                let mut asked = asked.lock().expect("nobody panics");
                asked.push(question.clone());
                vec![Fact::Somaxconn(u32::try_from(asked.len()).expect("few"))]
            }))
        }

        fn asked(&self) -> usize {
            self.0.lock().expect("nobody panics").len()
        }
    }

    fn stuck(pid: u32) -> Event {
        let wait = CloseWait {
            age_ms: 1_000,
            at_least: false,
            count: 1,
            at_start: false,
        };
        let mut event = samples::event(None, Kind::CloseWaitStuck(wait));
        event.owner.process = Some(Process {
            pid,
            ..Process::default()
        });
        event
    }

    #[test]
    fn a_subject_is_asked_for_once_in_an_interval() {
        let host = Host::default();
        let mut facts = host.facts();
        assert_eq!(hold(&mut facts, stuck(1), SECOND), None);
        let again = hold(&mut facts, stuck(1), Duration::from_millis(1_999));
        assert!(again.is_some(), "it waits for nothing");
        assert_eq!(hold(&mut facts, stuck(2), SECOND), None);
        let ready = facts.finish(SECOND);
        let told: Vec<_> = ready.iter().map(|event| event.facts.clone()).collect();
        assert_eq!(told, [[Fact::Somaxconn(1)], [Fact::Somaxconn(2)]]);
        assert_eq!(hold(&mut facts, stuck(1), 2 * SECOND), None);
        assert_eq!(facts.finish(SECOND).len(), 1);
        assert_eq!((host.asked(), facts.skipped()), (3, 0));
    }

    #[test]
    fn looks_past_the_budget_are_counted_and_hold_nothing_back() {
        let host = Host::default();
        let mut facts = host.facts();
        let held = (0..1000)
            .filter(|&pid| hold(&mut facts, stuck(pid), SECOND).is_none())
            .count();
        assert!(
            (10..=20).contains(&held),
            "one second's worth, and its burst: {held}"
        );
        assert_eq!(facts.skipped(), 1000 - held as u64);
        assert_eq!(facts.finish(SECOND).len(), held);
        assert_eq!(host.asked(), held);
    }

    #[test]
    fn what_is_not_answered_in_time_is_printed_all_the_same() {
        let (release, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let mut facts = Facts::new(Arc::new(move |_, _| {
            // Ends with the test.
            _ = wait.lock().expect("nobody panics").recv();
            Vec::new()
        }));
        assert_eq!(hold(&mut facts, stuck(1), SECOND), None);
        assert_eq!(facts.ready(SECOND), []);
        assert_eq!(facts.ready(SECOND + PATIENCE), [stuck(1)]);
        assert_eq!(facts.skipped(), 1);
        drop(release);
        assert_eq!(facts.finish(SECOND), []);
    }

    #[test]
    fn a_look_that_took_long_is_paid_off_before_the_next() {
        let mut facts = Host::default().facts();
        let answer = Answer {
            ticket: 0,
            facts: Vec::new(),
            // Forty seconds' worth.
            took: [2 * SECOND; PURSES],
        };
        assert_eq!(facts.complete(answer, SECOND), None);
        assert!(hold(&mut facts, stuck(1), 2 * SECOND).is_some());
        assert_eq!(facts.skipped(), 1);
        assert_eq!(hold(&mut facts, stuck(1), 60 * SECOND), None);
    }

    #[test]
    fn each_kind_asks_its_own() {
        let mut exhausted = samples::all();
        exhausted.retain(|event| matches!(event.kind, Kind::FdExhausted(_)));
        let mut exhausted = exhausted.pop().expect("a sample of each kind");
        assert_eq!(questions(&exhausted), [Question::Holdings { pid: 1_234 }]);
        if let Kind::FdExhausted(fds) = &mut exhausted.kind {
            fds.errno = Errno(libc::ENFILE);
        }
        assert_eq!(
            questions(&exhausted),
            [],
            "the host's limit, not the process's"
        );

        let queue = samples::queue_full();
        let accepts = Question::AcceptQueue {
            pid: 1_234,
            fd: Some(17),
            inode: Some(81_234),
            netns: 4_026_531_840,
        };
        assert_eq!(questions(&queue), [accepts, WORKLOAD]);
        let nobody = Event {
            owner: Owner::default(),
            ..queue
        };
        assert_eq!(questions(&nobody), []);
        assert_eq!(questions(&samples::reset_sent()), []);
    }

    const WORKLOAD: Question = Question::Workload { pid: 1_234 };

    fn other_end() -> Question {
        Question::OtherEnd {
            netns: 7,
            pid: Some(1_234),
            local: "10.0.0.1:8080".parse().expect("an address"),
            peer: "10.0.0.9:40000".parse().expect("an address"),
        }
    }

    /// On the connection of [`other_end`].
    fn connected(kind: Kind) -> Event {
        let socket = Socket {
            flow: Flow {
                netns: 7,
                ..samples::flow("10.0.0.1:8080", Some("10.0.0.9:40000"))
            },
            ..Socket::default()
        };
        samples::event(Some(socket), kind)
    }

    #[test]
    fn the_workload_and_the_peer_are_asked_for_when_the_peer_gave_up() {
        let wait = CloseWait {
            age_ms: 0,
            at_least: false,
            count: 1,
            at_start: false,
        };
        let mut event = connected(Kind::CloseWaitEntered(wait));
        assert_eq!(questions(&event), [], "a FIN that nobody waited before");
        if let Some(socket) = &mut event.socket {
            socket.fin = Some(PeerFin {
                ago_us: 10,
                written: Some(0),
                waited_ms: Some(5_000),
                idle_ms: 5_000,
            });
        }
        assert_eq!(questions(&event), [WORKLOAD, other_end()]);
    }

    #[test]
    fn a_closed_window_asks_who_does_not_read() {
        let mut timeout = Timeout {
            errno: Errno(libc::ETIMEDOUT),
            retransmits: 0,
            probes: 15,
            send_window: 0,
            user_timeout_ms: None,
            keepalive: false,
        };
        let silent = connected(Kind::ConnectionTimeout(timeout.clone()));
        assert_eq!(questions(&silent), [other_end()]);
        timeout.send_window = 1;
        assert_eq!(questions(&connected(Kind::ConnectionTimeout(timeout))), []);
    }

    fn changed(from: State, to: State) -> Event {
        connected(Kind::StateChanged(StateChange {
            from,
            to,
            duration_us: None,
            errno: None,
        }))
    }

    #[test]
    fn an_exit_asks_for_the_other_ends_of_a_few_open_connections() {
        let open = || changed(State::Established, State::FinWait1);
        let exits = |mut event: Event| {
            if let Some(process) = &mut event.owner.process {
                process.exit = Some(Exit::Signal(libc::SIGKILL));
            }
            event
        };
        assert_eq!(questions(&open()), []);
        assert_eq!(questions(&exits(open())), [other_end()]);
        let half_closed = changed(State::CloseWait, State::LastAck);
        assert_eq!(questions(&exits(half_closed)), [], "the peer went first");

        let host = Host::default();
        let mut facts = host.facts();
        for port in 0..1_000 {
            let mut event = exits(open());
            if let Some(socket) = &mut event.socket {
                socket.flow.local.set_port(port);
            }
            let held = hold(&mut facts, event, SECOND).is_none();
            assert!(held || port >= 5, "a second's worth");
        }
        assert!(facts.finish(SECOND).len() <= 10, "and its burst");
        assert!(host.asked() <= 10);
        assert_eq!(facts.skipped(), 0, "one speaks for the others");
        assert_eq!(hold(&mut facts, stuck(1), SECOND), None, "others are asked");
    }

    #[test]
    fn a_connection_closed_unused_asks_for_its_client() {
        let unused = |to, side, accepted_ago_us, bytes_sent| {
            let mut event = changed(State::Established, to);
            if let Some(socket) = &mut event.socket {
                socket.side = Some(side);
                socket.accepted_ago_us = accepted_ago_us;
                socket.bytes_sent = bytes_sent;
            }
            questions(&event)
        };
        assert_eq!(
            unused(State::FinWait1, Side::Server, Some(999_999), 0),
            [other_end()]
        );
        for (to, side, accepted_ago_us, bytes_sent) in [
            (State::CloseWait, Side::Server, Some(10), 0),
            (State::FinWait1, Side::Client, Some(10), 0),
            (State::FinWait1, Side::Server, Some(1_000_000), 0),
            (State::FinWait1, Side::Server, None, 0),
            (State::FinWait1, Side::Server, Some(10), 1),
        ] {
            assert_eq!(unused(to, side, accepted_ago_us, bytes_sent), []);
        }
    }

    #[test]
    fn a_workload_is_asked_for_again_before_the_acceptor_is() {
        let host = Host::default();
        let mut facts = host.facts();
        assert_eq!(hold(&mut facts, samples::queue_full(), SECOND), None);
        assert_eq!(facts.finish(SECOND)[0].facts.len(), 2);
        assert_eq!(hold(&mut facts, samples::queue_full(), 3 * SECOND), None);
        assert_eq!(facts.finish(3 * SECOND)[0].facts.len(), 1);
        let asked = host.0.lock().expect("nobody panics");
        assert_eq!(asked.last(), Some(&WORKLOAD));
    }

    #[test]
    fn an_address_in_use_asks_who_holds_it_or_for_the_ports() {
        let mut event = samples::write_failed();
        if let Kind::SocketError(call) = &mut event.kind {
            call.errno = Errno(libc::EADDRINUSE);
        }
        let local = event.socket.as_ref().expect("it has one").flow.local;
        let expected = Question::PortHolder {
            netns: 4_026_531_840,
            pid: Some(1_234),
            wanted: local,
        };
        assert_eq!(questions(&event), [expected]);
        if let Some(socket) = &mut event.socket {
            socket.flow.local.set_port(0);
        }
        let expected = Question::Ports {
            netns: 4_026_531_840,
            pid: Some(1_234),
            peer: None,
        };
        assert_eq!(questions(&event), [expected]);
    }
}
