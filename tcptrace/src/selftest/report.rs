//! The verdict on each failure, and how it is printed.

use std::collections::HashSet;
use std::io::{self, Write};

use serde_json::{Value, json};

use super::failure::{Count, Expect, FAILURES, Lacks, NO_SOCKET};
use super::findings::{self, Finding, Told};
use super::tracer::Record;
use super::{Outcome, Skipped};
use crate::event::Cause;

/// A counter of the kernel that must equal the number of these events in every namespace.
struct Reconciled {
    event: &'static str,
    counter: &'static str,
    signals: &'static [&'static str],
}

const RECONCILED: [Reconciled; 2] = [
    Reconciled {
        event: "reset.sent",
        counter: "TcpOutRsts",
        signals: &["reset sent", NO_SOCKET],
    },
    Reconciled {
        event: "accept_queue.overflow",
        counter: "TcpExtListenOverflows",
        signals: &[
            "accept queue: SYN dropped",
            "accept queue: final ACK dropped",
        ],
    },
];

/// All verdicts.
pub(super) struct Report {
    failures: Vec<Judged>,
    /// Findings that belong to no failure.
    stray: Vec<String>,
    /// What the tracer says it lost, which may be what is missing above.
    lost: Vec<String>,
}

impl Outcome {
    /// True for what is told of this stage: of its namespace, or, where no socket tells which, of one
    /// of its processes.
    pub(super) fn is_place_of(&self, record: &Record) -> bool {
        if let Some(inode) = record.number("tcptrace.netns") {
            return inode == u64::from(self.netns.inode());
        }
        let mut pids = self.pids.iter();
        pids.any(|pid| record.pid() == Some(u64::from(*pid)))
    }

    /// True for what happened while it was provoked.
    fn lasted_at(&self, record: &Record) -> bool {
        record.time().is_some_and(|at| self.period.contains(&at))
    }
}

