//! Cannot assign requested address: no local port is left.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;

pub(super) const FAILURE: Failure = Failure {
    name: "ports_exhausted",
    symptom: "connect: cannot assign requested address",
    changes_host: None,
    provoke: |stage| {
        let mut server = stage.actor("is-popular")?;
        let mut client = stage.actor("out-of-ports")?;
        let (_, addr) = server.listener(FAMILIES[0].addr()?, 8)?;
        stage
            .netns
            .sysctl("net.ipv4.ip_local_port_range", "40000 40000")?;
        client.connected(addr)?;
        client.connected(addr).expect_err("the only port is taken");
        Ok(Shown {
            events: vec![
                Expect::new("connect.failed", "connect, no port left")
                    .peer(addr)
                    .owner(&client)
                    .says("error.type", "EADDRNOTAVAIL"),
            ],
            findings: vec![Named::new(Cause::PortsExhausted, "1 of 1 in use").of(&client)],
        })
    },
};
