//! What one look over the host's sockets found, in tables for a person: what is wrong comes first.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;

use anstyle::{AnsiColor, Style};
use bytes::{BufMut as _, BytesMut};

use super::{Columns, Line, NARROWEST, PROCESS};
use crate::event::{
    Address, CloseWaits, Confidence, Count, End, Event, Kind, Listener, Millis, NamespaceSockets,
    ProcessSockets, Severity, Side, Sockets, State, States, TimeWaits,
};
use crate::sink::sentence::{doubt, sockets as words};

/// Rows of a table where not all are asked for.
const ROWS: usize = 10;

/// A row, and the event it is of.
#[derive(Clone, Copy)]
struct Row<'a> {
    event: &'a Event,
    found: &'a Sockets,
}

/// What to call the namespaces that are not the one looked from.
type Names = HashMap<u32, String>;

/// The table a row is in; of two that are as grave the first comes first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    CloseWaits,
    Listeners,
    Processes,
    TimeWaits,
    Namespaces,
}

impl Table {
    const ALL: [Self; 5] = [
        Self::CloseWaits,
        Self::Listeners,
        Self::Processes,
        Self::TimeWaits,
        Self::Namespaces,
    ];

    fn of(found: &Sockets) -> Option<Self> {
        Some(match found {
            Sockets::CloseWait(_) => Self::CloseWaits,
            Sockets::Listener(_) => Self::Listeners,
            Sockets::Process(_) | Sockets::Unowned(..) => Self::Processes,
            Sockets::TimeWait(_) => Self::TimeWaits,
            Sockets::Namespace(_) => Self::Namespaces,
            Sockets::Socket { .. } => return None,
        })
    }

    fn header(self, line: &mut Line<'_>) {
        line.text(usize::MAX, "  ");
        match self {
            Self::CloseWaits => {
                line.cell(10, right(10, "CLOSE_WAIT"));
                line.cell(9, right(9, "OLDEST"));
                line.cell(10, "EOF");
                line.cell(PROCESS, "PROCESS");
                line.text(usize::MAX, "SERVICE");
            }
            Self::Listeners => {
                line.cell(6, right(6, "QUEUE"));
                line.cell(6, right(6, "LIMIT"));
                line.cell(10, "LIMITED BY");
                line.cell(6, right(6, "DROPS"));
                line.cell(8, right(8, "SYN_RECV"));
                line.cell(PROCESS, "PROCESS");
                line.text(usize::MAX, "LISTEN");
            }
            Self::Processes => {
                line.cell(PROCESS, "PROCESS");
                line.cell(8, right(8, "ESTAB"));
                line.cell(10, right(10, "CLOSE_WAIT"));
                line.cell(7, right(7, "LISTEN"));
                line.cell(7, right(7, "OTHER"));
                line.text(usize::MAX, right(22, "DESCRIPTORS OF LIMIT"));
            }
            Self::TimeWaits => {
                line.cell(9, right(9, "TIME_WAIT"));
                line.cell(12, "CLOSED FIRST");
                line.text(usize::MAX, "SERVICE, and who has most of them");
            }
            Self::Namespaces => {
                line.cell(9, right(9, "SOCKETS"));
                line.cell(9, right(9, "OVERFLOWS"));
                line.cell(11, right(11, "LISTENDROPS"));
                line.cell(9, right(9, "SYN DROPS"));
                line.cell(11, right(11, "SYN COOKIES"));
                line.text(usize::MAX, "NAMESPACE, totals so far");
            }
        }
    }
}

