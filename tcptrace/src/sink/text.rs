//! Text for a person: one line an event, the banner at the start and the summary at the end.

mod block;
mod tables;

pub use block::who;

use std::cmp::Ordering;
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::io;

use anstyle::{AnsiColor, Style};
use bytes::{BufMut as _, BytesMut};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::sentence::{Detail, Verdict, doubt, kernel_word, label, seen, turned};
use crate::event::{
    Confidence, Count, Coverage, Event, Kind, Millis, Owner, Process, Reconciled, Severity,
    Summary, Target,
};

/// Lines are this wide where no terminal says otherwise.
const WIDTH: usize = 120;

/// The free text gets at least this much: a flow of two long IPv6 addresses fills a line by itself,
/// and a terminal that has to wrap it has room on the next.
const DETAIL_MIN: usize = 24;

/// A narrower terminal has to wrap by itself.
const NARROWEST: usize = 60;

const TIME: usize = 12;
const PROCESS: usize = 16;
const EVENT: usize = 12;
/// Two IPv4 addresses of the usual length.
const FLOW: usize = 33;

/// One line for each event, in columns that stay where they are; the flow is never cut, the free
/// text is last and cut at the width.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns {
    /// Colour the event by its meaning; the words say the same.
    pub color: bool,
    /// Name the columns first.
    pub header: bool,
    /// Columns of the terminal.
    pub width: usize,
    /// Zone of the times.
    pub zone: TimeZone,
}

impl Columns {
    /// In local time; `terminal` is its width, `None` when the output is none.
    #[must_use]
    pub fn new(color: bool, header: bool, terminal: Option<usize>) -> Self {
        Self {
            color,
            header,
            width: terminal.unwrap_or(WIDTH),
            zone: TimeZone::system(),
        }
    }

    /// Adds the names of the columns, if they are wanted.
    pub(super) fn header(&self, to: &mut BytesMut) {
        if self.header {
            let mut line = Line::new(to);
            for (name, width) in [
                ("TIME", TIME),
                ("PROCESS", PROCESS),
                ("EVENT", EVENT),
                ("LOCAL > PEER", FLOW),
            ] {
                line.cell(width, name);
            }
            line.text(usize::MAX, "DETAIL [kernel's word]  ~ likely  ? unknown");
            line.end();
        }
    }

    /// Adds one event. A process that is not certain is marked `~`, one that is not known `?`.
    pub(super) fn event(&self, event: &Event, to: &mut BytesMut) {
        let mut line = Line::new(to);
        line.cell(TIME, self.time(event));
        line.process(&event.owner, event.socket.is_some());
        let style = if self.color {
            style(&event.kind)
        } else {
            Style::new()
        };
        line.styled(style, EVENT, label(event));
        match &event.socket {
            Some(socket) => line.at_least(FLOW, socket.flow),
            None => line.at_least(FLOW, "-"),
        }
        let left = self.width.saturating_sub(line.used).max(DETAIL_MIN);
        let end = line.used + left;
        match &event.kind {
            Kind::Finding(finding) => line.text(left, Verdict(finding)),
            _ => line.text(left, Detail(event)),
        }
        // What has no room whole is in the record.
        if let Some(doubt) = doubt(event) {
            line.whole(end, format_args!(" ({doubt})"));
        }
        if let Some(word) = kernel_word(event) {
            line.whole(end, format_args!(" [{word}]"));
        }
        line.end();
        if let Kind::Finding(finding) = &event.kind {
            self.block(event, finding, to);
        } else if let Some(stack) = event.stack() {
            self.stack(stack, to);
        }
    }

    fn time(&self, event: &Event) -> impl fmt::Display + use<> {
        // Every number of nanoseconds in 64 bits is a time jiff knows.
        let time = Timestamp::from_nanosecond(i128::from(event.time.0)).unwrap_or_default();
        let local = self.zone.to_datetime(time);
        fmt::from_fn(move |f| {
            let (hour, minute, second) = (local.hour(), local.minute(), local.second());
            write!(
                f,
                "{hour:02}:{minute:02}:{second:02}.{:03}",
                local.millisecond()
            )
        })
    }
}

