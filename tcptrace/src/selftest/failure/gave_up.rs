//! Who gave up: a client that left while its request was in work, answered too late or not at all.

use std::thread::sleep;
use std::time::Duration;

use super::{Expect, FAMILIES, Failure, Named, Shown, TICK};
use crate::event::Cause;
use crate::selftest::actor::Pair;

/// The client's own deadline.
const DEADLINE: Duration = Duration::from_millis(700);
/// Connections that end at the same deadline: so many are no accident.
const CONNECTIONS: usize = 3;

pub(super) const PEER: Failure = Failure {
    name: "peer_gave_up",
    symptom: "write: broken pipe, a 499 in nginx's log",
    changes_host: None,
    provoke: |stage| {
        let mut server = stage.actor("works-slowly")?;
        let mut client = stage.actor("is-impatient")?;
        let listener = server.listener(FAMILIES[0].addr()?, 8)?;
        let pairs: Vec<Pair> = (0..CONNECTIONS)
            .map(|_| Pair::new(&mut server, &mut client, listener))
            .collect::<Result<_, _>>()?;
        for pair in &pairs {
            client.send(pair.client, b"request")?;
            server.recv(pair.server, 64)?;
        }
        sleep(DEADLINE);
        for pair in &pairs {
            client.close(pair.client)?;
            server.wait_for(pair.server, libc::POLLRDHUP)?;
        }
        let mut shown = Shown::default();
        for pair in &pairs {
            server.send(pair.server, b"answer")?;
            server.wait_for(pair.server, libc::POLLHUP)?;
            server
                .send(pair.server, b"its body")
                .expect_err("the client is gone");
            shown.events.push(
                Expect::new("reset.received", "the RST for the answer")
                    .at_server(pair)
                    .owner(&server)
                    .says("error.type", "EPIPE"),
            );
        }
        let named = Named::new(Cause::PeerGaveUp, "3 at the same deadline of 0.7 s")
            .of(&server)
            .with(&client)
            .times(CONNECTIONS as u64)
            .says("tcptrace.finding.confidence", "high");
        shown.findings.push(named);
        Ok(shown)
    },
};

pub(super) const WAITING: Failure = Failure {
    name: "gave_up_waiting",
    symptom: "the program's own deadline: context deadline exceeded, read timed out",
    changes_host: None,
    provoke: |stage| {
        let mut server = stage.actor("hangs")?;
        let mut client = stage.actor("gives-up")?;
        let listener = server.listener(FAMILIES[0].addr()?, 8)?;
        let pair = Pair::new(&mut server, &mut client, listener)?;
        pair.exchange(&mut server, &mut client)?;
        sleep(TICK);
        client.send(pair.client, b"request")?;
        server.recv(pair.server, 64)?;
        sleep(DEADLINE);
        client.close(pair.client)?;
        server.wait_for(pair.server, libc::POLLRDHUP)?;
        Ok(Shown {
            events: vec![
                Expect::new("state.changed", "the client closes")
                    .with("network.connection.state", "fin_wait_1")
                    .at_client(&pair)
                    .owner(&client),
            ],
            findings: vec![
                Named::new(Cause::GaveUpWaiting, "after 0.7 s without an answer")
                    .of(&client)
                    .with(&server),
            ],
        })
    },
};
