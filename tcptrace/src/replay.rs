//! Recordings: the JSON stream of one or many runs, as events in the order in which they were judged. Of
//! several files time says which is next. Whoever wrote them, reading them takes bounded memory and no
//! line stops it.

mod input;
mod line;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::event::{Event, Timestamp};
use crate::sink::Context;
use input::{Input, Next};
pub use line::{Line, Reader, Record};

/// What was kept before it was recorded is put in its place, if that is no longer ago: evidence is
/// recorded only once a finding rests on it.
const WINDOW: Duration = Duration::from_secs(10);
/// Bytes of lines whose events wait for their place. With more the window is shorter.
const ROOM: usize = 32 << 20;
/// Every record begins so, and no text within one can.
const BEGIN: &[u8] = b"{\"timestamp\":\"";
/// Lines that could not be read, told of one by one.
const TOLD: u64 = 5;

/// Recordings that are read.
#[derive(Debug)]
pub struct Recordings {
    files: Vec<File>,
    reader: Reader,
    /// By time, and of one time as they were read; with the bytes of their lines.
    waiting: BTreeMap<(Timestamp, u64), (Due, usize)>,
    /// How many have waited.
    read: u64,
    bytes: usize,
    follow: bool,
    counts: Counts,
    /// Said of lines that could not be read, and not asked for yet.
    said: Vec<String>,
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records, findings and summaries too.
    pub records: u64,
    /// Findings the recordings carry, each once.
    pub findings: u64,
    /// Lines that are no records.
    pub unread: u64,
    /// When the last record was made.
    pub last: Timestamp,
}

#[derive(Debug)]
struct File {
    input: Input,
    /// How far its time has come. It stands still where a record is older than one before: that was
    /// judged in this order.
    newest: Timestamp,
    state: State,
    /// Something in it was a record.
    known: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// All that is in it has been read; there may be more later.
    Waits,
    Over,
}

/// What comes next.
#[derive(Debug)]
pub enum Step {
    /// The next event, or how far time had passed.
    Due(Due),
    /// A piece was read and nothing is due.
    Read,
    /// Files that are followed have nothing more for now.
    Waits,
    /// There is no more.
    End,
}

/// What the analysis is to be told.
#[derive(Debug)]
pub enum Due {
    /// An event.
    Event(Box<Event>),
    /// For the analysis of this run time had passed so far.
    Time {
        /// As [`EventId::run`](crate::event::EventId::run).
        run: u16,
        /// So far.
        until: Timestamp,
    },
}

/// How far it is, of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read.
    pub read: u64,
    /// Bytes in all files; `None` where one is a pipe.
    pub size: Option<u64>,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        match self.size.filter(|&size| size > 0) {
            Some(size) => {
                let percent = self.read.saturating_mul(100) / size;
                write!(f, "{percent}% of {} MiB", size / MIB)
            }
            None => write!(f, "{} MiB", self.read / MIB),
        }
    }
}

