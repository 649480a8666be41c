//! What happened, in words a person reads first; the kernel's words come after them. What matters
//! most comes first, because a line of columns may end early.

pub(super) mod sockets;

use std::fmt::{self, Display as _};

use nix::sys::signal::Signal;

use crate::diagnose;
use crate::event::{
    CallError, Cause, Certainty, CloseWait, Confidence, ConnectFailed, Count, Coverage, Errno,
    Event, Exit, FdExhausted, Finding, Kind, Micros, Millis, Overflow, OverflowPath, ResetReceived,
    ResetSent, Socket, State, StateChange, SynQueue, Target, Timeout, Turn,
};

/// An event in a few words.
pub(super) fn label(event: &Event) -> &'static str {
    match &event.kind {
        Kind::ResetSent(_) => "RST sent",
        Kind::ResetReceived(_) => "RST received",
        Kind::CloseWaitEntered(_) => "peer closed",
        Kind::CloseWaitStuck(_) => "not closed",
        Kind::AcceptQueueOverflow(_) => "queue full",
        Kind::SynQueueOverflow(_) => "SYN flood",
        Kind::SocketError(CallError {
            send: Some(true), ..
        }) => "write failed",
        Kind::SocketError(CallError {
            send: Some(false), ..
        }) => "read failed",
        Kind::SocketError(_) => "call failed",
        Kind::ConnectFailed(_) => "conn failed",
        Kind::ConnectionTimeout(_) => "timed out",
        Kind::FdExhausted(_) => "too many fds",
        Kind::FdInvalid(_) => "bad fd",
        Kind::StateChanged(_) => "state",
        Kind::Retransmit(_) => "retransmit",
        Kind::Finding(_) => "FINDING",
        Kind::Coverage(_) => "coverage",
        Kind::TargetChanged(_) => "target",
        Kind::EventsLost(_) => "events lost",
        Kind::ExportDropped(_) => "not exported",
        Kind::EventsSuppressed(_) => "suppressed",
        Kind::Summary(_) => "summary",
        Kind::Sockets(found) => sockets::label(found),
    }
}

/// The whole event in one sentence: what, who, which connection, why.
pub struct Body<'a>(pub &'a Event);

impl fmt::Display for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0;
        write!(f, "{}: ", label(event))?;
        match (&event.owner.process, &event.socket) {
            (Some(process), _) => write!(f, "{process}, ")?,
            (None, Some(_)) => f.write_str("unknown process, ")?,
            (None, None) => {}
        }
        if let Some(socket) = &event.socket {
            write!(f, "{}, ", socket.flow)?;
        }
        Detail(event).fmt(f)?;
        if let Some(doubt) = doubt(event) {
            write!(f, " (owner {doubt})")?;
        }
        match kernel_word(event) {
            Some(word) => write!(f, " [kernel: {word}]"),
            None => Ok(()),
        }
    }
}

/// Why the owner is not certain, in the record's word.
pub(super) fn doubt(event: &Event) -> Option<impl fmt::Display> {
    let (confidence, holders) = (event.owner.confidence, event.owner.holders.len());
    let is_certain = matches!(confidence, Confidence::Exact | Confidence::Unknown);
    (!is_certain).then_some(fmt::from_fn(move |f| match confidence {
        Confidence::Shared => write!(f, "shared by {holders}"),
        _ => f.write_str(confidence.as_str()),
    }))
}

/// The kernel's own reason. People search for it; it comes last because it misleads.
pub(super) fn kernel_word(event: &Event) -> Option<&str> {
    match &event.kind {
        Kind::ResetSent(reset) => reset.reason.as_ref().map(|reason| reason.0.as_ref()),
        _ => None,
    }
}

