//! A connection pool that is flat and busy while requests wait: a story, not a proof.

use super::verdict::Words;
use crate::event::{Count, End, Millis, Timestamp, Workload};

/// A pool this small is a single connection.
const SMALLEST: u32 = 2;
/// Answers that take less long are a busy pool at work.
const SLOW_MS: u64 = 200;

/// What a process waited for, seen more than once.
#[derive(Debug)]
pub(super) struct Pool {
    now: crate::event::Pool,
    inbound: u32,
    inbound_oldest_ms: u64,
    looks: u64,
    begun: Timestamp,
    last: Timestamp,
}

impl Pool {
    /// The pool that is full, if the process waits for one server with all it has while others wait for
    /// the process.
    pub(super) fn of(workload: &Workload, at: Timestamp) -> Option<Self> {
        let full = workload.outbound.iter().find(|pool| {
            pool.connections >= SMALLEST
                && pool.busy == pool.connections
                && pool.oldest_ms >= SLOW_MS
        })?;
        (workload.inbound >= full.connections).then(|| Self {
            now: full.clone(),
            inbound: workload.inbound,
            inbound_oldest_ms: workload.inbound_oldest_ms,
            looks: 1,
            begun: at,
            last: at,
        })
    }

    /// The server it connects to.
    pub(super) fn server(&self) -> std::net::SocketAddr {
        self.now.server
    }

    /// Seen twice, at the same size.
    pub(super) fn is_flat(&self) -> bool {
        self.looks > 1
    }

    /// Seen again. False: it has another size, so it is not flat.
    pub(super) fn again(&mut self, other: &Self) -> bool {
        if other.now.connections != self.now.connections {
            return false;
        }
        self.looks += 1;
        self.last = other.last;
        self.inbound = self.inbound.max(other.inbound);
        self.inbound_oldest_ms = self.inbound_oldest_ms.max(other.inbound_oldest_ms);
        self.now.oldest_ms = self.now.oldest_ms.max(other.now.oldest_ms);
        true
    }

    pub(super) fn words(&self, owner: &str) -> Words {
        let server = End(self.now.server);
        let connections = self.now.connections;
        let span = self.last.0.saturating_sub(self.begun.0) / 1_000_000;
        let flat = if self.looks > 1 {
            format!(
                ", never more in {} over {}",
                Count(self.looks, "look"),
                Millis(span)
            )
        } else {
            String::new()
        };
        Words::new(
            format!(
                "{owner} has {connections} connections to {server}{flat}, all waiting for an answer (the oldest \
                 for {}), while {} of its own wait for it (the oldest for {})",
                Millis(self.now.oldest_ms),
                Count(self.inbound.into(), "client"),
                Millis(self.inbound_oldest_ms)
            ),
            "A pool that has reached its size makes every further request wait for a connection. The clients' \
             deadlines then end requests that had not even begun: broken pipes, full queues and leaks follow. \
             This is what it looks like from outside; the pool's own figures prove it.",
        )
        .fix(format!("see why {server} answers slowly: its slow queries, locks, load"))
        .fix("look at the pool's figures (active, idle, waiting) and for connections that are not given back")
        .fix("limit what is let in to what the pool can serve, and give waiting for the pool a deadline; a larger pool only if the server can take it")
        .ruled_out("the clients: they wait for this process")
    }
}
