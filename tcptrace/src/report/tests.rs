//! What a report says of recordings made by the record writer, and what it must never be made to say.

use std::io::Write as _;

use pulldown_cmark::{Event as Piece, Options, Parser};
use tempfile::NamedTempFile;

use super::rows::ROWS;
use super::*;
use crate::config::Selection;
use crate::diagnose::{Analysis, Limits, Sees};
use crate::event::{CloseWait, Comm, Count, EventId};
use crate::replay::{Due, Recordings, Step};
use crate::session::Stream;
use crate::sink::{Format, Outputs, samples};

const SECOND: u64 = 1_000_000_000;

/// An event at this second of the recording, with an id and a client's port of its own.
fn at(second: u64, nth: u16, mut event: Event) -> Event {
    event.id = EventId(u64::from(nth) + 1);
    event.time = Timestamp(1_795_173_000 * SECOND + second * SECOND);
    if let Some(peer) = event.socket.as_mut().and_then(|it| it.flow.peer.as_mut()) {
        peer.set_port(50_000 + nth);
    }
    event
}

/// What an evening may bring: RSTs for unread requests, a full queue, a leak, an event that was lost.
fn incident() -> Vec<Event> {
    let all = samples::all();
    let of = |name: &'static str| all.iter().filter(move |it| it.name() == name).cloned();
    let coverage = of("tcptrace.coverage").map(|event| (0, event));
    let resets = (0..3).map(|nth| (10 + nth, samples::reset_sent()));
    let full = (0..2).map(|nth| (20 + nth, samples::queue_full()));
    let stuck = |second: u64, nth, age_ms| {
        let mut event = of("tcptrace.close_wait.stuck").next().expect("a sample");
        event.kind = Kind::CloseWaitStuck(CloseWait {
            age_ms,
            at_least: false,
            count: 1,
            at_start: false,
        });
        if let Some(socket) = &mut event.socket {
            socket.id.sk += nth;
        }
        (second, event)
    };
    // The first is told of again when it is older.
    let leak = (0..6).map(|nth| stuck(30 + nth, nth, 5_000));
    let leak = leak.chain([stuck(91, 0, 66_000)]);
    let lost = of("tcptrace.events.lost").map(|event| (95, event));
    let end = of("tcptrace.summary").map(|event| (100, event));
    let events = coverage.chain(resets).chain(full).chain(leak);
    let events = events.chain(lost).chain(end);
    (0..)
        .zip(events)
        .map(|(nth, (second, event))| at(second, nth, event))
        .collect()
}

