//! Connection reset by peer: the peer closed with unread bytes in its receive queue.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;

pub(super) const FAILURE: Failure = Failure {
    name: "closed_with_unread_data",
    symptom: "read: connection reset by peer",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        for family in FAMILIES {
            let mut server = stage.actor("leaves-unread")?;
            let mut client = stage.actor("asks")?;
            let listener = server.listener(family.addr()?, 8)?;
            let pair = Pair::new(&mut server, &mut client, listener)?;
            // A server that never read anything would be one that turns its clients away.
            pair.exchange(&mut server, &mut client)?;
            client.send(pair.client, b"hello")?;
            server.wait_for_unread(pair.server, 5)?;
            server.close(pair.server)?;
            client.wait_for(pair.client, libc::POLLHUP)?;
            client
                .recv(pair.client, 16)
                .expect_err("the peer has sent a RST");
            shown.events.extend([
                Expect::new("reset.sent", format!("{}: the RST", family.name))
                    .at_server(&pair)
                    .owner(&server)
                    .says("network.connection.state", "established")
                    .says("tcptrace.socket.unread", 5)
                    .says("error.type", "closed_with_unread_data"),
                Expect::new("reset.received", format!("{}: at the peer", family.name))
                    .at_client(&pair)
                    .owner(&client)
                    .says("error.type", "ECONNRESET"),
                Expect::new(
                    "socket.error",
                    format!("{}: what read returned", family.name),
                )
                .through("failed receives")
                .at_client(&pair)
                .owner(&client)
                .says("error.type", "ECONNRESET"),
            ]);
            shown.findings.push(
                Named::new(Cause::ClosedWithUnreadData, family.name)
                    .of(&server)
                    .with(&client),
            );
        }
        Ok(shown)
    },
};
