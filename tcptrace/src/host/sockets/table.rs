//! The TCP sockets of a network namespace as `/proc/PID/net/tcp` and `tcp6` list them: the rung below
//! `sock_diag`.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::SocketAddr;

use anyhow::{Context, Result};
use procfs::FromBufReadSI as _;
use procfs::net::TcpNetEntries;

use super::{Dump, TcpSocket};
use crate::event::{Flow, State};

/// Hands every TCP socket in one of `states` to `each`, IPv4 first; holds one at a time. The namespace
/// is that of the calling thread, and `netns` its number. Whether the kernel's tables changed meanwhile
/// is not told.
///
/// # Errors
///
/// When `/proc` is not mounted.
pub(super) fn dump(states: &[State], netns: u32, mut each: impl FnMut(TcpSocket)) -> Result<Dump> {
    let mut dump = Dump::default();
    let mut each = |socket: TcpSocket| {
        if states.contains(&socket.state) {
            dump.sockets += 1;
            each(socket);
        }
    };
    let mut unreadable = 0;
    for (name, ipv6_socket) in [("tcp", false), ("tcp6", true)] {
        let path = format!("/proc/thread-self/net/{name}");
        let read = || format!("cannot read the kernel's TCP sockets from {path}");
        let file = match File::open(&path) {
            // A kernel without IPv6.
            Err(error) if ipv6_socket && error.kind() == ErrorKind::NotFound => break,
            opened => opened.with_context(read)?,
        };
        let flow = Flow {
            ipv6_socket,
            netns,
            ..Flow::default()
        };
        unreadable += walk(BufReader::new(file), flow, &mut each).with_context(read)?;
    }
    dump.unreadable = unreadable;
    Ok(dump)
}

/// The connection with exactly these ends, of the calling thread's namespace.
pub(super) fn connection(local: SocketAddr, peer: SocketAddr, netns: u32) -> Option<TcpSocket> {
    let mut found = None;
    let dumped = dump(&super::ALL_STATES, netns, |socket| {
        if (socket.flow.local, socket.flow.peer) == (local, Some(peer)) {
            found = Some(socket);
        }
    });
    dumped.ok().and(found)
}

/// Hands each socket of a file to `each`, with `flow` for what the file does not say; returns how many
/// lines could not be read.
pub(super) fn walk(
    file: impl BufRead,
    flow: Flow,
    each: &mut impl FnMut(TcpSocket),
) -> std::io::Result<u64> {
    let mut unreadable = 0;
    // The first line names the columns.
    for line in file.lines().skip(1) {
        match parse(&line?, flow) {
            Some(socket) => each(socket),
            None => unreadable += 1,
        }
    }
    Ok(unreadable)
}

/// A line without its end. Handshakes that are half done and sockets in `TIME_WAIT` have lines too, with
/// zeroes for what they lack.
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c> (`tcp4_seq_show`)
fn parse(line: &str, flow: Flow) -> Option<TcpSocket> {
    // A table of this line alone, below its line of names: a table is kept whole, and is nothing
    // when one of its lines is odd.
    let table = format!("\n{line}");
    let entries = TcpNetEntries::from_buf_read(table.as_bytes(), procfs::current_system_info());
    let entry = entries.ok()?.0.pop()?;
    let state = State::from_number(entry.state.to_u8())?;
    let end = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
    let connected = state != State::Listen && entry.remote_address.port() != 0;
    Some(TcpSocket {
        flow: Flow {
            local: end(entry.local_address),
            peer: connected.then(|| end(entry.remote_address)),
            ..flow
        },
        state,
        inode: entry.inode,
        uid: entry.uid,
        cookie: None,
        recv_queue: entry.rx_queue,
        // A listener has sent nothing; its limit is not in the file.
        send_queue: (state != State::Listen).then_some(entry.tx_queue),
        drops: None,
        info: None,
    })
}

