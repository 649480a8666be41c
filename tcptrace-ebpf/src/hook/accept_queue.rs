//! `consume_skb` and `kfree_skb`: connections lost because an accept queue was full.
//!
//! A SYN that finds the queue full is dropped inside `tcp_conn_request`, which has no tracepoint and
//! gives no drop reason: its caller `tcp_rcv_state_process` consumes the segment as if all were
//! well. The final ACK of a handshake is dropped with a reason of its own since 6.17.
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_input.c> (`tcp_conn_request`)

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tcptrace_common::event::{gate, hook, kind, path};

use crate::{
    emit::{emit, next_id},
    filter,
    kernel::{field, layout},
    listener,
    maps::is_open,
    owner,
    segment::Segment,
    sock::{LISTEN, Socket},
};

#[raw_tracepoint]
fn consume_skb(ctx: RawTracePointContext) -> i32 {
    let location: u64 = ctx.arg(1);
    if location < layout!(rcv_state_process_start)
        || location >= layout!(rcv_state_process_end)
        || !is_open(gate::NEARLY_FULL)
    {
        return 0;
    }
    syn(ctx.arg(0));
    0
}

#[raw_tracepoint]
fn kfree_skb(ctx: RawTracePointContext) -> i32 {
    let reason = ctx.arg::<u64>(2) as u32;
    if reason == layout!(drop_listen_overflow) {
        let listener = Socket(ctx.arg(3));
        listener::charge(listener);
        dropped(listener, ctx.arg(0), hook::KFREE_SKB, path::ACK);
    } else if reason == layout!(drop_no_socket) {
        let listener = Socket(ctx.arg(3));
        // A SYN cookie that came back to a full queue; every other segment without a socket has
        // no listener either.
        if listener.0 != 0 && listener.state() == LISTEN && listener::is_full(listener) {
            dropped(listener, ctx.arg(0), hook::KFREE_SKB, path::COOKIE);
        }
    }
    0
}

#[inline(always)]
fn syn(skb: u64) {
    let Some(segment) = Segment::of(skb) else {
        return;
    };
    if !segment.is_syn() {
        return;
    }
    let mut tuple = owner::NOWHERE;
    segment.tuple(&mut tuple);
    let Some(listener) = listener::dropper(&tuple, segment.family()) else {
        return;
    };
    if is_syn_queue_drop(listener) {
        return;
    }
    dropped(listener, skb, hook::CONSUME_SKB, path::SYN);
}

/// Without SYN cookies a full SYN queue drops the SYN before the accept queue is looked at.
#[inline(always)]
fn is_syn_queue_drop(listener: Socket) -> bool {
    let net = field!(listener.0, skc_net: u64);
    let (_, max) = listener.accept_queue();
    field!(net, net_syncookies: u8) == 0 && field!(listener.0, syn_queue_len: u32) > max
}

#[inline(always)]
fn dropped(listener: Socket, skb: u64, hook: u8, path: u8) {
    let known = owner::of(listener);
    let mut tuple = owner::NOWHERE;
    let segment = Segment::of(skb);
    if let Some(segment) = segment {
        segment.tuple(&mut tuple);
    }
    tuple.netns = listener.netns();
    if !filter::socket(&tuple, listener.family(), known.as_deref()) {
        return;
    }
    let id = next_id(hook);
    emit(id, kind::ACCEPT_OVERFLOW, hook, |event| {
        listener.record(event, known.as_deref());
        event.tuple = tuple;
        event.path = path;
        event.cause = 0;
    });
}
