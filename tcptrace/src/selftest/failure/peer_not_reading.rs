//! Connection timed out: the peer's program does not read, so that its window stays closed.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;

pub(super) const FAILURE: Failure = Failure {
    name: "peer_not_reading",
    symptom: "write: connection timed out, and the network is well",
    changes_host: None,
    provoke: |stage| {
        let mut server = stage.actor("does-not-read")?;
        let mut client = stage.actor("writes-on")?;
        let listener = server.listener(FAMILIES[0].addr()?, 8)?;
        let pair = Pair::new(&mut server, &mut client, listener)?;
        pair.exchange(&mut server, &mut client)?;
        // Without it a closed window is probed for a quarter of an hour.
        let option = libc::TCP_USER_TIMEOUT;
        client.set(pair.client, libc::IPPROTO_TCP, option, &[800])?;
        client.fill(pair.client)?;
        client.wait_for(pair.client, libc::POLLHUP)?;
        client
            .recv(pair.client, 16)
            .expect_err("the connection has timed out");
        Ok(Shown {
            events: vec![
                Expect::new("connection.timeout", "under TCP_USER_TIMEOUT 800 ms")
                    .at_client(&pair)
                    .owner(&client)
                    .says("tcptrace.syscall.errno", libc::ETIMEDOUT),
            ],
            findings: vec![
                Named::new(Cause::PeerNotReading, "the window stayed 0")
                    .of(&client)
                    .with(&server),
            ],
        })
    },
};
