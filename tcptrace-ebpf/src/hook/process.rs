//! `sched_process_fork` and `sched_process_exec`: which processes a filter by process means. Children of
//! traced processes are traced too, a number is followed to no other process, and whoever may be the
//! successor of a traced process is told the agent.

use aya_ebpf::{bindings::BPF_ANY, macros::raw_tracepoint, programs::RawTracePointContext};
use tcptrace_common::{event::stat, filter::pid};

use crate::{
    kernel::{config, field},
    maps::{CANDIDATES, NAMES, PIDS, STATS, count},
    task,
};

#[raw_tracepoint]
fn sched_process_fork(ctx: RawTracePointContext) -> i32 {
    forked(ctx.arg(0), ctx.arg(1));
    0
}

#[raw_tracepoint]
fn sched_process_exec(_: RawTracePointContext) -> i32 {
    // It runs for the task that has become another program, under the new name.
    // https://github.com/torvalds/linux/blob/v6.18/fs/exec.c (`exec_binprm`)
    appeared((task::pid_tgid() >> 32) as u32, task::current());
    0
}

/// The child has its number and has not run yet.
/// <https://github.com/torvalds/linux/blob/v6.18/kernel/fork.c> (`kernel_clone`)
#[inline(always)]
fn forked(parent: u64, child: u64) {
    let (id, tgid) = (field!(child, task_pid: u32), field!(child, task_tgid: u32));
    if id != tgid {
        // A new thread is no new process.
        return;
    }
    let by_traced = PIDS
        .get_ptr(field!(parent, task_tgid: u32))
        .is_some_and(is_traced);
    let is_followed = config!(children) != 0 && by_traced;
    match PIDS.get_ptr_mut(tgid) {
        // SAFETY: the element stays readable, and one byte is written whole.
        Some(awaited) if !is_traced(awaited) => unsafe { awaited.write(pid::TRACED) },
        // The process that had this number is gone.
        Some(_) if !is_followed => {
            let _ = PIDS.remove(tgid);
        }
        // Full: the agent sees a table at its limit when it looks for the dead.
        None if is_followed => {
            let _ = PIDS.insert(tgid, pid::TRACED, u64::from(BPF_ANY));
        }
        Some(_) | None => {}
    }
    // A child of one that lives is no successor of it.
    if !by_traced {
        appeared(tgid, child);
    }
}

#[inline(always)]
fn is_traced(value: *const u8) -> bool {
    // SAFETY: a pointer into a map is readable, and the maps are preallocated.
    unsafe { *value == pid::TRACED }
}

/// A process began, or another program in it.
#[inline(always)]
fn appeared(tgid: u32, task: u64) {
    if config!(follow) == 0
        || NAMES.get_ptr(task::name_of(task)).is_none()
        || PIDS.get_ptr(tgid).is_some()
    {
        return;
    }
    if CANDIDATES.insert(tgid, 1, u64::from(BPF_ANY)).is_err() {
        count(&STATS, stat::CANDIDATES_FULL);
    }
}
