//! A report: what recordings hold, gathered in bounded memory, on one page for the ticket of an incident.

mod chart;
mod findings;
mod html;
mod markdown;
mod scale;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Write as _};
use std::hash::Hash;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;

use bytes::Bytes;

use crate::diagnose;
use crate::event::{
    Cause, Count, End, Event, EventId, Finding, Kind, Loss, Micros, Millis, Overflow, OverflowPath,
    Owner, Process, Severity, Socket, Suppressed, SynQueue, Timestamp,
};
use crate::explain::Topic;
use crate::replay::Counts;
use crate::sink::text::printable;
use crate::sink::{Context, Error, Sink};
use findings::{Findings, Told, Total};
use scale::{Scale, Series};

/// Processes, and listeners, that are counted one by one: the first that come up.
const ROWS: usize = 512;
/// Signals, hooks and names that are told of one by one.
const NOTES: usize = 128;
/// Errors of a process that are told apart.
const ERRORS: usize = 16;

/// What a report tells, as far as it has been read.
#[derive(Debug)]
pub struct Report {
    from: Option<Timestamp>,
    scale: Scale,
    events: u64,
    findings: Findings,
    processes: Rows<(u16, u32), ProcessRow>,
    listeners: Rows<(u16, u32, SocketAddr), ListenerRow>,
    /// What was seen, and through what, with the runs it is so in.
    coverage: Notes<Signal>,
    /// What was lost, by where and why.
    lost: Notes<(String, &'static str)>,
    dropped: Notes<(String, &'static str)>,
    suppressed: Notes<(&'static str, &'static str)>,
}

/// Where a report is from.
#[derive(Debug)]
pub struct Source<'a> {
    /// The files that were read.
    pub files: &'a [PathBuf],
    /// The part of the time that was asked for.
    pub asked: (Option<Timestamp>, Option<Timestamp>),
    /// Their runs, by [`EventId::run`](crate::event::EventId::run).
    pub contexts: &'a [Context],
    /// The versions of tcptrace that recorded.
    pub versions: Vec<&'a str>,
    /// What was read.
    pub counts: Counts,
}

/// A signal, what it was seen through, and what that leaves out.
type Signal = (String, Option<String>, Option<String>);

/// What is counted by `K`, as far as there is room.
#[derive(Debug)]
struct Rows<K, V> {
    rows: HashMap<K, V>,
    /// Events that are in no row.
    beyond: u64,
}

/// Numbers by what they are of, as far as there is room.
#[derive(Debug)]
struct Notes<K> {
    notes: BTreeMap<K, u64>,
    /// Numbers that are in no note.
    beyond: u64,
}

/// What happened to a process.
#[derive(Debug)]
struct ProcessRow {
    process: Process,
    run: u16,
    events: u64,
    sent: u64,
    received: u64,
    stuck: u64,
    /// RSTs over time.
    resets: Series<Reset>,
    /// Connections that stayed in CLOSE_WAIT, when their peers had closed.
    leaked: Series<()>,
    /// Failed calls by error.
    errors: BTreeMap<String, u64>,
}

/// Which way a RST went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reset {
    Sent,
    Received,
}

/// What happened to a listener.
#[derive(Debug)]
struct ListenerRow {
    at: String,
    run: u16,
    owner: Owner,
    /// Times the accept queue was found full.
    overflows: u64,
    /// SYNs dropped or answered with cookies.
    syns: u64,
    /// The longest the queue was.
    longest: Option<u32>,
    /// The queue's last limit.
    limit: Option<u32>,
    backlog: Option<u32>,
    queue: Series<Queue>,
    lost: Series<&'static str>,
}

/// Numbers of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Queue {
    Length,
    Limit,
}

impl Report {
    /// Nothing read yet; of before `from` only coverage will come.
    #[must_use]
    pub fn new(from: Option<Timestamp>) -> Self {
        Self {
            from,
            scale: Scale::default(),
            events: 0,
            findings: Findings::new(),
            processes: Rows::new(),
            listeners: Rows::new(),
            coverage: Notes::new(),
            lost: Notes::new(),
            dropped: Notes::new(),
            suppressed: Notes::new(),
        }
    }

