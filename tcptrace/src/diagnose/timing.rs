//! Connections the kernel gave up.

use super::connection::View;
use super::verdict::{Verdict, Words, connection, peer, who};
use crate::event::{Cause, Certainty, Count, Millis, Severity, Socket, Timeout};

/// What a timeout comes to.
pub(super) fn judge(view: View<'_>) -> Option<Verdict> {
    let Some((seen, timeout)) = view.this.timeout() else {
        return keepalive(view);
    };
    let cause = super::timeout_cause(timeout).unwrap_or(Cause::RetransmitTimeout);
    let certainty = if super::timeout_cause(timeout).is_some() {
        Certainty::High
    } else {
        Certainty::Medium
    };
    let silent = silence_before(seen.socket(), timeout).map(|_| Cause::IdleTimeout);
    let verdict = Verdict::new(cause).certainty(certainty).hint(silent);
    Some(verdict.severity(Severity::Error))
}

/// Keepalive gives up with a RST; where the timeout itself is not told that is the evidence.
fn keepalive(view: View<'_>) -> Option<Verdict> {
    let (seen, _) = view.this.reset_sent()?;
    (seen.cause() == Some(Cause::KeepaliveTimeout))
        .then(|| Verdict::new(Cause::KeepaliveTimeout).severity(Severity::Error))
}

/// How long the peer had been silent already when the bytes were written that it never acknowledged.
fn silence_before(socket: Option<&Socket>, timeout: &Timeout) -> Option<u64> {
    const LONG_MS: u64 = 30_000;
    let tried = u64::from(timeout.user_timeout_ms?);
    let before = socket?.heard_ago_ms?.checked_sub(tried)?;
    (before >= LONG_MS).then_some(before)
}

pub(super) fn tell(view: View<'_>, cause: Cause) -> Option<Words> {
    let (socket, timeout) = match view.this.timeout() {
        Some((seen, timeout)) => (seen.socket(), Some(timeout)),
        None => (view.this.socket(), None),
    };
    let process = who(view.this, "a process");
    let heard = socket
        .and_then(|socket| socket.heard_ago_ms)
        .map_or(String::new(), |ms| {
            format!("; the peer was last heard {} ago", Millis(ms))
        });
    let unacked = socket.map_or(0, |socket| socket.unacked);
    let words = match cause {
        Cause::RetransmitTimeout => Words::new(
            format!(
                "{} of {process} ended: {} unacknowledged after {}{heard}",
                connection(socket),
                Count(unacked.into(), "byte"),
                Count(timeout.map_or(0, |it| it.retransmits).into(), "retransmission")
            ),
            "Nothing that was sent was acknowledged any more: the host is gone, or the way to it. The \
             kernel gives up after net.ipv4.tcp_retries2 attempts (15: about 15 minutes) or earlier when \
             an ICMP error came.",
        )
        .fix("look whether the peer's host or the way to it was down: ping, ip route get, the firewall's log")
        .fix("to notice earlier: TCP_USER_TIMEOUT on the socket, or application-level deadlines")
        .ruled_out("the peer's program: a running kernel there would have acknowledged"),
        Cause::UserTimeout => Words::new(
            format!(
                "{} of {process} ended: {} unacknowledged for longer than its TCP_USER_TIMEOUT of {}{heard}",
                connection(socket),
                Count(unacked.into(), "byte"),
                Millis(timeout.and_then(|it| it.user_timeout_ms).unwrap_or_default().into())
            ),
            "The program set TCP_USER_TIMEOUT: the kernel ends the connection when sent bytes stay \
             unacknowledged that long.",
        )
        .fix("look whether the peer's host or the way to it was down at that time")
        .fix("raise TCP_USER_TIMEOUT if such an outage should be survived (gRPC: keepalive timeout)")
        .ruled_out("the peer's program: a running kernel there would have acknowledged"),
        Cause::KeepaliveTimeout => Words::new(
            format!(
                "{} of {process} ended: {} unanswered{heard}",
                connection(socket),
                Count(timeout.map_or(0, |it| it.probes).into(), "keepalive probe")
            ),
            "The connection was silent, and nobody answered the probes: the peer's host is gone, or \
             something on the way forgot the connection and drops its segments.",
        )
        .fix("if the peer is well: send keepalives more often than the firewall's or NAT's idle limit (TCP_KEEPIDLE)")
        .ruled_out("data in flight: keepalive probes only silent connections"),
        Cause::PeerNotReading => {
            let reader = peer(view, "the peer's program");
            Words::new(
                format!(
                    "{} of {process} ended: {reader} stopped reading, its window stayed 0 over {}{heard}",
                    connection(socket),
                    Count(timeout.map_or(0, |it| it.probes).into(), "probe")
                ),
                "The peer's kernel was there and its receive buffer was full: the program does not read. \
                 Nothing may be sent into a closed window; the kernel probes it and at last gives up.",
            )
            .fix(format!("find out why {reader} does not read: blocked, stopped, a lock, waiting for this end to read (both write: a deadlock)"))
            .ruled_out("the network: the window closed, no segment was lost")
        }
        _ => return None,
    };
    Some(words)
}
