//! `tcp_destroy_sock`: the end of every TCP socket.
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c> (`tcp_v4_destroy_sock`)

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

use crate::{
    fds,
    maps::{CLOSE_WAITS, CLOSING},
    owner,
    sock::{LISTEN, Socket},
    task,
};

#[raw_tracepoint]
fn tcp_destroy_sock(ctx: RawTracePointContext) -> i32 {
    let socket = Socket(ctx.arg(0));
    let was_listener = owner::of(socket).is_some_and(|known| known.previous == LISTEN);
    fds::destroyed(socket);
    owner::death(socket);
    // There only for a socket that was in CLOSE_WAIT a moment ago.
    let _ = CLOSE_WAITS.remove(socket.0);
    if was_listener {
        // Its children were reset before; the same task may close another one next.
        let _ = CLOSING.remove(task::pid_tgid());
    }
    0
}
