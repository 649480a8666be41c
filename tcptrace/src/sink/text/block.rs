//! A finding for a person: below its line what, why, who, on what evidence, what it is not, and what
//! to change.

use std::fmt;

use bytes::{BufMut as _, BytesMut};

use super::{Columns, NARROWEST, Printable};
use crate::event::{Count, Event, Finding, Frame, Millis, Owner, Stack};
use crate::sink::sentence::doubt;

/// Where the text begins; the word that says what it is stands before it.
const INDENT: usize = 14;

impl Columns {
    /// Adds what the finding's own line has no room for.
    pub(super) fn block(&self, event: &Event, finding: &Finding, to: &mut BytesMut) {
        let mut row = |word: &str, text: &dyn fmt::Display| self.labelled(word, text, to);
        row("what", &finding.title);
        row("why", &finding.why);
        row("who", &who(event, finding));
        row("evidence", &fmt::from_fn(|f| evidence(f, finding)));
        if let Some(stack) = event.stack() {
            self.stack(stack, to);
        }
        let mut row = |word: &str, text: &dyn fmt::Display| self.labelled(word, text, to);
        for ruled_out in &finding.ruled_out {
            row("not", ruled_out);
        }
        for fix in &finding.fix {
            row("fix", fix);
        }
        let page = finding.hint.unwrap_or(finding.cause).as_str();
        row("more", &format_args!("tcptrace explain {page}"));
    }

    /// Adds where in its code the process was, innermost first.
    pub(super) fn stack(&self, stack: &Stack, to: &mut BytesMut) {
        for (nth, line) in stack.lines().iter().enumerate() {
            self.labelled(if nth == 0 { "where" } else { "" }, line, to);
        }
        let kernel: Vec<_> = stack.kernel().map(Frame::name).collect();
        if !kernel.is_empty() {
            self.labelled("kernel", &kernel.join(" < "), to);
        }
    }

    fn labelled(&self, word: &str, text: &dyn fmt::Display, to: &mut BytesMut) {
        let text = Printable(text).to_string();
        let first = format!("    {word:<width$}", width = INDENT - 4);
        let rest = " ".repeat(INDENT);
        let options = textwrap::Options::new(self.width.max(NARROWEST))
            .initial_indent(&first)
            .subsequent_indent(&rest)
            .break_words(false);
        for line in textwrap::wrap(&text, options) {
            to.put_slice(line.trim_end().as_bytes());
            to.put_u8(b'\n');
        }
    }
}

/// Whose failure it is, how sure that is, and who is at the other end.
#[must_use]
pub fn who(event: &Event, finding: &Finding) -> impl fmt::Display {
    fmt::from_fn(|f| write_who(f, event, finding))
}

fn write_who(f: &mut fmt::Formatter<'_>, event: &Event, finding: &Finding) -> fmt::Result {
    let Owner {
        process, creator, ..
    } = &event.owner;
    match process {
        Some(process) => write!(f, "{process}")?,
        None => f.write_str("no process is known")?,
    }
    if let Some(doubt) = doubt(event) {
        write!(f, " ({doubt})")?;
    }
    if let Some(creator) = creator {
        write!(f, ", its socket made by process {creator}")?;
    }
    match &finding.peer {
        Some(peer) => write!(f, "; at the other end {peer}"),
        None => Ok(()),
    }
}

fn evidence(f: &mut fmt::Formatter<'_>, finding: &Finding) -> fmt::Result {
    write!(f, "{}", Count(finding.evidence.len() as u64, "event"))?;
    let span = finding.last.0.saturating_sub(finding.first.0) / 1_000_000;
    if span > 0 {
        write!(f, " over {}", Millis(span))?;
    }
    for (nth, (errno, count)) in finding.errors.iter().enumerate() {
        let before = if nth == 0 { "; programs got" } else { "," };
        write!(f, "{before} {count} {errno}")?;
    }
    Ok(())
}
