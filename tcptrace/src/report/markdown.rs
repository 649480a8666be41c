//! The text for a ticket: Markdown as GitHub reads it. Nothing a recording holds becomes markup, a link or
//! a mention, and all of it fits a comment.

use std::fmt::{self, Write as _};

use super::findings::Told;
use super::words::{self, between, clean, summary, utc, word};
use super::{Report, Source};
use crate::event::{Count, Finding};
use crate::sink::text;

/// Characters of a comment, with room for the last lines.
const ROOM: usize = 60_000;
/// Findings of one cause that are told; and rows of other tables.
const SHOWN: usize = 3;
const ROWS: usize = 20;
/// Columns of the drawing of a cause's failures over time.
const COLUMNS: u64 = 40;

pub(super) fn text(report: &Report, source: &Source<'_>) -> String {
    let mut to = format!("# {}\n\n", Escaped(source.title()));
    let _ = writeln!(
        to,
        "{}\n{}\n",
        Escaped(report.headline()),
        Escaped(report.time())
    );
    overview(report, &mut to);
    findings(report, source, &mut to);
    processes(report, source, &mut to);
    listeners(report, source, &mut to);
    to.push_str("## What was seen, and what was not\n\n");
    for line in report.losses(source) {
        let _ = writeln!(to, "- {}", Escaped(line));
    }
    let unseen = report.coverage.notes.keys().filter(|it| it.1.is_none());
    for (signal, _, note) in unseen {
        let note = note.as_deref().unwrap_or("no reason recorded");
        let _ = writeln!(to, "- Not seen: {}: {}", Escaped(signal), Escaped(note));
    }
    to.push_str("\n## About this report\n\n");
    for file in source.files.iter().take(ROWS) {
        let _ = writeln!(to, "- Recording: {}", Escaped(file.display()));
    }
    let more = source.files.len().saturating_sub(ROWS) as u64;
    if more > 0 {
        let _ = writeln!(to, "- {}", Count(more, "more recording"));
    }
    for (name, value) in source.facts() {
        let _ = writeln!(to, "- {name}: {}", Escaped(value));
    }
    for line in words::CAVEATS {
        let _ = writeln!(to, "- {}", Escaped(line));
    }
    to
}

fn overview(report: &Report, to: &mut String) {
    let totals = report.findings.totals();
    if totals.is_empty() {
        return;
    }
    to.push_str("| Cause | Severity | Failures | Findings | First (UTC) | Over time |\n");
    to.push_str("| --- | --- | ---: | ---: | --- | --- |\n");
    let points = report.findings.failures.points(&report.scale);
    let (first, last) = report.scale.pieces();
    let columns = (last - first + 1).min(COLUMNS);
    for total in totals {
        let cause = total.cause.as_str();
        let mut over_time = vec![0_u64; usize::try_from(columns).unwrap_or(1)];
        for (&(piece, _), number) in points.iter().filter(|((_, it), _)| *it == cause) {
            let column = (piece - first) * columns / (last - first + 1);
            if let Some(place) = usize::try_from(column)
                .ok()
                .and_then(|it| over_time.get_mut(it))
            {
                *place = place.saturating_add(*number);
            }
        }
        let _ = writeln!(
            to,
            "| `{cause}` | {} | {} | {} | {} | {} |",
            word(total.severity),
            total.failures,
            total.findings,
            utc(total.first),
            drawn(&over_time),
        );
    }
    to.push('\n');
}

/// Heights as characters; nothing where nothing happened all the time.
fn drawn(numbers: &[u64]) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let Some(most) = numbers.iter().copied().max().filter(|&most| most > 0) else {
        return String::new();
    };
    let height = |&number: &u64| {
        if number == 0 {
            '·'
        } else {
            let height = u128::from(number) * 8 / u128::from(most);
            HEIGHTS[usize::try_from(height).unwrap_or(8).clamp(1, 8) - 1]
        }
    };
    format!("`{}`", numbers.iter().map(height).collect::<String>())
}

fn findings(report: &Report, source: &Source<'_>, to: &mut String) {
    let mut left_out = 0;
    for total in report.findings.totals() {
        let mut left = total.findings;
        if to.len() < ROOM {
            let cause = total.cause.as_str();
            let _ = writeln!(to, "## `{cause}`\n\n{}\n", Escaped(summary(total.cause)));
            for (nth, told) in report.findings.of(total.cause).iter().enumerate() {
                let mut block = String::new();
                finding(told, source, nth == 0, &mut block);
                if nth == SHOWN || to.len() + block.len() > ROOM {
                    break;
                }
                to.push_str(&block);
                left = left.saturating_sub(1);
            }
            if left > 0 {
                let _ = writeln!(to, "{}: counted, not shown.\n", Count(left, "more finding"));
            }
        } else {
            left_out += left;
        }
    }
    if left_out > 0 {
        let _ = writeln!(
            to,
            "{} of other causes: counted, not shown, as a comment has no more room.\n",
            Count(left_out, "more finding")
        );
    }
}

