//! `inet_sock_set_state`: births, the listener table, CLOSE_WAIT, failed connects, timeouts.
//!
//! Emitted before the store: `skc_state` still holds the old state.
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/af_inet.c> (`inet_sk_set_state`)

use aya_ebpf::{
    EbpfContext as _, bindings::BPF_ANY, helpers::bpf_ktime_get_ns, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use aya_log_ebpf::{info, warn};
use tcptrace_common::event::{CloseWait, Sock, confidence, hook, kind, side, stat};

use crate::{
    closed,
    emit::{emit, is_wanted, next_id},
    fds, filter,
    kernel::{config, layout},
    listener,
    maps::{CLOSE_WAITS, CLOSING, STATS, count},
    owner::{self, Heritage},
    sock::{
        CLOSE, CLOSE_WAIT, CLOSING as STATE_CLOSING, ESTABLISHED, FIN_WAIT1, LAST_ACK, LISTEN,
        SYN_RECV, SYN_SENT, Socket,
    },
    task::{self, Call, PF_EXITING},
};

/// What gives up sooner is a program's haste, not a failure: ns.
const PATIENCE: u64 = 500_000_000;
/// A server that closes a connection so soon after `accept`, without a word, did not want it: ns.
const SOON: u64 = 1_000_000_000;
const EPIPE: i32 = 32;
const EADDRNOTAVAIL: i32 = 99;
const ECONNABORTED: i32 = 103;
const ECONNRESET: i32 = 104;

#[raw_tracepoint]
fn inet_sock_set_state(ctx: RawTracePointContext) -> i32 {
    // MPTCP and SCTP sockets come by here too.
    if Change::of(&ctx).socket.is_tcp() {
        remember(&ctx, Change::of(&ctx));
        report(Change::of(&ctx));
        advance(Change::of(&ctx));
    }
    0
}

/// A socket leaves a state for another.
#[derive(Clone, Copy)]
struct Change {
    socket: Socket,
    old: u8,
    new: u8,
}

impl Change {
    /// The tracepoint's arguments. Each step reads them anew: what one step has found out about a
    /// state would otherwise make the verifier walk all later steps once for every such finding.
    #[inline(always)]
    fn of(ctx: &RawTracePointContext) -> Self {
        let args = ctx.as_ptr().cast::<[u64; 3]>();
        // SAFETY: the context of this tracepoint has three arguments.
        let [socket, old, new] = unsafe { args.read_volatile() };
        Self {
            socket: Socket(socket),
            old: old as u8,
            new: new as u8,
        }
    }
}

/// Who owns the socket, and who listens where.
#[inline(always)]
fn remember(ctx: &RawTracePointContext, Change { socket, old, new }: Change) {
    match (old, new) {
        (CLOSE, SYN_SENT | LISTEN) => {
            if !begin(socket, new) && config!(verbose) != 0 {
                warn!(
                    ctx,
                    "no room for a socket of process {}",
                    (task::pid_tgid() >> 32) as u32
                );
            }
            if new == LISTEN {
                listener::add(socket);
                let call = Call::current();
                if call.number() as u32 == layout!(nr_listen) {
                    listener::asked(socket, call.arg1() as u32);
                }
            }
        }
        (LISTEN, SYN_RECV) => {
            let known = child(socket);
            if !known && config!(verbose) != 0 {
                info!(
                    ctx,
                    "a connection to port {} has several listeners: owner unknown until it is used",
                    socket.local_port()
                );
            }
        }
        (LISTEN, CLOSE) => {
            listener::remove(socket);
            // The table is an LRU: there is always room.
            let _ = CLOSING.insert(task::pid_tgid(), socket.local_port(), u64::from(BPF_ANY));
            if tells_closes() {
                event(
                    next_id(hook::SET_STATE),
                    kind::CLOSE,
                    Change { socket, old, new },
                );
            }
        }
        // Only the program's own shutdown and close lead there.
        (_, FIN_WAIT1 | LAST_ACK) => {
            if let Some(flags) = task::acting_on(socket) {
                let fd = Call::current().descriptor_of(socket);
                owner::learn(socket, fd);
                owner::exits(socket, flags);
                fds::closes(socket, fd);
                if tells_closes() && is_telling(socket, old, flags) {
                    event(
                        next_id(hook::SET_STATE),
                        kind::CLOSE,
                        Change { socket, old, new },
                    );
                }
            }
        }
        (_, CLOSE_WAIT | STATE_CLOSING) => fin(socket),
        _ => {}
    }
}

#[inline(always)]
fn advance(Change { socket, old, new }: Change) {
    if let Some(known) = owner::of(socket) {
        // SAFETY: the helper takes nothing.
        known.state_since = unsafe { bpf_ktime_get_ns() };
        known.previous = old;
        known.state = new;
        if new == ESTABLISHED {
            owner::publish(socket, known);
        }
        if matches!(new, FIN_WAIT1 | LAST_ACK) {
            known.shut = known.state_since;
            if new == FIN_WAIT1 && is_wanted(kind::RESET_SENT) {
                closed::remember(socket, known, known.shut);
            }
        }
        if old == ESTABLISHED
            && known.side == side::SERVER
            && known.answers == 0
            && socket.has_sent()
        {
            owner::has_answered(known);
        }
    }
}

/// The peer's FIN came.
#[inline(always)]
fn fin(socket: Socket) {
    if let Some(known) = owner::of(socket) {
        // SAFETY: the helper takes nothing.
        known.fin = unsafe { bpf_ktime_get_ns() };
        known.fin_seq = socket.write_seq();
        (known.fin_waited, known.fin_idle) = socket.before_fin(known.fin);
    }
}

/// A socket's life begins with `connect` or `listen`, in the caller's context. Says whether there was
/// room to remember it.
#[inline(always)]
fn begin(socket: Socket, state: u8) -> bool {
    let mut heritage = Heritage {
        owner: owner::NOBODY,
        parent: 0,
        fd: Call::current().descriptor_of(socket),
        confidence: confidence::EXACT,
        held: 0,
        answers: 0,
    };
    task::describe(&mut heritage.owner);
    owner::birth(socket, state, &heritage)
}

/// A connection's life begins in the network's interrupt: until somebody uses it, it belongs to
/// whoever owns the listener. Says whether that is known.
#[inline(always)]
fn child(socket: Socket) -> bool {
    let mut tuple = owner::NOWHERE;
    socket.tuple(&mut tuple);
    let parent = listener::parent(&tuple, socket.family());
    let mut heritage = Heritage {
        owner: owner::NOBODY,
        parent: parent.map_or(0, |parent| parent.0),
        fd: -1,
        confidence: confidence::UNKNOWN,
        held: 0,
        answers: 0,
    };
    if let Some(parent) = parent.and_then(owner::of) {
        heritage.owner = parent.owner;
        heritage.confidence = confidence::INHERITED;
        heritage.held = parent.held;
        heritage.answers = parent.answers;
    }
    owner::birth(socket, SYN_RECV, &heritage);
    parent.is_some()
}

#[inline(always)]
fn report(change: Change) {
    if change.old == CLOSE_WAIT {
        // Not there when it did not pass the filter.
        let _ = CLOSE_WAITS.remove(change.socket.0);
    }
    if is_wanted(kind::STATE) {
        event(next_id(hook::SET_STATE), kind::STATE, change);
    }
    if change.new == CLOSE_WAIT {
        if is_wanted(kind::CLOSE_WAIT) {
            close_wait(change);
        }
    } else if change.new == CLOSE {
        let kind = match change.old {
            SYN_SENT => kind::CONNECT_FAILED,
            CLOSE | LISTEN => return,
            _ if is_timeout(change.socket.error()) => kind::TIMEOUT,
            _ => return,
        };
        if is_wanted(kind) {
            let id = next_id(hook::SET_STATE);
            event(id, kind, change);
            if let Some(known) = owner::of(change.socket) {
                known.cause = id;
            }
        }
    }
}

/// Closes that may explain something are handed over by themselves.
#[inline(always)]
fn tells_closes() -> bool {
    is_wanted(kind::CLOSE) && !is_wanted(kind::STATE)
}

/// A process with these flags closes the socket in a way that may explain what its peer sees.
#[inline(never)]
fn is_telling(socket: Socket, state: u8, flags: u32) -> bool {
    if flags & PF_EXITING != 0 {
        return true;
    }
    let Some(known) = owner::of(socket) else {
        return false;
    };
    match (state, known.side) {
        (ESTABLISHED, side::CLIENT) => is_unanswered(socket),
        (ESTABLISHED, side::SERVER) => is_unused(socket, known),
        // The peer had given up, and gets no answer now.
        (CLOSE_WAIT, side::SERVER) => has_waited(known) && known.fin_seq == socket.write_seq(),
        _ => false,
    }
}

/// This end has sent something, and waited long for an answer that did not come.
#[inline(always)]
fn is_unanswered(socket: Socket) -> bool {
    if !is_long(socket.sent_ago()) {
        return false;
    }
    let (received, sent) = socket.data_ago();
    socket.has_sent() && (sent < received || socket.bytes_received(false) == 0)
}

/// Accepted a moment ago, neither read nor written.
#[inline(always)]
fn is_unused(socket: Socket, known: &Sock) -> bool {
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    known.accepted != 0
        && now - known.accepted < SOON
        && !socket.has_sent()
        && socket.bytes_received(false) == u64::from(socket.unread(false))
}

/// The peer had waited long for an answer when its FIN came.
#[inline(always)]
fn has_waited(known: &Sock) -> bool {
    known.fin_waited != u32::MAX && is_long(known.fin_waited)
}

/// These jiffies are so long that somebody may have given up waiting.
#[inline(always)]
fn is_long(jiffies: u32) -> bool {
    u64::from(jiffies) * u64::from(config!(ns_per_jiffy)) >= PATIENCE
}

/// The kernel gave up: no RST came, and nobody closed or aborted the socket. ETIMEDOUT, or the
/// error an ICMP message left before.
#[inline(always)]
fn is_timeout(error: i32) -> bool {
    !matches!(error, 0 | EPIPE | ECONNABORTED | ECONNRESET)
}

#[inline(always)]
fn close_wait(change: Change) {
    let socket = change.socket;
    let id = next_id(hook::SET_STATE);
    let known = owner::of(socket);
    let gave_up = is_wanted(kind::CLOSE)
        && known
            .as_deref()
            .is_some_and(|known| known.side == side::SERVER && has_waited(known));
    if config!(close_wait_at_once) != 0 || gave_up {
        event(id, kind::CLOSE_WAIT, change);
    }
    let mut entry = CloseWait {
        // SAFETY: the helper takes nothing.
        since: unsafe { bpf_ktime_get_ns() },
        id,
        tuple: owner::NOWHERE,
        family: socket.family(),
        older: 0,
        pad: [0; 6],
    };
    socket.tuple(&mut entry.tuple);
    if !filter::socket(&entry.tuple, entry.family, known.as_deref()) {
        return;
    }
    count(&STATS, stat::CLOSE_WAITS);
    if CLOSE_WAITS
        .insert(socket.0, entry, u64::from(BPF_ANY))
        .is_err()
    {
        count(&STATS, stat::CLOSE_WAITS_FULL);
    }
}

#[inline(always)]
fn event(id: u64, kind: u8, Change { socket, old, new }: Change) {
    let known = owner::of(socket);
    let mut tuple = owner::NOWHERE;
    socket.tuple(&mut tuple);
    if !filter::socket(&tuple, socket.family(), known.as_deref()) {
        return;
    }
    emit(id, kind, hook::SET_STATE, |event| {
        socket.record(event, known.as_deref());
        event.state = old;
        event.other_state = new;
        if new != CLOSE {
            event.errno = 0;
        } else if old == SYN_SENT && event.errno == 0 && event.tuple.local_port == 0 {
            // No port was left: the state is taken back before a SYN went out.
            // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c (tcp_v4_connect)
            event.errno = EADDRNOTAVAIL;
        }
        if task::acts_on(socket) {
            task::record(event, socket);
        }
    });
}
