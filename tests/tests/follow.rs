//! `--follow`, `--children` and `--wait`: which process a trace by number means, from one life of a service
//! to the next.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tcptrace_tests::cgroup::Cgroup;
use tcptrace_tests::program::Program;
use tcptrace_tests::*;

/// A supervisor that starts its service anew with each line, which the service's own lines follow.
struct Supervisor {
    program: Program,
    read: usize,
}

impl Supervisor {
    /// These arguments are the service's.
    fn start(args: &[&str]) -> Result<Self> {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"while read -r _; do "$0" "$@"; done"#])
            .arg(built("incarnation")?)
            .args(args);
        Ok(Self {
            program: Program::start(command)?,
            read: 0,
        })
    }

    /// A life of the service begins, and its process is this.
    fn begin(&mut self) -> Result<u32> {
        self.program.tell("begin")?;
        self.done("fail 0")
    }

    /// Lets the service do something, and gives its process.
    fn done(&mut self, line: &str) -> Result<u32> {
        self.program.tell(line)?;
        self.answer()
    }

    /// The process that answers next.
    fn answer(&mut self) -> Result<u32> {
        let (number, line) = self.program.line(self.read, |_| true)?;
        self.read = number + 1;
        let (pid, _) = line.split_once(' ').context(line.clone())?;
        Ok(pid.parse()?)
    }

    fn end(&mut self) -> Result<()> {
        self.program.tell("end")
    }
}

/// A trace of failed connects with these arguments.
fn trace_failures(netns: &Netns, args: &[&str]) -> Result<Tracer> {
    trace(netns, &[args, &["--event", "connect.failed"]].concat())
}

fn wait_for_turn(tracer: &Tracer, turn: &str, pid: u32) -> Result<Record> {
    tracer.wait_for(&format!("{pid} that {turn}"), SOON, |record| {
        record.text("tcptrace.target.turn") == Some(turn) && record.pid() == Some(pid.into())
    })
}

/// How many connects of each process failed.
fn failures(events: &Events, pids: &[u32]) -> Vec<u64> {
    let failed = events.named("connect.failed");
    let of = |pid: u32| {
        let own = failed.only(|event| event.pid() == Some(pid.into()));
        own.count()
    };
    pids.iter().map(|&pid| of(pid)).collect()
}

/// The processes of which this was told, by number.
fn turned(events: &Events, turn: &str) -> Vec<u32> {
    let changes = events.named("target.changed");
    let turned = changes.only(|it| it.text("tcptrace.target.turn") == Some(turn));
    let mut pids = turned.pids();
    pids.sort_unstable();
    pids
}

#[test]
fn each_life_of_a_service_is_traced_also_the_shortest() {
    const LIVES: usize = 8;
    in_netns(|netns| {
        let mut service = Supervisor::start(&[])?;
        let mut pids = vec![service.begin()?];
        let tracer = trace_failures(netns, &["--pid", &pids[0].to_string(), "--follow"])?;
        service.done("fail 3")?;
        service.end()?;
        // All at once: each fails as soon as it is there and is gone at once.
        for _ in 0..LIVES {
            service.program.tell("begin")?;
            service.program.tell("fail 4")?;
            service.end()?;
        }
        for _ in 0..LIVES {
            pids.push(service.answer()?);
        }
        pids.push(service.begin()?);
        wait_for_turn(&tracer, "succeeded", pids[LIVES + 1])?;
        service.done("fail 2")?;
        let trace = tracer.stop()?;
        let events = Events::from_trace(&trace)?;
        let expected = [&[3][..], &[4; LIVES], &[2]].concat();
        assert_eq!(failures(&events, &pids), expected);
        let (mut came, mut gone) = (pids[1..].to_vec(), pids[..=LIVES].to_vec());
        came.sort_unstable();
        gone.sort_unstable();
        assert_eq!(turned(&events, "succeeded"), came);
        assert_eq!(turned(&events, "ended"), gone);
        let said = trace.stderr.join("\n");
        for pid in &pids[1..] {
            let told = format!("tcptrace: incarnation[{pid}] goes on for ");
            ensure!(said.contains(&told), "{said}");
        }
        Ok(())
    });
}

#[test]
fn the_other_ends_of_a_successor_are_traced_too() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let tracer = trace(netns, &["--pid", &server.pid().to_string(), "--follow"])?;
        drop(server);
        server = actor("server")?;
        wait_for_turn(&tracer, "succeeded", server.pid())?;
        let pair = connected(&mut server, &mut client, LOOPBACKS[0])?;
        close_unread(&mut server, &mut client, &pair, 4)?;
        let events = Events::of(tracer)?;
        assert_eq!(events.named("reset.sent").pids(), [server.pid()]);
        assert_eq!(events.named("reset.received").pids(), [client.pid()]);
        Ok(())
    });
}

