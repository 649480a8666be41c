//! What the person at the keys has chosen: pane, row, order, filter, detail. Keys change it; it knows no
//! terminal.

use std::cmp::Reverse;
use std::fmt::{self, Write as _};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::model::{Descriptors, Found, Listener, Pid, Place, Process, View};
use crate::event::{End, EventId};

/// A part of the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pane {
    #[default]
    Processes,
    Listeners,
    Findings,
}

impl Pane {
    pub(super) const ALL: [Self; 3] = [Self::Processes, Self::Listeners, Self::Findings];

    fn next(self, back: bool) -> Self {
        let step = if back { 2 } else { 1 };
        Self::ALL[(self as usize + step) % 3]
    }

    /// Its orders, the usual one first.
    pub(super) fn orders(self) -> &'static [&'static str] {
        match self {
            Self::Processes => &["trouble", "resets", "errors", "CLOSE_WAIT", "fds", "name"],
            Self::Listeners => &["fullest", "lost", "accepts", "address"],
            Self::Findings => &["newest", "count", "gravest"],
        }
    }
}

/// A row, whatever place it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    Process(Pid),
    Listener(Place),
    /// By the id of its first record.
    Finding(EventId),
}

/// What covers the panes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Cover {
    #[default]
    None,
    Help,
    Detail(Row),
}

/// What a key asks of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Draw.
    Draw,
    /// Go on without a change.
    Nothing,
    /// Stop the process until somebody continues it.
    Suspend,
    /// End.
    Quit,
}

/// What is chosen.
#[derive(Clone, Debug, Default)]
pub(super) struct Ui {
    pub(super) pane: Pane,
    /// The row in each pane.
    pub(super) chosen: [Option<Row>; 3],
    /// The first row shown in each pane.
    pub(super) top: [usize; 3],
    /// The order in each pane, in [`Pane::orders`].
    pub(super) order: [usize; 3],
    /// Rows shown hold this.
    pub(super) filter: String,
    /// The filter is being written.
    pub(super) typing: bool,
    pub(super) paused: bool,
    pub(super) cover: Cover,
    /// Lines of the cover above the screen.
    pub(super) scroll: usize,
    /// Rows or lines on a page, as it was last drawn.
    pub(super) page: usize,
}

impl Ui {
    /// Takes a key.
    pub(super) fn key(&mut self, key: KeyEvent, view: &View) -> Action {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return Action::Quit,
            KeyCode::Char('z') if control => return Action::Suspend,
            KeyCode::Char('l') if control => return Action::Draw,
            _ if self.typing => return self.type_in(key.code),
            _ => {}
        }
        let page = isize::try_from(self.page.max(2) - 1).unwrap_or(isize::MAX);
        match key.code {
            KeyCode::Down | KeyCode::Char('j') => self.step(view, 1),
            KeyCode::Up | KeyCode::Char('k') => self.step(view, -1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.step(view, page),
            KeyCode::Char('f' | 'd') if control => self.step(view, page),
            KeyCode::PageUp => self.step(view, -page),
            KeyCode::Char('b' | 'u') if control => self.step(view, -page),
            KeyCode::Home | KeyCode::Char('g') => self.step(view, isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.step(view, isize::MAX),
            KeyCode::Char('?') | KeyCode::F(1) => self.cover(Cover::Help),
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Char('q') if self.cover == Cover::None => return Action::Quit,
            KeyCode::Char('q' | 'h') | KeyCode::Esc | KeyCode::Left | KeyCode::Backspace
                if self.cover != Cover::None =>
            {
                self.cover(Cover::None);
            }
            // What follows is about the panes.
            _ if self.cover != Cover::None => return Action::Nothing,
            KeyCode::Tab => self.pane = self.pane.next(false),
            KeyCode::BackTab => self.pane = self.pane.next(true),
            KeyCode::Char(digit @ '1'..='3') => {
                self.pane = Pane::ALL[digit as usize - '1' as usize];
            }
            KeyCode::Char('s' | 'S') => {
                let order = &mut self.order[self.pane as usize];
                *order = (*order + 1) % self.pane.orders().len();
            }
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Enter | KeyCode::Right | KeyCode::Char('l') => {
                let rows = self.rows(view, self.pane);
                if let Some(row) = self.place(&rows, self.pane).map(|nth| rows[nth]) {
                    self.chosen[self.pane as usize] = Some(row);
                    self.cover(Cover::Detail(row));
                }
            }
            _ => return Action::Nothing,
        }
        Action::Draw
    }

    fn cover(&mut self, cover: Cover) {
        self.cover = if self.cover == cover {
            Cover::None
        } else {
            cover
        };
        self.scroll = 0;
    }

    fn type_in(&mut self, code: KeyCode) -> Action {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.typing &= self.filter.pop().is_some();
            }
            KeyCode::Char(character) if self.filter.len() < 64 => self.filter.push(character),
            _ => return Action::Nothing,
        }
        Action::Draw
    }

    fn step(&mut self, view: &View, by: isize) {
        if self.cover != Cover::None {
            // Drawing knows where the end is.
            self.scroll = self.scroll.saturating_add_signed(by);
            return;
        }
        let rows = self.rows(view, self.pane);
        let Some(now) = self.place(&rows, self.pane) else {
            return;
        };
        let next = now.saturating_add_signed(by).min(rows.len() - 1);
        self.chosen[self.pane as usize] = Some(rows[next]);
    }

    /// Where the chosen row of a pane is; the first one while none is chosen, and when it has gone.
    pub(super) fn place(&self, rows: &[Row], pane: Pane) -> Option<usize> {
        let chosen = self.chosen[pane as usize];
        let place = chosen.and_then(|chosen| rows.iter().position(|&row| row == chosen));
        place.or((!rows.is_empty()).then_some(0))
    }

    /// The rows of a pane in their order, those that the filter leaves.
    pub(super) fn rows(&self, view: &View, pane: Pane) -> Vec<Row> {
        let order = self.order[pane as usize];
        let wanted = self.filter.to_lowercase();
        let holds = |text: &dyn Fn() -> String| {
            wanted.is_empty() || text().to_lowercase().contains(&wanted)
        };
        match pane {
            Pane::Processes => {
                let shown = view.processes.iter();
                let shown = shown.filter(|(pid, it)| holds(&|| text_of_process(**pid, it)));
                let mut shown: Vec<_> = shown.collect();
                // The last word is the number's, so that no two change places without a reason.
                shown.sort_by_cached_key(|&(pid, it)| (process_rank(order, it), *pid));
                shown
                    .into_iter()
                    .map(|(pid, _)| Row::Process(*pid))
                    .collect()
            }
            Pane::Listeners => {
                let shown = view.listeners.iter();
                let shown = shown.filter(|(place, it)| holds(&|| text_of_listener(place, it)));
                let mut shown: Vec<_> = shown.collect();
                shown.sort_by_cached_key(|&(place, it)| (listener_rank(order, it), *place));
                shown
                    .into_iter()
                    .map(|(place, _)| Row::Listener(*place))
                    .collect()
            }
            Pane::Findings => {
                let shown = view.findings.iter().rev();
                let shown = shown.filter(|it| holds(&|| text_of_finding(it)));
                let mut shown: Vec<_> = shown.filter_map(|it| Some((it, it.finding()?))).collect();
                // The newest first in each of the others, too: the sort is stable.
                match order {
                    1 => shown.sort_by_key(|(_, it)| Reverse(it.count)),
                    2 => shown.sort_by_key(|(_, it)| Reverse(it.severity)),
                    _ => {}
                }
                shown
                    .into_iter()
                    .map(|(_, it)| Row::Finding(it.id))
                    .collect()
            }
        }
    }
}

