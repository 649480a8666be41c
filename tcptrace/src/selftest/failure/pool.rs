//! Everything is slow, then pipes break: a pool of connections is held flat and busy while requests
//! wait.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Context as _;

use super::{Expect, FAMILIES, Failure, Named, Shown, TICK};
use crate::event::Cause;
use crate::selftest::actor::{Fd, Pair};
use crate::selftest::tracer::Record;

/// Connections in the pool.
const POOL: usize = 2;
/// Clients that wait for the process with the pool: more than leave.
const CLIENTS: usize = 80;
/// The same is not looked at again sooner.
const APART: Duration = Duration::from_millis(1_200);
/// The deadline of those that give up.
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
        // The process is looked at as a client leaves. The pool is flat when it is so twice.
        let pid = Some(server.pid().into());
        let is_look =
            |record: &Record| record.pid() == pid && record.get("tcptrace.work.inbound").is_some();
        let mut leave = || {
            let fd = waiting.pop().context("no client is left")?;
            Ok(client.close(fd)?)
        };
        let (first, before) = stage.repeat_until("the pool", is_look, &mut leave)?;
        sleep(APART);
        let is_next = |record: &Record| is_look(record) && record != &first;
        let (_, after) = stage.repeat_until("the pool later on", is_next, &mut leave)?;
        let left = before + after;
        Ok(Shown {
            events: vec![
                Expect::new("state.changed", "clients that left")
                    .with("network.connection.state", "close_wait")
                    .times(left)
                    .owner(&server),
            ],
            findings: vec![
                Named::new(Cause::PoolExhausted, "2 connections, both busy")
                    .of(&server)
                    .times_unknown()
                    .says("tcptrace.finding.confidence", "low"),
                Named::new(Cause::GaveUpWaiting, "the clients that left")
                    .of(&client)
                    .with(&server)
                    .times(left),
            ],
        })
    },
};
