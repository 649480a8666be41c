//! Every command that the README, the pages beside it and the manual page show is run, or names the test
//! that does, and what the README shows of the output has its shape.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use tcptrace::manual::EXAMPLES;
use tcptrace_tests::*;

/// Pages that people write. The others in `docs` are written by the runs they tell of.
const PAGES: [&str; 6] = [
    "README.md",
    "docs/explain.md",
    "docs/fleet.md",
    "docs/operations.md",
    "docs/replay.md",
    "docs/report.md",
];

/// What begins a command.
const PROGRAMS: [&str; 5] = ["tcptrace", "journalctl", "systemctl", "cargo", "setcap"];

/// How an example is run.
#[derive(Clone, Copy)]
enum How {
    /// Until it says that it traces and has told of a failure; then it is interrupted and ends well.
    Traces,
    /// To its end, with this status.
    Ends(i32),
    /// In this file of tests, by this function.
    By(&'static str, &'static str),
    /// By `cargo xtask test` itself, or by hand: it builds, installs or measures.
    Builds,
    /// It is no command but what one prints.
    Printed,
}
use How::{Builds, By, Ends, Printed, Traces};

const EXPORTS: &str = "exports.rs";
const OTLP: &str = "otlp.rs";

const ROWS: &[(&str, How)] = &[
    // README.md
    ("tcptrace --pid 1234", Traces),
    ("./target/release/tcptrace --pid N", Traces),
    ("tcptrace --pid 1234 --children --follow", Traces),
    (
        "tcptrace --stack -o json | jq -r '.attributes[\"tcptrace.stack.folded\"] // empty' |",
        By("stack.rs", "of_c_with_frame_pointers"),
    ),
    (
        "tcptrace --cgroup system.slice/orders.service --wait",
        By("follow.rs", "a_cgroup_that_is_not_there_is_waited_for"),
    ),
    ("tcptrace --netns /proc/PID/ns/net", Traces),
    (
        "tcptrace sockets --quiet --fail-on close-wait:100,overflow,queue:80%,fd:90% >/dev/null",
        Ends(0),
    ),
    (
        "tcptrace web-1 06:39:37 up 23.2 s 3631 events, 178/s 1 LOST 19/21 signals",
        Printed,
    ),
    (
        "tcptrace selftest",
        By(
            "selftest.rs",
            "every_cause_is_named_once_or_its_absence_explained",
        ),
    ),
    ("tcptrace explain", Ends(0)),
    ("tcptrace doctor", Ends(0)),
    ("tcptrace schema", Ends(0)),
    (
        "tcptrace replay",
        By(
            "replay.rs",
            "a_recording_gives_the_findings_it_was_made_with",
        ),
    ),
    ("tcptrace sockets", Ends(0)),
    ("tcptrace -- CMD", Ends(0)),
    (
        "tcptrace top",
        By(
            "top.rs",
            "a_leak_and_a_full_queue_show_and_keys_are_answered",
        ),
    ),
    (
        "tcptrace top --replay FILE --speed 10",
        By(
            "top.rs",
            "a_recording_is_shown_at_its_pace_without_colour_and_without_privileges",
        ),
    ),
    ("cargo xtask demo", Builds),
    ("cargo xtask test", Builds),
    ("cargo xtask setup", Builds),
    ("cargo build --release", Builds),
    ("cargo xtask dist", Builds),
    ("cargo install", Builds),
    ("cargo xtask vmtest", Builds),
    ("cargo xtask overhead", Builds),
    // In a Debian of its own, by `cargo xtask dist`.
    ("systemctl enable --now tcptrace", Builds),
    ("systemctl reload tcptrace", Builds),
    ("systemctl edit tcptrace", Builds),
    // docs/explain.md
    ("tcptrace explain NAME", Ends(0)),
    ("cargo xtask tidy --fix", Builds),
    // docs/fleet.md
    (
        "tcptrace -o json --output-file /var/log/tcptrace.json",
        Traces,
    ),
    ("tcptrace replay web-1.json db-1.json", Ends(0)),
    // docs/operations.md
    ("tcptrace --config /etc/tcptrace.toml", Traces),
    ("tcptrace --config FILE --check-config", Ends(0)),
    (
        "tcptrace --export tls://logs.example:6514 --tls-ca ca.pem --tls-cert host.pem --tls-key host.key",
        By(EXPORTS, "a_server_that_shows_who_it_is_gets_every_record"),
    ),
    (
        "tcptrace --export otlp=grpc://collector.example",
        By(OTLP, "every_record_comes_over_grpc_and_over_http"),
    ),
    (
        "tcptrace --export otlp=http://collector.example",
        By(OTLP, "every_record_comes_over_grpc_and_over_http"),
    ),
    (
        "tcptrace --export otlp=https://otlp.example:443/base --tls-ca ca.pem",
        By(OTLP, "a_receiver_that_shows_who_it_is_gets_every_record"),
    ),
    (
        "tcptrace --metrics otlp=http://127.0.0.1:8428/opentelemetry",
        By(OTLP, "victoria_metrics_gets_the_counts_of_the_whole_run"),
    ),
    ("cargo build --release --features kafka", Builds),
    (
        "tcptrace --export kafka=one.example:9092,two.example:9092/tcptrace.events",
        By(
            "kafka.rs",
            "every_record_comes_once_with_the_key_of_its_flow",
        ),
    ),
    (
        "tcptrace --export syslog=tcp://127.0.0.1:6514",
        By(EXPORTS, "rsyslog_gets_every_record_over_tcp"),
    ),
    (
        "tcptrace --export journald",
        By(EXPORTS, "journald_gets_every_record_and_knows_whose_it_is"),
    ),
    (
        "journalctl TCPTRACE_EVENT=tcptrace.reset.sent",
        By(EXPORTS, "journald_gets_every_record_and_knows_whose_it_is"),
    ),
    (
        "journalctl TCPTRACE_CAUSE=close_wait_leak -o json",
        By(EXPORTS, "journald_gets_every_record_and_knows_whose_it_is"),
    ),
    (
        "tcptrace --export tcp://127.0.0.1:5140",
        By("pipelines.rs", "through_socat_over_tcp"),
    ),
    (
        "tcptrace --export unix:/run/tcptrace.sock",
        By("pipelines.rs", "through_socat_over_a_unix_socket"),
    ),
    // docs/replay.md and docs/report.md
    ("tcptrace --event all --output-file incident.json", Traces),
    ("tcptrace replay incident.json", Ends(0)),
    (
        "tcptrace replay --event finding -o json incident.json",
        Ends(0),
    ),
    (
        "tcptrace replay --from 2026-11-20T11:10 --to 2026-11-20T11:15 incident.json",
        Ends(0),
    ),
    (
        "tcptrace replay --follow /var/log/tcptrace/events.json",
        By("replay.rs", "a_file_that_grows_is_followed"),
    ),
    (
        "tcptrace report",
        By(
            "report.rs",
            "a_page_asks_for_nothing_and_names_are_text_in_it",
        ),
    ),
    ("tcptrace report -o incident.html incident.json", Ends(0)),
    (
        "tcptrace report --markdown --from 2026-11-20T11:10 --to 2026-11-20T11:15 web-1.json db-1.json",
        Ends(0),
    ),
    // The manual page
    (
        "tcptrace --cgroup system.slice/nginx.service --wait",
        By("follow.rs", "a_cgroup_that_is_not_there_is_waited_for"),
    ),
    (
        "tcptrace --port 443 --errno ECONNRESET,EPIPE --duration 5m",
        By("filters.rs", "by_error"),
    ),
    ("tcptrace -o json -- curl http://127.0.0.1:1/", Ends(7)),
    (
        "tcptrace --output-file incident.json --rotate-size 100MiB",
        Traces,
    ),
    ("tcptrace replay --event finding incident.json", Ends(0)),
    ("tcptrace explain broken pipe", Ends(0)),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(page: &str) -> String {
    fs::read_to_string(root().join(page)).expect(page)
}

/// A command as it stands in the table: without `sudo`, comment and second spaces. `None`: it is none.
fn command(text: &str) -> Option<String> {
    let text = text.split("  #").next().unwrap_or(text);
    let words: Vec<_> = text.split_whitespace().collect();
    let words = words.strip_prefix(&["sudo"]).unwrap_or(&words);
    let program = Path::new(words.first()?).file_name()?.to_str()?;
    (words.len() > 1 && PROGRAMS.contains(&program)).then(|| words.join(" "))
}

/// The commands of a page: in a block of their own, or in a line between backquotes.
fn commands(page: &str) -> Vec<String> {
    let lines = page.lines();
    let blocks = lines.filter_map(|line| command(line.strip_prefix("    ")?));
    let prose: Vec<_> = page.lines().filter(|it| !it.starts_with("    ")).collect();
    let prose = prose.join(" ");
    let inline = prose.split('`').skip(1).step_by(2).filter_map(command);
    blocks.chain(inline).collect()
}

#[test]
fn every_example_is_in_the_table_and_the_table_has_no_other() {
    let mut shown = BTreeSet::new();
    for page in PAGES {
        shown.extend(commands(&read(page)));
    }
    shown.extend(EXAMPLES.iter().filter_map(|(example, _)| command(example)));
    let known: BTreeSet<_> = ROWS
        .iter()
        .map(|(example, _)| (*example).to_owned())
        .collect();
    assert_eq!(known.len(), ROWS.len(), "an example stands twice");
    let missing: Vec<_> = shown.difference(&known).collect();
    assert!(missing.is_empty(), "how are these run? {missing:#?}");
    let stale: Vec<_> = known.difference(&shown).collect();
    assert!(stale.is_empty(), "no page shows {stale:#?}");
}

#[test]
fn a_test_that_runs_an_example_is_there() {
    for (example, how) in ROWS {
        let By(file, function) = how else { continue };
        let tests = read(&format!("tests/tests/{file}"));
        let heading = format!("#[test]\nfn {function}(");
        assert!(
            tests.contains(&heading),
            "{example}: {file} has no test {function}"
        );
    }
}

/// Where examples are run: a failing pair of programs, a recording, and files by the names that stand in
/// the examples.
struct Stage {
    directory: tempfile::TempDir,
    server: Actor,
    client: Actor,
    names: Vec<(&'static str, String)>,
}

impl Stage {
    fn new(netns: &Netns) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let server = actor("server")?;
        let client = actor("client")?;
        let in_directory = |name: &str| directory.path().join(name).display().to_string();
        let shipped = root().join("packaging/tcptrace.toml").display().to_string();
        let netns = netns.path().display().to_string();
        let names = vec![
            ("1234", server.pid().to_string()),
            ("--pid N", format!("--pid {}", server.pid())),
            ("/proc/PID/ns/net", netns),
            ("/var/log/tcptrace.json", in_directory("tcptrace.json")),
            ("/etc/tcptrace.toml", shipped.clone()),
            ("--config FILE", format!("--config {shipped}")),
            ("explain NAME", "explain EPIPE".to_owned()),
            ("-- CMD", "-- true".to_owned()),
            (">/dev/null", String::new()),
            ("2026-11-20T11:10", "2000-01-01T00:00".to_owned()),
            ("2026-11-20T11:15", "2100-01-01T00:00".to_owned()),
        ];
        Ok(Self {
            directory,
            server,
            client,
            names,
        })
    }

    /// An example as it is started here.
    fn command(&self, example: &str) -> Command {
        let mut text = example.to_owned();
        for (name, here) in &self.names {
            text = text.replace(name, here);
        }
        let mut command = tcptrace();
        command.args(text.split_whitespace().skip(1));
        command.current_dir(self.directory.path());
        command
    }

    fn fail(&mut self) -> Result<()> {
        let pair = connected(&mut self.server, &mut self.client, LOOPBACKS[0])?;
        close_unread(&mut self.server, &mut self.client, &pair, 4)
    }

    /// Traces until the failure is told of, in columns or in records.
    fn trace(&mut self, example: &str) -> Result<Trace> {
        let tracer = Tracer::start(self.command(example))?;
        self.fail()?;
        tracer.stop()
    }
}

fn run(command: &mut Command) -> Result<Output> {
    Ok(command.stdin(Stdio::null()).output()?)
}

#[test]
fn what_traces_tells_of_a_failure_and_ends_well() {
    in_netns(|netns| {
        let mut stage = Stage::new(netns)?;
        for (example, how) in ROWS {
            let Traces = how else { continue };
            let trace = stage
                .trace(example)
                .with_context(|| (*example).to_owned())?;
            let said = trace.stderr.join("\n");
            ensure!(trace.status.success(), "{example}: {said}");
            let owner = stage.server.pid();
            let told = |line: &String| {
                line.contains(&format!("server[{owner}]")) && line.contains("RST sent")
            };
            ensure!(
                trace.stdout.iter().any(told),
                "{example}: {:#?}",
                trace.stdout
            );
        }
        Ok(())
    });
}

#[test]
fn what_ends_by_itself_has_the_status_it_should() {
    in_netns(|netns| {
        let mut stage = Stage::new(netns)?;
        stage.trace("tcptrace --pid 1234 --output-file incident.json")?;
        for name in ["web-1.json", "db-1.json"] {
            let to = stage.directory.path().join(name);
            fs::copy(stage.directory.path().join("incident.json"), to)?;
        }
        for (example, how) in ROWS {
            let Ends(status) = how else { continue };
            let output = run(&mut stage.command(example))?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(*status), "{example}: {said}");
            let is_quiet = example.contains("-- CMD") || example.contains("--check-config");
            let nothing = output.stdout.is_empty() && !example.contains(" -o incident.html");
            ensure!(is_quiet || !nothing, "{example} printed nothing: {said}");
        }
        ensure!(stage.directory.path().join("incident.html").exists());
        Ok(())
    });
}

