//! The export to a receiver of OTLP: a request for what has gathered, and what became of its records.

pub(crate) mod answer;
mod call;
mod endpoint;
mod headers;

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Access;
use super::link::{Done, LOOK, Link};
use crate::sink::otlp::Batch;
pub(crate) use answer::Verdict;
pub(crate) use call::{Caller, Signal};
pub use endpoint::{Endpoint, Protocol};
pub use headers::Headers;

/// Bytes after which a request is full: gRPC's receivers take four megabytes, some that stand between one.
const FULL: usize = 512 * 1024;

/// How long records gather at most, while more come.
const GATHERING: Duration = Duration::from_millis(200);

/// How long a connection without requests is kept: what is on the way may forget it, and say nothing.
const IDLE: Duration = Duration::from_secs(30);

/// An open way to a receiver.
pub(super) struct Requests {
    caller: Caller,
    batch: Batch,
    /// When the first of the batch came.
    begun: Instant,
    /// Records came since the last step, so more may.
    grows: bool,
    /// When the last answer came.
    used: Instant,
    rest: Duration,
}

impl Requests {
    pub(super) fn connect(
        endpoint: &Endpoint,
        access: &Access,
        patience: Duration,
    ) -> io::Result<Self> {
        Ok(Self {
            caller: Caller::connect(endpoint, access, patience)?,
            batch: Batch::default(),
            begun: Instant::now(),
            grows: false,
            used: Instant::now(),
            rest: Duration::ZERO,
        })
    }

    fn send(&mut self) -> (Done, io::Result<()>) {
        let batch = std::mem::take(&mut self.batch);
        let all = batch.len();
        let outcome = self.caller.call(Signal::Logs, &batch.request());
        self.used = Instant::now();
        match outcome {
            Ok(verdict) => self.settle(verdict, all),
            Err(error) => (Done::default(), Err(error)),
        }
    }

    fn settle(&mut self, verdict: Verdict, all: usize) -> (Done, io::Result<()>) {
        let refused = |refused, why| Done {
            sent: all - refused,
            refused,
            why: (refused > 0).then_some(why),
            ..Done::default()
        };
        match verdict {
            Verdict::Taken(rejected, why) => {
                let rejected = usize::try_from(rejected).map_or(all, |it| it.min(all));
                (refused(rejected, why), Ok(()))
            }
            Verdict::Refused(why) => (refused(all, why), Ok(())),
            Verdict::Later(why, rest) => {
                self.rest = rest;
                (Done::default(), Err(io::Error::other(why)))
            }
        }
    }
}

impl Link for Requests {
    fn wants_more(&self) -> bool {
        self.batch.bytes() < FULL
    }

    fn take(&mut self, record: &Bytes) -> io::Result<()> {
        if self.batch.len() == 0 {
            self.begun = Instant::now();
        }
        self.batch.push(record);
        self.grows = true;
        Ok(())
    }

    fn advance(&mut self) -> (Done, io::Result<()>) {
        let grows = std::mem::take(&mut self.grows);
        let gathers = grows && self.wants_more() && self.begun.elapsed() < GATHERING;
        if gathers || self.batch.len() == 0 {
            return (Done::default(), Ok(()));
        }
        self.send()
    }

    fn idle(&self) -> Option<Duration> {
        Some(LOOK)
    }

    fn is_alive(&mut self) -> bool {
        self.used.elapsed() < IDLE && self.caller.is_open()
    }

    fn rest(&self) -> Duration {
        self.rest
    }
}
