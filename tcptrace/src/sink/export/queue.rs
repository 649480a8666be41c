//! What waits for one destination, and the account of all that ever did.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::link::Done;
use crate::event::Count;

/// Records that may wait.
const LIMIT_RECORDS: usize = 65_536;
/// Bytes that may wait.
const LIMIT_BYTES: usize = 16 << 20;
/// Bytes handed over at a time.
const GATHER: usize = 64 * 1024;
/// How often it is asked whether what was sent has arrived.
const ARRIVAL: Duration = Duration::from_millis(20);

/// Records not delivered, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// More waited than may.
    pub queue_full: u64,
    /// The destination takes no record of that size.
    pub too_large: u64,
    /// They still waited at the end.
    pub undelivered: u64,
}

impl Lost {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.queue_full + self.too_large + self.undelivered
    }

    /// What came on top of an earlier count.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self {
            queue_full: self.queue_full - earlier.queue_full,
            too_large: self.too_large - earlier.too_large,
            undelivered: self.undelivered - earlier.undelivered,
        }
    }

    /// Each reason with its count.
    #[must_use]
    pub fn all(self) -> [(&'static str, u64); 3] {
        [
            ("queue_full", self.queue_full),
            ("too_large", self.too_large),
            ("undelivered", self.undelivered),
        ]
    }

    /// The reasons there are.
    pub(super) fn rows(self) -> impl Iterator<Item = (&'static str, u64)> {
        self.all().into_iter().filter(|&(_, count)| count > 0)
    }
}

/// What became of the records of an export. `produced == sent + lost.total() + waiting`, always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Records written for it.
    pub produced: u64,
    /// Records its destination has, as far as its protocol can tell.
    pub sent: u64,
    /// Records it will not get.
    pub lost: Lost,
    /// Records that wait.
    pub waiting: u64,
    /// What failed last, if anything ever did.
    pub error: Option<String>,
    /// What fails now.
    pub failing: Option<String>,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            produced,
            sent,
            lost,
            ..
        } = self;
        write!(
            f,
            "{}, {sent} sent, {} lost",
            Count(*produced, "record"),
            lost.total()
        )?;
        for (nth, (reason, count)) in lost.rows().enumerate() {
            write!(f, "{} {count} {reason}", if nth == 0 { ":" } else { "," })?;
        }
        match &self.error {
            Some(error) if lost.total() > 0 => write!(f, " ({error})"),
            _ => Ok(()),
        }
    }
}

/// The queue between the loop and the thread that delivers.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    left: Notify,
}

#[derive(Default)]
struct State {
    /// The first `handed` of them are with the link, which has not said yet what became of them.
    records: VecDeque<Bytes>,
    handed: usize,
    bytes: usize,
    /// Bytes that came since the thread was woken.
    fresh: usize,
    account: Account,
    /// Nothing more comes.
    closing: bool,
    /// What still waits was counted as lost.
    ended: bool,
}

/// What there is to do for the thread that delivers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// These come next; none where there is only something to finish.
    Records(Vec<Bytes>),
    /// There will be nothing any more.
    Over,
}

impl Queue {
    /// Takes a record, or counts it as lost; nothing after the end. The copy keeps its memory from being
    /// tied to that of the records of other outputs.
    pub(super) fn push(&self, record: &Bytes) {
        let mut state = self.lock();
        if state.ended {
            return;
        }
        state.account.produced += 1;
        let is_full =
            state.records.len() >= LIMIT_RECORDS || state.bytes + record.len() > LIMIT_BYTES;
        if is_full {
            state.account.lost.queue_full += 1;
            return;
        }
        state.records.push_back(Bytes::copy_from_slice(record));
        state.bytes += record.len();
        state.fresh += record.len();
        if state.fresh >= GATHER {
            state.fresh = 0;
            self.changed.notify_one();
        }
    }

    /// No more records come for the moment.
    pub(super) fn wake(&self) {
        let mut state = self.lock();
        if state.fresh > 0 {
            state.fresh = 0;
            self.changed.notify_one();
        }
    }

