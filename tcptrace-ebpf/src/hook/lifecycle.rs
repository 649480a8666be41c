//! `tcp_destroy_sock`: the end of every TCP socket.
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c> (`tcp_v4_destroy_sock`)

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

use crate::{
    maps::{CLOSE_WAITS, CLOSING},
    owner,
    sock::Socket,
    task,
};

#[raw_tracepoint]
fn tcp_destroy_sock(ctx: RawTracePointContext) -> i32 {
    let socket = Socket(ctx.arg(0));
    owner::death(socket);
    // Both are there only for few: a socket in CLOSE_WAIT, and a listener that is being closed.
    let _ = CLOSE_WAITS.remove(socket.0);
    if socket.has_no_peer() {
        let _ = CLOSING.remove(task::pid_tgid());
    }
    0
}
