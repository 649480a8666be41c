//! An end that reset the other: it closed in a way that makes a RST, or was made to.

use super::connection::{Seen, View};
use super::verdict::{Verdict, Words, connection, fd, peer, then_got, who};
use super::{waiting, writing};
use crate::event::{
    Cause, Certainty, Count, Exit, Micros, ResetSent, Severity, Socket, State, Timestamp,
};

/// What a RST of this end comes to, unless it answers a SYN.
pub(super) fn judge(view: View<'_>) -> Option<Verdict> {
    let (seen, reset) = view.this.reset_sent()?;
    match seen.cause() {
        Some(Cause::ListenerClosed) if view.this.exit().is_some() => Some(exited(view)),
        Some(cause @ (Cause::KilledByAdmin | Cause::ListenerClosed)) => Some(Verdict::new(cause)),
        Some(cause @ Cause::TcpMemoryPressure) => {
            Some(Verdict::new(cause).severity(Severity::Error))
        }
        Some(cause @ Cause::LingerZero) => Some(Verdict::new(cause).by(view.this)),
        Some(Cause::ProcessExited) => Some(exited(view)),
        Some(Cause::ClosedWithUnreadData) => Some(
            waiting::closed_on_accept(view)
                .unwrap_or(Verdict::new(Cause::ClosedWithUnreadData).by(view.this)),
        ),
        // A full queue is told of its listener, a refusal of who was refused.
        Some(Cause::AcceptQueueOverflow | Cause::NoListener | Cause::KeepaliveTimeout) => None,
        _ if reset.answers_syn => None,
        _ if reset.answers_segment => after_close(view, seen),
        _ => None,
    }
}

/// A process that ended closed this end, and no RST came of it.
pub(super) fn judge_exit(view: View<'_>) -> Option<Verdict> {
    view.this.closed()?;
    view.this.exit().is_some().then(|| exited(view))
}

/// A segment came for a connection that was closed here, or that nobody knows.
fn after_close(view: View<'_>, answered: &Seen) -> Option<Verdict> {
    let (socket, at) = (answered.socket(), answered.first.time);
    if view.this.exit().is_some() {
        return Some(exited(view));
    }
    if let Some(verdict) = waiting::closed_on_accept(view) {
        return Some(verdict);
    }
    // Told of the end that kept working or writing, when that is here.
    if let Some(verdict) = waiting::peer_gave_up(view.turned()) {
        return Some(verdict.of_other());
    }
    if let Some(verdict) = waiting::gave_up_waiting(view) {
        return Some(verdict);
    }
    // On one host the other end shows whom it met: a last acknowledgement meets nobody.
    if view.other.is_unseen() && socket.is_some_and(|it| it.flow.local.ip().is_loopback()) {
        return None;
    }
    // So does one that closed first and was not hurt: it acknowledged the other's end, a moment too late.
    let closed_first = |(closed, _): (&Seen, _)| closed.first.time <= at;
    if view.other.closed().is_some_and(closed_first)
        && view.other.reset_received().is_none()
        && view.other.first_error().is_none()
    {
        return None;
    }
    // A listener answers for connections it has never heard of.
    let is_of_connection = |it: &Socket| it.id.sk != 0 && it.state != Some(State::Listen);
    let known = socket.is_some_and(|socket| socket.shutdown_ago_us.is_some())
        || view.this.sockets().any(is_of_connection);
    if view.other.is_unseen() {
        let verdict = if known {
            Verdict::new(Cause::WriteAfterPeerClose)
        } else {
            Verdict::new(Cause::StaleConnection).certainty(Certainty::Medium)
        };
        return Some(verdict.severity(Severity::Info));
    }
    let stale = super::idle::stale_pooled(view.other);
    let wrote_on = known || stale.is_some() || view.other.sockets().any(|it| it.fin.is_some());
    Some(if wrote_on {
        writing::wrote_on(view.other).of_other()
    } else {
        Verdict::new(Cause::StaleConnection).certainty(Certainty::Medium)
    })
}

/// The process ended: a crash is worse than an end that was asked for.
pub(super) fn exited(view: View<'_>) -> Verdict {
    let verdict = Verdict::new(Cause::ProcessExited);
    let crash = matches!(
        view.this.exit(),
        Some(Exit::Signal(
            libc::SIGKILL
                | libc::SIGSEGV
                | libc::SIGABRT
                | libc::SIGBUS
                | libc::SIGILL
                | libc::SIGFPE
                | libc::SIGSYS
        ))
    );
    let verdict = verdict.by(view.this);
    if crash && verdict.severity != Severity::Info {
        verdict.severity(Severity::Error)
    } else {
        verdict
    }
}

