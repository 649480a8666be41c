//! What a process holds: its table of descriptors, each socket joined with what TCP says of it.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use rustix::fs::{RawDir, getxattr, readlinkat_raw};

use super::netns;
use super::sockets::{self, TcpSocket};
use crate::event::{Held, Holding, Holdings, State};

/// Descriptors looked at; those past it are counted only. At the 3.6 µs each that were measured with
/// 10,000, as many as this take a quarter of a second.
const LIMIT: u64 = 1 << 16;

/// The states in which a process may hold a socket.
const HELD: [State; 9] = [
    State::Established,
    State::SynSent,
    State::FinWait1,
    State::FinWait2,
    State::Closed,
    State::CloseWait,
    State::LastAck,
    State::Listen,
    State::Closing,
];

/// The longest name of a sort, in bytes: file systems choose what is in the brackets.
const LONGEST: usize = 32;

/// A process's descriptors at one moment.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Its TCP sockets that listen or have a peer.
    pub tcp: Vec<Open>,
    /// Its other descriptors, by sort.
    pub others: HashMap<String, u64>,
    /// Descriptors past the limit of what is looked at.
    pub unread: u64,
    /// Where its network namespace listens.
    pub listeners: Listeners,
}

/// A TCP socket of a process.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    /// The socket.
    pub socket: TcpSocket,
    /// The process's descriptors of it: at least one.
    pub fds: Vec<i32>,
}

/// The addresses a network namespace listens on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners(HashMap<u16, Vec<IpAddr>>);

impl Listeners {
    /// One more.
    pub fn add(&mut self, address: SocketAddr) {
        self.0.entry(address.port()).or_default().push(address.ip());
    }

    /// A connection with this local address was accepted there, or could have been.
    #[must_use]
    pub fn serve(&self, local: SocketAddr) -> bool {
        let listen = self.0.get(&local.port());
        listen.is_some_and(|ips| {
            ips.iter()
                .any(|ip| ip.is_unspecified() || *ip == local.ip())
        })
    }
}

impl Table {
    /// Reads the table of a process, and then the TCP sockets of its network namespace. What is
    /// closed in between is of the sort `tcp socket`, as is a socket that was never bound.
    ///
    /// # Errors
    ///
    /// When the process is gone, or may not be read.
    pub fn read(pid: u32) -> io::Result<Self> {
        let mut table = Self::default();
        let mut inodes: HashMap<u64, Vec<i32>> = HashMap::new();
        table.unread = each(pid, |fd, link| match inode(link) {
            Some(inode) => inodes.entry(inode).or_default().push(fd),
            None => *table.others.entry(sort(link)).or_default() += 1,
        })?;
        if !inodes.is_empty() {
            table.join(pid, &mut inodes);
        }
        for fd in inodes.into_values().flatten() {
            let sort = match protocol(pid, fd) {
                Some(protocol) => format!("{protocol} socket"),
                None => "socket".to_owned(),
            };
            *table.others.entry(sort).or_default() += 1;
        }
        Ok(table)
    }

    /// Takes out of `inodes` what is a TCP socket. Without a look at the namespace none is.
    fn join(&mut self, pid: u32, inodes: &mut HashMap<u64, Vec<i32>>) {
        let Ok(namespace) = netns::of(pid) else {
            return;
        };
        let dumped = netns::enter(&namespace, || {
            sockets::dump(&HELD, |socket| {
                if socket.state == State::Listen {
                    self.listeners.add(socket.flow.local);
                }
                if let Some(fds) = inodes.remove(&socket.inode) {
                    self.tcp.push(Open { socket, fds });
                }
            })
        });
        // What came before an error is right all the same.
        drop(dumped);
    }

