//! The kernel's own list of TCP sockets, to wait for what programs do not say.

use std::fs;
use std::io;

use anyhow::Result;

use crate::wait_until;

/// A line of `/proc/net/tcp` or `tcp6`.
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c> (`get_tcp4_sock`)
#[derive(Clone, Copy, Debug)]
pub struct Socket {
    /// The port of this end.
    pub local_port: u16,
    /// The port of the other end; 0 for a listener.
    pub peer_port: u16,
    /// The state's number.
    pub state: u8,
    /// Bytes received and not read.
    pub unread: u32,
    /// The inode of the descriptor; 0 while no program has accepted it, or none has it any more.
    pub inode: u64,
}

impl Socket {
    /// A connection open at both ends.
    pub const ESTABLISHED: u8 = 1;
    /// The peer has closed.
    pub const CLOSE_WAIT: u8 = 8;
    /// A listener.
    pub const LISTEN: u8 = 10;
}

/// Waits until so many sockets of the calling thread's namespace are like this.
///
/// # Errors
/// When they are not in time.
pub fn wait_for_sockets(count: usize, like: impl Fn(&Socket) -> bool) -> Result<()> {
    wait_until("sockets as wanted", || {
        Ok(sockets()?.iter().filter(|socket| like(socket)).count() == count)
    })?;
    Ok(())
}

/// Waits until the peers of so many connections have closed, and these ends have not.
///
/// # Errors
/// When they have not in time.
pub fn wait_for_close_wait(count: usize) -> Result<()> {
    wait_for_sockets(count, |socket| socket.state == Socket::CLOSE_WAIT)
}

/// Waits until the client of this port has this much of an answer and has not read it yet.
///
/// # Errors
/// When it has not in time.
pub fn wait_for_unread_answer(port: u16, bytes: u32) -> Result<()> {
    // The state as well: while a connection is being made, the numbers make no sense yet.
    wait_for_sockets(1, |socket| {
        let established = socket.state == Socket::ESTABLISHED && socket.peer_port == port;
        established && socket.unread >= bytes
    })
}

/// The TCP sockets of the calling thread's namespace.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn sockets() -> io::Result<Vec<Socket>> {
    let mut sockets = vec![];
    for table in ["tcp", "tcp6"] {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{table}"))?;
        sockets.extend(table.lines().skip(1).filter_map(parse));
    }
    Ok(sockets)
}

fn parse(line: &str) -> Option<Socket> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let port = |addr: &str| u16::from_str_radix(addr.rsplit(':').next()?, 16).ok();
    let (_, unread) = words.get(4)?.split_once(':')?;
    Some(Socket {
        local_port: port(words.get(1)?)?,
        peer_port: port(words.get(2)?)?,
        state: u8::from_str_radix(words.get(3)?, 16).ok()?,
        unread: u32::from_str_radix(unread, 16).ok()?,
        inode: words.get(9)?.parse().ok()?,
    })
}
