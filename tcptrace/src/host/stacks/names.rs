//! Names and lines of addresses, from symbols and debug information.

use std::collections::HashSet;
use std::os::fd::AsRawFd as _;

use blazesym::MaybeDefault;
use blazesym::symbolize::source::{Elf, Kernel, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer};

use super::cut_short;
use super::process::{Key, Mapped};
use crate::event::Frame;

/// Symbols read so far.
pub(super) struct Names {
    kernel: Symbolizer,
    programs: Symbolizer,
    /// The files in `programs`.
    known: HashSet<Key>,
}

/// Binaries whose symbols are kept.
const KNOWN: usize = 64;

impl Names {
    /// Reads the kernel's.
    pub(super) fn new() -> Self {
        cut_short::reads_as_zeroes();
        let names = Self {
            // Read again they would be without the privilege to see them.
            kernel: Symbolizer::builder().enable_auto_reload(false).build(),
            programs: Symbolizer::new(),
            known: HashSet::new(),
        };
        // Whichever address makes it read them.
        names.of_kernel(&[1]);
        names
    }

    /// Functions of the kernel; one without a name is its address.
    pub(super) fn of_kernel(&self, addresses: &[u64]) -> Vec<String> {
        // Also with its debug information no lines: who is debugged here is the program.
        let source = Source::Kernel(Kernel {
            vmlinux: MaybeDefault::None,
            debug_syms: false,
            ..Kernel::default()
        });
        let found = self.kernel.symbolize(&source, Input::AbsAddr(addresses));
        let mut found = found.unwrap_or_default().into_iter();
        let names = addresses.iter().map(|address| match found.next() {
            Some(Symbolized::Sym(Sym { name, .. })) => name.into_owned(),
            _ => format!("{address:#x}"),
        });
        names.collect()
    }

    /// Adds what is at this place of a file: innermost first, functions inlined there before the one
    /// they are in. Nothing when it has no name.
    pub(super) fn of_file(&mut self, mapped: &Mapped, offset: u64, frames: &mut Vec<Frame>) {
        if self.known.len() >= KNOWN && !self.known.contains(&mapped.key) {
            self.programs = Symbolizer::new();
            self.known.clear();
        }
        self.known.insert(mapped.key);
        let path = format!("/proc/self/fd/{}", mapped.file.as_raw_fd());
        let source = Source::Elf(Elf::new(path));
        let named = self
            .programs
            .symbolize_single(&source, Input::FileOffset(offset));
        let Ok(Symbolized::Sym(symbol)) = named else {
            return;
        };
        for inlined in symbol.inlined.iter().rev() {
            frames.push(frame(&inlined.name, inlined.code_info.as_ref()));
        }
        frames.push(frame(&symbol.name, symbol.code_info.as_deref()));
    }
}

fn frame(name: &str, code: Option<&CodeInfo<'_>>) -> Frame {
    let place = code.and_then(|code| Some((code.to_path(), code.line?)));
    match place {
        Some((path, line)) => Frame::of_program(name, Some((&path.to_string_lossy(), line))),
        None => Frame::of_program(name, None),
    }
}
