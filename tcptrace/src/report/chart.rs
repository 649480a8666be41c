//! Charts as plain SVG, each with all of its numbers in a table beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use maud::{Markup, html};

use super::scale::Scale;
use super::words::moment;
use crate::event::Timestamp;

/// Numbers over time.
pub(super) struct Chart<'a> {
    /// Names it on its page.
    pub(super) id: String,
    pub(super) title: String,
    /// What it shows, for who does not see it.
    pub(super) about: &'a str,
    pub(super) scale: &'a Scale,
    /// It has the page's whole width; else half of it.
    pub(super) wide: bool,
    pub(super) layers: Vec<Layer>,
}

/// Numbers of one sort.
pub(super) struct Layer {
    pub(super) name: String,
    pub(super) shape: Shape,
    /// Which of the style's colours.
    pub(super) color: usize,
    /// By piece of the scale.
    pub(super) points: BTreeMap<u64, u64>,
}

/// How numbers are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// On top of the bars before them.
    Bars,
    /// Each holds until the next.
    Steps,
    /// The same, as a line that others are held against.
    Limit,
}

/// Colours of the style. The last is for what is left over.
pub(super) const COLORS: usize = 8;

/// Units of the drawing; the style shows two as one pixel.
const LEFT: u64 = 96;
const TOP: u64 = 16;
const BOTTOM: u64 = 48;
const RIGHT: u64 = 24;
/// What is written closer to the right edge than this ends at its mark.
const LAST: u64 = 84;
/// No bar is wider, however few there are.
const WIDEST: u64 = 56;

const SECOND: u64 = 1_000_000_000;
/// Distances of the marks of time, in tenths of a second.
const MARKS: [u64; 36] = [
    1,
    2,
    5,
    10,
    20,
    50,
    100,
    150,
    300,
    600,
    1_200,
    3_000,
    6_000,
    9_000,
    18_000,
    36_000,
    72_000,
    108_000,
    216_000,
    432_000,
    864_000,
    1_728_000,
    4_320_000,
    8_640_000,
    17_280_000,
    43_200_000,
    86_400_000,
    172_800_000,
    432_000_000,
    864_000_000,
    1_728_000_000,
    4_320_000_000,
    8_640_000_000,
    17_280_000_000,
    43_200_000_000,
    86_400_000_000,
];

