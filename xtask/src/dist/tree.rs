//! The .deb in a fresh Debian: installed, asked, and started by its own systemd in its sandbox.

use std::fs::{self, File};
use std::io::Write as _;
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
/// What the unit's sandbox must let out, besides standard output.
const OUTPUTS: &str = r#"
output-file = "/var/log/tcptrace/events.json"
export = ["journald"]
metrics = "9847"
"#;
/// Ends well once journald has the finding from the export, and Prometheus would get it.
const EXPORTED: &str = r#"
    grep --quiet --max-count=1 no_listener \
        <(journalctl --output=json --follow --lines=all TCPTRACE_EVENT=tcptrace.finding) &&
    exec 3<>/dev/tcp/127.0.0.1/9847 && printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3 &&
    grep --quiet '^tcptrace_findings_total.*cause="no_listener"' <&3"#;
const FILED: [&str; 4] = [
    "grep",
    "--quiet",
    "\"tcptrace.cause\":\"no_listener\"",
    "/var/log/tcptrace/events.json",
];
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
    name_a_failure(&machine, root)
}

/// Starts the unit as installed, and once more with every output, each time until it has named a failure.
fn name_a_failure(machine: &Machine, root: &Path) -> Result<()> {
    let doctor = answer(&mut machine.within(&["tcptrace", "doctor"]));
    ensure!(doctor.is_some(), "the installed tcptrace's doctor fails");
    // It returns once the unit says that it traces.
    run_command(&mut machine.within(&["systemctl", "start", "tcptrace"]))
        .with_context(|| machine.journal())?;
    refuse(machine)?;
    machine.wait_for("\"tcptrace.cause\":\"no_listener\"")?;
    run_command(&mut machine.within(&["systemctl", "reload", "tcptrace"]))?;
    machine.wait_for("tcptrace: configuration: nothing has changed")?;

    let mut configuration = File::options()
        .append(true)
        .open(root.join("etc/tcptrace.toml"))?;
    configuration.write_all(OUTPUTS.as_bytes())?;
    run_command(&mut machine.within(&["systemctl", "restart", "tcptrace"]))
        .with_context(|| machine.journal())?;
    refuse(machine)?;
    machine.wait(&["bash", "-c", EXPORTED])?;

    run_command(&mut machine.within(&["systemctl", "stop", "tcptrace"]))?;
    let result = machine.state("Result");
    ensure!(result == "Result=success\n", "stopping it: {result}");
    run_command(&mut machine.within(&FILED))?;
    println!("dist: the unit runs in its sandbox and names what fails, by every output");
    Ok(())
}

/// A program connects to a port where nothing listens.
fn refuse(machine: &Machine) -> Result<()> {
    let connect = ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/1"];
    let refused = machine.within(&connect).stderr(Stdio::null()).status()?;
    ensure!(!refused.success(), "somebody listens on port 1");
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
        self.wait(&["bash", "-c", FIND, text])
            .with_context(|| format!("{text:?} did not come"))
    }

    /// Waits until a command ends well.
    fn wait(&self, command: &[&str]) -> Result<()> {
        let seconds = PATIENCE.as_secs().to_string();
        let patient = [&["timeout", &seconds], command].concat();
        run_command(&mut self.within(&patient))
            .with_context(|| format!("the journal was:\n{}", self.journal()))
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
