//! Whose socket it is: learned where a task acts, remembered by the socket's address.
//!
//! Every life of a `struct sock` begins at one of three changes of state and ends at
//! `tcp_destroy_sock`. The first overwrites the entry and the last marks it, so an address used
//! again never inherits an owner.
//!
//! A function that needs room is not inlined: the 512 bytes of stack are for one chain of calls.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
};
use tcptrace_common::event::{FlowKey, Sock, Task, Tuple, confidence, gate, side, stat};

use crate::{
    filter,
    maps::{DESTROYED, FLOWS, RING_OF_DEAD, SOCKS, STATS, count, open_gate},
    sock::{CLOSE, LISTEN, SYN_RECV, SYN_SENT, Socket},
    task::{self, Call, PF_EXITING, PF_KTHREAD},
    words,
};

/// [`Sock::born`] of a socket older than the tracer.
pub(crate) const OLDER: u64 = 1;

/// What is remembered of a socket, and still holds.
#[inline(always)]
pub(crate) fn of(socket: Socket) -> Option<&'static mut Sock> {
    last_of(socket).filter(|known| known.destroyed == 0)
}

/// What is remembered of a socket that may have just been destroyed.
#[inline(always)]
pub(crate) fn last_of(socket: Socket) -> Option<&'static mut Sock> {
    // SAFETY: the map's elements are preallocated, so the pointer stays readable; concurrent
    // writers of one socket's entry are excluded by the socket's own lock.
    SOCKS
        .get_ptr_mut(socket.0)
        .map(|known| unsafe { &mut *known })
}

/// A socket's life begins with this change of state. It has no owner yet; `None`: there is no room to
/// remember it.
#[inline(never)]
pub(crate) fn birth(socket: Socket, old: u8, new: u8, now: u64) -> Option<&'static mut Sock> {
    // The address of one that was destroyed just now is soon used again. To take its entry over costs a
    // third of removing it and inserting another; but where another CPU may remove it at this moment, it
    // might be another socket's before it is filled in.
    let known = if let Some(known) = last_of(socket)
        && (known.destroyed == 0 || known.grave == this_cpu())
    {
        if known.destroyed == 0 {
            // The end of the life before, or the same socket's last use.
            expect(known, CLOSE);
        }
        words::copy(&UNBORN, known);
        known
    } else if let Ok(known) = create(socket, BPF_ANY) {
        known
    } else {
        count(&STATS, stat::SOCKETS_FULL);
        return None;
    };
    known.born = now;
    known.state_since = now;
    known.previous = old;
    known.state = new;
    known.side = match new {
        SYN_SENT => side::CLIENT,
        SYN_RECV => side::SERVER,
        _ => side::UNKNOWN,
    };
    Some(known)
}

#[inline(always)]
fn this_cpu() -> u32 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_get_smp_processor_id() }
}

/// A new entry, or -errno. It is filled in where it is: a copy would take a third of the stack.
#[inline(always)]
fn create(socket: Socket, flags: u32) -> Result<&'static mut Sock, i32> {
    const E2BIG: i32 = -7;
    #[expect(
        clippy::needless_borrows_for_generic_args,
        reason = "a copy would take its size of the stack"
    )]
    SOCKS.insert(socket.0, &UNBORN, u64::from(flags))?;
    last_of(socket).ok_or(E2BIG)
}

/// Remembers a socket older than the tracer, unless a hook already knows it. Says whether it did.
#[inline(never)]
pub(crate) fn seed(socket: Socket, owner: &Task, fd: i32) -> bool {
    match create(socket, BPF_NOEXIST) {
        Ok(known) => {
            known.owner = *owner;
            known.born = OLDER;
            known.fd = fd;
            known.state = socket.state();
            known.confidence = confidence::SEEDED;
            known.drops = socket.drops();
            return true;
        }
        // -E2BIG: no room.
        Err(-7) => count(&STATS, stat::SOCKETS_FULL),
        // A hook, or another holder, was first.
        Err(_) => {}
    }
    false
}

