//! Which connection a descriptor named last, for the calls that still use it. Opt-in.
//!
//! It is written down when the connection is shut down or closed under that descriptor. A file, pipe
//! or other socket that had the number since, and was closed too, is not seen.

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_ktime_get_ns};
use tcptrace_common::event::{Event, Tuple, kind};

use crate::{
    emit::is_wanted,
    kernel::layout,
    maps::CLOSED_FDS,
    owner,
    sock::{CLOSE, Socket},
    task::{self, Call},
    words,
};

/// A descriptor of a process.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    tgid: u32,
    fd: u32,
}

/// The connection it named.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Connection {
    /// Its ends.
    pub(crate) tuple: Tuple,
    /// See [`Event::sk`].
    sk: u64,
    /// See [`Event::born`].
    born: u64,
    /// When it was shut down or closed, ns.
    shut: u64,
    /// See [`Event::family`].
    pub(crate) family: u8,
    /// Zero.
    pad: [u8; 7],
}

/// The running task shuts down or closes the socket under this descriptor; -1: under none.
#[inline(always)]
pub(crate) fn closes(socket: Socket, fd: i32) {
    if is_wanted(kind::FD_INVALID) && fd >= 0 {
        remember(socket, fd as u32);
    }
}

/// The socket is destroyed: it may be that the running task closes it, when its connection ended
/// before.
#[inline(always)]
pub(crate) fn destroyed(socket: Socket) {
    if !is_wanted(kind::FD_INVALID) || task::acting_on(socket, None).is_none() {
        return;
    }
    let call = Call::current();
    if call.number() as u32 == layout!(nr_close) {
        remember(socket, call.arg0() as u32);
    }
}

#[inline(never)]
fn remember(socket: Socket, fd: u32) {
    let Some(known) = owner::of(socket) else {
        return;
    };
    let mut connection = Connection {
        tuple: words::nowhere(),
        sk: socket.0,
        born: known.born,
        // SAFETY: the helper takes nothing.
        shut: unsafe { bpf_ktime_get_ns() },
        family: socket.family(),
        pad: [0; 7],
    };
    socket.tuple(&mut connection.tuple);
    // The table is an LRU: there is always room.
    let _ = CLOSED_FDS.insert(descriptor(fd), connection, u64::from(BPF_ANY));
}

/// The connection that this descriptor of the running task named last.
#[inline(always)]
pub(crate) fn last(fd: u32) -> Option<&'static Connection> {
    // SAFETY: an LRU's element stays readable. One that is reused meanwhile is the last connection
    // of another descriptor, among thousands.
    CLOSED_FDS.get_ptr(descriptor(fd)).map(|it| unsafe { &*it })
}

#[inline(always)]
fn descriptor(fd: u32) -> Descriptor {
    Descriptor {
        tgid: (task::pid_tgid() >> 32) as u32,
        fd,
    }
}

impl Connection {
    /// Records the connection as it is by now: closed.
    #[inline(always)]
    pub(crate) fn record(&self, event: &mut Event) {
        event.tuple = self.tuple;
        event.sk = self.sk;
        event.born = self.born;
        event.shut = self.shut;
        event.family = self.family;
        event.state = CLOSE;
    }
}
