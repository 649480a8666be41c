//! Exits of system calls: descriptors that ran out, accepted sockets, and errors that reach a
//! program without any event on a socket.

use aya_ebpf::{
    macros::{fexit, raw_tracepoint, tracepoint},
    programs::{FExitContext, RawTracePointContext, TracePointContext},
};
use tcptrace_common::event::{Tuple, confidence, hook, kind};

use crate::{
    emit::{emit, is_wanted, next_id},
    fds, filter,
    kernel::{field, layout, read_user},
    listener, owner,
    sock::{Socket, map},
    task::{self, Call},
    words,
};

const EBADF: i64 = 9;
const ENFILE: i64 = 23;
const EMFILE: i64 = 24;
const ENOTSOCK: i64 = 88;
const EADDRINUSE: i64 = 98;
const EADDRNOTAVAIL: i64 = 99;
const ENETUNREACH: i64 = 101;
const ECONNRESET: i64 = 104;
const ENOTCONN: i64 = 107;
const ETIMEDOUT: i64 = 110;
const ECONNREFUSED: i64 = 111;
const EHOSTUNREACH: i64 = 113;
const EACCES: i64 = 13;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Offset of the result in every `sys_exit_*` record: it follows the common fields and the number.
const RESULT: usize = 16;

#[tracepoint]
fn sys_exit_accept(ctx: TracePointContext) -> i32 {
    accepted(result(&ctx));
    0
}

#[tracepoint]
fn sys_exit_accept4(ctx: TracePointContext) -> i32 {
    accepted(result(&ctx));
    0
}

#[tracepoint]
fn sys_exit_socket(ctx: TracePointContext) -> i32 {
    socket_opened(result(&ctx));
    0
}

#[tracepoint]
fn sys_exit_connect(ctx: TracePointContext) -> i32 {
    connected(result(&ctx));
    0
}

#[tracepoint]
fn sys_exit_bind(ctx: TracePointContext) -> i32 {
    bound(result(&ctx));
    0
}

#[tracepoint]
fn sys_exit_listen(ctx: TracePointContext) -> i32 {
    listened(result(&ctx));
    0
}

#[tracepoint]
fn sys_exit_shutdown(ctx: TracePointContext) -> i32 {
    shut(result(&ctx));
    0
}

/// Every call of the host: opt-in.
#[raw_tracepoint]
fn sys_exit(ctx: RawTracePointContext) -> i32 {
    let result = ctx.arg::<u64>(1) as i64;
    if result == -EBADF || result == -ENOTSOCK {
        invalid(-result);
    }
    0
}

/// All of the above in one, where the classic tracepoints cannot be attached: every call of the host.
#[raw_tracepoint]
fn sys_exit_of_sockets(ctx: RawTracePointContext) -> i32 {
    socket_exit(ctx.arg(0), ctx.arg::<u64>(1) as i64);
    0
}

/// A call with these registers ended.
#[inline(always)]
fn socket_exit(regs: u64, result: i64) {
    let number = field!(regs, regs_syscall: u32);
    if number == layout!(nr_accept) || number == layout!(nr_accept4) {
        accepted(result);
    } else if number == layout!(nr_socket) {
        socket_opened(result);
    } else if number == layout!(nr_connect) {
        connected(result);
    } else if number == layout!(nr_bind) {
        bound(result);
    } else if number == layout!(nr_listen) {
        listened(result);
    } else if number == layout!(nr_shutdown) {
        shut(result);
    }
}

/// A connection leaves an accept queue, for whatever kind of accept: `io_uring` makes no call.
#[fexit(function = "inet_csk_accept")]
fn fexit_inet_csk_accept_2(ctx: FExitContext) -> i32 {
    dequeued(Socket(ctx.arg(0)), Socket(ctx.arg(2)));
    0
}

