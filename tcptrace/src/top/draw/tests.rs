//! Whole screens of fixed views.

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
        subject: "tcptrace top  node-1".to_owned(),
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
        view.accepting(&[
            accepting("0.0.0.0:8080", 7, 4_200_000_000, 1_234, "nginx"),
            accepting("[::1]:5432", second * 12, 80_000_000, 42, "postgres"),
        ]);
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

#[test]
fn a_small_screen() {
    assert_snapshot!(screen(&view(), 80, 24, &[], THEME));
}

#[test]
fn a_usual_screen() {
    assert_snapshot!(screen(&view(), 120, 40, &[], THEME));
}

#[test]
fn a_large_screen() {
    assert_snapshot!(screen(&view(), 200, 60, &[], THEME));
}

#[test]
fn a_screen_without_anything() {
    assert_snapshot!(screen(&View::default(), 80, 24, &[], THEME));
}

#[test]
fn the_detail_of_a_process() {
    let keys = [KeyCode::Enter];
    assert_snapshot!(screen(&view(), 100, 40, &keys, THEME));
}

#[test]
fn the_detail_of_a_listener() {
    let keys = [KeyCode::Tab, KeyCode::Enter];
    assert_snapshot!(screen(&view(), 100, 40, &keys, THEME));
}

#[test]
fn the_detail_of_a_finding() {
    let keys = [KeyCode::BackTab, KeyCode::Enter];
    assert_snapshot!(screen(&view(), 100, 60, &keys, THEME));
}

#[test]
fn the_help() {
    assert_snapshot!(screen(&view(), 100, 45, &[KeyCode::Char('?')], THEME));
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
