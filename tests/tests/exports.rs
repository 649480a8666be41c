//! `--export`: real servers get every record once; whatever fails, what was sent and what was lost is all
//! there was, and no other output notices.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;
use tcptrace_tests::accounts::{Account, account};
use tcptrace_tests::certificates::Certificates;
use tcptrace_tests::log_servers::{Journald, LogServer, ensure_same, wait_for_port};
use tcptrace_tests::own_connections::trace_those_that_are_ended;
use tcptrace_tests::*;

/// How long the exports may take at the end, and the tracer for everything else.
const END: Duration = Duration::from_secs(5 + 10);

/// Is refused this many times: three events each at least, and a finding.
fn provoke(times: usize) -> Result<()> {
    let mut client = actor("client")?;
    client.call("be_refused", &[1.into(), times.into()])?;
    Ok(())
}

/// The ids of the events on the stream that the export was to have as well.
fn ids(events: &Events) -> Result<Vec<String>> {
    let records = events.0.iter().filter(|it| it.name() != "export.dropped");
    records
        .map(|record| {
            let id = record.text("tcptrace.event.id");
            Ok(id.context("a record without an id")?.to_owned())
        })
        .collect()
}

/// Everything came, once, and nothing is said to be lost.
fn ensure_all(trace: &Trace, export: &str, came: &[String]) -> Result<()> {
    let events = Events::from_trace(trace)?;
    let wanted = ids(&events)?;
    ensure_same(&wanted, came)?;
    let all = wanted.len() as u64;
    let expected = Account {
        produced: all,
        sent: all,
        lost: 0,
    };
    let said = account(trace, export)?;
    ensure!(said == expected, "{said:?}, not {expected:?}");
    ensure!(events.named("export.dropped").count() == 0);
    Ok(())
}

fn reaches(start: fn() -> Result<LogServer>, export: impl Fn(&LogServer) -> String + Sync) {
    in_netns(|netns| {
        let server = start()?;
        let export = export(&server);
        let tracer = trace(netns, &["--export", &export])?;
        provoke(25)?;
        let trace = tracer.stop()?;
        let resets = Events::from_trace(&trace)?.named("reset.sent").count();
        ensure!(resets == 25, "the provocation itself: {resets}");
        let came = server.ids(trace.stdout.len())?;
        ensure_all(&trace, &export, &came)
    });
}

fn at_port(way: &str) -> String {
    format!("syslog={way}://127.0.0.1:{}", LogServer::PORT)
}

#[test]
fn rsyslog_gets_every_record_over_tcp() {
    reaches(LogServer::rsyslog, |_| at_port("tcp"));
}

#[test]
fn rsyslog_gets_every_record_over_udp() {
    reaches(LogServer::rsyslog, |_| at_port("udp"));
}

#[test]
fn rsyslog_gets_every_record_over_a_unix_socket() {
    reaches(LogServer::rsyslog, |server| {
        format!("syslog=unix:{}", server.socket().display())
    });
}

#[test]
fn syslog_ng_gets_every_record_over_tcp() {
    reaches(LogServer::syslog_ng, |_| at_port("tcp"));
}

