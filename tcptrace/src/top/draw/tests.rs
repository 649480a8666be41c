//! Whole screens of fixed views.

use std::fmt::Write as _;

use insta::assert_snapshot;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent};

use super::*;
use crate::event::{Comm, EventId, Kind};
use crate::sink::samples;
use crate::top::model::{Accepting, Descriptors, Listening, Looked, Pid, Waiting};

const NOW: Timestamp = Timestamp(1_795_173_003_123_456_789);
const SECOND: u64 = 1_000_000_000;

fn title() -> Title {
    Title {
        subject: "tcptrace node-1".to_owned(),
        zone: TimeZone::UTC,
        replayed: false,
    }
}

const THEME: Theme = Theme {
    color: true,
    unicode: true,
};

/// A host in trouble: a server whose queue is full, a client that leaks, one that is well.
fn view() -> View {
    let mut view = View::default();
    let start = Timestamp(NOW.0 - 90 * SECOND);
    view.tick(start);
    let netns = 4_026_531_840;
    let listening = |address: &str, len, max| Listening {
        netns,
        address: address.parse().expect("an address"),
        len,
        max: Some(max),
    };
    let accepting = |address: &str, accepted, ago, pid, comm| Accepting {
        netns,
        address: address.parse().expect("an address"),
        accepted,
        last_accept: Some(Timestamp(NOW.0 - ago)),
        backlog: Some(511),
        owner: Some((pid, Comm::from(comm))),
    };
    for second in 0..60 {
        view.tick(Timestamp(NOW.0 - (60 - u64::from(second)) * SECOND));
        let len = 129.min(second * 3);
        view.look(&Looked {
            namespaces: [netns].into(),
            listeners: vec![
                listening("0.0.0.0:8080", len, 128),
                listening("[::1]:5432", 0, 4096),
                listening("[2001:db8:1234:5678:9abc:def0:1234:5678]:443", 70, 128),
            ],
            descriptors: vec![
                (
                    1_234,
                    Some(Descriptors {
                        open: 40,
                        limit: 1_024,
                    }),
                ),
                (
                    990,
                    Some(Descriptors {
                        open: 931,
                        limit: 1_024,
                    }),
                ),
            ],
            only_known: false,
        });
        view.accepting(
            &[
                accepting("0.0.0.0:8080", 7, 4_200_000_000, 1_234, "nginx"),
                accepting("[::1]:5432", second * 12, 80_000_000, 42, "postgres"),
            ],
            NOW,
        );
        for nth in 0..second / 6 {
            let mut event = samples::queue_full();
            event.id = EventId(u64::from(second * 100 + nth));
            view.apply(&event);
        }
    }
    for event in samples::all() {
        view.apply(&event);
    }
    for (nth, event) in samples::verdicts().into_iter().enumerate() {
        let mut event = event;
        if let Kind::Finding(finding) = &mut event.kind {
            finding.evidence = vec![samples::reset_sent().id];
            finding.last = Timestamp(NOW.0 - nth as u64 * SECOND);
        }
        view.apply(&event);
    }
    view.close_waits((0..931).map(|nth| Waiting {
        owner: (Pid::live(990), Comm::from("billing-worker-")),
        flow: samples::flow(&format!("10.0.0.1:{}", 30_000 + nth), Some("10.0.0.5:5432")),
        since: Timestamp(NOW.0 - (nth * 3 + 2) * SECOND),
        older: nth > 900,
        count: 1,
    }));
    view.look(&Looked {
        descriptors: vec![(
            990,
            Some(Descriptors {
                open: 931,
                limit: 1_024,
            }),
        )],
        ..Looked::default()
    });
    view.tick(NOW);
    view
}

fn screen(view: &View, width: u16, height: u16, keys: &[KeyCode], theme: Theme) -> String {
    let mut ui = Ui::default();
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory");
    let mut show = |ui: &mut Ui| {
        let drawn = terminal.draw(|frame| draw(frame, view, ui, &title(), theme));
        let drawn = drawn.expect("memory");
        let lines = drawn.buffer.content.chunks(width.into());
        let lines = lines.map(|line| {
            let line: String = line.iter().map(ratatui::buffer::Cell::symbol).collect();
            line.trim_end().to_owned() + "\n"
        });
        lines.collect::<String>()
    };
    show(&mut ui);
    for &key in keys {
        ui.key(KeyEvent::from(key), view);
    }
    show(&mut ui)
}

