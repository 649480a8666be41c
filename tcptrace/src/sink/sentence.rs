//! What happened, in words a person reads first; the kernel's words come after them.

use std::fmt::{self, Display as _};

use super::record::ProcessName;
use crate::diagnose::{self, Cause};
use crate::event::{
    CallError, CloseWait, Confidence, ConnectFailed, Coverage, Errno, Event, Exit, FdExhausted,
    Kind, Overflow, OverflowPath, Process, ResetReceived, ResetSent, Socket, StateChange, Timeout,
};

/// An event in a few words.
pub(super) fn label(event: &Event) -> &'static str {
    match &event.kind {
        Kind::ResetSent(_) => "reset sent",
        Kind::ResetReceived(_) => "reset received",
        Kind::CloseWaitEntered(_) => "peer closed",
        Kind::CloseWaitStuck(_) => "not closed",
        Kind::AcceptQueueOverflow(_) => "queue full",
        Kind::SocketError(CallError {
            send: Some(true), ..
        }) => "write failed",
        Kind::SocketError(CallError {
            send: Some(false), ..
        }) => "read failed",
        Kind::SocketError(_) => "call failed",
        Kind::ConnectFailed(_) => "connect failed",
        Kind::ConnectionTimeout(_) => "timed out",
        Kind::FdExhausted(_) => "no descriptor",
        Kind::FdInvalid(_) => "bad descriptor",
        Kind::StateChanged(_) => "state",
        Kind::Retransmit(_) => "retransmit",
        Kind::Coverage(_) => "coverage",
        Kind::EventsLost(_) => "events lost",
        Kind::Summary(_) => "summary",
    }
}

/// The whole event in one sentence: what, who, which connection, why.
pub struct Body<'a>(pub &'a Event);

impl fmt::Display for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0;
        write!(f, "{}: ", label(event))?;
        match (&event.owner.process, &event.socket) {
            (Some(process), _) => write!(f, "{}, ", Named(process))?,
            (None, Some(_)) => f.write_str("unknown process, ")?,
            (None, None) => {}
        }
        if let Some(socket) = &event.socket {
            write!(f, "{}, ", socket.flow)?;
        }
        Detail(event).fmt(f)
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
            Kind::SocketError(call) | Kind::FdInvalid(call) => call_failed(f, call),
            Kind::ConnectFailed(connect) => connect_failed(f, connect),
            Kind::ConnectionTimeout(timeout) => timed_out(f, timeout),
            Kind::FdExhausted(fds) => fd_exhausted(f, fds),
            Kind::StateChanged(change) => state_changed(f, change),
            Kind::Retransmit(retransmit) => write!(f, "sent again, time {}", retransmit.attempt),
            Kind::Coverage(coverage) => seen(f, coverage),
            Kind::EventsLost(loss) => {
                write!(
                    f,
                    "{} of {}: {}",
                    Count(loss.count, "event"),
                    loss.hook,
                    loss.reason
                )
            }
            Kind::Summary(summary) => write!(
                f,
                "{} in {}, {} lost",
                Count(summary.events, "event"),
                Millis(summary.duration_ms),
                summary.lost
            ),
        }?;
        match event.owner.confidence {
            Confidence::Exact | Confidence::Unknown => {}
            Confidence::Inherited => f.write_str(" (listener's owner)")?,
            Confidence::Seeded => f.write_str(" (owner found at start)")?,
            Confidence::Shared => {
                write!(
                    f,
                    " (one of {})",
                    Count(event.owner.holders.len() as u64, "holder")
                )?;
            }
        }
        // People search for the kernel's word; it comes last because it misleads.
        match &event.kind {
            Kind::ResetSent(ResetSent {
                reason: Some(reason),
                ..
            }) => {
                write!(f, " [kernel: {}]", reason.0)
            }
            _ => Ok(()),
        }
    }
}

