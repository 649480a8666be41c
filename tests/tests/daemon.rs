//! tcptrace as a daemon: scraped by Prometheus, configured by a file that changes, watched by a service
//! manager, in a host of containers.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tcptrace_tests::http::get;
use tcptrace_tests::program::Program;
use tcptrace_tests::*;

const METRICS: &str = "127.0.0.1:9847";
const PROMETHEUS: &str = "127.0.0.1:9090";
const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0";

/// Waits until this line is among the metrics.
fn wait_for_metric(line: &str) -> Result<()> {
    let mut last = String::new();
    wait_until(line, || {
        last = get(METRICS, "/metrics", OPEN_METRICS)
            .map_or_else(|error| format!("{error:#}"), |(_, body)| body);
        Ok(last.lines().any(|it| it == line))
    })
    .with_context(|| format!("the metrics were:\n{last}"))
}

/// What Prometheus has of a metric: one number for each series.
fn query(metric: &str) -> Result<Vec<f64>> {
    let (_, body) = get(PROMETHEUS, &format!("/api/v1/query?query={metric}"), "*/*")?;
    // Between the sizes of its chunks.
    let json = body.find('{').zip(body.rfind('}'));
    let (from, to) = json.context("no JSON")?;
    let answer: Value = serde_json::from_str(&body[from..=to])?;
    let series = answer["data"]["result"].as_array().context("no result")?;
    let numbers = series
        .iter()
        .map(|it| Ok(it["value"][1].as_str().context("no value")?.parse()?));
    numbers.collect()
}

fn prometheus(directory: &Path) -> Result<Program> {
    let configuration = directory.join("prometheus.yml");
    fs::write(
        &configuration,
        format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}\n\
             scrape_configs:\n\
             - job_name: tcptrace\n  static_configs: [ {{ targets: ['{METRICS}'] }} ]\n"
        ),
    )?;
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", configuration.display()))
        .arg(format!("--storage.tsdb.path={}", directory.display()))
        .arg(format!("--web.listen-address={PROMETHEUS}"));
    let prometheus = Program::start(command)?;
    // Whoever asks before is refused, and that would be counted.
    prometheus.wait_for_text("Server is ready to receive web requests")?;
    Ok(prometheus)
}

#[test]
fn prometheus_scrapes_it_and_promtool_finds_nothing_to_mend() {
    const REFUSED: i32 = 50;
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let export = "unix:/nowhere/socket";
        let tracer = trace(netns, &["--metrics", METRICS, "--export", export])?;
        ensure!(
            get(METRICS, "/readyz", "*/*")?.0.contains("200"),
            "it traces"
        );
        ensure!(
            get(METRICS, "/healthz", "*/*")?.0.contains("200"),
            "it lives"
        );
        let refused = actor("client")?
            .call("be_refused", &[1.into(), REFUSED.into()])?
            .value;
        ensure!(
            refused == i64::from(REFUSED),
            "the provocation itself: {refused}"
        );
        wait_for_metric(&format!(
            r#"tcptrace_connect_failures_total{{error_type="ECONNREFUSED"}} {REFUSED}"#
        ))?;
        wait_for_metric(&format!(
            r#"tcptrace_export_records_sent_total{{to="{export}"}} 0"#
        ))?;
        let (mut server, mut client) = (actor("server")?, actor("client")?);
        let pair = connected(&mut server, &mut client, LOOPBACKS[0])?;
        client.close(pair.client)?;
        wait_for_metric("tcptrace_close_wait_sockets 1")?;
        server.close(pair.server)?;
        wait_for_metric("tcptrace_close_wait_sockets 0")?;
        let (_, body) = get(METRICS, "/metrics", OPEN_METRICS)?;
        // Prometheus's own connections may have been seen in it too.
        let left = body
            .lines()
            .find_map(|line| line.strip_prefix("tcptrace_close_wait_duration_seconds_count "));
        ensure!(
            left.context("no histogram")?.parse::<u32>()? >= 1,
            "{left:?}"
        );

        let (_, classic) = get(METRICS, "/metrics", "*/*")?;
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("promtool comes with Debian's prometheus: `cargo xtask setup`")?;
        let mut stdin = promtool.stdin.take().context("a pipe")?;
        stdin.write_all(classic.as_bytes())?;
        drop(stdin);
        let said = promtool.wait_with_output()?;
        ensure!(
            said.status.success() && said.stdout.is_empty() && said.stderr.is_empty(),
            "{said:?}"
        );

        let server = prometheus(directory.path())?;
        let mut scraped = Vec::new();
        wait_until("a scrape", || {
            scraped = query("tcptrace_connect_failures_total").unwrap_or_default();
            Ok(!scraped.is_empty())
        })
        .with_context(|| format!("{:?}", query("up")))?;
        ensure!(scraped == [f64::from(REFUSED)], "{scraped:?}");
        ensure!(query("up")? == [1.0], "up");
        drop(server);

        let lines = classic.lines().filter_map(|line| line.split_once('{'));
        let labels: BTreeSet<_> = lines
            .filter_map(|(_, rest)| rest.split_once('='))
            .map(|(label, _)| label)
            .collect();
        let known = [
            "direction",
            "error_type",
            "event",
            "le",
            "stage",
            "syscall",
            "version",
            "cause",
            "outcome",
            "to",
        ];
        ensure!(
            labels.iter().all(|label| known.contains(label)),
            "{labels:?}"
        );
        the_thread_that_answers_can_do_nothing_else(tracer.pid())?;
        ensure!(tracer.stop()?.status.success(), "the end");
        Ok(())
    });
}

