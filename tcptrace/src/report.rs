//! A report: what recordings hold, gathered in bounded memory, on one page for the ticket of an incident.

mod chart;
mod findings;
mod html;
mod markdown;
mod rows;
mod scale;
mod words;

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;

use bytes::Bytes;

use crate::diagnose;
use crate::event::{Event, Kind, Loss, Socket, SocketId, Suppressed, Timestamp};
use crate::replay::Counts;
use crate::sink::{Context, Error, Sink};
use findings::Findings;
use rows::{ListenerRow, Notes, ProcessRow, Rows};
use scale::Scale;

/// Connections in CLOSE_WAIT that are known again when they are told of again.
const STUCK: usize = 65_536;

/// What a report tells, as far as it has been read.
#[derive(Debug)]
pub struct Report {
    from: Option<Timestamp>,
    scale: Scale,
    events: u64,
    findings: Findings,
    processes: Rows<(u16, u32), ProcessRow>,
    listeners: Rows<(u16, u32, SocketAddr), ListenerRow>,
    stuck: HashSet<(u16, SocketId)>,
    /// Tellings of connections in CLOSE_WAIT that had no room there.
    stuck_beyond: u64,
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
            stuck: HashSet::new(),
            stuck_beyond: 0,
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
        let is_new = self.is_new(event);
        let key = (event.id.run(), process.pid);
        let row = self.processes.row(key, || ProcessRow::new(event, process));
        if let Some(row) = row {
            row.take(event, process, is_new, &self.scale);
        }
    }

    /// It is not the second telling of a connection in CLOSE_WAIT.
    fn is_new(&mut self, event: &Event) -> bool {
        let (Kind::CloseWaitStuck(wait), Some(socket)) = (&event.kind, &event.socket) else {
            return true;
        };
        let connection = (event.id.run(), socket.id);
        if wait.at_start || self.stuck.contains(&connection) {
            return wait.at_start;
        }
        if self.stuck.len() == STUCK {
            self.stuck_beyond += 1;
            return false;
        }
        self.stuck.insert(connection)
    }

    fn listener(&mut self, event: &Event, socket: &Socket) -> Option<&mut ListenerRow> {
        let (run, flow) = (event.id.run(), &socket.flow);
        let row = self.listeners.row((run, flow.netns, flow.local), || {
            ListenerRow::new(run, flow)
        })?;
        if event.owner.confidence >= row.owner.confidence {
            row.owner = event.owner.clone();
        }
        Some(row)
    }

    /// Processes, those that most happened to first.
    fn processes(&self) -> Vec<&ProcessRow> {
        let mut rows: Vec<_> = self.processes.rows.values().collect();
        rows.sort_by_key(|row| (Reverse(row.events), row.run, row.process.pid));
        rows
    }

    /// Listeners, those that lost most first.
    fn listeners(&self) -> Vec<&ListenerRow> {
        let mut rows: Vec<_> = self.listeners.rows.iter().collect();
        rows.sort_by_key(|(key, row)| (Reverse((row.overflows, row.syns)), **key));
        rows.into_iter().map(|(_, row)| row).collect()
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

#[cfg(test)]
mod tests;
