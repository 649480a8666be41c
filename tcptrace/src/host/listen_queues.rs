//! Handshakes that find no room, by the kernel's counters: in SYN queues, which no hook sees, and in
//! accept queues where this kernel has no hook for them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::netns::{self, Namespace, Namespaces};
use super::sockets::{self, TcpSocket};
use crate::event::{Flow, Kind, Overflow, Socket, State, SynQueue};

/// Time a poll may take for the namespaces nobody named: some 50 of them.
pub const BUDGET: Duration = Duration::from_millis(5);

/// How often it is looked which namespaces there are, on a thread of its own.
const LISTED: Duration = Duration::from_secs(10);

/// The counters of some network namespaces: those named each time, the others in turn.
#[derive(Debug)]
pub struct ListenQueues {
    named: Vec<Watched>,
    others: VecDeque<Watched>,
    only_named: bool,
    accept_queues: bool,
    listing: Option<JoinHandle<Option<Namespaces>>>,
    listed: Instant,
}

/// What found a queue full since the last look.
#[derive(Clone, Debug, PartialEq)]
pub struct Full {
    /// Which queue, and how many: [`Kind::SynQueueOverflow`] or [`Kind::AcceptQueueOverflow`].
    pub kind: Kind,
    /// The listener; only its namespace is known when none could be made out.
    pub socket: Socket,
}

impl ListenQueues {
    /// Of our own namespace, of those named, and in turn of all others unless `only_named`; accept
    /// queues only when asked for, as a hook that tells of the same would tell more. Counts begin
    /// here; for namespaces found later, when they are found.
    #[must_use]
    pub fn new(named: Vec<Namespace>, only_named: bool, accept_queues: bool) -> Self {
        let own = netns::current().map(|inode| netns::numbered(inode, None));
        let own = own.ok().filter(|_| !only_named);
        let mut seen = HashSet::new();
        let named = own.into_iter().chain(named);
        let named = named.filter(|namespace| seen.insert(namespace.inode));
        let mut queues = Self {
            named: named
                .map(|namespace| Watched {
                    drops: accept_queues
                        .then(|| Seen::of(&namespace))
                        .flatten()
                        .map(|seen| seen.drops()),
                    ..Watched::new(namespace)
                })
                .collect(),
            others: VecDeque::new(),
            only_named,
            accept_queues,
            listing: None,
            listed: Instant::now(),
        };
        if !only_named && let Ok(namespaces) = netns::list() {
            queues.adopt(namespaces);
        }
        queues
    }

    /// What overflowed since the last poll: of SYN queues at most one of each sort for a namespace, of
    /// accept queues at most one for a listener. Holds the caller up for the namespaces named (20 µs
    /// each, or 100 where no process is in it), then for the others until the budget is spent, and
    /// for one look at the sockets of each that overflowed.
    pub fn poll(&mut self, budget: Duration) -> Vec<Full> {
        let begun = Instant::now();
        self.tend_list();
        let mut full = Vec::new();
        for watched in &mut self.named {
            full.extend(watched.poll(self.accept_queues));
        }
        for _ in 0..self.others.len() {
            if begun.elapsed() >= budget {
                break;
            }
            if let Some(mut watched) = self.others.pop_front() {
                full.extend(watched.poll(self.accept_queues));
                self.others.push_back(watched);
            }
        }
        full
    }

    /// Sees to the list of namespaces. To find out where every process is takes long on a large
    /// host, so a thread does it.
    fn tend_list(&mut self) {
        if let Some(listing) = self.listing.take_if(|listing| listing.is_finished()) {
            if let Ok(Some(namespaces)) = listing.join() {
                self.adopt(namespaces);
            }
        } else if self.listing.is_none() && self.listed.elapsed() >= LISTED && !self.only_named {
            let thread = thread::Builder::new().name("namespaces".into());
            self.listing = thread.spawn(|| netns::list().ok()).ok();
            self.listed = Instant::now();
        }
    }

