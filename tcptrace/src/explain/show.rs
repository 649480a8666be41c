//! Pages for a terminal: headings stand out, code is set apart, the rest stays as it is written.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::{Found, Page, Topic};

/// Every page by its name and summary.
#[must_use]
pub fn list(color: bool) -> String {
    let look = Look::new(color);
    let mut text = "`tcptrace explain NAME` shows one of these. NAME may also be what a program \
                    prints: broken pipe, 104.\n"
        .to_owned();
    for topic in Topic::ALL {
        text.push('\n');
        line(&mut text, look.heading, title(topic));
        index(&mut text, topic.pages());
    }
    text
}

/// The page that was found, and the others that its name can mean.
#[must_use]
pub fn found(found: &Found, color: bool) -> String {
    let look = Look::new(color);
    let mut text = String::new();
    let mut is_fenced = false;
    for written in found.page.text.lines() {
        if written.starts_with("```") {
            is_fenced = !is_fenced;
        } else if is_fenced {
            line(&mut text, look.code, &format!("      {written}"));
        } else if written.starts_with("    ") {
            line(&mut text, look.code, &format!("  {written}"));
        } else if let Some(heading) = written.strip_prefix("# ") {
            line(&mut text, look.title, heading);
        } else if let Some(heading) = written.strip_prefix("## ") {
            line(&mut text, look.heading, heading);
        } else if written.is_empty() {
            text.push('\n');
        } else {
            look.prose(&mut text, written);
        }
    }
    if !found.others.is_empty() {
        text.push('\n');
        line(&mut text, look.heading, "It can also mean");
        index(&mut text, found.others.iter().copied());
    }
    text
}

fn title(topic: Topic) -> &'static str {
    match topic {
        Topic::Cause => "Causes: why something failed (tcptrace.cause)",
        Topic::Error => "Errors: what a call returned",
        Topic::State => "States of a TCP socket",
        Topic::Reason => "Reasons the kernel gives for a RST; they are not the cause",
    }
}

/// Names and summaries, in two columns.
fn index(text: &mut String, pages: impl Iterator<Item = Page>) {
    let width = Page::all().map(|page| page.name.len()).max().unwrap_or(0);
    for page in pages {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {:width$}  {}", page.name, page.summary());
    }
}

fn line(text: &mut String, style: Style, line: &str) {
    let _ = writeln!(text, "{style}{line}{style:#}");
}

/// How the parts of a page look; all alike without colour.
#[derive(Default)]
struct Look {
    is_colored: bool,
    title: Style,
    heading: Style,
    code: Style,
}

impl Look {
    fn new(color: bool) -> Self {
        if !color {
            return Self::default();
        }
        Self {
            is_colored: true,
            title: Style::new().bold().underline(),
            heading: AnsiColor::Yellow.on_default().bold(),
            code: AnsiColor::Cyan.on_default(),
        }
    }

    /// A line in which code is between backticks: the colour stands for them where there is one.
    fn prose(&self, text: &mut String, line: &str) {
        text.push_str("  ");
        let parts: Vec<_> = line.split('`').collect();
        // An odd number of backticks means code that goes on in the next line.
        if !self.is_colored || parts.len() % 2 == 0 {
            text.push_str(line);
        } else {
            let code = self.code;
            for (index, part) in parts.into_iter().enumerate() {
                let _ = match index % 2 {
                    0 => write!(text, "{part}"),
                    _ => write!(text, "{code}{part}{code:#}"),
                };
            }
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Page = Page {
        topic: Topic::Error,
        name: "ENAME",
        text: "# ENAME\n\nA `write` failed.\n\n## Meaning\n\nIt did.\n\n    ss -tan\n\n```\nnstat\n```\n",
    };

    #[test]
    fn a_page_is_plain_text_without_colour() {
        let alone = Found {
            page: PAGE,
            others: vec![],
        };
        insta::assert_snapshot!(found(&alone, false), @r"
        ENAME

          A `write` failed.

        Meaning

          It did.

              ss -tan

              nstat
        ");
    }

    #[test]
    fn colour_sets_headings_and_code_apart() {
        let alone = Found {
            page: PAGE,
            others: vec![],
        };
        let colored = found(&alone, true);
        for part in [
            "\u{1b}[1m\u{1b}[4mENAME\u{1b}[0m\n",
            "  A \u{1b}[36mwrite\u{1b}[0m failed.\n",
            "\u{1b}[1m\u{1b}[33mMeaning\u{1b}[0m\n",
            "\u{1b}[36m      ss -tan\u{1b}[0m\n",
        ] {
            assert!(colored.contains(part), "{colored:?}");
        }
        let plain = anstyle_free(&colored);
        assert_eq!(plain, found(&alone, false).replace('`', ""));
    }

    /// Without what a terminal takes for colour.
    fn anstyle_free(text: &str) -> String {
        let mut parts = text.split('\u{1b}');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |plain, part| {
            plain + part.split_once('m').map_or("", |(_, rest)| rest)
        })
    }

    #[test]
    fn other_meanings_follow_the_page() {
        let two = Found {
            page: PAGE,
            others: vec![PAGE],
        };
        let text = found(&two, false);
        let (_, others) = text.split_once("\nIt can also mean\n").expect("a heading");
        let words: Vec<_> = others.split_whitespace().collect();
        assert_eq!(words, ["ENAME", "A", "`write`", "failed."]);
    }

    #[test]
    fn the_list_has_every_page_on_a_line_of_its_own() {
        let list = list(false);
        for page in Page::all() {
            let line = list
                .lines()
                .find(|line| line.split_whitespace().next() == Some(page.name))
                .unwrap_or_else(|| panic!("{} is not listed", page.name));
            assert!(line.ends_with(page.summary()), "{line}");
            assert!(line.chars().count() <= 120, "{line}");
        }
    }
}
