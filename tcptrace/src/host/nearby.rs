//! Who else on this host a connection is about: the listeners that could have been meant when it was
//! refused, and the process at its other end.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;

use super::netns::{self, Namespace};
use super::sockets::{self, TcpSocket};
use super::{holders, process};
use crate::event::{Nearby, Process, State};

/// Listeners told of.
const ROWS: usize = 16;

/// Other namespaces than the connection's are visited until this much time has passed.
pub const BUDGET: Duration = Duration::from_millis(200);

/// The listeners on a port, in every network namespace and on every address: those in the client's
/// namespace first. One of these that has the address meant listens since.
///
/// `None` when the address is of no namespace of this host that was looked into, and when there was
/// no time to look into all and none was found.
#[must_use]
pub fn listeners(client: u32, meant: SocketAddr, budget: Duration) -> Option<Vec<Nearby>> {
    let begun = Instant::now();
    let mut namespaces = netns::list().ok()?.list;
    namespaces.sort_by_key(|namespace| namespace.inode != client);
    let mut here = meant.ip().is_loopback() || meant.ip().is_unspecified();
    let mut found = Vec::new();
    let mut complete = true;
    for (nth, namespace) in namespaces.iter().enumerate() {
        if nth > 0 && begun.elapsed() >= budget {
            complete = false;
            break;
        }
        match look_into(namespace, meant) {
            Some((has_address, listeners)) => {
                here |= has_address;
                found.extend(listeners);
            }
            None => complete = false,
        }
    }
    if !here || found.is_empty() && !complete {
        return None;
    }
    let key = |it: &TcpSocket| (it.flow.netns != client, it.flow.netns, it.flow.local);
    found.sort_by_key(key);
    // One address may have several, with SO_REUSEPORT.
    found.dedup_by_key(|it| key(it));
    found.truncate(ROWS);
    Some(with_owners(&found))
}

/// The process that holds the other end of the connection `local` to `peer` of a namespace, when that
/// end is on this host and still held: what a program has closed is nobody's.
#[must_use]
pub fn other_end(
    namespace: &Namespace,
    (local, peer): (SocketAddr, SocketAddr),
    budget: Duration,
) -> Option<Process> {
    let begun = Instant::now();
    let look = |namespace: &Namespace| {
        let found = netns::enter(namespace, || sockets::connection(peer, local));
        found.ok().flatten()
    };
    let mut found = look(namespace);
    // A loopback address is another one in every namespace.
    if found.is_none() && !peer.ip().is_loopback() {
        let others = netns::list().ok()?.list.into_iter();
        found = others
            .filter(|other| other.inode != namespace.inode)
            .take_while(|_| begun.elapsed() < budget)
            .find_map(|other| look(&other));
    }
    let inode = found
        .map(|socket| socket.inode)
        .filter(|&inode| inode != 0)?;
    let (holders, _) = holders::find(inode);
    process::describe(holders.first()?.pid, None)
}

/// Whether a namespace has the address, and who listens there on the port.
fn look_into(namespace: &Namespace, meant: SocketAddr) -> Option<(bool, Vec<TcpSocket>)> {
    let look = || {
        let mut found = Vec::new();
        let dump = sockets::dump(&[State::Listen], |socket| {
            if socket.flow.local.port() == meant.port() {
                found.push(socket);
            }
        });
        dump.ok().map(|_| (has(meant.ip()), found))
    };
    netns::enter(namespace, look).ok()?
}

/// The calling thread's namespace has this address.
fn has(ip: IpAddr) -> bool {
    let Ok(addresses) = getifaddrs() else {
        return false;
    };
    let mut addresses = addresses.filter_map(|interface| interface.address);
    addresses.any(|address| match ip {
        IpAddr::V4(ip) => address.as_sockaddr_in().is_some_and(|it| it.ip() == ip),
        IpAddr::V6(ip) => address.as_sockaddr_in6().is_some_and(|it| it.ip() == ip),
    })
}

fn with_owners(listeners: &[TcpSocket]) -> Vec<Nearby> {
    if listeners.is_empty() {
        return Vec::new();
    }
    let inodes = listeners.iter().map(|listener| listener.inode);
    let (holders, _) = holders::find_all(inodes.filter(|&inode| inode != 0), |_, _| {});
    let listeners = listeners.iter().map(|listener| {
        let holder = holders.of(listener.inode).next();
        Nearby {
            address: listener.flow.local,
            netns: listener.flow.netns,
            owner: holder.and_then(|holder| process::describe(holder.pid, None)),
        }
    });
    listeners.collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_listener_on_another_address_is_found_with_its_owner() {
        let _alone = crate::host::ALONE.lock();
        let listener = TcpListener::bind("127.0.0.7:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let own = netns::current().expect("/proc is mounted");
        let meant = SocketAddr::from(([127, 0, 0, 1], addr.port()));
        let found = listeners(own, meant, BUDGET).expect("our own namespace");
        let first = found.first().expect("the listener");
        assert_eq!((first.address, first.netns), (addr, own));
        let owner = first.owner.as_ref().map(|owner| owner.pid);
        assert_eq!(owner, Some(std::process::id()));
    }

    #[test]
    fn the_other_end_is_found_until_it_is_closed() {
        let _alone = crate::host::ALONE.lock();
        let own = netns::of(std::process::id()).expect("our own");
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(any).expect("a free port");
            let addr = listener.local_addr().expect("bound");
            let client = TcpStream::connect(addr).expect("listening");
            let port = client.local_addr().expect("connected");
            let holder = |local, peer| other_end(&own, (local, peer), BUDGET).map(|it| it.pid);
            let us = Some(std::process::id());
            assert_eq!(holder(addr, port), us, "the client");
            assert_eq!(holder(port, addr), None, "nobody accepted it yet");
            let (server, _) = listener.accept().expect("one waits");
            assert_eq!(holder(port, addr), us, "the server");
            drop(client);
            assert_eq!(holder(addr, port), None, "closed");
            drop(server);
            assert_eq!(holder(port, addr), None, "only the listener is left");
        }
    }

    #[test]
    fn nothing_is_said_of_other_hosts_addresses() {
        let own = netns::current().expect("/proc is mounted");
        // Of a block kept for documentation: nobody has it.
        let other = "198.51.100.77:80".parse().expect("an address");
        assert_eq!(listeners(own, other, BUDGET), None);
    }

    #[test]
    fn addresses_of_interfaces_are_our_own() {
        assert!(has([127, 0, 0, 1].into()));
        assert!(!has([198, 51, 100, 77].into()));
    }
}
