//! JSON in the shape of OpenTelemetry's log data model.

use bytes::{BufMut as _, BytesMut};
use jiff::Timestamp;
use serde::ser::{Error as _, SerializeMap as _};
use serde::{Serialize, Serializer};

use super::record::{self, Severity, Value, name};
use super::{Body, Context, Error};
use crate::event::{self, Event};

/// A line is never longer: the smallest limit of the log collectors we know.
const MAX_LINE: usize = 8_000;

/// The version of the record's shape; additions do not change it.
const SCHEMA_VERSION: &str = "1.0";

/// The longest text in a line that would be too long otherwise, in bytes. JSON writes a byte with at
/// most six, and at most six such texts are in a record.
const LEAN_TEXT: usize = 96;

/// Adds one line.
pub(super) fn line(context: &Context, event: &Event, to: &mut BytesMut) -> Result<(), Error> {
    let start = to.len();
    for lean in [false, true] {
        to.truncate(start);
        serde_json::to_writer(to.writer(), &Envelope::new(context, event, lean))
            .map_err(|error| failed(&error))?;
        to.put_u8(b'\n');
        if to.len() - start <= MAX_LINE {
            break;
        }
    }
    Ok(())
}

/// Adds the same over several lines, without a limit: it is for reading.
pub(super) fn pretty(context: &Context, event: &Event, to: &mut BytesMut) -> Result<(), Error> {
    serde_json::to_writer_pretty(to.writer(), &Envelope::new(context, event, false))
        .map_err(|error| failed(&error))?;
    to.put_u8(b'\n');
    Ok(())
}

fn failed(error: &serde_json::Error) -> Error {
    Error::Failed(format!(
        "cannot write an event as JSON: {error}; please report this"
    ))
}

#[derive(Serialize)]
struct Envelope<'a> {
    timestamp: Rfc3339,
    event_name: &'static str,
    severity_text: &'static str,
    severity_number: u8,
    body: Text<Body<'a>>,
    attributes: Attributes<'a>,
    resource: Resource<'a>,
    schema_version: &'static str,
}

impl<'a> Envelope<'a> {
    fn new(context: &'a Context, event: &'a Event, lean: bool) -> Self {
        let severity = Severity::of(event);
        Self {
            timestamp: Rfc3339(event.time),
            event_name: event.name(),
            severity_text: severity.as_str(),
            severity_number: severity as u8,
            body: Text {
                text: Body(event),
                lean,
            },
            attributes: Attributes {
                context,
                event,
                lean,
            },
            resource: Resource {
                service_name: "tcptrace",
                service_version: env!("CARGO_PKG_VERSION"),
                host_name: &context.host_name,
                host_id: context.host_id.as_deref(),
            },
            schema_version: SCHEMA_VERSION,
        }
    }
}

#[derive(Serialize)]
struct Resource<'a> {
    #[serde(rename = "service.name")]
    service_name: &'static str,
    #[serde(rename = "service.version")]
    service_version: &'static str,
    #[serde(rename = "host.name")]
    host_name: &'a str,
    #[serde(rename = "host.id", skip_serializing_if = "Option::is_none")]
    host_id: Option<&'a str>,
}

/// In UTC, always to the nanosecond.
struct Rfc3339(event::Timestamp);

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = Timestamp::from_nanosecond(i128::from(self.0.0)).map_err(S::Error::custom)?;
        serializer.collect_str(&format_args!("{time:.9}"))
    }
}

/// Text, cut where the line must be lean.
struct Text<T> {
    text: T,
    lean: bool,
}

impl<T: std::fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.lean {
            serializer.serialize_str(cut(&self.text.to_string()))
        } else {
            serializer.collect_str(&self.text)
        }
    }
}

struct Attributes<'a> {
    context: &'a Context,
    event: &'a Event,
    lean: bool,
}

impl Serialize for Attributes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        record::attributes(self.context, self.event, &mut |name, value| {
            if self.lean && is_shed(name) {
                return Ok(());
            }
            match value {
                Value::Int(value) => map.serialize_entry(name, &value),
                Value::True => map.serialize_entry(name, &true),
                Value::Str(value) if self.lean => map.serialize_entry(name, cut(value)),
                Value::Str(value) => map.serialize_entry(name, value),
                Value::Text(value) => map.serialize_entry(
                    name,
                    &Text {
                        text: value,
                        lean: self.lean,
                    },
                ),
                Value::Ints(value) => map.serialize_entry(name, value),
                Value::Strs(value) => map.serialize_entry(name, value),
            }
        })?;
        map.end()
    }
}