fn style(kind: &Kind) -> Style {
    let color = match kind {
        Kind::ResetSent(_) | Kind::ResetReceived(_) => AnsiColor::Red,
        Kind::AcceptQueueOverflow(_)
        | Kind::SynQueueOverflow(_)
        | Kind::FdExhausted(_)
        | Kind::EventsLost(_)
        | Kind::EventsSuppressed(_)
        | Kind::ExportDropped(_) => AnsiColor::Magenta,
        Kind::Finding(finding) => {
            return match finding.severity {
                Severity::Info => Style::new(),
                Severity::Warn => AnsiColor::Yellow.on_default(),
                Severity::Error => AnsiColor::Red.on_default(),
            }
            .bold();
        }
        Kind::SocketError(_)
        | Kind::ConnectFailed(_)
        | Kind::ConnectionTimeout(_)
        | Kind::FdInvalid(_) => AnsiColor::Yellow,
        Kind::CloseWaitEntered(_) | Kind::CloseWaitStuck(_) => AnsiColor::Cyan,
        Kind::StateChanged(_)
        | Kind::Retransmit(_)
        | Kind::Coverage(_)
        | Kind::TargetChanged(_)
        | Kind::Summary(_)
        | Kind::Sockets(_) => return Style::new(),
    };
    color.on_default()
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// On a terminal, unless the environment says otherwise.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Whether to use it on an output that is a terminal or not, under an environment.
    /// <https://no-color.org>
    #[must_use]
    pub fn is_on(self, terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                terminal
                    && variable("NO_COLOR").is_none_or(|value| value.is_empty())
                    && variable("TERM").is_none_or(|term| term != "dumb")
            }
        }
    }
}

/// Says what is not seen on this kernel, before the first event.
///
/// # Errors
///
/// Those of the writer.
pub fn banner(coverage: &[Coverage], to: &mut impl io::Write) -> io::Result<()> {
    let (seen, unseen): (Vec<_>, Vec<_>) = coverage.iter().partition(|it| it.way.is_some());
    writeln!(
        to,
        "tcptrace {} sees {} of {} on this kernel; `tcptrace doctor` says how, and what each leaves \
         out; Ctrl-C ends it",
        env!("CARGO_PKG_VERSION"),
        seen.len(),
        Count(coverage.len() as u64, "signal")
    )?;
    for gap in unseen {
        writeln!(to, "  {}", Printable(fmt::from_fn(|f| self::seen(f, gap))))?;
    }
    Ok(())
}

/// What became of a process that was asked for, in a line.
#[must_use]
pub fn turn(process: &Process, target: &Target) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        write!(f, "{process} ")?;
        turned(f, target)
    })
}

/// Says what was seen and what was lost, also when it is nothing.
///
/// # Errors
///
/// Those of the writer.
pub fn summary(summary: &Summary, to: &mut impl io::Write) -> io::Result<()> {
    let seen: u64 = summary.kinds.iter().map(|row| row.count).sum();
    write!(to, "{}", Count(summary.events, "event"))?;
    if seen > summary.events {
        // The rest was not asked for, but is counted.
        write!(to, " of {seen} seen")?;
    }
    let (duration, lost) = (Millis(summary.duration_ms), summary.lost);
    writeln!(to, " in {duration}, {lost} lost")?;
    writeln!(to, "by event")?;
    let rows = summary.kinds.iter().map(|row| {
        let name = row.name.strip_prefix("tcptrace.").unwrap_or(row.name);
        let error = row.error.as_deref().unwrap_or_default();
        (
            row.count,
            fmt::from_fn(move |f| write!(f, "{name:<22} {error}")),
        )
    });
    counted(to, rows)?;
    writeln!(to, "by process")?;
    let named: u64 = summary.processes.iter().map(|(_, _, count)| count).sum();
    let rest = seen.saturating_sub(named);
    let processes = summary.processes.iter();
    let rows = processes.map(|(pid, comm, count)| (*count, format!("{comm}[{pid}]")));
    let others = (rest > 0).then(|| (rest, "others, none, or not known".to_owned()));
    counted(to, rows.chain(others))?;
    writeln!(to, "overflows by listener")?;
    counted(
        to,
        summary
            .listeners
            .iter()
            .map(|(listener, count)| (*count, listener)),
    )?;
    writeln!(to, "entries into CLOSE_WAIT {}", summary.close_waits)?;
    reconcile(to, "resets sent", "TcpOutRsts", summary.resets)?;
    reconcile(
        to,
        "accept-queue overflows",
        "TcpExtListenOverflows",
        summary.overflows,
    )
}