/// The running task uses the socket, of which this is known: from now on it is the owner. Returns what
/// is known now.
#[inline(always)]
pub(crate) fn learn(
    socket: Socket,
    known: Option<&'static mut Sock>,
    fd: i32,
) -> Option<&'static mut Sock> {
    if let Some(known) = known {
        let id = task::pid_tgid();
        if known.confidence == confidence::EXACT && known.owner.tgid == (id >> 32) as u32 {
            // The owner still: all there is to learn is its thread and, maybe, its descriptor.
            known.owner.tid = id as u32;
            known.fd = if fd >= 0 { fd } else { known.fd };
            return Some(known);
        }
        if known.confidence == confidence::INHERITED {
            // Somebody accepts without the call, by io_uring: look for first uses from now on.
            open_gate(gate::FIRST_USES);
        }
    }
    own(socket, fd)
}

/// The running task got the socket from `accept`: from now on it is the owner.
#[inline(always)]
pub(crate) fn accepted(socket: Socket, fd: i32) {
    if let Some(known) = own(socket, fd) {
        handed_over(known);
    }
}

/// As [`accepted`], where no call but the listener is known.
#[inline(always)]
pub(crate) fn accepted_from(listener: Socket, socket: Socket) {
    if let Some(known) = of(socket)
        && known.parent == 0
    {
        known.parent = listener.0;
    }
    accepted(socket, -1);
}

#[inline(never)]
fn own(socket: Socket, fd: i32) -> Option<&'static mut Sock> {
    let user = task::running();
    let known = of(socket);
    if user.flags & PF_KTHREAD != 0 {
        // A kernel thread finishes what a process began, e.g. the last `fput`.
        return known;
    }
    let known = if let Some(known) = known {
        known
    } else {
        // SAFETY: the helper takes nothing.
        let now = unsafe { bpf_ktime_get_ns() };
        birth(socket, 0, socket.state(), now)?
    };
    let owner = known.owner.tgid;
    if owner != user.tgid {
        if known.creator == 0 && known.confidence >= confidence::SEEDED {
            known.creator = owner;
        }
        // The descriptor was the other process's.
        known.fd = fd;
    } else if fd >= 0 {
        known.fd = fd;
    }
    known.owner = user;
    known.confidence = confidence::EXACT;
    publish(socket, known);
    Some(known)
}

/// `accept` just handed the connection over. Of several listeners at one address the call says
/// which it came from.
#[inline(always)]
fn handed_over(known: &mut Sock) {
    // SAFETY: the helper takes nothing.
    known.accepted = unsafe { bpf_ktime_get_ns() };
    if known.parent == 0
        && let Some(listener) = task::socket(Call::current().arg0() as u32)
    {
        known.parent = listener.0;
    }
    if let Some(listener) = of(Socket(known.parent)) {
        listener.accepted = known.accepted;
        listener.fin_seq = listener.fin_seq.wrapping_add(1);
    }
}

/// Whoever serves this connection has been seen to answer another one of the same listener.
#[inline(always)]
pub(crate) fn service_answers(known: &Sock) -> bool {
    known.answers != 0 || parent(known).is_some_and(|listener| listener.answers != 0)
}

/// This connection has sent data: whoever serves its listener answers. The listener is looked for
/// only until the first of its connections has said so.
#[inline(always)]
pub(crate) fn has_answered(known: &mut Sock) {
    known.answers = 1;
    if let Some(listener) = parent(known) {
        listener.answers = 1;
    }
}

/// The listener the connection came from, unless another socket is at its address by now.
#[inline(always)]
fn parent(known: &Sock) -> Option<&'static mut Sock> {
    of(Socket(known.parent)).filter(|it| it.state == LISTEN && it.born <= known.born)
}

/// A socket that lives is in this state. Where another one is remembered, the kernel let a change go by
/// unseen, and did not always say so. What the iterator found may have been changing at that moment: until
/// it is seen to change, only its end counts.
#[inline(always)]
pub(crate) fn expect(known: &mut Sock, state: u8) {
    if known.state == state {
        return;
    }
    if known.born != OLDER || known.state_since != 0 || state == CLOSE {
        count(&STATS, stat::CHANGES_UNSEEN);
    }
    known.state = state;
}

/// A call on the socket failed. Its state is written after the hook of the change has run: CLOSE was
/// seen, or never will be.
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/af_inet.c> (`inet_sk_set_state`)
#[inline(always)]
pub(crate) fn expect_close(socket: Socket, known: &mut Sock) {
    if socket.state() == CLOSE {
        expect(known, CLOSE);
    }
}

/// Its owner, just learned, is exiting.
#[inline(always)]
pub(crate) fn exits(known: Option<&mut Sock>, flags: u32) {
    if flags & PF_EXITING != 0
        && let Some(known) = known
    {
        known.owner.flags = flags;
    }
}

