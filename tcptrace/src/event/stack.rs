//! The stack of whoever acted: from the kernel's function that did it out to the program's first.
//!
//! It has two texts: one line for each frame, which a replay reads back, and one line in all, folded as
//! flame graphs take it. Names come from binaries that anybody may have written, so what the texts are
//! taken apart by never is in a name.

use std::fmt::{self, Write as _};

/// Frames, innermost first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    frames: Vec<Frame>,
    /// Why the program's frames are missing, or end early.
    pub missing: Option<String>,
}

/// One call on a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    name: String,
    place: Option<String>,
}

/// What marks a function of the kernel's: flame graphs colour by it.
/// <https://github.com/brendangregg/FlameGraph/blob/master/stackcollapse-perf.pl> (`--kernel`)
const KERNEL: &str = "_[k]";
/// Between a name and its place.
const AT: &str = " at ";
/// What stands for frames that were left out: the outermost.
const MORE: &str = "...";

impl Frame {
    /// Bytes of a name that are kept.
    const NAME: usize = 160;
    /// Bytes of a place that are kept, of its end.
    const PLACE: usize = 120;

    /// A function of the program, or where it was as far as that is known, and its file and line.
    #[must_use]
    pub fn of_program(name: &str, place: Option<(&str, u32)>) -> Self {
        let mut name = clean(&name[..name.floor_char_boundary(Self::NAME)]);
        while let Some(bare) = name.strip_suffix(KERNEL) {
            name = clean(bare);
        }
        let place = place.map(|(file, line)| {
            let from = file.ceil_char_boundary(file.len().saturating_sub(Self::PLACE));
            format!("{}:{line}", clean(&file[from..]))
        });
        Self {
            name: if name.is_empty() { "?".into() } else { name },
            place,
        }
    }

    /// A function of the kernel.
    #[must_use]
    pub fn of_kernel(name: &str) -> Self {
        let Self { mut name, .. } = Self::of_program(name, None);
        name.push_str(KERNEL);
        Self { name, place: None }
    }

    /// It is the kernel's.
    #[must_use]
    pub fn is_kernel(&self) -> bool {
        self.name.ends_with(KERNEL)
    }

    /// The function, without the mark of the kernel.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.strip_suffix(KERNEL).unwrap_or(&self.name)
    }

    /// `file:line`
    #[must_use]
    pub fn place(&self) -> Option<&str> {
        self.place.as_deref()
    }

    fn parse(line: &str) -> Self {
        let (name, place) = match line.rsplit_once(AT) {
            Some((name, place)) => (name, Some(place)),
            None => (line, None),
        };
        if let (Some(name), None) = (name.strip_suffix(KERNEL), place) {
            return Self::of_kernel(name);
        }
        let place = place.and_then(|it| it.rsplit_once(':'));
        let place = place.and_then(|(file, line)| Some((file, line.parse().ok()?)));
        Self::of_program(name, place)
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.place {
            Some(place) => write!(f, "{AT}{place}"),
            None => Ok(()),
        }
    }
}

impl Stack {
    /// Frames that are kept, and bytes of either text: both fit into one line of a record.
    const FRAMES: usize = 64;
    const BYTES: usize = 2_400;
    /// Frames shown to a person.
    const LINES: usize = 24;

    /// Of these frames, innermost first, as many as are kept.
    #[must_use]
    pub fn new(frames: impl IntoIterator<Item = Frame>, missing: Option<String>) -> Self {
        let mut stack = Self {
            frames: Vec::new(),
            missing,
        };
        let mut left = Self::BYTES;
        for frame in frames {
            let bytes = frame.name.len() + frame.place.as_ref().map_or(0, |it| AT.len() + it.len());
            if stack.frames.len() == Self::FRAMES || left <= bytes + MORE.len() {
                stack.frames.push(Frame::of_program(MORE, None));
                break;
            }
            left -= bytes + 1;
            stack.frames.push(frame);
        }
        stack
    }

    /// Reads back what [`trace`](Self::trace) wrote.
    #[must_use]
    pub fn parse(trace: &str, missing: Option<String>) -> Self {
        Self::new(trace.lines().map(Frame::parse), missing)
    }

    /// Frames of the kernel, innermost first.
    pub fn kernel(&self) -> impl Iterator<Item = &Frame> {
        self.frames.iter().filter(|frame| frame.is_kernel())
    }

    /// Frames of the program, innermost first.
    pub fn program(&self) -> impl Iterator<Item = &Frame> {
        self.frames.iter().filter(|frame| !frame.is_kernel())
    }

    /// The program's part for a person, a line for each frame and one for what is missing.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.program().map(ToString::to_string).collect();
        if lines.len() > Self::LINES {
            let more = lines.len() - Self::LINES;
            lines.truncate(Self::LINES);
            lines.push(format!("... and {more} more"));
        }
        lines.extend(self.missing.as_ref().map(|why| format!("? {why}")));
        lines
    }

    /// One line for each frame, innermost first: `serve at server.c:42`.
    #[must_use]
    pub fn trace(&self) -> impl fmt::Display {
        fmt::from_fn(|f| joined(f, '\n', self.frames.iter(), |f, frame| write!(f, "{frame}")))
    }

    /// The names in one line, outermost first: `main;serve;close`.
    #[must_use]
    pub fn folded(&self) -> impl fmt::Display {
        fmt::from_fn(|f| {
            joined(f, ';', self.frames.iter().rev(), |f, frame| {
                f.write_str(&frame.name)
            })
        })
    }
}

