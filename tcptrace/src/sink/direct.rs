//! An output written by who makes its records: where nothing is missed while its reader takes its time.

use std::io::{self, BufWriter, Write};

use bytes::Bytes;

use super::{Error, Sink};
use crate::event::Event;

/// Writes to this, named so in errors.
pub struct Direct<W: Write> {
    to: BufWriter<W>,
    name: &'static str,
}

impl<W: Write> Direct<W> {
    /// Nothing written yet.
    pub fn new(to: W, name: &'static str) -> Self {
        Self {
            to: BufWriter::with_capacity(1 << 16, to),
            name,
        }
    }

    fn told(&self, outcome: io::Result<()>) -> Result<(), Error> {
        outcome.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Error::Closed,
            _ => Error::failed("write to", &self.name, &error),
        })
    }
}

impl<W: Write> Sink for Direct<W> {
    fn write(&mut self, _: &Event, record: &Bytes) -> Result<(), Error> {
        let written = self.to.write_all(record);
        self.told(written)
    }

    fn flush(&mut self) -> Result<(), Error> {
        let flushed = self.to.flush();
        self.told(flushed)
    }
}
