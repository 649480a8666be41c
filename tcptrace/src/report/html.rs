//! The page for a browser: one file that loads nothing, runs nothing and can be printed.

use std::collections::{BTreeMap, BTreeSet};

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{COLORS, Chart, Layer, Shape};
use super::scale::Series;
use super::{
    ListenerRow, ProcessRow, Queue, Report, Reset, Source, Told, Total, between, clean, utc, word,
};
use crate::event::{Count, EventId, Finding, Timestamp};
use crate::sink::text;

/// What a browser must not do, whatever is on the page.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
const STYLE: &str = include_str!("style.css");

/// Findings of one cause that are shown; and those of them that are open at once.
const SHOWN: usize = 20;
const OPEN: usize = 3;
/// Processes and listeners in a table; and those of them with charts.
const LISTED: usize = 100;
const DRAWN: usize = 6;

pub(super) fn page(report: &Report, source: &Source<'_>) -> Markup {
    let title = source.title();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="referrer" content="no-referrer";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                // Ours, and it has nothing of a recording in it.
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (title) }
                    p class="lead" { (report.headline()) }
                    p class="soft" { (report.time()) }
                }
                main {
                    (overview(report))
                    (findings(report, source))
                    (processes(report, source))
                    (listeners(report, source))
                    (seen(report, source))
                    (about(source))
                }
            }
        }
    }
}

fn overview(report: &Report) -> Markup {
    let totals = report.findings.totals();
    html! {
        section {
            h2 { "Failures by cause" }
            @if totals.is_empty() {
                p { "No failure was found in what was recorded." }
            } @else {
                (timeline(report, &totals))
                div class="scroll" { table {
                    thead { tr {
                        th scope="col" { "Cause" }
                        th scope="col" { "Severity" }
                        th scope="col" class="number" { "Failures" }
                        th scope="col" class="number" { "Findings" }
                        th scope="col" { "First (UTC)" }
                        th scope="col" { "Last (UTC)" }
                    } }
                    tbody { @for total in &totals { tr {
                        th scope="row" { a href=(format!("#{}", total.cause.as_str())) { (total.cause.as_str()) } }
                        td { (badge(total)) }
                        td class="number" { (total.failures) }
                        td class="number" { (total.findings) }
                        td class="time" { (utc(total.first)) }
                        td class="time" { (utc(total.last)) }
                    } } }
                } }
            }
        }
    }
}

fn badge(total: &Total) -> Markup {
    let word = word(total.severity);
    html! { span class=(format!("badge {word}")) { (word) } }
}

/// The causes of most failures on top of each other, the others as one.
fn timeline(report: &Report, totals: &[Total]) -> Markup {
    let points = report.findings.failures.points(&report.scale);
    let mut causes: Vec<_> = totals.iter().map(|it| it.cause.as_str()).collect();
    causes.retain(|cause| points.keys().any(|(_, charted)| charted == cause));
    if causes.is_empty() {
        return html! {};
    }
    let failures = |cause: &&str| totals.iter().find(|it| it.cause.as_str() == *cause);
    causes.sort_by_key(|cause| std::cmp::Reverse(failures(cause).map(|it| it.failures)));
    let named = if causes.len() > COLORS {
        COLORS - 1
    } else {
        causes.len()
    };
    let mut layers: Vec<_> = (0..causes.len().min(COLORS))
        .map(|nth| Layer {
            name: if nth < named {
                causes[nth].to_owned()
            } else {
                Count((causes.len() - named) as u64, "other cause").to_string()
            },
            shape: Shape::Bars,
            color: nth,
            points: BTreeMap::new(),
        })
        .collect();
    for ((piece, cause), number) in points {
        let nth = causes.iter().position(|it| *it == cause);
        let nth = nth.unwrap_or(named).min(named);
        if let Some(layer) = layers.get_mut(nth) {
            *layer.points.entry(piece).or_insert(0) += number;
        }
    }
    let chart = Chart {
        id: "failures".to_owned(),
        title: format!("Failures per {}, by cause", piece(report)),
        about: "Failures over time as stacked bars, one colour for each cause.",
        scale: &report.scale,
        wide: true,
        layers,
    };
    chart.figure()
}

/// How long a piece of a chart is.
fn piece(report: &Report) -> String {
    between(Timestamp(0), Timestamp(report.scale.width()))
}

