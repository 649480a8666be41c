//! A row for each process: what its connections went through, what it leaks, how near it is to its limit.

use super::Scene;
use super::table::{Cell, Column, fitted, left, right};
use crate::event::Millis;
use crate::top::model::{History, Pid, Process};
use crate::top::theme::Tone;

/// From this width on there is room for a history.
const WIDE: u16 = 110;

fn history(width: u16) -> u16 {
    /// The other columns, and errors of some sorts.
    const OTHERS: u16 = 103;
    match width {
        ..WIDE => 0,
        _ => (width - OTHERS).min(60),
    }
}

pub(super) fn columns(width: u16) -> Vec<Column> {
    let mut columns = vec![
        left("PROCESS", if width < WIDE { 18 } else { 24 }),
        right("RSTout", 6),
        right("RSTin", 6),
        right("CLOSE_WAIT", 10),
        right("OLDEST", 8),
        right("FDS", 11),
    ];
    if history(width) > 0 {
        columns.push(left("EVENTS A SECOND", history(width)));
    }
    columns.push(left("ERRORS", 0));
    columns
}

pub(super) fn row(scene: Scene<'_>, pid: Pid, width: u16) -> Option<Vec<Cell>> {
    let process = scene.view.processes.get(&pid)?;
    let room = if width < WIDE { 18 } else { 24 };
    let name = if pid.pid == 0 {
        Cell::new("no process", Tone::Faint)
    } else {
        let number = format!("[{}]", pid.pid);
        let comm = process.comm.to_string();
        let comm = fitted(&comm, room - number.len().min(room), scene.theme);
        let tone = if process.gone {
            Tone::Faint
        } else {
            Tone::Name
        };
        Cell::new(format!("{comm}{number}"), tone)
    };
    let mut cells = vec![
        name,
        Cell::count(process.resets_sent, Tone::Bad),
        Cell::count(process.resets_received, Tone::Bad),
        Cell::count(process.close_wait, Tone::Warn),
        oldest(scene, process),
        fds(process),
    ];
    if history(width) > 0 {
        let events = process.events.last(history(width).into());
        let most = process.events.last(History::SECONDS).max().unwrap_or(0);
        cells.push(Cell::plain(scene.theme.spark(events, most)));
    }
    cells.push(errors(process));
    Some(cells)
}

fn oldest(scene: Scene<'_>, process: &Process) -> Cell {
    let Some(since) = process.close_wait_since.filter(|_| process.close_wait > 0) else {
        return Cell::none();
    };
    let age = scene.view.now.0.saturating_sub(since.0) / 1_000_000;
    // Of one that was there before the tracer that is the least it can be.
    let least = if process.close_wait_is_older { ">" } else { "" };
    let tone = if age >= 60_000 { Tone::Bad } else { Tone::Warn };
    Cell::new(format!("{least}{}", Millis(age)), tone)
}

fn fds(process: &Process) -> Cell {
    match process.fds {
        _ if process.gone => Cell::new("gone", Tone::Faint),
        None => Cell::none(),
        Some(fds) if fds.is_short() => Cell::new(format!("!{}/{}", fds.open, fds.limit), Tone::Bad),
        Some(fds) if fds.limit == u64::MAX => Cell::plain(fds.open.to_string()),
        Some(fds) => Cell::plain(format!("{}/{}", fds.open, fds.limit)),
    }
}

fn errors(process: &Process) -> Cell {
    let errors = process.errors.iter();
    let errors: Vec<_> = errors
        .map(|(errno, count)| format!("{errno} {count}"))
        .collect();
    if errors.is_empty() {
        return Cell::none();
    }
    Cell::new(errors.join("  "), Tone::Warn)
}
