//! No failure at all: the life of a healthy connection, kept alive for a while, state by state, at both ends.

use std::thread::sleep;
use std::time::Duration;

use super::{Expect, FAMILIES, Failure, Shown};
use crate::selftest::actor::Pair;

/// As long as an answer would be late.
const REST: Duration = Duration::from_millis(700);

pub(super) const FAILURE: Failure = Failure {
    name: "states",
    symptom: "(none: a connection from handshake to close)",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        for family in FAMILIES {
            let mut server = stage.actor("answers")?;
            let mut client = stage.actor("asks")?;
            let listener = server.listener(family.addr()?, 8)?;
            let pair = Pair::new(&mut server, &mut client, listener)?;
            pair.exchange(&mut server, &mut client)?;
            // Kept for a next request that does not come: nobody waits meanwhile.
            sleep(REST);
            pair.close(&mut server, &mut client)?;
            let name = family.name;
            let enters = |state| {
                Expect::new("state.changed", format!("{name}: {state}"))
                    .with("network.connection.state", state)
            };
            shown.events.extend([
                enters("established").at_client(&pair).owner(&client),
                enters("fin_wait_1").at_client(&pair).owner(&client),
                enters("established").at_server(&pair).owner(&server),
                enters("close_wait").at_server(&pair).owner(&server),
                enters("last_ack").at_server(&pair).owner(&server),
                enters("closed").at_server(&pair).owner(&server),
            ]);
        }
        Ok(shown)
    },
};
