//! Silence before the end: a pooled connection its server had closed meanwhile, and a RST after
//! nothing was heard for long.

use std::thread::sleep;
use std::time::Duration;

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;
use crate::selftest::netns::Neighbour;

/// How long the pooled connection rests: longer than a conversation does.
const REST: Duration = Duration::from_millis(1_200);
/// How long the silent connection is silent: long enough to be forgotten on the way.
const SILENCE: Duration = Duration::from_millis(5_200);

pub(super) const POOLED: Failure = Failure {
    name: "stale_pooled_connection",
    symptom: "write: broken pipe, on the first request after a rest",
    changes_host: None,
    provoke: |stage| {
        let mut server = stage.actor("closes-idle")?;
        let mut client = stage.actor("has-a-pool")?;
        let listener = server.listener(FAMILIES[0].addr()?, 8)?;
        let pair = Pair::new(&mut server, &mut client, listener)?;
        pair.exchange(&mut server, &mut client)?;
        sleep(REST);
        server.close(pair.server)?;
        client.wait_for(pair.client, libc::POLLRDHUP)?;
        client.send(pair.client, b"request")?;
        client.wait_for(pair.client, libc::POLLHUP)?;
        client
            .send(pair.client, b"its body")
            .expect_err("the peer has sent a RST");
        Ok(Shown {
            events: vec![
                Expect::new("reset.received", "the RST")
                    .at_client(&pair)
                    .owner(&client)
                    .says("error.type", "EPIPE"),
            ],
            findings: vec![
                Named::new(Cause::WriteAfterPeerClose, "after 1.2 s of rest")
                    .of(&client)
                    .with(&server)
                    .hint(Cause::StalePooledConnection),
            ],
        })
    },
};

pub(super) const SILENT: Failure = Failure {
    name: "idle_timeout",
    symptom: "connection reset by peer, after a silence",
    changes_host: None,
    provoke: |stage| {
        let neighbour = stage.netns.neighbour()?;
        let mut server = stage.stranger(&neighbour, "forgets")?;
        let mut client = stage.actor("is-quiet")?;
        let listener = server.listener((Neighbour::THERE, 0).into(), 8)?;
        let pair = Pair::new(&mut server, &mut client, listener)?;
        pair.exchange(&mut server, &mut client)?;
        sleep(SILENCE);
        server.abort(pair.server)?;
        client.wait_for(pair.client, libc::POLLHUP)?;
        client
            .recv(pair.client, 16)
            .expect_err("the peer has sent a RST");
        Ok(Shown {
            events: vec![
                Expect::new("reset.received", "the RST")
                    .at_client(&pair)
                    .owner(&client)
                    .says("error.type", "ECONNRESET"),
            ],
            findings: vec![
                Named::new(Cause::ResetByPeer, "after 5.2 s of silence")
                    .of(&client)
                    .hint(Cause::IdleTimeout),
            ],
        })
    },
};