fn reset_sent(f: &mut fmt::Formatter<'_>, event: &Event, reset: &ResetSent) -> fmt::Result {
    let fd = Fd(event.socket.as_ref().and_then(|socket| socket.fd));
    let unread = Count(u64::from(reset.unread), "unread byte");
    match diagnose::cause(event) {
        Some(Cause::ClosedWithUnreadData) => write!(f, "closed{fd} with {unread}"),
        Some(Cause::ProcessExited) => {
            match event
                .owner
                .process
                .as_ref()
                .and_then(|process| process.exit)
            {
                Some(Exit::Signal(signal)) => write!(f, "killed by signal {signal}")?,
                Some(Exit::Code(code)) => write!(f, "exited with code {code}")?,
                None => f.write_str("exited")?,
            }
            write!(f, ",{fd} with {unread}")
        }
        Some(Cause::LingerZero) => write!(f, "closed{fd} with SO_LINGER 0"),
        Some(Cause::ListenerClosed) => {
            f.write_str("listener closed before accept")?;
            event
                .actor
                .as_ref()
                .map_or(Ok(()), |actor| write!(f, " by {}", Named(actor)))
        }
        Some(Cause::KilledByAdmin) => match &event.actor {
            Some(actor) => write!(f, "killed by {} (ss -K)", Named(actor)),
            None => f.write_str("killed by an administrator (ss -K)"),
        },
        Some(Cause::NoListener) => f.write_str("nothing listens on this port"),
        Some(Cause::StaleConnection) => f.write_str("this host forgot the connection"),
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
    if let Some(idle) = [socket.received_ago_ms, socket.sent_ago_ms]
        .into_iter()
        .flatten()
        .min()
    {
        write!(f, ", idle {}", Millis(idle))?;
    }
    if socket.unacked > 0 {
        write!(
            f,
            ", {} unacknowledged",
            Count(u64::from(socket.unacked), "byte")
        )?;
    }
    socket
        .state
        .map_or(Ok(()), |state| write!(f, ", in {state}"))
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
    let bound = if wait.at_least { "at least " } else { "" };
    write!(
        f,
        "{} open for {bound}{}",
        Which(socket, wait.count),
        Millis(wait.age_ms)
    )?;
    if wait.count == 1 {
        unread(f, socket)?;
        match socket {
            Some(socket) if socket.eof_read => f.write_str(", end of stream read")?,
            Some(_) => f.write_str(", end of stream not read")?,
            None => {}
        }
    }
    f.write_str(" (CLOSE_WAIT)")
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
    f.write_str(match overflow.path {
        Some(OverflowPath::Syn) => "SYN dropped",
        Some(OverflowPath::Ack) => "handshake's ACK dropped",
        Some(OverflowPath::Cookie) => "SYN cookie's ACK dropped",
        None => "found full",
    })?;
    write!(
        f,
        ", {} wait, limit {}",
        overflow.queue_len, overflow.queue_max
    )?;
    if overflow.drops > 0 {
        write!(f, ", {} so far", Count(u64::from(overflow.drops), "drop"))?;
    }
    Ok(())
}

fn call_failed(f: &mut fmt::Formatter<'_>, call: &CallError) -> fmt::Result {
    if call.timeout {
        let option = if call.send == Some(true) {
            "SO_SNDTIMEO"
        } else {
            "SO_RCVTIMEO"
        };
        write!(f, "{} ({option} expired)", call.errno)?;
    } else {
        Error(call.errno).fmt(f)?;
    }
    if let Some(syscall) = call.syscall {
        write!(f, ", {syscall}")?;
    } else if call.fd.is_some() {
        f.write_str(",")?;
    }
    Fd(call.fd).fmt(f)?;
    call.len
        .map_or(Ok(()), |len| write!(f, ", {}", Count(len, "byte")))
}

fn connect_failed(f: &mut fmt::Formatter<'_>, connect: &ConnectFailed) -> fmt::Result {
    match connect.errno {
        Some(errno) => Error(errno).fmt(f)?,
        None => f.write_str("closed before an answer")?,
    }
    if let Some(duration) = connect.duration_us {
        write!(f, " after {}", Micros(duration))?;
    }
    write!(f, ", {} sent", Count(u64::from(connect.attempts), "SYN"))
}

fn timed_out(f: &mut fmt::Formatter<'_>, timeout: &Timeout) -> fmt::Result {
    Error(timeout.errno).fmt(f)?;
    if timeout.retransmits > 0 {
        write!(
            f,
            ", {}",
            Count(u64::from(timeout.retransmits), "retransmit")
        )?;
    }
    if timeout.probes > 0 {
        let which = if timeout.keepalive {
            "keepalive probe"
        } else {
            "probe"
        };
        write!(
            f,
            ", {} unanswered",
            Count(u64::from(timeout.probes), which)
        )?;
    }
    if timeout.send_window == 0 {
        f.write_str(", the peer stopped reading")?;
    }
    match timeout.user_timeout_ms {
        Some(ms) => write!(f, ", TCP_USER_TIMEOUT {}", Millis(u64::from(ms))),
        None => Ok(()),
    }
}

fn fd_exhausted(f: &mut fmt::Formatter<'_>, fds: &FdExhausted) -> fmt::Result {
    Error(fds.errno).fmt(f)?;
    if let Some(syscall) = fds.syscall {
        write!(f, ", {syscall}")?;
    }
    match (fds.open, fds.limit) {
        (Some(open), Some(limit)) => write!(f, ", {open} of {limit} open"),
        (Some(open), None) => write!(f, ", {open} open"),
        (None, Some(limit)) => write!(f, ", limit {limit}"),
        (None, None) => Ok(()),
    }
}

fn state_changed(f: &mut fmt::Formatter<'_>, change: &StateChange) -> fmt::Result {
    write!(f, "{} -> {}", change.from, change.to)?;
    if let Some(duration) = change.duration_us {
        write!(f, " after {}", Micros(duration))?;
    }
    change
        .errno
        .map_or(Ok(()), |errno| write!(f, ", {}", Error(errno)))
}

/// A signal's line, in the stream and in the banner.
pub(super) fn seen(f: &mut impl fmt::Write, coverage: &Coverage) -> fmt::Result {
    match &coverage.way {
        Some(way) => write!(f, "{} through {way}", coverage.signal.0)?,
        None => write!(f, "{} is not seen", coverage.signal.0)?,
    }
    match &coverage.note {
        Some(note) => write!(f, ": {note}"),
        None => Ok(()),
    }
}

/// A process: its executable, or its command name, and its id.
struct Named<'a>(&'a Process);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", ProcessName(self.0), self.0.pid)
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

