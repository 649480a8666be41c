//! All TCP sockets of the host at one moment, counted: by state, holder, listener, namespace.
//!
//! Sockets are counted as they come from the kernel and not kept, unless each is asked for: a million of
//! them take 16 bytes for each descriptor that holds one, and some 250 more when they are kept. What is
//! grouped has bounds.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::cgroup::Cgroups;
use super::close_waits::{self, CloseWaits, told_age};
use super::counters::Counters;
use super::holders::{self, Holders};
use super::netns::{self, Namespace};
use super::sockets::{self, ALL_STATES, TcpSocket};
use super::whose::{Owners, Whose};
use super::{acceptor, ports, process};
use crate::event::{
    self, Confidence, Event, EventId, Flow, Kind, Listener, NamespaceSockets, Owner, Process,
    ProcessSockets, Side, Sockets, State, States, Timestamp, Unowned,
};

/// Most groups of one sort.
const GROUPS: usize = 1 << 16;
/// Most addresses counted apart, of all groups in TIME_WAIT.
const ADDRESSES: usize = 1 << 17;
/// A lower limit of descriptors is a sandbox that means to open nothing more.
const MIN_FD_LIMIT: u64 = 16;

/// Whether something is asked for.
pub type Wanted<'a, T> = &'a (dyn Fn(&T) -> bool + Sync);

/// What to count.
pub struct Request<'a> {
    /// These namespaces; without them all that can be found.
    pub namespaces: Option<Vec<Namespace>>,
    /// Sockets of such flows; without it of all.
    pub flow: Option<Wanted<'a, Flow>>,
    /// Sockets that such a process holds; without it also those nobody holds.
    pub owner: Option<Wanted<'a, Process>>,
    /// Each socket is kept, besides being counted.
    pub each: bool,
}

/// What was counted, and what could not be seen.
#[derive(Debug)]
pub struct Census {
    /// Of [`Kind::Sockets`], sort by sort, the gravest of a sort first; without ids and times, which are
    /// one for all.
    pub events: Vec<Event>,
    /// A sentence for everything that could not be seen.
    pub notes: Vec<String>,
    /// Namespaces that were looked into.
    pub namespaces: usize,
    /// Processes whose descriptors may not be read, of those that were asked for.
    pub unread: usize,
    kept: Vec<(TcpSocket, Whose)>,
    processes: Processes,
}

/// Counts; never fails, but says what it missed.
#[must_use]
pub fn take(request: &Request<'_>) -> Census {
    let mut notes = Vec::new();
    // Descriptors first: those of sockets are then few to look up while the kernel lists them.
    let (mut held, mut open, mut unread) = (Vec::new(), Vec::new(), Vec::new());
    let scan = holders::scan(
        |holder, inode| held.push((inode, holder)),
        |pid, count| match count {
            Some(count) => open.push((pid, count)),
            None => unread.push(pid),
        },
    );
    notes.extend(scan.unseen());
    let holders = Holders::new(held);
    let namespaces = request.namespaces.clone().unwrap_or_else(|| {
        let listed = netns::list().inspect(|listed| notes.extend(listed.unseen()));
        listed.map_or_else(
            |error| {
                notes.push(format!("no socket is seen: {error:#}"));
                Vec::new()
            },
            |listed| listed.list,
        )
    });
    let own = netns::current().ok();
    let sole = if scan.is_complete() {
        Confidence::Exact
    } else {
        Confidence::Seeded
    };
    let mut tally = Tally::new(request, sole);
    for namespace in &namespaces {
        let mut row = NamespaceSockets {
            inode: namespace.inode,
            own: own == Some(namespace.inode),
            name: namespace.name.clone(),
            ..NamespaceSockets::default()
        };
        let looked = netns::enter(namespace, || tally.look(&holders, &mut row));
        if looked.is_ok() {
            tally.namespaces.push(row);
        }
        notes.extend(sockets::unseen(looked, namespace.inode));
    }
    tally.census(&open, &unread, notes)
}

