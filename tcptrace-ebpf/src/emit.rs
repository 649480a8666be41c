//! Handing a record to the agent, or counting that it could not be.

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
    maps::ring_buf::RingBufEntry,
};
use tcptrace_common::event::{Event, ID_CPU_SHIFT, ID_HOOK_SHIFT, NO_REASON};

use crate::{
    kernel::config,
    maps::{EVENTS, LOST, SEQUENCE, count},
    stand_in, words,
};

/// The user, or the evidence of what the user asked for, wants this kind.
#[inline(always)]
pub(crate) fn is_wanted(kind: u8) -> bool {
    config!(kinds) & (1 << kind) != 0
}

/// A new event id.
#[inline(always)]
pub(crate) fn next_id(hook: u8) -> u64 {
    let slot = stand_in::slot(hook);
    let Some(sequence) = SEQUENCE.get_ptr_mut(slot) else {
        return 0;
    };
    // SAFETY: this CPU's own element, and what interrupts the hook's program has another slot.
    let sequence = unsafe { &mut *sequence };
    *sequence += 1;
    // SAFETY: the helper takes nothing.
    let cpu = u64::from(unsafe { bpf_get_smp_processor_id() });
    cpu << ID_CPU_SHIFT | u64::from(slot) << ID_HOOK_SHIFT | *sequence & ((1 << ID_HOOK_SHIFT) - 1)
}

/// Reserves a record, lets `fill` complete it and submits it. A record that finds no room is
/// counted under its hook.
#[inline(always)]
pub(crate) fn emit(id: u64, kind: u8, hook: u8, fill: impl FnOnce(&mut Event)) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        count(&LOST, stand_in::slot(hook));
        return;
    };
    let event = cleared(&mut entry);
    event.id = id;
    // SAFETY: the helper takes nothing.
    event.time = unsafe { bpf_ktime_get_ns() };
    event.kind = kind;
    event.hook = hook;
    event.fd = -1;
    event.syscall = -1;
    event.reason = NO_REASON;
    event.received_ago = u32::MAX;
    event.sent_ago = u32::MAX;
    event.heard_ago = u32::MAX;
    event.fin_waited = u32::MAX;
    fill(event);
    entry.submit(0);
}

/// The ring's memory holds what was there before: all of a record is written, padding too.
#[inline(always)]
fn cleared(entry: &mut RingBufEntry<Event>) -> &mut Event {
    let event: *mut Event = entry.as_mut_ptr();
    words::clear(event);
    // SAFETY: every byte was just written, and a record of integers has no invalid value.
    unsafe { &mut *event }
}
