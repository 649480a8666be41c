//! The command line as its users meet it: what it refuses and why, how it ends, what it prints.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::gettid;
use tcptrace_tests::*;

fn run(args: &[&str]) -> Output {
    tcptrace()
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("tcptrace does not start")
}

/// Runs it, and expects this exit code and these words on stderr.
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let output = run(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?} wrote to stdout");
    for word in words {
        assert!(
            said.contains(word),
            "{args:?} should say {word:?}, says: {said}"
        );
    }
}

#[test]
fn wrong_usage_is_refused_with_2_and_a_reason() {
    refused(&["--port", "99999"], 2, &["99999"]);
    refused(&["--addr", "10.0.0.0/33"], 2, &["10.0.0.0/33"]);
    refused(&["--peer", "example"], 2, &["example"]);
    refused(&["-4", "-6"], 2, &["--ipv4", "--ipv6"]);
    refused(&["--children"], 2, &["--pid"]);
    refused(&["--comm", "x", "--follow"], 2, &["--pid", "--comm"]);
    refused(&["--wait", "--port", "80"], 2, &["--pid", "--cgroup"]);
    refused(&["--wait", "--follow", "--", "true"], 2, &["--pid"]);
    refused(&["--event", "resets"], 2, &["resets", "reset.sent"]);
    refused(&["--errno", "ENOPE"], 2, &["ENOPE"]);
    refused(&["--pid", "0"], 2, &["0"]);
    refused(&["--pid", "nginx"], 2, &["--comm", "pgrep -d,"]);
    refused(&["--pid", "1 2"], 2, &["1 2", "pgrep -d,"]);
    refused(&["--pid", "1", "2"], 2, &["'2'", "--pid 12,34"]);
    refused(&["sockets", "--port", "1", "2"], 2, &["'2'", "commas"]);
    refused(&["--port", "80-90"], 2, &["80-90", "commas"]);
    refused(&["./nginx"], 2, &["-- ./nginx", "--comm nginx"]);
    refused(&["socket"], 2, &["tcptrace sockets"]);
    refused(&["-o", "xml"], 2, &["xml", "json"]);
    refused(&["man", "nothing"], 2, &["nothing", "--help"]);
}

#[test]
fn what_cannot_be_done_is_refused_with_1_and_a_reason() {
    // Above the kernel's own limit of process ids.
    refused(&["--pid", "4194305"], 1, &["4194305"]);
    let process = format!("thread of process {}", std::process::id());
    std::thread::scope(|scope| {
        scope.spawn(|| refused(&["--pid", &gettid().to_string()], 1, &[&process]));
    });
    refused(&["--cgroup", "no-such"], 1, &["no-such", "systemd-cgls"]);
    refused(
        &["-o", "json", "--output-file", "/proc/nowhere/file"],
        1,
        &["/proc/nowhere/file"],
    );
    let output = run(&["--", "/no/such/program"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/no/such/program"), "{said}");
}

#[test]
fn without_privileges_it_says_which_is_missing() {
    let mut command = tcptrace();
    let output = command.uid(65534).gid(65534).stdin(Stdio::null()).output();
    let output = output.expect("tcptrace does not start");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("CAP_BPF") && said.contains("sudo"), "{said}");
}

#[test]
fn two_at_once_see_the_same() {
    in_netns(|netns| {
        let (one, two) = (trace(netns, &[])?, trace(netns, &[])?);
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let pair = connected(&mut server, &mut client, LOOPBACKS[0])?;
        close_unread(&mut server, &mut client, &pair, 4)?;
        for tracer in [one, two] {
            let sent = Events::of(tracer)?.named("reset.sent");
            assert_eq!(sent.one()?.pid(), Some(server.pid().into()));
        }
        Ok(())
    });
}

#[test]
fn a_closed_pipe_is_a_clean_end() {
    in_netns(|netns| {
        let mut command = tcptrace();
        command.args(["-o", "json", "--netns", &netns.inode().to_string()]);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the stream begins with the coverage");
        drop(stdout);
        // Events until it notices.
        let mut client = actor("client")?;
        let deadline = Instant::now() + SOON;
        while child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "it runs on without a reader");
            client
                .connected("127.0.0.1:1".parse()?)
                .expect_err("nobody listens");
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        Ok(())
    });
}

#[test]
fn an_interrupt_drains_and_summarises() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        let before = netns.counters()?;
        let mut client = actor("client")?;
        for _ in 0..500 {
            client
                .connected("127.0.0.1:1".parse()?)
                .expect_err("nobody listens");
        }
        let counted = netns.counters()?.since(&before, "TcpOutRsts");
        let trace = tracer.stop()?;
        let events = Events::from_trace(&trace)?;
        assert_eq!(Some(events.named("reset.sent").count()), counted);
        events.named("summary").one()?;
        let last = events.0.last().context("no record")?;
        assert_eq!(last.name(), "summary", "it ends the stream");
        let said = trace.stderr.join("\n");
        assert!(said.contains("0 lost"), "also when nothing is lost: {said}");
        Ok(())
    });
}

