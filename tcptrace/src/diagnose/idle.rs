//! Silence: what may have forgotten a connection nobody used.

use super::connection::End;
use crate::event::{Cause, Side, Socket};

/// Shorter silences are the pace of a conversation.
const SILENCE_MS: u64 = 5_000;
/// A pool's connection that rests this long has nobody who waits for it.
const REST_MS: u64 = 1_000;

/// How long neither end had been heard of when a RST came, where it came after a silence: at once
/// upon a write, or unasked.
pub(super) fn silence_before_reset(socket: &Socket) -> Option<u64> {
    let heard = socket.heard_ago_ms?;
    (heard >= SILENCE_MS).then_some(heard)
}

/// The RST answered a write of this end: the write is one round trip old.
pub(super) fn answered_our_write(socket: &Socket) -> bool {
    let round_trip = u64::from(socket.rtt_us.unwrap_or_default()) / 1_000;
    // The kernel counts these times in ticks of up to 10 ms.
    let soon = 2 * round_trip + 10;
    socket.unacked > 0 && socket.sent_ago_ms.is_some_and(|ago| ago <= soon)
}

/// The connecting end, as far as is known: of a connection older than the tracer the one whose port
/// the kernel chose.
fn is_client(socket: &Socket) -> bool {
    match (socket.side, socket.flow.peer) {
        (Some(side), _) => side == Side::Client,
        (None, Some(peer)) => peer.port() < socket.flow.local.port(),
        (None, None) => false,
    }
}

/// A client used a connection again that its server had closed while it rested.
pub(super) fn stale_pooled(client: &End) -> Option<Cause> {
    let rested = client.sockets().any(|socket| {
        is_client(socket)
            && socket.bytes_received > 0
            && socket.fin.is_some_and(|fin| fin.idle_ms >= REST_MS)
    });
    rested.then_some(Cause::StalePooledConnection)
}
