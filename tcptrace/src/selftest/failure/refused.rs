//! Connection refused: nobody listens on that port.

use super::{Expect, FAMILIES, Failure, NO_SOCKET, actor};

pub(super) const FAILURE: Failure = Failure {
    name: "no_listener",
    symptom: "connect: connection refused",
    changes_host: false,
    provoke: |_| {
        let mut expects = vec![];
        for family in FAMILIES {
            let mut server = actor("leaves")?;
            let mut client = actor("is-refused")?;
            let (listener, addr) = server.listener(family.addr()?, 8)?;
            server.close(listener)?;
            client.connected(addr).expect_err("nobody listens there");
            expects.extend([
                Expect::new("connect.failed", format!("{}: connect", family.name))
                    .peer(addr)
                    .owner(&client)
                    .says("error.type", "ECONNREFUSED"),
                Expect::new(
                    "reset.sent",
                    format!("{}: the RST of the closed port", family.name),
                )
                .local(addr)
                .unless(NO_SOCKET)
                .says("error.type", "no_listener"),
            ]);
        }
        Ok(expects)
    },
};
