//! What this host takes itself: standard output, standard error and the output file. Each is written by a
//! thread of its own, so one that takes nothing holds up neither the ring nor another output, and signals
//! are still heard.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::link::Done;
use super::queue::{GATHER, Queue, Work};
use crate::event::Event;
use crate::sink::{Error, Sink};

/// Bytes that may wait: as many as in the ring, so that a storm is kept as long as one was in there.
pub(super) const ROOM: usize = 64 << 20;

/// Where the loop puts records for standard output or the output file. They are gathered while more events
/// wait.
pub struct Local {
    queue: Arc<Queue>,
    pending: BytesMut,
    records: u64,
}

impl Local {
    pub(super) fn new(queue: Arc<Queue>) -> Self {
        Self {
            queue,
            pending: BytesMut::with_capacity(GATHER),
            records: 0,
        }
    }

    fn hand_over(&mut self) {
        let gathered = self.pending.split().freeze();
        self.queue.push(gathered, mem::take(&mut self.records));
    }
}

impl Sink for Local {
    fn write(&mut self, _: &Event, record: &Bytes) -> Result<(), Error> {
        self.pending.extend_from_slice(record);
        self.records += 1;
        if self.pending.len() >= GATHER {
            self.hand_over();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.records > 0 {
            self.hand_over();
        }
        self.queue.wake();
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), Error> {
        self.queue.reopen();
        Ok(())
    }
}

/// What is written to.
pub(in crate::sink) trait Target {
    /// Writes all of them. When it fails it says how many are there for certain.
    fn write(&mut self, records: &[u8]) -> Result<(), (u64, Error)>;

