//! Bytes of a terminal to keys. crossterm's own reader loses keys that come beside a change of size, and
//! reads the end of a terminal for ever.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// Turns bytes into keys, also where a sequence comes in pieces.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// The begin of what has not come whole.
    pending: Vec<u8>,
}

/// The longest sequence that is one; longer ones are thrown away.
const LONGEST: usize = 16;
const ESCAPE: u8 = 0x1b;

impl Keys {
    /// More may follow that belongs to what came last.
    pub(super) fn waits(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes what was read.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<KeyEvent> {
        self.pending.extend_from_slice(bytes);
        let mut keys = Vec::new();
        let mut taken = 0;
        while let Some((key, used)) = first(&self.pending[taken..]) {
            keys.extend(key);
            taken += used;
        }
        self.pending.drain(..taken);
        keys
    }

    /// Nothing followed: an escape alone is the key of that name.
    pub(super) fn give_up(&mut self) -> Option<KeyEvent> {
        let escaped = self.pending == [ESCAPE];
        self.pending.clear();
        escaped.then(|| KeyCode::Esc.into())
    }
}

/// The first key and its bytes; `None` when it has not come whole. No key: nobody asks for it.
fn first(bytes: &[u8]) -> Option<(Option<KeyEvent>, usize)> {
    let control = |letter: char| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
    let key: KeyEvent = match *bytes.first()? {
        ESCAPE => return sequence(bytes),
        b'\r' | b'\n' => KeyCode::Enter.into(),
        b'\t' => KeyCode::Tab.into(),
        0x08 | 0x7f => KeyCode::Backspace.into(),
        byte @ 1..=26 => control(char::from(byte - 1 + b'a')),
        byte if byte < b' ' => return Some((None, 1)),
        _ => return character(bytes),
    };
    Some((Some(key), 1))
}

/// <https://invisible-island.net/xterm/ctlseqs/ctlseqs.html>: `ESC [` or `ESC O`, numbers, a final byte.
fn sequence(bytes: &[u8]) -> Option<(Option<KeyEvent>, usize)> {
    match bytes.get(1)? {
        b'[' | b'O' => {}
        // Two keys.
        _ => return Some((Some(KeyCode::Esc.into()), 1)),
    }
    let Some(end) = bytes
        .iter()
        .skip(2)
        .position(|byte| (b'@'..=b'~').contains(byte))
    else {
        return (bytes.len() > LONGEST).then_some((None, bytes.len()));
    };
    let number = bytes[2..2 + end].split(|&byte| byte == b';').next();
    let code = match (bytes[2 + end], number) {
        (b'A', _) => Some(KeyCode::Up),
        (b'B', _) => Some(KeyCode::Down),
        (b'C', _) => Some(KeyCode::Right),
        (b'D', _) => Some(KeyCode::Left),
        (b'H', _) | (b'~', Some(b"1" | b"7")) => Some(KeyCode::Home),
        (b'F', _) | (b'~', Some(b"4" | b"8")) => Some(KeyCode::End),
        (b'Z', _) => Some(KeyCode::BackTab),
        (b'P', _) | (b'~', Some(b"11")) => Some(KeyCode::F(1)),
        (b'~', Some(b"5")) => Some(KeyCode::PageUp),
        (b'~', Some(b"6")) => Some(KeyCode::PageDown),
        _ => None,
    };
    Some((code.map(KeyEvent::from), 2 + end + 1))
}

fn character(bytes: &[u8]) -> Option<(Option<KeyEvent>, usize)> {
    let chunk = bytes.utf8_chunks().next()?;
    match chunk.valid().chars().next() {
        Some(character) => Some((Some(KeyCode::Char(character).into()), character.len_utf8())),
        // The rest of it may follow.
        None if bytes.len() < 4 && chunk.invalid().len() == bytes.len() => None,
        None => Some((None, chunk.invalid().len().max(1))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn codes(bytes: &[u8]) -> Vec<KeyCode> {
        let keys = Keys::default().take(bytes);
        keys.into_iter().map(|key| key.code).collect()
    }

    #[test]
    fn terminals_keys_are_known() {
        for (bytes, code) in [
            (&b"\x1b[A"[..], KeyCode::Up),
            (b"\x1bOB", KeyCode::Down),
            (b"\x1b[1;5C", KeyCode::Right),
            (b"\x1b[5~", KeyCode::PageUp),
            (b"\x1b[6;2~", KeyCode::PageDown),
            (b"\x1b[1~", KeyCode::Home),
            (b"\x1b[F", KeyCode::End),
            (b"\x1b[Z", KeyCode::BackTab),
            (b"\x1bOP", KeyCode::F(1)),
            (b"\r", KeyCode::Enter),
            (b"\x7f", KeyCode::Backspace),
            ("é".as_bytes(), KeyCode::Char('é')),
        ] {
            assert_eq!(codes(bytes), [code], "{bytes:?}");
        }
        let keys = Keys::default().take(b"\x03q");
        assert_eq!(
            keys[0],
            KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)
        );
        assert_eq!(keys[1], KeyEvent::from(KeyCode::Char('q')));
    }

    #[test]
    fn what_comes_in_pieces_is_one_key_and_an_escape_alone_is_one_too() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"\x1b"), []);
        assert!(keys.waits());
        assert_eq!(keys.take(b"["), []);
        assert_eq!(
            keys.take(b"Bj"),
            [KeyCode::Down.into(), KeyCode::Char('j').into()]
        );
        assert!(!keys.waits());
        keys.take(b"\x1b");
        assert_eq!(keys.give_up(), Some(KeyCode::Esc.into()));
        assert_eq!(keys.take(b"\xc3"), []);
        assert_eq!(keys.take(b"\xa9"), [KeyCode::Char('é').into()]);
        assert_eq!(codes(b"\x1bj"), [KeyCode::Esc, KeyCode::Char('j')]);
    }

    #[test]
    fn what_nobody_asks_for_is_thrown_away() {
        assert_eq!(
            codes(b"\x1b[200~q\x1b[20~\x00\xff\xffs"),
            [KeyCode::Char('q'), KeyCode::Char('s')]
        );
    }

    proptest! {
        #[test]
        fn nothing_is_kept_for_ever(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut keys = Keys::default();
            for piece in bytes.chunks(3) {
                keys.take(piece);
                prop_assert!(keys.pending.len() <= LONGEST + 3);
            }
            keys.give_up();
            prop_assert_eq!(keys.take(b"q"), [KeyEvent::from(KeyCode::Char('q'))]);
        }
    }
}
