//! No SYN is answered: the kernel gives up, or the program does before it.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::{Expect, Failure, Named, Shown, Stage};
use crate::event::Cause;
use crate::selftest::netns::{Counters, Neighbour};

/// The program's own deadline: longer than the slower one of two happy eyeballs lives.
const DEADLINE: Duration = Duration::from_millis(700);

pub(super) const FAILURE: Failure = Failure {
    name: "connect_timeout",
    symptom: "connect: connection timed out",
    changes_host: None,
    provoke: |stage| {
        let deaf = DeafHost::new(stage)?;
        let mut client = stage.actor("gets-nothing")?;
        let fd = client.socket(libc::AF_INET, 0)?;
        client.set(fd, libc::IPPROTO_TCP, libc::TCP_SYNCNT, &[1])?;
        let before = deaf.counters(stage)?;
        client
            .connect(fd, deaf.addr)
            .expect_err("no SYN is answered");
        // Every SYN that arrived was dropped there.
        let sent = deaf
            .counters(stage)?
            .since(&before, "TcpExtListenOverflows");
        Ok(Shown {
            events: vec![
                Expect::new("connect.failed", "connect, no SYN answered")
                    .peer(deaf.addr)
                    .owner(&client)
                    .says("error.type", "ETIMEDOUT")
                    .says("tcptrace.connect.attempts", sent),
            ],
            findings: vec![Named::new(Cause::ConnectTimeout, "TCP_SYNCNT 1").of(&client)],
        })
    },
};

pub(super) const ABANDONED: Failure = Failure {
    name: "connect_abandoned",
    symptom: "the program's own deadline: dial tcp: i/o timeout",
    changes_host: None,
    provoke: |stage| {
        let deaf = DeafHost::new(stage)?;
        let mut client = stage.actor("does-not-wait")?;
        let fd = client.connecting(deaf.addr)?;
        sleep(DEADLINE);
        client.close(fd)?;
        Ok(Shown {
            events: vec![
                Expect::new("connect.failed", "closed with its SYN unanswered")
                    .peer(deaf.addr)
                    .owner(&client)
                    .says("error.type", "connect_abandoned"),
            ],
            findings: vec![Named::new(Cause::ConnectAbandoned, "after 0.7 s").of(&client)],
        })
    },
};

/// Another host that answers no SYN: its listener's queue is full, which cannot be seen from here.
struct DeafHost {
    neighbour: Neighbour,
    addr: SocketAddr,
}

impl DeafHost {
    fn new(stage: &Stage) -> Result<Self> {
        let neighbour = stage.netns.neighbour()?;
        let mut server = stage.stranger(&neighbour, "is-deaf")?;
        let mut crowd = stage.stranger(&neighbour, "crowd")?;
        let (listener, addr) = server.listener((Neighbour::THERE, 0).into(), 0)?;
        crowd.connected(addr)?;
        server.wait_for_queue(listener, 1)?;
        Ok(Self { neighbour, addr })
    }

    fn counters(&self, stage: &Stage) -> Result<Counters> {
        self.neighbour.within(|| stage.netns.counters())
    }
}
