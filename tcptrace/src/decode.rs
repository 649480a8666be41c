//! Bytes to domain events: the one place that gives the kernel half's integers a meaning.

use std::borrow::Cow;
use std::net::SocketAddr;

use bytemuck::Zeroable;
use tcptrace_common::event as wire;
use tcptrace_common::event::{NO_REASON, confidence, flag, kind, path, side};

use crate::event::{
    CallError, CloseWait, Comm, Confidence, ConnectFailed, Errno, Event, EventId, Exit,
    FdExhausted, Flow, Kind, Overflow, OverflowPath, Owner, PeerFin, Process, ResetReason,
    ResetReceived, ResetSent, Retransmit, Side, Socket, SocketId, State, StateChange, Syscall,
    Timeout, Timestamp, address,
};

/// What the numbers of this kernel mean.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Wall clock minus monotonic clock, ns.
    pub clock_offset: u64,
    /// Length of a jiffy, ns.
    pub ns_per_jiffy: u32,
    /// Names of `enum sk_rst_reason`, by value. They live as long as the program, so that an event
    /// borrows instead of copying.
    pub reset_reasons: Vec<(u32, &'static str)>,
}

/// An event, and what the agent needs to complete it from `/proc`.
#[derive(Debug)]
pub struct Decoded {
    /// The event as the kernel half tells it.
    pub event: Event,
    /// When it happened on the monotonic clock, ns.
    pub monotonic: u64,
    /// It did not happen in the owner's own context: somebody else may hold the socket by now.
    pub unconfirmed: bool,
    /// More than one reference to the socket's file existed.
    pub shared: bool,
    /// The stack of who acted is in the ring of stacks.
    pub stack: bool,
}

/// A listener as the kernel half remembers it.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Where it listens.
    pub flow: Flow,
    /// Whose it is.
    pub owner: Owner,
    /// Connections it has handed over, by a counter that wraps; of two at a time one may be missing.
    pub accepted: u32,
    /// When it last handed one over.
    pub last_accept: Option<Timestamp>,
    /// The backlog the program asked for, where that was seen.
    pub backlog: Option<u32>,
}

/// Why bytes are no record.
#[derive(Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not the size of a record.
    Size(usize),
    /// No such kind.
    Kind(u8),
}

impl Decoder {
    /// Reads one record.
    ///
    /// # Errors
    /// The bytes are not one: they come from another version of the kernel half.
    pub fn decode(&self, bytes: &[u8]) -> Result<Decoded, Malformed> {
        if bytes.len() != size_of::<wire::Event>() {
            return Err(Malformed::Size(bytes.len()));
        }
        let raw: wire::Event = bytemuck::pod_read_unaligned(bytes);
        let kind = self.kind(&raw)?;
        let is = |bit| raw.flags & bit != 0;
        let task = is(flag::TASK_CONTEXT).then(|| process(&raw.task, exit(&raw)));
        let mut owner = owner(&raw);
        let actor = match (&mut owner.process, task) {
            (Some(owner), Some(task)) if owner.pid == task.pid => {
                // The thread that acts now, not the one seen first.
                *owner = task;
                None
            }
            (_, task) => task.map(Box::new),
        };
        Ok(Decoded {
            unconfirmed: raw.inode != 0 && actor.is_none() && !is(flag::TASK_CONTEXT),
            shared: is(flag::FILE_SHARED),
            stack: is(flag::STACK),
            monotonic: raw.time,
            event: Event {
                id: EventId(raw.id),
                time: self.wall(raw.time),
                caused_by: (raw.cause != 0 && !matches!(raw.kind, kind::STATE | kind::CLOSE))
                    .then_some(EventId(raw.cause)),
                socket: (raw.family != 0).then(|| self.socket(&raw)),
                owner,
                actor,
                facts: Vec::new(),
                kind,
            },
        })
    }

    /// A listener by its key, with what is remembered of it.
    #[must_use]
    pub fn listener(&self, key: &wire::ListenerKey, known: Option<&wire::Sock>) -> Listener {
        let ipv6_socket = i32::from(key.family) == libc::AF_INET6;
        let remembered = wire::Event {
            owner: known.map_or(Zeroable::zeroed(), |known| known.owner),
            confidence: known.map_or(confidence::UNKNOWN, |known| known.confidence),
            ..Zeroable::zeroed()
        };
        let accepted = known.map_or(0, |known| known.accepted);
        Listener {
            flow: Flow {
                local: SocketAddr::new(address(key.addr, ipv6_socket), key.port),
                peer: None,
                ipv6_socket,
                netns: key.netns,
            },
            owner: owner(&remembered),
            accepted: known.map_or(0, |known| known.fin_seq),
            last_accept: (accepted != 0).then(|| self.wall(accepted)),
            backlog: known.map(|known| known.backlog).filter(|&it| it != 0),
        }
    }

