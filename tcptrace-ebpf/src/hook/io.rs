//! `sock_send_length` and `sock_recv_length`: what a send or receive returned, in the context of the
//! task that called. Every way through a socket's own operations comes by: read and write, send and
//! recv in all forms, sendfile, `io_uring`.
//! <https://github.com/torvalds/linux/blob/v6.18/net/socket.c> (`call_trace_sock_recv_length`)

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tcptrace_common::event::{confidence, flag, gate, hook, kind};

use crate::{
    emit::{emit, is_wanted, next_id},
    filter,
    kernel::{config, field},
    maps::is_open,
    owner,
    sock::{CLOSE_WAIT, Socket},
    task::{self, Call},
};

const EINTR: i32 = 4;
const EAGAIN: i32 = 11;
const EINPROGRESS: i32 = 115;
/// The kernel's own codes for a call that begins again; no program sees them.
const ERESTARTSYS: i32 = 512;
const ERESTART_RESTARTBLOCK: i32 = 516;
const MSG_DONTWAIT: u32 = 0x40;
/// A timeout that was never set.
const MAX_SCHEDULE_TIMEOUT: u64 = i64::MAX as u64;

#[raw_tracepoint]
fn sock_send_length(ctx: RawTracePointContext) -> i32 {
    let result = ctx.arg::<u64>(1) as i32;
    if !is_done(result) {
        returned(Socket(ctx.arg(0)), result, 0, hook::SEND_LENGTH);
    }
    0
}

#[raw_tracepoint]
fn sock_recv_length(ctx: RawTracePointContext) -> i32 {
    let result = ctx.arg::<u64>(1) as i32;
    let flags = ctx.arg::<u64>(2) as u32;
    // A non-blocking program that drains its socket ends every round here.
    let is_drained = result == -EAGAIN && flags & MSG_DONTWAIT != 0;
    if !is_done(result) && !is_drained {
        returned(Socket(ctx.arg(0)), result, flags, hook::RECV_LENGTH);
    }
    0
}

/// The call worked, and nobody waits to learn who made it.
#[inline(always)]
fn is_done(result: i32) -> bool {
    result > 0 && config!(last_user) == 0 && !is_open(gate::FIRST_USES)
}

#[inline(always)]
fn returned(socket: Socket, result: i32, flags: u32, hook: u8) {
    if !socket.is_tcp() {
        return;
    }
    if result >= 0 {
        worked(socket, result, hook);
        return;
    }
    let error = -result;
    let sending = hook == hook::SEND_LENGTH;
    let timeout = error == EAGAIN && is_timeout(socket, sending, flags);
    if (error == EAGAIN && !timeout)
        || error == EINTR
        || error == EINPROGRESS
        || (ERESTARTSYS..=ERESTART_RESTARTBLOCK).contains(&error)
    {
        return;
    }
    failed(socket, error, timeout, hook);
}

#[inline(always)]
fn worked(socket: Socket, result: i32, hook: u8) {
    let Some(known) = owner::of(socket) else {
        return;
    };
    if result == 0 && hook == hook::RECV_LENGTH && known.state == CLOSE_WAIT {
        known.eof_read = 1;
    }
    if config!(last_user) != 0 || known.confidence < confidence::SEEDED {
        owner::learn(socket, Call::current().descriptor_of(socket));
    }
}

/// `SO_RCVTIMEO` or `SO_SNDTIMEO` expired: the call would have blocked and was allowed to.
#[inline(always)]
fn is_timeout(socket: Socket, sending: bool, flags: u32) -> bool {
    if !sending {
        return flags & MSG_DONTWAIT == 0
            && field!(socket.0, sk_rcvtimeo: u64) != MAX_SCHEDULE_TIMEOUT;
    }
    // The hook has no flags for a send: `O_NONBLOCK` is the file's, `MSG_DONTWAIT` an argument.
    let timeout = field!(socket.0, sk_sndtimeo: u64);
    timeout != MAX_SCHEDULE_TIMEOUT && timeout != 0 && !socket.is_nonblocking()
}

#[inline(always)]
fn failed(socket: Socket, error: i32, timeout: bool, hook: u8) {
    let call = Call::current();
    let descriptor = call.descriptor_of(socket);
    if owner::of(socket).is_some() {
        owner::learn(socket, descriptor);
    }
    if !is_wanted(kind::SOCKET_ERROR) {
        return;
    }
    let known = owner::of(socket);
    let mut user = owner::NOBODY;
    task::describe(&mut user);
    let mut tuple = owner::NOWHERE;
    socket.tuple(&mut tuple);
    if !filter::user(&tuple, socket.family(), &user) {
        return;
    }
    let id = next_id(hook);
    emit(id, kind::SOCKET_ERROR, hook, |event| {
        socket.record(event, known.as_deref());
        task::record(event, socket);
        event.owner = event.task;
        event.confidence = confidence::EXACT;
        event.errno = error;
        event.len = call.arg2();
        event.flags |= if timeout { flag::SOCKET_TIMEOUT } else { 0 }
            | if hook == hook::SEND_LENGTH {
                flag::SEND
            } else {
                0
            };
    });
}
