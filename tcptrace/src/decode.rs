//! Bytes to domain events: the one place that gives the kernel half's integers a meaning.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use tcptrace_common::event as wire;
use tcptrace_common::event::{NO_REASON, confidence, flag, kind, path};

use crate::event::{
    CallError, CloseWait, Comm, Confidence, ConnectFailed, Errno, Event, EventId, Exit,
    FdExhausted, Flow, Kind, Overflow, OverflowPath, Owner, Process, ResetReason, ResetReceived,
    ResetSent, Retransmit, Socket, SocketId, State, StateChange, Syscall, Timeout, Timestamp,
    address,
};

/// What the numbers of this kernel mean.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Wall clock minus monotonic clock, ns.
    pub clock_offset: u64,
    /// Length of a jiffy, ns.
    pub ns_per_jiffy: u32,
    /// Names of `enum sk_rst_reason`, by value.
    pub reset_reasons: Arc<[(u32, String)]>,
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
            (_, task) => task,
        };
        Ok(Decoded {
            unconfirmed: raw.inode != 0 && actor.is_none() && !is(flag::TASK_CONTEXT),
            shared: is(flag::FILE_SHARED),
            monotonic: raw.time,
            event: Event {
                id: EventId(raw.id),
                time: self.wall(raw.time),
                caused_by: (raw.cause != 0 && raw.kind != kind::STATE)
                    .then_some(EventId(raw.cause)),
                socket: (raw.family != 0).then(|| self.socket(&raw)),
                owner,
                actor,
                kind,
            },
        })
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
                queue_len: raw.queue_len,
                queue_max: raw.queue_max,
                drops: raw.drops,
            }),
            kind::SOCKET_ERROR | kind::FD_INVALID => {
                let io = matches!(raw.hook, wire::hook::SEND_LENGTH | wire::hook::RECV_LENGTH);
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
                attempts: self.attempts(raw),
                duration_us: since(raw.state_since, raw.time),
            }),
            kind::TIMEOUT => Kind::ConnectionTimeout(Timeout {
                errno,
                retransmits: u32::from(raw.backoff),
                probes: u32::from(raw.probes),
                send_window: raw.send_window,
                user_timeout_ms: (raw.user_timeout != 0).then_some(raw.user_timeout),
                // A keepalive gives up with a RST of its own just before; losing data does not.
                keepalive: wire_hook(raw.cause) == wire::hook::SEND_RESET && raw.cause != 0,
            }),
            kind::FD_EXHAUSTED => Kind::FdExhausted(FdExhausted {
                syscall,
                errno,
                open: None,
                limit: None,
                read_after_ms: None,
            }),
            kind::STATE => Kind::StateChanged(StateChange {
                from: State::from_number(raw.state).ok_or(Malformed::Kind(raw.kind))?,
                to: State::from_number(raw.other_state).ok_or(Malformed::Kind(raw.kind))?,
                duration_us: since(raw.state_since, raw.time),
                errno: (raw.errno != 0).then_some(errno),
            }),
            kind::RETRANSMIT => Kind::Retransmit(Retransmit { attempt: u32::from(raw.backoff) + 1 }),
            other => return Err(Malformed::Kind(other)),
        })
    }

    /// SYNs sent: the first, and each that was sent again.
    fn attempts(&self, raw: &wire::Event) -> u32 {
        let sent_none = raw.tuple.local_port == 0 || raw.hook == wire::hook::CONNECT_EXIT;
        if sent_none { 0 } else { raw.retransmits + 1 }
    }

    fn reset_reason(&self, number: u32) -> Option<ResetReason> {
        if number == NO_REASON {
            return None;
        }
        let name = self.reset_reasons.iter().find(|(value, _)| *value == number);
        Some(ResetReason(match name {
            Some((_, name)) => Cow::Owned(name.clone()),
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
            id: SocketId { sk: raw.sk, born: raw.born },
            flow: Flow {
                local,
                peer: (tuple.peer_port != 0).then_some(peer),
                ipv6_socket,
                netns: tuple.netns,
            },
            state: State::from_number(raw.state),
            fd: (raw.fd >= 0).then_some(raw.fd),
            inode: (raw.inode != 0).then_some(raw.inode),
            unread: raw.unread,
            unacked: raw.unacked,
            retransmits: raw.retransmits,
            // https://github.com/torvalds/linux/blob/v6.18/include/linux/tcp.h: eighths
            rtt_us: (raw.srtt != 0).then_some(raw.srtt / 8),
            received_ago_ms: self.jiffies_to_ms(raw.received_ago),
            sent_ago_ms: self.jiffies_to_ms(raw.sent_ago),
            eof_read: is(flag::EOF_READ),
            nonblocking: is(flag::NONBLOCK),
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
    Owner {
        confidence,
        process: Some(process(&raw.owner, None)),
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
        exit,
    }
}

/// A `wait` status: the signal in the low seven bits, else the exit code above the low byte.
fn exit(raw: &wire::Event) -> Option<Exit> {
    (raw.flags & flag::EXITING != 0).then(|| match raw.exit_code & 0x7f {
        0 => Exit::Code(raw.exit_code >> 8 & 0xff),
        signal => Exit::Signal(signal),
    })
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

/// Bytes a call asked for, of the calls whose third argument says so.
fn asked_for(syscall: Option<Syscall>, len: u64) -> Option<u64> {
    let number = i64::from(syscall?.0);
    let calls = [libc::SYS_read, libc::SYS_write, libc::SYS_sendto, libc::SYS_recvfrom];
    calls.contains(&number).then_some(len)
}

fn since(begin: u64, end: u64) -> Option<u64> {
    (begin != 0).then(|| end.saturating_sub(begin) / 1000)
}

fn wire_hook(id: u64) -> u8 {
    (id >> wire::ID_HOOK_SHIFT & 0x1f) as u8
}
