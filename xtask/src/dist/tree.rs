//! The .deb in a fresh Debian: installed, asked, and started by its own systemd in its sandbox.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::apt;
use crate::process::{answer, run as run_command};

/// Debian's oldest release whose systemd the unit is for.
const RELEASE: &str = "bookworm";
const BOOT: &str = include_str!("boot.sh");
/// How long systemd may take, and the journal (in seconds) to have a record.
const PATIENCE: Duration = Duration::from_mins(1);
const JOURNAL_SECONDS: &str = "60";

pub(super) fn try_out(out: &Path, deb: &Path) -> Result<()> {
    let root = out.join("tree");
    let (mirror, _) = apt::mirrors()?;
    println!("dist: debootstrap {RELEASE}");
    run_command(
        Command::new("debootstrap")
            .args(["--variant=minbase", "--include=systemd", RELEASE])
            .arg(&root)
            .arg(mirror)
            .stdout(Stdio::null()),
    )?;
    let outcome = install(&root, deb).and_then(|()| start(&root));
    run_command(
        Command::new("rm")
            .args(["-rf", "--one-file-system"])
            .arg(&root),
    )?;
    outcome
}

fn install(root: &Path, deb: &Path) -> Result<()> {
    run_command(Command::new("cp").arg(deb).arg(root.join("tcptrace.deb")))?;
    let within = |arguments: &[&str]| {
        let mut command = Command::new("chroot");
        command.arg(root).args(arguments);
        command
    };
    run_command(&mut within(&["dpkg", "--install", "/tcptrace.deb"]))?;
    let version = answer(&mut within(&["tcptrace", "--version"]));
    let version = version.context("the installed tcptrace does not run")?;
    ensure!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let wants = root.join("etc/systemd/system/multi-user.target.wants/tcptrace.service");
    ensure!(!wants.exists(), "installing it has made it start");
    Ok(())
}

/// Starts the unit as installed, provokes a failure and waits for its finding in the journal.
fn start(root: &Path) -> Result<()> {
    let machine = Machine::boot(root)?;
    let doctor = answer(&mut machine.within(&["tcptrace", "doctor"]));
    ensure!(doctor.is_some(), "the installed tcptrace's doctor fails");
    run_command(&mut machine.within(&["systemctl", "start", "tcptrace"]))?;
    let follow = [
        "journalctl",
        "--unit=tcptrace",
        "--output=cat",
        "--follow",
        "--lines=all",
    ];
    let mut journal = machine
        .within(&["timeout", JOURNAL_SECONDS])
        .args(follow)
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = journal.stdout.take().context("no pipe")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut told = vec![];
    let mut wait_for = |text: &str| -> Result<()> {
        for line in lines.by_ref() {
            let line = line?;
            let is_it = line.contains(text);
            told.push(line);
            if is_it {
                return Ok(());
            }
        }
        bail!("{text:?} did not come; this came:\n{}", told.join("\n"))
    };
    wait_for("tcptrace: tracing")?;
    // Nothing listens there.
    let connect = ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/1"];
    let refused = machine.within(&connect).stderr(Stdio::null()).status()?;
    ensure!(!refused.success(), "somebody listens on port 1");
    wait_for("\"tcptrace.cause\":\"no_listener\"")?;
    run_command(&mut machine.within(&["systemctl", "stop", "tcptrace"]))?;
    let result =
        answer(&mut machine.within(&["systemctl", "show", "--property=Result", "tcptrace"]));
    ensure!(result.as_deref() == Some("Result=success\n"), "{result:?}");
    journal.kill()?;
    journal.wait()?;
    println!("dist: the unit runs in its sandbox and names what fails");
    Ok(())
}

/// A systemd in namespaces of its own, which ends with this.
struct Machine {
    unshare: Child,
    systemd: u32,
}

impl Machine {
    fn boot(root: &Path) -> Result<Self> {
        let namespaces = ["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net"];
        let mut unshare = Command::new("unshare")
            .args(["--fork", "--kill-child"])
            .args(namespaces)
            .args(["sh", "-c", BOOT, "boot"])
            .arg(root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let first = fs::read_to_string(&children).unwrap_or_default();
            if let Ok(systemd) = first.trim().parse()
                && manager(systemd).exists()
            {
                let machine = Self { unshare, systemd };
                // It also fails for units this machine lacks what for: they are not ours.
                let _ = answer(&mut machine.within(&["systemctl", "is-system-running", "--wait"]));
                return Ok(machine);
            }
            ensure!(unshare.try_wait()?.is_none(), "systemd does not boot");
            ensure!(
                Instant::now() < deadline,
                "systemd was not up in {PATIENCE:?}"
            );
            sleep(Duration::from_millis(50));
        }
    }

    /// A command in it.
    fn within(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.systemd))
            .args(["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net"])
            .args(["--root", "--wd", "--"])
            .args(arguments);
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its child, systemd, goes with it, and with that all in its namespace of processes.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

/// Where systemctl reaches a booted systemd.
fn manager(systemd: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{systemd}/root/run/systemd/private"))
}
