//! Connection refused: nobody listens on that port, of this host or of another.

use super::{Expect, FAMILIES, Failure, NO_SOCKET, Named, Shown};
use crate::event::Cause;
use crate::selftest::netns::Neighbour;

pub(super) const HERE: Failure = Failure {
    name: "no_listener",
    symptom: "connect: connection refused",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        // All listen before one stops: a port that is free again may be given to the next.
        let mut listening = Vec::new();
        for family in FAMILIES {
            let mut server = stage.actor("leaves")?;
            let client = stage.actor("is-refused")?;
            let (listener, addr) = server.listener(family.addr()?, 8)?;
            listening.push((family, server, client, listener, addr));
        }
        for (family, mut server, mut client, listener, addr) in listening {
            server.close(listener)?;
            client.connected(addr).expect_err("nobody listens there");
            shown.events.extend([
                Expect::new("connect.failed", format!("{}: connect", family.name))
                    .peer(addr)
                    .owner(&client)
                    .says("error.type", "ECONNREFUSED"),
                Expect::new(
                    "reset.sent",
                    format!("{}: the RST of the closed port", family.name),
                )
                .local(addr)
                .through(NO_SOCKET)
                .says("error.type", "no_listener"),
            ]);
            shown
                .findings
                .push(Named::new(Cause::NoListener, family.name).of(&client));
        }
        Ok(shown)
    },
};

pub(super) const REMOTE: Failure = Failure {
    name: "refused_by_peer",
    symptom: "connect: connection refused, by another host",
    changes_host: None,
    provoke: |stage| {
        let neighbour = stage.netns.neighbour()?;
        let mut server = stage.stranger(&neighbour, "leaves")?;
        let mut client = stage.actor("is-refused")?;
        let (listener, addr) = server.listener((Neighbour::THERE, 0).into(), 8)?;
        server.close(listener)?;
        client.connected(addr).expect_err("nobody listens there");
        Ok(Shown {
            events: vec![
                Expect::new("connect.failed", "connect")
                    .peer(addr)
                    .owner(&client)
                    .says("error.type", "ECONNREFUSED"),
            ],
            findings: vec![Named::new(Cause::RefusedByPeer, "by a neighbour").of(&client)],
        })
    },
};
