//! Connections in `CLOSE_WAIT`, grouped as one leak is: by who holds them and the service they are of.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::sockets::TcpSocket;
use super::whose::Whose;

/// The groups; a connection that would be one more than they hold is counted only.
#[derive(Debug)]
pub(super) struct CloseWaits {
    groups: HashMap<Key, Group>,
    limit: usize,
    /// Connections of no group, because there were as many groups as may be.
    pub(super) over: u64,
}

/// Holders, whether it waits for `accept`, namespace, whether it is a client's end, and the service: the
/// port served, or the peer connected to. A client's own ports tell nothing.
type Key = (Arc<[u32]>, bool, u32, bool, SocketAddr);

/// Those of one holder and service.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// How many.
    pub(super) count: u32,
    /// Those whose end of the stream was never read.
    pub(super) eof_unread: u32,
    /// Bytes nobody has read.
    pub(super) unread: u64,
    /// The oldest of them.
    pub(super) oldest: TcpSocket,
    /// Whose that one is.
    pub(super) whose: Whose,
    /// How long that one has been in `CLOSE_WAIT` at least, where it is known.
    pub(super) age: Option<Duration>,
    /// They came in through a listener.
    pub(super) served: bool,
}

impl CloseWaits {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            groups: HashMap::new(),
            limit,
            over: 0,
        }
    }

    /// One more. A `served` one came in through a listener.
    pub(super) fn add(
        &mut self,
        socket: &TcpSocket,
        whose: Whose,
        served: bool,
        age: Option<Duration>,
    ) {
        let flow = &socket.flow;
        let peer = flow.peer.filter(|_| !served);
        let service = peer.unwrap_or(SocketAddr::from(([0; 4], flow.local.port())));
        let key = (
            Arc::clone(&whose.pids),
            whose.queued,
            flow.netns,
            peer.is_some(),
            service,
        );
        if self.groups.len() >= self.limit && !self.groups.contains_key(&key) {
            self.over += 1;
            return;
        }
        let group = self.groups.entry(key).or_insert_with(|| Group {
            count: 0,
            eof_unread: 0,
            unread: 0,
            oldest: socket.clone(),
            whose: whose.clone(),
            age,
            served,
        });
        group.count += 1;
        group.eof_unread += u32::from(!socket.eof_read());
        group.unread += u64::from(socket.unread());
        if age > group.age {
            (group.oldest, group.whose, group.age) = (socket.clone(), whose, age);
        }
    }

    pub(super) fn into_groups(self) -> impl Iterator<Item = Group> {
        self.groups.into_values()
    }
}

/// How long a connection has been in `CLOSE_WAIT` at least, by what TCP says: its FIN carried an ACK.
pub(super) fn told_age(socket: &TcpSocket) -> Option<Duration> {
    let info = socket.info?;
    Some(Duration::from_millis(info.ack_received_ago_ms.into()))
}
