//! Ports that ran out, and ports that somebody else holds.

use std::fs;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use super::netns::{self, Namespace};
use super::sockets::{self, ALL_STATES, TcpSocket};
use super::{holders, process};
use crate::event::{PortHolder, Ports, State};

/// How far the ephemeral ports of a network namespace are used, by connections to `peer` or to
/// anybody. `None` when the namespace may not be entered.
#[must_use]
pub fn ephemeral(namespace: &Namespace, peer: Option<SocketAddr>) -> Option<Ports> {
    let look = || {
        let range = local_range()?;
        let mut ports = Ports {
            first: *range.start(),
            last: *range.end(),
            time_wait: 0,
            in_use: 0,
        };
        let count = |socket| count(&mut ports, &socket, peer);
        sockets::dump(&ALL_STATES, count).ok()?;
        Some(ports)
    };
    netns::enter(namespace, look).ok()?
}

fn count(ports: &mut Ports, socket: &TcpSocket, peer: Option<SocketAddr>) {
    let range = ports.first..=ports.last;
    let to_peer = peer.is_none() || socket.flow.peer == peer;
    // A server's end of a connection shares the port of its listener.
    if !to_peer || !range.contains(&socket.flow.local.port()) {
        return;
    }
    if socket.state == State::TimeWait {
        ports.time_wait += 1;
    } else {
        ports.in_use += 1;
    }
}

/// `net.ipv4.ip_local_port_range` of the calling thread's namespace, for IPv6 too.
/// <https://docs.kernel.org/networking/ip-sysctl.html>
pub(super) fn local_range() -> Option<RangeInclusive<u16>> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
    Some(numbers.next()??..=numbers.next()??)
}

/// Who holds an address that somebody else wanted: a listener before a connection, and what is in
/// `TIME_WAIT` last. `None` when nobody was seen to, as when the holder is bound and does nothing:
/// the kernel does not list that one.
#[must_use]
pub fn holder(namespace: &Namespace, wanted: SocketAddr) -> Option<PortHolder> {
    let look = || {
        let mut best: Option<TcpSocket> = None;
        let dump = sockets::dump(&ALL_STATES, |socket| {
            let before = best.as_ref().map(|best| rank(best, wanted));
            let better = before.is_none_or(|before| rank(&socket, wanted) < before);
            if better && conflict(socket.flow.local, wanted) {
                best = Some(socket);
            }
        });
        dump.ok().and(best)
    };
    let socket = netns::enter(namespace, look).ok()??;
    let (holders, _) = match socket.inode {
        0 => Default::default(),
        inode => holders::find(inode),
    };
    let holder = holders.first();
    Some(PortHolder {
        address: socket.flow.local,
        state: socket.state,
        owner: holder.and_then(|holder| process::describe(holder.pid, None)),
    })
}

/// The likeliest first. Sockets of two families only conflict where the one of IPv6 is open for IPv4.
fn rank(socket: &TcpSocket, wanted: SocketAddr) -> (u8, bool) {
    let state = match socket.state {
        State::Listen => 0,
        State::TimeWait => 2,
        _ => 1,
    };
    (state, socket.flow.local.is_ipv6() != wanted.is_ipv6())
}

