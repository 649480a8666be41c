//! Protocol buffers, as far as OTLP needs them written. By hand, because types made from a schema own all
//! they hold, and a record asks for no memory on its way.
//! <https://protobuf.dev/programming-guides/encoding/>

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH: u32 = 2;

/// The longest varint: 64 bits, seven to a byte.
const LONGEST: usize = 10;

/// A field of an integer, a truth or an enumeration.
pub(crate) fn number(to: &mut Vec<u8>, field: u32, value: u64) {
    key(to, field, VARINT);
    integer(to, value);
}

/// A field of eight bytes: `fixed64`, `sfixed64` or the bits of a `double`.
pub(crate) fn fixed64(to: &mut Vec<u8>, field: u32, value: u64) {
    key(to, field, FIXED64);
    to.extend_from_slice(&value.to_le_bytes());
}

/// A field of a string, or of a message already written.
pub(crate) fn bytes(to: &mut Vec<u8>, field: u32, value: &[u8]) {
    key(to, field, LENGTH);
    integer(to, value.len() as u64);
    to.extend_from_slice(value);
}

/// A field of what `write` adds: a message, a string or numbers packed.
pub(crate) fn nested(to: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    key(to, field, LENGTH);
    let at = to.len();
    // One byte is enough for the length of most. What is longer is moved.
    to.push(0);
    write(to);
    let end = to.len();
    let (bytes, length) = varint((end - at - 1) as u64);
    to.resize(end + length - 1, 0);
    to.copy_within(at + 1..end, at + length);
    to[at..at + length].copy_from_slice(&bytes[..length]);
}

/// An integer, in so many bytes.
pub(super) fn varint(mut value: u64) -> ([u8; LONGEST], usize) {
    let mut bytes = [0; LONGEST];
    let mut length = 0;
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        bytes[length] = if value == 0 { low } else { low | 0x80 };
        length += 1;
        if value == 0 {
            return (bytes, length);
        }
    }
}

fn key(to: &mut Vec<u8>, field: u32, kind: u32) {
    integer(to, u64::from(field << 3 | kind));
}

fn integer(to: &mut Vec<u8>, value: u64) {
    let (bytes, length) = varint(value);
    to.extend_from_slice(&bytes[..length]);
}

/// Takes an integer off the front; `None` where there is none.
pub(super) fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for nth in 0..LONGEST {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << (7 * nth);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// A message of all kinds of fields, as the library for them has it.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Oracle {
        #[prost(uint64, tag = "1")]
        number: u64,
        #[prost(string, tag = "2")]
        text: String,
        #[prost(message, optional, boxed, tag = "20")]
        inner: Option<Box<Oracle>>,
        #[prost(fixed64, tag = "21")]
        fixed: u64,
    }

    fn write(to: &mut Vec<u8>, oracle: &Oracle) {
        if oracle.number != 0 {
            number(to, 1, oracle.number);
        }
        if !oracle.text.is_empty() {
            bytes(to, 2, oracle.text.as_bytes());
        }
        if let Some(inner) = &oracle.inner {
            nested(to, 20, |to| write(to, inner));
        }
        if oracle.fixed != 0 {
            fixed64(to, 21, oracle.fixed);
        }
    }

    #[test]
    fn messages_of_every_length_are_as_the_library_writes_them() {
        for length in [0, 1, 100, 126, 127, 128, 200, 16_383, 16_384, 2_100_000] {
            for number in [0, 1, 127, 128, u64::MAX] {
                let inner = Oracle {
                    number,
                    text: "x".repeat(length),
                    inner: None,
                    fixed: number,
                };
                let oracle = Oracle {
                    inner: Some(Box::new(inner.clone())),
                    ..inner
                };
                let mut ours = Vec::new();
                write(&mut ours, &oracle);
                assert!(ours == oracle.encode_to_vec(), "{length} {number}");
            }
        }
    }

    #[test]
    fn an_integer_is_taken_as_it_was_written() {
        for value in [0, 127, 128, 300, u64::MAX] {
            let (bytes, length) = varint(value);
            let written = [&bytes[..length], &[7]].concat();
            let mut rest = &written[..];
            assert_eq!(take_varint(&mut rest), Some(value));
            assert_eq!(rest, [7]);
        }
        for wrong in [&[][..], &[0x80], &[0x80; 11]] {
            assert_eq!(take_varint(&mut &*wrong), None);
        }
    }
}
