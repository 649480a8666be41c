//! The verdict on each failure, and how it is printed.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::Outcome;
use super::failure::{Count, Expect, NO_SOCKET};
use super::tracer::Record;

/// A counter of the kernel that must equal the number of these events in every namespace.
struct Reconciled {
    event: &'static str,
    counter: &'static str,
    signals: &'static [&'static str],
    limit: Option<&'static str>,
}

const RECONCILED: [Reconciled; 2] = [
    Reconciled {
        event: "reset.sent",
        counter: "TcpOutRsts",
        signals: &["reset sent"],
        limit: Some(NO_SOCKET),
    },
    Reconciled {
        event: "accept_queue.overflow",
        counter: "TcpExtListenOverflows",
        signals: &[
            "accept queue: SYN dropped",
            "accept queue: final ACK dropped",
        ],
        limit: None,
    },
];

/// All verdicts.
pub(super) struct Report {
    failures: Vec<Judged>,
}

impl Outcome {
    /// True for what happened while it was provoked.
    fn lasted_at(&self, record: &Record) -> bool {
        record.time().is_some_and(|at| self.period.contains(&at))
    }
}

/// A failure, and what came of it.
struct Judged {
    name: &'static str,
    symptom: &'static str,
    /// Why it could not be provoked.
    broken: Option<String>,
    checks: Vec<Check>,
}

/// One expectation, held against the stream.
struct Check {
    what: String,
    event: &'static str,
    provoked: u64,
    seen: u64,
    owner: Option<u32>,
    /// How many named the right owner.
    owned: u64,
    /// The kernel counter that says how many there were.
    counter: Option<&'static str>,
    /// What an event says that it should not.
    wrong: Option<String>,
    /// Why this kernel cannot show it.
    invisible: Option<String>,
}

impl Check {
    fn new(expect: &Expect, outcome: &Outcome, records: &[Record]) -> Self {
        let events: Vec<&Record> = records
            .iter()
            .filter(|record| outcome.lasted_at(record))
            .filter(|record| expect.selects(record, outcome.netns.inode()))
            .collect();
        let (provoked, counter) = match expect.count {
            Count::Exactly(count) => (count, None),
            Count::Counter(name) => (
                outcome.after.since(&outcome.before, name).unwrap_or(0),
                Some(name),
            ),
        };
        let owned = |record: &&&Record| expect.owner.map(u64::from) == record.pid();
        let wrong = events
            .iter()
            .find(|record| !expect.is_right(record))
            .and_then(|record| {
                let (name, should) = expect
                    .says
                    .iter()
                    .find(|(name, value)| record.get(name) != Some(value))?;
                let says = record.get(name).unwrap_or(&Value::Null);
                Some(format!("{name} is {says}, should be {should}"))
            });
        Self {
            what: expect.what.clone(),
            event: expect.event,
            provoked,
            seen: events.len() as u64,
            owner: expect.owner,
            owned: events.iter().filter(owned).count() as u64,
            counter,
            wrong,
            invisible: invisible(&[expect.signal], expect.limit, records),
        }
    }

    /// All events of a kind in the namespace, against the kernel's counter.
    fn reconcile(
        &Reconciled {
            event,
            counter,
            signals,
            limit,
        }: &Reconciled,
        outcome: &Outcome,
        records: &[Record],
    ) -> Option<Self> {
        let provoked = outcome.after.since(&outcome.before, counter)?;
        let netns = outcome.netns.inode();
        let here = |record: &&Record| {
            record.name() == event
                && record.number("tcptrace.netns") == Some(netns.into())
                && outcome.lasted_at(record)
        };
        let seen = records.iter().filter(here).count() as u64;
        (provoked > 0 || seen > 0).then(|| Self {
            what: "all in this namespace".into(),
            event,
            provoked,
            seen,
            owner: None,
            owned: 0,
            counter: Some(counter),
            wrong: None,
            invisible: invisible(signals, limit, records),
        })
    }

    fn is_right(&self) -> bool {
        self.seen == self.provoked
            && self.wrong.is_none()
            && (self.owner.is_none() || self.owned == self.seen)
    }

    fn verdict(&self) -> &'static str {
        match (self.is_right(), &self.invisible) {
            (true, _) => "ok",
            (false, Some(_)) => "not visible",
            (false, None) => "FAILED",
        }
    }

    /// What a person should know beside the numbers.
    fn remark(&self) -> Option<&str> {
        if self.is_right() {
            return None;
        }
        self.invisible.as_deref().or(self.wrong.as_deref())
    }
}

impl Judged {
    fn passed(&self) -> bool {
        self.broken.is_none()
            && self
                .checks
                .iter()
                .all(|check| check.is_right() || check.invisible.is_some())
    }
}

