//! A read or write timeout the program set itself: `SO_RCVTIMEO` expired.

use std::time::Duration;

use super::{Expect, FAMILIES, Failure, actor};
use crate::selftest::actor::{Arg, Pair};

pub(super) const FAILURE: Failure = Failure {
    name: "socket_timeout",
    symptom: "read: resource temporarily unavailable (SO_RCVTIMEO)",
    changes_host: false,
    provoke: |_| {
        let mut server = actor("is-silent")?;
        let mut client = actor("loses-patience")?;
        let listener = server.listener(FAMILIES[0].addr()?, 8)?;
        let pair = Pair::new(&mut server, &mut client, listener)?;
        client.set_receive_timeout(pair.client, Duration::from_millis(50))?;
        client
            .recv(pair.client, 16)
            .expect_err("the server is silent");
        // An empty queue is no failure where the program asked not to wait.
        let args = [
            pair.client.into(),
            Arg::Memory(vec![0; 16]),
            16.into(),
            libc::MSG_DONTWAIT.into(),
            0.into(),
            0.into(),
        ];
        client
            .sys(libc::SYS_recvfrom, &args)
            .expect_err("nothing is there");
        Ok(vec![
            Expect::new("socket.error", "recvfrom, after 50 ms")
                .through("failed receives")
                .at_client(&pair)
                .owner(&client)
                .says("error.type", "EAGAIN"),
        ])
    },
};
