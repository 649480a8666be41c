//! The words that every form of a report has.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use super::findings::Total;
use super::rows::Notes;
use super::{Report, Source};
use crate::event::{Cause, Count, EventId, Finding, Micros, Millis, Severity, Timestamp};
use crate::explain::Topic;
use crate::sink::text::printable;

impl Report {
    /// What it comes to, in one sentence.
    pub(super) fn headline(&self) -> String {
        let totals = self.findings.totals();
        let (harmless, grave): (Vec<_>, Vec<_>) = totals
            .iter()
            .partition(|total| total.severity == Severity::Info);
        let failures = grave.iter().map(|total: &&Total| total.failures);
        let failures = failures.fold(0, u64::saturating_add);
        let findings = grave.iter().map(|total| total.findings).sum();
        let mut line = match grave.first() {
            None => "No failure that does harm was found".to_owned(),
            Some(worst) => format!(
                "{} explained by {}, first of all {}",
                Count(failures, "failure"),
                Count(findings, "finding"),
                worst.cause.as_str(),
            ),
        };
        let harmless = harmless.iter().map(|total| total.findings).sum();
        if harmless > 0 {
            let _ = write!(line, "; and {} of normal life", Count(harmless, "finding"));
        }
        line.push('.');
        line
    }

    /// When it was.
    pub(super) fn time(&self) -> String {
        match self.scale.period() {
            Some((first, last)) => format!(
                "{} UTC to {} UTC, {}; {}.",
                utc(first),
                utc(last),
                between(first, last),
                Count(self.events, "event"),
            ),
            None => "Nothing was recorded in this time.".to_owned(),
        }
    }

    /// What is not in the report, as far as the recordings tell.
    pub(super) fn losses(&self, source: &Source<'_>) -> Vec<String> {
        let mut lines = Vec::new();
        let counts = &source.counts;
        let lost = |notes: &Notes<(String, &'static str)>| {
            let rows = notes.notes.iter();
            let rows = rows.map(|((of, why), count)| format!("{count} of {} ({why})", clean(of)));
            let beyond = (notes.beyond > 0).then(|| format!("{} of others", notes.beyond));
            rows.chain(beyond).collect::<Vec<_>>().join(", ")
        };
        lines.push(match self.lost.total() {
            0 => "No event was lost between the kernel and tcptrace, as far as was recorded."
                .to_owned(),
            total => format!("{} lost: {}.", Count(total, "event"), lost(&self.lost)),
        });
        if self.dropped.total() > 0 {
            let total = Count(self.dropped.total(), "record");
            lines.push(format!(
                "{total} not delivered to exports: {}.",
                lost(&self.dropped)
            ));
        }
        if self.suppressed.total() > 0 {
            let total = Count(self.suppressed.total(), "event");
            let rows = self.suppressed.notes.iter().map(|((name, cause), count)| {
                let name = name.trim_start_matches("tcptrace.");
                format!(
                    "{count} {}",
                    format_args!("{name} {cause}").to_string().trim_end()
                )
            });
            let rows = rows.collect::<Vec<_>>().join(", ");
            lines.push(format!(
                "{total} left out by --rate-limit, and in no number here: {rows}."
            ));
        }
        let runs = source.contexts.len() as u64;
        if counts.ended < runs {
            let cut = Count(runs - counts.ended, "run");
            lines.push(format!(
                "{cut} of {runs} without an end in the recordings: stopped by force, still tracing, or \
                 recorded in part."
            ));
        }
        if self.stuck_beyond > 0 {
            lines.push(format!(
                "{} of connections in CLOSE_WAIT beyond {}: in no row of a process.",
                Count(self.stuck_beyond, "telling"),
                super::STUCK
            ));
        }
        if counts.unread > 0 {
            lines.push(format!(
                "{} could not be read.",
                Count(counts.unread, "line")
            ));
        }
        if self.coverage.total() == 0 {
            lines.push("What the traces could see was not recorded.".to_owned());
        } else if self.coverage.beyond > 0 {
            let beyond = Count(self.coverage.beyond, "line");
            lines.push(format!("{beyond} of coverage more than are shown."));
        }
        lines
    }
}