pub(super) fn tell(view: View<'_>, verdict: &Verdict) -> Option<Words> {
    let (seen, reset) = view.this.reset_sent()?;
    let socket = seen.socket();
    let at = seen.first.time;
    let closer = who(view.this, "a process");
    let got = then_got(view.other, at);
    let words = match verdict.cause {
        Cause::ClosedWithUnreadData => Words::new(
            format!(
                "{closer} closed{} with {} unread{got}",
                fd(socket),
                Count(reset.unread.into(), "byte"),
            ),
            "Closing a socket that still holds received bytes makes the kernel send a RST instead of a \
             FIN, and the RST discards what is still on its way to the other end: even an answer that \
             was sent completely may be lost.",
        )
        .fix(unread_fix(reset, socket))
        .fix(
            "if the rest of the input is not wanted: shutdown(SHUT_WR), read until the end of the \
             stream or a short deadline, and only then close",
        )
        .not_the_network(view),
        Cause::LingerZero => Words::new(
            format!(
                "{closer} closed{} with SO_LINGER on and a time of 0{got}",
                fd(socket)
            ),
            "SO_LINGER with a time of 0 makes close send a RST and throw away what was not yet sent. \
             The program (or a library in it) set the option on this socket.",
        )
        .fix(format!(
            "remove SO_LINGER {{1, 0}} in {closer} (Go: SetLinger(0), Java: setSoLinger(true, 0), \
             Python: SO_LINGER; HAProxy: option nolinger; nginx: reset_timedout_connection)"
        ))
        .fix("health checks and load generators do it on purpose, to leave no TIME_WAIT: then ignore it")
        .ruled_out(format!(
            "unread data: {} were unread",
            Count(reset.unread.into(), "byte")
        ))
        .not_the_network(view),
        Cause::KilledByAdmin => Words::new(
            format!(
                "{} ended the connection {} of {closer}{got}",
                super::verdict::named(seen.first.actor.as_deref(), "a privileged process"),
                connection(socket)
            ),
            "ss -K (or another caller of the kernel's SOCK_DESTROY) aborts a connection from outside: \
             its own program gets ECONNABORTED, the other end a RST. Neither did anything wrong.",
        )
        .fix("ask who runs ss -K here: a failover or drain script, a sidecar, a person")
        .ruled_out("the programs at both ends: neither closed"),
        Cause::ListenerClosed => {
            let by = seen.first.actor.as_deref();
            let local = socket.map(|socket| crate::event::End(socket.flow.local).to_string());
            Words::new(
                format!(
                    "{} closed the listener {} with connections in its queue{got}",
                    super::verdict::named(by.or(view.this.process()), "a process"),
                    local.unwrap_or_default()
                ),
                "A connection is complete before accept is called. Those that were still in the queue \
                 when the listener was closed were reset: clients see ECONNRESET although they had \
                 connected.",
            )
            .fix(
                "on a restart, hand the listening socket over (systemd socket activation, SO_REUSEPORT \
                 with net.ipv4.tcp_migrate_req=1, nginx's own upgrade) instead of closing it",
            )
            .fix("or stop new clients first (take it out of the load balancer), accept what is queued, then close")
            .ruled_out("a full accept queue: these connections had their place in it")
        }
        Cause::TcpMemoryPressure => Words::new(
            format!("the kernel reset {} of {closer} for want of memory{got}", connection(socket)),
            "Too many sockets that no process holds (net.ipv4.tcp_max_orphans), or TCP used more than \
             net.ipv4.tcp_mem allows: the kernel resets connections that are being closed.",
        )
        .fix("nstat -az TcpExtTCPAbortOnMemory; cat /proc/net/sockstat: orphan and mem against their limits")
        .fix("raise net.ipv4.tcp_max_orphans or net.ipv4.tcp_mem, or find what closes so many connections with data unsent")
        .ruled_out("the programs at both ends: the kernel decided"),
        Cause::StaleConnection => {
            let peer = peer(view, "the peer");
            Words::new(
                format!(
                    "{peer} sent data on {}, a connection this host does not know",
                    connection(socket)
                ),
                "No socket has these addresses and ports, and none that had them was closed within the \
                 last minutes: this end forgot the connection, after a restart, a crash, a timeout, or a \
                 failover that moved the address here.",
            )
            .fix("let the peer use keepalive below the time after which connections are forgotten here, or reconnect on ECONNRESET")
            .ruled_out("a missing listener: what came was no SYN")
        }
        Cause::WriteAfterPeerClose => closer_of_a_writer(view, socket, at),
        _ => return None,
    };
    Some(words)
}

/// The writer is on another host: this is the story of the end that closed.
fn closer_of_a_writer(view: View<'_>, socket: Option<&Socket>, at: Timestamp) -> Words {
    let closer = who(view.this, "a process");
    let ago = socket.and_then(|socket| socket.shutdown_ago_us);
    let when = ago.map_or(String::new(), |us| format!(" {} earlier", Micros(us)));
    Words::new(
        format!(
            "the peer of {} sent data after {closer} had closed it{when}, and got a RST{}",
            connection(socket),
            then_got(view.other, at)
        ),
        "What comes for a connection that was closed here is answered with a RST. The peer's next write \
         fails with EPIPE, or its next read with ECONNRESET.",
    )
    .fix(format!(
        "if the peer reports broken pipes: let {closer} read to the end of the stream before it closes, or \
         say beforehand that it will (HTTP: Connection: close)"
    ))
    .ruled_out("a lost connection: this end was closed on purpose")
}

fn unread_fix(reset: &ResetSent, socket: Option<&Socket>) -> String {
    let received = socket.map_or(0, |socket| socket.bytes_received);
    let unread = Count(reset.unread.into(), "byte");
    match received.saturating_sub(reset.unread.into()) {
        0 => format!("read the request before closing: none of its {unread} was read"),
        read => format!(
            "read to the end before closing: {unread} came after the {read} that were read (a second \
             request, a body nobody wanted, a TLS close_notify)"
        ),
    }
}
