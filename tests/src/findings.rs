//! What a trace explained: its findings, and how a test asks that there be this one and no other.

use std::fmt;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Events, Record};

/// One finding of a trace, from its first telling to its last.
#[derive(Clone)]
pub struct Finding {
    /// As it was first told.
    pub first: Record,
    /// As it was last told: its count is the true one.
    pub last: Record,
    /// The events it rests on, as far as it names them.
    pub evidence: Vec<Record>,
}

/// For the message of a test that fails: the finding and its evidence as they are in the stream.
impl fmt::Debug for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{}", self.last.0)?;
        let mut evidence = self.evidence.iter();
        evidence.try_for_each(|event| write!(f, "\n    {}", event.0))
    }
}

impl Finding {
    /// Its id, which others carry as `tcptrace.caused_by`.
    #[must_use]
    pub fn id(&self) -> &str {
        self.last.text("tcptrace.finding.id").unwrap_or_default()
    }

    /// Its cause.
    #[must_use]
    pub fn cause(&self) -> &str {
        self.last.text("tcptrace.cause").unwrap_or_default()
    }

    /// What may be behind the cause.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.last.text("tcptrace.finding.hint")
    }

    /// The process it names; 0 for none.
    #[must_use]
    pub fn pid(&self) -> u32 {
        pid(self.last.pid())
    }

    /// The process at the other end; 0 for none.
    #[must_use]
    pub fn peer(&self) -> u32 {
        pid(self.last.number("tcptrace.peer.pid"))
    }

    /// How many failures it stands for.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.last
            .number("tcptrace.finding.count")
            .unwrap_or_default()
    }

    /// `INFO`, `WARN` or `ERROR`.
    #[must_use]
    pub fn severity(&self) -> &str {
        let severity = self.last.0.get("severity_text");
        severity.and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether this errno is among those programs got from it.
    #[must_use]
    pub fn has_error(&self, errno: &str) -> bool {
        let errors = self.last.get("tcptrace.finding.errors");
        errors.is_some_and(|errors| errors.to_string().contains(errno))
    }

    /// All it says to a person, in one string.
    #[must_use]
    pub fn text(&self) -> String {
        let parts = ["title", "why", "fix", "ruled_out"];
        let parts = parts.map(
            |part| match self.last.get(&format!("tcptrace.finding.{part}")) {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => String::new(),
            },
        );
        parts.join("\n")
    }

    /// Fails unless it counts so many and its peer is this process.
    ///
    /// # Errors
    /// With the finding.
    pub fn ensure(&self, count: u64, peer: u32) -> Result<()> {
        ensure!(
            (self.count(), self.peer()) == (count, peer),
            "{count} with the peer {peer} was expected, came {} with {}: {:?}",
            self.count(),
            self.peer(),
            self
        );
        Ok(())
    }

    /// Fails unless it counts so many and its peer, if it is named, is this process: one that closes at
    /// the end of the stream may be gone when its holder is looked for.
    ///
    /// # Errors
    /// With the finding.
    pub fn ensure_unless_gone(&self, count: u64, peer: u32) -> Result<()> {
        match self.peer() {
            0 => self.ensure(count, 0),
            _ => self.ensure(count, peer),
        }
    }
}

fn pid(number: Option<u64>) -> u32 {
    number.and_then(|pid| pid.try_into().ok()).unwrap_or(0)
}

/// Every finding, in the order of their first telling.
///
/// # Errors
/// When one has no first telling, or rests on an event that is not in the stream.
pub fn findings(events: &Events) -> Result<Vec<Finding>> {
    let mut findings: Vec<Finding> = vec![];
    for record in events.named("finding").0 {
        let id = |record: &Record| record.text("tcptrace.finding.id").map(str::to_owned);
        let told = findings.iter_mut().find(|it| id(&it.first) == id(&record));
        if let Some(finding) = told {
            finding.last = record;
        } else {
            ensure!(
                record.number("tcptrace.finding.update") == Some(0),
                "an update of a finding that was not told: {}",
                record.0
            );
            findings.push(Finding {
                first: record.clone(),
                last: record,
                evidence: vec![],
            });
        }
    }
    for finding in &mut findings {
        finding.evidence = evidence(events, &finding.last)?;
    }
    Ok(findings)
}

/// The one finding there must be, of this cause and this process. 0 is nobody.
///
/// # Errors
/// When it is not there or another one is, with all findings and all events.
pub fn only_finding(events: &Events, cause: &str, pid: u32) -> Result<Finding> {
    let mut found = exact_findings(events, &[(cause, pid)])?;
    found.pop().context("one was asked for")
}

/// The findings there must be, each a cause and a process, in this order whatever that of their
/// telling.
///
/// # Errors
/// When one is not there or another one is, with all findings and all events.
pub fn exact_findings(events: &Events, wanted: &[(&str, u32)]) -> Result<Vec<Finding>> {
    let findings = findings(events)?;
    let mut left = findings.clone();
    let mut found = vec![];
    for (cause, pid) in wanted {
        let index = left
            .iter()
            .position(|it| (it.cause(), it.pid()) == (*cause, *pid));
        found.extend(index.map(|index| left.remove(index)));
    }
    ensure!(
        left.is_empty() && found.len() == wanted.len(),
        "{wanted:?} were expected, and these findings came:\n{findings:#?}\nfrom these events:\n{}",
        events
            .only(|record| !["finding", "coverage", "summary"].contains(&record.name()))
            .0
            .iter()
            .map(|record| record.0.to_string())
            .collect::<Vec<_>>()
            .join("\n")
    );
    Ok(found)
}

/// Fails when anything was found.
///
/// # Errors
/// With all findings and all events.
pub fn no_finding(events: &Events) -> Result<()> {
    exact_findings(events, &[]).map(drop)
}

/// At most one finding, of normal life: of severity `INFO`.
///
/// # Errors
/// When there are more, or one is graver.
pub fn normal_life(events: &Events) -> Result<Option<Finding>> {
    let mut findings = findings(events)?;
    let grave = findings.iter().any(|finding| finding.severity() != "INFO");
    if findings.len() > 1 || grave {
        exact_findings(events, &[("at most one of severity INFO", 0)])?;
    }
    Ok(findings.pop())
}

/// What a finding rests on, which must all be in the stream.
fn evidence(events: &Events, finding: &Record) -> Result<Vec<Record>> {
    let ids = finding.get("tcptrace.finding.evidence");
    let ids = ids.and_then(Value::as_array).into_iter().flatten();
    ids.map(|id| {
        let is_it = |event: &&Record| event.get("tcptrace.event.id") == Some(id);
        let event = events.0.iter().find(is_it);
        event
            .cloned()
            .with_context(|| format!("{id} is evidence and no event of the stream: {}", finding.0))
    })
    .collect()
}
