//! A read or write timeout the program set itself: `SO_RCVTIMEO` or `SO_SNDTIMEO` expired.

use std::time::Duration;

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::{Arg, Pair};

const TIMEOUT: Duration = Duration::from_millis(50);
/// Soon full.
const BUFFER: i32 = 16_384;

pub(super) const FAILURE: Failure = Failure {
    name: "socket_timeout",
    symptom: "read, write: resource temporarily unavailable (SO_RCVTIMEO, SO_SNDTIMEO)",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        for sends in [false, true] {
            let mut server = stage.actor("is-silent")?;
            let mut client = stage.actor("loses-patience")?;
            let listener = server.listener(FAMILIES[0].addr()?, 8)?;
            server.set(listener.0, libc::SOL_SOCKET, libc::SO_RCVBUF, &[BUFFER])?;
            let pair = Pair::new(&mut server, &mut client, listener)?;
            pair.exchange(&mut server, &mut client)?;
            let fd = pair.client;
            // A full buffer and an empty queue are no failure where the program asked not to wait.
            let (what, signal) = if sends {
                client.set(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &[BUFFER])?;
                client.set_send_timeout(fd, TIMEOUT)?;
                // What was sent in part before the time was up is no error yet.
                while client.send(fd, &[0; 4096]).is_ok() {}
                ("sendto, after 50 ms", "failed sends")
            } else {
                client.set_receive_timeout(fd, TIMEOUT)?;
                client.recv(fd, 16).expect_err("the server is silent");
                let args = [
                    fd.into(),
                    Arg::Memory(vec![0; 16]),
                    16.into(),
                    libc::MSG_DONTWAIT.into(),
                    0.into(),
                    0.into(),
                ];
                client
                    .sys(libc::SYS_recvfrom, &args)
                    .expect_err("nothing is there");
                ("recvfrom, after 50 ms", "failed receives")
            };
            shown.events.push(
                Expect::new("socket.error", what)
                    .through(signal)
                    .at_client(&pair)
                    .owner(&client)
                    .says("error.type", "EAGAIN"),
            );
            shown
                .findings
                .push(Named::new(Cause::SocketTimeout, what).of(&client));
        }
        Ok(shown)
    },
};
