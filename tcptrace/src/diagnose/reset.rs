//! Why this end sent a RST: the evidence first, the kernel's own reason only where it is beyond
//! doubt. It says `TCP_STATE` for `SO_LINGER` 0, `ss -K` and a closed listener alike, and
//! `INVALID_SYN` for an accept queue that is full.
//! <https://github.com/torvalds/linux/blob/v6.18/include/net/rstreason.h>

use super::Cause;
use crate::event::{Event, Kind, ResetSent, State};

/// The cause of a RST sent; `None` for other events and where the evidence names none.
#[must_use]
pub fn cause(event: &Event) -> Option<Cause> {
    let Kind::ResetSent(reset) = &event.kind else {
        return None;
    };
    if reset.aborted {
        Some(Cause::KilledByAdmin)
    } else if reset.unaccepted {
        Some(Cause::ListenerClosed)
    } else if reset.answers_segment {
        answer(event.socket.as_ref().and_then(|socket| socket.state), reset)
    } else {
        unasked(event, reset)
    }
}

/// Keepalive and memory each have one reason of their own in the kernel, whatever the socket's
/// options and queue say. Of `SO_LINGER` 0 and unread bytes the option comes first: with it the
/// program asked for the RST.
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp.c> (`__tcp_close`)
fn unasked(event: &Event, reset: &ResetSent) -> Option<Cause> {
    let exiting = event
        .owner
        .process
        .as_ref()
        .is_some_and(|process| process.exit.is_some());
    match reason(reset) {
        Some("TCP_KEEPALIVE_TIMEOUT") => Some(Cause::KeepaliveTimeout),
        Some("TCP_ABORT_ON_MEMORY") => Some(Cause::TcpMemoryPressure),
        Some("TCP_ABORT_ON_DATA") => Some(Cause::WriteAfterPeerClose),
        _ if reset.linger_zero => Some(Cause::LingerZero),
        _ if reset.unread > 0 && exiting => Some(Cause::ProcessExited),
        _ if reset.unread > 0 => Some(Cause::ClosedWithUnreadData),
        _ => None,
    }
}

fn answer(state: Option<State>, reset: &ResetSent) -> Option<Cause> {
    match state {
        // The connection ended here a moment ago, and its peer still writes.
        Some(State::TimeWait) => Some(Cause::WriteAfterPeerClose),
        // A SYN here met a half-open connection of the same tuple: neither a lost connection nor a
        // full queue.
        Some(State::Listen) if reset.answers_syn => None,
        Some(State::Listen) => {
            // Before it gave reasons: the queue that refused the handshake is still full.
            let refused = reason(reset).map_or(reset.queue_full, |reason| reason == "INVALID_SYN");
            Some(if refused {
                Cause::AcceptQueueOverflow
            } else {
                Cause::StaleConnection
            })
        }
        _ if reset.no_socket && reset.answers_syn => Some(Cause::NoListener),
        // Stale, or closed here a moment ago: the segment alone does not tell.
        _ if reset.no_socket => None,
        _ if reason(reset) == Some("TCP_ABORT_ON_DATA") => Some(Cause::WriteAfterPeerClose),
        _ => None,
    }
}

