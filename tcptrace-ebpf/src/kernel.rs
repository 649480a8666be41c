//! Reading kernel memory through the load-time layout.

use core::mem::{MaybeUninit, transmute};

use aya_ebpf::helpers::generated::{
    bpf_probe_read_kernel, bpf_probe_read_kernel_str, bpf_probe_read_user,
};
use tcptrace_common::{
    filter::Config,
    layout::{ABSENT, CAST_CALL, LOOKS_WORDS, Layout, Looks},
};

use crate::words;

/// Where this kernel keeps each field; the agent overwrites it before the load.
#[unsafe(no_mangle)]
pub(crate) static LAYOUT: Layout = Layout::ABSENT;

/// What the user asked for; the agent overwrites it before the load.
#[unsafe(no_mangle)]
pub(crate) static CONFIG: Config = Config::OFF;

/// The system calls that look at files by name, a bit for each number; the agent overwrites it before
/// the load.
#[unsafe(no_mangle)]
pub(crate) static LOOKS: Looks = [0; LOOKS_WORDS];

/// A load-time constant of the layout. The read is volatile so that the compiler does not fold the
/// value compiled in; the verifier folds the one loaded.
macro_rules! layout {
    ($field:ident) => {
        // SAFETY: a static's field is valid for reads.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::LAYOUT.$field) }
    };
}

/// A load-time constant of the configuration, read as [`layout!`] does.
macro_rules! config {
    ($field:ident) => {
        // SAFETY: a static's field is valid for reads.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::CONFIG.$field) }
    };
}

/// A field of the kernel structure at an address: `field!(sk, skc_state: u8)`. Reads zero where
/// this kernel has no such field or the memory cannot be read.
macro_rules! field {
    ($base:expr, $field:ident: $ty:ty) => {
        $crate::kernel::read::<$ty>($base, $crate::kernel::layout!($field))
    };
}

/// A number in the running task or its registers, which are read without a helper where this kernel
/// gives typed pointers to them: `own_field!(task, task_flags: u32)`. Not for pointers: at each of them
/// the verifier searches all types of the kernel by name, which costs the start milliseconds.
/// <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/btf.c> (`btf_nested_type_is_trusted`)
macro_rules! own_field {
    ($base:expr, $field:ident: $ty:ty) => {
        $crate::kernel::read_own::<$ty>($base, $crate::kernel::layout!($field))
    };
}

pub(crate) use {config, field, layout, own_field};

/// What is at `base + offset` in the kernel's memory, else zero.
#[inline(always)]
pub(crate) fn read<T: Copy + Default>(base: u64, offset: u32) -> T {
    const { assert!(size_of::<T>() <= size_of::<u64>()) }
    if offset == ABSENT {
        return T::default();
    }
    let address = base + u64::from(offset);
    if let Some(words) = Words::at(address) {
        return words.load(0);
    }
    let mut value = MaybeUninit::<T>::uninit();
    // The result is not looked at: a branch on each read would double the verifier's work, and a
    // read that fails leaves zeroes.
    // https://github.com/torvalds/linux/blob/v6.18/kernel/trace/bpf_trace.c (bpf_probe_read_kernel_common)
    // SAFETY: the helper checks the address, and writes all of `value` in any case.
    unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        )
    };
    // SAFETY: it was written, and integers and arrays of them have no invalid value.
    unsafe { value.assume_init() }
}

/// This kernel lets a program say what is at an address, and then read it without a helper: since 6.2.
#[inline(always)]
pub(crate) fn has_casts() -> bool {
    layout!(words) != ABSENT
}

/// An address at which the verifier sees words that are numbers, whatever the kernel keeps there: of
/// a pointer it would follow where it leads.
#[derive(Clone, Copy)]
struct Words(u64);

impl Words {
    /// At an address, if this kernel has it. No instruction is left of the call.
    /// <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/verifier.c> (`fixup_kfunc_call`)
    #[inline(always)]
    fn at(address: u64) -> Option<Self> {
        let words = layout!(words);
        if words == ABSENT {
            return None;
        }
        // SAFETY: so do aya's bindings call a helper; the agent has put the kernel's function in its
        // place wherever this is reached.
        let cast: unsafe extern "C" fn(u64, u32) -> u64 = unsafe { transmute(CAST_CALL as usize) };
        // SAFETY: the function takes any address, and gives it back.
        Some(Self(unsafe { cast(address, words) }))
    }

    #[inline(always)]
    fn load<T: Copy>(self, offset: u64) -> T {
        load(self.0 + offset)
    }
}

/// What is at an address of which the verifier knows what is there. A load that fails gives zero too.
/// <https://github.com/torvalds/linux/blob/v6.18/arch/x86/net/bpf_jit_comp.c> (`ex_handler_bpf`)
#[inline(always)]
fn load<T: Copy>(address: u64) -> T {
    // SAFETY: the verifier has checked that it may be read, and the kernel catches a load that faults.
    // Volatile, so that no load is split or moved past the check of the kernel's kind.
    unsafe { (address as *const T).read_volatile() }
}

/// The running task and its registers come as typed pointers, which the verifier lets follow: since
/// 5.15.
#[inline(always)]
pub(crate) fn has_typed_task() -> bool {
    layout!(has_task_pt_regs) == 1
}

/// What is at `base + offset`, where `base` is a typed pointer if this kernel has them.
#[inline(always)]
pub(crate) fn read_own<T: Copy + Default>(base: u64, offset: u32) -> T {
    if offset == ABSENT || has_casts() || !has_typed_task() {
        read(base, offset)
    } else {
        load(base + u64::from(offset))
    }
}

/// Copies an IPv6 address of the kernel's to where it is wanted, without a detour over the stack.
#[inline(always)]
pub(crate) fn read_address(base: u64, offset: u32, address: &mut [u8; 16]) {
    let from = base + u64::from(offset);
    let Some(from) = Words::at(from) else {
        // A read that fails leaves zeroes.
        // SAFETY: the helper checks where it reads, and writes all of `address` in any case.
        unsafe { bpf_probe_read_kernel(address.as_mut_ptr().cast(), 16, from as *const _) };
        return;
    };
    let words: *mut u32 = address.as_mut_ptr().cast();
    for nth in 0..4 {
        let word: u32 = from.load(nth * 4);
        // SAFETY: the four words are the sixteen bytes, which begin at a multiple of 4 in whatever
        // holds addresses. Volatile, because the compiler would make a call of `memmove` of them.
        unsafe { words.wrapping_add(nth as usize).write_volatile(word) };
    }
}

/// A name in the kernel's memory, padded with zeroes. The kernel's own is not: until 5.16 what a longer
/// name leaves stays behind a shorter one.
/// <https://github.com/torvalds/linux/blob/v5.10/fs/exec.c> (`__set_task_comm`)
#[inline(always)]
pub(crate) fn read_name(base: u64, offset: u32) -> [u8; 16] {
    let mut name = words::no_name();
    let from = (base + u64::from(offset)) as *const _;
    // A read that fails leaves zeroes.
    // SAFETY: the helper checks where it reads, and writes no more than `name` has.
    unsafe { bpf_probe_read_kernel_str(name.as_mut_ptr().cast(), name.len() as u32, from) };
    name
}

/// What is at `address` in the program's memory, else zero.
#[inline(always)]
pub(crate) fn read_user<T: Copy + Default>(address: u64) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper checks the address, and writes all of `value` in any case.
    unsafe {
        bpf_probe_read_user(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        )
    };
    // SAFETY: it was written, and integers and arrays of them have no invalid value.
    unsafe { value.assume_init() }
}
