//! Keys do what the help says.

use ratatui::crossterm::event::KeyEvent;

use super::*;
use crate::event::{Comm, Timestamp};
use crate::top::model::{Listening, Looked};

fn view() -> View {
    let mut view = View::default();
    view.tick(Timestamp(1));
    for (pid, comm, close_wait) in [(10, "alpha", 1), (20, "beta", 9), (30, "gamma", 0)] {
        let process = view.processes.entry(Pid::live(pid)).or_default();
        process.comm = Comm::from(comm);
        process.close_wait = close_wait;
        process.resets_sent = u64::from(pid == 30) * 50;
    }
    let listening = |address: &str, len| Listening {
        netns: 1,
        address: address.parse().expect("an address"),
        len,
        max: Some(128),
    };
    view.look(&Looked {
        namespaces: [1].into(),
        listeners: vec![listening("127.0.0.1:80", 3), listening("[::]:443", 129)],
        ..Looked::default()
    });
    view
}

fn press(ui: &mut Ui, view: &View, keys: &[KeyCode]) -> Action {
    let press = |action, &code: &KeyCode| match ui.key(KeyEvent::from(code), view) {
        Action::Nothing => action,
        action => action,
    };
    keys.iter().fold(Action::Nothing, press)
}

fn typed(ui: &mut Ui, view: &View, text: &str) {
    for character in text.chars() {
        ui.key(KeyEvent::from(KeyCode::Char(character)), view);
    }
}

fn pids(ui: &Ui, view: &View) -> Vec<u32> {
    let rows = ui.rows(view, Pane::Processes);
    let pids = rows.iter().map(|row| match row {
        Row::Process(pid) => pid.pid,
        other => panic!("{other:?} is no process"),
    });
    pids.collect()
}

#[test]
fn trouble_comes_first_and_s_goes_through_the_orders() {
    let (mut ui, view) = (Ui::default(), view());
    // Nine leaks weigh more than 50 resets, and those more than one leak.
    assert_eq!(pids(&ui, &view), [20, 30, 10]);
    let s = KeyCode::Char('s');
    press(&mut ui, &view, &[s]);
    assert_eq!(pids(&ui, &view)[0], 30, "by resets");
    press(&mut ui, &view, &[s, s]);
    assert_eq!(pids(&ui, &view)[0], 20, "by CLOSE_WAIT");
    press(&mut ui, &view, &[s, s]);
    assert_eq!(pids(&ui, &view), [10, 20, 30], "by name");
    press(&mut ui, &view, &[s]);
    assert_eq!(ui.order[0], 0, "all around");
}

#[test]
fn the_chosen_row_stays_chosen_when_the_order_changes() {
    let (mut ui, view) = (Ui::default(), view());
    press(&mut ui, &view, &[KeyCode::Char('j')]);
    assert_eq!(ui.chosen[0], Some(Row::Process(Pid::live(30))));
    press(&mut ui, &view, &[KeyCode::Char('s')]);
    let rows = ui.rows(&view, Pane::Processes);
    assert_eq!(ui.place(&rows, Pane::Processes), Some(0));
    press(&mut ui, &view, &[KeyCode::End]);
    let rows = ui.rows(&view, Pane::Processes);
    assert_eq!(ui.place(&rows, Pane::Processes), Some(2));
    press(
        &mut ui,
        &view,
        &[KeyCode::Down, KeyCode::PageDown, KeyCode::Char('G')],
    );
    assert_eq!(
        ui.place(&rows, Pane::Processes),
        Some(2),
        "there is no more"
    );
    press(&mut ui, &view, &[KeyCode::Char('g'), KeyCode::Up]);
    assert_eq!(ui.place(&rows, Pane::Processes), Some(0));
}

#[test]
fn a_filter_leaves_rows_that_hold_it() {
    let (mut ui, view) = (Ui::default(), view());
    typed(&mut ui, &view, "/GAMMA[3");
    assert!(ui.typing);
    assert_eq!(pids(&ui, &view), [30]);
    // While it is written, keys are text.
    assert_eq!(press(&mut ui, &view, &[KeyCode::Char('q')]), Action::Draw);
    assert_eq!(pids(&ui, &view), [0_u32; 0]);
    press(&mut ui, &view, &[KeyCode::Backspace, KeyCode::Enter]);
    assert!(!ui.typing);
    assert_eq!(pids(&ui, &view), [30]);
    press(&mut ui, &view, &[KeyCode::Esc]);
    assert_eq!(pids(&ui, &view).len(), 3);
    typed(&mut ui, &view, "/:443");
    assert_eq!(ui.rows(&view, Pane::Listeners).len(), 1);
}

#[test]
fn enter_opens_and_escape_closes() {
    let (mut ui, view) = (Ui::default(), view());
    press(&mut ui, &view, &[KeyCode::Tab, KeyCode::Enter]);
    let Cover::Detail(Row::Listener(place)) = ui.cover else {
        panic!("a listener, not {:?}", ui.cover)
    };
    assert_eq!(place.address.port(), 443, "the fullest one");
    press(&mut ui, &view, &[KeyCode::Down, KeyCode::Down]);
    assert_eq!(ui.scroll, 2);
    // It closes what is open before it ends all.
    assert_eq!(press(&mut ui, &view, &[KeyCode::Char('q')]), Action::Draw);
    assert_eq!((ui.cover, ui.pane), (Cover::None, Pane::Listeners));
    press(&mut ui, &view, &[KeyCode::Char('?')]);
    assert_eq!(ui.cover, Cover::Help);
    press(&mut ui, &view, &[KeyCode::Char('?'), KeyCode::BackTab]);
    assert_eq!((ui.cover, ui.pane), (Cover::None, Pane::Processes));
    assert_eq!(press(&mut ui, &view, &[KeyCode::Char('q')]), Action::Quit);
}

#[test]
fn control_keys_are_heard_everywhere() {
    let (mut ui, view) = (Ui::default(), view());
    let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
    typed(&mut ui, &view, "/abc");
    assert_eq!(ui.key(control('c'), &view), Action::Quit);
    assert_eq!(ui.key(control('z'), &view), Action::Suspend);
    press(&mut ui, &view, &[KeyCode::Esc, KeyCode::Char('p')]);
    assert!(ui.paused);
    press(&mut ui, &view, &[KeyCode::Char('p')]);
    assert!(!ui.paused);
}

#[test]
fn keys_do_no_harm_where_nothing_is() {
    let (mut ui, view) = (Ui::default(), View::default());
    for code in [
        KeyCode::Down,
        KeyCode::End,
        KeyCode::Enter,
        KeyCode::PageUp,
        KeyCode::Tab,
    ] {
        press(&mut ui, &view, &[code]);
    }
    assert_eq!(ui.cover, Cover::None);
}
