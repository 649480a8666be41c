//! Who gave up: an end that left while its last bytes were unanswered, and the intervals that give a
//! deadline away.

use super::connection::View;
use super::verdict::{Verdict, Words, connection, fd, peer, time, who};
use crate::event::{Cause, Certainty, Event, Kind, Micros, Millis, Severity, Side, Socket, State};
use std::fmt::Write as _;

/// A wait shorter than this is an answer on its way.
pub(super) const LONG_MS: u64 = 500;

/// A server that closes this soon after it has accepted never meant to serve.
pub(super) const AT_ONCE_US: u64 = 1_000_000;

/// A change of state that is evidence: ordinary connections have none. The kernel half hands over
/// these and no others, unless all are asked for.
pub(super) fn matters(event: &Event) -> bool {
    let Some(socket) = &event.socket else {
        return false;
    };
    let Kind::StateChanged(change) = &event.kind else {
        return peer_waited_ms(socket).is_some();
    };
    let exits = event
        .owner
        .process
        .as_ref()
        .is_some_and(|it| it.exit.is_some());
    match (change.from, change.to) {
        (State::Listen, State::Closed) => true,
        (State::Established, State::FinWait1) => {
            exits || unanswered_ms(socket).is_some() || is_untouched(socket)
        }
        (State::CloseWait, State::LastAck) => exits || left_without_answer(socket),
        _ => false,
    }
}

/// How long a client's last bytes have been unanswered, when that is long.
pub(super) fn unanswered_ms(socket: &Socket) -> Option<u64> {
    let sent = socket.sent_ago_ms?;
    let answered = socket.bytes_received > 0
        && socket
            .received_ago_ms
            .is_some_and(|received| received <= sent);
    (socket.side == Some(Side::Client) && socket.bytes_sent > 0 && !answered && sent >= LONG_MS)
        .then_some(sent)
}

/// A server's connection that was neither read from nor written to, soon after `accept`.
pub(super) fn is_untouched(socket: &Socket) -> bool {
    socket.side == Some(Side::Server)
        && socket.accepted_ago_us.is_some_and(|ago| ago <= AT_ONCE_US)
        && socket.bytes_sent == 0
        && socket.bytes_received <= u64::from(socket.unread)
}

/// What the peer had waited for an answer when its FIN came, when that is long.
pub(super) fn peer_waited_ms(socket: &Socket) -> Option<u64> {
    let waited = socket.fin.as_ref()?.waited_ms?;
    (socket.side != Some(Side::Client) && waited >= LONG_MS).then_some(waited)
}

fn left_without_answer(socket: &Socket) -> bool {
    peer_waited_ms(socket).is_some() && socket.fin.is_some_and(|fin| fin.written == Some(0))
}

/// Whether this service is known to answer: one that only receives looks as if it kept its clients
/// waiting whenever they leave.
fn answers(socket: &Socket) -> bool {
    socket.service_answers || socket.bytes_sent > 0
}

/// The peer had left when this end, a server, wrote its answer or gave it up.
pub(super) fn peer_gave_up(view: View<'_>) -> Option<Verdict> {
    let (socket, waited) = waited_for(view)?;
    let wrote = view.this.reset_received().is_some() || view.this.errors().next().is_some();
    let closed = view.this.closed().is_some();
    let seen_leaving = view.other.closed().is_some();
    if !(wrote || closed && (answers(socket) || seen_leaving)) {
        return None;
    }
    let certainty = match (wrote, seen_leaving) {
        (true, true) => Certainty::High,
        (true, false) => Certainty::Medium,
        (false, _) if answers(socket) => Certainty::Medium,
        // A client that only sends looks the same.
        (false, _) => Certainty::Low,
    };
    let severity = if view.this.errors().next().is_some() {
        Severity::Warn
    } else {
        Severity::Info
    };
    let verdict = Verdict::new(Cause::PeerGaveUp).certainty(certainty);
    Some(verdict.severity(severity).interval(Some(waited)))
}

/// The end its peer had waited for, and how long: any time, if what came after the peer's FIN drew a
/// RST; a long one, if nothing else tells.
fn waited_for(view: View<'_>) -> Option<(&Socket, u64)> {
    let drew_a_reset = view.this.reset_received().is_some();
    view.this.sockets().find_map(|socket| {
        let any = || match socket.side {
            Some(Side::Server) => socket.fin?.waited_ms,
            _ => None,
        };
        let waited = peer_waited_ms(socket).or_else(|| any().filter(|_| drew_a_reset))?;
        Some((socket, waited))
    })
}

