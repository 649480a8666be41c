//! Reading kernel memory through the load-time layout.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use tcptrace_common::{filter::Config, layout::ABSENT, layout::Layout};

/// Where this kernel keeps each field; the agent overwrites it before the load.
#[unsafe(no_mangle)]
pub(crate) static LAYOUT: Layout = Layout::ABSENT;

/// What the user asked for; the agent overwrites it before the load.
#[unsafe(no_mangle)]
pub(crate) static CONFIG: Config = Config::OFF;

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

pub(crate) use {config, field, layout};

/// What is at `base + offset`, else zero.
#[inline(always)]
pub(crate) fn read<T: Copy + Default>(base: u64, offset: u32) -> T {
    if offset == ABSENT {
        return T::default();
    }
    let address = (base + u64::from(offset)) as *const T;
    // SAFETY: the helper checks the address and fails on one that cannot be read.
    unsafe { bpf_probe_read_kernel(address) }.unwrap_or_default()
}
