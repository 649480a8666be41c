//! Connection timed out: no keepalive probe was answered.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;

pub(super) const FAILURE: Failure = Failure {
    name: "keepalive_timeout",
    symptom: "read: connection timed out, on a silent connection",
    changes_host: None,
    provoke: |stage| {
        let mut server = stage.actor("is-cut-off")?;
        let mut client = stage.actor("keeps-alive")?;
        let listener = server.listener(FAMILIES[0].addr()?, 8)?;
        let pair = Pair::new(&mut server, &mut client, listener)?;
        pair.exchange(&mut server, &mut client)?;
        let fd = pair.client;
        client.set(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &[1])?;
        for option in [libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL, libc::TCP_KEEPCNT] {
            client.set(fd, libc::IPPROTO_TCP, option, &[1])?;
        }
        stage.netns.set_loopback(false)?;
        client.wait_for(fd, libc::POLLHUP)?;
        client
            .recv(fd, 16)
            .expect_err("the connection has timed out");
        Ok(Shown {
            events: vec![
                Expect::new("connection.timeout", "keepalive probes")
                    .at_client(&pair)
                    .owner(&client)
                    .says("tcptrace.syscall.errno", libc::ETIMEDOUT),
                Expect::new("reset.sent", "the RST of the keepalive timer")
                    .at_client(&pair)
                    .owner(&client),
                Expect::new("socket.error", "what read returned")
                    .through("failed receives")
                    .with("error.type", "ETIMEDOUT")
                    .owner(&client),
            ],
            findings: vec![Named::new(Cause::KeepaliveTimeout, "1 probe").of(&client)],
        })
    },
};
