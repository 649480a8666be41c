//! Completes events with the stack of who acted.
//!
//! To name a stack reads files, the first time of a large program for a second. So it is done on a
//! thread, and the event is held back until then; others go on. What has no room to wait, or waited too
//! long, goes on without and is counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use tokio::sync::Notify;

use super::lower_priority;
use crate::event::{Event, EventId, Fact, Stack, Timestamp};

/// Gives the stack of an event; of one that nobody wants it is only taken out of the way.
pub type Look = dyn FnMut(EventId, Wanted) -> Option<Stack>;

/// The stack is to be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted(pub bool);

/// Events that wait for their stacks.
#[derive(Debug)]
pub struct Stacks {
    asks: SyncSender<(EventId, Wanted)>,
    answers: Receiver<(EventId, Option<Stack>)>,
    answered: Arc<Notify>,
    held: BTreeMap<EventId, Held>,
    skipped: u64,
}

#[derive(Debug)]
struct Held {
    event: Event,
    age: Duration,
    since: Duration,
}

/// An event that waits no longer, and how old it was when it began to.
pub(super) type Released = (Event, Duration);

/// Events held at a time.
const HELD: usize = 512;
/// How long an event is held at most.
const PATIENCE: Duration = Duration::from_secs(3);

impl Stacks {
    /// Starts the thread that names them: with what `begin` gives, which may need what `confine` takes
    /// away.
    ///
    /// # Errors
    /// There is no thread for it, or it is not confined.
    pub fn start<L>(
        begin: impl FnOnce() -> L + Send + 'static,
        confine: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<Self>
    where
        L: FnMut(EventId, Wanted) -> Option<Stack>,
    {
        let (asks, asked) = mpsc::sync_channel::<(EventId, Wanted)>(HELD);
        let (tell, answers) = mpsc::channel();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let answered = Arc::new(Notify::new());
        let notify = Arc::clone(&answered);
        let work = move || {
            let mut look = begin();
            let confined = confine();
            let stays = confined.is_ok();
            if ready.send(confined).is_err() || !stays {
                return;
            }
            lower_priority();
            for (id, wanted) in asked {
                let stack = look(id, wanted);
                if wanted == Wanted(true) {
                    if tell.send((id, stack)).is_err() {
                        // The run is over.
                        return;
                    }
                    notify.notify_one();
                }
            }
        };
        let thread = thread::Builder::new().name("stacks".into());
        thread.spawn(work).context("no thread to name stacks")?;
        let confined = is_ready.recv();
        confined.map_err(|_| anyhow!("the thread that names stacks panicked"))??;
        Ok(Self {
            asks,
            answers,
            answered,
            held: BTreeMap::new(),
            skipped: 0,
        })
    }

    /// Keeps an event that happened `age` ago until its stack is known; false when it cannot be waited
    /// for. One that nobody wants never is.
    pub(super) fn holds(
        &mut self,
        event: &Event,
        wanted: Wanted,
        age: Duration,
        now: Duration,
    ) -> bool {
        let held = wanted == Wanted(true)
            && self.held.len() < HELD
            && self.asks.try_send((event.id, wanted)).is_ok();
        if held {
            let event = event.clone();
            let id = event.id;
            self.held.insert(
                id,
                Held {
                    event,
                    age,
                    since: now,
                },
            );
        } else if wanted == Wanted(true) {
            self.skipped += 1;
        } else {
            // What is not taken out now is with the next one.
            let _ = self.asks.try_send((event.id, wanted));
        }
        held
    }

    /// Waits until an answer has come.
    pub(super) async fn answered(&self) {
        self.answered.notified().await;
    }

    /// The events that wait no longer: those with their stacks, and those that waited too long.
    pub(super) fn ready(&mut self, now: Duration) -> Vec<Released> {
        let mut ready = Vec::new();
        while let Ok((id, stack)) = self.answers.try_recv() {
            ready.extend(self.complete(id, stack, now));
        }
        let late = |_: &EventId, held: &mut Held| now.saturating_sub(held.since) >= PATIENCE;
        let late: Vec<_> = self.held.extract_if(.., late).collect();
        self.skipped += late.len() as u64;
        ready.extend(late.into_iter().map(|(_, held)| held.released(now)));
        ready
    }

    /// All that wait: after a last moment for their stacks.
    pub(super) fn finish(&mut self, now: Duration) -> Vec<Released> {
        let deadline = Instant::now() + PATIENCE;
        let mut ready = Vec::new();
        while !self.held.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((id, stack)) = self.answers.recv_timeout(left) else {
                break;
            };
            ready.extend(self.complete(id, stack, now));
        }
        self.skipped += self.held.len() as u64;
        let held = std::mem::take(&mut self.held).into_values();
        ready.extend(held.map(|held| held.released(now)));
        ready
    }

