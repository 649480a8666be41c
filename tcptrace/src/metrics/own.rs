//! What tcptrace itself costs this host, read at each scrape. The names are those every Prometheus
//! client gives: <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>.

use std::fmt;

use procfs::process::Process;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Processor time, memory and descriptors of this process.
#[derive(Debug)]
pub(super) struct Cost;

impl Collector for Cost {
    /// What cannot be read is left out.
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut add = |name: &str, help: &str, metric: &dyn EncodeMetric| {
            let encoder = encoder.encode_descriptor(name, help, None, metric.metric_type())?;
            metric.encode(encoder)
        };
        let Ok(process) = Process::myself() else {
            return Ok(());
        };
        if let Ok(stat) = process.stat() {
            let ticks = seconds(stat.utime.saturating_add(stat.stime));
            add(
                "process_cpu_seconds",
                "Processor time of all threads of tcptrace.",
                &ConstCounter::new(ticks),
            )?;
            add(
                "process_resident_memory_bytes",
                "Memory of tcptrace that is in RAM.",
                &ConstGauge::new(signed(stat.rss.saturating_mul(procfs::page_size()))),
            )?;
            add(
                "process_virtual_memory_bytes",
                "Memory tcptrace has asked for.",
                &ConstGauge::new(signed(stat.vsize)),
            )?;
            if let Ok(booted) = procfs::boot_time_secs() {
                add(
                    "process_start_time_seconds",
                    "When tcptrace was started, since the Unix epoch.",
                    &ConstGauge::new(seconds(
                        stat.starttime
                            .saturating_add(booted.saturating_mul(procfs::ticks_per_second())),
                    )),
                )?;
            }
        }
        if let Ok(open) = process.fd_count() {
            add(
                "process_open_fds",
                "Descriptors of tcptrace.",
                &ConstGauge::new(signed(open as u64)),
            )?;
        }
        Ok(())
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// `/proc` counts time in ticks, a hundred to the second.
#[expect(
    clippy::cast_precision_loss,
    reason = "a double is exact for ten thousand years of ticks"
)]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / procfs::ticks_per_second() as f64
}
