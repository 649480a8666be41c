//! A RST from elsewhere, as its victim sees it: ECONNRESET once, then end of stream or EPIPE.

use std::net::{Ipv4Addr, SocketAddr};

use super::{Expect, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;
use crate::selftest::netns::Neighbour;

pub(super) const FAILURE: Failure = Failure {
    name: "reset_by_peer",
    symptom: "read: connection reset by peer, then write: broken pipe",
    changes_host: None,
    provoke: |stage| {
        let neighbour = stage.netns.neighbour()?;
        let mapped = |ip: Ipv4Addr| SocketAddr::from((ip.to_ipv6_mapped(), 0));
        let mut shown = Shown::default();
        for (name, addr) in [
            ("IPv4", (Neighbour::THERE, 0).into()),
            ("v4-mapped", mapped(Neighbour::THERE)),
        ] {
            let mut peer = stage.stranger(&neighbour, "resets")?;
            let mut victim = stage.actor("victim")?;
            let listener = peer.listener(addr, 8)?;
            let pair = Pair::new(&mut peer, &mut victim, listener)?;
            pair.exchange(&mut peer, &mut victim)?;
            peer.abort(pair.server)?;
            victim.wait_for(pair.client, libc::POLLHUP)?;
            victim
                .recv(pair.client, 16)
                .expect_err("the peer has sent a RST");
            victim
                .send(pair.client, b"late")
                .expect_err("the connection is gone");
            shown.events.extend([
                Expect::new("reset.received", format!("{name}: the RST"))
                    .at_client(&pair)
                    .owner(&victim)
                    .says("network.connection.state", "established")
                    .says("error.type", "ECONNRESET"),
                Expect::new("socket.error", format!("{name}: the read"))
                    .at_client(&pair)
                    .through("failed receives")
                    .with("error.type", "ECONNRESET")
                    .owner(&victim),
                Expect::new("socket.error", format!("{name}: the write after it"))
                    .at_client(&pair)
                    .through("failed sends")
                    .with("error.type", "EPIPE")
                    .owner(&victim),
            ]);
            shown
                .findings
                .push(Named::new(Cause::ResetByPeer, name).of(&victim));
        }
        Ok(shown)
    },
};