fn the_thread_that_answers_can_do_nothing_else(pid: u32) -> Result<()> {
    let threads = threads(pid)?;
    let thread = threads.iter().find(|it| it["Name"] == "metrics");
    let thread = thread.context("no thread answers")?;
    for (field, value) in [
        ("CapEff", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("Seccomp", "2"),
    ] {
        ensure!(thread[field] == value, "{field}: {thread:?}");
    }
    Ok(())
}

/// A service manager that waits to be told.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn at(path: PathBuf) -> Result<Self> {
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(SOON))?;
        Ok(Self { socket, path })
    }

    /// Waits for a message with this text.
    fn hear(&self, text: &str) -> Result<String> {
        let mut heard = vec![];
        loop {
            let mut message = [0; 4096];
            let length = self.socket.recv(&mut message);
            let length = length.with_context(|| format!("not told {text:?} but {heard:?}"))?;
            let message = String::from_utf8_lossy(&message[..length]).into_owned();
            if message.contains(text) {
                return Ok(message);
            }
            heard.push(message);
        }
    }
}

#[test]
fn a_file_that_changes_is_taken_whole_or_not_and_no_event_is_lost_meanwhile() {
    const STORM: i32 = 3000;
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("config.toml");
        let netns = netns.path();
        let write = |ports: &str, more: &str| {
            let netns = netns.display();
            fs::write(
                &path,
                format!(
                    "output = \"json\"\nevent = [\"connect\"]\nnetns = \"{netns}\"\nport = {ports}\n{more}"
                ),
            )
        };
        let manager = Manager::at(directory.path().join("notify"))?;
        write("[1]", "")?;
        let mut command = tcptrace();
        command
            .arg("--config")
            .arg(&path)
            .env("NOTIFY_SOCKET", &manager.path)
            .env("WATCHDOG_USEC", "1000000");
        let tracer = Tracer::start(command)?;
        manager.hear("READY=1")?;
        manager.hear("WATCHDOG=1")?;

        let mut client = actor("client")?;
        let mut refuse = |port: i32, times: i32| -> Result<()> {
            client.call("be_refused", &[port.into(), times.into()])?;
            Ok(())
        };
        refuse(2, 5)?;
        let mut other = actor("other")?;
        other.begin("be_refused", &[1.into(), STORM.into()])?;
        write("[1, 2]", "close-wait-after = \"5s\"\n")?;
        tracer.signal(Signal::SIGHUP)?;
        ensure!(
            manager.hear("RELOADING=1")?.contains("MONOTONIC_USEC="),
            "systemd 253 wants it"
        );
        let told = manager.hear("READY=1")?;
        ensure!(told.contains("changed: close-wait-after, port"), "{told}");
        refuse(2, 10)?;

        for (ports, more, why) in [
            ("[1]", "ports = 3\n", "config.toml:5: there is no option"),
            (
                "[1]",
                "ring-buffer = \"1MiB\"\n",
                "ring-buffer changes only with a new start",
            ),
            ("[1]", "uid = [0]\n", "a filter that there was none of"),
        ] {
            write(ports, more)?;
            tracer.signal(Signal::SIGHUP)?;
            manager.hear("RELOADING=1")?;
            let told = manager.hear("READY=1")?;
            ensure!(
                told.contains("nothing was changed") && told.contains(why),
                "{told}"
            );
        }
        refuse(2, 20)?;
        other.finish()?;
        write("[1]", "")?;
        tracer.signal(Signal::SIGHUP)?;
        manager.hear("changed: ")?;
        refuse(2, 7)?;
        refuse(1, 1)?;
        let trace = tracer.stop()?;
        manager.hear("STOPPING=1")?;
        let events = Events::from_trace(&trace)?;
        let failed = |port: u64| {
            let to = |record: &Record| record.number("network.peer.port") == Some(port);
            events.named("connect.failed").only(to).count()
        };
        ensure!(
            failed(1) == u64::from(STORM.unsigned_abs()) + 1,
            "to port 1: {}",
            failed(1)
        );
        ensure!(failed(2) == 10 + 20, "to port 2: {}", failed(2));
        ensure!(events.named("events.lost").count() == 0, "lost");
        let said = trace
            .stderr
            .iter()
            .filter(|line| line.contains("nothing was changed"));
        ensure!(said.count() == 3, "{}", trace.stderr.join("\n"));
        Ok(())
    });
}