    /// A socket that is in CLOSE_WAIT at `now` on the monotonic clock, with what is remembered of
    /// it.
    #[must_use]
    pub fn stuck(
        &self,
        (address, raw): (u64, &wire::CloseWait),
        known: Option<&wire::Sock>,
        now: u64,
    ) -> Event {
        let event = wire::Event {
            id: raw.id,
            time: now,
            sk: address,
            born: known.map_or(0, |known| known.born),
            owner: known.map_or(Zeroable::zeroed(), |known| known.owner),
            confidence: known.map_or(confidence::UNKNOWN, |known| known.confidence),
            creator: known.map_or(0, |known| known.creator),
            fd: known.map_or(-1, |known| known.fd),
            received_ago: u32::MAX,
            sent_ago: u32::MAX,
            heard_ago: u32::MAX,
            accepted: known.map_or(0, |known| known.accepted),
            shut: known.map_or(0, |known| known.shut),
            side: known.map_or(side::UNKNOWN, |known| known.side),
            fin: known.map_or(0, |known| known.fin),
            fin_waited: known.map_or(u32::MAX, |known| known.fin_waited),
            fin_idle: known.map_or(0, |known| known.fin_idle),
            flags: if known.is_some_and(|known| known.eof_read != 0) {
                flag::EOF_READ
            } else {
                0
            },
            tuple: raw.tuple,
            family: raw.family,
            state: State::CloseWait as u8,
            ..Zeroable::zeroed()
        };
        Event {
            id: EventId(raw.id),
            time: self.wall(now),
            caused_by: None,
            socket: Some(self.socket(&event)),
            owner: owner(&event),
            actor: None,
            facts: Vec::new(),
            kind: Kind::CloseWaitStuck(CloseWait {
                age_ms: now.saturating_sub(raw.since) / 1_000_000,
                at_least: raw.older != 0,
                count: 1,
                at_start: false,
            }),
        }
    }

    /// The wall clock at a time of the kernel's monotonic one.
    #[must_use]
    pub fn wall(&self, monotonic: u64) -> Timestamp {
        Timestamp(monotonic.wrapping_add(self.clock_offset))
    }