    /// In a few rows.
    #[must_use]
    pub fn holdings(&self) -> Holdings {
        let mut counts: HashMap<Held, u64> = HashMap::new();
        for Open { socket, fds } in &self.tcp {
            *counts.entry(self.held(socket)).or_default() += fds.len() as u64;
        }
        let others = self.others.iter();
        counts.extend(others.map(|(sort, &count)| (Held::Other(sort.clone()), count)));
        let mut rows: Vec<_> = counts
            .into_iter()
            .map(|(what, count)| Holding { count, what })
            .collect();
        rows.sort_by_cached_key(|row| (Reverse(row.count), format!("{:?}", row.what)));
        let rest = rows.split_off(rows.len().min(Holdings::ROWS));
        Holdings {
            rows,
            others: self.unread + rest.iter().map(|row| row.count).sum::<u64>(),
        }
    }

    fn held(&self, socket: &TcpSocket) -> Held {
        let local = socket.flow.local;
        let peer = socket.flow.peer.filter(|_| !self.listeners.serve(local));
        Held::Tcp {
            state: socket.state,
            service: peer.unwrap_or(local),
            outbound: peer.is_some(),
        }
    }
}

/// The epoll instances of a process; none when it is gone, or may not be read.
#[must_use]
pub fn epolls(pid: u32) -> Vec<i32> {
    let mut fds = Vec::new();
    let read = each(pid, |fd, link| {
        if link == b"anon_inode:[eventpoll]" {
            fds.push(fd);
        }
    });
    // What came before an error is right all the same.
    drop(read);
    fds
}

