//! The kernel half of tcptrace.
#![no_std]
#![no_main]
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use aya_ebpf::Global;
use tcptrace_common::layout::Layout;
#[unsafe(no_mangle)]
static LAYOUT: Global<Layout> = Global::new(Layout::ABSENT);

#[raw_tracepoint]
pub fn tcp_send_reset(ctx: RawTracePointContext) -> u32 {
    let l = LAYOUT.load();
    if l.send_reset_reason == 2 { return ctx.arg::<u64>(2) as u32 }
    0
}
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! { loop {} }
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
