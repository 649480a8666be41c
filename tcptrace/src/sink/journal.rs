//! Entries in journald's own protocol: the sentence as `MESSAGE`, each attribute of the record as a field,
//! and the fields journald itself knows.
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>

use std::fmt::{self, Write as _};

use bytes::{BufMut as _, BytesMut};

use super::record::{self, Value, name};
use super::syslog::level;
use super::text::printable;
use super::{Body, Context};
use crate::event::{Errno, Event, Timestamp};

/// The same id for all entries of one event, whatever their text: `journalctl MESSAGE_ID=…`.
/// <https://www.freedesktop.org/software/systemd/man/latest/systemd.journal-fields.html#MESSAGE_ID=>
const MESSAGE_IDS: [(&str, &str); 20] = [
    ("tcptrace.reset.sent", "1eab3d488e7648748a76be78ba8139eb"),
    (
        "tcptrace.reset.received",
        "e22f0380439e421ebf848a16a98ae803",
    ),
    (
        "tcptrace.close_wait.entered",
        "7d92ef9e54b94a8cb80707329cdcfedd",
    ),
    (
        "tcptrace.close_wait.stuck",
        "d02b95f4e4964997ba6753a7b20f3f55",
    ),
    (
        "tcptrace.accept_queue.overflow",
        "0d8184fe880845a29b1dc3829743d8dc",
    ),
    (
        "tcptrace.syn_queue.overflow",
        "2069dd40cbaa4a36821d9f6521ea3050",
    ),
    ("tcptrace.socket.error", "5e7189bbc7e240beaa2e12b1de285a9a"),
    (
        "tcptrace.connect.failed",
        "e1a67eeff268440295d9a88307dc68f8",
    ),
    (
        "tcptrace.connection.timeout",
        "3fdc3b8e6c26440187a66c6454041630",
    ),
    ("tcptrace.fd.exhausted", "380180adb74e466289ec46752fb525d0"),
    ("tcptrace.fd.invalid", "985fe340f91f4a8e94d2648aa09e136c"),
    ("tcptrace.state.changed", "f7f92bc05e584fdfb1bd2e735ddb75c5"),
    ("tcptrace.retransmit", "228863b48969413b8c7bf8d67a0bad33"),
    ("tcptrace.finding", "a39fa8175c0144468891b9bf4773e625"),
    ("tcptrace.coverage", "700c64bf398c451ba9642909c6c4e926"),
    (
        "tcptrace.target.changed",
        "90c19f5b6c44482187702030743f1396",
    ),
    ("tcptrace.events.lost", "3ebf593d7dbb4855980b0cd7c3019315"),
    (
        "tcptrace.events.suppressed",
        "082546580fb347828c697d9c27b3183e",
    ),
    (
        "tcptrace.export.dropped",
        "389d571569e94046ba64e85ba1c3ff25",
    ),
    ("tcptrace.summary", "3c8b7f761968442689fe0f65735f3b50"),
];

/// Writes entries.
pub(super) struct Entries {
    context: Context,
    /// Reused from value to value.
    scratch: String,
}

impl Entries {
    pub(super) fn new(context: Context) -> Self {
        Self {
            context,
            scratch: String::new(),
        }
    }

    /// Adds one entry.
    pub(super) fn entry(&mut self, event: &Event, to: &mut BytesMut) {
        let mut put = |name: &str, value: &dyn fmt::Display| {
            self.scratch.clear();
            // A String takes all.
            let _ = write!(self.scratch, "{value}");
            field(to, name, self.scratch.as_bytes());
        };
        put("MESSAGE", &printable(Body(event)));
        put("PRIORITY", &level(record::severity(event)));
        put("SYSLOG_IDENTIFIER", &"tcptrace");
        if let Some((_, id)) = MESSAGE_IDS.iter().find(|(it, _)| *it == event.name()) {
            put("MESSAGE_ID", id);
        }
        // journald keeps its own time: that of arrival.
        put("TCPTRACE_TIMESTAMP", &exact(event.time));
        let _ = record::attributes(&self.context, event, &mut |name, value| {
            match (name, &value) {
                // With it, and from root only, journald adds what it knows of that process.
                (name::PROCESS_PID, Value::Int(pid)) => put("OBJECT_PID", pid),
                (name::ERROR_TYPE, Value::Str(error)) => {
                    if let Some(errno) = Errno::from_name(error) {
                        put("ERRNO", &errno.0);
                    }
                }
                _ => {}
            }
            let name = field_name(name);
            match value {
                Value::Int(value) => put(&name, &value),
                Value::True => put(&name, &true),
                Value::Str(value) => put(&name, &value),
                Value::Text(value) => put(&name, value),
                // A field may come more than once.
                Value::Ints(values) => values.iter().for_each(|value| put(&name, value)),
                Value::Strs(values) => values.iter().for_each(|value| put(&name, value)),
            }
            Ok::<(), std::convert::Infallible>(())
        });
    }
}

