//! Storms of failures as the kernel half would hand them over: raw records of many connections.

use std::ops::RangeInclusive;

use bytemuck::Zeroable as _;
use tcptrace::session::monotonic;
use tcptrace_common::event::{Event, Task, confidence, flag, hook, kind, side};

/// The ports of clients: one connection from each, before the same ports come again. So many are
/// ephemeral where nobody has changed `net.ipv4.ip_local_port_range`.
const PORTS: RangeInclusive<u16> = 32_768..=60_999;

/// A storm: records in the order the ring would have them.
pub(crate) struct Storm {
    pub(crate) name: &'static str,
    pub(crate) records: Vec<Event>,
}

/// One connection of a storm.
struct Connection {
    nth: u64,
    /// The client's.
    port: u16,
}

/// The number of a system call on x86-64.
const CLOSE: i32 = 3;
const SENDTO: i32 = 44;

/// `SK_RST_REASON_*` of Linux 6.12 and later.
const ABORT_ON_CLOSE: u32 = 11;
const NO_SOCKET: u32 = 1;

const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const CLOSED: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;

impl Storm {
    /// All of them.
    pub(crate) fn all() -> Vec<Self> {
        vec![
            // A server closes with unread data, and its clients notice.
            Self::of("resets", |it| vec![it.reset_received(), it.reset_sent()]),
            // Clients connect where nothing listens.
            Self::of("refusals", |it| {
                vec![it.refusal(), it.refused(), it.connect_failed()]
            }),
            // A server writes to clients that have left: the first write draws a RST.
            Self::of("broken pipes", |it| {
                vec![it.peer_left(), it.reset_in_close_wait(), it.broken_pipe()]
            }),
            // Connections that live and end as they should, with every change of state asked for.
            Self::of("states", |it| {
                vec![
                    it.change(ESTABLISHED, CLOSE_WAIT),
                    it.change(CLOSE_WAIT, LAST_ACK),
                    it.change(LAST_ACK, CLOSED),
                ]
            }),
        ]
    }

    fn of(name: &'static str, each: impl Fn(&Connection) -> Vec<Event>) -> Self {
        let connections = (0..).zip(PORTS);
        let records = connections.flat_map(|(nth, port)| each(&Connection { nth, port }));
        let mut storm = Self {
            name,
            records: records.collect(),
        };
        storm.again();
        storm
    }

    /// Makes them the next storm, which happens now: other connections with the same ports.
    pub(crate) fn again(&mut self) {
        let now = monotonic();
        let count = self.records.len() as u64;
        for (nth, record) in (0..).zip(&mut self.records) {
            record.id += 4 * count;
            record.cause += if record.cause == 0 { 0 } else { 4 * count };
            record.time = now + nth * 100;
            if record.sk != 0 {
                // No two have the same birth, see `Connection::end`.
                record.born += PORTS.len() as u64;
            }
            for ago in [
                &mut record.state_since,
                &mut record.accepted,
                &mut record.fin,
            ] {
                *ago = if *ago == 0 { 0 } else { record.time - 300_000 };
            }
        }
    }
}

impl Connection {
    /// The server's end, in the server's hands.
    fn server(&self, step: u64) -> Event {
        let mut event = self.end(step, [10, 0, 0, 1], 8_080, [10, 0, 0, 2], self.port);
        event.sk = 0xffff_8881_0000_0000 + self.nth * 0x2000;
        event.owner = process(*b"server\0\0\0\0\0\0\0\0\0\0");
        event.side = side::SERVER;
        event.accepted = 1;
        event.fd = 17;
        event
    }

    /// The client's end, in the client's hands.
    fn client(&self, step: u64) -> Event {
        let mut event = self.end(step, [10, 0, 0, 2], self.port, [10, 0, 0, 1], 8_080);
        event.sk = 0xffff_8882_0000_0000 + self.nth * 0x2000;
        event.owner = process(*b"client\0\0\0\0\0\0\0\0\0\0");
        event.side = side::CLIENT;
        event.fd = 9;
        event
    }