    fn kind(&self, raw: &wire::Event) -> Result<Kind, Malformed> {
        let is = |bit| raw.flags & bit != 0;
        let syscall = (raw.syscall >= 0).then_some(Syscall(raw.syscall));
        let errno = Errno(raw.errno);
        Ok(match raw.kind {
            kind::RESET_SENT => Kind::ResetSent(ResetSent {
                reason: self.reset_reason(raw.reason),
                unread: raw.unread,
                linger_zero: is(flag::LINGER_ZERO),
                answers_segment: is(flag::ANSWERS),
                answers_syn: is(flag::SYN),
                no_socket: is(flag::FROM_SEGMENT),
                queue_full: raw.state == State::Listen as u8 && raw.queue_len > raw.queue_max,
                unaccepted: is(flag::UNACCEPTED),
                aborted: is(flag::ABORTED),
                syscall,
            }),
            kind::RESET_RECEIVED => Kind::ResetReceived(ResetReceived {
                errno: reset_errno(raw.state).map(Errno),
                orphan: is(flag::ORPHAN),
            }),
            kind::CLOSE_WAIT => Kind::CloseWaitEntered(CloseWait {
                age_ms: 0,
                at_least: false,
                count: 1,
                at_start: false,
            }),
            kind::ACCEPT_OVERFLOW => Kind::AcceptQueueOverflow(Overflow {
                path: match raw.path {
                    path::SYN => Some(OverflowPath::Syn),
                    path::ACK => Some(OverflowPath::Ack),
                    path::COOKIE => Some(OverflowPath::Cookie),
                    _ => None,
                },
                count: 1,
                queue_len: Some(raw.queue_len),
                queue_max: Some(raw.queue_max),
                backlog: (raw.backlog != 0).then_some(raw.backlog),
                drops: Some(raw.drops),
                last_accept_ago_us: since(raw.accepted, raw.time),
            }),
            kind::SOCKET_ERROR | kind::FD_INVALID => {
                let io = matches!(
                    raw.hook,
                    wire::hook::SEND_LENGTH
                        | wire::hook::RECV_LENGTH
                        | wire::hook::SENDMSG
                        | wire::hook::RECVMSG
                        | wire::hook::IO_EXIT
                );
                let call = CallError {
                    syscall,
                    send: io.then_some(is(flag::SEND)),
                    errno,
                    len: asked_for(syscall, raw.len),
                    timeout: is(flag::SOCKET_TIMEOUT),
                    fd: (raw.fd >= 0).then_some(raw.fd),
                };
                if raw.kind == kind::SOCKET_ERROR {
                    Kind::SocketError(call)
                } else {
                    Kind::FdInvalid(call)
                }
            }
            kind::CONNECT_FAILED => Kind::ConnectFailed(ConnectFailed {
                errno: (raw.errno != 0).then_some(errno),
                attempts: attempts(raw),
                duration_us: since(raw.state_since, raw.time),
            }),
            kind::TIMEOUT => Kind::ConnectionTimeout(Timeout {
                errno,
                retransmits: u32::from(raw.backoff),
                probes: u32::from(raw.probes),
                send_window: raw.send_window,
                user_timeout_ms: (raw.user_timeout != 0).then_some(raw.user_timeout),
                // A keepalive gives up with a RST of its own just before; losing data does not.
                keepalive: wire::hook_of(raw.cause) == u32::from(wire::hook::SEND_RESET)
                    && raw.cause != 0,
            }),
            kind::FD_EXHAUSTED => Kind::FdExhausted(FdExhausted {
                syscall,
                errno,
                open: None,
                limit: None,
                read_after_ms: None,
            }),
            kind::STATE | kind::CLOSE => Kind::StateChanged(StateChange {
                from: State::from_number(raw.state).ok_or(Malformed::Kind(raw.kind))?,
                to: State::from_number(raw.other_state).ok_or(Malformed::Kind(raw.kind))?,
                duration_us: since(raw.state_since, raw.time),
                errno: (raw.errno != 0).then_some(errno),
            }),
            kind::RETRANSMIT => Kind::Retransmit(Retransmit {
                attempt: u32::from(raw.backoff) + 1,
            }),
            other => return Err(Malformed::Kind(other)),
        })
    }

    fn reset_reason(&self, number: u32) -> Option<ResetReason> {
        if number == NO_REASON {
            return None;
        }
        let name = self
            .reset_reasons
            .iter()
            .find(|(value, _)| *value == number);
        Some(ResetReason(match name {
            Some(&(_, name)) => Cow::Borrowed(name),
            None => Cow::Owned(number.to_string()),
        }))
    }

    fn socket(&self, raw: &wire::Event) -> Socket {
        let tuple = &raw.tuple;
        let ipv6_socket = raw.family == 10;
        let peer = SocketAddr::new(address(tuple.peer, ipv6_socket), tuple.peer_port);
        let mut local = SocketAddr::new(address(tuple.local, ipv6_socket), tuple.local_port);
        if peer.is_ipv4() && local.ip().is_unspecified() {
            local.set_ip(std::net::Ipv4Addr::UNSPECIFIED.into());
        }
        let is = |bit| raw.flags & bit != 0;
        Socket {
            id: SocketId {
                sk: raw.sk,
                born: raw.born,
            },
            flow: Flow {
                local,
                peer: (tuple.peer_port != 0).then_some(peer),
                ipv6_socket,
                netns: tuple.netns,
            },
            // Elsewhere the state before the event says more; here the new one is what it is about.
            state: if raw.kind == kind::CLOSE_WAIT {
                Some(State::CloseWait)
            } else {
                State::from_number(raw.state)
            },
            fd: (raw.fd >= 0).then_some(raw.fd),
            inode: (raw.inode != 0).then_some(raw.inode),
            unread: raw.unread,
            // The SYN takes a sequence number and is no byte of anybody's.
            unacked: raw
                .unacked
                .saturating_sub(u32::from(raw.state == State::SynSent as u8)),
            retransmits: Some(raw.retransmits),
            // https://github.com/torvalds/linux/blob/v6.18/include/linux/tcp.h: eighths
            rtt_us: (raw.srtt != 0).then_some(raw.srtt / 8),
            received_ago_ms: self.jiffies_to_ms(raw.received_ago),
            sent_ago_ms: self.jiffies_to_ms(raw.sent_ago),
            eof_read: is(flag::EOF_READ),
            nonblocking: is(flag::NONBLOCK),
            side: match raw.side {
                side::CLIENT => Some(Side::Client),
                side::SERVER => Some(Side::Server),
                _ => None,
            },
            // Only a birth that was seen as one says which end it is.
            age_us: (raw.side != side::UNKNOWN)
                .then(|| since(raw.born, raw.time))
                .flatten(),
            accepted_ago_us: (raw.state != State::Listen as u8)
                .then(|| since(raw.accepted, raw.time))
                .flatten(),
            heard_ago_ms: self.jiffies_to_ms(raw.heard_ago),
            bytes_received: raw.bytes_received,
            bytes_sent: raw.bytes_sent,
            shutdown_ago_us: since(raw.shut, raw.time),
            fin: since(raw.fin, raw.time).map(|ago_us| PeerFin {
                ago_us,
                // Of a connection that is only waited for, the socket was not read.
                written: (raw.kind != 0).then_some(raw.fin_written),
                waited_ms: self.jiffies_to_ms(raw.fin_waited),
                idle_ms: self.jiffies_to_ms(raw.fin_idle).unwrap_or_default(),
            }),
            service_answers: is(flag::SERVICE_ANSWERS),
        }
    }

