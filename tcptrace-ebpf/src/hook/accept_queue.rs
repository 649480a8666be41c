//! Connections lost because an accept queue was full.
//!
//! A SYN that finds the queue full is dropped inside `tcp_conn_request`, the final ACK of a handshake
//! inside `tcp_v4_syn_recv_sock`, and each looks at the queue before it does anything else: so does a
//! program at its entry. Where none can be attached the tracepoints tell: the caller of the first,
//! `tcp_rcv_state_process`, consumes the SYN with `consume_skb` as if all were well, and `kfree_skb`
//! has a reason of its own for the second since 6.17.
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_input.c> (`tcp_conn_request`)
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c> (`tcp_v4_syn_recv_sock`)

use aya_ebpf::{
    macros::{fentry, kprobe, raw_tracepoint},
    programs::{FEntryContext, ProbeContext, RawTracePointContext},
};
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
    words,
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

#[fentry(function = "tcp_conn_request")]
fn fentry_tcp_conn_request(ctx: FEntryContext) -> i32 {
    requested(Socket(ctx.arg(2)), ctx.arg(3));
    0
}

#[kprobe]
fn kprobe_tcp_conn_request(ctx: ProbeContext) -> u32 {
    if let (Some(listener), Some(skb)) = (ctx.arg(2), ctx.arg(3)) {
        requested(Socket(listener), skb);
    }
    0
}

#[fentry(function = "tcp_v4_syn_recv_sock")]
fn fentry_tcp_v4_syn_recv_sock(ctx: FEntryContext) -> i32 {
    completed(Socket(ctx.arg(0)), ctx.arg(1), ctx.arg(4));
    0
}

#[fentry(function = "tcp_v6_syn_recv_sock")]
fn fentry_tcp_v6_syn_recv_sock(ctx: FEntryContext) -> i32 {
    completed_v6(Socket(ctx.arg(0)), ctx.arg(1), ctx.arg(4));
    0
}

#[kprobe]
fn kprobe_tcp_v4_syn_recv_sock(ctx: ProbeContext) -> u32 {
    if let (Some(listener), Some(skb), Some(request)) = (ctx.arg(0), ctx.arg(1), ctx.arg(4)) {
        completed(Socket(listener), skb, request);
    }
    0
}

#[kprobe]
fn kprobe_tcp_v6_syn_recv_sock(ctx: ProbeContext) -> u32 {
    if let (Some(listener), Some(skb), Some(request)) = (ctx.arg(0), ctx.arg(1), ctx.arg(4)) {
        completed_v6(Socket(listener), skb, request);
    }
    0
}

/// A SYN has come to a listener.
#[inline(always)]
fn requested(listener: Socket, skb: u64) {
    if listener::is_full(listener) && !is_syn_queue_drop(listener) {
        dropped(listener, skb, hook::CONN_REQUEST, path::SYN);
    }
}

/// The final ACK of a handshake has come to a listener; the request it belongs to is NULL when the
/// ACK carries it as a SYN cookie.
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/syncookies.c> (`tcp_get_cookie_sock`)
#[inline(always)]
fn completed(listener: Socket, skb: u64, request: u64) {
    if listener::is_full(listener) {
        let path = if request == 0 {
            path::COOKIE
        } else {
            path::ACK
        };
        dropped(listener, skb, hook::SYN_RECV_SOCK, path);
    }
}

/// As [`completed`], for the IPv6 function, which leaves IPv4 to the other one.
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv6/tcp_ipv6.c> (`tcp_v6_syn_recv_sock`)
#[inline(always)]
fn completed_v6(listener: Socket, skb: u64, request: u64) {
    const ETH_P_IP: u16 = 0x0800;
    if u16::from_be(field!(skb, skb_protocol: u16)) != ETH_P_IP {
        completed(listener, skb, request);
    }
}

#[inline(always)]
fn syn(skb: u64) {
    let Some(segment) = Segment::of(skb) else {
        return;
    };
    if !segment.is_syn() {
        return;
    }
    let mut tuple = words::nowhere();
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
    let mut tuple = words::nowhere();
    if let Some(segment) = Segment::of(skb) {
        segment.tuple(&mut tuple);
    }
    tuple.netns = listener.netns();
    if !filter::socket(&tuple, listener.family(), known.as_deref()) {
        return;
    }
    let id = next_id(hook);
    emit(id, kind::ACCEPT_OVERFLOW, hook, |event| {
        listener.record(event, &tuple, known.as_deref());
        event.path = path;
        event.cause = 0;
    });
}
