//! What a page tells of processes and of listeners: tables of them, and charts of those that most happened to.

use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};

use super::super::chart::{Chart, Layer, Shape};
use super::super::rows::{ListenerRow, ProcessRow, Queue, ROWS, Reset};
use super::super::scale::Series;
use super::super::words::clean;
use super::super::{Report, Source};
use super::{LISTED, piece};
use crate::event::Count;

/// Rows of a table that are shown at once.
const OPEN: usize = 20;
/// Processes and listeners with charts.
const DRAWN: usize = 6;

pub(super) fn processes(report: &Report, source: &Source<'_>) -> Markup {
    let rows = report.processes();
    let (listed, unlisted) = rows.split_at(rows.len().min(LISTED));
    let (open, folded) = listed.split_at(listed.len().min(OPEN));
    let drawn = &rows[..rows.len().min(DRAWN)];
    html! {
        @if !rows.is_empty() {
            section {
                h2 { "Processes" }
                (table(open, source))
                @if !folded.is_empty() {
                    details {
                        summary { (folded.len()) " more with fewer events" }
                        (table(folded, source))
                    }
                }
                @let unlisted = unlisted.iter().map(|row| row.events).sum::<u64>();
                (beyond(rows.len() - listed.len(), unlisted, "process", "processes"))
                (beyond_rows(report.processes.beyond, "processes"))
                @for (nth, row) in drawn.iter().enumerate() { (process(report, source, nth, row)) }
                @if rows.len() > drawn.len() {
                    p class="soft" { "Charts are of the processes that most happened to." }
                }
            }
        }
    }
}

fn table(rows: &[&ProcessRow], source: &Source<'_>) -> Markup {
    let errors = |row: &ProcessRow| {
        let errors = row.errors();
        let named = errors.iter().map(|(name, count)| format!("{count} {name}"));
        named.collect::<Vec<_>>().join(", ")
    };
    html! {
        div class="scroll" { table {
            thead { tr {
                th scope="col" { "Process" }
                th scope="col" class="number" { "RSTs sent" }
                th scope="col" class="number" { "RSTs received" }
                th scope="col" class="number" { "Stuck in CLOSE_WAIT" }
                th scope="col" { "Failed calls" }
            } }
            tbody { @for row in rows { tr {
                th scope="row" { (clean(&row.process)) (source.of_run(row.run)) }
                (number(row.sent))
                (number(row.received))
                (number(row.stuck))
                td { (errors(row)) }
            } } }
        } }
    }
}

/// A cell, which stands out where something happened.
fn number(number: u64) -> Markup {
    html! { td class=(if number == 0 { "number zero" } else { "number" }) { (number) } }
}

fn beyond(rows: usize, events: u64, one: &str, many: &str) -> Markup {
    html! {
        @if rows > 0 {
            p class="soft" {
                (rows) " more " (if rows == 1 { one } else { many }) " with " (Count(events, "event")) ": not listed."
            }
        }
    }
}

fn beyond_rows(events: u64, what: &str) -> Markup {
    html! {
        @if events > 0 {
            p class="soft" {
                (Count(events, "event")) " of " (what) " beyond the first " (ROWS) " of the recording: in no row."
            }
        }
    }
}

fn process(report: &Report, source: &Source<'_>, nth: usize, row: &ProcessRow) -> Markup {
    let resets = row.resets.points(&report.scale);
    let of = |wanted| {
        let points = resets.iter().filter(|((_, way), _)| *way == wanted);
        points
            .map(|(&(piece, _), &number)| (piece, number))
            .collect()
    };
    let layer = |name: &str, shape, color, points: BTreeMap<u64, u64>| Layer {
        name: name.to_owned(),
        shape,
        color,
        points,
    };
    let mut layers = vec![
        layer("RSTs sent", Shape::Bars, 1, of(Reset::Sent)),
        layer("RSTs received", Shape::Bars, 0, of(Reset::Received)),
    ];
    layers.retain(|layer| !layer.points.is_empty());
    let resets = Chart {
        id: format!("resets-{nth}"),
        title: format!("RSTs per {}", piece(report)),
        about: "RSTs sent and received over time as stacked bars.",
        scale: &report.scale,
        wide: false,
        layers,
    };
    let leaked = Chart {
        id: format!("leaked-{nth}"),
        title: "Connections that stayed in CLOSE_WAIT, added up".to_owned(),
        about: "How many there had been, from when each peer closed. Those that were closed later are among them.",
        scale: &report.scale,
        wide: false,
        layers: vec![layer(
            "in CLOSE_WAIT",
            Shape::Steps,
            4,
            growth(report, &row.leaked),
        )],
    };
    let errors = row.errors();
    html! {
        div class="panel" {
            h3 { (clean(&row.process)) (source.of_run(row.run)) }
            @let container = row.process.container.as_ref();
            p class="soft" {
                "user " (row.process.uid)
                @if let Some(path) = &row.process.exe { " · " (clean(path)) }
                @if let Some(container) = container { " · container " (clean(&container.id)) }
            }
            div class="charts" {
                @if !resets.layers.is_empty() { (resets.figure()) }
                @if row.stuck > 0 { (leaked.figure()) }
                @if !errors.is_empty() { (bars("Failed calls by error", &errors)) }
            }
        }
    }
}

