//! `inet_sock_set_state`: births, the listener table, CLOSE_WAIT, failed connects, timeouts.
//!
//! Emitted before the store: `skc_state` still holds the old state.
//! <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/af_inet.c> (`inet_sk_set_state`)

use aya_ebpf::{
    bindings::BPF_ANY, helpers::bpf_ktime_get_ns, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tcptrace_common::event::{CloseWait, confidence, flag, hook, kind, stat};

use crate::{
    emit::{emit, is_wanted, next_id},
    filter::{self, Verdict},
    kernel::config,
    listener::{self, Wanted},
    maps::{CLOSE_WAITS, CLOSING, STATS, count},
    owner,
    sock::{CLOSE, CLOSE_WAIT, ESTABLISHED, LISTEN, SYN_RECV, SYN_SENT, Socket},
    task::{self, Call, PF_KTHREAD},
};

const EPIPE: i32 = 32;
const EADDRNOTAVAIL: i32 = 99;
const ECONNABORTED: i32 = 103;
const ECONNRESET: i32 = 104;

#[raw_tracepoint]
fn inet_sock_set_state(ctx: RawTracePointContext) -> i32 {
    changed(Socket(ctx.arg(0)), ctx.arg::<u64>(1) as u8, ctx.arg::<u64>(2) as u8);
    0
}

#[inline(always)]
fn changed(socket: Socket, old: u8, new: u8) {
    // MPTCP and SCTP sockets come by here too.
    if !socket.is_tcp() {
        return;
    }
    // A lock that is held says that the task runs for the socket. A child is born locked by
    // nobody, in the network's interrupt.
    let by_task = socket.is_locked() && task::flags() & PF_KTHREAD == 0;
    match (old, new) {
        (CLOSE, SYN_SENT | LISTEN) => {
            begin(socket, new);
            if new == LISTEN {
                listener::add(socket);
            }
        }
        (LISTEN, SYN_RECV) => child(socket),
        // Only the program's own shutdown and close lead there.
        (_, 4 | 9) if by_task => owner::learn(socket, Call::current().descriptor_of(socket)),
        (LISTEN, CLOSE) => {
            listener::remove(socket);
            // Full when nobody but the children of this listener could miss it.
            let _ = CLOSING.insert(task::pid_tgid(), socket.local_port(), u64::from(BPF_ANY));
        }
        _ => {}
    }
    report(socket, old, new, by_task);
    if let Some(known) = owner::of(socket) {
        // SAFETY: the helper takes nothing.
        known.state_since = unsafe { bpf_ktime_get_ns() };
        known.previous = old;
        known.state = new;
        if new == ESTABLISHED {
            let owner = known.owner;
            owner::publish(socket, &owner);
        }
    }
}

/// A socket's life begins with `connect` or `listen`, in the caller's context.
#[inline(always)]
fn begin(socket: Socket, state: u8) {
    let mut caller = owner::NOBODY;
    task::describe(&mut caller);
    let call = Call::current();
    owner::birth(socket, state, &caller, confidence::EXACT, call.descriptor_of(socket));
}

/// A connection's life begins in the network's interrupt: until somebody uses it, it belongs to
/// whoever owns the listener.
#[inline(always)]
fn child(socket: Socket) {
    let mut tuple = owner::NOWHERE;
    socket.tuple(&mut tuple);
    let parent = listener::find(&tuple, socket.family(), Wanted::Parent);
    let (heir, sure) = match parent.and_then(owner::of) {
        Some(parent) => (parent.owner, confidence::INHERITED),
        None => (owner::NOBODY, confidence::UNKNOWN),
    };
    owner::birth(socket, SYN_RECV, &heir, sure, -1);
}

#[inline(always)]
fn report(socket: Socket, old: u8, new: u8, by_task: bool) {
    if old == CLOSE_WAIT {
        // Not there when it did not pass the filter.
        let _ = CLOSE_WAITS.remove(socket.0);
    }
    if is_wanted(kind::STATE) {
        let id = next_id(hook::SET_STATE);
        event(id, kind::STATE, socket, old, new, by_task, 0);
    }
    let error = socket.error();
    if new == CLOSE_WAIT && is_wanted(kind::CLOSE_WAIT) {
        close_wait(socket, old, new);
    } else if new == CLOSE && old == SYN_SENT && is_wanted(kind::CONNECT_FAILED) {
        // No port was left: the state is taken back before a SYN went out.
        // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c (tcp_v4_connect)
        let no_port = error == 0 && socket.local_port() == 0;
        let error = if no_port { EADDRNOTAVAIL } else { error };
        let id = next_id(hook::SET_STATE);
        event(id, kind::CONNECT_FAILED, socket, old, new, by_task, error);
    } else if new == CLOSE
        && old != SYN_SENT
        && old != LISTEN
        && old != CLOSE
        && !matches!(error, 0 | EPIPE | ECONNABORTED | ECONNRESET)
        && is_wanted(kind::TIMEOUT)
    {
        let id = next_id(hook::SET_STATE);
        event(id, kind::TIMEOUT, socket, old, new, by_task, error);
        if let Some(known) = owner::of(socket) {
            known.cause = id;
        }
    }
}

#[inline(always)]
fn close_wait(socket: Socket, old: u8, new: u8) {
    let id = next_id(hook::SET_STATE);
    if config!(close_wait_at_once) != 0 {
        event(id, kind::CLOSE_WAIT, socket, old, new, false, 0);
    }
    let mut entry = CloseWait {
        // SAFETY: the helper takes nothing.
        since: unsafe { bpf_ktime_get_ns() },
        id,
        tuple: owner::NOWHERE,
        family: socket.family(),
        older: 0,
        pad: [0; 6],
    };
    socket.tuple(&mut entry.tuple);
    let owner = owner::of(socket).map_or(owner::NOBODY, |known| known.owner);
    if filter::socket(&entry.tuple, entry.family, &owner) == Verdict::Drop {
        return;
    }
    count(&STATS, stat::CLOSE_WAITS);
    if CLOSE_WAITS.insert(socket.0, entry, u64::from(BPF_ANY)).is_err() {
        count(&STATS, stat::CLOSE_WAITS_FULL);
    }
}

#[inline(always)]
fn event(id: u64, kind: u8, socket: Socket, old: u8, new: u8, by_task: bool, error: i32) {
    let known = owner::of(socket);
    let owner = known.as_ref().map_or(owner::NOBODY, |known| known.owner);
    let mut tuple = owner::NOWHERE;
    socket.tuple(&mut tuple);
    let verdict = filter::socket(&tuple, socket.family(), &owner);
    if verdict == Verdict::Drop {
        return;
    }
    emit(id, kind, hook::SET_STATE, |event| {
        socket.record(event, known.as_deref());
        if by_task {
            task::record(event, socket);
        }
        event.state = old;
        event.other_state = new;
        if kind == kind::STATE {
            event.errno = if new == CLOSE { event.errno } else { 0 };
        } else {
            event.errno = error;
        }
        if verdict == Verdict::TakeForPeer {
            event.flags |= flag::PEER_MATCHED;
        }
    });
}
