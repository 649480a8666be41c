//! Records to a destination over a socket, to standard output or to the output file: each has a queue with
//! a bound and a thread that delivers, so that a dead or slow one delays neither the ring nor another
//! output. What it cannot have is counted, with the reason: at any moment what was produced for it is what
//! was sent, lost or waits.

mod backoff;
mod destination;
#[cfg(feature = "kafka")]
mod kafka;
mod link;
mod local;
mod messages;
pub(crate) mod otlp;
mod queue;
mod tls;
mod worker;

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;

pub use destination::Destination;
pub use local::Local;
use local::{ROOM, Stdout, write_out};
pub(super) use local::{Target, write_all};
pub use messages::{Messages, Speaker};
pub use otlp::{Endpoint, Headers, Protocol};
use queue::Queue;
pub use queue::{Account, Lost};
pub use tls::Tls;

use super::{Error, Format, Sink, file};
use crate::event::{Dropped, Event, Kind};

/// How long all exports together may take at the end to deliver what waits, and then standard output, the
/// output file and standard error each.
const FLUSH: Duration = Duration::from_secs(5);

/// How often a loss that goes on is told of.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Whom destinations are trusted to be, and what they are told of this host.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Needed where one is reached over TLS.
    pub tls: Option<Tls>,
    /// Of each request over OTLP.
    pub headers: Headers,
}

impl Access {
    fn tls(&self) -> io::Result<&Tls> {
        let tls = self.tls.as_ref();
        tls.ok_or_else(|| io::Error::other("no --tls-ca tells whom to trust"))
    }
}

/// Where the loop puts records for one destination.
pub struct Export {
    name: String,
    queue: Arc<Queue>,
}

impl Sink for Export {
    /// What is lost on the way here is told to the others: one more record would be lost as well.
    fn write(&mut self, event: &Event, record: &Bytes) -> Result<(), Error> {
        match &event.kind {
            Kind::ExportDropped(dropped) if dropped.to == self.name => {}
            // The copy keeps its memory from being tied to that of the records of other outputs.
            _ => self.queue.push(Bytes::copy_from_slice(record), 1),
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.queue.wake();
        Ok(())
    }
}

/// What one thread delivers, as whoever looks after it sees it.
pub struct Delivery {
    name: String,
    queue: Arc<Queue>,
    /// Why its thread ended before its time.
    failed: mpsc::Receiver<anyhow::Error>,
    /// What was said last of how it goes.
    said: Option<String>,
    /// What was told of its losses, and when last.
    told: Account,
    told_at: Option<Instant>,
}

impl Delivery {
    /// To standard output, which goes by the name of `stdout`. Before anything else the thread does
    /// `prepare`, which gives up what writing does not take.
    ///
    /// # Errors
    /// It is not open, or there is no thread to be had.
    pub fn stdout(
        prepare: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<(Self, Local), Error> {
        let failed = |error| Error::failed("open", &"standard output", &error);
        let to = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
        let to = Stdout(fs::File::from(to));
        Self::local(("stdout", "stdout"), to, prepare).map_err(failed)
    }

    /// To the output file, which goes by the name of `output-file`. Before anything else the thread does
    /// `prepare`, which gives up what writing and opening it anew do not take.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn file(
        file: file::File,
        prepare: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> io::Result<(Self, Local)> {
        Self::local(("output-file", "files"), file, prepare)
    }

    fn local(
        (name, thread): (&str, &str),
        mut to: impl Target + Send + 'static,
        prepare: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> io::Result<(Self, Local)> {
        let deliver = move |queue: &Queue| {
            prepare()?;
            Ok(write_out(queue, &mut to)?)
        };
        let queue = Queue::with_room(ROOM);
        let delivery = Self::start(name.to_owned(), thread, queue, deliver)?;
        let local = Local::new(Arc::clone(&delivery.queue));
        Ok((delivery, local))
    }

    fn start(
        name: String,
        thread: &str,
        queue: Queue,
        deliver: impl FnOnce(&Queue) -> Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Arc::new(queue);
        let for_thread = Arc::clone(&queue);
        let (tell, failed) = mpsc::channel();
        let work = move || {
            if let Err(error) = deliver(&for_thread) {
                // The run may be over already.
                let _ = tell.send(error);
            }
            for_thread.leave();
        };
        thread::Builder::new().name(thread.into()).spawn(work)?;
        Ok(Self {
            name,
            queue,
            failed,
            said: None,
            told: Account::default(),
            told_at: None,
        })
    }

    /// That its thread delivers, or is still about to.
    ///
    /// # Errors
    /// It has ended: it could not be prepared, nobody reads what it writes, or that took no more at the end.
    /// Told once.
    pub fn check(&self) -> Result<()> {
        self.failed.try_recv().map_or(Ok(()), Err)
    }

    /// How it goes, where that has changed since this was asked last.
    pub fn news(&mut self) -> Option<News> {
        let failing = self.queue.account().failing;
        let name = || self.name.clone();
        let news = match (&failing, &self.said) {
            (Some(error), None) => Some(News::Failing(name(), error.clone())),
            (None, Some(_)) => Some(News::Delivering(name())),
            _ => None,
        };
        self.said = failing;
        news
    }

    /// What was lost and not told yet: at once the first time, and then every ten seconds; all of it
    /// when it is the `last` time.
    pub fn dropped(&mut self, now: Instant, last: bool) -> Vec<Dropped> {
        let mut told_at = self.told_at.into_iter();
        if !last && told_at.any(|at| now.duration_since(at) < TELL_EVERY) {
            return Vec::new();
        }
        let account = self.queue.account();
        let grown = account.lost.since(&self.told.lost);
        if grown.total() > 0 {
            self.told_at = Some(now);
        }
        let dropped = grown.rows().map(|(reason, count)| Dropped {
            to: self.name.clone(),
            count,
            reason,
            error: account.error.clone(),
        });
        let dropped = dropped.collect();
        self.told = account;
        dropped
    }

    /// Nothing more comes: waits until everything is delivered, five seconds at most, and counts the rest
    /// as lost.
    pub async fn close(&mut self) {
        self.queue.close();
        self.finish(tokio::time::Instant::now() + FLUSH).await;
    }

    async fn finish(&self, deadline: tokio::time::Instant) {
        // Whether it is in time or not, the account is closed.
        let _ = tokio::time::timeout_at(deadline, self.queue.left()).await;
        self.queue.end();
    }

    /// Its name, and what became of its records.
    #[must_use]
    pub fn account(&self) -> (&str, Account) {
        (&self.name, self.queue.account())
    }
}

/// All exports of a run, as whoever looks after them sees them.
#[derive(Default)]
pub struct Exports(Vec<Delivery>);

/// A change of how a delivery goes, for a person.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// It fails, for this reason and with this remedy, and is tried again.
    Failing(String, String),
    /// It delivers again.
    Delivering(String),
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failing(name, error) => {
                write!(f, "{name}: {error}; it is tried again while records wait")
            }
            Self::Delivering(name) => write!(f, "{name}: delivering again"),
        }
    }
}