/// What is told of recordings that hold these events.
fn told<T>(runs: &[Vec<Event>], tell: impl FnOnce(&Report, &Source<'_>) -> T) -> T {
    let files = runs.iter().zip(0x5eed_0001..).map(|(events, run)| {
        let context = Context {
            run,
            host_name: format!("node-{}", run - 0x5eed_0000),
            ..samples::context()
        };
        let mut outputs = Outputs::new(context);
        let mut file = NamedTempFile::new().expect("a file");
        for event in events {
            file.write_all(&outputs.line(event)).expect("it is ours");
        }
        file
    });
    let files: Vec<_> = files.collect();
    let paths: Vec<_> = files.iter().map(|file| file.path().to_owned()).collect();
    let report = Rc::new(RefCell::new(Report::new(None)));
    let mut outputs = Outputs::of_replay();
    outputs.add(Format::Unwritten, Box::new(Rc::clone(&report)));
    let everything = Selection::parse(&["all".to_owned()], &[], false).expect("all events");
    let analysis = Analysis::new(Limits::default(), Sees::ALL);
    let mut stream = Stream::new(everything, outputs, analysis, None);
    let mut recordings = Recordings::open(&paths, false).expect("they are there");
    let mut contexts = Vec::new();
    loop {
        let step = recordings.step().expect("they are recordings");
        for context in recordings.new_runs() {
            stream.add_run(context.clone());
            contexts.push(context);
        }
        match step {
            Step::Due(Due::Time { until, .. }) => {
                stream.advance(until).expect("it is kept in memory");
            }
            Step::Due(Due::Event(event)) => {
                stream.advance(event.time).expect("it is kept in memory");
                let taken = if event.kind.selectable().is_some() {
                    stream.take(&event)
                } else {
                    stream.note(&event)
                };
                taken.expect("it is kept in memory");
            }
            Step::Read => {}
            Step::Waits | Step::End => break,
        }
    }
    let end = recordings.counts().last;
    stream.finish(end).expect("it is kept in memory");
    let names: Vec<_> = (0..files.len())
        .map(|nth| format!("{nth}.json").into())
        .collect();
    let source = Source {
        files: &names,
        asked: (None, None),
        contexts: &contexts,
        versions: recordings.versions().collect(),
        counts: recordings.counts(),
    };
    tell(&report.borrow(), &source)
}

/// The same events of a process of this name.
fn called(name: &[u8], mut events: Vec<Event>) -> Vec<Event> {
    let mut comm = [0; 16];
    comm[..name.len()].copy_from_slice(name);
    for event in &mut events {
        if let Some(process) = &mut event.owner.process {
            process.comm = Comm::new(comm);
        }
    }
    events
}

#[test]
fn a_recording_becomes_text_for_a_ticket() {
    let text = told(&[incident()], Report::markdown);
    insta::assert_snapshot!(text, @r###"
    # TCP failures on node-1

    11 failures explained by 3 findings, first of all close\_wait\_leak.
    2026-11-20 11:10:00.000 UTC to 2026-11-20 11:11:35.000 UTC, 95.0 s; 12 events.

    | Cause | Severity | Failures | Findings | First (UTC) | Over time |
    | --- | --- | ---: | ---: | --- | --- |
    | `close_wait_leak` | error | 6 | 1 | 2026-11-20 11:10:30.000 | `················█···█····█···█···█····█·` |
    | `accept_queue_overflow` | error | 2 | 1 | 2026-11-20 11:10:20.000 | `········█·······························` |
    | `closed_with_unread_data` | warning | 3 | 1 | 2026-11-20 11:10:10.000 | `····█▄··································` |

    ## `close_wait_leak`

    The peer has closed connections and this process never closed its side of them.

    ### nginx\[1234\] holds 6 connections at 10.0.0.1:8080 that the peer has closed (CLOSE\_WAIT), the oldest for 66.0 s, 5 more a minute; it has not read the end of the stream of any, fd 17, 17, 17, 17, 17, …

    6 failures, high confidence, 2026-11-20 11:10:30.000 UTC, over 61.0 s, `5eed0001-1bdf4d89f599b0`

    - **Why:** The peer has closed, and the connection stays until the program closes it too: no timer of the kernel does. Each keeps a descriptor and memory, and one day accept or socket fails with EMFILE.
    - **Who:** nginx\[1234\]
    - **Fix:** nginx\[1234\] does not even read: a handler that is stuck, or a pool that forgot the connection (return or close it on every path, set idle timeouts and checks of idle connections)
    - **Fix:** no sysctl helps: tcp\_fin\_timeout is about the other end, and keepalive at most ends the connection and leaves the descriptor open; a restart only buys time
    - **It is not:** the peer and the network: the FIN arrived and was acknowledged
    - **Evidence:** 7 events

    ```text
    2026-11-20 11:10:30.000 +0 s not closed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:50007, fd 17 in CLOSE_WAIT 5.0 s, EOF unread
    2026-11-20 11:10:31.000 +1.0 s not closed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:50008, fd 17 in CLOSE_WAIT 5.0 s, EOF unread
    2026-11-20 11:10:32.000 +2.0 s not closed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:50009, fd 17 in CLOSE_WAIT 5.0 s, EOF unread
    2026-11-20 11:10:33.000 +3.0 s not closed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:50010, fd 17 in CLOSE_WAIT 5.0 s, EOF unread
    2026-11-20 11:10:34.000 +4.0 s not closed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:50011, fd 17 in CLOSE_WAIT 5.0 s, EOF unread
    2026-11-20 11:10:35.000 +5.0 s not closed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:50012, fd 17 in CLOSE_WAIT 5.0 s, EOF unread
    2026-11-20 11:11:31.000 +61.0 s not closed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:50013, fd 17 in CLOSE_WAIT 66.0 s, EOF unread
    ```

    ## `accept_queue_overflow`

    Connections came faster than the process accepted them, and the kernel dropped some.

    ### the accept queue of nginx\[1234\] on 0.0.0.0:8080 was full (129 waiting, limit 128): 2 connections lost in 1.0 s (2 SYNs dropped); it last accepted 4.2 s before

    2 failures, high confidence, 2026-11-20 11:10:20.000 UTC, over 1.0 s, `5eed0001-1d6e46ac31f32f`

    - **Why:** Connections are complete before accept is called and wait in the listener's queue. When it holds one more than its limit the kernel drops the SYN or the final ACK: clients send again, connect late or time out. More arrive than are accepted.
    - **Who:** nginx\[1234\]
    - **Fix:** let nginx\[1234\] accept faster: a thread of its own, more workers
    - **Fix:** the limit 128 is the smaller of listen()'s argument (511) and net.core.somaxconn: raise that one; 2 connections lost in 1.0 s
    - **Fix:** confirm: ss -ltn (Recv-Q above Send-Q), nstat -az TcpExtListenOverflows TcpExtListenDrops
    - **It is not:** the network: the segments arrived here and were dropped by this host
    - **Evidence:** 2 events

    ```text
    2026-11-20 11:10:20.000 +0 s queue full: nginx[1234], 0.0.0.0:8080, SYN dropped, queue 129 > 128 (asked 511), 31 drops
    2026-11-20 11:10:21.000 +1.0 s queue full: nginx[1234], 0.0.0.0:8080, SYN dropped, queue 129 > 128 (asked 511), 31 drops
    ```

    ## `closed_with_unread_data`

    The process closed a connection with received bytes unread, and the kernel sent a RST.

    ### nginx\[1234\] closed fd 17 with 512 bytes unread (3 times in all, over 2.0 s)

    3 failures, high confidence, 2026-11-20 11:10:10.000 UTC, over 2.0 s, `5eed0001-1ea467342754d7`

    - **Why:** Closing a socket that still holds received bytes makes the kernel send a RST instead of a FIN, and the RST discards what is still on its way to the other end: even an answer that was sent completely may be lost.
    - **Who:** nginx\[1234\]
    - **Fix:** read to the end before closing: 512 bytes came after the 512 that were read (a second request, a body nobody wanted, a TLS close\_notify)
    - **Fix:** if the rest of the input is not wanted: shutdown(SHUT\_WR), read until the end of the stream or a short deadline, and only then close
    - **It is not:** the network: 0 segments sent again, round trip 230 us
    - **Evidence:** 3 events

    ```text
    2026-11-20 11:10:10.000 +0 s RST sent: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:50002, closed fd 17, 512 bytes unread [kernel: TCP_ABORT_ON_CLOSE]
    2026-11-20 11:10:11.000 +1.0 s RST sent: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:50003, closed fd 17, 512 bytes unread [kernel: TCP_ABORT_ON_CLOSE]
    2026-11-20 11:10:12.000 +2.0 s RST sent: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:50004, closed fd 17, 512 bytes unread [kernel: TCP_ABORT_ON_CLOSE]
    ```

    ## Processes

    | Process | RSTs sent | RSTs received | Stuck in CLOSE\_WAIT | Failed calls |
    | --- | ---: | ---: | ---: | --- |
    | nginx\[1234\] | 3 | 0 | 6 |  |

    ## Listeners with full queues

    | Listener | Owner | Accept queue overflows | Longest queue | Its limit | SYNs |
    | --- | --- | ---: | ---: | ---: | ---: |
    | 0.0.0.0:8080 | nginx\[1234\] | 2 | 129 | 128 | 0 |

    ## What was seen, and what was not

    - 3 events lost: 3 of tcp\_send\_reset (ring\_full).
    - Not seen: accept\_queue.overflow: needs kernel 6.6

    ## About this report

    - Recording: 0.json
    - Read: 16 records of 1 run
    - Recorded by: tcptrace 0.1.0
    - Reported by: tcptrace 0.1.0
    - Findings: made anew from the events; the recordings carry 0 of their own
    - The kernel's version and the filters of the trace are not recorded.
    - Numbers are of what was recorded: without --event all, events that were only counted are missing, and with filters those of other sockets.
    - Failures that were told of together, within a second for most, are charted evenly from the first to the last.
    "###);
}

/// What Markdown is read as: its elements in order, and its text in one piece.
fn read(markdown: &str) -> (Vec<String>, String) {
    let mut tags = Vec::new();
    let mut text = String::new();
    for piece in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        match piece {
            Piece::Start(tag) => {
                let tag = format!("{tag:?}");
                let end = tag.find(|c: char| !c.is_alphanumeric());
                tags.push(tag[..end.unwrap_or(tag.len())].to_owned());
            }
            Piece::Text(piece) | Piece::Code(piece) => text.push_str(&piece),
            Piece::Html(html) | Piece::InlineHtml(html) => panic!("{html} is HTML"),
            Piece::End(_) => text.push(' '),
            Piece::SoftBreak | Piece::HardBreak => text.push('\n'),
            other => panic!("{other:?} is not ours"),
        }
    }
    (tags, text)
}

/// Names of 15 bytes that would be more than text, in a page or in a ticket.
const HOSTILE: [&str; 11] = [
    "<script>x</scri",
    "\"><img src=x>",
    "a | b `c` | d",
    "```\\n# x",
    "[x](http://y)",
    "@everyone #1 ",
    "www.evil.example",
    "**x** _y_ ~~z~~",
    "$x^2$ https://a",
    "- [ ] x <!--",
    "&lt;b&gt;",
];

#[test]
fn what_a_process_is_called_is_text_in_a_ticket() {
    let plain = told(&[called(b"nginx", incident())], Report::markdown);
    let (expected, _) = read(&plain);
    for name in HOSTILE {
        let name = &name[..name.len().min(15)];
        let text = told(&[called(name.as_bytes(), incident())], Report::markdown);
        let (tags, text) = read(&text);
        assert_eq!(tags, expected, "{name}");
        let parted = name.replace('@', "@\u{200b}").replace('#', "#\u{200b}");
        assert!(text.contains(&format!("{parted}[1234]")), "{name}: {text}");
    }
}

#[test]
fn what_a_process_is_called_is_text_on_the_page() {
    let tags = |html: &str| html.matches('<').count();
    let expected = tags(&told(&[called(b"nginx", incident())], Report::html));
    for name in HOSTILE {
        let name = &name[..name.len().min(15)];
        let page = told(&[called(name.as_bytes(), incident())], Report::html);
        assert_eq!(tags(&page), expected, "{name}");
        let escaped = name.replace('&', "&amp;").replace('<', "&lt;");
        let escaped = escaped.replace('>', "&gt;").replace('"', "&quot;");
        assert!(page.contains(&format!("{escaped}[1234]")), "{name}");
    }
    // What turns the direction of writing is written out.
    let page = told(
        &[called("\u{202e}gpj".as_bytes(), incident())],
        Report::html,
    );
    assert!(page.contains("\\u{202e}gpj[1234]"));
    assert!(!page.contains('\u{202e}'));
}

#[test]
fn a_page_loads_and_runs_nothing_and_has_all_numbers_of_its_charts() {
    let page = told(&[incident()], Report::html);
    for banned in [
        "<script", "<img", "<iframe", "src=", "url(", "http:", "https:", " on",
    ] {
        let markup = page.split('<').skip(1).filter_map(|it| it.split_once('>'));
        for (tag, _) in markup {
            assert!(!format!("<{tag}").contains(banned), "{banned} in {tag}");
        }
    }
    let charts = page.matches("<svg viewBox").count() - page.matches("aria-hidden").count();
    assert!(charts >= 4, "{charts}");
    assert_eq!(page.matches("role=\"img\"").count(), charts);
    assert_eq!(page.matches("class=\"numbers\"").count(), charts);
}

#[test]
fn what_was_not_recorded_or_lost_is_said() {
    let mut cut = incident();
    cut.pop();
    cut.retain(|event| event.name() != "tcptrace.coverage");
    let text = told(&[cut], Report::markdown);
    let (_, text) = read(&text);
    for said in [
        "3 events lost: 3 of tcp_send_reset (ring_full).",
        "1 run of 1 without an end in the recordings",
        "What the traces could see was not recorded.",
        "The kernel's version and the filters of the trace are not recorded.",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let nothing = told(&[], |report, source| {
        (report.html(source), report.markdown(source))
    });
    for text in [nothing.0, nothing.1] {
        assert!(
            text.contains("No failure that does harm was found"),
            "{text}"
        );
    }
}

#[test]
fn two_hosts_are_told_apart() {
    let page = told(&[incident(), incident()], Report::html);
    assert!(page.contains("TCP failures on node-1, node-2"), "{page}");
    for host in ["node-1", "node-2"] {
        assert!(page.contains(&format!("nginx[1234] on {host}")), "{host}");
    }
}

#[test]
fn of_very_many_findings_all_are_counted_and_the_gravest_shown() {
    let mut report = Report::new(None);
    let sample = samples::verdicts().pop().expect("a finding");
    for nth in 0..5_000_u64 {
        let mut event = sample.clone();
        event.time = Timestamp(nth * SECOND);
        event.id = EventId(nth);
        if let Kind::Finding(finding) = &mut event.kind {
            finding.id = event.id;
            finding.update = 0;
            finding.first = event.time;
            finding.last = event.time;
            // The gravest comes early.
            finding.count = if nth == 7 { 1_000 } else { 2 };
        }
        report.scale.see(event.time);
        report.take(&event);
        // Told again, with one failure more.
        if let Kind::Finding(finding) = &mut event.kind {
            finding.update = 1;
            finding.count += 1;
        }
        report.take(&event);
    }
    let totals = report.findings.totals();
    let total = totals.first().expect("a cause");
    assert_eq!((total.findings, total.failures), (5_000, 4_999 * 3 + 1_001));
    assert_eq!(report.findings(), 5_000);
    let known = report.findings.of(total.cause);
    assert!(known.len() <= 2_048, "{}", known.len());
    assert_eq!(known[0].finding().map(|it| it.count), Some(1_001));
    let charted = report.findings.failures.points(&report.scale);
    assert_eq!(charted.values().sum::<u64>(), total.failures);
    assert_eq!(Count(5_000, "finding").to_string(), "5000 findings");
}

#[test]
fn a_connection_that_is_told_of_again_is_counted_once() {
    told(&[incident()], |report, _| {
        let rows = report.processes();
        let stuck: Vec<_> = rows.iter().map(|row| (row.stuck, row.events)).collect();
        assert_eq!(stuck, [(6, 10)]);
        let leaked = rows[0].leaked.points(&report.scale);
        assert_eq!(leaked.values().sum::<u64>(), 6);
    });
}

#[test]
fn rows_beyond_the_room_are_counted() {
    let mut report = Report::new(None);
    for nth in 0..600_u32 {
        let mut event = samples::reset_sent();
        if let Some(process) = &mut event.owner.process {
            process.pid = nth;
        }
        report.take(&event);
    }
    assert_eq!(report.processes().len(), ROWS);
    assert_eq!(report.processes.beyond, 600 - 512);
}
