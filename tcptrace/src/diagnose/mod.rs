//! The analysis: what an event means. No IO and no clock, so that every cause is tested from events
//! alone.

mod case;
mod closing;
mod connecting;
mod connection;
mod correlate;
mod descriptors;
mod exiting;
mod idle;
mod judged;
mod leaking;
mod pooling;
mod queueing;
pub mod reset;
#[cfg(test)]
#[path = "tests.rs"]
mod scene_tests;
#[cfg(test)]
mod scenes;
mod subject;
mod timing;
mod verdict;
mod waiting;
mod writing;

use std::borrow::Cow;
use std::collections::HashMap;

use foldhash::fast::RandomState;

pub use correlate::{Analysis, Counts, Limits, Sees};

pub use crate::event::Cause;
use crate::event::{ConnectFailed, Errno, Event, Kind, Timeout};

/// Hashed in a tenth of the library's time, and with a seed of its own: whoever chooses the ports of
/// many connections cannot choose where they go.
type Map<K, V> = HashMap<K, V, RandomState>;

/// The cause, as far as the event alone tells; `None` where it takes other events to say.
#[must_use]
pub fn cause(event: &Event) -> Option<Cause> {
    match &event.kind {
        Kind::ResetSent(_) => reset::cause(event),
        Kind::CloseWaitStuck(_) => Some(Cause::CloseWaitLeak),
        Kind::AcceptQueueOverflow(_) => Some(Cause::AcceptQueueOverflow),
        Kind::SynQueueOverflow(_) => Some(Cause::SynQueueOverflow),
        Kind::Finding(finding) => Some(finding.cause),
        Kind::SocketError(call) if call.timeout => Some(Cause::SocketTimeout),
        Kind::SocketError(call) => match call.errno.0 {
            libc::ENOTCONN => Some(Cause::NotConnected),
            libc::EADDRINUSE => Some(Cause::AddressInUse),
            _ => None,
        },
        Kind::ConnectFailed(connect) => connect_cause(connect),
        Kind::ConnectionTimeout(timeout) => timeout_cause(timeout),
        Kind::FdExhausted(_) => Some(Cause::FdExhausted),
        Kind::FdInvalid(call) => (call.errno.0 == libc::EBADF).then_some(Cause::UseAfterClose),
        Kind::EventsSuppressed(suppressed) => suppressed.cause,
        Kind::ResetReceived(_)
        | Kind::CloseWaitEntered(_)
        | Kind::StateChanged(_)
        | Kind::Retransmit(_)
        | Kind::Coverage(_)
        | Kind::TargetChanged(_)
        | Kind::EventsLost(_)
        | Kind::ExportDropped(_)
        | Kind::Summary(_)
        | Kind::Sockets(_) => None,
    }
}

/// OpenTelemetry's `error.type`: the name of the error the application sees, or the cause where it
/// sees none; `None` for what is no failure or has no known cause.
#[must_use]
pub fn error_type(event: &Event) -> Option<Cow<'static, str>> {
    let errno = match &event.kind {
        Kind::ResetReceived(reset) => reset.errno,
        Kind::SocketError(call) | Kind::FdInvalid(call) => Some(call.errno),
        Kind::ConnectFailed(connect) => connect.errno,
        Kind::ConnectionTimeout(timeout) => Some(timeout.errno),
        Kind::FdExhausted(fds) => Some(fds.errno),
        Kind::StateChanged(change) => change.errno,
        Kind::Finding(finding) => finding.errors.first().map(|&(errno, _)| errno),
        Kind::EventsSuppressed(suppressed) => suppressed.errno,
        Kind::EventsLost(loss) => return Some(Cow::Borrowed(loss.reason)),
        Kind::ExportDropped(dropped) => return Some(Cow::Borrowed(dropped.reason)),
        Kind::ResetSent(_)
        | Kind::CloseWaitEntered(_)
        | Kind::CloseWaitStuck(_)
        | Kind::AcceptQueueOverflow(_)
        | Kind::SynQueueOverflow(_)
        | Kind::Retransmit(_)
        | Kind::Coverage(_)
        | Kind::TargetChanged(_)
        | Kind::Summary(_)
        | Kind::Sockets(_) => None,
    };
    match errno {
        Some(errno) => Some(errno_name(errno)),
        None => cause(event).map(|cause| Cow::Borrowed(cause.as_str())),
    }
}