/// The free text of an event: what the columns before it do not say.
pub(super) struct Detail<'a>(pub(super) &'a Event);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0;
        let socket = event.socket.as_ref();
        match &event.kind {
            Kind::ResetSent(reset) => reset_sent(f, event, reset),
            Kind::ResetReceived(reset) => reset_received(f, socket, reset),
            Kind::CloseWaitEntered(wait) => close_wait_entered(f, socket, wait),
            Kind::CloseWaitStuck(wait) => close_wait_stuck(f, socket, wait),
            Kind::AcceptQueueOverflow(overflow) => queue_full(f, overflow),
            Kind::SynQueueOverflow(queue) => syn_queue_full(f, queue),
            Kind::SocketError(call) | Kind::FdInvalid(call) => call_failed(f, call),
            Kind::ConnectFailed(connect) => connect_failed(f, connect),
            Kind::ConnectionTimeout(timeout) => timed_out(f, timeout),
            Kind::FdExhausted(fds) => fd_exhausted(f, fds),
            Kind::StateChanged(change) => state_changed(f, change),
            Kind::Retransmit(retransmit) => write!(f, "{} in a row", retransmit.attempt),
            Kind::Finding(finding) => f.write_str(&finding.title),
            Kind::Coverage(coverage) => seen(f, coverage),
            Kind::TargetChanged(target) => turned(f, target),
            Kind::EventsLost(loss) => {
                write!(
                    f,
                    "{} of {}: {}",
                    Count(loss.count, "event"),
                    loss.hook,
                    loss.reason
                )
            }
            Kind::ExportDropped(dropped) => {
                let (records, to) = (Count(dropped.count, "record"), &dropped.to);
                write!(f, "{records} for {to}: {}", dropped.reason)?;
                match &dropped.error {
                    Some(error) => write!(f, " ({error})"),
                    None => Ok(()),
                }
            }
            Kind::EventsSuppressed(suppressed) => {
                let name = suppressed.name.trim_start_matches("tcptrace.");
                let count = suppressed.count;
                write!(f, "{count} more {name} (--rate-limit)")
            }
            Kind::Summary(summary) => write!(
                f,
                "{} in {}, {} lost",
                Count(summary.events, "event"),
                Millis(summary.duration_ms),
                summary.lost
            ),
            Kind::Sockets(found) => sockets::detail(f, event, found),
        }
    }
}

fn reset_sent(f: &mut fmt::Formatter<'_>, event: &Event, reset: &ResetSent) -> fmt::Result {
    let socket = event.socket.as_ref();
    let state = socket.and_then(|socket| socket.state);
    let fd = Fd(socket.and_then(|socket| socket.fd));
    let unread = Count(u64::from(reset.unread), "byte");
    match diagnose::cause(event) {
        Some(Cause::ClosedWithUnreadData) => write!(f, "closed{fd}, {unread} unread"),
        Some(Cause::ProcessExited) => {
            let process = event.owner.process.as_ref();
            match process.and_then(|process| process.exit) {
                Some(Exit::Signal(signal)) => write!(f, "killed by {}", SignalName(signal))?,
                Some(Exit::Code(code)) => write!(f, "exited with {code}")?,
                None => f.write_str("exited")?,
            }
            write!(f, ", {unread} unread,{fd}")
        }
        Some(Cause::LingerZero) => write!(f, "closed{fd} with SO_LINGER 0"),
        Some(Cause::ListenerClosed) => {
            f.write_str("listener closed before accept")?;
            event
                .actor
                .as_ref()
                .map_or(Ok(()), |actor| write!(f, " by {actor}"))
        }
        Some(Cause::KilledByAdmin) => match &event.actor {
            Some(actor) => write!(f, "killed by {actor} (ss -K)"),
            None => f.write_str("killed by an administrator (ss -K)"),
        },
        Some(Cause::NoListener) => f.write_str("nothing listens on this port"),
        Some(Cause::StaleConnection) if state == Some(State::TimeWait) => {
            f.write_str("data came after the close")
        }
        Some(Cause::StaleConnection) => f.write_str("no such connection here any more"),
        Some(Cause::AcceptQueueOverflow) => {
            f.write_str("accept queue full (tcp_abort_on_overflow)")
        }
        Some(Cause::WriteAfterPeerClose) => f.write_str("data came after the close"),
        Some(Cause::KeepaliveTimeout) => f.write_str("no keepalive answer"),
        Some(Cause::TcpMemoryPressure) => f.write_str("too many orphans or no TCP memory"),
        _ => f.write_str("cause not known"),
    }
}

