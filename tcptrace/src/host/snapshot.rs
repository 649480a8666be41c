//! What is already wrong when tcptrace starts: connections long in `CLOSE_WAIT`, full accept queues,
//! processes short of descriptors.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::cgroup::Cgroups;
use super::close_waits::{CloseWaits, told_age};
use super::holders::{self, Holders};
use super::netns::{self, Namespace};
use super::process;
use super::sockets::{self, TcpSocket};
use super::whose::{Owners, Whose};
use crate::event::{
    CloseWait, Confidence, Errno, Event, EventId, FdExhausted, Flow, Kind, Overflow, Process,
    State, Timestamp,
};

/// Most sockets in `CLOSE_WAIT`, and most listeners, whose holder is looked for.
const MAX_SOCKETS: usize = 1 << 18;
/// Most events for one kind of trouble.
const MAX_EVENTS: usize = 1000;
/// A lower limit is a sandbox that means to open nothing more.
const MIN_FD_LIMIT: u64 = 16;

/// What to look for.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Connections shorter in `CLOSE_WAIT` are left out.
    pub close_wait_after: Duration,
    /// Other network namespaces than our own are visited until this much time has passed.
    pub budget: Duration,
    /// When the events are said to have been seen.
    pub time: Timestamp,
    /// Whether a socket of this flow and holder, or a holder alone, is asked for.
    pub include: &'a dyn Fn(Option<&Flow>, Option<u32>) -> bool,
}

/// What was found, and what could not be seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// [`Kind::CloseWaitStuck`], [`Kind::AcceptQueueOverflow`] and [`Kind::FdExhausted`]; in each the
    /// most sockets, the longest queue or the fullest table first.
    pub events: Vec<Event>,
    /// A sentence for everything that could not be seen or did not fit.
    pub notes: Vec<String>,
}

/// Looks once over all sockets and processes it may see; never fails, but says what it missed.
pub fn take(request: &Request<'_>, next_id: &mut dyn FnMut() -> EventId) -> Snapshot {
    let mut facts = Facts::default();
    facts.look_at_sockets(request);
    facts.look_at_holders();
    facts.look_at_limits(request);
    let cgroups = Cgroups::open().ok();
    facts.report(request, next_id, &|pid| {
        process::describe(pid, cgroups.as_ref())
    })
}

/// What the host says, before anything is made of it.
#[derive(Debug, Default)]
struct Facts {
    /// In `CLOSE_WAIT` for long enough.
    stuck: Vec<TcpSocket>,
    /// Those of unknown age were seen twice, this long apart.
    seen_for: Duration,
    listeners: Vec<TcpSocket>,
    /// Sockets for which there was no room in either list.
    over: u64,
    holders: Holders,
    /// Descriptors open in each process.
    open: Vec<(u32, u64)>,
    /// Processes near their limit: pid, open, limit.
    short_of_fds: Vec<(u32, u64, u64)>,
    notes: Vec<String>,
}

impl Facts {
    fn look_at_sockets(&mut self, request: &Request<'_>) {
        let start = Instant::now();
        let namespaces = match netns::list() {
            Ok(namespaces) => namespaces,
            Err(error) => return self.notes.push(format!("no socket is seen: {error:#}")),
        };
        self.notes.extend(namespaces.unseen());
        let mut visited = 0;
        for namespace in &namespaces.list {
            if visited > 0 && start.elapsed() >= request.budget {
                break;
            }
            visited += 1;
            self.look_into(namespace, request.close_wait_after);
        }
        let left = namespaces.list.len() - visited;
        if left > 0 {
            self.notes.push(format!(
                "{left} of {} network namespaces were not looked into at the start: time was up \
                 after {} ms",
                namespaces.list.len(),
                request.budget.as_millis()
            ));
        }
        self.look_again(&namespaces.list[..visited], request);
        if self.over > 0 {
            let over = self.over;
            self.notes.push(format!(
                "{over} more listeners and sockets in CLOSE_WAIT are not counted"
            ));
        }
    }

    fn look_into(&mut self, namespace: &Namespace, after: Duration) {
        let looked = netns::enter(namespace, || {
            sockets::dump(&[State::Listen, State::CloseWait], |socket| {
                let list = match socket.state {
                    State::Listen => &mut self.listeners,
                    _ if told_age(&socket).is_some_and(|age| age < after) => return,
                    _ => &mut self.stuck,
                };
                if list.len() < MAX_SOCKETS {
                    list.push(socket);
                } else {
                    self.over += 1;
                }
            })
        });
        self.notes.extend(sockets::unseen(looked, namespace.inode));
    }

