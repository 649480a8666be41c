//! The two ends of a connection, and the one place that turns addresses into text.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One socket in one life: the kernel reuses the address of a `struct sock`, never with the same
/// birth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketId {
    /// Address of the `struct sock`.
    pub sk: u64,
    /// When this life was first seen, ns on the monotonic clock.
    pub born: u64,
}

/// The two ends of a connection in one network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// This end; port 0 when it is not bound.
    pub local: SocketAddr,
    /// The other end; `None` on a listener or an unconnected socket.
    pub peer: Option<SocketAddr>,
    /// The socket is an IPv6 one; it may still talk IPv4 through mapped addresses.
    pub ipv6_socket: bool,
    /// Network namespace: the inode number of `/proc/PID/ns/net`.
    pub netns: u32,
}

impl Default for Flow {
    fn default() -> Self {
        let unspecified = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        Self {
            local: unspecified,
            peer: None,
            ipv6_socket: false,
            netns: 0,
        }
    }
}

impl Flow {
    /// The network protocol the packets use: a v4-mapped IPv6 socket talks IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.peer.unwrap_or(self.local).is_ipv4()
    }
}

impl fmt::Display for Flow {
    /// `local > peer`, or the local end alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            Some(peer) => write!(f, "{} > {}", self.local, peer),
            None => write!(f, "{}", self.local),
        }
    }
}

/// An address from its 16 bytes: v4-mapped becomes IPv4, and all zero is the unspecified address of
/// the socket's own family.
#[must_use]
pub fn address(bytes: [u8; 16], ipv6_socket: bool) -> IpAddr {
    let address = Ipv6Addr::from(bytes);
    match address.to_ipv4_mapped() {
        Some(v4) => IpAddr::V4(v4),
        None if address.is_unspecified() && !ipv6_socket => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        None => IpAddr::V6(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_read_as_ipv4() {
        let mapped = Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().octets();
        assert_eq!(address(mapped, true).to_string(), "192.0.2.7");
        assert_eq!(address([0; 16], false).to_string(), "0.0.0.0");
        assert_eq!(address([0; 16], true).to_string(), "::");
    }
}