impl Census {
    /// Hands each socket to `take`, the gravest first, where they were asked for.
    ///
    /// # Errors
    /// The first of `take`.
    pub fn each<E>(&mut self, mut take: impl FnMut(Event) -> Result<(), E>) -> Result<(), E> {
        for (socket, whose) in &self.kept {
            let age = told_age(socket).filter(|_| socket.state == State::CloseWait);
            let kind = Sockets::Socket {
                close_wait_ms: age.map(millis),
            };
            take(of_socket(socket, whose, kind, &mut self.processes))?;
        }
        Ok(())
    }
}

/// What processes are, asked once.
#[derive(Debug)]
struct Processes {
    cgroups: Option<Cgroups>,
    known: HashMap<u32, Option<Process>>,
    /// How sure the only holder of a socket is: others may hold it that may not be read.
    sole: Confidence,
}

impl Processes {
    fn describe(&mut self, pid: u32) -> Option<Process> {
        let known = self.known.entry(pid);
        known
            .or_insert_with(|| process::describe(pid, self.cgroups.as_ref()))
            .clone()
    }
}

/// The counts in the making.
struct Tally<'a> {
    request: &'a Request<'a>,
    processes: Processes,
    /// Whether a process is asked for.
    chosen: HashMap<u32, bool>,
    namespaces: Vec<NamespaceSockets>,
    by_pid: HashMap<u32, States>,
    unowned: [States; 3],
    listeners: Vec<Listening>,
    close_waits: CloseWaits,
    time_waits: TimeWaits,
    kept: Vec<(TcpSocket, Whose)>,
}

/// A listener.
struct Listening {
    socket: TcpSocket,
    whose: Whose,
    half_done: u32,
    somaxconn: Option<u32>,
}

impl<'a> Tally<'a> {
    fn new(request: &'a Request<'a>, sole: Confidence) -> Self {
        Self {
            request,
            processes: Processes {
                cgroups: Cgroups::open().ok(),
                known: HashMap::new(),
                sole,
            },
            chosen: HashMap::new(),
            namespaces: Vec::new(),
            by_pid: HashMap::new(),
            unowned: [States::default(); 3],
            listeners: Vec::new(),
            close_waits: CloseWaits::new(GROUPS),
            time_waits: TimeWaits::default(),
            kept: Vec::new(),
        }
    }

    /// Counts the sockets of the calling thread's namespace.
    fn look(
        &mut self,
        holders: &Holders,
        row: &mut NamespaceSockets,
    ) -> anyhow::Result<sockets::Dump> {
        if let Ok(counters) = Counters::read() {
            row.overflows = counters.get("TcpExtListenOverflows");
            row.listen_drops = counters.get("TcpExtListenDrops");
            row.syn_drops = counters.get("TcpExtTCPReqQFullDrop");
            row.syn_cookies = counters.get("TcpExtTCPReqQFullDoCookies");
        }
        let somaxconn = acceptor::own_somaxconn();
        let range = ports::local_range();
        let mut listeners = Vec::new();
        let listening = sockets::dump(&[State::Listen], |socket| listeners.push(socket))?;
        let owners = Owners::new(holders, &listeners);
        let first = self.listeners.len();
        for socket in &listeners {
            if let Some(whose) = self.count(socket, &owners) {
                row.states.add(State::Listen);
                self.listeners.push(Listening {
                    socket: socket.clone(),
                    whose,
                    half_done: 0,
                    somaxconn,
                });
            }
        }
        let mut half_done: HashMap<SocketAddr, u32> = HashMap::new();
        let others = ALL_STATES.into_iter().filter(|it| *it != State::Listen);
        let mut dump = sockets::dump(&others.collect::<Vec<_>>(), |socket| {
            if socket.state == State::SynReceived {
                *half_done.entry(socket.flow.local).or_default() += 1;
            }
            let Some(whose) = self.count(&socket, &owners) else {
                return;
            };
            row.states.add(socket.state);
            match socket.state {
                State::CloseWait => {
                    let age = told_age(&socket);
                    self.close_waits
                        .add(&socket, whose, owners.served(&socket), age);
                }
                State::TimeWait => {
                    self.time_waits
                        .add(&socket.flow, owners.served(&socket), range.as_ref());
                }
                _ => {}
            }
        })?;
        let here = self.listeners[first..].iter().zip(first..);
        let here: HashMap<_, _> = here.map(|(it, nth)| (it.socket.flow.local, nth)).collect();
        for (local, count) in half_done {
            // Those that share an address by `SO_REUSEPORT` are not told apart.
            if let Some(&nth) = sockets::listening_at(local).find_map(|at| here.get(&at)) {
                self.listeners[nth].half_done += count;
            }
        }
        dump.sockets += listening.sockets;
        dump.interrupted |= listening.interrupted;
        dump.unreadable += listening.unreadable;
        Ok(dump)
    }

