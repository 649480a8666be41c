//! `tcptrace replay`: what a tracer recorded is explained as it was, from one host and from two.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tcptrace_tests::hosts::OtherHost;
use tcptrace_tests::program::{Go, Program};
use tcptrace_tests::*;

/// What a finding is compared by: its last telling.
type Findings = BTreeMap<String, Vec<Value>>;

fn replay(files: &[&Path], args: &[&str]) -> Result<Output> {
    let mut command = tcptrace();
    command.arg("replay").args(files).args(args);
    let output = command.output().context("tcptrace does not start")?;
    ensure!(output.status.success(), "{output:?}");
    Ok(output)
}

/// Of each finding in these lines what must be the same.
fn findings(lines: &str) -> Result<Findings> {
    let mut findings = Findings::new();
    for line in lines.lines() {
        let record: Value = serde_json::from_str(line)?;
        if record["event_name"] != "tcptrace.finding" {
            continue;
        }
        let attributes = &record["attributes"];
        let id = attributes["tcptrace.finding.id"].as_str();
        let told = [
            "tcptrace.cause",
            "tcptrace.finding.count",
            "tcptrace.finding.title",
            "tcptrace.finding.why",
            "tcptrace.finding.fix",
            "tcptrace.finding.errors",
            "tcptrace.finding.evidence",
            "tcptrace.finding.confidence",
            "tcptrace.finding.first",
            "tcptrace.finding.last",
            "tcptrace.caused_by",
            "process.pid",
            "process.executable.path",
            "tcptrace.peer.pid",
            "network.local.address",
            "network.local.port",
            "network.peer.port",
            "tcptrace.flow.id",
        ];
        findings.insert(
            id.context("no id")?.to_owned(),
            told.map(|name| attributes[name].clone()).to_vec(),
        );
    }
    Ok(findings)
}

fn causes(findings: &Findings) -> Vec<&str> {
    let mut causes: Vec<_> = findings.values().filter_map(|it| it[0].as_str()).collect();
    causes.sort_unstable();
    causes
}

/// Fails on every sort of address, and where nothing listens.
fn provoke(client: &mut Actor, server: &mut Actor) -> Result<()> {
    for address in LOOPBACKS {
        let pair = connected(server, client, address)?;
        close_unread(server, client, &pair, 512)?;
        client.close(pair.client)?;
    }
    client.begin("be_refused", &[1.into(), 20.into()])?;
    client.finish()?;
    Ok(())
}

/// The causes of [`provoke`].
const PROVOKED: [&str; 4] = [
    "closed_on_accept",
    "closed_on_accept",
    "closed_on_accept",
    "no_listener",
];

fn path_of(directory: &tempfile::TempDir, name: &str) -> String {
    directory.path().join(name).to_string_lossy().into_owned()
}

#[test]
fn a_recording_gives_the_findings_it_was_made_with() {
    for event in ["all", "+retransmit"] {
        in_netns(|netns| {
            let directory = tempfile::tempdir()?;
            let path = path_of(&directory, "events.json");
            let tracer = trace(netns, &["--event", event, "--output-file", &path])?;
            let (mut client, mut server) = (actor("client")?, actor("server")?);
            provoke(&mut client, &mut server)?;
            let trace = tracer.stop()?;
            let recorded = findings(&trace.stdout.join("\n"))?;
            assert_eq!(causes(&recorded), PROVOKED);

            let output = replay(&[path.as_ref()], &["-o", "json"])?;
            let again = String::from_utf8(output.stdout)?;
            assert_eq!(findings(&again)?, recorded, "--event {event}");
            let said = String::from_utf8(output.stderr)?;
            ensure!(said.contains("of 1 run; they carry 4 findings"), "{said}");
            // What replay writes is a recording as well.
            let second = path_of(&directory, "again.json");
            fs::write(&second, &again)?;
            let output = replay(&[second.as_ref()], &["-o", "json", "--quiet"])?;
            assert_eq!(findings(&String::from_utf8(output.stdout)?)?, recorded);
            assert_eq!(output.stderr, b"");
            Ok(())
        });
    }
}

