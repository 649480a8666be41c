//! JSON in the shape of OpenTelemetry's log data model.
//!
//! The frame of a record is written by hand: its names are constants that need no escaping, and
//! through a serializer that looks at each of them a record would cost twice the time. What comes
//! from outside is escaped by `serde_json`, and what a terminal would obey besides.

use std::fmt::{self, Write as _};
use std::io;

use bytes::{BufMut as _, BytesMut};
use jiff::Timestamp;

use super::record::{self, Value, name};
use super::text::is_unprintable;
use super::{Body, Context, Error, Place};
use crate::event::Event;

/// A line is never longer: the smallest limit of the log collectors we know.
pub(super) const MAX_LINE: usize = 8_000;

/// The longest text in a line that would be too long otherwise, in bytes. JSON writes a byte with at
/// most six, and at most six such texts are in a record.
const LEAN_TEXT: usize = 96;

const NS_PER_SECOND: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;

/// Writes records.
pub(super) struct Records {
    context: Context,
    /// What every record ends with.
    tail: String,
    /// The second whose date is in `date`.
    second: Option<u64>,
    date: String,
    /// Reused from record to record. Not the output's own buffer: what asks at each byte whether
    /// somebody shares it costs a record a tenth of its time.
    record: Vec<u8>,
    /// Reused from text to text.
    scratch: String,
}

impl Records {
    pub(super) fn new(context: Context) -> Self {
        let mut tail = b"},\"resource\":".to_vec();
        let mut before = b'{';
        for (name, value) in record::resource(&context) {
            key(&mut tail, before, name);
            string(&mut tail, value);
            before = b',';
        }
        tail.push(b'}');
        key(&mut tail, b',', "schema_version");
        string(&mut tail, record::SCHEMA_VERSION);
        tail.extend_from_slice(b"}\n");
        Self {
            context,
            tail: String::from_utf8_lossy(&tail).into_owned(),
            second: None,
            date: String::new(),
            record: Vec::with_capacity(MAX_LINE),
            scratch: String::new(),
        }
    }

    /// Adds one line.
    pub(super) fn line(&mut self, event: &Event, place: Place, to: &mut BytesMut) {
        let mut record = std::mem::take(&mut self.record);
        for lean in [false, true] {
            record.clear();
            self.write(event, place, &mut record, lean);
            if record.len() <= MAX_LINE {
                break;
            }
        }
        to.extend_from_slice(&record);
        self.record = record;
    }

    /// Adds the same over several lines: it is for reading.
    pub(super) fn pretty(
        &mut self,
        event: &Event,
        place: Place,
        to: &mut BytesMut,
    ) -> Result<(), Error> {
        let mut line = BytesMut::new();
        self.line(event, place, &mut line);
        let failed = |error| {
            Error::Failed(format!(
                "cannot write an event as JSON: {error}; please report this"
            ))
        };
        let record: serde_json::Value = serde_json::from_slice(&line).map_err(failed)?;
        let mut text = Vec::new();
        printable(
            &mut text,
            &serde_json::to_string_pretty(&record).map_err(failed)?,
        );
        to.extend_from_slice(&text);
        to.put_u8(b'\n');
        Ok(())
    }

    fn write(&mut self, event: &Event, place: Place, to: &mut Vec<u8>, lean: bool) {
        key(to, b'{', "timestamp");
        self.timestamp(event.time.0, to);
        key(to, b',', "event_name");
        string(to, event.name());
        let severity = record::severity(event);
        key(to, b',', "severity_text");
        string(to, severity.as_str());
        key(to, b',', "severity_number");
        integer(to, i64::from(severity as u8));
        key(to, b',', "body");
        text(to, &mut self.scratch, &Body(event), lean);
        key(to, b',', "attributes");
        let mut before = b'{';
        let scratch = &mut self.scratch;
        // What is written to memory cannot fail.
        let _ = record::attributes(&self.context, event, &mut |name, value| {
            if lean && is_shed(name) {
                return Ok::<(), std::convert::Infallible>(());
            }
            key(to, before, name);
            before = b',';
            match value {
                Value::Int(value) => integer(to, value),
                Value::True => to.extend_from_slice(b"true"),
                Value::Str(value) => string(to, if lean { cut(value) } else { value }),
                Value::Text(value) => text(to, scratch, value, lean),
                Value::Ints(values) => list(to, values, |to, &value| integer(to, value.into())),
                Value::Strs(values) => list(to, values, |to, value| string(to, value)),
            }
            Ok(())
        });
        if let Some(time) = place.judged_until {
            key(to, before, name::JUDGED_UNTIL);
            // Milliseconds of any clock are below 2^53.
            integer(to, i64::try_from(time.0 / NS_PER_MS).unwrap_or_default());
        }
        if place.kept {
            key(to, before, name::EVENT_KEPT);
            to.extend_from_slice(b"true");
        }
        to.extend_from_slice(self.tail.as_bytes());
    }

