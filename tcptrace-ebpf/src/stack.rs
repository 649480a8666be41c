//! The stack of whoever acts, taken where it happens: what the kernel ran, and the innermost part of the
//! program's own stack with the registers to unwind it. A program need not keep frame pointers, and the
//! caller of a C library's `close` is lost to those anyway: the library keeps none.

use aya_ebpf::helpers::{
    bpf_get_current_task_btf,
    generated::{bpf_get_task_stack, bpf_probe_read_user},
};
use tcptrace_common::event::{STACK_CHUNK, Stack, stat};

use crate::{
    kernel::{field, has_typed_task, own_field},
    maps::{STACKS, STATS, count},
    task::{self, Call},
};

/// The agent looks when an event says that its stack is there: nothing need wake it before.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>
const BPF_RB_NO_WAKEUP: u64 = 1;

/// Hands over the stack of the running task, under the id of the event it is of. Only where the hook
/// runs for that task. False when there is none: no room, or a kernel that has no helper for it.
#[inline(never)]
pub(crate) fn take(id: u64) -> bool {
    if !has_typed_task() {
        return false;
    }
    let Some(mut entry) = STACKS.reserve::<Stack>(0) else {
        count(&STATS, stat::STACKS_FULL);
        return false;
    };
    let stack = entry.as_mut_ptr();
    // SAFETY: the entry is as large as a record, all of whose bytes are integers. What is not written
    // below holds what an earlier record left there, and `copied` says so.
    let stack = unsafe { &mut *stack };
    stack.id = id;
    stack.tgid = (task::pid_tgid() >> 32) as u32;
    // SAFETY: the helper takes nothing and returns the running task.
    let current = unsafe { bpf_get_current_task_btf() };
    // SAFETY: the task is the running one, and the helper writes no more than this, all of it.
    stack.kernel_bytes = unsafe {
        bpf_get_task_stack(
            current.cast(),
            stack.kernel.as_mut_ptr().cast(),
            size_of_val(&stack.kernel) as u32,
            0,
        )
    } as i32;
    // Told from the memory it was: a program that was started in its place has another.
    stack.start = field!(field!(current as u64, task_mm: u64), mm_start_stack: u64);
    let regs = Call::current().regs();
    stack.copied = 0;
    (stack.ip, stack.sp, stack.fp, stack.lr) = (0, 0, 0, 0);
    if regs != 0 && stack.start != 0 {
        stack.ip = own_field!(regs, regs_ip: u64);
        stack.sp = own_field!(regs, regs_sp: u64);
        stack.fp = own_field!(regs, regs_fp: u64);
        stack.lr = own_field!(regs, regs_lr: u64);
        copy(stack);
    }
    entry.submit(BPF_RB_NO_WAKEUP);
    true
}

/// In pieces that begin at multiples of their size, so that the end of the stack cuts none.
#[inline(always)]
fn copy(stack: &mut Stack) {
    let from = stack.sp & !(STACK_CHUNK as u64 - 1);
    for chunk in &mut stack.memory {
        let address = from + u64::from(stack.copied);
        // SAFETY: the helper checks the address, and writes no more than the piece has.
        let failed = unsafe {
            bpf_probe_read_user(
                chunk.as_mut_ptr().cast(),
                STACK_CHUNK as u32,
                address as *const _,
            )
        };
        if failed != 0 {
            return;
        }
        stack.copied += STACK_CHUNK as u32;
    }
}
