//! `tcp_receive_reset`: a RST came in for a socket, and was accepted.
//!
//! Fires before the state changes, in the network's interrupt or while the owner's own call works
//! off what queued up meanwhile: the running task is not asked.
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_input.c> (`tcp_reset`)

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tcptrace_common::event::{Tuple, flag, hook, kind};

use crate::{
    emit::{emit, is_wanted, next_id},
    filter,
    maps::REFUSALS,
    owner,
    sock::{SYN_SENT, Socket},
    stand_in, words,
};

#[raw_tracepoint]
fn tcp_receive_reset(ctx: RawTracePointContext) -> i32 {
    stand_in::run(&ctx, hook::RECEIVE_RESET, || received(Socket(ctx.arg(0))))
}

#[raw_tracepoint]
fn stand_in_for_tcp_receive_reset(ctx: RawTracePointContext) -> i32 {
    stand_in::stand_in(&ctx, hook::RECEIVE_RESET)
}

#[inline(always)]
fn received(socket: Socket) {
    if !is_wanted(kind::RESET_RECEIVED) || filter::leaves_out(socket) {
        return;
    }
    let mut known = owner::of(socket);
    let mut tuple = words::nowhere();
    socket.tuple(&mut tuple);
    if !filter::socket(&tuple, socket.family(), known.as_deref()) {
        return;
    }
    if filter::has_owner_filter() && socket.state() == SYN_SENT && is_wanted(kind::RESET_SENT) {
        refused(socket, &tuple);
    }
    let id = next_id(hook::RECEIVE_RESET);
    emit(id, kind::RESET_RECEIVED, hook::RECEIVE_RESET, |event| {
        socket.record(event, &tuple, known.as_deref());
    });
    if let Some(known) = &mut known {
        known.cause = id;
    }
}

/// A traced process was refused: the RST that did it, when it was sent on this host.
#[inline(never)]
fn refused(socket: Socket, tuple: &Tuple) {
    let key = owner::flow_key(tuple);
    let Some(refusal) = REFUSALS.get_ptr(key) else {
        return;
    };
    // SAFETY: an LRU's element stays readable; one that is reused meanwhile is another refusal.
    let refusal = unsafe { *refusal };
    emit(refusal.id, kind::RESET_SENT, hook::SEND_RESET, |event| {
        event.time = refusal.time;
        event.reason = refusal.reason;
        event.family = socket.family();
        event.tuple = Tuple {
            local: tuple.peer,
            peer: tuple.local,
            local_port: tuple.peer_port,
            peer_port: tuple.local_port,
            netns: refusal.netns,
        };
        event.flags = flag::ANSWERS | flag::FROM_SEGMENT | flag::SYN;
    });
    // Gone already: nothing is left to do.
    let _ = REFUSALS.remove(key);
}
