//! Connections in CLOSE_WAIT as far as events tell of them: for a recording, where nobody can be asked.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::{Waiting, pid};
use crate::event::{Event, Kind, SocketId, Timestamp};

/// Those told of and, as far as that was told, not closed since.
#[derive(Clone, Debug, Default)]
pub(super) struct Told(HashMap<(u16, SocketId), Waiting, RandomState>);

impl Told {
    /// Connections kept.
    const CAPACITY: usize = 16_384;

    /// Takes an event.
    pub(super) fn apply(&mut self, event: &Event) {
        let Some(socket) = &event.socket else { return };
        let key = (event.id.run(), socket.id);
        match &event.kind {
            Kind::CloseWaitStuck(wait) | Kind::CloseWaitEntered(wait) => {
                if self.0.len() >= Self::CAPACITY && !self.0.contains_key(&key) {
                    return;
                }
                let age = wait.age_ms.saturating_mul(1_000_000);
                let comm = event.owner.process.as_ref().map(|it| it.comm);
                let waiting = Waiting {
                    owner: (pid(event.id, &event.owner), comm.unwrap_or_default()),
                    flow: socket.flow,
                    since: Timestamp(event.time.0.saturating_sub(age)),
                    older: wait.at_least,
                    count: wait.count,
                };
                self.0.insert(key, waiting);
            }
            Kind::ResetSent(_)
            | Kind::ResetReceived(_)
            | Kind::ConnectionTimeout(_)
            | Kind::StateChanged(_) => {
                self.0.remove(&key);
            }
            _ => {}
        }
    }

    /// All of them.
    pub(super) fn waiting(&self) -> impl Iterator<Item = Waiting> {
        self.0.values().copied()
    }
}
