//! What the view counts is what it was given, and its memory is bounded by any soup.

use proptest::prelude::*;

use super::*;
use crate::event::{CallError, CloseWait, ConnectFailed, Loss, SocketId};
use crate::sink::samples;

const NOW: Timestamp = Timestamp(1_795_173_003_123_456_789);

fn later(seconds: u64) -> Timestamp {
    Timestamp(NOW.0 + seconds * SECOND)
}

fn failed(errno: i32) -> Event {
    let call = CallError {
        syscall: None,
        send: None,
        errno: Errno(errno),
        len: None,
        timeout: false,
        fd: None,
    };
    samples::event(None, Kind::SocketError(call))
}

fn nginx(view: &View) -> &Process {
    &view.processes[&Pid::live(1_234)]
}

#[test]
fn counts_are_those_of_the_events() {
    let mut view = View::default();
    view.tick(NOW);
    for event in samples::all() {
        view.apply(&event);
    }
    for _ in 0..3 {
        view.apply(&failed(libc::ECONNRESET));
    }
    let nginx = nginx(&view);
    assert_eq!((nginx.resets_sent, nginx.resets_received), (1, 1));
    assert_eq!(nginx.timeouts, 1);
    let named = nginx
        .errors
        .iter()
        .map(|(errno, count)| (errno.to_string(), *count));
    let named: Vec<_> = named.collect();
    let expected = [
        ("ECONNRESET", 3),
        ("EPIPE", 1),
        ("ECONNREFUSED", 1),
        ("EMFILE", 1),
        ("EBADF", 1),
    ];
    assert_eq!(
        named,
        expected.map(|(errno, count)| (errno.to_owned(), count))
    );
    let full = Descriptors {
        open: 1_024,
        limit: 1_024,
    };
    assert_eq!(nginx.fds, Some(full));
    assert!(full.is_short());
    // The RST of no socket.
    assert_eq!(view.processes[&Pid::live(0)].resets_sent, 1);
    assert_eq!(view.lost, 3);
    assert_eq!(view.coverage.len(), 2);
    // All but coverage, losses and the like.
    assert_eq!(view.taken, 13 + 3);
    let (place, listener) = view.listeners.iter().next().expect("one was full");
    assert_eq!(place.address.port(), 8080);
    assert_eq!(
        (listener.lost, listener.len, listener.max),
        (1, Some(129), Some(128))
    );
    assert!(listener.is_full());
    assert_eq!(listener.last_accept, Some(Timestamp(NOW.0 - 4_200_000_000)));
}

#[test]
fn errors_are_in_the_order_of_their_counts_and_their_sorts_are_bounded() {
    let mut view = View::default();
    for errno in 1..=40 {
        view.apply(&failed(errno));
    }
    view.apply(&failed(7));
    view.apply(&failed(7));
    let errors = &nginx(&view).errors;
    assert_eq!(errors.len(), Process::ERRORS);
    assert_eq!(errors[0], (Errno(7), 3));
    assert!(errors.is_sorted_by_key(|(_, count)| std::cmp::Reverse(*count)));
}

#[test]
fn a_finding_told_again_stays_one_and_comes_first() {
    let mut view = View::default();
    let told = |id, count, update| {
        let mut finding = samples::finding();
        (finding.id, finding.count, finding.update) = (EventId(id), count, update);
        samples::event(None, Kind::Finding(finding.into()))
    };
    for event in [told(1, 1, 0), told(2, 1, 0), told(1, 40, 1)] {
        view.apply(&event);
    }
    let counts = view.findings.iter().filter_map(Found::finding);
    let counts: Vec<_> = counts.map(|it| (it.id.0, it.count)).collect();
    assert_eq!(counts, [(2, 1), (1, 40)]);
    assert_eq!(nginx(&view).findings, 2);
}

fn listening(len: u32, max: u32) -> Listening {
    Listening {
        netns: 7,
        address: "0.0.0.0:80".parse().expect("an address"),
        len,
        max: Some(max),
    }
}

fn looked(listeners: &[Listening]) -> Looked {
    Looked {
        namespaces: HashSet::from([7]),
        listeners: listeners.to_vec(),
        ..Looked::default()
    }
}

