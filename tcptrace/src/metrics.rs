//! What a run counts, for Prometheus and for receivers of OTLP. Labels are names of this program, of errors and of calls, and exports
//! as the command line names them: never an address, a port or a process of what is traced, so that their
//! number is bounded whatever the host does.

mod classic;
mod otlp;
mod own;
pub mod push;
pub mod server;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::diagnose;
use crate::event::{Cause, Errno, Event, Kind, Suppressed, Syscall};
use crate::sink::{Account, Endpoint, record};

/// Where counts go.
#[derive(Clone, Debug)]
pub enum To {
    /// To whoever asks at this address.
    Scrapers(SocketAddr),
    /// To a receiver of OTLP.
    Receiver(Endpoint),
}

/// Reads a value of `--metrics`: `otlp=http://collector`, or an address as [`server::address`] does.
///
/// # Errors
/// It is neither.
pub fn to(text: &str) -> Result<To, String> {
    match text.strip_prefix("otlp=") {
        Some(endpoint) => Ok(To::Receiver(endpoint.parse()?)),
        None => Ok(To::Scrapers(server::address(text)?)),
    }
}

/// Names and values of labels, all of this program's making.
type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Upper ends of the buckets of CLOSE_WAIT's duration, seconds: from what is no leak to days.
const AGES: [f64; 8] = [1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0, 14_400.0, 86_400.0];

/// The loop comes round four times a second; after this long without it nothing is traced.
const STALLED: Duration = Duration::from_secs(10);