    /// Counts a socket with its holders, and says whose it is; `None` when it is not asked for.
    fn count(&mut self, socket: &TcpSocket, owners: &Owners<'_>) -> Option<Whose> {
        if self
            .request
            .flow
            .is_some_and(|wanted| !wanted(&socket.flow))
        {
            return None;
        }
        let whose = owners.of(socket);
        if self.request.owner.is_some() && !whose.pids.iter().any(|&pid| self.chosen(pid)) {
            return None;
        }
        let why = match socket.state {
            _ if socket.inode != 0 && whose.pids.is_empty() => Some(Unowned::NotSeen),
            _ if socket.inode != 0 => None,
            State::Established | State::CloseWait => Some(Unowned::NotAccepted),
            _ => Some(Unowned::NoProcess),
        };
        match why {
            Some(why) => self.unowned[why as usize].add(socket.state),
            None => {
                for &pid in &*whose.pids {
                    self.by_pid.entry(pid).or_default().add(socket.state);
                }
            }
        }
        if self.request.each {
            self.kept.push((socket.clone(), whose.clone()));
        }
        Some(whose)
    }

    fn chosen(&mut self, pid: u32) -> bool {
        let Some(wanted) = self.request.owner else {
            return true;
        };
        let processes = &mut self.processes;
        let chosen = self.chosen.entry(pid);
        *chosen.or_insert_with(|| processes.describe(pid).is_some_and(|it| wanted(&it)))
    }

    fn census(mut self, open: &[(u32, u64)], unread: &[u32], mut notes: Vec<String>) -> Census {
        let over = self.close_waits.over + self.time_waits.over;
        if over > 0 {
            notes.push(format!(
                "{over} connections in CLOSE_WAIT and TIME_WAIT are of more services than {GROUPS}, and \
                 in no group"
            ));
        }
        let unread = unread.iter().filter(|&&pid| self.chosen(pid)).count();
        let looked = self.namespaces.len();
        let mut found = Vec::new();
        self.namespaces.sort_by_key(|it| {
            (
                !it.own,
                Reverse((it.overflows, it.states.total())),
                it.inode,
            )
        });
        let namespaces = self.namespaces.drain(..);
        found.extend(namespaces.map(|it| bare(Sockets::Namespace(it))));
        found.extend(self.close_waits());
        found.extend(self.listeners());
        found.extend(self.processes(open));
        for why in [Unowned::NotAccepted, Unowned::NoProcess, Unowned::NotSeen] {
            let states = self.unowned[why as usize];
            if states.total() > 0 {
                found.push(bare(Sockets::Unowned(why, states)));
            }
        }
        found.extend(self.time_waits.rows().map(|it| bare(Sockets::TimeWait(it))));
        self.kept.sort_by_key(|(socket, _)| {
            let urgent = match socket.state {
                State::Listen if socket.accept_queue_full() => 0,
                State::CloseWait => 1,
                State::Listen => 2,
                State::TimeWait => 4,
                _ => 3,
            };
            let end = (socket.flow.netns, socket.flow.local, socket.flow.peer);
            (
                urgent,
                Reverse(told_age(socket).filter(|_| urgent == 1)),
                end,
            )
        });
        Census {
            events: found,
            notes,
            namespaces: looked,
            unread,
            kept: self.kept,
            processes: self.processes,
        }
    }

