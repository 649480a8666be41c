//! Clients reset as a service restarts: its listener closed with connections still queued.

use super::{Expect, FAMILIES, Failure, actor};

pub(super) const FAILURE: Failure = Failure {
    name: "listener_closed",
    symptom: "connection reset by peer as a service restarts",
    changes_host: false,
    provoke: |_| {
        let mut expects = vec![];
        for family in FAMILIES {
            let mut server = actor("restarts")?;
            let mut client = actor("waits-in-line")?;
            let (listener, addr) = server.listener(family.addr()?, 8)?;
            for _ in 0..3 {
                client.connected(addr)?;
            }
            server.wait_for_queue(listener, 3)?;
            server.close(listener)?;
            expects.push(
                Expect::new(
                    "reset.sent",
                    format!("{}: 3 queued connections", family.name),
                )
                .local(addr)
                .times(3)
                .owner(&server)
                .says("error.type", "listener_closed"),
            );
        }
        Ok(expects)
    },
};
