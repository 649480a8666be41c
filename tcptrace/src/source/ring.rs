//! The ring buffer the kernel half writes to.

use std::io;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::Source;

/// Whoever hands over the first record after the ring was empty wakes the agent, which costs that
/// process microseconds. So the ring is not emptied more often than this: what comes meanwhile
/// wakes nobody. A record that comes alone is taken at once.
const PAUSE: Duration = Duration::from_millis(1);

/// The agent's end of the ring.
#[expect(missing_debug_implementations, reason = "aya's ring has none")]
pub struct Ring {
    ring: AsyncFd<RingBuf<MapData>>,
    /// When records were last taken.
    drained: Instant,
}

impl Ring {
    /// Registers the ring with the running tokio reactor.
    ///
    /// # Errors
    /// The reactor refuses the descriptor.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring owns its descriptor and hands out the same one until it is dropped.
        let ring = unsafe { AsyncFd::register(ring) }.map_err(Into::<io::Error>::into)?;
        Ok(Self {
            ring,
            drained: Instant::now(),
        })
    }
}

impl Source for Ring {
    async fn ready(&mut self) -> io::Result<()> {
        let mut readable = self.ring.readable_mut().await?;
        sleep_until(self.drained + PAUSE).await;
        readable.clear_ready();
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
        self.drained = Instant::now();
        taken
    }
}
