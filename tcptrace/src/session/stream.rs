//! From a complete event to the outputs: judged, chosen, counted, printed. The same for a live trace and
//! for a replay.

use std::sync::Arc;
use std::time::Duration;

use super::limit::RateLimit;
use super::{Map, Tally};
use crate::config::Selection;
use crate::diagnose::{Analysis, Sees};
use crate::event::{Event, EventId, Kind, Owner, Suppressed, Timestamp};
use crate::metrics::Metrics;
use crate::sink::{Context, Error, Outputs, Place};

const NS_PER_MS: u64 = 1_000_000;

/// Events in, records and findings out.
pub struct Stream {
    pub(super) selection: Selection,
    outputs: Outputs,
    evidence: Evidence,
    limit_rate: RateLimit,
    /// `None` where nobody scrapes.
    pub(super) metrics: Option<Arc<Metrics>>,
    /// `None` where no finding is asked for.
    analysis: Option<Analysis>,
    /// How far time has passed for the analysis, until a record has said so.
    judged_until: Option<Timestamp>,
    /// No record has said so yet.
    is_new: bool,
    /// Findings on their way to the outputs.
    found: Vec<Event>,
    pub(super) tally: Tally,
    limit: Option<u64>,
}

impl Stream {
    /// One that prints what `selection` chooses, findings as `analysis` makes them, and is over after
    /// `limit` events.
    #[must_use]
    pub fn new(
        selection: Selection,
        outputs: Outputs,
        analysis: Analysis,
        limit: Option<u64>,
    ) -> Self {
        let evidence = Evidence::new(selection.keeps_evidence());
        let analysis = selection.has("finding").then_some(analysis);
        Self {
            selection,
            outputs,
            evidence,
            limit_rate: RateLimit::default(),
            metrics: None,
            analysis,
            judged_until: None,
            is_new: true,
            found: Vec::new(),
            tally: Tally::default(),
            limit,
        }
    }

    /// As many events were printed as were asked for.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.limit.is_some_and(|limit| self.tally.printed >= limit)
    }

    /// Takes an event with its facts.
    ///
    /// # Errors
    /// An output failed.
    pub fn take(&mut self, event: &Event) -> Result<(), Error> {
        if self.is_full() {
            return Ok(());
        }
        self.count(event);
        if let Some(analysis) = &mut self.analysis {
            analysis.take(event, &mut |finding| self.found.push(finding));
        }
        if self.selection.prints(event) && self.limit_rate.allows(event) {
            if let Some(cause) = event.caused_by.and_then(|cause| self.evidence.take(cause)) {
                self.print_kept(&cause)?;
            }
            self.print(event)?;
        } else {
            self.evidence.keep(event);
        }
        self.tell()
    }

    /// Time has passed: tells the findings that are due.
    ///
    /// # Errors
    /// An output failed.
    pub fn advance(&mut self, now: Timestamp) -> Result<(), Error> {
        if let Some(analysis) = &mut self.analysis {
            // As the record says it.
            let now = Timestamp(now.0 - now.0 % NS_PER_MS);
            // The first record says it at once: who replays knows then that the others will.
            if self.is_new || !analysis.is_idle() {
                self.is_new = false;
                self.judged_until = Some(now);
            }
            analysis.advance(now, &mut |finding| self.found.push(finding));
        }
        self.tell()
    }

    /// Nothing more comes: tells all findings.
    ///
    /// # Errors
    /// An output failed.
    pub fn finish(&mut self, now: Timestamp) -> Result<(), Error> {
        if let Some(analysis) = &mut self.analysis {
            analysis.finish(now, &mut |finding| self.found.push(finding));
        }
        self.tell()
    }

    /// What leaves no gap from now on.
    pub fn sees(&mut self, sees: Sees) {
        if let Some(analysis) = &mut self.analysis {
            analysis.sees(sees);
        }
    }

    /// The next run of a replay.
    pub fn add_run(&mut self, context: Context) {
        self.outputs.add_run(context);
    }

    /// Prints what was found, each finding after the evidence that was not printed yet.
    fn tell(&mut self) -> Result<(), Error> {
        if self.found.is_empty() {
            return Ok(());
        }
        let mut found = std::mem::take(&mut self.found);
        for finding in found.drain(..) {
            if self.is_full() {
                break;
            }
            self.count(&finding);
            if !self.selection.prints(&finding) {
                continue;
            }
            if let Kind::Finding(told) = &finding.kind {
                for &id in &told.evidence {
                    if let Some(evidence) = self.evidence.take(id) {
                        self.print_kept(&evidence)?;
                    }
                }
            }
            self.print(&finding)?;
        }
        // Its memory is used again.
        self.found = found;
        Ok(())
    }

    /// Prints something about the stream itself.
    ///
    /// # Errors
    /// An output failed.
    pub fn note(&mut self, event: &Event) -> Result<(), Error> {
        if let Kind::EventsLost(loss) = &event.kind {
            self.tally.lost += loss.count;
            if let Some(metrics) = &self.metrics {
                metrics.lost(&loss.hook, loss.reason, loss.count);
            }
        }
        self.write(event)
    }

    /// Hands over what the outputs kept back.
    ///
    /// # Errors
    /// An output failed.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.outputs.flush()
    }

    /// The counts so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    pub(super) fn reopen(&mut self) -> Result<(), Error> {
        self.outputs.reopen()
    }

    pub(super) fn select(&mut self, selection: Selection) {
        self.evidence.kept = selection.keeps_evidence() || self.limit_rate.is_on();
        self.selection = selection;
    }

    pub(super) fn limit_rate(&mut self, limit: Option<u32>) {
        self.limit_rate.set(limit);
        self.evidence.kept = self.selection.keeps_evidence() || limit.is_some();
    }

    /// What the limit left out of a second that is over by `now`, or of the last one.
    pub(super) fn suppressed(
        &mut self,
        now: Duration,
        is_last: bool,
    ) -> impl Iterator<Item = (Owner, Suppressed)> {
        self.limit_rate.told(now, is_last)
    }

    /// The event is printed or judged.
    pub(super) fn wants(&self, event: &Event) -> bool {
        self.analysis.is_some() || self.selection.prints(event)
    }

    fn count(&mut self, event: &Event) {
        self.tally.saw(event);
        if let Some(metrics) = &self.metrics {
            metrics.saw(event);
        }
    }

    fn print(&mut self, event: &Event) -> Result<(), Error> {
        self.tally.printed += 1;
        self.write(event)
    }

    fn print_kept(&mut self, event: &Event) -> Result<(), Error> {
        self.tally.printed += 1;
        let place = Place {
            kept: true,
            ..Place::default()
        };
        self.outputs.write(event, place)
    }

    fn write(&mut self, event: &Event) -> Result<(), Error> {
        let place = Place {
            judged_until: self.judged_until.take(),
            ..Place::default()
        };
        self.outputs.write(event, place)
    }
}

