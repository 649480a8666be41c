//! No failure at all: the life of a healthy connection, state by state, at both ends.

use super::{Expect, FAMILIES, Failure, actor};
use crate::selftest::actor::Pair;

pub(super) const FAILURE: Failure = Failure {
    name: "states",
    symptom: "(none: a connection from handshake to close)",
    changes_host: false,
    provoke: |_| {
        let mut expects = vec![];
        for family in FAMILIES {
            let mut server = actor("answers")?;
            let mut client = actor("asks")?;
            let listener = server.listener(family.addr()?, 8)?;
            let pair = Pair::new(&mut server, &mut client, listener)?;
            client.close(pair.client)?;
            server.wait_for(pair.server, libc::POLLRDHUP)?;
            server.close(pair.server)?;
            let name = family.name;
            let enters = |state| {
                Expect::new("state.changed", format!("{name}: {state}"))
                    .with("network.connection.state", state)
            };
            expects.extend([
                enters("established").at_client(&pair).owner(&client),
                enters("fin_wait_1").at_client(&pair).owner(&client),
                enters("established").at_server(&pair).owner(&server),
                enters("close_wait").at_server(&pair).owner(&server),
                enters("last_ack").at_server(&pair).owner(&server),
                enters("closed").at_server(&pair).owner(&server),
            ]);
        }
        Ok(expects)
    },
};