    /// In UTC, always to the nanosecond.
    fn timestamp(&mut self, ns: u64, to: &mut Vec<u8>) {
        let second = ns / NS_PER_SECOND;
        if self.second != Some(second) {
            self.second = Some(second);
            self.date.clear();
            // Every u64 of nanoseconds is a date, and a String takes all.
            let date = i64::try_from(second)
                .ok()
                .and_then(|it| Timestamp::from_second(it).ok());
            let _ = write!(
                self.date,
                "{}",
                date.unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S")
            );
        }
        to.push(b'"');
        to.extend_from_slice(self.date.as_bytes());
        to.push(b'.');
        let mut rest = ns % NS_PER_SECOND;
        let mut digits = [b'0'; 9];
        for digit in digits.iter_mut().rev() {
            *digit += (rest % 10) as u8;
            rest /= 10;
        }
        to.extend_from_slice(&digits);
        to.extend_from_slice(b"Z\"");
    }
}

/// Names are constants of letters, dots and underscores.
pub(super) fn key(to: &mut Vec<u8>, before: u8, name: &str) {
    to.extend_from_slice(&[before, b'"']);
    to.extend_from_slice(name.as_bytes());
    to.extend_from_slice(b"\":");
}

pub(super) fn integer(to: &mut Vec<u8>, value: i64) {
    to.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

pub(super) fn string(to: &mut Vec<u8>, text: &str) {
    to.push(b'"');
    escaped(to, text);
    to.push(b'"');
}

/// Text, cut where the line must be lean. It comes in many small pieces and is gathered in `scratch`
/// to be escaped as one.
pub(super) fn text(to: &mut Vec<u8>, scratch: &mut String, text: &dyn fmt::Display, lean: bool) {
    scratch.clear();
    // A String takes all.
    let _ = write!(scratch, "{text}");
    string(to, if lean { cut(scratch) } else { scratch });
}

pub(super) fn list<T>(to: &mut Vec<u8>, values: &[T], mut each: impl FnMut(&mut Vec<u8>, &T)) {
    to.push(b'[');
    for (nth, value) in values.iter().enumerate() {
        if nth > 0 {
            to.push(b',');
        }
        each(to, value);
    }
    to.push(b']');
}

/// Adds text without its quotes.
fn escaped(to: &mut Vec<u8>, text: &str) {
    if is_plain(text.as_bytes()) {
        to.extend_from_slice(text.as_bytes());
        return;
    }
    // With its own quotes, which are taken off again. Text in memory cannot fail.
    let quoted = serde_json::to_string(text).unwrap_or_default();
    printable(to, quoted.get(1..quoted.len() - 1).unwrap_or_default());
}

/// There is nothing to escape: each byte is printable ASCII, no quote and no backslash. Eight bytes are
/// looked at in one word, the last ones maybe twice, without an early end: nearly all texts are short and
/// plain, and byte by byte to write them takes a third longer.
/// <https://graphics.stanford.edu/~seander/bithacks.html#ZeroInWord>
fn is_plain(text: &[u8]) -> bool {
    const EACH: u64 = u64::MAX / 0xff;
    let is_special = |byte: u8| !matches!(byte, b' '..=b'~') || matches!(byte, b'"' | b'\\');
    // The highest bit of the first byte that is zero is set, and none if there is none.
    let zero = |word: u64| word.wrapping_sub(EACH) & !word;
    let special = |chunk: &[u8; 8]| {
        let word = u64::from_ne_bytes(*chunk);
        let is = |byte: u8| zero(word ^ (EACH * u64::from(byte)));
        let below_space = word.wrapping_sub(EACH * 0x20) & !word;
        let above_tilde = word | word.wrapping_add(EACH);
        below_space | above_tilde | is(b'"') | is(b'\\')
    };
    let Some(last) = text.last_chunk() else {
        return !text.iter().copied().any(is_special);
    };
    let (chunks, _) = text.as_chunks();
    let any = chunks
        .iter()
        .fold(special(last), |any, it| any | special(it));
    any & (EACH << 7) == 0
}

/// Adds JSON with everything escaped that a terminal would obey and JSON lets stand: who looks at a
/// file of records with `cat` is at the mercy of the processes that chose the names in it.
fn printable(to: &mut Vec<u8>, json: &str) {
    let is_left = |character: char| character > '~' && is_unprintable(character);
    let mut rest = json;
    while let Some(at) = rest.find(is_left) {
        let (before, from) = rest.split_at(at);
        to.extend_from_slice(before.as_bytes());
        let mut characters = from.chars();
        if let Some(character) = characters.next() {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Memory takes all.
                let _ = io::Write::write_fmt(to, format_args!("\\u{unit:04x}"));
            }
        }
        rest = characters.as_str();
    }
    to.extend_from_slice(rest.as_bytes());
}