    /// Takes in the namespaces found, and lets go of those that are gone.
    fn adopt(&mut self, namespaces: Namespaces) {
        let found = namespaces.list.into_iter();
        let mut found: HashMap<_, _> = found.map(|it| (it.inode, it)).collect();
        for watched in &self.named {
            found.remove(&watched.namespace.inode);
        }
        self.others.retain_mut(|watched| {
            let still = found.remove(&watched.namespace.inode);
            still.map(|it| watched.namespace = it).is_some()
        });
        self.others.extend(found.into_values().map(Watched::new));
    }
}

/// Counters of a namespace: `TcpExtTCPReqQFullDoCookies`, `TcpExtTCPReqQFullDrop`,
/// `TcpExtListenOverflows` and `TcpExtListenDrops`. The last counts with every listener's own count of
/// drops, what the others do not name included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    cookies: u64,
    drops: u64,
    overflows: u64,
    listen_drops: u64,
}

impl Counts {
    fn since(self, before: Self) -> Self {
        Self {
            cookies: self.cookies.wrapping_sub(before.cookies),
            drops: self.drops.wrapping_sub(before.drops),
            overflows: self.overflows.wrapping_sub(before.overflows),
            listen_drops: self.listen_drops.wrapping_sub(before.listen_drops),
        }
    }
}

/// The counts of drops of listeners, by cookie.
type Drops = HashMap<u64, u32>;

#[derive(Debug)]
struct Watched {
    namespace: Namespace,
    before: Option<Counts>,
    /// At the last look; `None` before the first.
    drops: Option<Drops>,
}

impl Watched {
    fn new(namespace: Namespace) -> Self {
        Self {
            before: read(&namespace),
            namespace,
            drops: None,
        }
    }

    fn poll(&mut self, accept_queues: bool) -> Vec<Full> {
        let Some(now) = read(&self.namespace) else {
            return Vec::new();
        };
        let grown = now.since(self.before.replace(now).unwrap_or(now));
        let of_accept_queues = accept_queues && (grown.overflows, grown.listen_drops) != (0, 0);
        if (grown.cookies, grown.drops) == (0, 0) && !of_accept_queues {
            return Vec::new();
        }
        let looked = Seen::of(&self.namespace);
        let drops = looked.as_ref().map(Seen::drops);
        let seen = looked.unwrap_or_default();
        let mut full = self.syn_queue(grown, &seen);
        if of_accept_queues {
            full.extend(self.accept_queue(grown.overflows, &seen));
            self.drops = drops.or(self.drops.take());
        }
        full
    }

    fn syn_queue(&self, grown: Counts, seen: &Seen) -> Vec<Full> {
        let listener = seen.fullest();
        let full = |count, cookies| Full {
            kind: Kind::SynQueueOverflow(SynQueue {
                count,
                cookies,
                len: listener.map(|(_, len)| len),
                max: listener.and_then(|(listener, _)| listener.accept_queue_limit()),
            }),
            socket: self.socket(listener.map(|(listener, _)| listener)),
        };
        let Counts { cookies, drops, .. } = grown;
        // Where cookies are always sent the counter says nothing of the queue.
        let cookies = (cookies > 0 && !seen.always_cookies).then(|| full(cookies, true));
        let drops = (drops > 0).then(|| full(drops, false));
        cookies.into_iter().chain(drops).collect()
    }

    fn accept_queue(&self, overflows: u64, seen: &Seen) -> Vec<Full> {
        let full = |listener: Option<&TcpSocket>, count| Full {
            kind: Kind::AcceptQueueOverflow(Overflow {
                path: None,
                count,
                queue_len: listener.map(|it| it.recv_queue),
                queue_max: listener.and_then(TcpSocket::accept_queue_limit),
                backlog: None,
                drops: listener.and_then(|it| it.drops),
                last_accept_ago_us: None,
            }),
            socket: self.socket(listener),
        };
        let shares = seen.shares(overflows, self.drops.as_ref());
        if shares.is_empty() && overflows > 0 {
            return vec![full(None, overflows)];
        }
        let shares = shares.into_iter().filter(|&(_, count)| count > 0);
        shares.map(|(it, count)| full(Some(it), count)).collect()
    }

