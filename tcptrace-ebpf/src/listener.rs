//! Listeners by address, and which of them are near the limit of their accept queue.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use tcptrace_common::event::{ListenerKey, Sock, Tuple, gate, stat};

use crate::{
    maps::{LISTENERS, STATS, count, open_gate},
    owner,
    sock::{LISTEN, Socket, map},
    words,
};

/// Listeners that can share one address; more are not told apart.
const SLOTS: u8 = 32;
/// Slots looked at for the parent of a child. Of a larger group it could not be told anyway; that
/// there are several at all is what leaves a hole in front of a lone listener.
const PARENT_SLOTS: u8 = 4;
/// Listeners looked at for the one that dropped a SYN, at all addresses it may have, and the ends of their
/// lists.
const STEPS: u8 = SLOTS + 8;
/// How near is near: CPUs that may each add a connection between the look and the next drop.
const MARGIN: u32 = 64;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A socket begins to listen.
#[inline(never)]
pub(crate) fn add(listener: Socket) {
    let mut key = key_of(listener);
    for slot in 0..SLOTS {
        key.slot = slot;
        let flags = match get(&key) {
            None => BPF_NOEXIST,
            // A slot whose listener is gone, or this listener's own: the element exists, so there is room.
            Some(&there) if there == 0 || there == listener.0 => BPF_ANY,
            Some(_) => continue,
        };
        // Failing means that another CPU was faster.
        if LISTENERS.insert(key, listener.0, u64::from(flags)).is_ok() {
            return;
        }
    }
    count(&STATS, stat::LISTENERS_FULL);
}

/// The program asked for this backlog; the kernel takes what `somaxconn` allows of it.
/// <https://github.com/torvalds/linux/blob/v6.18/net/socket.c> (`__sys_listen_socket`)
#[inline(always)]
pub(crate) fn asked(listener: Socket, backlog: u32) {
    if let Some(known) = owner::of(listener) {
        known.backlog = backlog;
    }
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
pub(crate) fn watch(listener: Socket, known: Option<&mut Sock>) {
    let full = is_nearly_full(listener);
    if let Some(known) = known {
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

/// The listener a child was born to, unless several share the address: then it cannot be told
/// before somebody accepts the child.
#[inline(never)]
pub(crate) fn of_child(child: Socket) -> Option<Socket> {
    let mut key = key_of(child);
    let mut found = only(&mut key);
    if found == 0 {
        map(0, &mut key.addr);
        found = only(&mut key);
    }
    (found != 0 && found != SEVERAL).then_some(Socket(found))
}

/// The listener that just dropped a SYN for this local address.
///
/// A lone listener did when its queue is full. Of several the SYN may have gone to one that is not
/// full, so one of them is charged only with a drop of its own that nobody was charged with yet.
#[inline(never)]
pub(crate) fn dropper(tuple: &Tuple, family: u8) -> Option<Socket> {
    let family = words::forget(family.into()) as u8;
    let mut key = key(tuple, family);
    // Zeroes the verifier does not know, and no count and no flag: it would walk the rest once for each
    // of their values.
    let mut found = u64::from(words::zero());
    let mut others = found;
    for _ in 0..STEPS {
        if let Some(&there) = get(&key) {
            key.slot += 1;
            let listener = Socket(there);
            // An empty slot is in no state.
            if listener.state() != LISTEN {
                continue;
            }
            if has_dropped(listener) {
                return Some(listener);
            }
            others |= found;
            found = there;
            continue;
        }
        if others == 0 && is_full(Socket(found)) {
            return Some(Socket(found));
        }
        if !next_address(&mut key, tuple) {
            break;
        }
        others = u64::from(words::zero());
        found = others;
    }
    None
}

/// Where else the listener may be, if at this address it is not: at any address, and an IPv6 listener
/// takes IPv4 too.
#[inline(never)]
fn next_address(key: &mut ListenerKey, tuple: &Tuple) -> bool {
    key.slot = 0;
    if u128::from_ne_bytes(key.addr) != 0 {
        map(0, &mut key.addr);
    } else if key.family == AF_INET {
        key.family = AF_INET6;
        key.addr = tuple.local;
    } else {
        return false;
    }
    true
}

/// [`only`] found more than one.
const SEVERAL: u64 = u64::MAX;

/// Address of the one listener at this key; 0: none.
#[inline(never)]
fn only(key: &mut ListenerKey) -> u64 {
    let mut found = 0;
    for slot in 0..PARENT_SLOTS {
        key.slot = slot;
        let Some(&there) = get(key) else { return found };
        if there == 0 {
            continue;
        }
        if found != 0 {
            for listener in [found, there].map(Socket) {
                watch(listener, owner::of(listener));
            }
            // Those behind are not looked at one by one: their queues are watched from now on.
            open_gate(gate::NEARLY_FULL);
            return SEVERAL;
        }
        found = there;
    }
    found
}

/// Takes one of the drops it was not charged with yet. There are none while it is not full: what it
/// dropped then was something else.
#[inline(never)]
fn has_dropped(listener: Socket) -> bool {
    let drops = listener.drops();
    let Some(known) = owner::of(listener) else {
        return false;
    };
    if !is_full(listener) {
        known.drops = drops;
        return false;
    }
    let dropped = known.drops != drops;
    known.drops = known.drops.wrapping_add(u32::from(dropped));
    dropped
}

/// The listener dropped something that was no SYN: nobody is to be charged with it later.
#[inline(always)]
pub(crate) fn charge(listener: Socket) {
    let drops = listener.drops();
    if let Some(known) = owner::of(listener) {
        known.drops = drops;
    }
}

/// Its accept queue takes no more: it holds one more than its limit.
/// <https://github.com/torvalds/linux/blob/v6.18/include/net/sock.h> (`sk_acceptq_is_full`)
#[inline(always)]
pub(crate) fn is_full(listener: Socket) -> bool {
    let (len, max) = listener.accept_queue();
    len > max
}

#[inline(always)]
fn get(key: &ListenerKey) -> Option<&'static u64> {
    // SAFETY: the map's elements are preallocated, so the pointer stays readable.
    LISTENERS.get_ptr(key).map(|there| unsafe { &*there })
}

#[inline(always)]
fn key_of(listener: Socket) -> ListenerKey {
    let mut tuple = words::nowhere();
    listener.tuple(&mut tuple);
    key(&tuple, listener.family())
}

#[inline(always)]
fn key(tuple: &Tuple, family: u8) -> ListenerKey {
    let Tuple {
        local: addr,
        netns,
        local_port: port,
        ..
    } = *tuple;
    ListenerKey {
        addr,
        netns,
        port,
        family,
        slot: 0,
    }
}