    fn jiffies_to_ms(&self, jiffies: u32) -> Option<u64> {
        (jiffies != u32::MAX).then(|| u64::from(jiffies) * u64::from(self.ns_per_jiffy) / 1_000_000)
    }
}

fn owner(raw: &wire::Event) -> Owner {
    let confidence = match raw.confidence {
        confidence::INHERITED => Confidence::Inherited,
        confidence::SEEDED => Confidence::Seeded,
        confidence::EXACT => Confidence::Exact,
        _ => Confidence::Unknown,
    };
    if raw.owner.tgid == 0 || confidence == Confidence::Unknown {
        return Owner::default();
    }
    // Of a task that is not running any more it was remembered whether it was exiting.
    let past = raw.flags & flag::TASK_CONTEXT == 0;
    Owner {
        confidence,
        process: Some(process(&raw.owner, exit(raw).filter(|_| past))),
        creator: (raw.creator != 0).then_some(raw.creator),
        ..Owner::default()
    }
}

fn process(task: &wire::Task, exit: Option<Exit>) -> Process {
    Process {
        pid: task.tgid,
        tid: (task.tid != 0).then_some(task.tid),
        comm: Comm::new(task.comm),
        uid: task.uid,
        exe: None,
        cgroup: (task.cgroup != 0).then_some(task.cgroup),
        container: None,
        exit,
    }
}

/// A `wait` status: the signal in the low seven bits, else the exit code above the low byte.
fn exit(raw: &wire::Event) -> Option<Exit> {
    let exit = match raw.exit_code & 0x7f {
        0 => Exit::Code(raw.exit_code >> 8 & 0xff),
        signal => Exit::Signal(signal),
    };
    (raw.flags & flag::EXITING != 0).then_some(exit)
}

/// The error a RST leaves for the application, by the state it met.
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_input.c> (`tcp_reset`)
fn reset_errno(state: u8) -> Option<i32> {
    match State::from_number(state)? {
        State::SynSent => Some(libc::ECONNREFUSED),
        State::CloseWait => Some(libc::EPIPE),
        State::Closed => None,
        _ => Some(libc::ECONNRESET),
    }
}

/// SYNs sent: the first, and each that was sent again.
fn attempts(raw: &wire::Event) -> u32 {
    let none = raw.tuple.local_port == 0 || raw.hook == wire::hook::CONNECT_EXIT;
    if none {
        0
    } else {
        raw.retransmits.saturating_add(1)
    }
}

/// Bytes a call asked for, of the calls whose third argument says so.
fn asked_for(syscall: Option<Syscall>, len: u64) -> Option<u64> {
    let number = i64::from(syscall?.0);
    let calls = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_sendto,
        libc::SYS_recvfrom,
    ];
    calls.contains(&number).then_some(len)
}

