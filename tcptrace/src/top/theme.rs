//! How things look: by colour where there is one, and always by a mark, a word or a weight as well.

use std::env;

use ratatui::style::{Color, Modifier, Style};

/// Colours and symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    /// There are colours.
    pub color: bool,
    /// The terminal shows more than ASCII.
    pub unicode: bool,
}

/// What something means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing special.
    #[default]
    Plain,
    /// It is zero, old or gone.
    Faint,
    /// Something fails.
    Bad,
    /// Something may fail soon.
    Warn,
    /// What it is about.
    Name,
    /// A heading.
    Heading,
}

impl Theme {
    /// As the environment says. Where no variable names a character set there is only ASCII.
    /// <https://pubs.opengroup.org/onlinepubs/9799919799/basedefs/V1_chap08.html>
    #[must_use]
    pub fn of(color: bool) -> Self {
        let names = ["LC_ALL", "LC_CTYPE", "LANG"].map(|name| env::var(name).unwrap_or_default());
        let locale = names.iter().find(|value| !value.is_empty());
        let locale = locale.map(|it| it.to_ascii_lowercase()).unwrap_or_default();
        Self {
            color,
            unicode: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    /// How this looks.
    #[must_use]
    pub fn style(self, tone: Tone) -> Style {
        let plain = Style::new();
        let colored = |color: Color| {
            if self.color { plain.fg(color) } else { plain }
        };
        match tone {
            Tone::Plain => plain,
            Tone::Faint => plain.add_modifier(Modifier::DIM),
            Tone::Bad => colored(Color::Red).add_modifier(Modifier::BOLD),
            Tone::Warn => colored(Color::Yellow),
            Tone::Name => colored(Color::Cyan),
            Tone::Heading => plain.add_modifier(Modifier::BOLD),
        }
    }

    /// A bar of this many cells, full to so many thousandths of it. What is not nothing shows.
    #[must_use]
    pub fn bar(self, cells: usize, thousandths: u64) -> String {
        let (full, empty) = if self.unicode {
            ('█', '·')
        } else {
            ('#', '.')
        };
        let steps = if self.unicode { 8 } else { 1 };
        let all = cells * steps;
        let thousandths = usize::try_from(thousandths.min(1000)).unwrap_or(1000);
        let filled = (all * thousandths).div_ceil(1000);
        let mut bar = String::new();
        for cell in 0..cells {
            let eighths = filled.saturating_sub(cell * steps).min(steps);
            bar.push(match eighths {
                0 => empty,
                it if it == steps => full,
                it => PARTS[it - 1],
            });
        }
        bar
    }

    /// One character for each number, as high as it is beside `most`; what is not nothing shows.
    #[must_use]
    pub fn spark(self, numbers: impl Iterator<Item = u32>, most: u32) -> String {
        let levels: &[char] = if self.unicode { &LEVELS } else { &ASCII_LEVELS };
        let steps = u64::try_from(levels.len() - 1).unwrap_or(1);
        let level = |number: u32| {
            let level = (u64::from(number) * steps).div_ceil(u64::from(most.max(1)));
            usize::try_from(level.min(steps)).map_or(' ', |level| levels[level])
        };
        numbers.map(level).collect()
    }

    /// A symbol, or what stands for it in ASCII.
    #[must_use]
    pub fn symbol(self, symbol: &'static str, ascii: &'static str) -> &'static str {
        if self.unicode { symbol } else { ascii }
    }
}

/// Seven eighths and less of a cell, from the left.
const PARTS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];
const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII_LEVELS: [char; 6] = [' ', '.', ':', '-', '=', '#'];

#[cfg(test)]
mod tests {
    use super::*;

    const UNICODE: Theme = Theme {
        color: true,
        unicode: true,
    };
    const ASCII: Theme = Theme {
        color: false,
        unicode: false,
    };

    #[test]
    fn what_is_not_nothing_shows_and_full_is_full() {
        assert_eq!(UNICODE.bar(4, 0), "····");
        assert_eq!(UNICODE.bar(4, 1), "▏···");
        assert_eq!(UNICODE.bar(4, 500), "██··");
        assert_eq!(UNICODE.bar(4, 5000), "████");
        assert_eq!(ASCII.bar(4, 260), "##..");
        assert_eq!(UNICODE.spark([0, 1, 50, 100].into_iter(), 100), " ▁▄█");
        assert_eq!(ASCII.spark([0, 1, 50, 100].into_iter(), 100), " .-#");
        assert_eq!(UNICODE.spark([0, 0].into_iter(), 0), "  ");
    }

    #[test]
    fn without_colour_there_is_no_colour() {
        for tone in [
            Tone::Plain,
            Tone::Faint,
            Tone::Bad,
            Tone::Warn,
            Tone::Name,
            Tone::Heading,
        ] {
            assert_eq!(ASCII.style(tone).fg, None);
        }
        assert_ne!(ASCII.style(Tone::Bad), ASCII.style(Tone::Plain));
    }
}