#[test]
fn a_queue_is_that_of_the_fullest_socket_and_a_listener_may_go() {
    let mut view = View::default();
    view.tick(NOW);
    view.look(&looked(&[
        listening(2, 128),
        listening(129, 128),
        listening(0, 128),
    ]));
    let of = |view: &View| view.listeners.values().next().cloned();
    let listener = of(&view).expect("it listens");
    assert_eq!((listener.sockets, listener.len), (3, Some(129)));
    assert!(listener.is_full());
    assert_eq!(listener.fullness(), 1000);
    view.tick(later(1));
    view.look(&looked(&[]));
    assert!(of(&view).is_some_and(|it| it.gone && !it.is_full()));
    // Of a namespace that was not looked into nothing is known.
    view.look(&looked(&[listening(1, 128)]));
    view.look(&Looked::default());
    assert!(of(&view).is_some_and(|it| !it.gone));
    view.look(&looked(&[]));
    view.tick(later(70));
    assert_eq!(of(&view), None, "after a minute it is forgotten");
}

#[test]
fn accepts_are_what_the_counter_grew_by_over_all_that_share_the_address() {
    let mut view = View::default();
    view.tick(NOW);
    let accepting = |accepted| Accepting {
        netns: 7,
        address: "0.0.0.0:80".parse().expect("an address"),
        accepted,
        last_accept: Some(NOW),
        backlog: Some(511),
        owner: Some((80, Comm::from("httpd"))),
    };
    view.accepting(&[accepting(u32::MAX - 1), accepting(10)], NOW);
    view.accepting(&[accepting(4), accepting(15)], NOW);
    // One of the two has closed: what its count was cannot be told from what the other one's is.
    view.accepting(&[accepting(16)], NOW);
    view.tick(later(1));
    let listener = view.listeners.values().next().expect("it listens");
    // Six at the first, five at the second.
    assert_eq!(listener.accepted, Some(11));
    assert!((listener.accepts.rate() - 11.0).abs() < f64::EPSILON);
    assert_eq!(listener.owner, Some((Pid::live(80), Comm::from("httpd"))));
    assert_eq!(listener.backlog, Some(511));
}

fn waiting(pid: u32, seconds_ago: u64) -> Waiting {
    Waiting {
        owner: (Pid::live(pid), Comm::from("leaky")),
        flow: samples::flow("10.0.0.1:40000", Some("10.0.0.5:5432")),
        since: Timestamp(NOW.0 - seconds_ago * SECOND),
        older: false,
        count: 1,
    }
}

#[test]
fn what_waits_is_counted_anew_each_time_with_the_oldest_first() {
    let mut view = View::default();
    view.tick(NOW);
    view.close_waits([3, 90, 7].map(|age| waiting(5, age)));
    let leaky = &view.processes[&Pid::live(5)];
    assert_eq!(leaky.close_wait, 3);
    assert_eq!(leaky.close_wait_since, Some(Timestamp(NOW.0 - 90 * SECOND)));
    let ages = leaky.close_wait_flows.iter();
    let ages: Vec<_> = ages.map(|(_, since)| (NOW.0 - since.0) / SECOND).collect();
    assert_eq!(ages, [90, 7, 3]);
    view.close_waits((0..1000).map(|age| waiting(5, age)));
    let leaky = &view.processes[&Pid::live(5)];
    assert_eq!(
        (leaky.close_wait, leaky.close_wait_flows.len()),
        (1000, Process::FLOWS)
    );
    assert_eq!(
        leaky.close_wait_since,
        Some(Timestamp(NOW.0 - 999 * SECOND))
    );
    view.close_waits([]);
    assert_eq!(view.processes[&Pid::live(5)].close_wait, 0);
}

#[test]
fn the_look_around_knows_the_age_of_what_is_older_than_the_tracer() {
    let mut view = View::default();
    view.tick(NOW);
    let mut told = samples::all();
    told.retain(|it| matches!(it.kind, Kind::CloseWaitStuck(_)));
    view.apply(&told[0]);
    let older = Waiting {
        older: true,
        ..waiting(1_234, 2)
    };
    view.close_waits([older]);
    let since = nginx(&view).close_wait_since.expect("it waits");
    assert_eq!(NOW.0 - since.0, 61_200_000_000);
    // Once those are closed, only what was seen counts.
    view.close_waits([waiting(1_234, 2)]);
    let since = nginx(&view).close_wait_since.expect("it waits");
    assert_eq!(NOW.0 - since.0, 2 * SECOND);
}