    /// Where the kernel tells no age, whoever is in `CLOSE_WAIT` on the way to its close cannot be told
    /// from a leak: what is still there a while later is one.
    fn look_again(&mut self, namespaces: &[Namespace], request: &Request<'_>) {
        if self.stuck.iter().all(|socket| told_age(socket).is_some()) {
            return;
        }
        let apart = request.close_wait_after.min(request.budget);
        thread::sleep(apart);
        let mut still = HashSet::new();
        for namespace in namespaces {
            let looked = netns::enter(namespace, || {
                sockets::dump(&[State::CloseWait], |socket| {
                    still.insert((socket.flow, socket.inode));
                })
            });
            // What cannot be looked at any more is not known to be there.
            drop(looked);
        }
        self.keep(&still, apart);
    }

    /// Of the sockets without an age keeps those that are still there so much later.
    fn keep(&mut self, still: &HashSet<(Flow, u64)>, apart: Duration) {
        let is_stuck = |socket: &TcpSocket| {
            told_age(socket).is_some() || still.contains(&(socket.flow, socket.inode))
        };
        self.stuck.retain(is_stuck);
        self.seen_for = apart;
    }

    /// How long a connection has been in `CLOSE_WAIT` at least.
    fn age(&self, socket: &TcpSocket) -> Duration {
        told_age(socket).unwrap_or(self.seen_for)
    }

    fn look_at_holders(&mut self) {
        let sockets = self.stuck.iter().chain(&self.listeners);
        let inodes = sockets.map(|it| it.inode).filter(|&inode| inode != 0);
        let (holders, scan) = holders::find_all(inodes, |pid, open| {
            self.open.extend(open.map(|open| (pid, open)));
        });
        self.holders = holders;
        self.notes.extend(scan.unseen());
    }

    fn look_at_limits(&mut self, request: &Request<'_>) {
        for &(pid, open) in &self.open {
            if open * 10 < MIN_FD_LIMIT * 9 || !(request.include)(None, Some(pid)) {
                continue;
            }
            let Some(limit) = process::open_files_limit(pid) else {
                continue;
            };
            if limit >= MIN_FD_LIMIT && u128::from(open) * 10 >= u128::from(limit) * 9 {
                self.short_of_fds.push((pid, open, limit));
            }
        }
    }

    fn report(
        mut self,
        request: &Request<'_>,
        next_id: &mut dyn FnMut() -> EventId,
        describe: &dyn Fn(u32) -> Option<Process>,
    ) -> Snapshot {
        let mut described: HashMap<u32, Option<Process>> = HashMap::new();
        let mut describe = |pid| {
            described
                .entry(pid)
                .or_insert_with(|| describe(pid))
                .clone()
        };
        let mut notes = std::mem::take(&mut self.notes);
        let owners = Owners::new(&self.holders, &self.listeners);
        let mut kinds = [
            self.stuck(request, &owners),
            self.full(request, &owners),
            self.short_of_fds(),
        ];
        let mut events = Vec::new();
        for found in &mut kinds {
            found.sort_by_key(|found| Reverse(found.weight));
            if found.len() > MAX_EVENTS {
                let over = found.split_off(MAX_EVENTS);
                let name = over[0].kind.name();
                notes.push(format!("{} more {name} are not shown", over.len()));
            }
            events.extend(
                found
                    .drain(..)
                    .map(|found| found.event(request, next_id, &mut describe)),
            );
        }
        Snapshot { events, notes }
    }

    /// One for each group of holders and service.
    fn stuck(&self, request: &Request<'_>, owners: &Owners<'_>) -> Vec<Found> {
        let mut groups = CloseWaits::new(usize::MAX);
        for socket in &self.stuck {
            let whose = owners.of(socket);
            if request.includes(&whose, &socket.flow) {
                let age = Some(self.age(socket));
                groups.add(socket, whose, owners.served(socket), age);
            }
        }
        let found = groups.into_groups().map(|group| {
            let age = group.age.unwrap_or_default();
            let kind = CloseWait {
                age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
                at_least: true,
                count: group.count,
                at_start: true,
            };
            Found {
                socket: Some(group.oldest),
                whose: group.whose,
                weight: u64::from(group.count),
                kind: Kind::CloseWaitStuck(kind),
            }
        });
        found.collect()
    }

