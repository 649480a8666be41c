//! `--output-file`: whatever happens to the file, every record is in one, once, or the end says why; and
//! nothing waits for it.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tcptrace_tests::accounts::lost_locally;
use tcptrace_tests::*;

/// How long the file may take at the end, and the tracer for everything else.
const END: Duration = Duration::from_secs(5 + 10);

/// Starts to be refused this many times, without waiting for the end.
fn begin_refused(client: &mut Actor, times: usize) -> Result<()> {
    Ok(client.begin("be_refused", &[1.into(), times.into()])?)
}

/// All lines of all files of a directory, in order of the lines.
fn lines_of(directory: &Path) -> Result<Vec<String>> {
    let mut lines = vec![];
    for file in fs::read_dir(directory)? {
        let text = fs::read_to_string(file?.path())?;
        lines.extend(text.lines().map(String::from));
    }
    lines.sort_unstable();
    Ok(lines)
}

#[test]
fn rotated_and_moved_away_in_a_storm_it_loses_and_doubles_nothing() {
    const SIZE: u64 = 64 * 1024;
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("events.json");
        let moved = directory.path().join("moved.json");
        let tracer = trace(
            netns,
            &[
                "--output-file",
                path.to_str().context("a path of this test")?,
                "--rotate-size",
                &SIZE.to_string(),
                "--rotate-keep",
                "1000",
            ],
        )?;
        let mut client = actor("client")?;
        begin_refused(&mut client, 2000)?;
        let rotated = directory.path().join("events.json.3");
        wait_until("the third rotation", || Ok(rotated.exists()))?;
        // It may be rotating at this very moment.
        wait_until("a file to move", || Ok(fs::rename(&path, &moved).is_ok()))?;
        tracer.signal(Signal::SIGHUP)?;
        client.finish()?;
        let size = |path: &Path| fs::metadata(path).map(|file| file.len());
        wait_until("a new file", || Ok(size(&path).is_ok_and(|size| size > 0)))?;
        let left = size(&moved)?;
        begin_refused(&mut client, 200)?;
        client.finish()?;
        let trace = tracer.stop()?;
        assert_eq!(trace.status.code(), Some(0), "{}", trace.stderr.join("\n"));
        assert_eq!(size(&moved)?, left, "what was moved away is left alone");
        for file in fs::read_dir(directory.path())? {
            let file = file?;
            let size = file.metadata()?.len();
            assert!(size <= SIZE, "{}: {size} bytes", file.path().display());
        }
        let resets = Events::from_trace(&trace)?.named("reset.sent").count();
        ensure!(resets == 2200, "the provocation itself: {resets}");
        let mut printed = trace.stdout;
        printed.sort_unstable();
        let written = lines_of(directory.path())?;
        assert_eq!(written.len(), printed.len());
        assert!(
            written == printed,
            "the files hold other records than stdout"
        );
        Ok(())
    });
}

/// A disk of this thread and what it starts, which goes with them.
fn small_disk(directory: &Path) -> Result<()> {
    let nothing = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing)?;
    let (disk, size) = (Some("tmpfs"), Some("size=256k"));
    Ok(mount(disk, directory, disk, MsFlags::empty(), size)?)
}

/// Gives that disk room.
fn enlarge(directory: &Path) -> Result<()> {
    let (disk, size) = (Some("tmpfs"), Some("size=64m"));
    Ok(mount(disk, directory, disk, MsFlags::MS_REMOUNT, size)?)
}

