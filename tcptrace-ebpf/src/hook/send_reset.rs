//! `tcp_send_reset`: this host sent a RST.
//!
//! Since 6.10 it fires for every RST, with a socket that may be NULL, TIME_WAIT or LISTEN; before,
//! only for full sockets, and programs at the entry of `tcp_v4_send_reset` and `tcp_v6_send_reset` see
//! the others. An active reset (no segment to answer) fires after the transmission, so
//! on loopback the other end's `tcp_receive_reset` comes first.
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_output.c> (`tcp_send_active_reset`)

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::bpf_ktime_get_ns,
    macros::{fentry, kprobe, raw_tracepoint},
    programs::{FEntryContext, ProbeContext, RawTracePointContext},
};
use tcptrace_common::event::{NO_REASON, Sock, Tuple, flag, hook, kind};

use crate::{
    closed,
    emit::{emit, is_wanted, next_id},
    filter,
    kernel::{field, layout},
    listener,
    maps::{CLOSING, REFUSALS, Refusal},
    owner,
    segment::Segment,
    sock::{CLOSE, LISTEN, Socket, TIME_WAIT},
    stand_in, task, words,
};

#[raw_tracepoint]
fn tcp_send_reset(ctx: RawTracePointContext) -> i32 {
    stand_in::run(&ctx, hook::SEND_RESET, || reset(&ctx))
}

#[raw_tracepoint]
fn stand_in_for_tcp_send_reset(ctx: RawTracePointContext) -> i32 {
    stand_in::stand_in(&ctx, hook::SEND_RESET)
}

#[inline(always)]
fn reset(ctx: &RawTracePointContext) {
    // The position is 2 or the argument is not there; another one would be another kernel.
    let reason = if layout!(send_reset_reason) == 2 {
        ctx.arg::<u64>(2) as u32
    } else {
        NO_REASON
    };
    sent(Socket(ctx.arg(0)), ctx.arg(1), reason);
}

#[fentry(function = "tcp_v4_send_reset")]
fn fentry_tcp_v4_send_reset(ctx: FEntryContext) -> i32 {
    answered(Socket(ctx.arg(0)), ctx.arg(1), is_to_this_host_v4);
    0
}

#[fentry(function = "tcp_v6_send_reset")]
fn fentry_tcp_v6_send_reset(ctx: FEntryContext) -> i32 {
    answered(Socket(ctx.arg(0)), ctx.arg(1), is_to_this_host_v6);
    0
}

#[kprobe]
fn kprobe_tcp_v4_send_reset(ctx: ProbeContext) -> u32 {
    if let (Some(socket), Some(skb)) = (ctx.arg(0), ctx.arg(1)) {
        answered(Socket(socket), skb, is_to_this_host_v4);
    }
    0
}

#[kprobe]
fn kprobe_tcp_v6_send_reset(ctx: ProbeContext) -> u32 {
    if let (Some(socket), Some(skb)) = (ctx.arg(0), ctx.arg(1)) {
        answered(Socket(socket), skb, is_to_this_host_v6);
    }
    0
}

#[inline(always)]
fn sent(socket: Socket, skb: u64, reason: u32) {
    if !is_wanted(kind::RESET_SENT) {
        return;
    }
    let state = if socket.0 == 0 { 0 } else { socket.state() };
    if socket.is_full() && state != LISTEN {
        connected(socket, skb, reason, state);
    } else {
        unconnected(socket, state, skb, reason, hook::SEND_RESET);
    }
}

/// A segment is about to be answered with a RST, unless it has one itself or was not for this host.
/// What belongs to a full socket the tracepoint shows.
/// <https://github.com/torvalds/linux/blob/v5.10/net/ipv4/tcp_ipv4.c> (`tcp_v4_send_reset`)
#[inline(always)]
fn answered(socket: Socket, skb: u64, is_to_this_host: impl FnOnce(u64) -> bool) {
    if socket.is_full()
        || socket.0 == 0 && !is_to_this_host(skb)
        || Segment::of(skb).is_none_or(Segment::is_rst)
    {
        return;
    }
    let state = if socket.0 == 0 { 0 } else { socket.state() };
    unconnected(socket, state, skb, NO_REASON, hook::ANSWER_RESET);
}

#[inline(always)]
fn is_to_this_host_v4(skb: u64) -> bool {
    const RTN_LOCAL: u16 = 2;
    field!(Segment::route(skb), rtable_type: u16) == RTN_LOCAL
}

/// <https://github.com/torvalds/linux/blob/v5.10/include/net/ip6_route.h> (`ipv6_unicast_destination`)
#[inline(always)]
fn is_to_this_host_v6(skb: u64) -> bool {
    const RTF_LOCAL: u32 = 0x8000_0000;
    field!(Segment::route(skb), rt6_flags: u32) & RTF_LOCAL != 0
}