    fn full(&self, request: &Request<'_>, owners: &Owners<'_>) -> Vec<Found> {
        let full = self
            .listeners
            .iter()
            .filter(|listener| listener.accept_queue_full());
        let found = full.filter_map(|listener| {
            let whose = owners.of(listener);
            let kind = Overflow {
                path: None,
                count: 0,
                queue_len: Some(listener.recv_queue),
                queue_max: listener.accept_queue_limit(),
                // sock_diag tells the limit, not what was asked for.
                backlog: None,
                drops: listener.drops,
                last_accept_ago_us: None,
            };
            request.includes(&whose, &listener.flow).then(|| Found {
                socket: Some(listener.clone()),
                whose,
                weight: u64::from(listener.recv_queue),
                kind: Kind::AcceptQueueOverflow(kind),
            })
        });
        found.collect()
    }

    fn short_of_fds(&self) -> Vec<Found> {
        let found = self.short_of_fds.iter().map(|&(pid, open, limit)| Found {
            socket: None,
            whose: Whose {
                pids: Arc::from([pid]),
                fd: None,
                queued: false,
            },
            weight: open.saturating_mul(100) / limit,
            kind: Kind::FdExhausted(FdExhausted {
                syscall: None,
                errno: Errno(libc::EMFILE),
                open: Some(open),
                limit: Some(limit),
                read_after_ms: Some(0),
            }),
        });
        found.collect()
    }
}

impl Request<'_> {
    /// A socket of nobody is asked for by its flow alone.
    fn includes(&self, whose: &Whose, flow: &Flow) -> bool {
        if whose.pids.is_empty() {
            return (self.include)(Some(flow), None);
        }
        let mut pids = whose.pids.iter();
        pids.any(|&pid| (self.include)(Some(flow), Some(pid)))
    }
}

/// One trouble.
#[derive(Debug)]
struct Found {
    socket: Option<TcpSocket>,
    whose: Whose,
    /// The heaviest are shown first.
    weight: u64,
    kind: Kind,
}

