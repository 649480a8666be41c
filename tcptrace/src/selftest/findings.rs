//! The findings a failure's stream holds, against those that must be in it: each exactly once, and
//! no other.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::failure::{Count, Named};
use super::tracer::Record;
use super::{Outcome, holds};

/// A finding as it was told: the first time, and the last.
#[derive(Clone, Copy)]
pub(super) struct Finding<'a> {
    first: &'a Record,
    last: &'a Record,
}

/// All findings of a stream.
pub(super) fn all(records: &[Record]) -> Vec<Finding<'_>> {
    let mut findings: Vec<Finding<'_>> = vec![];
    let mut places: HashMap<&str, usize> = HashMap::new();
    for record in records.iter().filter(|record| record.name() == "finding") {
        let id = record.text("tcptrace.finding.id").unwrap_or_default();
        match places.get(id) {
            Some(&place) if record.number("tcptrace.finding.update") != Some(0) => {
                findings[place].last = record;
            }
            _ => {
                places.insert(id, findings.len());
                findings.push(Finding {
                    first: record,
                    last: record,
                });
            }
        }
    }
    findings
}

impl Finding<'_> {
    /// True for what happened on this stage.
    pub(super) fn is_of(&self, outcome: &Outcome) -> bool {
        outcome.is_place_of(self.first)
    }

    /// It is, or should be, this one.
    pub(super) fn is_meant_by(&self, named: &Named) -> bool {
        named.selects(self.first)
    }

    fn cause(&self) -> &str {
        self.first.text("tcptrace.cause").unwrap_or_default()
    }

    /// What came, for a person: `linger_zero of [12]: …`.
    pub(super) fn summary(&self) -> String {
        let title = self.last.text("tcptrace.finding.title").unwrap_or_default();
        match self.first.pid() {
            Some(pid) => format!("{} of [{pid}]: {title}", self.cause()),
            None => format!("{} of nobody: {title}", self.cause()),
        }
    }
}

/// A finding that must have come, held against those that did.
pub(super) struct Told {
    pub(super) what: String,
    pub(super) cause: &'static str,
    pub(super) hint: Option<&'static str>,
    process: Option<u32>,
    peer: Option<u32>,
    /// Findings that are this one: one, when all is well.
    times: usize,
    provoked: Option<u64>,
    counted: u64,
    confidence: String,
    severity: String,
    title: String,
    wrong: Option<String>,
}

