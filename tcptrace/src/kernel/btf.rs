//! A reader of BTF, the kernel's own description of its types.
//!
//! Reads only what the layout and the plan ask for: member offsets, sizes, enum values, prototypes of
//! tracepoints and functions. The bytes stay as the kernel gave them; an index of 4 bytes a type is all that is built.
//! <https://github.com/torvalds/linux/blob/v6.18/Documentation/bpf/btf.rst>

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::iter;
use std::ops::Range;

/// Where the running kernel shows its types.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// Bytes before a type's own data: name, info, size or type.
const TYPE_HEADER: usize = 12;
/// Longest name read; the kernel's own limit for symbols is as long.
const NAME_MAX: usize = 512;
/// Modifiers around a type, and anonymous structs inside each other; real kernels stay below 10.
const DEPTH_MAX: u32 = 32;
/// Members looked at in one lookup, so that types which contain themselves cannot hold us up; real
/// kernels stay below 1000.
const MEMBERS_MAX: u32 = 1 << 14;

/// Why a kernel's types cannot be read.
#[derive(Debug)]
pub enum BtfError {
    /// The file cannot be read; most often the kernel was built without it.
    Unreadable(io::Error),
    /// The bytes are not BTF.
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where, in bytes.
        at: usize,
    },
    /// A kind of type this version does not know, and so cannot step over.
    UnknownKind {
        /// The kind.
        kind: u8,
        /// Where, in bytes.
        at: usize,
    },
}

impl fmt::Display for BtfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(
                f,
                "cannot read {KERNEL_BTF}: {error}; a kernel built with CONFIG_DEBUG_INFO_BTF=y has it"
            ),
            Self::Malformed { what, at } => {
                write!(f, "the kernel's BTF is broken at byte {at}: {what}")
            }
            Self::UnknownKind { kind, at } => write!(
                f,
                "the kernel's BTF has a type of kind {kind} at byte {at}, which is newer than this tcptrace"
            ),
        }
    }
}

impl std::error::Error for BtfError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable(error) => Some(error),
            Self::Malformed { .. } | Self::UnknownKind { .. } => None,
        }
    }
}

/// The type of a tracepoint's argument, without `const` and behind any typedef.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument<'a> {
    /// `enum name`
    Enum(&'a str),
    /// `struct name *`
    Struct(&'a str),
    /// `void *`
    VoidPointer,
    /// Any integer
    Int,
}

/// A function of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its id among the types.
    pub id: u32,
    /// How many arguments it takes.
    pub arguments: usize,
}

/// A kernel's types.
pub struct Btf {
    bytes: Vec<u8>,
    strings: Range<usize>,
    /// Where each type begins, by its id less one: 0 is `void` and has no record.
    types: Vec<u32>,
    /// Ids of the types that are looked up by name: structs, unions, enums and typedefs.
    index: Vec<u32>,
}

impl Btf {
    /// The running kernel's.
    ///
    /// # Errors
    /// The kernel has none, or it is none this version can read.
    pub fn from_kernel() -> Result<Self, BtfError> {
        Self::parse(std::fs::read(KERNEL_BTF).map_err(BtfError::Unreadable)?)
    }

    /// From the bytes of [`KERNEL_BTF`], in this machine's byte order.
    ///
    /// # Errors
    /// The bytes are not BTF, or hold a kind of type this version does not know.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let malformed = |what, at| BtfError::Malformed { what, at };
        let word = |at| u32_at(&bytes, at).ok_or(malformed("the header is cut short", at));
        if bytes.first_chunk() != Some(&MAGIC.to_ne_bytes()) {
            return Err(malformed("it does not begin with the magic number", 0));
        }
        let section = |at| {
            let start = word(4)? as usize + word(at)? as usize;
            let range = start..start + word(at + 4)? as usize;
            if range.end > bytes.len() {
                Err(malformed("a section is cut short", at))
            } else {
                Ok(range)
            }
        };
        let (records, strings) = (section(8)?, section(16)?);

