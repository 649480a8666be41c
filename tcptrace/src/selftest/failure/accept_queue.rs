//! Clients time out or are reset under load: the accept queue was full, on each of the three ways
//! a connection is lost there.

use anyhow::Result;

use super::stage::Player;
use super::{Expect, FAMILIES, Failure, Named, Shown, Stage};
use crate::event::Cause;
use crate::selftest::actor::Fd;

/// The listener's backlog; the queue holds one more.
const BACKLOG: u32 = 1;
/// Connections tried.
const CLIENTS: u32 = 10;

pub(super) const SYN: Failure = Failure {
    name: "accept_queue_overflow.syn",
    symptom: "connect: timed out, under load (the SYN is dropped)",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        for family in FAMILIES {
            let mut server = stage.actor("is-slow")?;
            let mut client = stage.actor("crowd")?;
            let (listener, addr) = server.listener(family.addr()?, BACKLOG.cast_signed())?;
            for _ in 0..=BACKLOG {
                client.connected(addr)?;
            }
            server.wait_for_queue(listener, BACKLOG + 1)?;
            let late: Vec<Fd> = (0..CLIENTS)
                .map(|_| client.connecting(addr))
                .collect::<Result<_, _>>()?;
            for fd in late {
                client.close(fd)?;
            }
            shown.events.push(
                Expect::new(
                    "accept_queue.overflow",
                    format!("{}: dropped SYNs", family.name),
                )
                .local(addr)
                .times(CLIENTS.into())
                .through("accept queue: SYN dropped")
                .owner(&server)
                .says("tcptrace.accept_queue.path", "syn")
                .says("tcptrace.accept_queue.len", BACKLOG + 1)
                .says("tcptrace.accept_queue.max", BACKLOG),
            );
            shown.findings.push(
                Named::new(Cause::AcceptQueueOverflow, family.name)
                    .of(&server)
                    .times(CLIENTS.into()),
            );
        }
        Ok(shown)
    },
};

pub(super) const ACK: Failure = Failure {
    name: "accept_queue_overflow.ack",
    symptom: "the first answer never comes, under load (the last ACK is dropped)",
    changes_host: None,
    provoke: |stage| {
        let mut full = overflow_at_the_ack(stage)?;
        // With room in the queue the data that is sent again completes the other handshakes: no
        // more are dropped.
        full.server
            .listen(full.listener, CLIENTS.cast_signed() * 2)?;
        full.server.wait_for_queue(full.listener, CLIENTS)?;
        let counter = "TcpExtListenOverflows";
        let named = Named::new(Cause::AcceptQueueOverflow, "at the last ACK").of(&full.server);
        Ok(Shown {
            events: vec![full.expect.times_counted(counter)],
            findings: vec![named.times_counted(counter)],
        })
    },
};

pub(super) const ABORT: Failure = Failure {
    name: "accept_queue_overflow.abort",
    symptom: "connection reset by peer right after connect, under load (tcp_abort_on_overflow)",
    changes_host: None,
    provoke: |stage| {
        stage.netns.sysctl("net.ipv4.tcp_abort_on_overflow", "1")?;
        let mut full = overflow_at_the_ack(stage)?;
        for fd in full.fds.iter().skip(BACKLOG as usize + 1) {
            full.client.wait_for(*fd, libc::POLLHUP)?;
        }
        let lost = (CLIENTS - BACKLOG - 1).into();
        let resets = Expect::new("reset.sent", "the RSTs")
            .with("error.type", "accept_queue_overflow")
            .times(lost)
            .owner(&full.server);
        let named = Named::new(Cause::AcceptQueueOverflow, "with a RST").of(&full.server);
        Ok(Shown {
            events: vec![full.expect.times(lost), resets],
            findings: vec![named.times(lost)],
        })
    },
};

/// A listener whose queue is full, and its clients.
struct Full<'a> {
    server: Player<'a>,
    listener: Fd,
    client: Player<'a>,
    fds: Vec<Fd>,
    expect: Expect,
}

/// Lets the handshakes of all clients wait for their last ACK and come in at once.
fn overflow_at_the_ack(stage: &Stage) -> Result<Full<'_>> {
    let mut server = stage.actor("is-slow")?;
    let mut client = stage.actor("crowd")?;
    let (listener, addr) = server.listener(FAMILIES[0].addr()?, CLIENTS.cast_signed() * 2)?;
    // The handshake is complete only once data comes.
    server.set(listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &[30])?;
    let fds: Vec<Fd> = (0..CLIENTS)
        .map(|_| client.connected(addr))
        .collect::<Result<_, _>>()?;
    // A second listen changes the limit alone; with it from the start SYN cookies would step in.
    server.listen(listener, BACKLOG.cast_signed())?;
    for fd in &fds {
        client.send(*fd, b"request")?;
    }
    server.wait_for_queue(listener, BACKLOG + 1)?;
    let expect = Expect::new("accept_queue.overflow", "dropped ACKs")
        .through("accept queue: final ACK dropped")
        .local(addr)
        .owner(&server)
        .says("tcptrace.accept_queue.path", "ack")
        .says("tcptrace.accept_queue.max", BACKLOG);
    Ok(Full {
        server,
        listener,
        client,
        fds,
        expect,
    })
}
