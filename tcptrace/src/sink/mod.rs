//! Where events go. An event is written once for each format, and every output that wants the
//! format gets the same bytes.

mod direct;
mod export;
mod file;
mod journal;
mod json;
pub(crate) mod otlp;
pub mod record;
#[cfg(test)]
pub(crate) mod samples;
mod sentence;
mod syslog;
pub mod text;

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Bytes, BytesMut};

pub use direct::Direct;
pub(crate) use export::otlp as otlp_client;
pub use export::{
    Access, Account, Delivery, Destination, Endpoint, Export, Exports, Headers, Local, Lost,
    Messages, News, Protocol, Speaker, Tls,
};
pub use file::{File, Rotation, create, directory_of};
pub use sentence::Body;

use crate::event::{Event, Kind, Timestamp};

/// What every record of one run has in common.
#[derive(Clone, Debug)]
pub struct Context {
    /// Tells the ids of this run from those of others: random.
    pub run: u32,
    /// Keys the ids of flows, so that no kernel address can be read from them: random.
    pub key: [u8; 16],
    /// This host's name.
    pub host_name: String,
    /// This host's machine id, when it has one.
    pub host_id: Option<String>,
    /// The id of this boot, when the kernel tells it: what it counts begins anew with each.
    pub boot_id: Option<String>,
    /// This host's name as a Kubernetes node, when the environment tells it.
    pub node_name: Option<String>,
    /// In a replay the numbers of all its runs, by [`EventId::run`](crate::event::EventId::run): a finding may rest on events of
    /// several. What is a key in a live trace was applied when it was recorded.
    pub replayed: Option<Runs>,
}

/// The numbers of runs.
#[derive(Clone, Debug, Default)]
pub struct Runs(Arc<RwLock<Vec<u32>>>);

impl Runs {
    fn number(&self, nth: u16) -> Option<u32> {
        let runs = self.0.read().unwrap_or_else(PoisonError::into_inner);
        runs.get(usize::from(nth)).copied()
    }

    fn push(&self, number: u32) {
        let mut runs = self.0.write().unwrap_or_else(PoisonError::into_inner);
        runs.push(number);
    }
}

/// One output.
pub trait Sink {
    /// Takes one event; `record` is that event in the output's format, a newline included where lines end
    /// with one. It may be kept back until [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] when nobody reads any more, [`Error::Failed`] otherwise; what was kept back
    /// is lost then.
    fn write(&mut self, event: &Event, record: &Bytes) -> Result<(), Error>;

    /// Hands over what was kept back. The loop calls it when no more events are waiting.
    ///
    /// # Errors
    ///
    /// As for [`write`](Self::write).
    fn flush(&mut self) -> Result<(), Error>;

    /// Opens the output anew, after somebody else moved its file away.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`]; the output stays where it was.
    fn reopen(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// What a replay must know of a record beside its event. Only JSON carries it, which is what is replayed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// How far time had passed for the analysis, where that is news.
    pub judged_until: Option<Timestamp>,
    /// It was kept until a finding rested on it, and judged before what precedes it here.
    pub kept: bool,
}

/// Why an output took no more.
#[derive(Debug, PartialEq, Eq)]
pub enum Error {
    /// Its reader is gone, as with `| head`: a clean end, not a failure.
    Closed,
    /// What failed, why, and what to do.
    Failed(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the reader of the output is gone"),
            Self::Failed(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// `action` on `target` failed with `error`.
    fn failed(action: &str, target: &dyn fmt::Display, error: &io::Error) -> Self {
        let remedy = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space there",
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "choose a place this user may write to"
            }
            io::ErrorKind::NotFound => "create its directory first",
            io::ErrorKind::IsADirectory => "name a file in it",
            io::ErrorKind::AlreadyExists => "remove it, or choose another name",
            _ => "choose another place with --output-file",
        };
        Self::Failed(format!("cannot {action} {target}: {error}; {remedy}"))
    }
}

/// How an event is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// For a person.
    Columns(text::Columns),
    /// JSON Lines.
    Json,
    /// The same JSON over several lines.
    JsonPretty,
    /// Messages of RFC 5424, without anything that ends them.
    Syslog,
    /// Entries in journald's own protocol.
    Journal,
    /// OTLP's log records, each after the resource it is of.
    Otlp,
    /// The JSON of OTLP's files.
    OtlpJson,
    /// Not at all: for who takes the events themselves.
    Unwritten,
}

/// All outputs of a run.
pub struct Outputs {
    /// By run.
    writers: Vec<Writers>,
    groups: Vec<Group>,
    /// Taken back from the records of earlier events once their sinks have let go of them.
    buffer: BytesMut,
}

/// What writes the events of one run.
struct Writers {
    json: json::Records,
    syslog: syslog::Messages,
    journal: journal::Entries,
    otlp: otlp::Records,
    otlp_json: otlp::Lines,
}

impl Writers {
    fn new(context: Context) -> Self {
        Self {
            json: json::Records::new(context.clone()),
            syslog: syslog::Messages::new(context.clone()),
            journal: journal::Entries::new(context.clone()),
            otlp: otlp::Records::new(context.clone()),
            otlp_json: otlp::Lines::new(context),
        }
    }
}

/// The outputs that share a format.
struct Group {
    format: Format,
    begun: bool,
    sinks: Vec<Box<dyn Sink>>,
}

impl Outputs {
    /// None yet.
    #[must_use]
    pub fn new(context: Context) -> Self {
        Self {
            writers: vec![Writers::new(context)],
            groups: Vec::new(),
            buffer: BytesMut::new(),
        }
    }

