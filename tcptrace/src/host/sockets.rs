//! The TCP sockets of a network namespace, streamed from the kernel's `sock_diag`.

use std::fmt;
use std::io;
use std::mem::offset_of;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NlasIterator, Parseable,
};
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, INET_DIAG_INFO, INET_DIAG_SKMEMINFO, IPPROTO_TCP,
};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId as DiagId, StateFlags,
};
use netlink_packet_sock_diag::{SOCK_DIAG_BY_FAMILY, SockDiagMessage};
use netlink_sys::Socket as Netlink;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::netns;
use crate::event::{self, Flow, SocketId, State};

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

/// The kernel fills a message up to 32 KiB, and no further than the reader's buffer.
/// <https://github.com/torvalds/linux/blob/v6.18/net/netlink/af_netlink.c> (`netlink_recvmsg`)
const BUFFER: usize = 64 * 1024;

/// Length of `struct inet_diag_msg`; attributes follow.
const DIAG_MSG: usize = 72;

/// Whatever cookie the socket has.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/inet_diag.h> (`INET_DIAG_NOCOOKIE`)
const ANY_COOKIE: [u8; 8] = [0xff; 8];

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Position of `SK_MEMINFO_DROPS` in the array of `INET_DIAG_SKMEMINFO`.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/sock_diag.h>
const SK_MEMINFO_DROPS: usize = 8;

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
    /// The kernel's own name for this socket in this life.
    pub cookie: u64,
    /// Bytes received and not read, the peer's FIN counted as one; on a listener the connections
    /// that wait for `accept`.
    pub recv_queue: u32,
    /// Bytes written and not acknowledged; on a listener the limit of its queue, which holds one
    /// more.
    pub send_queue: u32,
    /// Segments it dropped; on a listener the connections it lost, some of them counted twice.
    pub drops: Option<u32>,
    /// What TCP knows about the connection; `None` in `TIME_WAIT` and `SYN_RECV`.
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
        self.state == State::Listen && self.recv_queue > self.send_queue
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
    /// `sock_diag` does not say where the socket is in memory. The cookie stands in for that
    /// address: it is as unique, and far below any address the kernel uses.
    #[must_use]
    pub fn to_event(&self) -> event::Socket {
        let info = self.info.unwrap_or_default();
        event::Socket {
            id: SocketId {
                sk: self.cookie,
                born: 0,
            },
            flow: self.flow,
            state: Some(self.state),
            fd: None,
            inode: (self.inode != 0).then_some(self.inode),
            unread: self.unread(),
            unacked: if self.state == State::Listen {
                0
            } else {
                self.send_queue
            },
            retransmits: info.retransmits,
            rtt_us: info.rtt_us,
            received_ago_ms: info.data_received_ago_ms.map(u64::from),
            sent_ago_ms: info.data_sent_ago_ms.map(u64::from),
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

/// Hands every TCP socket in one of `states` to `each`, IPv4 first; holds one message of the kernel
/// at a time. The namespace is that of the calling thread. Needs no privilege.
///
/// # Errors
///
/// When this kernel offers no `sock_diag` for TCP, or refuses.
pub fn dump(states: &[State], mut each: impl FnMut(TcpSocket)) -> Result<Dump> {
    let netns = netns::current()?;
    let socket = Netlink::new(NETLINK_SOCK_DIAG)
        .map_err(|error| refused(error.raw_os_error().unwrap_or_default()))?;
    let mut dump = Dump::default();
    let mut buffer = Vec::with_capacity(BUFFER);
    for (sequence, family) in [(1, AF_INET), (2, AF_INET6)] {
        socket
            .send(&request(family, states, sequence), 0)
            .context("the kernel did not take the question for its TCP sockets (sock_diag)")?;
        loop {
            receive(&socket, &mut buffer).context("reading the kernel's TCP sockets failed")?;
            let done = walk(&buffer, sequence, &mut dump, |payload| {
                let Some(socket) = parse(payload, netns) else {
                    return false;
                };
                each(socket);
                true
            })?;
            if done {
                break;
            }
        }
    }
    Ok(dump)
}

/// The connection with exactly these ends, at one look-up instead of a list. The namespace is that
/// of the calling thread. `None` when there is none, or the kernel does not tell.
#[must_use]
pub fn connection(local: SocketAddr, peer: SocketAddr) -> Option<TcpSocket> {
    let netns = netns::current().ok()?;
    let socket = Netlink::new(NETLINK_SOCK_DIAG).ok()?;
    let question = InetRequest {
        socket_id: DiagId {
            source_port: local.port(),
            destination_port: peer.port(),
            source_address: local.ip(),
            destination_address: peer.ip(),
            interface_id: 0,
            cookie: ANY_COOKIE,
        },
        ..all(if local.is_ipv4() { AF_INET } else { AF_INET6 })
    };
    socket.send(&message(question, NLM_F_REQUEST, 1), 0).ok()?;
    let mut buffer = Vec::with_capacity(BUFFER);
    receive(&socket, &mut buffer).ok()?;
    let mut found = None;
    let answer = walk(&buffer, 1, &mut Dump::default(), |payload| {
        found = parse(payload, netns);
        found.is_some()
    });
    // Without a connection the kernel gives the listener that would take it.
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/inet_diag.c (inet_diag_find_one_icsk)
    answer
        .ok()
        .and(found)
        .filter(|it| it.flow.peer == Some(peer))
}

fn receive(socket: &Netlink, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        buffer.clear();
        match socket.recv(buffer, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received.map(drop),
        }
    }
}

fn request(family: u8, states: &[State], sequence: u32) -> Vec<u8> {
    let mask = states
        .iter()
        .fold(0, |mask, &state| mask | 1_u32 << state as u8);
    let question = InetRequest {
        states: StateFlags::from_bits_retain(mask),
        ..all(family)
    };
    message(question, NLM_F_REQUEST | NLM_F_DUMP, sequence)
}

/// Asks for all that is used of a socket.
fn all(family: u8) -> InetRequest {
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO | ExtensionFlags::SKMEMINFO,
        states: StateFlags::all(),
        socket_id: DiagId::new_v4(),
    }
}