    /// Findings so far, each counted once.
    #[must_use]
    pub fn findings(&self) -> u64 {
        self.findings.totals().iter().map(|it| it.findings).sum()
    }

    /// The page for a browser.
    #[must_use]
    pub fn html(&self, source: &Source<'_>) -> String {
        html::page(self, source).into_string()
    }

    /// The text for a ticket.
    #[must_use]
    pub fn markdown(&self, source: &Source<'_>) -> String {
        markdown::text(self, source)
    }

    /// Takes an event, or a finding after the events it rests on.
    pub fn take(&mut self, event: &Event) {
        if let Kind::Finding(finding) = &event.kind {
            self.findings.take(event, finding, &self.scale);
            return;
        }
        if self.from.is_none_or(|from| event.time >= from) {
            self.scale.see(event.time);
        }
        match &event.kind {
            Kind::Coverage(coverage) => {
                let (way, note) = (coverage.way.clone(), coverage.note.clone());
                let signal = coverage.signal.clone().into_owned();
                self.coverage.add((signal, way, note), 1);
            }
            Kind::EventsLost(Loss {
                hook,
                count,
                reason,
            }) => self.lost.add((hook.clone(), reason), *count),
            Kind::ExportDropped(dropped) => {
                let of = (dropped.to.clone(), dropped.reason);
                self.dropped.add(of, dropped.count);
            }
            Kind::EventsSuppressed(Suppressed {
                name, cause, count, ..
            }) => {
                let cause = cause.map_or("", diagnose::Cause::as_str);
                self.suppressed.add((name, cause), *count);
            }
            _ => {
                self.events += 1;
                self.findings.witness(event);
                self.count(event);
            }
        }
    }

    fn count(&mut self, event: &Event) {
        match (&event.kind, &event.socket) {
            (Kind::AcceptQueueOverflow(overflow), Some(socket)) => {
                let scale = self.scale;
                if let Some(row) = self.listener(event, socket) {
                    row.overflow(event.time, overflow, &scale);
                }
            }
            (Kind::SynQueueOverflow(queue), Some(socket)) => {
                let scale = self.scale;
                if let Some(row) = self.listener(event, socket) {
                    row.flood(event.time, queue, &scale);
                }
            }
            _ => {}
        }
        let is_counted = matches!(
            event.kind,
            Kind::ResetSent(_)
                | Kind::ResetReceived(_)
                | Kind::CloseWaitStuck(_)
                | Kind::SocketError(_)
                | Kind::ConnectFailed(_)
                | Kind::FdExhausted(_)
                | Kind::FdInvalid(_)
        );
        let Some(process) = event.owner.process.as_ref().filter(|_| is_counted) else {
            return;
        };
        let key = (event.id.run(), process.pid);
        let row = self.processes.row(key, || ProcessRow::new(event, process));
        if let Some(row) = row {
            row.take(event, process, &self.scale);
        }
    }

    fn listener(&mut self, event: &Event, socket: &Socket) -> Option<&mut ListenerRow> {
        let (run, flow) = (event.id.run(), &socket.flow);
        let row = self.listeners.row((run, flow.netns, flow.local), || {
            let at = match flow.local {
                local if local.port() != 0 => End(local).to_string(),
                _ => format!("some listener of namespace {}", flow.netns),
            };
            ListenerRow {
                at,
                run,
                owner: Owner::default(),
                overflows: 0,
                syns: 0,
                longest: None,
                limit: None,
                backlog: None,
                queue: Series::of_peaks(),
                lost: Series::of_sums(),
            }
        })?;
        if event.owner.confidence >= row.owner.confidence {
            row.owner = event.owner.clone();
        }
        Some(row)
    }

    /// Processes, those that most happened to first.
    fn processes(&self) -> Vec<&ProcessRow> {
        let mut rows: Vec<_> = self.processes.rows.values().collect();
        rows.sort_by_key(|row| (std::cmp::Reverse(row.events), row.run, row.process.pid));
        rows
    }

    /// Listeners, those that lost most first.
    fn listeners(&self) -> Vec<&ListenerRow> {
        let mut rows: Vec<_> = self.listeners.rows.iter().collect();
        rows.sort_by_key(|(key, row)| (std::cmp::Reverse((row.overflows, row.syns)), **key));
        rows.into_iter().map(|(_, row)| row).collect()
    }
}

