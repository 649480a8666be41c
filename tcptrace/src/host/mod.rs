//! What `/proc`, `sock_diag` and cgroups say about this host. Facts only: what they mean is decided
//! elsewhere.
//!
//! Whoever has no right to look is told so in the result: a process that could not be read, a
//! namespace that could not be entered. Root has every right; a process that dropped its privileges
//! keeps these answers with `CAP_SYS_PTRACE` and `CAP_DAC_READ_SEARCH` (the descriptors of others)
//! and, behind the [`door`], `CAP_SYS_ADMIN` (their network namespaces).

pub mod acceptor;
pub mod attribution;
pub mod census;
pub mod cgroup;
mod close_waits;
pub mod container;
pub mod counters;
pub mod descriptors;
pub mod door;
pub mod holders;
pub mod identity;
pub mod listen_queues;
pub mod nearby;
pub mod netns;
pub mod ports;
pub mod process;
pub mod snapshot;
pub mod sockets;
pub mod stacks;
mod whose;
pub mod workload;

use std::fs;

use procfs::process::MountInfo;

/// The mounts this process sees; none when `/proc` is not there.
fn mounts() -> Vec<MountInfo> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    // Line by line: a mount point in an odd encoding must not hide the others.
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| MountInfo::from_line(line).ok())
        .collect()
}

/// Held by tests that start a process, and by those that count who holds a socket: between its fork
/// and its exec a child holds everything its parent does.
#[cfg(test)]
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