/// For the eye: many empty lines as one.
fn shown(view: &View, width: u16, height: u16, keys: &[KeyCode], theme: Theme) -> String {
    let screen = screen(view, width, height, keys, theme);
    let mut lines = screen.lines().peekable();
    let mut shown = String::new();
    while let Some(line) = lines.next() {
        let mut empty = usize::from(line.is_empty());
        while empty > 0 && lines.next_if(|line| line.is_empty()).is_some() {
            empty += 1;
        }
        if empty > 1 {
            let _ = write!(shown, "({empty} empty lines)");
        } else {
            shown += line;
        }
        shown.push('\n');
    }
    shown
}

#[test]
fn a_small_screen() {
    assert_snapshot!(shown(&view(), 80, 24, &[], THEME), @r#"
    tcptrace node-1  11:10:03  up 90.0 s  285 events, 12.0/s  3 LOST  1/2 signals
     PROCESS            RSTout  RSTin CLOSE_WAIT   OLDEST         FDS ERRORS
    ▸billing-work…[990]      -      -        931  >46 min   !931/1024 -
     nginx[1234]             1      1          -        -  !1024/1024 EPIPE 1  ECON…
     no process              1      -          -        -           - -
     postgres[42]            -      -          -        -           - -
     LISTENER         QUEUE           HISTORY         LOST ACC/s    LAST OWNER
     0.0.0.0:8080     █████ !129/128  ████████   271 9.2/s     -   4.2 s nginx[1234]
     …:1234:5678]:443 ██▊·· 70/128    ▅▅▅▅▅▅▅▅           -     -       - -
     …etns 4026531840 -                          31 31.0/s     -       - -
     [::1]:5432       ····· 0/4096                       -  12.0   80 ms postgr…[42]
     FINDING    COUNT CAUSE                   PROCESS          WHAT
     11:10:01     !43 peer_gave_up            nginx[1234]      curl[990] gave up af…
    (10 empty lines)
    Tab pane  Enter detail  / filter  s order: trouble  p pause  ? help  q quit
    "#);
}

#[test]
fn a_usual_screen() {
    assert_snapshot!(shown(&view(), 120, 40, &[], THEME), @r#"
    tcptrace node-1  11:10:03  up 90.0 s  285 events, 12.0/s  3 LOST  1/2 signals
     PROCESS                  RSTout  RSTin CLOSE_WAIT   OLDEST         FDS EVENTS A SECOND   ERRORS
    ▸billing-worker-[990]          -      -        931  >46 min   !931/1024                   -
     nginx[1234]                   1      1          -        -  !1024/1024 ▃▃▃▃▃▃▃▃▃▃▃▄▄▄▄▄█ EPIPE 1  ECONNREFUSED 1  EMFI…
     no process                    1      -          -        -           - █                 -
     postgres[42]                  -      -          -        -           -                   -
     LISTENER                 QUEUE                  HISTORY                     LOST ACC/s    LAST OWNER
     0.0.0.0:8080             ████████████ !129/128  ████████████████████   271 9.2/s     -   4.2 s nginx[1234]
     …abc:def0:1234:5678]:443 ██████▋····· 70/128    ▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅           -     -       - -
     in netns 4026531840      -                                             31 31.0/s     -       - -
     [::1]:5432               ············ 0/4096                                   -  12.0   80 ms postgres[42]
     FINDING    COUNT CAUSE                   PROCESS                  WHAT
     11:10:01     !43 peer_gave_up            nginx[1234]              curl[990] gave up after 5.00 s and closed on 43 conn…
    (26 empty lines)
    Tab pane  Enter detail  / filter  s order: trouble  p pause  ? help  q quit
    "#);
}