/// From a connection, or what was one until a moment ago.
#[inline(always)]
fn connected(socket: Socket, skb: u64, reason: u32, state: u8) {
    if filter::leaves_out(socket) {
        return;
    }
    let mut known = owner::of(socket);
    let acting = task::acting_on(socket, known.as_deref());
    // A closing program leaves the state CLOSE before the RST goes out; `ss -K` resets first.
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp.c (__tcp_close, tcp_abort)
    let aborted = acting.is_some() && skb == 0 && state != CLOSE;
    if let Some(flags) = acting
        && !aborted
        && skb == 0
    {
        let fd = task::Call::current().descriptor_of(socket);
        known = owner::learn(socket, known, fd);
        owner::exits(known.as_deref_mut(), flags);
        if let Some(known) = known {
            // SAFETY: the helper takes nothing.
            closed::remember(socket, known, unsafe { bpf_ktime_get_ns() });
        }
    }
    let unaccepted = skb == 0 && !socket.has_socket() && is_closing_listener(socket);
    let marks = if acting.is_some() {
        flag::TASK_CONTEXT
    } else {
        0
    } | if aborted { flag::ABORTED } else { 0 }
        | if unaccepted { flag::UNACCEPTED } else { 0 }
        | if skb != 0 { flag::ANSWERS } else { 0 };
    let marks = words::forget(marks.into()) as u32;
    let (skb, state) = (words::forget(skb), words::forget(state.into()) as u8);
    let id = next_id(hook::SEND_RESET);
    let mut known = owner::last_of(socket);
    let mut tuple = words::nowhere();
    socket.tuple(&mut tuple);
    if !filter::socket(&tuple, socket.family(), known.as_deref()) {
        return;
    }
    emit(id, kind::RESET_SENT, hook::SEND_RESET, |event| {
        socket.record(event, &tuple, known.as_deref());
        if marks & (flag::TASK_CONTEXT | flag::UNACCEPTED) != 0 {
            task::record(event, task::Call::current().descriptor_of(socket));
        } else if marks & flag::ANSWERS != 0
            && let Some(closed) = closed::find(&tuple)
        {
            // Data came after the close: the process that closed may have been exiting.
            closed.record_exit(event);
        }
        if state == CLOSE {
            // Remembered: `record` took the state before from the same place.
            event.state = event.other_state;
            event.other_state = CLOSE;
        }
        event.reason = reason;
        event.flags |= marks & (flag::ABORTED | flag::UNACCEPTED | flag::ANSWERS)
            | if Segment::of(skb).is_some_and(Segment::is_syn) {
                flag::SYN
            } else {
                0
            };
    });
    if let Some(known) = &mut known {
        known.cause = id;
    }
}

/// From no socket, a TIME_WAIT one or a listener: the ends are the segment's. When a connection
/// between them was closed here, it is its former owner's.
#[inline(always)]
fn unconnected(socket: Socket, state: u8, skb: u64, reason: u32, hook: u8) {
    let mut tuple = words::nowhere();
    let (mut family, mut is_syn) = (0, false);
    if let Some(segment) = Segment::of(skb) {
        segment.tuple(&mut tuple);
        family = segment.family();
        is_syn = segment.is_syn();
    } else if socket.0 != 0 {
        socket.tuple(&mut tuple);
        family = socket.family();
    }
    if socket.0 != 0 {
        tuple.netns = socket.netns();
    }
    let known: Option<&Sock> = if state == LISTEN {
        owner::of(socket).map(|known| &*known)
    } else {
        None
    };
    let closed = if is_syn || state == LISTEN && listener::is_full(socket) {
        // A new connection, or the end of a handshake that found no room: not the old connection,
        // if there was one between the same ends.
        None
    } else {
        closed::find(&tuple)
    };
    let asked_for = match closed {
        Some(closed) => filter::user(&tuple, family, closed.owner()),
        None => filter::socket(&tuple, family, known),
    };
    let id = next_id(hook);
    if !asked_for {
        if socket.0 == 0
            && filter::has_owner_filter()
            && is_syn
            && filter::tuple_matches(&tuple, family)
        {
            keep_refusal(id, &tuple, reason);
        }
        return;
    }
    emit(id, kind::RESET_SENT, hook, |event| {
        if let Some(closed) = closed {
            closed.record(event);
        } else if state == LISTEN {
            socket.record(event, &tuple, known);
            event.cause = 0;
        }
        event.state = state;
        event.other_state = 0;
        event.tuple = tuple;
        event.family = family;
        event.reason = reason;
        event.flags |= flag::ANSWERS
            | if socket.0 == 0 || state == TIME_WAIT {
                flag::FROM_SEGMENT
            } else {
                0
            }
            | if is_syn { flag::SYN } else { 0 };
    });
}

/// The process that is refused is not known here: its socket has no port in any table yet.
#[inline(never)]
fn keep_refusal(id: u64, tuple: &Tuple, reason: u32) {
    let refusal = Refusal {
        id,
        // SAFETY: the helper takes nothing.
        time: unsafe { bpf_ktime_get_ns() },
        reason,
        netns: tuple.netns,
    };
    // The table is an LRU: there is always room.
    let _ = REFUSALS.insert(filter::other_end(tuple), refusal, u64::from(BPF_ANY));
}

/// The running task is closing the listener this child is queued at.
#[inline(always)]
fn is_closing_listener(child: Socket) -> bool {
    let closing = CLOSING.get_ptr(task::pid_tgid());
    // SAFETY: the element stays readable; one reused meanwhile names another port.
    closing.is_some_and(|port| unsafe { *port } == child.local_port())
}
