//! The thread of an export: opens a link, hands records over as the link takes them, and opens another
//! when it breaks.

use std::io;
use std::time::Duration;

use super::backoff::Backoff;
use super::link::Link;
use super::queue::{Queue, Work};

/// How long a try to connect may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Delivers until the queue is over.
pub(super) fn run(queue: &Queue, mut connect: impl FnMut(Duration) -> io::Result<Box<dyn Link>>) {
    let mut backoff = Backoff::default();
    while queue.wait() {
        let mut rest = Duration::ZERO;
        match connect(CONNECT) {
            Ok(mut link) => match deliver(queue, link.as_mut(), &mut backoff) {
                Ok(End::Over) => return,
                Ok(End::Left) => continue,
                Err(error) => {
                    rest = link.rest();
                    queue.failed(format!("cannot send: {error}"));
                }
            },
            Err(error) => queue.failed(format!("cannot connect: {error}")),
        }
        queue.pause(backoff.next().max(rest));
    }
}

/// Why a link that holds is let go.
enum End {
    /// There will be no more records.
    Over,
    /// The other end has ended it, or it has had nothing to do for long.
    Left,
}

/// Delivers through one link, until everything is delivered or the link breaks.
fn deliver(queue: &Queue, link: &mut dyn Link, backoff: &mut Backoff) -> io::Result<End> {
    queue.begin();
    let mut has_served = false;
    loop {
        let work = queue.next(link.wants_more(), link.idle());
        if work == Work::Over {
            return Ok(End::Over);
        }
        // One that never was of use is left to fail, which is told and followed by a pause.
        if has_served && !link.is_alive() {
            return Ok(End::Left);
        }
        let Work::Records(records) = work else {
            continue;
        };
        for record in &records {
            link.take(record)?;
        }
        let (done, result) = link.advance();
        if done.count() > 0 {
            has_served = true;
            backoff.reset();
        }
        queue.settle(done);
        result?;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};
    use std::thread;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::link::Done;
    use super::*;

    /// What a link does at its next step.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Refuse,
        Break(usize),
        Send(usize),
        Reject(usize),
        RefuseSome(usize),
        /// Sends, and then the other end ends it.
        Leave(usize),
    }

    /// A destination with a fate: what it took, and what it will do.
    #[derive(Clone, Default)]
    struct Fate(Arc<Mutex<(Vec<Bytes>, VecDeque<Step>)>>);

    impl Fate {
        fn next(&self) -> Step {
            let mut fate = self.0.lock().expect("no test panics with it");
            fate.1.pop_front().unwrap_or(Step::Send(usize::MAX))
        }

        fn connect(&self) -> io::Result<Box<dyn Link>> {
            match self.next() {
                Step::Refuse => Err(io::ErrorKind::ConnectionRefused.into()),
                _ => Ok(Box::new(Fated {
                    fate: self.clone(),
                    has: VecDeque::new(),
                    is_left: false,
                })),
            }
        }
    }

    struct Fated {
        fate: Fate,
        has: VecDeque<Bytes>,
        is_left: bool,
    }

    impl Link for Fated {
        fn wants_more(&self) -> bool {
            self.has.len() < 3
        }

        fn take(&mut self, record: &Bytes) -> io::Result<()> {
            assert!(!self.is_left, "nobody is there any more");
            self.has.push_back(record.clone());
            Ok(())
        }

        fn advance(&mut self) -> (Done, io::Result<()>) {
            let step = self.fate.next();
            let count = |most: usize| most.min(self.has.len());
            let mut done = Done::default();
            let mut result = Ok(());
            match step {
                Step::Send(most) => done.sent = count(most),
                Step::Leave(most) => {
                    done.sent = count(most);
                    self.is_left = done.sent > 0;
                }
                Step::Reject(most) => done.too_large = count(most),
                Step::RefuseSome(most) => {
                    done.refused = count(most);
                    done.why = Some("no".to_owned());
                }
                Step::Break(most) => {
                    done.sent = count(most);
                    result = Err(io::ErrorKind::ConnectionReset.into());
                }
                Step::Refuse => result = Err(io::ErrorKind::BrokenPipe.into()),
            }
            let dealt_with: Vec<_> = self.has.drain(..done.count()).collect();
            let mut fate = self.fate.0.lock().expect("no test panics with it");
            fate.0.extend(dealt_with.into_iter().take(done.sent));
            (done, result)
        }

        fn is_alive(&mut self) -> bool {
            !self.is_left
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Refuse),
            (0..5_usize).prop_map(Step::Break),
            (0..5_usize).prop_map(Step::Send),
            (0..5_usize).prop_map(Step::Leave),
            (0..3_usize).prop_map(Step::Reject),
            (0..3_usize).prop_map(Step::RefuseSome),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever fails, each record is delivered once and in order, or counted as lost.
        #[test]
        fn what_is_produced_is_sent_or_counted(
            steps in prop::collection::vec(step(), 0..8),
            count in 0..20_u32,
        ) {
            let fate = Fate::default();
            fate.0.lock().expect("nobody panicked").1.extend(steps);
            let queue = Arc::new(Queue::default());
            let (theirs, to) = (Arc::clone(&queue), fate.clone());
            let thread = thread::spawn(move || run(&theirs, |_| to.connect()));
            let records: Vec<_> =
                (0..count).map(|it| Bytes::from(it.to_string())).collect();
            for record in &records {
                queue.push(record.clone(), 1);
            }
            queue.wake();
            queue.close();
            thread.join().expect("it ends");
            let account = queue.account();
            let taken = fate.0.lock().expect("nobody panicked").0.clone();
            prop_assert_eq!(account.produced, u64::from(count));
            prop_assert_eq!(account.waiting, 0);
            prop_assert_eq!(account.sent + account.lost.total(), account.produced);
            prop_assert_eq!(account.sent, taken.len() as u64);
            let mut rest = records.iter();
            let in_order = taken.iter().all(|it| rest.any(|record| record == it));
            prop_assert!(in_order, "{:?}", taken);
        }
    }

    /// Asks for rest once, and takes everything then.
    struct Tired(Duration);

    impl Link for Tired {
        fn wants_more(&self) -> bool {
            true
        }

        fn take(&mut self, _: &Bytes) -> io::Result<()> {
            Ok(())
        }

        fn advance(&mut self) -> (Done, io::Result<()>) {
            if self.0.is_zero() {
                return (Done::sent(1), Ok(()));
            }
            (Done::default(), Err(io::ErrorKind::ResourceBusy.into()))
        }

        fn rest(&self) -> Duration {
            self.0
        }
    }

    #[test]
    fn a_destination_that_asks_for_rest_gets_it() {
        let rest = Duration::from_millis(300);
        let queue = Queue::default();
        queue.push(Bytes::from_static(b"x"), 1);
        let mut rests = [rest, Duration::ZERO].into_iter();
        let mut begun = Vec::new();
        run(&queue, |_| {
            begun.push(std::time::Instant::now());
            if begun.len() == 2 {
                // Before, the end would have been a reason to try at once.
                queue.close();
            }
            Ok(Box::new(Tired(rests.next().unwrap_or_default())))
        });
        assert!(begun[1] - begun[0] >= rest, "{begun:?}");
        assert_eq!(queue.account().sent, 1);
    }

    #[test]
    fn a_destination_that_never_comes_is_given_up_when_the_accounts_are_closed() {
        let queue = Arc::new(Queue::default());
        let theirs = Arc::clone(&queue);
        let refuse = |_| Err(io::ErrorKind::ConnectionRefused.into());
        let thread = thread::spawn(move || run(&theirs, refuse));
        queue.push(Bytes::from_static(b"x"), 1);
        queue.close();
        queue.end();
        thread.join().expect("it ends");
        assert_eq!(queue.account().lost.undelivered, 1);
    }
}
