//! Standard output, written by a thread of its own: a reader that takes nothing holds up neither the ring
//! nor another output, and signals are still heard.

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

/// Where the loop puts records for standard output. They are gathered while more events wait.
pub struct Stdout {
    queue: Arc<Queue>,
    pending: BytesMut,
    records: u64,
}

impl Stdout {
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

impl Sink for Stdout {
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
}

/// Writes until the queue is over. A reader that has gone misses nothing.
pub(super) fn write_out(queue: &Queue, mut to: impl Write) -> Result<(), Error> {
    while let Work::Records(gathered) = queue.next(true, None) {
        for records in &gathered {
            if let Err(error) = to.write_all(records).and_then(|()| to.flush()) {
                if error.kind() == io::ErrorKind::BrokenPipe {
                    queue.abandon();
                    return Err(Error::Closed);
                }
                return Err(Error::failed("write to", &"standard output", &error));
            }
            queue.settle(Done::sent(1));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::samples;

    fn stdout() -> (Stdout, Arc<Queue>) {
        let queue = Arc::new(Queue::with_room(ROOM));
        (Stdout::new(Arc::clone(&queue)), queue)
    }

    fn write(stdout: &mut Stdout, record: Vec<u8>) {
        stdout
            .write(&samples::reset_sent(), &record.into())
            .expect("memory takes it");
    }

    #[test]
    fn records_wait_for_the_flush_but_not_without_end() {
        let (mut stdout, queue) = stdout();
        write(&mut stdout, b"one\n".to_vec());
        write(&mut stdout, b"two\n".to_vec());
        assert_eq!(queue.account().waiting, 0);
        stdout.flush().expect("memory takes it");
        assert_eq!(queue.account().waiting, 2);
        write(&mut stdout, vec![b'x'; GATHER]);
        assert_eq!(queue.account().waiting, 3);
        queue.close();
        let mut written = Vec::new();
        write_out(&queue, &mut written).expect("memory takes it");
        assert!(written.starts_with(b"one\ntwo\nx"));
        assert_eq!(written.len(), 8 + GATHER);
        assert_eq!((queue.account().sent, queue.account().waiting), (3, 0));
    }

    #[test]
    fn what_nobody_reads_is_counted_by_record() {
        let (mut stdout, queue) = stdout();
        for _ in 0..2 * ROOM / GATHER {
            write(&mut stdout, vec![b'x'; GATHER / 2]);
            write(&mut stdout, vec![b'x'; GATHER / 2]);
        }
        let account = queue.account();
        assert_eq!(account.waiting, 2 * (ROOM / GATHER) as u64);
        assert_eq!(account.lost.queue_full, account.waiting);
    }

    #[test]
    fn a_reader_that_left_is_not_a_failure() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let (mut stdout, queue) = stdout();
        write(&mut stdout, b"x\n".to_vec());
        stdout.flush().expect("memory takes it");
        assert_eq!(write_out(&queue, writer), Err(Error::Closed));
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
        let (mut stdout, queue) = stdout();
        write(&mut stdout, b"x\n".to_vec());
        stdout.flush().expect("memory takes it");
        let Err(Error::Failed(message)) = write_out(&queue, full) else {
            panic!("/dev/full took it")
        };
        assert!(
            message.starts_with("cannot write to standard output: No space left"),
            "{message}"
        );
    }
}