/// A failure, and what came of it.
struct Judged {
    name: &'static str,
    /// The cause it is named by.
    cause: &'static str,
    symptom: &'static str,
    /// Why it was not provoked: this host cannot, or may not.
    not_shown: Option<String>,
    /// Why it could not be provoked although it should.
    broken: Option<String>,
    checks: Vec<Check>,
    findings: Vec<Told>,
    /// Findings that came and should not.
    unexpected: Vec<String>,
    /// All that was told on its stage, where something is wrong.
    records: Vec<Value>,
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
        let mut stuck = HashSet::new();
        let events: Vec<&Record> = records
            .iter()
            .filter(|record| outcome.lasted_at(record))
            .filter(|record| expect.selects(record, outcome.netns.inode()))
            // Of a connection that stays so another record comes when it is ten times as old.
            .filter(|record| {
                record.name() != "tcptrace.close_wait.stuck"
                    || stuck.insert(record.get("tcptrace.socket.inode"))
            })
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
            invisible: invisible(&[expect.signal], records),
        }
    }

    /// All events of a kind in the namespace, against the kernel's counter.
    fn reconcile(
        &Reconciled {
            event,
            counter,
            signals,
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
            invisible: invisible(signals, records),
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
    fn new(outcome: &Outcome, records: &[Record], all: &[Finding<'_>]) -> Self {
        let mut judged = Self {
            name: outcome.failure.name,
            cause: outcome.failure.cause(),
            symptom: outcome.failure.symptom,
            not_shown: None,
            broken: None,
            checks: vec![],
            findings: vec![],
            unexpected: vec![],
            records: vec![],
        };
        let shown = match &outcome.shown {
            Ok(shown) => shown,
            Err(error) if error.is::<Lacks>() => {
                judged.not_shown = Some(error.to_string());
                return judged;
            }
            Err(error) => {
                judged.broken = Some(format!("{error:#}"));
                return judged;
            }
        };
        let expected = shown
            .events
            .iter()
            .map(|expect| Check::new(expect, outcome, records));
        let reconciled = RECONCILED
            .iter()
            .filter_map(|counter| Check::reconcile(counter, outcome, records));
        judged.checks = expected.chain(reconciled).collect();
        let (here, mut others): (Vec<_>, Vec<_>) = all
            .iter()
            .copied()
            .filter(|finding| finding.is_of(outcome))
            .partition(|finding| {
                shown
                    .findings
                    .iter()
                    .any(|named| finding.is_meant_by(named))
            });
        let grown = |counter: &str| outcome.after.since(&outcome.before, counter);
        let told = shown
            .findings
            .iter()
            .map(|named| Told::new(named, grown, &here));
        judged.findings = told.collect();
        others.sort_by_key(Finding::summary);
        judged.unexpected = others.iter().map(Finding::summary).collect();
        if !judged.passed() {
            let here = records.iter().filter(|record| outcome.is_place_of(record));
            judged.records = here.map(|record| record.0.clone()).collect();
        }
        judged
    }

    fn skipped(skipped: &Skipped) -> Self {
        Self {
            name: skipped.failure.name,
            cause: skipped.failure.cause(),
            symptom: skipped.failure.symptom,
            not_shown: Some(skipped.reason.clone()),
            broken: None,
            checks: vec![],
            findings: vec![],
            unexpected: vec![],
            records: vec![],
        }
    }

    fn passed(&self) -> bool {
        self.broken.is_none()
            // Where less is seen, a finding that knows less stands in.
            && (self.unexpected.is_empty() || self.invisible().is_some())
            && self
                .checks
                .iter()
                .all(|check| check.is_right() || check.invisible.is_some())
            && self
                .findings
                .iter()
                .all(|told| told.is_right() || self.invisible().is_some())
    }

    /// Why this kernel hides some of what its findings rest on.
    fn invisible(&self) -> Option<&str> {
        let mut hidden = self.checks.iter().filter(|check| !check.is_right());
        hidden.find_map(|check| check.invisible.as_deref())
    }

    fn verdict(&self, told: &Told) -> &'static str {
        match (told.is_right(), self.invisible()) {
            (true, _) => "ok",
            (false, Some(_)) => "not visible",
            (false, None) => "FAILED",
        }
    }

    /// It names this cause, as the cause or as what may be behind it.
    fn names(&self, cause: &str) -> bool {
        let mut right = self.findings.iter().filter(|told| told.is_right());
        right.any(|told| told.cause == cause || told.hint == Some(cause))
    }
}

impl Report {
    pub(super) fn new(outcomes: &[Outcome], skipped: &[Skipped], records: &[Record]) -> Self {
        let all = findings::all(records);
        let provoked = outcomes
            .iter()
            .map(|outcome| Judged::new(outcome, records, &all));
        let mut failures: Vec<_> = provoked
            .chain(skipped.iter().map(Judged::skipped))
            .collect();
        failures.sort_by_key(|judged| FAILURES.iter().position(|it| it.name == judged.name));
        let stray = all
            .iter()
            .filter(|finding| !outcomes.iter().any(|outcome| finding.is_of(outcome)));
        Self {
            failures,
            stray: stray.map(Finding::summary).collect(),
            lost: records.iter().filter_map(loss).collect(),
        }
    }

    pub(super) fn passed(&self) -> bool {
        self.stray.is_empty() && self.failures.iter().all(Judged::passed)
    }

    /// Each cause with the failures that name it, or why none does.
    fn causes(&self) -> impl Iterator<Item = (&'static str, Vec<&'static str>, Option<String>)> {
        Cause::ALL.iter().map(|cause| {
            let cause = cause.as_str();
            let of = || self.failures.iter().filter(|it| it.cause == cause);
            let by: Vec<_> = of()
                .filter(|it| it.names(cause))
                .map(|it| it.name)
                .collect();
            let reason = by.is_empty().then(|| {
                let reasons: Vec<_> = of().map(Judged::reason).collect();
                if reasons.is_empty() {
                    "it was not asked for".to_owned()
                } else {
                    reasons.join("; ")
                }
            });
            (cause, by, reason)
        })
    }

    /// The table, and below each failure the lines of `text` that tell of it.
    pub(super) fn print_table(&self, text: &[String], out: &mut impl Write) -> io::Result<()> {
        for failure in &self.failures {
            writeln!(out, "{}: {}", failure.name, failure.symptom)?;
            if let Some(reason) = &failure.not_shown {
                writeln!(out, "  not shown   {reason}")?;
            }
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
            failure.print_findings(out)?;
            for line in failure.stories(text) {
                writeln!(out, "  | {line}")?;
            }
            writeln!(out)?;
        }
        for stray in &self.stray {
            writeln!(out, "FAILED: a finding of no failure came: {stray}")?;
        }
        for lost in &self.lost {
            writeln!(out, "The tracer lost {lost}.")?;
        }
        self.print_sum(out)
    }

    fn print_sum(&self, out: &mut impl Write) -> io::Result<()> {
        let shown = || self.failures.iter().filter(|it| it.not_shown.is_none());
        let passed = shown().filter(|failure| failure.passed()).count();
        let all = shown().count();
        let (failures, them) = match all {
            1 => ("failure", "it"),
            _ => ("failures", "them"),
        };
        let were = if passed == 1 { "was" } else { "were" };
        write!(
            out,
            "{passed} of {all} {failures} {were} seen and named, as far as this kernel shows {them}"
        )?;
        match self.failures.len() - all {
            0 => writeln!(out, "."),
            more => writeln!(out, "; {more} more could not be shown."),
        }
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
        let findings = |failure: &Judged| {
            let told = failure.findings.iter();
            told.map(|told| told.as_json(failure.verdict(told)))
                .collect::<Vec<_>>()
        };
        let failure = |failure: &Judged| {
            json!({
                "name": failure.name,
                "symptom": failure.symptom,
                "passed": failure.passed(),
                "not_shown": failure.not_shown,
                "error": failure.broken,
                "checks": failure.checks.iter().map(check).collect::<Vec<_>>(),
                "findings": findings(failure),
                "unexpected": failure.unexpected,
                "records": failure.records,
            })
        };
        let causes = self.causes().map(|(cause, named_by, reason)| {
            json!({"cause": cause, "named_by": named_by, "reason": reason})
        });
        let failures: Vec<Value> = self.failures.iter().map(failure).collect();
        serde_json::to_writer(
            &mut *out,
            &json!({
                "passed": self.passed(),
                "failures": failures,
                "causes": causes.collect::<Vec<_>>(),
                "stray": self.stray,
                "lost": self.lost,
            }),
        )?;
        writeln!(out)
    }
}

impl Judged {
    /// Why it names nothing.
    fn reason(&self) -> String {
        let hidden = self
            .invisible()
            .map(|why| format!("this kernel hides it: {why}"));
        self.not_shown
            .clone()
            .or(hidden)
            .unwrap_or_else(|| "it was provoked and not named: a fault of tcptrace".to_owned())
    }

    fn print_findings(&self, out: &mut impl Write) -> io::Result<()> {
        for told in &self.findings {
            let verdict = self.verdict(told);
            let what = match told.hint {
                Some(hint) => format!("{} ({hint})", told.cause),
                None => told.cause.to_owned(),
            };
            writeln!(
                out,
                "  {verdict:<11} {:<21} {what:<38} {}",
                "finding",
                told.describe()
            )?;
            writeln!(out, "              {}", told.what)?;
            if let Some(remark) = told.remark() {
                writeln!(out, "              {remark}")?;
            }
        }
        for summary in &self.unexpected {
            writeln!(
                out,
                "  FAILED      {:<21} nobody expected {summary}",
                "finding"
            )?;
        }
        Ok(())
    }

    /// The first block of the stream for people that tells of each finding; of a failure without
    /// one, the first two lines about its processes.
    fn stories<'a>(&'a self, text: &'a [String]) -> Vec<&'a String> {
        let mut lines = vec![];
        let mut blocks: Vec<&[String]> = vec![];
        for told in self.findings.iter().filter(|told| told.is_right()) {
            let processes: Vec<_> = told.processes().collect();
            let tells = |block: &&[String]| {
                block[0].contains(told.cause)
                    && processes
                        .iter()
                        .any(|it| block.iter().any(|line| line.contains(it)))
            };
            blocks.extend(findings_of(text).find(tells));
        }
        lines.extend(blocks.into_iter().flatten());
        if lines.is_empty() {
            let seen = self.checks.iter().filter(|check| check.seen > 0);
            let owners: Vec<String> = seen
                .filter_map(|check| Some(format!("[{}]", check.owner?)))
                .collect();
            // A process is shown as `name[pid]`, and the name may hold anything.
            let about = |line: &&String| owners.iter().any(|owner| line.contains(owner));
            lines.extend(text.iter().filter(about).take(2));
        }
        lines
    }
}

/// The findings of the stream for people: a line each, with those that are indented below it.
fn findings_of(text: &[String]) -> impl Iterator<Item = &[String]> {
    let is_inside = |line: &String| line.starts_with("    ");
    let begins = text
        .iter()
        .enumerate()
        .filter(|(_, line)| line.contains(" FINDING "));
    begins.map(move |(at, _)| {
        let inside = text[at + 1..].iter().take_while(|line| is_inside(line));
        &text[at..=at + inside.count()]
    })
}

/// What a record says was lost: `3 of inet_sock_set_state (recursion)`.
fn loss(record: &Record) -> Option<String> {
    let count = record.number("tcptrace.lost.count")?;
    let hook = record.text("tcptrace.lost.hook").unwrap_or("events");
    let reason = record.text("error.type").unwrap_or("no reason given");
    (record.name() == "events.lost").then(|| format!("{count} of {hook} ({reason})"))
}

/// Why this kernel does not show what comes through these signals; `None` when it does.
fn invisible(signals: &[&str], records: &[Record]) -> Option<String> {
    signals.iter().find_map(|signal| {
        let coverage = records.iter().find(|record| {
            record.name() == "coverage" && record.text("tcptrace.coverage.signal") == Some(signal)
        })?;
        let note = coverage
            .text("tcptrace.coverage.note")
            .unwrap_or("this kernel has no way");
        let hidden = coverage.get("tcptrace.coverage.way").is_none();
        hidden.then(|| note.to_owned())
    })
}
