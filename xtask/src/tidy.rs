//! `cargo xtask tidy`: what rustfmt and clippy do not check in the source files, and the index of the
//! pages.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::{dependencies, index, process};

/// Marks of unfinished work, written apart so that this file does not hold them.
const UNFINISHED: [&str; 4] = [
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
];

/// Checks; with `fix` writes first what can be made anew.
pub(crate) fn run(fix: bool) -> Result<()> {
    if fix {
        index::write()?;
    }
    let mut complaints = Vec::from_iter(index::complaint()?);
    complaints.extend(dependencies::complaints()?);
    visit(process::workspace(), &mut complaints)?;
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    ensure!(
        complaints.is_empty(),
        "{} places to tidy, named above",
        complaints.len()
    );
    Ok(())
}

/// Adds what is wrong with the source files below a directory, build output left out.
fn visit(directory: &Path, complaints: &mut Vec<String>) -> Result<()> {
    let entries = fs::read_dir(directory)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                visit(&path, complaints)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let shown = path.strip_prefix(process::workspace()).unwrap_or(&path);
            let found = inspect(&text);
            complaints
                .extend(found.map(|(line, what)| format!("{}:{line}: {what}", shown.display())));
        }
    }
    Ok(())
}

/// What is wrong with one source file, by line number.
fn inspect(text: &str) -> impl Iterator<Item = (usize, String)> {
    let unopened = !text.starts_with("//!");
    let opening = unopened.then(|| (1, "the file does not begin with a //! sentence".to_owned()));
    let unfinished = text.lines().enumerate().flat_map(|(index, line)| {
        UNFINISHED
            .iter()
            .filter(move |mark| line.contains(**mark))
            .map(move |mark| (index + 1, format!("{mark} marks unfinished work")))
    });
    opening.into_iter().chain(unfinished)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_found(text: &str) -> Vec<usize> {
        inspect(text).map(|(line, _)| line).collect()
    }

    #[test]
    fn a_file_opens_by_saying_what_it_is_for() {
        assert!(lines_found("//! A room.\nfn main() {}\n").is_empty());
        assert_eq!(lines_found("fn main() {}\n"), [1]);
        assert_eq!(lines_found(""), [1]);
    }

    #[test]
    fn every_mark_of_unfinished_work_is_found_where_it_is() {
        for mark in UNFINISHED {
            assert_eq!(
                lines_found(&format!("//! A room.\n\n// {mark}\n")),
                [3],
                "{mark}"
            );
        }
    }
}
