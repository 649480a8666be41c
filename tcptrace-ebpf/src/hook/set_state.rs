//! `inet_sock_set_state`: births, the listener table, CLOSE_WAIT, failed connects, timeouts.
//!
//! Emitted before the store: `skc_state` still holds the old state.
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/af_inet.c> (`inet_sk_set_state`)

use aya_ebpf::{
    EbpfContext as _, bindings::BPF_ANY, helpers::bpf_ktime_get_ns, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use aya_log_ebpf::{info, warn};
use tcptrace_common::event::{CloseWait, Sock, confidence, hook, hook_of, kind, side, stat};

use crate::{
    closed,
    emit::{emit, is_wanted, next_id},
    fds, filter,
    kernel::{config, layout},
    listener,
    maps::{CLOSE_WAITS, CLOSING, STATS, count},
    owner,
    sock::{
        CLOSE, CLOSE_WAIT, CLOSING as STATE_CLOSING, ESTABLISHED, FIN_WAIT1, LAST_ACK, LISTEN,
        SYN_RECV, SYN_SENT, Socket,
    },
    stand_in,
    task::{self, Call, PF_EXITING},
    words,
};

/// What gives up sooner is a program's haste, not a failure: ns.
const PATIENCE: u64 = 500_000_000;
/// A server that closes a connection so soon after `accept`, without a word, did not want it: ns.
const SOON: u64 = 1_000_000_000;
const EPIPE: i32 = 32;
const EADDRNOTAVAIL: i32 = 99;
const ECONNABORTED: i32 = 103;
const ECONNRESET: i32 = 104;
const ETIMEDOUT: i32 = 110;
const ECONNREFUSED: i32 = 111;

#[raw_tracepoint]
fn inet_sock_set_state(ctx: RawTracePointContext) -> i32 {
    stand_in::run(&ctx, hook::SET_STATE, || changes(&ctx))
}

#[raw_tracepoint]
fn stand_in_for_inet_sock_set_state(ctx: RawTracePointContext) -> i32 {
    stand_in::stand_in(&ctx, hook::SET_STATE)
}

#[inline(always)]
fn changes(ctx: &RawTracePointContext) {
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    let Change { socket, old, new } = Change::of(ctx);
    // MPTCP and SCTP sockets come by here too; what is remembered is TCP.
    if begins_life(old, new) {
        if socket.is_tcp() {
            begin(ctx, now);
        }
        return;
    }
    let known = owner::of(socket);
    if known.is_some() || socket.is_tcp() {
        change(ctx, known, now);
    }
}

#[inline(always)]
fn begins_life(old: u8, new: u8) -> bool {
    matches!((old, new), (CLOSE, SYN_SENT | LISTEN) | (LISTEN, SYN_RECV))
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

/// A socket's life begins.
#[inline(always)]
fn begin(ctx: &RawTracePointContext, now: u64) {
    let Change { socket, old, new } = Change::of(ctx);
    let known = owner::birth(socket, old, new, now);
    if new == SYN_RECV {
        child(ctx, socket, known);
    } else {
        opened(ctx, socket, new, known);
    }
    if is_wanted(kind::STATE) {
        let change = Change::of(ctx);
        let known = owner::of(change.socket);
        event(
            next_id(hook::SET_STATE),
            kind::STATE,
            &change,
            known.as_deref(),
        );
    }
}

/// By `connect` or `listen`, in the caller's context.
#[inline(always)]
fn opened(ctx: &RawTracePointContext, socket: Socket, new: u8, known: Option<&mut Sock>) {
    if new == LISTEN {
        listener::add(socket);
    }
    let Some(known) = known else {
        if config!(verbose) != 0 {
            warn!(
                ctx,
                "no room for a socket of process {}",
                (task::pid_tgid() >> 32) as u32
            );
        }
        return;
    };
    let call = Call::current();
    task::describe(&mut known.owner);
    known.confidence = confidence::EXACT;
    known.fd = call.descriptor_of(socket);
    if new == LISTEN && call.number() as u32 == layout!(nr_listen) {
        known.backlog = call.arg1() as u32;
    }
}

/// In the network's interrupt, by the end of a handshake: until somebody uses the connection, it
/// belongs to whoever owns the listener.
#[inline(always)]
fn child(ctx: &RawTracePointContext, socket: Socket, known: Option<&mut Sock>) {
    let Some(parent) = listener::of_child(socket) else {
        if config!(verbose) != 0 {
            info!(
                ctx,
                "a connection to port {} has several listeners: owner unknown until it is used",
                socket.local_port()
            );
        }
        return;
    };
    let mut listener = owner::of(parent);
    listener::watch(parent, listener.as_deref_mut());
    if let (Some(known), Some(listener)) = (known, listener) {
        known.parent = parent.0;
        words::copy(&listener.owner, &raw mut known.owner);
        known.confidence = confidence::INHERITED;
        known.held = listener.held;
        known.answers = listener.answers;
    }
}

/// A socket that lives goes on to another state.
#[inline(always)]
fn change(ctx: &RawTracePointContext, mut known: Option<&'static mut Sock>, now: u64) {
    let Change { socket, old, new } = Change::of(ctx);
    // The kind of event that comes of it; 0: none.
    let mut told = 0;
    match (old, new) {
        (LISTEN, CLOSE) => {
            listener::remove(socket);
            // The table is an LRU: there is always room.
            let _ = CLOSING.insert(task::pid_tgid(), socket.local_port(), u64::from(BPF_ANY));
            if tells_closes() {
                told = kind::CLOSE;
            }
        }
        // Only the program's own shutdown and close lead there.
        (_, FIN_WAIT1 | LAST_ACK) => {
            if let Some(flags) = task::acting_on(socket, known.as_deref()) {
                let fd = Call::current().descriptor_of(socket);
                known = owner::learn(socket, known, fd);
                owner::exits(known.as_deref_mut(), flags);
                fds::closes(socket, fd);
                if tells_closes() && is_telling(socket, old, flags, known.as_deref()) {
                    told = kind::CLOSE;
                }
            }
        }
        (_, CLOSE_WAIT | STATE_CLOSING) => fin(socket, known.as_deref_mut(), now),
        (SYN_SENT, CLOSE) if is_wanted(kind::CONNECT_FAILED) => told = kind::CONNECT_FAILED,
        (SYN_SENT | CLOSE, CLOSE) => {}
        (_, CLOSE)
            if is_wanted(kind::TIMEOUT)
                && is_timeout(error_at_end(socket, old, known.as_deref())) =>
        {
            told = kind::TIMEOUT;
        }
        _ => {}
    }
    report(
        ctx,
        known.as_deref_mut(),
        words::forget(told.into()) as u8,
        now,
    );
    if let Some(known) = known {
        advance(Change::of(ctx), known, now);
    }
}

#[inline(always)]
fn advance(Change { socket, old, new }: Change, known: &mut Sock, now: u64) {
    owner::expect(known, old);
    known.state_since = now;
    known.previous = old;
    known.state = new;
    if new == ESTABLISHED {
        owner::publish(socket, known);
    }
    if matches!(new, FIN_WAIT1 | LAST_ACK) {
        known.shut = now;
        if new == FIN_WAIT1 && is_wanted(kind::RESET_SENT) {
            closed::remember(socket, known, now);
        }
    }
    if old == ESTABLISHED && known.side == side::SERVER && known.answers == 0 && socket.has_sent() {
        owner::has_answered(known);
    }
}

/// The peer's FIN came.
#[inline(always)]
fn fin(socket: Socket, known: Option<&mut Sock>, now: u64) {
    if let Some(known) = known {
        known.fin = now;
        known.fin_seq = socket.write_seq();
        (known.fin_waited, known.fin_idle) = socket.before_fin(now);
    }
}

#[inline(always)]
fn report(ctx: &RawTracePointContext, known: Option<&mut Sock>, told: u8, now: u64) {
    let Change { socket, old, new } = Change::of(ctx);
    if old == CLOSE_WAIT {
        // Not there when it did not pass the filter.
        let _ = CLOSE_WAITS.remove(socket.0);
    }
    if is_wanted(kind::STATE) {
        let id = next_id(hook::SET_STATE);
        event(id, kind::STATE, &Change::of(ctx), known.as_deref());
    }
    if new == CLOSE_WAIT && is_wanted(kind::CLOSE_WAIT) {
        close_wait(&Change::of(ctx), known.as_deref(), now);
    }
    if told != 0 {
        let id = next_id(hook::SET_STATE);
        event(id, told, &Change::of(ctx), known.as_deref());
        if let Some(known) = known
            && told != kind::CLOSE
        {
            known.cause = id;
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
fn is_telling(socket: Socket, state: u8, flags: u32, known: Option<&Sock>) -> bool {
    if flags & PF_EXITING != 0 {
        return true;
    }
    let Some(known) = known else {
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

/// The error a connection ends with. It is there before the state changes, so a program that asks for it
/// at that moment has taken it away: then the kernel gave the connection up, or a RST had come. One that
/// was never accepted has no program, and ends with its listener.
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp.c> (`tcp_done_with_error`)
#[inline(never)]
fn error_at_end(socket: Socket, old: u8, known: Option<&Sock>) -> i32 {
    let error = socket.error();
    // Locked it is ended by a call of its own program, or of an administrator's.
    if error != 0 || socket.is_locked() || !socket.has_socket() {
        return error;
    }
    let Some(known) = known else { return 0 };
    let was_reset = hook_of(known.cause) == u32::from(hook::RECEIVE_RESET);
    match old {
        SYN_SENT if was_reset => ECONNREFUSED,
        ESTABLISHED if was_reset => ECONNRESET,
        CLOSE_WAIT if was_reset => EPIPE,
        // Nothing else ends a connection whose program has not closed it.
        ESTABLISHED | CLOSE_WAIT if is_wanted(kind::RESET_RECEIVED) => match socket.soft_error() {
            0 => ETIMEDOUT,
            error => error,
        },
        _ => 0,
    }
}

#[inline(never)]
fn close_wait(change: &Change, known: Option<&Sock>, now: u64) {
    let socket = change.socket;
    let id = next_id(hook::SET_STATE);
    let gave_up = is_wanted(kind::CLOSE)
        && known.is_some_and(|known| known.side == side::SERVER && has_waited(known));
    if config!(close_wait_at_once) != 0 || gave_up {
        event(id, kind::CLOSE_WAIT, change, known);
    }
    let mut entry = CloseWait {
        since: now,
        id,
        tuple: words::nowhere(),
        family: socket.family(),
        older: 0,
        pad: [0; 6],
    };
    socket.tuple(&mut entry.tuple);
    if !filter::socket(&entry.tuple, entry.family, known) {
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

#[inline(never)]
fn event(id: u64, kind: u8, &Change { socket, old, new }: &Change, known: Option<&Sock>) {
    let mut tuple = words::nowhere();
    socket.tuple(&mut tuple);
    if !filter::socket(&tuple, socket.family(), known) {
        return;
    }
    emit(id, kind, hook::SET_STATE, |event| {
        socket.record(event, &tuple, known);
        event.state = old;
        event.other_state = new;
        event.errno = if new == CLOSE {
            error_at_end(socket, old, known)
        } else {
            0
        };
        if old == SYN_SENT && event.errno == 0 && event.tuple.local_port == 0 {
            // No port was left: the state is taken back before a SYN went out.
            // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c (tcp_v4_connect)
            event.errno = EADDRNOTAVAIL;
        }
        if task::acting_on(socket, known).is_some() {
            task::record(event, Call::current().descriptor_of(socket));
        }
    });
}
