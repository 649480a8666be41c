//! Records as OTLP carries them: for the export in protocol buffers, and as the JSON of its files. Both are
//! made from the same list of attributes as the JSON Lines.
//! <https://github.com/open-telemetry/opentelemetry-proto/blob/v1.8.0/opentelemetry/proto/logs/v1/logs.proto>

mod lines;
pub(crate) mod wire;

use std::convert::Infallible;
use std::fmt;
use std::io::Write as _;

use bytes::BytesMut;

use super::json::{MAX_LINE, cut, is_shed};
use super::record::{self, Value, name};
use super::{Body, Context};
use crate::event::Event;
pub(super) use lines::Lines;
use wire::{bytes, fixed64, nested, number, take_varint, varint};

/// What collectors look up by: they have names for it and put them beside it.
/// <https://github.com/open-telemetry/opentelemetry-collector-contrib/tree/v0.135.0/processor/k8sattributesprocessor>
const OF_CONTAINER: [&str; 2] = [name::CONTAINER_ID, name::POD_UID];

/// Writes a record with what it is about: a `LogRecord` after its `Resource`.
pub(super) struct Records {
    context: Context,
    /// What the resource of every record begins with.
    common: Vec<u8>,
    /// Reused from record to record.
    resource: Vec<u8>,
    record: Vec<u8>,
}

impl Records {
    pub(super) fn new(context: Context) -> Self {
        Self {
            common: resource(&context),
            context,
            resource: Vec::new(),
            record: Vec::new(),
        }
    }

    /// Adds one. The resource comes after its length; the record goes on to the end.
    pub(super) fn record(&mut self, event: &Event, to: &mut BytesMut) {
        for lean in [false, true] {
            self.resource.clone_from(&self.common);
            self.record.clear();
            self.write(event, lean);
            if self.record.len() <= MAX_LINE {
                break;
            }
        }
        let (length, of_length) = varint(self.resource.len() as u64);
        for part in [&length[..of_length], &self.resource, &self.record] {
            to.extend_from_slice(part);
        }
    }

    fn write(&mut self, event: &Event, lean: bool) {
        let (to, resource) = (&mut self.record, &mut self.resource);
        fixed64(to, 1, event.time.0);
        let severity = record::severity(event);
        number(to, 2, severity as u64);
        bytes(to, 3, severity.as_str().as_bytes());
        nested(to, 5, |to| text(to, &Body(event), lean));
        let mut shed = 0;
        // What is written to memory cannot fail.
        let _ = record::attributes(&self.context, event, &mut |name, value| {
            if OF_CONTAINER.contains(&name) {
                attribute(resource, 1, name, |to| any(to, value, lean));
            }
            if lean && is_shed(name) {
                shed += 1;
            } else {
                attribute(to, 6, name, |to| any(to, value, lean));
            }
            Ok::<(), Infallible>(())
        });
        if shed > 0 {
            number(to, 7, shed);
        }
        // It is seen when it happens.
        fixed64(to, 11, event.time.0);
        bytes(to, 12, event.name().as_bytes());
    }
}

/// The fields of a `Resource` that says where a run is.
pub(super) fn resource(context: &Context) -> Vec<u8> {
    let mut resource = Vec::new();
    for (name, value) in record::resource(context) {
        attribute(&mut resource, 1, name, |to| string(to, value));
    }
    resource
}

/// A field of the scope that records and metrics are of.
pub(crate) fn scope(to: &mut Vec<u8>, field: u32) {
    nested(to, field, |to| {
        bytes(to, 1, b"tcptrace");
        bytes(to, 2, env!("CARGO_PKG_VERSION").as_bytes());
    });
}

/// A field of a `KeyValue`, whose value `write` adds.
pub(crate) fn attribute(
    to: &mut Vec<u8>,
    field: u32,
    name: &str,
    write: impl FnOnce(&mut Vec<u8>),
) {
    nested(to, field, |to| {
        bytes(to, 1, name.as_bytes());
        nested(to, 2, write);
    });
}

/// An `AnyValue` of text.
pub(crate) fn string(to: &mut Vec<u8>, text: &str) {
    bytes(to, 1, text.as_bytes());
}