/// What a line that is too long does without: what has no bound and is in `/proc` or on the terminal
/// as well. Cut short it would be wrong.
fn is_shed(name: &str) -> bool {
    [
        name::PROCESS_PATH,
        name::OWNER_PIDS,
        name::SUMMARY_KINDS,
        name::SUMMARY_PROCESSES,
        name::SUMMARY_LISTENERS,
    ]
    .contains(&name)
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LEAN_TEXT)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{IpAddr, SocketAddr};
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::diagnose::Cause;
    use crate::event::{Comm, Kind, Summary, SummaryRow};
    use crate::sink::{samples, schema};

    fn parsed(event: &Event) -> Json {
        let mut buffer = BytesMut::new();
        line(&samples::context(), event, &mut buffer).expect("a sample can be written");
        serde_json::from_slice(&buffer).expect("a line is JSON")
    }

    static VALIDATOR: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
        let schema = serde_json::from_str(schema()).expect("the schema is JSON");
        jsonschema::validator_for(&schema).expect("the schema is a schema")
    });

    #[test]
    fn every_kind_is_as_the_schema_says() {
        let mut seen = BTreeSet::new();
        for event in samples::all() {
            let record = parsed(&event);
            if let Err(error) = VALIDATOR.validate(&record) {
                panic!("{error} at {} in {record:#}", error.instance_path());
            }
            seen.insert(event.name());
        }
        let schema: Json = serde_json::from_str(schema()).expect("the schema is JSON");
        let events = schema["$defs"]["event"]["enum"]
            .as_array()
            .expect("a list of events");
        assert_eq!(
            seen,
            events.iter().filter_map(Json::as_str).collect(),
            "a sample of each kind"
        );
    }

    #[test]
    fn the_schema_refuses_what_the_contract_does_not_allow() {
        let good = parsed(&samples::reset_sent());
        assert!(VALIDATOR.is_valid(&good));
        let changed = |pointer: &str, key: &str, value: Json| {
            let mut record = good.clone();
            let object = record.pointer_mut(pointer).and_then(Json::as_object_mut);
            object.expect("an object").insert(key.to_owned(), value);
            record
        };
        for (pointer, key, value) in [
            ("/attributes", "process.pid", json!("1234")),
            ("/attributes", "process.pid", json!(null)),
            ("/attributes", "tcptrace.unknown", json!(1)),
            ("/attributes", "tcptrace.cause", json!("TCP_STATE")),
            (
                "/attributes",
                "tcptrace.flow.id",
                json!("ffff888123456780-"),
            ),
            (
                "/attributes",
                "otel.event.name",
                json!("tcptrace.retransmit"),
            ),
            ("/attributes", "tcptrace.socket.unread", json!(-1)),
            ("/resource", "service.name", json!("other")),
            ("", "timestamp", json!("2026-11-20T11:10:03Z")),
            ("", "extra", json!(1)),
            ("", "event_name", json!("tcptrace.retransmit")),
        ] {
            let record = changed(pointer, key, value);
            assert!(!VALIDATOR.is_valid(&record), "{pointer} {key} in {record}");
        }
    }

    #[test]
    fn the_schema_knows_every_attribute_and_cause() {
        let schema: Json = serde_json::from_str(schema()).expect("the schema is JSON");
        let properties = schema["$defs"]["attributes"]["properties"].as_object();
        let properties: BTreeSet<_> = properties
            .expect("the attributes")
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(properties, name::ALL.iter().copied().collect());
        let causes = schema["$defs"]["cause"]["enum"]
            .as_array()
            .expect("the causes");
        let causes: Vec<_> = causes.iter().filter_map(Json::as_str).collect();
        let known: Vec<_> = Cause::ALL.iter().map(|cause| cause.as_str()).collect();
        assert_eq!(causes, known);
    }

    #[test]
    fn a_line_too_long_sheds_what_has_no_bound() {
        let mut event = samples::write_failed();
        event.owner.holders = (1..=4_000).collect();
        let record = parsed(&event);
        assert_eq!(record["attributes"].get("tcptrace.owner.pids"), None);
        assert_eq!(record["attributes"].get("process.executable.path"), None);
        assert_eq!(record["attributes"]["process.executable.name"], "nginx");
        assert_eq!(record["attributes"]["tcptrace.owner.confidence"], "shared");
    }

    /// The worst a record can hold: every text is long and made of what JSON writes longest.
    #[test]
    fn the_worst_texts_fit() {
        let worst = "\u{1}".repeat(4_096);
        for mut event in samples::all() {
            let hostile = crate::event::Process {
                comm: Comm::new([1; 16]),
                exe: Some(worst.as_str().into()),
                ..samples::nginx()
            };
            event.owner.process = Some(hostile.clone());
            event.actor = Some(hostile);
            match &mut event.kind {
                Kind::Coverage(coverage) => {
                    coverage.way = Some(worst.clone());
                    coverage.note = Some(worst.clone());
                }
                Kind::Summary(summary) => {
                    let row = SummaryRow {
                        name: "x",
                        error: Some(worst.clone()),
                        count: 1,
                    };
                    *summary = Summary {
                        kinds: vec![row; 100],
                        ..summary.clone()
                    };
                }
                Kind::ResetSent(reset) => {
                    reset.reason = Some(crate::event::ResetReason(worst.clone().into()));
                }
                _ => {}
            }
            let mut buffer = BytesMut::new();
            line(&samples::context(), &event, &mut buffer).expect("it can be written");
            assert!(
                buffer.len() <= MAX_LINE,
                "{}: {} bytes",
                event.name(),
                buffer.len()
            );
        }
    }

    proptest! {
        #[test]
        fn any_name_and_flow_is_one_valid_line(
            comm: [u8; 16],
            exe in proptest::option::of(".*"),
            local: (IpAddr, u16),
            peer: Option<(IpAddr, u16)>,
            time: u64,
            id: u64,
            sk: u64,
        ) {
            let mut event = samples::reset_sent();
            event.time = event::Timestamp(time);
            event.id = event::EventId(id);
            if let Some(socket) = &mut event.socket {
                socket.id.sk = sk;
                socket.flow.local = SocketAddr::from(local);
                // A connection has a port at its other end: decode never gives 0.
                socket.flow.peer = peer.map(|(ip, port)| SocketAddr::new(ip, port.max(1)));
            }
            if let Some(process) = &mut event.owner.process {
                process.comm = Comm::new(comm);
                process.exe = exe.map(Into::into);
            }
            let mut buffer = BytesMut::new();
            line(&samples::context(), &event, &mut buffer).expect("it can be written");
            prop_assert!(buffer.len() <= MAX_LINE);
            prop_assert_eq!(
                buffer.iter().position(|&byte| byte == b'\n'),
                Some(buffer.len() - 1)
            );
            let record: Json = serde_json::from_slice(&buffer).expect("a line is JSON");
            prop_assert!(VALIDATOR.is_valid(&record), "{}", record);
        }
    }

    fn rendered(event: &Event) -> String {
        let mut buffer = BytesMut::new();
        pretty(&samples::context(), event, &mut buffer).expect("a sample can be written");
        String::from_utf8(buffer.to_vec()).expect("JSON is text")
    }

    #[test]
    fn a_reset_sent() {
        insta::assert_snapshot!(rendered(&samples::reset_sent()), @r#"
        {
          "timestamp": "2026-11-20T11:10:03.123456789Z",
          "event_name": "tcptrace.reset.sent",
          "severity_text": "WARN",
          "severity_number": 13,
          "body": "RST sent: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, closed fd 17, 512 bytes unread [kernel: TCP_ABORT_ON_CLOSE]",
          "attributes": {
            "otel.event.name": "tcptrace.reset.sent",
            "tcptrace.event.id": "5eed0001-40000000002",
            "error.type": "closed_with_unread_data",
            "tcptrace.cause": "closed_with_unread_data",
            "network.transport": "tcp",
            "network.type": "ipv4",
            "network.local.address": "10.0.0.1",
            "network.local.port": 8080,
            "network.peer.address": "203.0.113.7",
            "network.peer.port": 51234,
            "network.connection.state": "close_wait",
            "tcptrace.flow.id": "0cd1ebaa0932a289",
            "tcptrace.flow.community_id": "1:fkNrbdicjWJL9BX/zAJQsVAzEmI=",
            "tcptrace.netns": 4026531840,
            "tcptrace.idle_ms": 1250,
            "tcptrace.socket.received_ago_ms": 1250,
            "tcptrace.socket.sent_ago_ms": 61000,
            "tcptrace.socket.inode": 81234,
            "tcptrace.socket.unread": 512,
            "tcptrace.socket.unacked": 0,
            "tcptrace.socket.retransmits": 0,
            "tcptrace.socket.rtt_us": 230,
            "tcptrace.socket.nonblocking": true,
            "tcptrace.socket.fd": 17,
            "process.pid": 1234,
            "thread.id": 1240,
            "process.executable.name": "nginx",
            "process.executable.path": "/usr/sbin/nginx",
            "tcptrace.process.comm": "nginx",
            "process.user.id": 33,
            "tcptrace.owner.confidence": "exact",
            "tcptrace.reset.kernel_reason": "TCP_ABORT_ON_CLOSE",
            "tcptrace.syscall.name": "close"
          },
          "resource": {
            "service.name": "tcptrace",
            "service.version": "0.1.0",
            "host.name": "node-1",
            "host.id": "0123456789abcdef0123456789abcdef"
          },
          "schema_version": "1.0"
        }
        "#);
    }

    #[test]
    fn a_write_of_one_of_several_holders() {
        insta::assert_snapshot!(rendered(&samples::write_failed()), @r#"
        {
          "timestamp": "2026-11-20T11:10:03.123456789Z",
          "event_name": "tcptrace.socket.error",
          "severity_text": "WARN",
          "severity_number": 13,
          "body": "write failed: nginx[1234], 10.0.0.1:8080 > 203.0.113.7:51234, EPIPE (broken pipe), sendto fd 17 (owner shared by 3)",
          "attributes": {
            "otel.event.name": "tcptrace.socket.error",
            "tcptrace.event.id": "5eed0001-40000000002",
            "tcptrace.caused_by": "5eed0001-40000000001",
            "error.type": "EPIPE",
            "network.transport": "tcp",
            "network.type": "ipv4",
            "network.local.address": "10.0.0.1",
            "network.local.port": 8080,
            "network.peer.address": "203.0.113.7",
            "network.peer.port": 51234,
            "network.connection.state": "closed",
            "tcptrace.flow.id": "0cd1ebaa0932a289",
            "tcptrace.flow.community_id": "1:fkNrbdicjWJL9BX/zAJQsVAzEmI=",
            "tcptrace.netns": 4026531840,
            "tcptrace.idle_ms": 1250,
            "tcptrace.socket.received_ago_ms": 1250,
            "tcptrace.socket.sent_ago_ms": 61000,
            "tcptrace.socket.inode": 81234,
            "tcptrace.socket.unread": 0,
            "tcptrace.socket.unacked": 0,
            "tcptrace.socket.retransmits": 0,
            "tcptrace.socket.rtt_us": 230,
            "tcptrace.socket.nonblocking": true,
            "tcptrace.socket.fd": 17,
            "process.pid": 1234,
            "thread.id": 1240,
            "process.executable.name": "nginx",
            "process.executable.path": "/usr/sbin/nginx",
            "tcptrace.process.comm": "nginx",
            "process.user.id": 33,
            "tcptrace.owner.confidence": "shared",
            "tcptrace.owner.pids": [
              1234,
              1235,
              1236
            ],
            "tcptrace.owner.checked_ms": 3,
            "tcptrace.creator.pid": 1200,
            "tcptrace.syscall.name": "sendto",
            "tcptrace.syscall.direction": "send",
            "tcptrace.syscall.errno": 32,
            "tcptrace.syscall.len": 4096
          },
          "resource": {
            "service.name": "tcptrace",
            "service.version": "0.1.0",
            "host.name": "node-1",
            "host.id": "0123456789abcdef0123456789abcdef"
          },
          "schema_version": "1.0"
        }
        "#);
    }
}