impl Recordings {
    /// Opens them.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn open(paths: &[PathBuf], follow: bool) -> Result<Self> {
        let files = paths.iter().map(|path| {
            Ok(File {
                input: Input::open(path)?,
                newest: Timestamp(0),
                state: State::Open,
                known: false,
            })
        });
        Ok(Self {
            files: files.collect::<Result<_>>()?,
            reader: Reader::default(),
            waiting: BTreeMap::new(),
            read: 0,
            bytes: 0,
            follow,
            counts: Counts::default(),
            said: Vec::new(),
        })
    }

    /// Goes one step.
    ///
    /// # Errors
    /// A file cannot be read, or what it holds is no recording.
    pub fn step(&mut self) -> Result<Step> {
        if self.is_due() {
            let first = self.overdue(Timestamp(u64::MAX));
            return Ok(first.map_or(Step::End, Step::Due));
        }
        // The one that is furthest behind.
        let files = self.files.iter().enumerate();
        let open = files.filter(|(_, file)| file.state == State::Open);
        let Some((nth, _)) = open.min_by_key(|(_, file)| file.newest) else {
            return Ok(Step::Waits);
        };
        let file = &mut self.files[nth];
        match file.input.next()? {
            Next::Line(b"") => {}
            Next::Line(line) => {
                let length = line.len();
                match self.reader.read(line) {
                    Ok(record) => self.take(nth, record, length),
                    Err(wrong) => {
                        // A run was killed within a line, and the next one went on in the same file.
                        let torn = last(line, BEGIN).filter(|&at| at > 0);
                        let rest = torn.and_then(|at| self.reader.read(&line[at..]).ok());
                        let Some(rest) = rest else {
                            self.refuse(nth, &wrong)?;
                            return Ok(Step::Read);
                        };
                        self.take(nth, rest, length);
                        self.refuse(nth, &"another record begins within it")?;
                    }
                }
            }
            Next::Long => self.refuse(nth, &"longer than any record")?,
            Next::End(_) if self.follow => file.state = State::Waits,
            Next::End(rest) => {
                let (last, length) = (self.reader.read(rest), rest.len());
                file.state = State::Over;
                if length > 0 {
                    file.input.number += 1;
                    match last {
                        Ok(record) => self.take(nth, record, length),
                        Err(_) => self.refuse(nth, &"the file ends within it")?,
                    }
                }
            }
        }
        Ok(Step::Read)
    }

    /// Looks anew at files that are followed, after [`Step::Waits`].
    ///
    /// # Errors
    /// A file cannot be opened any more.
    pub fn renew(&mut self) -> Result<()> {
        for file in &mut self.files {
            file.input.renew()?;
            file.state = State::Open;
        }
        Ok(())
    }

    /// The next of what waits for its place, whatever may come, if it is of a time before.
    pub fn overdue(&mut self, before: Timestamp) -> Option<Due> {
        let first = self.waiting.first_entry()?;
        if first.key().0 >= before {
            return None;
        }
        let (due, bytes) = first.remove();
        self.bytes -= bytes;
        Some(due)
    }

    /// Runs that have come up, in the order of [`EventId::run`](crate::event::EventId::run). Their events
    /// come later.
    pub fn new_runs(&mut self) -> impl Iterator<Item = Context> {
        self.reader.new_runs()
    }

    /// What is to be said of lines that could not be read.
    pub fn said(&mut self) -> impl Iterator<Item = String> {
        self.said.drain(..)
    }

    /// What was read so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            read: self.files.iter().map(|file| file.input.read).sum(),
            size: self.files.iter().map(|file| file.input.size()).sum(),
        }
    }

    /// The first of those that wait may go: nothing earlier can come within the window, or there is no
    /// more room.
    fn is_due(&self) -> bool {
        let open = self.files.iter().filter(|file| file.state == State::Open);
        let Some(newest) = open.map(|file| file.newest).min() else {
            return !self.follow;
        };
        let window = u64::try_from(WINDOW.as_nanos()).unwrap_or(u64::MAX);
        let first = self.waiting.first_key_value();
        first.is_some_and(|((time, _), _)| {
            self.bytes > ROOM || time.0.saturating_add(window) < newest.0
        })
    }

    fn take(&mut self, nth: usize, record: Record, bytes: usize) {
        let Record {
            run,
            judged_until,
            kept,
            line,
        } = record;
        self.counts.records += 1;
        self.files[nth].known = true;
        if let Some(until) = judged_until {
            let newest = self.files[nth].pass(until);
            self.wait(newest, Due::Time { run, until }, bytes);
        }
        let file = &mut self.files[nth];
        match line {
            Line::Event(event) => {
                self.counts.last = self.counts.last.max(event.time);
                let time = if kept {
                    event.time
                } else {
                    file.pass(event.time)
                };
                self.wait(time, Due::Event(event), bytes);
            }
            Line::Finding { first } => self.counts.findings += u64::from(first),
            Line::Summary(time) => {
                file.pass(time);
                self.counts.last = self.counts.last.max(time);
            }
        }
    }

    fn wait(&mut self, time: Timestamp, due: Due, bytes: usize) {
        self.read += 1;
        self.waiting.insert((time, self.read), (due, bytes));
        self.bytes += bytes;
    }

    /// Leaves a line out, and says so. A file that begins so is no recording.
    fn refuse(&mut self, nth: usize, why: &dyn fmt::Display) -> Result<()> {
        let file = &self.files[nth];
        let (name, number) = (file.input.name(), file.input.number);
        if !file.known {
            bail!(
                "{name}:{number}: {why}; a recording is what `tcptrace -o json` and --output-file write"
            );
        }
        self.counts.unread += 1;
        if self.counts.unread <= TOLD {
            self.said.push(format!("{name}:{number}: left out: {why}"));
        }
        Ok(())
    }
}

