//! `sched_process_fork`: the children of traced processes are traced too.

use aya_ebpf::{bindings::BPF_ANY, macros::raw_tracepoint, programs::RawTracePointContext};

use crate::{kernel::field, maps::PIDS};

#[raw_tracepoint]
fn sched_process_fork(ctx: RawTracePointContext) -> i32 {
    forked(ctx.arg(0), ctx.arg(1));
    0
}

#[inline(always)]
fn forked(parent: u64, child: u64) {
    let (pid, tgid) = (field!(child, task_pid: u32), field!(child, task_tgid: u32));
    // A new thread is no new process.
    if pid == tgid && PIDS.get_ptr(field!(parent, task_tgid: u32)).is_some() {
        // Full: the agent sees a table at its limit when it looks for the dead.
        let _ = PIDS.insert(tgid, 1, u64::from(BPF_ANY));
    }
}