#[test]
fn sigterm_ends_it_as_sigint_does() {
    in_netns(|netns| {
        let tracer = trace(netns, &[])?;
        tracer.signal(Signal::SIGTERM)?;
        let trace = tracer.finish()?;
        Events::from_trace(&trace)?.named("summary").one()?;
        Ok(())
    });
}

/// Numbers after this name in what `/proc` says of a process's descriptors, e.g. `prog_id`.
fn numbers_of(pid: u32, name: &str) -> Result<Vec<u32>> {
    let mut numbers = vec![];
    for fd in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let info = match fs::read_to_string(fd?.path()) {
            Ok(info) => info,
            // The tracer is alive: its look around at the start opens and closes what it reads.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        let values = info.lines().filter_map(|line| line.strip_prefix(name));
        for value in values {
            numbers.push(value.trim_start_matches(':').trim().parse()?);
        }
    }
    Ok(numbers)
}

#[test]
fn killed_it_leaves_nothing_in_the_kernel() {
    // Commands of bpf(2).
    // https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h (enum bpf_cmd)
    const PROG_GET_FD_BY_ID: i32 = 13;
    const MAP_GET_FD_BY_ID: i32 = 14;
    in_netns(|netns| {
        let tracer = trace(netns, &["--event", "all"])?;
        let mut left = vec![];
        for (name, command) in [("prog_id", PROG_GET_FD_BY_ID), ("map_id", MAP_GET_FD_BY_ID)] {
            let numbers = numbers_of(tracer.pid(), name)?;
            ensure!(
                numbers.len() > 5,
                "the provocation itself: {name} {numbers:?}"
            );
            left.extend(numbers.into_iter().map(|number| (command, number)));
        }
        let mut looks = actor("looks")?;
        let mut is_there = |(command, number): (i32, u32)| -> std::io::Result<bool> {
            let attributes = [number, 0, 0].map(u32::to_ne_bytes).concat();
            let args = [command.into(), attributes[..].into(), 12_i32.into()];
            match looks.sys(libc::SYS_bpf, &args) {
                // A descriptor would keep it.
                Ok(fd) => looks
                    .close(i32::try_from(fd.value).map_err(std::io::Error::other)?)
                    .map(|()| true),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error),
            }
        };
        for one in &left {
            ensure!(is_there(*one)?, "the provocation itself: {one:?}");
        }
        tracer.signal(Signal::SIGKILL)?;
        tracer.finish()?;
        // The kernel frees them a moment later.
        wait_until("the end of what a killed tracer had in the kernel", || {
            while let Some(one) = left.last() {
                if is_there(*one)? {
                    return Ok(false);
                }
                left.pop();
            }
            Ok(true)
        })?;
        Ok(())
    });
}

#[test]
fn the_kernel_half_speaks_only_when_asked_and_only_if_it_has_something_to_say() {
    const SPEAKS: &str = "tcptrace: kernel half:";
    in_netns(|netns| {
        let (quiet, verbose) = (trace(netns, &[])?, trace(netns, &["-v"])?);
        provoke_a_bit_of_everything(netns)?;
        let (quiet, verbose) = (quiet.stop()?, verbose.stop()?);
        let said = |trace: &Trace| -> Vec<String> {
            let lines = trace.stderr.iter();
            let said = lines.filter_map(|line| line.strip_prefix(SPEAKS));
            said.map(|words| words.trim().to_owned()).collect()
        };
        assert!(said(&quiet).is_empty(), "{:?}", quiet.stderr);
        assert!(said(&verbose).iter().all(|words| !words.is_empty()));
        let seen = |trace: &Trace| -> Result<u64> {
            Ok(Events::from_trace(trace)?.named("reset.sent").count())
        };
        assert_eq!(seen(&quiet)?, seen(&verbose)?);
        Ok(())
    });
}

#[test]
fn it_ends_after_a_duration() {
    in_netns(|netns| {
        let tracer = trace(netns, &["--duration", "300ms"])?;
        let begun = Instant::now();
        let trace = tracer.finish()?;
        assert_eq!(trace.status.code(), Some(0));
        assert!(begun.elapsed() < SOON);
        Ok(())
    });
}

#[test]
fn it_ends_after_a_number_of_events() {
    in_netns(|netns| {
        let tracer = trace(netns, &["--event", "reset.sent", "--count", "3"])?;
        let mut client = actor("client")?;
        for _ in 0..10 {
            client
                .connected("127.0.0.1:1".parse()?)
                .expect_err("nobody listens");
        }
        let events = Events::from_trace(&tracer.finish()?)?;
        assert_eq!(events.named("reset.sent").count(), 3);
        Ok(())
    });
}

