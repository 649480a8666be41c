//! The iterator over every open file of every task, run once at the start: who owns the sockets
//! that are older than the tracer, and which of them listen.
//! <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/task_iter.c>

use core::ffi::c_void;

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns};
use tcptrace_common::event::CloseWait;

use crate::{
    filter,
    kernel::config,
    listener,
    maps::CLOSE_WAITS,
    owner,
    sock::{CLOSE_WAIT, LISTEN, Socket},
    task, words,
};

/// `struct bpf_iter__task_file`; its members are 8 bytes each whatever their type.
#[repr(C)]
struct Context {
    meta: *const c_void,
    task: *const c_void,
    fd: u64,
    file: *const c_void,
}

/// # Safety
/// The kernel calls it with the context of its kind of iterator.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
unsafe extern "C" fn task_file(ctx: *const Context) -> i32 {
    // SAFETY: the kernel's promise.
    let Context { task, fd, file, .. } = unsafe { &*ctx };
    let (task, file) = (*task as u64, *file as u64);
    // Both are NULL once, at the end.
    if task != 0
        && file != 0
        && let Some(socket) = Socket::of_file(file)
    {
        found(socket, task, *fd as i32);
    }
    0
}

#[inline(always)]
fn found(socket: Socket, task: u64, fd: i32) {
    let mut holder = words::nobody();
    task::describe_other(task, &mut holder);
    let state = socket.state();
    let is_new = owner::seed(socket, &holder, fd);
    owner::hold(socket, &holder);
    if !is_new {
        return;
    }
    if state == LISTEN {
        listener::add(socket);
        listener::watch(socket, owner::of(socket));
    } else if state == CLOSE_WAIT {
        close_wait(socket, &holder);
    }
}

#[inline(always)]
fn close_wait(socket: Socket, holder: &tcptrace_common::event::Task) {
    // The FIN was the last segment, or later ones came: it has waited at least this long.
    let waited = u64::from(socket.silence()) * u64::from(config!(ns_per_jiffy));
    let mut entry = CloseWait {
        // SAFETY: the helper takes nothing.
        since: unsafe { bpf_ktime_get_ns() }.saturating_sub(waited),
        id: 0,
        tuple: words::nowhere(),
        family: socket.family(),
        older: 1,
        pad: [0; 6],
    };
    socket.tuple(&mut entry.tuple);
    if filter::user(&entry.tuple, entry.family, holder) {
        // There already: the hook saw it enter meanwhile and knows better.
        let _ = CLOSE_WAITS.insert(socket.0, entry, u64::from(BPF_NOEXIST));
    }
}
