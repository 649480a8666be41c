//! The TCP sockets of a network namespace: from `sock_diag`, and on a kernel without it from
//! `/proc/PID/net/tcp`.

mod diag;
mod table;

use std::net::SocketAddr;
use std::sync::LazyLock;

use anyhow::Result;

use super::netns;
use crate::event::{self, Coverage, Flow, SocketId, State};

/// Every state a TCP socket can be in.
pub const ALL_STATES: [State; 11] = [
    State::Established,
    State::SynSent,
    State::SynReceived,
    State::FinWait1,
    State::FinWait2,
    State::TimeWait,
    State::Closed,
    State::CloseWait,
    State::LastAck,
    State::Listen,
    State::Closing,
];

/// One TCP socket at the moment the kernel was asked.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpSocket {
    /// Its two ends.
    pub flow: Flow,
    /// Its state.
    pub state: State,
    /// Inode number of its file; 0 while it waits for `accept`, and when no process holds it.
    pub inode: u64,
    /// User who created it.
    pub uid: u32,
    /// The kernel's own name for this socket in this life; only `sock_diag` tells it.
    pub cookie: Option<u64>,
    /// Bytes received and not read, the peer's FIN counted as one; on a listener the connections
    /// that wait for `accept`.
    pub recv_queue: u32,
    /// Bytes written and not acknowledged; on a listener the limit of its queue, which holds one
    /// more and which only `sock_diag` tells.
    pub send_queue: Option<u32>,
    /// Segments it dropped; on a listener the connections it lost, some of them counted twice. Only
    /// `sock_diag` tells them.
    pub drops: Option<u32>,
    /// What TCP knows about the connection; `None` in `TIME_WAIT` and `SYN_RECV`, and where
    /// `sock_diag` is missing.
    pub info: Option<Info>,
}

/// The part of `struct tcp_info` that tcptrace uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Milliseconds since the last segment with an ACK came in. In `CLOSE_WAIT` the FIN was one of
    /// those, so the state is at least this old.
    pub ack_received_ago_ms: u32,
    /// Milliseconds since data last came in; `None` when none ever did.
    pub data_received_ago_ms: Option<u32>,
    /// Milliseconds since data was last sent; `None` when none ever was.
    pub data_sent_ago_ms: Option<u32>,
    /// Smoothed round trip, microseconds; `None` before the first sample.
    pub rtt_us: Option<u32>,
    /// Segments sent again in its life.
    pub retransmits: u32,
}

impl TcpSocket {
    /// The listener's queue is full: the next connection is lost.
    /// <https://github.com/torvalds/linux/blob/v6.18/include/net/sock.h> (`sk_acceptq_is_full`)
    #[must_use]
    pub fn accept_queue_full(&self) -> bool {
        let limit = self.accept_queue_limit();
        limit.is_some_and(|limit| self.recv_queue > limit)
    }

    /// How many connections may wait for `accept`, less one; `None` where it is no listener or the
    /// kernel does not tell.
    #[must_use]
    pub fn accept_queue_limit(&self) -> Option<u32> {
        self.send_queue.filter(|_| self.state == State::Listen)
    }

    /// Bytes received and never read, without the FIN that a connection in `CLOSE_WAIT` counts.
    #[must_use]
    pub fn unread(&self) -> u32 {
        match self.state {
            State::Listen => 0,
            State::CloseWait => self.recv_queue.saturating_sub(1),
            _ => self.recv_queue,
        }
    }

    /// The program has read the end of the stream and still not closed.
    #[must_use]
    pub fn eof_read(&self) -> bool {
        self.state == State::CloseWait && self.recv_queue == 0
    }

    /// As an event tells it.
    ///
    /// No list says where the socket is in memory. The cookie, or else the inode, stands in for that
    /// address: it is as unique, and far below any address the kernel uses.
    #[must_use]
    pub fn to_event(&self) -> event::Socket {
        let info = self.info;
        event::Socket {
            id: SocketId {
                sk: self.cookie.unwrap_or(self.inode),
                born: 0,
            },
            flow: self.flow,
            state: Some(self.state),
            fd: None,
            inode: (self.inode != 0).then_some(self.inode),
            unread: self.unread(),
            unacked: match self.state {
                State::Listen => 0,
                _ => self.send_queue.unwrap_or_default(),
            },
            retransmits: info.map(|info| info.retransmits),
            rtt_us: info.and_then(|info| info.rtt_us),
            received_ago_ms: info.and_then(|info| info.data_received_ago_ms.map(u64::from)),
            sent_ago_ms: info.and_then(|info| info.data_sent_ago_ms.map(u64::from)),
            eof_read: self.eof_read(),
            ..event::Socket::default()
        }
    }
}

