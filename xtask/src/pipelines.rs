//! `cargo xtask pipelines`: the test of the same name with a million records for each export, and what it
//! measures in docs/performance.md.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::process::{self, cargo};
use crate::{build, overhead, setup};

const PAGE: &str = "docs/performance.md";

/// Where this part of the page begins. It goes on to the end.
const HEADING: &str = "\n## Into log pipelines\n";

/// What the page says before its table.
const METHOD: &str = "\
A client is refused as fast as it can be; each time is three records, and as many as are *produced* go to
one export and from there to a real server on the same host. The client, the tracer and the server share
its CPUs, and nobody waits for anybody: what comes faster than the server takes it waits, 65,536 records
at most, and what is more than that is lost and counted. *Sent* and *lost* are what tcptrace says at its
end, and together they are what was produced. *Written* are the lines in the server's file afterwards:
over TCP and Unix sockets all that was sent, and at most what was still on its way at the end besides;
over UDP what the server's buffer had room for. The rate is of records sent, from the first refusal to
the end of the tracer. *CPU* is what the tracer took for a record produced, in microseconds on all CPUs:
reading the event, judging it, writing it as JSON to `/dev/null`, and the export. *None* is without one, so
what is above it is the export's.

| export | server | produced | sent | lost | written | a second | CPU, µs |
|---|---|---:|---:|---:|---:|---:|---:|
";

/// Measures, and writes that part of the page.
pub(crate) fn run() -> Result<()> {
    setup::run()?;
    build::release_with_kafka()?;
    let lines = process::run_and_keep(
        process::cargo_test_as_root(&mut cargo("test"))?
            .args(["--package", "tcptrace-tests", "--test", "pipelines"])
            .args(["--features", "kafka"])
            .args(["--", "--nocapture", "--test-threads=1"])
            .env("TCPTRACE_BIN", build::binary())
            .env("TCPTRACE_RECORDS", "1000000"),
    )?;
    let rows: Vec<_> = lines.iter().filter(|it| it.starts_with('|')).collect();
    ensure!(!rows.is_empty(), "no test printed a row");
    let mut part = HEADING.to_owned();
    let date = process::answer(Command::new("date").args(["-u", "+%Y-%m-%d"]))
        .context("date does not run")?;
    write!(
        part,
        "\nWritten by `cargo xtask pipelines` on {}: {}.\n\n{METHOD}",
        date.trim_end(),
        overhead::machine()?
    )?;
    for row in rows {
        writeln!(part, "{row}")?;
    }
    let path = process::workspace().join(PAGE);
    let page = fs::read_to_string(&path).with_context(|| format!("cannot read {PAGE}"))?;
    let before = page.strip_suffix(kept(&page)).unwrap_or(&page);
    fs::write(path, before.to_owned() + &part)?;
    println!("wrote {PAGE}");
    Ok(())
}

/// The part of the page that others keep when they write it anew.
pub(crate) fn kept(page: &str) -> &str {
    page.find(HEADING).map_or("", |at| &page[at..])
}
