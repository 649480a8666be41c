//! `--stack`: the line of code that closed, reset or failed, of programs whose lines the tests know.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tcptrace_tests::bpf;
use tcptrace_tests::findings::only_finding;
use tcptrace_tests::program::{Go, Program};
use tcptrace_tests::*;
use tempfile::TempDir;

const C: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/stack/closer.c");
const OPENER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/stack/opener.c");
const RUST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/stack/closer.rs");
const GO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/go/connections.go");

/// Of a file, as far as it matters here: bytes.
const PAGE: usize = 4096;

/// Ways to compile a program, and whether its binary says where its frames are.
const WITH_FRAME_POINTERS: &[&str] = &["-O0", "-fno-omit-frame-pointer"];
const WITHOUT_FRAME_POINTERS: &[&str] =
    &["-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls"];

/// A new directory with `program` in it.
fn compiled(compiler: &str, source: &str, flags: &[&str]) -> Result<(TempDir, PathBuf)> {
    let directory = TempDir::new()?;
    let program = directory.path().join("closer");
    let output = Command::new(compiler)
        .args(flags)
        .args(["-g", "-o"])
        .args([program.as_os_str(), source.as_ref()])
        .output()
        .with_context(|| format!("cannot start {compiler}: `cargo xtask setup` installs it"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{compiler}: {said}");
    Ok((directory, program))
}

/// `file:line` of the only line of a source with this comment.
fn line(source: &str, comment: &str) -> Result<String> {
    let text = std::fs::read_to_string(source)?;
    let mut lines = (1..).zip(text.lines());
    let (number, _) = lines
        .find(|(_, line)| line.contains(comment))
        .with_context(|| format!("no line of {source} has {comment:?}"))?;
    let name = Path::new(source).file_name().unwrap_or_default();
    Ok(format!("{}:{number}", name.display()))
}

/// A program that has a connection and waits to be told to go on.
fn ready(mut command: Command, how: &str) -> Result<Program> {
    command.arg(how);
    let program = Program::start(command)?;
    program.wait_for_text("ready")?;
    Ok(program)
}

/// What its functions are, innermost first: name, and place where there is one.
fn frames(record: &Record) -> Result<Vec<(&str, &str)>> {
    let trace = record.text("code.stacktrace");
    let trace = trace.with_context(|| format!("no stack: {}", record.0))?;
    let frames = trace.lines();
    Ok(frames
        .map(|line| line.split_once(" at ").unwrap_or((line, "")))
        .collect())
}

/// Fails unless these functions of the program follow each other, innermost first, at these places.
fn ensure_calls(record: &Record, expected: &[(&str, &str)]) -> Result<()> {
    let frames = frames(record)?;
    let is = |&(name, place): &(&str, &str), &(function, line): &(&str, &str)| {
        (name == function || name.ends_with(&format!("::{function}"))) && place.ends_with(line)
    };
    let found = frames
        .windows(expected.len())
        .any(|window| window.iter().zip(expected).all(|(frame, it)| is(frame, it)));
    ensure!(found, "{expected:?} was expected, came {frames:#?}");
    let kernel = |name: &str| {
        frames
            .iter()
            .position(|(it, _)| *it == format!("{name}_[k]"))
    };
    let call = frames.iter().position(|(name, _)| !name.ends_with("_[k]"));
    ensure!(
        kernel("do_syscall_64") < call,
        "the kernel's part is inside: {frames:#?}"
    );
    let folded: Vec<_> = frames.iter().rev().map(|(name, _)| *name).collect();
    ensure!(
        record.text("tcptrace.stack.folded") == Some(&folded.join(";")),
        "{}",
        record.0
    );
    Ok(())
}

/// The one event of this name at the program, and its trace.
fn provoked(
    netns: &Netns,
    program: &mut Program,
    event: &str,
    then: impl FnOnce(&Tracer, &mut Program) -> Result<()>,
) -> Result<(Record, Events)> {
    let tracer = trace(netns, &["--stack"])?;
    then(&tracer, program)?;
    let pid = u64::from(program.pid());
    let is_it = |it: &Record| it.name() == event && it.pid() == Some(pid);
    tracer.wait_for(event, SOON, is_it)?;
    let events = Events::of(tracer)?;
    Ok((events.only(is_it).one()?.clone(), events))
}

fn go_on(_: &Tracer, program: &mut Program) -> Result<()> {
    program.tell("go on")?;
    program.wait_for_text("done")?;
    Ok(())
}

/// Every deed of the C program, compiled so.
fn names_the_line(flags: &[&str]) {
    for (how, function, event) in [
        ("unread", "close_unread", "reset.sent"),
        ("linger", "abort_connection", "reset.sent"),
        ("epipe", "send_after_shutdown", "socket.error"),
    ] {
        in_netns(|netns| {
            let (_directory, closer) = compiled("cc", C, flags)?;
            let mut program = ready(Command::new(closer), how)?;
            let (record, _) = provoked(netns, &mut program, event, go_on)?;
            let deed = line(C, &format!("/* {how} */"))?;
            ensure_calls(&record, &[(function, &deed), ("serve", ""), ("main", "")])?;
            ensure!(
                record.text("tcptrace.stack.missing").is_none(),
                "{}",
                record.0
            );
            Ok(())
        });
    }
}

#[test]
fn of_c_with_frame_pointers() {
    names_the_line(WITH_FRAME_POINTERS);
}

#[test]
fn of_c_without_frame_pointers() {
    names_the_line(WITHOUT_FRAME_POINTERS);
}

#[test]
fn of_rust_and_in_the_finding() {
    in_netns(|netns| {
        let (_directory, closer) = compiled("rustc", RUST, &["--edition", "2024"])?;
        let mut program = ready(Command::new(closer), "")?;
        let (record, events) = provoked(netns, &mut program, "reset.sent", go_on)?;
        let deed = line(RUST, "// unread")?;
        ensure_calls(&record, &[("close_unread", &deed), ("main", "")])?;
        let finding = only_finding(&events, "closed_with_unread_data", program.pid())?;
        ensure_calls(&finding.first, &[("close_unread", &deed), ("main", "")])
    });
}

#[test]
fn of_go() {
    in_netns(|netns| {
        let mut go = Go::start()?;
        let mut client = actor("client")?;
        let address = go.done("listen 127.0.0.1:0")?;
        let tracer = trace(netns, &["--stack"])?;
        let fd = client.connected(address.parse()?)?;
        go.done("accept a")?;
        go.done("linger_0 a")?;
        go.done("close a")?;
        client.wait_for(fd, libc::POLLHUP)?;
        let events = Events::of(tracer)?;
        let sent = events.named("reset.sent");
        let deed = line(GO, "[args[0]].Close()")?;
        let frames = frames(sent.one()?)?;
        let close = |&(name, place): &(&str, &str)| {
            name == "main.(*talker).close" && place.ends_with(&deed)
        };
        ensure!(
            frames.iter().any(close),
            "{deed} was expected, came {frames:#?}"
        );
        ensure!(
            frames
                .last()
                .is_some_and(|(name, _)| *name == "runtime.goexit"),
            "{frames:#?}"
        );
        Ok(())
    });
}

#[test]
fn of_a_program_that_only_its_container_has() {
    in_netns(|netns| {
        let flags = [WITH_FRAME_POINTERS, &["-static"]].concat();
        let (directory, closer) = compiled("cc", C, &flags)?;
        let root = directory.path().join("root");
        std::fs::create_dir(&root)?;
        // Nobody outside sees what is mounted there, and by the time it runs its name outside is gone.
        let script = "mount -t tmpfs none \"$1\" && cp \"$0\" \"$1\"/only-here && rm \"$0\" \
                      && exec chroot \"$1\" /only-here";
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", script])
            .args([&closer, &root]);
        let mut program = ready(command, "unread")?;
        ensure!(!closer.exists() && !root.join("only-here").exists());
        let (record, _) = provoked(netns, &mut program, "reset.sent", go_on)?;
        let (deed, served) = (line(C, "/* unread */")?, line(C, "/* served */")?);
        ensure_calls(
            &record,
            &[("close_unread", &deed), ("serve", &served), ("main", "")],
        )
    });
}

/// The tracer is stopped until the program has done what it does.
fn while_nobody_looks(tracer: &Tracer, program: &mut Program) -> Result<()> {
    tracer.signal(Signal::SIGSTOP)?;
    wait_for_process_state(tracer.pid(), 'T')?;
    program.tell("go on")
}

#[test]
fn of_a_program_that_is_gone_nothing_is_guessed() {
    for (how, why) in [
        ("gone", "the process was gone before it could be looked at"),
        ("exec", "the process runs another program by now"),
        (
            "exit",
            "the process was exiting and had given up its memory",
        ),
    ] {
        in_netns(|netns| {
            let (_directory, closer) = compiled("cc", C, WITH_FRAME_POINTERS)?;
            let mut program = ready(Command::new(closer), how)?;
            let (record, _) = provoked(netns, &mut program, "reset.sent", |tracer, program| {
                while_nobody_looks(tracer, program)?;
                if how == "exec" {
                    program.wait_for_text("done")?;
                } else {
                    wait_for_process_state(program.pid(), 'Z')?;
                }
                Ok(tracer.signal(Signal::SIGCONT)?)
            })?;
            ensure!(
                record.text("tcptrace.stack.missing") == Some(why),
                "{}",
                record.0
            );
            let frames = frames(&record)?;
            let mut program = frames.iter().filter(|(name, _)| !name.ends_with("_[k]"));
            ensure!(
                program.all(|(name, place)| name.starts_with("0x") && place.is_empty()),
                "{frames:?}"
            );
            ensure!(
                frames.iter().any(|(name, _)| name.starts_with("tcp_")),
                "{frames:?}"
            );
            Ok(())
        });
    }
}

/// So many failures as fast as they come; each is one event.
fn burst(program: &mut Program, times: usize) -> Result<()> {
    for _ in 0..times {
        program.tell("go on")?;
    }
    let mut from = 0;
    for _ in 0..times {
        from = program.line(from, |line| line == "done")?.0 + 1;
    }
    Ok(())
}

#[test]
fn each_of_a_burst_has_its_stack() {
    // More than the tracer names while they come.
    const TIMES: usize = 300;
    in_netns(|netns| {
        let (_directory, closer) = compiled("cc", C, WITH_FRAME_POINTERS)?;
        let mut program = ready(Command::new(closer), "epipe")?;
        let tracer = trace(netns, &["--stack"])?;
        burst(&mut program, TIMES)?;
        let errors = Events::of(tracer)?.named("socket.error");
        ensure!(errors.count() == TIMES as u64, "{} came", errors.count());
        let deed = line(C, "/* epipe */")?;
        for error in &errors.0 {
            ensure_calls(
                error,
                &[("send_after_shutdown", &deed), ("serve", ""), ("main", "")],
            )?;
        }
        Ok(())
    });
}

/// As it is when somebody copies another one over it, and as who wants the trace to end would have it.
#[test]
fn a_library_that_is_cut_short_does_not_end_the_trace() {
    const TIMES: usize = 400;
    in_netns(|netns| {
        let flags = [WITH_FRAME_POINTERS, &["-shared", "-fPIC"]].concat();
        let (_library, library) = compiled("cc", C, &flags)?;
        let (_opener, opener) = compiled("cc", OPENER, &[])?;
        let mut command = Command::new(opener);
        command.arg(&library);
        let mut program = ready(command, "epipe")?;
        let tracer = trace(netns, &["--stack"])?;
        // Its symbols are at the end of its file; its code is at the beginning, and runs on.
        let whole = std::fs::read(&library)?;
        let cut = whole.len() / PAGE * PAGE - PAGE;
        let file = File::options().write(true).open(&library)?;
        let over = AtomicBool::new(false);
        let events = std::thread::scope(|scope| {
            let cutter = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    file.set_len(cut as u64)?;
                    file.write_all_at(&whole[cut..], cut as u64)?;
                }
                anyhow::Ok(())
            });
            let events = burst(&mut program, TIMES).and_then(|()| Events::of(tracer));
            over.store(true, Ordering::Relaxed);
            cutter.join().unwrap_or_else(|panic| resume_unwind(panic))?;
            events
        })?;
        let errors = events.named("socket.error");
        ensure!(errors.count() == TIMES as u64, "{} came", errors.count());
        Ok(())
    });
}

#[test]
fn who_does_not_ask_pays_nothing() {
    in_netns(|netns| {
        let (_directory, closer) = compiled("cc", C, WITH_FRAME_POINTERS)?;
        let mut program = ready(Command::new(closer), "unread")?;
        let tracer = trace(netns, &[])?;
        let usual = bpf::instructions(tracer.pid())?;
        go_on(&tracer, &mut program)?;
        let events = Events::of(tracer)?;
        let sent = events.named("reset.sent");
        ensure!(sent.one()?.text("code.stacktrace").is_none());

        let tracer = trace(netns, &["--stack"])?;
        let with = bpf::instructions(tracer.pid())?;
        drop(Events::of(tracer)?);
        ensure!(usual.keys().eq(with.keys()), "{usual:?} {with:?}");
        let names: Vec<_> = usual
            .iter()
            .filter(|(name, count)| with[*name] > **count)
            .collect();
        // Those that say who is running have more to do, and it is not in them otherwise.
        ensure!(
            !names.is_empty() && names.len() < usual.len(),
            "{usual:?} {with:?}"
        );
        for (name, count) in &usual {
            ensure!(with[name] >= *count, "{name}: {count} {}", with[name]);
        }
        Ok(())
    });
}
