//! Everything is slow, then pipes break: a pool of connections is held flat and busy while requests
//! wait.

use std::thread::sleep;
use std::time::Duration;

use super::{Expect, FAMILIES, Failure, Named, Shown, TICK};
use crate::event::Cause;
use crate::selftest::actor::{Fd, Pair};

/// Connections in the pool.
const POOL: usize = 2;
/// Clients that wait for the process with the pool.
const CLIENTS: usize = 4;
/// The deadline of the one that gives up.
const DEADLINE: Duration = Duration::from_millis(700);

pub(super) const FAILURE: Failure = Failure {
    name: "pool_exhausted",
    symptom: "everything is slow, then clients time out",
    changes_host: None,
    provoke: |stage| {
        let mut database = stage.actor("is-stuck")?;
        let mut server = stage.actor("has-a-pool")?;
        let mut client = stage.actor("waits")?;
        let listener = database.listener(FAMILIES[0].addr()?, 8)?;
        for _ in 0..POOL {
            let query = Pair::new(&mut database, &mut server, listener)?;
            sleep(TICK);
            server.send(query.client, b"query")?;
            database.recv(query.server, 64)?;
        }
        let listener = server.listener(FAMILIES[0].addr()?, 8)?;
        let mut waiting: Vec<Fd> = vec![];
        for _ in 0..CLIENTS {
            let pair = Pair::new(&mut server, &mut client, listener)?;
            sleep(TICK);
            client.send(pair.client, b"request")?;
            server.recv(pair.server, 64)?;
            waiting.push(pair.client);
        }
        sleep(DEADLINE);
        if let Some(fd) = waiting.pop() {
            client.close(fd)?;
        }
        // The process is looked at as its client leaves, and again when the connection is still not
        // closed 10 s later.
        let pid = Some(server.pid().into());
        stage.wait_until("the pool at work", |record| {
            record.name() == "close_wait.stuck"
                && record.pid() == pid
                && record.get("tcptrace.work.inbound").is_some()
        })?;
        Ok(Shown {
            events: vec![
                Expect::new("close_wait.stuck", "told of after 1 s and 10 s")
                    .times(2)
                    .owner(&server),
            ],
            findings: vec![
                Named::new(Cause::PoolExhausted, "2 connections, both busy")
                    .of(&server)
                    .says("tcptrace.finding.confidence", "low"),
                Named::new(Cause::GaveUpWaiting, "the client that left")
                    .of(&client)
                    .with(&server),
            ],
        })
    },
};
