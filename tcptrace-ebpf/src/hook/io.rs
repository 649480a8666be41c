//! What a send or receive returned, in the context of the task that called.
//!
//! Since 6.3 `sock_send_length` and `sock_recv_length` tell it for every way through a socket's own
//! operations: read and write, send and recv in all forms, sendfile, `io_uring`. Before, the ends of
//! `tcp_sendmsg` and `tcp_recvmsg` do, or those of the calls. A kretprobe would not: each blocked
//! call holds one of its few places, and what returns without a place is missed in silence.
//! <https://github.com/torvalds/linux/blob/v6.18/net/socket.c> (`call_trace_sock_recv_length`)
//! <https://github.com/torvalds/linux/blob/v5.10/kernel/kprobes.c> (`pre_handler_kretprobe`)

use aya_ebpf::{
    macros::{fexit, raw_tracepoint},
    programs::{FExitContext, RawTracePointContext},
};
use tcptrace_common::event::{Sock, confidence, flag, gate, hook, kind};

use crate::{
    emit::{emit, is_wanted, next_id},
    filter,
    kernel::{config, field, layout},
    maps::is_open,
    owner,
    sock::{CLOSE_WAIT, ESTABLISHED, Socket},
    task::{self, Call},
    words,
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
    sent(
        Socket(ctx.arg(0)),
        ctx.arg::<u64>(1) as i32,
        hook::SEND_LENGTH,
    );
    0
}

#[raw_tracepoint]
fn sock_recv_length(ctx: RawTracePointContext) -> i32 {
    let flags = ctx.arg::<u64>(2) as u32;
    received(
        Socket(ctx.arg(0)),
        ctx.arg::<u64>(1) as i32,
        flags & MSG_DONTWAIT != 0,
        hook::RECV_LENGTH,
    );
    0
}

#[fexit(function = "tcp_sendmsg")]
fn fexit_tcp_sendmsg(ctx: FExitContext) -> i32 {
    sent(Socket(ctx.arg(0)), ctx.arg(3), hook::SENDMSG);
    0
}

/// What `sendfile` did before 6.5.
#[fexit(function = "tcp_sendpage")]
fn fexit_tcp_sendpage(ctx: FExitContext) -> i32 {
    sent(Socket(ctx.arg(0)), ctx.arg(5), hook::SENDMSG);
    0
}

/// Until 5.18 with an argument of its own for `MSG_DONTWAIT`: the fourth, where the flags came after.
/// <https://github.com/torvalds/linux/blob/v5.10/net/ipv4/af_inet.c> (`inet_recvmsg`)
#[fexit(function = "tcp_recvmsg")]
fn fexit_tcp_recvmsg_6(ctx: FExitContext) -> i32 {
    let waits_not = ctx.arg::<u32>(3) & MSG_DONTWAIT != 0;
    received(Socket(ctx.arg(0)), ctx.arg(6), waits_not, hook::RECVMSG);
    0
}

#[fexit(function = "tcp_recvmsg")]
fn fexit_tcp_recvmsg_5(ctx: FExitContext) -> i32 {
    let waits_not = ctx.arg::<u32>(3) & MSG_DONTWAIT != 0;
    received(Socket(ctx.arg(0)), ctx.arg(5), waits_not, hook::RECVMSG);
    0
}

/// Every call of the host: the last way.
#[raw_tracepoint]
fn sys_exit_of_io(ctx: RawTracePointContext) -> i32 {
    let result = ctx.arg::<u64>(1) as i64;
    if result <= 0 || !is_done(1) {
        io_exit(ctx.arg(0), result.min(1) as i32);
    }
    0
}

/// A call with these registers ended.
#[inline(always)]
fn io_exit(regs: u64, result: i32) {
    let number = field!(regs, regs_syscall: u32);
    let sends = is_send(number);
    if !sends && !is_receive(number) {
        return;
    }
    let call = Call::current();
    let Some(socket) = task::socket(call.arg0() as u32) else {
        return;
    };
    if sends {
        sent(socket, result, hook::IO_EXIT);
        return;
    }
    let flags = if number == layout!(nr_recvfrom) || number == layout!(nr_recvmmsg) {
        call.arg3()
    } else if number == layout!(nr_recvmsg) {
        call.arg2()
    } else {
        0
    };
    let waits_not = flags as u32 & MSG_DONTWAIT != 0 || socket.is_nonblocking();
    received(socket, result, waits_not, hook::IO_EXIT);
}

#[inline(always)]
fn is_send(number: u32) -> bool {
    number == layout!(nr_write)
        || number == layout!(nr_writev)
        || number == layout!(nr_sendto)
        || number == layout!(nr_sendmsg)
        || number == layout!(nr_sendmmsg)
        || number == layout!(nr_sendfile)
}