/// What a line that is too long does without: what has no bound and is in `/proc` or on the terminal
/// as well. Cut short it would be wrong.
pub(super) fn is_shed(name: &str) -> bool {
    [
        name::PROCESS_PATH,
        name::OWNER_PIDS,
        name::SUMMARY_KINDS,
        name::SUMMARY_PROCESSES,
        name::SUMMARY_LISTENERS,
        name::FD_HELD,
        name::NEARBY,
        name::WORK_OUTBOUND,
        name::CODE_STACKTRACE,
        name::STACK_FOLDED,
    ]
    .contains(&name)
}

pub(super) fn cut(text: &str) -> &str {
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
    use crate::event::{Comm, Kind, SummaryRow};
    use crate::sink::{samples, schema};

    fn parsed(event: &Event) -> Json {
        let mut buffer = BytesMut::new();
        Records::new(samples::context()).line(event, Place::default(), &mut buffer);
        serde_json::from_slice(&buffer).expect("a line is JSON")
    }

    static VALIDATOR: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
        let schema = serde_json::from_str(schema()).expect("the schema is JSON");
        jsonschema::validator_for(&schema).expect("the schema is a schema")
    });

    #[test]
    fn every_kind_is_as_the_schema_says() {
        let mut seen = BTreeSet::new();
        let all = [samples::all(), samples::verdicts(), samples::sockets()];
        for event in all.into_iter().flatten() {
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
    fn what_a_replay_must_know_is_as_the_schema_says() {
        let place = Place {
            judged_until: Some(crate::event::Timestamp(1_700_000_000_250_999_999)),
            kept: true,
        };
        let mut line = BytesMut::new();
        Records::new(samples::context()).line(&samples::reset_sent(), place, &mut line);
        let record: Json = serde_json::from_slice(&line).expect("a line is JSON");
        assert!(VALIDATOR.is_valid(&record), "{record:#}");
        let told = &record["attributes"];
        assert_eq!(told["tcptrace.judged_until_ms"], 1_700_000_000_250_u64);
        assert_eq!(told["tcptrace.event.kept"], true);
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
            event.actor = Some(Box::new(hostile));
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
                    summary.kinds = vec![row; 100];
                }
                Kind::ResetSent(reset) => {
                    reset.reason = Some(crate::event::ResetReason(worst.clone().into()));
                }
                _ => {}
            }
            let mut buffer = BytesMut::new();
            Records::new(samples::context()).line(&event, Place::default(), &mut buffer);
            assert!(
                buffer.len() <= MAX_LINE,
                "{}: {} bytes",
                event.name(),
                buffer.len()
            );
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_the_rest_left() {
        let mut event = samples::reset_sent();
        if let Some(process) = &mut event.owner.process {
            process.exe = Some("/a\u{1b}[2J\n\"\\\u{7f}\u{9b}31m\u{202e}\u{e0041}é世".into());
        }
        let escaped = r#""/a\u001b[2J\n\"\\\u007f\u009b31m\u202e\udb40\udc41é世""#;
        let mut line = BytesMut::new();
        Records::new(samples::context()).line(&event, Place::default(), &mut line);
        let pretty = rendered(&event);
        for json in [std::str::from_utf8(&line).expect("JSON is text"), &pretty] {
            assert!(json.contains(escaped), "{json}");
            let record: Json = serde_json::from_str(json).expect("it is JSON");
            let path = record["attributes"][name::PROCESS_PATH].as_str();
            assert_eq!(
                path,
                event
                    .owner
                    .process
                    .as_ref()
                    .and_then(|it| it.exe.as_deref())
            );
        }
    }

    proptest! {
        #[test]
        fn text_is_plain_when_each_byte_is(
            plain in "[ !#-\\[\\]-~]{0,40}",
            at: proptest::sample::Index,
            byte: u8,
        ) {
            let mut text = plain.into_bytes();
            prop_assert!(is_plain(&text));
            text.insert(at.index(text.len() + 1), byte);
            let is_printable = byte.is_ascii_graphic() || byte == b' ';
            prop_assert_eq!(is_plain(&text), is_printable && !b"\"\\".contains(&byte));
        }

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
            event.time = crate::event::Timestamp(time);
            event.id = crate::event::EventId(id);
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
            Records::new(samples::context()).line(&event, Place::default(), &mut buffer);
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
        Records::new(samples::context())
            .pretty(event, Place::default(), &mut buffer)
            .expect("a sample can be written");
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
            "tcptrace.flow.id": "caa4b23d301a2e6c",
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
            "tcptrace.socket.side": "server",
            "tcptrace.socket.age_us": 75002300,
            "tcptrace.socket.accepted_ago_us": 75001200,
            "tcptrace.socket.heard_ago_ms": 1250,
            "tcptrace.socket.bytes_received": 1024,
            "tcptrace.socket.bytes_sent": 65536,
            "tcptrace.socket.shutdown_ago_us": 412,
            "tcptrace.socket.service_answers": true,
            "tcptrace.fin.ago_us": 1250400,
            "tcptrace.fin.written": 88,
            "tcptrace.fin.waited_ms": 5000,
            "tcptrace.fin.idle_ms": 5000,
            "tcptrace.socket.fd": 17,
            "process.pid": 1234,
            "thread.id": 1240,
            "process.executable.name": "nginx",
            "process.executable.path": "/usr/sbin/nginx",
            "tcptrace.process.comm": "nginx",
            "process.user.id": 33,
            "container.id": "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9",
            "k8s.pod.uid": "1b4c6d7e-0123-4567-89ab-cdef01234567",
            "tcptrace.owner.confidence": "exact",
            "tcptrace.reset.kernel_reason": "TCP_ABORT_ON_CLOSE",
            "tcptrace.syscall.name": "close"
          },
          "resource": {
            "service.name": "tcptrace",
            "service.version": "0.1.0",
            "host.name": "node-1",
            "tcptrace.schema.version": "1.0",
            "host.id": "0123456789abcdef0123456789abcdef",
            "tcptrace.boot.id": "01234567-89ab-cdef-0123-456789abcdef",
            "k8s.node.name": "node-1"
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
            "tcptrace.flow.id": "caa4b23d301a2e6c",
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
            "tcptrace.socket.side": "server",
            "tcptrace.socket.age_us": 75002300,
            "tcptrace.socket.accepted_ago_us": 75001200,
            "tcptrace.socket.heard_ago_ms": 1250,
            "tcptrace.socket.bytes_received": 1024,
            "tcptrace.socket.bytes_sent": 65536,
            "tcptrace.socket.shutdown_ago_us": 412,
            "tcptrace.socket.service_answers": true,
            "tcptrace.fin.ago_us": 1250400,
            "tcptrace.fin.written": 88,
            "tcptrace.fin.waited_ms": 5000,
            "tcptrace.fin.idle_ms": 5000,
            "tcptrace.socket.fd": 17,
            "process.pid": 1234,
            "thread.id": 1240,
            "process.executable.name": "nginx",
            "process.executable.path": "/usr/sbin/nginx",
            "tcptrace.process.comm": "nginx",
            "process.user.id": 33,
            "container.id": "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9",
            "k8s.pod.uid": "1b4c6d7e-0123-4567-89ab-cdef01234567",
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
            "tcptrace.schema.version": "1.0",
            "host.id": "0123456789abcdef0123456789abcdef",
            "tcptrace.boot.id": "01234567-89ab-cdef-0123-456789abcdef",
            "k8s.node.name": "node-1"
          },
          "schema_version": "1.0"
        }
        "#);
    }
}
