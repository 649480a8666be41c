//! Connection reset by peer: the peer closed with `SO_LINGER` on and a time of 0.

use super::{Expect, FAMILIES, Failure, actor};
use crate::selftest::actor::Pair;

pub(super) const FAILURE: Failure = Failure {
    name: "linger_zero",
    symptom: "connection reset by peer, on purpose",
    changes_host: false,
    provoke: |_| {
        let mut expects = vec![];
        for family in FAMILIES {
            let mut server = actor("lingers-not")?;
            let mut client = actor("is-reset")?;
            let listener = server.listener(family.addr()?, 8)?;
            let pair = Pair::new(&mut server, &mut client, listener)?;
            server.abort(pair.server)?;
            client.wait_for(pair.client, libc::POLLHUP)?;
            expects.push(
                Expect::new("reset.sent", format!("{}: the RST", family.name))
                    .at_server(&pair)
                    .owner(&server)
                    .says("network.connection.state", "established")
                    .says("error.type", "linger_zero"),
            );
        }
        Ok(expects)
    },
};
