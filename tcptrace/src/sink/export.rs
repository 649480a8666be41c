//! Records to a destination over a socket: each export has a queue with a bound and a thread that
//! delivers, so that a dead or slow destination delays neither the ring nor another output. What it
//! cannot have is counted, with the reason: at any moment what was produced for it is what was sent,
//! lost or waits.

mod backoff;
mod destination;
mod link;
mod queue;
mod tls;
mod worker;

use std::fmt;
use std::io;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;

pub use destination::Destination;
use queue::Queue;
pub use queue::{Account, Lost};
pub use tls::Tls;

use super::{Error, Format, Sink};
use crate::event::{Dropped, Event, Kind};

/// How long all exports together may take at the end to deliver what waits.
const FLUSH: Duration = Duration::from_secs(5);

/// How often a loss that goes on is told of.
const TELL_EVERY: Duration = Duration::from_secs(10);

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
            _ => self.queue.push(record),
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.queue.wake();
        Ok(())
    }
}

/// All exports of a run, as whoever looks after them sees them.
#[derive(Default)]
pub struct Exports(Vec<Watched>);

struct Watched {
    name: String,
    queue: Arc<Queue>,
    /// Why its thread ended before it began.
    unprepared: mpsc::Receiver<anyhow::Error>,
    /// What was told of its losses, and when last.
    told: Account,
    told_at: Option<Instant>,
    /// What was said last of how it goes.
    failing: Option<String>,
}

/// A change of how an export goes, for a person.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// The export cannot deliver, for this reason, and tries again.
    Failing(String, String),
    /// It delivers again.
    Delivering(String),
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failing(name, error) => write!(
                f,
                "--export {name}: {error}; it is tried again while records wait, so start or mend what \
                 listens there"
            ),
            Self::Delivering(name) => write!(f, "--export {name}: delivering again"),
        }
    }
}

impl Exports {
    /// Starts the thread of an export; one over [`Tls`] needs it. Before anything else the thread does
    /// `prepare`, which gives up what delivering does not take. It is given something to do while code
    /// may still be loaded: asking the resolver once has the C library load what that needs.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(
        &mut self,
        destination: &Destination,
        tls: Option<Tls>,
        prepare: impl FnOnce(&dyn Fn()) -> Result<()> + Send + 'static,
    ) -> io::Result<(Format, Export)> {
        let name = destination.to_string();
        let queue = Arc::new(Queue::default());
        let (for_thread, to) = (Arc::clone(&queue), destination.clone());
        let (tell, unprepared) = mpsc::channel();
        let deliver = move || {
            match prepare(&|| to.ask_resolver()) {
                Ok(()) => worker::run(&for_thread, |patience| to.connect(tls.as_ref(), patience)),
                Err(error) => {
                    // The run may be over already.
                    let _ = tell.send(error);
                }
            }
            for_thread.leave();
        };
        thread::Builder::new()
            .name("export".into())
            .spawn(deliver)?;
        self.0.push(Watched {
            name: name.clone(),
            queue: Arc::clone(&queue),
            unprepared,
            told: Account::default(),
            told_at: None,
            failing: None,
        });
        Ok((destination.format(), Export { name, queue }))
    }

    /// That each thread delivers, or is still about to.
    ///
    /// # Errors
    /// One could not be prepared, and has ended.
    pub fn check(&self) -> Result<()> {
        let mut exports = self.0.iter();
        exports.try_for_each(|export| match export.unprepared.try_recv() {
            Ok(error) => Err(error).with_context(|| format!("--export {}", export.name)),
            Err(_) => Ok(()),
        })
    }

    /// What was lost and not told yet: at once the first time, and then every ten seconds; all of it
    /// when it is the `last` time.
    pub fn dropped(&mut self, now: Instant, last: bool) -> Vec<Dropped> {
        let mut dropped = Vec::new();
        for export in &mut self.0 {
            let is_due = export
                .told_at
                .is_none_or(|at| now.duration_since(at) >= TELL_EVERY);
            if !last && !is_due {
                continue;
            }
            let account = export.queue.account();
            let grown = account.lost.since(&export.told.lost);
            dropped.extend(grown.rows().map(|(reason, count)| Dropped {
                to: export.name.clone(),
                count,
                reason,
                error: account.error.clone(),
            }));
            if grown.total() > 0 {
                export.told_at = Some(now);
            }
            export.told = account;
        }
        dropped
    }

    /// Which exports began to fail or to deliver again since this was asked last.
    pub fn news(&mut self) -> Vec<News> {
        let mut news = Vec::new();
        for export in &mut self.0 {
            let failing = export.queue.account().failing;
            match (&failing, &export.failing) {
                (Some(error), None) => {
                    news.push(News::Failing(export.name.clone(), error.clone()));
                }
                (None, Some(_)) => news.push(News::Delivering(export.name.clone())),
                _ => {}
            }
            export.failing = failing;
        }
        news
    }

    /// Nothing more comes: waits until everything is delivered, five seconds at most over all exports, and
    /// counts the rest as lost.
    pub async fn close(&mut self) {
        let deadline = tokio::time::Instant::now() + FLUSH;
        for export in &self.0 {
            export.queue.close();
        }
        for export in &self.0 {
            // Whether it is in time or not, the accounts are closed below.
            let _ = tokio::time::timeout_at(deadline, export.queue.left()).await;
            export.queue.end();
        }
    }

    /// The name and the account of each export.
    pub fn accounts(&self) -> impl Iterator<Item = (&str, Account)> {
        let accounts = self.0.iter();
        accounts.map(|export| (export.name.as_str(), export.queue.account()))
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
            .start(&destination, None, |_| Ok(()))
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
        assert_eq!(*told, name);
        assert!(why.starts_with("cannot connect: No such file"), "{why}");
        assert_eq!(exports.news(), []);
        let listener = UnixListener::bind(&path).expect("the directory is ours");
        let (server, _) = listener.accept().expect("it is tried again");
        let read = io::BufRead::lines(io::BufReader::new(&server));
        assert_eq!(read.take(1).count(), 1);
        assert_eq!(
            until(|| exports.news().pop()),
            News::Delivering(name.clone())
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
            .start(&destination, None, |_| Err(anyhow!("no seccomp today")))
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
            .start(&destination, None, |_| Ok(()))
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
