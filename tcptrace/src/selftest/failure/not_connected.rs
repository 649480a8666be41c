//! Sending and receiving on sockets that are not connected: EPIPE and ENOTCONN.

use super::{Expect, FAMILIES, Failure, actor};

pub(super) const FAILURE: Failure = Failure {
    name: "not_connected",
    symptom: "recv: transport endpoint is not connected; send: broken pipe",
    changes_host: false,
    provoke: |_| {
        let mut program = actor("too-early")?;
        let (listener, _) = program.listener(FAMILIES[0].addr()?, 8)?;
        let fresh = program.socket(libc::AF_INET6, 0)?;
        let mut expects = vec![];
        for (fd, what) in [(listener, "a listener"), (fresh, "an unconnected socket")] {
            program.send(fd, b"x").expect_err("not connected");
            program.recv(fd, 16).expect_err("not connected");
            for (error, call, signal) in [
                ("EPIPE", "sendto", "failed sends"),
                ("ENOTCONN", "recvfrom", "failed receives"),
            ] {
                expects.push(
                    Expect::new("socket.error", format!("{call} on {what}"))
                        .with("tcptrace.socket.fd", fd)
                        .with("tcptrace.syscall.name", call)
                        .owner(&program)
                        .through(signal)
                        .says("error.type", error),
                );
            }
        }
        Ok(expects)
    },
};