impl Found {
    fn event(
        self,
        request: &Request<'_>,
        next_id: &mut dyn FnMut() -> EventId,
        describe: &mut dyn FnMut(u32) -> Option<Process>,
    ) -> Event {
        let mut socket = self.socket.as_ref().map(TcpSocket::to_event);
        let owner = self.whose.owner(Confidence::Seeded, describe);
        if let Some(socket) = &mut socket {
            socket.fd = self.whose.fd.filter(|_| owner.process.is_some());
        }
        Event {
            id: next_id(),
            time: request.time,
            caused_by: None,
            socket,
            owner,
            actor: None,
            facts: Vec::new(),
            kind: self.kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::host::holders::Holder;
    use crate::host::sockets::Info;

    fn socket(local: &str, peer: Option<&str>, state: State, inode: u64) -> TcpSocket {
        TcpSocket {
            flow: Flow {
                local: local.parse().expect("an address"),
                peer: peer.map(|peer| peer.parse().expect("an address")),
                ipv6_socket: false,
                netns: 9,
            },
            state,
            inode,
            uid: 0,
            cookie: Some(inode + 1000),
            recv_queue: 1,
            send_queue: Some(0),
            drops: Some(4),
            info: None,
        }
    }

    fn stuck(local: &str, peer: &str, inode: u64, seconds: u32) -> TcpSocket {
        let info = Info {
            ack_received_ago_ms: seconds * 1000,
            ..Info::default()
        };
        TcpSocket {
            info: Some(info),
            ..socket(local, Some(peer), State::CloseWait, inode)
        }
    }

    fn report(facts: Facts, include: &dyn Fn(Option<&Flow>, Option<u32>) -> bool) -> Snapshot {
        let request = Request {
            close_wait_after: Duration::from_secs(1),
            budget: Duration::ZERO,
            time: Timestamp(5),
            include,
        };
        let mut id = 0;
        let mut next_id = || {
            id += 1;
            EventId(id)
        };
        let describe = |pid| {
            (pid < 1000).then(|| Process {
                pid,
                comm: "web".into(),
                ..Process::default()
            })
        };
        facts.report(&request, &mut next_id, &describe)
    }

    /// Owner, its confidence, all holders, descriptor, flow, age, count.
    type Row = (
        Option<u32>,
        Confidence,
        Vec<u32>,
        Option<i32>,
        String,
        u64,
        u32,
    );

    fn rows(snapshot: &Snapshot) -> Vec<Row> {
        let rows = snapshot.events.iter().filter_map(|event| {
            let Kind::CloseWaitStuck(CloseWait {
                age_ms,
                count,
                at_least: true,
                at_start: true,
            }) = event.kind
            else {
                return None;
            };
            let socket = event.socket.as_ref()?;
            let owner = &event.owner;
            Some((
                owner.process.as_ref().map(|process| process.pid),
                owner.confidence,
                owner.holders.to_vec(),
                socket.fd,
                socket.flow.to_string(),
                age_ms,
                count,
            ))
        });
        rows.collect()
    }

    fn held(by: &[(u64, u32, i32)]) -> Holders {
        let held = by.iter();
        let held = held.map(|&(inode, pid, fd)| (inode, Holder { pid, fd }));
        Holders::new(held.collect())
    }

    #[test]
    fn close_wait_is_grouped_by_holder_and_service() {
        let facts = || Facts {
            listeners: vec![socket("0.0.0.0:80", None, State::Listen, 1)],
            stuck: vec![
                stuck("10.0.0.1:80", "10.0.0.7:1", 11, 5),
                stuck("10.0.0.1:80", "10.0.0.8:2", 12, 50),
                stuck("10.0.0.1:80", "10.0.0.9:3", 13, 7),
                // A client's own ports tell nothing: its peer does.
                stuck("10.0.0.1:4001", "10.0.0.5:5432", 14, 3),
                stuck("10.0.0.1:4002", "10.0.0.5:5432", 15, 2),
                stuck("10.0.0.1:80", "10.0.0.9:5", 16, 9),
                stuck("10.0.0.1:80", "10.0.0.9:6", 0, 8),
                stuck("10.0.0.1:80", "10.0.0.9:7", 17, 1),
            ],
            holders: held(&[
                (1, 100, 3),
                (11, 100, 21),
                (12, 100, 22),
                (13, 100, 23),
                (14, 100, 24),
                (15, 100, 25),
                (16, 100, 26),
                (16, 200, 26),
                (17, 2000, 7),
            ]),
            ..Facts::default()
        };
        let mut found = rows(&report(facts(), &|_, _| true));
        found.sort_by_key(|row| Reverse((row.6, row.5)));
        let me = Some(100);
        let expected: [Row; 5] = [
            (
                me,
                Confidence::Seeded,
                vec![],
                Some(22),
                "10.0.0.1:80 > 10.0.0.8:2".into(),
                50_000,
                3,
            ),
            (
                me,
                Confidence::Seeded,
                vec![],
                Some(24),
                "10.0.0.1:4001 > 10.0.0.5:5432".into(),
                3000,
                2,
            ),
            (
                me,
                Confidence::Shared,
                vec![100, 200],
                Some(26),
                "10.0.0.1:80 > 10.0.0.9:5".into(),
                9000,
                1,
            ),
            // Never accepted: the listener's owner has it still to come.
            (
                me,
                Confidence::Inherited,
                vec![],
                None,
                "10.0.0.1:80 > 10.0.0.9:6".into(),
                8000,
                1,
            ),
            // The holder ended since: nobody is named.
            (
                None,
                Confidence::Unknown,
                vec![],
                None,
                "10.0.0.1:80 > 10.0.0.9:7".into(),
                1000,
                1,
            ),
        ];
        assert_eq!(found, expected);

        let by_holder = report(facts(), &|_, pid| pid == Some(200));
        assert_eq!(rows(&by_holder).len(), 1);
        let by_peer = report(facts(), &|flow, _| {
            flow.and_then(|f| f.peer).is_some_and(|p| p.port() == 5432)
        });
        assert_eq!(rows(&by_peer).iter().map(|row| row.6).sum::<u32>(), 2);
    }

    #[test]
    fn a_queued_connection_belongs_to_the_listener_of_its_address() {
        let facts = Facts {
            listeners: vec![
                socket("0.0.0.0:80", None, State::Listen, 1),
                socket("10.0.0.1:80", None, State::Listen, 2),
            ],
            stuck: vec![stuck("10.0.0.1:80", "10.0.0.9:6", 0, 8)],
            holders: held(&[(1, 100, 3), (2, 200, 3)]),
            ..Facts::default()
        };
        assert_eq!(rows(&report(facts, &|_, _| true))[0].0, Some(200));
    }

    #[test]
    fn without_ages_only_what_stays_is_stuck() {
        let new = |peer, inode| socket("10.0.0.1:80", Some(peer), State::CloseWait, inode);
        let (stays, passes) = (new("10.0.0.7:1", 11), new("10.0.0.8:2", 12));
        let mut facts = Facts {
            stuck: vec![
                stays.clone(),
                passes,
                stuck("10.0.0.1:80", "10.0.0.9:3", 13, 5),
            ],
            ..Facts::default()
        };
        facts.keep(
            &HashSet::from([(stays.flow, 11), (stays.flow, 12)]),
            Duration::from_millis(700),
        );
        let ages: Vec<_> = facts
            .stuck
            .iter()
            .map(|socket| (socket.inode, facts.age(socket).as_millis()))
            .collect();
        assert_eq!(ages, [(11, 700), (13, 5_000)]);
    }

    #[test]
    fn full_queues_and_descriptors_are_told() {
        let full = TcpSocket {
            recv_queue: 5,
            send_queue: Some(4),
            ..socket("0.0.0.0:80", None, State::Listen, 1)
        };
        let facts = Facts {
            listeners: vec![
                TcpSocket {
                    recv_queue: 4,
                    ..full.clone()
                },
                TcpSocket {
                    inode: 2,
                    ..full.clone()
                },
            ],
            holders: held(&[(1, 100, 3), (2, 200, 3)]),
            short_of_fds: vec![(300, 950, 1000), (400, 1000, 1000)],
            notes: vec!["a note".into()],
            ..Facts::default()
        };
        let snapshot = report(facts, &|_, _| true);
        let pids: Vec<_> = snapshot
            .events
            .iter()
            .map(|event| event.owner.process.as_ref().map(|it| it.pid))
            .collect();
        assert_eq!(pids, [Some(200), Some(400), Some(300)]);
        let overflow = Overflow {
            path: None,
            count: 0,
            queue_len: Some(5),
            queue_max: Some(4),
            backlog: None,
            drops: Some(4),
            last_accept_ago_us: None,
        };
        assert_eq!(snapshot.events[0].kind, Kind::AcceptQueueOverflow(overflow));
        let Kind::FdExhausted(fds) = &snapshot.events[1].kind else {
            panic!("a limit reached")
        };
        assert_eq!(
            (fds.errno.name(), fds.open, fds.limit),
            (Some("EMFILE"), Some(1000), Some(1000))
        );
        assert_eq!(snapshot.notes, ["a note"]);
    }

    #[test]
    fn a_flood_is_cut_and_said() {
        let stuck = (0..1500_u16).map(|n| {
            stuck(
                &format!("10.0.0.1:{}", 5000 + n),
                &format!("10.0.0.5:{}", 1 + n),
                u64::from(n),
                2,
            )
        });
        let snapshot = report(
            Facts {
                stuck: stuck.collect(),
                ..Facts::default()
            },
            &|_, _| true,
        );
        assert_eq!(snapshot.events.len(), MAX_EVENTS);
        assert_eq!(
            snapshot.notes,
            ["500 more tcptrace.close_wait.stuck are not shown"]
        );
    }

    #[test]
    fn our_own_close_wait_and_full_queue_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).expect("listening");
        drop(listener.accept().expect("connected"));
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).expect("small"))
            .expect("a listener takes a new limit");
        let waiting = TcpStream::connect(address).expect("the queue holds one more than its limit");
        let port = address.port();
        let ours = |flow: Option<&Flow>, pid| {
            pid == Some(std::process::id())
                && flow.is_some_and(|flow| {
                    flow.local.port() == port || flow.peer.is_some_and(|peer| peer.port() == port)
                })
        };
        let request = Request {
            close_wait_after: Duration::ZERO,
            budget: Duration::ZERO,
            time: Timestamp(5),
            include: &ours,
        };
        let snapshot = take(&request, &mut || EventId(1));
        let stuck = &snapshot.events[0];
        assert!(
            matches!(stuck.kind, Kind::CloseWaitStuck(CloseWait { count: 1, .. })),
            "{stuck:?}"
        );
        let socket = stuck.socket.as_ref().expect("it is about a socket");
        assert_eq!(
            (socket.fd, socket.flow.peer),
            (Some(client.as_raw_fd()), Some(address))
        );
        assert_eq!((socket.unread, socket.eof_read), (0, false));
        assert_eq!(stuck.owner.confidence, Confidence::Seeded);
        let Kind::AcceptQueueOverflow(full) = &snapshot.events[1].kind else {
            panic!("a full queue, not {:?}", snapshot.events)
        };
        assert_eq!((full.queue_len, full.queue_max), (Some(1), Some(0)));
        assert_eq!(snapshot.events.len(), 2);
        drop(waiting);
    }
}
