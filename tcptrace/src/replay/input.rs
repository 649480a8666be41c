//! One recording, line by line, in bounded memory: torn lines, lines too long, files that grow.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Longer lines are none of ours: the record's are at most 8,000 bytes, and who has written them anew may
/// have added spaces.
const LONGEST: usize = 16_000;

/// A recording that is read.
#[derive(Debug)]
pub(super) struct Input {
    path: PathBuf,
    file: BufReader<File>,
    line: Vec<u8>,
    /// The line in `line` has been given away.
    given: bool,
    /// The line is too long, and what has come of it is gone.
    long: bool,
    pub(super) number: u64,
    pub(super) read: u64,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// A whole line.
    Line(&'a [u8]),
    /// One that is longer than any record.
    Long,
    /// The file ends, with these bytes of a line that is not whole.
    End(&'a [u8]),
}

impl Input {
    /// `-` is standard input.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let source = if path == Path::new("-") {
            Path::new("/dev/stdin")
        } else {
            path
        };
        let file = File::open(source)
            .with_context(|| format!("cannot read {}; name a recording", path.display()))?;
        Ok(Self {
            path: source.to_owned(),
            file: BufReader::with_capacity(1 << 18, file),
            line: Vec::new(),
            given: false,
            long: false,
            number: 0,
            read: 0,
        })
    }

    /// Its name, for what is said of it.
    pub(super) fn name(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Bytes in it, where that is known.
    pub(super) fn size(&self) -> Option<u64> {
        let metadata = self.file.get_ref().metadata().ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// The next line. After the end there may be more, later.
    pub(super) fn next(&mut self) -> Result<Next<'_>> {
        if std::mem::take(&mut self.given) {
            self.line.clear();
        }
        loop {
            let room = LONGEST + 1 - self.line.len();
            let mut piece = self.file.by_ref().take(room as u64);
            let read = piece.read_until(b'\n', &mut self.line);
            let read = read.with_context(|| format!("cannot read {}", self.path.display()))?;
            self.read += read as u64;
            let is_whole = self.line.last() == Some(&b'\n');
            if is_whole {
                self.number += 1;
                self.given = true;
                self.line.pop();
                return Ok(if std::mem::take(&mut self.long) {
                    Next::Long
                } else {
                    Next::Line(&self.line)
                });
            }
            if read == 0 {
                return Ok(Next::End(if self.long { &[] } else { &self.line }));
            }
            if self.line.len() > LONGEST {
                self.long = true;
                self.line.clear();
            }
        }
    }

    /// At the end of a file that is followed: goes on with the one that has its name now, or from the
    /// begin where it was emptied.
    pub(super) fn renew(&mut self) -> io::Result<()> {
        let here = self.file.get_ref().metadata()?;
        // Between the two names of a rotation there is none.
        let Ok(there) = self.path.metadata() else {
            return Ok(());
        };
        let moved = (here.dev(), here.ino()) != (there.dev(), there.ino());
        if moved {
            self.file = BufReader::with_capacity(1 << 18, File::open(&self.path)?);
        } else if here.is_file() && here.len() < self.file.stream_position()? {
            self.file.rewind()?;
        } else {
            return Ok(());
        }
        self.line.clear();
        self.long = false;
        self.number = 0;
        self.read = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text).expect("it is ours");
        file
    }

    fn next(input: &mut Input) -> String {
        match input.next().expect("it can be read") {
            Next::Line(line) => format!("line {}", String::from_utf8_lossy(line)),
            Next::Long => "long".to_owned(),
            Next::End(rest) => format!("end {}", String::from_utf8_lossy(rest)),
        }
    }

    #[test]
    fn a_line_that_is_torn_goes_on_when_the_rest_has_come() {
        let mut file = file(b"one\n\ntw");
        let mut input = Input::open(file.path()).expect("it is there");
        assert_eq!(
            [(); 4].map(|()| next(&mut input)),
            ["line one", "line ", "end tw", "end tw"]
        );
        file.write_all(b"o\nthree").expect("it is ours");
        assert_eq!(
            [(); 2].map(|()| next(&mut input)),
            ["line two", "end three"]
        );
        assert_eq!((input.number, input.read), (3, 14));
    }

    #[test]
    fn a_line_without_end_is_left_out_in_bounded_memory() {
        let mut text = vec![b'x'; 5 * LONGEST];
        text.extend_from_slice(b"\nafter\n");
        text.extend_from_slice(&vec![b'y'; LONGEST]);
        text.extend_from_slice(b"\n");
        text.extend_from_slice(&vec![b'z'; LONGEST + 1]);
        let file = file(&text);
        let mut input = Input::open(file.path()).expect("it is there");
        assert_eq!([(); 2].map(|()| next(&mut input)), ["long", "line after"]);
        assert_eq!(next(&mut input).len(), "line ".len() + LONGEST);
        assert_eq!(next(&mut input), "end ");
        assert!(input.line.capacity() <= 4 * LONGEST);
    }

    #[test]
    fn what_is_followed_may_be_moved_away_or_emptied() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("events.json");
        fs::write(&path, "one\n").expect("it is ours");
        let mut input = Input::open(&path).expect("it is there");
        assert_eq!([(); 2].map(|()| next(&mut input)), ["line one", "end "]);
        fs::rename(&path, directory.path().join("events.json.1")).expect("it is ours");
        input.renew().expect("nothing is there yet");
        assert_eq!(next(&mut input), "end ");
        fs::write(&path, "two\n").expect("it is ours");
        input.renew().expect("it is there");
        assert_eq!([(); 2].map(|()| next(&mut input)), ["line two", "end "]);
        fs::write(&path, "3\n").expect("it is ours");
        input.renew().expect("it is there");
        assert_eq!([(); 2].map(|()| next(&mut input)), ["line 3", "end "]);
    }
}