#[test]
fn rsyslog_reads_time_severity_name_and_attributes() {
    in_netns(|netns| {
        let server = LogServer::rsyslog()?;
        let tracer = trace(netns, &["--export", &at_port("tcp")])?;
        provoke(1)?;
        let trace = tracer.stop()?;
        let events = Events::from_trace(&trace)?;
        let record = events.named("connect.failed");
        let record = record.one()?;
        let id = record.text("tcptrace.event.id").context("an id")?;
        server.ids(trace.stdout.len())?;
        let lines = server.lines()?;
        let own = format!("\"tcptrace.event.id\": \"{id}\"");
        let line = lines.iter().find(|line| line.contains(&own));
        let line = line.context("the record did not come")?;
        let (header, rest) = line.split_once(" {").context("no attributes")?;
        let (attributes, text) = rest.rsplit_once("} ").context("no text")?;
        let words: Vec<_> = header.split(' ').collect();
        let [time, severity, name] = words[..] else {
            anyhow::bail!("{header}");
        };
        let nanoseconds = record.0["timestamp"].as_str().context("a time")?;
        ensure!(time[..19] == nanoseconds[..19], "{time} for {nanoseconds}");
        ensure!((severity, name) == ("warning", "tcptrace.connect.failed"));
        let body = record.0["body"].as_str().context("a body")?;
        ensure!(text.trim() == body, "{text} for {body}");
        let attributes: BTreeMap<String, Value> =
            serde_json::from_str(&format!("{{{attributes}}}"))?;
        for (name, value) in told(record) {
            // A list without items has no parameter.
            if value.as_array().is_some_and(Vec::is_empty) {
                continue;
            }
            let text = value.as_str().map_or(value.to_string(), str::to_owned);
            let came = attributes.get(name).and_then(Value::as_str);
            ensure!(came == Some(&text), "{name}: {came:?} for {value}");
        }
        Ok(())
    });
}

#[test]
fn journald_gets_every_record_and_knows_whose_it_is() {
    in_netns(|netns| {
        let journald = Journald::start()?;
        let tracer = trace(netns, &["--export", "journald"])?;
        let mut client = actor("client")?;
        client.call("be_refused", &[1.into(), 25.into()])?;
        let trace = tracer.stop()?;
        let entries = journald.entries(trace.stdout.len())?;
        let field = |entry: &Value, name: &str| entry[name].as_str().map(str::to_owned);
        let came = entries
            .iter()
            .filter_map(|it| field(it, "TCPTRACE_EVENT_ID"));
        ensure_all(&trace, "journald", &came.collect::<Vec<_>>())?;
        let failed = |entry: &&Value| {
            field(entry, "TCPTRACE_EVENT").as_deref() == Some("tcptrace.connect.failed")
        };
        let failed: Vec<_> = entries.iter().filter(failed).collect();
        ensure!(failed.len() == 25, "{}", failed.len());
        for entry in failed {
            for (name, expected) in [
                ("PRIORITY", "4"),
                ("SYSLOG_IDENTIFIER", "tcptrace"),
                ("ERRNO", "111"),
                ("OBJECT_PID", &client.pid().to_string()),
                // journald's own look at that process.
                ("OBJECT_COMM", "client"),
                ("TCPTRACE_ERROR_TYPE", "ECONNREFUSED"),
                ("TCPTRACE_NETWORK_PEER_PORT", "1"),
            ] {
                let came = field(entry, name);
                ensure!(
                    came.as_deref() == Some(expected),
                    "{name}: {came:?} in {entry:#}"
                );
            }
        }
        Ok(())
    });
}

#[test]
fn a_server_that_is_killed_and_comes_back_gets_every_record_once() {
    const LISTEN: &str = "TCP-LISTEN:5140,bind=127.0.0.1,reuseaddr";
    const EXPORT: &str = "tcp://127.0.0.1:5140";
    in_netns(|netns| {
        let mut server = LogServer::socat(LISTEN)?;
        wait_for_port(5140)?;
        let tracer = trace(netns, &["--export", EXPORT])?;
        provoke(50)?;
        // What it has read it has written.
        let refused = |record: &Record| record.name() == "connect.failed";
        tracer.wait_for("a refusal", END, refused)?;
        server.ids(150)?;
        server.kill()?;
        provoke(50)?;
        let server = server.restart_socat(LISTEN)?;
        provoke(50)?;
        let trace = tracer.stop()?;
        let came = server.ids(trace.stdout.len())?;
        ensure_all(&trace, EXPORT, &came)
    });
}