#[test]
fn a_disk_that_is_full_at_the_end_is_told_with_the_path_the_reason_and_the_remedy() {
    // Removed where the disk is not mounted.
    let directory = tempfile::tempdir().expect("a directory");
    in_netns(|netns| {
        small_disk(directory.path())?;
        let path = directory.path().join("events.json");
        let path = path.to_str().context("a path of this test")?;
        let tracer = trace(netns, &["--output-file", path])?;
        let mut client = actor("client")?;
        client.call("be_refused", &[1.into(), 1000.into()])?;
        let trace = tracer.stop()?;
        let said = trace.stderr.join("\n");
        assert_eq!(trace.status.code(), Some(1), "{said}");
        let last = trace.stderr.last().context("it said nothing")?;
        for words in [path, "No space left on device", "free some space there"] {
            assert!(last.contains(words), "{last} lacks {words}");
        }
        assert_eq!(fs::metadata(path)?.len(), 256 * 1024, "the disk is full");
        let account = lost_locally(&trace, "output-file")?;
        let whole = fs::read_to_string(path)?.matches('\n').count() as u64;
        assert_eq!(account.sent, whole, "{account:?}");
        let produced = Events(trace.records()?).count();
        assert_eq!(account.produced, produced, "{account:?}");
        Ok(())
    });
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_no_record_and_holds_up_no_other_output() {
    let directory = tempfile::tempdir().expect("a directory");
    in_netns(|netns| {
        small_disk(directory.path())?;
        let path = directory.path().join("events.json");
        let args = ["--strict", "--output-file"];
        let tracer = trace(
            netns,
            &[&args[..], &[path.to_str().context("a path of this test")?]].concat(),
        )?;
        let mut client = actor("client")?;
        client.call("be_refused", &[1.into(), 1000.into()])?;
        tracer.wait_until_said("No space left on device")?;
        // What comes now goes elsewhere at once.
        client.call("be_refused", &[2.into(), 1.into()])?;
        tracer.wait_for("an event while the disk is full", END, |record| {
            record.name() == "reset.sent" && record.number("network.local.port") == Some(2)
        })?;
        enlarge(directory.path())?;
        tracer.wait_until_said("output-file: delivering again")?;
        let trace = tracer.stop()?;
        assert_eq!(trace.status.code(), Some(0), "{}", trace.stderr.join("\n"));
        let written = fs::read_to_string(&path)?;
        let written: Vec<_> = written.lines().collect();
        assert_eq!(written, trace.stdout);
        Ok(())
    });
}

#[test]
fn a_file_that_takes_nothing_holds_up_neither_events_nor_the_end_and_what_it_lacks_is_told() {
    // Of more than a pipe holds.
    const REFUSED: usize = 200;
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("pipe");
        mkfifo(&path, Mode::S_IRWXU)?;
        let mut reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)?;
        let path = path.to_str().context("a path of this test")?;
        let tracer = trace(netns, &["--strict", "--output-file", path])?;
        let mut client = actor("client")?;
        client.call("be_refused", &[1.into(), REFUSED.into()])?;
        let asked = Instant::now();
        let trace = tracer.stop()?;
        ensure!(asked.elapsed() < END, "it took {:?}", asked.elapsed());
        assert_eq!(trace.status.code(), Some(5), "{}", trace.stderr.join("\n"));
        let events = Events(trace.records()?);
        let resets = events.named("reset.sent").count();
        ensure!(resets == REFUSED as u64, "the stream itself: {resets}");

        // The whole stream was for it, in its order.
        let account = lost_locally(&trace, "output-file")?;
        ensure!(account.produced == events.count(), "{account:?}");
        let mut came = Vec::new();
        let read = reader.read_to_end(&mut came);
        ensure!(
            read.is_ok() || read.is_err_and(|it| it.kind() == ErrorKind::WouldBlock),
            "the pipe cannot be read"
        );
        let came = String::from_utf8(came)?;
        let whole: Vec<_> = came.split_inclusive('\n').collect();
        let whole = whole.iter().filter_map(|line| line.strip_suffix('\n'));
        let whole: Vec<_> = whole.collect();
        ensure!(account.sent <= whole.len() as u64, "{account:?}");
        ensure!(whole.len() < trace.stdout.len(), "it took everything");
        assert_eq!(whole, trace.stdout[..whole.len()]);
        Ok(())
    });
}
