//! The agent as far as a stage goes, fed with raw records.

use bytemuck::bytes_of;
use bytes::Bytes;
use tcptrace::config::Selection;
use tcptrace::decode::Decoder;
use tcptrace::diagnose::{Analysis, Limits, Sees};
use tcptrace::event;
use tcptrace::host::attribution::{self, Verifier};
use tcptrace::session::{Session, clock, monotonic};
use tcptrace::sink::text::Columns;
use tcptrace::sink::{Context, Error, Format, Outputs, Sink};
use tcptrace_common::event::Event;

/// How far a record goes.
#[derive(Clone, Copy)]
pub(crate) enum Stage {
    /// To an event.
    Decode,
    /// Through the session to the analysis, where findings are made; nothing else is printed.
    Analysis,
    /// The same, and a line for a person.
    Text,
    /// The same, and a line of JSON.
    Json,
}

/// An agent that goes as far as a stage.
pub(crate) enum Agent {
    Decoder(Decoder),
    Session(Box<Session>),
}

impl Stage {
    pub(crate) const ALL: [Self; 4] = [Self::Decode, Self::Analysis, Self::Text, Self::Json];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Analysis => "analysis",
            Self::Text => "text",
            Self::Json => "json",
        }
    }

    /// An agent that has seen nothing. What it writes goes nowhere.
    pub(crate) fn agent(self) -> Agent {
        let decoder = Decoder {
            clock_offset: clock(nix::time::ClockId::CLOCK_REALTIME) - monotonic(),
            ns_per_jiffy: 4_000_000,
            reset_reasons: vec![(1, "NO_SOCKET"), (11, "TCP_ABORT_ON_CLOSE")],
        };
        let (event, format) = match self {
            Self::Decode => return Agent::Decoder(decoder),
            Self::Analysis => ("finding", Format::Json),
            Self::Text => (
                "+state.changed",
                Format::Columns(Columns::new(false, true, None)),
            ),
            Self::Json => ("+state.changed", Format::Json),
        };
        let selection = Selection::parse(&[event.to_owned()], &[], false).expect("known names");
        let mut outputs = Outputs::new(Context {
            run: 1,
            key: [7; 16],
            host_name: "web-1".to_owned(),
            host_id: Some("0123456789abcdef0123456789abcdef".to_owned()),
            boot_id: Some("01234567-89ab-cdef-0123-456789abcdef".to_owned()),
            node_name: Some("node-1".to_owned()),
            replayed: None,
        });
        outputs.add(format, Box::new(Gathered::default()));
        let analysis = Analysis::new(Limits::default(), Sees::ALL);
        let verifier = Verifier::new(attribution::Host::default());
        let session = Session::new(decoder, selection, outputs, verifier, analysis, None);
        Agent::Session(Box::new(session))
    }
}

/// Gathers records as the output does before its thread takes them.
#[derive(Default)]
struct Gathered(Vec<u8>);

impl Sink for Gathered {
    fn write(&mut self, _: &event::Event, record: &Bytes) -> Result<(), Error> {
        self.0.extend_from_slice(record);
        if self.0.len() < 64 * 1024 {
            return Ok(());
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.0.clear();
        Ok(())
    }
}

impl Agent {
    /// Takes records as the loop does.
    pub(crate) fn take(&mut self, records: &[Event]) {
        match self {
            Self::Decoder(decoder) => {
                for record in records {
                    let event = decoder.decode(bytes_of(record));
                    std::hint::black_box(&event).as_ref().expect("a record");
                }
            }
            Self::Session(session) => {
                for batch in records.chunks(4096) {
                    for record in batch {
                        session
                            .take(bytes_of(record), |_| true)
                            .expect("nothing can fail");
                    }
                    session.flush().expect("nothing can fail");
                }
                session.resume().expect("nothing can fail");
                session.advance().expect("nothing can fail");
            }
        }
    }
}
