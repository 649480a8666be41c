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
            Some(peer) => write!(f, "{} > {}", End(self.local), End(peer)),
            None => End(self.local).fmt(f),
        }
    }
}

/// One end of a connection as text: `192.0.2.1:80`, `[2001:db8::1]:80`.
#[derive(Clone, Copy, Debug)]
pub struct End(pub SocketAddr);

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.ip() {
            IpAddr::V4(_) => write!(f, "{}:{}", Address(self.0.ip()), self.0.port()),
            IpAddr::V6(_) => write!(f, "[{}]:{}", Address(self.0.ip()), self.0.port()),
        }
    }
}

/// An address as text. IPv4 without the library's formatting: a record holds four of them, and they
/// would be a tenth of its time.
#[derive(Clone, Copy, Debug)]
pub struct Address(pub IpAddr);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = match self.0 {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => return address.fmt(f),
        };
        let mut text = [b'.'; 15];
        let mut len = 0;
        for (nth, octet) in address.octets().into_iter().enumerate() {
            len += usize::from(nth > 0);
            for (least, place) in [(100, 100), (10, 10), (0, 1)] {
                if octet >= least {
                    text[len] = b'0' + octet / place % 10;
                    len += 1;
                }
            }
        }
        f.write_str(str::from_utf8(&text[..len]).unwrap_or_default())
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
    fn addresses_read_as_the_library_writes_them() {
        for octet in 0..=255 {
            let address = IpAddr::from([octet, 0, 255, octet / 2]);
            assert_eq!(Address(address).to_string(), address.to_string());
            let end = SocketAddr::new(address, u16::from(octet));
            assert_eq!(End(end).to_string(), end.to_string());
        }
        let end: SocketAddr = "[2001:db8::1]:80".parse().expect("an address");
        assert_eq!(End(end).to_string(), end.to_string());
    }

    #[test]
    fn mapped_addresses_read_as_ipv4() {
        let mapped = Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().octets();
        assert_eq!(address(mapped, true).to_string(), "192.0.2.7");
        assert_eq!(address([0; 16], false).to_string(), "0.0.0.0");
        assert_eq!(address([0; 16], true).to_string(), "::");
    }
}