/// Events that are printed only when one they caused is: each in the place of the oldest.
#[derive(Debug)]
pub(super) struct Evidence {
    pub(super) events: Vec<Option<Event>>,
    /// Where the next one goes.
    next: usize,
    places: Map<EventId, usize>,
    kept: bool,
}

impl Evidence {
    /// Events kept; the oldest make room.
    pub(super) const CAPACITY: usize = 4096;

    pub(super) fn new(kept: bool) -> Self {
        Self {
            events: Vec::new(),
            next: 0,
            places: Map::default(),
            kept,
        }
    }

    pub(super) fn keep(&mut self, event: &Event) {
        if !self.kept {
            return;
        }
        let place = self.next;
        self.next = (place + 1) % Self::CAPACITY;
        if let Some(oldest) = self.events.get_mut(place) {
            if let Some(oldest) = oldest
                && self.places.get(&oldest.id) == Some(&place)
            {
                self.places.remove(&oldest.id);
            }
            *oldest = Some(event.clone());
        } else {
            self.events.push(Some(event.clone()));
        }
        self.places.insert(event.id, place);
    }

    pub(super) fn take(&mut self, id: EventId) -> Option<Event> {
        self.events[self.places.remove(&id)?].take()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::diagnose::Limits;
    use crate::sink::{Format, Sink, samples};

    #[derive(Clone, Default)]
    struct Memory(Rc<RefCell<Vec<Bytes>>>);

    impl Sink for Memory {
        fn write(&mut self, _: &Event, record: &Bytes) -> Result<(), Error> {
            self.0.borrow_mut().push(record.clone());
            Ok(())
        }

        fn flush(&mut self) -> Result<(), Error> {
            Ok(())
        }
    }

    /// Of each record the event's id and how it is marked for a replay.
    fn marks(memory: &Memory) -> Vec<Value> {
        let records = memory.0.borrow();
        let marks = records.iter().map(|record| {
            let record: Value = serde_json::from_slice(record).expect("it is JSON");
            let told = &record["attributes"];
            json!([
                told["tcptrace.event.id"],
                told["tcptrace.judged_until_ms"],
                told["tcptrace.event.kept"],
            ])
        });
        marks.collect()
    }

    #[test]
    fn records_in_json_say_when_and_in_which_order_they_were_judged() {
        let (lines, pretty) = (Memory::default(), Memory::default());
        let mut outputs = Outputs::new(samples::context());
        outputs.add(Format::Json, Box::new(lines.clone()));
        outputs.add(Format::JsonPretty, Box::new(pretty.clone()));
        let chosen = ["socket.error".to_owned(), "finding".to_owned()];
        let selection = Selection::parse(&chosen, &[], false).expect("a selection");
        let analysis = Analysis::new(Limits::default(), Sees::ALL);
        let mut stream = Stream::new(selection, outputs, analysis, None);

        let mut cause = samples::reset_sent();
        let mut failed = samples::write_failed();
        (cause.id, failed.id) = (EventId(1), EventId(3));
        failed.caused_by = Some(cause.id);
        let mut first = samples::write_failed();
        (first.id, first.caused_by) = (EventId(2), None);
        let begun = first.time.0 - first.time.0 % NS_PER_MS;
        // Not a millisecond of it may be missing or too much.
        let later = Timestamp(begun + 20 * NS_PER_MS + 999_999);

        for taken in [
            stream.advance(Timestamp(begun + 1)),
            stream.take(&cause),
            stream.take(&first),
            stream.advance(later),
            stream.take(&failed),
        ] {
            taken.expect("it is kept in memory");
        }
        let expected = [
            json!(["5eed0001-2", begun / NS_PER_MS, null]),
            json!(["5eed0001-1", null, true]),
            json!(["5eed0001-3", begun / NS_PER_MS + 20, null]),
        ];
        assert_eq!(marks(&lines), expected);
        assert_eq!(marks(&pretty), expected);
    }
}
