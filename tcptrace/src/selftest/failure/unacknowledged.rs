//! Connection timed out: what was sent is never acknowledged, until the kernel's patience ends or
//! the program's.

use super::{Expect, FAMILIES, Failure, Named, Shown, Stage};
use crate::event::Cause;
use crate::selftest::actor::Pair;

pub(super) const RETRANSMIT: Failure = Failure {
    name: "retransmit_timeout",
    symptom: "read or write: connection timed out, after many retransmissions",
    changes_host: None,
    provoke: |stage| {
        // 1.4 s instead of a quarter of an hour.
        stage.netns.sysctl("net.ipv4.tcp_retries2", "2")?;
        provoke(stage, Cause::RetransmitTimeout, None)
    },
};

pub(super) const USER: Failure = Failure {
    name: "user_timeout",
    symptom: "read or write: connection timed out, by TCP_USER_TIMEOUT",
    changes_host: None,
    provoke: |stage| provoke(stage, Cause::UserTimeout, Some(800)),
};

fn provoke(stage: &Stage, cause: Cause, user_timeout_ms: Option<i32>) -> anyhow::Result<Shown> {
    let mut server = stage.actor("is-cut-off")?;
    let mut client = stage.actor("hears-nothing")?;
    let listener = server.listener(FAMILIES[0].addr()?, 8)?;
    let pair = Pair::new(&mut server, &mut client, listener)?;
    pair.exchange(&mut server, &mut client)?;
    if let Some(ms) = user_timeout_ms {
        let option = libc::TCP_USER_TIMEOUT;
        client.set(pair.client, libc::IPPROTO_TCP, option, &[ms])?;
    }
    stage.netns.set_loopback(false)?;
    client.send(pair.client, b"into the void")?;
    client.wait_for(pair.client, libc::POLLHUP)?;
    client
        .recv(pair.client, 16)
        .expect_err("the connection has timed out");
    Ok(Shown {
        events: vec![
            Expect::new("connection.timeout", "13 bytes unacknowledged")
                .at_client(&pair)
                .owner(&client)
                .says("tcptrace.syscall.errno", libc::ETIMEDOUT),
            Expect::new("socket.error", "what read returned")
                .through("failed receives")
                .with("error.type", "ETIMEDOUT")
                .owner(&client),
        ],
        findings: vec![Named::new(cause, "13 bytes unacknowledged").of(&client)],
    })
}