/// How a dump went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// Sockets handed to the callback.
    pub sockets: u64,
    /// The kernel's tables changed under the dump: sockets may be missing or twice in it.
    pub interrupted: bool,
    /// Answers that could not be read.
    pub unreadable: u64,
}

/// Hands every TCP socket in one of `states` to `each`, IPv4 first; holds a few of them at a time. The
/// namespace is that of the calling thread. Needs no privilege.
///
/// # Errors
///
/// When the kernel refuses, or `/proc` is not mounted.
pub fn dump(states: &[State], each: impl FnMut(TcpSocket)) -> Result<Dump> {
    let netns = netns::current()?;
    match *WITHOUT_DIAG {
        None => diag::dump(states, netns, each),
        Some(_) => table::dump(states, netns, each),
    }
}

/// The connection with exactly these ends. The namespace is that of the calling thread. `None` when
/// there is none, or the kernel does not tell.
#[must_use]
pub fn connection(local: SocketAddr, peer: SocketAddr) -> Option<TcpSocket> {
    let netns = netns::current().ok()?;
    match *WITHOUT_DIAG {
        None => diag::connection(local, peer, netns),
        Some(_) => table::connection(local, peer, netns),
    }
}

/// How sockets are listed here, and what that leaves out.
#[must_use]
pub fn coverage() -> Coverage {
    coverage_of(WITHOUT_DIAG.as_deref())
}

/// Reads bytes as if the kernel had given them, either way.
#[cfg(any(test, fuzzing))]
pub(crate) fn read(bytes: &[u8]) {
    let mut each = |socket| {
        std::hint::black_box(socket);
    };
    // What is no table or no answer is an error, and nothing else.
    let _ = table::walk(bytes, crate::event::Flow::default(), &mut each);
    diag::read(bytes, &mut each);
}

fn coverage_of(without_diag: Option<&str>) -> Coverage {
    let way = match without_diag {
        None => "sock_diag",
        Some(_) => "/proc/PID/net/tcp, tcp6",
    };
    let note = without_diag.map(|why| {
        format!(
            "does not show ages of connections, limits of accept queues, which listener dropped; {why}"
        )
    });
    Coverage {
        signal: "queues and ages of sockets".into(),
        way: Some(way.to_owned()),
        note,
        complete: false,
    }
}

