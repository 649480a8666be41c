//! Syslog messages as RFC 5424 has them: the sentence as the text, and every attribute of the record as
//! structured data.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use bytes::BytesMut;
use jiff::Timestamp;

use super::json::{MAX_LINE, cut, is_shed};
use super::record::{self, Value};
use super::text::printable;
use super::{Body, Context};
use crate::event::{Event, Severity};

/// The facility of system daemons.
/// <https://www.rfc-editor.org/rfc/rfc5424#section-6.2.1>
const DAEMON: u8 = 3;

/// The name of the structured data. The number is the one for those who have none of their own:
/// <https://www.rfc-editor.org/rfc/rfc5612>.
const DATA: &str = "tcptrace@32473";

/// Writes messages.
pub(super) struct Messages {
    context: Context,
    /// Host, program and process: what every message has after its time.
    origin: String,
    /// Reused from message to message, as is the text for the values in it.
    message: Vec<u8>,
    scratch: String,
}

impl Messages {
    pub(super) fn new(context: Context) -> Self {
        let host = &context.host_name;
        let is_name = !host.is_empty() && host.len() <= 255;
        let host = if is_name && host.bytes().all(|byte| byte.is_ascii_graphic()) {
            host
        } else {
            "-"
        };
        let origin = format!("{host} tcptrace {}", std::process::id());
        Self {
            context,
            origin,
            message: Vec::with_capacity(MAX_LINE),
            scratch: String::new(),
        }
    }

    /// Adds one message, without anything that ends it: how a receiver finds the end is up to the
    /// transport.
    pub(super) fn message(&mut self, event: &Event, to: &mut BytesMut) {
        let mut message = std::mem::take(&mut self.message);
        for lean in [false, true] {
            message.clear();
            self.write(event, &mut message, lean);
            if message.len() <= MAX_LINE {
                break;
            }
        }
        to.extend_from_slice(&message);
        self.message = message;
    }

    fn write(&mut self, event: &Event, to: &mut Vec<u8>, lean: bool) {
        let priority = DAEMON * 8 + level(record::severity(event));
        let time = i128::from(event.time.0);
        let time = Timestamp::from_nanosecond(time).unwrap_or_default();
        // More than six digits are not allowed. Memory takes all.
        let _ = write!(
            to,
            "<{priority}>1 {} {} {} [{DATA}",
            time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"),
            self.origin,
            event.name()
        );
        let scratch = &mut self.scratch;
        let _ = record::attributes(&self.context, event, &mut |name, value| {
            if lean && is_shed(name) {
                return Ok::<(), std::convert::Infallible>(());
            }
            let mut put = |value: &dyn fmt::Display| parameter(to, scratch, name, value, lean);
            match value {
                Value::Int(value) => put(&value),
                Value::True => put(&true),
                Value::Str(value) => put(&value),
                Value::Text(value) => put(value),
                // A name may come more than once.
                Value::Ints(values) => values.iter().for_each(|value| put(value)),
                Value::Strs(values) => values.iter().for_each(|value| put(value)),
            }
            Ok(())
        });
        to.extend_from_slice(b"] ");
        text(scratch, &Body(event), lean, to);
    }
}

/// The number of a severity, which journald has as well.
pub(super) fn level(severity: Severity) -> u8 {
    match severity {
        Severity::Info => 6,
        Severity::Warn => 4,
        Severity::Error => 3,
    }
}

fn parameter(
    to: &mut Vec<u8>,
    scratch: &mut String,
    name: &str,
    value: &dyn fmt::Display,
    lean: bool,
) {
    let _ = write!(to, " {name}=\"");
    let begin = to.len();
    text(scratch, value, lean, to);
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | b']');
    if to[begin..].iter().any(is_special) {
        for byte in to.split_off(begin) {
            if is_special(&byte) {
                to.push(b'\\');
            }
            to.push(byte);
        }
    }
    to.push(b'"');
}

