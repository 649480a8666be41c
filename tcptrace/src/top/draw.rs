//! The screen: a status line, the three panes or what covers them, and a line of keys. A pure function of
//! the view and of what is chosen.

mod detail;
mod findings;
mod listeners;
mod processes;
mod table;

use std::fmt;

use jiff::tz::TimeZone;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};

use super::model::View;
use super::theme::{Theme, Tone};
use super::ui::{Cover, Pane, Row, Ui};
use crate::event::{Count, Millis, Timestamp};
use table::fitted;

/// What does not change while it runs.
#[derive(Clone, Debug)]
pub struct Title {
    /// This host, or the recording and its pace.
    pub subject: String,
    /// Zone of the times.
    pub zone: TimeZone,
    /// What is seen is a recording: nobody can be asked about it.
    pub replayed: bool,
}

impl Title {
    /// In local time.
    #[must_use]
    pub fn new(subject: String, replayed: bool) -> Self {
        Self {
            subject,
            zone: TimeZone::system(),
            replayed,
        }
    }

    fn time(&self, time: Timestamp) -> impl fmt::Display + use<> {
        // Every number of nanoseconds in 64 bits is a time jiff knows.
        let time = jiff::Timestamp::from_nanosecond(i128::from(time.0)).unwrap_or_default();
        let local = self.zone.to_datetime(time);
        let (hour, minute, second) = (local.hour(), local.minute(), local.second());
        fmt::from_fn(move |f| write!(f, "{hour:02}:{minute:02}:{second:02}"))
    }
}

/// What drawing needs to know.
#[derive(Clone, Copy)]
struct Scene<'a> {
    view: &'a View,
    title: &'a Title,
    theme: Theme,
}

/// Fewer columns or rows show nothing useful.
const SMALLEST: (u16, u16) = (40, 8);

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, ui: &mut Ui, title: &Title, theme: Theme) {
    let area = frame.area();
    let scene = Scene { view, title, theme };
    let buffer = frame.buffer_mut();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let text = format!("{} x {} at least", SMALLEST.0, SMALLEST.1);
        buffer.set_stringn(area.x, area.y, text, area.width.into(), Style::new());
        return;
    }
    let [first, middle, last] = [
        Rect { height: 1, ..area },
        Rect {
            y: area.y + 1,
            height: area.height - 2,
            ..area
        },
        Rect {
            y: area.bottom() - 1,
            height: 1,
            ..area
        },
    ];
    scene.status(buffer, first, ui);
    match ui.cover {
        Cover::None => scene.panes(buffer, middle, ui),
        Cover::Help => scene.text(buffer, middle, ui, &detail::help(scene)),
        Cover::Detail(row) => {
            let lines = detail::of(scene, row, middle.width.into());
            scene.text(buffer, middle, ui, &lines);
        }
    }
    scene.keys(buffer, last, ui);
}

