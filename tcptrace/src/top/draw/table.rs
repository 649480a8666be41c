//! Rows of cells in columns, each cut to its width.

use std::borrow::Cow;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Modifier;
use ratatui::text::Span;

use crate::sink::text::printable;
use crate::top::theme::{Theme, Tone};

/// A column; the last one has what is left of the line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) width: u16,
    pub(super) right: bool,
}

/// Text on the left of its column.
pub(super) const fn left(name: &'static str, width: u16) -> Column {
    Column {
        name,
        width,
        right: false,
    }
}

/// A number, on the right of its column.
pub(super) const fn right(name: &'static str, width: u16) -> Column {
    Column {
        name,
        width,
        right: true,
    }
}

/// What is in a column of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) tone: Tone,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }

    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self::new(text, Tone::Plain)
    }

    /// Nothing to say.
    pub(super) fn none() -> Self {
        Self::new("-", Tone::Faint)
    }

    /// A count; none is nothing to look at.
    pub(super) fn count(count: u64, tone: Tone) -> Self {
        match count {
            0 => Self::none(),
            count => Self::new(short(count), tone),
        }
    }
}

/// The line above the rows.
pub(super) struct Heading {
    pub(super) focused: bool,
    /// Said at its end.
    pub(super) rest: Option<String>,
}

pub(super) fn heading(
    buffer: &mut Buffer,
    area: Rect,
    theme: Theme,
    columns: &[Column],
    heading: &Heading,
) {
    let names = columns.iter().map(|it| Cell::new(it.name, Tone::Heading));
    let names: Vec<_> = names.collect();
    let area = Rect { height: 1, ..area };
    line(buffer, area, theme, columns, &names);
    let style = theme.style(Tone::Heading);
    if let Some(rest) = &heading.rest {
        let width = u16::try_from(rest.len()).unwrap_or(0);
        if area.width > width {
            buffer.set_string(area.right() - width, area.y, rest, style);
        }
    }
    let mut style = style.add_modifier(Modifier::UNDERLINED);
    if heading.focused {
        style = style.add_modifier(Modifier::REVERSED);
    }
    buffer.set_style(area, style);
}

/// One row. The first cell of the line is left for the mark of the chosen one.
pub(super) fn line(
    buffer: &mut Buffer,
    area: Rect,
    theme: Theme,
    columns: &[Column],
    cells: &[Cell],
) {
    let mut x = area.x + 1;
    for (nth, (column, cell)) in columns.iter().zip(cells).enumerate() {
        let is_last = nth + 1 == columns.len();
        let room = area.right().saturating_sub(x);
        let width = if is_last {
            room
        } else {
            column.width.min(room)
        };
        let text = fitted(&cell.text, width.into(), theme);
        let used = u16::try_from(Span::raw(text.as_ref()).width()).unwrap_or(width);
        let indent = if column.right {
            width.saturating_sub(used)
        } else {
            0
        };
        buffer.set_string(x + indent, area.y, text, theme.style(cell.tone));
        x += width + 1;
        if x >= area.right() {
            break;
        }
    }
}

/// Text on one line that moves no cursor, cut to a width with a mark where it was cut.
pub(super) fn fitted(text: &str, width: usize, theme: Theme) -> Cow<'_, str> {
    let clean = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if clean && text.len() <= width {
        return Cow::Borrowed(text);
    }
    let text = printable(text).to_string();
    if Span::raw(text.as_str()).width() <= width {
        return Cow::Owned(text);
    }
    let mark = theme.symbol("…", "~");
    let mut cut = String::new();
    let mut used = 1;
    for character in text.chars() {
        let mut bytes = [0; 4];
        used += Span::raw(&*character.encode_utf8(&mut bytes)).width();
        if used > width {
            break;
        }
        cut.push(character);
    }
    if width > 0 {
        cut.push_str(mark);
    }
    Cow::Owned(cut)
}

/// As [`fitted`], but what is cut is the beginning: of an address the port must stay.
pub(super) fn ending(text: &str, width: usize, theme: Theme) -> String {
    let len = text.chars().count();
    if len <= width || width == 0 {
        return text.to_owned();
    }
    let mark = theme.symbol("…", "~");
    let kept: String = text.chars().skip(len - (width - 1)).collect();
    format!("{mark}{kept}")
}

/// A count in at most five characters.
pub(super) fn short(count: u64) -> String {
    match count {
        0..100_000 => count.to_string(),
        100_000..10_000_000 => format!("{}k", count / 1_000),
        10_000_000..10_000_000_000 => format!("{}M", count / 1_000_000),
        _ => format!("{}G", count / 1_000_000_000),
    }
}

/// A rate in at most five characters.
pub(super) fn rate(rate: f64) -> String {
    if rate < 99.95 {
        return format!("{rate:.1}");
    }
    // No rate is beyond 2^53, or below 0.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is between 99 and 2^32"
    )]
    short(rate.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEME: Theme = Theme {
        color: false,
        unicode: true,
    };

    #[test]
    fn what_is_too_long_is_cut_and_marked() {
        assert_eq!(fitted("nginx[1]", 8, THEME), "nginx[1]");
        assert_eq!(fitted("nginx[12]", 8, THEME), "nginx[1…");
        assert_eq!(fitted("日本語", 5, THEME), "日本…");
        assert_eq!(fitted("a", 0, THEME), "");
        assert_eq!(fitted("a\u{1b}[2J", 20, THEME), "a\\u{1b}[2J");
        assert_eq!(ending("[2001:db8::1]:8080", 8, THEME), "…1]:8080");
    }

    #[test]
    fn numbers_stay_in_their_columns() {
        for (number, text) in [
            (99_999, "99999"),
            (100_000, "100k"),
            (9_999_999, "9999k"),
            (10_000_000, "10M"),
            (u64::from(u32::MAX) * 10, "42G"),
        ] {
            assert_eq!(short(number), text);
        }
        assert_eq!(rate(0.2), "0.2");
        assert_eq!(rate(99.94), "99.9");
        assert_eq!(rate(99.96), "100");
        assert_eq!(rate(1e6), "1000k");
    }
}