fn joined<T>(
    f: &mut fmt::Formatter<'_>,
    by: char,
    items: impl Iterator<Item = T>,
    mut each: impl FnMut(&mut fmt::Formatter<'_>, T) -> fmt::Result,
) -> fmt::Result {
    for (nth, item) in items.enumerate() {
        if nth > 0 {
            f.write_char(by)?;
        }
        each(f, item)?;
    }
    Ok(())
}

/// Without what the texts are taken apart by.
fn clean(text: &str) -> String {
    let clean = text.trim().chars().map(|character| match character {
        ';' => ':',
        _ if character.is_control() || character.is_whitespace() && character != ' ' => '?',
        _ => character,
    });
    let mut clean = clean.collect::<String>().replace(AT, "_at_");
    if clean.starts_with("at ") {
        clean.replace_range(2..3, "_");
    }
    if clean.ends_with(" at") {
        clean.replace_range(clean.len() - 3..clean.len() - 2, "_");
    }
    clean
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn closing() -> Stack {
        Stack::new(
            [
                Frame::of_kernel("tcp_close"),
                Frame::of_program("libc.so.6+0x1234", None),
                Frame::of_program("serve(int)", Some(("/src/server.cc", 42))),
                Frame::of_program("main", Some(("/src/server.cc", 7))),
            ],
            Some("16 KiB were copied".into()),
        )
    }

    #[test]
    fn a_stack_is_told_line_by_line_and_folded_from_the_root() {
        let stack = closing();
        assert_eq!(
            stack.trace().to_string(),
            "tcp_close_[k]\nlibc.so.6+0x1234\nserve(int) at /src/server.cc:42\nmain at /src/server.cc:7"
        );
        assert_eq!(
            stack.folded().to_string(),
            "main;serve(int);libc.so.6+0x1234;tcp_close_[k]"
        );
        assert_eq!(
            stack.kernel().map(Frame::name).collect::<Vec<_>>(),
            ["tcp_close"]
        );
        let places: Vec<_> = stack.program().map(Frame::place).collect();
        assert_eq!(
            places,
            [None, Some("/src/server.cc:42"), Some("/src/server.cc:7")]
        );
    }

    #[test]
    fn a_name_cannot_pass_for_another_frame() {
        let hostile = [
            Frame::of_program("main;init_[k]", None),
            Frame::of_program("a\nb at c:1", Some(("d;e\u{1b}[2J at f", 9))),
            Frame::of_program("close_[k]_[k]", None),
            Frame::of_program("\u{2028}", None),
            Frame::of_program(" ", None),
        ];
        let stack = Stack::new(hostile, None);
        assert_eq!(stack.folded().to_string(), "?;?;close;a?b_at_c:1;main:init",);
        assert_eq!(
            stack.trace().to_string(),
            "main:init\na?b_at_c:1 at d:e?[2J_at_f:9\nclose\n?\n?"
        );
        assert_eq!(stack.kernel().count(), 0);
    }

    #[test]
    fn what_has_no_room_is_left_out_at_the_root() {
        let frames = (0..1_000).map(|nth| Frame::of_program(&format!("f{nth}"), None));
        let stack = Stack::new(frames, None);
        let folded = stack.folded().to_string();
        assert!(
            folded.starts_with("...;f63;") && folded.ends_with(";f0"),
            "{folded}"
        );
        let long = "x".repeat(10_000);
        let frames = (0..64).map(|_| Frame::of_program(&long, Some((&long, 1))));
        let stack = Stack::new(frames, None);
        let trace = stack.trace().to_string();
        assert!((2_000..=2_400).contains(&trace.len()), "{}", trace.len());
        assert!(trace.ends_with("x:1\n..."));
    }

    #[test]
    fn a_person_is_shown_the_program_and_what_is_missing() {
        assert_eq!(
            closing().lines(),
            [
                "libc.so.6+0x1234",
                "serve(int) at /src/server.cc:42",
                "main at /src/server.cc:7",
                "? 16 KiB were copied",
            ]
        );
        let frames = (0..30).map(|nth| Frame::of_program(&format!("f{nth}"), None));
        let lines = Stack::new(frames, None).lines();
        assert_eq!(lines[23..], ["f23", "... and 6 more"]);
    }

    proptest! {
        #[test]
        fn what_was_told_is_read_back(
            frames in proptest::collection::vec((any::<String>(), proptest::option::of((any::<String>(), any::<u32>())), any::<bool>()), 0..80),
            missing: Option<String>,
        ) {
            let frames = frames.iter().map(|(name, place, kernel)| match kernel {
                true => Frame::of_kernel(name),
                false => Frame::of_program(name, place.as_ref().map(|(file, line)| (&**file, *line))),
            });
            let stack = Stack::new(frames, missing);
            let trace = stack.trace().to_string();
            prop_assert!(trace.len() <= Stack::BYTES);
            prop_assert_eq!(&Stack::parse(&trace, stack.missing.clone()), &stack);
            if !stack.frames.is_empty() {
                prop_assert_eq!(stack.folded().to_string().split(';').count(), stack.frames.len());
            }
        }
    }
}