impl Columns {
    /// Adds the tables; a row that stands for trouble begins with `!`. Without `all` each has its first
    /// rows only, and says how many more there are.
    pub fn sockets(&self, events: &[Event], all: bool, to: &mut BytesMut) {
        let rows = events.iter().filter_map(|event| match &event.kind {
            Kind::Sockets(found) => Some(Row { event, found }),
            _ => None,
        });
        let rows: Vec<Row<'_>> = rows.collect();
        let names = self.head(&rows, to);
        let mut tables = Table::ALL.map(|table| {
            let own = rows
                .iter()
                .filter(|row| Table::of(row.found) == Some(table));
            (table, own.copied().collect::<Vec<_>>())
        });
        tables.sort_by_key(|(_, rows)| {
            let grave = rows.iter().map(|row| row.found.severity() as u8);
            Reverse(grave.max())
        });
        for (table, rows) in tables.iter().filter(|(_, rows)| !rows.is_empty()) {
            to.put_u8(b'\n');
            let mut line = Line::new(to);
            table.header(&mut line);
            line.end();
            let is_row = |row: &&Row<'_>| !matches!(row.found, Sockets::Unowned(..));
            let rest = rows.iter().filter(is_row).count();
            let shown = if all { rest } else { rest.min(ROWS) };
            for row in rows.iter().filter(is_row).take(shown) {
                self.row(*row, &names, to);
            }
            if rest > shown {
                let mut line = Line::new(to);
                line.text(
                    usize::MAX,
                    format_args!("  and {} more (--all)", rest - shown),
                );
                line.end();
            }
            for row in rows.iter().filter(|row| !is_row(row)) {
                self.row(*row, &names, to);
            }
        }
    }

