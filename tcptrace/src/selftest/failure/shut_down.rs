//! Broken pipe without a RST: the process has shut its own sending side.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;

pub(super) const FAILURE: Failure = Failure {
    name: "write_after_shutdown",
    symptom: "write: broken pipe, and the peer did nothing",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        for family in FAMILIES {
            let mut server = stage.actor("listens-on")?;
            let mut client = stage.actor("has-said-all")?;
            let listener = server.listener(family.addr()?, 8)?;
            let pair = Pair::new(&mut server, &mut client, listener)?;
            pair.exchange(&mut server, &mut client)?;
            client.shutdown(pair.client, libc::SHUT_WR)?;
            client
                .send(pair.client, b"late")
                .expect_err("the sending side is shut");
            shown.events.push(
                Expect::new("socket.error", format!("{}: the write", family.name))
                    .through("failed sends")
                    .at_client(&pair)
                    .owner(&client)
                    .says("error.type", "EPIPE"),
            );
            shown
                .findings
                .push(Named::new(Cause::WriteAfterShutdown, family.name).of(&client));
            server.wait_for(pair.server, libc::POLLRDHUP)?;
            server.close(pair.server)?;
            client.close(pair.client)?;
        }
        Ok(shown)
    },
};