    fn close_waits(&mut self) -> Vec<Event> {
        let groups = std::mem::replace(&mut self.close_waits, CloseWaits::new(0));
        let mut groups: Vec<_> = groups.into_groups().collect();
        groups.sort_by_key(|it| (Reverse((it.count, it.age)), it.oldest.flow.local));
        let event = |group: close_waits::Group| {
            let kind = Sockets::CloseWait(event::CloseWaits {
                count: group.count,
                age_ms: group.age.map(millis),
                eof_unread: group.eof_unread,
                unread: group.unread,
                served: group.served,
            });
            of_socket(&group.oldest, &group.whose, kind, &mut self.processes)
        };
        groups.into_iter().map(event).collect()
    }

    fn listeners(&mut self) -> Vec<Event> {
        let mut rows: Vec<_> = self.listeners.drain(..).collect();
        rows.sort_by_key(|it| {
            let row = it.row();
            let urgent = (row.is_full(), row.percent(), row.drops, row.half_done);
            (Reverse(urgent), it.socket.flow.netns, it.socket.flow.local)
        });
        let event = |it: Listening| {
            let kind = Sockets::Listener(it.row());
            of_socket(&it.socket, &it.whose, kind, &mut self.processes)
        };
        rows.into_iter().map(event).collect()
    }

    /// Those with sockets, those asked for, and of all those that are short of descriptors.
    fn processes(&mut self, open: &[(u32, u64)]) -> Vec<Event> {
        let mut rows = Vec::new();
        for &(pid, open) in open {
            let states = self.by_pid.remove(&pid).unwrap_or_default();
            let asked_for = self.request.owner.is_some() && self.request.flow.is_none();
            let short = self.request.flow.is_none() && open * 10 >= MIN_FD_LIMIT * 9;
            if states.total() == 0 && !(asked_for || short) || !self.chosen(pid) {
                continue;
            }
            let row = ProcessSockets {
                states,
                open,
                limit: process::open_files_limit(pid),
            };
            let short = row.limit >= Some(MIN_FD_LIMIT) && row.percent() >= Some(90);
            if states.total() > 0 || asked_for || short {
                rows.push((pid, row));
            }
        }
        rows.sort_by_key(|(pid, row)| {
            let short = row.percent().filter(|&percent| percent >= 90);
            let waiting = row.states.of(State::CloseWait);
            (Reverse((short, waiting, row.states.total())), *pid)
        });
        let event = |(pid, row): (u32, ProcessSockets)| {
            let mut event = bare(Sockets::Process(row));
            event.owner = Owner::exact(self.processes.describe(pid)?);
            Some(event)
        };
        rows.into_iter().filter_map(event).collect()
    }
}

impl Listening {
    fn row(&self) -> Listener {
        Listener {
            len: self.socket.recv_queue,
            max: self.socket.accept_queue_limit(),
            drops: self.socket.drops,
            half_done: self.half_done,
            somaxconn: self.somaxconn,
        }
    }
}

fn bare(kind: Sockets) -> Event {
    Event {
        id: EventId(0),
        time: Timestamp::default(),
        caused_by: None,
        socket: None,
        owner: Owner::default(),
        actor: None,
        facts: Vec::new(),
        kind: Kind::Sockets(Box::new(kind)),
    }
}