    /// Opens it anew, where it has a name.
    fn reopen(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Writes until the queue is over. A reader that has gone misses nothing.
pub(super) fn write_out(queue: &Queue, to: &mut impl Target) -> Result<(), Error> {
    loop {
        match queue.next(true, None) {
            Work::Records(gathered) => {
                for records in &gathered {
                    write_some(queue, to, records)?;
                }
            }
            Work::Reopen => to.reopen()?,
            Work::Idle => {}
            Work::Over => return Ok(()),
        }
    }
}

fn write_some(queue: &Queue, to: &mut impl Target, records: &[u8]) -> Result<(), Error> {
    to.write(records).map_err(|(written, error)| {
        if error == Error::Closed {
            queue.abandon();
        } else {
            queue.settle_part(written);
            queue.failed(error.to_string());
        }
        error
    })?;
    queue.settle(Done::sent(1));
    Ok(())
}

/// Standard output.
pub(super) struct Stdout<W>(pub(super) W);

impl<W: Write> Target for Stdout<W> {
    fn write(&mut self, records: &[u8]) -> Result<(), (u64, Error)> {
        let written = self.0.write_all(records);
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => (0, Error::Closed),
            _ => (0, Error::failed("write to", &"standard output", &error)),
        })
    }
}

/// Standard error. What cannot be written now is not missed, and what comes later may be written again.
pub(super) struct Stderr<W>(pub(super) W);

impl<W: Write> Target for Stderr<W> {
    fn write(&mut self, messages: &[u8]) -> Result<(), (u64, Error)> {
        // Nobody may be left to read it.
        let _ = self.0.write_all(messages);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::samples;

    fn local() -> (Local, Arc<Queue>) {
        let queue = Arc::new(Queue::with_room(ROOM));
        (Local::new(Arc::clone(&queue)), queue)
    }

    fn write(local: &mut Local, record: &[u8]) {
        local
            .write(&samples::reset_sent(), &Bytes::copy_from_slice(record))
            .expect("memory takes it");
    }

    /// A file that has room for so many bytes each time it is opened.
    struct Small {
        room: usize,
        files: Vec<Vec<u8>>,
    }

    impl Target for Small {
        fn write(&mut self, records: &[u8]) -> Result<(), (u64, Error)> {
            let file = self.files.last_mut().expect("one is open");
            let left = self.room - file.len();
            let fitting = &records[..left.min(records.len())];
            file.extend_from_slice(fitting);
            if fitting == records {
                return Ok(());
            }
            let there = fitting.split(|&byte| byte == b'\n').count() as u64 - 1;
            Err((there, Error::Failed("full".to_owned())))
        }

        fn reopen(&mut self) -> Result<(), Error> {
            self.files.push(Vec::new());
            Ok(())
        }
    }

    #[test]
    fn records_wait_for_the_flush_but_not_without_end() {
        let (mut stdout, queue) = local();
        write(&mut stdout, b"one\n");
        write(&mut stdout, b"two\n");
        assert_eq!(queue.account().waiting, 0);
        stdout.flush().expect("memory takes it");
        assert_eq!(queue.account().waiting, 2);
        write(&mut stdout, &vec![b'x'; GATHER]);
        assert_eq!(queue.account().waiting, 3);
        queue.close();
        let mut written = Stdout(Vec::new());
        write_out(&queue, &mut written).expect("memory takes it");
        assert!(written.0.starts_with(b"one\ntwo\nx"));
        assert_eq!(written.0.len(), 8 + GATHER);
        assert_eq!((queue.account().sent, queue.account().waiting), (3, 0));
    }

    #[test]
    fn what_nobody_takes_is_counted_by_record() {
        let (mut stdout, queue) = local();
        for _ in 0..2 * ROOM / GATHER {
            write(&mut stdout, &vec![b'x'; GATHER / 2]);
            write(&mut stdout, &vec![b'x'; GATHER / 2]);
        }
        let account = queue.account();
        assert_eq!(account.waiting, 2 * (ROOM / GATHER) as u64);
        assert_eq!(account.lost.queue_full, account.waiting);
    }

    #[test]
    fn a_file_is_opened_anew_before_what_waits_and_also_when_nothing_does() {
        let (mut file, queue) = local();
        let mut to = Small {
            room: 100,
            files: vec![Vec::new()],
        };
        write(&mut file, b"one\n");
        file.flush().expect("memory takes it");
        file.reopen().expect("it is left to the thread");
        assert_eq!(queue.next(true, None), Work::Reopen);
        file.reopen().expect("it is left to the thread");
        queue.close();
        write_out(&queue, &mut to).expect("there is room");
        assert_eq!(to.files, [&b""[..], b"one\n"]);
        assert_eq!(queue.account().sent, 1);
        file.reopen().expect("it is left to the thread");
        write_out(&queue, &mut to).expect("there is room");
        assert_eq!(to.files.len(), 3);
    }

    #[test]
    fn what_a_full_file_has_of_a_parcel_is_sent_and_the_rest_lost() {
        let (mut file, queue) = local();
        for record in [b"one\n", b"two\n", b"six\n"] {
            write(&mut file, record);
        }
        file.flush().expect("memory takes it");
        let mut to = Small {
            room: 10,
            files: vec![Vec::new()],
        };
        let error = write_out(&queue, &mut to).expect_err("it is full");
        queue.end();
        let account = queue.account();
        assert_eq!((account.produced, account.sent), (3, 2));
        assert_eq!((account.lost.undelivered, account.waiting), (1, 0));
        assert_eq!(account.error, Some(error.to_string()));
    }

    #[test]
    fn a_reader_that_left_is_not_a_failure() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let (mut stdout, queue) = local();
        write(&mut stdout, b"x\n");
        stdout.flush().expect("memory takes it");
        let outcome = write_out(&queue, &mut Stdout(writer));
        assert_eq!(outcome, Err(Error::Closed));
        assert_eq!(
            (queue.account().produced, queue.account().lost.total()),
            (0, 0)
        );
    }

    #[test]
    fn a_full_device_is_a_failure() {
        let full = std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("/dev/full");
        let (mut stdout, queue) = local();
        write(&mut stdout, b"x\n");
        stdout.flush().expect("memory takes it");
        let Err(Error::Failed(message)) = write_out(&queue, &mut Stdout(full)) else {
            panic!("/dev/full took it")
        };
        assert!(
            message.starts_with("cannot write to standard output: No space left"),
            "{message}"
        );
    }
}
