//! Two hosts, an agent on each that sees only its own: `docs/fleet.md`'s query joins what they found.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tcptrace_tests::findings::only_finding;
use tcptrace_tests::hosts::OtherHost;
use tcptrace_tests::program::Go;
use tcptrace_tests::*;

const PAGE: &str = include_str!("../../docs/fleet.md");
/// Gives the agent a host name of its own, and the tracer its process.
const NAMED: &str = r#"echo "$0" >/proc/sys/kernel/hostname && exec "$@""#;
/// Prints a query's rows as JSON, from the records in the working directory.
const RUN: &str = "import duckdb, json, sys
rows = duckdb.sql(sys.argv[1])
print(json.dumps([dict(zip(rows.columns, row)) for row in rows.fetchall()]))";

/// An agent of this namespace on a host of this name.
fn agent(host: &str, netns: &Netns) -> Result<Tracer> {
    let mut command = Command::new("unshare");
    command
        .args(["--uts", "sh", "-c", NAMED, host])
        .arg(tcptrace().get_program())
        .args(["-o", "json", "--netns"])
        .arg(netns.path());
    Tracer::start(command)
}

/// The page's first query, which is for `DuckDB`.
fn query() -> Result<&'static str> {
    let query = PAGE.split("```sql\n").nth(1);
    query
        .and_then(|rest| rest.split("```").next())
        .context("docs/fleet.md holds no query")
}

fn ask(query: &str, directory: &Path) -> Result<Value> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/duckdb/bin/python");
    let output = Command::new(python)
        .args(["-c", RUN, query])
        .current_dir(directory)
        .output()
        .context("cannot start DuckDB: `cargo xtask setup` installs it")?;
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn the_two_ends_of_a_connection_are_joined_by_its_community_id() {
    in_netns(|netns| {
        let other = OtherHost::connected()?;
        let mut client = Go::start()?;
        let mut server = other.start_go()?;
        let here = agent("web-1", netns)?;
        let there = agent("db-1", other.netns())?;
        server.done("listen 192.0.2.2:8000")?;
        client.done("dial a 192.0.2.2:8000 5s")?;
        server.done("accept a")?;
        client.done("send a 10")?;
        server.done("recv a 10")?;
        server.done("linger_0 a")?;
        server.done("close a")?;
        client.fails("recv a 1", "read: connection reset by peer")?;
        // A failure that only one host has is joined with nothing.
        client.fails("dial b 192.0.2.2:8001 5s", "connect: connection refused")?;

        let directory = tempfile::tempdir()?;
        let mut connections = vec![];
        for (host, tracer, cause, pid) in [
            ("web-1", here, "reset_by_peer", client.pid()),
            ("db-1", there, "linger_zero", server.pid()),
        ] {
            let trace = tracer.stop()?;
            let mut file = File::create(directory.path().join(format!("{host}.jsonl")))?;
            for Record(record) in trace.records()? {
                ensure!(record["resource"]["host.name"] == host, "{record}");
                writeln!(file, "{record}")?;
            }
            let events = Events::from_trace(&trace)?;
            let events = events.only(|it| it.text("tcptrace.cause") != Some("refused_by_peer"));
            only_finding(&events, cause, pid)?;
            let finding = events.named("finding");
            let connection = finding.one()?.text("tcptrace.flow.community_id");
            connections.push(connection.context("no Community ID")?.to_owned());
        }
        assert_eq!(connections[0], connections[1]);

        let program = Go::command()?;
        let program = Path::new(program.get_program()).file_name();
        let program = program.and_then(OsStr::to_str).context("a name")?;
        let row = json!({
            "connection": connections[0],
            "host": "db-1", "process": program, "cause": "linger_zero",
            "other_host": "web-1", "other_process": program, "other_cause": "reset_by_peer",
        });
        assert_eq!(ask(query()?, directory.path())?, json!([row]));
        Ok(())
    });
}
