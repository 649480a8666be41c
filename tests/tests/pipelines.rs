//! A storm through each export to a real server: what was sent and what was lost is all there was, and the
//! server wrote what was sent. `cargo xtask pipelines` makes it larger and keeps the lines it prints.

use std::env;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use tcptrace_tests::accounts::{Account, account};
use tcptrace_tests::log_servers::{Journald, LogServer, wait_for_port};
use tcptrace_tests::*;

/// What is refused once is three records: the RST sent, the RST received, the call that failed.
const EACH: usize = 3;

/// How long a server may go without writing anything of what it was sent.
const STANDSTILL: Duration = Duration::from_secs(20);

/// How many records go through.
fn records() -> Result<usize> {
    match env::var("TCPTRACE_RECORDS") {
        Ok(text) => text.parse().context("TCPTRACE_RECORDS"),
        Err(_) => Ok(60_000),
    }
}

/// What came of a storm.
struct Storm {
    account: Account,
    took: Duration,
    /// Of the tracer, on all CPUs, from the first refusal to its end.
    cpu: Duration,
}

/// CPU time of processes that this one has waited for, and the one that goes on.
fn cpu_time(process: Option<u32>) -> Result<Duration> {
    let Some(process) = process else {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let all = usage.user_time() + usage.system_time();
        return Ok(Duration::from_micros(all.num_microseconds().try_into()?));
    };
    let clock = clock_getcpuclockid(Pid::from_raw(process.try_into()?))?;
    Ok(clock.now()?.into())
}

/// Sends a storm to these exports, as fast as it comes.
fn trace_storm(netns: &Netns, exports: &[&str]) -> Result<(Trace, Duration, Duration)> {
    let records = records()?;
    let mut command = tcptrace();
    command.args(["-o", "json", "--netns"]).arg(netns.path());
    command.args(exports.iter().flat_map(|it| ["--export", it]));
    let tracer = Tracer::start_into(command, Stdio::null())?;
    let before = cpu_time(Some(tracer.pid()))?;
    let begun = Instant::now();
    let refusals = records.div_ceil(EACH);
    let refused = actor("client")?.call("be_refused", &[1.into(), refusals.into()])?;
    ensure!(
        refused.value == i64::try_from(refusals)?,
        "the provocation itself: {refused:?}"
    );
    let others = cpu_time(None)?;
    let trace = tracer.stop()?;
    let cpu = cpu_time(None)?.saturating_sub(others + before);
    Ok((trace, begun.elapsed(), cpu))
}

fn storm(netns: &Netns, export: &str) -> Result<Storm> {
    let (trace, took, cpu) = trace_storm(netns, &[export])?;
    let account = account(&trace, export)?;
    ensure!(account.produced >= records()? as u64, "{account:?}");
    Ok(Storm { account, took, cpu })
}

/// Waits until the server has written so many records, or writes no more.
fn written(server: &LogServer, sent: u64) -> Result<u64> {
    let mut written = 0;
    let mut grown = Instant::now();
    while written < sent && grown.elapsed() < STANDSTILL {
        let now = server.count()?;
        if now > written {
            (written, grown) = (now, Instant::now());
        }
        std::thread::yield_now();
    }
    Ok(written)
}

/// A row of the table of `docs/performance.md`, on a line of its own beside what the test harness prints.
fn tell(export: &str, to: &str, storm: &Storm, written: &str) {
    let Account {
        produced,
        sent,
        lost,
    } = storm.account;
    let rate = u128::from(sent) * 1_000 / storm.took.as_millis().max(1);
    let cpu = storm.cpu.as_nanos() / 100 / u128::from(produced.max(1));
    let (whole, tenth) = (cpu / 10, cpu % 10);
    println!(
        "\n| `{export}` | {to} | {produced} | {sent} | {lost} | {written} | {rate} | {whole}.{tenth} |"
    );
}

/// What a server's protocol tells of what was sent.
#[derive(Clone, Copy)]
enum Told {
    /// It arrived.
    Arrival,
    /// It left.
    Departure,
}