/// By what processes are put in order: the least comes first.
fn process_rank(order: usize, it: &Process) -> (Reverse<u64>, String) {
    let resets = it.resets_sent + it.resets_received;
    let percent = it.fds.map_or(0, Descriptors::percent);
    let number = match order {
        1 => resets,
        2 => it.all_errors(),
        3 => it.close_wait,
        4 => percent,
        5 => return (Reverse(0), it.comm.to_string()),
        _ if it.gone => 0,
        // What it holds, what failed, and how near it is to its limit.
        _ => {
            let short = if percent >= 90 { 1_000_000 } else { 0 };
            short
                + it.close_wait * 100
                + (resets + it.all_errors() + it.timeouts) * 10
                + it.findings
        }
    };
    (Reverse(number), String::new())
}

fn listener_rank(order: usize, it: &Listener) -> (bool, Reverse<u64>) {
    let number = match order {
        1 => it.lost,
        2 => it.accepted.unwrap_or_default(),
        3 => 0,
        _ => it.fullness().saturating_mul(1 << 32) + it.lost.min(u32::MAX.into()),
    };
    (it.gone && order != 3, Reverse(number))
}

/// Writing to a String does not fail.
fn text(write: impl FnOnce(&mut String) -> fmt::Result) -> String {
    let mut text = String::new();
    let _ = write(&mut text);
    text
}

fn text_of_process(pid: Pid, it: &Process) -> String {
    text(|text| {
        write!(text, "{}[{}]", it.comm, pid.pid)?;
        for (errno, _) in &it.errors {
            write!(text, " {errno}")?;
        }
        for (flow, _) in &it.close_wait_flows {
            write!(text, " {flow}")?;
        }
        Ok(())
    })
}

fn text_of_listener(place: &Place, it: &Listener) -> String {
    text(|text| {
        write!(text, "{} {}", End(place.address), place.netns)?;
        match it.owner {
            Some((pid, comm)) => write!(text, " {comm}[{}]", pid.pid),
            None => Ok(()),
        }
    })
}

fn text_of_finding(it: &Found) -> String {
    text(|text| {
        if let Some(finding) = it.finding() {
            write!(text, "{} {}", finding.cause.as_str(), finding.title)?;
        }
        if let Some(process) = &it.event.owner.process {
            write!(text, " {process}")?;
        }
        match &it.event.socket {
            Some(socket) => write!(text, " {}", socket.flow),
            None => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests;
