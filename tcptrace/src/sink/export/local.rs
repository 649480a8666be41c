//! What this host takes itself: standard output, standard error and the output file. Each is written by a
//! thread of its own, so one that takes nothing holds up neither the ring nor another output, and signals
//! are still heard.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::backoff::Backoff;
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
    /// Writes all of them. When it fails it says how many bytes are there for certain.
    fn write(&mut self, records: &[u8]) -> Result<(), (usize, Error)>;

    /// Opens it anew, where it has a name. When that fails the next write tries it again first.
    fn reopen(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Writes until the queue is over. What fails, as on a full disk, is tried again while records wait, and
/// once more at the end. A reader that has gone misses nothing.
///
/// # Errors
/// [`Error::Closed`], or what failed at the end.
pub(super) fn write_out(queue: &Queue, to: &mut impl Target) -> Result<(), Error> {
    let mut there = There::default();
    let mut backoff = Backoff::default();
    loop {
        match queue.next(true, None) {
            Work::Records(parcels) => {
                for parcel in &parcels {
                    if let Err(error) = write_rest(queue, to, parcel, &mut there) {
                        if error == Error::Closed || queue.is_closing() {
                            return Err(error);
                        }
                        queue.pause(backoff.next());
                        queue.begin();
                        break;
                    }
                    backoff.reset();
                }
            }
            Work::Reopen => {
                // No record begins in one file and ends in another.
                there.torn = 0;
                if let Err(error) = to.reopen() {
                    queue.failed(error.to_string());
                }
            }
            Work::Idle => {}
            Work::Over => return Ok(()),
        }
    }
}

/// What has been written of a parcel that was not taken as a whole, bytes.
#[derive(Default)]
struct There {
    whole_records: usize,
    /// Of the record after them.
    torn: usize,
}

impl There {
    fn bytes(&self) -> usize {
        self.whole_records + self.torn
    }
}

/// Writes what of a parcel is not there yet.
fn write_rest(
    queue: &Queue,
    to: &mut impl Target,
    parcel: &[u8],
    there: &mut There,
) -> Result<(), Error> {
    let Err((more, error)) = to.write(&parcel[there.bytes()..]) else {
        queue.settle(Done::sent(1));
        *there = There::default();
        return Ok(());
    };
    if error == Error::Closed {
        queue.abandon();
        return Err(error);
    }
    let written = &parcel[there.whole_records..there.bytes() + more];
    let whole = written.iter().rposition(|&byte| byte == b'\n');
    let (whole, torn) = written.split_at(whole.map_or(0, |end| end + 1));
    queue.settle_part(whole.split_inclusive(|&byte| byte == b'\n').count() as u64);
    there.whole_records += whole.len();
    there.torn = torn.len();
    queue.failed(error.to_string());
    Err(error)
}

/// Writes all of these bytes, or says how many of them are there.
pub(in crate::sink) fn write_all(
    to: &mut impl Write,
    bytes: &[u8],
) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < bytes.len() {
        match to.write(&bytes[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

/// Standard output.
pub(super) struct Stdout<W>(pub(super) W);

impl<W: Write> Target for Stdout<W> {
    fn write(&mut self, records: &[u8]) -> Result<(), (usize, Error)> {
        write_all(&mut self.0, records).map_err(|(written, error)| match error.kind() {
            io::ErrorKind::BrokenPipe => (written, Error::Closed),
            _ => (
                written,
                Error::failed("write to", &"standard output", &error),
            ),
        })
    }
}

/// Standard error. What cannot be written now is not missed, and what comes later may be written again.
pub(super) struct Stderr<W>(pub(super) W);

impl<W: Write> Target for Stderr<W> {
    fn write(&mut self, messages: &[u8]) -> Result<(), (usize, Error)> {
        // Nobody may be left to read it.
        let _ = self.0.write_all(messages);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;

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

    /// Files that have room for so many bytes each; those after them for all.
    struct Small {
        rooms: Vec<usize>,
        files: Vec<String>,
    }

    impl Small {
        fn with_rooms(rooms: &[usize]) -> Self {
            Self {
                rooms: rooms.to_vec(),
                files: vec![String::new()],
            }
        }
    }

    impl Target for Small {
        fn write(&mut self, records: &[u8]) -> Result<(), (usize, Error)> {
            let room = self.rooms.get(self.files.len() - 1);
            let file = self.files.last_mut().expect("one is open");
            let left = room.map_or(usize::MAX, |room| room - file.len());
            let fitting = &records[..left.min(records.len())];
            file.push_str(str::from_utf8(fitting).expect("records are text"));
            if fitting == records {
                return Ok(());
            }
            Err((fitting.len(), Error::Failed("full".to_owned())))
        }

        fn reopen(&mut self) -> Result<(), Error> {
            self.files.push(String::new());
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
        let mut to = Small::with_rooms(&[]);
        write(&mut file, b"one\n");
        file.flush().expect("memory takes it");
        file.reopen().expect("it is left to the thread");
        assert_eq!(queue.next(true, None), Work::Reopen);
        file.reopen().expect("it is left to the thread");
        queue.close();
        write_out(&queue, &mut to).expect("there is room");
        assert_eq!(to.files, ["", "one\n"]);
        assert_eq!(queue.account().sent, 1);
        file.reopen().expect("it is left to the thread");
        write_out(&queue, &mut to).expect("there is room");
        assert_eq!(to.files.len(), 3);
    }

    #[test]
    fn what_a_full_file_has_of_a_parcel_is_sent_and_the_rest_lost_at_the_end() {
        let (mut file, queue) = local();
        for record in [b"one\n", b"two\n", b"six\n"] {
            write(&mut file, record);
        }
        file.flush().expect("memory takes it");
        queue.close();
        let mut to = Small::with_rooms(&[10]);
        let error = write_out(&queue, &mut to).expect_err("it is full");
        queue.end();
        let account = queue.account();
        assert_eq!((account.produced, account.sent), (3, 2));
        assert_eq!((account.lost.undelivered, account.waiting), (1, 0));
        assert_eq!(account.error, Some(error.to_string()));
    }

    /// The files in the end, when this was done about the first, which has room for so many bytes.
    fn after_full(room: usize, mend: impl FnOnce(&mut Local, &Mutex<Small>)) -> Vec<String> {
        let (mut file, queue) = local();
        for record in [b"one\n", b"two\n", b"six\n"] {
            write(&mut file, record);
        }
        file.flush().expect("memory takes it");
        let to = Mutex::new(Small::with_rooms(&[room]));
        thread::scope(|scope| {
            let thread = scope.spawn(|| write_out(&queue, &mut &to));
            while queue.account().failing.is_none() {
                thread::yield_now();
            }
            mend(&mut file, &to);
            while queue.account().waiting > 0 {
                thread::yield_now();
            }
            queue.close();
            thread.join().expect("it ends").expect("all is there");
        });
        let account = queue.account();
        assert_eq!((account.sent, account.lost.total()), (3, 0));
        assert_eq!(account.failing, None);
        to.into_inner().expect("nobody panicked").files
    }

    impl Target for &Mutex<Small> {
        fn write(&mut self, records: &[u8]) -> Result<(), (usize, Error)> {
            self.lock().expect("nobody panicked").write(records)
        }

        fn reopen(&mut self) -> Result<(), Error> {
            self.lock().expect("nobody panicked").reopen()
        }
    }

    #[test]
    fn a_file_goes_on_at_the_byte_where_it_was_full() {
        for room in 0..12 {
            let files = after_full(room, |_, to| {
                to.lock().expect("nobody panicked").rooms.clear();
            });
            assert_eq!(files, ["one\ntwo\nsix\n"], "{room}");
        }
    }

    #[test]
    fn what_a_full_file_has_half_of_begins_anew_in_the_next() {
        for (room, next) in [(3, "one\ntwo\nsix\n"), (4, "two\nsix\n"), (10, "six\n")] {
            let files = after_full(room, |file, _| {
                file.reopen().expect("it is left to the thread");
            });
            assert_eq!(files, [&"one\ntwo\nsix\n"[..room], next]);
        }
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
        queue.close();
        let Err(Error::Failed(message)) = write_out(&queue, &mut Stdout(full)) else {
            panic!("/dev/full took it")
        };
        assert!(
            message.starts_with("cannot write to standard output: No space left"),
            "{message}"
        );
    }
}
