//! What reads bytes that others write, each behind one function: for the fuzzers of `fuzz/`, and for
//! the tests that read their corpora.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Parser as _;
use rustix::fs::MemfdFlags;

use crate::cli::Cli;
use crate::config::Selection;
use crate::config::file::File;
use crate::decode::{Decoded, Decoder};
use crate::diagnose::{Analysis, Limits, Sees};
use crate::event::{Container, Event, Timestamp};
use crate::kernel::btf::Btf;
use crate::kernel::{layout, plan, symbols};
use crate::metrics::server;
use crate::replay::{Due, Recordings, Step};
use crate::session::Stream;
use crate::sink::otlp::Batch;
use crate::sink::otlp_client::answer::{Answer, LONGEST_REST, LONGEST_WORDS, Verdict};
use crate::sink::text::{Columns, is_unprintable};
use crate::sink::{Context, Error, Format, Outputs, Place, Protocol, Sink};
use crate::{explain, host};

/// A reader, by the name of its fuzzer and of the directory of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All readers.
pub const TARGETS: [Target; 11] = [
    ("records", records),
    ("recordings", recordings),
    ("btf", btf),
    ("tables", tables),
    ("cgroups", cgroups),
    ("containers", containers),
    ("symbols", symbols),
    ("arguments", arguments),
    ("configuration", configuration),
    ("accept", accept),
    ("answers", answers),
];

/// So few that they are reached.
const FEW: Limits = Limits {
    connections: 4,
    cases: 2,
    judged: 4,
};

/// Every format, with what looks at its grammar.
fn add_formats(outputs: &mut Outputs) {
    let columns = Columns::new(false, true, Some(120));
    outputs.add(Format::Columns(columns), Box::new(OneLineEach));
    outputs.add(Format::Json, Box::new(Json));
    outputs.add(Format::Syslog, Box::new(Syslog));
    outputs.add(Format::Journal, Box::new(Journal));
    outputs.add(Format::Otlp, Box::new(Requests::default()));
    outputs.add(Format::OtlpJson, Box::new(OtlpJson));
}

/// Records of the kernel half: decoded, judged and printed in every format. Whatever they hold, no line
/// has a character that moves a terminal's cursor, and what is for machines is of their grammar: nothing
/// in it ends a value or adds one.
///
/// # Panics
/// When that does not hold.
pub fn records(bytes: &[u8]) {
    let decoder = Decoder {
        clock_offset: 1_700_000_000_000_000_000,
        ns_per_jiffy: 4_000_000,
        reset_reasons: vec![(1, "NO_SOCKET")],
    };
    let mut outputs = Outputs::new(Context {
        run: 1,
        key: [0; 16],
        host_name: "host".to_owned(),
        host_id: None,
        boot_id: None,
        node_name: None,
        replayed: None,
    });
    add_formats(&mut outputs);
    let mut analysis = Analysis::new(FEW, Sees::ALL);
    let mut found = Vec::new();
    let mut print = |event: &Event| {
        outputs
            .write(event, Place::default())
            .unwrap_or_else(|error| panic!("{error}"));
    };
    // What is no whole record must be refused, not read.
    for record in bytes.chunks(size_of::<tcptrace_common::event::Event>()) {
        let Ok(Decoded { event, .. }) = decoder.decode(record) else {
            continue;
        };
        print(&event);
        analysis.take(&event, &mut |finding| found.push(finding));
    }
    analysis.finish(Timestamp(u64::MAX), &mut |finding| found.push(finding));
    found.iter().for_each(&mut print);
}

/// Two recordings by somebody else, which begin anew after a line of their own: replayed into every
/// format, as records of the kernel half are printed.
///
/// # Panics
/// When what is printed is not of its grammar, or memory has no file.
pub fn recordings(bytes: &[u8]) {
    let mut outputs = Outputs::of_replay();
    add_formats(&mut outputs);
    let everything = Selection::parse(&["all".to_owned()], &[], false).expect("all events");
    let analysis = Analysis::new(FEW, Sees::ALL);
    let mut stream = Stream::new(everything, outputs, analysis, None);
    let files = String::from_utf8_lossy(bytes);
    let files: Vec<_> = files.split("\n--\n").take(2).map(in_memory).collect();
    let paths = files
        .iter()
        .map(|file| file.path.clone())
        .collect::<Vec<_>>();
    let mut recordings = Recordings::open(&paths, false).expect("files in memory");
    // What is no recording ends it, with the reason.
    while let Ok(step) = recordings.step() {
        for context in recordings.new_runs() {
            stream.add_run(context);
        }
        match step {
            Step::Due(due) => {
                let done = match due {
                    Due::Time { until, .. } => stream.advance(until),
                    Due::Event(event) => {
                        let advanced = stream.advance(event.time);
                        let taken = if event.kind.selectable().is_some() {
                            stream.take(&event)
                        } else {
                            stream.note(&event)
                        };
                        advanced.and(taken)
                    }
                };
                done.unwrap_or_else(|error| panic!("{error}"));
            }
            Step::Read => {}
            Step::Waits | Step::End => break,
        }
    }
    let finished = stream.finish(Timestamp(u64::MAX));
    finished.unwrap_or_else(|error| panic!("{error}"));
}

