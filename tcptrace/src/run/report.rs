//! `tcptrace report`: recordings through the analysis of a live trace onto one page.

use std::cell::RefCell;
use std::io::{self, Write as _};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::anyhow;

use super::replay::Run;
use super::{Failure, print, sees};
use crate::cli;
use crate::config::Selection;
use crate::diagnose::{Analysis, Limits};
use crate::event::Count;
use crate::report::{Report, Source};
use crate::session::Stream;
use crate::sink::{self, Format, Outputs};

/// `tcptrace report FILE…`.
pub(super) fn report(args: &cli::Report) -> Result<u8, Failure> {
    let path = Some(args.output.as_path()).filter(|path| *path != Path::new("-"));
    if let Some(path) = path
        && path.symlink_metadata().is_ok()
    {
        let path = path.display();
        return Err(Failure::usage(anyhow!(
            "{path} is there already; remove it, or choose another name with -o"
        )));
    }
    let report = Rc::new(RefCell::new(Report::new(args.recorded.from)));
    let mut outputs = Outputs::of_replay();
    outputs.add(Format::Unwritten, Box::new(Rc::clone(&report)));
    let everything = Selection::parse(&["all".to_owned()], &[], false)?;
    let limits = Limits {
        // When failures happened is known as exactly as they are told.
        again: [Duration::from_secs(1); 2],
        ..Limits::default()
    };
    let analysis = Analysis::new(limits, sees::UNTOLD);
    let stream = Stream::new(everything, outputs, analysis, None);
    let mut run = Run::new(&args.recorded, false, args.quiet, stream)?;
    run.run()?;
    let source = Source {
        files: &args.recorded.files,
        asked: (args.recorded.from, args.recorded.to),
        contexts: &run.contexts,
        versions: run.recordings.versions().collect(),
        counts: run.recordings.counts(),
    };
    let report = report.borrow();
    let text = if args.markdown {
        report.markdown(&source)
    } else {
        report.html(&source)
    };
    match path {
        Some(path) => sink::create(path, text.as_bytes())?,
        None => return print(text.trim_end()),
    }
    if !args.quiet {
        // Nobody may be left to read it.
        let _ = writeln!(
            io::stderr(),
            "tcptrace: {} of {}, {} KiB: {}",
            Count(report.findings(), "finding"),
            Count(source.counts.records, "record"),
            text.len().div_ceil(1024),
            args.output.display(),
        );
    }
    Ok(0)
}
