//! How long tcptrace takes to start, and how much memory it holds.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::load::Crowd;
use super::programs;
use super::rival::Tracer;

/// Starts that are measured; their median counts.
const STARTS: usize = 11;

/// Live sockets, and the arguments that make room for them.
const CROWDS: [(u32, &[&str]); 2] = [(100_000, &[]), (1_000_000, &["--max-sockets", "1048576"])];

/// What one tracer holds.
pub(super) struct Held {
    /// When it was looked at.
    pub(super) when: String,
    /// Resident memory of the process, bytes.
    pub(super) resident: u64,
    /// The part of it that is not a file, and not the ring shared with the kernel.
    pub(super) anonymous: u64,
    /// The kernel's memory for its maps, bytes.
    pub(super) maps: u64,
}

/// What was found.
pub(super) struct Footprint {
    /// From the start of the program until it traces, sorted.
    pub(super) starts: Vec<Duration>,
    pub(super) held: Vec<Held>,
}

/// Starts tcptrace again and again, and lets it see crowds of sockets.
pub(super) fn measure() -> Result<Footprint> {
    let mut starts = Vec::new();
    let mut held = Vec::new();
    for nth in 0..STARTS {
        let tracer = Tracer::start(&[], Stdio::null())?;
        starts.push(tracer.took);
        if nth == 0 {
            held.push(look(&tracer, "idle".to_owned())?);
        }
        tracer.stop()?;
    }
    starts.sort();
    for (sockets, arguments) in CROWDS {
        println!("{sockets} live sockets");
        let title = arguments.join(" ");
        let tracer = Tracer::start(arguments, Stdio::null())?;
        let crowd = match Crowd::gather(sockets) {
            Ok(crowd) => crowd,
            Err(error) => {
                eprintln!("xtask: this machine does not hold {sockets} sockets: {error:#}");
                break;
            }
        };
        held.push(look(&tracer, format!("{sockets} sockets came {title}"))?);
        tracer.stop()?;
        let tracer = Tracer::start(arguments, Stdio::null())?;
        let took = tracer.took.as_secs_f64();
        let when = format!("{sockets} were there at the start, which took {took:.1} s {title}");
        held.push(look(&tracer, when)?);
        tracer.stop()?;
        drop(crowd);
    }
    Ok(Footprint { starts, held })
}

fn look(tracer: &Tracer, when: String) -> Result<Held> {
    let status = fs::read_to_string(format!("/proc/{}/status", tracer.id()))?;
    Ok(Held {
        when,
        resident: kilobytes(&status, "VmRSS").context("no VmRSS")? << 10,
        anonymous: kilobytes(&status, "RssAnon").context("no RssAnon")? << 10,
        maps: programs::map_bytes(tracer.id())?,
    })
}

fn kilobytes(status: &str, name: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|it| it.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_by_its_whole_name() {
        let status = "VmRSSX:\t1 kB\nVmRSS:\t  5120 kB\nThreads:\t3\n";
        assert_eq!(kilobytes(status, "VmRSS"), Some(5120));
        assert_eq!(kilobytes(status, "Threads"), None);
    }
}
