//! A RST from elsewhere, as its victim sees it: ECONNRESET once, then end of stream or EPIPE.

use super::{Expect, FAMILIES, Failure, actor};
use crate::selftest::actor::Pair;

pub(super) const FAILURE: Failure = Failure {
    name: "reset_by_peer",
    symptom: "read: connection reset by peer, then write: broken pipe",
    changes_host: false,
    provoke: |_| {
        let mut expects = vec![];
        for family in FAMILIES {
            let mut victim = actor("victim")?;
            let mut peer = actor("resets")?;
            let listener = victim.listener(family.addr()?, 8)?;
            let pair = Pair::new(&mut victim, &mut peer, listener)?;
            peer.abort(pair.client)?;
            victim.wait_for(pair.server, libc::POLLHUP)?;
            victim
                .recv(pair.server, 16)
                .expect_err("the peer has sent a RST");
            victim
                .send(pair.server, b"late")
                .expect_err("the connection is gone");
            expects.extend([
                Expect::new("reset.received", format!("{}: the RST", family.name))
                    .at_server(&pair)
                    .owner(&victim)
                    .says("network.connection.state", "established")
                    .says("error.type", "ECONNRESET"),
                Expect::new("socket.error", format!("{}: the read", family.name))
                    .at_server(&pair)
                    .through("failed receives")
                    .with("error.type", "ECONNRESET")
                    .owner(&victim),
                Expect::new(
                    "socket.error",
                    format!("{}: the write after it", family.name),
                )
                .at_server(&pair)
                .through("failed sends")
                .with("error.type", "EPIPE")
                .owner(&victim),
            ]);
        }
        Ok(expects)
    },
};