#[test]
fn a_large_screen() {
    assert_snapshot!(shown(&view(), 200, 60, &[], THEME), @r#"
    tcptrace node-1  11:10:03  up 90.0 s  285 events, 12.0/s  3 LOST  1/2 signals
     PROCESS                  RSTout  RSTin CLOSE_WAIT   OLDEST         FDS EVENTS A SECOND                                              ERRORS
    ▸billing-worker-[990]          -      -        931  >46 min   !931/1024                                                              -
     nginx[1234]                   1      1          -        -  !1024/1024       ▁▁▁▁▁▁▁▁▁▁▁▁▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▂▃▃▃▃▃▃▃▃▃▃▃▃▃▃▃▃▃▃▄▄▄▄▄█ EPIPE 1  ECONNREFUSED 1  EMFILE 1  EBADF 1
     no process                    1      -          -        -           - █                                                            -
     postgres[42]                  -      -          -        -           -                                                              -
     LISTENER                                     QUEUE                          HISTORY                                                             LOST ACC/s    LAST OWNER
     0.0.0.0:8080                                 ████████████████████ !129/128   ▁▁▁▁▁██████████████████████████████████████████████████████   271 9.2/s     -   4.2 s nginx[1234]
     [2001:db8:1234:5678:9abc:def0:1234:5678]:443 ██████████▉········· 70/128    ▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅           -     -       - -
     in netns 4026531840                          -                                                                                             31 31.0/s     -       - -
     [::1]:5432                                   ···················· 0/4096                                                                           -  12.0   80 ms postgres[42]
     FINDING    COUNT CAUSE                   PROCESS                  WHAT
     11:10:01     !43 peer_gave_up            nginx[1234]              curl[990] gave up after 5.00 s and closed on 43 connections
    (46 empty lines)
    Tab pane  Enter detail  / filter  s order: trouble  p pause  ? help  q quit
    "#);
}

#[test]
fn a_screen_without_anything() {
    assert_snapshot!(shown(&View::default(), 80, 24, &[], THEME), @r#"
    tcptrace node-1  00:00:00  up 0 ms  0 events, 0.0/s  0 lost  0/0 signals
     PROCESS            RSTout  RSTin CLOSE_WAIT   OLDEST         FDS ERRORS
     no resets, no errors, no leaks
     LISTENER         QUEUE           HISTORY         LOST ACC/s    LAST OWNER
     nobody listens
     FINDING    COUNT CAUSE                   PROCESS          WHAT
     nothing was found wrong
    (16 empty lines)
    Tab pane  Enter detail  / filter  s order: trouble  p pause  ? help  q quit
    "#);
}

#[test]
fn the_detail_of_a_process() {
    let keys = [KeyCode::Enter];
    assert_snapshot!(shown(&view(), 100, 40, &keys, THEME), @r#"
    tcptrace node-1  11:10:03  up 90.0 s  285 events, 12.0/s  3 LOST  1/2 signals
    billing-worker-[990]
    resets       sent 0, received 0
    errors       none
    timeouts     0
    descriptors  931 of 1024 (90 %)
    events       |                                                            | at most 0 a second

    931 connections in CLOSE_WAIT: the peer has closed, this process has not
      at least 46 min 10.0.0.1:30930 > 10.0.0.5:5432
      at least 46 min 10.0.0.1:30929 > 10.0.0.5:5432
      at least 46 min 10.0.0.1:30928 > 10.0.0.5:5432
      at least 46 min 10.0.0.1:30927 > 10.0.0.5:5432
      at least 46 min 10.0.0.1:30926 > 10.0.0.5:5432
      at least 46 min 10.0.0.1:30925 > 10.0.0.5:5432
      at least 46 min 10.0.0.1:30924 > 10.0.0.5:5432
      at least 46 min 10.0.0.1:30923 > 10.0.0.5:5432
      at least 46 min 10.0.0.1:30922 > 10.0.0.5:5432
      at least 46 min 10.0.0.1:30921 > 10.0.0.5:5432
      at least 46 min 10.0.0.1:30920 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30919 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30918 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30917 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30916 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30915 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30914 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30913 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30912 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30911 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30910 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30909 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30908 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30907 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30906 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30905 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30904 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30903 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30902 > 10.0.0.5:5432
      at least 45 min 10.0.0.1:30901 > 10.0.0.5:5432
    ↑↓ scroll  Esc back  p pause  ? help
    "#);
}

#[test]
fn the_detail_of_a_listener() {
    let keys = [KeyCode::Tab, KeyCode::Enter];
    assert_snapshot!(shown(&view(), 100, 40, &keys, THEME), @r#"
    tcptrace node-1  11:10:03  up 90.0 s  285 events, 12.0/s  3 LOST  1/2 signals
    0.0.0.0:8080 in network namespace 4026531840
    owner        nginx[1234]
    queue        full: 129 wait for accept, the limit is 128
    limit is     net.core.somaxconn: the program asked listen() for 511
    lost         271 handshakes, 9.2 a second
    accepted     0 connections since the start, 0.0 a second
    last accept  4.2 s ago

    The last minute
    queue        | ▁▁▁▁▁██████████████████████████████████████████████████████| at most 129 of 129
    lost         |      ▁▁▁▁▁▁▂▂▂▂▂▂▃▃▃▃▃▃▄▄▄▄▄▄▄▄▄▄▄▄▅▅▅▅▅▅▆▆▆▆▆▆▇▇▇▇▇▇██████| at most 10 a second
    accepted     |                                                            | at most 0 a second

    Findings
      11:10:01     43 peer_gave_up: curl[990] gave up after 5.00 s and closed on 43 connections

    Timeline, newest first
      11:10:03 SYN flood: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, 1200 SYNs answered with
               cookies, 257 handshakes half done of 256
      11:10:03 retransmit: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, 3 in a row
      11:10:03 state: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, ESTABLISHED -> CLOSE_WAIT after
               1.2 s
      11:10:03 timed out: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, ETIMEDOUT, TCP_USER_TIMEOUT
               30.0 s, 15 retransmits
      11:10:03 conn failed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, ECONNREFUSED (refused) after
               310 us, 1 SYN
      11:10:03 write failed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, EPIPE (broken pipe), sendto
               fd 17 (owner shared by 3)
      11:10:03 queue full: nginx[1234], 0.0.0.0:8080, SYN dropped, queue 129 > 128 (asked 511), 31 drops
      11:10:03 not closed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, fd 17 in CLOSE_WAIT >61.2 s,
               EOF unread
      11:10:03 peer closed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, fd 17 still open
               (CLOSE_WAIT)
      11:10:03 RST received: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, gives ECONNRESET, idle 1.2
               s
      11:10:03 RST sent: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, closed fd 17, 512 bytes unread
               [kernel: TCP_ABORT_ON_CLOSE]
      11:10:03 queue full: nginx[1234], 0.0.0.0:8080, SYN dropped, queue 129 > 128 (asked 511), 31 drops
    ↑↓ scroll  Esc back  p pause  ? help
    "#);
}

#[test]
fn the_detail_of_a_finding() {
    let keys = [KeyCode::BackTab, KeyCode::Enter];
    assert_snapshot!(shown(&view(), 100, 60, &keys, THEME), @r#"
    tcptrace node-1  11:10:03  up 90.0 s  285 events, 12.0/s  3 LOST  1/2 signals
    what         curl[990] gave up after 5.00 s and closed on 43 connections
    cause        peer_gave_up (ERROR, confidence high)
    why          An answer to a connection its peer has closed cannot be delivered.
    who          nginx[1234]; at the other end nginx[1234]
    flow         10.0.0.1:8080 > 203.0.113.7:51234
    count        43, 11:10:00 to 11:10:01
    programs got 41 EPIPE
    programs got 2 ECONNRESET
    not          Not the network: 0 segments were sent again.
    fix          Answer sooner than 5 s, or let the client wait longer.

    Evidence
      11:10:03 RST sent: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, closed fd 17, 512 bytes unread
               [kernel: TCP_ABORT_ON_CLOSE]
      11:10:03 RST sent: unknown process, [2001:db8::1]:81 > [2001:db8::2]:40112, nothing listens on
               this port [kernel: NO_SOCKET]
      11:10:03 RST received: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, gives ECONNRESET, idle 1.2
               s
      11:10:03 peer closed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, fd 17 still open
               (CLOSE_WAIT)
      11:10:03 not closed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, fd 17 in CLOSE_WAIT >61.2 s,
               EOF unread
      11:10:03 queue full: nginx[1234], 0.0.0.0:8080, SYN dropped, queue 129 > 128 (asked 511), 31 drops
      11:10:03 write failed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, EPIPE (broken pipe), sendto
               fd 17 (owner shared by 3)
      11:10:03 conn failed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, ECONNREFUSED (refused) after
               310 us, 1 SYN
      11:10:03 timed out: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, ETIMEDOUT, TCP_USER_TIMEOUT
               30.0 s, 15 retransmits
      11:10:03 too many fds: nginx[1234], EMFILE in accept4, 1024 of 1024 fds open
      11:10:03 bad fd: nginx[1234], EBADF (bad descriptor), write fd 17
      11:10:03 state: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, ESTABLISHED -> CLOSE_WAIT after
               1.2 s
      11:10:03 retransmit: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, 3 in a row
      11:10:03 SYN flood: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, 1200 SYNs answered with
               cookies, 257 handshakes half done of 256
      11:10:03 queue full: unknown process, 0.0.0.0:0, 31 handshake segments dropped by some listener

    tcptrace explain idle_timeout

      The connection was silent for so long that something on the way, or the peer, forgot it.

    What you see

      Nothing while it is idle. Then, on the first use after the silence, one of three:

      - ECONNRESET or EPIPE at once: a box or the peer answered with RST.
        `connection reset by peer`, `broken pipe`, MySQL `server has gone away`, JDBC
        `Communications link failure`
      - a clean end of file: the peer closed on its own idle timer and sent FIN
        (`stale_pooled_connection` if a pool then uses it)
      - silence: a box drops everything. The program hangs until its own deadline, or some 15
        minutes until ETIMEDOUT (`retransmit_timeout`). The worst of the three, and the most common
        with NAT.

    What happened

      TCP itself has no idle limit: two kernels hold a silent connection for years. Boxes in between
    ↑↓ scroll  Esc back  p pause  ? help
    "#);
}

#[test]
fn the_help() {
    assert_snapshot!(shown(&view(), 100, 45, &[KeyCode::Char('?')], THEME), @r#"
    tcptrace node-1  11:10:03  up 90.0 s  285 events, 12.0/s  3 LOST  1/2 signals
    Keys
      Tab, Shift-Tab, 1 2 3   the next pane, the one before, this pane
      up down, j k            the row above, below
      PageUp PageDown g G     a page up, a page down, the first, the last
      Enter, right, l         all there is to say of a row
      Esc, left, h, q         back
      /                       only rows that hold a text: a name, a pid, an address, an error
      s                       another order
      p                       pause: what is on the screen stays, counting goes on
      q, Ctrl-C               end

    Processes
      RSTout, RSTin           RSTs its sockets have sent and received
      CLOSE_WAIT, OLDEST      connections the peer has closed and it has not; > is at least
      FDS                     open descriptors of its limit; ! is nine of ten or more
      ERRORS                  what its calls on sockets returned, most first

    Listeners
      QUEUE, HISTORY          connections waiting for accept() of the limit, now and before; ! is full
      LOST                    handshakes that found it full, and how many a second now
      ACC/s, LAST             connections accepted a second, and how long ago the last one was

    Findings                  the one told last first; ! is a service that fails

    Signals
      reset.sent: raw_tracepoint tcp_send_reset
      accept_queue.overflow: NOT SEEN; needs kernel 6.6
    (16 empty lines)
    ↑↓ scroll  Esc back  p pause  ? help
    "#);
}

#[test]
fn in_ascii_every_character_is() {
    let ascii = Theme {
        color: false,
        unicode: false,
    };
    for keys in [
        &[][..],
        &[KeyCode::Enter],
        &[KeyCode::Tab, KeyCode::Enter],
        &[KeyCode::Char('?')],
    ] {
        let screen = screen(&view(), 80, 24, keys, ascii);
        assert!(screen.is_ascii(), "{screen}");
    }
}

#[test]
fn what_is_chosen_and_what_is_wrong_shows_without_colour() {
    let screen = screen(&view(), 80, 24, &[], THEME);
    let chosen: Vec<_> = screen
        .lines()
        .filter(|line| line.starts_with('▸'))
        .collect();
    assert_eq!(chosen.len(), 1, "{screen}");
    assert!(screen.contains("!129/128"), "{screen}");
    assert!(screen.contains("!931/1024"), "{screen}");
}

#[test]
fn any_size_and_any_row_can_be_drawn() {
    let view = view();
    let down = [KeyCode::Char('G'), KeyCode::Enter, KeyCode::Char('G')];
    for width in [1, 2, 39, 40, 41, 79, 109, 110, 159, 160, 300] {
        for height in [1, 2, 7, 8, 9, 15, 100] {
            for keys in [&[][..], &down] {
                let screen = screen(&view, width, height, keys, THEME);
                assert_eq!(screen.lines().count(), usize::from(height));
            }
        }
    }
}

#[test]
fn panes_share_what_room_there_is() {
    assert_eq!(heights(22, [100, 100, 100]), [7, 6, 9]);
    assert_eq!(heights(22, [0, 0, 0]), [2, 2, 18]);
    assert_eq!(heights(22, [100, 1, 1]), [18, 2, 2]);
    assert_eq!(heights(6, [100, 100, 100]), [2, 1, 3]);
    for height in 0..200 {
        assert_eq!(heights(height, [3, 40, 7]).iter().sum::<u16>(), height);
    }
}