/// Before 6.10, with two arguments more.
#[fexit(function = "inet_csk_accept")]
fn fexit_inet_csk_accept_4(ctx: FExitContext) -> i32 {
    dequeued(Socket(ctx.arg(0)), Socket(ctx.arg(4)));
    0
}

#[inline(always)]
fn dequeued(listener: Socket, child: Socket) {
    // NULL: none came.
    if child.0 != 0 && child.is_tcp() {
        owner::accepted_from(listener, child);
        hold(listener);
    }
}

#[inline(always)]
fn result(ctx: &TracePointContext) -> i64 {
    // SAFETY: the record of a syscall's exit is 24 bytes long.
    unsafe { ctx.read_at(RESULT) }.unwrap_or_default()
}

/// `accept` returned. The descriptor is taken before the queue is looked at, so one that is
/// refused for want of a descriptor leaves the connection where it is.
/// <https://github.com/torvalds/linux/blob/v6.18/net/socket.c> (`__sys_accept4_file`)
#[inline(always)]
fn accepted(result: i64) {
    if result >= 0 {
        if let Some(socket) = Socket::of_accepted(task::file(result as u32)) {
            owner::accepted(socket, result as i32);
        }
        if filter::has_owner_filter()
            && let Some(listener) = task::socket(Call::current().arg0() as u32)
        {
            hold(listener);
        }
    } else if result == -EMFILE || result == -ENFILE {
        exhausted(
            task::socket(Call::current().arg0() as u32),
            -result,
            hook::ACCEPT_EXIT,
        );
    }
}

/// The running task accepts from this listener.
#[inline(always)]
fn hold(listener: Socket) {
    if filter::has_owner_filter() {
        owner::hold(listener, &task::running());
    }
}

#[inline(always)]
fn socket_opened(result: i64) {
    if result == -EMFILE || result == -ENFILE {
        exhausted(None, -result, hook::SOCKET_EXIT);
    }
}

