//! The findings of a report: each as it was told last, with the events it rests on in words.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::scale::{Scale, Series};
use super::words::clean;
use crate::event::{Cause, Event, EventId, Finding, Kind, Severity, Timestamp};
use crate::sink::Body;

/// Findings that are remembered. With more, those that are over and tell least are only counted.
const MOST: usize = 2_048;
/// Events that are remembered, for the findings that will rest on them.
const RECENT: usize = 16_384;
/// A finding that has been quiet for so long will not grow any more.
const OVER: u64 = 120_000_000_000;

/// All findings.
#[derive(Debug)]
pub(super) struct Findings {
    told: HashMap<EventId, Told>,
    recent: Recent,
    causes: BTreeMap<&'static str, Total>,
    /// Failures by cause; without what does no harm.
    pub(super) failures: Series<&'static str>,
}

/// A finding.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) event: Box<Event>,
    /// When each event happened, and what it was.
    evidence: HashMap<EventId, (Timestamp, String)>,
    /// Failures that are in the chart, and until when.
    charted: (u64, Timestamp),
}

/// All findings of a cause.
#[derive(Clone, Copy, Debug)]
pub(super) struct Total {
    pub(super) cause: Cause,
    /// The worst.
    pub(super) severity: Severity,
    pub(super) findings: u64,
    pub(super) failures: u64,
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
}

impl Told {
    pub(super) fn finding(&self) -> Option<&Finding> {
        match &self.event.kind {
            Kind::Finding(finding) => Some(finding),
            _ => None,
        }
    }

    /// The events it rests on, those that are known.
    pub(super) fn evidence(&self) -> impl Iterator<Item = (EventId, &(Timestamp, String))> {
        let ids = self.finding().map_or(&[][..], |finding| &finding.evidence);
        ids.iter()
            .filter_map(|id| Some((*id, self.evidence.get(id)?)))
    }

    /// What is kept when not all can be: what is grave, and what happened often.
    fn weight(&self) -> (Severity, u64) {
        let finding = self.finding();
        finding.map_or((Severity::Info, 0), |it| (it.severity, it.count))
    }
}

impl Findings {
    pub(super) fn new() -> Self {
        Self {
            told: HashMap::new(),
            recent: Recent::default(),
            causes: BTreeMap::new(),
            failures: Series::of_sums(),
        }
    }

    /// Remembers an event.
    pub(super) fn witness(&mut self, event: &Event) {
        self.recent.keep(event);
    }

    /// Takes a finding, new or told again.
    pub(super) fn take(&mut self, event: &Event, finding: &Finding, scale: &Scale) {
        let known = self.told.remove(&finding.id);
        let before = match &known {
            Some(told) => told.weight().1,
            None if finding.update == 0 => 0,
            // One that was forgotten; how much it has grown cannot be told any more.
            None => finding.count,
        };
        let total = self.causes.entry(finding.cause.as_str()).or_insert(Total {
            cause: finding.cause,
            severity: finding.severity,
            findings: 0,
            failures: 0,
            first: finding.first,
            last: finding.last,
        });
        total.findings += u64::from(finding.update == 0);
        let more = finding.count.saturating_sub(before);
        total.failures = total.failures.saturating_add(more);
        total.severity = total.severity.max(finding.severity);
        total.first = total.first.min(finding.first);
        total.last = total.last.max(finding.last);

        let (mut evidence, mut charted) = match known {
            Some(told) => (told.evidence, told.charted),
            None => (HashMap::new(), (before, finding.first)),
        };
        evidence.retain(|id, _| finding.evidence.contains(id));
        for &id in &finding.evidence {
            if !evidence.contains_key(&id)
                && let Some(event) = self.recent.get(id)
            {
                evidence.insert(id, (event.time, clean(Body(event))));
            }
        }
        if finding.severity > Severity::Info {
            let more = finding.count.saturating_sub(charted.0);
            let cause = finding.cause.as_str();
            self.failures
                .spread(scale, (charted.1, finding.last), cause, more);
            charted = (finding.count, finding.last);
        }
        let told = Told {
            event: Box::new(event.clone()),
            evidence,
            charted,
        };
        self.told.insert(finding.id, told);
        if self.told.len() > MOST {
            self.forget(event.time);
        }
    }

    /// Findings of each cause, the most severe first, and of those what happened most often.
    pub(super) fn totals(&self) -> Vec<Total> {
        let mut totals: Vec<_> = self.causes.values().copied().collect();
        totals.sort_by_key(|it| std::cmp::Reverse((it.severity, it.failures)));
        totals
    }

    /// The findings of a cause that are known, in the same order.
    pub(super) fn of(&self, cause: Cause) -> Vec<&Told> {
        let told = self.told.values();
        let is_of = |told: &&Told| told.finding().is_some_and(|it| it.cause == cause);
        let mut told: Vec<_> = told.filter(is_of).collect();
        told.sort_by_key(|told| {
            let first = told.finding().map(|finding| (finding.first, finding.id));
            (std::cmp::Reverse(told.weight()), first)
        });
        told
    }

    /// Makes room for half as many.
    fn forget(&mut self, now: Timestamp) {
        let last = |told: &Told| told.finding().map_or(0, |finding| finding.last.0);
        let grows = |told: &Told| last(told).saturating_add(OVER) >= now.0;
        let all = self.told.iter();
        let mut all: Vec<_> = all
            .map(|(id, told)| (grows(told), told.weight(), *id))
            .collect();
        all.sort_unstable();
        for (_, _, id) in all.into_iter().take(MOST / 2) {
            self.told.remove(&id);
        }
    }
}

/// The last events, by id.
#[derive(Debug, Default)]
struct Recent {
    events: HashMap<EventId, Event>,
    order: VecDeque<EventId>,
}

impl Recent {
    fn keep(&mut self, event: &Event) {
        if self.events.insert(event.id, event.clone()).is_some() {
            return;
        }
        self.order.push_back(event.id);
        if self.order.len() > RECENT
            && let Some(oldest) = self.order.pop_front()
        {
            self.events.remove(&oldest);
        }
    }

    fn get(&self, id: EventId) -> Option<&Event> {
        self.events.get(&id)
    }
}