impl Scene<'_> {
    fn status(self, buffer: &mut Buffer, area: Rect, ui: &Ui) {
        let view = self.view;
        let up = Millis(view.now.0.saturating_sub(view.began.0) / 1_000_000);
        let seen = view.coverage.iter().filter(|it| it.way.is_some()).count();
        let all = view.coverage.len();
        let paused = if ui.paused { "PAUSED  " } else { "" };
        let lost = if view.lost > 0 { " LOST" } else { " lost" };
        let text = format!(
            "{paused}{}  {}  up {up}  {}, {}/s  {}{lost}  {seen}/{all} signals",
            self.title.subject,
            self.title.time(view.now),
            Count(view.taken, "event"),
            table::rate(view.events.rate()),
            view.lost,
        );
        let tone = if view.lost > 0 {
            Tone::Bad
        } else {
            Tone::Heading
        };
        let text = fitted(&text, area.width.into(), self.theme);
        buffer.set_string(area.x, area.y, text, self.theme.style(tone));
    }

    fn keys(self, buffer: &mut Buffer, area: Rect, ui: &Ui) {
        let scroll = self.theme.symbol("↑↓", "jk");
        let text = if ui.typing {
            format!("/{}_   Enter keeps it, Esc clears it", ui.filter)
        } else if ui.cover != Cover::None {
            format!("{scroll} scroll  Esc back  p pause  ? help")
        } else {
            let order = ui.pane.orders()[ui.order[ui.pane as usize]];
            let filter = match ui.filter.as_str() {
                "" => "/ filter".to_owned(),
                filter => format!("filter: {filter} (Esc clears)"),
            };
            format!("Tab pane  Enter detail  {filter}  s order: {order}  p pause  ? help  q quit")
        };
        let text = fitted(&text, area.width.into(), self.theme);
        buffer.set_string(area.x, area.y, text, self.theme.style(Tone::Faint));
    }

    fn panes(self, buffer: &mut Buffer, area: Rect, ui: &mut Ui) {
        let rows = Pane::ALL.map(|pane| ui.rows(self.view, pane));
        let heights = heights(area.height, rows.each_ref().map(Vec::len));
        let mut y = area.y;
        for ((pane, rows), height) in Pane::ALL.into_iter().zip(rows).zip(heights) {
            let area = Rect { y, height, ..area };
            y += height;
            self.pane(buffer, area, ui, pane, &rows);
        }
    }

    fn pane(self, buffer: &mut Buffer, area: Rect, ui: &mut Ui, pane: Pane, rows: &[Row]) {
        let shown = usize::from(area.height.saturating_sub(1));
        let chosen = ui.place(rows, pane);
        let top = &mut ui.top[pane as usize];
        // The chosen row is in sight, and no space is left below the last one.
        *top = (*top)
            .min(chosen.unwrap_or(0))
            .max(chosen.map_or(0, |it| (it + 1).saturating_sub(shown)))
            .min(rows.len().saturating_sub(shown));
        let top = *top;
        let focused = ui.pane == pane;
        if focused {
            ui.page = shown;
        }
        let width = area.width;
        let columns = match pane {
            Pane::Processes => processes::columns(width),
            Pane::Listeners => listeners::columns(width),
            Pane::Findings => findings::columns(width),
        };
        let more = rows.len().saturating_sub(shown);
        let heading = table::Heading {
            focused,
            // How many rows there are that have no room.
            rest: (more > 0).then(|| format!("{}-{} of {}", top + 1, top + shown, rows.len())),
        };
        table::heading(buffer, area, self.theme, &columns, &heading);
        for (nth, &it) in rows.iter().enumerate().skip(top).take(shown) {
            let y = area.y + 1 + u16::try_from(nth - top).unwrap_or(0);
            let line = Rect {
                y,
                height: 1,
                ..area
            };
            let cells = match it {
                Row::Process(pid) => processes::row(self, pid, width),
                Row::Listener(place) => listeners::row(self, place, width),
                Row::Finding(id) => findings::row(self, id, width),
            };
            table::line(
                buffer,
                line,
                self.theme,
                &columns,
                &cells.unwrap_or_default(),
            );
            if focused && chosen == Some(nth) {
                let mark = self.theme.symbol("▸", ">");
                buffer.set_string(line.x, y, mark, Style::new());
                buffer.set_style(line, Style::new().add_modifier(Modifier::REVERSED));
            }
        }
        if rows.is_empty() && shown > 0 {
            let text = match pane {
                _ if !ui.filter.is_empty() => "nothing holds the filter",
                Pane::Processes => "no resets, no errors, no leaks",
                Pane::Listeners if self.title.replayed => "no queue was full",
                Pane::Listeners => "nobody listens",
                Pane::Findings => "nothing was found wrong",
            };
            let style = self.theme.style(Tone::Faint);
            buffer.set_stringn(area.x + 1, area.y + 1, text, usize::from(width) - 1, style);
        }
    }

    /// Lines, from where they are scrolled to.
    fn text(self, buffer: &mut Buffer, area: Rect, ui: &mut Ui, lines: &[detail::Line]) {
        ui.page = area.height.into();
        ui.scroll = ui.scroll.min(lines.len().saturating_sub(ui.page));
        let shown = lines.iter().skip(ui.scroll);
        for (y, (text, tone)) in (area.y..area.bottom()).zip(shown) {
            let text = fitted(text, area.width.into(), self.theme);
            buffer.set_string(area.x, y, text, self.theme.style(*tone));
        }
    }
}

/// How many lines each pane gets, its heading included: what it needs, but not more than its share while
/// another one needs more. What nobody needs is the last one's.
fn heights(height: u16, rows: [usize; 3]) -> [u16; 3] {
    let shares = [height * 7 / 20, height * 6 / 20];
    let shares = [shares[0], shares[1], height - shares[0] - shares[1]];
    let needs = rows.map(|rows| {
        u16::try_from(rows.max(1))
            .unwrap_or(u16::MAX)
            .saturating_add(1)
    });
    let mut heights = [0, 1, 2].map(|nth| needs[nth].min(shares[nth]));
    let mut left = height - heights.iter().sum::<u16>();
    for nth in 0..3 {
        let more = (needs[nth] - heights[nth]).min(left);
        heights[nth] += more;
        left -= more;
    }
    heights[2] += left;
    heights
}

#[cfg(test)]
mod tests;
