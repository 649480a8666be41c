//! `tcptrace sockets`: one look at all sockets, written down and checked.

use std::io::{self, BufWriter, Write as _};

use anyhow::{Context as _, Result, anyhow};
use bytes::BytesMut;
use nix::time::ClockId;

use super::{Failure, is_colored, status, tracer};
use crate::cli;
use crate::config::Filters;
use crate::config::fail_on::{Outcome, Unseen};
use crate::event::{Coverage, Event, EventId, Flow, Kind, Owner, Process, Timestamp};
use crate::host::census::{self, Census, Request};
use crate::host::{netns, sockets};
use crate::session::clock;
use crate::sink::text::{Columns, printable};
use crate::sink::{self, Body, Direct, Format, Outputs, Place};

/// Looks, prints and checks; gives the exit status.
///
/// # Errors
/// A filter names what is not there, nothing could be looked at, a check could not be made, or the output
/// takes nothing.
pub(super) fn sockets(args: &cli::Sockets) -> Result<u8, Failure> {
    let filters = Filters::of_sockets(&args.filter)?;
    let named = args.filter.netns.iter();
    let named = named.map(|name| netns::named(name).context("--netns"));
    let named = named.collect::<Result<Vec<_>>>()?;
    let by_flow = |flow: &Flow| filters.include_flow(flow);
    let by_owner = |owner: &Process| filters.include_owner(owner);
    let mut census = census::take(&Request {
        namespaces: (!named.is_empty()).then_some(named),
        flow: filters.by_flow().then_some(&by_flow),
        owner: filters.by_owner().then_some(&by_owner),
        each: args.all,
    });
    if census.namespaces == 0 {
        let why = census.notes.join("; ");
        return Err(anyhow!("no sockets can be listed: {why}").into());
    }
    let failed = judge(args, filters.by_owner(), &census)?;
    match tracer::format(args.output, is_colored(args.color), true) {
        Format::Columns(columns) => table(&columns, args.all, &mut census)?,
        format => records(format, &mut census)?,
    }
    let mut stderr = io::stderr().lock();
    let notes = census.notes.iter().filter(|_| !args.quiet);
    for note in notes {
        // Nobody may be left to read it.
        let _ = writeln!(stderr, "tcptrace: not seen: {}", printable(note));
    }
    for line in &failed {
        let _ = writeln!(stderr, "tcptrace: --fail-on {}", printable(line));
    }
    Ok(if failed.is_empty() { 0 } else { status::FOUND })
}

/// A line for each check that failed. None passes where a process that was asked for could not be read.
fn judge(args: &cli::Sockets, by_owner: bool, census: &Census) -> Result<Vec<String>, Failure> {
    let mut failed = Vec::new();
    for check in &args.fail_on {
        let outcome = if by_owner && census.unread > 0 {
            Outcome::Unseen(Unseen::Descriptors)
        } else {
            check.judge(&census.events, census.unread > 0)
        };
        match outcome {
            Outcome::Passed => {}
            Outcome::Failed(value, worst) => {
                let unit = check.unit();
                failed.push(format!("{check}: {value}{unit}; {}", Body(worst)));
            }
            Outcome::Unseen(why) => {
                return Err(Failure {
                    status: match why {
                        Unseen::Limits => status::KERNEL,
                        Unseen::Descriptors => status::PRIVILEGE,
                    },
                    error: anyhow!("--fail-on {check} cannot be checked: {why}"),
                });
            }
        }
    }
    Ok(failed)
}

/// Tables for a person. A reader who has seen enough does not mind.
fn table(columns: &Columns, all: bool, census: &mut Census) -> Result<()> {
    let mut text = BytesMut::new();
    let mut stdout = BufWriter::new(io::stdout().lock());
    columns.sockets(&census.events, all, &mut text);
    if all {
        columns.each_header(&mut text);
    }
    let mut write = || {
        stdout.write_all(&text)?;
        census.each(|event| {
            text.clear();
            columns.each(&event, &mut text);
            stdout.write_all(&text)
        })?;
        stdout.flush()
    };
    match write() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// The same as records, with what is not seen among them.
fn records(format: Format, census: &mut Census) -> Result<(), Failure> {
    let mut outputs = Outputs::new(tracer::context()?);
    outputs.add(
        format,
        Box::new(Direct::new(io::stdout(), "standard output")),
    );
    let time = Timestamp(clock(ClockId::CLOCK_REALTIME));
    let mut ids = 1..;
    let mut write = |event: Event| {
        let id = EventId(ids.next().unwrap_or_default());
        outputs.write(&Event { id, time, ..event }, Place::default())
    };
    let gaps = census.notes.iter().map(|note| Coverage {
        signal: "sockets of the host".into(),
        way: None,
        note: Some(note.clone()),
        complete: false,
    });
    let mut coverage = [sockets::coverage()].into_iter().chain(gaps);
    let written = coverage
        .try_for_each(|coverage| write(bare(Kind::Coverage(coverage))))
        .and_then(|()| census.events.drain(..).try_for_each(&mut write))
        .and_then(|()| census.each(&mut write));
    match written.and_then(|()| outputs.flush()) {
        Err(sink::Error::Closed) => Ok(()),
        written => Ok(written?),
    }
}

fn bare(kind: Kind) -> Event {
    Event {
        id: EventId(0),
        time: Timestamp::default(),
        caused_by: None,
        socket: None,
        owner: Owner::default(),
        actor: None,
        facts: Vec::new(),
        kind,
    }
}
