//! What a tracer says of the connections of its own exports.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{Events, Netns, Record, Trace, trace};

/// How long the other ends may take to leave.
const LEAVING: Duration = Duration::from_secs(30);

/// Traces connections to this port alone, at which an export has a server that ends what is idle, until
/// the third of the tracer's own was ended there. Each is to be ended by the tracer as well, and none with
/// a reset or an error.
///
/// # Errors
/// When one was not.
pub fn trace_those_that_are_ended(netns: &Netns, export: &[&str], port: u16) -> Result<Trace> {
    let port = port.to_string();
    let only = ["--event", "+state", "--peer-port", &port];
    let tracer = trace(netns, &[&only, export].concat())?;
    let own = u64::from(tracer.pid());
    let is_own = |it: &Record| it.number("process.pid") == Some(own);
    let ended = Cell::new(0);
    tracer.wait_for("the end of a third connection", LEAVING, |it| {
        let is_end = is_own(it) && it.text("tcptrace.state.previous") == Some("close_wait");
        ended.set(ended.get() + u32::from(is_end));
        ended.get() == 3
    })?;
    let trace = tracer.stop()?;
    let troubles = Events::from_trace(&trace)?
        .only(|it| is_own(it) && !["state.changed", "close_wait.entered"].contains(&it.name()));
    ensure!(troubles.count() == 0, "{troubles:?}");
    let failing = trace.stderr.iter().find(|it| it.contains("cannot"));
    ensure!(failing.is_none(), "{failing:?}");
    Ok(trace)
}
