//! Names that a hostile process chooses reach no output as anything but text: no control of a terminal,
//! no line and no field of their own.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tcptrace::selftest::actor::Arg;
use tcptrace_tests::*;

/// Command names, 15 bytes at most: clear the screen, a title, a line, fields, C1, a turned direction,
/// no UTF-8.
const COMMS: [&[u8]; 7] = [
    b"\x1b[2Jcleared",
    b"\x1b]0;title\x07",
    b"x\nFORGED line",
    b"\",\"forged\":\"1",
    "\u{9b}31mC1".as_bytes(),
    "\u{202e}gpj.exe".as_bytes(),
    b"\xff\xfe\xe2\x80",
];

/// All of it in a file's name.
const PATH: &[u8] =
    b"\x1b[2J\x1b]0;t\x07\nFORGED \"'\\,\"forged\":\"1\" \xc2\x9b31m \xe2\x80\xae \xff";

/// Bytes of an output that a terminal would obey, or that hide others.
fn obeyed(output: &[u8]) -> Option<String> {
    let Ok(text) = std::str::from_utf8(output) else {
        return Some("bytes that are no text".to_owned());
    };
    let obeyed = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
    };
    let line = text.lines().find(|line| line.contains(obeyed))?;
    Some(format!("{line:?}"))
}

fn ensure_plain(what: &str, output: &[u8]) -> Result<()> {
    if let Some(found) = obeyed(output) {
        anyhow::bail!("{what} holds {found}");
    }
    let text = std::str::from_utf8(output)?;
    let forged = text.lines().find(|line| line.starts_with("FORGED"));
    ensure!(forged.is_none(), "{what} holds a line of another's making");
    Ok(())
}

/// A program of ours under a name of theirs.
fn under_their_name(directory: &Path, program: &Path) -> Result<PathBuf> {
    let path = directory.join(OsStr::from_bytes(PATH));
    fs::copy(program, &path)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn actor_from(path: &Path, comm: &[u8]) -> Result<Actor> {
    let mut command = Command::new(path);
    // What it is called with is told nowhere.
    command.arg0("actor").arg("actor");
    let mut actor = Actor::spawn(command)?;
    let name = Arg::Memory([comm, &[0]].concat());
    actor.sys(libc::SYS_prctl, &[libc::PR_SET_NAME.into(), name])?;
    Ok(actor)
}

/// A RST, a refused connection, a connection left open, and descriptors that ran out.
fn misbehave(path: &Path, comm: &[u8]) -> Result<Vec<Actor>> {
    let (mut server, mut client) = (actor_from(path, comm)?, actor_from(path, comm)?);
    let pair = connected(&mut server, &mut client, LOOPBACKS[0])?;
    close_unread(&mut server, &mut client, &pair, 10)?;
    client.call("be_refused", &[1.into(), 1.into()])?;
    let stuck = connected(&mut server, &mut client, LOOPBACKS[0])?;
    client.close(stuck.client)?;
    let (listener, addr) = listen(&mut client, LOOPBACKS[0], 8)?;
    let waiting = server.connected(addr)?;
    client.limit_descriptors(0)?;
    client.accept(listener).expect_err("no descriptor is left");
    server.wait_for(waiting, libc::POLLOUT)?;
    Ok(vec![server, client])
}

#[test]
fn no_name_is_more_than_text_in_any_output() {
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let built = std::env::current_exe()?;
        let built = built.ancestors().nth(2).context("a test outside target")?;
        let path = under_their_name(directory.path(), &built.join("actor"))?;
        for (format, color) in [
            ("columns", "never"),
            ("columns", "always"),
            ("json", "never"),
            ("jsonpretty", "never"),
        ] {
            let mut stdout = tempfile::tempfile()?;
            let file = directory.path().join(format!("{format}-{color}"));
            let mut command = tcptrace();
            command.args(["-o", format, "--color", color, "--event", "all"]);
            command.arg("--output-file").arg(&file);
            command.arg("--netns").arg(netns.path());
            let tracer = Tracer::start_into(command, stdout.try_clone()?)?;
            let mut actors = vec![];
            for comm in COMMS {
                actors.extend(misbehave(&path, comm)?);
            }
            let written = || fs::read_to_string(&file);
            wait_until("what is left open to be told", || {
                let told = written()?.matches("tcptrace.close_wait.stuck").count();
                Ok(told >= COMMS.len())
            })?;
            drop(actors);
            let trace = tracer.stop()?;
            stdout.rewind()?;
            let mut printed = vec![];
            stdout.read_to_end(&mut printed)?;
            let said = trace.stderr.join("\n");
            ensure!(trace.status.success(), "{said}");
            if color == "always" {
                // Its own colours. What else begins like one is a title or clears the screen.
                printed = without_colours(&printed);
            }
            ensure_plain(format, &printed)?;
            ensure_plain("stderr", said.as_bytes())?;
            ensure_plain("the file", written()?.as_bytes())?;
            let text = std::str::from_utf8(&printed)?;
            for escaped in ["[2Jcleared", "FORGED line", "31mC1", "gpj.exe"] {
                ensure!(text.contains(escaped), "{format} lacks {escaped}");
            }
            let mut names = 0;
            for line in written()?.lines() {
                let record = Record(serde_json::from_str(line)?);
                ensure!(record.get("forged").is_none(), "{line}");
                ensure!(record.0.get("forged").is_none(), "{line}");
                names += usize::from(record.text("process.executable.path").is_some());
            }
            ensure!(names > COMMS.len(), "{names} events name their program");
        }
        Ok(())
    });
}

/// Text without `ESC [ digits and semicolons m`.
fn without_colours(text: &[u8]) -> Vec<u8> {
    let mut rest = text;
    let mut plain = vec![];
    while let Some((&first, behind)) = rest.split_first() {
        let sequence = behind.strip_prefix(b"[").filter(|_| first == 0x1b);
        let end = sequence.and_then(|it| it.iter().position(|b| !b.is_ascii_digit() && *b != b';'));
        match (sequence, end) {
            (Some(sequence), Some(end)) if sequence[end] == b'm' => rest = &sequence[end + 1..],
            _ => {
                plain.push(first);
                rest = behind;
            }
        }
    }
    plain
}

#[test]
fn neither_is_its_own_name_in_what_it_says_of_itself() -> Result<()> {
    const NOBODY: u32 = 65_534;
    let directory = tempfile::tempdir()?;
    let path = under_their_name(directory.path(), Path::new(tcptrace().get_program()))?;
    for (args, status) in [
        (&["doctor"][..], 0),
        (&["doctor", "-v"], 0),
        (&["doctor", "-o", "json"], 0),
        (&["-d", "0"], 3),
        (&["--netns", "\u{1b}[2J\nFORGED"], 1),
        (&["--cgroup", "/\u{9b}2J\nFORGED"], 1),
        (&["--output-file", "/\u{1b}[2J\nFORGED/x"], 1),
        (&["explain", "\u{1b}[2J\nFORGED"], 2),
    ] {
        let mut command = Command::new(&path);
        let output = command.args(args).uid(NOBODY).gid(NOBODY).output()?;
        let what = format!("{args:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(status), "{what}: {said}");
        ensure_plain(&what, &output.stdout)?;
        ensure_plain(&what, &output.stderr)?;
    }
    Ok(())
}