fn findings(report: &Report, source: &Source<'_>) -> Markup {
    html! {
        section {
            h2 { "Findings" }
            @for total in report.findings.totals() {
                @let told = report.findings.of(total.cause);
                @let (open, more) = told.split_at(told.len().min(OPEN));
                @let (more, unshown) = more.split_at(more.len().min(SHOWN - OPEN));
                h3 id=(total.cause.as_str()) { code { (total.cause.as_str()) } " " (badge(&total)) }
                p { (super::summary(total.cause)) }
                @for told in open { (finding(told, source)) }
                @if !more.is_empty() {
                    details {
                        summary { (Count(more.len() as u64, "more finding")) }
                        @for told in more { (finding(told, source)) }
                    }
                }
                @let left = total.findings.saturating_sub((told.len() - unshown.len()) as u64);
                @if left > 0 {
                    p class="soft" {
                        (Count(left, "finding")) " of this cause with fewer failures: counted, not shown."
                    }
                }
            }
        }
    }
}

fn anchor(id: EventId) -> String {
    format!("finding-{:x}", id.0)
}

fn finding(told: &Told, source: &Source<'_>) -> Markup {
    let Some(finding) = told.finding() else {
        return html! {};
    };
    let event = &told.event;
    html! {
        article class=(word(finding.severity)) id=(anchor(finding.id)) {
            h4 { (clean(&finding.title)) }
            p class="soft" { (facts(finding, source)) }
            dl {
                dt { "Why" } dd { (clean(&finding.why)) }
                dt { "Who" } dd { (clean(text::who(event, finding))) (source.on(event.id)) }
                @if let Some(cause) = event.caused_by {
                    dt { "Follows from" } dd { a href=(format!("#{}", anchor(cause))) { (source.id(cause)) } }
                }
                @if !finding.errors.is_empty() {
                    dt { "Programs got" } dd { (super::errors(finding)) }
                }
                @if !finding.fix.is_empty() {
                    dt { "Fix" } dd { (list(&finding.fix)) }
                }
                @if !finding.ruled_out.is_empty() {
                    dt { "It is not" } dd { (list(&finding.ruled_out)) }
                }
                dt { "More" } dd { code { "tcptrace explain " (finding.hint.unwrap_or(finding.cause).as_str()) } }
            }
            (evidence(told, finding, source))
        }
    }
}

fn list(lines: &[String]) -> Markup {
    html! {
        @if let [line] = lines { (clean(line)) } @else {
            ul { @for line in lines { li { (clean(line)) } } }
        }
    }
}

/// How often, how sure, when, and the name it has in the stream.
fn facts(finding: &Finding, source: &Source<'_>) -> Markup {
    html! {
        (Count(finding.count, "failure")) " · "
        @if let Some(hint) = finding.hint { "maybe " code { (hint.as_str()) } " · " }
        (finding.certainty.as_str()) " confidence · "
        span class="time" { (utc(finding.first)) }
        @if finding.last > finding.first { " and " (between(finding.first, finding.last)) " on" }
        " · " code { (source.id(finding.id)) }
    }
}

fn evidence(told: &Told, finding: &Finding, source: &Source<'_>) -> Markup {
    let evidence: Vec<_> = told.evidence().collect();
    let missing = finding.evidence.len() - evidence.len();
    html! {
        details class="evidence" {
            summary { "Evidence: " (super::rests_on(finding)) }
            div class="scroll" { table {
                thead { tr {
                    th scope="col" { "Time (UTC)" }
                    th scope="col" class="number" { "After" }
                    th scope="col" { "Event" }
                } }
                tbody { @for (id, (time, event)) in &evidence { tr {
                    td class="time" { (utc(*time)) }
                    td class="number" { "+" (between(finding.first, *time)) }
                    td class="event" { (event) (source.on(*id)) }
                } } }
            } }
            @if missing > 0 {
                p class="soft" { (Count(missing as u64, "event")) " more: not recorded, or too long before the finding." }
            }
        }
    }
}

