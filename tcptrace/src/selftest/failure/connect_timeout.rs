//! No SYN is answered: the kernel gives up, or the program does before it.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::stage::Player;
use super::{Expect, Failure, Named, Shown, Stage};
use crate::event::Cause;
use crate::selftest::netns::Neighbour;

/// The program's own deadline: longer than the slower one of two happy eyeballs lives.
const DEADLINE: Duration = Duration::from_millis(700);

pub(super) const FAILURE: Failure = Failure {
    name: "connect_timeout",
    symptom: "connect: connection timed out",
    changes_host: None,
    provoke: |stage| {
        let (_server, addr) = deaf_host(stage)?;
        let mut client = stage.actor("gets-nothing")?;
        let fd = client.socket(libc::AF_INET, 0)?;
        client.set(fd, libc::IPPROTO_TCP, libc::TCP_SYNCNT, &[1])?;
        client.connect(fd, addr).expect_err("no SYN is answered");
        Ok(Shown {
            events: vec![
                Expect::new("connect.failed", "connect, no SYN answered")
                    .peer(addr)
                    .owner(&client)
                    .says("error.type", "ETIMEDOUT")
                    // The first one, and as often again as TCP_SYNCNT says.
                    .says("tcptrace.connect.attempts", 2),
            ],
            findings: vec![Named::new(Cause::ConnectTimeout, "after 2 SYNs").of(&client)],
        })
    },
};

pub(super) const ABANDONED: Failure = Failure {
    name: "connect_abandoned",
    symptom: "the program's own deadline: dial tcp: i/o timeout",
    changes_host: None,
    provoke: |stage| {
        let (_server, addr) = deaf_host(stage)?;
        let mut client = stage.actor("does-not-wait")?;
        let fd = client.connecting(addr)?;
        sleep(DEADLINE);
        client.close(fd)?;
        Ok(Shown {
            events: vec![
                Expect::new("connect.failed", "closed with its SYN unanswered")
                    .peer(addr)
                    .owner(&client)
                    .says("error.type", "connect_abandoned"),
            ],
            findings: vec![Named::new(Cause::ConnectAbandoned, "after 0.7 s").of(&client)],
        })
    },
};

/// An address on another host that answers no SYN: its listener's queue is full, which cannot be
/// seen from here.
fn deaf_host(stage: &Stage) -> Result<(Player<'_>, SocketAddr)> {
    let neighbour = stage.netns.neighbour()?;
    let mut server = stage.stranger(&neighbour, "is-deaf")?;
    let mut crowd = stage.stranger(&neighbour, "crowd")?;
    let (listener, addr) = server.listener((Neighbour::THERE, 0).into(), 0)?;
    crowd.connected(addr)?;
    server.wait_for_queue(listener, 1)?;
    Ok((server, addr))
}
