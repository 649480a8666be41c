//! `--fail-on`: what makes `tcptrace sockets` a health check.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

use crate::event::{Event, Kind, Sockets};

/// One entry of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    measure: Measure,
    /// It fails from here on.
    threshold: u64,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    /// Connections in CLOSE_WAIT.
    CloseWait,
    /// Listeners whose accept queue is full.
    Overflow,
    /// The fullest accept queue, in percent of its limit.
    Queue,
    /// The fullest table of descriptors, in percent of its limit.
    Fd,
}

/// What came of a check.
#[derive(Debug, PartialEq)]
pub enum Outcome<'a> {
    /// The measure is below the threshold.
    Passed,
    /// So much was measured, most of all of this.
    Failed(u64, &'a Event),
    /// What is measured was not seen of anything.
    Unseen(Unseen),
}

/// Why something could not be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// The kernel does not tell the limits of accept queues.
    Limits,
    /// The descriptors of processes asked for may not be read.
    Descriptors,
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Limits => {
                "this kernel does not tell the limits of accept queues: modprobe tcp_diag"
            }
            Self::Descriptors => {
                "descriptors of processes may not be read: run it with sudo (CAP_SYS_PTRACE and \
                 CAP_DAC_READ_SEARCH open most)"
            }
        })
    }
}

impl Measure {
    /// Its name, the threshold without one, and what that counts.
    const ALL: [(Self, &'static str, u64, &'static str); 4] = [
        (Self::CloseWait, "close-wait", 1, ""),
        (Self::Overflow, "overflow", 1, ""),
        (Self::Queue, "queue", 90, "%"),
        (Self::Fd, "fd", 90, "%"),
    ];

    /// How much one row adds, or reaches; `None` where it is none of these, or the number is not known.
    fn of(self, found: &Sockets) -> Option<u64> {
        match (self, found) {
            (Self::CloseWait, Sockets::CloseWait(waits)) => Some(waits.count.into()),
            (Self::Overflow, Sockets::Listener(listener)) => {
                listener.max.map(|_| listener.is_full().into())
            }
            (Self::Queue, Sockets::Listener(listener)) => listener.percent(),
            (Self::Fd, Sockets::Process(process)) => process.percent(),
            _ => None,
        }
    }

    /// Why a row it is about has no number.
    fn unseen(self, found: &Sockets) -> Option<Unseen> {
        match (self, found) {
            (Self::Overflow | Self::Queue, Sockets::Listener(_)) => Some(Unseen::Limits),
            (Self::Fd, Sockets::Process(_)) => Some(Unseen::Descriptors),
            _ => None,
        }
    }
}

impl Check {
    /// What came of it among the records of one look, where `unread` says that the descriptors of some
    /// process could not be read.
    #[must_use]
    pub fn judge<'a>(&self, events: &'a [Event], unread: bool) -> Outcome<'a> {
        let sockets = events.iter().filter_map(|event| match &event.kind {
            Kind::Sockets(found) => Some((event, &**found)),
            _ => None,
        });
        let measured = |(event, found)| Some((self.measure.of(found)?, event));
        // The first of the largest.
        let worst = sockets
            .clone()
            .filter_map(measured)
            .min_by_key(|&(value, _)| Reverse(value));
        let Some((largest, worst)) = worst else {
            let nobody = (unread && self.measure == Measure::Fd).then_some(Unseen::Descriptors);
            let mut why = sockets.filter_map(|(_, found)| self.measure.unseen(found));
            return nobody
                .or_else(|| why.next())
                .map_or(Outcome::Passed, Outcome::Unseen);
        };
        let value = match self.measure {
            Measure::Queue | Measure::Fd => largest,
            Measure::CloseWait | Measure::Overflow => sockets
                .filter_map(|(_, found)| self.measure.of(found))
                .sum(),
        };
        if value >= self.threshold {
            Outcome::Failed(value, worst)
        } else {
            Outcome::Passed
        }
    }

    /// What a number it measures counts.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        let all = Measure::ALL.iter();
        let mut own = all.filter(|(measure, ..)| *measure == self.measure);
        own.next().map_or("", |&(_, _, _, unit)| unit)
    }
}