fn reason(reset: &ResetSent) -> Option<&str> {
    reset.reason.as_ref().map(|reason| reason.0.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Confidence, EventId, Exit, Owner, Process, ResetReason, Socket, Timestamp};

    /// What the table gives of a RST: its flags by name, the kernel's reason, the unread bytes.
    fn verdict(
        state: State,
        exit: Option<Exit>,
        (flags, reason, unread): (&str, &'static str, u32),
    ) -> Option<&'static str> {
        let flag = |name| flags.split(' ').any(|flag| flag == name);
        let process = Process {
            pid: 1,
            exit,
            ..Process::default()
        };
        let event = Event {
            id: EventId(1),
            time: Timestamp(0),
            caused_by: None,
            socket: Some(Socket {
                state: Some(state),
                ..Socket::default()
            }),
            owner: Owner {
                confidence: Confidence::Exact,
                process: Some(process),
                ..Owner::default()
            },
            actor: None,
            facts: Vec::new(),
            kind: Kind::ResetSent(ResetSent {
                reason: (!reason.is_empty()).then(|| ResetReason(reason.into())),
                unread,
                linger_zero: flag("linger_zero"),
                answers_segment: flag("answer") || flag("syn"),
                answers_syn: flag("syn"),
                no_socket: flag("no_socket"),
                queue_full: flag("queue_full"),
                unaccepted: flag("unaccepted"),
                aborted: flag("aborted"),
                syscall: None,
            }),
        };
        cause(&event).map(Cause::as_str)
    }

    #[test]
    fn evidence_of_an_unasked_reset() {
        use State::{CloseWait, Established, FinWait2};
        let killed = Some(Exit::Signal(9));
        let exited = Some(Exit::Code(0));
        let table = [
            // ss -K: the kernel says TCP_STATE, and what the socket held does not matter.
            (
                Established,
                None,
                ("aborted", "TCP_STATE", 5),
                Some("killed_by_admin"),
            ),
            // The listener closed with this child in its queue.
            (
                Established,
                None,
                ("unaccepted", "TCP_STATE", 5),
                Some("listener_closed"),
            ),
            (
                Established,
                killed,
                ("unaccepted", "TCP_STATE", 0),
                Some("listener_closed"),
            ),
            // SO_LINGER 0 is TCP_STATE as well.
            (
                Established,
                None,
                ("linger_zero", "TCP_STATE", 0),
                Some("linger_zero"),
            ),
            (
                Established,
                None,
                ("linger_zero", "TCP_ABORT_ON_CLOSE", 9),
                Some("linger_zero"),
            ),
            (
                Established,
                killed,
                ("linger_zero", "TCP_STATE", 0),
                Some("linger_zero"),
            ),
            // Unread bytes; the same without a reason, on kernels that give none.
            (
                CloseWait,
                None,
                ("", "TCP_ABORT_ON_CLOSE", 512),
                Some("closed_with_unread_data"),
            ),
            (
                CloseWait,
                None,
                ("", "", 512),
                Some("closed_with_unread_data"),
            ),
            (
                CloseWait,
                killed,
                ("", "TCP_ABORT_ON_CLOSE", 512),
                Some("process_exited"),
            ),
            (CloseWait, exited, ("", "", 1), Some("process_exited")),
            // Timers and memory, whatever else is set.
            (
                Established,
                None,
                ("linger_zero", "TCP_KEEPALIVE_TIMEOUT", 3),
                Some("keepalive_timeout"),
            ),
            (
                FinWait2,
                None,
                ("", "TCP_ABORT_ON_MEMORY", 0),
                Some("tcp_memory_pressure"),
            ),
            (
                FinWait2,
                None,
                ("", "TCP_ABORT_ON_DATA", 0),
                Some("write_after_peer_close"),
            ),
            // connect(AF_UNSPEC), or the FIN_WAIT2 timer: nothing to name.
            (Established, None, ("", "TCP_STATE", 0), None),
            (Established, killed, ("", "", 0), None),
        ];
        for (state, exit, reset, expected) in table {
            assert_eq!(
                verdict(state, exit, reset),
                expected,
                "{state} {exit:?} {reset:?}"
            );
        }
    }

    #[test]
    fn evidence_of_a_reset_that_answers() {
        use State::{Closed, FinWait2, Listen, SynSent, TimeWait};
        let table = [
            // Nothing on that port.
            (
                Closed,
                ("no_socket syn", "NO_SOCKET", 0),
                Some("no_listener"),
            ),
            (Closed, ("no_socket syn", "", 0), Some("no_listener")),
            // Long gone, or closed a moment ago: not to be told from this alone.
            (Closed, ("no_socket answer", "NO_SOCKET", 0), None),
            // Closed a moment ago.
            (
                TimeWait,
                ("answer", "TCP_TIMEWAIT_SOCKET", 0),
                Some("write_after_peer_close"),
            ),
            (
                TimeWait,
                ("no_socket syn", "", 0),
                Some("write_after_peer_close"),
            ),
            (Listen, ("answer", "TCP_FLAGS", 0), Some("stale_connection")),
            // tcp_abort_on_overflow reads INVALID_SYN, and so does a SYN on a half-open request.
            (
                Listen,
                ("answer", "INVALID_SYN", 0),
                Some("accept_queue_overflow"),
            ),
            (
                Listen,
                ("no_socket answer", "INVALID_SYN", 0),
                Some("accept_queue_overflow"),
            ),
            (Listen, ("syn", "INVALID_SYN", 0), None),
            // The same where the kernel gives no reason.
            (
                Listen,
                ("answer queue_full", "", 0),
                Some("accept_queue_overflow"),
            ),
            (Listen, ("answer", "", 0), Some("stale_connection")),
            // The peer wrote after this end had closed.
            (
                FinWait2,
                ("answer", "TCP_ABORT_ON_DATA", 0),
                Some("write_after_peer_close"),
            ),
            // Options and unread bytes of the socket are no evidence: it did not close.
            (
                SynSent,
                ("answer linger_zero", "TCP_INVALID_ACK_SEQUENCE", 4),
                None,
            ),
        ];
        for (state, reset, expected) in table {
            assert_eq!(verdict(state, None, reset), expected, "{state} {reset:?}");
        }
    }
}