#[inline(always)]
fn is_receive(number: u32) -> bool {
    number == layout!(nr_read)
        || number == layout!(nr_readv)
        || number == layout!(nr_recvfrom)
        || number == layout!(nr_recvmsg)
        || number == layout!(nr_recvmmsg)
}

#[inline(always)]
fn sent(socket: Socket, result: i32, hook: u8) {
    if !is_done(result) {
        returned(socket, result, Sending(true), false, hook);
    }
}

#[inline(always)]
fn received(socket: Socket, result: i32, waits_not: bool, hook: u8) {
    // A non-blocking program that drains its socket ends every round here.
    let is_drained = result == -EAGAIN && waits_not;
    if !is_done(result) && !is_drained {
        returned(socket, result, Sending(false), waits_not, hook);
    }
}

/// The call sent something, or tried to; else it received.
#[derive(Clone, Copy)]
struct Sending(bool);

/// The call worked, and nobody waits to learn who made it.
#[inline(always)]
fn is_done(result: i32) -> bool {
    result > 0 && config!(last_user) == 0 && !is_open(gate::FIRST_USES)
}

#[inline(always)]
fn returned(socket: Socket, result: i32, sending: Sending, waits_not: bool, hook: u8) {
    if !socket.is_tcp() {
        return;
    }
    if result >= 0 {
        worked(socket, result, sending);
        return;
    }
    let error = -result;
    let timeout = error == EAGAIN && is_timeout(socket, sending, waits_not);
    if (error == EAGAIN && !timeout)
        || error == EINTR
        || error == EINPROGRESS
        || (ERESTARTSYS..=ERESTART_RESTARTBLOCK).contains(&error)
    {
        return;
    }
    failed(socket, error, timeout, sending, hook);
}

#[inline(always)]
fn worked(socket: Socket, result: i32, Sending(sending): Sending) {
    let Some(known) = owner::of(socket) else {
        return;
    };
    if result == 0 && !sending {
        end_of_stream(socket, known);
    }
    if config!(last_user) != 0 || known.confidence < confidence::SEEDED {
        owner::learn(socket, Some(known), Call::current().descriptor_of(socket));
    }
}

/// The program has read the peer's FIN, or what it asked for was nothing. The change that came with the FIN
/// may have gone by unseen.
#[inline(always)]
fn end_of_stream(socket: Socket, known: &mut Sock) {
    if known.state == ESTABLISHED && socket.state() == CLOSE_WAIT {
        owner::expect(known, CLOSE_WAIT);
    }
    if known.state == CLOSE_WAIT {
        known.eof_read = 1;
    }
}

/// `SO_RCVTIMEO` or `SO_SNDTIMEO` expired: the call would have blocked and was allowed to.
#[inline(always)]
fn is_timeout(socket: Socket, Sending(sending): Sending, waits_not: bool) -> bool {
    if !sending {
        return !waits_not && field!(socket.0, sk_rcvtimeo: u64) != MAX_SCHEDULE_TIMEOUT;
    }
    // No hook has the flags of a send: `O_NONBLOCK` is the file's, `MSG_DONTWAIT` an argument.
    let timeout = field!(socket.0, sk_sndtimeo: u64);
    timeout != MAX_SCHEDULE_TIMEOUT && timeout != 0 && !socket.is_nonblocking()
}

#[inline(always)]
fn failed(socket: Socket, error: i32, timeout: bool, Sending(sending): Sending, hook: u8) {
    if filter::leaves_out(socket) {
        return;
    }
    let call = Call::current();
    let descriptor = call.descriptor_of(socket);
    let mut known =
        owner::of(socket).and_then(|known| owner::learn(socket, Some(known), descriptor));
    if let Some(known) = &mut known {
        owner::expect_close(socket, known);
    }
    if !is_wanted(kind::SOCKET_ERROR) {
        return;
    }
    let user = task::running_if_filtered();
    let mut tuple = words::nowhere();
    socket.tuple(&mut tuple);
    if !filter::user(&tuple, socket.family(), &user) {
        return;
    }
    let id = next_id(hook);
    emit(id, kind::SOCKET_ERROR, hook, |event| {
        socket.record(event, &tuple, known.as_deref());
        task::record(event, descriptor);
        event.owner = event.task;
        event.confidence = confidence::EXACT;
        event.errno = error;
        event.len = call.arg2();
        event.flags |=
            if timeout { flag::SOCKET_TIMEOUT } else { 0 } | if sending { flag::SEND } else { 0 };
    });
}
