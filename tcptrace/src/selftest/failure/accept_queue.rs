//! Clients time out or are reset under load: the accept queue was full, on each of the three ways
//! a connection is lost there.

use anyhow::Result;

use super::{Expect, FAMILIES, Failure, actor};
use crate::selftest::actor::{Actor, Fd};

/// The listener's backlog; the queue holds one more.
const BACKLOG: u32 = 1;
/// Connections tried.
const CLIENTS: u32 = 10;

pub(super) const SYN: Failure = Failure {
    name: "accept_queue_overflow.syn",
    symptom: "connect: timed out, under load (the SYN is dropped)",
    changes_host: false,
    provoke: |_| {
        let mut expects = vec![];
        for family in FAMILIES {
            let mut server = actor("is-slow")?;
            let mut client = actor("crowd")?;
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
            expects.push(
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
        }
        Ok(expects)
    },
};

pub(super) const ACK: Failure = Failure {
    name: "accept_queue_overflow.ack",
    symptom: "the first answer never comes, under load (the last ACK is dropped)",
    changes_host: false,
    provoke: |_| {
        let (mut expects, server, mut client, fds) = overflow_at_the_ack()?;
        // The clients' data is sent again and dropped again until they are gone.
        for fd in fds {
            client.abort(fd)?;
        }
        drop(server);
        let overflow = expects.pop().into_iter();
        Ok(overflow
            .map(|expect| expect.times_counted("TcpExtListenOverflows"))
            .collect())
    },
};

pub(super) const ABORT: Failure = Failure {
    name: "accept_queue_overflow.abort",
    symptom: "connection reset by peer right after connect, under load (tcp_abort_on_overflow)",
    changes_host: false,
    provoke: |stage| {
        stage.netns.sysctl("net.ipv4.tcp_abort_on_overflow", "1")?;
        let (mut expects, server, mut client, fds) = overflow_at_the_ack()?;
        for fd in fds.iter().skip(BACKLOG as usize + 1) {
            client.wait_for(*fd, libc::POLLHUP)?;
        }
        let Some(overflow) = expects.pop() else {
            return Ok(expects);
        };
        let resets = Expect::new("reset.sent", "the RSTs")
            .with("error.type", "accept_queue_overflow")
            .times((CLIENTS - BACKLOG - 1).into())
            .owner(&server);
        Ok(vec![overflow.times((CLIENTS - BACKLOG - 1).into()), resets])
    },
};

/// Lets the handshakes of all clients wait for their last ACK and come in at once.
fn overflow_at_the_ack() -> Result<(Vec<Expect>, Actor, Actor, Vec<Fd>)> {
    let mut server = actor("is-slow")?;
    let mut client = actor("crowd")?;
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
    Ok((vec![expect], server, client, fds))
}
