//! What a row has no room for: the flows, the timeline, the evidence and the page that explains a finding;
//! and the help.

use std::collections::HashMap;
use std::fmt::Display;

use super::table::rate;
use super::{Row, Scene};
use crate::event::{Count, End, Event, Flow, Kind, Millis, Timestamp};
use crate::explain;
use crate::sink::Body;
use crate::sink::text::printable;
use crate::top::model::{Found, History, Pid, Place};
use crate::top::theme::Tone;

/// A line and how it looks.
pub(super) type Line = (String, Tone);

/// Events shown of a timeline.
const EVENTS: usize = 200;
/// Flows shown of a process.
const FLOWS: usize = 20;

/// What there is to say of a row, in lines of this width.
pub(super) fn of(scene: Scene<'_>, row: Row, width: usize) -> Vec<Line> {
    let mut page = Page {
        scene,
        width,
        lines: Vec::new(),
    };
    match row {
        Row::Process(pid) => page.process(pid),
        Row::Listener(place) => page.listener(place),
        Row::Finding(id) => match scene.view.found_by(id) {
            Some(found) => page.finding(found),
            None => page.gone(),
        },
    }
    page.lines
}

struct Page<'a> {
    scene: Scene<'a>,
    width: usize,
    lines: Vec<Line>,
}

