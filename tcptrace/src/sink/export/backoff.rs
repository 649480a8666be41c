//! How long to wait before the next try: twice as long at most each time, and by chance, so that many
//! hosts do not come back at once to a server that has just started again.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// Tries in a row that failed.
#[derive(Debug, Default)]
pub(super) struct Backoff(u32);

impl Backoff {
    /// Something was delivered.
    pub(super) fn reset(&mut self) {
        self.0 = 0;
    }

    /// The time before the next try: anything up to the ceiling ("full jitter").
    pub(super) fn next(&mut self) -> Duration {
        let ceiling = self.ceiling();
        self.0 = self.0.saturating_add(1);
        // The library's hashes are keyed by chance.
        let chance = RandomState::new().hash_one(self.0) >> 32;
        let chance = u32::try_from(chance).unwrap_or_default();
        ceiling.mul_f64(f64::from(chance) / f64::from(u32::MAX))
    }

    fn ceiling(&self) -> Duration {
        FIRST
            .saturating_mul(1_u32.checked_shl(self.0).unwrap_or(u32::MAX))
            .min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_ten_seconds_and_begins_again() {
        let mut backoff = Backoff::default();
        let ceilings: Vec<_> = (0..9)
            .map(|_| {
                let ceiling = backoff.ceiling();
                assert!(backoff.next() <= ceiling);
                ceiling.as_millis()
            })
            .collect();
        assert_eq!(
            ceilings,
            [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]
        );
        for _ in 0..100 {
            backoff.next();
        }
        assert_eq!(backoff.ceiling(), LONGEST, "also after very many tries");
        backoff.reset();
        assert_eq!(backoff.ceiling(), FIRST);
    }

    #[test]
    fn hosts_do_not_come_back_together() {
        let waits: std::collections::BTreeSet<_> = (0..64)
            .map(|_| {
                let mut backoff = Backoff(6);
                backoff.next()
            })
            .collect();
        assert!(waits.len() > 32, "{waits:?}");
    }
}
