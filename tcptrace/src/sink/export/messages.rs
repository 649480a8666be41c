//! What a person is told while events come, on standard error.

use std::fmt;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, mpsc};

use super::local::{Stderr, write_out};
use super::queue::Queue;
use super::{Delivery, FLUSH};
use crate::event::Count;
use crate::sink::text::printable;

/// Bytes that may wait.
const ROOM: usize = 1 << 20;

/// Says things on standard error without waiting for whoever reads them.
#[derive(Clone)]
pub struct Messages {
    queue: Arc<Queue>,
    is_quiet: bool,
}

impl Messages {
    /// Says this in a line of its own, unless nothing but warnings is to be said.
    pub fn say(&self, what: impl fmt::Display) {
        if !self.is_quiet {
            self.warn(what);
        }
    }

    /// Says this in a line of its own.
    pub fn warn(&self, what: impl fmt::Display) {
        self.put(format!("tcptrace: {}\n", printable(what)).into());
    }

    /// Shows these lines, unless nothing but warnings is to be said.
    pub fn show(&self, lines: Vec<u8>) {
        if !self.is_quiet {
            self.put(lines);
        }
    }

    fn put(&self, lines: Vec<u8>) {
        self.queue.push(lines.into(), 1);
        self.queue.wake();
    }
}

/// The thread that says things. Dropping this waits five seconds at most until it has.
pub struct Speaker {
    delivery: Delivery,
    messages: Messages,
}

impl Speaker {
    /// Starts the thread, which before anything else does `prepare`: gives up what writing does not take.
    ///
    /// # Errors
    /// There is no thread to be had, standard error is not open, or `prepare` fails.
    pub fn start(
        is_quiet: bool,
        prepare: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let to = io::stderr().as_fd().try_clone_to_owned()?;
        let (tell, told) = mpsc::sync_channel(1);
        let deliver = move |queue: &Queue| {
            let prepared = prepare();
            let is_prepared = prepared.is_ok();
            // The caller waits.
            let _ = tell.send(prepared);
            if is_prepared {
                write_out(queue, &mut Stderr(std::fs::File::from(to)))?;
            }
            Ok(())
        };
        let queue = Queue::with_room(ROOM);
        let delivery = Delivery::start("stderr".to_owned(), "stderr", queue, deliver)?;
        told.recv()??;
        let queue = Arc::clone(&delivery.queue);
        let messages = Messages { queue, is_quiet };
        Ok(Self { delivery, messages })
    }

    /// What says things through it.
    #[must_use]
    pub fn messages(&self) -> Messages {
        self.messages.clone()
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let left_out = self.delivery.queue.account().lost.total();
        if left_out > 0 {
            let left_out = Count(left_out, "message");
            self.messages.warn(format_args!(
                "{left_out} left out: standard error took none"
            ));
        }
        self.delivery.queue.close();
        // Whoever reads nothing will not be waited for.
        let _ = self.delivery.failed.recv_timeout(FLUSH);
    }
}
