//! Too many open files: no descriptor is left for a new socket or a waiting connection.

use super::{Expect, FAMILIES, Failure, actor};

pub(super) const FAILURE: Failure = Failure {
    name: "fd_exhausted",
    symptom: "accept4 and socket: too many open files",
    changes_host: false,
    provoke: |stage| {
        let mut server = actor("is-full")?;
        let mut client = actor("knocks")?;
        let (listener, addr) = server.listener(FAMILIES[0].addr()?, 8)?;
        client.connected(addr)?;
        server.wait_for_queue(listener, 1)?;
        let limit = u64::try_from(listener)? + 1;
        server.limit_descriptors(limit)?;
        for _ in 0..3 {
            server.accept(listener).expect_err("no descriptor is left");
        }
        server
            .socket(libc::AF_INET6, 0)
            .expect_err("no descriptor is left");
        let exhausted = |call: &'static str, what| {
            Expect::new("fd.exhausted", what)
                .with("tcptrace.syscall.name", call)
                .owner(&server)
                .says("error.type", "EMFILE")
                .says("tcptrace.fd.limit", limit)
        };
        let expects = vec![
            exhausted("accept4", "accept4, tried 3 times").times(3),
            exhausted("socket", "socket"),
        ];
        // The limit is read from the process, while there is one.
        stage.wait_for(&expects[1])?;
        Ok(expects)
    },
};