fn errno_name(errno: Errno) -> Cow<'static, str> {
    match errno.name() {
        Some(name) => Cow::Borrowed(name),
        None => Cow::Owned(errno.to_string()),
    }
}

/// A refusal is left open: whether the host that refused is this one takes its own RST to say.
fn connect_cause(connect: &ConnectFailed) -> Option<Cause> {
    let Some(errno) = connect.errno else {
        return Some(Cause::ConnectAbandoned);
    };
    match errno.0 {
        libc::ETIMEDOUT => Some(Cause::ConnectTimeout),
        libc::ENETUNREACH | libc::EHOSTUNREACH => Some(Cause::Unreachable),
        libc::EADDRNOTAVAIL => Some(Cause::PortsExhausted),
        libc::EADDRINUSE => Some(Cause::AddressInUse),
        _ => None,
    }
}

/// The probes count for a closed window as well as for keepalive; `keepalive` tells the two apart. A
/// window that closed over data in flight ends in retransmissions instead of probes.
fn timeout_cause(timeout: &Timeout) -> Option<Cause> {
    if timeout.keepalive {
        Some(Cause::KeepaliveTimeout)
    } else if timeout.send_window == 0 {
        Some(Cause::PeerNotReading)
    } else if timeout.user_timeout_ms.is_some() {
        Some(Cause::UserTimeout)
    } else if timeout.retransmits > 0 {
        Some(Cause::RetransmitTimeout)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{
        CallError, CloseWait, EventId, FdExhausted, Loss, Overflow, Owner, ResetReceived,
        Retransmit, State, StateChange, Timestamp,
    };

    fn event(kind: Kind) -> Event {
        Event {
            id: EventId(1),
            time: Timestamp(0),
            caused_by: None,
            socket: None,
            owner: Owner::default(),
            actor: None,
            facts: Vec::new(),
            kind,
        }
    }

    fn call(errno: i32, timeout: bool) -> CallError {
        let errno = Errno(errno);
        CallError {
            syscall: None,
            send: Some(true),
            errno,
            len: None,
            timeout,
            fd: None,
        }
    }

    fn connect(errno: Option<i32>) -> Kind {
        let errno = errno.map(Errno);
        Kind::ConnectFailed(ConnectFailed {
            errno,
            attempts: 1,
            duration_us: None,
        })
    }

    const TIMEOUT: Timeout = Timeout {
        errno: Errno(libc::ETIMEDOUT),
        retransmits: 0,
        probes: 0,
        send_window: 65_535,
        user_timeout_ms: None,
        keepalive: false,
    };

    const CLOSE_WAIT: CloseWait = CloseWait {
        age_ms: 0,
        at_least: false,
        count: 1,
        at_start: false,
    };

    fn check(kind: Kind, expected_type: Option<&str>, expected_cause: Option<&str>) {
        let event = event(kind);
        assert_eq!(error_type(&event).as_deref(), expected_type, "{event:?}");
        assert_eq!(
            cause(&event).map(Cause::as_str),
            expected_cause,
            "{event:?}"
        );
    }

    #[test]
    fn a_failed_call_is_named_by_its_errno() {
        check(
            Kind::SocketError(call(libc::EPIPE, false)),
            Some("EPIPE"),
            None,
        );
        check(
            Kind::SocketError(call(4095, false)),
            Some("errno 4095"),
            None,
        );
        for (errno, timeout, name, cause) in [
            (libc::EAGAIN, true, "EAGAIN", "socket_timeout"),
            (libc::ENOTCONN, false, "ENOTCONN", "not_connected"),
            (libc::EADDRINUSE, false, "EADDRINUSE", "address_in_use"),
        ] {
            check(
                Kind::SocketError(call(errno, timeout)),
                Some(name),
                Some(cause),
            );
        }
        check(
            Kind::FdInvalid(call(libc::EBADF, false)),
            Some("EBADF"),
            Some("use_after_close"),
        );
        check(
            Kind::FdInvalid(call(libc::ENOTSOCK, false)),
            Some("ENOTSOCK"),
            None,
        );
        let errno = Errno(libc::EMFILE);
        let fds = FdExhausted {
            syscall: None,
            errno,
            open: None,
            limit: None,
            read_after_ms: None,
        };
        check(Kind::FdExhausted(fds), Some("EMFILE"), Some("fd_exhausted"));
    }

    #[test]
    fn a_failed_connect_is_named_by_its_errno_or_as_abandoned() {
        check(
            connect(Some(libc::ECONNREFUSED)),
            Some("ECONNREFUSED"),
            None,
        );
        check(
            connect(None),
            Some("connect_abandoned"),
            Some("connect_abandoned"),
        );
        for (errno, name, cause) in [
            (libc::ETIMEDOUT, "ETIMEDOUT", "connect_timeout"),
            (libc::ENETUNREACH, "ENETUNREACH", "unreachable"),
            (libc::EHOSTUNREACH, "EHOSTUNREACH", "unreachable"),
            (libc::EADDRNOTAVAIL, "EADDRNOTAVAIL", "ports_exhausted"),
            (libc::EADDRINUSE, "EADDRINUSE", "address_in_use"),
        ] {
            check(connect(Some(errno)), Some(name), Some(cause));
        }
    }

    #[test]
    fn a_timeout_is_told_apart_by_what_ran_out() {
        for (timeout, cause) in [
            (TIMEOUT, None),
            (
                Timeout {
                    retransmits: 15,
                    ..TIMEOUT
                },
                Some("retransmit_timeout"),
            ),
            (
                Timeout {
                    retransmits: 3,
                    user_timeout_ms: Some(5_000),
                    ..TIMEOUT
                },
                Some("user_timeout"),
            ),
            (
                Timeout {
                    probes: 9,
                    keepalive: true,
                    ..TIMEOUT
                },
                Some("keepalive_timeout"),
            ),
            (
                Timeout {
                    probes: 15,
                    send_window: 0,
                    ..TIMEOUT
                },
                Some("peer_not_reading"),
            ),
        ] {
            check(Kind::ConnectionTimeout(timeout), Some("ETIMEDOUT"), cause);
        }
    }

    #[test]
    fn other_kinds_have_a_type_only_where_something_failed() {
        let received = |errno: Option<Errno>| {
            Kind::ResetReceived(ResetReceived {
                errno,
                orphan: errno.is_none(),
            })
        };
        check(received(Some(Errno(libc::EPIPE))), Some("EPIPE"), None);
        check(received(None), None, None);
        let leak = Some("close_wait_leak");
        check(Kind::CloseWaitEntered(CLOSE_WAIT), None, None);
        check(Kind::CloseWaitStuck(CLOSE_WAIT), leak, leak);
        let full = Some("accept_queue_overflow");
        let overflow = Overflow {
            path: None,
            count: 0,
            queue_len: Some(129),
            queue_max: Some(128),
            backlog: None,
            drops: Some(0),
            last_accept_ago_us: None,
        };
        check(Kind::AcceptQueueOverflow(overflow), full, full);
        let change = |errno| StateChange {
            from: State::Established,
            to: State::Closed,
            duration_us: None,
            errno,
        };
        check(Kind::StateChanged(change(None)), None, None);
        let timed_out = Some(Errno(libc::ETIMEDOUT));
        check(
            Kind::StateChanged(change(timed_out)),
            Some("ETIMEDOUT"),
            None,
        );
        check(Kind::Retransmit(Retransmit { attempt: 1 }), None, None);
        let lost = Loss {
            hook: "tcp_send_reset".to_owned(),
            count: 3,
            reason: "ring_full",
        };
        check(Kind::EventsLost(lost), Some("ring_full"), None);
    }
}
