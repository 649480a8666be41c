//! Lines of JSON as the collector's `otlp_json_file` receiver reads them, a request with one record each.
//! <https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/>

use std::convert::Infallible;

use bytes::BytesMut;

use super::OF_CONTAINER;
use crate::event::Event;
use crate::sink::json::{self, MAX_LINE, cut, is_shed, key, list};
use crate::sink::record::{self, Value};
use crate::sink::{Body, Context};

/// Here each attribute takes some forty bytes more than in a plain line.
const LONGEST: usize = 2 * MAX_LINE;

/// Writes lines.
pub(in crate::sink) struct Lines {
    context: Context,
    /// What every line begins with.
    head: Vec<u8>,
    /// Reused from line to line.
    resource: Vec<u8>,
    record: Vec<u8>,
    scratch: String,
}

impl Lines {
    pub(in crate::sink) fn new(context: Context) -> Self {
        let mut head = br#"{"resourceLogs":[{"resource":{"attributes":["#.to_vec();
        for (nth, (name, value)) in record::resource(&context).enumerate() {
            if nth > 0 {
                head.push(b',');
            }
            attribute(&mut head, name, |to| string(to, value));
        }
        Self {
            context,
            head,
            resource: Vec::new(),
            record: Vec::new(),
            scratch: String::new(),
        }
    }

    /// Adds one.
    pub(in crate::sink) fn line(&mut self, event: &Event, to: &mut BytesMut) {
        for lean in [false, true] {
            self.resource.clone_from(&self.head);
            self.record.clear();
            self.write(event, lean);
            if self.resource.len() + self.record.len() <= LONGEST {
                break;
            }
        }
        to.extend_from_slice(&self.resource);
        to.extend_from_slice(br#"]},"scopeLogs":[{"scope":{"name":"tcptrace","version":""#);
        to.extend_from_slice(env!("CARGO_PKG_VERSION").as_bytes());
        to.extend_from_slice(br#""},"logRecords":["#);
        to.extend_from_slice(&self.record);
        to.extend_from_slice(b"]}]}]}\n");
    }

    fn write(&mut self, event: &Event, lean: bool) {
        let (to, resource) = (&mut self.record, &mut self.resource);
        let scratch = &mut self.scratch;
        key(to, b'{', "timeUnixNano");
        quoted(to, event.time.0);
        key(to, b',', "observedTimeUnixNano");
        quoted(to, event.time.0);
        let severity = record::severity(event);
        key(to, b',', "severityNumber");
        json::integer(to, i64::from(severity as u8));
        key(to, b',', "severityText");
        json::string(to, severity.as_str());
        key(to, b',', "eventName");
        json::string(to, event.name());
        key(to, b',', "body");
        any(to, scratch, Value::Text(&Body(event)), lean);
        key(to, b',', "attributes");
        let mut before = b'[';
        let mut shed = 0;
        // What is written to memory cannot fail.
        let _ = record::attributes(&self.context, event, &mut |name, value| {
            if OF_CONTAINER.contains(&name) {
                resource.push(b',');
                attribute(resource, name, |to| any(to, scratch, value, lean));
            }
            if lean && is_shed(name) {
                shed += 1;
            } else {
                to.push(before);
                before = b',';
                attribute(to, name, |to| any(to, scratch, value, lean));
            }
            Ok::<(), Infallible>(())
        });
        to.push(b']');
        if shed > 0 {
            key(to, b',', "droppedAttributesCount");
            json::integer(to, shed);
        }
        to.push(b'}');
    }
}

fn attribute(to: &mut Vec<u8>, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    key(to, b'{', "key");
    json::string(to, name);
    key(to, b',', "value");
    value(to);
    to.push(b'}');
}

fn any(to: &mut Vec<u8>, scratch: &mut String, value: Value<'_>, lean: bool) {
    match value {
        Value::Int(value) => integer(to, value),
        Value::True => to.extend_from_slice(br#"{"boolValue":true}"#),
        Value::Str(value) => string(to, if lean { cut(value) } else { value }),
        Value::Text(value) => {
            key(to, b'{', "stringValue");
            json::text(to, scratch, value, lean);
            to.push(b'}');
        }
        Value::Ints(values) => array(to, |to| {
            list(to, values, |to, &value| integer(to, value.into()));
        }),
        Value::Strs(values) => array(to, |to| list(to, values, |to, value| string(to, value))),
    }
}

fn array(to: &mut Vec<u8>, values: impl FnOnce(&mut Vec<u8>)) {
    key(to, b'{', "arrayValue");
    key(to, b'{', "values");
    values(to);
    to.extend_from_slice(b"}}");
}

fn string(to: &mut Vec<u8>, text: &str) {
    key(to, b'{', "stringValue");
    json::string(to, text);
    to.push(b'}');
}

fn integer(to: &mut Vec<u8>, value: i64) {
    key(to, b'{', "intValue");
    quoted(to, value);
    to.push(b'}');
}

/// Integers of 64 bits are text in this JSON, so that every reader keeps them exact.
fn quoted(to: &mut Vec<u8>, value: impl itoa::Integer) {
    to.push(b'"');
    to.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    to.push(b'"');
}
