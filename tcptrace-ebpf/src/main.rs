//! The kernel half of tcptrace: one file per hook, each filter, reserve, fill, submit.
#![no_std]
#![no_main]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "kernel fields are read at their own width and handed on as the wire's integers"
)]
#![allow(
    clippy::needless_pass_by_value,
    reason = "the attribute of an attach point hands the context over by value"
)]
#![allow(
    clippy::inline_always,
    reason = "what is not inlined is a frame of its own on 512 bytes of stack, and is verified at \
              every call: which it is, is decided function by function"
)]

mod closed;
mod emit;
mod fds;
mod filter;
mod hook;
mod kernel;
mod listener;
mod maps;
mod owner;
mod segment;
mod sock;
mod stack;
mod stand_in;
mod task;
mod words;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program in which this can be reached, so no program ever does.
    loop {}
}

/// Helpers such as `bpf_probe_read_kernel` are open to GPL-compatible programs only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