    /// Adds how many there are of which state, and gives the names of the namespaces that need one.
    fn head(&self, rows: &[Row<'_>], to: &mut BytesMut) -> Names {
        let namespaces = rows.iter().filter_map(|row| match row.found {
            Sockets::Namespace(namespace) => Some(namespace),
            _ => None,
        });
        let namespaces: Vec<&NamespaceSockets> = namespaces.collect();
        let states = namespaces.iter().fold(States::default(), |sum, namespace| {
            sum.with(&namespace.states)
        });
        let text = fmt::from_fn(|f| {
            words::states(f, &states)?;
            match namespaces.len() {
                0 | 1 => Ok(()),
                several => write!(f, "; in {several} network namespaces"),
            }
        });
        for line in textwrap::wrap(&text.to_string(), self.width.max(NARROWEST)) {
            to.put_slice(line.trim_end().as_bytes());
            to.put_u8(b'\n');
        }
        let foreign = namespaces
            .iter()
            .filter(|it| !it.own && namespaces.len() > 1);
        foreign
            .map(|it| {
                (
                    it.inode,
                    it.name.clone().unwrap_or_else(|| it.inode.to_string()),
                )
            })
            .collect()
    }

    fn row(&self, row: Row<'_>, names: &Names, to: &mut BytesMut) {
        let Row { event, found } = row;
        let mut line = Line::new(to);
        let (mark, style) = match found.severity() {
            Severity::Info => (" ", Style::new()),
            Severity::Warn => ("!", AnsiColor::Yellow.on_default().bold()),
            Severity::Error => ("!", AnsiColor::Red.on_default().bold()),
        };
        let style = if self.color { style } else { Style::new() };
        line.styled(style, 1, mark);
        match found {
            Sockets::CloseWait(waits) => {
                close_waits(&mut line, style, event, waits);
                self.rest(&mut line, event, names, oldest(event, waits));
            }
            Sockets::Listener(listener) => {
                listening(&mut line, style, event, listener);
                self.rest(&mut line, event, names, fmt::from_fn(|f| shared(f, event)));
            }
            Sockets::Process(process) => holds(&mut line, style, event, process),
            Sockets::TimeWait(waits) => {
                time_waits(&mut line, style, waits);
                self.rest(&mut line, event, names, others(waits));
            }
            Sockets::Unowned(why, states) => {
                line.text(usize::MAX, words::nobody(*why));
                line.text(usize::MAX, fmt::from_fn(|f| words::states(f, states)));
            }
            Sockets::Namespace(namespace) => counters(&mut line, namespace),
            Sockets::Socket { .. } => {}
        }
        line.end();
    }

    /// Where it is, if not in the namespace looked from, and what a narrow terminal may cut.
    fn rest(&self, line: &mut Line<'_>, event: &Event, names: &Names, detail: impl fmt::Display) {
        let netns = match (&event.kind, &event.socket) {
            (Kind::Sockets(found), _) if let Sockets::TimeWait(waits) = &**found => {
                Some(waits.netns)
            }
            (_, socket) => socket.as_ref().map(|socket| socket.flow.netns),
        };
        if let Some(name) = netns.and_then(|netns| names.get(&netns)) {
            line.text(usize::MAX, format_args!(" in {name}"));
        }
        let left = self.width.saturating_sub(line.used);
        line.text(left, detail);
    }

    /// Adds the names of the columns of single sockets.
    pub fn each_header(&self, to: &mut BytesMut) {
        to.put_u8(b'\n');
        let mut line = Line::new(to);
        line.cell(11, "STATE");
        line.cell(9, right(9, "AGE"));
        line.cell(6, "EOF");
        line.cell(8, right(8, "UNREAD"));
        line.cell(8, right(8, "UNACKED"));
        line.cell(PROCESS, "PROCESS");
        line.cell(5, right(5, "FD"));
        line.text(usize::MAX, "LOCAL > PEER");
        line.end();
    }

    /// Adds a single socket.
    pub fn each(&self, event: &Event, to: &mut BytesMut) {
        let (Kind::Sockets(found), Some(socket)) = (&event.kind, &event.socket) else {
            return;
        };
        let Sockets::Socket { close_wait_ms } = &**found else {
            return;
        };
        let mut line = Line::new(to);
        let waits = socket.state == Some(State::CloseWait);
        let style = if self.color && waits {
            AnsiColor::Yellow.on_default()
        } else {
            Style::new()
        };
        line.styled(
            style,
            11,
            fmt::from_fn(|f| match socket.state {
                Some(state) => write!(f, "{state}"),
                None => Ok(()),
            }),
        );
        line.cell(9, right(9, Age(*close_wait_ms, waits)));
        line.cell(
            6,
            match waits {
                true if socket.eof_read => "read",
                true => "unread",
                false => "",
            },
        );
        line.cell(8, right(8, socket.unread));
        line.cell(8, right(8, socket.unacked));
        line.process(&event.owner, true);
        line.cell(
            5,
            right(
                5,
                fmt::from_fn(|f| match socket.fd {
                    Some(fd) => write!(f, "{fd}"),
                    None => f.write_str("-"),
                }),
            ),
        );
        line.text(usize::MAX, socket.flow);
        line.text(usize::MAX, fmt::from_fn(|f| shared(f, event)));
        line.end();
    }
}

fn close_waits(line: &mut Line<'_>, style: Style, event: &Event, waits: &CloseWaits) {
    line.styled(style, 10, right(10, waits.count));
    line.cell(9, right(9, Age(waits.age_ms, true)));
    line.cell(
        10,
        fmt::from_fn(|f| match waits.eof_unread {
            0 => f.write_str("read"),
            all if all == waits.count => f.write_str("unread"),
            some => write!(f, "{some} unread"),
        }),
    );
    holder(line, event);
    let Some(socket) = &event.socket else { return };
    match socket.flow.peer.filter(|_| !waits.served) {
        Some(service) => line.text(usize::MAX, format_args!("to {}", End(service))),
        None => line.text(usize::MAX, format_args!("at {}", End(socket.flow.local))),
    }
}

/// The oldest of them, and what is unread of all.
fn oldest(event: &Event, waits: &CloseWaits) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        shared(f, event)?;
        let socket = event.socket.as_ref();
        if let Some(fd) = socket.and_then(|socket| socket.fd) {
            write!(f, ", oldest fd {fd}")?;
        }
        if let Some(peer) = socket
            .and_then(|socket| socket.flow.peer)
            .filter(|_| waits.served)
        {
            write!(f, " of {}", End(peer))?;
        }
        match waits.unread {
            0 => Ok(()),
            unread => write!(f, ", {} unread", Count(unread, "byte")),
        }
    })
}

/// That several hold it, or that it waits for `accept`.
fn shared(f: &mut fmt::Formatter<'_>, event: &Event) -> fmt::Result {
    match doubt(event).filter(|_| is_doubtful(event)) {
        Some(doubt) => write!(f, " ({doubt})"),
        None => Ok(()),
    }
}

fn is_doubtful(event: &Event) -> bool {
    let confidence = event.owner.confidence;
    matches!(confidence, Confidence::Shared | Confidence::Inherited)
}

