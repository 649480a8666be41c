//! Time in so few pieces that a chart shows them all, however long a recording is.

use std::collections::BTreeMap;

use crate::event::Timestamp;

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400 * SECOND;

/// How long a piece may be, ns; each is a multiple of the one before, so that pieces can be joined.
const WIDTHS: [u64; 16] = [
    SECOND / 10,
    SECOND / 2,
    SECOND,
    5 * SECOND,
    10 * SECOND,
    30 * SECOND,
    60 * SECOND,
    300 * SECOND,
    600 * SECOND,
    1_800 * SECOND,
    3_600 * SECOND,
    21_600 * SECOND,
    DAY,
    10 * DAY,
    100 * DAY,
    // Two hundred of these are longer than a timestamp can say.
    1_100 * DAY,
];

/// Pieces of a chart.
pub(super) const MOST: u64 = 200;

/// A time that was recorded, in at most [`MOST`] pieces.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scale {
    step: usize,
    period: Option<(Timestamp, Timestamp)>,
}

impl Scale {
    /// Reaches to this time.
    pub(super) fn see(&mut self, time: Timestamp) {
        let (first, last) = self.period.unwrap_or((time, time));
        let (first, last) = (first.min(time), last.max(time));
        self.period = Some((first, last));
        while last.0 / self.width() - first.0 / self.width() >= MOST && self.step + 1 < WIDTHS.len()
        {
            self.step += 1;
        }
    }

    /// The first and the last time.
    pub(super) fn period(&self) -> Option<(Timestamp, Timestamp)> {
        self.period
    }

    /// How long a piece is, ns.
    pub(super) fn width(&self) -> u64 {
        WIDTHS[self.step]
    }

    /// The numbers of the first piece and of the last.
    pub(super) fn pieces(&self) -> (u64, u64) {
        let (first, last) = self.period.unwrap_or_default();
        (first.0 / self.width(), last.0 / self.width())
    }
}

/// Numbers over time, by `K`.
#[derive(Clone, Debug)]
pub(super) struct Series<K> {
    step: usize,
    join: fn(u64, u64) -> u64,
    /// By piece.
    points: BTreeMap<(u64, K), u64>,
}

impl<K: Copy + Ord> Series<K> {
    /// Numbers that add up.
    pub(super) fn of_sums() -> Self {
        Self {
            step: 0,
            join: u64::saturating_add,
            points: BTreeMap::new(),
        }
    }

    /// Numbers of which a piece has the greatest.
    pub(super) fn of_peaks() -> Self {
        Self {
            join: u64::max,
            ..Self::of_sums()
        }
    }

    /// Takes a number at a time that the scale reaches to.
    pub(super) fn add(&mut self, scale: &Scale, time: Timestamp, key: K, number: u64) {
        self.widen(scale);
        self.put((time.0 / scale.width(), key), number);
    }

    /// Takes a number as evenly as it can be parted over a time that the scale reaches to.
    pub(super) fn spread(
        &mut self,
        scale: &Scale,
        (from, to): (Timestamp, Timestamp),
        key: K,
        number: u64,
    ) {
        self.widen(scale);
        let pieces = from.0 / scale.width()..=to.0.max(from.0) / scale.width();
        let count = u128::from(pieces.end() - pieces.start() + 1);
        let until = |nth: u128| u128::from(number) * nth / count;
        for (nth, piece) in (0..).zip(pieces) {
            let share = u64::try_from(until(nth + 1) - until(nth)).unwrap_or(number);
            if share > 0 {
                self.put((piece, key), share);
            }
        }
    }

    /// In the pieces of the scale as it is now.
    pub(super) fn points(&self, scale: &Scale) -> BTreeMap<(u64, K), u64> {
        let mut copy = self.clone();
        copy.widen(scale);
        copy.points
    }

    fn put(&mut self, place: (u64, K), number: u64) {
        let join = self.join;
        let there = self.points.entry(place).or_insert(0);
        *there = join(*there, number);
    }

    fn widen(&mut self, scale: &Scale) {
        if self.step == scale.step {
            return;
        }
        let times = scale.width() / WIDTHS[self.step];
        self.step = scale.step;
        for ((piece, key), number) in std::mem::take(&mut self.points) {
            self.put((piece / times, key), number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(points: &BTreeMap<(u64, char), u64>) -> u64 {
        points.values().sum()
    }

    #[test]
    fn widths_can_be_joined_and_reach_over_all_time() {
        for pair in WIDTHS.windows(2) {
            assert_eq!(pair[1] % pair[0], 0, "{pair:?}");
        }
        let mut scale = Scale::default();
        scale.see(Timestamp(u64::MAX));
        scale.see(Timestamp(0));
        let (first, last) = scale.pieces();
        assert!(last - first < MOST, "{last}");
    }

    #[test]
    fn what_was_counted_is_there_however_long_the_time_becomes() {
        let mut scale = Scale::default();
        let (mut sums, mut peaks) = (Series::of_sums(), Series::of_peaks());
        let mut counted = 0;
        // From the middle outwards, to a hundred days.
        for nth in 0..1_000_u64 {
            let away = nth * nth * nth * 8 * SECOND / 1_000;
            let time = if nth % 2 == 0 {
                Timestamp(1_000 * DAY + away)
            } else {
                Timestamp(1_000 * DAY - away)
            };
            scale.see(time);
            sums.add(&scale, time, 'a', nth);
            peaks.add(&scale, time, 'a', nth);
            counted += nth;
            assert!(sums.points(&scale).len() <= 200);
        }
        assert_eq!(scale.width(), DAY);
        assert_eq!(sum(&sums.points(&scale)), counted);
        let peaks = peaks.points(&scale);
        assert_eq!(peaks.values().max(), Some(&999));
        assert!(sum(&peaks) < counted);
    }

    #[test]
    fn what_happened_over_a_time_is_parted_evenly_and_nothing_is_lost() {
        let mut scale = Scale::default();
        let (from, to) = (Timestamp(10 * SECOND), Timestamp(11 * SECOND));
        scale.see(from);
        scale.see(to);
        let mut series = Series::of_sums();
        series.spread(&scale, (from, to), 'a', 25);
        let points = series.points(&scale);
        assert_eq!((points.len(), sum(&points)), (11, 25));
        assert!(points.values().all(|number| (2..=3).contains(number)));
        // What has come at a time, and what is told the wrong way round.
        series.spread(&scale, (to, to), 'b', 3);
        series.spread(&scale, (to, from), 'b', 3);
        assert_eq!(series.points(&scale)[&(110, 'b')], 6);
    }
}