/// Adds text without what would end the message or move a terminal.
fn text(scratch: &mut String, text: &dyn fmt::Display, lean: bool, to: &mut Vec<u8>) {
    scratch.clear();
    // A String takes all.
    let _ = write!(scratch, "{}", printable(text));
    to.extend_from_slice(if lean { cut(scratch) } else { scratch }.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Comm;
    use crate::sink::samples;

    fn message(event: &Event) -> String {
        let mut buffer = BytesMut::new();
        Messages::new(samples::context()).message(event, &mut buffer);
        String::from_utf8(buffer.to_vec()).expect("a message is text")
    }

    /// What a receiver makes of a message, by the grammar of RFC 5424.
    fn parsed(message: &str) -> (Vec<&str>, Vec<(String, String)>, &str) {
        let (header, rest) = message
            .split_once(&format!(" [{DATA}"))
            .unwrap_or_else(|| panic!("no data: {message}"));
        let mut parameters = Vec::new();
        let mut rest = rest;
        while let Some(after) = rest.strip_prefix(' ') {
            let (name, value) = after.split_once("=\"").expect("a value");
            let mut text = String::new();
            let mut characters = value.char_indices();
            let end = loop {
                match characters.next().expect("the value ends") {
                    (_, '\\') => {
                        let (_, escaped) = characters.next().expect("a character");
                        assert!("\"\\]".contains(escaped), "{value}");
                        text.push(escaped);
                    }
                    (at, '"') => break at,
                    (_, ']') => panic!("a bracket that is not escaped: {value}"),
                    (_, character) => text.push(character),
                }
            };
            parameters.push((name.to_owned(), text));
            rest = &value[end + 1..];
        }
        let text = rest.strip_prefix("] ").expect("the data ends");
        (header.split(' ').collect(), parameters, text)
    }

    #[test]
    fn every_kind_is_a_message_of_the_grammar() {
        for event in samples::all().into_iter().chain(samples::verdicts()) {
            let message = message(&event);
            assert!(message.len() <= MAX_LINE);
            assert!(!message.contains(char::is_control), "{message}");
            let (header, parameters, text) = parsed(&message);
            let [priority, time, host, program, process, id] = header[..] else {
                panic!("{header:?}");
            };
            let level = match record::severity(&event) {
                Severity::Info => "<30>1",
                Severity::Warn => "<28>1",
                Severity::Error => "<27>1",
            };
            assert_eq!(priority, level);
            assert!(
                time.parse::<Timestamp>().is_ok() && time.len() == 27,
                "{time}"
            );
            assert_eq!((host, program), ("node-1", "tcptrace"));
            assert_eq!(process, std::process::id().to_string());
            assert_eq!(id, event.name());
            assert!(id.len() <= 32, "a longer MSGID is not allowed: {id}");
            assert!(!text.is_empty());
            for (name, _) in &parameters {
                assert!(name.len() <= 32, "a longer name is not allowed: {name}");
            }
            assert_eq!(parameters[0].0, "otel.event.name");
        }
    }

    #[test]
    fn the_attributes_are_those_of_the_json() {
        let event = samples::reset_sent();
        let message = message(&event);
        let (_, parameters, text) = parsed(&message);
        let has =
            |name: &str, value: &str| parameters.contains(&(name.to_owned(), value.to_owned()));
        assert!(has("process.pid", "1234"), "{message}");
        assert!(has("network.peer.address", "203.0.113.7"), "{message}");
        assert!(
            has("tcptrace.cause", "closed_with_unread_data"),
            "{message}"
        );
        assert!(text.starts_with("RST sent: nginx[1234], "), "{text}");
    }

    #[test]
    fn no_name_can_end_a_value_or_a_message() {
        let mut event = samples::reset_sent();
        let process = event.owner.process.as_mut().expect("it has an owner");
        process.comm = Comm::from("a\"]\\ b\nc");
        process.exe = None;
        let message = message(&event);
        let (_, parameters, _) = parsed(&message);
        assert!(!message.contains('\n'));
        let name = parameters
            .iter()
            .find(|(name, _)| name == "process.executable.name");
        let (_, name) = name.expect("the name of the process");
        assert!(name.starts_with("a\"]\\ b"), "{name}");
    }
}
