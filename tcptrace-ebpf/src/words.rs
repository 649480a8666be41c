//! Structures written word by word: of a constant or a copy the compiler makes a call of `memset` or
//! `memmove`, which write, and the verifier follows, byte by byte. And what the verifier is not to know
//! of a word.

use core::mem::transmute;

use tcptrace_common::event::{Task, Tuple};

/// Words in a row between two jumps.
const ROW: usize = 8;

/// Nobody writes it. But it is where it might be, so that the verifier takes it for any number.
#[unsafe(no_mangle)]
static mut ZERO: u32 = 0;

/// Zero, which neither the compiler nor the verifier knows.
#[inline(always)]
pub(crate) fn zero() -> u32 {
    let zero = &raw const ZERO;
    // SAFETY: a static is valid for reads, and nobody writes it. Volatile, so that the compiler does not
    // fold it.
    unsafe { zero.read_volatile() }
}

/// The value, of which the verifier forgets all it has found out: it would walk what follows once for
/// each finding.
#[inline(always)]
pub(crate) fn forget(value: u64) -> u64 {
    value | u64::from(zero())
}

/// No connection.
#[inline(always)]
pub(crate) fn nowhere() -> Tuple {
    // SAFETY: integers and arrays of them have no invalid value.
    unsafe { transmute([zero(); size_of::<Tuple>() / 4]) }
}

/// Nobody.
#[inline(always)]
pub(crate) fn nobody() -> Task {
    // SAFETY: as in `nowhere`.
    unsafe { transmute([u64::from(zero()); size_of::<Task>() / 8]) }
}

/// No name.
#[inline(always)]
pub(crate) fn no_name() -> [u8; 16] {
    // SAFETY: as in `nowhere`.
    unsafe { transmute([u64::from(zero()); 2]) }
}

/// Writes zeroes where a structure is or will be.
#[inline(always)]
pub(crate) fn clear<T>(to: *mut T) {
    // SAFETY: words of the structure, as `each` has checked. Volatile, because the compiler would make
    // a call of it all.
    each::<T>(|nth| unsafe { to.cast::<u64>().wrapping_add(nth).write_volatile(0) });
}

/// Copies a structure. The two may be the same.
#[inline(always)]
pub(crate) fn copy<T: Copy>(from: &T, to: *mut T) {
    let from: *const u64 = (&raw const *from).cast();
    each::<T>(|nth| {
        // SAFETY: as in `clear`.
        let word = unsafe { from.wrapping_add(nth).read_volatile() };
        // SAFETY: as in `clear`.
        unsafe { to.cast::<u64>().wrapping_add(nth).write_volatile(word) };
    });
}

/// Does this to each word of a structure, which begins and ends at a multiple of 8 bytes.
#[inline(always)]
fn each<T>(mut act: impl FnMut(usize)) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) }
    let words = size_of::<T>() / 8;
    for row in 0..words / ROW {
        for nth in 0..ROW {
            act(row * ROW + nth);
        }
    }
    for nth in words / ROW * ROW..words {
        act(nth);
    }
}
