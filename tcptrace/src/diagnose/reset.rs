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
        Some(State::TimeWait) => Some(Cause::StaleConnection),
        // A SYN here met a half-open connection of the same tuple: neither a lost connection nor a
        // full queue.
        Some(State::Listen) if reset.answers_syn => None,
        // Before it gave reasons, the kernel did not tell a full queue from a stale segment.
        Some(State::Listen) => match reason(reset)? {
            "INVALID_SYN" => Some(Cause::AcceptQueueOverflow),
            _ => Some(Cause::StaleConnection),
        },
        _ if reset.no_socket && reset.answers_syn => Some(Cause::NoListener),
        _ if reset.no_socket => Some(Cause::StaleConnection),
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

    /// A RST this end sent unasked, without any evidence.
    const UNASKED: ResetSent = ResetSent {
        reason: None,
        unread: 0,
        linger_zero: false,
        answers_segment: false,
        answers_syn: false,
        no_socket: false,
        unaccepted: false,
        aborted: false,
        syscall: None,
    };

    /// A RST that answers a segment.
    const ANSWER: ResetSent = ResetSent {
        answers_segment: true,
        ..UNASKED
    };

    fn because(reason: &'static str) -> Option<ResetReason> {
        Some(ResetReason(reason.into()))
    }

    fn verdict(state: State, exit: Option<Exit>, reset: ResetSent) -> Option<&'static str> {
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
            kind: Kind::ResetSent(reset),
        };
        cause(&event).map(Cause::as_str)
    }

    #[test]
    fn evidence_of_an_unasked_reset() {
        use State::{CloseWait, Established, FinWait2};
        let killed = Some(Exit::Signal(9));
        let state = because("TCP_STATE");
        let close = because("TCP_ABORT_ON_CLOSE");
        let table = [
            // ss -K: the kernel says TCP_STATE, and what the socket held does not matter.
            (
                Established,
                None,
                ResetSent {
                    aborted: true,
                    reason: state.clone(),
                    unread: 5,
                    ..UNASKED
                },
                Some("killed_by_admin"),
            ),
            // The listener closed with this child in its queue.
            (
                Established,
                None,
                ResetSent {
                    unaccepted: true,
                    reason: state.clone(),
                    unread: 5,
                    ..UNASKED
                },
                Some("listener_closed"),
            ),
            (
                Established,
                killed,
                ResetSent {
                    unaccepted: true,
                    reason: state.clone(),
                    ..UNASKED
                },
                Some("listener_closed"),
            ),
            // SO_LINGER 0 is TCP_STATE as well.
            (
                Established,
                None,
                ResetSent {
                    linger_zero: true,
                    reason: state.clone(),
                    ..UNASKED
                },
                Some("linger_zero"),
            ),
            (
                Established,
                None,
                ResetSent {
                    linger_zero: true,
                    unread: 9,
                    reason: close.clone(),
                    ..UNASKED
                },
                Some("linger_zero"),
            ),
            (
                Established,
                killed,
                ResetSent {
                    linger_zero: true,
                    reason: state.clone(),
                    ..UNASKED
                },
                Some("linger_zero"),
            ),
            // Unread bytes; the same without a reason, on kernels that give none.
            (
                CloseWait,
                None,
                ResetSent {
                    unread: 512,
                    reason: close.clone(),
                    ..UNASKED
                },
                Some("closed_with_unread_data"),
            ),
            (
                CloseWait,
                None,
                ResetSent {
                    unread: 512,
                    ..UNASKED
                },
                Some("closed_with_unread_data"),
            ),
            (
                CloseWait,
                killed,
                ResetSent {
                    unread: 512,
                    reason: close,
                    ..UNASKED
                },
                Some("process_exited"),
            ),
            (
                CloseWait,
                Some(Exit::Code(0)),
                ResetSent {
                    unread: 1,
                    ..UNASKED
                },
                Some("process_exited"),
            ),
            // Timers and memory, whatever else is set.
            (
                Established,
                None,
                ResetSent {
                    reason: because("TCP_KEEPALIVE_TIMEOUT"),
                    unread: 3,
                    linger_zero: true,
                    ..UNASKED
                },
                Some("keepalive_timeout"),
            ),
            (
                FinWait2,
                None,
                ResetSent {
                    reason: because("TCP_ABORT_ON_MEMORY"),
                    ..UNASKED
                },
                Some("tcp_memory_pressure"),
            ),
            (
                FinWait2,
                None,
                ResetSent {
                    reason: because("TCP_ABORT_ON_DATA"),
                    ..UNASKED
                },
                Some("write_after_peer_close"),
            ),
            // connect(AF_UNSPEC), or the FIN_WAIT2 timer: nothing to name.
            (
                Established,
                None,
                ResetSent {
                    reason: state,
                    ..UNASKED
                },
                None,
            ),
            (Established, killed, UNASKED, None),
        ];
        for (state, exit, reset, expected) in table {
            assert_eq!(
                verdict(state, exit, reset.clone()),
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
                ResetSent {
                    no_socket: true,
                    answers_syn: true,
                    reason: because("NO_SOCKET"),
                    ..ANSWER
                },
                Some("no_listener"),
            ),
            (
                Closed,
                ResetSent {
                    no_socket: true,
                    answers_syn: true,
                    ..ANSWER
                },
                Some("no_listener"),
            ),
            // A connection this host no longer has.
            (
                Closed,
                ResetSent {
                    no_socket: true,
                    reason: because("NO_SOCKET"),
                    ..ANSWER
                },
                Some("stale_connection"),
            ),
            (
                TimeWait,
                ResetSent {
                    reason: because("TCP_TIMEWAIT_SOCKET"),
                    ..ANSWER
                },
                Some("stale_connection"),
            ),
            (
                TimeWait,
                ResetSent {
                    no_socket: true,
                    answers_syn: true,
                    ..ANSWER
                },
                Some("stale_connection"),
            ),
            (
                Listen,
                ResetSent {
                    reason: because("TCP_FLAGS"),
                    ..ANSWER
                },
                Some("stale_connection"),
            ),
            // tcp_abort_on_overflow reads INVALID_SYN, and so does a SYN on a half-open request.
            (
                Listen,
                ResetSent {
                    reason: because("INVALID_SYN"),
                    ..ANSWER
                },
                Some("accept_queue_overflow"),
            ),
            (
                Listen,
                ResetSent {
                    no_socket: true,
                    reason: because("INVALID_SYN"),
                    ..ANSWER
                },
                Some("accept_queue_overflow"),
            ),
            (
                Listen,
                ResetSent {
                    reason: because("INVALID_SYN"),
                    answers_syn: true,
                    ..ANSWER
                },
                None,
            ),
            (Listen, ANSWER, None),
            // The peer wrote after this end had closed.
            (
                FinWait2,
                ResetSent {
                    reason: because("TCP_ABORT_ON_DATA"),
                    ..ANSWER
                },
                Some("write_after_peer_close"),
            ),
            // Options and unread bytes of the socket are no evidence: it did not close.
            (
                SynSent,
                ResetSent {
                    reason: because("TCP_INVALID_ACK_SEQUENCE"),
                    linger_zero: true,
                    unread: 4,
                    ..ANSWER
                },
                None,
            ),
        ];
        for (state, reset, expected) in table {
            assert_eq!(
                verdict(state, None, reset.clone()),
                expected,
                "{state} {reset:?}"
            );
        }
    }
}