fn reset_received(
    f: &mut fmt::Formatter<'_>,
    socket: Option<&Socket>,
    reset: &ResetReceived,
) -> fmt::Result {
    match reset.errno {
        Some(errno) => write!(f, "gives {errno}")?,
        None => f.write_str("after this end had closed")?,
    }
    let Some(socket) = socket else { return Ok(()) };
    // A SYN takes a sequence number, but is no byte the program wrote.
    let unanswered = socket.unacked > 0 && socket.state != Some(State::SynSent);
    if unanswered {
        write!(f, ", {} unacked", Count(u64::from(socket.unacked), "byte"))?;
    }
    let silent = [socket.received_ago_ms, socket.sent_ago_ms];
    // Where bytes are on their way, a short silence says nothing.
    let telling = |idle: &u64| !unanswered || *idle >= 1_000;
    if let Some(idle) = silent.into_iter().flatten().min().filter(telling) {
        write!(f, ", idle {}", Millis(idle))?;
    }
    match socket.state {
        // The error tells these apart already.
        None | Some(State::Established | State::SynSent | State::CloseWait) => Ok(()),
        Some(state) => write!(f, ", in {state}"),
    }
}

fn close_wait_entered(
    f: &mut fmt::Formatter<'_>,
    socket: Option<&Socket>,
    wait: &CloseWait,
) -> fmt::Result {
    write!(f, "{} still open", Which(socket, wait.count))?;
    unread(f, socket)?;
    f.write_str(" (CLOSE_WAIT)")
}

fn close_wait_stuck(
    f: &mut fmt::Formatter<'_>,
    socket: Option<&Socket>,
    wait: &CloseWait,
) -> fmt::Result {
    let bound = if wait.at_least { ">" } else { "" };
    write!(
        f,
        "{} in CLOSE_WAIT {bound}{}",
        Which(socket, wait.count),
        Millis(wait.age_ms)
    )?;
    match socket {
        Some(socket) if wait.count == 1 && socket.unread > 0 => unread(f, Some(socket)),
        Some(socket) if wait.count == 1 && socket.eof_read => f.write_str(", EOF read"),
        Some(_) if wait.count == 1 => f.write_str(", EOF unread"),
        _ => Ok(()),
    }
}

fn unread(f: &mut fmt::Formatter<'_>, socket: Option<&Socket>) -> fmt::Result {
    match socket {
        Some(socket) if socket.unread > 0 => {
            write!(f, ", {} unread", Count(u64::from(socket.unread), "byte"))
        }
        _ => Ok(()),
    }
}

fn queue_full(f: &mut fmt::Formatter<'_>, overflow: &Overflow) -> fmt::Result {
    match overflow.path {
        Some(OverflowPath::Syn) => f.write_str("SYN dropped")?,
        Some(OverflowPath::Ack) => f.write_str("ACK dropped")?,
        Some(OverflowPath::Cookie) => f.write_str("cookie ACK dropped")?,
        None if overflow.is_polled() => {
            write!(f, "{} dropped", Count(overflow.count, "handshake segment"))?;
        }
        None => f.write_str("found full")?,
    }
    match (overflow.queue_len, overflow.queue_max) {
        // A queue of the limit's length still takes one more.
        (Some(len), Some(max)) if len > max => write!(f, ", queue {len} > {max}")?,
        (Some(len), Some(max)) => write!(f, ", queue {len} of {max}")?,
        (Some(len), None) => write!(f, ", queue {len}")?,
        (None, _) => f.write_str(" by some listener")?,
    }
    // The limit is somaxconn's then, not the program's.
    let asked = overflow.backlog;
    if let Some(asked) = asked.filter(|_| asked != overflow.queue_max) {
        write!(f, " (asked {asked})")?;
    }
    match overflow.drops {
        Some(drops) if drops > 0 => write!(f, ", {}", Count(drops.into(), "drop")),
        _ => Ok(()),
    }
}

