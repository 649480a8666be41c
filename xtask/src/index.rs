//! `docs/explain.md`: the index of the pages that `tcptrace explain` shows, made from the pages.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use crate::process;

const INDEX: &str = "docs/explain.md";
const PAGES: &str = "tcptrace/src/explain";
/// Directories of pages, each with its heading.
const TOPICS: [(&str, &str); 4] = [
    ("causes", "Causes: why something failed"),
    ("errors", "Errors: what a call returned"),
    ("states", "States of a TCP socket"),
    (
        "reasons",
        "Reasons the kernel gives for a RST; they are not the cause",
    ),
];

/// What is wrong with the index, if it is not what the pages make it.
pub(crate) fn complaint() -> Result<Option<String>> {
    let expected = made_from_pages()?;
    let path = process::workspace().join(INDEX);
    let is_right = fs::read_to_string(path).is_ok_and(|written| written == expected);
    Ok((!is_right).then(|| {
        format!("{INDEX}: not the index of {PAGES}; `cargo xtask tidy --fix` writes it anew")
    }))
}

/// Writes the index anew.
pub(crate) fn write() -> Result<()> {
    let path = process::workspace().join(INDEX);
    fs::write(&path, made_from_pages()?).with_context(|| format!("cannot write {}", path.display()))
}

fn made_from_pages() -> Result<String> {
    let mut text = "# What tcptrace explains\n\n\
        `tcptrace explain NAME` shows these pages in a terminal and needs no privileges; \
        `tcptrace explain` lists them.\n\
        NAME may also be what a program prints, such as `broken pipe` or `104`. \
        `cargo xtask tidy --fix` writes this index.\n"
        .to_owned();
    for (topic, heading) in TOPICS {
        let pages = pages(topic)?;
        if pages.is_empty() {
            continue;
        }
        write!(
            text,
            "\n## {heading}\n\n| name | in a sentence |\n|---|---|\n"
        )?;
        for path in pages {
            let page = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            text += &row(topic, &page).with_context(|| path.display().to_string())?;
        }
    }
    Ok(text)
}

/// The pages of a topic, in the order of their names.
fn pages(topic: &str) -> Result<Vec<PathBuf>> {
    let directory = process::workspace().join(PAGES).join(topic);
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let mut pages = fs::read_dir(&directory)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.path()))
                .collect::<Result<Vec<_>, _>>()
        })
        .with_context(|| format!("cannot list {}", directory.display()))?;
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    Ok(pages)
}

/// The line of a page: its title is its name, the sentence below it its summary.
fn row(topic: &str, page: &str) -> Result<String> {
    let mut lines = page.lines().filter(|line| !line.is_empty());
    let name = lines.next().and_then(|line| line.strip_prefix("# "));
    let (Some(name), Some(summary)) = (name, lines.next()) else {
        anyhow::bail!("a page begins with its name as the title and a sentence");
    };
    ensure!(!summary.contains('|'), "a | ends the column of a table");
    Ok(format!(
        "| [{name}](../{PAGES}/{topic}/{name}.md) | {summary} |\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_links_the_page() {
        let row = row("errors", "# EPIPE\n\nBroken pipe.\n\n## Meaning\n").expect("a page");
        assert_eq!(
            row,
            "| [EPIPE](../tcptrace/src/explain/errors/EPIPE.md) | Broken pipe. |\n"
        );
    }

    #[test]
    fn what_is_no_page_has_no_row() {
        for page in ["", "EPIPE\n", "# EPIPE\n", "# EPIPE\n\na | b\n"] {
            assert!(row("errors", page).is_err(), "{page}");
        }
    }

    #[test]
    fn every_page_is_linked() {
        let index = made_from_pages().expect("pages");
        let links = index.matches("](../tcptrace/src/explain/").count();
        let files: usize = TOPICS
            .iter()
            .map(|(topic, _)| pages(topic).expect("pages").len())
            .sum();
        assert_eq!(links, files);
        assert!(files > 50, "{files}");
    }
}
