//! Connection reset by peer: the peer closed with `SO_LINGER` on and a time of 0.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;

pub(super) const FAILURE: Failure = Failure {
    name: "linger_zero",
    symptom: "connection reset by peer, on purpose",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        for family in FAMILIES {
            let mut server = stage.actor("lingers-not")?;
            let mut client = stage.actor("is-reset")?;
            let listener = server.listener(family.addr()?, 8)?;
            let pair = Pair::new(&mut server, &mut client, listener)?;
            pair.exchange(&mut server, &mut client)?;
            server.abort(pair.server)?;
            client.wait_for(pair.client, libc::POLLHUP)?;
            shown.events.push(
                Expect::new("reset.sent", format!("{}: the RST", family.name))
                    .at_server(&pair)
                    .owner(&server)
                    .says("network.connection.state", "established")
                    .says("error.type", "linger_zero"),
            );
            shown.findings.push(
                Named::new(Cause::LingerZero, family.name)
                    .of(&server)
                    .with(&client),
            );
        }
        Ok(shown)
    },
};