        let (mut types, mut index) = (Vec::new(), Vec::new());
        let (mut at, mut id) = (records.start, 0);
        while at < records.end {
            let record = Type::read(&bytes, at).ok_or(malformed("a type is cut short", at))?;
            let size = record.data_size().ok_or(BtfError::UnknownKind {
                kind: record.kind,
                at,
            })?;
            let end = record.data + size;
            if end > records.end {
                return Err(malformed("a type is cut short", at));
            }
            id += 1;
            types.push(u32::try_from(at).map_err(|_| malformed("it is larger than 4 GiB", at))?);
            if matches!(
                record.kind,
                kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::TYPEDEF
            ) {
                index.push(id);
            }
            at = end;
        }
        Ok(Self {
            bytes,
            strings,
            types,
            index,
        })
    }

    /// Byte offset of a member in a struct or union.
    ///
    /// `path` names members from the outside in, separated by dots; anonymous structs and unions are
    /// looked into. `+N` behind a path adds bytes, and the first of several alternatives separated
    /// by `|` that exists is taken. A bit field has no byte offset.
    #[must_use]
    pub fn offset(&self, strukt: &str, path: &str) -> Option<u32> {
        path.split('|').find_map(|path| {
            let (path, extra) = path.split_once('+').unwrap_or((path, "0"));
            let bits = self
                .named(strukt)
                .filter(Type::is_composite)
                .find_map(|outer| self.walk(outer, path))?;
            let bytes = u32::try_from(bits / 8)
                .ok()?
                .checked_add(extra.parse().ok()?)?;
            (bits % 8 == 0).then_some(bytes)
        })
    }

    /// Value of an enumerator of whichever enum has it.
    #[must_use]
    pub fn enum_value(&self, name: &str) -> Option<u64> {
        self.indexed()
            .filter(Type::is_enum)
            .find_map(|ty| self.enumerators(ty).find(|&(at, _)| self.is_name(at, name)))
            .map(|(_, value)| value)
    }

    /// Every enumerator of the enum of that name; none when there is no such enum.
    pub fn enum_variants(&self, name: &str) -> impl Iterator<Item = (u64, &str)> {
        self.named(name)
            .find(Type::is_enum)
            .into_iter()
            .flat_map(|ty| self.enumerators(ty))
            .filter_map(|(name, value)| Some((value, self.name(name)?)))
    }

    /// Size of a struct or union, bytes.
    #[must_use]
    pub fn size(&self, name: &str) -> Option<u32> {
        self.named(name)
            .find(Type::is_composite)
            .map(|ty| ty.target)
    }

    /// Id of a struct or union.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<u32> {
        let is_it = |ty: &Type| ty.is_composite() && self.is_name(ty.name, name);
        let mut all = self.index.iter().copied();
        all.find(|&id| self.get(id).is_some_and(|ty| is_it(&ty)))
    }

    /// Those of these functions that there are.
    #[must_use]
    pub fn functions<'a>(&self, wanted: &BTreeSet<&'a str>) -> BTreeMap<&'a str, Function> {
        let all = (1..=self.types.len()).filter_map(|id| u32::try_from(id).ok());
        all.filter_map(|id| {
            let ty = self.get(id).filter(|ty| ty.kind == kind::FUNC)?;
            let name = *wanted.get(self.name(ty.name)?)?;
            let proto = self.get(ty.target)?;
            let arguments = proto.count;
            (proto.kind == kind::FUNC_PROTO).then_some((name, Function { id, arguments }))
        })
        .collect()
    }

    /// Names of the kernel's tracepoints.
    ///
    /// Each has a typedef of its prototype, `btf_trace_NAME`:
    /// <https://github.com/torvalds/linux/blob/v6.18/include/trace/bpf_probe.h>
    pub fn tracepoints(&self) -> impl Iterator<Item = &str> {
        self.indexed()
            .filter(|ty| ty.kind == kind::TYPEDEF)
            .filter_map(|ty| self.name(ty.name)?.strip_prefix("btf_trace_"))
    }

    /// Position of the first argument of a type in a tracepoint's prototype, as a raw tracepoint
    /// program counts them. The prototypes carry no names, so the type has to tell.
    #[must_use]
    pub fn argument(&self, tracepoint: &str, wanted: Argument<'_>) -> Option<u32> {
        self.arguments(tracepoint)?
            .zip(0..)
            .find(|&(id, _)| self.is_argument(id, wanted))
            .map(|(_, at)| at)
    }

    /// Type ids of a tracepoint's arguments. The first parameter of the prototype is the
    /// tracepoint's own data, which a program does not see.
    fn arguments(&self, tracepoint: &str) -> Option<impl Iterator<Item = u32>> {
        let typedef = self
            .named(&format!("btf_trace_{tracepoint}"))
            .find(|ty| ty.kind == kind::TYPEDEF)?;
        let pointer = self
            .bare(typedef.target)
            .filter(|ty| ty.kind == kind::PTR)?;
        let proto = self
            .bare(pointer.target)
            .filter(|ty| ty.kind == kind::FUNC_PROTO)?;
        Some((1..proto.count).map_while(move |nth| u32_at(&self.bytes, proto.data + nth * 8 + 4)))
    }

    fn is_argument(&self, id: u32, wanted: Argument<'_>) -> bool {
        let Some(ty) = self.bare(id) else {
            return false;
        };
        let pointee = (ty.kind == kind::PTR)
            .then(|| self.bare_id(ty.target))
            .flatten();
        match wanted {
            Argument::Enum(name) => ty.is_enum() && self.is_name(ty.name, name),
            Argument::Int => ty.kind == kind::INT,
            Argument::VoidPointer => pointee == Some(0),
            Argument::Struct(name) => pointee.and_then(|id| self.get(id)).is_some_and(|ty| {
                matches!(ty.kind, kind::STRUCT | kind::FWD) && self.is_name(ty.name, name)
            }),
        }
    }

    /// Bit offset of the member at `path`.
    fn walk(&self, mut outer: Type, path: &str) -> Option<u64> {
        let mut fuel = MEMBERS_MAX;
        let mut bits = 0;
        let mut parts = path.split('.').peekable();
        while let Some(part) = parts.next() {
            let (offset, id) = self.member(outer, part, DEPTH_MAX, &mut fuel)?;
            bits += offset;
            if parts.peek().is_some() {
                outer = self.bare(id).filter(Type::is_composite)?;
            }
        }
        Some(bits)
    }

    /// Bit offset and type of a member of `outer` or of the anonymous structs and unions in it.
    fn member(&self, outer: Type, name: &str, depth: u32, fuel: &mut u32) -> Option<(u64, u32)> {
        let depth = depth.checked_sub(1)?;
        for nth in 0..outer.count {
            *fuel = fuel.checked_sub(1)?;
            let at = outer.data + nth * 12;
            let [member, id, offset] = [0, 4, 8].map(|field| u32_at(&self.bytes, at + field));
            let (member, id, offset) = (member?, id?, offset?);
            // Where the struct has bit fields, their width shares the word with the offset.
            let (offset, width) = if outer.flag {
                (offset & 0x00ff_ffff, offset >> 24)
            } else {
                (offset, 0)
            };
            if self.is_name(member, name) {
                return (width == 0).then_some((offset.into(), id));
            }
            if self.is_name(member, "")
                && let Some(inner) = self.bare(id).filter(Type::is_composite)
                && let Some((below, id)) = self.member(inner, name, depth, fuel)
            {
                return Some((u64::from(offset) + below, id));
            }
        }
        None
    }

    /// Offset of the name and value of each enumerator.
    fn enumerators(&self, ty: Type) -> impl Iterator<Item = (u32, u64)> {
        let width = if ty.kind == kind::ENUM64 { 12 } else { 8 };
        (0..ty.count).map_while(move |nth| {
            let at = ty.data + nth * width;
            let low = u32_at(&self.bytes, at + 4)?;
            let high = match ty.kind {
                kind::ENUM64 => u32_at(&self.bytes, at + 8)?,
                _ if ty.flag && low >> 31 == 1 => u32::MAX,
                _ => 0,
            };
            Some((
                u32_at(&self.bytes, at)?,
                u64::from(high) << 32 | u64::from(low),
            ))
        })
    }

    fn named(&self, name: &str) -> impl Iterator<Item = Type> {
        self.indexed().filter(move |ty| self.is_name(ty.name, name))
    }

    fn indexed(&self) -> impl Iterator<Item = Type> {
        self.index.iter().filter_map(|&id| self.get(id))
    }

    fn get(&self, id: u32) -> Option<Type> {
        let at = *self.types.get(id.checked_sub(1)? as usize)?;
        Type::read(&self.bytes, at as usize)
    }

    /// The type without typedefs and qualifiers; `None` for `void`.
    fn bare(&self, id: u32) -> Option<Type> {
        self.get(self.bare_id(id)?)
    }

    /// Its id; 0 for `void`, `None` when they go in a circle.
    fn bare_id(&self, id: u32) -> Option<u32> {
        let wrapped = |id: &u32| self.get(*id).filter(Type::is_modifier).map(|ty| ty.target);
        iter::successors(Some(id), wrapped)
            .take(DEPTH_MAX as usize)
            .find(|&id| self.get(id).is_none_or(|ty| !ty.is_modifier()))
    }

    fn name(&self, offset: u32) -> Option<&str> {
        let rest = self.bytes[self.strings.clone()].get(offset as usize..)?;
        let rest = &rest[..rest.len().min(NAME_MAX)];
        std::str::from_utf8(&rest[..rest.iter().position(|&byte| byte == 0)?]).ok()
    }

    fn is_name(&self, offset: u32, name: &str) -> bool {
        self.bytes[self.strings.clone()]
            .get(offset as usize..)
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// The kinds of type.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/btf.h>
mod kind {
    pub(super) const INT: u8 = 1;
    pub(super) const PTR: u8 = 2;
    pub(super) const ARRAY: u8 = 3;
    pub(super) const STRUCT: u8 = 4;
    pub(super) const UNION: u8 = 5;
    pub(super) const ENUM: u8 = 6;
    pub(super) const FWD: u8 = 7;
    pub(super) const TYPEDEF: u8 = 8;
    pub(super) const VOLATILE: u8 = 9;
    pub(super) const CONST: u8 = 10;
    pub(super) const RESTRICT: u8 = 11;
    pub(super) const FUNC: u8 = 12;
    pub(super) const FUNC_PROTO: u8 = 13;
    pub(super) const VAR: u8 = 14;
    pub(super) const DATASEC: u8 = 15;
    pub(super) const FLOAT: u8 = 16;
    pub(super) const DECL_TAG: u8 = 17;
    pub(super) const TYPE_TAG: u8 = 18;
    pub(super) const ENUM64: u8 = 19;
}

/// One type's record.
#[derive(Clone, Copy)]
struct Type {
    /// Offset of its name.
    name: u32,
    kind: u8,
    /// Members, enumerators or parameters.
    count: usize,
    /// Bit fields in a struct; signed values in an enum.
    flag: bool,
    /// The type it is made of, or its size.
    target: u32,
    /// Where its own data begins.
    data: usize,
}

impl Type {
    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let info = u32_at(bytes, at + 4)?;
        Some(Self {
            name: u32_at(bytes, at)?,
            kind: (info >> 24 & 0x1f) as u8,
            count: (info & 0xffff) as usize,
            flag: info >> 31 == 1,
            target: u32_at(bytes, at + 8)?,
            data: at + TYPE_HEADER,
        })
    }

    /// Bytes of its own data; `None` for a kind not known.
    fn data_size(&self) -> Option<usize> {
        Some(match self.kind {
            kind::PTR | kind::FWD | kind::FUNC | kind::FLOAT => 0,
            _ if self.is_modifier() => 0,
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::ENUM | kind::FUNC_PROTO => self.count * 8,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => self.count * 12,
            _ => return None,
        })
    }

    fn is_composite(&self) -> bool {
        matches!(self.kind, kind::STRUCT | kind::UNION)
    }

    fn is_enum(&self) -> bool {
        matches!(self.kind, kind::ENUM | kind::ENUM64)
    }

    fn is_modifier(&self) -> bool {
        matches!(
            self.kind,
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG
        )
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|word| u32::from_ne_bytes(*word))
}