fn syn_queue_full(f: &mut fmt::Formatter<'_>, queue: &SynQueue) -> fmt::Result {
    let what = if queue.cookies {
        "answered with cookies"
    } else {
        "dropped"
    };
    write!(f, "{} {what}", Count(queue.count, "SYN"))?;
    match (queue.len, queue.max) {
        (Some(len), Some(max)) => write!(f, ", {len} handshakes half done of {max}"),
        _ => Ok(()),
    }
}

fn call_failed(f: &mut fmt::Formatter<'_>, call: &CallError) -> fmt::Result {
    if call.timeout {
        let option = if call.send == Some(true) {
            "SO_SNDTIMEO"
        } else {
            "SO_RCVTIMEO"
        };
        write!(f, "{} ({option})", call.errno)?;
    } else {
        Error(call.errno).fmt(f)?;
    }
    if let Some(syscall) = call.syscall {
        write!(f, ", {syscall}")?;
    } else if call.fd.is_some() {
        f.write_str(",")?;
    }
    Fd(call.fd).fmt(f)
}

fn connect_failed(f: &mut fmt::Formatter<'_>, connect: &ConnectFailed) -> fmt::Result {
    match connect.errno {
        Some(errno) => Error(errno).fmt(f)?,
        None => f.write_str("closed unanswered")?,
    }
    if let Some(duration) = connect.duration_us {
        write!(f, " after {}", Micros(duration))?;
    }
    match connect.attempts {
        0 => Ok(()),
        attempts => write!(f, ", {}", Count(u64::from(attempts), "SYN")),
    }
}

fn timed_out(f: &mut fmt::Formatter<'_>, timeout: &Timeout) -> fmt::Result {
    if timeout.errno.0 == libc::ETIMEDOUT {
        timeout.errno.fmt(f)?;
    } else {
        Error(timeout.errno).fmt(f)?;
    }
    if timeout.send_window == 0 {
        f.write_str(", the peer stopped reading")?;
    }
    if let Some(ms) = timeout.user_timeout_ms {
        write!(f, ", TCP_USER_TIMEOUT {}", Millis(u64::from(ms)))?;
    }
    if timeout.probes > 0 {
        let which = if timeout.keepalive {
            "keepalive probe"
        } else {
            "probe"
        };
        write!(f, ", {}", Count(u64::from(timeout.probes), which))?;
    }
    if timeout.retransmits > 0 {
        let retransmits = Count(u64::from(timeout.retransmits), "retransmit");
        write!(f, ", {retransmits}")?;
    }
    Ok(())
}

fn fd_exhausted(f: &mut fmt::Formatter<'_>, fds: &FdExhausted) -> fmt::Result {
    fds.errno.fmt(f)?;
    if let Some(syscall) = fds.syscall {
        write!(f, " in {syscall}")?;
    }
    match (fds.open, fds.limit) {
        // Some were closed before they could be counted.
        (Some(open), Some(limit)) if open < limit => {
            let after = fds.read_after_ms.unwrap_or_default();
            write!(f, ", {open} of {limit} fds open at +{after} ms")
        }
        (Some(open), Some(limit)) => write!(f, ", {open} of {limit} fds open"),
        (Some(open), None) => write!(f, ", {open} fds open"),
        (None, Some(limit)) => write!(f, ", limit {limit}"),
        (None, None) => Ok(()),
    }
}