    fn socket(&self, listener: Option<&TcpSocket>) -> Socket {
        let nobody = || Socket {
            flow: Flow {
                netns: self.namespace.inode,
                ..Flow::default()
            },
            ..Socket::default()
        };
        listener.map_or_else(nobody, TcpSocket::to_event)
    }
}

/// The counters now; `None` when the namespace is gone or may not be entered.
fn read(namespace: &Namespace) -> Option<Counts> {
    let inside = |pid: &u32| netns::of(*pid).is_ok_and(|it| it.inode == namespace.inode);
    let text = match namespace.pid.filter(inside) {
        Some(pid) => fs::read_to_string(format!("/proc/{pid}/net/netstat")),
        None => netns::enter(namespace, || {
            fs::read_to_string("/proc/thread-self/net/netstat")
        })
        .ok()?,
    };
    parse(&text.ok()?)
}

/// A line of names and a line of numbers, both after their group's.
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/proc.c> (`netstat_seq_show`)
fn parse(text: &str) -> Option<Counts> {
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let mut counts = Counts::default();
    for (name, number) in names.split(' ').zip(numbers.split(' ')) {
        match name {
            "TCPReqQFullDoCookies" => counts.cookies = number.parse().ok()?,
            "TCPReqQFullDrop" => counts.drops = number.parse().ok()?,
            "ListenOverflows" => counts.overflows = number.parse().ok()?,
            "ListenDrops" => counts.listen_drops = number.parse().ok()?,
            _ => {}
        }
    }
    Some(counts)
}

/// The listeners of a namespace, and how many handshakes are half done at each address.
#[derive(Debug, Default)]
struct Seen {
    listeners: Vec<TcpSocket>,
    half_done: HashMap<SocketAddr, u32>,
    /// `net.ipv4.tcp_syncookies` is 2.
    always_cookies: bool,
}

impl Seen {
    /// `None` when the namespace cannot be entered.
    fn of(namespace: &Namespace) -> Option<Self> {
        netns::enter(namespace, Self::look).ok()
    }

    /// In the calling thread's namespace.
    fn look() -> Self {
        let setting = fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies");
        let mut seen = Self {
            always_cookies: setting.is_ok_and(|setting| setting.trim() == "2"),
            ..Self::default()
        };
        let dumped = sockets::dump(&[State::Listen, State::SynReceived], |socket| {
            if socket.state == State::Listen {
                seen.listeners.push(socket);
            } else {
                *seen.half_done.entry(socket.flow.local).or_default() += 1;
            }
        });
        // What came before an error is right all the same.
        drop(dumped);
        seen
    }

    /// The listener with the most half-done handshakes of those at their limit, which is that of
    /// the accept queue; Linux 6.18 was seen to let one more in. Those that share an address by
    /// `SO_REUSEPORT` are not told apart.
    /// <https://github.com/torvalds/linux/blob/v6.18/include/net/inet_connection_sock.h>
    /// (`inet_csk_reqsk_queue_is_full`)
    fn fullest(&self) -> Option<(&TcpSocket, u32)> {
        let by_address: HashMap<SocketAddr, &TcpSocket> = self
            .listeners
            .iter()
            .map(|listener| (listener.flow.local, listener))
            .collect();
        let mut lens: HashMap<SocketAddr, u32> = HashMap::new();
        for (local, count) in &self.half_done {
            let mut could = sockets::listening_at(*local);
            if let Some(listener) = could.find(|address| by_address.contains_key(address)) {
                *lens.entry(listener).or_default() += count;
            }
        }
        let full = lens.into_iter().filter_map(|(address, len)| {
            let listener = *by_address.get(&address)?;
            let limit = listener.accept_queue_limit()?;
            (len >= limit).then_some((listener, len))
        });
        full.max_by_key(|&(listener, len)| (len, listener.flow.local))
    }

    fn drops(&self) -> Drops {
        let known = self.listeners.iter();
        known.filter_map(|it| it.cookie.zip(it.drops)).collect()
    }

