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
use crate::event::{Acceptor, Event, Fact, Kind};
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
    looks: Budget,
    time: Budget,
    skipped: u64,
}

struct Ask {
    ticket: u64,
    question: Question,
    happened: u64,
}

struct Answer {
    ticket: u64,
    facts: Vec<Fact>,
    took: Duration,
}

struct Held {
    event: Event,
    since: Duration,
}

/// The same is not asked again for this long: later events of the subject carry no facts.
const INTERVAL: Duration = Duration::from_secs(10);
/// Looks per second.
const LOOKS: u32 = 20;
/// Microseconds of the thread's time per second, a tenth of a core. A look that takes longer than
/// is left is paid off before the next.
const TIME: u32 = 100_000;
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
            looks: Budget::per_second(LOOKS),
            time: Budget::per_second(TIME),
            skipped: 0,
        }
    }

    /// Takes an event that happened `age` ago when its question is to be asked; gives it back when
    /// it is not. `now` is the monotonic clock.
    pub(super) fn hold(
        &mut self,
        event: Event,
        question: Question,
        age: Duration,
        now: Duration,
    ) -> Option<Event> {
        let before = self.asked.get(&question);
        if before.is_some_and(|&before| now.saturating_sub(before) < INTERVAL) {
            return Some(event);
        }
        if !self.ask(question, now.saturating_sub(age), now) {
            self.skipped += 1;
            return Some(event);
        }
        self.held.insert(self.next, Held { event, since: now });
        None
    }

    fn ask(&mut self, question: Question, happened: Duration, now: Duration) -> bool {
        if self.held.len() >= HELD || !self.looks.allows(now) || !self.time.allows(now) {
            return false;
        }
        if self.asked.len() >= ASKED {
            self.asked
                .retain(|_, &mut before| now.saturating_sub(before) < INTERVAL);
        }
        if self.asked.len() >= ASKED {
            return false;
        }
        self.next += 1;
        let ask = Ask {
            ticket: self.next,
            question: question.clone(),
            happened: u64::try_from(happened.as_nanos()).unwrap_or(u64::MAX),
        };
        if self.asks.is_none() {
            self.start();
        }
        let sent = self.asks.as_ref().map(|asks| asks.try_send(ask));
        if !matches!(sent, Some(Ok(()))) {
            return false;
        }
        self.looks.charge(1, now);
        self.asked.insert(question, now);
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
                let begun = Instant::now();
                let answer = Answer {
                    ticket: ask.ticket,
                    facts: look(&ask.question, ask.happened),
                    took: begun.elapsed(),
                };
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
        let took = u64::try_from(answer.took.as_micros()).unwrap_or(u64::MAX);
        self.time.charge(took, now);
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

/// What is asked about an event, if anything.
pub(super) fn question(event: &Event) -> Option<Question> {
    let socket = event.socket.as_ref();
    let netns = socket.map(|socket| socket.flow.netns);
    let pid = event.owner.process.as_ref().map(|owner| owner.pid);
    match &event.kind {
        Kind::FdExhausted(exhausted) if exhausted.errno.0 == libc::EMFILE => {
            Some(Question::Holdings { pid: pid? })
        }
        Kind::AcceptQueueOverflow(_) => Some(Question::AcceptQueue {
            pid: pid?,
            fd: socket?.fd,
            inode: socket?.inode,
            netns: netns?,
        }),
        Kind::ConnectFailed(failed) => match failed.errno?.0 {
            libc::ECONNREFUSED => Some(Question::Nearby {
                netns: netns?,
                meant: socket?.flow.peer?,
            }),
            libc::EADDRNOTAVAIL => Some(Question::Ports {
                netns: netns?,
                pid,
                peer: socket?.flow.peer,
            }),
            _ => None,
        },
        Kind::SocketError(call) if call.errno.0 == libc::EADDRINUSE => {
            let (netns, wanted) = (netns?, socket?.flow.local);
            Some(if wanted.port() == 0 {
                // Any port would have done, and none was left.
                let peer = None;
                Question::Ports { netns, pid, peer }
            } else {
                Question::PortHolder { netns, pid, wanted }
            })
        }
        Kind::CloseWaitStuck(_) => Some(Question::Workload { pid: pid? }),
        // The peer gave up while this process worked.
        Kind::CloseWaitEntered(_) => {
            socket?.fin?.waited_ms?;
            Some(Question::Workload { pid: pid? })
        }
        _ => None,
    }
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
            let table = Table::read(pid).ok();
            let workload = table.map(|it| Fact::Workload(Arc::new(workload::workload(&it))));
            workload.into_iter().collect()
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
    let table = Table::read(pid).ok();
    let namespace = netns::numbered(netns, Some(pid));
    facts.extend(acceptor::somaxconn(&namespace).map(Fact::Somaxconn));
    if let Some(table) = table {
        facts.push(Fact::Workload(Arc::new(workload::workload(&table))));
        if is_short_of_descriptors(pid) {
            facts.push(Fact::Holdings(Arc::new(table.holdings())));
        }
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
    use crate::event::{CloseWait, Errno, Owner, PeerFin, Process, Socket};
    use crate::sink::samples;

    /// Holds back what [`question`] says.
    fn hold(facts: &mut Facts, event: Event, now: Duration) -> Option<Event> {
        let question = question(&event).expect("something is asked");
        facts.hold(event, question, Duration::ZERO, now)
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
        let again = hold(&mut facts, stuck(1), INTERVAL);
        assert!(again.is_some(), "it waits for nothing");
        assert_eq!(hold(&mut facts, stuck(2), SECOND), None);
        let ready = facts.finish(SECOND);
        let told: Vec<_> = ready.iter().map(|event| event.facts.clone()).collect();
        assert_eq!(told, [[Fact::Somaxconn(1)], [Fact::Somaxconn(2)]]);
        assert_eq!(hold(&mut facts, stuck(1), SECOND + INTERVAL), None);
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
            (20..=40).contains(&held),
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
            // Twenty seconds' worth.
            took: 2 * SECOND,
        };
        assert_eq!(facts.complete(answer, SECOND), None);
        assert!(hold(&mut facts, stuck(1), 2 * SECOND).is_some());
        assert_eq!(facts.skipped(), 1);
        assert_eq!(hold(&mut facts, stuck(1), 30 * SECOND), None);
    }

    #[test]
    fn each_kind_asks_its_own() {
        let asks = |event: &Event| question(event);
        let mut exhausted = samples::all();
        exhausted.retain(|event| matches!(event.kind, Kind::FdExhausted(_)));
        let mut exhausted = exhausted.pop().expect("a sample of each kind");
        assert_eq!(asks(&exhausted), Some(Question::Holdings { pid: 1_234 }));
        if let Kind::FdExhausted(fds) = &mut exhausted.kind {
            fds.errno = Errno(libc::ENFILE);
        }
        assert_eq!(
            asks(&exhausted),
            None,
            "the host's limit, not the process's"
        );

        let queue = samples::queue_full();
        let expected = Question::AcceptQueue {
            pid: 1_234,
            fd: Some(17),
            inode: Some(81_234),
            netns: 4_026_531_840,
        };
        assert_eq!(asks(&queue), Some(expected));
        let nobody = Event {
            owner: Owner::default(),
            ..queue
        };
        assert_eq!(asks(&nobody), None);
        assert_eq!(asks(&samples::reset_sent()), None);
    }

    #[test]
    fn the_workload_is_asked_for_when_the_peer_gave_up() {
        let wait = CloseWait {
            age_ms: 0,
            at_least: false,
            count: 1,
            at_start: false,
        };
        let mut event = samples::event(Some(Socket::default()), Kind::CloseWaitEntered(wait));
        assert_eq!(question(&event), None, "a FIN that nobody waited before");
        if let Some(socket) = &mut event.socket {
            socket.fin = Some(PeerFin {
                ago_us: 10,
                written: Some(0),
                waited_ms: Some(5_000),
                idle_ms: 5_000,
            });
        }
        assert_eq!(question(&event), Some(Question::Workload { pid: 1_234 }));
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
        assert_eq!(question(&event), Some(expected));
        if let Some(socket) = &mut event.socket {
            socket.flow.local.set_port(0);
        }
        let expected = Question::Ports {
            netns: 4_026_531_840,
            pid: Some(1_234),
            peer: None,
        };
        assert_eq!(question(&event), Some(expected));
    }
}