fn state_changed(f: &mut fmt::Formatter<'_>, change: &StateChange) -> fmt::Result {
    write!(f, "{} -> {}", change.from, change.to)?;
    if let Some(duration) = change.duration_us {
        write!(f, " after {}", Micros(duration))?;
    }
    change.errno.map_or(Ok(()), |errno| write!(f, ", {errno}"))
}

/// A signal's line, in the stream and in the banner.
pub(super) fn seen(f: &mut impl fmt::Write, coverage: &Coverage) -> fmt::Result {
    let signal = &coverage.signal;
    match (&coverage.way, &coverage.note) {
        (Some(way), Some(note)) => write!(f, "{signal} through {way}: {note}"),
        (Some(way), None) => write!(f, "{signal} through {way}"),
        (None, Some(note)) => write!(f, "not seen: {signal} ({note})"),
        (None, None) => write!(f, "not seen: {signal}"),
    }
}

/// What became of a process that was asked for.
pub(super) fn turned(f: &mut impl fmt::Write, target: &Target) -> fmt::Result {
    let why = &target.why;
    match target.turn {
        Turn::Ended => write!(f, "ended; its successor is waited for: {why}")?,
        Turn::Appeared => write!(f, "is there: {why}")?,
        Turn::Succeeded => match target.previous {
            Some(previous) => write!(f, "goes on for {previous}: {why}")?,
            None => write!(f, "goes on: {why}")?,
        },
    }
    match target.left_out {
        0 => Ok(()),
        count => write!(f, "; before that {} left out", Count(count, "event")),
    }
}

/// A finding in one line: its cause, how often, how sure.
pub(super) struct Verdict<'a>(pub(super) &'a Finding);

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let finding = self.0;
        f.write_str(finding.cause.as_str())?;
        if finding.count > 1 {
            write!(f, " x{}", finding.count)?;
        }
        if let Some(hint) = finding.hint {
            write!(f, ", maybe {}", hint.as_str())?;
        }
        if finding.certainty != Certainty::High {
            write!(f, " ({} confidence)", finding.certainty.as_str())?;
        }
        match (finding.update, finding.closed) {
            (0, _) => Ok(()),
            (_, true) => f.write_str(", over"),
            (_, false) => f.write_str(", goes on"),
        }
    }
}

/// ` fd 17`, or nothing where it is not known.
struct Fd(Option<i32>);

impl fmt::Display for Fd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |fd| write!(f, " fd {fd}"))
    }
}

/// `fd 17`, `5 sockets` where the event stands for several, else `socket`.
struct Which<'a>(Option<&'a Socket>, u32);

impl fmt::Display for Which<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.1, self.0.and_then(|socket| socket.fd)) {
            (1, Some(fd)) => write!(f, "fd {fd}"),
            (1, None) => f.write_str("socket"),
            (count, _) => Count(u64::from(count), "socket").fmt(f),
        }
    }
}

/// A signal's name, as `kill -l` has it, or its number.
struct SignalName(i32);

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Signal::try_from(self.0) {
            Ok(signal) => f.write_str(signal.as_str()),
            Err(_) => write!(f, "signal {}", self.0),
        }
    }
}

