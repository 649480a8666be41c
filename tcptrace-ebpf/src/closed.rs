//! Connections this host has closed: who did, for the RSTs that go out when the peer writes on. By
//! then the socket is gone, or is one in TIME_WAIT, which nobody owns.

use aya_ebpf::{bindings::BPF_ANY, helpers::bpf_ktime_get_ns};
use tcptrace_common::event::{Event, Task, Tuple, confidence, flag, kind};

use crate::{
    emit::is_wanted,
    filter,
    maps::CLOSED,
    owner::{self, NOWHERE},
    sock::Socket,
    task,
};

/// A connection that was closed from this end.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Closed {
    /// Who closed it.
    owner: Task,
    /// When, ns.
    shut: u64,
    /// See [`Event::fd`].
    fd: i32,
    /// See [`Event::exit_code`].
    exit_code: i32,
    /// [`flag::EXITING`] or nothing.
    flags: u32,
    /// See [`Event::side`].
    side: u8,
    /// Zero.
    pad: [u8; 3],
}

/// The running task closes the socket, of which it was just learned that it is the owner. What does
/// not pass the filter is not remembered: what is found later has passed.
#[inline(never)]
pub(crate) fn remember(socket: Socket) {
    let Some(known) = owner::last_of(socket) else {
        return;
    };
    let mut tuple = NOWHERE;
    socket.tuple(&mut tuple);
    if !is_wanted(kind::RESET_SENT) || !filter::socket(&tuple, socket.family(), Some(known)) {
        return;
    }
    let exit_code = task::exit_code();
    let closed = Closed {
        owner: known.owner,
        // SAFETY: the helper takes nothing.
        shut: unsafe { bpf_ktime_get_ns() },
        fd: known.fd,
        exit_code: exit_code.unwrap_or(0),
        flags: if exit_code.is_some() {
            flag::EXITING
        } else {
            0
        },
        side: known.side,
        pad: [0; 3],
    };
    // The table is an LRU: there is always room.
    let _ = CLOSED.insert(tuple, closed, u64::from(BPF_ANY));
}

/// What is remembered of the connection with these ends.
#[inline(always)]
pub(crate) fn find(tuple: &Tuple) -> Option<&'static Closed> {
    // SAFETY: an LRU's element stays readable. One that is reused meanwhile is another connection's,
    // closed since among 16,384.
    CLOSED.get_ptr(tuple).map(|closed| unsafe { &*closed })
}

impl Closed {
    /// Records who closed the connection the event is about.
    #[inline(always)]
    pub(crate) fn record(&self, event: &mut Event) {
        event.owner = self.owner;
        event.confidence = confidence::EXACT;
        event.creator = 0;
        event.fd = self.fd;
        event.shut = self.shut;
        event.side = self.side;
        self.record_exit(event);
    }

    /// Records how the process that closed it was exiting, if it was.
    #[inline(always)]
    pub(crate) fn record_exit(&self, event: &mut Event) {
        event.exit_code = self.exit_code;
        event.flags |= self.flags;
    }
}
