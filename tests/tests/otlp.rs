//! OTLP: real receivers get every record and every count, over gRPC and HTTP; whatever fails, what was sent
//! and what was lost is all there was.

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tcptrace_tests::accounts::{Account, account};
use tcptrace_tests::certificates::Certificates;
use tcptrace_tests::log_servers::{LogServer, ensure_same, wait_for_port};
use tcptrace_tests::own_connections::trace_those_that_are_ended;
use tcptrace_tests::program::Program;
use tcptrace_tests::servers::Nginx;
use tcptrace_tests::*;

/// How long the exports may take at the end, and the tracer for everything else.
const END: Duration = Duration::from_secs(5 + 10);

const GRPC: &str = "otlp=grpc://127.0.0.1:4317";
const HTTP: &str = "otlp=http://127.0.0.1:4318";

/// nginx before rotel, which has no TLS of its own.
const GRPC_TLS: &str = "otlp=grpcs://127.0.0.1:6514";
const HTTP_TLS: &str = "otlp=https://127.0.0.1:6514";

/// Where Debian's package of it was unpacked.
const VICTORIA_METRICS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../target/programs/victoria-metrics/usr/bin/victoria-metrics"
);

/// Is refused this many times: three events each at least, and a finding.
fn provoke(times: usize) -> Result<()> {
    let mut client = actor("client")?;
    client.call("be_refused", &[1.into(), times.into()])?;
    Ok(())
}

/// The ids of the events on the stream that an export was to have as well.
fn ids(events: &Events) -> Result<Vec<String>> {
    let records = events.0.iter().filter(|it| it.name() != "export.dropped");
    let id = |it: &Record| it.text("tcptrace.event.id").map(str::to_owned);
    records.map(|it| id(it).context("an id")).collect()
}