/// `tcptrace.reset.kernel_reason` is `TCPTRACE_RESET_KERNEL_REASON`, and `process.pid` is
/// `TCPTRACE_PROCESS_PID`: journald has names without dots, and other programs have some too.
fn field_name(name: &str) -> String {
    if name == name::OTEL_EVENT_NAME {
        return "TCPTRACE_EVENT".to_owned();
    }
    let own = name.strip_prefix("tcptrace.").unwrap_or(name);
    format!("TCPTRACE_{}", own.replace('.', "_").to_ascii_uppercase())
}

/// A value with a newline comes after its length.
fn field(to: &mut BytesMut, name: &str, value: &[u8]) {
    to.put_slice(name.as_bytes());
    if value.contains(&b'\n') {
        to.put_u8(b'\n');
        to.put_u64_le(value.len() as u64);
    } else {
        to.put_u8(b'=');
    }
    to.put_slice(value);
    to.put_u8(b'\n');
}

fn exact(time: Timestamp) -> impl fmt::Display {
    let time = jiff::Timestamp::from_nanosecond(time.0.into()).unwrap_or_default();
    fmt::from_fn(move |f| write!(f, "{time:.9}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::event::Comm;
    use crate::sink::samples;

    fn entry(event: &Event) -> Vec<(String, String)> {
        let mut buffer = BytesMut::new();
        Entries::new(samples::context()).entry(event, &mut buffer);
        parsed(&buffer)
    }

    /// What journald makes of an entry.
    fn parsed(mut entry: &[u8]) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("it is text");
        let mut fields = Vec::new();
        while !entry.is_empty() {
            let end = entry
                .iter()
                .position(|byte| b"=\n".contains(byte))
                .expect("a name ends");
            let name = text(&entry[..end]);
            let (value, rest) = if entry[end] == b'=' {
                let rest = &entry[end + 1..];
                let end = rest.iter().position(|&byte| byte == b'\n');
                rest.split_at(end.expect("a value ends"))
            } else {
                let (length, rest) = entry[end + 1..].split_first_chunk().expect("a length");
                rest.split_at(usize::try_from(u64::from_le_bytes(*length)).expect("it is small"))
            };
            fields.push((name, text(value)));
            entry = rest.strip_prefix(b"\n").expect("a field ends");
        }
        fields
    }

    fn get<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
        let field = fields.iter().find(|(it, _)| it == name);
        field.map(|(_, value)| value.as_str())
    }

    #[test]
    fn every_kind_is_an_entry_with_an_id_of_its_own() {
        let mut ids = BTreeSet::new();
        let mut names = BTreeSet::new();
        for event in samples::all().into_iter().chain(samples::verdicts()) {
            let fields = entry(&event);
            for (name, _) in &fields {
                let is_allowed = |byte: u8| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_');
                assert!(name.bytes().all(is_allowed) && name.len() <= 64, "{name}");
                assert!(name.starts_with(|c: char| c.is_ascii_uppercase()), "{name}");
            }
            let id = get(&fields, "MESSAGE_ID").expect("each kind has an id");
            assert_eq!(id.len(), 32);
            ids.insert(id.to_owned());
            names.insert(event.name());
            assert_eq!(get(&fields, "TCPTRACE_EVENT"), Some(event.name()));
        }
        assert_eq!(ids.len(), names.len());
        assert_eq!(ids.len(), MESSAGE_IDS.len());
    }

    #[test]
    fn no_two_attributes_share_a_field() {
        let fields: BTreeSet<_> = name::ALL.iter().map(|name| field_name(name)).collect();
        assert_eq!(fields.len(), name::ALL.len());
    }

    #[test]
    fn what_journald_knows_has_its_names() {
        let fields = entry(&samples::write_failed());
        for (name, value) in [
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "tcptrace"),
            ("ERRNO", "32"),
            ("OBJECT_PID", "1234"),
            ("TCPTRACE_PROCESS_PID", "1234"),
            ("TCPTRACE_ERROR_TYPE", "EPIPE"),
            ("TCPTRACE_TIMESTAMP", "2026-11-20T11:10:03.123456789Z"),
        ] {
            assert_eq!(get(&fields, name), Some(value), "{name}: {fields:?}");
        }
    }

    #[test]
    fn no_name_adds_a_field() {
        let mut event = samples::reset_sent();
        let process = event.owner.process.as_mut().expect("it has an owner");
        process.comm = Comm::from("a\nPRIORITY=0");
        process.exe = None;
        let fields = entry(&event);
        let priorities = fields.iter().filter(|(name, _)| name == "PRIORITY");
        assert_eq!(priorities.count(), 1);
        assert!(!get(&fields, "MESSAGE").expect("a text").contains('\n'));
    }

    #[test]
    fn a_value_with_newlines_stays_one_value() {
        let mut entry = BytesMut::new();
        field(&mut entry, "ONE", b"a\nPRIORITY=0\n");
        field(&mut entry, "TWO", b"=");
        let expected = [("ONE", "a\nPRIORITY=0\n"), ("TWO", "=")];
        assert_eq!(
            parsed(&entry),
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }
}
