//! `tcp_destroy_sock`: the end of every TCP socket.
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c> (`tcp_v4_destroy_sock`)

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tcptrace_common::event::hook;

use crate::{
    fds,
    maps::{CLOSE_WAITS, CLOSING},
    owner::{self, OLDER},
    sock::{CLOSE, LISTEN, Socket},
    stand_in, task,
};

#[raw_tracepoint]
fn tcp_destroy_sock(ctx: RawTracePointContext) -> i32 {
    stand_in::run(&ctx, hook::DESTROY_SOCK, || destroyed(Socket(ctx.arg(0))))
}

#[raw_tracepoint]
fn stand_in_for_tcp_destroy_sock(ctx: RawTracePointContext) -> i32 {
    stand_in::stand_in(&ctx, hook::DESTROY_SOCK)
}

#[inline(always)]
fn destroyed(socket: Socket) {
    fds::destroyed(socket);
    let mut known = owner::of(socket);
    if let Some(known) = &mut known {
        owner::expect(known, CLOSE);
    }
    owner::death(socket, known.as_deref_mut());
    if known.as_ref().is_none_or(|known| known.born == OLDER) {
        // The iterator may have found it in CLOSE_WAIT just when it left.
        let _ = CLOSE_WAITS.remove(socket.0);
    }
    if known.is_some_and(|known| known.previous == LISTEN) {
        // Its children were reset before; the same task may close another one next.
        let _ = CLOSING.remove(task::pid_tgid());
    }
}
