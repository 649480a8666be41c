//! Completes events with what the host says of them just after.
//!
//! A look may take a hundred milliseconds (every namespace, a table of ten thousand descriptors), so
//! it is taken on a thread, and the one event it is for is held back until the answer comes. The
//! events after it are not: each carries its own time. Nothing held is lost: what gets no answer in
//! time is printed without.

mod look;
mod question;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{Map, lower_priority};
use crate::event::{Event, Fact, Timestamp};
use crate::host::attribution::Budget;
use crate::host::netns::processor_time;
use look::look;
pub(super) use question::questions;
use question::{PURSES, Question};

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
    asked: Map<Question, Duration>,
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
/// Microseconds of a processor per second, a twentieth of one for each purse: how long a look has to
/// wait for its turn on a busy host is not charged. One that takes more than is left is paid off
/// before the next.
const TIME: u32 = 50_000;
/// What is not spent is saved for so long: failures begin together, and the first ones tell most.
const SAVED: Duration = Duration::from_secs(5);
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
            asked: Map::default(),
            purses: std::array::from_fn(|_| Purse {
                looks: Budget::per_second(LOOKS).saving(SAVED),
                time: Budget::per_second(TIME).saving(SAVED),
            }),
            skipped: 0,
        }
    }

    /// Keeps an event that happened `age` ago when one of these questions is to be asked; false when
    /// none is. `now` is the monotonic clock, read only where there is a question.
    pub(super) fn holds(
        &mut self,
        event: &Event,
        questions: [Option<Question>; 2],
        age: Duration,
        now: impl FnOnce() -> Duration,
    ) -> bool {
        if questions.iter().all(Option::is_none) {
            return false;
        }
        let now = now();
        let due = questions.map(|it| it.filter(|question| self.is_due(question, now)));
        if due.iter().all(Option::is_none) {
            return false;
        }
        let asked = due.into_iter().flatten();
        let asked: Vec<_> = asked.filter(|it| self.may_ask(it, now)).collect();
        if asked.is_empty() || !self.ask(asked, now.saturating_sub(age), now) {
            self.skipped += 1;
            return false;
        }
        let event = event.clone();
        self.held.insert(self.next, Held { event, since: now });
        true
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
                    let begun = processor_time();
                    answer.facts.extend(look(question, ask.happened));
                    answer.took[question.purse()] += processor_time().saturating_sub(begun);
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

    /// When the oldest of the events that wait happened.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.held.values().map(|held| held.event.time).min()
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::question::tests::{WORKLOAD, exits_open};
    use super::*;
    use crate::event::{CloseWait, Kind, Process};
    use crate::sink::samples;

    /// Holds back what [`questions`] say.
    fn hold(facts: &mut Facts, event: Event, now: Duration) -> Option<Event> {
        let held = facts.holds(&event, questions(&event), Duration::ZERO, || now);
        (!held).then_some(event)
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
    fn the_oldest_event_that_waits_is_known_until_it_waits_no_longer() {
        let mut facts = Host::default().facts();
        assert_eq!(facts.oldest(), None);
        for (pid, time) in [(1, 20), (2, 10)] {
            let mut event = stuck(pid);
            event.time = Timestamp(time);
            assert_eq!(hold(&mut facts, event, SECOND), None);
        }
        assert_eq!(facts.oldest(), Some(Timestamp(10)));
        assert_eq!(facts.finish(SECOND).len(), 2);
        assert_eq!(facts.oldest(), None);
    }

    #[test]
    fn looks_past_the_budget_are_counted_and_hold_nothing_back() {
        let host = Host::default();
        let mut facts = host.facts();
        let held = (0..1000)
            .filter(|&pid| hold(&mut facts, stuck(pid), SECOND).is_none())
            .count();
        assert!(
            (50..=60).contains(&held),
            "what was saved, and one second's worth: {held}"
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
    fn of_the_other_ends_of_many_connections_a_few_are_asked_for() {
        let host = Host::default();
        let mut facts = host.facts();
        for port in 0..1_000 {
            let mut event = exits_open();
            if let Some(socket) = &mut event.socket {
                socket.flow.local.set_port(port);
            }
            let held = hold(&mut facts, event, SECOND).is_none();
            assert!(held || port >= 25, "what was saved");
        }
        assert!(facts.finish(SECOND).len() <= 60, "and a second's worth");
        assert!(host.asked() <= 60);
        assert_eq!(facts.skipped(), 0, "one speaks for the others");
        assert_eq!(hold(&mut facts, stuck(1), SECOND), None, "others are asked");
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
}
