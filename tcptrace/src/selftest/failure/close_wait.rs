//! Descriptors grow for days: the peer closed and the process never did.

use super::{Expect, FAMILIES, Failure, actor};
use crate::selftest::actor::Pair;

pub(super) const FAILURE: Failure = Failure {
    name: "close_wait_leak",
    symptom: "descriptors and memory grow; sockets stay in CLOSE_WAIT",
    changes_host: false,
    provoke: |stage| {
        let mut expects = vec![];
        let mut held = vec![];
        for family in FAMILIES {
            let mut server = actor("forgets")?;
            let mut client = actor("leaves")?;
            let listener = server.listener(family.addr()?, 8)?;
            let pair = Pair::new(&mut server, &mut client, listener)?;
            client.close(pair.client)?;
            expects.push(
                Expect::new(
                    "close_wait.stuck",
                    format!("{}: not closed after 1 s", family.name),
                )
                .at_server(&pair)
                .owner(&server)
                .says("network.connection.state", "close_wait"),
            );
            held.push(server);
        }
        for expect in &expects {
            stage.wait_for(expect)?;
        }
        Ok(expects)
    },
};