fn message(question: InetRequest, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let question = SockDiagMessage::InetRequest(question);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Walks the messages of one datagram; true when the dump has ended. `each` says whether it could
/// read its socket.
fn walk(
    datagram: &[u8],
    sequence: u32,
    dump: &mut Dump,
    mut each: impl FnMut(&[u8]) -> bool,
) -> Result<bool> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let Ok(message) = NetlinkBuffer::new_checked(rest) else {
            bail!("the kernel's answer about its TCP sockets is cut off");
        };
        if message.sequence_number() == sequence {
            dump.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            let payload = message.payload();
            match message.message_type() {
                SOCK_DIAG_BY_FAMILY if each(payload) => dump.sockets += 1,
                SOCK_DIAG_BY_FAMILY => dump.unreadable += 1,
                kind @ (NLMSG_ERROR | NLMSG_DONE) => {
                    let code = u32_at(payload, 0).unwrap_or_default().cast_signed();
                    if code < 0 {
                        return Err(refused(-code).into());
                    }
                    if kind == NLMSG_DONE {
                        return Ok(true);
                    }
                }
                _ => {}
            }
        }
        let length = (message.length() as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(false)
}

/// Why there is no list of sockets.
#[derive(Debug)]
pub struct Refused {
    /// The kernel's error.
    pub error: io::Error,
    /// It has no `sock_diag` for TCP, as opposed to refusing this caller.
    pub unavailable: bool,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the kernel does not list its TCP sockets (sock_diag): {}",
            self.error
        )?;
        if self.unavailable {
            f.write_str(
                "; load the module tcp_diag (modprobe tcp_diag) or use a kernel built with \
                 CONFIG_INET_DIAG and CONFIG_INET_TCP_DIAG",
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

fn refused(errno: i32) -> Refused {
    Refused {
        error: io::Error::from_raw_os_error(errno),
        unavailable: matches!(
            errno,
            libc::ENOENT | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP
        ),
    }
}

/// A `struct inet_diag_msg` and the attributes behind it.
fn parse(payload: &[u8], netns: u32) -> Option<TcpSocket> {
    let header = InetResponseHeader::parse(payload).ok()?;
    let state = State::from_number(header.state)?;
    let end = |ip: std::net::IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
    let id = &header.socket_id;
    let connected = state != State::Listen && id.destination_port != 0;
    let mut socket = TcpSocket {
        flow: Flow {
            local: end(id.source_address, id.source_port),
            peer: connected.then(|| end(id.destination_address, id.destination_port)),
            ipv6_socket: header.family == AF_INET6,
            netns,
        },
        state,
        inode: u64::from(header.inode),
        uid: header.uid,
        cookie: u64::from_ne_bytes(id.cookie),
        recv_queue: header.recv_queue,
        send_queue: header.send_queue,
        drops: None,
        info: None,
    };
    for attribute in NlasIterator::new(payload.get(DIAG_MSG..)?) {
        let attribute = attribute.ok()?;
        match attribute.kind() {
            INET_DIAG_INFO => socket.info = parse_info(attribute.value()),
            INET_DIAG_SKMEMINFO => socket.drops = u32_at(attribute.value(), SK_MEMINFO_DROPS * 4),
            _ => {}
        }
    }
    Some(socket)
}

/// `struct tcp_info` only ever grows at its end, and an older kernel's is shorter.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/tcp.h>
fn parse_info(bytes: &[u8]) -> Option<Info> {
    let sent = u32_at(bytes, offset_of!(libc::tcp_info, tcpi_data_segs_out))?;
    let received = u32_at(bytes, offset_of!(libc::tcp_info, tcpi_data_segs_in))?;
    let data_sent = u32_at(bytes, offset_of!(libc::tcp_info, tcpi_last_data_sent))?;
    let data_received = u32_at(bytes, offset_of!(libc::tcp_info, tcpi_last_data_recv))?;
    let rtt = u32_at(bytes, offset_of!(libc::tcp_info, tcpi_rtt))?;
    Some(Info {
        ack_received_ago_ms: u32_at(bytes, offset_of!(libc::tcp_info, tcpi_last_ack_recv))?,
        data_received_ago_ms: (received != 0).then_some(data_received),
        data_sent_ago_ms: (sent != 0).then_some(data_sent),
        rtt_us: (rtt != 0).then_some(rtt),
        retransmits: u32_at(bytes, offset_of!(libc::tcp_info, tcpi_total_retrans))?,
    })
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..offset + 4)?;
    field.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{Ipv6Addr, TcpListener, TcpStream};

    use super::*;
    use crate::host::holders;

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).expect("a small message");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn walks_messages_until_done() {
        let mut datagram = message(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP_INTR, 7, b"first");
        datagram.extend(message(SOCK_DIAG_BY_FAMILY, 0, 6, b"stale"));
        datagram.extend(message(SOCK_DIAG_BY_FAMILY, 0, 7, b"bad"));
        datagram.extend(message(NLMSG_DONE, 0, 7, &0_i32.to_ne_bytes()));
        let mut dump = Dump::default();
        let mut seen = Vec::new();
        let done = walk(&datagram, 7, &mut dump, |payload| {
            seen.push(payload.to_vec());
            payload != b"bad"
        });
        assert!(done.expect("no error in it"));
        assert_eq!(seen, [b"first".to_vec(), b"bad".to_vec()]);
        assert_eq!(
            dump,
            Dump {
                sockets: 1,
                interrupted: true,
                unreadable: 1
            }
        );
    }

    #[test]
    fn an_error_says_what_to_do() {
        for (kind, errno, advice) in [
            (NLMSG_ERROR, libc::ENOENT, true),
            (NLMSG_DONE, libc::ENOENT, true),
            (NLMSG_ERROR, libc::EPERM, false),
        ] {
            let datagram = message(kind, 0, 1, &(-errno).to_ne_bytes());
            let error = walk(&datagram, 1, &mut Dump::default(), |_| true).expect_err("an error");
            assert_eq!(
                error.to_string().contains("modprobe tcp_diag"),
                advice,
                "{error}"
            );
        }
        let cut = &message(NLMSG_DONE, 0, 1, &[0; 4])[..18];
        assert!(walk(cut, 1, &mut Dump::default(), |_| true).is_err());
    }

    #[test]
    fn reads_the_kernels_layout() {
        let mut payload = vec![0_u8; DIAG_MSG];
        payload[0] = AF_INET6;
        payload[1] = 8;
        payload[4..6].copy_from_slice(&8080_u16.to_be_bytes());
        payload[6..8].copy_from_slice(&40000_u16.to_be_bytes());
        let local = "10.0.0.1"
            .parse::<std::net::Ipv4Addr>()
            .expect("an address");
        payload[8..24].copy_from_slice(&local.to_ipv6_mapped().octets());
        payload[24..40].copy_from_slice(&local.to_ipv6_mapped().octets());
        payload[44..52].copy_from_slice(&77_u64.to_ne_bytes());
        for (at, value) in [(56, 5_u32), (60, 9), (64, 1000), (68, 4_000_000_000)] {
            payload[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        // INET_DIAG_INFO as a kernel with a longer tcp_info sends it, then INET_DIAG_SKMEMINFO.
        let mut info = vec![0_u8; 4 + 300];
        info[..4].copy_from_slice(&[48, 1, 2, 0]);
        for (at, value) in [(52, 3052_u32), (56, 2000), (68, 125), (100, 3), (152, 1)] {
            info[4 + at..8 + at].copy_from_slice(&value.to_ne_bytes());
        }
        payload.extend(info);
        let mut memory = vec![0_u8; 4 + 36];
        memory[..4].copy_from_slice(&[40, 0, 7, 0]);
        memory[36..40].copy_from_slice(&49_u32.to_ne_bytes());
        payload.extend(memory);

        let socket = parse(&payload, 12).expect("a complete message");
        assert_eq!(socket.flow.to_string(), "10.0.0.1:8080 > 10.0.0.1:40000");
        assert!(socket.flow.ipv6_socket && socket.flow.is_ipv4());
        assert_eq!((socket.flow.netns, socket.state), (12, State::CloseWait));
        assert_eq!(
            (socket.inode, socket.uid, socket.cookie),
            (4_000_000_000, 1000, 77)
        );
        assert_eq!(
            (socket.recv_queue, socket.send_queue, socket.drops),
            (5, 9, Some(49))
        );
        assert_eq!((socket.unread(), socket.eof_read()), (4, false));
        let expected = Info {
            ack_received_ago_ms: 2000,
            data_received_ago_ms: Some(3052),
            data_sent_ago_ms: None,
            rtt_us: Some(125),
            retransmits: 3,
        };
        assert_eq!(socket.info, Some(expected));
        assert_eq!(parse(&payload[..60], 12), None);
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
            (2, 3, Some(0))
        );
        assert_eq!((found.flow.local, found.flow.peer), (address, None));
        assert!(!found.accept_queue_full());
        drop(clients);
    }
}