impl fmt::Display for Check {
    /// As it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = Measure::ALL.iter();
        match all.find(|(measure, ..)| *measure == self.measure) {
            Some((_, name, _, unit)) => write!(f, "{name}:{}{unit}", self.threshold),
            None => Ok(()),
        }
    }
}

impl FromStr for Check {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, threshold) = match text.split_once(':') {
            Some((name, threshold)) => (name, Some(threshold)),
            None => (text, None),
        };
        let known = Measure::ALL.iter().find(|(_, known, ..)| *known == name);
        let Some(&(measure, _, usual, unit)) = known else {
            let names = Measure::ALL.map(|(_, name, ..)| name).join(", ");
            return Err(format!(
                "there is no check {name:?}; the checks are {names}"
            ));
        };
        let threshold = match threshold {
            None => usual,
            Some(given) => given
                .strip_suffix(unit)
                .and_then(|number| number.parse().ok())
                .filter(|&number| number > 0)
                .ok_or_else(|| {
                    format!("{name} takes a whole number above 0, e.g. {name}:{usual}{unit}")
                })?,
        };
        Ok(Self { measure, threshold })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{CloseWaits, Listener, ProcessSockets};
    use crate::sink::samples;

    fn check(text: &str) -> Check {
        text.parse().expect("a check")
    }

    #[test]
    fn what_is_written_is_read() {
        for (text, whole) in [
            ("close-wait", "close-wait:1"),
            ("close-wait:100", "close-wait:100"),
            ("overflow", "overflow:1"),
            ("queue", "queue:90%"),
            ("fd:75%", "fd:75%"),
        ] {
            assert_eq!(check(text).to_string(), whole);
            assert_eq!(check(whole), check(text));
        }
        for (wrong, word) in [
            ("closewait:3", "close-wait"),
            ("", "close-wait"),
            ("fd:90", "fd:90%"),
            ("fd:", "fd:90%"),
            ("close-wait:0", "close-wait:1"),
            ("close-wait:5%", "close-wait:1"),
            ("close-wait:-1", "whole number"),
        ] {
            let error = wrong.parse::<Check>().expect_err("no check");
            assert!(error.contains(word), "{wrong}: {error}");
        }
    }

    fn found(kind: Sockets) -> Event {
        samples::event(None, Kind::Sockets(Box::new(kind)))
    }

    fn waits(count: u32) -> Event {
        found(Sockets::CloseWait(CloseWaits {
            count,
            ..CloseWaits::default()
        }))
    }

    fn queue(len: u32, max: Option<u32>) -> Event {
        found(Sockets::Listener(Listener {
            len,
            max,
            ..Listener::default()
        }))
    }

    fn process(open: u64, limit: Option<u64>) -> Event {
        found(Sockets::Process(ProcessSockets {
            open,
            limit,
            ..ProcessSockets::default()
        }))
    }

    #[test]
    fn connections_are_added_up_and_tables_are_not() {
        let events = [
            waits(60),
            waits(39),
            queue(129, Some(128)),
            queue(64, Some(128)),
            process(20, Some(1_000)),
            process(899, Some(1_000)),
            process(5, None),
        ];
        for (text, expected) in [
            ("close-wait:99", Outcome::Failed(99, &events[0])),
            ("close-wait:100", Outcome::Passed),
            ("overflow", Outcome::Failed(1, &events[2])),
            ("overflow:2", Outcome::Passed),
            ("queue:100%", Outcome::Failed(100, &events[2])),
            ("queue:101%", Outcome::Passed),
            ("fd:89%", Outcome::Failed(89, &events[5])),
            ("fd", Outcome::Passed),
        ] {
            assert_eq!(check(text).judge(&events, true), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_measured_does_not_pass() {
        let events = [queue(500, None), process(5, None)];
        for (text, passes) in [
            ("overflow", false),
            ("queue", false),
            ("fd", false),
            ("close-wait", true),
        ] {
            assert_eq!(
                check(text).judge(&events, false) == Outcome::Passed,
                passes,
                "{text}"
            );
        }
        let nothing = |unread| check("fd").judge(&[], unread);
        assert_eq!(nothing(false), Outcome::Passed);
        assert_eq!(nothing(true), Outcome::Unseen(Unseen::Descriptors));
    }
}
