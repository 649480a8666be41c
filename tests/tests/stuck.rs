//! A disk and a reader of standard error that take nothing for a while hold up nothing.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tcptrace_tests::*;

/// How long outputs may take at the end, and the tracer for everything else.
const END: Duration = Duration::from_secs(5 + 10);

fn be_refused(times: usize) -> Result<()> {
    let mut client = actor("client")?;
    client.call("be_refused", &[1.into(), times.into()])?;
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

/// A disk of this thread and what it starts.
struct Disk(PathBuf);

impl Disk {
    fn mount(directory: &Path) -> Result<Self> {
        let (image, at) = (directory.join("image"), directory.join("disk"));
        File::create(&image)?.set_len(16 << 20)?;
        fs::create_dir(&at)?;
        run(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        let nothing = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(nothing, "/", nothing, private, nothing)?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(image)
            .arg(&at))?;
        Ok(Self(at))
    }

    fn freeze(&self) -> Result<Frozen> {
        let mut keeper = Command::new("sh")
            .args([
                "-c",
                "fsfreeze -f \"$0\" && echo frozen; read -r _; fsfreeze -u \"$0\"",
            ])
            .arg(&self.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        let stdout = keeper.stdout.take().context("it is piped")?;
        BufReader::new(stdout).read_line(&mut said)?;
        ensure!(said == "frozen\n", "fsfreeze fails");
        Ok(Frozen(keeper))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(&self.0));
    }
}

/// While there is this, whoever writes waits, and no signal ends that. It ends with the test, however the
/// test does: a process that thaws the disk then.
struct Frozen(Child);

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn a_disk_that_is_frozen_for_a_while_holds_up_no_event_and_gets_all_of_them() {
    const EACH: u64 = 200;
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let disk = Disk::mount(directory.path())?;
        let (path, moved) = (disk.0.join("events.json"), disk.0.join("moved.json"));
        let text = path.to_str().context("a path of this test")?;
        let rotate = ["--rotate-size", "65536", "--rotate-keep", "1000"];
        let tracer = trace(netns, &[&["--output-file", text], &rotate[..]].concat())?;
        be_refused(1)?;
        let has_some = || Ok(fs::metadata(&path)?.len() > 0);
        wait_until("something in the file", has_some)?;
        let frozen = disk.freeze()?;
        be_refused(usize::try_from(EACH)?)?;
        let resets = Cell::new(0);
        let is_last = |record: &Record| {
            resets.set(resets.get() + u64::from(record.name() == "reset.sent"));
            resets.get() == 1 + EACH
        };
        tracer.wait_for("the last reset", END, is_last)?;
        drop(frozen);
        // It may be rotating at this very moment.
        wait_until("a file to move", || Ok(fs::rename(&path, &moved).is_ok()))?;
        tracer.signal(Signal::SIGHUP)?;
        be_refused(1)?;
        let trace = tracer.stop()?;
        let events = Events::from_trace(&trace)?;
        assert_eq!(events.named("reset.sent").count(), EACH + 2);
        let mut written = vec![];
        for file in fs::read_dir(&disk.0)? {
            let path = file?.path();
            if path.is_file() {
                written.extend(fs::read_to_string(path)?.lines().map(str::to_owned));
            }
        }
        let mut printed = trace.stdout;
        written.sort_unstable();
        printed.sort_unstable();
        assert_eq!(written.len(), printed.len());
        assert!(
            written == printed,
            "the files hold other records than stdout"
        );
        Ok(())
    });
}

/// The writing end of a pipe that has room for nothing more.
fn full_pipe() -> Result<(impl Sized, OwnedFd)> {
    let (reader, mut writer) = std::io::pipe()?;
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    while writer.write(&[b'x'; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((reader, writer.into()))
}

#[test]
fn standard_error_that_nobody_reads_holds_up_neither_the_start_nor_events_nor_the_end() {
    const REFUSED: usize = 25;
    in_netns(|netns| {
        let (_unread, stderr) = full_pipe()?;
        let mut command = tcptrace();
        command.args(["-o", "json", "--netns"]).arg(netns.path());
        command.stdout(Stdio::piped()).stderr(stderr);
        let mut tracer = command.spawn()?;
        let stdout = tracer.stdout.take().context("it is piped")?;
        let mut names = BufReader::new(stdout).lines().map(|line| {
            let record = Record(serde_json::from_str(&line?)?);
            Ok(record.name().to_owned())
        });
        let mut wait_for = |name: &str| -> Result<()> {
            let found = names.find(|it: &Result<_>| it.as_ref().map_or(true, |it| it == name));
            found.with_context(|| format!("no {name}"))?.map(|_| ())
        };
        wait_for("coverage")?;
        be_refused(REFUSED)?;
        for _ in 0..REFUSED {
            wait_for("connect.failed")?;
        }
        let asked = Instant::now();
        kill(Pid::from_raw(tracer.id().cast_signed()), Signal::SIGTERM)?;
        wait_for("summary")?;
        let status = tracer.wait()?;
        ensure!(asked.elapsed() < END, "it took {:?}", asked.elapsed());
        ensure!(status.success(), "{status}");
        Ok(())
    });
}