fn counted<T: fmt::Display>(
    to: &mut impl io::Write,
    rows: impl Iterator<Item = (u64, T)>,
) -> io::Result<()> {
    let mut none = true;
    for (count, what) in rows {
        none = false;
        let what = Printable(what).to_string();
        writeln!(to, "{count:>10}  {}", what.trim_end())?;
    }
    if none {
        writeln!(to, "{:>10}", 0)
    } else {
        Ok(())
    }
}

/// Holds what was seen against the kernel's own counter.
fn reconcile(
    to: &mut impl io::Write,
    what: &str,
    counter: &str,
    counts: Option<Reconciled>,
) -> io::Result<()> {
    let Some(counts) = counts else {
        return Ok(());
    };
    let (seen, kernel, unseen) = (counts.seen, counts.counted, counts.unseen());
    let sign = match seen.cmp(&kernel) {
        Ordering::Equal => "=",
        Ordering::Less if counts.partial => "of",
        _ => "!=",
    };
    write!(
        to,
        "{what} {seen} {sign} {counter} +{kernel} in this namespace"
    )?;
    match seen.cmp(&kernel) {
        Ordering::Equal => {}
        Ordering::Less if counts.partial => write!(
            to,
            "; not seen: {unseen}, as nothing on this kernel shows all of them"
        )?,
        Ordering::Less => write!(to, ": {unseen} not seen")?,
        Ordering::Greater => write!(to, ": {} more than the kernel counted", seen - kernel)?,
    }
    writeln!(to)
}

/// Text on one line, with everything escaped that would move a cursor or turn the direction of writing.
pub fn printable(text: impl fmt::Display) -> impl fmt::Display {
    Printable(text)
}

struct Printable<T>(T);

impl<T: fmt::Display> fmt::Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl fmt::Write for Escape<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                if is_plain(text) {
                    return self.0.write_str(text);
                }
                text.chars().try_for_each(|character| {
                    if is_unprintable(character) {
                        write!(self.0, "{}", character.escape_default())
                    } else {
                        self.0.write_char(character)
                    }
                })
            }
        }
        write!(Escape(f), "{}", self.0)
    }
}

/// Controls, separators of lines and paragraphs, and marks of direction.
pub(crate) fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// East Asian characters and pictures take two columns; near enough for names and paths.
fn width(character: char) -> usize {
    match character {
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

/// The columns a text takes.
fn columns(text: &impl fmt::Display) -> usize {
    struct Sum(usize);
    impl fmt::Write for Sum {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 += text.chars().map(width).sum::<usize>();
            Ok(())
        }
    }
    let mut sum = Sum(0);
    // A type whose Display fails ends early.
    let _ = write!(sum, "{text}");
    sum.0
}

/// Printable characters of one byte and one column: nearly all there are.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// One line in the making.
struct Line<'a> {
    to: &'a mut BytesMut,
    used: usize,
}

impl<'a> Line<'a> {
    fn new(to: &'a mut BytesMut) -> Self {
        Self { to, used: 0 }
    }

    /// Exactly `width` columns, and one of space.
    fn cell(&mut self, width: usize, content: impl fmt::Display) {
        self.styled(Style::new(), width, content);
    }

