//! What a binary says of its own frames.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use framehop::ExplicitModuleSectionInfo;
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Object as _, ObjectSection as _, ReadCache};

use super::process::{Key, Mapped};

/// The binaries looked at, by content.
#[derive(Default)]
pub(super) struct Modules(HashMap<Key, Option<Arc<Module>>>);

/// A binary's part in unwinding.
pub(super) struct Module {
    /// Where the parts of its file lie in its own addresses.
    segments: Vec<(Range<u64>, u64)>,
    pub(super) sections: ExplicitModuleSectionInfo<Arc<[u8]>>,
    /// In hexadecimal digits.
    pub(super) build_id: Option<String>,
}

/// Binaries remembered. They are small but for what they say of their frames, which is a tenth of the code.
const KNOWN: usize = 256;
/// More is not read of one: no binary there is comes near.
const LARGEST: u64 = 256 << 20;

impl Modules {
    /// Of this file; `None` when it is no binary of this machine.
    pub(super) fn get(&mut self, mapped: &Mapped) -> Option<Arc<Module>> {
        if self.0.len() >= KNOWN && !self.0.contains_key(&mapped.key) {
            self.0.clear();
        }
        let module = self.0.entry(mapped.key);
        module
            .or_insert_with(|| Module::read(mapped).map(Arc::new))
            .clone()
    }
}

impl Module {
    fn read(mapped: &Mapped) -> Option<Self> {
        let cache = ReadCache::new(&mapped.file);
        let elf: ElfFile64<'_, object::Endianness, _> = ElfFile64::parse(&cache).ok()?;
        let endian = elf.elf_header().endian().ok()?;
        let loaded = elf.elf_program_headers().iter();
        let loaded = loaded.filter(|it| it.p_type(endian) == object::elf::PT_LOAD);
        let segments = loaded.map(|it| {
            let (offset, size) = it.file_range(endian);
            (offset..offset.saturating_add(size), it.p_vaddr(endian))
        });
        let range = |name: &str| {
            let section = elf.section_by_name(name)?;
            Some(section.address()..section.address().saturating_add(section.size()))
        };
        let data = |name: &str| {
            let section = elf.section_by_name(name)?;
            let (_, size) = section.file_range()?;
            (size <= LARGEST).then(|| section.data().ok().map(Arc::<[u8]>::from))?
        };
        let build_id = elf.build_id().ok().flatten();
        Some(Self {
            segments: segments.collect(),
            sections: ExplicitModuleSectionInfo {
                base_svma: 0,
                text_svma: range(".text"),
                got_svma: range(".got"),
                eh_frame_svma: range(".eh_frame"),
                eh_frame: data(".eh_frame"),
                eh_frame_hdr_svma: range(".eh_frame_hdr"),
                eh_frame_hdr: data(".eh_frame_hdr"),
                ..ExplicitModuleSectionInfo::default()
            },
            build_id: build_id.map(hexadecimal),
        })
    }

    /// The binary's own address of what is at this place in its file; tools that read symbols ask for it.
    pub(super) fn address_of(&self, offset: u64) -> u64 {
        let segment = self
            .segments
            .iter()
            .find(|(part, _)| part.contains(&offset));
        segment.map_or(offset, |(part, address)| {
            offset.wrapping_sub(part.start).wrapping_add(*address)
        })
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut digits = String::new();
    for byte in bytes {
        // A String takes all.
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}
