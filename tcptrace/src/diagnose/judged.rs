//! The connections that were judged, so that what comes of them later finds its case.

use std::collections::VecDeque;

use foldhash::fast::RandomState;

use super::Map;
use super::connection::{Connection, Key};
use super::subject::Subject;
use crate::event::{Event, EventId, Kind, SocketId};

/// Connections that have been judged, the latest of them.
#[derive(Debug)]
pub(super) struct Judged {
    by_key: Map<Key, Known>,
    by_event: Map<EventId, Subject>,
    order: VecDeque<(Option<Key>, [Option<EventId>; 2])>,
    limit: usize,
}

#[derive(Debug)]
struct Known {
    sockets: [Option<SocketId>; 2],
    subject: Subject,
}

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
            by_key: Map::with_capacity_and_hasher(limit, RandomState::default()),
            by_event: Map::with_capacity_and_hasher(2 * limit, RandomState::default()),
            order: VecDeque::with_capacity(limit),
            limit,
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
        let by_cause = event.caused_by.and_then(|id| self.by_event.get(&id));
        let by_key = || {
            let (key, end) = key?;
            let known = self.by_key.get(&key)?;
            let id = event
                .socket
                .as_ref()
                .map_or(SocketId::default(), |it| it.id);
            known.is_of(end, id).then_some(&known.subject)
        };
        by_cause.or_else(by_key).copied()
    }

    /// Remembers a connection, if it has two ends, and what later errors will name as their cause.
    pub(super) fn remember(&mut self, key: Option<Key>, connection: &Connection, subject: Subject) {
        if self.order.len() >= self.limit
            && let Some((key, events)) = self.order.pop_front()
        {
            if let Some(key) = key {
                self.by_key.remove(&key);
            }
            for event in events.into_iter().flatten() {
                self.by_event.remove(&event);
            }
        }
        let mut roots = connection.seen().filter(|seen| {
            matches!(
                seen.first.kind,
                Kind::ResetReceived(_)
                    | Kind::ResetSent(_)
                    | Kind::ConnectionTimeout(_)
                    | Kind::ConnectFailed(_)
            )
        });
        let roots = [roots.next(), roots.next()].map(|seen| seen.map(|it| it.first.id));
        for root in roots.into_iter().flatten() {
            self.by_event.insert(root, subject);
        }
        if let Some(key) = key {
            let sockets = connection.sockets();
            self.by_key.insert(key, Known { sockets, subject });
        }
        self.order.push_back((key, roots));
    }
}