/// This end, a client, left without an answer.
pub(super) fn gave_up_waiting(view: View<'_>) -> Option<Verdict> {
    let (seen, _) = view.this.closed()?;
    let waited = unanswered_ms(seen.socket()?)?;
    let socket = seen.socket()?;
    // An answer that came after all; a server that is seen to have let it wait; or a connection on
    // which there had been answers before.
    let late_answer = view
        .this
        .reset_sent()
        .is_some_and(|(_, it)| it.answers_segment);
    let server_seen = view
        .other
        .sockets()
        .any(|it| peer_waited_ms(it).is_some() && answers(it));
    let certainty = if late_answer || server_seen {
        Certainty::High
    } else if socket.bytes_received > 0 {
        Certainty::Medium
    } else if deadline(waited).is_some() || !view.other.is_unseen() {
        Certainty::Low
    } else {
        // One that only sends looks the same.
        return None;
    };
    let verdict = Verdict::new(Cause::GaveUpWaiting).certainty(certainty);
    Some(verdict.severity(Severity::Info).interval(Some(waited)))
}

/// The server took the connection and closed it at once.
pub(super) fn closed_on_accept(view: View<'_>) -> Option<Verdict> {
    let untouched = |socket: &&Socket| is_untouched(socket);
    let closed = view.this.closed().and_then(|(seen, _)| seen.socket());
    let reset = view
        .this
        .reset_sent()
        .filter(|(_, reset)| !reset.answers_segment && !reset.linger_zero)
        .and_then(|(seen, _)| seen.socket());
    closed.or(reset).filter(untouched)?;
    let lost = view.this.reset_sent().is_some() || view.other.reset_received().is_some();
    let verdict = Verdict::new(Cause::ClosedOnAccept).severity(if lost {
        Severity::Warn
    } else {
        // The client read the end of the stream, and may not mind.
        Severity::Info
    });
    view.this.exit().is_none().then_some(verdict)
}

pub(super) fn tell_peer_gave_up(view: View<'_>, verdict: &Verdict) -> Words {
    let socket = waited_for(view).map(|(socket, _)| socket);
    let fin = socket.and_then(|socket| socket.fin);
    let waited = time(verdict.interval_ms);
    let peer = peer(view, "the peer");
    let server = who(view.this, "this process");
    let answered = socket.map_or(0, |it| {
        it.bytes_sent
            .saturating_sub(fin.and_then(|fin| fin.written).unwrap_or(0).into())
    });
    let so_far = match answered {
        0 => "nothing".to_owned(),
        bytes => format!("{bytes} bytes, all before that request"),
    };
    let then = match view
        .this
        .reset_received()
        .and_then(|(seen, _)| seen.socket()?.fin)
    {
        Some(fin) => format!(
            "its answer of {} bytes came {} too late and drew a RST",
            fin.written.unwrap_or(0),
            Micros(fin.ago_us)
        ),
        None => "it closed without an answer".to_owned(),
    };
    let title = format!(
        "{peer} left {} after it had waited {waited} for an answer; {server} was still working: {then}",
        connection(socket)
    );
    Words::new(
        title,
        format!(
            "The peer's own deadline ended the connection while its request was in work here (sent so \
             far: {so_far}). What is written to it then is answered with a RST, and the writes after \
             that fail with EPIPE; nginx logs it as 499."
        ),
    )
    .fix(format!(
        "find out why the answer takes longer than {waited}: that is the failure, the broken pipe is \
         its echo"
    ))
    .fix(
        "or give the client more time than the slowest answer needs, and this server a deadline \
         below the client's, so that it answers with an error instead of working for nobody",
    )
    .not_the_network(view)
}