/// The words that every form of a report has.
impl Report {
    /// What it comes to, in one sentence.
    fn headline(&self) -> String {
        let totals = self.findings.totals();
        let (harmless, grave): (Vec<_>, Vec<_>) = totals
            .iter()
            .partition(|total| total.severity == Severity::Info);
        let failures = grave.iter().map(|total: &&Total| total.failures).sum();
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
    fn time(&self) -> String {
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
    fn losses(&self, source: &Source<'_>) -> Vec<String> {
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
    fn hosts(&self) -> BTreeSet<&str> {
        self.contexts.iter().map(|it| &*it.host_name).collect()
    }

    fn title(&self) -> String {
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
    fn on(&self, id: EventId) -> String {
        self.of_run(id.run())
    }

    fn of_run(&self, run: u16) -> String {
        let context = self.contexts.get(usize::from(run));
        match context.filter(|_| self.hosts().len() > 1) {
            Some(context) => format!(" on {}", clean(&context.host_name)),
            None => String::new(),
        }
    }

    /// An id as the stream has it.
    fn id(&self, id: EventId) -> String {
        let context = self.contexts.get(usize::from(id.run()));
        context.map_or(String::new(), |it| it.event_id(id).to_string())
    }

    /// What was read, and how.
    fn facts(&self) -> Vec<(&'static str, String)> {
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
const CAVEATS: [&str; 3] = [
    "The kernel's version and the filters of the trace are not recorded.",
    "Numbers are of what was recorded: without --event all, events that were only counted are missing, and \
     with filters those of other sockets.",
    "When a failure happened is exact to a second; when an event happened, to a nanosecond.",
];

/// What a cause means.
fn summary(cause: Cause) -> &'static str {
    let page = Topic::Cause
        .pages()
        .find(|page| page.name == cause.as_str());
    page.map_or("", |page| page.summary())
}

/// What programs got from a finding.
fn errors(finding: &Finding) -> String {
    let errors = finding.errors.iter();
    let errors = errors.map(|(errno, count)| format!("{count} {errno}"));
    errors.collect::<Vec<_>>().join(", ")
}

/// How many events a finding rests on.
fn rests_on(finding: &Finding) -> String {
    let count = Count(finding.evidence.len() as u64, "event");
    if finding.evidence.len() == Finding::EVIDENCE {
        format!("{count}, the first and the last of more")
    } else {
        count.to_string()
    }
}

impl Sink for Rc<RefCell<Report>> {
    fn write(&mut self, event: &Event, _: &Bytes) -> Result<(), Error> {
        self.borrow_mut().take(event);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

impl<K: Eq + Hash, V> Rows<K, V> {
    fn new() -> Self {
        Self {
            rows: HashMap::new(),
            beyond: 0,
        }
    }

    fn row(&mut self, key: K, new: impl FnOnce() -> V) -> Option<&mut V> {
        if self.rows.len() == ROWS && !self.rows.contains_key(&key) {
            self.beyond += 1;
            return None;
        }
        Some(self.rows.entry(key).or_insert_with(new))
    }
}

impl<K: Ord> Notes<K> {
    fn new() -> Self {
        Self {
            notes: BTreeMap::new(),
            beyond: 0,
        }
    }

    fn add(&mut self, key: K, number: u64) {
        let is_full = self.notes.len() == NOTES && !self.notes.contains_key(&key);
        let place = if is_full {
            &mut self.beyond
        } else {
            self.notes.entry(key).or_insert(0)
        };
        *place = place.saturating_add(number);
    }

    fn total(&self) -> u64 {
        let all = self.notes.values().copied();
        all.fold(self.beyond, u64::saturating_add)
    }
}

impl ProcessRow {
    fn new(event: &Event, process: &Process) -> Self {
        Self {
            process: process.clone(),
            run: event.id.run(),
            events: 0,
            sent: 0,
            received: 0,
            stuck: 0,
            resets: Series::of_sums(),
            leaked: Series::of_sums(),
            errors: BTreeMap::new(),
        }
    }

    fn take(&mut self, event: &Event, process: &Process, scale: &Scale) {
        self.events += 1;
        // Its name changes with exec.
        self.process = process.clone();
        match &event.kind {
            Kind::ResetSent(_) => {
                self.sent += 1;
                self.resets.add(scale, event.time, Reset::Sent, 1);
            }
            Kind::ResetReceived(_) => {
                self.received += 1;
                self.resets.add(scale, event.time, Reset::Received, 1);
            }
            Kind::CloseWaitStuck(wait) => {
                let count = u64::from(wait.count);
                self.stuck += count;
                let begun = event
                    .time
                    .0
                    .saturating_sub(wait.age_ms.saturating_mul(1_000_000));
                // What began before the recording is there from its first moment on.
                let first = scale.period().map_or(event.time, |(first, _)| first);
                self.leaked
                    .add(scale, Timestamp(begun).max(first), (), count);
            }
            _ => {
                let error = match &event.kind {
                    Kind::ConnectFailed(connect) if connect.errno.is_none() => {
                        "connect given up".into()
                    }
                    _ => diagnose::error_type(event).unwrap_or_default(),
                };
                let error = error.into_owned();
                let is_full = self.errors.len() == ERRORS && !self.errors.contains_key(&error);
                let error = if is_full { "others".to_owned() } else { error };
                *self.errors.entry(error).or_insert(0) += 1;
            }
        }
    }

    /// Failed calls by error, the most frequent first.
    fn errors(&self) -> Vec<(&str, u64)> {
        let errors = self.errors.iter();
        let mut errors: Vec<_> = errors.map(|(name, count)| (&**name, *count)).collect();
        errors.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
        errors
    }
}

impl ListenerRow {
    fn owner(&self) -> String {
        match &self.owner.process {
            Some(process) => clean(process),
            None => "not known".to_owned(),
        }
    }

    fn overflow(&mut self, time: Timestamp, overflow: &Overflow, scale: &Scale) {
        self.overflows = self.overflows.saturating_add(overflow.count);
        self.longest = self.longest.max(overflow.queue_len);
        self.limit = overflow.queue_max.or(self.limit);
        self.backlog = overflow.backlog.or(self.backlog);
        for (key, number) in [
            (Queue::Length, overflow.queue_len),
            (Queue::Limit, overflow.queue_max),
        ] {
            if let Some(number) = number {
                self.queue.add(scale, time, key, number.into());
            }
        }
        if overflow.count > 0 {
            let lost = match overflow.path {
                Some(OverflowPath::Syn) => "SYN dropped",
                Some(OverflowPath::Ack) => "final ACK dropped or answered with a RST",
                Some(OverflowPath::Cookie) => "ACK of a cookie dropped",
                None => "counted by the kernel",
            };
            self.lost.add(scale, time, lost, overflow.count);
        }
    }

    fn flood(&mut self, time: Timestamp, queue: &SynQueue, scale: &Scale) {
        self.syns = self.syns.saturating_add(queue.count);
        let lost = if queue.cookies {
            "SYN answered with a cookie"
        } else {
            "SYN dropped, handshakes half done"
        };
        self.lost.add(scale, time, lost, queue.count);
    }
}

/// Text of others without what turns or ends a line.
fn clean(text: impl fmt::Display) -> String {
    printable(text).to_string()
}

/// `2026-11-20 11:10:03.123` in UTC.
fn utc(time: Timestamp) -> String {
    moment(time, "%Y-%m-%d %H:%M:%S%.3f")
}

fn moment(time: Timestamp, format: &str) -> String {
    // Every number of nanoseconds in 64 bits is a time jiff knows.
    let time = jiff::Timestamp::from_nanosecond(i128::from(time.0)).unwrap_or_default();
    time.strftime(format).to_string()
}

/// The time between, in a person's unit.
fn between(from: Timestamp, to: Timestamp) -> String {
    match to.0.saturating_sub(from.0) / 1_000 {
        0 => "0 s".to_owned(),
        us @ 1..1_000_000 => Micros(us).to_string(),
        us => Millis(us / 1_000).to_string(),
    }
}

/// The word of a severity, in the order of a report.
fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warn => "warning",
        Severity::Info => "normal",
    }
}

#[cfg(test)]
mod tests;
