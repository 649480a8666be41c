//! The connections that were judged, so that what comes of them later finds its case.

use std::hash::{BuildHasher as _, Hash};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::connection::{Connection, Key};
use super::subject::Subject;
use crate::event::{Event, EventId, Kind, SocketId};

/// Connections that have been judged, the latest of them.
///
/// Each takes the place of the oldest, and the tables hold places only: in a storm every event is
/// looked up here, and these tables stay in a processor's cache.
#[derive(Debug)]
pub(super) struct Judged {
    places: Vec<Known>,
    /// Where the next one goes.
    next: usize,
    limit: usize,
    by_key: Index,
    by_root: [Index; ROOTS],
}

#[derive(Debug)]
struct Known {
    key: Option<Key>,
    sockets: [Option<SocketId>; 2],
    /// What later errors will name as their cause.
    roots: [Option<EventId>; ROOTS],
    subject: Subject,
}

/// Events of one connection that later ones may name as their cause: the RST at each end.
const ROOTS: usize = 2;

impl Known {
    /// Something of the same connection, as far as its socket says.
    fn is_of(&self, end: usize, id: SocketId) -> bool {
        match self.sockets[end] {
            Some(known) if id.sk != 0 => known == id,
            _ => true,
        }
    }
}

impl Judged {
    /// None yet, and never more than `limit`.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            places: Vec::with_capacity(limit),
            next: 0,
            limit,
            by_key: Index::new(limit),
            by_root: std::array::from_fn(|_| Index::new(limit)),
        }
    }

    /// The subject of the failure this event is a part of: by the event that caused it, or because it
    /// is of the same connection, `key`, seen at this end.
    pub(super) fn subject_of(&self, key: Option<(Key, usize)>, event: &Event) -> Option<Subject> {
        if let Kind::ResetSent(reset) = &event.kind
            && reset.answers_syn
        {
            // Somebody tries anew, maybe from the same port.
            return None;
        }
        let by_cause = || {
            let cause = event.caused_by?;
            (0..ROOTS).find_map(|nth| {
                let known = |place: usize| self.places[place].roots[nth];
                self.by_root[nth].find(&cause, known)
            })
        };
        let by_key = || {
            let (key, end) = key?;
            let place = self.by_key.find(&key, |place| self.places[place].key)?;
            let id = event.socket.as_ref().map(|it| it.id).unwrap_or_default();
            self.places[place].is_of(end, id).then_some(place)
        };
        let place = by_cause().or_else(by_key)?;
        Some(self.places[place].subject)
    }

    /// Remembers a connection, if it has two ends, and what later errors will name as their cause.
    pub(super) fn remember(&mut self, key: Option<Key>, connection: &Connection, subject: Subject) {
        let mut roots = connection.seen().filter_map(|seen| match seen.first.kind {
            Kind::ResetReceived(_)
            | Kind::ResetSent(_)
            | Kind::ConnectionTimeout(_)
            | Kind::ConnectFailed(_) => Some(seen.first.id),
            _ => None,
        });
        let known = Known {
            key,
            sockets: connection.sockets(),
            roots: std::array::from_fn(|_| roots.next()),
            subject,
        };
        let place = self.next;
        self.next = (place + 1) % self.limit;
        if place < self.places.len() {
            self.by_key.remove(place, |at| self.places[at].key);
            for (nth, index) in self.by_root.iter_mut().enumerate() {
                index.remove(place, |at| self.places[at].roots[nth]);
            }
            self.places[place] = known;
        } else {
            self.places.push(known);
        }
        self.by_key.insert(place, |at| self.places[at].key);
        for (nth, index) in self.by_root.iter_mut().enumerate() {
            index.insert(place, |at| self.places[at].roots[nth]);
        }
    }
}

/// Places by what is at them, which the table does not hold itself.
#[derive(Debug)]
struct Index {
    places: HashTable<u32>,
    hasher: RandomState,
}

impl Index {
    fn new(limit: usize) -> Self {
        Self {
            places: HashTable::with_capacity(limit),
            hasher: RandomState::default(),
        }
    }

    fn find<T: Hash + Eq>(&self, what: &T, at: impl Fn(usize) -> Option<T>) -> Option<usize> {
        let hash = self.hasher.hash_one(what);
        let is_it = |&place: &u32| at(place as usize).as_ref() == Some(what);
        self.places.find(hash, is_it).map(|&place| place as usize)
    }

    /// Of two places with the same the later one counts.
    fn insert<T: Hash + Eq>(&mut self, place: usize, at: impl Fn(usize) -> Option<T>) {
        let Some(what) = at(place) else { return };
        let Self { places, hasher } = self;
        let hash = hasher.hash_one(&what);
        let is_it = |&other: &u32| at(other as usize).as_ref() == Some(&what);
        let rehash = |&other: &u32| hasher.hash_one(at(other as usize).as_ref().unwrap_or(&what));
        let entry = places.entry(hash, is_it, rehash);
        // No limit is near 2^32.
        entry.insert(u32::try_from(place).unwrap_or_default());
    }

    /// Forgets a place, unless a later one has the same.
    fn remove<T: Hash + Eq>(&mut self, place: usize, at: impl Fn(usize) -> Option<T>) {
        let Some(what) = at(place) else { return };
        let hash = self.hasher.hash_one(&what);
        if let Ok(entry) = self.places.find_entry(hash, |&it| it as usize == place) {
            entry.remove();
        }
    }
}
