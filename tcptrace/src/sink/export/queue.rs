//! What waits for one destination, and the account of all that ever did.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
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
pub(super) const GATHER: usize = 64 * 1024;
/// How often it is asked whether what was sent has arrived.
const ARRIVAL: Duration = Duration::from_millis(20);

/// Records not delivered, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// More waited than may.
    pub queue_full: u64,
    /// The destination takes no record of that size.
    pub too_large: u64,
    /// The destination said that it will not have them.
    pub refused: u64,
    /// They still waited at the end.
    pub undelivered: u64,
}

impl Lost {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.queue_full + self.too_large + self.refused + self.undelivered
    }

    /// What came on top of an earlier count.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self {
            queue_full: self.queue_full - earlier.queue_full,
            too_large: self.too_large - earlier.too_large,
            refused: self.refused - earlier.refused,
            undelivered: self.undelivered - earlier.undelivered,
        }
    }

    /// Each reason with its count.
    #[must_use]
    pub fn all(self) -> [(&'static str, u64); 4] {
        [
            ("queue_full", self.queue_full),
            ("too_large", self.too_large),
            ("refused", self.refused),
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
pub(super) struct Queue {
    /// Bytes that may wait.
    room: usize,
    state: Mutex<State>,
    changed: Condvar,
    left: Notify,
}

#[derive(Default)]
struct State {
    /// One or several records each. The first `handed` of these are with the link, which has not said yet
    /// what became of them.
    parcels: VecDeque<(Bytes, u64)>,
    handed: usize,
    bytes: usize,
    /// Bytes that came since the thread was woken.
    fresh: usize,
    account: Account,
    /// What is written to is to be opened anew.
    reopen: bool,
    /// Nothing more comes.
    closing: bool,
    /// What still waits was counted as lost.
    ended: bool,
}

impl Default for Queue {
    fn default() -> Self {
        Self::with_room(LIMIT_BYTES)
    }
}

/// What there is to do for the thread that delivers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// These come next; none where there is only something to finish.
    Records(Vec<Bytes>),
    /// What is written to is to be opened anew.
    Reopen,
    /// There was nothing for as long as was waited.
    Idle,
    /// There will be nothing any more.
    Over,
}

impl Queue {
    /// In which so many bytes may wait.
    pub(super) fn with_room(room: usize) -> Self {
        Self {
            room,
            state: Mutex::default(),
            changed: Condvar::new(),
            left: Notify::new(),
        }
    }

    /// Takes this many records, or counts them as lost; nothing after the end.
    pub(super) fn push(&self, parcel: Bytes, records: u64) {
        let mut state = self.lock();
        if state.ended {
            return;
        }
        state.account.produced += records;
        let is_full =
            state.parcels.len() >= LIMIT_RECORDS || state.bytes + parcel.len() > self.room;
        if is_full {
            state.account.lost.queue_full += records;
            return;
        }
        state.account.waiting += records;
        state.bytes += parcel.len();
        state.fresh += parcel.len();
        state.parcels.push_back((parcel, records));
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

    /// What is written to is to be opened anew, before whatever waits is written.
    pub(super) fn reopen(&self) {
        self.lock().reopen = true;
        self.changed.notify_one();
    }

    /// Nothing more comes.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_one();
    }

    /// Nothing more comes, so that what fails now will not be tried for long.
    pub(super) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// Counts what waits as lost, whatever the thread still does with it.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.account.lost.undelivered += state.clear();
        self.changed.notify_one();
    }

    /// Nobody is there to miss what waits: it is as if it had never been.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.account.produced -= state.clear();
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
        self.lock().account.clone()
    }

    /// Waits for the first record. Gives whether there is one: otherwise there never will be.
    pub(super) fn wait(&self) -> bool {
        let state = self.lock();
        let idle = |state: &mut State| state.parcels.is_empty() && !state.closing;
        let state = self.changed.wait_while(state, idle);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        !state.parcels.is_empty()
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
    /// With nothing to do it waits, no longer than it is told.
    pub(super) fn next(&self, wants: bool, patience: Option<Duration>) -> Work {
        let mut state = self.lock();
        if wants {
            let unfinished = state.handed > 0;
            let idle = |state: &mut State| {
                let nothing = state.parcels.len() == state.handed && !state.reopen;
                nothing && !state.ended && (state.handed > 0 || !state.closing)
            };
            let patience = if unfinished { Some(ARRIVAL) } else { patience };
            state = if let Some(patience) = patience {
                let waited = self.changed.wait_timeout_while(state, patience, idle);
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                let waited = self.changed.wait_while(state, idle);
                waited.unwrap_or_else(PoisonError::into_inner)
            };
            if !unfinished && idle(&mut state) {
                return Work::Idle;
            }
        }
        if mem::take(&mut state.reopen) && !state.ended {
            return Work::Reopen;
        }
        if state.ended || (state.closing && state.parcels.is_empty()) {
            return Work::Over;
        }
        if !wants {
            return Work::Records(Vec::new());
        }
        let mut bytes = 0;
        let fits = |parcel: &&Bytes| {
            let is_first = bytes == 0;
            bytes += parcel.len();
            is_first || bytes <= GATHER
        };
        let next = state.parcels.range(state.handed..);
        let next = next.map(|(parcel, _)| parcel).take_while(fits);
        let next: Vec<_> = next.cloned().collect();
        state.handed += next.len();
        Work::Records(next)
    }

    /// The first of the records handed over have been dealt with.
    pub(super) fn settle(&self, done: Done) {
        let mut state = self.lock();
        if state.ended || done.count() == 0 {
            return;
        }
        let (mut bytes, mut records) = (0, 0);
        for (parcel, held) in state.parcels.drain(..done.count()) {
            bytes += parcel.len();
            records += held;
        }
        state.bytes -= bytes;
        state.handed -= done.count();
        state.account.waiting -= records;
        state.account.sent += records - (done.too_large + done.refused) as u64;
        state.account.lost.too_large += done.too_large as u64;
        state.account.lost.refused += done.refused as u64;
        if done.why.is_some() {
            state.account.error.clone_from(&done.why);
        }
        // Who refuses all is as good as gone.
        state.account.failing = done.why.filter(|_| done.sent == 0);
    }

    /// So many records of the first parcel handed over have been dealt with; the others wait.
    pub(super) fn settle_part(&self, records: u64) {
        let mut state = self.lock();
        if state.ended {
            return;
        }
        if let Some((_, held)) = state.parcels.front_mut() {
            *held -= records;
            state.account.waiting -= records;
            state.account.sent += records;
        }
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

impl State {
    /// Ends with nothing left, and gives the number of records that waited.
    fn clear(&mut self) -> u64 {
        self.parcels.clear();
        (self.bytes, self.handed, self.ended) = (0, 0, true);
        mem::take(&mut self.account.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(size: usize) -> Bytes {
        Bytes::from(vec![b'x'; size])
    }

    #[test]
    fn what_is_more_than_may_wait_is_counted() {
        let queue = Queue::default();
        for _ in 0..LIMIT_RECORDS + 3 {
            queue.push(record(1), 1);
        }
        let account = queue.account();
        assert_eq!(account.waiting, LIMIT_RECORDS as u64);
        assert_eq!(account.lost.queue_full, 3);
        let queue = Queue::default();
        for _ in 0..3 {
            queue.push(record(LIMIT_BYTES / 2), 1);
        }
        let account = queue.account();
        assert_eq!((account.waiting, account.lost.queue_full), (2, 1));
    }

    #[test]
    fn a_new_link_is_handed_what_the_one_before_left_undecided() {
        let queue = Queue::default();
        for size in 1..=3 {
            queue.push(record(size), 1);
        }
        let all = |sizes: &[usize]| Work::Records(sizes.iter().map(|&it| record(it)).collect());
        assert_eq!(queue.next(true, None), all(&[1, 2, 3]));
        queue.settle(Done::sent(1));
        queue.begin();
        assert_eq!(queue.next(true, None), all(&[2, 3]));
        queue.settle(Done {
            too_large: 1,
            ..Done::sent(1)
        });
        queue.close();
        assert_eq!(queue.next(true, None), Work::Over);
        let account = queue.account();
        assert_eq!((account.sent, account.lost.too_large), (2, 1));
    }

    #[test]
    fn no_more_is_handed_over_at_a_time_than_is_gathered() {
        let queue = Queue::default();
        for _ in 0..3 {
            queue.push(record(GATHER / 2), 1);
        }
        let two = vec![record(GATHER / 2); 2];
        assert_eq!(queue.next(true, None), Work::Records(two));
        assert_eq!(queue.next(false, None), Work::Records(Vec::new()));
        assert_eq!(
            queue.next(true, None),
            Work::Records(vec![record(GATHER / 2); 1])
        );
    }

    #[test]
    fn nothing_is_waited_for_no_longer_than_told() {
        let queue = Queue::default();
        let patience = Some(Duration::from_millis(1));
        assert_eq!(queue.next(true, patience), Work::Idle);
        queue.push(record(1), 1);
        assert_eq!(queue.next(true, patience), Work::Records(vec![record(1)]));
        // Now there is something to finish.
        assert_eq!(queue.next(true, patience), Work::Records(vec![]));
    }

    #[test]
    fn what_is_larger_goes_alone() {
        let queue = Queue::default();
        for size in [2 * GATHER, 1] {
            queue.push(record(size), 1);
        }
        for size in [2 * GATHER, 1] {
            assert_eq!(queue.next(true, None), Work::Records(vec![record(size)]));
        }
    }

    #[test]
    fn what_waits_at_the_end_is_lost_and_a_late_answer_changes_nothing() {
        let queue = Queue::default();
        for _ in 0..4 {
            queue.push(record(1), 1);
        }
        assert!(queue.wait());
        let _ = queue.next(true, None);
        queue.settle(Done::sent(1));
        queue.end();
        queue.settle(Done::sent(3));
        queue.push(record(1), 1);
        let account = queue.account();
        assert_eq!((account.produced, account.sent), (4, 1));
        assert_eq!((account.lost.undelivered, account.lost.total()), (3, 3));
        assert_eq!(queue.next(true, None), Work::Over);
    }
}
