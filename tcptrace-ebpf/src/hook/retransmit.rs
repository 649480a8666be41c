//! `tcp_retransmit_skb`: a segment was sent again. Opt-in.
//!
//! Since 6.17 it has a result and fires for failed attempts too, which no peer can see.
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_output.c> (`tcp_retransmit_skb`)

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tcptrace_common::event::{hook, kind};

use crate::{
    emit::{emit, next_id},
    filter,
    kernel::layout,
    owner,
    sock::Socket,
    words,
};

#[raw_tracepoint]
fn tcp_retransmit_skb(ctx: RawTracePointContext) -> i32 {
    if layout!(retransmit_err) == 2 && ctx.arg::<u64>(2) as i32 != 0 {
        return 0;
    }
    sent_again(Socket(ctx.arg(0)));
    0
}

#[inline(always)]
fn sent_again(socket: Socket) {
    let known = owner::of(socket);
    let mut tuple = words::nowhere();
    socket.tuple(&mut tuple);
    if !filter::socket(&tuple, socket.family(), known.as_deref()) {
        return;
    }
    let id = next_id(hook::RETRANSMIT);
    emit(id, kind::RETRANSMIT, hook::RETRANSMIT, |event| {
        socket.record(event, &tuple, known.as_deref());
        event.errno = 0;
    });
}
