//! The connection ends right after it began: the server accepted it and closed it without a byte.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;

pub(super) const FAILURE: Failure = Failure {
    name: "closed_on_accept",
    symptom: "end of stream, or connection reset by peer, right after connect",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        for family in FAMILIES {
            let mut server = stage.actor("turns-away")?;
            let mut client = stage.actor("is-turned-away")?;
            let listener = server.listener(family.addr()?, 8)?;
            let silent = Pair::new(&mut server, &mut client, listener)?;
            server.close(silent.server)?;
            client.wait_for(silent.client, libc::POLLRDHUP)?;
            client.close(silent.client)?;
            let asking = Pair::new(&mut server, &mut client, listener)?;
            client.send(asking.client, b"request")?;
            server.wait_for_unread(asking.server, 7)?;
            server.close(asking.server)?;
            client.wait_for(asking.client, libc::POLLHUP)?;
            client
                .recv(asking.client, 16)
                .expect_err("the server has sent a RST");
            shown.events.push(
                Expect::new(
                    "reset.sent",
                    format!("{}: the RST for an unread request", family.name),
                )
                .at_server(&asking)
                .owner(&server)
                .says("tcptrace.socket.unread", 7),
            );
            shown.findings.push(
                Named::new(
                    Cause::ClosedOnAccept,
                    format!("{}: before and after a request", family.name),
                )
                .of(&server)
                .with(&client)
                .times(2),
            );
        }
        Ok(shown)
    },
};
