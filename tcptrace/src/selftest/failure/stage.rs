//! Where a failure is provoked: a namespace of its own, the processes in it, and the tracer that
//! looks on.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Count, Expect};
use crate::selftest::actor::Actor;
use crate::selftest::myself;
use crate::selftest::netns::{Neighbour, Netns};
use crate::selftest::tracer::{Record, Tracer};

/// Longer than what is told of latest takes, short enough for a finding to stay one.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// One failure's stage.
pub(in crate::selftest) struct Stage {
    pub(in crate::selftest) netns: Netns,
    tracer: Arc<Tracer>,
    pids: RefCell<Vec<u32>>,
    resting: RefCell<Vec<Actor>>,
}

/// What is left of a stage once its failure has been provoked.
pub(in crate::selftest) struct Left {
    pub(in crate::selftest) netns: Netns,
    /// Every process that acted, those that have ended too.
    pub(in crate::selftest) pids: Vec<u32>,
    /// Those that have not. To end them is a failure of its own: not before the tracer has stopped.
    pub(in crate::selftest) cast: Vec<Actor>,
}

/// An actor on a stage. Dropping it does not end the process.
pub(in crate::selftest) struct Player<'a> {
    /// `None` only while it is being dropped.
    actor: Option<Actor>,
    stage: &'a Stage,
}

impl Stage {
    pub(in crate::selftest) fn new(netns: Netns, tracer: Arc<Tracer>) -> Self {
        Self {
            netns,
            tracer,
            pids: RefCell::default(),
            resting: RefCell::default(),
        }
    }

    /// A new process of this name.
    pub(super) fn actor(&self, name: &str) -> Result<Player<'_>> {
        let mut command = myself()?;
        command.args(["selftest", "--act", name]);
        let actor = Actor::spawn(command)?;
        self.pids.borrow_mut().push(actor.pid());
        Ok(Player {
            actor: Some(actor),
            stage: self,
        })
    }

    /// A new process of this name on what looks like another host: no tracer sees it.
    pub(super) fn stranger(&self, neighbour: &Neighbour, name: &str) -> Result<Player<'_>> {
        neighbour.within(|| self.actor(name))
    }

    /// Waits until the tracer has told of what is expected, as often as it must.
    pub(super) fn wait_for(&self, expect: &Expect) -> Result<()> {
        let netns = self.netns.inode();
        let times = match expect.count {
            Count::Exactly(times) => times,
            Count::Counter(_) => 1,
        };
        let seen = Cell::new(0);
        let is_last = |record: &Record| {
            seen.update(|seen| seen + u64::from(expect.selects(record, netns)));
            seen.get() == times
        };
        let told = self.tracer.wait_for(&expect.what, PATIENCE, is_last);
        told.map(drop)
    }

    /// Does something until the tracer tells what it found out about it. Gives that record, and how
    /// often it was done: what the host is asked about events has a budget, and other failures may
    /// have used it up.
    pub(super) fn repeat_until(
        &self,
        what: &str,
        told: impl Fn(&Record) -> bool,
        mut act: impl FnMut() -> Result<()>,
    ) -> Result<(Record, u64)> {
        let deadline = Instant::now() + PATIENCE;
        let mut times = 0;
        loop {
            act()?;
            times += 1;
            match self.tracer.wait_for(what, TRY_AGAIN, &told) {
                Ok(record) => return Ok((record, times)),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
        }
    }

    pub(in crate::selftest) fn leave(self) -> Left {
        Left {
            netns: self.netns,
            pids: self.pids.into_inner(),
            cast: self.resting.into_inner(),
        }
    }
}

impl Deref for Player<'_> {
    type Target = Actor;

    fn deref(&self) -> &Actor {
        match &self.actor {
            Some(actor) => actor,
            None => unreachable!("a player is used after its end"),
        }
    }
}

impl DerefMut for Player<'_> {
    fn deref_mut(&mut self) -> &mut Actor {
        match &mut self.actor {
            Some(actor) => actor,
            None => unreachable!("a player is used after its end"),
        }
    }
}

impl Drop for Player<'_> {
    fn drop(&mut self) {
        self.stage.resting.borrow_mut().extend(self.actor.take());
    }
}