#[test]
fn what_the_rate_limit_leaves_out_is_counted_by_process() {
    const REFUSED: i32 = 1000;
    in_netns(|netns| {
        let tracer = trace(netns, &["--rate-limit", "10", "--event", "connect.failed"])?;
        let mut clients = [actor("one")?, actor("two")?];
        for client in &mut clients {
            client.call("be_refused", &[1.into(), REFUSED.into()])?;
        }
        let events = Events::of(tracer)?;
        for client in &clients {
            let own = events.only(|record| record.pid() == Some(client.pid().into()));
            let printed = own.named("connect.failed").count();
            let suppressed = own.named("events.suppressed");
            let counts = suppressed
                .0
                .iter()
                .filter_map(|it| it.number("tcptrace.suppressed.count"));
            let left_out: u64 = counts.sum();
            ensure!(
                printed + left_out == u64::from(REFUSED.unsigned_abs()),
                "{printed} + {left_out}"
            );
            ensure!(printed >= 10 && left_out > 0, "{printed} + {left_out}");
            for record in &suppressed.0 {
                let named = record.text("tcptrace.suppressed.event");
                ensure!(named == Some("tcptrace.connect.failed"), "{record:?}");
                ensure!(
                    record.text("error.type") == Some("ECONNREFUSED"),
                    "{record:?}"
                );
            }
        }
        Ok(())
    });
}

/// A cgroup as a container runtime makes one, for as long as this lives.
struct Cgroup(Vec<PathBuf>);

impl Cgroup {
    fn of_container(uid: &str, id: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let v2 = mounts.lines().find_map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            (words.get(2) == Some(&"cgroup2")).then(|| PathBuf::from(words[1]))
        });
        let pod = v2
            .context("no cgroup v2 tree is mounted")?
            .join(format!("kubepods-pod{}.slice", uid.replace('-', "_")));
        let container = pod.join(format!("cri-containerd-{id}.scope"));
        fs::create_dir_all(&container)?;
        Ok(Self(vec![container, pod]))
    }

    fn add(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.0[0].join("cgroup.procs"), pid.to_string())?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for directory in &self.0 {
            // Until its last process is gone.
            let _ = wait_until("an empty cgroup", || Ok(fs::remove_dir(directory).is_ok()));
        }
    }
}

#[test]
fn records_name_the_container_and_the_pod() {
    const UID: &str = "1b4c6d7e-0123-4567-89ab-cdef01234567";
    const ID: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";
    in_netns(|netns| {
        let cgroup = Cgroup::of_container(UID, ID)?;
        let (mut inside, mut outside) = (actor("inside")?, actor("outside")?);
        cgroup.add(inside.pid())?;
        let tracer = trace(netns, &["--event", "connect.failed,finding"])?;
        for client in [&mut inside, &mut outside] {
            client.call("be_refused", &[1.into(), 3.into()])?;
        }
        let events = Events::of(tracer)?;
        for (client, id, uid) in [(&inside, Some(ID), Some(UID)), (&outside, None, None)] {
            let own = events.only(|record| record.pid() == Some(client.pid().into()));
            ensure!(own.named("connect.failed").count() == 3, "{own:?}");
            for record in &own.0 {
                ensure!(record.text("container.id") == id, "{record:?}");
                ensure!(record.text("k8s.pod.uid") == uid, "{record:?}");
            }
        }
        drop((inside, outside));
        Ok(())
    });
}