fn since(begin: u64, end: u64) -> Option<u64> {
    (begin != 0).then(|| end.saturating_sub(begin) / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder() -> Decoder {
        Decoder {
            clock_offset: 1_000_000_000,
            ns_per_jiffy: 4_000_000,
            reset_reasons: vec![(11, "TCP_ABORT_ON_CLOSE")],
        }
    }

    /// A RST that process 7 sent from 192.0.2.1:80 when it closed.
    fn reset() -> wire::Event {
        let mapped = |last| {
            let mut bytes = [0; 16];
            bytes[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, last]);
            bytes
        };
        let mut raw = wire::Event::zeroed();
        raw.id = 5;
        raw.time = 42;
        raw.kind = kind::RESET_SENT;
        raw.hook = wire::hook::SEND_RESET;
        raw.family = 10;
        raw.state = State::Established as u8;
        raw.reason = 11;
        raw.unread = 12;
        raw.fd = 3;
        raw.syscall = -1;
        raw.tuple.local = mapped(1);
        raw.tuple.peer = mapped(2);
        raw.tuple.local_port = 80;
        raw.tuple.peer_port = 4000;
        raw.owner.tgid = 7;
        raw.owner.tid = 7;
        raw.task.tgid = 7;
        raw.task.tid = 8;
        raw.confidence = confidence::EXACT;
        raw.flags = flag::TASK_CONTEXT;
        raw
    }

    fn decode(raw: &wire::Event) -> Decoded {
        decoder().decode(bytemuck::bytes_of(raw)).expect("a record")
    }

    #[test]
    fn a_keepalive_gave_up_where_its_program_or_the_stand_in_saw_the_rst() {
        let of = |slot: u8| {
            let mut raw = reset();
            raw.kind = kind::TIMEOUT;
            raw.cause = u64::from(slot) << wire::ID_HOOK_SHIFT | 9;
            match decode(&raw).event.kind {
                Kind::ConnectionTimeout(timeout) => timeout.keepalive,
                other => panic!("{other:?}"),
            }
        };
        assert!(of(wire::hook::SEND_RESET));
        assert!(of(wire::hook::COUNT + wire::hook::SEND_RESET));
        assert!(!of(wire::hook::SET_STATE));
        assert!(!of(wire::hook::COUNT + wire::hook::SET_STATE));
    }

    #[test]
    fn a_reset_is_complete() {
        let decoded = decode(&reset());
        let event = decoded.event;
        assert_eq!(event.time, Timestamp(1_000_000_042));
        let socket = event.socket.expect("a socket");
        assert_eq!(socket.flow.to_string(), "192.0.2.1:80 > 192.0.2.2:4000");
        assert!(socket.flow.ipv6_socket && socket.flow.is_ipv4());
        assert_eq!(
            event.owner.process.map(|owner| (owner.pid, owner.tid)),
            Some((7, Some(8)))
        );
        assert_eq!(event.actor, None);
        let Kind::ResetSent(reset) = event.kind else {
            panic!("a reset was sent")
        };
        assert_eq!(reset.unread, 12);
        assert_eq!(
            reset.reason.map(|reason| reason.0),
            Some("TCP_ABORT_ON_CLOSE".into())
        );
        assert!(!decoded.unconfirmed);
    }

    #[test]
    fn a_stranger_that_acts_is_the_actor_not_the_owner() {
        let mut raw = reset();
        raw.task.tgid = 99;
        raw.flags |= flag::ABORTED;
        let event = decode(&raw).event;
        assert_eq!(event.owner.process.map(|owner| owner.pid), Some(7));
        assert_eq!(event.actor.map(|actor| actor.pid), Some(99));
    }

    #[test]
    fn an_interrupted_stranger_is_nobody() {
        let mut raw = reset();
        raw.task.tgid = 99;
        raw.flags = 0;
        raw.inode = 1;
        let decoded = decode(&raw);
        assert_eq!(decoded.event.actor, None);
        assert!(decoded.unconfirmed);
    }

    #[test]
    fn an_unknown_owner_is_no_pid_zero() {
        let mut raw = reset();
        raw.confidence = confidence::UNKNOWN;
        raw.flags = 0;
        let owner = decode(&raw).event.owner;
        assert_eq!(
            (owner.confidence, owner.process),
            (Confidence::Unknown, None)
        );
    }

    #[test]
    fn a_death_has_its_code_or_its_signal() {
        let exit = |code| {
            let mut raw = reset();
            raw.flags |= flag::EXITING;
            raw.exit_code = code;
            decode(&raw)
                .event
                .owner
                .process
                .and_then(|owner| owner.exit)
        };
        assert_eq!(exit(0x300), Some(Exit::Code(3)));
        assert_eq!(exit(9), Some(Exit::Signal(9)));
    }

    #[test]
    fn a_past_closer_has_its_exit_too() {
        let mut raw = reset();
        raw.flags = flag::EXITING | flag::ANSWERS | flag::FROM_SEGMENT;
        raw.exit_code = 0x300;
        raw.time = 9_000_000;
        raw.shut = 4_000_000;
        let event = decode(&raw).event;
        let owner = event.owner.process.expect("who closed");
        assert_eq!((owner.pid, owner.exit), (7, Some(Exit::Code(3))));
        assert_eq!(event.actor, None);
        let socket = event.socket.expect("its ends");
        assert_eq!(socket.shutdown_ago_us, Some(5_000));
    }

    #[test]
    fn the_life_of_a_connection_is_told_in_times_ago() {
        let mut raw = reset();
        raw.time = 1_000_000_000;
        raw.side = side::SERVER;
        raw.born = 400_000_000;
        raw.accepted = 500_000_000;
        raw.fin = 900_000_000;
        raw.fin_written = 88;
        raw.fin_waited = 125;
        raw.fin_idle = 25;
        raw.heard_ago = 3;
        raw.flags |= flag::SERVICE_ANSWERS;
        let socket = |raw: &wire::Event| decode(raw).event.socket.expect("a socket");
        let connection = socket(&raw);
        assert_eq!(connection.side, Some(Side::Server));
        assert_eq!(connection.age_us, Some(600_000));
        assert_eq!(connection.accepted_ago_us, Some(500_000));
        assert_eq!(connection.heard_ago_ms, Some(12), "jiffies of 4 ms");
        assert!(connection.service_answers);
        let fin = PeerFin {
            ago_us: 100_000,
            written: Some(88),
            waited_ms: Some(500),
            idle_ms: 100,
        };
        assert_eq!(connection.fin, Some(fin));
        // Older than the tracer, or first seen in mid-life.
        raw.side = side::UNKNOWN;
        assert_eq!(socket(&raw).age_us, None);
        raw.fin_waited = u32::MAX;
        assert_eq!(socket(&raw).fin.and_then(|fin| fin.waited_ms), None);
        raw.fin = 0;
        assert_eq!(socket(&raw).fin, None);
    }

    #[test]
    fn a_listeners_last_accept_is_its_queues() {
        let mut raw = reset();
        raw.kind = kind::ACCEPT_OVERFLOW;
        raw.state = State::Listen as u8;
        raw.time = 3_000_000;
        raw.accepted = 1_000_000;
        let event = decode(&raw).event;
        let Kind::AcceptQueueOverflow(overflow) = event.kind else {
            panic!("an overflow")
        };
        assert_eq!(overflow.last_accept_ago_us, Some(2_000));
        assert_eq!(event.socket.and_then(|it| it.accepted_ago_us), None);
    }

    #[test]
    fn a_close_that_matters_is_a_change_of_state() {
        let mut raw = reset();
        raw.kind = kind::CLOSE;
        raw.cause = 9;
        raw.other_state = State::FinWait1 as u8;
        let event = decode(&raw).event;
        assert_eq!(event.caused_by, None);
        let Kind::StateChanged(change) = event.kind else {
            panic!("a change")
        };
        assert_eq!(
            (change.from, change.to),
            (State::Established, State::FinWait1)
        );
    }

    #[test]
    fn what_is_no_record_is_refused() {
        assert_eq!(
            decoder().decode(&[0; 3]).expect_err("too short"),
            Malformed::Size(3)
        );
        let mut raw = reset();
        raw.kind = 200;
        let error = decoder()
            .decode(bytemuck::bytes_of(&raw))
            .expect_err("no such kind");
        assert_eq!(error, Malformed::Kind(200));
    }

    #[test]
    fn the_error_of_a_reset_depends_on_the_state_it_met() {
        let errno = |state| {
            let mut raw = reset();
            raw.kind = kind::RESET_RECEIVED;
            raw.state = state as u8;
            let Kind::ResetReceived(reset) = decode(&raw).event.kind else {
                panic!("received")
            };
            reset.errno.and_then(Errno::name)
        };
        assert_eq!(errno(State::SynSent), Some("ECONNREFUSED"));
        assert_eq!(errno(State::CloseWait), Some("EPIPE"));
        assert_eq!(errno(State::Established), Some("ECONNRESET"));
        assert_eq!(errno(State::Closed), None);
    }
}