impl Page<'_> {
    /// A word and what it is about, wrapped.
    fn row(&mut self, word: &str, text: impl Display, tone: Tone) {
        const INDENT: usize = 13;
        let text = printable(text).to_string();
        let first = format!("{word:<width$} ", width = INDENT - 1);
        let rest = " ".repeat(INDENT);
        let options = textwrap::Options::new(self.width.max(INDENT + 20))
            .initial_indent(&first)
            .subsequent_indent(&rest)
            .break_words(false);
        let lines = textwrap::wrap(&text, options);
        self.lines
            .extend(lines.into_iter().map(|line| (line.into_owned(), tone)));
    }

    fn heading(&mut self, text: impl Display) {
        self.lines.push((String::new(), Tone::Plain));
        self.lines
            .push((printable(text).to_string(), Tone::Heading));
    }

    fn gone(&mut self) {
        let text = "It made room for others, or is gone. Esc goes back.";
        self.lines.push((text.to_owned(), Tone::Faint));
    }

    fn process(&mut self, pid: Pid) {
        let Some(process) = self.scene.view.processes.get(&pid) else {
            return self.gone();
        };
        let name = match pid.pid {
            0 => "no process: sockets nobody holds, or nobody known".to_owned(),
            number => format!("{}[{number}]", process.comm),
        };
        let gone = if process.gone { " (gone)" } else { "" };
        self.lines.push((
            printable(format!("{name}{gone}")).to_string(),
            Tone::Heading,
        ));
        if let Some(exe) = &process.exe {
            self.row("program", exe, Tone::Plain);
        }
        if let Some(container) = &process.container {
            let pod = container.pod.as_ref();
            let pod = pod.map(|pod| format!(", pod {pod}")).unwrap_or_default();
            self.row(
                "container",
                format_args!("{}{pod}", container.id),
                Tone::Plain,
            );
        }
        let (sent, received) = (process.resets_sent, process.resets_received);
        let resets = format!("sent {sent}, received {received}");
        self.row("resets", resets, Tone::Plain);
        let errors = process.errors.iter();
        let errors: Vec<_> = errors
            .map(|(errno, count)| format!("{count} {errno}"))
            .collect();
        let errors = if errors.is_empty() {
            "none".to_owned()
        } else {
            errors.join(", ")
        };
        self.row("errors", errors, Tone::Plain);
        self.row("timeouts", process.timeouts, Tone::Plain);
        if let Some(fds) = process.fds {
            let tone = if fds.is_short() {
                Tone::Bad
            } else {
                Tone::Plain
            };
            let percent = fds.percent();
            let text = match fds.limit {
                u64::MAX => format!("{}, no limit", fds.open),
                limit => format!("{} of {limit} ({percent} %)", fds.open),
            };
            self.row("descriptors", text, tone);
        }
        self.spark("events", &process.events, None);
        let listens = self.scene.view.listeners.iter();
        let mut listens: Vec<_> = listens
            .filter(|(_, it)| it.owner.is_some_and(|(owner, _)| owner == pid))
            .map(|(place, _)| End(place.address).to_string())
            .collect();
        listens.sort();
        if !listens.is_empty() {
            self.row("listens on", listens.join(", "), Tone::Plain);
        }
        if process.close_wait > 0 {
            let least = if process.close_wait_is_older {
                "at least "
            } else {
                ""
            };
            self.heading(format_args!(
                "{} in CLOSE_WAIT: the peer has closed, this process has not",
                Count(process.close_wait, "connection")
            ));
            for (flow, since) in &process.close_wait_flows {
                let age = self.age(*since);
                let line = format!("  {least}{age:<10} {flow}");
                self.lines.push((line, Tone::Plain));
            }
            let rest = process.close_wait - process.close_wait_flows.len() as u64;
            if rest > 0 {
                self.lines
                    .push((format!("  and {rest} younger ones"), Tone::Faint));
            }
        }
        let of_it = |event: &Event| {
            let owner = event.owner.process.as_ref().map_or(0, |it| it.pid);
            owner == pid.pid && event.id.run() == pid.run
        };
        self.findings_of(of_it);
        self.flows(of_it);
        self.timeline(of_it);
    }

    fn listener(&mut self, place: Place) {
        let Some(listener) = self.scene.view.listeners.get(&place) else {
            return self.gone();
        };
        let gone = if listener.gone { " (closed)" } else { "" };
        let name = format!(
            "{} in network namespace {}{gone}",
            End(place.address),
            place.netns
        );
        self.lines.push((name, Tone::Heading));
        match listener.owner {
            Some((pid, comm)) => {
                self.row("owner", format_args!("{comm}[{}]", pid.pid), Tone::Plain);
            }
            None => self.row("owner", "not known", Tone::Faint),
        }
        if listener.sockets > 1 {
            let text = format!(
                "{} share the address; the queue is the fullest one",
                listener.sockets
            );
            self.row("sockets", text, Tone::Plain);
        }
        if let Some(len) = listener.len {
            let tone = if listener.is_full() {
                Tone::Bad
            } else {
                Tone::Plain
            };
            let text = match listener.max {
                Some(max) if listener.is_full() => {
                    format!("full: {len} wait for accept, the limit is {max}")
                }
                Some(max) => format!("{len} wait for accept, the limit is {max}"),
                None => format!("{len} wait for accept"),
            };
            self.row("queue", text, tone);
        }
        if let Some(max) = listener.max {
            let text = match listener.backlog {
                Some(backlog) if backlog > max => {
                    format!("net.core.somaxconn: the program asked listen() for {backlog}")
                }
                Some(backlog) => format!("the program asked listen() for {backlog}"),
                None => {
                    "the smaller of what listen() was asked for and net.core.somaxconn".to_owned()
                }
            };
            self.row("limit is", text, Tone::Plain);
        }
        let tone = if listener.lost > 0 {
            Tone::Bad
        } else {
            Tone::Plain
        };
        let (lost, losses) = (listener.lost, rate(listener.losses.rate()));
        self.row(
            "lost",
            format_args!("{}, {losses} a second", Count(lost, "handshake")),
            tone,
        );
        match listener.accepted {
            Some(accepted) => {
                let rate = rate(listener.accepts.rate());
                let text = format!(
                    "{} since the start, {rate} a second",
                    Count(accepted, "connection")
                );
                self.row("accepted", text, Tone::Plain);
            }
            None => self.row("accepted", "not counted", Tone::Faint),
        }
        if let Some(at) = listener.last_accept {
            let ago = Millis(self.scene.view.accepted_ago(at) / 1_000_000);
            self.row("last accept", format_args!("{ago} ago"), Tone::Plain);
        }
        self.heading("The last minute");
        let most = listener.max.map(|max| max.saturating_add(1));
        self.spark("queue", &listener.depth, most);
        self.spark("lost", &listener.losses, None);
        self.spark("accepted", &listener.accepts, None);
        let of_it = |event: &Event| {
            let flow = event.socket.as_ref().map(|it| it.flow);
            flow.is_some_and(|it| it.netns == place.netns && serves(place, it))
                && event.id.run() == place.run
        };
        self.findings_of(of_it);
        self.timeline(of_it);
    }

    fn finding(&mut self, found: &Found) {
        let Some(finding) = found.finding() else {
            return;
        };
        self.row("what", &finding.title, Tone::Heading);
        let severity = finding.severity.as_str();
        let certainty = finding.certainty.as_str();
        let cause = finding.cause.as_str();
        self.row(
            "cause",
            format_args!("{cause} ({severity}, confidence {certainty})"),
            Tone::Plain,
        );
        self.row("why", &finding.why, Tone::Plain);
        let who = match &found.event.owner.process {
            Some(process) => process.to_string(),
            None => "no process is known".to_owned(),
        };
        match &finding.peer {
            Some(peer) => self.row(
                "who",
                format_args!("{who}; at the other end {peer}"),
                Tone::Name,
            ),
            None => self.row("who", who, Tone::Name),
        }
        if let Some(socket) = &found.event.socket {
            self.row("flow", socket.flow, Tone::Plain);
        }
        let (first, last) = (finding.first, finding.last);
        let (first, last) = (self.scene.title.time(first), self.scene.title.time(last));
        let so_far = if finding.closed { "" } else { " so far" };
        let count = finding.count;
        self.row(
            "count",
            format_args!("{count}{so_far}, {first} to {last}"),
            Tone::Plain,
        );
        for (errno, count) in &finding.errors {
            self.row("programs got", format_args!("{count} {errno}"), Tone::Warn);
        }
        for line in found.event.stack().iter().flat_map(|stack| stack.lines()) {
            self.row("where", line, Tone::Plain);
        }
        for ruled_out in &finding.ruled_out {
            self.row("not", ruled_out, Tone::Plain);
        }
        for fix in &finding.fix {
            self.row("fix", fix, Tone::Heading);
        }
        self.heading("Evidence");
        let evidence: Vec<_> = self.scene.view.evidence(&finding.evidence).collect();
        for event in &evidence {
            self.event(event);
        }
        let missing = finding.evidence.len() - evidence.len().min(finding.evidence.len());
        if missing > 0 {
            let text = format!(
                "  {} made room for later ones",
                Count(missing as u64, "event")
            );
            self.lines.push((text, Tone::Faint));
        }
        self.explained(finding.hint.unwrap_or(finding.cause).as_str());
    }

    /// The page of `tcptrace explain`.
    fn explained(&mut self, name: &str) {
        let Ok(found) = explain::find(name) else {
            return;
        };
        self.heading(format_args!("tcptrace explain {name}"));
        let text = explain::show::found(&found, false);
        // Its first line is the name.
        let lines = text
            .lines()
            .skip(1)
            .map(|line| (line.to_owned(), Tone::Plain));
        self.lines.extend(lines);
    }

    fn spark(&mut self, word: &str, history: &History, most: Option<u32>) {
        let most = most.unwrap_or_else(|| history.last(History::SECONDS).max().unwrap_or(0));
        let room = self.width.saturating_sub(40).min(History::SECONDS);
        let line = self.scene.theme.spark(history.last(room), most);
        let highest = history.last(room).max().unwrap_or(0);
        let text = format!("{word:<12} |{line:>room$}| at most {highest} a second");
        let text = if word == "queue" {
            text.replace(" a second", &format!(" of {most}"))
        } else {
            text
        };
        self.lines.push((text, Tone::Plain));
    }

    fn findings_of(&mut self, of_it: impl Fn(&Event) -> bool) {
        let found: Vec<_> = self.scene.view.findings.iter().rev().collect();
        let found = found.into_iter().filter(|it| of_it(&it.event));
        let lines: Vec<_> = found
            .filter_map(|it| {
                let finding = it.finding()?;
                let time = self.scene.title.time(finding.last);
                let cause = finding.cause.as_str();
                Some(format!(
                    "  {time} {:>6} {cause}: {}",
                    finding.count, finding.title
                ))
            })
            .collect();
        if !lines.is_empty() {
            self.heading("Findings");
            let lines = lines.into_iter().map(|line| (line, Tone::Warn));
            self.lines.extend(lines);
        }
    }

    /// Connections with the most events, of those still in the timeline.
    fn flows(&mut self, of_it: impl Fn(&Event) -> bool) {
        let mut counts: HashMap<Flow, (u64, Timestamp)> = HashMap::new();
        let events = self.scene.view.timeline.iter().filter(|it| of_it(it));
        for event in events {
            if let Some(flow) = event.socket.as_ref().map(|it| it.flow)
                && flow.peer.is_some()
            {
                let (count, last) = counts.entry(flow).or_default();
                *count += 1;
                *last = event.time;
            }
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|&(flow, (count, last))| {
            (std::cmp::Reverse((count, last)), flow.local, flow.peer)
        });
        if counts.is_empty() {
            return;
        }
        self.heading("Connections with the most events");
        for (flow, (count, last)) in counts.iter().take(FLOWS) {
            let time = self.scene.title.time(*last);
            self.lines
                .push((format!("  {time} {count:>6} {flow}"), Tone::Plain));
        }
        let rest = counts.len().saturating_sub(FLOWS);
        if rest > 0 {
            self.lines.push((format!("  and {rest} more"), Tone::Faint));
        }
    }

    fn timeline(&mut self, of_it: impl Fn(&Event) -> bool) {
        let events = self.scene.view.timeline.iter().rev().filter(|it| of_it(it));
        let events: Vec<_> = events.take(EVENTS).collect();
        self.heading("Timeline, newest first");
        if events.is_empty() {
            self.lines.push(("  no events".to_owned(), Tone::Faint));
        }
        for event in events {
            self.event(event);
        }
    }

    fn event(&mut self, event: &Event) {
        let time = self.scene.title.time(event.time);
        let first = format!("  {time} ");
        let text = printable(Body(event)).to_string();
        let options = textwrap::Options::new(self.width.max(40))
            .initial_indent(&first)
            .subsequent_indent("           ")
            .break_words(false);
        let tone = match event.kind {
            Kind::ResetSent(_) | Kind::ResetReceived(_) | Kind::AcceptQueueOverflow(_) => Tone::Bad,
            _ => Tone::Plain,
        };
        let lines = textwrap::wrap(&text, options);
        self.lines
            .extend(lines.into_iter().map(|line| (line.into_owned(), tone)));
    }

    fn age(&self, since: Timestamp) -> Millis {
        Millis(self.scene.view.now.0.saturating_sub(since.0) / 1_000_000)
    }
}