#[inline(always)]
fn connected(result: i64) {
    match -result {
        error @ (ENETUNREACH | EHOSTUNREACH | EADDRNOTAVAIL) => unconnected(error),
        // It was told when the state changed, which the kernel may have let go by unseen; nothing but this
        // call says so while the program keeps the socket.
        ECONNRESET | ETIMEDOUT | ECONNREFUSED => {
            if let Some(socket) = task::socket(Call::current().arg0() as u32)
                && let Some(known) = owner::of(socket)
            {
                owner::expect_close(socket, known);
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn bound(result: i64) {
    if result == -EADDRINUSE || result == -EADDRNOTAVAIL || result == -EACCES {
        unbound(-result);
    }
}

#[inline(always)]
fn listened(result: i64) {
    if result == -EADDRINUSE {
        unbound(-result);
    } else if result == 0 {
        // It may have listened before, and be asking for another backlog now.
        let call = Call::current();
        if let Some(socket) = task::socket(call.arg0() as u32) {
            listener::asked(socket, call.arg1() as u32);
        }
    }
}

#[inline(always)]
fn shut(result: i64) {
    if result == -ENOTCONN {
        not_connected(-result);
    }
}

#[inline(always)]
fn exhausted(listener: Option<Socket>, error: i64, hook: u8) {
    if is_wanted(kind::FD_EXHAUSTED) {
        let listener = listener.unwrap_or(Socket(0));
        failed(
            kind::FD_EXHAUSTED,
            hook,
            listener,
            error,
            &ends_of(listener),
        );
    }
}

/// `connect` failed before any SYN; what failed later was a change of state.
#[inline(always)]
fn unconnected(error: i64) {
    let call = Call::current();
    let Some(socket) = task::socket(call.arg0() as u32) else {
        return;
    };
    if let Some(known) = owner::of(socket) {
        owner::expect_close(socket, known);
        return;
    }
    if !is_wanted(kind::CONNECT_FAILED) {
        return;
    }
    let mut tuple = ends_of(socket);
    sockaddr(call.arg1(), &mut tuple.peer, &mut tuple.peer_port);
    failed(
        kind::CONNECT_FAILED,
        hook::CONNECT_EXIT,
        socket,
        error,
        &tuple,
    );
}

/// `bind` or `listen` failed.
#[inline(always)]
fn unbound(error: i64) {
    let call = Call::current();
    let Some(socket) = task::socket(call.arg0() as u32) else {
        return;
    };
    if !is_wanted(kind::SOCKET_ERROR) {
        return;
    }
    let mut tuple = ends_of(socket);
    if tuple.local_port == 0 {
        sockaddr(call.arg1(), &mut tuple.local, &mut tuple.local_port);
    }
    failed(kind::SOCKET_ERROR, hook::BIND_EXIT, socket, error, &tuple);
}

/// `shutdown` of a socket that listens, was never connected, or is not connected any more.
#[inline(always)]
fn not_connected(error: i64) {
    if is_wanted(kind::SOCKET_ERROR)
        && let Some(socket) = task::socket(Call::current().arg0() as u32)
    {
        let tuple = ends_of(socket);
        failed(
            kind::SOCKET_ERROR,
            hook::SHUTDOWN_EXIT,
            socket,
            error,
            &tuple,
        );
    }
}

#[inline(always)]
fn invalid(error: i64) {
    if !is_wanted(kind::FD_INVALID) {
        return;
    }
    let caller = task::running_if_filtered();
    let call = Call::current();
    let past = fds::last(call.arg0() as u32);
    let asked_for = match past {
        Some(past) => filter::user(&past.tuple, past.family, &caller),
        None => filter::task(&caller, task::netns()),
    };
    if !asked_for {
        return;
    }
    let id = next_id(hook::SYS_EXIT);
    emit(id, kind::FD_INVALID, hook::SYS_EXIT, |event| {
        task::record(event, -1);
        event.owner = event.task;
        event.confidence = confidence::EXACT;
        event.errno = error as i32;
        // There is no socket to find the descriptor of: it is what the call named.
        event.fd = call.arg0() as i32;
        event.len = call.arg2();
        match past {
            Some(past) => past.record(event),
            None => event.tuple.netns = task::netns(),
        }
    });
}

/// The ends of a socket; of none, the namespace the running task would have opened it in.
#[inline(always)]
fn ends_of(socket: Socket) -> Tuple {
    let mut tuple = words::nowhere();
    if socket.0 == 0 {
        tuple.netns = task::netns();
    } else {
        socket.tuple(&mut tuple);
    }
    tuple
}

/// Reports the running task's failed call on a socket, which may be NULL, with the ends it was about.
#[inline(never)]
fn failed(kind: u8, hook: u8, socket: Socket, error: i64, tuple: &Tuple) {
    let caller = task::running_if_filtered();
    let asked_for = if socket.0 == 0 {
        filter::task(&caller, tuple.netns)
    } else {
        filter::user(tuple, socket.family(), &caller)
    };
    if !asked_for {
        return;
    }
    let id = next_id(hook);
    emit(id, kind, hook, |event| {
        let mut fd = -1;
        if socket.0 == 0 {
            event.tuple = *tuple;
        } else {
            socket.record(event, tuple, owner::of(socket).as_deref());
            fd = Call::current().descriptor_of(socket);
        }
        task::record(event, fd);
        event.owner = event.task;
        event.confidence = confidence::EXACT;
        event.errno = error as i32;
        event.len = Call::current().arg2();
    });
}

/// Address and port of a `struct sockaddr` in the program's memory.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/in6.h>
#[inline(always)]
fn sockaddr(from: u64, address: &mut [u8; 16], port: &mut u16) {
    match read_user::<u16>(from) {
        AF_INET => map(read_user(from + 4), address),
        AF_INET6 => *address = read_user(from + 8),
        _ => return,
    }
    *port = u16::from_be(read_user(from + 2));
}