impl Chart<'_> {
    /// The figure: title, drawing, key and numbers.
    pub(super) fn figure(&self) -> Markup {
        let Self { id, title, .. } = self;
        let (width, height) = self.size();
        html! {
            figure class=(if self.wide { "wide" } else { "half" }) {
                figcaption { (title) }
                svg viewBox=(format!("0 0 {width} {height}")) role="img" aria-labelledby=(format!("{id}-t {id}-d")) {
                    title id=(format!("{id}-t")) { (title) }
                    desc id=(format!("{id}-d")) { (self.about) " All numbers are in the table below." }
                    (self.heights())
                    (self.times())
                    (self.bars())
                    @for layer in &self.layers { (self.steps(layer)) }
                }
                (self.key())
                (self.numbers())
            }
        }
    }

    fn size(&self) -> (u64, u64) {
        if self.wide { (1920, 440) } else { (944, 320) }
    }

    /// The greatest number that has to have room, made round.
    fn top(&self) -> u64 {
        let mut stacked: BTreeMap<u64, u64> = BTreeMap::new();
        let mut most = 1;
        for layer in &self.layers {
            for (&piece, &number) in &layer.points {
                let height = match layer.shape {
                    Shape::Bars => {
                        let height = stacked.entry(piece).or_insert(0);
                        *height = height.saturating_add(number);
                        *height
                    }
                    Shape::Steps | Shape::Limit => number,
                };
                most = most.max(height);
            }
        }
        round(most)
    }

    /// Where a piece begins.
    fn x(&self, piece: u64) -> u64 {
        let (first, last) = self.scale.pieces();
        let room = self.size().0 - LEFT - RIGHT;
        let from = piece.saturating_sub(first);
        LEFT + part(from.into(), (last - first + 1).into(), room)
    }

    fn y(&self, number: u64) -> u64 {
        let room = self.size().1 - TOP - BOTTOM;
        TOP + room - part(number.into(), self.top().into(), room)
    }

    fn heights(&self) -> Markup {
        let (width, top) = (self.size().0, self.top());
        let half = (top % 2 == 0).then_some(top / 2);
        let lines = [Some(0), half, Some(top)].into_iter().flatten();
        html! {
            @for number in lines {
                @let y = self.y(number);
                line class="grid" x1=(LEFT) x2=(width - RIGHT) y1=(y) y2=(y) {}
                text class="y" x=(LEFT - 12) y=(y + 8) { (short(number)) }
            }
        }
    }

    fn times(&self) -> Markup {
        let (first, last) = self.scale.pieces();
        let width = u128::from(self.scale.width());
        let (begin, end) = (u128::from(first) * width, u128::from(last + 1) * width);
        let most = if self.wide { 8 } else { 4 };
        let steps = MARKS.map(|tenths| u128::from(tenths) * u128::from(SECOND / 10));
        let fits = |step: &u128| (end - begin) / step < most;
        let step = steps.into_iter().find(fits).unwrap_or(end - begin).max(1);
        let day = u128::from(86_400 * SECOND);
        let format = match step {
            _ if step >= day => "%Y-%m-%d",
            _ if begin / day != (end - 1) / day => "%m-%d %H:%M",
            _ if step >= u128::from(60 * SECOND) => "%H:%M",
            _ if step >= u128::from(SECOND) => "%H:%M:%S",
            _ => "%H:%M:%S%.1f",
        };
        let room = self.size().0 - LEFT - RIGHT;
        let marks = (begin.div_ceil(step)..=end / step).filter_map(|nth| {
            let time = u64::try_from(nth * step).ok()?;
            let x = LEFT + part(nth * step - begin, end - begin, room);
            Some((x, moment(Timestamp(time), format)))
        });
        let bottom = self.y(0);
        html! {
            @for (x, text) in marks {
                line class="mark" x1=(x) x2=(x) y1=(bottom) y2=(bottom + 8) {}
                @let is_last = x + LAST > self.size().0;
                text class=(if is_last { "x last" } else { "x" }) x=(x) y=(bottom + 36) { (text) }
            }
        }
    }

    fn bars(&self) -> Markup {
        let mut below: BTreeMap<u64, u64> = BTreeMap::new();
        let bars = self.layers.iter().filter(|it| it.shape == Shape::Bars);
        html! {
            @for layer in bars {
                @for (&piece, &number) in layer.points.iter().filter(|(_, number)| **number > 0) {
                    @let base = below.entry(piece).or_insert(0);
                    @let (low, high) = (self.y(*base), self.y(base.saturating_add(number)));
                    @let x = self.x(piece);
                    @let room = self.x(piece + 1) - x;
                    rect class=(format!("c{}", layer.color)) x=(x) y=(high.min(low.saturating_sub(2)))
                        width=(room.saturating_sub(1).clamp(2, WIDEST)) height=((low - high).max(2)) {
                        title { (self.time(piece)) " " (layer.name) ": " (number) }
                    }
                    @let () = *base = base.saturating_add(number);
                }
            }
        }
    }

    fn steps(&self, layer: &Layer) -> Markup {
        let class = match layer.shape {
            Shape::Bars => return html! {},
            Shape::Steps => format!("steps c{}", layer.color),
            Shape::Limit => "limit".to_owned(),
        };
        let mut path = String::new();
        for (&piece, &number) in &layer.points {
            let (x, y) = (self.x(piece), self.y(number));
            let _ = match (path.is_empty(), layer.shape) {
                (true, Shape::Steps) => write!(path, "M{x} {}V{y}", self.y(0)),
                (true, _) => write!(path, "M{x} {y}"),
                (false, _) => write!(path, "H{x}V{y}"),
            };
        }
        let _ = write!(path, "H{}", self.size().0 - RIGHT);
        html! { path class=(class) d=(path) {} }
    }

    /// What the colours stand for.
    fn key(&self) -> Markup {
        html! {
            ul class="key" {
                @for layer in &self.layers {
                    li {
                        @let class = match layer.shape {
                            Shape::Limit => "limit".to_owned(),
                            _ => format!("c{}", layer.color),
                        };
                        svg viewBox="0 0 24 24" aria-hidden="true" {
                            @if layer.shape == Shape::Limit {
                                path class=(class) d="M0 12H24" {}
                            } @else {
                                rect class=(class) width="24" height="24" {}
                            }
                        }
                        (layer.name)
                    }
                }
            }
        }
    }

    fn numbers(&self) -> Markup {
        let pieces: BTreeSet<u64> = self
            .layers
            .iter()
            .flat_map(|layer| layer.points.keys().copied())
            .collect();
        html! {
            details class="numbers" {
                summary { "Numbers" }
                table {
                    thead {
                        tr {
                            th scope="col" { "From (UTC)" }
                            @for layer in &self.layers { th scope="col" class="number" { (layer.name) } }
                        }
                    }
                    tbody {
                        @for piece in pieces {
                            tr {
                                th scope="row" { (self.time(piece)) }
                                @for layer in &self.layers {
                                    td class="number" { @if let Some(number) = layer.points.get(&piece) { (number) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn time(&self, piece: u64) -> String {
        let time = Timestamp(piece.saturating_mul(self.scale.width()));
        let format = if self.scale.width() < SECOND {
            "%Y-%m-%d %H:%M:%S%.1f"
        } else {
            "%Y-%m-%d %H:%M:%S"
        };
        moment(time, format)
    }
}

/// As much of the room as the number is of the whole.
fn part(number: u128, whole: u128, room: u64) -> u64 {
    let part = number * u128::from(room) / whole.max(1);
    u64::try_from(part).unwrap_or(room).min(room)
}

/// The next number that is round: one digit and zeroes.
fn round(number: u64) -> u64 {
    let mut unit = 1_u64;
    loop {
        for times in [1, 2, 3, 4, 5, 6, 8] {
            match unit.checked_mul(times) {
                Some(round) if round >= number => return round,
                Some(_) => {}
                None => return u64::MAX,
            }
        }
        match unit.checked_mul(10) {
            Some(next) => unit = next,
            None => return u64::MAX,
        }
    }
}

/// A round number in a few characters.
fn short(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..10_000_000 => format!("{}k", number / 1_000),
        10_000_000..10_000_000_000 => format!("{}M", number / 1_000_000),
        _ => format!("{}G", number / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_ends_at_a_round_number() {
        for (number, expected) in [
            (1, 1),
            (2, 2),
            (7, 8),
            (9, 10),
            (11, 20),
            (201, 300),
            (u64::MAX, u64::MAX),
        ] {
            assert_eq!(round(number), expected);
        }
        let all = [1, 5_000, 20_000, 10_000_000, u64::MAX].map(short);
        assert_eq!(all, ["1", "5000", "20k", "10M", "18446744073G"]);
    }

    #[test]
    fn marks_of_time_can_be_found_for_any_time() {
        for pair in MARKS.windows(2) {
            assert!(pair[0] < pair[1], "{pair:?}");
        }
        for last in [1, SECOND, 3_600 * SECOND, u64::MAX] {
            let mut scale = Scale::default();
            scale.see(Timestamp(0));
            scale.see(Timestamp(last));
            for wide in [false, true] {
                let chart = Chart {
                    id: "c".to_owned(),
                    title: String::new(),
                    about: "",
                    scale: &scale,
                    wide,
                    layers: Vec::new(),
                };
                let marks = chart.times().into_string();
                let marks = marks.matches("<text").count();
                assert!((1..=9).contains(&marks), "{last}: {marks}");
            }
        }
    }
}