#[test]
fn what_a_unix_socket_had_not_read_when_it_was_killed_comes_again() {
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("socket");
        let listen = format!("UNIX-LISTEN:{},unlink-early", path.display());
        let export = format!("unix:{}", path.display());
        let mut server = LogServer::socat(&listen)?;
        wait_until("the socket", || Ok(path.exists()))?;
        let tracer = trace(netns, &["--export", &export])?;
        provoke(20)?;
        server.ids(60)?;
        // From now on it reads nothing.
        server.stop_reading()?;
        provoke(20)?;
        let received = |record: &Record| record.name() == "connect.failed";
        tracer.wait_for("a refusal", END, received)?;
        server.kill()?;
        let server = server.restart_socat(&listen)?;
        provoke(20)?;
        let trace = tracer.stop()?;
        let mut came = server.ids(trace.stdout.len())?;
        // What it had read and not been seen to read comes twice.
        came.sort_unstable();
        came.dedup();
        ensure_all(&trace, &export, &came)
    });
}

#[test]
fn a_server_that_never_reads_holds_up_nobody_and_what_it_misses_is_told() {
    // Together more than all buffers and the queue hold, each time less than the queue.
    const ROUNDS: usize = 12;
    const EACH: usize = 1_000;
    in_netns(|netns| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        setsockopt(&listener, sockopt::RcvBuf, &4096)?;
        let export = format!("tcp://{}", listener.local_addr()?);
        let beside = LogServer::socat("TCP-LISTEN:5140,bind=127.0.0.1,reuseaddr")?;
        wait_for_port(5140)?;
        let tracer = trace(
            netns,
            &["--export", &export, "--export", "tcp://127.0.0.1:5140"],
        )?;
        for round in 1..=ROUNDS {
            provoke(EACH)?;
            // Nobody else holds up the storm, so the one that reads is waited for here.
            let came = (3 * round * EACH) as u64;
            wait_until("the server beside", || {
                Ok(beside.count().map_err(std::io::Error::other)? >= came)
            })?;
        }
        let told = |record: &Record| record.name() == "export.dropped";
        tracer.wait_for("word of the loss", END, told)?;
        let asked = Instant::now();
        let trace = tracer.stop()?;
        ensure!(asked.elapsed() < END, "it took {:?}", asked.elapsed());
        let events = Events::from_trace(&trace)?;
        let resets = events.named("reset.sent").count();
        ensure!(
            resets == (ROUNDS * EACH) as u64,
            "the stream itself: {resets}"
        );

        let (silent, other) = (
            account(&trace, &export)?,
            account(&trace, "tcp://127.0.0.1:5140")?,
        );
        ensure!(silent.lost > 0 && other.lost == 0, "{silent:?} {other:?}");
        ensure!(other.sent == beside.ids(usize::try_from(other.sent)?)?.len() as u64);
        let dropped = events.named("export.dropped");
        let counts = dropped
            .0
            .iter()
            .filter_map(|it| it.number("tcptrace.lost.count"));
        ensure!(counts.sum::<u64>() == silent.lost, "{dropped:?}");
        let all = |name: &str, value: &str| dropped.0.iter().all(|it| it.text(name) == Some(value));
        ensure!(all("tcptrace.export.to", &export), "{dropped:?}");

        // What it was sent is there for it to read after all, and then perhaps more.
        let (connection, _) = listener.accept()?;
        let lines = BufReader::new(connection).lines().map_while(Result::ok);
        let whole = lines.filter(|line| serde_json::from_str::<Value>(line).is_ok());
        let came = whole.count() as u64;
        ensure!(
            (silent.sent..=silent.produced).contains(&came),
            "{came} came of {silent:?}"
        );
        Ok(())
    });
}

#[test]
fn standard_output_that_nobody_reads_holds_up_neither_an_export_nor_the_end() {
    const EXPORT: &str = "tcp://127.0.0.1:5140";
    // More than a pipe holds.
    const REFUSED: usize = 200;
    in_netns(|netns| {
        let server = LogServer::socat("TCP-LISTEN:5140,bind=127.0.0.1,reuseaddr")?;
        wait_for_port(5140)?;
        let (_unread, stdout) = std::io::pipe()?;
        let mut command = tcptrace();
        command.args(["-o", "json", "--export", EXPORT, "--netns"]);
        command.arg(netns.path());
        let tracer = Tracer::start_into(command, stdout)?;
        provoke(REFUSED)?;
        server.ids(3 * REFUSED)?;
        let asked = Instant::now();
        let trace = tracer.stop()?;
        ensure!(asked.elapsed() < END, "it took {:?}", asked.elapsed());
        let said = trace.stderr.join("\n");
        ensure!(trace.status.success(), "{said}");
        let exported = account(&trace, EXPORT)?;
        ensure!(exported.lost == 0, "{exported:?}");
        ensure!(exported.sent == server.count()?, "{exported:?}");
        let unread = "tcptrace: stdout: ";
        let unread = trace.stderr.iter().find_map(|it| it.strip_prefix(unread));
        let unread = unread.with_context(|| format!("nothing of standard output: {said}"))?;
        ensure!(
            unread.starts_with(&format!("{} records", exported.produced)),
            "{unread}"
        );
        ensure!(unread.ends_with(" undelivered"), "{unread}");
        Ok(())
    });
}

