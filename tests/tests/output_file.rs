//! `--output-file`: whatever happens to the file, every record is in one, once; or the end says why.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use tcptrace_tests::*;

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

#[test]
fn a_full_disk_ends_it_with_the_path_the_reason_and_the_remedy() {
    // Removed where the disk is not mounted.
    let directory = tempfile::tempdir().expect("a directory");
    in_netns(|netns| {
        // A disk of this thread and what it starts; it goes with them.
        let nothing = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(nothing, "/", nothing, private, nothing)?;
        let (disk, size) = (Some("tmpfs"), Some("size=256k"));
        mount(disk, directory.path(), disk, MsFlags::empty(), size)?;
        let path = directory.path().join("events.json");
        let path = path.to_str().context("a path of this test")?;
        let tracer = trace(netns, &["--output-file", path])?;
        let mut client = actor("client")?;
        begin_refused(&mut client, 1000)?;
        client.finish()?;
        let trace = tracer.finish()?;
        let said = trace.stderr.join("\n");
        assert_eq!(trace.status.code(), Some(1), "{said}");
        let last = trace.stderr.last().context("it said nothing")?;
        for words in [path, "No space left on device", "free some space there"] {
            assert!(last.contains(words), "{last} lacks {words}");
        }
        assert_eq!(fs::metadata(path)?.len(), 256 * 1024, "the disk is full");
        Ok(())
    });
}
