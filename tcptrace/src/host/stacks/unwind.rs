//! From registers and a copy of the stack to return addresses: by what the binaries say of their frames,
//! and where they say nothing by frame pointers.

use std::collections::HashSet;

use framehop::{
    CacheNative, FrameAddress, MayAllocateDuringUnwind, Module, UnwindRegsNative, Unwinder as _,
    UnwinderNative,
};
use tcptrace_common::event::{self as wire, STACK_CHUNK};

use super::module::Modules;
use super::process::Process;

/// Frames followed.
const DEPTH: usize = 128;

/// The address the program was at and those it returns to, innermost first; and why there are no more,
/// unless that was its first function.
pub(super) fn unwind(
    raw: &wire::Stack,
    process: &Process,
    modules: &mut Modules,
) -> (Vec<u64>, Option<String>) {
    let mut unwinder = UnwinderNative::<_, MayAllocateDuringUnwind>::new();
    let mut cache = CacheNative::<MayAllocateDuringUnwind>::new();
    let mut known = HashSet::new();
    let mut regs = registers(raw);
    let mut left_copy = false;
    let mut address = FrameAddress::from_instruction_pointer(raw.ip);
    let mut addresses = Vec::new();
    while addresses.len() < DEPTH {
        let Some(mapping) = process.at(address.address_for_lookup()) else {
            // Not code: the walk went astray with the frame before.
            return (addresses, Some(ASTRAY.to_owned()));
        };
        addresses.push(address.address());
        if let Some(file) = &mapping.file
            && known.insert(mapping.range().start)
            && let Some(module) = modules.get(file)
        {
            // Where the binary's own address 0 lies. Told from this address: the page a mapping begins with
            // may be of two segments.
            let at = address.address_for_lookup();
            let bias = at.wrapping_sub(module.address_of(mapping.offset_of(at)));
            unwinder.add_module(Module::new(
                String::new(),
                mapping.range(),
                bias,
                module.sections.clone(),
            ));
        }
        let mut read = |at: u64| word(raw, at).ok_or_else(|| left_copy |= is_beyond(raw, at));
        match unwinder.unwind_frame(address, &mut regs, &mut cache, &mut read) {
            Ok(Some(next)) => match FrameAddress::from_return_address(next) {
                Some(next) => address = next,
                None => return (addresses, None),
            },
            Ok(None) => return (addresses, None),
            Err(_) if left_copy => {
                let copied = raw.copied >> 10;
                let why =
                    format!("the stack is deeper than the {copied} KiB that were copied of it");
                return (addresses, Some(why));
            }
            Err(_) => return (addresses, Some(ASTRAY.to_owned())),
        }
    }
    (addresses, None)
}

const ASTRAY: &str = "the code before that says nothing of its frames and keeps no frame pointer";

#[cfg(target_arch = "x86_64")]
fn registers(raw: &wire::Stack) -> UnwindRegsNative {
    UnwindRegsNative::new(raw.ip, raw.sp, raw.fp)
}

/// The kernel signs no more of an address than is above 48 bits.
/// <https://github.com/torvalds/linux/blob/v6.18/Documentation/arch/arm64/pointer-authentication.rst>
#[cfg(target_arch = "aarch64")]
fn registers(raw: &wire::Stack) -> UnwindRegsNative {
    let mask = framehop::aarch64::PtrAuthMask::from_max_known_address((1 << 48) - 1);
    UnwindRegsNative::new_with_ptr_auth_mask(mask, raw.lr, raw.sp, raw.fp)
}

/// Where the copy begins.
fn begin(raw: &wire::Stack) -> u64 {
    raw.sp & !(STACK_CHUNK as u64 - 1)
}

fn word(raw: &wire::Stack, address: u64) -> Option<u64> {
    let memory = raw.memory.as_flattened();
    let at = usize::try_from(address.checked_sub(begin(raw))?).ok()?;
    let bytes = memory.get(..(raw.copied as usize).min(memory.len()))?;
    let word = bytes.get(at..at.checked_add(size_of::<u64>())?)?;
    word.try_into().ok().map(u64::from_ne_bytes)
}

/// There is more of the stack than was copied, and this is it.
fn is_beyond(raw: &wire::Stack, address: u64) -> bool {
    let all = raw.memory.as_flattened().len() as u64;
    u64::from(raw.copied) == all && address >= begin(raw) + all
}
