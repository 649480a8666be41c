//! The page for a browser: one file that loads nothing, runs nothing and can be printed.

mod subjects;

use std::collections::BTreeMap;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{COLORS, Chart, Layer, Shape};
use super::findings::{Told, Total};
use super::words::{self, between, clean, utc, word};
use super::{Report, Source};
use crate::event::{Count, EventId, Finding};
use crate::sink::text;

/// What a browser must not do, whatever is on the page.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
const STYLE: &str = include_str!("style.css");

/// Findings of one cause that are shown; and those of them that are open at once.
const SHOWN: usize = 20;
const OPEN: usize = 3;
/// Rows of a table.
const LISTED: usize = 100;

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
                    (subjects::processes(report, source))
                    (subjects::listeners(report, source))
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
            let there = layer.points.entry(piece).or_insert(0);
            *there = there.saturating_add(number);
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
    match report.scale.width() / 1_000_000_000 {
        0 => format!("{} ms", report.scale.width() / 1_000_000),
        seconds @ 1..60 => format!("{seconds} s"),
        seconds @ 60..3_600 => format!("{} min", seconds / 60),
        seconds @ 3_600..86_400 => format!("{} h", seconds / 3_600),
        seconds => Count(seconds / 86_400, "day").to_string(),
    }
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
                p { (words::summary(total.cause)) }
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
                    dt { "Programs got" } dd { (words::errors(finding)) }
                }
                @if let Some(stack) = event.stack() {
                    dt { "Where" } dd { (list(&stack.lines())) }
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
        " UTC"
        @if finding.last > finding.first { ", over " (between(finding.first, finding.last)) }
        " · " code { (source.id(finding.id)) }
    }
}

fn evidence(told: &Told, finding: &Finding, source: &Source<'_>) -> Markup {
    let evidence: Vec<_> = told.evidence().collect();
    let missing = finding.evidence.len() - evidence.len();
    html! {
        details class="evidence" {
            summary { "Evidence: " (words::rests_on(finding)) }
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
            ul { @for line in words::CAVEATS { li { (line) } } }
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
