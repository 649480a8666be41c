//! A peer keeps talking to a connection this host forgot.

use super::{Expect, FAMILIES, Failure, NO_SOCKET, Named, Shown};
use crate::event::Cause;

/// A socket under repair connects without a word, as one does that comes back from a checkpoint: the
/// other end knows nothing of it.
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_output.c> (`tcp_connect`)
const TCP_REPAIR_ON: i32 = 1;
/// Back to work, without the window probe that usually says so.
const TCP_REPAIR_OFF_NO_WP: i32 = -1;

pub(super) const FAILURE: Failure = Failure {
    name: "stale_connection",
    symptom: "connection reset by peer, after this host restarted or failed over",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        for listens in [false, true] {
            let mut server = stage.actor("has-forgotten")?;
            let mut client = stage.actor("keeps-talking")?;
            let (listener, addr) = server.listener(FAMILIES[0].addr()?, 8)?;
            if !listens {
                server.close(listener)?;
            }
            let fd = client.socket(libc::AF_INET, 0)?;
            let option = libc::TCP_REPAIR;
            client.set(fd, libc::IPPROTO_TCP, option, &[TCP_REPAIR_ON])?;
            client.connect(fd, addr)?;
            client.set(fd, libc::IPPROTO_TCP, option, &[TCP_REPAIR_OFF_NO_WP])?;
            client.send(fd, b"still here")?;
            client.wait_for(fd, libc::POLLHUP)?;
            client
                .recv(fd, 16)
                .expect_err("nobody knows the connection");
            let what = if listens {
                "the port has a listener"
            } else {
                "the port is closed"
            };
            shown.events.push(
                Expect::new("reset.sent", what)
                    .local(addr)
                    .through(NO_SOCKET),
            );
            let named = Named::new(Cause::StaleConnection, what).with(&client);
            shown
                .findings
                .push(if listens { named.of(&server) } else { named });
        }
        Ok(shown)
    },
};