// The file shows addresses as the CPU reads them, four bytes at a time: these are of a little-endian one.
#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    /// Local address, peer, state, receive queue, send queue, user, inode.
    type Row<'a> = (&'a str, Option<&'a str>, State, u32, Option<u32>, u32, u64);

    fn check(line: &str, ipv6_socket: bool, expected: Row<'_>) {
        let flow = Flow {
            ipv6_socket,
            netns: 12,
            ..Flow::default()
        };
        let (local, peer, state, recv_queue, send_queue, uid, inode) = expected;
        let end = |end: &str| end.parse().expect("an address and a port");
        let expected = TcpSocket {
            flow: Flow {
                local: end(local),
                peer: peer.map(end),
                ..flow
            },
            state,
            inode,
            uid,
            cookie: None,
            recv_queue,
            send_queue,
            drops: None,
            info: None,
        };
        assert_eq!(parse(line, flow), Some(expected), "{line}");
    }

    #[test]
    fn each_sort_of_line_is_read() {
        // A listener with three that wait: its limit is not there.
        check(
            "   0: 0100000A:1F90 00000000:0000 0A 00000000:00000003 00:00000000 00000000  \
             1000        0 88187 2 0000000062319cd4 100 0 0 10 0                     ",
            false,
            ("10.0.0.1:8080", None, State::Listen, 3, None, 1000, 88_187),
        );
        // In CLOSE_WAIT with five bytes and the FIN unread, 2,560 not acknowledged, and its timer on.
        check(
            "   8: 0100000A:DE92 0500000A:1538 08 00000A00:00000006 01:00000014 00000002  \
             1000        0 4294967295 3 000000004020ef66 20 4 31 10 -1                    ",
            false,
            (
                "10.0.0.1:56978",
                Some("10.0.0.5:5432"),
                State::CloseWait,
                6,
                Some(2_560),
                1000,
                4_294_967_295,
            ),
        );
        // A handshake half done, and a socket in TIME_WAIT: neither has a file.
        check(
            "   3: 0100007F:1F93 0100007F:D7BC 03 00000000:00000000 01:00000064 00000000     \
             0        0 0 0 00000000e8513b89                                      ",
            false,
            (
                "127.0.0.1:8083",
                Some("127.0.0.1:55228"),
                State::SynReceived,
                0,
                Some(0),
                0,
                0,
            ),
        );
        check(
            "   7: 0100007F:1F94 0100007F:8E6A 06 00000000:00000000 03:00001770 00000000     \
             0        0 0 3 00000000da551ec7                                      ",
            false,
            (
                "127.0.0.1:8084",
                Some("127.0.0.1:36458"),
                State::TimeWait,
                0,
                Some(0),
                0,
                0,
            ),
        );
        // 2001:db8::1 in four words, each the other way round.
        check(
            "   1: B80D0120000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A \
             00000000:00000001 00:00000000 00000000     0        0 88191 2 00000000bc2b9bd8 100 0 0 10 0",
            true,
            (
                "[2001:db8::1]:8081",
                None,
                State::Listen,
                1,
                None,
                0,
                88_191,
            ),
        );
        // IPv4 on a socket of IPv6.
        check(
            "   3: 0000000000000000FFFF00000100000A:1F92 0000000000000000FFFF00000900000A:8C80 01 \
             00000000:00000000 00:00000000 00000000     0        0 88195 1 00000000da810611 20 0 0 10 -1",
            true,
            (
                "10.0.0.1:8082",
                Some("10.0.0.9:35968"),
                State::Established,
                0,
                Some(0),
                0,
                88_195,
            ),
        );
    }

    #[test]
    fn an_odd_line_costs_itself_only() {
        let file = "  sl  local_address rem_address   st tx_queue rx_queue\n\
                    \x20  0: 0100007F:1F90 00000000\n\
                    \x20  1: 0100007F:1F90 0100007F:DE94 01 00000000:00000000 00:00000000 00000000 \
                    0 0 7 1 00000000a3119e62 20 0 0 10 -1\n\
                    \x20  2: 0100007F:1F90 0100007F:DE94 FE 00000000:00000000 00:00000000 00000000 \
                    0 0 8 1 00000000a3119e62 20 0 0 10 -1\n";
        let mut inodes = Vec::new();
        let mut each = |socket: TcpSocket| inodes.push(socket.inode);
        let unreadable = walk(file.as_bytes(), Flow::default(), &mut each);
        assert_eq!(unreadable.expect("memory gives it"), 2);
        assert_eq!(inodes, [7]);
    }
}