fn processes(report: &Report, source: &Source<'_>) -> Markup {
    let rows = report.processes();
    let errors = |row: &ProcessRow| {
        let errors = row.errors();
        let named = errors.iter().map(|(name, count)| format!("{count} {name}"));
        named.collect::<Vec<_>>().join(", ")
    };
    let (listed, unlisted) = rows.split_at(rows.len().min(LISTED));
    let drawn = &rows[..rows.len().min(DRAWN)];
    html! {
        @if !rows.is_empty() {
            section {
                h2 { "Processes" }
                div class="scroll" { table {
                    thead { tr {
                        th scope="col" { "Process" }
                        th scope="col" class="number" { "RSTs sent" }
                        th scope="col" class="number" { "RSTs received" }
                        th scope="col" class="number" { "Stuck in CLOSE_WAIT" }
                        th scope="col" { "Failed calls" }
                    } }
                    tbody { @for row in listed { tr {
                        th scope="row" { (clean(&row.process)) (source.of_run(row.run)) }
                        td class="number" { (row.sent) }
                        td class="number" { (row.received) }
                        td class="number" { (row.stuck) }
                        td { (errors(row)) }
                    } } }
                } }
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
                (Count(events, "event")) " of " (what) " beyond the first " (super::ROWS) " of the recording: in no row."
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
        title: "Connections that stayed in CLOSE_WAIT".to_owned(),
        about: "Their number as it grew, from when each peer closed. When the process closed them is not counted.",
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

fn listeners(report: &Report, source: &Source<'_>) -> Markup {
    let rows = report.listeners();
    let (listed, unlisted) = rows.split_at(rows.len().min(LISTED));
    let drawn = rows
        .iter()
        .filter(|row| row.overflows + row.syns > 0 || row.longest.is_some());
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
                        td { (row.owner()) }
                        td class="number" { (row.overflows) }
                        td class="number" { (known(row.longest)) }
                        td class="number" { (known(row.limit)) }
                        td class="number" { (known(row.backlog)) }
                        td class="number" { (row.syns) }
                    } } }
                } }
                @let unlisted = unlisted.iter().map(|row| row.overflows + row.syns).sum::<u64>();
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

/// Coverage and loss.
fn seen(report: &Report, source: &Source<'_>) -> Markup {
    let coverage = &report.coverage;
    let (seen, unseen): (Vec<_>, Vec<_>) = coverage
        .notes
        .iter()
        .partition(|((_, way, _), _)| way.is_some());
    let runs = source.contexts.len() as u64;
    let row = |((signal, way, note), number): (&super::Signal, &u64)| {
        html! { tr {
            th scope="row" { (clean(signal)) }
            td { (clean(way.as_deref().unwrap_or("not seen"))) }
            td {
                (clean(note.as_deref().unwrap_or_default()))
                @if *number < runs { " (in " (number) " of " (Count(runs, "run")) ")" }
            }
        } }
    };
    let head = html! { thead { tr {
        th scope="col" { "Signal" }
        th scope="col" { "Seen through" }
        th scope="col" { "What that leaves out" }
    } } };
    html! {
        section {
            h2 { "What was seen, and what was not" }
            ul { @for line in report.losses(source) { li { (line) } } }
            @if !unseen.is_empty() {
                div class="scroll" { table { (head) tbody { @for it in unseen { (row(it)) } } } }
            }
            @if !seen.is_empty() {
                details {
                    summary { (Count(seen.len() as u64, "signal")) " seen, and through what" }
                    div class="scroll" { table { (head) tbody { @for it in seen { (row(it)) } } } }
                }
            }
        }
    }
}

fn about(source: &Source<'_>) -> Markup {
    html! {
        section {
            h2 { "About this report" }
            dl {
                dt { "Recordings" }
                dd { @for file in source.files { div { (clean(file.display())) } } }
                @for (name, value) in source.facts() { dt { (name) } dd { (value) } }
            }
            (hosts(source))
            ul { @for line in super::CAVEATS { li { (line) } } }
        }
    }
}

fn hosts(source: &Source<'_>) -> Markup {
    let known = |text: &Option<String>| text.as_deref().map(clean).unwrap_or_default();
    html! {
        @if !source.contexts.is_empty() {
            div class="scroll" { table {
                thead { tr {
                    th scope="col" { "Run" }
                    th scope="col" { "Host" }
                    th scope="col" { "Machine id" }
                    th scope="col" { "Boot id" }
                    th scope="col" { "Kubernetes node" }
                } }
                tbody { @for context in source.contexts.iter().take(LISTED) { tr {
                    th scope="row" { code { (format!("{:08x}", context.run)) } }
                    td { (clean(&context.host_name)) }
                    td { (known(&context.host_id)) }
                    td { (known(&context.boot_id)) }
                    td { (known(&context.node_name)) }
                } } }
            } }
            @let more = source.contexts.len().saturating_sub(LISTED) as u64;
            @if more > 0 { p class="soft" { (Count(more, "more run")) ": not listed." } }
        }
    }
}