impl File {
    /// Time comes so far, if it is not further.
    fn pass(&mut self, time: Timestamp) -> Timestamp {
        self.newest = self.newest.max(time);
        self.newest
    }
}

/// Where the last of these pieces begins.
fn last(line: &[u8], piece: &[u8]) -> Option<usize> {
    line.windows(piece.len()).rposition(|it| it == piece)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tempfile::NamedTempFile;

    use super::*;
    use crate::event::EventId;
    use crate::sink::{Outputs, Place, samples};

    const SECOND: u64 = 1_000_000_000;

    /// The records of RSTs sent at these seconds, by a run of this number.
    fn recorded(run: u32, seconds: &[u64]) -> Vec<u8> {
        let context = Context {
            run,
            ..samples::context()
        };
        let mut outputs = Outputs::new(context);
        let lines = seconds.iter().map(|second| {
            let mut event = samples::reset_sent();
            event.time = Timestamp(second * SECOND);
            event.id = EventId(*second);
            outputs.line(&event)
        });
        lines.collect::<Vec<_>>().concat()
    }

    fn file(text: &[u8]) -> NamedTempFile {
        let mut file = NamedTempFile::new().expect("a file");
        file.write_all(text).expect("it is ours");
        file
    }

    fn open(files: &[&NamedTempFile]) -> Recordings {
        let paths: Vec<_> = files.iter().map(|file| file.path().to_owned()).collect();
        Recordings::open(&paths, false).expect("they are there")
    }

    /// Run and second of each event.
    fn read(recordings: &mut Recordings) -> Result<Vec<(u16, u64)>> {
        let mut events = Vec::new();
        loop {
            match recordings.step()? {
                Step::Due(Due::Event(event)) => {
                    events.push((event.id.run(), event.time.0 / SECOND));
                }
                Step::Due(Due::Time { .. }) | Step::Read => {}
                Step::Waits | Step::End => return Ok(events),
            }
        }
    }

    #[test]
    fn files_are_joined_by_time_and_keep_their_own_order() {
        let one = file(&recorded(7, &[100, 103, 101, 130]));
        let two = file(&recorded(9, &[99, 102, 128, 131]));
        let mut recordings = open(&[&one, &two]);
        let events = read(&mut recordings).expect("they are recordings");
        let expected = [
            (1, 99),
            (0, 100),
            (1, 102),
            (0, 103),
            (0, 101),
            (1, 128),
            (0, 130),
            (1, 131),
        ];
        assert_eq!(events, expected);
        let runs: Vec<_> = recordings.new_runs().map(|context| context.run).collect();
        assert_eq!(runs, [7, 9]);
        assert_eq!(recordings.counts().records, 8);
        assert_eq!(
            recordings.progress().read,
            recordings.progress().size.unwrap_or(0)
        );
    }

    #[test]
    fn what_was_kept_is_put_where_it_was_judged_and_time_where_it_passed() {
        let context = samples::context();
        let (mut outputs, kept) = (Outputs::new(context), |kept| Place {
            kept,
            ..Place::default()
        });
        let until = Place {
            judged_until: Some(Timestamp(104 * SECOND)),
            ..Place::default()
        };
        let records = [
            (100, kept(false)),
            (103, kept(false)),
            (101, kept(true)),
            (102, until),
        ];
        let lines = records.map(|(second, place)| {
            let mut event = samples::reset_sent();
            event.time = Timestamp(second * SECOND);
            outputs.placed(&event, place)
        });
        let file = file(&lines.concat());
        let mut recordings = open(&[&file]);
        let mut told = Vec::new();
        while let step = recordings.step().expect("it is a recording")
            && !matches!(step, Step::End)
        {
            match step {
                Step::Due(Due::Event(event)) => told.push(("event", event.time.0 / SECOND)),
                Step::Due(Due::Time { run: 0, until }) => told.push(("time", until.0 / SECOND)),
                _ => {}
            }
        }
        let event = |second| ("event", second);
        let expected = [
            event(100),
            event(101),
            event(103),
            ("time", 104),
            event(102),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_waits_for_its_place_has_a_bound() {
        let many: Vec<_> = (0..40_000).map(|_| 100).collect();
        let one = file(&recorded(7, &many));
        let mut recordings = open(&[&one]);
        let (mut events, mut most) = (0, 0);
        loop {
            match recordings.step().expect("it is a recording") {
                Step::Due(_) => events += 1,
                Step::Read => most = most.max(recordings.bytes),
                Step::Waits | Step::End => break,
            }
        }
        assert_eq!(events, many.len());
        assert!((ROOM..ROOM + 8_000).contains(&most), "{most}");
        assert_eq!(recordings.bytes, 0);
    }

    #[test]
    fn torn_lines_are_left_out_and_told_of() {
        let whole = recorded(7, &[100, 101, 102]);
        let length = whole.len() / 3;
        let mut torn = whole[..length + 50].to_vec();
        torn.extend_from_slice(&recorded(8, &[103]));
        torn.extend_from_slice(b"\nnot ours\n");
        torn.extend_from_slice(&whole[..length - 20]);
        let torn = file(&torn);
        let mut recordings = open(&[&torn]);
        let events = read(&mut recordings).expect("it begins as a recording");
        assert_eq!(events, [(0, 100), (1, 103)]);
        assert_eq!(recordings.counts().unread, 3);
        let said: Vec<_> = recordings.said().collect();
        for (said, words) in said.iter().zip([
            ":2: left out: another record begins within it",
            ":4: left out: no JSON object",
            ":5: left out: the file ends within it",
        ]) {
            assert!(said.contains(words), "{said}");
        }
        assert_eq!(said.len(), 3);
        // One that is whole but for the end of the line is.
        let whole = file(whole.strip_suffix(b"\n").expect("it has one"));
        assert_eq!(read(&mut open(&[&whole])).expect("it is whole").len(), 3);
    }

    #[test]
    fn what_is_no_recording_is_named() {
        let mut later = recorded(7, &[100]);
        let version = b"\"schema_version\":\"1.0\"";
        let at = last(&later, version).expect("it has one");
        later[at + version.len() - 4] = b'2';
        for (text, words) in [
            (&b"PK\x03\x04\n"[..], ":1: no JSON object"),
            (b"{\"a\":1}\n", "no record of tcptrace"),
            (&later, "schema version \"2.0\""),
        ] {
            let file = file(text);
            let error = read(&mut open(&[&file])).map(|_| ());
            let error = error.map_err(|error| error.to_string()).expect_err(words);
            assert!(error.contains(words), "{error}");
        }
        let empty = file(b"");
        assert_eq!(read(&mut open(&[&empty])).expect("nothing to read"), []);
    }
}
