//! What is counted of each process and each listener, and of whatever has a name, as far as there is room.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::scale::{Scale, Series};
use super::words::clean;
use crate::diagnose;
use crate::event::{
    End, Event, Flow, Kind, Overflow, OverflowPath, Owner, Process, SynQueue, Timestamp,
};

/// Processes, and listeners, that are counted one by one: the first that come up.
pub(super) const ROWS: usize = 512;
/// Signals, hooks and names that are told of one by one.
const NOTES: usize = 128;
/// Errors of a process that are told apart.
const ERRORS: usize = 16;

/// What is counted by `K`, as far as there is room.
#[derive(Debug)]
pub(super) struct Rows<K, V> {
    pub(super) rows: HashMap<K, V>,
    /// Events that are in no row.
    pub(super) beyond: u64,
}

/// Numbers by what they are of, as far as there is room.
#[derive(Debug)]
pub(super) struct Notes<K> {
    pub(super) notes: BTreeMap<K, u64>,
    /// Numbers that are in no note.
    pub(super) beyond: u64,
}

/// What happened to a process.
#[derive(Debug)]
pub(super) struct ProcessRow {
    pub(super) process: Process,
    pub(super) run: u16,
    pub(super) events: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) stuck: u64,
    /// RSTs over time.
    pub(super) resets: Series<Reset>,
    /// Connections that stayed in CLOSE_WAIT, when their peers had closed.
    pub(super) leaked: Series<()>,
    /// Failed calls by error.
    pub(super) errors: BTreeMap<String, u64>,
}

/// Which way a RST went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reset {
    Sent,
    Received,
}

/// What happened to a listener.
#[derive(Debug)]
pub(super) struct ListenerRow {
    pub(super) at: String,
    pub(super) run: u16,
    pub(super) owner: Owner,
    /// Times the accept queue was found full.
    pub(super) overflows: u64,
    /// SYNs dropped or answered with cookies.
    pub(super) syns: u64,
    /// The longest the queue was.
    pub(super) longest: Option<u32>,
    /// The queue's last limit.
    pub(super) limit: Option<u32>,
    pub(super) backlog: Option<u32>,
    pub(super) queue: Series<Queue>,
    pub(super) lost: Series<&'static str>,
}

/// Numbers of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Queue {
    Length,
    Limit,
}

impl<K: Eq + Hash, V> Rows<K, V> {
    pub(super) fn new() -> Self {
        Self {
            rows: HashMap::new(),
            beyond: 0,
        }
    }

    pub(super) fn row(&mut self, key: K, new: impl FnOnce() -> V) -> Option<&mut V> {
        if self.rows.len() == ROWS && !self.rows.contains_key(&key) {
            self.beyond += 1;
            return None;
        }
        Some(self.rows.entry(key).or_insert_with(new))
    }
}

impl<K: Ord> Notes<K> {
    pub(super) fn new() -> Self {
        Self {
            notes: BTreeMap::new(),
            beyond: 0,
        }
    }

    pub(super) fn add(&mut self, key: K, number: u64) {
        let is_full = self.notes.len() == NOTES && !self.notes.contains_key(&key);
        let place = if is_full {
            &mut self.beyond
        } else {
            self.notes.entry(key).or_insert(0)
        };
        *place = place.saturating_add(number);
    }

    pub(super) fn total(&self) -> u64 {
        let all = self.notes.values().copied();
        all.fold(self.beyond, u64::saturating_add)
    }
}

impl ProcessRow {
    pub(super) fn new(event: &Event, process: &Process) -> Self {
        Self {
            process: process.clone(),
            run: event.id.run(),
            events: 0,
            sent: 0,
            received: 0,
            stuck: 0,
            resets: Series::of_sums(),
            leaked: Series::of_sums(),
            errors: BTreeMap::new(),
        }
    }

