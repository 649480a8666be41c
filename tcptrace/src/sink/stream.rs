//! Standard output, or any other stream of bytes: records are gathered while more events wait.

use std::io::{self, Write};
use std::os::fd::AsFd as _;

use bytes::Bytes;

use super::{Error, Sink};
use crate::event::Event;

/// Bytes gathered before a write that nobody asked for.
const GATHER: usize = 64 * 1024;

/// A stream.
pub struct Stream<W> {
    to: W,
    pending: Vec<u8>,
}

impl Stream<std::fs::File> {
    /// Standard output, without the library's own buffer: this one is flushed when it should be.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] when standard output is not open.
    pub fn stdout() -> Result<Self, Error> {
        let to = io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Error::failed("open", &"standard output", &error))?;
        Ok(Self::new(to.into()))
    }
}

impl<W: Write> Stream<W> {
    /// To any writer.
    pub fn new(to: W) -> Self {
        Self {
            to,
            pending: Vec::new(),
        }
    }
}

impl<W: Write> Sink for Stream<W> {
    fn write(&mut self, _: &Event, record: &Bytes) -> Result<(), Error> {
        self.pending.extend_from_slice(record);
        if self.pending.len() >= GATHER {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), Error> {
        let written = self
            .to
            .write_all(&self.pending)
            .and_then(|()| self.to.flush());
        // Also after an error: how much of it was taken is not known, and a record must not come
        // twice.
        self.pending.clear();
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Error::Closed,
            _ => Error::failed("write to", &"standard output", &error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::samples;

    #[test]
    fn records_wait_for_the_flush_but_not_without_end() {
        let event = samples::reset_sent();
        let mut stream = Stream::new(Vec::new());
        stream
            .write(&event, &Bytes::from_static(b"one\n"))
            .expect("memory takes it");
        assert_eq!(stream.to, b"");
        stream.flush().expect("memory takes it");
        assert_eq!(stream.to, b"one\n");
        let large = Bytes::from(vec![b'x'; GATHER]);
        stream.write(&event, &large).expect("memory takes it");
        assert_eq!(stream.to.len(), 4 + GATHER);
    }

    #[test]
    fn a_reader_that_left_is_not_a_failure() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let mut stream = Stream::new(writer);
        stream
            .write(&samples::reset_sent(), &Bytes::from_static(b"x\n"))
            .expect("it waits");
        assert_eq!(stream.flush(), Err(Error::Closed));
    }

    #[test]
    fn a_full_device_is_a_failure() {
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("/dev/full");
        let mut stream = Stream::new(full);
        stream
            .write(&samples::reset_sent(), &Bytes::from_static(b"x\n"))
            .expect("it waits");
        let Err(Error::Failed(message)) = stream.flush() else {
            panic!("/dev/full took it")
        };
        assert!(
            message.starts_with("cannot write to standard output: No space left"),
            "{message}"
        );
    }
}
