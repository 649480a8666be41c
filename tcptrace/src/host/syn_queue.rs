//! Half-done handshakes that find no room, by the kernel's counters: no hook sees them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::netns::{self, Namespace, Namespaces};
use super::sockets::{self, TcpSocket};
use crate::event::{Flow, Socket, State, SynQueue};

/// Time a poll may take for the namespaces nobody named: some 50 of them.
pub const BUDGET: Duration = Duration::from_millis(5);

/// How often it is looked which namespaces there are, on a thread of its own.
const LISTED: Duration = Duration::from_secs(10);

/// The counters of some network namespaces: those named each time, the others in turn.
#[derive(Debug)]
pub struct SynQueues {
    named: Vec<Watched>,
    others: VecDeque<Watched>,
    only_named: bool,
    listing: Option<JoinHandle<Option<Namespaces>>>,
    listed: Instant,
}

/// SYNs that found a namespace's queue full since the last look.
#[derive(Clone, Debug, PartialEq)]
pub struct Flood {
    /// How many, and what became of them.
    pub queue: SynQueue,
    /// The listener with the most half-done handshakes; only its namespace is known when none was
    /// found at its limit.
    pub socket: Socket,
}

impl SynQueues {
    /// Of our own namespace, of those named, and in turn of all others unless `only_named`. Counts
    /// begin here; for namespaces found later, when they are found.
    #[must_use]
    pub fn new(named: Vec<Namespace>, only_named: bool) -> Self {
        let own = netns::current().map(|inode| netns::numbered(inode, None));
        let own = own.ok().filter(|_| !only_named);
        let mut seen = HashSet::new();
        let named = own.into_iter().chain(named);
        let mut queues = Self {
            named: named
                .filter(|namespace| seen.insert(namespace.inode))
                .map(Watched::new)
                .collect(),
            others: VecDeque::new(),
            only_named,
            listing: None,
            listed: Instant::now(),
        };
        if !only_named && let Ok(namespaces) = netns::list() {
            queues.adopt(namespaces);
        }
        queues
    }

    /// What overflowed since the last poll, at most one of each sort for a namespace. Holds the
    /// caller up for the namespaces named (20 µs each, or 100 where no process is in it), then for
    /// the others until the budget is spent, and for one look at the sockets of each that
    /// overflowed.
    pub fn poll(&mut self, budget: Duration) -> Vec<Flood> {
        let begun = Instant::now();
        self.tend_list();
        let mut floods = Vec::new();
        for watched in &mut self.named {
            floods.extend(watched.poll());
        }
        for _ in 0..self.others.len() {
            if begun.elapsed() >= budget {
                break;
            }
            if let Some(mut watched) = self.others.pop_front() {
                floods.extend(watched.poll());
                self.others.push_back(watched);
            }
        }
        floods
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

/// `TcpExtTCPReqQFullDoCookies` and `TcpExtTCPReqQFullDrop`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    cookies: u64,
    drops: u64,
}

#[derive(Debug)]
struct Watched {
    namespace: Namespace,
    before: Option<Counts>,
}

impl Watched {
    fn new(namespace: Namespace) -> Self {
        let before = read(&namespace);
        Self { namespace, before }
    }

    fn poll(&mut self) -> Vec<Flood> {
        let Some(now) = read(&self.namespace) else {
            return Vec::new();
        };
        let before = self.before.replace(now).unwrap_or(now);
        let cookies = now.cookies.wrapping_sub(before.cookies);
        let drops = now.drops.wrapping_sub(before.drops);
        if (cookies, drops) == (0, 0) {
            return Vec::new();
        }
        let namespace = &self.namespace;
        let seen = netns::enter(namespace, Seen::look).unwrap_or_default();
        let listener = seen.fullest();
        let flood = |count, cookies| Flood {
            queue: SynQueue {
                count,
                cookies,
                len: listener.map(|(_, len)| len),
                max: listener.map(|(listener, _)| listener.send_queue),
            },
            socket: listener.map_or_else(
                || Socket {
                    flow: Flow {
                        netns: namespace.inode,
                        ..Flow::default()
                    },
                    ..Socket::default()
                },
                |(listener, _)| listener.to_event(),
            ),
        };
        // Where cookies are always sent the counter says nothing of the queue.
        let cookies = (cookies > 0 && !seen.always_cookies).then(|| flood(cookies, true));
        let drops = (drops > 0).then(|| flood(drops, false));
        cookies.into_iter().chain(drops).collect()
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
            let any = [IpAddr::from([0; 4]), IpAddr::from([0_u8; 16])];
            let any = any.map(|ip| SocketAddr::new(ip, local.port()));
            let mut could = [*local].into_iter().chain(any);
            if let Some(listener) = could.find(|address| by_address.contains_key(address)) {
                *lens.entry(listener).or_default() += count;
            }
        }
        let full = lens.into_iter().filter_map(|(address, len)| {
            let listener = *by_address.get(&address)?;
            (len >= listener.send_queue).then_some((listener, len))
        });
        full.max_by_key(|&(listener, len)| (len, listener.flow.local))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::descriptors::tests::socket;

    fn listener(local: &str, limit: u32) -> TcpSocket {
        TcpSocket {
            send_queue: limit,
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
        let text = "TcpExt: SyncookiesSent TCPReqQFullDoCookies TCPReqQFullDrop Other\n\
                    TcpExt: 9 17 31 4\nIpExt: TCPReqQFullDrop\nIpExt: 99\n";
        let expected = Counts {
            cookies: 17,
            drops: 31,
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
        assert_eq!(watched.poll(), []);
        watched.before = Some(Counts {
            drops: before.drops.wrapping_sub(5),
            ..before
        });
        let floods = watched.poll();
        let told: Vec<_> = floods
            .iter()
            .map(|flood| (flood.queue.count, flood.queue.cookies))
            .collect();
        assert_eq!(told, [(5, false)]);
        assert_eq!(watched.poll(), []);
    }
}
