//! What is asked of the host about an event.

use std::net::SocketAddr;
use std::time::Duration;

use crate::event::{Errno, Event, Kind, Side, State, StateChange};

/// What is asked of the host: one subject, so that two events that ask the same get one answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::session) enum Question {
    /// What a process holds.
    Holdings { pid: u32 },
    /// Why nobody accepts from a listener.
    AcceptQueue {
        pid: u32,
        fd: Option<i32>,
        inode: Option<u64>,
        netns: u32,
    },
    /// Who listens on the port that refused.
    Nearby { netns: u32, meant: SocketAddr },
    /// How far the ephemeral ports are used.
    Ports {
        netns: u32,
        pid: Option<u32>,
        peer: Option<SocketAddr>,
    },
    /// Who holds an address.
    PortHolder {
        netns: u32,
        pid: Option<u32>,
        wanted: SocketAddr,
    },
    /// What a process waits for.
    Workload { pid: u32 },
    /// Who holds the other end of a connection.
    OtherEnd {
        netns: u32,
        pid: Option<u32>,
        local: SocketAddr,
        peer: SocketAddr,
    },
}

impl Question {
    /// The same is not asked again for this long: later events of the subject carry no facts.
    pub(super) fn interval(&self) -> Duration {
        match self {
            // Two looks show whether a pool grows.
            Self::Workload { .. } => Duration::from_secs(1),
            _ => Duration::from_secs(10),
        }
    }

    /// What is asked of a service that fails comes from another purse than what every refused or
    /// leaving client asks: a storm of those must not leave the one EMFILE without its snapshot.
    pub(super) fn purse(&self) -> usize {
        match self {
            Self::Holdings { .. }
            | Self::AcceptQueue { .. }
            | Self::Ports { .. }
            | Self::PortHolder { .. } => 0,
            Self::Nearby { .. } | Self::Workload { .. } => 1,
            Self::OtherEnd { .. } => 2,
        }
    }
}

/// Purses of [`Question::purse`].
pub(super) const PURSES: usize = 3;

/// What is asked about an event: nothing about most.
pub(in crate::session) fn questions(event: &Event) -> [Option<Question>; 2] {
    let pid = pid(event);
    let workload = pid.map(|pid| Question::Workload { pid });
    match &event.kind {
        Kind::FdExhausted(exhausted) if exhausted.errno.0 == libc::EMFILE => {
            [pid.map(|pid| Question::Holdings { pid }), None]
        }
        Kind::AcceptQueueOverflow(_) => [accept_queue_of(event), workload],
        Kind::ConnectFailed(failed) => [failed.errno.and_then(|it| unconnected(event, it)), None],
        Kind::SocketError(call) if call.errno.0 == libc::EADDRINUSE => [unbound(event), None],
        Kind::CloseWaitStuck(_) => [workload, None],
        Kind::CloseWaitEntered(_) if peer_waited(event) => [workload, other_end(event)],
        // It stopped reading.
        Kind::ConnectionTimeout(timeout) if timeout.send_window == 0 => [other_end(event), None],
        Kind::StateChanged(change) if closes(change) && (exits(event) || is_unused(event)) => {
            [other_end(event), None]
        }
        _ => [None, None],
    }
}

fn pid(event: &Event) -> Option<u32> {
    event.owner.process.as_ref().map(|owner| owner.pid)
}

fn accept_queue_of(event: &Event) -> Option<Question> {
    let socket = event.socket.as_ref()?;
    Some(Question::AcceptQueue {
        pid: pid(event)?,
        fd: socket.fd,
        inode: socket.inode,
        netns: socket.flow.netns,
    })
}

fn unconnected(event: &Event, errno: Errno) -> Option<Question> {
    let flow = event.socket.as_ref()?.flow;
    match errno.0 {
        libc::ECONNREFUSED => Some(Question::Nearby {
            netns: flow.netns,
            meant: flow.peer?,
        }),
        libc::EADDRNOTAVAIL => Some(Question::Ports {
            netns: flow.netns,
            pid: pid(event),
            peer: flow.peer,
        }),
        _ => None,
    }
}

