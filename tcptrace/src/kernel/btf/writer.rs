//! Writes BTF, so that a test can describe the kernel it wants.
#![allow(clippy::cast_possible_truncation, reason = "a test's kernel is small")]

use super::{MAGIC, kind};

/// The types written so far; each call gives the new type's id.
pub(in crate::kernel) struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Writer {
    pub(in crate::kernel) fn new() -> Self {
        Self {
            types: Vec::new(),
            strings: vec![0],
            count: 0,
        }
    }

    pub(in crate::kernel) fn finish(&self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut bytes = Vec::from(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        bytes.extend(
            [24, 0, types, types, strings]
                .iter()
                .flat_map(|word| word.to_ne_bytes()),
        );
        bytes.extend(&self.types);
        bytes.extend(&self.strings);
        bytes
    }

    /// The type the next call writes.
    pub(in crate::kernel) fn next(&self) -> u32 {
        self.count + 1
    }

    pub(in crate::kernel) fn int(&mut self, name: &str) -> u32 {
        self.record(name, kind::INT, false, 0, 4);
        self.words(&[32])
    }

    pub(in crate::kernel) fn pointer(&mut self, to: u32) -> u32 {
        self.record("", kind::PTR, false, 0, to)
    }

    pub(in crate::kernel) fn constant(&mut self, of: u32) -> u32 {
        self.record("", kind::CONST, false, 0, of)
    }

    pub(in crate::kernel) fn typedef(&mut self, name: &str, of: u32) -> u32 {
        self.record(name, kind::TYPEDEF, false, 0, of)
    }

    /// Members: name, type, bit offset.
    pub(in crate::kernel) fn strukt(&mut self, name: &str, members: &[(&str, u32, u32)]) -> u32 {
        self.composite(name, kind::STRUCT, false, members)
    }

    pub(in crate::kernel) fn union(&mut self, name: &str, members: &[(&str, u32, u32)]) -> u32 {
        self.composite(name, kind::UNION, false, members)
    }

    /// A struct whose offsets carry the width of a bit field in their upper 8 bits.
    pub(in crate::kernel) fn bit_fields(
        &mut self,
        name: &str,
        members: &[(&str, u32, u32)],
    ) -> u32 {
        self.composite(name, kind::STRUCT, true, members)
    }

    pub(in crate::kernel) fn enumeration(&mut self, name: &str, values: &[(&str, i32)]) -> u32 {
        let id = self.record(name, kind::ENUM, true, values.len(), 4);
        for (name, value) in values {
            let name = self.string(name);
            self.words(&[name, value.cast_unsigned()]);
        }
        id
    }

    pub(in crate::kernel) fn enumeration64(&mut self, name: &str, values: &[(&str, u64)]) -> u32 {
        let id = self.record(name, kind::ENUM64, false, values.len(), 8);
        for (name, value) in values {
            let name = self.string(name);
            self.words(&[name, *value as u32, (value >> 32) as u32]);
        }
        id
    }

    /// A tracepoint with arguments of these types.
    pub(in crate::kernel) fn tracepoint(&mut self, name: &str, arguments: &[u32]) {
        let data = self.pointer(0);
        let proto = self.record("", kind::FUNC_PROTO, false, arguments.len() + 1, 0);
        for &id in [data].iter().chain(arguments) {
            self.words(&[0, id]);
        }
        let pointer = self.pointer(proto);
        self.typedef(&format!("btf_trace_{name}"), pointer);
    }

    /// A function without arguments.
    pub(in crate::kernel) fn function(&mut self, name: &str) {
        let proto = self.record("", kind::FUNC_PROTO, false, 0, 0);
        self.record(name, kind::FUNC, false, 0, proto);
    }

    fn composite(&mut self, name: &str, kind: u8, flag: bool, members: &[(&str, u32, u32)]) -> u32 {
        let id = self.record(name, kind, flag, members.len(), 0);
        for &(name, ty, offset) in members {
            let name = self.string(name);
            self.words(&[name, ty, offset]);
        }
        id
    }

    fn record(&mut self, name: &str, kind: u8, flag: bool, count: usize, last: u32) -> u32 {
        let name = self.string(name);
        self.count += 1;
        self.words(&[
            name,
            u32::from(flag) << 31 | u32::from(kind) << 24 | count as u32,
            last,
        ])
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(text.bytes().chain([0]));
        at
    }

    fn words(&mut self, words: &[u32]) -> u32 {
        self.types
            .extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        self.count
    }
}