    /// `is_new`: it is not told again.
    pub(super) fn take(&mut self, event: &Event, process: &Process, is_new: bool, scale: &Scale) {
        self.events += 1;
        // Its name changes with exec.
        self.process = process.clone();
        match &event.kind {
            Kind::ResetSent(_) => {
                self.sent += 1;
                self.resets.add(scale, event.time, Reset::Sent, 1);
            }
            Kind::ResetReceived(_) => {
                self.received += 1;
                self.resets.add(scale, event.time, Reset::Received, 1);
            }
            Kind::CloseWaitStuck(_) if !is_new => {}
            Kind::CloseWaitStuck(wait) => {
                let count = u64::from(wait.count);
                self.stuck = self.stuck.saturating_add(count);
                let begun = event
                    .time
                    .0
                    .saturating_sub(wait.age_ms.saturating_mul(1_000_000));
                // What began before the recording is there from its first moment on.
                let first = scale.period().map_or(event.time, |(first, _)| first);
                self.leaked
                    .add(scale, Timestamp(begun).max(first), (), count);
            }
            _ => {
                let error = match &event.kind {
                    Kind::ConnectFailed(connect) if connect.errno.is_none() => {
                        "connect given up".into()
                    }
                    _ => diagnose::error_type(event).unwrap_or_default(),
                };
                let error = error.into_owned();
                let is_full = self.errors.len() == ERRORS && !self.errors.contains_key(&error);
                let error = if is_full { "others".to_owned() } else { error };
                *self.errors.entry(error).or_insert(0) += 1;
            }
        }
    }

    /// Failed calls by error, the most frequent first.
    pub(super) fn errors(&self) -> Vec<(&str, u64)> {
        let errors = self.errors.iter();
        let mut errors: Vec<_> = errors.map(|(name, count)| (&**name, *count)).collect();
        errors.sort_by_key(|(name, count)| (Reverse(*count), *name));
        errors
    }
}

impl ListenerRow {
    pub(super) fn new(run: u16, flow: &Flow) -> Self {
        let at = match flow.local {
            local if local.port() != 0 => End(local).to_string(),
            _ => format!("some listener of namespace {}", flow.netns),
        };
        Self {
            at,
            run,
            owner: Owner::default(),
            overflows: 0,
            syns: 0,
            longest: None,
            limit: None,
            backlog: None,
            queue: Series::of_peaks(),
            lost: Series::of_sums(),
        }
    }

    pub(super) fn owner(&self) -> String {
        match &self.owner.process {
            Some(process) => clean(process),
            None => "not known".to_owned(),
        }
    }

    pub(super) fn overflow(&mut self, time: Timestamp, overflow: &Overflow, scale: &Scale) {
        self.overflows = self.overflows.saturating_add(overflow.count);
        self.longest = self.longest.max(overflow.queue_len);
        self.limit = overflow.queue_max.or(self.limit);
        self.backlog = overflow.backlog.or(self.backlog);
        for (key, number) in [
            (Queue::Length, overflow.queue_len),
            (Queue::Limit, overflow.queue_max),
        ] {
            if let Some(number) = number {
                self.queue.add(scale, time, key, number.into());
            }
        }
        if overflow.count > 0 {
            let lost = match overflow.path {
                Some(OverflowPath::Syn) => "SYN dropped",
                Some(OverflowPath::Ack) => "final ACK dropped or answered with a RST",
                Some(OverflowPath::Cookie) => "ACK of a cookie dropped",
                None => "counted by the kernel",
            };
            self.lost.add(scale, time, lost, overflow.count);
        }
    }

    pub(super) fn flood(&mut self, time: Timestamp, queue: &SynQueue, scale: &Scale) {
        self.syns = self.syns.saturating_add(queue.count);
        let lost = if queue.cookies {
            "SYN answered with a cookie"
        } else {
            "SYN dropped, handshakes half done"
        };
        self.lost.add(scale, time, lost, queue.count);
    }
}
