//! Which sockets the kernel half reports: switches fixed at load, values in maps.

use crate::event::wire;

wire! {
    /// Load-time switches. Zero means off, so that the verifier removes what nobody asked for.
    pub struct Config {
        /// Kinds to hand over, one bit each (`1 << kind`).
        pub kinds: u32,
        /// Match `PIDS`.
        pub pid: u8,
        /// Add the children of matching processes to `PIDS`.
        pub children: u8,
        /// Match `CANDIDATES` too, and add processes that come under a name in `NAMES` to them.
        pub follow: u8,
        /// Match `COMMS`.
        pub comm: u8,
        /// Match `UIDS`.
        pub uid: u8,
        /// Match `CGROUPS`.
        pub cgroup: u8,
        /// Match `NETNS`.
        pub netns: u8,
        /// Match `PORTS` for the local port.
        pub local_port: u8,
        /// Match `PORTS` for the peer's port.
        pub peer_port: u8,
        /// Match `PORTS` for either port.
        pub port: u8,
        /// Match `NETWORKS` for either address.
        pub addr: u8,
        /// Match `NETWORKS` for the peer's address.
        pub peer: u8,
        /// 4 or 6: only that address family.
        pub family: u8,
        /// Write the last user of a socket on every call.
        pub last_user: u8,
        /// Hand over every entry into CLOSE_WAIT at once.
        pub close_wait_at_once: u8,
        /// Diagnostics of the kernel half itself go to aya-log.
        pub verbose: u8,
        /// Hand over the stack of who acts.
        pub stack: u8,
        /// Zero.
        pub pad: [u8; 3],
        /// Length of a jiffy, ns.
        pub ns_per_jiffy: u32,
    } size 28
}

wire! {
    /// Key of `PORTS`.
    pub struct PortKey {
        /// See [`role`].
        pub role: u16,
        /// Port, host byte order.
        pub port: u16,
    } size 4
}

wire! {
    /// Data of a `NETWORKS` key: the prefix length counts 16 bits for the first two.
    pub struct NetworkKey {
        /// 4 or 6: a v4-mapped address lies in no IPv6 network.
        pub family: u8,
        /// See [`role`].
        pub role: u8,
        /// Address, v4-mapped.
        pub addr: [u8; 16],
    } size 18
}

/// Values of `PIDS`.
pub mod pid {
    /// The process of this number is traced.
    pub const TRACED: u8 = 1;
    /// The next process that gets this number will be.
    pub const AWAITED: u8 = 2;
}

/// Which end a port or network filter is about.
pub mod role {
    /// Either end.
    pub const ANY: u16 = 0;
    /// This end.
    pub const LOCAL: u16 = 1;
    /// The other end.
    pub const PEER: u16 = 2;
}

impl Config {
    /// Nothing asked for.
    pub const OFF: Self = Self {
        kinds: 0,
        pid: 0,
        children: 0,
        follow: 0,
        comm: 0,
        uid: 0,
        cgroup: 0,
        netns: 0,
        local_port: 0,
        peer_port: 0,
        port: 0,
        addr: 0,
        peer: 0,
        family: 0,
        last_user: 0,
        close_wait_at_once: 0,
        verbose: 0,
        stack: 0,
        pad: [0; 3],
        ns_per_jiffy: 0,
    };
}