struct InMemory {
    path: PathBuf,
    _file: fs::File,
}

fn in_memory(text: &str) -> InMemory {
    let file = rustix::fs::memfd_create("recording", MemfdFlags::CLOEXEC).expect("memory");
    let mut file = fs::File::from(file);
    file.write_all(text.as_bytes()).expect("memory");
    InMemory {
        path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
        _file: file,
    }
}

/// The kernel's description of its types, with all that is asked of it.
pub fn btf(bytes: &[u8]) {
    if let Ok(btf) = Btf::parse(bytes.to_vec()) {
        let resolved = layout::resolve(&btf, None);
        let functions = btf.functions(&plan::functions());
        std::hint::black_box((resolved, functions, btf.tracepoints().count()));
    }
}

/// Lines of `/proc/PID/net/tcp`, and a message of `sock_diag`.
pub fn tables(bytes: &[u8]) {
    host::sockets::read(bytes);
}

/// `/proc/PID/cgroup`: a path below the mount of the cgroups, never above it.
///
/// # Panics
/// When it is above.
pub fn cgroups(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(path) = host::cgroup::parse_unified(&text) {
        assert!(path.is_relative(), "{}", path.display());
    }
}

/// `/proc/PID/cgroup`: the ids of a container and its pod, as the JSON Schema has them.
///
/// # Panics
/// When they are others.
pub fn containers(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let hex = |id: &str| id.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
    if let Some(container) = host::container::parse(&text) {
        let Container { id, pod } = &container;
        assert!(id.len() == 64 && hex(id), "{container:?}");
        let uid = pod.as_deref().map(|uid| uid.replace('-', ""));
        assert!(
            uid.is_none_or(|uid| uid.len() == 32 && hex(&uid)),
            "{container:?}"
        );
    }
}

/// `/proc/kallsyms`.
///
/// # Panics
/// When a function has no bytes.
pub fn symbols(bytes: &[u8]) {
    if let Ok(place) = symbols::find(bytes, "tcp_rcv_state_process") {
        assert!(!place.is_empty(), "{place:?}");
    }
}

/// The command line, one argument a line, and a name to explain.
pub fn arguments(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let line = std::iter::once("tcptrace").chain(text.lines());
    if let Ok(Cli { trace, .. }) = Cli::try_parse_from(line) {
        let selection = Selection::parse(&trace.event, &trace.errno, false);
        std::hint::black_box(selection.map(|it| it.kinds()).ok());
    }
    std::hint::black_box(explain::find(&text).is_ok());
}

/// The file of `--config`. What is wrong with it is said in one line that names the file.
///
/// # Panics
/// When it is not.
pub fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Err(error) = File::parse(Path::new("config.toml"), &text) {
        let error = error.to_string();
        assert!(error.starts_with("config.toml:"), "{error}");
    }
}

/// The header `Accept` of a scrape.
pub fn accept(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    std::hint::black_box(server::wanted(&text));
}

/// The answer of a receiver of OTLP, in either protocol: a status, headers, and after an empty line the body.
///
/// # Panics
/// When it has tcptrace rest for long, or say much.
pub fn answers(bytes: &[u8]) {
    let end = bytes.windows(2).position(|it| it == b"\n\n");
    let (head, body) = bytes.split_at(end.map_or(bytes.len(), |it| it + 2));
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let status = lines.next().and_then(|it| it.parse().ok());
    let headers = lines.filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        Some((name.parse().ok()?, value.parse().ok()?))
    });
    let answer = Answer {
        status: status.unwrap_or_default(),
        headers: headers.collect(),
        body: body.to_vec(),
    };
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let why = match answer.verdict(protocol, jiff::Timestamp::UNIX_EPOCH) {
            Verdict::Taken(_, why) | Verdict::Refused(why) => why,
            Verdict::Later(why, rest) => {
                assert!(rest <= LONGEST_REST, "{rest:?}");
                why
            }
        };
        let status = 100;
        assert!(why.chars().count() <= LONGEST_WORDS + status, "{why}");
    }
}