/// Who holds it. That a process which may not be read could hold it too is said once, not here.
fn holder(line: &mut Line<'_>, event: &Event) {
    let end = line.used + PROCESS;
    match &event.owner.process {
        Some(process) => line.named(process, if is_doubtful(event) { "~" } else { "" }),
        None => line.text(usize::MAX, "?"),
    }
    line.pad(end);
}

fn listening(line: &mut Line<'_>, style: Style, event: &Event, listener: &Listener) {
    line.styled(style, 6, right(6, listener.len));
    line.cell(6, right(6, Known(listener.max)));
    line.cell(10, listener.limited_by().map_or("?", words::source));
    line.cell(6, right(6, Known(listener.drops)));
    line.cell(8, right(8, listener.half_done));
    holder(line, event);
    if let Some(socket) = &event.socket {
        line.text(usize::MAX, socket.flow);
    }
}

fn holds(line: &mut Line<'_>, style: Style, event: &Event, process: &ProcessSockets) {
    holder(line, event);
    let states = &process.states;
    let shown = [State::Established, State::CloseWait, State::Listen].map(|state| states.of(state));
    let other = states.total() - shown.iter().sum::<u64>();
    line.cell(8, right(8, shown[0]));
    line.cell(10, right(10, shown[1]));
    line.cell(7, right(7, shown[2]));
    line.cell(7, right(7, other));
    let descriptors = fmt::from_fn(|f| {
        write!(f, "{} of {}", process.open, Known(process.limit))?;
        process
            .percent()
            .map_or(Ok(()), |percent| write!(f, " {percent:>3} %"))
    });
    line.styled(style, 22, right(22, descriptors));
}

fn time_waits(line: &mut Line<'_>, style: Style, waits: &TimeWaits) {
    line.styled(style, 9, right(9, waits.count));
    line.cell(
        12,
        match waits.side {
            Some(Side::Client) => "this client",
            Some(Side::Server) => "this server",
            None => "this end",
        },
    );
    let way = if waits.side == Some(Side::Client) {
        "to"
    } else {
        "at"
    };
    line.text(usize::MAX, format_args!("{way} {}", End(waits.service)));
}

/// Who has most of them.
fn others(waits: &TimeWaits) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        let most = Address(waits.most);
        match waits.addresses {
            1 => write!(f, ", all with {most}")?,
            several => write!(
                f,
                ", {} with {most} of {several} addresses",
                waits.most_count
            )?,
        }
        match waits.percent_of_ports() {
            None | Some(0) => Ok(()),
            Some(percent) => write!(f, ", {percent} % of its local ports"),
        }
    })
}

fn counters(line: &mut Line<'_>, namespace: &NamespaceSockets) {
    line.cell(9, right(9, namespace.states.total()));
    line.cell(9, right(9, Known(namespace.overflows)));
    line.cell(11, right(11, Known(namespace.listen_drops)));
    line.cell(9, right(9, Known(namespace.syn_drops)));
    line.cell(11, right(11, Known(namespace.syn_cookies)));
    line.text(usize::MAX, name(namespace));
    if namespace.own {
        line.text(usize::MAX, " (this one)");
    }
}

fn name(namespace: &NamespaceSockets) -> String {
    match &namespace.name {
        Some(name) => format!("{name} [{}]", namespace.inode),
        None => namespace.inode.to_string(),
    }
}

/// The numbers of a column stand below each other.
fn right(width: usize, what: impl fmt::Display) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "{:>width$}", what.to_string()))
}

/// A number the kernel may not tell.
struct Known<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Known<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(number) => number.fmt(f),
            None => f.write_str("?"),
        }
    }
}

