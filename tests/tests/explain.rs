//! `tcptrace explain` as its users meet it, and what its pages say held against this kernel.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Result, ensure};
use tcptrace::explain::Page;
use tcptrace_tests::tcptrace;

fn explain(names: &[&str]) -> Command {
    let mut command = tcptrace();
    command.arg("explain").args(names).stdin(Stdio::null());
    command
}

fn run(names: &[&str]) -> Output {
    explain(names).output().expect("tcptrace does not start")
}

/// Standard output of a success that said nothing else.
fn said(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert_eq!(errors, "");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn it_needs_no_privileges() {
    for names in [&[][..], &["EPIPE"]] {
        let mut command = explain(names);
        let output = command.uid(65534).gid(65534).output();
        let text = said(output.expect("tcptrace does not start"));
        assert_eq!(text, said(run(names)));
    }
}

#[test]
fn alone_it_lists_every_page() {
    let list = said(run(&[]));
    let first_words: BTreeSet<_> = list
        .lines()
        .filter(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let names: BTreeSet<_> = Page::all().map(|page| page.name).collect();
    assert_eq!(first_words, names);
}

#[test]
fn a_name_shows_its_page_however_it_is_written() {
    let page = said(run(&["EPIPE"]));
    assert!(page.starts_with("EPIPE\n\n  Broken pipe"), "{page}");
    assert!(!page.contains('\u{1b}') && !page.contains('#'), "{page}");
    for names in [
        &["broken", "pipe"][..],
        &["broken-pipe"],
        &["32"],
        &["-32"],
        &["write:", "broken", "pipe"],
    ] {
        assert_eq!(said(run(names)), page, "{names:?}");
    }
    for (names, title) in [
        (&["CLOSE-WAIT"][..], "CLOSE_WAIT\n"),
        (&["FIN_WAIT2"], "FIN_WAIT2\n"),
        (&["ABORT_ON_CLOSE"], "TCP_ABORT_ON_CLOSE\n"),
        (&["SK_RST_REASON_TCP_STATE"], "TCP_STATE\n"),
    ] {
        let page = said(run(names));
        assert!(page.starts_with(title), "{names:?}: {page}");
    }
}

#[test]
fn a_name_of_two_pages_shows_one_and_names_the_other() {
    let page = said(run(&["half", "closed"]));
    assert!(page.starts_with("CLOSE_WAIT\n"), "{page}");
    let (_, others) = page.split_once("\nIt can also mean\n").expect("the other");
    assert!(others.starts_with("  FIN_WAIT2 "), "{others}");
}

#[test]
fn an_unknown_name_is_wrong_usage() {
    for (name, near) in [("EPIP", Some("EPIPE")), ("xyzzy", None)] {
        let output = run(&[name]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(output.stdout.is_empty(), "{name} wrote to stdout");
        assert!(errors.contains(name), "{errors}");
        assert!(errors.contains("`tcptrace explain` lists all"), "{errors}");
        assert_eq!(errors.contains("near it"), near.is_some(), "{errors}");
        assert!(near.is_none_or(|near| errors.contains(near)), "{errors}");
    }
}

#[test]
fn a_reader_that_left_is_a_clean_end_and_a_full_disk_is_not() {
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    let output = explain(&[]).stdout(writer).output();
    said(output.expect("tcptrace does not start"));

    let full = File::create("/dev/full").expect("/dev/full");
    let output = explain(&[]).stdout(full).output();
    let output = output.expect("tcptrace does not start");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("standard output"), "{errors}");
}

/// What a command writes to a terminal.
fn on_a_terminal(mut command: Command) -> Result<String> {
    let (mut ours, mut its) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: the two descriptors are written to variables of this frame; the rest may be null.
    let opened =
        unsafe { libc::openpty(&raw mut ours, &raw mut its, none, none.cast(), none.cast()) };
    ensure!(opened == 0, "openpty: {}", io::Error::last_os_error());
    // SAFETY: openpty made it, and nobody else has it.
    let mut ours = unsafe { File::from_raw_fd(ours) };
    // SAFETY: as above.
    let its = unsafe { OwnedFd::from_raw_fd(its) };
    let mut child = command.stdout(its).spawn()?;
    // Holds the terminal open as well.
    drop(command);
    let mut text = Vec::new();
    match ours.read_to_end(&mut text) {
        // The last one to hold the terminal has gone.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
        other => ensure!(false, "a terminal has no end of file: {other:?}"),
    }
    let status = child.wait()?;
    ensure!(status.success(), "{status}");
    Ok(String::from_utf8(text)?.replace("\r\n", "\n"))
}

#[test]
fn colour_is_for_terminals() -> Result<()> {
    const BOLD: &str = "\u{1b}[1m";
    let command = |args: &[&str]| {
        let mut command = explain(args);
        command.env_remove("NO_COLOR").env("TERM", "xterm");
        command
    };
    let plain = said(command(&["EPIPE"]).output()?);
    assert!(!plain.contains('\u{1b}'));
    assert!(on_a_terminal(command(&["EPIPE"]))?.contains(BOLD));
    assert!(on_a_terminal(command(&[]))?.contains(BOLD));
    let mut no_color = command(&["EPIPE"]);
    no_color.env("NO_COLOR", "1");
    assert_eq!(on_a_terminal(no_color)?, plain);
    let never = on_a_terminal(command(&["--color", "never", "EPIPE"]))?;
    assert_eq!(never, plain);
    let always = said(command(&["--color", "always", "EPIPE"]).output()?);
    assert!(always.contains(BOLD));
    Ok(())
}

/// The names `nstat` has for this kernel's counters.
fn counters() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for file in ["/proc/net/snmp", "/proc/net/netstat"] {
        // Names and values are in pairs of lines: `Tcp: RtoAlgorithm ...` and `Tcp: 1 ...`.
        for line in fs::read_to_string(file)?.lines().step_by(2) {
            let (group, counters) = line.split_once(": ").unwrap_or_default();
            names.extend(counters.split(' ').map(|name| format!("{group}{name}")));
        }
    }
    let six = fs::read_to_string("/proc/net/snmp6")?;
    names.extend(
        six.lines()
            .filter_map(|line| Some(line.split_whitespace().next()?.to_owned())),
    );
    Ok(names)
}

#[test]
fn the_counters_that_pages_name_exist() -> Result<()> {
    let counters = counters()?;
    let mut checked = 0;
    for page in Page::all() {
        for asked in page.text.split("nstat -az").skip(1) {
            let code = asked.split(['`', '\n', '#', '|', ';', ')']).next();
            for name in code.unwrap_or_default().split_whitespace() {
                let exists = match name.trim_matches('\'').strip_suffix('*') {
                    Some(prefix) => counters.iter().any(|it| it.starts_with(prefix)),
                    None => counters.contains(name),
                };
                ensure!(exists, "{}: {name} is no counter of this kernel", page.name);
                checked += 1;
            }
        }
    }
    ensure!(checked > 50, "only {checked} counters found in the pages");
    Ok(())
}

#[test]
fn the_settings_that_pages_name_exist() -> Result<()> {
    let mut checked = 0;
    for page in Page::all() {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        for word in page.text.split(|c| !is_part(c)) {
            let name = word.trim_end_matches('.');
            if !["net.ipv4.", "net.core.", "fs."]
                .iter()
                .any(|prefix| name.starts_with(prefix))
            {
                continue;
            }
            let path = Path::new("/proc/sys").join(name.replace('.', "/"));
            ensure!(path.is_file(), "{}: no setting {name}", page.name);
            checked += 1;
        }
    }
    ensure!(checked > 50, "only {checked} settings found in the pages");
    Ok(())
}
