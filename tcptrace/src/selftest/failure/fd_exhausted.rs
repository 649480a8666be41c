//! Too many open files: no descriptor is left for a new socket or a waiting connection.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::{Fd, Pair};
use crate::selftest::tracer::Record;

/// Connections the leaking server never closed.
const LEAKED: u64 = 12;
/// Connections that find its accept queue full.
const LATE: u64 = 5;

pub(super) const FAILURE: Failure = Failure {
    name: "fd_exhausted",
    symptom: "accept4 and socket: too many open files",
    changes_host: None,
    provoke: |stage| {
        let mut server = stage.actor("is-full")?;
        let mut client = stage.actor("knocks")?;
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
        Ok(Shown {
            events: vec![
                exhausted("accept4", "accept4, tried 3 times").times(3),
                exhausted("socket", "socket"),
            ],
            findings: vec![
                Named::new(Cause::FdExhausted, "in 4 calls")
                    .of(&server)
                    .times(4),
            ],
        })
    },
};

pub(super) const LEAK: Failure = Failure {
    name: "fd_exhausted.leak",
    symptom: "accept4: too many open files, and clients time out: all from connections never closed",
    changes_host: None,
    provoke: |stage| {
        let mut server = stage.actor("leaks")?;
        let mut client = stage.actor("comes-and-goes")?;
        let listener = server.listener(FAMILIES[0].addr()?, 1)?;
        for _ in 0..LEAKED {
            let pair = Pair::new(&mut server, &mut client, listener)?;
            pair.exchange(&mut server, &mut client)?;
            client.close(pair.client)?;
            server.wait_for(pair.server, libc::POLLRDHUP)?;
        }
        let stuck = Expect::new("close_wait.stuck", "never closed")
            .times(LEAKED)
            .owner(&server);
        stage.wait_for(&stuck)?;
        let limit = u64::try_from(listener.0)? + 1 + LEAKED;
        server.limit_descriptors(limit)?;
        let (listener, addr) = listener;
        for _ in 0..2 {
            client.connected(addr)?;
        }
        server.wait_for_queue(listener, 2)?;
        let pid = Some(server.pid().into());
        let looked_at =
            |record: &Record| record.pid() == pid && record.get("tcptrace.fd.held").is_some();
        let (_, failed) = stage.repeat_until("what the full table holds", looked_at, || {
            server.accept(listener).expect_err("no descriptor is left");
            Ok(())
        })?;
        let late: Vec<Fd> = (0..LATE)
            .map(|_| client.connecting(addr))
            .collect::<Result<_, _>>()?;
        late.into_iter().try_for_each(|fd| client.close(fd))?;
        let named = |cause, what| Named::new(cause, what).of(&server);
        Ok(Shown {
            events: vec![
                stuck,
                Expect::new("fd.exhausted", "accept4")
                    .with("tcptrace.syscall.name", "accept4")
                    .times(failed)
                    .owner(&server)
                    .says("error.type", "EMFILE"),
                Expect::new("accept_queue.overflow", "dropped SYNs")
                    .through("accept queue: SYN dropped")
                    .times(LATE)
                    .owner(&server),
            ],
            findings: vec![
                named(Cause::CloseWaitLeak, "what fills the table").times(LEAKED),
                named(Cause::FdExhausted, "the full table")
                    .times(failed)
                    .follows(Cause::CloseWaitLeak),
                named(Cause::AcceptQueueOverflow, "the queue behind it")
                    .times(LATE)
                    .follows(Cause::FdExhausted),
            ],
        })
    },
};
