//! Clients reset as a service restarts: its listener closed with connections still queued.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;

pub(super) const FAILURE: Failure = Failure {
    name: "listener_closed",
    symptom: "connection reset by peer as a service restarts",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        for family in FAMILIES {
            let mut server = stage.actor("restarts")?;
            let mut client = stage.actor("waits-in-line")?;
            let (listener, addr) = server.listener(family.addr()?, 8)?;
            for _ in 0..3 {
                client.connected(addr)?;
            }
            server.wait_for_queue(listener, 3)?;
            server.close(listener)?;
            shown.events.push(
                Expect::new(
                    "reset.sent",
                    format!("{}: 3 queued connections", family.name),
                )
                .local(addr)
                .times(3)
                .owner(&server)
                .says("error.type", "listener_closed"),
            );
            shown.findings.push(
                Named::new(Cause::ListenerClosed, family.name)
                    .of(&server)
                    .with(&client)
                    .times(3),
            );
        }
        Ok(shown)
    },
};