fn of_socket(socket: &TcpSocket, whose: &Whose, kind: Sockets, processes: &mut Processes) -> Event {
    let owner = whose.owner(processes.sole, &mut |pid| processes.describe(pid));
    Event {
        socket: Some(event::Socket {
            fd: whose.fd.filter(|_| owner.process.is_some()),
            ..socket.to_event()
        }),
        owner,
        ..bare(kind)
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Connections in TIME_WAIT, by namespace, side and the serving end.
#[derive(Debug, Default)]
struct TimeWaits {
    groups: HashMap<(u32, Option<Side>, SocketAddr), OneService>,
    addresses: usize,
    /// Of no group, because there were as many as may be.
    over: u64,
}

#[derive(Debug, Default)]
struct OneService {
    count: u64,
    by_address: HashMap<IpAddr, u64>,
    ports: Option<RangeInclusive<u16>>,
}

impl TimeWaits {
    /// One more. One from a local port that the kernel gives out was a client's, if nobody listens there.
    fn add(&mut self, flow: &Flow, served: bool, range: Option<&RangeInclusive<u16>>) {
        let Some(peer) = flow.peer else { return };
        let side = if served {
            Some(Side::Server)
        } else if range.is_some_and(|range| range.contains(&flow.local.port())) {
            Some(Side::Client)
        } else {
            None
        };
        let (service, other) = match side {
            Some(Side::Client) => (peer, flow.local.ip()),
            _ => (flow.local, peer.ip()),
        };
        let key = (flow.netns, side, service);
        if self.groups.len() >= GROUPS && !self.groups.contains_key(&key) {
            self.over += 1;
            return;
        }
        let group = self.groups.entry(key).or_default();
        group.count += 1;
        if side == Some(Side::Client) {
            group.ports = range.cloned();
        }
        if let Some(known) = group.by_address.get_mut(&other) {
            *known += 1;
        } else if self.addresses < ADDRESSES || group.by_address.is_empty() {
            group.by_address.insert(other, 1);
            self.addresses += 1;
        }
    }

    /// The largest first.
    fn rows(&self) -> impl Iterator<Item = event::TimeWaits> {
        let rows = self.groups.iter().map(|(&(netns, side, service), group)| {
            let most = group.by_address.iter().map(|(&ip, &count)| (count, ip));
            let (most_count, most) = most.max().unwrap_or((0, service.ip()));
            event::TimeWaits {
                count: group.count,
                netns,
                side,
                service,
                most,
                most_count,
                addresses: u32::try_from(group.by_address.len()).unwrap_or(u32::MAX),
                ports: group.ports.clone(),
            }
        });
        let mut rows: Vec<_> = rows.collect();
        rows.sort_by_key(|it| (Reverse(it.count), it.netns, it.service));
        rows.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;

    use nix::sys::socket::{Backlog, listen};

    use super::*;
    use crate::event::{LimitedBy, Severity};
    use crate::sink::samples::flow;

    /// What one look says of the sockets with this port that this process holds.
    fn look(port: u16, each: bool) -> Census {
        let ours = |flow: &Flow| {
            let ends = [Some(flow.local), flow.peer];
            ends.iter().flatten().any(|end| end.port() == port)
        };
        let own = |owner: &Process| owner.pid == std::process::id();
        take(&Request {
            namespaces: Some(vec![netns::of(std::process::id()).expect("our own")]),
            flow: Some(&ours),
            owner: Some(&own),
            each,
        })
    }

    fn found(census: &Census) -> Vec<(&Event, &Sockets)> {
        let events = census.events.iter();
        let found = events.filter_map(|event| match &event.kind {
            Kind::Sockets(found) => Some((event, &**found)),
            _ => None,
        });
        found.collect()
    }

    #[test]
    fn our_own_sockets_are_counted() {
        let _alone = crate::host::ALONE.lock();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listen(&listener, Backlog::new(1).expect("small")).expect("it takes a new limit");
        let at = listener.local_addr().expect("bound");
        let connected = || {
            let client = TcpStream::connect(at).expect("room in the queue");
            (client, listener.accept().expect("one waits").0)
        };
        let ((unread, closed), (mut read, also_closed)) = (connected(), connected());
        drop((closed, also_closed));
        assert_eq!(read.read(&mut [0; 8]).expect("the end of the stream"), 0);
        let waiting = [(); 2].map(|()| TcpStream::connect(at).expect("one more than the limit"));

        let mut census = look(at.port(), true);
        let states = |counts: &[(State, u64)]| {
            let mut states = States::default();
            for &(state, count) in counts {
                (0..count).for_each(|_| states.add(state));
            }
            states
        };
        let mut seen = Vec::new();
        for (event, found) in found(&census) {
            match found {
                Sockets::CloseWait(waits) => {
                    assert_eq!((waits.count, waits.eof_unread, waits.unread), (2, 1, 0));
                    // An ephemeral port that is listened on: both ends look like the server's.
                    assert_ne!(event.owner.confidence, Confidence::Unknown);
                    let fd = event.socket.as_ref().and_then(|socket| socket.fd);
                    let fds = [&unread, &read].map(|client| Some(client.as_raw_fd()));
                    assert!(fds.contains(&fd), "{fd:?}");
                    seen.push("close_wait");
                }
                Sockets::Listener(row) => {
                    assert_eq!((row.len, row.max, row.half_done), (2, Some(1), 0));
                    assert_eq!(row.limited_by(), Some(LimitedBy::Listen));
                    assert_eq!(found.severity(), Severity::Error);
                    seen.push("listener");
                }
                Sockets::Process(row) => {
                    let held = [
                        (State::CloseWait, 2),
                        (State::Established, 2),
                        (State::Listen, 1),
                    ];
                    assert_eq!(row.states, states(&held));
                    assert!(row.open > 5 && row.limit >= Some(row.open));
                    seen.push("process");
                }
                Sockets::Unowned(Unowned::NotAccepted, not_accepted) => {
                    assert_eq!(*not_accepted, states(&[(State::Established, 2)]));
                    seen.push("unowned");
                }
                Sockets::Namespace(namespace) => {
                    assert!(namespace.own && namespace.overflows.is_some());
                    assert_eq!(namespace.states.total(), 7);
                    seen.push("namespace");
                }
                other => panic!("nobody holds what is in FIN_WAIT2: {other:?}"),
            }
        }
        let all = ["namespace", "close_wait", "listener", "process", "unowned"];
        assert_eq!(seen, all);
        let mut single = Vec::new();
        let each = census.each(|event| {
            single.push(event.socket.and_then(|socket| socket.state));
            Ok::<(), ()>(())
        });
        assert_eq!((each, single.len()), (Ok(()), 7));
        assert_eq!(single[0], Some(State::Listen), "it is full");
        assert_eq!(single[1], Some(State::CloseWait));
        drop(waiting);
    }

    #[test]
    fn whoever_is_in_time_wait_closed_first() {
        let mut waits = TimeWaits::default();
        let range = 32_768..=60_999;
        for (local, peer, served, times) in [
            ("10.0.0.1:40001", "10.0.0.5:443", false, 3),
            ("10.0.0.2:40001", "10.0.0.5:443", false, 1),
            ("10.0.0.1:80", "10.0.0.7:50001", true, 2),
            ("10.0.0.1:81", "10.0.0.7:50001", false, 1),
        ] {
            for _ in 0..times {
                waits.add(&flow(local, Some(peer)), served, Some(&range));
            }
        }
        let rows = waits.rows().map(|row| {
            let ports = row.ports.as_ref().map(RangeInclusive::len);
            let service = row.service.to_string();
            (
                service,
                row.side,
                row.count,
                row.most.to_string(),
                row.most_count,
                ports,
            )
        });
        let row = |service: &str, side, count, most: &str, most_count, ports| {
            (
                service.to_owned(),
                side,
                count,
                most.to_owned(),
                most_count,
                ports,
            )
        };
        assert_eq!(
            rows.collect::<Vec<_>>(),
            [
                row(
                    "10.0.0.5:443",
                    Some(Side::Client),
                    4,
                    "10.0.0.1",
                    3,
                    Some(28_232)
                ),
                row("10.0.0.1:80", Some(Side::Server), 2, "10.0.0.7", 2, None),
                // Nothing listens there any more, and no client is given that port.
                row("10.0.0.1:81", None, 1, "10.0.0.7", 1, None),
            ]
        );
    }

    #[test]
    fn groups_have_a_bound() {
        let mut waits = TimeWaits::default();
        let range = 1..=u16::MAX;
        let peers = (0_u32..).take(GROUPS + 5);
        for peer in peers {
            let peer = SocketAddr::from((peer.to_be_bytes(), 443));
            let flow = Flow {
                peer: Some(peer),
                ..flow("10.0.0.1:40001", None)
            };
            waits.add(&flow, false, Some(&range));
        }
        assert_eq!((waits.groups.len(), waits.over), (GROUPS, 5));
    }
}