#[test]
fn what_is_meant_for_wrong_ports_and_names_is_counted() {
    const DEAD: [(&str, &str); 4] = [
        ("tcp://127.0.0.1:9", "Connection refused"),
        ("syslog=udp://127.0.0.1:9", "Connection refused"),
        ("tcp://no-such-host.invalid:514", "lookup"),
        ("unix:/nowhere/socket", "No such file or directory"),
    ];
    const LIVE: &str = "tcp://127.0.0.1:5140";
    in_netns(|netns| {
        let server = LogServer::socat("TCP-LISTEN:5140,bind=127.0.0.1,reuseaddr")?;
        wait_for_port(5140)?;
        let exports = DEAD.iter().map(|(export, _)| *export).chain([LIVE]);
        // The tries to reach the dead ones are refused connections, too.
        let arguments: Vec<_> = exports.flat_map(|it| ["--export", it]).collect();
        let tracer = trace(netns, &[&["--port", "1"], &arguments[..]].concat())?;
        provoke(25)?;
        let asked = Instant::now();
        let trace = tracer.stop()?;
        ensure!(asked.elapsed() < END, "it took {:?}", asked.elapsed());
        let events = Events::from_trace(&trace)?;
        let wanted = ids(&events)?;
        ensure_same(&wanted, &server.ids(wanted.len())?)?;
        for (export, why) in DEAD {
            let expected = Account {
                produced: wanted.len() as u64,
                sent: 0,
                lost: wanted.len() as u64,
            };
            let said = account(&trace, export)?;
            ensure!(said == expected, "{export}: {said:?}, not {expected:?}");
            let dropped = events
                .named("export.dropped")
                .only(|it| it.text("tcptrace.export.to") == Some(export));
            let dropped = dropped.one()?;
            ensure!(dropped.number("tcptrace.lost.count") == Some(said.lost));
            ensure!(dropped.text("tcptrace.lost.reason") == Some("undelivered"));
            let error = dropped.text("tcptrace.export.error").unwrap_or_default();
            ensure!(error.contains(why), "{export}: {error}");
        }
        Ok(())
    });
}

/// socat, to which a client must show a certificate of this authority.
fn tls_server(
    certificates: &Certificates,
    socat: fn(&str) -> Result<LogServer>,
) -> Result<LogServer> {
    let option = |name: &str, file: &str| format!(",{name}={}", certificates.file(file).display());
    let server = socat(&format!(
        "OPENSSL-LISTEN:6514,bind=127.0.0.1,reuseaddr,fork,verify=1{}{}{}",
        option("cert", "server.pem"),
        option("key", "server.key"),
        option("cafile", "ca.pem"),
    ))?;
    wait_for_port(6514)?;
    Ok(server)
}

/// The arguments of an export that shows a client's certificate.
fn tls_client(certificates: &Certificates) -> Vec<String> {
    let option = |name: &str, file: &str| format!("{name}={}", certificates.file(file).display());
    vec![
        option("--tls-ca", "ca.pem"),
        option("--tls-cert", "client.pem"),
        option("--tls-key", "client.key"),
    ]
}