    fn styled(&mut self, style: Style, width: usize, content: impl fmt::Display) {
        let start = self.used;
        self.raw(style.render());
        self.text(width, content);
        self.raw(style.render_reset());
        self.pad(start + width);
    }

    /// `name[pid]`: the name is cut, the id never.
    fn process(&mut self, owner: &Owner, of_socket: bool) {
        let start = self.used;
        if let Some(process) = &owner.process {
            let doubt = match owner.confidence {
                Confidence::Exact => "",
                _ => "~",
            };
            self.named(process, doubt);
        } else {
            self.text(usize::MAX, if of_socket { "?" } else { "-" });
        }
        self.pad(start + PROCESS);
    }

    /// A process behind the mark of a doubt; its name is cut to the column.
    fn named(&mut self, process: &Process, doubt: &str) {
        let end = self.used + PROCESS;
        let id = format_args!("[{}]", process.pid);
        self.text(usize::MAX, doubt);
        self.text(end.saturating_sub(self.used + columns(&id)), process.comm);
        self.text(usize::MAX, id);
    }

    /// Never cut.
    fn at_least(&mut self, width: usize, content: impl fmt::Display) {
        let start = self.used;
        self.text(usize::MAX, content);
        self.pad(start + width);
    }

    /// As it is, if it ends before `end`; else not at all.
    fn whole(&mut self, end: usize, content: fmt::Arguments<'_>) {
        if self.used + columns(&Printable(content)) <= end {
            self.text(usize::MAX, content);
        }
    }

    /// At most `width` columns.
    fn text(&mut self, width: usize, content: impl fmt::Display) {
        let mut cut = Cut {
            to: self.to,
            left: width,
            last: None,
            full: width == 0,
        };
        // A type whose Display fails ends early: the line keeps what came before.
        let _ = write!(cut, "{}", Printable(content));
        let left = cut.finish();
        self.used += width - left;
    }

    fn raw(&mut self, content: impl fmt::Display) {
        let _ = write!(self.to, "{content}");
    }

    fn pad(&mut self, end: usize) {
        let spaces = end.saturating_sub(self.used) + 1;
        self.to.put_bytes(b' ', spaces);
        self.used += spaces;
    }

    fn end(self) {
        while self.to.last() == Some(&b' ') {
            self.to.truncate(self.to.len() - 1);
        }
        self.to.extend_from_slice(b"\n");
    }
}

/// Writes at most so many columns; what is cut ends in `…`.
struct Cut<'a> {
    to: &'a mut BytesMut,
    left: usize,
    /// A character that fits, but becomes the `…` if another one comes.
    last: Option<char>,
    full: bool,
}

impl Cut<'_> {
    fn push(&mut self, character: char) -> fmt::Result {
        let needed = width(character);
        if self.full {
            Ok(())
        } else if self.last.is_none() && needed < self.left {
            self.left -= needed;
            self.to.write_char(character)
        } else if self.last.is_none() && needed == self.left {
            self.last = Some(character);
            Ok(())
        } else {
            self.full = true;
            self.last = None;
            self.left -= 1;
            self.to.write_char('…')
        }
    }

    /// The columns left.
    fn finish(mut self) -> usize {
        if let Some(last) = self.last.take() {
            self.left -= width(last);
            let _ = self.to.write_char(last);
        }
        self.left
    }
}

