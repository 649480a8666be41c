//! Whose a listed socket is: its holders', and while it waits for `accept` its listener's.

use std::collections::HashMap;
use std::sync::Arc;

use super::holders::{Holder, Holders};
use super::sockets::TcpSocket;
use crate::event::{Confidence, Owner, Process, State};

/// Who holds the sockets of a list, and which of them listen.
#[derive(Debug)]
pub(super) struct Owners<'a> {
    holders: &'a Holders,
    /// By network namespace and port.
    listeners: HashMap<(u32, u16), Vec<&'a TcpSocket>>,
}

impl<'a> Owners<'a> {
    pub(super) fn new(holders: &'a Holders, listeners: &'a [TcpSocket]) -> Self {
        let mut by_port: HashMap<_, Vec<_>> = HashMap::new();
        for listener in listeners {
            by_port.entry(port(listener)).or_default().push(listener);
        }
        Self {
            holders,
            listeners: by_port,
        }
    }

    /// There is a listener on the socket's own port: it is a server's end.
    pub(super) fn served(&self, socket: &TcpSocket) -> bool {
        self.listeners.contains_key(&port(socket))
    }

    /// A connection without a file waits for `accept`, or its handshake is not done: whoever holds the
    /// listener has it to come. What is left of a closed one is nobody's.
    pub(super) fn of(&self, socket: &TcpSocket) -> Whose {
        let to_come = matches!(
            socket.state,
            State::Established | State::CloseWait | State::SynReceived
        );
        if socket.inode == 0 && to_come {
            return self.when_accepted(socket);
        }
        // No file has the inode 0.
        let holders = self.holders.of(socket.inode);
        Whose {
            fd: holders.clone().next().map(|holder| holder.fd),
            pids: pids(holders),
            queued: false,
        }
    }

    /// The holders of the listener that a connection came in through: one of its own address, or
    /// else of any address.
    fn when_accepted(&self, socket: &TcpSocket) -> Whose {
        let local = socket.flow.local;
        let listeners = self
            .listeners
            .get(&port(socket))
            .map_or(&[][..], Vec::as_slice);
        let exact = listeners
            .iter()
            .any(|listener| listener.flow.local == local);
        let holders = listeners
            .iter()
            .filter(|listener| {
                let at = listener.flow.local;
                if exact {
                    at == local
                } else {
                    at.ip().is_unspecified()
                }
            })
            .flat_map(|listener| self.holders.of(listener.inode));
        Whose {
            pids: pids(holders),
            fd: None,
            queued: true,
        }
    }
}

fn port(socket: &TcpSocket) -> (u32, u16) {
    (socket.flow.netns, socket.flow.local.port())
}

fn pids(holders: impl Iterator<Item = Holder>) -> Arc<[u32]> {
    let mut pids: Vec<u32> = holders.map(|holder| holder.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    pids.into()
}

/// The processes a socket belongs to.
#[derive(Clone, Debug)]
pub(super) struct Whose {
    /// In order.
    pub(super) pids: Arc<[u32]>,
    /// Descriptor of the first.
    pub(super) fd: Option<i32>,
    /// They are the listener's: the connection waits for `accept`.
    pub(super) queued: bool,
}

impl Whose {
    /// `sole`: how sure the only holder seen is.
    pub(super) fn owner(
        &self,
        sole: Confidence,
        describe: &mut dyn FnMut(u32) -> Option<Process>,
    ) -> Owner {
        let Some(process) = self.pids.first().and_then(|&pid| describe(pid)) else {
            return Owner::default();
        };
        let (confidence, holders) = match &*self.pids {
            [_] if self.queued => (Confidence::Inherited, Arc::default()),
            [_] => (sole, Arc::default()),
            _ => (Confidence::Shared, Arc::clone(&self.pids)),
        };
        Owner {
            confidence,
            process: Some(process),
            holders,
            creator: None,
            checked_after_ms: None,
        }
    }
}