    /// Which listeners lost how many of these connections: those whose drops have grown since
    /// `before`, by how much they have. A lost SYN counts as one drop there, a lost final ACK as two,
    /// so between several listeners this is an estimate; the sum is not. When none has grown it is
    /// the one whose queue is full, if there is one and no other.
    /// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c> (`tcp_v4_syn_recv_sock`,
    /// `tcp_v4_rcv`: `discard_and_relse`)
    fn shares(&self, overflows: u64, before: Option<&Drops>) -> Vec<(&TcpSocket, u64)> {
        let growth = |listener: &TcpSocket| {
            let (cookie, drops) = listener.cookie.zip(listener.drops)?;
            let before = before?.get(&cookie).copied().unwrap_or_default();
            Some(u64::from(drops.wrapping_sub(before))).filter(|&grown| grown > 0)
        };
        let grown = self.listeners.iter();
        let mut shares: Vec<_> = grown.filter_map(|it| Some((it, growth(it)?))).collect();
        let total: u64 = shares.iter().map(|(_, grown)| grown).sum();
        let (mut drops, mut given) = (0, 0);
        for (_, share) in &mut shares {
            drops += *share;
            let until = u128::from(overflows) * u128::from(drops) / u128::from(total);
            // No more than `overflows`.
            let until = u64::try_from(until).unwrap_or(overflows);
            *share = until - given;
            given = until;
        }
        if shares.is_empty() {
            let mut full = self.listeners.iter().filter(|it| it.accept_queue_full());
            if let (Some(only), None) = (full.next(), full.next()) {
                shares.push((only, overflows));
            }
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::descriptors::tests::socket;

    fn listener(local: &str, limit: u32) -> TcpSocket {
        TcpSocket {
            send_queue: Some(limit),
            ..socket(State::Listen, local, None)
        }
    }

    fn seen(listeners: &[(&str, u32)], half_done: &[(&str, u32)]) -> Seen {
        let listeners = listeners.iter();
        let half_done = half_done.iter();
        Seen {
            listeners: listeners.map(|&(at, limit)| listener(at, limit)).collect(),
            half_done: half_done
                .map(|&(at, count)| (at.parse().expect("an address"), count))
                .collect(),
            always_cookies: false,
        }
    }

    fn fullest(seen: &Seen) -> Option<(String, u32)> {
        let (listener, len) = seen.fullest()?;
        Some((listener.flow.local.to_string(), len))
    }

    #[test]
    fn counters_are_found_by_name() {
        let text = "TcpExt: ListenOverflows ListenDrops TCPReqQFullDoCookies TCPReqQFullDrop Other\n\
                    TcpExt: 9 12 17 31 4\nIpExt: TCPReqQFullDrop\nIpExt: 99\n";
        let expected = Counts {
            cookies: 17,
            drops: 31,
            overflows: 9,
            listen_drops: 12,
        };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(parse("IpExt: InNoRoutes\nIpExt: 0\n"), None);
    }

    #[test]
    fn the_listener_at_its_limit_is_named() {
        let listeners = [("10.0.0.1:80", 8), ("0.0.0.0:80", 4), ("[::]:443", 16)];
        for (half_done, expected) in [
            (&[("10.0.0.1:80", 8)][..], Some(("10.0.0.1:80", 8))),
            (&[("10.0.0.1:80", 7)], None),
            // Of the wildcard's own are those of all other addresses.
            (
                &[("10.0.0.2:80", 2), ("10.0.0.3:80", 3)],
                Some(("0.0.0.0:80", 5)),
            ),
            (
                &[("10.0.0.1:80", 9), ("10.0.0.2:443", 16)],
                Some(("[::]:443", 16)),
            ),
            (&[("10.0.0.1:81", 99)], None),
        ] {
            let expected = expected.map(|(at, len)| (at.to_owned(), len));
            assert_eq!(fullest(&seen(&listeners, half_done)), expected);
        }
    }

    #[test]
    fn our_own_counters_can_be_read_either_way() {
        let inode = netns::current().expect("/proc is mounted");
        let by_pid = netns::of(std::process::id()).expect("our own");
        assert!(read(&by_pid).is_some());
        assert!(read(&netns::numbered(inode, None)).is_some());
        assert_eq!(read(&netns::numbered(1, None)), None, "no such namespace");
    }

    #[test]
    fn growth_is_what_came_since_the_last_look() {
        let own = netns::of(std::process::id()).expect("our own");
        let mut watched = Watched::new(own);
        let before = watched.before.expect("our own");
        assert_eq!(watched.poll(true), []);
        watched.before = Some(Counts {
            drops: before.drops.wrapping_sub(5),
            ..before
        });
        let full = watched.poll(true);
        let told: Vec<_> = full.iter().map(|full| &full.kind).collect();
        let [Kind::SynQueueOverflow(queue)] = told[..] else {
            panic!("one SYN queue, not {told:?}")
        };
        assert_eq!((queue.count, queue.cookies), (5, false));
        assert_eq!(watched.poll(true), []);
    }

    /// With a cookie, its count of drops, and as many that wait.
    fn dropped(local: &str, cookie: u64, drops: u32, waiting: u32) -> TcpSocket {
        TcpSocket {
            cookie: Some(cookie),
            drops: Some(drops),
            recv_queue: waiting,
            ..listener(local, 4)
        }
    }

    fn shares(
        listeners: &[TcpSocket],
        overflows: u64,
        before: Option<&[(u64, u32)]>,
    ) -> Vec<(u16, u64)> {
        let before = before.map(|before| before.iter().copied().collect());
        let seen = Seen {
            listeners: listeners.to_vec(),
            ..Seen::default()
        };
        let shares = seen.shares(overflows, before.as_ref());
        let shares = shares
            .iter()
            .map(|(it, share)| (it.flow.local.port(), *share));
        shares.collect()
    }

    #[test]
    fn what_was_lost_is_theirs_whose_drops_grew() {
        let listeners = [
            dropped("0.0.0.0:80", 1, 107, 5),
            dropped("0.0.0.0:81", 2, 9, 0),
            // It had a full queue and lost nothing.
            dropped("0.0.0.0:82", 3, 50, 5),
        ];
        let before = [(1, 100), (2, 9), (3, 50)];
        assert_eq!(shares(&listeners, 7, Some(&before)), [(80, 7)]);
        // Final ACKs count twice there.
        assert_eq!(shares(&listeners, 4, Some(&before)), [(80, 4)]);
        // Of three and seven drops; the listener on 81 is new.
        let shared = [
            dropped("0.0.0.0:80", 1, 103, 5),
            dropped("0.0.0.0:81", 2, 7, 5),
        ];
        assert_eq!(shares(&shared, 10, Some(&[(1, 100)])), [(80, 3), (81, 7)]);
        // Rounding loses none.
        assert_eq!(shares(&shared, 5, Some(&[(1, 100)])), [(80, 1), (81, 4)]);
    }

    #[test]
    fn without_a_look_before_only_one_full_queue_is_named() {
        let full = [
            dropped("0.0.0.0:80", 1, 107, 5),
            dropped("0.0.0.0:81", 2, 9, 4),
        ];
        assert_eq!(shares(&full, 7, None), [(80, 7)]);
        let two = [
            dropped("0.0.0.0:80", 1, 107, 5),
            dropped("0.0.0.0:81", 2, 9, 5),
        ];
        assert_eq!(shares(&two, 7, None), []);
        // As /proc/net/tcp lists a listener.
        let untold = TcpSocket {
            cookie: None,
            drops: None,
            send_queue: None,
            ..dropped("0.0.0.0:80", 1, 0, 500)
        };
        assert_eq!(shares(&[untold], 7, Some(&[])), []);
    }

    #[test]
    fn what_nobody_can_be_named_for_is_told_all_the_same() {
        let watched = Watched::new(netns::numbered(7, None));
        let [Full { kind, socket }] = &watched.accept_queue(7, &Seen::default())[..] else {
            panic!("one event")
        };
        let Kind::AcceptQueueOverflow(overflow) = kind else {
            panic!("of an accept queue")
        };
        assert_eq!(
            (overflow.count, overflow.queue_len, overflow.drops),
            (7, None, None)
        );
        assert_eq!((socket.flow.netns, socket.state), (7, None));
        assert_eq!(watched.accept_queue(0, &Seen::default()), []);
    }
}
