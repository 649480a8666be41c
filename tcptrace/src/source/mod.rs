//! Where events come from.

pub mod ring;
pub mod stacks;

use std::io;

/// Something that yields records of the kernel half.
pub trait Source {
    /// Waits until there may be records. Those there are must be drained before the next wait.
    ///
    /// # Errors
    /// It cannot be waited for any more.
    fn ready(&mut self) -> impl Future<Output = io::Result<()>>;

    /// Hands over at most `limit` records; says how many there were.
    fn drain(&mut self, limit: usize, each: impl FnMut(&[u8])) -> usize;
}
