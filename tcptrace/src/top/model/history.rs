//! The last minute of a number, second by second.

use std::collections::VecDeque;

/// One value for each of the last seconds, the newest last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    past: VecDeque<u32>,
    /// Of the second that is not over yet.
    now: u32,
}

impl History {
    /// Seconds kept.
    pub const SECONDS: usize = 60;
    /// A rate is the mean of this many.
    const MEAN: usize = 5;

    /// So many more in this second.
    pub fn add(&mut self, count: u64) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.now = self.now.saturating_add(count);
    }

    /// It was this high in this second.
    pub fn reach(&mut self, level: u32) {
        self.now = self.now.max(level);
    }

    /// The second is over. The next one begins with `level`.
    pub fn roll(&mut self, level: u32) {
        if self.past.len() == Self::SECONDS {
            self.past.pop_front();
        }
        self.past.push_back(self.now);
        self.now = level;
    }

    /// How many in a second, over the last five that are over.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let recent = self.past.iter().rev().take(Self::MEAN);
        let seconds = recent.len();
        let sum: u32 = recent.fold(0, |sum, &count| sum.saturating_add(count));
        if seconds == 0 {
            return 0.0;
        }
        // No more than five.
        f64::from(sum) / f64::from(u8::try_from(seconds).unwrap_or(1))
    }

    /// The last `seconds` that are over, the newest last.
    pub fn last(&self, seconds: usize) -> impl Iterator<Item = u32> {
        let skipped = self.past.len().saturating_sub(seconds);
        self.past.iter().skip(skipped).copied()
    }

    /// Nothing happened in all of it.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.now == 0 && self.past.iter().all(|&count| count == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_seconds_that_are_over_and_a_minute_is_kept() {
        let mut history = History::default();
        history.add(10);
        assert!(history.rate().abs() < f64::EPSILON, "it is not over");
        history.roll(0);
        assert!((history.rate() - 10.0).abs() < f64::EPSILON);
        history.roll(0);
        assert!((history.rate() - 5.0).abs() < f64::EPSILON);
        for second in 0..100 {
            history.add(second);
            history.roll(0);
        }
        assert_eq!(history.last(1000).count(), History::SECONDS);
        assert_eq!(history.last(2).collect::<Vec<_>>(), [98, 99]);
        assert!((history.rate() - 97.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_level_goes_on_into_the_next_second() {
        let mut queue = History::default();
        queue.reach(7);
        queue.reach(3);
        queue.roll(3);
        queue.roll(3);
        assert_eq!(queue.last(2).collect::<Vec<_>>(), [7, 3]);
    }
}