impl Exports {
    /// Starts the thread of an export. Before anything else the thread does
    /// `prepare`, which gives up what delivering does not take. It is given something to do while code
    /// may still be loaded: asking the resolver once has the C library load what that needs.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(
        &mut self,
        destination: &Destination,
        access: Access,
        prepare: impl FnOnce(&dyn Fn()) -> Result<()> + Send + 'static,
    ) -> io::Result<(Format, Export)> {
        let name = destination.to_string();
        let (to, called) = (destination.clone(), name.clone());
        let deliver = move |queue: &Queue| {
            prepare(&|| to.ask_resolver()).with_context(|| format!("--export {called}"))?;
            worker::run(queue, |patience| to.connect(&access, patience));
            Ok(())
        };
        let delivery = Delivery::start(name.clone(), "export", Queue::default(), deliver)?;
        let queue = Arc::clone(&delivery.queue);
        self.0.push(delivery);
        Ok((destination.format(), Export { name, queue }))
    }

    /// As [`Delivery::check`], of each.
    ///
    /// # Errors
    /// That of the first that has ended.
    pub fn check(&self) -> Result<()> {
        self.0.iter().try_for_each(Delivery::check)
    }

    /// As [`Delivery::dropped`], of all.
    pub fn dropped(&mut self, now: Instant, last: bool) -> Vec<Dropped> {
        let each = self.0.iter_mut();
        each.flat_map(|it| it.dropped(now, last)).collect()
    }

    /// As [`Delivery::news`], of all.
    pub fn news(&mut self) -> Vec<News> {
        let option = |name| format!("--export {name}");
        let news = self.0.iter_mut().filter_map(Delivery::news);
        let news = news.map(|news| match news {
            News::Failing(name, error) => {
                let remedy = "start or mend what listens there";
                News::Failing(option(name), format!("{error}; {remedy}"))
            }
            News::Delivering(name) => News::Delivering(option(name)),
        });
        news.collect()
    }

    /// Nothing more comes: waits until everything is delivered, five seconds at most over all exports, and
    /// counts the rest as lost.
    pub async fn close(&mut self) {
        let deadline = tokio::time::Instant::now() + FLUSH;
        for export in &self.0 {
            export.queue.close();
        }
        for export in &self.0 {
            export.finish(deadline).await;
        }
    }

    /// The name and the account of each export.
    pub fn accounts(&self) -> impl Iterator<Item = (&str, Account)> {
        self.0.iter().map(Delivery::account)
    }

    /// Records that no export delivered, over all of them.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.accounts().map(|(_, it)| it.lost.total()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use anyhow::anyhow;

    use super::*;
    use crate::sink::samples;

    fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "it never came");
            thread::yield_now();
        }
    }

    #[test]
    fn failing_and_delivering_again_are_told_once_each() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let name = format!("unix:{}", path.display());
        let destination = name.parse().expect("a destination");
        let mut exports = Exports::default();
        let (format, mut export) = exports
            .start(&destination, Access::default(), |_| Ok(()))
            .expect("there are threads");
        assert_eq!(format, Format::Json);
        let mut write = |event: &Event| {
            let record = Bytes::from_static(b"{}\n");
            export.write(event, &record).expect("a queue takes it");
            export.flush().expect("a queue takes it");
        };
        write(&samples::reset_sent());
        let failing = until(|| exports.news().pop());
        let News::Failing(told, why) = &failing else {
            panic!("{failing}");
        };
        assert_eq!(*told, format!("--export {name}"));
        assert!(why.starts_with("cannot connect: No such file"), "{why}");
        assert_eq!(exports.news(), []);
        let listener = UnixListener::bind(&path).expect("the directory is ours");
        let (server, _) = listener.accept().expect("it is tried again");
        let read = io::BufRead::lines(io::BufReader::new(&server));
        assert_eq!(read.take(1).count(), 1);
        assert_eq!(
            until(|| exports.news().pop()),
            News::Delivering(format!("--export {name}"))
        );

        // What it lost itself is not for it.
        write(&Event {
            kind: Kind::ExportDropped(Dropped {
                to: name,
                count: 1,
                reason: "queue_full",
                error: None,
            }),
            ..samples::reset_sent()
        });
        let (_, account) = exports.accounts().next().expect("there is one");
        assert_eq!((account.produced, account.lost.total()), (1, 0));
    }

    #[test]
    fn a_thread_that_cannot_be_prepared_is_told_with_the_reason() {
        let mut exports = Exports::default();
        let destination = "unix:/nowhere/socket".parse().expect("a destination");
        exports
            .start(&destination, Access::default(), |_| {
                Err(anyhow!("no seccomp today"))
            })
            .expect("there are threads");
        let error = until(|| exports.check().err());
        let said = format!("{error:#}");
        assert_eq!(said, "--export unix:/nowhere/socket: no seccomp today");
    }

    #[test]
    fn a_loss_is_told_at_once_then_seldom_and_all_of_it_at_the_end() {
        let mut exports = Exports::default();
        let destination = "unix:/nowhere/socket".parse().expect("a destination");
        let (_, mut export) = exports
            .start(&destination, Access::default(), |_| Ok(()))
            .expect("there are threads");
        let mut lose = || {
            let larger_than_the_queue = Bytes::from(vec![b'x'; 20 << 20]);
            export
                .write(&samples::reset_sent(), &larger_than_the_queue)
                .expect("it is counted");
        };
        let begun = Instant::now();
        assert_eq!(exports.dropped(begun, false), []);
        lose();
        let counts = |dropped: Vec<Dropped>| -> Vec<_> {
            let rows = dropped.into_iter();
            rows.map(|it| (it.reason, it.count)).collect()
        };
        assert_eq!(counts(exports.dropped(begun, false)), [("queue_full", 1)]);
        lose();
        assert_eq!(exports.dropped(begun, false), []);
        lose();
        let later = begun + TELL_EVERY;
        assert_eq!(counts(exports.dropped(later, false)), [("queue_full", 2)]);
        lose();
        assert_eq!(counts(exports.dropped(later, true)), [("queue_full", 1)]);
        assert_eq!(exports.lost(), 4);
    }
}
