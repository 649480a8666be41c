//! Listeners by address, and which of them are near the limit of their accept queue.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use tcptrace_common::event::{ListenerKey, Tuple, gate, stat};

use crate::{
    maps::{LISTENERS, STATS, count, open_gate},
    owner,
    sock::{LISTEN, Socket},
};

/// Listeners that can share one address; more are not told apart.
const SLOTS: u16 = 64;
/// How near is near: CPUs that may each add a connection between the look and the next drop.
const MARGIN: u32 = 64;
const AF_INET6: u8 = 10;

/// A socket begins to listen.
#[inline(never)]
pub(crate) fn add(listener: Socket) {
    let mut key = key_of(listener);
    for slot in 0..SLOTS {
        key.slot = slot;
        if LISTENERS.insert(key, listener.0, u64::from(BPF_NOEXIST)).is_ok() {
            return;
        }
        // A slot whose listener is gone, or this listener's own.
        if let Some(&there) = get(&key)
            && (there == 0 || there == listener.0)
        {
            // The element exists, so there is room.
            let _ = LISTENERS.insert(key, listener.0, u64::from(BPF_ANY));
            return;
        }
    }
    count(&STATS, stat::LISTENERS_FULL);
}

/// A listener closes. Its slot stays, empty, so that those behind it are still found.
#[inline(never)]
pub(crate) fn remove(listener: Socket) {
    let mut key = key_of(listener);
    for slot in 0..SLOTS {
        key.slot = slot;
        let Some(&there) = get(&key) else { break };
        if there == listener.0 {
            // The element exists, so there is room.
            let _ = LISTENERS.insert(key, 0, u64::from(BPF_ANY));
            break;
        }
    }
}

/// A connection is about to enter this listener's accept queue.
#[inline(always)]
pub(crate) fn watch(listener: Socket) {
    let full = is_nearly_full(listener);
    if let Some(known) = owner::of(listener) {
        known.full = u8::from(full);
    }
    if full {
        // Dropped SYNs are worth looking for.
        open_gate(gate::NEARLY_FULL);
    }
}

/// Its accept queue is near its limit.
#[inline(always)]
fn is_nearly_full(listener: Socket) -> bool {
    let (len, max) = listener.accept_queue();
    len + MARGIN >= max
}

/// What is looked for among the listeners of one address.
#[derive(Clone, Copy, PartialEq)]
#[repr(u8)]
pub(crate) enum Wanted {
    /// The one a child came from, known only when there is one candidate.
    Parent,
    /// The one that just dropped a SYN: its queue is full, and of several such the one whose count
    /// of drops has moved.
    Dropper,
}

/// The listener that serves this local address.
#[inline(always)]
pub(crate) fn find(tuple: &Tuple, family: u8, wanted: Wanted) -> Option<Socket> {
    let mut key =
        ListenerKey { addr: tuple.local, netns: tuple.netns, port: tuple.local_port, slot: 0 };
    let mut found = search(&mut key, family, wanted);
    if found == 0 {
        key.addr = [0; 16];
        found = search(&mut key, family, wanted);
    }
    (found != 0).then_some(Socket(found))
}

/// Address of the socket found; 0: none, or several of which one cannot be told.
#[inline(never)]
fn search(key: &mut ListenerKey, family: u8, wanted: Wanted) -> u64 {
    let mut found = 0;
    for slot in 0..SLOTS {
        key.slot = slot;
        let Some(&there) = get(key) else { break };
        let listener = Socket(there);
        if there == 0 || listener.state() != LISTEN {
            continue;
        }
        // An IPv6 listener takes IPv4 too, an IPv4 one never IPv6.
        if family == AF_INET6 && listener.family() != AF_INET6 {
            continue;
        }
        match wanted {
            Wanted::Parent => {
                watch(listener);
                found = if found == 0 { there } else { u64::MAX };
            }
            Wanted::Dropper => {
                let (len, max) = listener.accept_queue();
                if len <= max {
                    continue;
                }
                found = there;
                let drops = listener.drops();
                if let Some(known) = owner::of(listener)
                    && known.drops != drops
                {
                    known.drops = drops;
                    break;
                }
            }
        }
    }
    if found == u64::MAX { 0 } else { found }
}

#[inline(always)]
fn get(key: &ListenerKey) -> Option<&'static u64> {
    // SAFETY: the map's elements are preallocated, so the pointer stays readable.
    LISTENERS.get_ptr(key).map(|there| unsafe { &*there })
}

#[inline(always)]
fn key_of(listener: Socket) -> ListenerKey {
    let mut tuple = owner::NOWHERE;
    listener.tuple(&mut tuple);
    ListenerKey { addr: tuple.local, netns: tuple.netns, port: tuple.local_port, slot: 0 }
}