fn unbound(event: &Event) -> Option<Question> {
    let flow = event.socket.as_ref()?.flow;
    let (netns, pid, wanted) = (flow.netns, pid(event), flow.local);
    Some(if wanted.port() == 0 {
        // Any port would have done, and none was left.
        let peer = None;
        Question::Ports { netns, pid, peer }
    } else {
        Question::PortHolder { netns, pid, wanted }
    })
}

fn other_end(event: &Event) -> Option<Question> {
    let flow = event.socket.as_ref()?.flow;
    Some(Question::OtherEnd {
        netns: flow.netns,
        pid: pid(event),
        local: flow.local,
        peer: flow.peer?,
    })
}

/// The peer waited for an answer, and closed.
fn peer_waited(event: &Event) -> bool {
    let fin = event.socket.as_ref().and_then(|socket| socket.fin);
    fin.is_some_and(|fin| fin.waited_ms.is_some())
}

/// This end goes first.
fn closes(change: &StateChange) -> bool {
    change.from == State::Established && change.to != State::CloseWait
}

fn exits(event: &Event) -> bool {
    let owner = event.owner.process.as_ref();
    owner.is_some_and(|owner| owner.exit.is_some())
}

/// A server closes what it accepted a moment ago, without a word.
fn is_unused(event: &Event) -> bool {
    event.socket.as_ref().is_some_and(|socket| {
        let soon = socket.accepted_ago_us.is_some_and(|us| us < 1_000_000);
        socket.side == Some(Side::Server) && socket.bytes_sent == 0 && soon
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::event::{CloseWait, Exit, Flow, Owner, PeerFin, Socket, Timeout};
    use crate::sink::samples;

    fn asked(event: &Event) -> Vec<Question> {
        questions(event).into_iter().flatten().collect()
    }

    #[test]
    fn each_kind_asks_its_own() {
        let mut exhausted = samples::all();
        exhausted.retain(|event| matches!(event.kind, Kind::FdExhausted(_)));
        let mut exhausted = exhausted.pop().expect("a sample of each kind");
        assert_eq!(asked(&exhausted), [Question::Holdings { pid: 1_234 }]);
        if let Kind::FdExhausted(fds) = &mut exhausted.kind {
            fds.errno = Errno(libc::ENFILE);
        }
        assert_eq!(asked(&exhausted), [], "the host's limit, not the process's");

        let queue = samples::queue_full();
        let accepts = Question::AcceptQueue {
            pid: 1_234,
            fd: Some(17),
            inode: Some(81_234),
            netns: 4_026_531_840,
        };
        assert_eq!(asked(&queue), [accepts, WORKLOAD]);
        let nobody = Event {
            owner: Owner::default(),
            ..queue
        };
        assert_eq!(asked(&nobody), []);
        assert_eq!(asked(&samples::reset_sent()), []);
    }

    pub(in crate::session::facts) const WORKLOAD: Question = Question::Workload { pid: 1_234 };

    fn other_end() -> Question {
        Question::OtherEnd {
            netns: 7,
            pid: Some(1_234),
            local: "10.0.0.1:8080".parse().expect("an address"),
            peer: "10.0.0.9:40000".parse().expect("an address"),
        }
    }

    /// On the connection of [`other_end`].
    fn connected(kind: Kind) -> Event {
        let socket = Socket {
            flow: Flow {
                netns: 7,
                ..samples::flow("10.0.0.1:8080", Some("10.0.0.9:40000"))
            },
            ..Socket::default()
        };
        samples::event(Some(socket), kind)
    }

    #[test]
    fn the_workload_and_the_peer_are_asked_for_when_the_peer_gave_up() {
        let wait = CloseWait {
            age_ms: 0,
            at_least: false,
            count: 1,
            at_start: false,
        };
        let mut event = connected(Kind::CloseWaitEntered(wait));
        assert_eq!(asked(&event), [], "a FIN that nobody waited before");
        if let Some(socket) = &mut event.socket {
            socket.fin = Some(PeerFin {
                ago_us: 10,
                written: Some(0),
                waited_ms: Some(5_000),
                idle_ms: 5_000,
            });
        }
        assert_eq!(asked(&event), [WORKLOAD, other_end()]);
    }

    #[test]
    fn a_closed_window_asks_who_does_not_read() {
        let mut timeout = Timeout {
            errno: Errno(libc::ETIMEDOUT),
            retransmits: 0,
            probes: 15,
            send_window: 0,
            user_timeout_ms: None,
            keepalive: false,
        };
        let silent = connected(Kind::ConnectionTimeout(timeout.clone()));
        assert_eq!(asked(&silent), [other_end()]);
        timeout.send_window = 1;
        assert_eq!(asked(&connected(Kind::ConnectionTimeout(timeout))), []);
    }

    fn changed(from: State, to: State) -> Event {
        connected(Kind::StateChanged(StateChange {
            from,
            to,
            duration_us: None,
            errno: None,
        }))
    }

    /// The exit of a process with that connection open.
    pub(in crate::session::facts) fn exits_open() -> Event {
        exits(changed(State::Established, State::FinWait1))
    }

    fn exits(mut event: Event) -> Event {
        if let Some(process) = &mut event.owner.process {
            process.exit = Some(Exit::Signal(libc::SIGKILL));
        }
        event
    }

    #[test]
    fn an_exit_asks_for_the_other_end_of_an_open_connection() {
        let open = changed(State::Established, State::FinWait1);
        assert_eq!(asked(&open), []);
        assert_eq!(asked(&exits_open()), [other_end()]);
        let half_closed = changed(State::CloseWait, State::LastAck);
        assert_eq!(asked(&exits(half_closed)), [], "the peer went first");
    }

    #[test]
    fn a_connection_closed_unused_asks_for_its_client() {
        let unused = |to, side, accepted_ago_us, bytes_sent| {
            let mut event = changed(State::Established, to);
            if let Some(socket) = &mut event.socket {
                socket.side = Some(side);
                socket.accepted_ago_us = accepted_ago_us;
                socket.bytes_sent = bytes_sent;
            }
            asked(&event)
        };
        assert_eq!(
            unused(State::FinWait1, Side::Server, Some(999_999), 0),
            [other_end()]
        );
        for (to, side, accepted_ago_us, bytes_sent) in [
            (State::CloseWait, Side::Server, Some(10), 0),
            (State::FinWait1, Side::Client, Some(10), 0),
            (State::FinWait1, Side::Server, Some(1_000_000), 0),
            (State::FinWait1, Side::Server, None, 0),
            (State::FinWait1, Side::Server, Some(10), 1),
        ] {
            assert_eq!(unused(to, side, accepted_ago_us, bytes_sent), []);
        }
    }

    #[test]
    fn an_address_in_use_asks_who_holds_it_or_for_the_ports() {
        let mut event = samples::write_failed();
        if let Kind::SocketError(call) = &mut event.kind {
            call.errno = Errno(libc::EADDRINUSE);
        }
        let local = event.socket.as_ref().expect("it has one").flow.local;
        let expected = Question::PortHolder {
            netns: 4_026_531_840,
            pid: Some(1_234),
            wanted: local,
        };
        assert_eq!(asked(&event), [expected]);
        if let Some(socket) = &mut event.socket {
            socket.flow.local.set_port(0);
        }
        let expected = Question::Ports {
            netns: 4_026_531_840,
            pid: Some(1_234),
            peer: None,
        };
        assert_eq!(asked(&event), [expected]);
    }
}