pub(super) fn tell_gave_up_waiting(view: View<'_>, verdict: &Verdict) -> Words {
    let closed = view.this.closed();
    let socket = closed.and_then(|(seen, _)| seen.socket());
    let waited = time(verdict.interval_ms);
    let client = who(view.this, "a process");
    let server = peer(view, "the server");
    let mut title = format!(
        "{client} closed{} to {} after it had waited {waited} for an answer",
        fd(socket),
        server_of(socket)
    );
    if let Some((seen, _)) = view.this.reset_sent() {
        let since = closed.map_or(seen.first.time, |(closed, _)| closed.first.time);
        let late = Micros(seen.first.time.0.saturating_sub(since.0) / 1_000);
        let _ = write!(title, "; the answer came {late} too late");
    }
    let before = match socket.map_or(0, |it| it.bytes_received) {
        0 => "no byte ever came back on this connection, and a program that only sends looks the same"
            .to_owned(),
        bytes => format!("{bytes} bytes had been answered on it before"),
    };
    let words = Words::new(
        title,
        format!(
            "The program ended the wait by its own deadline or was told to ({before}). Deadlines of \
             Go, Java, Python and Node never reach the kernel as such: they show as this close."
        ),
    )
    .fix(format!("look at {server}: its answer took longer than {waited}"))
    .fix("raise the deadline only if such an answer is worth waiting for")
    .not_the_network(view);
    match deadline(verdict.interval_ms.unwrap_or_default()) {
        Some(known) => words.fix(format!("{known}")),
        None => words,
    }
}

pub(super) fn tell_closed_on_accept(view: View<'_>) -> Words {
    let socket = view.this.socket();
    let after = socket
        .and_then(|socket| socket.accepted_ago_us)
        .map_or(Millis(0).to_string(), |us| Micros(us).to_string());
    let server = who(view.this, "the server");
    let since = view.this.closed().map(|(seen, _)| seen.first.time);
    let since = since.or(view.this.reset_sent().map(|(seen, _)| seen.first.time));
    Words::new(
        format!(
            "{server} accepted {} and closed it {after} later without a byte{}",
            connection(socket),
            super::verdict::then_got(view.other, since.unwrap_or_default())
        ),
        "Servers turn clients away like this when a limit of their own is reached (connections, \
         workers, memory) or an address is not allowed. The client has connected, so it sees the end \
         of the stream or ECONNRESET, not a refusal.",
    )
    .fix(format!(
        "look into the log and the connection limit of {server} (maxclients, max_connections, \
         worker_connections, allow lists)"
    ))
    .ruled_out("the accept queue: this connection was accepted")
    .not_the_network(view)
}

fn server_of(socket: Option<&Socket>) -> String {
    socket
        .and_then(|socket| socket.flow.peer)
        .map_or("its server".to_owned(), |peer| {
            crate::event::End(peer).to_string()
        })
}

/// Intervals that are somebody's default: ms, and whose.
const DEFAULTS: &[(u64, &str)] = &[
    (1_000, "a common value of connect and health-check timeouts"),
    (2_000, "gunicorn's keep-alive, and a common client timeout"),
    (3_000, "a common client timeout"),
    (
        5_000,
        "keep-alive of Node.js, Apache httpd and uvicorn, and a common client timeout",
    ),
    (10_000, "a common client timeout"),
    (15_000, "a common client timeout"),
    (20_000, "a common client timeout"),
    (
        30_000,
        "a common default of HTTP clients and of database pools",
    ),
    (
        60_000,
        "nginx proxy_read_timeout, AWS ALB idle timeout, HAProxy and many clients",
    ),
    (75_000, "nginx keepalive_timeout"),
    (90_000, "Go's http.Transport IdleConnTimeout"),
    (120_000, "a common keep-alive and server timeout"),
    (240_000, "Azure load balancer idle timeout"),
    (300_000, "a common proxy and database idle timeout"),
    (350_000, "AWS NLB and NAT gateway idle timeout"),
    (
        600_000,
        "a common idle timeout of load balancers and firewalls",
    ),
    (900_000, "a common idle timeout of firewalls"),
    (3_600_000, "a common idle timeout of firewalls"),
];

/// A known default this interval is equal to, as far as the kernel's clock of 4 ms and the way of a
/// close allow.
pub(super) fn deadline(ms: u64) -> Option<impl std::fmt::Display> {
    let &(at, whose) = DEFAULTS.iter().find(|&&(at, _)| is_near(ms, at))?;
    Some(std::fmt::from_fn(move |f| {
        write!(f, "{} s is {whose}: maybe this one", at / 1_000)
    }))
}

/// Within 1 %, at least 30 ms: deadlines fire late, never early by more than a tick.
pub(super) fn is_near(ms: u64, at: u64) -> bool {
    ms + 10 >= at && ms <= at + (at / 100).max(30)
}