/// Why `sock_diag` is not used. Asked once: a kernel without it would look for its module each time.
static WITHOUT_DIAG: LazyLock<Option<String>> =
    LazyLock::new(|| diag::probe().err().map(|error| format!("{error:#}")));

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv6Addr, TcpListener, TcpStream};
    use std::thread;
    use std::time::{Duration, Instant};

    use nix::sys::socket::{Backlog, listen};

    use super::*;
    use crate::host::holders;

    type Each<'a> = &'a mut dyn FnMut(TcpSocket);

    /// Of each of three families a listener, two ends established, two that wait, a half-closed pair, and
    /// one in TIME_WAIT.
    const COUNT: usize = 3 * 8;

    /// What both lists tell of the sockets with one of these ports, in order.
    fn listed(ports: &[u16], dump: impl FnOnce(Each<'_>) -> Result<Dump>) -> Vec<TcpSocket> {
        let mut listed = Vec::new();
        let dump = dump(&mut |mut socket| {
            let ends = [Some(socket.flow.local), socket.flow.peer];
            if ends.iter().flatten().any(|end| ports.contains(&end.port())) {
                socket.send_queue.take_if(|_| socket.state == State::Listen);
                (socket.cookie, socket.drops, socket.info) = (None, None, None);
                listed.push(socket);
            }
        });
        assert_eq!(dump.expect("this kernel has both").unreadable, 0);
        listed.sort_by_key(|socket| (socket.flow.local, socket.flow.peer));
        listed
    }

    /// A listener whose queue holds one, a connection whose data is unread, one in CLOSE_WAIT, and one
    /// in TIME_WAIT.
    fn sockets_at(address: &str) -> (u16, Vec<TcpStream>, TcpListener) {
        let listener = TcpListener::bind(address).expect("a free port");
        listen(&listener, Backlog::new(8).expect("small")).expect("it takes a new limit");
        let port = listener.local_addr().expect("bound").port();
        let at = SocketAddr::new(address.parse::<SocketAddr>().expect("one").ip(), port);
        let to = match at {
            SocketAddr::V6(any) if any.ip().is_unspecified() => {
                SocketAddr::from(([127, 0, 0, 1], port))
            }
            _ => at,
        };
        let connected = || {
            let client = TcpStream::connect(to).expect("listening");
            (client, listener.accept().expect("one waits").0)
        };
        let (unread, mut server) = connected();
        server.write_all(b"five!").expect("connected");
        let (left, closed) = connected();
        drop(closed);
        let (client, closed) = connected();
        drop(closed);
        drop(client);
        let waiting = TcpStream::connect(to).expect("room in the queue");
        (port, vec![unread, server, left, waiting], listener)
    }

    #[test]
    fn both_lists_tell_the_same() {
        let netns = netns::current().expect("/proc is mounted");
        let held = ["127.0.0.1:0", "[::1]:0", "[::]:0"].map(sockets_at);
        let ports = held.each_ref().map(|(port, ..)| *port);
        let begun = Instant::now();
        let (by_diag, by_table) = loop {
            let by_diag = listed(&ports, |each| diag::dump(&ALL_STATES, netns, each));
            let by_table = listed(&ports, |each| table::dump(&ALL_STATES, netns, each));
            // The ACK of a FIN may be late, and what goes on to FIN_WAIT2 is in no list for a moment, or
            // twice in one: the socket, and what the kernel keeps of it after its close.
            let settled = by_diag == by_table
                && by_diag.len() == COUNT
                && by_diag.iter().all(|it| it.state != State::FinWait1);
            if settled || begun.elapsed() > Duration::from_secs(10) {
                break (by_diag, by_table);
            }
            thread::yield_now();
        };
        assert_eq!(by_table, by_diag);
        assert_eq!(by_table.len(), COUNT);
        let mut states: Vec<_> = by_table.iter().map(|socket| socket.state as u8).collect();
        states.sort_unstable();
        states.dedup();
        let expected = [
            State::Established,
            State::FinWait2,
            State::TimeWait,
            State::CloseWait,
            State::Listen,
        ];
        assert_eq!(states, expected.map(|state| state as u8));
        for socket in by_table.iter().filter(|it| it.flow.peer.is_some()) {
            let (local, peer) = (socket.flow.local, socket.flow.peer.expect("filtered"));
            let found = table::connection(local, peer, netns);
            assert_eq!(found.as_ref(), Some(socket));
        }
    }

    #[test]
    fn what_is_left_out_is_said() {
        let whole = coverage_of(None);
        assert_eq!(
            (whole.way.as_deref(), whole.note),
            (Some("sock_diag"), None)
        );
        let without = coverage_of(Some("load the module tcp_diag"));
        assert_eq!(without.way.as_deref(), Some("/proc/PID/net/tcp, tcp6"));
        let note = without.note.expect("it leaves much out");
        assert!(note.contains("limits of accept queues"), "{note}");
        assert!(note.ends_with("load the module tcp_diag"), "{note}");
    }

    /// The sockets of this test's own process, as the kernel lists them.
    fn find(inode: u64, states: &[State]) -> Option<TcpSocket> {
        let mut found = None;
        let dump = dump(states, |socket| {
            if socket.inode == inode {
                found = Some(socket);
            }
        });
        assert_eq!(dump.expect("sock_diag needs no privilege").unreadable, 0);
        found
    }

    #[test]
    fn the_receive_queue_tells_whether_the_eof_was_read() {
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut client = TcpStream::connect(address).expect("listening");
        let inode = holders::inode_of(&client).expect("a socket");
        drop(listener.accept().expect("connected"));

        let unread =
            find(inode, &[State::CloseWait]).expect("the FIN is here: loopback is synchronous");
        assert_eq!(unread.flow.peer, Some(address));
        assert_eq!(
            (unread.recv_queue, unread.unread(), unread.eof_read()),
            (1, 0, false)
        );
        assert_eq!(client.read(&mut [0; 8]).expect("the end of the stream"), 0);
        let read = find(inode, &ALL_STATES).expect("still in CLOSE_WAIT");
        assert_eq!(
            (read.state, read.recv_queue, read.eof_read()),
            (State::CloseWait, 0, true)
        );
        assert!(find(inode, &[State::Established, State::Listen]).is_none());
    }

    #[test]
    fn a_listener_shows_its_queue_and_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(3).expect("small"))
            .expect("a listener takes a new limit");
        let address = listener.local_addr().expect("bound");
        let clients = [(); 2].map(|()| TcpStream::connect(address).expect("room in the queue"));
        let inode = holders::inode_of(&listener).expect("a socket");
        let found = find(inode, &[State::Listen]).expect("it listens");
        assert_eq!(
            (found.recv_queue, found.send_queue, found.drops),
            (2, Some(3), Some(0))
        );
        assert_eq!((found.flow.local, found.flow.peer), (address, None));
        assert!(!found.accept_queue_full());
        drop(clients);
    }
}