impl Told {
    /// `grown`: by how much a counter of the kernel grew meanwhile.
    pub(super) fn new(
        named: &Named,
        grown: impl Fn(&str) -> Option<u64>,
        findings: &[Finding<'_>],
    ) -> Self {
        let told: Vec<_> = findings
            .iter()
            .filter(|finding| finding.is_meant_by(named))
            .collect();
        let provoked = named.count.map(|count| match count {
            Count::Exactly(count) => count,
            Count::Counter(name) => grown(name).unwrap_or(0),
        });
        let last = told.first().map(|finding| finding.last);
        let text = |name| {
            last.and_then(|record| record.text(name))
                .unwrap_or_default()
        };
        let severity = last.and_then(|record| record.0.get("severity_text")?.as_str());
        let counted = last.and_then(|record| record.number("tcptrace.finding.count"));
        Self {
            what: named.what.clone(),
            cause: named.cause.as_str(),
            hint: named.hint.map(crate::event::Cause::as_str),
            process: named.process,
            peer: named.peer,
            times: told.len(),
            provoked,
            counted: counted.unwrap_or(0),
            confidence: text("tcptrace.finding.confidence").to_owned(),
            severity: severity.unwrap_or_default().to_lowercase(),
            title: text("tcptrace.finding.title").to_owned(),
            wrong: last.and_then(|last| named.wrong(last, findings)),
        }
    }

    pub(super) fn is_right(&self) -> bool {
        self.remark().is_none()
    }

    /// Why it is not right.
    pub(super) fn remark(&self) -> Option<String> {
        match (self.times, self.provoked) {
            (0, _) => Some("no such finding came".to_owned()),
            (1, Some(provoked)) if self.counted != provoked => {
                let counted = self.counted;
                Some(format!("it counts {counted}, should be {provoked}"))
            }
            (1, _) => self.wrong.clone(),
            (times, _) => Some(format!("it came {times} times, each a finding of its own")),
        }
    }

    /// Who is named, and how surely: `[1] with [2], count 3, high, warn`.
    pub(super) fn describe(&self) -> String {
        let process = match self.process {
            Some(pid) => format!("[{pid}]"),
            None => "nobody".to_owned(),
        };
        let peer = self
            .peer
            .map_or(String::new(), |pid| format!(" with [{pid}]"));
        let (count, confidence, severity) = (self.counted, &self.confidence, &self.severity);
        format!("{process}{peer}, count {count}, {confidence}, {severity}")
    }

    /// The processes in it, as the text form writes them after their names.
    pub(super) fn processes(&self) -> impl Iterator<Item = String> {
        self.process
            .or(self.peer)
            .into_iter()
            .map(|pid| format!("[{pid}]"))
    }

    pub(super) fn as_json(&self, verdict: &str) -> Value {
        json!({
            "what": self.what,
            "cause": self.cause,
            "hint": self.hint,
            "verdict": verdict,
            "process": self.process,
            "peer": self.peer,
            "told": self.times,
            "provoked": self.provoked,
            "count": self.counted,
            "confidence": self.confidence,
            "severity": self.severity,
            "title": self.title,
            "remark": self.remark(),
        })
    }
}

impl Named {
    /// What the last telling says that it should not.
    fn wrong(&self, last: &Record, findings: &[Finding<'_>]) -> Option<String> {
        let peer = self.peer.map(|pid| ("tcptrace.peer.pid", json!(pid)));
        let hint = self
            .hint
            .map(|hint| ("tcptrace.finding.hint", json!(hint.as_str())));
        let cause = self.follows.map(|cause| {
            let found = findings.iter().find(|it| it.cause() == cause.as_str());
            let id = found.and_then(|it| it.first.get("tcptrace.finding.id"));
            ("tcptrace.caused_by", id.cloned().unwrap_or_default())
        });
        let mut should = self.says.clone();
        should.extend([peer, hint, cause].into_iter().flatten());
        let wrong = should
            .into_iter()
            .find(|one| !holds(last, std::slice::from_ref(one)));
        wrong.map(|(name, should)| {
            let says = last.get(name).unwrap_or(&Value::Null);
            format!("{name} is {says}, should be {should}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Cause;

    fn finding(id: &str, update: u32, cause: &str, count: u64) -> Record {
        Record(json!({
            "event_name": "tcptrace.finding",
            "severity_text": "WARN",
            "attributes": {
                "process.pid": 12,
                "tcptrace.cause": cause,
                "tcptrace.finding.id": id,
                "tcptrace.finding.update": update,
                "tcptrace.finding.count": count,
                "tcptrace.peer.pid": 34,
                "tcptrace.caused_by": "a",
            },
        }))
    }

    fn named(cause: Cause) -> Named {
        let mut named = Named::new(cause, "it");
        named.process = Some(12);
        named
    }

    fn remark(named: &Named, records: &[Record]) -> Option<String> {
        let findings = all(records);
        Told::new(named, |_| Some(7), &findings).remark()
    }

    #[test]
    fn the_last_telling_counts_and_the_first_names() {
        let records = [
            finding("a", 0, "linger_zero", 1),
            finding("b", 0, "reset_by_peer", 2),
            finding("a", 1, "linger_zero", 3),
        ];
        assert_eq!(all(&records).len(), 2);
        assert_eq!(remark(&named(Cause::LingerZero).times(3), &records), None);
    }

    #[test]
    fn whatever_is_not_as_it_should_be_is_remarked() {
        let once = [finding("a", 0, "linger_zero", 7)];
        let twice = [&once[..], &[finding("b", 0, "linger_zero", 7)]].concat();
        let should = || named(Cause::LingerZero).times_counted("a counter");
        assert_eq!(remark(&should(), &once), None);
        let wrong = [
            (should(), &[][..]),
            (should(), &twice[..]),
            (should().times(6), &once[..]),
            (should().hint(Cause::IdleTimeout), &once[..]),
            (should().follows(Cause::FdExhausted), &once[..]),
            (should().says("tcptrace.peer.pid", 35), &once[..]),
            (named(Cause::ResetByPeer), &once[..]),
        ];
        for (named, records) in wrong {
            assert!(remark(&named, records).is_some(), "{:?}", named.says);
        }
        let mut nobody = should();
        nobody.process = None;
        assert!(remark(&nobody, &once).is_some());
        let mut peer = should();
        peer.peer = Some(34);
        assert_eq!(remark(&peer, &once), None);
        assert_eq!(remark(&should().follows(Cause::LingerZero), &once), None);
    }
}