/// The lines of a block of the README that begins with this.
fn block(begin: &str) -> Vec<String> {
    let readme = read("README.md");
    let lines = readme.lines().skip_while(|line| !line.starts_with(begin));
    let block = lines.take_while(|line| line.is_empty() || line.starts_with("    "));
    block.map(str::to_owned).collect()
}

fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_tables_of_sockets_have_the_headings_that_the_readme_shows() {
    in_netns(|netns| {
        let mut stage = Stage::new(netns)?;
        // A connection that its server does not close.
        let pair = connected(&mut stage.server, &mut stage.client, LOOPBACKS[0])?;
        stage.client.close(pair.client)?;
        stage.server.wait_for(pair.server, libc::POLLRDHUP)?;
        let netns = netns.path().display().to_string();
        let output = run(tcptrace().args(["sockets", "--netns", &netns]))?;
        let printed = String::from_utf8(output.stdout)?;
        let printed: BTreeSet<_> = printed.lines().map(words).collect();
        let shown = block("    739 sockets");
        let is_heading = |line: &&String| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.len() > 3
                && words[..2]
                    .iter()
                    .all(|it| it.chars().all(|c| c.is_uppercase() || c == '_'))
        };
        let headings: Vec<_> = shown
            .iter()
            .filter(is_heading)
            .map(|it| words(it))
            .collect();
        ensure!(headings.len() == 4, "{headings:#?}");
        for heading in headings {
            ensure!(
                printed.contains(&heading),
                "{heading:?} is not in {printed:#?}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_finding_has_the_lines_that_the_readme_shows() {
    in_netns(|netns| {
        let mut stage = Stage::new(netns)?;
        let tracer = Tracer::start(stage.command("tcptrace --pid 1234"))?;
        let listener = listen(&mut stage.server, LOOPBACKS[0], 1)?;
        // It has read something: one that has read nothing closes on accept.
        let pair = Pair::new(&mut stage.server, &mut stage.client, listener)?;
        stage.client.send(pair.client, b"request")?;
        stage.server.recv(pair.server, 7)?;
        close_unread(&mut stage.server, &mut stage.client, &pair, 4)?;
        let trace = tracer.stop()?;
        let label = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let is_label = line.starts_with("    ") && !line.starts_with("     ");
            is_label.then(|| words[0].to_owned())
        };
        let strip = |line: &String| line.strip_prefix("    ").map(str::to_owned);
        let shown: Vec<_> = block("    18:16:44.425").iter().filter_map(strip).collect();
        let shown: Vec<_> = shown
            .iter()
            .take_while(|line| !line.is_empty())
            .cloned()
            .collect();
        let begin =
            |line: &String| line.contains("closed_with_unread_data") && line.contains("FINDING");
        let from = trace.stdout.iter().position(begin);
        let printed = &trace.stdout[from.with_context(|| trace.stdout.join("\n"))?..];
        let labels = |lines: &[String]| -> Vec<String> {
            let labels = lines
                .iter()
                .skip(1)
                .map_while(|line| line.starts_with("    ").then(|| label(line)));
            let mut labels: Vec<_> = labels.flatten().collect();
            labels.dedup();
            labels
        };
        assert_eq!(labels(printed), labels(&shown));
        let why = |lines: &[String]| {
            let text = words(&lines.join(" "));
            let (_, why) = text.split_once(" why ")?;
            Some(why.split_once(" who ")?.0.to_owned())
        };
        assert_eq!(why(printed), why(&shown));
        Ok(())
    });
}

#[test]
fn the_record_that_the_readme_shows_follows_the_schema() -> Result<()> {
    let record = block("    {\"timestamp\"");
    let record: serde_json::Value = serde_json::from_str(record.first().context("a record")?)?;
    let schema = run(tcptrace().arg("schema"))?.stdout;
    let validator = jsonschema::validator_for(&serde_json::from_slice(&schema)?)?;
    let errors: Vec<_> = validator
        .iter_errors(&record)
        .map(|it| it.to_string())
        .collect();
    ensure!(errors.is_empty(), "{errors:#?}");
    Ok(())
}
