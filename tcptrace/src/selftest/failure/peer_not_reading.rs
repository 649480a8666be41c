//! Connection timed out: the peer's program does not read, so that its window stays closed.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;
use crate::selftest::tracer::Record;

/// Soon full.
const BUFFER: i32 = 16_384;

pub(super) const FAILURE: Failure = Failure {
    name: "peer_not_reading",
    symptom: "write: connection timed out, and the network is well",
    changes_host: None,
    provoke: |stage| {
        let mut server = stage.actor("does-not-read")?;
        let mut client = stage.actor("writes-on")?;
        let listener = server.listener(FAMILIES[0].addr()?, 8)?;
        // Its connections inherit the buffer. Shrunk later, it would drop what its window invited.
        server.set(listener.0, libc::SOL_SOCKET, libc::SO_RCVBUF, &[BUFFER])?;
        let pid = Some(client.pid().into());
        let names_the_reader = |record: &Record| {
            record.name() == "connection.timeout"
                && record.pid() == pid
                && record.get("tcptrace.other_end.pid").is_some()
        };
        let time_out = || {
            let pair = Pair::new(&mut server, &mut client, listener)?;
            pair.exchange(&mut server, &mut client)?;
            client.set(pair.client, libc::SOL_SOCKET, libc::SO_SNDBUF, &[BUFFER])?;
            client.fill(pair.client)?;
            // Without it a closed window is probed for a quarter of an hour.
            let option = libc::TCP_USER_TIMEOUT;
            client.set(pair.client, libc::IPPROTO_TCP, option, &[800])?;
            client.wait_for(pair.client, libc::POLLHUP)?;
            client
                .recv(pair.client, 16)
                .expect_err("the connection has timed out");
            Ok(())
        };
        let (_, times) = stage.repeat_until("who does not read", names_the_reader, time_out)?;
        Ok(Shown {
            events: vec![
                Expect::new("connection.timeout", "under TCP_USER_TIMEOUT 800 ms")
                    .times(times)
                    .owner(&client)
                    .says("tcptrace.syscall.errno", libc::ETIMEDOUT),
            ],
            findings: vec![
                Named::new(Cause::PeerNotReading, "the window stayed 0")
                    .times(times)
                    .of(&client)
                    .with(&server),
            ],
        })
    },
};
