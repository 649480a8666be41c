//! Connections this host has closed: who did, for the RSTs that go out when the peer writes on. By
//! then the socket is gone, or is one in TIME_WAIT, which nobody owns.
//!
//! Every connection pays for this. So it is no hash table: a close takes the one place its ports
//! lead to, from whichever was there. And the ends are not read field by field: a copy of the
//! socket's beginning is kept, and read like a socket when somebody asks.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use tcptrace_common::event::{Event, Sock, Task, Tuple, flag};

use crate::{
    maps::{CLOSED, CLOSED_PLACES},
    sock::Socket,
    task::{self, PF_EXITING},
    words,
};

/// Words of `struct sock_common` that hold a socket's addresses and namespace, on every kernel.
/// <https://github.com/torvalds/linux/blob/v6.18/include/net/sock.h>
const BEGINNING: usize = 11;

/// A connection that was closed from this end.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Closed {
    /// The beginning of its socket then.
    beginning: [u64; BEGINNING],
    /// Whose it was.
    owner: Task,
    /// When, ns; 0: this place was never taken.
    shut: u64,
    /// See [`ports`].
    ports: u32,
    /// See [`Event::fd`].
    fd: i32,
    /// See [`Event::exit_code`].
    exit_code: i32,
    /// See [`Event::confidence`].
    confidence: u8,
    /// See [`Event::side`].
    side: u8,
    /// Zero.
    pad: [u8; 2],
}

/// The owner closes the socket now.
#[inline(always)]
pub(crate) fn remember(socket: Socket, known: &Sock, now: u64) {
    let ports = ports(socket.local_port(), socket.peer_port());
    let Some(closed) = CLOSED.get_ptr_mut(place(ports)) else {
        return;
    };
    // SAFETY: an array's element stays there. Of two CPUs that take the same place in the same
    // moment either may be lost.
    let closed = unsafe { &mut *closed };
    // SAFETY: the helper checks the address, and writes all of the field in any case.
    unsafe {
        bpf_probe_read_kernel(
            closed.beginning.as_mut_ptr().cast(),
            size_of::<[u64; BEGINNING]>() as u32,
            socket.0 as *const _,
        )
    };
    closed.owner = known.owner;
    closed.shut = now;
    closed.ports = ports;
    closed.fd = known.fd;
    closed.exit_code = if known.owner.flags & PF_EXITING != 0 {
        task::exit_code()
    } else {
        0
    };
    closed.confidence = known.confidence;
    closed.side = known.side;
}

/// What is remembered of the connection with these ends.
#[inline(always)]
pub(crate) fn find(tuple: &Tuple) -> Option<&'static Closed> {
    let ports = ports(tuple.local_port, tuple.peer_port);
    let closed = CLOSED.get_ptr(place(ports))?;
    // SAFETY: an array's element stays there.
    let closed = unsafe { &*closed };
    if closed.shut == 0 || closed.ports != ports {
        return None;
    }
    let mut ends = words::nowhere();
    Socket(closed.beginning.as_ptr() as u64).tuple(&mut ends);
    let is_same = ends.netns == tuple.netns
        && bits(ends.local) == bits(tuple.local)
        && bits(ends.peer) == bits(tuple.peer);
    is_same.then_some(closed)
}

#[inline(always)]
fn ports(local: u16, peer: u16) -> u32 {
    u32::from(local) << 16 | u32::from(peer)
}

#[inline(always)]
fn place(ports: u32) -> u32 {
    // 2^32 over the golden ratio: neighbours land far apart.
    ports.wrapping_mul(0x9e37_79b1) >> (u32::BITS - CLOSED_PLACES.ilog2())
}

#[inline(always)]
fn bits(address: [u8; 16]) -> u128 {
    u128::from_ne_bytes(address)
}

impl Closed {
    /// Whose it was.
    #[inline(always)]
    pub(crate) fn owner(&self) -> &Task {
        &self.owner
    }

    /// Records who closed the connection the event is about.
    #[inline(always)]
    pub(crate) fn record(&self, event: &mut Event) {
        event.owner = self.owner;
        event.confidence = self.confidence;
        event.creator = 0;
        event.fd = self.fd;
        event.shut = self.shut;
        event.side = self.side;
        self.record_exit(event);
    }

    /// Records how the process that closed it was exiting, if it was.
    #[inline(always)]
    pub(crate) fn record_exit(&self, event: &mut Event) {
        if self.owner.flags & PF_EXITING != 0 {
            event.exit_code = self.exit_code;
            event.flags |= flag::EXITING;
        }
    }
}