impl Source<'_> {
    /// The hosts, each once.
    pub(super) fn hosts(&self) -> BTreeSet<&str> {
        self.contexts.iter().map(|it| &*it.host_name).collect()
    }

    pub(super) fn title(&self) -> String {
        let hosts = self.hosts();
        let mut named = hosts.iter().take(4).map(clean).collect::<Vec<_>>();
        if hosts.len() > named.len() {
            named.push(format!("{} more", hosts.len() - named.len()));
        }
        if named.is_empty() {
            "TCP failures".to_owned()
        } else {
            format!("TCP failures on {}", named.join(", "))
        }
    }

    /// The host of an event, where there are several.
    pub(super) fn on(&self, id: EventId) -> String {
        self.of_run(id.run())
    }

    pub(super) fn of_run(&self, run: u16) -> String {
        let context = self.contexts.get(usize::from(run));
        match context.filter(|_| self.hosts().len() > 1) {
            Some(context) => format!(" on {}", clean(&context.host_name)),
            None => String::new(),
        }
    }

    /// An id as the stream has it.
    pub(super) fn id(&self, id: EventId) -> String {
        let context = self.contexts.get(usize::from(id.run()));
        context.map_or(String::new(), |it| it.event_id(id).to_string())
    }

    /// What was read, and how.
    pub(super) fn facts(&self) -> Vec<(&'static str, String)> {
        let counts = &self.counts;
        let runs = Count(self.contexts.len() as u64, "run");
        let mut facts = vec![
            (
                "Read",
                format!("{} of {runs}", Count(counts.records, "record")),
            ),
            (
                "Recorded by",
                format!(
                    "tcptrace {}",
                    self.versions
                        .iter()
                        .map(clean)
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            ),
            (
                "Reported by",
                format!("tcptrace {}", env!("CARGO_PKG_VERSION")),
            ),
        ];
        let asked = match self.asked {
            (None, None) => None,
            (Some(from), None) => Some(format!("from {} UTC", utc(from))),
            (None, Some(to)) => Some(format!("until {} UTC", utc(to))),
            (Some(from), Some(to)) => Some(format!("from {} UTC until {} UTC", utc(from), utc(to))),
        };
        facts.extend(asked.map(|asked| ("Asked for", asked)));
        facts.push((
            "Findings",
            format!(
                "made anew from the events; the recordings carry {} of their own",
                counts.findings
            ),
        ));
        facts
    }
}

/// What no recording holds.
pub(super) const CAVEATS: [&str; 3] = [
    "The kernel's version and the filters of the trace are not recorded.",
    "Numbers are of what was recorded: without --event all, events that were only counted are missing, and \
     with filters those of other sockets.",
    "Failures that were told of together, within a second for most, are charted evenly from the first to the last.",
];

/// What a cause means.
pub(super) fn summary(cause: Cause) -> &'static str {
    let page = Topic::Cause
        .pages()
        .find(|page| page.name == cause.as_str());
    page.map_or("", |page| page.summary())
}

/// What programs got from a finding.
pub(super) fn errors(finding: &Finding) -> String {
    let errors = finding.errors.iter();
    let errors = errors.map(|(errno, count)| format!("{count} {errno}"));
    errors.collect::<Vec<_>>().join(", ")
}

/// How many events a finding rests on.
pub(super) fn rests_on(finding: &Finding) -> String {
    let count = Count(finding.evidence.len() as u64, "event");
    if finding.evidence.len() == Finding::EVIDENCE {
        format!("{count}, the first and the last of more")
    } else {
        count.to_string()
    }
}

/// Text of others without what turns or ends a line.
pub(super) fn clean(text: impl fmt::Display) -> String {
    printable(text).to_string()
}

/// `2026-11-20 11:10:03.123` in UTC.
pub(super) fn utc(time: Timestamp) -> String {
    moment(time, "%Y-%m-%d %H:%M:%S%.3f")
}

pub(super) fn moment(time: Timestamp, format: &str) -> String {
    // Every number of nanoseconds in 64 bits is a time jiff knows.
    let time = jiff::Timestamp::from_nanosecond(i128::from(time.0)).unwrap_or_default();
    time.strftime(format).to_string()
}

/// The time between, in a person's unit.
pub(super) fn between(from: Timestamp, to: Timestamp) -> String {
    match to.0.saturating_sub(from.0) / 1_000 {
        0 => "0 s".to_owned(),
        us @ 1..1_000_000 => Micros(us).to_string(),
        us => Millis(us / 1_000).to_string(),
    }
}

/// The word of a severity, in the order of a report.
pub(super) fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warn => "warning",
        Severity::Info => "normal",
    }
}
