//! Which sockets are reported: decided before a record is reserved.

use aya_ebpf::maps::lpm_trie::Key;
use tcptrace_common::{
    event::{FlowKey, Sock, Task, Tuple},
    filter::{NetworkKey, PortKey, role},
};

use crate::{
    kernel::config,
    maps::{CANDIDATES, CGROUPS, COMMS, FLOWS, NETNS, NETWORKS, PIDS, PORTS, UIDS},
    sock::Socket,
    words,
};

/// A socket with these ends, of which this is remembered, is asked for: by itself, or because its
/// other end belongs to a traced process.
#[inline(always)]
pub(crate) fn socket(tuple: &Tuple, family: u8, known: Option<&Sock>) -> bool {
    let traced = known.is_some_and(|known| known.held != 0 || owner_matches(&known.owner));
    decide(tuple, family, traced)
}

/// The filters that ask about the connection leave it out, whoever owns it: nothing of it will be told,
/// and nothing need be learned for it.
#[inline(always)]
pub(crate) fn leaves_out(socket: Socket) -> bool {
    has_connection_filter() && !matches(socket)
}

#[inline(never)]
fn matches(socket: Socket) -> bool {
    let mut tuple = words::nowhere();
    socket.tuple(&mut tuple);
    tuple_matches(&tuple, socket.family())
}

/// A socket with these ends, used by `user` now.
#[inline(always)]
pub(crate) fn user(tuple: &Tuple, family: u8, user: &Task) -> bool {
    decide(tuple, family, owner_matches(user))
}

#[inline(never)]
fn decide(tuple: &Tuple, family: u8, traced: bool) -> bool {
    tuple_matches(tuple, family)
        && (!has_owner_filter() || traced || FLOWS.get_ptr(other_end(tuple)).is_some())
}

/// The connection as its other end sees it.
#[inline(always)]
pub(crate) fn other_end(tuple: &Tuple) -> FlowKey {
    FlowKey {
        local: tuple.peer,
        peer: tuple.local,
        local_port: tuple.peer_port,
        peer_port: tuple.local_port,
    }
}

/// A call without a socket, by `owner` in this network namespace.
#[inline(always)]
pub(crate) fn task(owner: &Task, netns: u32) -> bool {
    // What is not a socket has no port and no address to match.
    !asks_for_ends()
        && (config!(netns) == 0 || NETNS.get_ptr(netns).is_some())
        && (!has_owner_filter() || owner_matches(owner))
}

/// Some filter asks about the connection.
#[inline(always)]
fn has_connection_filter() -> bool {
    asks_for_ends() || config!(netns) != 0
}

/// Some filter asks for what only a socket has.
#[inline(always)]
fn asks_for_ends() -> bool {
    config!(local_port)
        | config!(peer_port)
        | config!(port)
        | config!(addr)
        | config!(peer)
        | config!(family)
        != 0
}

/// Some filter asks who owns the socket.
#[inline(always)]
pub(crate) fn has_owner_filter() -> bool {
    config!(pid) | config!(comm) | config!(uid) | config!(cgroup) != 0
}

/// The filters that ask who owns the socket match, as far as this half can say: of a candidate the agent
/// will.
#[inline(always)]
fn owner_matches(owner: &Task) -> bool {
    is_asked_for(owner, config!(follow) != 0)
}

/// The filters that ask who owns the socket match: also the other ends of its connections are traced.
#[inline(always)]
pub(crate) fn is_traced(owner: &Task) -> bool {
    is_asked_for(owner, false)
}

#[inline(always)]
fn is_asked_for(owner: &Task, as_candidate: bool) -> bool {
    if owner.tgid == 0 || !has_owner_filter() {
        return false;
    }
    (config!(pid) == 0
        || PIDS.get_ptr(owner.tgid).is_some()
        || as_candidate && CANDIDATES.get_ptr(owner.tgid).is_some())
        && (config!(comm) == 0 || COMMS.get_ptr(owner.comm).is_some())
        && (config!(uid) == 0 || UIDS.get_ptr(owner.uid).is_some())
        && (config!(cgroup) == 0 || CGROUPS.get_ptr(owner.cgroup).is_some())
}

/// The filters that ask about the connection match.
#[inline(always)]
pub(crate) fn tuple_matches(tuple: &Tuple, family: u8) -> bool {
    (config!(family) == 0 || config!(family) == protocol(tuple, family))
        && (config!(netns) == 0 || NETNS.get_ptr(tuple.netns).is_some())
        && (config!(local_port) == 0 || port(role::LOCAL, tuple.local_port))
        && (config!(peer_port) == 0 || port(role::PEER, tuple.peer_port))
        && (config!(port) == 0
            || port(role::ANY, tuple.local_port)
            || port(role::ANY, tuple.peer_port))
        && (config!(peer) == 0 || network(role::PEER, tuple.peer))
        && (config!(addr) == 0 || network(role::ANY, tuple.local) || network(role::ANY, tuple.peer))
}

/// 4 or 6: what its packets are.
#[inline(always)]
fn protocol(tuple: &Tuple, family: u8) -> u8 {
    const AF_INET: u8 = 2;
    if family == AF_INET || is_mapped(&tuple.peer) || is_mapped(&tuple.local) {
        4
    } else {
        6
    }
}

#[inline(always)]
fn is_mapped(address: &[u8; 16]) -> bool {
    address[10] == 0xff && address[11] == 0xff && address[0] == 0
}

#[inline(always)]
fn port(role: u16, port: u16) -> bool {
    PORTS.get_ptr(PortKey { role, port }).is_some()
}

#[inline(always)]
fn network(role: u16, addr: [u8; 16]) -> bool {
    let family = if is_mapped(&addr) { 4 } else { 6 };
    let data = NetworkKey {
        family,
        role: role as u8,
        addr,
    };
    NETWORKS.get(Key::new(16 + 128, data)).is_some()
}