/// Everything came, once, and nothing is said to be lost.
fn ensure_all(trace: &Trace, export: &str, server: &LogServer) -> Result<()> {
    let events = Events::from_trace(trace)?;
    let wanted = ids(&events)?;
    ensure_same(&wanted, &server.ids(wanted.len())?)?;
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

#[test]
fn every_record_comes_over_grpc_and_over_http() {
    for export in [GRPC, HTTP] {
        in_netns(|netns| {
            let server = LogServer::rotel(false)?;
            let tracer = trace(netns, &["--export", export])?;
            provoke(200)?;
            let trace = tracer.stop()?;
            let resets = Events::from_trace(&trace)?.named("reset.sent").count();
            ensure!(resets == 200, "the provocation itself: {resets}");
            ensure_all(&trace, export, &server)
        });
    }
}

/// As rotel prints a value.
fn printed(value: &Value) -> String {
    match value {
        Value::String(text) => format!("Str({text})"),
        Value::Number(number) => format!("Int({number})"),
        Value::Bool(truth) => format!("Bool({truth})"),
        Value::Array(values) => {
            let values: Vec<_> = values.iter().map(printed).collect();
            format!("Slice({})", values.join(", "))
        }
        other => format!("{other}"),
    }
}

#[test]
fn a_record_keeps_its_name_its_time_and_the_types_of_its_attributes() {
    for export in [GRPC, HTTP] {
        in_netns(|netns| {
            let server = LogServer::rotel(true)?;
            let tracer = trace(netns, &["--export", export])?;
            provoke(1)?;
            let trace = tracer.stop()?;
            let events = Events::from_trace(&trace)?;
            let record = events.named("connect.failed");
            let record = record.one()?;
            let id = record.get("tcptrace.event.id").context("an id")?;
            let id = format!("     -> tcptrace.event.id: {}", printed(id));
            let mut lines = vec![];
            wait_until("the record", || {
                lines = server.lines().map_err(std::io::Error::other)?;
                Ok(lines.contains(&id))
            })?;
            let of_group = lines.split(|it| it.starts_with("ResourceLog #"));
            let mut group = of_group.filter(|it| it.contains(&id));
            let group = group.next().context("a resource")?;
            let mut logs = group.split(|it| it.starts_with("LogRecord #"));
            let about = logs.next().context("a resource")?;
            let log = logs.find(|it| it.contains(&id)).context("a record")?;

            let time = record.0["timestamp"].as_str().context("a time")?;
            let (_, nanoseconds) = time.split_once('.').context("nanoseconds")?;
            let nanoseconds = nanoseconds.trim_end_matches('Z');
            let is_time = |it: &&String| {
                it.strip_prefix("Timestamp: ")
                    .is_some_and(|it| it.ends_with(nanoseconds))
            };
            ensure!(
                log.iter().any(|it| is_time(&it)),
                "{time} is not in {log:#?}"
            );
            let body = record.0["body"].as_str().context("a body")?;
            for line in [
                "SeverityText: WARN".to_owned(),
                "SeverityNumber: SEVERITY_NUMBER_WARN(13)".to_owned(),
                "EventName: tcptrace.connect.failed".to_owned(),
                format!("Body: Str({body})"),
            ] {
                ensure!(log.contains(&line), "{line} is not in {log:#?}");
            }
            let resource = record.0["resource"].as_object().context("a resource")?;
            let resource = resource.iter().map(|(name, value)| (name.as_str(), value));
            for (part, attributes) in [(log, told(record)), (about, resource.collect())] {
                for (name, value) in &attributes {
                    let line = format!("     -> {name}: {}", printed(value));
                    ensure!(part.contains(&line), "{line} is not in {part:#?}");
                }
                let count = part.iter().filter(|it| it.starts_with("     -> ")).count();
                ensure!(count == attributes.len(), "{count} of {}", attributes.len());
            }
            Ok(())
        });
    }
}

#[test]
fn a_receiver_that_is_killed_and_comes_back_gets_every_record_once() {
    for export in [GRPC, HTTP] {
        in_netns(|netns| {
            let mut server = LogServer::rotel(false)?;
            let tracer = trace(netns, &["--export", export])?;
            provoke(50)?;
            // The last of the provocation; what it has printed it has not only taken.
            let finding = tracer.wait_for("a finding", END, |it| it.name() == "finding")?;
            let id = finding.text("tcptrace.event.id").context("an id")?;
            wait_until("rotel to print it", || {
                let lines = server.lines().map_err(std::io::Error::other)?;
                Ok(lines.len() >= 150 && lines.iter().any(|it| it.contains(id)))
            })?;
            server.kill()?;
            provoke(50)?;
            let server = server.restart_rotel()?;
            provoke(50)?;
            let trace = tracer.stop()?;
            ensure_all(&trace, export, &server)
        });
    }
}

/// Lets it trace for some events that do not arrive, for this reason, and each is counted.
fn ensure_lost(netns: &Netns, arguments: &[&str], reason: &str, why: &str) -> Result<()> {
    let tracer = trace(netns, &[&["--port", "1"], arguments].concat())?;
    provoke(10)?;
    let asked = Instant::now();
    let trace = tracer.stop()?;
    ensure!(asked.elapsed() < END, "it took {:?}", asked.elapsed());
    let events = Events::from_trace(&trace)?;
    let all = ids(&events)?.len() as u64;
    let expected = Account {
        produced: all,
        sent: 0,
        lost: all,
    };
    let said = account(&trace, arguments[1])?;
    ensure!(said == expected, "{said:?}, not {expected:?}");
    let dropped = events.named("export.dropped");
    let counts = dropped.0.iter();
    let counts = counts.filter_map(|it| it.number("tcptrace.lost.count"));
    ensure!(counts.sum::<u64>() == all, "{dropped:?}");
    for record in &dropped.0 {
        ensure!(
            record.text("tcptrace.lost.reason") == Some(reason),
            "{record:?}"
        );
        let error = record.text("tcptrace.export.error");
        ensure!(error.is_some_and(|it| it.contains(why)), "{why}: {error:?}");
    }
    Ok(())
}

#[test]
fn what_does_not_arrive_is_counted_with_the_reason() {
    in_netns(|netns| {
        let _server = LogServer::rotel(false)?;
        let silent = TcpListener::bind("127.0.0.1:4000")?;
        for (export, reason, why) in [
            (
                "otlp=grpc://127.0.0.1:9",
                "undelivered",
                "Connection refused",
            ),
            (
                "otlp=http://127.0.0.1:9",
                "undelivered",
                "Connection refused",
            ),
            (
                "otlp=http://no-such-host.invalid:4318",
                "undelivered",
                "lookup",
            ),
            (
                "otlp=http://127.0.0.1:4318/elsewhere",
                "refused",
                "404 Not Found",
            ),
            // Each protocol at the port of the other.
            ("otlp=grpc://127.0.0.1:4318", "refused", "404 Not Found"),
        ] {
            ensure_lost(netns, &["--export", export], reason, why)?;
        }
        // Who takes a connection and never answers is not waited for at the end.
        for export in ["otlp=grpc://127.0.0.1:4000", "otlp=http://127.0.0.1:4000"] {
            let tracer = trace(netns, &["--port", "1", "--export", export])?;
            provoke(10)?;
            let asked = Instant::now();
            let trace = tracer.stop()?;
            ensure!(asked.elapsed() < END, "it took {:?}", asked.elapsed());
            let account = account(&trace, export)?;
            ensure!(account.sent == 0 && account.lost >= 30, "{account:?}");
        }
        drop(silent);
        Ok(())
    });
}

/// nginx that takes TLS for rotel, from clients with a certificate of this authority.
fn tls_before(certificates: &Certificates, settings: &str) -> Result<Nginx> {
    let file = |name: &str| certificates.file(name).display().to_string();
    let server = format!(
        "{settings} listen 127.0.0.1:6514 ssl http2; ssl_certificate {}; ssl_certificate_key {};\n\
         ssl_client_certificate {}; ssl_verify_client on;\n\
         location /v1/ {{ proxy_pass http://{}; }}\n\
         location /opentelemetry {{ grpc_pass grpc://{}; }}",
        file("server.pem"),
        file("server.key"),
        file("ca.pem"),
        LogServer::OTLP_HTTP,
        LogServer::OTLP_GRPC,
    );
    let nginx = Nginx::start("", &server)?;
    wait_for_port(6514)?;
    Ok(nginx)
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

#[test]
fn a_receiver_that_shows_who_it_is_gets_every_record() {
    for export in [GRPC_TLS, HTTP_TLS] {
        in_netns(|netns| {
            let certificates = Certificates::make()?;
            let server = LogServer::rotel(false)?;
            let _nginx = tls_before(&certificates, "")?;
            let client = tls_client(&certificates);
            let mut arguments = vec!["--export", export];
            arguments.extend(client.iter().map(String::as_str));
            let tracer = trace(netns, &arguments)?;
            provoke(25)?;
            let trace = tracer.stop()?;
            ensure_all(&trace, export, &server)
        });
    }
}

#[test]
fn a_receiver_with_another_certificate_and_one_that_wants_another_get_nothing() {
    in_netns(|netns| {
        let (certificates, others) = (Certificates::make()?, Certificates::make()?);
        let server = LogServer::rotel(false)?;
        let _nginx = tls_before(&certificates, "")?;
        let own = tls_client(&certificates);
        let mistrusts = [&tls_client(&others)[..1], &own[1..]].concat();
        for (client, reason, why) in [
            (&mistrusts[..], "undelivered", "UnknownIssuer"),
            (&own[..1], "refused", "400 Bad Request"),
        ] {
            for export in [GRPC_TLS, HTTP_TLS] {
                let mut arguments = vec!["--export", export];
                arguments.extend(client.iter().map(String::as_str));
                ensure_lost(netns, &arguments, reason, why)?;
            }
        }
        ensure!(server.count()? == 0, "{:?}", server.lines()?);
        Ok(())
    });
}

/// nginx answers 503 for as long as there is a file, and then lets in.
#[test]
fn a_receiver_that_asks_for_time_gets_every_record_later() {
    const EXPORT: &str = "otlp=http://127.0.0.1:8080";
    in_netns(|netns| {
        let server = LogServer::rotel(false)?;
        let directory = tempfile::tempdir()?;
        let file = |name: &str| directory.path().join(name);
        let (busy, log) = (file("busy"), file("log"));
        fs::write(&busy, "")?;
        let full = format!(
            "location /v1/ {{ access_log {}; add_header Retry-After 1 always;\n\
             if (-f {}) {{ return 503; }} proxy_pass http://{}; }}",
            log.display(),
            busy.display(),
            LogServer::OTLP_HTTP
        );
        let _nginx = Nginx::start("", &full)?;
        let tracer = trace(netns, &["--port", "1", "--export", EXPORT])?;
        provoke(10)?;
        wait_until("an answer of nginx", || {
            Ok(fs::read_to_string(&log)?.contains("\" 503 "))
        })?;
        fs::remove_file(&busy)?;
        provoke(10)?;
        server.ids(60)?;
        let trace = tracer.stop()?;
        ensure_all(&trace, EXPORT, &server)?;
        let said = trace.stderr.join("\n");
        let failing =
            format!("--export {EXPORT}: cannot send: HTTP status 503 Service Unavailable;");
        ensure!(said.contains(&failing), "{said}");
        Ok(())
    });
}

/// nginx ends a connection after a second without a request. What is told of that is the next thing to be
/// sent, and goes over the next connection.
#[test]
fn a_connection_that_the_receiver_has_ended_is_ended_and_not_used_again() {
    for (protocol, listen, location) in [
        (
            "http",
            "",
            format!("/v1/ {{ proxy_pass http://{}; }}", LogServer::OTLP_HTTP),
        ),
        (
            "grpc",
            "http2",
            format!(
                "/opentelemetry {{ grpc_pass grpc://{}; }}",
                LogServer::OTLP_GRPC
            ),
        ),
    ] {
        in_netns(|netns| {
            let server = LogServer::rotel(false)?;
            let _nginx = Nginx::start(
                listen,
                &format!("keepalive_timeout 1s; location {location}"),
            )?;
            let export = format!("otlp={protocol}://127.0.0.1:8080");
            let trace = trace_those_that_are_ended(netns, &["--export", &export], 8080)?;
            ensure_all(&trace, &export, &server)
        });
    }
}

#[test]
fn so_is_one_over_tls() {
    for export in [GRPC_TLS, HTTP_TLS] {
        in_netns(|netns| {
            let certificates = Certificates::make()?;
            let server = LogServer::rotel(false)?;
            let _nginx = tls_before(&certificates, "keepalive_timeout 1s;")?;
            let client = tls_client(&certificates);
            let mut arguments = vec!["--export", export];
            arguments.extend(client.iter().map(String::as_str));
            let trace = trace_those_that_are_ended(netns, &arguments, 6514)?;
            ensure_all(&trace, export, &server)
        });
    }
}

/// nginx lets in only who has the key, and rotel gets what it lets in.
#[test]
fn credentials_come_from_the_environment_and_are_shown_to_nobody_else() {
    const EXPORT: &str = "otlp=http://127.0.0.1:8080";
    const SECRET: &str = "Bearer s3cr3t";
    in_netns(|netns| {
        let server = LogServer::rotel(false)?;
        let only = format!(
            "location /v1/ {{ if ($http_authorization != \"{SECRET}\") {{ return 401; }}\n\
             proxy_pass http://{}; }}",
            LogServer::OTLP_HTTP
        );
        let _nginx = Nginx::start("", &only)?;
        ensure_lost(netns, &["--export", EXPORT], "refused", "401 Unauthorized")?;

        let mut command = tcptrace();
        command.args(["-o", "json", "--export", EXPORT, "--netns"]);
        command.arg(netns.path());
        command.env(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "authorization=Bearer%20s3cr3t",
        );
        let tracer = Tracer::start(command)?;
        let line = fs::read_to_string(format!("/proc/{}/cmdline", tracer.pid()))?;
        ensure!(!line.contains("s3cr3t"), "{line}");
        provoke(5)?;
        let trace = tracer.stop()?;
        ensure_all(&trace, EXPORT, &server)?;
        let said = [trace.stdout.join("\n"), trace.stderr.join("\n")].concat();
        ensure!(!said.contains("s3cr3t"), "{said}");
        Ok(())
    });
}

/// Makes `VictoriaMetrics` find what it has been sent. A series that is asked for before it is found
/// is remembered as missing until a clock that ticks every ten seconds.
fn flush() -> Result<()> {
    let flushed = Command::new("curl")
        .args(["--silent", "--fail"])
        .arg("http://127.0.0.1:8428/internal/force_flush")
        .status()?;
    ensure!(flushed.success(), "{flushed}");
    Ok(())
}

/// What `VictoriaMetrics` has of a series, which this selects.
fn stored(series: &str) -> Result<Option<f64>> {
    let output = Command::new("curl")
        .args(["--silent", "--get", "--data-urlencode"])
        .arg(format!("match[]={series}"))
        .arg("http://127.0.0.1:8428/api/v1/export")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some(line) = text.lines().next() else {
        return Ok(None);
    };
    let found: Value = serde_json::from_str(line)?;
    let values = found["values"].as_array().context("values")?;
    Ok(values.last().and_then(Value::as_f64))
}

#[test]
fn victoria_metrics_gets_the_counts_of_the_whole_run() {
    const REFUSED: f64 = 30.0;
    in_netns(|netns| {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new(VICTORIA_METRICS);
        command
            .arg(format!("-storageDataPath={}", directory.path().display()))
            .args(["-httpListenAddr=127.0.0.1:8428", "-search.latencyOffset=0s"]);
        let server = Program::start(command)?;
        server.wait_for_text("started server at")?;
        let tracer = trace(
            netns,
            &[
                "--port",
                "1",
                "--metrics",
                "otlp=http://127.0.0.1:8428/opentelemetry",
            ],
        )?;
        provoke(30)?;
        let trace = tracer.stop()?;
        let said = trace.stderr.join("\n");
        ensure!(!said.contains("--metrics"), "{said}");
        flush()?;
        for (series, expected) in [
            (
                r#"tcptrace_connect_failures_total{error_type="ECONNREFUSED"}"#,
                REFUSED,
            ),
            (
                r#"tcptrace_events_total{event="tcptrace.reset.sent"}"#,
                REFUSED,
            ),
            ("tcptrace_close_wait_sockets", 0.0),
            ("tcptrace_close_wait_duration_seconds_count", 0.0),
            (r#"tcptrace_build_info{schema_version="1.0"}"#, 1.0),
        ] {
            let mut last = None;
            wait_until(series, || {
                last = stored(series).map_err(std::io::Error::other)?;
                Ok(last == Some(expected))
            })
            .with_context(|| format!("it was {last:?}, not {expected}"))?;
        }
        Ok(())
    });
}

#[test]
fn counts_that_cannot_be_sent_are_told_and_delay_nothing() {
    in_netns(|netns| {
        let tracer = trace(
            netns,
            &["--port", "1", "--metrics", "otlp=grpc://127.0.0.1:9"],
        )?;
        provoke(5)?;
        let asked = Instant::now();
        let trace = tracer.stop()?;
        ensure!(asked.elapsed() < END, "it took {:?}", asked.elapsed());
        ensure!(Events::from_trace(&trace)?.named("reset.sent").count() == 5);
        let told =
            "tcptrace: --metrics otlp=grpc://127.0.0.1:9: cannot connect: Connection refused";
        let said = trace.stderr.iter().filter(|it| it.starts_with(told));
        ensure!(
            said.count() == 2,
            "at the start and at the end: {:?}",
            trace.stderr
        );
        Ok(())
    });
}

#[test]
fn lines_of_otlp_json_are_what_a_receiver_takes() {
    in_netns(|netns| {
        let server = LogServer::rotel(false)?;
        let mut command = tcptrace();
        command.args(["-o", "otlp-json", "--port", "1", "--netns"]);
        command.arg(netns.path());
        let tracer = Tracer::start(command)?;
        provoke(3)?;
        let trace = tracer.stop()?;
        let receiver = format!("http://{}/v1/logs", LogServer::OTLP_HTTP);
        let mut count = 0;
        for line in &trace.stdout {
            let output = Command::new("curl")
                .args([
                    "--silent",
                    "--fail",
                    "--header",
                    "content-type: application/json",
                ])
                .args(["--data-raw", line, &receiver])
                .output()?;
            ensure!(output.status.success(), "{line}");
            count += 1;
        }
        ensure!(count >= 9, "{count} lines");
        server.ids(count)?;
        Ok(())
    });
}

#[test]
fn a_wrong_receiver_is_a_usage_error_with_the_remedy() -> Result<()> {
    for (option, value, remedy) in [
        ("--export", "otlp=udp://collector", "grpc://HOST"),
        ("--export", "otlp=grpc://collector/v1", "write http://"),
        ("--export", "otlp=https://collector", "--tls-ca FILE"),
        ("--metrics", "otlp=grpcs://collector", "--tls-ca FILE"),
        ("--metrics", "otlp=", "name or the address of a host"),
    ] {
        let output = tcptrace().args([option, value]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{said}");
        ensure!(said.contains(value) && said.contains(remedy), "{said}");
    }
    Ok(())
}