/// A process holds the socket, maybe beside its owner: a worker and the listener its master opened.
/// If the process is traced, so is the socket.
#[inline(always)]
pub(crate) fn hold(socket: Socket, holder: &Task) {
    if filter::is_traced(holder) {
        if let Some(known) = of(socket) {
            known.held = 1;
        }
        publish_flow(socket);
    }
}

/// The other end of a traced process's connection is traced too: makes this end known to it.
#[inline(always)]
pub(crate) fn publish(socket: Socket, known: &Sock) {
    if known.held != 0 || filter::is_traced(&known.owner) {
        publish_flow(socket);
    }
}

#[inline(never)]
fn publish_flow(socket: Socket) {
    let mut tuple = words::nowhere();
    socket.tuple(&mut tuple);
    if tuple.peer_port == 0 || tuple.local_port == 0 {
        return;
    }
    if FLOWS
        .insert(flow_key(&tuple), 0, u64::from(BPF_ANY))
        .is_err()
    {
        count(&STATS, stat::FLOWS_FULL);
    }
}

/// A socket that was destroyed.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Grave {
    sk: u64,
    /// See [`Sock::destroyed`].
    destroyed: u64,
}

/// The socket is destroyed. What is known of it stays until this CPU has destroyed
/// [`RING_OF_DEAD`] more: the RST for data that came after the close goes out after the end, and a
/// socket born at its address meanwhile on this CPU takes it over.
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_input.c> (`tcp_rcv_state_process`)
#[inline(never)]
pub(crate) fn death(socket: Socket, known: Option<&mut Sock>) {
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    if filter::has_owner_filter()
        && let Some(flow) = flow_of(socket)
    {
        // SAFETY: the element stays readable, see `last_of`.
        unsafe { *flow = now };
    }
    let Some(known) = known else { return };
    known.grave = this_cpu();
    known.destroyed = now;
    let Some(position) = DESTROYED.get_ptr_mut(RING_OF_DEAD) else {
        return;
    };
    // SAFETY: this CPU's own element.
    let position = unsafe { &mut (*position).sk };
    *position = (*position + 1) % u64::from(RING_OF_DEAD);
    let Some(grave) = DESTROYED.get_ptr_mut(*position as u32) else {
        return;
    };
    let new = Grave {
        sk: socket.0,
        destroyed: now,
    };
    // SAFETY: this CPU's own element.
    let oldest = unsafe { core::mem::replace(&mut *grave, new) };
    // A later life at the address has, or will have, a grave of its own. One that begins just now may
    // lose its entry: its owner is unknown then, until it is used.
    if oldest.sk != 0
        && last_of(Socket(oldest.sk)).is_some_and(|known| known.destroyed == oldest.destroyed)
    {
        // Failing means that somebody else removed it.
        let _ = SOCKS.remove(oldest.sk);
    }
}

/// Nothing known of a socket.
static UNBORN: Sock = Sock {
    owner: Task {
        cgroup: 0,
        tgid: 0,
        tid: 0,
        uid: 0,
        flags: 0,
        comm: [0; 16],
    },
    born: 0,
    state_since: 0,
    destroyed: 0,
    cause: 0,
    parent: 0,
    accepted: 0,
    shut: 0,
    fin: 0,
    fin_seq: 0,
    fin_waited: u32::MAX,
    fin_idle: 0,
    creator: 0,
    fd: -1,
    previous: 0,
    state: 0,
    confidence: confidence::UNKNOWN,
    full: 0,
    eof_read: 0,
    held: 0,
    side: side::UNKNOWN,
    answers: 0,
    drops: 0,
    backlog: 0,
    grave: 0,
};

/// The connection as its owner sees it.
#[inline(always)]
pub(crate) fn flow_key(tuple: &Tuple) -> &FlowKey {
    const {
        assert!(offset_of!(Tuple, netns) == size_of::<FlowKey>());
        assert!(offset_of!(Tuple, local_port) == offset_of!(FlowKey, local_port));
    }
    // SAFETY: a tuple begins with the members of the key, in the same order.
    unsafe { &*(&raw const *tuple).cast() }
}

#[inline(never)]
fn flow_of(socket: Socket) -> Option<*mut u64> {
    let mut tuple = words::nowhere();
    socket.tuple(&mut tuple);
    FLOWS.get_ptr_mut(flow_key(&tuple))
}
