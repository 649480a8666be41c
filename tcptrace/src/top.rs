//! `tcptrace top`: processes, listeners and findings on a screen that is kept up to date.
//!
//! Events and what is polled go into a [`View`], which knows no terminal. `draw` makes a screen of it and
//! of what the person at the keys has chosen (`ui`). A thread of its own draws and reads the keys
//! (`screen`): a terminal that takes its time holds up no event.

mod draw;
mod keys;
mod model;
mod screen;
mod terminal;
mod theme;
mod ui;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::event::Event;
use crate::sink::{Error, Sink};
pub use draw::Title;
pub use model::{Accepting, Descriptors, Listening, Looked, Pid, View, Waiting};
pub use screen::Screen;
pub use terminal::{check, restore};
pub use theme::Theme;

/// A view that one thread fills and another draws.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<View>>);

impl Shared {
    /// Looks at it or changes it. Whoever held it and panicked left it whole: each change is to one field.
    pub fn lock(&self) -> MutexGuard<'_, View> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Shared {
    fn write(&mut self, event: &Event, _: &Bytes) -> Result<(), Error> {
        self.lock().apply(event);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}
