//! What a finding is about: failures of one subject are one finding.

use std::net::{IpAddr, SocketAddr};

use super::connection::View;
use super::verdict::Verdict;
use crate::event::{Cause, Comm, Event, Severity, Side, Socket};

/// What makes two failures one finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Subject {
    pub(super) cause: Cause,
    /// The process; 0 where none is known, or where its name stands for many.
    pub(super) pid: u32,
    /// The name of clients that did no harm: they come and go, each with another number.
    pub(super) name: Option<Comm>,
    /// The serving end's port, or the listener's.
    pub(super) port: u16,
    /// The other end's address; `None` where the failure has none, or many have it.
    pub(super) peer: Option<IpAddr>,
    pub(super) netns: u32,
    /// The run it was seen in: two hosts of a replay have the same numbers.
    pub(super) run: u16,
}

impl Subject {
    /// Of a verdict, told of the end this view is from.
    pub(super) fn of(verdict: &Verdict, view: View<'_>) -> Self {
        let socket = view.this.socket().or(view.other.socket());
        let mut subject = Self::new(
            verdict.cause,
            view.this.process().map_or(0, |process| process.pid),
            socket,
            view.run(),
        );
        if verdict.severity == Severity::Info && view.this.side() == Some(Side::Client) {
            subject.pid = 0;
            subject.name = view.this.process().map(|process| process.comm);
        }
        if verdict.cause == Cause::ProcessExited {
            subject = subject.anywhere();
        } else if verdict.cause == Cause::NoListener && subject.pid == 0 {
            // A scan of many ports is one client's doing.
            subject.port = 0;
        }
        subject
    }

    /// Of an event on a connection.
    pub(super) fn of_socket(cause: Cause, event: &Event) -> Self {
        let pid = event
            .owner
            .process
            .as_ref()
            .map_or(0, |process| process.pid);
        Self::new(cause, pid, event.socket.as_ref(), event.id.run())
    }

    /// Of a listener or a process: with no peer.
    pub(super) fn of_process(cause: Cause, event: &Event) -> Self {
        Self {
            peer: None,
            ..Self::of_socket(cause, event)
        }
    }

    /// Of the process as a whole, whichever of its sockets showed it.
    pub(super) fn anywhere(self) -> Self {
        Self {
            port: 0,
            peer: None,
            netns: 0,
            ..self
        }
    }

    fn new(cause: Cause, pid: u32, socket: Option<&Socket>, run: u16) -> Self {
        Self {
            cause,
            pid,
            name: None,
            port: socket.map_or(0, |socket| service(socket).port()),
            peer: socket
                .and_then(|socket| socket.flow.peer)
                .map(|peer| peer.ip()),
            netns: socket.map_or(0, |socket| socket.flow.netns),
            run,
        }
    }
}

/// The serving end of a connection: the listener's, or the one with the lower port where its side is
/// not known.
pub(super) fn service(socket: &Socket) -> SocketAddr {
    let local = socket.flow.local;
    match (socket.flow.peer, socket.side) {
        (Some(peer), Some(Side::Client)) => peer,
        (Some(peer), None) if peer.port() < local.port() => peer,
        _ => local,
    }
}
