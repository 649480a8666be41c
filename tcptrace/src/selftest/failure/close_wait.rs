//! Descriptors grow for days: the peer closed and the process never did.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;

/// Connections each server forgets: so many at a time are no accident.
const FORGOTTEN: u64 = 3;

pub(super) const FAILURE: Failure = Failure {
    name: "close_wait_leak",
    symptom: "descriptors and memory grow; sockets stay in CLOSE_WAIT",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        for (family, reads_the_end) in [
            (FAMILIES[0], false),
            (FAMILIES[0], true),
            (FAMILIES[1], false),
            (FAMILIES[2], false),
        ] {
            let mut server = stage.actor("forgets")?;
            let mut client = stage.actor("leaves")?;
            let listener = server.listener(family.addr()?, 8)?;
            for _ in 0..FORGOTTEN {
                let pair = Pair::new(&mut server, &mut client, listener)?;
                pair.exchange(&mut server, &mut client)?;
                client.close(pair.client)?;
                server.wait_for(pair.server, libc::POLLRDHUP)?;
                if reads_the_end {
                    server.recv(pair.server, 16)?;
                }
            }
            let end = if reads_the_end { "read" } else { "unread" };
            let what = format!("{}: end of stream {end}", family.name);
            shown.events.push(
                Expect::new("close_wait.stuck", what.clone())
                    .local(listener.1)
                    .times(FORGOTTEN)
                    .owner(&server)
                    .says("network.connection.state", "close_wait"),
            );
            shown.findings.push(
                Named::new(Cause::CloseWaitLeak, what)
                    .of(&server)
                    .times(FORGOTTEN),
            );
        }
        for expect in &shown.events {
            stage.wait_for(expect)?;
        }
        Ok(shown)
    },
};
