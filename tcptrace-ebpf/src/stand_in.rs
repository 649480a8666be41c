//! Stand-ins: programs that do another one's work where the kernel skips it, because it already runs
//! on this CPU.
//!
//! Say a process's call changes a socket's state, and the timer interrupts the program that sees it: on
//! the way back the network's soft interrupt runs, and gives up a hundred other sockets. Since 6.1 the
//! kernel does not run a program inside itself, so all of these would be lost. A stand-in is attached
//! behind the program it stands in for: when it is called and the program is still at an earlier event,
//! this one was skipped.
//! <https://github.com/torvalds/linux/blob/v6.18/kernel/trace/bpf_trace.c> (`__bpf_trace_run`)
//!
//! A stand-in does the work by a tail call of the program it stands in for, which is verified once then.
//! The run that is interrupted and the one in its midst must not share a stack: see
//! [`keep_to_the_kernels_stack`].

use core::mem::offset_of;

use aya_ebpf::programs::RawTracePointContext;
use tcptrace_common::event::{StandIn, hook};

use crate::maps::{STAND_INS, STOOD_FOR};

const TIMES: usize = offset_of!(StandIn, times);
const RUNS: usize = offset_of!(StandIn, runs);
const STANDS_IN: usize = offset_of!(StandIn, stands_in);

/// Does the work of a hook whose program has a stand-in. Inside itself the program counts where its
/// stand-in does: called by that, or before 6.1 by the kernel.
#[inline(always)]
pub(crate) fn run(ctx: &RawTracePointContext, hook: u8, work: impl FnOnce()) -> i32 {
    keep_to_the_kernels_stack(ctx, hook);
    if let Some(state) = State::of(hook) {
        let inside = state.read(RUNS);
        state.write(STANDS_IN, inside);
        state.write(RUNS, 1);
        work();
        state.write(RUNS, inside);
        state.write(STANDS_IN, 0);
    }
    0
}

/// Does the work where the program could not.
#[inline(always)]
pub(crate) fn stand_in(ctx: &RawTracePointContext, hook: u8) -> i32 {
    if let Some(state) = State::of(hook)
        && state.read(RUNS) != 0
    {
        state.write(TIMES, state.read(TIMES) + 1);
        call(ctx, hook);
        // It was not called.
        state.write(TIMES, state.read(TIMES) - 1);
    }
    0
}

/// Goes on as the program of this hook, where there is one.
#[inline(always)]
fn call(ctx: &RawTracePointContext, hook: u8) {
    // SAFETY: the program takes the same context.
    unsafe { STOOD_FOR.tail_call(ctx, u32::from(hook)) };
}

/// Since 6.13 the kernel may give a program a stack of its own, one a CPU, which relies on its never
/// running inside itself. A program that holds a tail call is given none. This one is never made, and
/// the verifier takes it out.
/// <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/verifier.c> (`check_max_stack_depth`)
#[inline(always)]
fn keep_to_the_kernels_stack(ctx: &RawTracePointContext, hook: u8) {
    static NEVER: u8 = 0;
    // SAFETY: a static is valid for reads. Volatile, or the compiler would take the call out.
    if unsafe { (&raw const NEVER).read_volatile() } != 0 {
        call(ctx, hook);
    }
}

/// Where this hook's program counts now: what it adds to may be just what it has interrupted.
#[inline(always)]
pub(crate) fn slot(hook: u8) -> u32 {
    let slot = u32::from(hook);
    if hook >= hook::STAND_INS {
        return slot;
    }
    State::of(hook).map_or(slot, |state| {
        slot + u32::from(hook::COUNT) * (state.read(STANDS_IN) as u32 & 1)
    })
}

/// A [`StandIn`] of this CPU. Each member is read and written by itself, because another run may come in
/// between.
#[derive(Clone, Copy)]
struct State(*mut StandIn);

impl State {
    #[inline(always)]
    fn of(hook: u8) -> Option<Self> {
        STAND_INS.get_ptr_mut(u32::from(hook)).map(Self)
    }

    #[inline(always)]
    fn member(self, offset: usize) -> *mut u64 {
        self.0.cast::<u8>().wrapping_add(offset).cast()
    }

    #[inline(always)]
    fn read(self, offset: usize) -> u64 {
        // SAFETY: an aligned member of this CPU's own element.
        unsafe { self.member(offset).read_volatile() }
    }

    #[inline(always)]
    fn write(self, offset: usize, value: u64) {
        // SAFETY: as in `read`.
        unsafe { self.member(offset).write_volatile(value) };
    }
}