/// Numbers that add up as time passes.
fn growth(report: &Report, series: &Series<()>) -> BTreeMap<u64, u64> {
    let mut total = 0_u64;
    let points = series.points(&report.scale).into_iter();
    points
        .map(|((piece, ()), number)| {
            total = total.saturating_add(number);
            (piece, total)
        })
        .collect()
}

/// Bars that lie, with their numbers.
fn bars(title: &str, rows: &[(&str, u64)]) -> Markup {
    let most = rows
        .iter()
        .map(|(_, number)| *number)
        .max()
        .unwrap_or(1)
        .max(1);
    html! {
        figure class="half" {
            figcaption { (title) }
            table class="bars" { tbody { @for (name, number) in rows {
                @let percent = u128::from(*number) * 100 / u128::from(most);
                tr {
                    th scope="row" { (name) }
                    td { div style=(format!("width:{percent}%")) {} }
                    td class="number" { (number) }
                }
            } } }
        }
    }
}

pub(super) fn listeners(report: &Report, source: &Source<'_>) -> Markup {
    let rows = report.listeners();
    let (listed, unlisted) = rows.split_at(rows.len().min(LISTED));
    let drawn = rows
        .iter()
        .filter(|row| row.overflows > 0 || row.syns > 0 || row.longest.is_some());
    let known = |number: Option<u32>| number.map_or("not known".to_owned(), |it| it.to_string());
    html! {
        @if !rows.is_empty() {
            section {
                h2 { "Listeners with full queues" }
                div class="scroll" { table {
                    thead { tr {
                        th scope="col" { "Listener" }
                        th scope="col" { "Owner" }
                        th scope="col" class="number" { "Accept queue overflows" }
                        th scope="col" class="number" { "Longest queue" }
                        th scope="col" class="number" { "Its limit" }
                        th scope="col" class="number" { "Asked of listen()" }
                        th scope="col" class="number" { "SYNs dropped or with cookies" }
                    } }
                    tbody { @for row in listed { tr {
                        th scope="row" { (row.at) (source.of_run(row.run)) }
                        td class="name" { (row.owner()) }
                        (number(row.overflows))
                        td class="number" { (known(row.longest)) }
                        td class="number" { (known(row.limit)) }
                        td class="number" { (known(row.backlog)) }
                        (number(row.syns))
                    } } }
                } }
                @let unlisted = unlisted.iter().map(|row| row.overflows.saturating_add(row.syns)).fold(0, u64::saturating_add);
                (beyond(rows.len() - listed.len(), unlisted, "listener", "listeners"))
                (beyond_rows(report.listeners.beyond, "listeners"))
                @for (nth, row) in drawn.take(DRAWN).enumerate() { (listener(report, source, nth, row)) }
                p class="soft" { "The length of a queue is recorded when it overflows, not in between." }
            }
        }
    }
}

fn listener(report: &Report, source: &Source<'_>, nth: usize, row: &ListenerRow) -> Markup {
    let queue = row.queue.points(&report.scale);
    let of = |wanted| -> BTreeMap<u64, u64> {
        let points = queue.iter().filter(|((_, which), _)| *which == wanted);
        points
            .map(|(&(piece, _), &number)| (piece, number))
            .collect()
    };
    let (length, limit) = (of(Queue::Length), of(Queue::Limit));
    let mut depth = vec![Layer {
        name: "longest accept queue".to_owned(),
        shape: Shape::Bars,
        color: 5,
        points: length,
    }];
    if !limit.is_empty() {
        depth.push(Layer {
            name: "its limit, which it exceeds by one when full".to_owned(),
            shape: Shape::Limit,
            color: 0,
            points: limit,
        });
    }
    let depth = Chart {
        id: format!("queue-{nth}"),
        title: "Accept queue against its limit".to_owned(),
        about: "The longest the accept queue was as bars, its limit as a line.",
        scale: &report.scale,
        wide: false,
        layers: depth,
    };
    let lost = row.lost.points(&report.scale);
    let names: BTreeSet<_> = lost.keys().map(|(_, name)| *name).collect();
    let layers = names.into_iter().enumerate().map(|(nth, name)| {
        let points = lost.iter().filter(|((_, it), _)| *it == name);
        Layer {
            name: name.to_owned(),
            shape: Shape::Bars,
            color: nth,
            points: points
                .map(|(&(piece, _), &number)| (piece, number))
                .collect(),
        }
    });
    let lost = Chart {
        id: format!("lost-{nth}"),
        title: format!("Handshakes lost per {}, by segment", piece(report)),
        about: "Lost handshakes over time as stacked bars, by what was dropped.",
        scale: &report.scale,
        wide: false,
        layers: layers.collect(),
    };
    html! {
        div class="panel" {
            h3 { (row.at) " " span class="soft" { (row.owner()) (source.of_run(row.run)) } }
            div class="charts" {
                @if row.longest.is_some() { (depth.figure()) }
                @if !lost.layers.is_empty() { (lost.figure()) }
            }
        }
    }
}