impl Report {
    pub(super) fn new(outcomes: &[Outcome], records: &[Record]) -> Self {
        let judge = |outcome: &Outcome| {
            let (expects, broken) = match &outcome.expects {
                Ok(expects) => (expects.as_slice(), None),
                Err(error) => (&[][..], Some(format!("{error:#}"))),
            };
            let expected = expects
                .iter()
                .map(|expect| Check::new(expect, outcome, records));
            let reconciled = RECONCILED
                .iter()
                .filter_map(|counter| Check::reconcile(counter, outcome, records));
            Judged {
                name: outcome.failure.name,
                symptom: outcome.failure.symptom,
                broken,
                checks: expected.chain(reconciled).collect(),
            }
        };
        Self {
            failures: outcomes.iter().map(judge).collect(),
        }
    }

    pub(super) fn passed(&self) -> bool {
        self.failures.iter().all(Judged::passed)
    }

    /// The table, and below each failure the lines of `text` that tell of it.
    pub(super) fn print_table(&self, text: &[String], out: &mut impl Write) -> io::Result<()> {
        for failure in &self.failures {
            writeln!(out, "{}: {}", failure.name, failure.symptom)?;
            if let Some(error) = &failure.broken {
                writeln!(out, "  FAILED: it could not be provoked: {error}")?;
            }
            for check in &failure.checks {
                let verdict = check.verdict();
                let (event, what) = (check.event, &check.what);
                write!(out, "  {verdict:<11} {event:<21} {what:<38}")?;
                write!(
                    out,
                    " provoked {:>3}, seen {:>3}",
                    check.provoked, check.seen
                )?;
                if let Some(pid) = check.owner.filter(|_| check.seen > 0) {
                    write!(out, ", {} by {pid}", check.owned)?;
                }
                if let Some(counter) = check.counter {
                    write!(out, " ({counter} +{})", check.provoked)?;
                }
                writeln!(out)?;
                if let Some(remark) = check.remark() {
                    writeln!(out, "              {remark}")?;
                }
            }
            for line in failure.stories(text) {
                writeln!(out, "  | {line}")?;
            }
            writeln!(out)?;
        }
        let passed = self
            .failures
            .iter()
            .filter(|failure| failure.passed())
            .count();
        let all = self.failures.len();
        let (failures, them) = match all {
            1 => ("failure", "it"),
            _ => ("failures", "them"),
        };
        let were = if passed == 1 { "was" } else { "were" };
        writeln!(
            out,
            "{passed} of {all} {failures} {were} seen and named, as far as this kernel shows {them}."
        )
    }

    pub(super) fn print_json(&self, out: &mut impl Write) -> io::Result<()> {
        let check = |check: &Check| {
            json!({
                "what": check.what,
                "event_name": format!("tcptrace.{}", check.event),
                "verdict": check.verdict(),
                "provoked": check.provoked,
                "seen": check.seen,
                "owner": check.owner,
                "owner_right": check.owner.map(|_| check.owned == check.seen),
                "kernel_counter": check.counter,
                "remark": check.remark(),
            })
        };
        let failure = |failure: &Judged| {
            json!({
                "name": failure.name,
                "symptom": failure.symptom,
                "passed": failure.passed(),
                "error": failure.broken,
                "checks": failure.checks.iter().map(check).collect::<Vec<_>>(),
            })
        };
        let failures: Vec<Value> = self.failures.iter().map(failure).collect();
        serde_json::to_writer(
            &mut *out,
            &json!({"passed": self.passed(), "failures": failures}),
        )?;
        writeln!(out)
    }
}

impl Judged {
    /// The first two lines of the stream for people about the processes expected.
    fn stories<'a>(&self, text: &'a [String]) -> impl Iterator<Item = &'a String> {
        let seen = self.checks.iter().filter(|check| check.seen > 0);
        let owners: Vec<String> = seen
            .filter_map(|check| Some(format!("[{}]", check.owner?)))
            .collect();
        // A process is shown as `name[pid]`, and the name may hold anything.
        let about = move |line: &&String| owners.iter().any(|owner| line.contains(owner));
        text.iter().filter(about).take(2)
    }
}

/// Why this kernel does not show what comes through these signals; `None` when it does.
fn invisible(signals: &[&str], limit: Option<&str>, records: &[Record]) -> Option<String> {
    signals.iter().find_map(|signal| {
        let coverage = records.iter().find(|record| {
            record.name() == "coverage" && record.text("tcptrace.coverage.signal") == Some(signal)
        })?;
        let note = coverage
            .text("tcptrace.coverage.note")
            .unwrap_or("this kernel has no way");
        let hidden = coverage.get("tcptrace.coverage.way").is_none()
            || limit.is_some_and(|limit| note.contains(limit));
        hidden.then(|| note.to_owned())
    })
}
