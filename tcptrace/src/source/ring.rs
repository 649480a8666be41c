//! The ring buffer the kernel half writes to.

use std::io;

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;

use super::Source;

/// The agent's end of the ring.
#[expect(missing_debug_implementations, reason = "aya's ring has none")]
pub struct Ring {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Ring {
    /// Registers the ring with the running tokio reactor.
    ///
    /// # Errors
    /// The reactor refuses the descriptor.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring owns its descriptor and hands out the same one until it is dropped.
        let ring = unsafe { AsyncFd::register(ring) }.map_err(Into::<io::Error>::into)?;
        Ok(Self { ring })
    }
}

impl Source for Ring {
    async fn ready(&mut self) -> io::Result<()> {
        self.ring.readable_mut().await?.clear_ready();
        Ok(())
    }

    fn drain(&mut self, limit: usize, mut each: impl FnMut(&[u8])) -> usize {
        let ring = self.ring.get_mut();
        let mut taken = 0;
        while taken < limit
            && let Some(record) = ring.next()
        {
            each(&record);
            taken += 1;
        }
        taken
    }
}