fn through(
    to: &str,
    start: impl Fn() -> Result<LogServer> + Sync,
    export: impl Fn(&LogServer) -> String + Sync,
    told: Told,
) {
    in_netns(|netns| {
        let server = start()?;
        let export = export(&server);
        let storm = storm(netns, &export)?;
        let account = storm.account;
        let written = written(&server, account.sent)?;
        let holds = match told {
            // A connection that broke may have brought some twice; what was on its way at the end may
            // have come after it was counted as lost.
            Told::Arrival => (account.sent..=account.produced).contains(&written),
            Told::Departure => (1..=account.sent).contains(&written),
        };
        ensure!(holds, "{written} came of {account:?}");
        let shown = export
            .split_once("unix:/")
            .map_or(export.clone(), |(way, _)| format!("{way}unix:PATH"));
        tell(&shown, to, &storm, &written.to_string());
        Ok(())
    });
}

fn at_port(way: &'static str) -> impl Fn(&LogServer) -> String + Sync {
    move |_| format!("syslog={way}://127.0.0.1:{}", LogServer::PORT)
}

#[test]
fn through_rsyslog_over_tcp() {
    through("rsyslog", LogServer::rsyslog, at_port("tcp"), Told::Arrival);
}

#[test]
fn through_rsyslog_over_udp() {
    through(
        "rsyslog",
        LogServer::rsyslog,
        at_port("udp"),
        Told::Departure,
    );
}

#[test]
fn through_rsyslog_over_a_unix_socket() {
    let socket = |server: &LogServer| format!("syslog=unix:{}", server.socket().display());
    through("rsyslog", LogServer::rsyslog, socket, Told::Arrival);
}

#[test]
fn through_syslog_ng_over_tcp() {
    through(
        "syslog-ng",
        LogServer::syslog_ng,
        at_port("tcp"),
        Told::Arrival,
    );
}

#[test]
fn through_socat_over_tcp() {
    let socat = || {
        let server = LogServer::socat("TCP-LISTEN:5140,bind=127.0.0.1,reuseaddr")?;
        wait_for_port(5140)?;
        Ok(server)
    };
    through(
        "socat",
        socat,
        |_| "tcp://127.0.0.1:5140".to_owned(),
        Told::Arrival,
    );
}

#[test]
fn through_socat_over_a_unix_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let socat = || {
        let server = LogServer::socat(&format!("UNIX-LISTEN:{},unlink-early", path.display()))?;
        wait_until("the socket", || Ok(path.exists()))?;
        Ok(server)
    };
    let export = |_: &LogServer| format!("unix:{}", path.display());
    through("socat", socat, export, Told::Arrival);
}

#[test]
fn through_rotel_over_grpc() {
    let export = |_: &LogServer| format!("otlp=grpc://{}", LogServer::OTLP_GRPC);
    through("rotel", || LogServer::rotel(false), export, Told::Arrival);
}

#[test]
fn through_rotel_over_http() {
    let export = |_: &LogServer| format!("otlp=http://{}", LogServer::OTLP_HTTP);
    through("rotel", || LogServer::rotel(false), export, Told::Arrival);
}

/// journald keeps as much as it has room for, so what it took is not counted again.
#[test]
fn through_journald() {
    in_netns(|netns| {
        let _journald = Journald::start()?;
        let storm = storm(netns, "journald")?;
        tell("journald", "journald", &storm, "-");
        Ok(())
    });
}

/// What the others are held against: standard output alone, as it is beside each of them.
#[test]
fn through_nothing_but_standard_output() {
    in_netns(|netns| {
        let (trace, took, cpu) = trace_storm(netns, &[])?;
        let unread = trace
            .stderr
            .iter()
            .find(|it| it.starts_with("tcptrace: stdout: "));
        ensure!(unread.is_none(), "{unread:?}");
        let produced = records()?.next_multiple_of(EACH) as u64;
        let account = Account {
            produced,
            sent: produced,
            lost: 0,
        };
        tell("none", "/dev/null", &Storm { account, took, cpu }, "-");
        Ok(())
    });
}

#[cfg(feature = "kafka")]
#[test]
fn through_a_broker_of_kafka() {
    use tcptrace_tests::kafka::Broker;

    in_netns(|netns| {
        let broker = Broker::start(env!("CARGO_BIN_EXE_broker"))?;
        let storm = storm(netns, Broker::EXPORT)?;
        let Account { produced, sent, .. } = storm.account;
        let written = broker.count()?;
        // As over TCP.
        ensure!((sent..=produced).contains(&written), "{written} of {sent}");
        tell(
            Broker::EXPORT,
            "librdkafka's own",
            &storm,
            &written.to_string(),
        );
        Ok(())
    });
}