/// What the log collectors we know take: `docs/operations.md`.
const LONGEST: usize = 8_000;

/// Takes columns: of every line, only what a terminal prints.
struct OneLineEach;

impl Sink for OneLineEach {
    fn write(&mut self, _: &Event, record: &Bytes) -> Result<(), Error> {
        let text = std::str::from_utf8(record).expect("text");
        let unprintable = |c: char| c != '\n' && is_unprintable(c);
        assert!(!text.contains(unprintable), "{text:?}");
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Takes JSON: one object a line, and nothing raw in it that a terminal obeys.
struct Json;

impl Sink for Json {
    fn write(&mut self, _: &Event, record: &Bytes) -> Result<(), Error> {
        let text = std::str::from_utf8(record).expect("text");
        let line = text.strip_suffix('\n').expect("a whole line");
        assert!(text.len() <= LONGEST, "{line}");
        assert!(!line.contains(is_unprintable), "{line:?}");
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(value.is_object(), "{line}");
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Takes messages of RFC 5424: structured data whose values end where they must, and then the text.
struct Syslog;

impl Sink for Syslog {
    fn write(&mut self, _: &Event, record: &Bytes) -> Result<(), Error> {
        let message = std::str::from_utf8(record).expect("text");
        assert!(message.len() <= LONGEST, "{message}");
        assert!(!message.contains(is_unprintable), "{message:?}");
        let (_, data) = message.split_once(" [").expect("structured data");
        let mut is_quoted = false;
        let mut characters = data.char_indices();
        let end = loop {
            match characters.next().expect("the data ends") {
                (_, '\\') if is_quoted => {
                    let (_, escaped) = characters.next().expect("a character");
                    assert!("\"\\]".contains(escaped), "{message}");
                }
                (_, '"') => is_quoted = !is_quoted,
                (at, ']') => break at,
                _ => {}
            }
        };
        assert!(!is_quoted && data[end..].starts_with("] "), "{message}");
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Takes entries of journald's protocol: fields with names it takes, of which those it acts on come once.
struct Journal;

impl Sink for Journal {
    fn write(&mut self, _: &Event, record: &Bytes) -> Result<(), Error> {
        let mut entry: &[u8] = record;
        let mut acted_on = Vec::new();
        while !entry.is_empty() {
            let end = entry.iter().position(|byte| b"=\n".contains(byte));
            let (name, value) = entry.split_at(end.expect("a name ends"));
            let is_allowed = |byte: &u8| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_');
            assert!(name.iter().all(is_allowed), "{record:?}");
            if !name.starts_with(b"TCPTRACE_") {
                acted_on.push(name);
            }
            let (length, value) = if let Some(value) = value.strip_prefix(b"=") {
                let end = value.iter().position(|&byte| byte == b'\n');
                (end.expect("a value ends"), value)
            } else {
                let (length, value) = value[1..].split_first_chunk().expect("a length");
                let length = u64::from_le_bytes(*length);
                (usize::try_from(length).expect("it is in memory"), value)
            };
            assert_eq!(value.get(length), Some(&b'\n'), "{record:?}");
            entry = &value[length + 1..];
        }
        acted_on.sort_unstable();
        let once = acted_on.len();
        acted_on.dedup();
        assert_eq!(once, acted_on.len(), "{record:?}");
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Takes records of OTLP, into requests of one each.
#[derive(Default)]
struct Requests(Batch);

impl Sink for Requests {
    fn write(&mut self, _: &Event, record: &Bytes) -> Result<(), Error> {
        self.0.push(record);
        std::hint::black_box(self.0.request());
        self.0 = Batch::default();
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Takes requests in JSON.
struct OtlpJson;

impl Sink for OtlpJson {
    fn write(&mut self, _: &Event, record: &Bytes) -> Result<(), Error> {
        let text = std::str::from_utf8(record).expect("text");
        let line = text.strip_suffix('\n').expect("a whole line");
        assert!(!line.contains(is_unprintable), "{line:?}");
        let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let record = &value["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0];
        assert!(record["attributes"].is_array(), "{line}");
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reader_takes_its_whole_corpus() {
        let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        for (name, reader) in TARGETS {
            let files = fs::read_dir(corpora.join(name)).unwrap_or_else(|error| {
                panic!("no corpus of {name}: {error}");
            });
            let mut read = 0;
            for file in files {
                let path = file.expect("an entry").path();
                let bytes = fs::read(&path).expect("a file");
                eprintln!("{}", path.display());
                reader(&bytes);
                read += 1;
            }
            assert!(read > 0, "the corpus of {name} is empty");
        }
    }
}