impl fmt::Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if !self.full && self.last.is_none() && text.len() < self.left && is_plain(text) {
            self.left -= text.len();
            return self.to.write_str(text);
        }
        text.chars().try_for_each(|character| self.push(character))
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::net::{IpAddr, SocketAddr};

    use proptest::prelude::*;

    use super::*;
    use crate::event::Comm;
    use crate::sink::samples;

    fn line(columns: &Columns, event: &Event) -> String {
        let mut buffer = BytesMut::new();
        columns.event(event, &mut buffer);
        String::from_utf8(buffer.to_vec()).expect("columns are text")
    }

    /// Columns a terminal shows it in.
    fn shown(line: &str) -> usize {
        super::columns(&line.trim_end_matches('\n'))
    }

    #[test]
    fn every_kind_in_columns() {
        let columns = samples::columns();
        let mut buffer = BytesMut::new();
        columns.header(&mut buffer);
        for event in samples::all() {
            columns.event(&event, &mut buffer);
        }
        let text = String::from_utf8(buffer.to_vec()).expect("columns are text");
        insta::assert_snapshot!(text, @"
        TIME         PROCESS          EVENT        LOCAL > PEER                      DETAIL [kernel's word]  ~ likely  ? unknown
        11:10:03.123 nginx[1234]      RST sent     10.0.0.1:8080 > 203.0.113.7:51234 closed fd 17, 512 bytes unread
        11:10:03.123 ?                RST sent     [2001:db8::1]:81 > [2001:db8::2]:40112 nothing listens on this port
        11:10:03.123 nginx[1234]      RST received 10.0.0.1:8080 > 203.0.113.7:51234 gives ECONNRESET, idle 1.2 s
        11:10:03.123 nginx[1234]      peer closed  10.0.0.1:8080 > 203.0.113.7:51234 fd 17 still open (CLOSE_WAIT)
        11:10:03.123 nginx[1234]      not closed   10.0.0.1:8080 > 203.0.113.7:51234 fd 17 in CLOSE_WAIT >61.2 s, EOF unread
        11:10:03.123 nginx[1234]      queue full   0.0.0.0:8080                      SYN dropped, queue 129 > 128 (asked 511), …
        11:10:03.123 ~nginx[1234]     write failed 10.0.0.1:8080 > 203.0.113.7:51234 EPIPE (broken pipe), sendto fd 17
        11:10:03.123 nginx[1234]      conn failed  10.0.0.1:8080 > 203.0.113.7:51234 ECONNREFUSED (refused) after 310 us, 1 SYN
        11:10:03.123 nginx[1234]      timed out    10.0.0.1:8080 > 203.0.113.7:51234 ETIMEDOUT, TCP_USER_TIMEOUT 30.0 s, 15 ret…
        11:10:03.123 nginx[1234]      too many fds -                                 EMFILE in accept4, 1024 of 1024 fds open
        11:10:03.123 nginx[1234]      bad fd       -                                 EBADF (bad descriptor), write fd 17
            where     libc.so.6+0xf8a10
                      ngx_write_fd at /src/os/unix/ngx_files.c:226
                      main at /src/core/nginx.c:382
                      ? libc.so.6 has no symbol there
            kernel    ksys_write < do_syscall_64
        11:10:03.123 nginx[1234]      state        10.0.0.1:8080 > 203.0.113.7:51234 ESTABLISHED -> CLOSE_WAIT after 1.2 s
        11:10:03.123 nginx[1234]      retransmit   10.0.0.1:8080 > 203.0.113.7:51234 3 in a row
        11:10:03.123 -                coverage     -                                 reset.sent through raw_tracepoint tcp_send…
        11:10:03.123 -                coverage     -                                 not seen: accept_queue.overflow (needs ker…
        11:10:03.123 nginx[1234]      target       -                                 goes on for 100: it is in nginx.service an…
        11:10:03.123 -                events lost  -                                 3 events of tcp_send_reset: ring_full
        11:10:03.123 -                not exported -                                 37 records for syslog=tcp://logs.example:6…
        11:10:03.123 nginx[1234]      suppressed   -                                 512 more reset.sent (--rate-limit)
        11:10:03.123 -                summary      -                                 31 events in 12.3 s, 0 lost
        ");
    }

    #[test]
    fn on_a_wide_terminal_nothing_is_cut() {
        let columns = Columns {
            width: 200,
            ..samples::columns()
        };
        let text: String = samples::all()
            .iter()
            .map(|event| line(&columns, event))
            .collect();
        insta::assert_snapshot!(text, @"
        11:10:03.123 nginx[1234]      RST sent     10.0.0.1:8080 > 203.0.113.7:51234 closed fd 17, 512 bytes unread [TCP_ABORT_ON_CLOSE]
        11:10:03.123 ?                RST sent     [2001:db8::1]:81 > [2001:db8::2]:40112 nothing listens on this port [NO_SOCKET]
        11:10:03.123 nginx[1234]      RST received 10.0.0.1:8080 > 203.0.113.7:51234 gives ECONNRESET, idle 1.2 s
        11:10:03.123 nginx[1234]      peer closed  10.0.0.1:8080 > 203.0.113.7:51234 fd 17 still open (CLOSE_WAIT)
        11:10:03.123 nginx[1234]      not closed   10.0.0.1:8080 > 203.0.113.7:51234 fd 17 in CLOSE_WAIT >61.2 s, EOF unread
        11:10:03.123 nginx[1234]      queue full   0.0.0.0:8080                      SYN dropped, queue 129 > 128 (asked 511), 31 drops
        11:10:03.123 ~nginx[1234]     write failed 10.0.0.1:8080 > 203.0.113.7:51234 EPIPE (broken pipe), sendto fd 17 (shared by 3)
        11:10:03.123 nginx[1234]      conn failed  10.0.0.1:8080 > 203.0.113.7:51234 ECONNREFUSED (refused) after 310 us, 1 SYN
        11:10:03.123 nginx[1234]      timed out    10.0.0.1:8080 > 203.0.113.7:51234 ETIMEDOUT, TCP_USER_TIMEOUT 30.0 s, 15 retransmits
        11:10:03.123 nginx[1234]      too many fds -                                 EMFILE in accept4, 1024 of 1024 fds open
        11:10:03.123 nginx[1234]      bad fd       -                                 EBADF (bad descriptor), write fd 17
            where     libc.so.6+0xf8a10
                      ngx_write_fd at /src/os/unix/ngx_files.c:226
                      main at /src/core/nginx.c:382
                      ? libc.so.6 has no symbol there
            kernel    ksys_write < do_syscall_64
        11:10:03.123 nginx[1234]      state        10.0.0.1:8080 > 203.0.113.7:51234 ESTABLISHED -> CLOSE_WAIT after 1.2 s
        11:10:03.123 nginx[1234]      retransmit   10.0.0.1:8080 > 203.0.113.7:51234 3 in a row
        11:10:03.123 -                coverage     -                                 reset.sent through raw_tracepoint tcp_send_reset: RSTs for closed ports are not seen
        11:10:03.123 -                coverage     -                                 not seen: accept_queue.overflow (needs kernel 6.6)
        11:10:03.123 nginx[1234]      target       -                                 goes on for 100: it is in nginx.service and runs the same program; before that 2 events left out
        11:10:03.123 -                events lost  -                                 3 events of tcp_send_reset: ring_full
        11:10:03.123 -                not exported -                                 37 records for syslog=tcp://logs.example:6514: queue_full (cannot connect: Connection refused (os error 111))
        11:10:03.123 nginx[1234]      suppressed   -                                 512 more reset.sent (--rate-limit)
        11:10:03.123 -                summary      -                                 31 events in 12.3 s, 0 lost
        ");
    }

    #[test]
    fn the_flow_is_never_cut_and_some_text_always_stays() {
        let mut event = samples::reset_sent();
        let address = "2001:db8:1111:2222:3333:4444:5555:6666";
        let flow = format!("[{address}]:50000 > [{address}]:50001");
        if let Some(socket) = &mut event.socket {
            let (local, peer) = flow.split_once(" > ").expect("two ends");
            socket.flow = samples::flow(local, Some(peer));
        }
        let line = line(&samples::columns(), &event);
        assert!(line.contains(&flow), "{line}");
        assert!(line.ends_with(" closed fd 17, 512 bytes…\n"), "{line}");
    }

    #[test]
    fn an_owner_in_doubt_is_marked() {
        let mut event = samples::reset_sent();
        for (confidence, pid) in [
            (Confidence::Exact, " nginx[1234] "),
            (Confidence::Shared, " ~nginx[1234] "),
            (Confidence::Seeded, " ~nginx[1234] "),
            (Confidence::Inherited, " ~nginx[1234] "),
        ] {
            event.owner.confidence = confidence;
            let line = line(&samples::columns(), &event);
            assert!(line.contains(pid), "{confidence:?}: {line}");
        }
        let unknown = line(&samples::columns(), &samples::refused());
        assert!(unknown.contains(" ?                RST sent "), "{unknown}");
    }

    #[test]
    fn a_long_name_is_cut_and_its_id_is_not() {
        let mut event = samples::reset_sent();
        event.owner.confidence = Confidence::Seeded;
        if let Some(process) = &mut event.owner.process {
            process.pid = 4_194_303;
            process.comm = Comm::from("kube-apiserver");
        }
        let line = line(&samples::columns(), &event);
        assert!(line.contains(" ~kube-…[4194303] RST sent "), "{line}");
    }

    #[test]
    fn what_has_no_room_whole_is_left_out() {
        let event = samples::refused();
        let whole = "nothing listens on this port [NO_SOCKET]\n";
        let columns = |width| Columns {
            width,
            ..samples::columns()
        };
        let needed = shown(&line(&columns(200), &event));
        assert!(line(&columns(needed), &event).ends_with(whole));
        let narrow = line(&columns(needed - 1), &event);
        assert!(
            narrow.ends_with("nothing listens on this port\n"),
            "{narrow}"
        );
    }

    #[test]
    fn colour_changes_nothing_but_the_colour() {
        let colored = Columns {
            color: true,
            ..samples::columns()
        };
        for event in samples::all() {
            let colored = line(&colored, &event);
            let stripped = colored
                .replace("\u{1b}[1m", "")
                .replace("\u{1b}[31m", "")
                .replace("\u{1b}[33m", "")
                .replace("\u{1b}[35m", "")
                .replace("\u{1b}[36m", "")
                .replace("\u{1b}[0m", "");
            assert_eq!(stripped, line(&samples::columns(), &event));
        }
        let reset = line(&colored, &samples::reset_sent());
        assert!(reset.contains("\u{1b}[31mRST sent\u{1b}[0m"), "{reset:?}");
    }

    #[test]
    fn colour_is_asked_for_in_the_usual_order() {
        let environment = |name: &'static str, value: &'static str| {
            move |asked: &str| (asked == name).then(|| OsString::from(value))
        };
        let none = |_: &str| None;
        assert!(Color::Auto.is_on(true, none));
        assert!(!Color::Auto.is_on(false, none));
        assert!(!Color::Auto.is_on(true, environment("NO_COLOR", "1")));
        assert!(Color::Auto.is_on(true, environment("NO_COLOR", "")));
        assert!(!Color::Auto.is_on(true, environment("TERM", "dumb")));
        assert!(Color::Always.is_on(false, environment("NO_COLOR", "1")));
        assert!(!Color::Never.is_on(true, none));
    }

    proptest! {
        #[test]
        fn any_name_and_flow_is_one_line_without_controls(
            comm: [u8; 16],
            local: (IpAddr, u16),
            peer: (IpAddr, u16),
            note in ".*",
            limit in 0_usize..300,
        ) {
            let mut event = samples::reset_sent();
            if let Some(process) = &mut event.owner.process {
                process.comm = Comm::new(comm);
            }
            if let (Some(socket), Kind::ResetSent(reset)) = (&mut event.socket, &mut event.kind) {
                socket.flow.local = SocketAddr::from(local);
                socket.flow.peer = Some(SocketAddr::from(peer));
                reset.reason = Some(crate::event::ResetReason(note.into()));
            }
            let columns = Columns { width: limit, ..samples::columns() };
            let line = line(&columns, &event);
            let flow = event.socket.as_ref().map(|socket| socket.flow.to_string());
            let flow = flow.unwrap_or_default();
            prop_assert!(line.ends_with('\n'));
            prop_assert!(!line[..line.len() - 1].chars().any(is_unprintable), "{:?}", line);
            prop_assert!(line.contains(&flow));
            // 12 + 16 + 12 columns and their spaces, the flow and its space.
            let before = 43 + flow.len().max(33) + 1;
            prop_assert!(shown(&line) <= limit.max(before + 24), "{} {:?}", shown(&line), line);
        }
    }

    #[test]
    fn the_summary_says_what_was_seen_and_lost() {
        let mut text = Vec::new();
        summary(&samples::summary(), &mut text).expect("memory takes it");
        insta::assert_snapshot!(String::from_utf8_lossy(&text), @"
        31 events in 12.3 s, 0 lost
        by event
                29  reset.sent             linger_zero
                 2  retransmit
        by process
                31  nginx[1234]
        overflows by listener
                 0
        entries into CLOSE_WAIT 5
        resets sent 29 != TcpOutRsts +31 in this namespace: 2 not seen
        accept-queue overflows 0 = TcpExtListenOverflows +0 in this namespace
        ");
    }

    #[test]
    fn the_rows_of_the_summary_add_up() {
        let mut text = Vec::new();
        let mut with_strangers = samples::summary();
        with_strangers.kinds[0].count += 2;
        summary(&with_strangers, &mut text).expect("memory takes it");
        let text = String::from_utf8_lossy(&text);
        assert!(text.starts_with("31 events of 33 seen in 12.3 s, 0 lost\n"));
        assert!(
            text.contains("        31  nginx[1234]\n         2  others, none, or not known\n"),
            "{text}"
        );
    }

    #[test]
    fn an_empty_summary_says_so() {
        let mut text = Vec::new();
        let empty = Summary {
            resets: Some(Reconciled {
                seen: 2,
                counted: 1,
                partial: true,
            }),
            ..Summary::default()
        };
        summary(&empty, &mut text).expect("memory takes it");
        insta::assert_snapshot!(String::from_utf8_lossy(&text), @"
        0 events in 0 ms, 0 lost
        by event
                 0
        by process
                 0
        overflows by listener
                 0
        entries into CLOSE_WAIT 0
        resets sent 2 != TcpOutRsts +1 in this namespace: 1 more than the kernel counted
        ");
    }

    #[test]
    fn a_gap_is_told_from_a_loss() {
        let mut text = Vec::new();
        let mut gap = samples::summary();
        for counts in [&mut gap.resets, &mut gap.overflows] {
            let counts = counts.as_mut().expect("the sample is of an open trace");
            counts.partial = true;
        }
        summary(&gap, &mut text).expect("memory takes it");
        let text = String::from_utf8_lossy(&text);
        let last: Vec<_> = text.lines().rev().take(2).collect();
        assert_eq!(
            last,
            [
                "accept-queue overflows 0 = TcpExtListenOverflows +0 in this namespace",
                "resets sent 29 of TcpOutRsts +31 in this namespace; not seen: 2, as nothing on this \
                 kernel shows all of them",
            ]
        );
    }

    #[test]
    fn the_banner_names_the_gaps() {
        let mut text = Vec::new();
        let coverage = |signal, way: Option<&str>, note: Option<&str>| Coverage {
            signal: Cow::Borrowed(signal),
            way: way.map(str::to_owned),
            note: note.map(str::to_owned),
            complete: false,
        };
        let coverage = [
            coverage("reset.sent", Some("raw_tracepoint tcp_send_reset"), None),
            coverage("retransmit", None, Some("refused\u{1b}[2J")),
            coverage(
                "fd.exhausted",
                None,
                Some("mount tracefs on /sys/kernel/tracing"),
            ),
        ];
        banner(&coverage, &mut text).expect("memory takes it");
        insta::assert_snapshot!(String::from_utf8_lossy(&text), @r"
        tcptrace 0.1.0 sees 1 of 3 signals on this kernel; `tcptrace doctor` says how, and what each leaves out; Ctrl-C ends it
          not seen: retransmit (refused\u{1b}[2J)
          not seen: fd.exhausted (mount tracefs on /sys/kernel/tracing)
        ");
    }
}