fn integer(to: &mut Vec<u8>, value: i64) {
    number(to, 3, value.cast_unsigned());
}

fn text(to: &mut Vec<u8>, text: &dyn fmt::Display, lean: bool) {
    nested(to, 1, |to| {
        let at = to.len();
        // Memory takes all.
        let _ = write!(to, "{text}");
        if lean {
            let end = std::str::from_utf8(&to[at..]).map_or(0, |it| cut(it).len());
            to.truncate(at + end);
        }
    });
}

fn any(to: &mut Vec<u8>, value: Value<'_>, lean: bool) {
    match value {
        Value::Int(value) => integer(to, value),
        Value::True => number(to, 2, 1),
        Value::Str(value) => string(to, if lean { cut(value) } else { value }),
        Value::Text(value) => text(to, value, lean),
        Value::Ints(values) => list(to, values, |to, &value| integer(to, value.into())),
        Value::Strs(values) => list(to, values, |to, value| string(to, value)),
    }
}

fn list<T>(to: &mut Vec<u8>, values: &[T], mut each: impl FnMut(&mut Vec<u8>, &T)) {
    nested(to, 5, |to| {
        for value in values {
            nested(to, 1, |to| each(to, value));
        }
    });
}

/// A request in the making: records, those of one resource together and in their order.
#[derive(Default)]
pub(crate) struct Batch {
    groups: Vec<(Vec<u8>, Vec<u8>)>,
    records: usize,
    bytes: usize,
}

impl Batch {
    /// Adds what [`Records::record`] wrote.
    pub(crate) fn push(&mut self, parcel: &[u8]) {
        let mut record = parcel;
        let length = take_varint(&mut record).and_then(|it| usize::try_from(it).ok());
        let (resource, record) = record
            .split_at_checked(length.unwrap_or_default())
            .unwrap_or_default();
        let place = self.groups.iter().position(|(it, _)| it == resource);
        let place = place.unwrap_or_else(|| {
            self.groups.push((resource.to_vec(), Vec::new()));
            self.bytes += resource.len();
            self.groups.len() - 1
        });
        let records = &mut self.groups[place].1;
        let before = records.len();
        bytes(records, 2, record);
        self.bytes += records.len() - before;
        self.records += 1;
    }

    /// How many records there are.
    pub(super) fn len(&self) -> usize {
        self.records
    }

    /// About how many bytes they are.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// As an `ExportLogsServiceRequest`.
    pub(crate) fn request(&self) -> Vec<u8> {
        let mut request = Vec::with_capacity(self.bytes + 128 * self.groups.len());
        for (resource, records) in &self.groups {
            nested(&mut request, 1, |to| {
                bytes(to, 1, resource);
                nested(to, 2, |to| {
                    scope(to, 1);
                    to.extend_from_slice(records);
                });
            });
        }
        request
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
    use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs};
    use prost::Message as _;
    use serde_json::{Map, Value as Json, json};

    use super::*;
    use crate::event::Container;
    use crate::sink::{Place, json, samples};

    pub(crate) fn flat(attributes: &[KeyValue]) -> Json {
        let plain = |it: &KeyValue| {
            let value = it.value.as_ref().and_then(|it| it.value.as_ref());
            (it.key.clone(), value.map_or(Json::Null, plain))
        };
        Json::Object(attributes.iter().map(plain).collect::<Map<_, _>>())
    }