/// The counts of a run, and how it is.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    events: Family<Labels<1>, Counter>,
    resets: Family<Labels<2>, Counter>,
    connect_failures: Family<Labels<1>, Counter>,
    timeouts: Family<Labels<1>, Counter>,
    call_errors: Family<Labels<2>, Counter>,
    accept_overflows: Counter,
    syn_overflows: Family<Labels<1>, Counter>,
    findings: Family<Labels<2>, Counter>,
    lost: Family<[(&'static str, String); 2], Counter>,
    suppressed: Family<Labels<1>, Counter>,
    exported: Family<[(&'static str, String); 1], Counter>,
    not_exported: Family<[(&'static str, String); 2], Counter>,
    to_export: Family<[(&'static str, String); 1], Gauge>,
    close_waits: Gauge,
    close_wait_oldest: Gauge<f64, AtomicU64>,
    close_wait_durations: Histogram,
    ready: AtomicBool,
    /// When the loop last came round, by the monotonic clock.
    alive: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing is counted yet.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            events: Family::default(),
            resets: Family::default(),
            connect_failures: Family::default(),
            timeouts: Family::default(),
            call_errors: Family::default(),
            accept_overflows: Counter::default(),
            syn_overflows: Family::default(),
            findings: Family::default(),
            lost: Family::default(),
            suppressed: Family::default(),
            exported: Family::default(),
            not_exported: Family::default(),
            to_export: Family::default(),
            close_waits: Gauge::default(),
            close_wait_oldest: Gauge::default(),
            close_wait_durations: Histogram::new(AGES),
            ready: AtomicBool::new(false),
            alive: AtomicU64::new(0),
        };
        metrics.register();
        metrics
    }

    /// Encoders add `_total` and `_info`, and the full stop after the words.
    fn register(&mut self) {
        let mut registry = Registry::default();
        let build = Info::new([
            ("version", env!("CARGO_PKG_VERSION")),
            ("schema_version", record::SCHEMA_VERSION),
        ]);
        registry.register("tcptrace_build", "What is running", build);
        registry.register(
            "tcptrace_events",
            "Events seen, printed or not, by name",
            self.events.clone(),
        );
        registry.register(
            "tcptrace_resets",
            "RSTs sent and received by connections of this host, and why as far as one event tells",
            self.resets.clone(),
        );
        registry.register(
            "tcptrace_connect_failures",
            "Connection attempts that failed, by the error the program sees",
            self.connect_failures.clone(),
        );
        registry.register(
            "tcptrace_connection_timeouts",
            "Connections the kernel gave up, by cause",
            self.timeouts.clone(),
        );
        registry.register(
            "tcptrace_syscall_errors",
            "Calls on sockets that failed",
            self.call_errors.clone(),
        );
        registry.register(
            "tcptrace_accept_queue_overflows",
            "Connections lost because an accept queue was full",
            self.accept_overflows.clone(),
        );
        registry.register(
            "tcptrace_syn_queue_overflows",
            "SYNs that found a full SYN queue, and whether they were dropped or answered with a cookie",
            self.syn_overflows.clone(),
        );
        registry.register(
            "tcptrace_findings",
            "Explained failures, each counted once however long it goes on",
            self.findings.clone(),
        );
        registry.register(
            "tcptrace_events_lost",
            "Events that were not seen or not handed over, by where they were lost",
            self.lost.clone(),
        );
        registry.register(
            "tcptrace_events_suppressed",
            "Events that --rate-limit left out of the stream, by name",
            self.suppressed.clone(),
        );
        registry.register(
            "tcptrace_export_records_sent",
            "Records that an export delivered, as far as its protocol tells",
            self.exported.clone(),
        );
        registry.register(
            "tcptrace_export_records_lost",
            "Records that an export did not deliver, by reason",
            self.not_exported.clone(),
        );
        registry.register(
            "tcptrace_export_records_waiting",
            "Records that wait for an export to deliver them",
            self.to_export.clone(),
        );
        registry.register(
            "tcptrace_close_wait_sockets",
            "Sockets whose peer has closed and whose process has not",
            self.close_waits.clone(),
        );
        registry.register(
            "tcptrace_close_wait_oldest_seconds",
            "How long the oldest of them has waited, at least",
            self.close_wait_oldest.clone(),
        );
        registry.register(
            "tcptrace_close_wait_duration_seconds",
            "How long sockets had been in CLOSE_WAIT when they left it, to a quarter of a second",
            self.close_wait_durations.clone(),
        );
        registry.register_collector(Box::new(own::Cost));
        self.registry = registry;
    }

    /// Counts an event.
    pub fn saw(&self, event: &Event) {
        self.events.get_or_create(&[("event", event.name())]).inc();
        let cause = || {
            (
                "cause",
                diagnose::cause(event).map_or("unknown", Cause::as_str),
            )
        };
        match &event.kind {
            Kind::ResetSent(_) => {
                let labels = [("direction", "sent"), cause()];
                self.resets.get_or_create(&labels).inc();
            }
            Kind::ResetReceived(_) => {
                let labels = [("direction", "received"), cause()];
                self.resets.get_or_create(&labels).inc();
            }
            Kind::ConnectFailed(failed) => {
                let error = failed.errno.map_or("abandoned", error);
                let labels = [("error_type", error)];
                self.connect_failures.get_or_create(&labels).inc();
            }
            Kind::ConnectionTimeout(_) => {
                self.timeouts.get_or_create(&[cause()]).inc();
            }
            Kind::SocketError(call) | Kind::FdInvalid(call) => {
                let name = call.syscall.and_then(Syscall::name).unwrap_or("other");
                let labels = [("syscall", name), ("error_type", error(call.errno))];
                self.call_errors.get_or_create(&labels).inc();
            }
            Kind::FdExhausted(fds) => {
                let name = fds.syscall.and_then(Syscall::name).unwrap_or("other");
                let labels = [("syscall", name), ("error_type", error(fds.errno))];
                self.call_errors.get_or_create(&labels).inc();
            }
            Kind::AcceptQueueOverflow(overflow) => {
                self.accept_overflows.inc_by(overflow.count);
            }
            Kind::SynQueueOverflow(queue) => {
                let outcome = if queue.cookies { "cookie" } else { "dropped" };
                let labels = [("outcome", outcome)];
                self.syn_overflows
                    .get_or_create(&labels)
                    .inc_by(queue.count);
            }
            Kind::Finding(finding) if finding.update == 0 => {
                let labels = [cause(), ("severity", finding.severity.as_str())];
                self.findings.get_or_create(&labels).inc();
            }
            // What is lost or suppressed has its own count, and the rest is only counted by name.
            Kind::Finding(_)
            | Kind::CloseWaitEntered(_)
            | Kind::CloseWaitStuck(_)
            | Kind::StateChanged(_)
            | Kind::Retransmit(_)
            | Kind::Coverage(_)
            | Kind::TargetChanged(_)
            | Kind::EventsLost(_)
            | Kind::EventsSuppressed(_)
            | Kind::ExportDropped(_)
            | Kind::Summary(_)
            | Kind::Sockets(_) => {}
        }
    }

    /// Counts what was lost. The stages are hooks and tables of the kernel half.
    pub fn lost(&self, stage: &str, reason: &str, count: u64) {
        let labels = [("stage", stage.to_owned()), ("reason", reason.to_owned())];
        self.lost.get_or_create(&labels).inc_by(count);
    }

    /// Counts what was not printed.
    pub fn suppressed(&self, suppressed: &Suppressed) {
        let labels = [("event", suppressed.name)];
        self.suppressed
            .get_or_create(&labels)
            .inc_by(suppressed.count);
    }

    /// Takes over the account of the export that the command line names `to`. Its owner counts, so that
    /// no two counts differ.
    pub fn exported(&self, to: &str, account: &Account) {
        let sent = self.exported.get_or_create(&[("to", to.to_owned())]);
        sent.inner().store(account.sent, Ordering::Relaxed);
        for (reason, count) in account.lost.all() {
            let labels = [("to", to.to_owned()), ("reason", reason.to_owned())];
            let lost = self.not_exported.get_or_create(&labels);
            lost.inner().store(count, Ordering::Relaxed);
        }
        let waiting = account.waiting.try_into().unwrap_or(i64::MAX);
        let gauge = self.to_export.get_or_create(&[("to", to.to_owned())]);
        gauge.set(waiting);
    }

    /// The sockets in CLOSE_WAIT now, and how long those were in it that have left it since the last
    /// look.
    pub fn close_waits(
        &self,
        now: impl ExactSizeIterator<Item = Duration>,
        left: impl Iterator<Item = Duration>,
    ) {
        self.close_waits
            .set(now.len().try_into().unwrap_or(i64::MAX));
        let oldest = now.max().unwrap_or_default();
        self.close_wait_oldest.set(oldest.as_secs_f64());
        for age in left {
            self.close_wait_durations.observe(age.as_secs_f64());
        }
    }

    /// The loop came round; `now` by the monotonic clock, nanoseconds.
    pub fn beat(&self, now: u64) {
        self.alive.store(now, Ordering::Relaxed);
    }

    /// Everything is attached; or, at the end, nothing is any more.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Events are traced.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// The loop comes round; `now` as for [`beat`](Self::beat).
    #[must_use]
    pub fn is_alive(&self, now: u64) -> bool {
        let silent = now.saturating_sub(self.alive.load(Ordering::Relaxed));
        Duration::from_nanos(silent) < STALLED
    }

    /// All counts as text: `OpenMetrics` 1.0, or the format before it, which is all that `promtool` reads.
    ///
    /// # Errors
    /// Of formatting, which nothing here gives.
    pub fn encode(&self, format: Format) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(match format {
            Format::OpenMetrics => text,
            Format::Classic => classic::from_open_metrics(&text),
        })
    }
}

/// How counts are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
    OpenMetrics,
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>
    Classic,
}

fn error(errno: Errno) -> &'static str {
    errno.name().unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::{Lost, samples};

    fn counted() -> String {
        let metrics = Metrics::new();
        for mut event in samples::all().into_iter().chain(samples::verdicts()) {
            metrics.saw(&event);
            // Told a second time in the samples: then it was counted before.
            if let Kind::Finding(finding) = &mut event.kind {
                finding.update = 0;
                metrics.saw(&event);
            }
        }
        metrics.lost("tcp_send_reset", "ring_full", 7);
        let ages = [Duration::from_secs(3), Duration::from_mins(10)];
        metrics.close_waits(ages.into_iter(), [Duration::from_millis(1_500)].into_iter());
        let account = Account {
            produced: 12,
            sent: 9,
            lost: Lost {
                queue_full: 2,
                ..Lost::default()
            },
            waiting: 1,
            ..Account::default()
        };
        metrics.exported("journald", &account);
        metrics
            .encode(Format::OpenMetrics)
            .expect("a String takes all")
    }

    #[test]
    fn what_is_seen_is_counted() {
        let text = counted();
        for line in [
            r#"tcptrace_events_total{event="tcptrace.reset.received"} 1"#,
            r#"tcptrace_events_lost_total{stage="tcp_send_reset",reason="ring_full"} 7"#,
            r#"tcptrace_findings_total{cause="peer_gave_up",severity="ERROR"} 1"#,
            r#"tcptrace_export_records_sent_total{to="journald"} 9"#,
            r#"tcptrace_export_records_lost_total{to="journald",reason="queue_full"} 2"#,
            r#"tcptrace_export_records_lost_total{to="journald",reason="too_large"} 0"#,
            r#"tcptrace_export_records_waiting{to="journald"} 1"#,
            "tcptrace_close_wait_sockets 2",
            "tcptrace_close_wait_oldest_seconds 600.0",
            r#"tcptrace_close_wait_duration_seconds_bucket{le="1.0"} 0"#,
            r#"tcptrace_close_wait_duration_seconds_bucket{le="5.0"} 1"#,
            "tcptrace_close_wait_duration_seconds_sum 1.5",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in {text}");
        }
        for family in ["resets", "connect_failures", "syscall_errors"] {
            let name = format!("\ntcptrace_{family}_total{{");
            assert!(text.contains(&name), "{name} is not in {text}");
        }
    }

    /// The samples have addresses, ports and pids of which none looks like a count.
    #[test]
    fn no_label_tells_an_address_a_port_or_a_process() {
        let text = counted();
        for secret in ["10.0.0", "203.0.113", "8080", "51234", "1234", "nginx"] {
            let labels = text.lines().filter_map(|it| it.split_once('{'));
            for (_, labels) in labels {
                assert!(!labels.contains(secret), "{secret} in {labels}");
            }
        }
    }

    #[test]
    fn a_loop_that_stands_still_is_told() {
        let metrics = Metrics::new();
        metrics.beat(1_000_000_000);
        assert!(metrics.is_alive(2_000_000_000));
        assert!(!metrics.is_alive(60_000_000_000));
        assert!(!metrics.is_ready());
    }
}
