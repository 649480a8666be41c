//! Bad file descriptor: a socket used after its close, and a call for sockets on what is none.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;

pub(super) const FAILURE: Failure = Failure {
    name: "use_after_close",
    symptom: "sendto: bad file descriptor",
    changes_host: None,
    provoke: |stage| {
        let mut server = stage.actor("answers")?;
        let mut program = stage.actor("confused")?;
        let listener = server.listener(FAMILIES[0].addr()?, 8)?;
        let pair = Pair::new(&mut server, &mut program, listener)?;
        pair.exchange(&mut server, &mut program)?;
        pair.close(&mut server, &mut program)?;
        program
            .send(pair.client, b"late")
            .expect_err("the descriptor is closed");
        program.recv(0, 16).expect_err("stdin is a pipe");
        Ok(Shown {
            events: vec![
                Expect::new("fd.invalid", "sendto on a closed descriptor")
                    .with("tcptrace.syscall.name", "sendto")
                    .owner(&program)
                    .says("tcptrace.socket.fd", pair.client)
                    .says("error.type", "EBADF"),
                Expect::new("fd.invalid", "recvfrom on a pipe")
                    .with("tcptrace.syscall.name", "recvfrom")
                    .owner(&program)
                    .says("tcptrace.socket.fd", 0)
                    .says("error.type", "ENOTSOCK"),
            ],
            findings: vec![
                // Which connection the descriptor was last.
                Named::new(Cause::UseAfterClose, "sendto on a closed descriptor")
                    .of(&program)
                    .says("network.peer.port", pair.server_addr.port()),
            ],
        })
    },
};