#[test]
fn the_status_is_that_of_the_command_it_traces() {
    assert_eq!(
        run(&["--quiet", "--", "sh", "-c", "exit 7"]).status.code(),
        Some(7)
    );
    assert_eq!(run(&["--quiet", "--", "true"]).status.code(), Some(0));
}

#[test]
fn columns_say_it_in_a_line_of_120() {
    in_netns(|netns| {
        let mut command = tcptrace();
        command.args(["--netns", &netns.inode().to_string()]);
        let tracer = Tracer::start(command)?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let pair = connected(&mut server, &mut client, "[::1]:0")?;
        close_unread(&mut server, &mut client, &pair, 512)?;
        let trace = tracer.stop()?;
        let pid = format!("[{}]", server.pid());
        let of_server: Vec<_> = trace
            .stdout
            .iter()
            .filter(|line| line.contains(&pid) && line.contains("RST sent"))
            .collect();
        ensure!(
            of_server.len() == 1,
            "one line for one event: {:#?}",
            trace.stdout
        );
        let line = of_server[0];
        let ends = [pair.server_addr.to_string(), pair.client_addr.to_string()];
        for word in ends.iter().map(String::as_str).chain(["512"]) {
            assert!(line.contains(word), "{line} lacks {word}");
        }
        for line in &trace.stdout {
            assert!(line.chars().count() <= 120, "{line}");
            assert!(!line.contains('\u{1b}'), "no colour on a pipe: {line}");
        }
        Ok(())
    });
}

#[test]
fn every_record_follows_the_schema() {
    let schema = run(&["schema"]);
    assert!(schema.status.success());
    let schema = serde_json::from_slice(&schema.stdout).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
    in_netns(|netns| {
        let tracer = trace(netns, &["--event", "all", "--close-wait-after", "0"])?;
        provoke_a_bit_of_everything(netns)?;
        let events = Events::of(tracer)?;
        for record in &events.0 {
            let errors: Vec<_> = validator
                .iter_errors(&record.0)
                .map(|error| error.to_string())
                .collect();
            assert!(errors.is_empty(), "{errors:?} in {}", record.0);
        }
        let mut names: Vec<&str> = events.0.iter().map(Record::name).collect();
        names.sort_unstable();
        names.dedup();
        for name in [
            "accept_queue.overflow",
            "close_wait.entered",
            "connect.failed",
            "connection.timeout",
            "coverage",
            "fd.exhausted",
            "fd.invalid",
            "reset.received",
            "reset.sent",
            "socket.error",
            "state.changed",
            "summary",
        ] {
            assert!(
                names.contains(&name),
                "the provocation itself: no {name} in {names:?}"
            );
        }
        Ok(())
    });
}

fn provoke_a_bit_of_everything(netns: &Netns) -> Result<()> {
    let mut server = actor("server")?;
    let mut client = actor("client")?;
    for addr in LOOPBACKS {
        let pair = connected(&mut server, &mut client, addr)?;
        close_unread(&mut server, &mut client, &pair, 4)?;
        client.recv(pair.client, 1).expect_err("ECONNRESET");
        let pair = connected(&mut server, &mut client, addr)?;
        client.close(pair.client)?;
        server.wait_for(pair.server, libc::POLLRDHUP)?;
        let (listener, addr) = listen(&mut server, addr, 0)?;
        client.connected(addr)?;
        server.wait_for_queue(listener, 1)?;
        let late = client.connecting(addr)?;
        client.close(late)?;
        server.close(listener)?;
        client.connected(addr).expect_err("nobody listens");
    }
    client.send(-1, b"x").expect_err("EBADF");
    let pair = connected(&mut server, &mut client, LOOPBACKS[0])?;
    server.limit_descriptors(1)?;
    server.socket(libc::AF_INET, 0).expect_err("EMFILE");
    client.set(
        pair.client,
        libc::IPPROTO_TCP,
        libc::TCP_USER_TIMEOUT,
        &[300],
    )?;
    netns.set_loopback(false)?;
    client.send(pair.client, b"into the void")?;
    client.wait_for(pair.client, libc::POLLHUP)?;
    Ok(())
}

#[test]
fn what_only_tells_needs_no_privileges() {
    for args in [
        &["--help"][..],
        &["--version"],
        &["schema"],
        &["man"],
        &["man", "doctor"],
        &["completions", "bash"],
    ] {
        let mut command = tcptrace();
        let output = command.args(args).uid(65534).gid(65534).output();
        let output = output.expect("tcptrace does not start");
        assert!(
            output.status.success() && !output.stdout.is_empty(),
            "{args:?}"
        );
    }
}