    fn end(&self, step: u64, local: [u8; 4], port: u16, peer: [u8; 4], peer_port: u16) -> Event {
        let mapped = |[a, b, c, d]: [u8; 4]| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, a, b, c, d];
        let mut event = Event::zeroed();
        // Connections have up to four records.
        event.id = 1 + self.nth * 4 + step;
        event.born = 1_000_000 + self.nth;
        event.state_since = 1;
        event.confidence = confidence::EXACT;
        event.family = 2;
        event.state = ESTABLISHED;
        event.syscall = -1;
        event.reason = u32::MAX;
        event.fin_waited = u32::MAX;
        (event.received_ago, event.sent_ago, event.heard_ago) = (2, 3, 2);
        (event.bytes_received, event.bytes_sent) = (420, 1_337);
        event.srtt = 800;
        event.tuple.local = mapped(local);
        event.tuple.peer = mapped(peer);
        (event.tuple.local_port, event.tuple.peer_port) = (port, peer_port);
        event.tuple.netns = 4_026_531_840;
        event
    }

    fn reset_sent(&self) -> Event {
        let mut event = self.server(1);
        (event.kind, event.hook) = (kind::RESET_SENT, hook::SEND_RESET);
        event.task = event.owner;
        event.flags = flag::TASK_CONTEXT;
        (event.syscall, event.reason, event.unread) = (CLOSE, ABORT_ON_CLOSE, 512);
        event
    }

    fn reset_received(&self) -> Event {
        let mut event = self.client(0);
        (event.kind, event.hook) = (kind::RESET_RECEIVED, hook::RECEIVE_RESET);
        event
    }

    /// The RST of a port nobody listens on: from no socket, of nobody.
    fn refusal(&self) -> Event {
        let mut event = self.end(0, [10, 0, 0, 1], 81, [10, 0, 0, 2], self.port);
        (event.kind, event.hook) = (kind::RESET_SENT, hook::SEND_RESET);
        (event.confidence, event.born, event.fd) = (confidence::UNKNOWN, 0, -1);
        (event.state, event.state_since) = (0, 0);
        event.flags = flag::ANSWERS | flag::FROM_SEGMENT | flag::SYN;
        event.reason = NO_SOCKET;
        event
    }

    fn refused(&self) -> Event {
        let mut event = self.client(1);
        (event.kind, event.hook) = (kind::RESET_RECEIVED, hook::RECEIVE_RESET);
        (event.tuple.peer_port, event.state) = (81, SYN_SENT);
        event
    }

    fn connect_failed(&self) -> Event {
        let mut event = self.client(2);
        (event.kind, event.hook) = (kind::CONNECT_FAILED, hook::SET_STATE);
        (event.tuple.peer_port, event.state) = (81, SYN_SENT);
        (event.other_state, event.errno) = (CLOSED, libc::ECONNREFUSED);
        event.cause = event.id - 1;
        event
    }

    /// The client closes while its request is unanswered.
    fn peer_left(&self) -> Event {
        let mut event = self.server(0);
        (event.kind, event.hook) = (kind::CLOSE_WAIT, hook::SET_STATE);
        (event.other_state, event.fin) = (CLOSE_WAIT, 1);
        event
    }

    fn reset_in_close_wait(&self) -> Event {
        let mut event = self.server(1);
        (event.kind, event.hook) = (kind::RESET_RECEIVED, hook::RECEIVE_RESET);
        (event.state, event.fin, event.fin_written) = (CLOSE_WAIT, 1, 1_337);
        event
    }

    fn broken_pipe(&self) -> Event {
        let mut event = self.server(2);
        (event.kind, event.hook) = (kind::SOCKET_ERROR, hook::SEND_LENGTH);
        (event.state, event.fin, event.fin_written) = (CLOSED, 1, 1_337);
        event.task = event.owner;
        event.flags = flag::TASK_CONTEXT | flag::SEND;
        (event.syscall, event.errno, event.len) = (SENDTO, libc::EPIPE, 1_337);
        event.cause = event.id - 1;
        event
    }

    fn change(&self, from: u8, to: u8) -> Event {
        let mut event = self.server(u64::from(to) % 4);
        (event.kind, event.hook) = (kind::STATE, hook::SET_STATE);
        (event.state, event.other_state) = (from, to);
        event
    }
}

/// A process that is there while this program runs: itself.
fn process(comm: [u8; 16]) -> Task {
    Task {
        cgroup: 7_000,
        tgid: std::process::id(),
        tid: std::process::id(),
        uid: 33,
        flags: 0,
        comm,
    }
}