#[test]
fn others_of_its_name_are_not_followed() {
    in_netns(|netns| {
        let mut service = Supervisor::start(&["one"])?;
        let mut other = Supervisor::start(&["two"])?;
        let first = service.begin()?;
        let beside = other.begin()?;
        let tracer = trace_failures(netns, &["--pid", &first.to_string(), "--follow"])?;
        other.done("fail 5")?;
        service.end()?;
        wait_for_turn(&tracer, "ended", first)?;
        other.done("fail 5")?;
        other.end()?;
        // One that begins while the successor is waited for.
        let between = other.begin()?;
        other.done("fail 5")?;
        let second = service.begin()?;
        wait_for_turn(&tracer, "succeeded", second)?;
        service.done("fail 2")?;
        other.done("fail 5")?;
        let events = Events::of(tracer)?;
        assert_eq!(failures(&events, &[beside, between, second]), [0, 0, 2]);
        assert_eq!(events.named("connect.failed").count(), 2);
        Ok(())
    });
}

#[test]
fn one_that_begins_before_the_other_has_ended_stands_by() {
    in_netns(|netns| {
        let (mut old, mut new) = (Supervisor::start(&[])?, Supervisor::start(&[])?);
        let first = old.begin()?;
        let tracer = trace_failures(netns, &["--pid", &first.to_string(), "--follow"])?;
        let second = new.begin()?;
        new.done("fail 2")?;
        old.done("fail 1")?;
        // By then the events before it were looked at.
        tracer.wait_for("the old one", SOON, |record| {
            record.pid() == Some(first.into())
        })?;
        old.end()?;
        let told = wait_for_turn(&tracer, "succeeded", second)?;
        new.done("fail 3")?;
        let events = Events::of(tracer)?;
        // Each of them is a RST that came in and a connect that failed.
        assert_eq!(told.number("tcptrace.target.left_out"), Some(4));
        assert_eq!(failures(&events, &[first, second]), [1, 3]);
        Ok(())
    });
}

#[test]
fn of_two_that_are_alike_both_are_followed_and_it_is_said() {
    in_netns(|netns| {
        let (mut one, mut two) = (Supervisor::start(&[])?, Supervisor::start(&[])?);
        let first = one.begin()?;
        let tracer = trace_failures(netns, &["--pid", &first.to_string(), "--follow"])?;
        let mut three = Supervisor::start(&[])?;
        let (second, third) = (two.begin()?, three.begin()?);
        one.end()?;
        let mut whys = Vec::new();
        for pid in [second, third] {
            let told = wait_for_turn(&tracer, "succeeded", pid)?;
            assert_eq!(
                told.number("tcptrace.target.previous_pid"),
                Some(first.into())
            );
            let why = told.text("tcptrace.target.why").unwrap_or_default();
            whys.push(why.contains("so it is with"));
        }
        ensure!(whys[0] != whys[1], "{whys:?}");
        two.done("fail 2")?;
        three.done("fail 1")?;
        let events = Events::of(tracer)?;
        assert_eq!(failures(&events, &[second, third]), [2, 1]);
        Ok(())
    });
}

#[test]
fn children_are_followed_from_each_life() {
    in_netns(|netns| {
        let mut service = Supervisor::start(&[])?;
        let first = service.begin()?;
        let pid = first.to_string();
        let alone = trace_failures(netns, &["--pid", &pid, "--follow"])?;
        let family = trace_failures(netns, &["--pid", &pid, "--follow", "--children"])?;
        service.done("fork 2")?;
        service.end()?;
        let second = service.begin()?;
        wait_for_turn(&family, "succeeded", second)?;
        wait_for_turn(&alone, "succeeded", second)?;
        service.done("fork 3")?;
        service.done("fail 1")?;
        assert_eq!(Events::of(family)?.named("connect.failed").count(), 6);
        let alone = Events::of(alone)?.named("connect.failed");
        assert_eq!(alone.pids(), [second]);
        Ok(())
    });
}

#[test]
fn in_a_service_another_command_line_is_the_same_service() {
    in_netns(|netns| {
        let cgroup = Cgroup::new(&format!("tcptrace-test-{}.service", std::process::id()))?;
        let (mut old, mut new) = (Supervisor::start(&["v1"])?, Supervisor::start(&["v2"])?);
        let mut outside = Supervisor::start(&["v1"])?;
        cgroup.take(old.program.pid())?;
        cgroup.take(new.program.pid())?;
        let first = old.begin()?;
        let tracer = trace_failures(netns, &["--pid", &first.to_string(), "--follow"])?;
        old.end()?;
        wait_for_turn(&tracer, "ended", first)?;
        let elsewhere = outside.begin()?;
        outside.done("fail 2")?;
        let second = new.begin()?;
        let told = wait_for_turn(&tracer, "succeeded", second)?;
        let why = told.text("tcptrace.target.why").unwrap_or_default();
        ensure!(why.contains(".service") && why.contains("program"), "{why}");
        new.done("fail 3")?;
        let events = Events::of(tracer)?;
        assert_eq!(failures(&events, &[elsewhere, second]), [0, 3]);
        // So that the cgroup is empty.
        drop((old, new));
        Ok(())
    });
}