/// What is told of the end of one connection is the next thing to be sent, and goes over the next.
#[test]
fn a_connection_that_the_server_has_ended_is_ended_and_not_used_again() {
    const LISTEN: &str = "TCP-LISTEN:5140,bind=127.0.0.1,reuseaddr,fork";
    in_netns(|netns| {
        let export = "tcp://127.0.0.1:5140";
        let server = LogServer::socat_that_leaves(LISTEN)?;
        wait_for_port(5140)?;
        let trace = trace_those_that_are_ended(netns, &["--export", export], 5140)?;
        ensure_all(&trace, export, &server.ids(trace.stdout.len())?)
    });
    in_netns(|netns| {
        let export = "tls://127.0.0.1:6514";
        let certificates = Certificates::make()?;
        let server = tls_server(&certificates, LogServer::socat_that_leaves)?;
        let client = tls_client(&certificates);
        let mut arguments = vec!["--export", export];
        arguments.extend(client.iter().map(String::as_str));
        let trace = trace_those_that_are_ended(netns, &arguments, 6514)?;
        ensure_all(&trace, export, &server.ids(trace.stdout.len())?)
    });
}

#[test]
fn a_server_that_shows_who_it_is_gets_every_record() {
    const EXPORT: &str = "tls://127.0.0.1:6514";
    in_netns(|netns| {
        let certificates = Certificates::make()?;
        let server = tls_server(&certificates, LogServer::socat)?;
        let client = tls_client(&certificates);
        let mut arguments = vec!["--export", EXPORT];
        arguments.extend(client.iter().map(String::as_str));
        let tracer = trace(netns, &arguments)?;
        provoke(25)?;
        let trace = tracer.stop()?;
        let came = server.ids(trace.stdout.len())?;
        ensure_all(&trace, EXPORT, &came)
    });
}

#[test]
fn a_server_with_another_certificate_and_one_that_wants_another_get_nothing() {
    in_netns(|netns| {
        let (certificates, others) = (Certificates::make()?, Certificates::make()?);
        let server = tls_server(&certificates, LogServer::socat)?;
        let own = tls_client(&certificates);
        let mistrusts = [&tls_client(&others)[..1], &own[1..]].concat();
        let strange = [&own[..1], &tls_client(&others)[1..]].concat();
        let address = "tls://127.0.0.1:6514";
        for (export, client, why) in [
            (address, &mistrusts[..], "UnknownIssuer"),
            ("tls://localhost:6514", &own[..], "not valid for name"),
            (address, &own[..1], "CertificateRequired"),
            (address, &strange[..], "UnknownCA"),
        ] {
            let mut arguments = vec!["--port", "1", "--export", export];
            arguments.extend(client.iter().map(String::as_str));
            let tracer = trace(netns, &arguments)?;
            provoke(5)?;
            let trace = tracer.stop()?;
            let account = account(&trace, export)?;
            ensure!(account.sent == 0 && account.lost > 0, "{why}: {account:?}");
            let events = Events::from_trace(&trace)?;
            let dropped = events.named("export.dropped");
            let error = dropped.one()?.text("tcptrace.export.error");
            ensure!(error.is_some_and(|it| it.contains(why)), "{why}: {error:?}");
        }
        ensure!(server.count()? == 0, "{:?}", server.lines()?);
        Ok(())
    });
}

#[test]
fn what_is_lost_for_an_export_is_lost_under_strict() {
    in_netns(|netns| {
        let tracer = trace(netns, &["--strict", "--export", "unix:/nowhere/socket"])?;
        let trace = tracer.stop()?;
        assert_eq!(trace.status.code(), Some(5), "{}", trace.stderr.join("\n"));
        Ok(())
    });
}

#[test]
fn a_wrong_destination_is_a_usage_error_with_the_remedy() -> Result<()> {
    for (export, remedy) in [
        ("fax=office", "journald, syslog=tcp://HOST:PORT"),
        ("tcp://logs", "HOST:PORT"),
        ("tls://127.0.0.1:6514", "--tls-ca FILE"),
        ("unix:socket", "begin with a slash"),
    ] {
        let output = tcptrace().args(["--export", export]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{said}");
        ensure!(said.contains(export) && said.contains(remedy), "{said}");
    }
    Ok(())
}