    fn plain(value: &any_value::Value) -> Json {
        match value {
            any_value::Value::StringValue(text) => json!(text),
            any_value::Value::BoolValue(truth) => json!(truth),
            any_value::Value::IntValue(number) => json!(number),
            any_value::Value::ArrayValue(list) => {
                let values = list.values.iter().filter_map(|it| it.value.as_ref());
                values.map(plain).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// What a record of `-o json` says, as a receiver of OTLP has it.
    fn as_line(mut resource: Json, record: &LogRecord) -> Json {
        let attributes = flat(&record.attributes);
        let about = resource.as_object_mut().expect("it is flat");
        for name in OF_CONTAINER {
            assert_eq!(about.remove(name).as_ref(), attributes.get(name));
        }
        assert_eq!(record.time_unix_nano, record.observed_time_unix_nano);
        let time = jiff::Timestamp::from_nanosecond(record.time_unix_nano.into());
        let body = record.body.as_ref().and_then(|it| it.value.as_ref());
        json!({
            "timestamp": format!("{:.9}", time.expect("a time")),
            "event_name": record.event_name,
            "severity_text": record.severity_text,
            "severity_number": record.severity_number,
            "body": body.map(plain),
            "attributes": attributes,
            "resource": resource,
            "schema_version": record::SCHEMA_VERSION,
        })
    }

    fn only(logs: &[ResourceLogs]) -> (Json, &LogRecord) {
        let [logs] = logs else { panic!("{logs:?}") };
        let [scoped] = &logs.scope_logs[..] else {
            panic!("{logs:?}")
        };
        let scope = scoped.scope.as_ref().expect("a scope");
        assert_eq!(scope.name, "tcptrace");
        let [record] = &scoped.log_records[..] else {
            panic!("{logs:?}")
        };
        let resource = logs.resource.as_ref().expect("a resource");
        (flat(&resource.attributes), record)
    }

    fn request(events: &[Event]) -> ExportLogsServiceRequest {
        let mut records = Records::new(samples::context());
        let mut batch = Batch::default();
        for event in events {
            let mut parcel = BytesMut::new();
            records.record(event, &mut parcel);
            batch.push(&parcel);
        }
        assert_eq!(batch.len(), events.len());
        ExportLogsServiceRequest::decode(&batch.request()[..]).expect("it is of the schema")
    }

    #[test]
    fn every_record_says_what_a_line_of_json_says() {
        for event in samples::all().into_iter().chain(samples::verdicts()) {
            let mut line = BytesMut::new();
            json::Records::new(samples::context()).line(&event, Place::default(), &mut line);
            let expected: Json = serde_json::from_slice(&line).expect("a line is JSON");
            let request = request(std::slice::from_ref(&event));
            let (resource, record) = only(&request.resource_logs);
            assert_eq!(as_line(resource, record), expected);

            let mut line = BytesMut::new();
            Lines::new(samples::context()).line(&event, &mut line);
            let read: ExportLogsServiceRequest =
                serde_json::from_slice(&line).expect("it is of the schema");
            assert_eq!(read, request);
        }
    }

    #[test]
    fn a_container_is_a_resource_of_its_own() {
        let of = |id: &str| {
            let mut event = samples::reset_sent();
            let mut process = samples::nginx();
            process.container = Some(Arc::new(Container {
                id: id.repeat(64),
                pod: Some("d3a7".to_owned()),
            }));
            event.owner.process = Some(process);
            event
        };
        let hosts = samples::queue_polled();
        let request = request(&[of("a"), hosts.clone(), of("b"), of("a"), hosts]);
        let groups = request.resource_logs.iter().map(|logs| {
            let resource = logs.resource.as_ref().expect("a resource");
            let resource = flat(&resource.attributes);
            let text = |name: &str| resource[name].as_str().map(str::to_owned);
            assert_eq!(text("service.name").as_deref(), Some("tcptrace"));
            let id = text("container.id");
            assert_eq!(text("k8s.pod.uid").is_some(), id.is_some());
            (id, logs.scope_logs[0].log_records.len())
        });
        let expected = [
            (Some("a".repeat(64)), 2),
            (None, 2),
            (Some("b".repeat(64)), 1),
        ];
        assert_eq!(groups.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_too_long_is_left_out_and_counted() {
        let mut event = samples::write_failed();
        event.owner.holders = (1..=4_000).collect();
        let request = request(std::slice::from_ref(&event));
        let (_, record) = only(&request.resource_logs);
        assert!(record.encoded_len() <= MAX_LINE);
        let attributes = flat(&record.attributes);
        assert_eq!(attributes.get(name::OWNER_PIDS), None);
        assert_eq!(attributes.get(name::PROCESS_PATH), None);
        assert_eq!(attributes[name::PROCESS_NAME], "nginx");
        assert_eq!(record.dropped_attributes_count, 2);
    }
}