/// An error's name, and the words a program prints for it, without those the event says already.
struct Error(Errno);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.0.0 {
            libc::EPIPE => "broken pipe",
            libc::ECONNRESET => "reset by peer",
            libc::ECONNREFUSED => "refused",
            libc::ECONNABORTED => "aborted",
            libc::ETIMEDOUT => "timed out",
            libc::EHOSTUNREACH => "no route to host",
            libc::ENETUNREACH => "network unreachable",
            libc::EADDRINUSE => "address in use",
            libc::EADDRNOTAVAIL => "cannot assign address",
            libc::ENOTCONN => "not connected",
            libc::EBADF => "bad descriptor",
            libc::ENOTSOCK => "not a socket",
            libc::EAGAIN => "would block",
            libc::ENOBUFS | libc::ENOMEM => "no memory for it",
            _ => return self.0.fmt(f),
        };
        write!(f, "{} ({words})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Comm, Errno, Process, ResetReason, State};
    use crate::sink::samples;

    fn detail(event: &Event) -> String {
        Detail(event).to_string()
    }

    /// A RST of nginx with one thing changed.
    fn reset(change: impl FnOnce(&mut Event, &mut ResetSent)) -> String {
        let mut event = samples::reset_sent();
        let Kind::ResetSent(mut reset) = event.kind.clone() else {
            panic!("it is a RST sent")
        };
        reset.reason = None;
        change(&mut event, &mut reset);
        event.kind = Kind::ResetSent(reset);
        detail(&event)
    }

    fn answer(state: State, reason: &'static str) -> String {
        reset(|event, reset| {
            reset.unread = 0;
            reset.answers_segment = true;
            reset.reason = Some(ResetReason(reason.into()));
            if let Some(socket) = &mut event.socket {
                socket.state = Some(state);
            }
        })
    }

    fn exit(exit: Exit) -> impl FnOnce(&mut Event, &mut ResetSent) {
        move |event, _| {
            if let Some(process) = &mut event.owner.process {
                process.exit = Some(exit);
            }
        }
    }

    #[test]
    fn a_reset_says_its_cause_and_not_the_kernels_word() {
        assert_eq!(reset(|_, _| ()), "closed fd 17, 512 bytes unread");
        let by_signal = reset(exit(Exit::Signal(9)));
        assert_eq!(by_signal, "killed by SIGKILL, 512 bytes unread, fd 17");
        let by_real_time = reset(exit(Exit::Signal(34)));
        assert_eq!(by_real_time, "killed by signal 34, 512 bytes unread, fd 17");
        let by_itself = reset(exit(Exit::Code(0)));
        assert_eq!(by_itself, "exited with 0, 512 bytes unread, fd 17");
        let lingered = reset(|_, reset| reset.linger_zero = true);
        assert_eq!(lingered, "closed fd 17 with SO_LINGER 0");
        let unaccepted = reset(|_, reset| reset.unaccepted = true);
        assert_eq!(unaccepted, "listener closed before accept");
        let aborted = reset(|event, reset| {
            reset.aborted = true;
            event.actor = Some(Box::new(Process {
                pid: 99,
                comm: Comm::from("ss"),
                ..Process::default()
            }));
        });
        assert_eq!(aborted, "killed by ss[99] (ss -K)");
        for (state, reason, told) in [
            (
                State::Listen,
                "INVALID_SYN",
                "accept queue full (tcp_abort_on_overflow)",
            ),
            (
                State::TimeWait,
                "TCP_TIMEWAIT_SOCKET",
                "data came after the close",
            ),
            (
                State::FinWait2,
                "TCP_ABORT_ON_DATA",
                "data came after the close",
            ),
            (
                State::Listen,
                "TCP_FLAGS",
                "no such connection here any more",
            ),
            (State::SynSent, "TCP_OLD_ACK", "cause not known"),
        ] {
            assert_eq!(answer(state, reason), told, "{state} {reason}");
        }
    }

    #[test]
    fn a_reset_received_says_what_comes_of_it() {
        let received = |state, unacked| {
            let mut event = samples::all().swap_remove(2);
            if let Some(socket) = &mut event.socket {
                socket.state = Some(state);
                socket.unacked = unacked;
            }
            detail(&event)
        };
        let quiet = "gives ECONNRESET, idle 1.2 s";
        assert_eq!(received(State::Established, 0), quiet);
        // The one byte is the SYN.
        assert_eq!(received(State::SynSent, 1), quiet);
        assert_eq!(
            received(State::FinWait1, 10),
            "gives ECONNRESET, 10 bytes unacked, idle 1.2 s, in FIN_WAIT1"
        );
    }

    #[test]
    fn a_connection_that_waits_to_be_closed_says_what_was_read() {
        let stuck = |unread, eof_read| {
            let mut event = samples::all().swap_remove(4);
            if let Some(socket) = &mut event.socket {
                socket.unread = unread;
                socket.eof_read = eof_read;
            }
            detail(&event)
        };
        let since = "fd 17 in CLOSE_WAIT >61.2 s";
        assert_eq!(stuck(7, false), format!("{since}, 7 bytes unread"));
        assert_eq!(stuck(0, false), format!("{since}, EOF unread"));
        assert_eq!(stuck(0, true), format!("{since}, EOF read"));
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let call = CallError {
            syscall: None,
            send: Some(false),
            errno: Errno(libc::EAGAIN),
            len: None,
            timeout: true,
            fd: None,
        };
        let told = |call| detail(&samples::event(None, Kind::SocketError(call)));
        assert_eq!(told(call.clone()), "EAGAIN (SO_RCVTIMEO)");
        assert_eq!(
            told(CallError {
                fd: Some(5),
                ..call
            }),
            "EAGAIN (SO_RCVTIMEO), fd 5"
        );
        let connect = ConnectFailed {
            errno: None,
            attempts: 3,
            duration_us: Some(3_000_000),
        };
        let told = detail(&samples::event(None, Kind::ConnectFailed(connect)));
        assert_eq!(told, "closed unanswered after 3.0 s, 3 SYNs");
        let wait = CloseWait {
            age_ms: 7_200_000,
            at_least: true,
            count: 5,
            at_start: true,
        };
        let told = detail(&samples::event(None, Kind::CloseWaitStuck(wait)));
        assert_eq!(told, "5 sockets in CLOSE_WAIT >2 h");
    }

    #[test]
    fn descriptors_closed_before_the_count_are_explained() {
        let fds = FdExhausted {
            syscall: None,
            errno: Errno(libc::EMFILE),
            open: Some(25),
            limit: Some(32),
            read_after_ms: Some(3),
        };
        let told = detail(&samples::event(None, Kind::FdExhausted(fds)));
        assert_eq!(told, "EMFILE, 25 of 32 fds open at +3 ms");
    }

    #[test]
    fn a_polled_loss_says_what_is_known() {
        let mut polled = samples::queue_polled();
        assert_eq!(
            detail(&polled),
            "31 handshake segments dropped by some listener"
        );
        if let Kind::AcceptQueueOverflow(overflow) = &mut polled.kind {
            (overflow.queue_len, overflow.drops) = (Some(129), Some(31));
        }
        assert_eq!(
            detail(&polled),
            "31 handshake segments dropped, queue 129, 31 drops"
        );
        if let Kind::AcceptQueueOverflow(overflow) = &mut polled.kind {
            overflow.queue_max = Some(128);
        }
        assert_eq!(
            detail(&polled),
            "31 handshake segments dropped, queue 129 > 128, 31 drops"
        );
    }

    #[test]
    fn the_body_needs_no_columns_beside_it() {
        assert_eq!(
            Body(&samples::refused()).to_string(),
            "RST sent: unknown process, [2001:db8::1]:81 > [2001:db8::2]:40112, \
             nothing listens on this port [kernel: NO_SOCKET]"
        );
    }

    #[test]
    fn times_are_in_the_unit_a_person_would_choose() {
        for (ms, expected) in [
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (61_950, "61.9 s"),
            (350_000, "350.0 s"),
            (600_000, "10 min"),
            (7_200_000, "2 h"),
            (172_800_000, "2 days"),
        ] {
            assert_eq!(Millis(ms).to_string(), expected);
        }
        assert_eq!(Micros(310).to_string(), "310 us");
        assert_eq!(Micros(1_250).to_string(), "1.2 ms");
        assert_eq!(Micros(12_500).to_string(), "12 ms");
    }
}