    /// When the oldest of the events that wait happened.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.held.values().map(|held| held.event.time).min()
    }

    /// Events that came without their stack.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// `None` when the event was not held any longer.
    fn complete(&mut self, id: EventId, stack: Option<Stack>, now: Duration) -> Option<Released> {
        let mut held = self.held.remove(&id)?;
        match stack {
            Some(stack) => held.event.facts.push(Fact::Stack(Arc::new(stack))),
            None => self.skipped += 1,
        }
        Some(held.released(now))
    }
}

impl Held {
    fn released(self, now: Duration) -> Released {
        (self.event, self.age + now.saturating_sub(self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Frame;
    use crate::sink::samples;

    const WANTED: Wanted = Wanted(true);

    /// The event with this id.
    fn event(id: u64) -> Event {
        Event {
            id: EventId(id),
            ..samples::reset_sent()
        }
    }

    fn stack(name: &str) -> Stack {
        Stack::new([Frame::of_program(name, None)], None)
    }

    /// The names of those that wait no longer, and how old they were, in ms.
    fn told(released: Vec<Released>) -> Vec<(Option<String>, u128)> {
        let told = released.into_iter().map(|(event, age)| {
            let stack = event.stack().map(|stack| stack.trace().to_string());
            (stack, age.as_millis())
        });
        told.collect()
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_event_goes_on_with_its_own_stack() {
        let look = || |id: EventId, _| (id.0 != 2).then(|| stack(&format!("of{}", id.0)));
        let mut stacks = Stacks::start(look, || Ok(())).expect("a thread");
        for id in 1..=3 {
            assert!(stacks.holds(&event(id), WANTED, ms(5), ms(100)));
        }
        assert_eq!(stacks.oldest(), Some(event(1).time));
        let told = told(stacks.finish(ms(102)));
        let of = |name: &str| Some(name.to_owned());
        assert_eq!(told, [(of("of1"), 7), (None, 7), (of("of3"), 7)]);
        assert_eq!((stacks.skipped(), stacks.oldest()), (1, None));
    }

    #[test]
    fn what_nobody_wants_is_taken_out_of_the_way_and_not_waited_for() {
        let (asked, asks) = mpsc::channel();
        let look = move || {
            move |id, wanted| {
                asked.send((id, wanted)).expect("the test goes on");
                None
            }
        };
        let mut stacks = Stacks::start(look, || Ok(())).expect("a thread");
        assert!(!stacks.holds(&event(1), Wanted(false), ms(0), ms(0)));
        assert_eq!(asks.recv(), Ok((EventId(1), Wanted(false))));
        assert_eq!(
            (told(stacks.finish(ms(0))), stacks.skipped()),
            (Vec::new(), 0)
        );
    }

    #[test]
    fn an_event_waits_three_seconds_and_so_many_wait_at_a_time() {
        let (release, wait) = mpsc::channel::<()>();
        let look = move || {
            move |_, _| {
                // Ends with the test.
                _ = wait.recv();
                None
            }
        };
        let mut stacks = Stacks::start(look, || Ok(())).expect("a thread");
        let held = (0..2_000).filter(|&id| stacks.holds(&event(id), WANTED, ms(0), ms(1_000)));
        let held = held.count() as u64;
        assert_eq!(held, 512);
        assert_eq!(stacks.skipped(), 2_000 - held);
        assert_eq!(stacks.ready(ms(3_999)).len(), 0);
        assert_eq!(stacks.ready(ms(4_000)).len() as u64, held);
        assert_eq!(stacks.skipped(), 2_000);
        drop(release);
    }

    #[test]
    fn a_thread_that_is_not_confined_names_nothing() {
        let look = || |_, _| None;
        let refused = Stacks::start(look, || Err(anyhow!("no seccomp")));
        assert_eq!(refused.expect_err("it says so").to_string(), "no seccomp");
    }
}
