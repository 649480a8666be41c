//! How many events a second of one kind and cause from one process are printed. What comes beyond is
//! counted, and told once the second is over.

use std::time::Duration;

use super::Map;
use crate::event::{Cause, Errno, Event, Kind, Owner, Suppressed};
use crate::{config, diagnose};

/// The limit; without one everything is printed.
#[derive(Debug, Default)]
pub(super) struct RateLimit {
    limit: Option<u32>,
    /// When the second began.
    begun: Duration,
    seen: Map<Key, Seen>,
}

/// What is limited by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    name: &'static str,
    cause: Option<Cause>,
    errno: Option<Errno>,
    pid: Option<u32>,
}

#[derive(Debug)]
struct Seen {
    count: u32,
    suppressed: u64,
    owner: Owner,
}

impl RateLimit {
    /// Keys counted one by one; those of more processes share one for each kind and cause.
    const CAPACITY: usize = 4096;
    const WINDOW: Duration = Duration::from_secs(1);

    pub(super) fn set(&mut self, limit: Option<u32>) {
        self.limit = limit;
    }

    pub(super) fn is_on(&self) -> bool {
        self.limit.is_some()
    }

    /// Whether this one is printed.
    pub(super) fn allows(&mut self, event: &Event) -> bool {
        let Some(limit) = self.limit else {
            return true;
        };
        let is_limited =
            event.kind.selectable().is_some() && !matches!(event.kind, Kind::Finding(_));
        if !is_limited {
            return true;
        }
        let mut key = Key {
            name: event.name(),
            cause: diagnose::cause(event),
            errno: config::errno(event),
            pid: event.owner.process.as_ref().map(|owner| owner.pid),
        };
        let mut owner = &event.owner;
        let nobody = Owner::default();
        if self.seen.len() >= Self::CAPACITY && !self.seen.contains_key(&key) {
            key.pid = None;
            owner = &nobody;
        }
        let seen = self.seen.entry(key).or_insert_with(|| Seen {
            count: 0,
            suppressed: 0,
            owner: owner.clone(),
        });
        seen.count = seen.count.saturating_add(1);
        let allowed = seen.count <= limit;
        seen.suppressed += u64::from(!allowed);
        allowed
    }

    /// Gives away what was not printed of a second that is over by `now`, or of the last one.
    pub(super) fn told(
        &mut self,
        now: Duration,
        is_last: bool,
    ) -> impl Iterator<Item = (Owner, Suppressed)> {
        let is_over = now.saturating_sub(self.begun) >= Self::WINDOW || is_last;
        if is_over {
            self.begun = now;
        }
        let over = is_over.then(|| self.seen.drain()).into_iter().flatten();
        over.filter(|(_, seen)| seen.suppressed > 0)
            .map(|(key, seen)| {
                let suppressed = Suppressed {
                    name: key.name,
                    cause: key.cause,
                    errno: key.errno,
                    count: seen.suppressed,
                };
                (seen.owner, suppressed)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::samples;

    const SECOND: Duration = Duration::from_secs(1);

    fn limit(count: u32) -> RateLimit {
        RateLimit {
            limit: Some(count),
            ..RateLimit::default()
        }
    }

    fn reset_of(pid: u32) -> Event {
        let mut event = samples::reset_sent();
        event.owner.process.as_mut().expect("nginx").pid = pid;
        event
    }

    #[test]
    fn each_process_and_cause_has_its_own_limit_and_each_second() {
        let mut limit = limit(2);
        let mut print = |event: &Event| limit.allows(event);
        assert_eq!(
            [1, 1, 1, 2, 2, 2].map(|pid| print(&reset_of(pid))),
            [true, true, false, true, true, false]
        );
        let mut other_cause = reset_of(1);
        if let Kind::ResetSent(reset) = &mut other_cause.kind {
            reset.linger_zero = true;
        }
        assert!(print(&other_cause));
        assert!(!print(&reset_of(1)));
        assert_eq!(
            limit.told(SECOND / 2, false).count(),
            0,
            "the second is not over"
        );
        let mut told: Vec<_> = limit
            .told(SECOND, false)
            .map(|(owner, it)| (owner.process.map(|process| process.pid), it.name, it.count))
            .collect();
        told.sort_unstable();
        let name = "tcptrace.reset.sent";
        assert_eq!(told, [(Some(1), name, 2), (Some(2), name, 1)]);
        assert!(limit.allows(&reset_of(1)));
        assert_eq!(
            limit.told(2 * SECOND, true).count(),
            0,
            "nothing was left out"
        );
    }

    #[test]
    fn the_stream_itself_and_findings_have_none() {
        let mut limit = limit(1);
        for event in samples::all() {
            let is_free =
                event.kind.selectable().is_none() || matches!(event.kind, Kind::Finding(_));
            for _ in 0..2 {
                assert!(limit.allows(&event) || !is_free, "{}", event.name());
            }
        }
    }

    #[test]
    fn every_event_is_printed_or_counted_however_many_processes_there_are() {
        let mut limit = limit(1);
        let events = 3 * u32::try_from(RateLimit::CAPACITY).expect("it is small");
        let printed = (0..events)
            .filter(|&pid| limit.allows(&reset_of(pid)))
            .count();
        assert!(limit.seen.len() <= RateLimit::CAPACITY + 1);
        let counted: u64 = limit.told(SECOND, false).map(|(_, it)| it.count).sum();
        assert_eq!(printed as u64 + counted, u64::from(events));
        assert_eq!(printed, RateLimit::CAPACITY + 1);
    }
}