#[test]
fn a_recording_tells_what_waits_until_it_tells_of_the_end() {
    let mut view = View::replayed();
    view.tick(NOW);
    let socket = |sk| crate::event::Socket {
        id: SocketId { sk, born: 1 },
        ..crate::event::Socket::default()
    };
    let stuck = CloseWait {
        age_ms: 5_000,
        at_least: false,
        count: 1,
        at_start: false,
    };
    view.apply(&samples::event(
        Some(socket(1)),
        Kind::CloseWaitStuck(stuck.clone()),
    ));
    view.apply(&samples::event(
        Some(socket(2)),
        Kind::CloseWaitStuck(stuck),
    ));
    view.tick(later(1));
    assert_eq!(nginx(&view).close_wait, 2);
    let Kind::ResetSent(reset) = samples::reset_sent().kind else {
        panic!("a RST")
    };
    view.apply(&samples::event(Some(socket(1)), Kind::ResetSent(reset)));
    view.tick(later(2));
    assert_eq!(nginx(&view).close_wait, 1);
}

#[test]
fn who_holds_something_stays_when_room_is_made() {
    let mut view = View::default();
    view.tick(NOW);
    view.close_waits([waiting(1, 10)]);
    for pid in 2..5_000 {
        let mut event = failed(libc::EPIPE);
        event.time = Timestamp(NOW.0 + u64::from(pid));
        event.owner.process.as_mut().expect("nginx").pid = pid;
        view.apply(&event);
        assert!(view.processes.len() <= View::PROCESSES);
    }
    assert!(view.processes.contains_key(&Pid::live(1)), "it leaks");
    assert!(view.processes.contains_key(&Pid::live(4_999)), "the newest");
    assert!(!view.processes.contains_key(&Pid::live(2)), "the oldest");
    assert!(view.forgotten > 0);
}

/// Any kind of event, of any process, listener, run and time.
fn any_event() -> impl Strategy<Value = Event> {
    let samples = samples::all().into_iter().chain(samples::verdicts());
    let samples: Vec<_> = samples.collect();
    let any = (
        prop::sample::select(samples),
        any::<u32>(),
        any::<u64>(),
        0_u16..3,
    );
    any.prop_map(|(mut event, pid, time, run)| {
        event.id = EventId(time).of_run(run);
        event.time = Timestamp(time);
        if let Some(process) = &mut event.owner.process {
            process.pid = pid;
        }
        if let Some(socket) = &mut event.socket {
            socket.flow.netns = pid;
        }
        match &mut event.kind {
            Kind::Finding(finding) => finding.id = event.id,
            Kind::EventsLost(Loss { count, .. }) => *count %= 1_000,
            Kind::ConnectFailed(ConnectFailed { errno, .. }) => {
                *errno = Some(Errno(i32::from(run) + 1));
            }
            _ => {}
        }
        event
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_soup_goes_beyond_the_bounds(
        events in prop::collection::vec(any_event(), 1..3_000),
        ticks in prop::collection::vec(any::<u64>(), 1..8),
    ) {
        let mut view = View::replayed();
        let mut expected = 0;
        for (nth, event) in events.iter().enumerate() {
            view.apply(event);
            let is_told = !matches!(event.kind, Kind::Finding(_));
            expected += u64::from(is_told && event.kind.selectable().is_some());
            if let Some(&tick) = ticks.get(nth % 64) {
                view.tick(Timestamp(tick));
            }
        }
        prop_assert_eq!(view.taken, expected);
        prop_assert!(view.processes.len() <= View::PROCESSES);
        prop_assert!(view.listeners.len() <= View::LISTENERS);
        prop_assert!(view.findings.len() <= View::FINDINGS);
        prop_assert!(view.timeline.len() <= View::EVENTS);
        for process in view.processes.values() {
            prop_assert!(process.errors.len() <= Process::ERRORS);
            prop_assert!(process.close_wait_flows.len() <= Process::FLOWS);
        }
    }
}