/// What a stream says, but for its summary and for when findings were told.
fn told(lines: &str) -> Result<Vec<Value>> {
    let records = lines.lines().map(serde_json::from_str::<Value>);
    let mut records = records.collect::<Result<Vec<_>, _>>()?;
    records.retain(|it| it["event_name"] != "tcptrace.summary");
    for record in &mut records {
        // Those that are open when the trace ends are told then, and not by an event.
        if record["event_name"] == "tcptrace.finding" {
            record["timestamp"] = Value::Null;
        }
    }
    Ok(records)
}

#[test]
fn a_complete_stream_is_the_same_stream_when_it_is_replayed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = path_of(&directory, "events.json");
    let tracer = trace_unfiltered(&["--event", "all", "--output-file", &path])?;
    // Whether all of its failures were seen is not the question here.
    tcptrace().arg("selftest").output()?;
    tracer.stop()?;
    let recorded = told(&fs::read_to_string(&path)?)?;
    let causes: BTreeSet<_> = recorded
        .iter()
        .filter(|it| it["event_name"] == "tcptrace.finding")
        .filter_map(|it| it["attributes"]["tcptrace.cause"].as_str())
        .collect();
    ensure!(causes.len() > 20, "the selftest has failed: {causes:?}");

    let output = replay(&[path.as_ref()], &["--event", "all", "-o", "json"])?;
    let replayed = told(&String::from_utf8(output.stdout)?)?;
    for (recorded, replayed) in recorded.iter().zip(&replayed) {
        assert_eq!(recorded, replayed);
    }
    assert_eq!(recorded.len(), replayed.len());
    Ok(())
}

#[test]
fn a_part_of_the_time_and_of_the_events_can_be_chosen() {
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let path = path_of(&directory, "events.json");
        let tracer = trace(netns, &["--output-file", &path])?;
        let (mut client, mut server) = (actor("client")?, actor("server")?);
        provoke(&mut client, &mut server)?;
        let events = Events::of(tracer)?;
        let times: Vec<_> = events
            .named("reset.sent")
            .0
            .iter()
            .map(|it| it.0["timestamp"].clone())
            .collect();
        let third = times.get(2).and_then(Value::as_str).context("RSTs")?;
        let print = |args: &[&str]| -> Result<String> {
            let output = replay(&[path.as_ref()], args)?;
            Ok(String::from_utf8(output.stdout)?)
        };
        let chosen = print(&["--to", third, "-o", "json", "--event", "reset.sent"])?;
        let sent = |text: &str| {
            text.matches("\"event_name\":\"tcptrace.reset.sent\"")
                .count()
        };
        assert_eq!(sent(&chosen), 3, "{chosen}");
        let chosen = print(&["--from", third, "-o", "json", "--event", "reset.sent"])?;
        assert_eq!(sent(&chosen), times.len() - 2, "{chosen}");
        let columns = print(&[])?;
        ensure!(
            columns.contains("closed 127.0.0.1:") || columns.contains("unread"),
            "{columns}"
        );
        Ok(())
    });
}