/// The flow is the listener's own, or of a connection that may have come in through it.
fn serves(place: Place, flow: Flow) -> bool {
    let local = flow.local;
    local == place.address
        || (local.port() == place.address.port() && place.address.ip().is_unspecified())
}

const HELP: &str = "\
Keys
  Tab, Shift-Tab, 1 2 3   the next pane, the one before, this pane
  up down, j k            the row above, below
  PageUp PageDown g G     a page up, a page down, the first, the last
  Enter, right, l         all there is to say of a row
  Esc, left, h, q         back
  /                       only rows that hold a text: a name, a pid, an address, an error
  s                       another order
  p                       pause: what is on the screen stays, counting goes on
  q, Ctrl-C               end

Processes
  RSTout, RSTin           RSTs its sockets have sent and received
  CLOSE_WAIT, OLDEST      connections the peer has closed and it has not; > is at least
  FDS                     open descriptors of its limit; ! is nine of ten or more
  ERRORS                  what its calls on sockets returned, most first

Listeners
  QUEUE, HISTORY          connections waiting for accept() of the limit, now and before; ! is full
  LOST                    handshakes that found it full, and how many a second now
  ACC/s, LAST             connections accepted a second, and how long ago the last one was

Findings                  the one told last first; ! is a service that fails";

/// The keys, the columns, and what is not seen here.
pub(super) fn help(scene: Scene<'_>) -> Vec<Line> {
    let tone = |line: &str| {
        if line.starts_with(' ') {
            Tone::Plain
        } else {
            Tone::Heading
        }
    };
    let mut lines: Vec<Line> = HELP.lines().map(|it| (it.to_owned(), tone(it))).collect();
    let view = scene.view;
    lines.push((String::new(), Tone::Plain));
    lines.push(("Signals".to_owned(), Tone::Heading));
    for coverage in &view.coverage {
        let signal = &coverage.signal;
        let why = coverage.note.as_deref().unwrap_or_default();
        let (line, tone) = match &coverage.way {
            Some(way) => (format!("  {signal}: {way}"), Tone::Plain),
            None => (format!("  {signal}: NOT SEEN; {why}"), Tone::Warn),
        };
        lines.push((printable(line).to_string(), tone));
    }
    if view.forgotten > 0 {
        let rows = Count(view.forgotten, "row");
        lines.push((format!("{rows} made room for others"), Tone::Faint));
    }
    lines
}