    /// None yet, for the runs of a replay.
    #[must_use]
    pub fn of_replay() -> Self {
        Self {
            writers: Vec::new(),
            groups: Vec::new(),
            buffer: BytesMut::new(),
        }
    }

    /// The next run of a replay.
    pub fn add_run(&mut self, context: Context) {
        if let Some(runs) = &context.replayed {
            runs.push(context.run);
        }
        self.writers.push(Writers::new(context));
    }

    /// Adds one.
    pub fn add(&mut self, format: Format, sink: Box<dyn Sink>) {
        match self
            .groups
            .iter_mut()
            .find(|group| group.format == format && !group.begun)
        {
            Some(group) => group.sinks.push(sink),
            None => self.groups.push(Group {
                format,
                begun: false,
                sinks: vec![sink],
            }),
        }
    }

    /// Writes one event to every output.
    ///
    /// # Errors
    ///
    /// The first error of an output; the others after it did not get the event.
    pub fn write(&mut self, event: &Event, place: Place) -> Result<(), Error> {
        // A live trace has one run.
        let run = usize::from(event.id.run());
        let last = self.writers.len().saturating_sub(1);
        let Some(writers) = self.writers.get_mut(run.min(last)) else {
            return Ok(());
        };
        for group in &mut self.groups {
            match &group.format {
                // A person reads these on standard error, set for the purpose.
                Format::Columns(_)
                    if matches!(
                        event.kind,
                        Kind::Coverage(_) | Kind::TargetChanged(_) | Kind::Summary(_)
                    ) =>
                {
                    continue;
                }
                Format::Columns(columns) => {
                    if !group.begun {
                        columns.header(&mut self.buffer);
                    }
                    columns.event(event, &mut self.buffer);
                }
                Format::Json => writers.json.line(event, place, &mut self.buffer),
                Format::JsonPretty => writers.json.pretty(event, place, &mut self.buffer)?,
                Format::Syslog => writers.syslog.message(event, &mut self.buffer),
                Format::Journal => writers.journal.entry(event, &mut self.buffer),
                Format::Otlp => writers.otlp.record(event, &mut self.buffer),
                Format::OtlpJson => writers.otlp_json.line(event, &mut self.buffer),
                Format::Unwritten => {}
            }
            group.begun = true;
            let record = self.buffer.split().freeze();
            for sink in &mut group.sinks {
                sink.write(event, &record)?;
            }
        }
        Ok(())
    }

    /// An event as a line of JSON.
    #[cfg(test)]
    pub(crate) fn line(&mut self, event: &Event) -> BytesMut {
        self.placed(event, Place::default())
    }

    /// The same in a place of the stream.
    #[cfg(test)]
    pub(crate) fn placed(&mut self, event: &Event, place: Place) -> BytesMut {
        let mut line = BytesMut::new();
        let writers = &mut self.writers[usize::from(event.id.run())];
        writers.json.line(event, place, &mut line);
        line
    }

    /// Flushes every output.
    ///
    /// # Errors
    ///
    /// The first error of an output.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.each(Sink::flush)
    }

    /// Opens every output anew.
    ///
    /// # Errors
    ///
    /// The first error of an output.
    pub fn reopen(&mut self) -> Result<(), Error> {
        self.each(Sink::reopen)
    }

    fn each(
        &mut self,
        mut act: impl FnMut(&mut (dyn Sink + 'static)) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.groups
            .iter_mut()
            .flat_map(|group| &mut group.sinks)
            .try_for_each(|sink| act(sink.as_mut()))
    }
}

/// What says of a run's counts where they are from: the fields of OTLP's resource.
#[must_use]
pub fn resource(context: &Context) -> Vec<u8> {
    otlp::resource(context)
}

/// The JSON Schema of the record.
#[must_use]
pub fn schema() -> &'static str {
    include_str!("../explain/schema.json")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Rc<RefCell<Vec<Bytes>>>);

    impl Sink for Kept {
        fn write(&mut self, _: &Event, record: &Bytes) -> Result<(), Error> {
            self.0.borrow_mut().push(record.clone());
            Ok(())
        }

        fn flush(&mut self) -> Result<(), Error> {
            Err(Error::Closed)
        }
    }

    #[test]
    fn outputs_of_one_format_share_the_bytes() {
        let (one, two, columns) = (Kept::default(), Kept::default(), Kept::default());
        let mut outputs = Outputs::new(samples::context());
        outputs.add(Format::Json, Box::new(one.clone()));
        outputs.add(
            Format::Columns(samples::columns()),
            Box::new(columns.clone()),
        );
        outputs.add(Format::Json, Box::new(two.clone()));
        for event in samples::all() {
            let written = outputs.write(&event, Place::default());
            written.expect("it is kept in memory");
        }
        let (one, two) = (one.0.borrow(), two.0.borrow());
        assert_eq!(one.len(), samples::all().len());
        for (one, two) in one.iter().zip(two.iter()) {
            assert_eq!(one.as_ptr(), two.as_ptr(), "the same bytes, not equal ones");
        }
        let columns = columns.0.borrow().concat();
        let text = String::from_utf8(columns).expect("columns are text");
        assert_eq!(
            text.matches("LOCAL > PEER").count(),
            1,
            "one header: {text}"
        );
        assert_eq!(outputs.flush(), Err(Error::Closed));
    }

    #[test]
    fn a_failure_says_what_why_and_what_to_do() {
        let error = io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(
            Error::failed("write to", &"/var/log/tcptrace.json", &error).to_string(),
            "cannot write to /var/log/tcptrace.json: No space left on device (os error 28); \
             free some space there"
        );
    }
}
