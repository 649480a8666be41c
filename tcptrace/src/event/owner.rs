//! Whose socket it is, and how sure we are.

use std::fmt;
use std::sync::Arc;

/// A process as it was when the event happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Process id (thread group).
    pub pid: u32,
    /// Thread that acted; `None` when no thread did.
    pub tid: Option<u32>,
    /// Name of the thread group's leader.
    pub comm: Comm,
    /// Real user id.
    pub uid: u32,
    /// Path of its executable, when `/proc` still had it.
    pub exe: Option<Arc<str>>,
    /// Id of its cgroup v2.
    pub cgroup: Option<u64>,
    /// The container it runs in; `None` for a process of the host, and when `/proc` did not have it
    /// any more.
    pub container: Option<Arc<Container>>,
    /// How it is ending, when the event was part of its exit.
    pub exit: Option<Exit>,
}

impl Process {
    /// The basename of its executable, which the program cannot choose; its command name where the
    /// path is not known.
    #[must_use]
    pub fn name(&self) -> impl fmt::Display {
        fmt::from_fn(|f| match self.exe.as_deref() {
            Some(path) => f.write_str(path.rsplit('/').next().unwrap_or(path)),
            None => fmt::Display::fmt(&self.comm, f),
        })
    }
}

impl fmt::Display for Process {
    /// `nginx[1234]`, by the command name, which is what `ps`, `ss` and `top` show: the executable of
    /// `redis-server` is Debian's `redis-check-rdb`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.comm, self.pid)
    }
}

/// The container of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id, as the runtime's own tools take it: 64 hexadecimal digits.
    pub id: String,
    /// The uid of its Kubernetes pod.
    pub pod: Option<String>,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `exit(code)`
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// Whose socket it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Owner {
    /// How sure.
    pub confidence: Confidence,
    /// The process; `None` exactly when the confidence is [`Confidence::Unknown`].
    pub process: Option<Process>,
    /// All processes that hold the socket, when there are several.
    pub holders: Arc<[u32]>,
    /// The process that created the socket, when it is not the owner.
    pub creator: Option<u32>,
    /// Milliseconds after the event at which `/proc` confirmed or corrected the owner.
    pub checked_after_ms: Option<u64>,
}

/// How sure an owner is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Confidence {
    /// Nobody is known to own it.
    #[default]
    Unknown,
    /// A queued connection: the listener's owner.
    Inherited,
    /// Found at the start.
    Seeded,
    /// Several processes hold it.
    Shared,
    /// Seen using it.
    Exact,
}

impl Confidence {
    /// The word in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Inherited => "inherited",
            Self::Seeded => "seeded",
            Self::Shared => "shared",
            Self::Exact => "exact",
        }
    }
}

/// A command name: at most 15 bytes, chosen by the program, in no particular encoding.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Comm([u8; 16]);

impl Comm {
    /// From the kernel's zero-padded array.
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The name of a text that [`Display`](fmt::Display) wrote, as far as that can be told.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        let mut bytes = [0; 16];
        let mut left = &mut bytes[..];
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            let mut encoded = [0; 4];
            let (piece, used): (&[u8], _) = match escape(rest) {
                Some((Escaped::Control(it), used)) => {
                    (it.encode_utf8(&mut encoded).as_bytes(), used)
                }
                Some((Escaped::Byte(it), used)) => {
                    encoded[0] = it;
                    (&encoded[..1], used)
                }
                None => {
                    let used = character.len_utf8();
                    (character.encode_utf8(&mut encoded).as_bytes(), used)
                }
            };
            if piece.len() > left.len() {
                break;
            }
            let (place, after) = left.split_at_mut(piece.len());
            place.copy_from_slice(piece);
            left = after;
            rest = &rest[used..];
        }
        Self(bytes)
    }

    /// The kernel's array.
    #[must_use]
    pub fn as_array(&self) -> &[u8; 16] {
        &self.0
    }

    /// The bytes before the first zero.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(16);
        &self.0[..end]
    }
}

/// What a command name has that is not printed as it is.
enum Escaped {
    Control(char),
    /// One that is no UTF-8.
    Byte(u8),
}

/// What the text escapes at its begin, and in how many bytes. What no [`Comm`] would write stands for
/// itself.
fn escape(text: &str) -> Option<(Escaped, usize)> {
    let escaped = text.strip_prefix('\\')?;
    let control = |it: char| it.is_control().then_some(Escaped::Control(it));
    match escaped.bytes().next()? {
        b't' => Some((control('\t')?, 2)),
        b'r' => Some((control('\r')?, 2)),
        b'n' => Some((control('\n')?, 2)),
        b'u' => {
            let (number, _) = escaped.strip_prefix("u{")?.split_once('}')?;
            let character = char::from_u32(u32::from_str_radix(number, 16).ok()?)?;
            Some((control(character)?, number.len() + 4))
        }
        b'x' => {
            let byte = u8::from_str_radix(escaped.get(1..3)?, 16).ok()?;
            (byte >= 0x80).then_some((Escaped::Byte(byte), 4))
        }
        _ => None,
    }
}

impl fmt::Display for Comm {
    /// What is not printable text is escaped, so that a hostile name cannot move a terminal's
    /// cursor.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.as_bytes();
        if bytes.iter().all(|byte| (b' '..=b'~').contains(byte)) {
            return f.write_str(str::from_utf8(bytes).unwrap_or_default());
        }
        for chunk in bytes.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() {
                    write!(f, "{}", character.escape_default())?;
                } else {
                    write!(f, "{character}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl From<&str> for Comm {
    /// The first 15 bytes.
    fn from(name: &str) -> Self {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(name.bytes().take(15)) {
            *to = from;
        }
        Self(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_cannot_move_the_cursor() {
        let comm = Comm::new(*b"a\x1b[2Jb\xffc\0\0\0\0\0\0\0\0");
        assert_eq!(comm.to_string(), "a\\u{1b}[2Jb\\xffc");
    }

    #[test]
    fn a_name_is_known_again_by_its_text() {
        for bytes in [
            *b"nginx\0\0\0\0\0\0\0\0\0\0\0",
            *b"a\x1b[2Jb\xffc\n\t\0\0\0\0\0\0",
            *b"kworker/u8:2+ev\0",
            *b"\xc3\xa9t\xc3\xa9\xc2\x85\0\0\0\0\0\0\0\0\0",
        ] {
            let comm = Comm::new(bytes);
            assert_eq!(Comm::from_text(&comm.to_string()), comm);
        }
        // Nobody's escapes stand for themselves, and what is too long is cut.
        for text in ["\\x41", "\\u{41}", "\\x", "\\", "C:\\nul\u{e9}"] {
            assert_eq!(Comm::from_text(text).to_string(), text);
        }
        let long = Comm::from_text("0123456789abcdefg");
        assert_eq!(long.as_bytes(), b"0123456789abcdef");
    }
}
