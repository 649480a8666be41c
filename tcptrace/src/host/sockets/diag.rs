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

use super::{Dump, Info, TcpSocket};
use crate::event::{Flow, State};

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

/// Whether this kernel lists sockets this way: asks for those in no state.
///
/// # Errors
///
/// As of [`dump`].
pub(super) fn probe() -> Result<()> {
    dump(&[], 0, |_| {}).map(drop)
}

/// Hands every TCP socket in one of `states` to `each`, IPv4 first; holds one message of the kernel
/// at a time. The namespace is that of the calling thread. Needs no privilege.
///
/// # Errors
///
/// When this kernel offers no `sock_diag` for TCP, or refuses.
pub(super) fn dump(states: &[State], netns: u32, mut each: impl FnMut(TcpSocket)) -> Result<Dump> {
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
pub(super) fn connection(local: SocketAddr, peer: SocketAddr, netns: u32) -> Option<TcpSocket> {
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
struct Refused {
    error: io::Error,
    /// The kernel has no `sock_diag` for TCP, as opposed to refusing this caller.
    unavailable: bool,
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
        cookie: Some(u64::from_ne_bytes(id.cookie)),
        recv_queue: header.recv_queue,
        send_queue: Some(header.send_queue),
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

/// Reads bytes as an answer.
#[cfg(any(test, fuzzing))]
pub(super) fn read(bytes: &[u8], each: &mut impl FnMut(TcpSocket)) {
    // What is no answer is an error, and nothing else.
    let _ = walk(bytes, 1, &mut Dump::default(), |payload| {
        parse(payload, 0).map(&mut *each).is_some()
    });
    parse(bytes, 0).map(each);
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
    use super::*;

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
            (4_000_000_000, 1000, Some(77))
        );
        assert_eq!(
            (socket.recv_queue, socket.send_queue, socket.drops),
            (5, Some(9), Some(49))
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
}
