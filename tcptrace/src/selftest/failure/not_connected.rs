//! Calls that need a connection on sockets that have none: EPIPE and ENOTCONN.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;

pub(super) const FAILURE: Failure = Failure {
    name: "not_connected",
    symptom: "recv, shutdown: transport endpoint is not connected; send: broken pipe",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        for listens in [true, false] {
            let mut program = stage.actor("too-early")?;
            let (what, fd) = if listens {
                ("a listener", program.listener(FAMILIES[0].addr()?, 8)?.0)
            } else {
                ("an unconnected socket", program.socket(libc::AF_INET6, 0)?)
            };
            program.send(fd, b"x").expect_err("not connected");
            program.recv(fd, 16).expect_err("not connected");
            let mut calls = vec![
                ("EPIPE", "sendto", "failed sends"),
                ("ENOTCONN", "recvfrom", "failed receives"),
            ];
            // Of a listener it would be in order.
            if !listens {
                program
                    .shutdown(fd, libc::SHUT_RDWR)
                    .expect_err("not connected");
                calls.push(("ENOTCONN", "shutdown", "shutdown without a connection"));
            }
            shown.findings.push(
                Named::new(Cause::NotConnected, what)
                    .of(&program)
                    .times(calls.len() as u64),
            );
            let events = calls.into_iter().map(|(error, call, signal)| {
                Expect::new("socket.error", format!("{call} on {what}"))
                    .with("tcptrace.syscall.name", call)
                    .only_of(&program)
                    .through(signal)
                    .says("tcptrace.socket.fd", fd)
                    .says("error.type", error)
            });
            shown.events.extend(events);
        }
        Ok(shown)
    },
};