/// Hands each descriptor and what it links to to `each`, up to [`LIMIT`]; returns how many more
/// there are.
fn each(pid: u32, mut each: impl FnMut(i32, &[u8])) -> io::Result<u64> {
    let directory = File::open(format!("/proc/{pid}/fd"))?;
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(&directory, &mut buffer);
    let (mut seen, mut over) = (0, 0);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let Some(fd) = number(entry.file_name()) else {
            continue;
        };
        if seen == LIMIT {
            over += 1;
            continue;
        }
        seen += 1;
        let mut link = [MaybeUninit::uninit(); 256];
        match readlinkat_raw(directory.as_fd(), entry.file_name(), &mut link) {
            Ok((link, _)) => each(fd, link),
            // Closed meanwhile.
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(over)
}

fn number(name: &CStr) -> Option<i32> {
    name.to_str().ok()?.parse().ok()
}

/// The number in `socket:[N]`.
fn inode(link: &[u8]) -> Option<u64> {
    let number = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    str::from_utf8(number).ok()?.parse().ok()
}

/// What a link of `/proc/PID/fd` says its descriptor is: a path, `pipe:[N]`,
/// `anon_inode:[eventfd]`, `anon_inode:inotify`.
/// <https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html>
fn sort(link: &[u8]) -> String {
    let link = String::from_utf8_lossy(link);
    let sort = match link.split_once(':') {
        Some(("/memfd", _)) => "memfd",
        _ if link.starts_with('/') => "file",
        Some(("anon_inode", name)) => name.trim_matches(['[', ']']),
        Some((sort, _)) => sort,
        None => "file",
    };
    let sort = &sort[..sort.floor_char_boundary(LONGEST)];
    let plain = |c: char| if c.is_control() { '?' } else { c };
    sort.chars().map(plain).collect()
}

/// The protocol of a socket, as the kernel names it, in lower case and without its version: `unix`,
/// `udp`, `netlink`.
/// <https://github.com/torvalds/linux/blob/v6.18/net/socket.c> (`sockfs_xattr_get`)
fn protocol(pid: u32, fd: i32) -> Option<String> {
    let mut name = [0_u8; LONGEST];
    let path = format!("/proc/{pid}/fd/{fd}");
    let length = getxattr(path, c"system.sockprotoname", &mut name).ok()?;
    let name = CStr::from_bytes_until_nul(name.get(..length)?).ok()?;
    let name = name.to_str().ok()?.to_ascii_lowercase();
    let name = name.strip_suffix("v6").unwrap_or(&name);
    Some(name.strip_suffix("-stream").unwrap_or(name).to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::event::Flow;

    pub(in crate::host) fn socket(state: State, local: &str, peer: Option<&str>) -> TcpSocket {
        let end = |end: &str| end.parse().expect("an address and a port");
        TcpSocket {
            flow: Flow {
                local: end(local),
                peer: peer.map(end),
                ..Flow::default()
            },
            state,
            inode: 0,
            uid: 0,
            cookie: None,
            recv_queue: 0,
            send_queue: Some(0),
            drops: None,
            info: None,
        }
    }

    fn rows(holdings: &Holdings) -> Vec<(u64, String)> {
        let text = |held: &Held| match held {
            Held::Tcp {
                state,
                service,
                outbound,
            } => format!("{state} {} {service}", if *outbound { "out" } else { "in" }),
            Held::Other(sort) => sort.clone(),
        };
        let rows = holdings.rows.iter();
        rows.map(|row| (row.count, text(&row.what))).collect()
    }

    #[test]
    fn links_name_their_sort() {
        for (link, expected) in [
            ("/var/log/syslog", "file"),
            ("/tmp/a:[b]", "file"),
            ("/memfd:x (deleted)", "memfd"),
            ("pipe:[4711]", "pipe"),
            ("anon_inode:[eventpoll]", "eventpoll"),
            ("anon_inode:inotify", "inotify"),
            ("net:[4026531840]", "net"),
        ] {
            assert_eq!(sort(link.as_bytes()), expected, "{link}");
        }
        assert_eq!(sort("é".repeat(99).as_bytes()), "file");
        let long = format!("anon_inode:[{}\n]", "é".repeat(99));
        assert_eq!(sort(long.as_bytes()), "é".repeat(16));
    }

    #[test]
    fn connections_are_told_by_their_serving_end_most_first() {
        let mut table = Table::default();
        table.listeners.add("0.0.0.0:8080".parse().expect("one"));
        let mut hold = |state, local, peer: &str, fds: &[i32]| {
            let socket = socket(state, local, Some(peer));
            let fds = fds.to_vec();
            table.tcp.push(Open { socket, fds });
        };
        hold(State::CloseWait, "10.0.0.1:40001", "10.0.0.5:5432", &[5]);
        hold(State::CloseWait, "10.0.0.1:40002", "10.0.0.5:5432", &[6, 7]);
        hold(State::Established, "10.0.0.1:8080", "10.0.0.9:50001", &[8]);
        hold(State::Established, "10.0.0.1:8080", "10.0.0.8:50002", &[9]);
        table.others.insert("pipe".into(), 1);
        assert_eq!(
            rows(&table.holdings()),
            [
                (3, "CLOSE_WAIT out 10.0.0.5:5432".to_owned()),
                (2, "ESTABLISHED in 10.0.0.1:8080".to_owned()),
                (1, "pipe".to_owned()),
            ]
        );
    }

    #[test]
    fn what_finds_no_row_is_still_counted() {
        let mut table = Table {
            unread: 1000,
            ..Table::default()
        };
        for sort in 0..20 {
            table.others.insert(format!("sort {sort}"), 20 - sort);
        }
        let holdings = table.holdings();
        assert_eq!(holdings.rows.len(), Holdings::ROWS);
        assert_eq!(holdings.rows[0].count, 20);
        assert_eq!(holdings.others, 1000 + 4 + 3 + 2 + 1);
    }

    #[test]
    fn our_own_sockets_are_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let clients = [(); 3].map(|()| TcpStream::connect(addr).expect("listening"));
        let accepted = [(); 2].map(|()| listener.accept().expect("three wait").0);
        let again = accepted[0].try_clone().expect("a free descriptor");
        let _udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let _unix = UnixStream::pair().expect("a pair");
        let table = Table::read(std::process::id()).expect("our own");
        assert!(table.others["udp socket"] >= 1, "{:?}", table.others);
        assert!(table.others["unix socket"] >= 2, "{:?}", table.others);
        let count = |held: &Held| {
            let all = table
                .tcp
                .iter()
                .filter(|open| table.held(&open.socket) == *held);
            all.map(|open| open.fds.len()).sum::<usize>()
        };
        let held = |state, outbound| Held::Tcp {
            state,
            service: addr,
            outbound,
        };
        assert_eq!(count(&held(State::Listen, false)), 1);
        assert_eq!(count(&held(State::Established, true)), clients.len());
        assert_eq!(count(&held(State::Established, false)), 3, "one twice");
        drop(again);
    }
}