    /// Nothing more comes.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_one();
    }

    /// Counts what waits as lost, whatever the thread still does with it.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.account.lost.undelivered += state.records.len() as u64;
        state.records.clear();
        (state.bytes, state.handed, state.ended) = (0, 0, true);
        self.changed.notify_one();
    }

    /// The thread has ended.
    pub(super) fn leave(&self) {
        self.left.notify_one();
    }

    /// Waits until the thread has ended.
    pub(super) async fn left(&self) {
        self.left.notified().await;
    }

    /// The account now.
    pub(super) fn account(&self) -> Account {
        let state = self.lock();
        Account {
            waiting: state.records.len() as u64,
            ..state.account.clone()
        }
    }

    /// Waits for the first record. Gives whether there is one: otherwise there never will be.
    pub(super) fn wait(&self) -> bool {
        let state = self.lock();
        let idle = |state: &mut State| state.records.is_empty() && !state.closing;
        let state = self.changed.wait_while(state, idle);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        !state.records.is_empty()
    }

    /// Waits before the next try. The end is a reason to try again at once.
    pub(super) fn pause(&self, time: Duration) {
        let state = self.lock();
        let was_closing = state.closing;
        let unchanged = |state: &mut State| !state.ended && (was_closing || !state.closing);
        drop(self.changed.wait_timeout_while(state, time, unchanged));
    }

    /// A new link: it is handed again whatever the one before left undecided.
    pub(super) fn begin(&self) {
        self.lock().handed = 0;
    }

    /// What the link is to do next: take records if it `wants` any, or see what became of those it has.
    pub(super) fn next(&self, wants: bool) -> Work {
        let mut state = self.lock();
        if wants {
            let unfinished = state.handed > 0;
            let idle = |state: &mut State| {
                let nothing = state.records.len() == state.handed;
                nothing && !state.ended && (state.handed > 0 || !state.closing)
            };
            state = if unfinished {
                let waited = self.changed.wait_timeout_while(state, ARRIVAL, idle);
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                let waited = self.changed.wait_while(state, idle);
                waited.unwrap_or_else(PoisonError::into_inner)
            };
        }
        if state.ended || (state.closing && state.records.is_empty()) {
            return Work::Over;
        }
        if !wants {
            return Work::Records(Vec::new());
        }
        let mut bytes = 0;
        let fits = |record: &&Bytes| {
            bytes += record.len();
            bytes <= GATHER
        };
        let next = state.records.range(state.handed..);
        let next: Vec<_> = next.take_while(fits).cloned().collect();
        state.handed += next.len();
        Work::Records(next)
    }

    /// The first of the records handed over have been dealt with.
    pub(super) fn settle(&self, done: Done) {
        let mut state = self.lock();
        if state.ended || done.count() == 0 {
            return;
        }
        for _ in 0..done.count() {
            let record = state.records.pop_front();
            state.bytes -= record.map_or(0, |record| record.len());
        }
        state.handed -= done.count();
        state.account.sent += done.sent as u64;
        state.account.lost.too_large += done.too_large as u64;
        state.account.failing = None;
    }

    /// The link, or opening one, failed.
    pub(super) fn failed(&self, error: String) {
        let mut state = self.lock();
        state.account.error = Some(error.clone());
        state.account.failing = Some(error);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(size: usize) -> Bytes {
        Bytes::from(vec![b'x'; size])
    }

    fn sent(sent: usize) -> Done {
        Done { sent, too_large: 0 }
    }

    #[test]
    fn what_is_more_than_may_wait_is_counted() {
        let queue = Queue::default();
        for _ in 0..LIMIT_RECORDS + 3 {
            queue.push(&record(1));
        }
        let account = queue.account();
        assert_eq!(account.waiting, LIMIT_RECORDS as u64);
        assert_eq!(account.lost.queue_full, 3);
        let queue = Queue::default();
        for _ in 0..3 {
            queue.push(&record(LIMIT_BYTES / 2));
        }
        let account = queue.account();
        assert_eq!((account.waiting, account.lost.queue_full), (2, 1));
    }

    #[test]
    fn a_new_link_is_handed_what_the_one_before_left_undecided() {
        let queue = Queue::default();
        for size in 1..=3 {
            queue.push(&record(size));
        }
        let all = |sizes: &[usize]| Work::Records(sizes.iter().map(|&it| record(it)).collect());
        assert_eq!(queue.next(true), all(&[1, 2, 3]));
        queue.settle(sent(1));
        queue.begin();
        assert_eq!(queue.next(true), all(&[2, 3]));
        queue.settle(Done {
            sent: 1,
            too_large: 1,
        });
        queue.close();
        assert_eq!(queue.next(true), Work::Over);
        let account = queue.account();
        assert_eq!((account.sent, account.lost.too_large), (2, 1));
    }

    #[test]
    fn no_more_is_handed_over_at_a_time_than_is_gathered() {
        let queue = Queue::default();
        for _ in 0..3 {
            queue.push(&record(GATHER / 2));
        }
        let two = vec![record(GATHER / 2); 2];
        assert_eq!(queue.next(true), Work::Records(two));
        assert_eq!(queue.next(false), Work::Records(Vec::new()));
        assert_eq!(queue.next(true), Work::Records(vec![record(GATHER / 2); 1]));
    }

    #[test]
    fn what_waits_at_the_end_is_lost_and_a_late_answer_changes_nothing() {
        let queue = Queue::default();
        for _ in 0..4 {
            queue.push(&record(1));
        }
        assert!(queue.wait());
        let _ = queue.next(true);
        queue.settle(sent(1));
        queue.end();
        queue.settle(sent(3));
        queue.push(&record(1));
        let account = queue.account();
        assert_eq!((account.produced, account.sent), (4, 1));
        assert_eq!((account.lost.undelivered, account.lost.total()), (3, 3));
        assert_eq!(queue.next(true), Work::Over);
    }
}
