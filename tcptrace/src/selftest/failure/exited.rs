//! The process exited or was killed with connections open: a RST where bytes were unread, a FIN
//! where none were.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;

pub(super) const FAILURE: Failure = Failure {
    name: "process_exited",
    symptom: "connection reset by peer, or end of stream, as a process dies",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        for (family, killed) in [(FAMILIES[0], false), (FAMILIES[1], true)] {
            let mut server = stage.actor(if killed { "is-killed" } else { "exits" })?;
            let mut client = stage.actor("stays")?;
            let listener = server.listener(family.addr()?, 8)?;
            let unread = Pair::new(&mut server, &mut client, listener)?;
            let read = Pair::new(&mut server, &mut client, listener)?;
            client.send(unread.client, b"request")?;
            server.wait_for_unread(unread.server, 7)?;
            let how = if killed {
                server.kill()?;
                ("tcptrace.exit.signal", libc::SIGKILL)
            } else {
                server.exit(3)?;
                ("tcptrace.exit.code", 3)
            };
            client.wait_for(unread.client, libc::POLLHUP)?;
            client.wait_for(read.client, libc::POLLRDHUP)?;
            client.close(read.client)?;
            let word = if killed { "killed" } else { "exit(3)" };
            shown.events.extend([
                Expect::new("reset.sent", format!("{word}: the RST for 7 unread bytes"))
                    .at_server(&unread)
                    .owner(&server)
                    .says("tcptrace.socket.unread", 7)
                    .says(how.0, how.1)
                    .says("error.type", "process_exited"),
                Expect::new(
                    "reset.sent",
                    format!("{word}: no RST where nothing was unread"),
                )
                .at_server(&read)
                .times(0),
                Expect::new("reset.received", format!("{word}: at the peer"))
                    .at_client(&unread)
                    .owner(&client)
                    .says("error.type", "ECONNRESET"),
            ]);
            shown.findings.push(
                Named::new(Cause::ProcessExited, word)
                    .of(&server)
                    .with(&client)
                    .times(2)
                    .says(how.0, how.1),
            );
        }
        Ok(shown)
    },
};