/// Two sockets cannot have both, unless they agreed to share.
fn conflict(one: SocketAddr, other: SocketAddr) -> bool {
    let anywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (anywhere || one.ip() == other.ip())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6, TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;

    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn6, sockopt};

    use super::*;
    use crate::host::descriptors::tests::socket as in_state;

    fn end(text: &str) -> SocketAddr {
        text.parse().expect("an address and a port")
    }

    fn own() -> Namespace {
        netns::of(std::process::id()).expect("our own")
    }

    #[test]
    fn only_ports_of_the_range_to_the_peer_count() {
        let peer = end("10.0.0.5:443");
        let mut ports = Ports {
            first: 40_000,
            last: 40_009,
            time_wait: 0,
            in_use: 0,
        };
        for (state, local, to) in [
            (State::TimeWait, "10.0.0.1:40000", "10.0.0.5:443"),
            (State::TimeWait, "10.0.0.1:40001", "10.0.0.5:443"),
            (State::TimeWait, "10.0.0.1:40002", "10.0.0.6:443"),
            (State::TimeWait, "10.0.0.1:39999", "10.0.0.5:443"),
            (State::Established, "10.0.0.1:40009", "10.0.0.5:443"),
            (State::Established, "10.0.0.1:40010", "10.0.0.5:443"),
        ] {
            count(&mut ports, &in_state(state, local, Some(to)), Some(peer));
        }
        assert_eq!((ports.time_wait, ports.in_use), (2, 1));
        let other = in_state(State::Established, "10.0.0.1:40003", Some("10.0.0.6:443"));
        count(&mut ports, &other, None);
        assert_eq!((ports.time_wait, ports.in_use), (2, 2));
    }

    #[test]
    fn a_wildcard_conflicts_with_every_address_of_its_port() {
        for (one, other, expected) in [
            ("0.0.0.0:80", "10.0.0.1:80", true),
            ("10.0.0.1:80", "[::]:80", true),
            ("10.0.0.1:80", "10.0.0.1:80", true),
            ("10.0.0.1:80", "10.0.0.2:80", false),
            ("0.0.0.0:80", "0.0.0.0:81", false),
        ] {
            assert_eq!(conflict(end(one), end(other)), expected, "{one} {other}");
            assert_eq!(conflict(end(other), end(one)), expected, "{other} {one}");
        }
    }

    #[test]
    fn our_own_connection_uses_one_port() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let client = TcpStream::connect(addr).expect("listening");
        let ports = ephemeral(&own(), Some(addr)).expect("our own namespace");
        let range = local_range().expect("/proc is mounted");
        assert_eq!((ports.first, ports.last), (*range.start(), *range.end()));
        let port = client.local_addr().expect("connected").port();
        assert_eq!(ports.in_use, u32::from(range.contains(&port)));
        assert_eq!(ports.time_wait, 0);
    }

    #[test]
    fn the_listener_goes_before_its_connections() {
        let _alone = crate::host::ALONE.lock();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let _client = TcpStream::connect(addr).expect("listening");
        let _server = listener.accept().expect("one waits");
        let holder = holder(&own(), addr).expect("we hold it");
        assert_eq!((holder.address, holder.state), (addr, State::Listen));
        let owner = holder.owner.map(|owner| owner.pid);
        assert_eq!(owner, Some(std::process::id()));
    }

    #[test]
    fn the_listener_of_the_same_family_goes_first() {
        let _alone = crate::host::ALONE.lock();
        let four = TcpListener::bind("0.0.0.0:0").expect("a free port");
        let port = four.local_addr().expect("bound").port();
        // For IPv6 only, as `std` does not make one.
        let (family, kind) = (AddressFamily::Inet6, SockType::Stream);
        let six = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        socket::setsockopt(&six, sockopt::Ipv6V6Only, &true).expect("not bound yet");
        let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
        socket::bind(six.as_raw_fd(), &SockaddrIn6::from(any)).expect("a free port");
        let backlog = socket::Backlog::new(8).expect("small");
        socket::listen(&six, backlog).expect("bound");
        for (wanted, expected) in [("[::1]", "[::]"), ("127.0.0.1", "0.0.0.0")] {
            let at = |ip: &str| end(&format!("{ip}:{port}"));
            let holder = holder(&own(), at(wanted)).expect("we hold both");
            assert_eq!(holder.address, at(expected), "{wanted}");
        }
    }

    #[test]
    fn nobody_holds_a_free_port() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let other = SocketAddr::from(([127, 0, 0, 9], addr.port()));
        assert_eq!(holder(&own(), other), None);
    }
}