#[cfg(test)]
pub(super) mod writer;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::writer::Writer;
    use super::*;

    fn parse(writer: &Writer) -> Btf {
        Btf::parse(writer.finish()).expect("the writer writes BTF")
    }

    /// A `sock` with what real ones have: anonymous members, a typedef between, a bit field, and a
    /// tracepoint about it.
    fn sample() -> Writer {
        let mut w = Writer::new();
        let int = w.int("int");
        let addresses = w.strukt("", &[("skc_daddr", int, 0), ("skc_rcv_saddr", int, 32)]);
        let either = w.union("", &[("skc_addrpair", int, 0), ("", addresses, 0)]);
        let common = w.bit_fields(
            "sock_common",
            &[
                ("skc_family", int, 0),
                ("", either, 64),
                ("skc_reuse", int, 4 << 24 | 128),
            ],
        );
        let common = w.typedef("sock_common_t", common);
        let common = w.constant(common);
        let sock = w.strukt(
            "sock",
            &[
                ("__sk_common", common, 0),
                ("sk_err", int, 256),
                ("odd", int, 257),
            ],
        );
        let reason = w.enumeration(
            "sk_rst_reason",
            &[("SK_RST_REASON_NO_SOCKET", 1), ("SK_RST_REASON_LESS", -1)],
        );
        w.enumeration64("", &[("WIDE", 1 << 40 | 7)]);
        let constant = w.constant(sock);
        let pointer = w.pointer(constant);
        let void = w.constant(0);
        let location = w.pointer(void);
        w.tracepoint("tcp_send_reset", &[pointer, location, reason]);
        w
    }

    #[test]
    fn members_are_found_through_anonymous_types_and_typedefs() {
        let btf = parse(&sample());
        assert_eq!(btf.offset("sock", "sk_err"), Some(32));
        assert_eq!(btf.offset("sock_common", "skc_rcv_saddr"), Some(12));
        assert_eq!(btf.offset("sock", "__sk_common.skc_rcv_saddr"), Some(12));
        assert_eq!(
            btf.offset("sock", "skc_rcv_saddr"),
            None,
            "a named member hides its own"
        );
        assert_eq!(btf.offset("sock", "sk_err.deeper"), None);
        assert_eq!(btf.offset("socket", "sk_err"), None);
        assert_eq!(btf.offset("int", "sk_err"), None);
    }

    #[test]
    fn a_bit_field_has_no_byte_offset() {
        let btf = parse(&sample());
        assert_eq!(btf.offset("sock_common", "skc_reuse"), None);
        assert_eq!(btf.offset("sock", "odd"), None);
    }

    #[test]
    fn a_path_may_have_alternatives_and_bytes_to_add() {
        let btf = parse(&sample());
        assert_eq!(btf.offset("sock", "gone|sk_err+8"), Some(40));
        assert_eq!(btf.offset("sock", "sk_err|__sk_common"), Some(32));
        assert_eq!(btf.offset("sock", "gone|gone+8"), None);
        assert_eq!(btf.offset("sock", "sk_err+x"), None);
    }

    #[test]
    fn of_two_structs_of_one_name_the_one_with_the_member_is_taken() {
        let mut w = Writer::new();
        let int = w.int("int");
        w.strukt("socket", &[("other", int, 0)]);
        w.strukt("socket", &[("file", int, 128)]);
        assert_eq!(parse(&w).offset("socket", "file"), Some(16));
    }

    #[test]
    fn enumerators_are_found_in_any_enum() {
        let btf = parse(&sample());
        assert_eq!(btf.enum_value("SK_RST_REASON_NO_SOCKET"), Some(1));
        assert_eq!(btf.enum_value("WIDE"), Some(1 << 40 | 7));
        assert_eq!(btf.enum_value("SK_RST_REASON_LESS"), Some(u64::MAX));
        assert_eq!(btf.enum_value("SK_RST_REASON"), None);
        let variants: Vec<_> = btf
            .enum_variants("sk_rst_reason")
            .map(|(_, name)| name)
            .collect();
        assert_eq!(variants, ["SK_RST_REASON_NO_SOCKET", "SK_RST_REASON_LESS"]);
        assert_eq!(btf.enum_variants("sock").count(), 0);
    }

    #[test]
    fn arguments_are_counted_without_the_tracepoints_own_data() {
        let btf = parse(&sample());
        let argument = |ty| btf.argument("tcp_send_reset", ty);
        assert_eq!(argument(Argument::Struct("sock")), Some(0));
        assert_eq!(argument(Argument::VoidPointer), Some(1));
        assert_eq!(argument(Argument::Enum("sk_rst_reason")), Some(2));
        assert_eq!(argument(Argument::Int), None);
        assert_eq!(argument(Argument::Struct("sk_buff")), None);
        assert_eq!(
            btf.argument("tcp_receive_reset", Argument::VoidPointer),
            None
        );
        assert_eq!(btf.tracepoints().collect::<Vec<_>>(), ["tcp_send_reset"]);
    }

    #[test]
    fn a_struct_that_contains_itself_ends_the_search() {
        let mut w = Writer::new();
        let id = w.next();
        w.strukt("sock", &vec![("", id, 0); 1000]);
        assert_eq!(parse(&w).offset("sock", "sk_err"), None);
    }

    #[test]
    fn typedefs_in_a_circle_end_the_search() {
        let mut w = Writer::new();
        let first = w.next();
        w.typedef("a", first + 1);
        w.typedef("btf_trace_a", first);
        w.strukt("sock", &[("sk_err", first, 0)]);
        let btf = parse(&w);
        assert_eq!(btf.offset("sock", "sk_err.deeper"), None);
        assert_eq!(btf.argument("a", Argument::Int), None);
    }

    #[test]
    fn a_path_longer_than_the_address_space_does_not_wrap() {
        let mut w = Writer::new();
        let id = w.next();
        w.strukt("sock", &[("next", id, u32::MAX - 7)]);
        let btf = parse(&w);
        assert_eq!(btf.offset("sock", "next"), Some(0x1fff_ffff));
        assert_eq!(btf.offset("sock", &["next"; 9].join(".")), None);
        assert_eq!(btf.offset("sock", "next+4294967295"), None);
    }

    #[test]
    fn what_is_not_btf_is_refused_with_the_place() {
        let refused = |bytes: &[u8]| match Btf::parse(bytes.to_vec()) {
            Err(error) => error.to_string(),
            Ok(_) => "accepted".to_owned(),
        };
        let whole = sample().finish();
        assert!(refused(b"").contains("magic number"));
        assert!(refused(b"\x7fELF").contains("magic number"));
        assert!(refused(&whole[..10]).contains("byte 8: the header is cut short"));
        assert!(refused(&whole[..whole.len() - 1]).contains("a section is cut short"));

        // The first type is the `int`: 31 is a kind nobody has given out.
        let mut unknown = whole.clone();
        unknown[24 + 4..][..4].copy_from_slice(&(31_u32 << 24).to_ne_bytes());
        assert!(refused(&unknown).contains("kind 31 at byte 24"));

        // The last record claims more members than there are bytes.
        let mut long = Writer::new();
        long.strukt("sock", &[]);
        let mut long = long.finish();
        long[24 + 4..][..4].copy_from_slice(&(4_u32 << 24 | 0xffff).to_ne_bytes());
        assert!(refused(&long).contains("byte 24: a type is cut short"));
    }

    proptest! {
        /// Whatever the bytes: no panic, no endless search, and nothing found that is not there.
        #[test]
        fn damaged_bytes_never_harm(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            length in any::<prop::sample::Index>(),
            cut in any::<bool>(),
        ) {
            let mut bytes = sample().finish();
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if cut {
                bytes.truncate(length.index(bytes.len()));
            }
            let size = bytes.len();
            let Ok(btf) = Btf::parse(bytes) else { return Ok(()) };
            prop_assert!(btf.types.len() * TYPE_HEADER <= size);
            prop_assert!(btf.enum_variants("sk_rst_reason").count() <= size);
            prop_assert!(btf.tracepoints().all(|name| name.len() < NAME_MAX));
            prop_assert!(btf.argument("tcp_send_reset", Argument::VoidPointer).is_none_or(|at| at < 0xffff));
            for path in ["sk_err", "__sk_common.skc_rcv_saddr", "gone|sk_err+8"] {
                prop_assert!(btf.offset("sock", path).is_none_or(|at| at <= 2 * (u32::MAX / 8) + 8));
            }
            prop_assert_eq!(btf.enum_value("in no enum"), None);
        }
    }
}