#[test]
fn a_cgroup_that_is_not_there_is_waited_for() {
    in_netns(|netns| {
        let name = format!("tcptrace-test-wait-{}.service", std::process::id());
        let tracer = trace_failures(netns, &["--cgroup", &name, "--wait"])?;
        let cgroup = Cgroup::new(&name)?;
        let mut service = Supervisor::start(&[])?;
        cgroup.take(service.program.pid())?;
        let pid = service.begin()?;
        // It is seen within 20 ms; what comes after the first that is seen is counted.
        let is_failure = |record: &Record| record.name() == "connect.failed";
        let soon = Duration::from_millis(200);
        let mut before = 0;
        while tracer.wait_for("the cgroup", soon, is_failure).is_err() {
            service.done("fail 1")?;
            before += 1;
            ensure!(before < 100, "the cgroup was never traced");
        }
        service.done("fail 5")?;
        let events = Events::of(tracer)?;
        let seen = failures(&events, &[pid])[0];
        ensure!((6..=before + 5).contains(&seen), "{seen} of {before} + 5");
        drop(service);
        Ok(())
    });
}

/// Starts a process that has this number, which is free.
fn with_number<T>(number: u32, mut start: impl FnMut() -> Result<(u32, T)>) -> Result<T> {
    const ATTEMPTS: usize = 200;
    for _ in 0..ATTEMPTS {
        // Somebody else may be first.
        let mut last = fs::File::create("/proc/sys/kernel/ns_last_pid")?;
        last.write_all((number - 1).to_string().as_bytes())?;
        let (got, process) = start()?;
        if got == number {
            return Ok(process);
        }
    }
    anyhow::bail!("{number} was given to nobody in {ATTEMPTS} attempts")
}

fn service() -> Result<(u32, Program)> {
    let program = Program::start(Command::new(built("incarnation")?))?;
    Ok((program.pid(), program))
}

#[test]
fn a_number_that_nobody_has_is_waited_for() {
    in_netns(|netns| {
        let (free, mut gone) = service()?;
        gone.kill()?;
        let pid = free.to_string();
        let tracer = trace_failures(netns, &["--pid", &pid, "--wait"])?;
        let mut process = with_number(free, service)?;
        process.tell("fail 3")?;
        process.wait_for_text("fail")?;
        wait_for_turn(&tracer, "appeared", free)?;
        process.kill()?;
        // With the process the trace ends.
        let events = Events::from_trace(&tracer.finish()?)?;
        assert_eq!(failures(&events, &[free]), [3]);
        Ok(())
    });
}

#[test]
fn a_number_given_to_another_process_is_not_followed() {
    in_netns(|netns| {
        let (_, keeper) = service()?;
        let (number, mut first) = service()?;
        let (pid, keeper_pid) = (number.to_string(), keeper.pid().to_string());
        let tracer = trace_failures(netns, &["--pid", &pid, "--pid", &keeper_pid])?;
        first.tell("fail 2")?;
        first.wait_for_text("fail")?;
        first.kill()?;
        // Within the second until it is looked which processes are gone.
        let mut second = with_number(number, service)?;
        second.tell("fail 3")?;
        second.wait_for_text("fail")?;
        let events = Events::of(tracer)?;
        assert_eq!(failures(&events, &[number]), [2]);
        Ok(())
    });
}

#[test]
fn another_process_in_the_file_is_traced_from_then_on_and_the_successor_no_more() {
    in_netns(|netns| {
        let mut service = Supervisor::start(&[])?;
        let mut other = Supervisor::start(&["other"])?;
        let (first, beside) = (service.begin()?, other.begin()?);
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("tcptrace.toml");
        let write = |pid: u32| {
            let text = format!("pid = [{pid}]\nfollow = true\nevent = [\"connect.failed\"]\n");
            fs::write(&file, text)
        };
        write(first)?;
        let path = file.to_str().context("a path of this test")?;
        let tracer = trace(netns, &["--config", path])?;
        service.end()?;
        let second = service.begin()?;
        wait_for_turn(&tracer, "succeeded", second)?;
        // Nothing has changed: the first is gone, and its successor is traced still.
        tracer.signal(Signal::SIGHUP)?;
        service.done("fail 2")?;
        write(beside)?;
        tracer.signal(Signal::SIGHUP)?;
        // Until the file is read.
        let of_other = |record: &Record| record.pid() == Some(beside.into());
        let soon = Duration::from_millis(200);
        let mut asked = 0;
        while tracer.wait_for("the other", soon, of_other).is_err() {
            other.done("fail 1")?;
            asked += 1;
            ensure!(asked < 100, "the file was never read");
        }
        service.done("fail 4")?;
        let events = Events::of(tracer)?;
        assert_eq!(failures(&events, &[second]), [2]);
        Ok(())
    });
}
