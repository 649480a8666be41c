//! Broken pipe: writing on after the peer has closed.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;

pub(super) const FAILURE: Failure = Failure {
    name: "write_after_peer_close",
    symptom: "write: broken pipe, after one write that worked",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        for family in FAMILIES {
            let mut server = stage.actor("closes-first")?;
            let mut client = stage.actor("writes-on")?;
            let listener = server.listener(family.addr()?, 8)?;
            let pair = Pair::new(&mut server, &mut client, listener)?;
            pair.exchange(&mut server, &mut client)?;
            server.close(pair.server)?;
            client.wait_for(pair.client, libc::POLLRDHUP)?;
            client.send(pair.client, b"works")?;
            client.wait_for(pair.client, libc::POLLHUP)?;
            for _ in 0..3 {
                client
                    .send(pair.client, b"fails")
                    .expect_err("the peer has sent a RST");
            }
            shown.events.extend([
                Expect::new("reset.received", format!("{}: the RST", family.name))
                    .at_client(&pair)
                    .owner(&client)
                    .says("network.connection.state", "close_wait")
                    .says("error.type", "EPIPE"),
                Expect::new("socket.error", format!("{}: the EPIPE train", family.name))
                    .through("failed sends")
                    .at_client(&pair)
                    .times(3)
                    .owner(&client)
                    .says("error.type", "EPIPE")
                    .says("tcptrace.syscall.errno", libc::EPIPE),
            ]);
            shown.findings.push(
                Named::new(Cause::WriteAfterPeerClose, family.name)
                    .of(&client)
                    .with(&server),
            );
        }
        Ok(shown)
    },
};
