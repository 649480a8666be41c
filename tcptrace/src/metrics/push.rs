//! Counts sent to a receiver of OTLP at the start, each minute and at the end, by a thread that can do
//! nothing else. They are totals, so what one message does not bring the next one does.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use caps::CapsHashSet;
use tokio::sync::oneshot;

use super::otlp::{Span, request};
use super::{Format, Metrics};
use crate::kernel::confinement::{Part, confine};
use crate::kernel::privileges::keep_only;
use crate::sink::otlp_client::{Caller, Signal, Verdict};
use crate::sink::{Access, Endpoint};

/// As OTLP's own senders do.
/// <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/#periodic-exporting-metricreader>
const EVERY: Duration = Duration::from_mins(1);

/// How long the last message may take.
const FLUSH: Duration = Duration::from_secs(5);

/// A thread that sends counts.
#[derive(Debug)]
pub struct Push {
    stop: mpsc::Sender<()>,
    left: oneshot::Receiver<()>,
}

/// What is sent where.
#[derive(Debug)]
pub struct Source {
    /// The receiver.
    pub endpoint: Endpoint,
    /// Whom it is trusted to be, and what it is told of this host.
    pub access: Access,
    /// The counts.
    pub metrics: Arc<Metrics>,
    /// The fields of OTLP's resource for this run.
    pub resource: Vec<u8>,
}

impl Push {
    /// Starts the thread, which gives up all else first. It has changes of how it goes told by `say`.
    ///
    /// # Errors
    /// There is no thread, or it cannot be confined.
    pub fn start(source: Source, say: impl Fn(&str) + Send + 'static) -> Result<Self> {
        let (tell, told) = mpsc::sync_channel(1);
        let (stop, stopped) = mpsc::channel();
        let (leave, left) = oneshot::channel();
        let send = move || {
            // Asking once has the C library load what that needs, while it may.
            source.endpoint.ask_resolver();
            let give_up = || {
                keep_only(&CapsHashSet::new())?;
                confine(Part::Export)
            };
            let confined = give_up();
            let is_confined = confined.is_ok();
            // The caller waits.
            let _ = tell.send(confined);
            if is_confined {
                source.send_until(&stopped, say);
            }
            // The run may be over already.
            let _ = leave.send(());
        };
        thread::Builder::new()
            .name("metrics-push".into())
            .spawn(send)
            .context("no thread for --metrics")?;
        told.recv().context("the thread of --metrics has ended")??;
        Ok(Self { stop, left })
    }

    /// Sends the counts a last time. It may take five seconds.
    pub async fn finish(self) {
        // Whether it is there or not, this is the end.
        let _ = self.stop.send(());
        let _ = tokio::time::timeout(FLUSH, self.left).await;
    }
}

impl Source {
    fn send_until(&self, stopped: &mpsc::Receiver<()>, say: impl Fn(&str)) {
        let begun = now();
        let mut fails = false;
        let mut wait = Duration::ZERO;
        loop {
            let is_last = stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout);
            wait = EVERY;
            let outcome = self.send(Span { begun, now: now() }, &mut wait);
            let endpoint = &self.endpoint;
            match &outcome {
                Err(error) if !fails || is_last => {
                    let mut words = format!("--metrics otlp={endpoint}: {error:#}");
                    if !is_last {
                        // A String takes all.
                        let _ = write!(words, "; it is tried again each minute");
                    }
                    say(&words);
                }
                Ok(()) if fails => say(&format!("--metrics otlp={endpoint}: delivering again")),
                _ => {}
            }
            fails = outcome.is_err();
            if is_last {
                return;
            }
        }
    }

    fn send(&self, span: Span, wait: &mut Duration) -> Result<()> {
        let text = self.metrics.encode(Format::OpenMetrics)?;
        let message = request(&text, &self.resource, span);
        // In a minute the receiver may have ended a connection.
        let caller = Caller::connect(&self.endpoint, &self.access, FLUSH);
        let verdict = caller
            .context("cannot connect")?
            .call(Signal::Metrics, &message);
        match verdict.context("cannot send")? {
            Verdict::Taken(0, _) => Ok(()),
            Verdict::Taken(_, why) | Verdict::Refused(why) => bail!("{why}"),
            Verdict::Later(why, rest) => {
                *wait = EVERY.max(rest);
                bail!("{why}");
            }
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
