//! Two hosts, an agent on each that sees only its own: `docs/fleet.md`'s query joins what they found.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tcptrace_tests::findings::{Finding, exact_findings};
use tcptrace_tests::hosts::OtherHost;
use tcptrace_tests::program::Go;
use tcptrace_tests::*;

const PAGE: &str = include_str!("../../docs/fleet.md");
/// Gives the agent a host name of its own, and the tracer its process.
const NAMED: &str = r#"echo "$0" >/proc/sys/kernel/hostname && exec "$@""#;
/// Prints a query's rows as JSON, from the records in the working directory.
const RUN: &str = "import duckdb, json, sys
rows = duckdb.sql(sys.argv[1]).order('cause')
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

/// Stops the agent and puts its records where the query looks for them.
fn collect(host: &str, agent: Tracer, directory: &Path) -> Result<Events> {
    let trace = agent.stop()?;
    let mut file = File::create(directory.join(format!("{host}.jsonl")))?;
    for Record(record) in trace.records()? {
        ensure!(record["resource"]["host.name"] == host, "{record}");
        writeln!(file, "{record}")?;
    }
    Events::from_trace(&trace)
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
        client.fails("dial b 192.0.2.2:8001 5s", "connect: connection refused")?;
        // What only one host has is joined with nothing.
        client.fails("dial c 192.0.2.1:8002 5s", "connect: connection refused")?;

        let records = tempfile::tempdir()?;
        let web = collect("web-1", here, records.path())?;
        let db = collect("db-1", there, records.path())?;
        exact_findings(
            &web,
            &[
                ("reset_by_peer", client.pid()),
                ("refused_by_peer", client.pid()),
                ("no_listener", client.pid()),
            ],
        )?;
        let db = exact_findings(&db, &[("linger_zero", server.pid()), ("no_listener", 0)])?;
        let connection = |finding: &Finding| {
            let connection = finding.last.text("tcptrace.flow.community_id");
            connection.map(str::to_owned).context("no Community ID")
        };
        let rows = json!([
            {
                "connection": connection(&db[0])?,
                "host": "db-1", "process": "talker", "cause": "linger_zero",
                "other_host": "web-1", "other_process": "talker", "other_cause": "reset_by_peer",
            },
            {
                "connection": connection(&db[1])?,
                "host": "db-1", "process": null, "cause": "no_listener",
                "other_host": "web-1", "other_process": "talker", "other_cause": "refused_by_peer",
            },
        ]);
        assert_eq!(ask(query()?, records.path())?, rows);
        Ok(())
    });
}
