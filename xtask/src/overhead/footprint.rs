//! How long tcptrace takes to start, how much memory it holds, and what it takes when nothing happens.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use super::load::Crowd;
use super::programs;
use super::rival::Tracer;

/// Starts that are measured; their median counts.
const STARTS: usize = 11;

/// How long one is looked at to which nothing happens.
const IDLE: Duration = Duration::from_secs(10);

/// Live sockets, and the arguments that make room for them.
const CROWDS: [(u32, &[&str]); 2] = [(100_000, &[]), (1_000_000, &["--max-sockets", "1048576"])];

/// What one tracer holds.
pub(super) struct Held {
    /// When it was looked at.
    pub(super) when: String,
    /// Resident memory of the process, bytes; without the ring, which is a map of the kernel's.
    pub(super) resident: u64,
    /// The kernel's memory for its maps, bytes.
    pub(super) maps: u64,
}

/// What was found.
pub(super) struct Footprint {
    /// From the start of the program until it traces, sorted.
    pub(super) starts: Vec<Duration>,
    pub(super) held: Vec<Held>,
    /// What tracers took of a processor in each second in which nothing happened.
    pub(super) idle: Vec<(&'static str, Duration)>,
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
    Ok(Footprint {
        starts,
        held,
        idle: idle()?,
    })
}

fn idle() -> Result<Vec<(&'static str, Duration)>> {
    println!("idle");
    let own = std::process::id().to_string();
    let modes: [(_, &[&str]); 3] = [
        ("the defaults", &[]),
        ("`--pid`", &["--pid", &own]),
        ("`--pid --follow`", &["--pid", &own, "--follow"]),
    ];
    let taken = modes.map(|(title, arguments)| {
        let tracer = Tracer::start(arguments, Stdio::null())?;
        let clock = clock_getcpuclockid(Pid::from_raw(tracer.id().try_into()?))?;
        let before = Duration::from(clock.now()?);
        thread::sleep(IDLE);
        let taken = Duration::from(clock.now()?).saturating_sub(before);
        tracer.stop()?;
        Ok((title, taken.div_f64(IDLE.as_secs_f64())))
    });
    taken.into_iter().collect()
}

fn look(tracer: &Tracer, when: String) -> Result<Held> {
    let mappings = fs::read_to_string(format!("/proc/{}/smaps", tracer.id()))?;
    Ok(Held {
        when,
        resident: resident(&mappings),
        maps: programs::map_bytes(tracer.id())?,
    })
}

/// Sums up what is resident of the mappings, but for those of maps.
fn resident(mappings: &str) -> u64 {
    let mut is_map = false;
    let mut sum = 0;
    for line in mappings.lines() {
        if let Some(size) = line.strip_prefix("Rss:") {
            let kilobytes = size
                .trim()
                .strip_suffix(" kB")
                .and_then(|it| it.parse().ok());
            sum += if is_map {
                0
            } else {
                kilobytes.unwrap_or(0) << 10
            };
        } else if line.starts_with(|first: char| first.is_ascii_hexdigit() && !first.is_uppercase())
        {
            is_map = line.ends_with("anon_inode:bpf-map");
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_not_the_process_memory() {
        let mappings = "\
            7f00-7f10 rw-s 00000000 00:0e 1063    anon_inode:bpf-map\n\
            Size:  8 kB\nRss:                   8 kB\n\
            55d0-55e0 rw-p 00000000 00:00 0       [heap]\n\
            Size:  4 kB\nRss:                   4 kB\n";
        assert_eq!(resident(mappings), 4096);
    }
}
