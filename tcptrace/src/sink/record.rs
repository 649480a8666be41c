//! The record: an event as a flat list of named values, the one list every machine format is made
//! from.

mod attributes;
pub mod name;

use std::fmt;
use std::hash::Hasher as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};
use siphasher::sip::SipHasher24;

pub use attributes::attributes;

use super::Context;
use crate::event::{Event, EventId, Flow, Kind, Severity, SocketId};

/// A value of the record.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// An integer, below 2^53 so that every JSON reader keeps it exact.
    Int(i64),
    /// A fact that holds; one that does not has no key.
    True,
    /// Text as it is.
    Str(&'a str),
    /// Text that is written rather than stored.
    Text(&'a dyn fmt::Display),
    /// Process ids.
    Ints(&'a [u32]),
    /// Lines of text.
    Strs(&'a [String]),
}

/// How grave an event is.
#[must_use]
pub fn severity(event: &Event) -> Severity {
    match &event.kind {
        Kind::Finding(finding) => finding.severity,
        Kind::AcceptQueueOverflow(_)
        | Kind::SynQueueOverflow(_)
        | Kind::ConnectionTimeout(_)
        | Kind::EventsLost(_)
        | Kind::ExportDropped(_) => Severity::Error,
        Kind::ConnectFailed(connect)
            if connect
                .errno
                .is_some_and(|errno| errno.0 == libc::ETIMEDOUT) =>
        {
            Severity::Error
        }
        Kind::ResetSent(_)
        | Kind::ResetReceived(_)
        | Kind::CloseWaitStuck(_)
        | Kind::SocketError(_)
        | Kind::ConnectFailed(_)
        | Kind::FdExhausted(_)
        | Kind::FdInvalid(_) => Severity::Warn,
        // A signal that is not seen is a gap the reader must know of.
        Kind::Coverage(coverage) if coverage.way.is_none() => Severity::Warn,
        Kind::CloseWaitEntered(_)
        | Kind::StateChanged(_)
        | Kind::Retransmit(_)
        | Kind::Coverage(_)
        | Kind::TargetChanged(_)
        | Kind::EventsSuppressed(_)
        | Kind::Summary(_) => Severity::Info,
        Kind::Sockets(found) => found.severity(),
    }
}

/// The version of the record's shape; additions do not change it.
pub const SCHEMA_VERSION: &str = "1.0";

/// What every record of a run says of where it comes from.
pub fn resource(context: &Context) -> impl Iterator<Item = (&'static str, &str)> {
    let always = [
        ("service.name", "tcptrace"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("host.name", &context.host_name),
        ("tcptrace.schema.version", SCHEMA_VERSION),
    ];
    let known = [
        ("host.id", &context.host_id),
        ("tcptrace.boot.id", &context.boot_id),
        ("k8s.node.name", &context.node_name),
    ];
    let known = known
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_deref()?)));
    always.into_iter().chain(known)
}

impl Context {
    /// An event's id, unique over runs.
    pub(crate) fn event_id(&self, id: EventId) -> impl fmt::Display + use<> {
        // By hand, as the ids below: every record has these, and the library's formatting of each
        // would be a twentieth of its time.
        let mut text = [b'-'; 25];
        let run = self.replayed.as_ref().and_then(|it| it.number(id.run()));
        text[..8].copy_from_slice(&hex(run.unwrap_or(self.run).into())[8..]);
        let id = hex(id.in_run());
        let digits = id.iter().skip_while(|&&digit| digit == b'0').count().max(1);
        text[9..9 + digits].copy_from_slice(&id[16 - digits..]);
        fmt::from_fn(move |f| f.write_str(ascii(&text[..9 + digits])))
    }

    /// The same text for all events of one socket. The address of a kernel object must not leave
    /// the program: it would help an attacker. So it is hashed with a key nobody else knows, by
    /// what is made for short messages and a key: <https://www.aumasson.jp/siphash/siphash.pdf>
    fn flow_id(&self, id: SocketId) -> impl fmt::Display + use<> {
        let hashed = if self.replayed.is_some() {
            id.sk
        } else {
            let mut hash = SipHasher24::new_with_key(&self.key);
            hash.write_u64(id.sk);
            hash.write_u64(id.born);
            hash.finish()
        };
        let text = hex(hashed);
        fmt::from_fn(move |f| f.write_str(ascii(&text)))
    }
}

/// A number in 16 digits.
fn hex(number: u64) -> [u8; 16] {
    let digit = |nth: usize| b"0123456789abcdef"[(number >> (60 - 4 * nth) & 15) as usize];
    std::array::from_fn(digit)
}

fn ascii(text: &[u8]) -> &str {
    str::from_utf8(text).unwrap_or_default()
}

/// Community ID version 1 with seed 0, the hash other tools give the same connection; `None` where
/// one end is missing. <https://github.com/corelight/community-id-spec>
fn community_id(flow: &Flow) -> Option<impl fmt::Display + use<>> {
    const SEED: [u8; 2] = [0, 0];
    const TCP_AND_PADDING: [u8; 2] = [6, 0];
    let peer = flow.peer?;
    if flow.local.port() == 0 || flow.local.is_ipv4() != peer.is_ipv4() {
        return None;
    }
    // Both directions hash alike: the smaller end comes first. Without scope or flow label.
    let local = (flow.local.ip(), flow.local.port());
    let peer = (peer.ip(), peer.port());
    let (low, high) = if local <= peer {
        (local, peer)
    } else {
        (peer, local)
    };
    let mut hash = Sha1::new();
    hash.update(SEED);
    for (address, _) in [low, high] {
        match address {
            std::net::IpAddr::V4(address) => hash.update(address.octets()),
            std::net::IpAddr::V6(address) => hash.update(address.octets()),
        }
    }
    hash.update(TCP_AND_PADDING);
    hash.update(low.1.to_be_bytes());
    hash.update(high.1.to_be_bytes());
    let mut text = *b"1:                            ";
    // Twenty bytes are 28 of base64.
    let written = STANDARD.encode_slice(hash.finalize(), &mut text[2..]);
    let len = 2 + written.unwrap_or_default();
    Some(fmt::from_fn(move |f| f.write_str(ascii(&text[..len]))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::samples;

    #[test]
    fn community_id_agrees_with_the_published_vectors() {
        for (one, other, expected) in [
            (
                "128.232.110.120:34855",
                "66.35.250.204:80",
                "1:LQU9qZlK+B5F3KDmev6m5PMibrg=",
            ),
            (
                "[2001:470:e5bf:dead:4957:2174:e82c:4887]:63943",
                "[2607:f8b0:400c:c03::1a]:25",
                "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=",
            ),
        ] {
            for (local, peer) in [(one, other), (other, one)] {
                let flow = samples::flow(local, Some(peer));
                let id = community_id(&flow).map(|id| id.to_string());
                assert_eq!(id.as_deref(), Some(expected), "{local} {peer}");
            }
        }
        assert!(
            community_id(&samples::flow("0.0.0.0:80", None)).is_none(),
            "a listener"
        );
        assert!(community_id(&samples::flow("10.0.0.1:0", Some("10.0.0.2:80"))).is_none());
    }

    #[test]
    fn a_flow_keeps_its_id_and_hides_the_address() {
        let context = samples::context();
        let id = |sk, born| context.flow_id(SocketId { sk, born }).to_string();
        let first = id(0xffff_8881_2345_6780, 7);
        assert_eq!(first, id(0xffff_8881_2345_6780, 7), "the same socket");
        assert_ne!(
            first,
            id(0xffff_8881_2345_6780, 8),
            "another life at the same address"
        );
        assert!(!first.contains("8881234567"), "{first}");
        let other = Context {
            key: [9; 16],
            ..context
        };
        assert_ne!(
            first,
            other
                .flow_id(SocketId {
                    sk: 0xffff_8881_2345_6780,
                    born: 7
                })
                .to_string()
        );
    }
}
