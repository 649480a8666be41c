//! One virtual machine: QEMU without acceleration, a kernel and a file system in memory, and the
//! serial console as the only way out.

use std::fs::{self, File};
use std::io::{self, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::console::Console;

/// The machine. Emulation only: `/dev/kvm` may be there and not work, as inside another virtual
/// machine. Its clock counts instructions, one a nanosecond, and leaps over idle time: however slow
/// the emulation and however busy this machine, a deadline means there what it means elsewhere.
///
/// Without the CPU's fast strings (ERMS, FSRM): with them the kernel clears and copies memory by one
/// instruction that the emulation repeats for each byte, and a tracer's maps and the verifier's states
/// took half of all time.
const MACHINE: &str = "-machine q35 -cpu max,-erms,-fsrm -smp 2 -m 2048 \
     -accel tcg,thread=single -icount shift=0,sleep=off -rtc clock=vm \
     -nodefaults -no-user-config -display none -no-reboot -serial stdio";

/// A panic ends it at once; only the tests write to the console.
const KERNEL: &str = "console=ttyS0 rdinit=/init panic=-1 oops=panic quiet loglevel=4";

/// Boots, and reads the console until the machine turns itself off. All of it goes into `log`.
pub(crate) fn boot(
    kernel: &Path,
    initramfs: &Path,
    log: &Path,
    limit: Duration,
) -> Result<Console> {
    let mut child = Command::new("qemu-system-x86_64")
        .args(MACHINE.split_whitespace())
        .args(["-append", KERNEL])
        .args(["-kernel".as_ref(), kernel.as_os_str()])
        .args(["-initrd".as_ref(), initramfs.as_os_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot start qemu-system-x86_64")?;
    let outcome = watch(&mut child, log, limit);
    if outcome.is_err() {
        _ = child.kill();
    }
    let status = child.wait()?;
    outcome?;
    ensure!(status.success(), "QEMU ended with {status}");
    read(log)
}

/// What a machine wrote that came to its end.
pub(crate) fn read(log: &Path) -> Result<Console> {
    let console = Console::read(&String::from_utf8_lossy(&fs::read(log)?));
    ensure!(
        console.is_done,
        "the machine died. Its last words:\n{}",
        tail(log)?
    );
    Ok(console)
}

/// Copies the console into the log until it ends.
fn watch(child: &mut Child, log: &Path, limit: Duration) -> Result<()> {
    let console = child.stdout.take().context("QEMU without a console")?;
    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || copy(BufReader::new(console), &tell));
    let deadline = Instant::now() + limit;
    loop {
        match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => file.write_all(&line?)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => bail!(
                "the machine was not done after {} s. Its last words:\n{}",
                limit.as_secs(),
                tail(log)?
            ),
        }
    }
}

fn copy(mut console: impl io::BufRead, tell: &mpsc::Sender<io::Result<Vec<u8>>>) {
    loop {
        let mut line = Vec::new();
        let read = console.read_until(b'\n', &mut line).map(|_| line);
        let is_end = read.as_ref().map_or(true, Vec::is_empty);
        if tell.send(read).is_err() || is_end {
            return;
        }
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> Result<String> {
    const LINES: usize = 30;
    let text = fs::read(log)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LINES)..].join("\n"))
}