/// How long at least, where there is a time.
struct Age(Option<u64>, bool);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(Some(age), _) => write!(f, ">{}", Millis(*age)),
            Self(None, true) => f.write_str("?"),
            Self(None, false) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::samples;

    fn tables(columns: &Columns, events: &[Event]) -> String {
        let mut text = BytesMut::new();
        columns.sockets(events, false, &mut text);
        String::from_utf8(text.to_vec()).expect("tables are text")
    }

    #[test]
    fn what_is_wrong_comes_first() {
        let text = tables(&samples::columns(), &samples::sockets());
        insta::assert_snapshot!(text, @"
        1030 sockets, 70 ESTABLISHED, 5 SYN_RECV, 20 TIME_WAIT, 932 CLOSE_WAIT, 1 LAST_ACK, 2 LISTEN; in 2 network namespaces

           QUEUE  LIMIT LIMITED BY  DROPS SYN_RECV PROCESS          LISTEN
        !    129    128 listen()       31        5 nginx[1234]      0.0.0.0:8080
               0   4096 somaxconn       0        0 ?                [::]:22

          CLOSE_WAIT    OLDEST EOF        PROCESS          SERVICE
        !        931      >3 h 912 unread nginx[1234]      to 10.0.0.5:5432, oldest fd 17, 12040 bytes unread
                   1    >12 ms read       ~nginx[1234]     at 10.0.0.1:8080 (shared by 2), oldest fd 17 of 203.0.113.7:51234

          PROCESS             ESTAB CLOSE_WAIT  LISTEN   OTHER   DESCRIPTORS OF LIMIT
        ! nginx[1234]            70        932       2       1     1010 of 1024  98 %
          not accepted yet: 129 sockets, 129 ESTABLISHED
          the kernel's alone: 164 sockets, 4 FIN_WAIT2, 160 TIME_WAIT

          TIME_WAIT CLOSED FIRST SERVICE, and who has most of them
        !     26000 this client  to 10.0.0.5:443, all with 10.0.0.1, 92 % of its local ports
               1160 this server  at 10.0.0.1:8080, 700 with 203.0.113.7 of 14 addresses

            SOCKETS OVERFLOWS LISTENDROPS SYN DROPS SYN COOKIES NAMESPACE, totals so far
               1005        31          49         0           7 4026531840 (this one)
                 25         ?          49         0           7 blue [4026532177]
        ");
    }

    #[test]
    fn a_narrow_terminal_cuts_only_what_is_said_elsewhere() {
        let narrow = Columns {
            width: 80,
            ..samples::columns()
        };
        let text = tables(&narrow, &samples::sockets());
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        for whole in ["to 10.0.0.5:5432", "at 10.0.0.1:8080", "1010 of 1024  98 %"] {
            assert!(text.contains(whole), "{text}");
        }
    }

    #[test]
    fn single_sockets_are_lines() {
        let columns = samples::columns();
        let mut text = BytesMut::new();
        columns.each_header(&mut text);
        for event in samples::sockets() {
            columns.each(&event, &mut text);
        }
        let text = String::from_utf8(text.to_vec()).expect("lines are text");
        insta::assert_snapshot!(text, @"

        STATE             AGE EOF      UNREAD  UNACKED PROCESS             FD LOCAL > PEER
        CLOSE_WAIT       >3 h unread        0        0 nginx[1234]         17 10.0.0.1:40112 > 10.0.0.5:5432
        ");
    }

    #[test]
    fn a_long_table_ends_with_how_many_more_there_are() {
        let leak = samples::sockets().swap_remove(2);
        let many = vec![leak; 25];
        let columns = samples::columns();
        let text = tables(&columns, &many);
        assert_eq!(text.matches("931").count(), ROWS);
        assert!(text.ends_with("  and 15 more (--all)\n"), "{text}");
        let mut all = BytesMut::new();
        columns.sockets(&many, true, &mut all);
        let all = String::from_utf8(all.to_vec()).expect("tables are text");
        assert_eq!(
            (all.matches("931").count(), all.contains("more")),
            (25, false)
        );
    }

    #[test]
    fn colour_adds_nothing_but_colour() {
        let columns = Columns {
            color: true,
            ..samples::columns()
        };
        let colored = tables(&columns, &samples::sockets());
        assert!(colored.contains("\x1b["));
        let plain = uncolored(&colored);
        assert_eq!(plain, tables(&samples::columns(), &samples::sockets()));
    }

    /// Without the sequences that set colours.
    fn uncolored(text: &str) -> String {
        let mut parts = text.split("\x1b[");
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |text, part| {
            text + part.split_once('m').map_or("", |(_, rest)| rest)
        })
    }
}