fn finding(told: &Told, source: &Source<'_>, with_evidence: bool, to: &mut String) {
    let Some(finding) = told.finding() else {
        return;
    };
    let event = &told.event;
    let _ = writeln!(to, "### {}\n", Escaped(&finding.title));
    let _ = write!(
        to,
        "{}, {} confidence, {} UTC",
        Count(finding.count, "failure"),
        finding.certainty.as_str(),
        utc(finding.first)
    );
    if finding.last > finding.first {
        let _ = write!(to, ", over {}", between(finding.first, finding.last));
    }
    let _ = writeln!(to, ", `{}`\n", source.id(finding.id));
    let mut row = |word: &str, text: &dyn fmt::Display| {
        let _ = writeln!(to, "- **{word}:** {}", Escaped(text));
    };
    row("Why", &finding.why);
    let who = text::who(event, finding);
    row("Who", &format_args!("{who}{}", source.on(event.id)));
    if let Some(cause) = event.caused_by {
        row("Follows from", &source.id(cause));
    }
    if let Some(hint) = finding.hint {
        row("Maybe", &hint.as_str());
    }
    if !finding.errors.is_empty() {
        row("Programs got", &words::errors(finding));
    }
    for line in told.event.stack().iter().flat_map(|stack| stack.lines()) {
        row("Where", &line);
    }
    for fix in &finding.fix {
        row("Fix", fix);
    }
    for ruled_out in &finding.ruled_out {
        row("It is not", ruled_out);
    }
    row("Evidence", &words::rests_on(finding));
    to.push('\n');
    if with_evidence {
        evidence(told, finding, source, to);
    }
}

fn evidence(told: &Told, finding: &Finding, source: &Source<'_>, to: &mut String) {
    let mut lines = String::new();
    for (id, (time, event)) in told.evidence() {
        let after = between(finding.first, *time);
        let _ = writeln!(lines, "{} +{after} {event}{}", utc(*time), source.on(id));
    }
    let longest = lines
        .split(|it| it != '`')
        .map(str::len)
        .max()
        .unwrap_or_default();
    let fence = "`".repeat(longest.max(2) + 1);
    let _ = writeln!(to, "{fence}text\n{lines}{fence}\n");
}

fn processes(report: &Report, source: &Source<'_>, to: &mut String) {
    let rows = report.processes();
    if rows.is_empty() {
        return;
    }
    to.push_str("## Processes\n\n");
    to.push_str("| Process | RSTs sent | RSTs received | Stuck in CLOSE\\_WAIT | Failed calls |\n");
    to.push_str("| --- | ---: | ---: | ---: | --- |\n");
    for row in rows.iter().take(ROWS) {
        let errors = row.errors().into_iter().take(4);
        let errors: Vec<_> = errors
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        let _ = writeln!(
            to,
            "| {}{} | {} | {} | {} | {} |",
            Escaped(&row.process),
            Escaped(source.of_run(row.run)),
            row.sent,
            row.received,
            row.stuck,
            Escaped(errors.join(", ")),
        );
    }
    to.push('\n');
    let more = rows.len().saturating_sub(ROWS);
    let events =
        rows.iter().skip(ROWS).map(|row| row.events).sum::<u64>() + report.processes.beyond;
    if more > 0 {
        let events = Count(events, "event");
        let _ = writeln!(
            to,
            "{more} more or other processes with {events}: not listed.\n"
        );
    }
}

fn listeners(report: &Report, source: &Source<'_>, to: &mut String) {
    let rows = report.listeners();
    if rows.is_empty() {
        return;
    }
    to.push_str("## Listeners with full queues\n\n");
    to.push_str(
        "| Listener | Owner | Accept queue overflows | Longest queue | Its limit | SYNs |\n",
    );
    to.push_str("| --- | --- | ---: | ---: | ---: | ---: |\n");
    let known = |number: Option<u32>| number.map_or("not known".to_owned(), |it| it.to_string());
    for row in rows.iter().take(ROWS) {
        let _ = writeln!(
            to,
            "| {}{} | {} | {} | {} | {} | {} |",
            Escaped(&row.at),
            Escaped(source.of_run(row.run)),
            Escaped(row.owner()),
            row.overflows,
            known(row.longest),
            known(row.limit),
            row.syns,
        );
    }
    to.push('\n');
    let more = rows.len().saturating_sub(ROWS) as u64;
    if more > 0 {
        let _ = writeln!(to, "{}: not listed.\n", Count(more, "more listener"));
    }
}

/// Text that stays text: what Markdown gives a meaning is escaped, and what GitHub makes a mention or a
/// reference of wherever it stands is parted by a character nobody sees.
struct Escaped<T>(T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = clean(&self.0);
        for (at, character) in text.char_indices() {
            let (before, after) = (&text[..at], &text[at + character.len_utf8()..]);
            let is_special = match character {
                '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '&' | '|' | '~' | '$' | '^' => {
                    true
                }
                // A list, or a title above.
                '-' | '+' | '=' => before.is_empty(),
                // Links without brackets.
                ':' => after.starts_with('/'),
                '.' => before.to_ascii_lowercase().ends_with("www"),
                '@' | '#' => {
                    write!(f, "\\{character}&#8203;")?;
                    continue;
                }
                _ => false,
            };
            if is_special {
                f.write_char('\\')?;
            }
            f.write_char(character)?;
        }
        Ok(())
    }
}