/// A number and what it counts.
pub(super) struct Count(pub(super) u64, pub(super) &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}{}",
            self.0,
            self.1,
            if self.0 == 1 { "" } else { "s" }
        )
    }
}

/// A time in the unit a person would choose.
pub(super) struct Millis(pub(super) u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ms, s) = (self.0, self.0 / 1_000);
        match s {
            0 => write!(f, "{ms} ms"),
            1..120 => write!(f, "{s}.{} s", ms % 1_000 / 100),
            120..7_200 => write!(f, "{} min", s / 60),
            7_200..172_800 => write!(f, "{} h", s / 3_600),
            _ => write!(f, "{} days", s / 86_400),
        }
    }
}

struct Micros(u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            us @ 0..1_000 => write!(f, "{us} us"),
            us @ 1_000..10_000 => write!(f, "{}.{} ms", us / 1_000, us % 1_000 / 100),
            us => Millis(us / 1_000).fmt(f),
        }
    }
}

/// An error's name, and the words a program prints for it.
struct Error(Errno);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.0.0 {
            libc::EPIPE => "broken pipe",
            libc::ECONNRESET => "connection reset by peer",
            libc::ECONNREFUSED => "connection refused",
            libc::ECONNABORTED => "connection aborted",
            libc::ETIMEDOUT => "connection timed out",
            libc::EHOSTUNREACH => "no route to host",
            libc::ENETUNREACH => "network is unreachable",
            libc::EADDRINUSE => "address already in use",
            libc::EADDRNOTAVAIL => "cannot assign requested address",
            libc::ENOTCONN => "transport endpoint is not connected",
            libc::EMFILE => "too many open files",
            libc::ENFILE => "too many open files on this host",
            libc::EBADF => "bad file descriptor",
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
    use crate::event::{Errno, ResetReason, State};
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
    fn a_reset_says_its_cause_and_only_then_the_kernels_word() {
        assert_eq!(reset(|_, _| ()), "closed fd 17 with 512 unread bytes");
        let by_signal = reset(exit(Exit::Signal(9)));
        assert_eq!(by_signal, "killed by signal 9, fd 17 with 512 unread bytes");
        let by_itself = reset(exit(Exit::Code(0)));
        assert_eq!(by_itself, "exited with code 0, fd 17 with 512 unread bytes");
        let lingered = reset(|_, reset| reset.linger_zero = true);
        assert_eq!(lingered, "closed fd 17 with SO_LINGER 0");
        let unaccepted = reset(|event, reset| {
            reset.unaccepted = true;
            event.owner.confidence = Confidence::Inherited;
        });
        assert_eq!(
            unaccepted,
            "listener closed before accept (listener's owner)"
        );
        let aborted = reset(|event, reset| {
            reset.aborted = true;
            event.actor = Some(Process {
                pid: 99,
                exe: Some("/usr/bin/ss".into()),
                ..Process::default()
            });
        });
        assert_eq!(aborted, "killed by ss[99] (ss -K)");
        assert_eq!(
            answer(State::Listen, "INVALID_SYN"),
            "accept queue full (tcp_abort_on_overflow) [kernel: INVALID_SYN]"
        );
        assert_eq!(
            answer(State::TimeWait, "TCP_TIMEWAIT_SOCKET"),
            "this host forgot the connection [kernel: TCP_TIMEWAIT_SOCKET]"
        );
        assert_eq!(
            answer(State::FinWait2, "TCP_ABORT_ON_DATA"),
            "data came after the close [kernel: TCP_ABORT_ON_DATA]"
        );
        assert_eq!(
            answer(State::SynSent, "TCP_OLD_ACK"),
            "cause not known [kernel: TCP_OLD_ACK]"
        );
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
        assert_eq!(told(call.clone()), "EAGAIN (SO_RCVTIMEO expired)");
        assert_eq!(
            told(CallError {
                fd: Some(5),
                ..call
            }),
            "EAGAIN (SO_RCVTIMEO expired), fd 5"
        );
        let connect = ConnectFailed {
            errno: None,
            attempts: 3,
            duration_us: Some(3_000_000),
        };
        let told = detail(&samples::event(None, Kind::ConnectFailed(connect)));
        assert_eq!(told, "closed before an answer after 3.0 s, 3 SYNs sent");
        let wait = CloseWait {
            age_ms: 7_200_000,
            at_least: true,
            count: 5,
            at_start: true,
        };
        let told = detail(&samples::event(None, Kind::CloseWaitStuck(wait)));
        assert_eq!(told, "5 sockets open for at least 2 h (CLOSE_WAIT)");
    }

    #[test]
    fn the_body_needs_no_columns_beside_it() {
        assert_eq!(
            Body(&samples::refused()).to_string(),
            "reset sent: unknown process, [2001:db8::1]:81 > [2001:db8::2]:40112, \
             nothing listens on this port [kernel: NO_SOCKET]"
        );
    }

    #[test]
    fn times_are_in_the_unit_a_person_would_choose() {
        for (ms, expected) in [
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (61_950, "61.9 s"),
            (120_000, "2 min"),
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