#[test]
fn two_hosts_give_one_finding_of_both_ends() {
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let other = OtherHost::connected()?;
        let mut client = Go::start()?;
        let mut server = other.start_go()?;
        let files = [
            path_of(&directory, "web-1.json"),
            path_of(&directory, "db-1.json"),
        ];
        let here = trace(netns, &["--output-file", &files[0]])?;
        let there = trace(other.netns(), &["--output-file", &files[1]])?;
        server.done("listen 192.0.2.2:8000")?;
        client.done("dial a 192.0.2.2:8000 5s")?;
        server.done("accept a")?;
        client.done("send a 10")?;
        server.done("recv a 10")?;
        server.done("linger_0 a")?;
        server.done("close a")?;
        client.fails("recv a 1", "read: connection reset by peer")?;
        let here = here.stop()?;
        let there = there.stop()?;
        let alone = |trace: &Trace| findings(&trace.stdout.join("\n"));
        assert_eq!(causes(&alone(&here)?), ["reset_by_peer"]);
        assert_eq!(causes(&alone(&there)?), ["linger_zero"]);

        let paths = files.each_ref().map(Path::new);
        let output = replay(&paths, &["-o", "json"])?;
        let lines = String::from_utf8(output.stdout)?;
        let joined = findings(&lines)?;
        assert_eq!(causes(&joined), ["linger_zero"]);
        let told = lines.lines().map(serde_json::from_str::<Value>);
        let told = told.collect::<Result<Vec<_>, _>>()?;
        let finding = told
            .iter()
            .find(|it| it["event_name"] == "tcptrace.finding");
        let attributes = &finding.context("a finding")?["attributes"];
        assert_eq!(attributes["process.pid"], server.pid());
        assert_eq!(attributes["tcptrace.peer.pid"], client.pid());
        assert_eq!(attributes["tcptrace.finding.errors"][0], "1 ECONNRESET");
        // Its evidence is of two runs, and all of it is in the stream.
        let evidence = attributes["tcptrace.finding.evidence"].as_array();
        let evidence: Vec<_> = evidence.context("no evidence")?.iter().collect();
        let run = |id: &Value| id.as_str().map(|id| id[..8].to_owned());
        let mut runs: Vec<_> = evidence.iter().map(|id| run(id)).collect();
        runs.sort_unstable();
        runs.dedup();
        assert_eq!(runs.len(), 2, "{evidence:?}");
        for id in evidence {
            let is_it = |record: &&Value| record["attributes"]["tcptrace.event.id"] == *id;
            ensure!(told.iter().any(|record| is_it(&record)), "{id} is nowhere");
        }
        Ok(())
    });
}

#[test]
fn a_file_that_grows_is_followed() {
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let path = path_of(&directory, "events.json");
        let tracer = trace(netns, &["--output-file", &path])?;
        let (mut client, mut server) = (actor("client")?, actor("server")?);
        let mut command = tcptrace();
        command.args(["replay", "--follow", "-o", "json", &path]);
        let replay = Program::start(command)?;
        provoke(&mut client, &mut server)?;
        replay.wait_for_text("\"tcptrace.cause\":\"no_listener\",")?;
        replay.wait_for_text("tcptrace.finding.id")?;
        // The next run goes on in the same file, after a line that is torn.
        tracer.stop()?;
        let mut file = OpenOptions::new().append(true).open(&path)?;
        file.write_all(b"{\"timestamp\":\"2026")?;
        let tracer = trace(netns, &["--output-file", &path])?;
        replay.wait_for_text("left out")?;
        let pair = connected(&mut server, &mut client, LOOPBACKS[0])?;
        close_unread(&mut server, &mut client, &pair, 77)?;
        replay.wait_for_text("77 bytes unread")?;
        tracer.stop()?;
        replay.signal(Signal::SIGINT)?;
        let ended = replay.finish()?;
        ensure!(ended.status.success(), "{ended:?}");
        ensure!(ended.printed("of 2 runs"), "{ended:?}");
        Ok(())
    });
}

#[test]
fn what_is_no_recording_is_refused_with_the_remedy() {
    let run = |args: &[&OsStr]| {
        let output = tcptrace().arg("replay").args(args).output();
        let output = output.expect("tcptrace starts");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, said) = run(&["/proc/version".as_ref()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("/proc/version:1: no JSON object"), "{said}");
    assert!(said.contains("tcptrace -o json"), "{said}");
    let (code, said) = run(&["/nowhere.json".as_ref()]);
    assert!(code == Some(1) && said.contains("/nowhere.json"), "{said}");
    let (code, said) = run(&[
        "--from".as_ref(),
        "2026-11-20T12:00".as_ref(),
        "--to".as_ref(),
        "2026-11-20T11:00".as_ref(),
        "/dev/null".as_ref(),
    ]);
    assert!(code == Some(2) && said.contains("--from"), "{said}");
    let (code, said) = run(&["--from".as_ref(), "soon".as_ref(), "/dev/null".as_ref()]);
    assert!(
        code == Some(2) && said.contains("2026-11-20T11:10"),
        "{said}"
    );
}
