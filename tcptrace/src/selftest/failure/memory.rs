//! The kernel resets what is being closed: there are too many sockets that no process holds.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;
use crate::selftest::netns::Netns;

const MAX_ORPHANS: &str = "/proc/sys/net/ipv4/tcp_max_orphans";
/// The kernel counts orphans every 100 ms. They are counted before the limit is lowered, so that it is
/// low for no longer than one close takes.
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp.c> (`tcp_orphan_update`)
const COUNTED: Duration = Duration::from_millis(300);

pub(super) const FAILURE: Failure = Failure {
    name: "tcp_memory_pressure",
    symptom: "connection reset by peer, and the kernel's log says: too many orphaned sockets",
    changes_host: Some("net.ipv4.tcp_max_orphans"),
    provoke: |stage| {
        let mut server = stage.actor("does-not-read")?;
        let mut client = stage.actor("is-cut-short")?;
        let listener = server.listener(FAMILIES[0].addr()?, 64)?;
        let mut orphan = || -> Result<Pair> {
            let pair = Pair::new(&mut server, &mut client, listener)?;
            pair.exchange(&mut server, &mut client)?;
            client.fill(pair.client)?;
            Ok(pair)
        };
        let (first, second) = (orphan()?, orphan()?);
        // What it has not sent yet keeps the socket alive.
        client.close(first.client)?;
        sleep(COUNTED);
        let lowered = Lowered::new(&stage.netns, "0")?;
        client.close(second.client)?;
        drop(lowered);
        Ok(Shown {
            events: vec![
                Expect::new("reset.sent", "the RST")
                    .at_client(&second)
                    .owner(&client)
                    .says("error.type", "tcp_memory_pressure"),
            ],
            findings: vec![
                Named::new(Cause::TcpMemoryPressure, "one orphan too many")
                    .of(&client)
                    .with(&server),
            ],
        })
    },
};

/// The host's limit while it is lowered; dropping this puts it back.
struct Lowered<'a> {
    netns: &'a Netns,
    before: String,
}

impl<'a> Lowered<'a> {
    fn new(netns: &'a Netns, limit: &str) -> Result<Self> {
        let before = netns.outside(|| Ok(fs::read_to_string(MAX_ORPHANS)?));
        let before = before.with_context(|| format!("cannot read {MAX_ORPHANS}"))?;
        let lowered = Self { netns, before };
        lowered.write(limit)?;
        Ok(lowered)
    }

    fn write(&self, limit: &str) -> Result<()> {
        let written = self.netns.outside(|| Ok(fs::write(MAX_ORPHANS, limit)?));
        written.with_context(|| format!("cannot set {MAX_ORPHANS}"))
    }
}

impl Drop for Lowered<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.write(&self.before) {
            eprintln!("cannot set it back to {}: {error:#}", self.before.trim());
        }
    }
}
