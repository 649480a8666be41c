//! The .deb in a fresh Debian: installed, asked, and started by its own systemd in its sandbox.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::VERSION_LINE;
use crate::apt;
use crate::process::{answer, run as run_command};

/// Debian's oldest release whose systemd the unit is for.
const RELEASE: &str = "bookworm";
const BOOT: &str = include_str!("boot.sh");
/// Ends when the unit's journal has the text `$0`.
const FIND: &str = r#"grep --quiet --max-count=1 --fixed-strings "$0" \
    <(journalctl --unit=tcptrace --output=cat --follow --lines=all)"#;
/// How long systemd may take to boot, and the journal to have a text.
const PATIENCE: Duration = Duration::from_mins(1);

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
    let outcome = install_and_start(&root, deb);
    run_command(
        Command::new("rm")
            .args(["-rf", "--one-file-system"])
            .arg(&root),
    )?;
    outcome
}

fn install_and_start(root: &Path, deb: &Path) -> Result<()> {
    fs::copy(deb, root.join("tcptrace.deb"))?;
    let machine = Machine::boot(root)?;
    run_command(&mut machine.within(&["dpkg", "--install", "/tcptrace.deb"]))?;
    let version = answer(&mut machine.within(&["tcptrace", "--version"]));
    ensure!(
        version.as_deref() == Some(VERSION_LINE),
        "it says {version:?}"
    );
    let state = machine.state("ActiveState,UnitFileState");
    ensure!(
        state == "ActiveState=inactive\nUnitFileState=disabled\n",
        "installing it was not to start it: {state}"
    );
    start_as_installed(&machine)
}

/// Starts the unit as installed. Its sandbox gives it every privilege it takes: what it ends with comes
/// after those, and is that a tracer cannot tell processes in a PID namespace, which a systemd that is
/// not the host's has to have.
fn start_as_installed(machine: &Machine) -> Result<()> {
    let doctor = answer(&mut machine.within(&["tcptrace", "doctor"]));
    ensure!(doctor.is_some(), "the installed tcptrace's doctor fails");
    let start = &["systemctl", "start", "tcptrace"];
    let started = machine.within(start).stderr(Stdio::null()).status()?;
    ensure!(!started.success(), "it traces in a PID namespace");
    machine.wait_for("in this PID namespace processes have other numbers")?;
    let state = machine.state("Result,NRestarts,ExecMainStatus");
    let mut state: Vec<_> = state.lines().collect();
    state.sort_unstable();
    ensure!(
        state == ["ExecMainStatus=3", "NRestarts=0", "Result=exit-code"],
        "it ended otherwise: {state:?}\n{}",
        machine.journal()
    );
    println!("dist: the unit starts in its sandbox, as far as a PID namespace lets it");
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

    /// Waits until the unit's journal has the text.
    fn wait_for(&self, text: &str) -> Result<()> {
        let seconds = PATIENCE.as_secs().to_string();
        run_command(&mut self.within(&["timeout", &seconds, "bash", "-c", FIND, text]))
            .with_context(|| format!("{text:?} did not come; this came:\n{}", self.journal()))
    }

    /// What the unit has told so far.
    fn journal(&self) -> String {
        let arguments = ["journalctl", "--unit=tcptrace", "--output=cat"];
        answer(&mut self.within(&arguments)).unwrap_or_default()
    }

    /// What its systemd says of the unit.
    fn state(&self, properties: &str) -> String {
        let property = format!("--property={properties}");
        answer(&mut self.within(&["systemctl", "show", &property, "tcptrace"])).unwrap_or_default()
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
