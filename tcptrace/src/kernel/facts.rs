//! What this host offers, gathered once at start into plain data: everything after is pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};

use super::btf::{Btf, BtfError};
use super::confinement::Confinement;
use super::symbols::SymbolError;
use super::{plan, privileges};

/// How programs are attached to kprobes.
/// <https://github.com/torvalds/linux/blob/v6.18/kernel/events/core.c> (`perf_kprobe`)
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe";

/// The initial user and PID namespace have fixed inode numbers.
/// <https://github.com/torvalds/linux/blob/v6.12/include/linux/proc_ns.h>
const INITIAL_USER: &str = "user:[4026531837]";
const INITIAL_PID: &str = "pid:[4026531836]";
const PID: &str = "/proc/self/ns/pid";

/// What this host offers. What could not be read is `None`, or says why.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Facts {
    /// Kernel release, as `uname -r` prints it.
    pub release: String,
    /// The kernel's types can be read, or why not.
    pub btf: Result<(), String>,
    /// Names of the kernel's tracepoints.
    pub raw_tracepoints: BTreeSet<String>,
    /// How many arguments each function takes that a program may be attached to.
    pub functions: BTreeMap<&'static str, usize>,
    /// The kernel compiles eBPF programs.
    pub jit: bool,
    /// The kernel has kprobes.
    pub kprobes: bool,
    /// Where `tcp_rcv_state_process` lies.
    pub rcv_state_process: Result<Range<u64>, SymbolError>,
    /// Effective capabilities.
    pub capabilities: Vec<Capability>,
    /// The user namespace is the host's; in another one no capability opens eBPF.
    pub initial_user_namespace: bool,
    /// The PID namespace is the host's, or the kernel has no others; in another one `/proc` shows other
    /// numbers than the kernel gives.
    pub initial_pid_namespace: bool,
    /// Kernel lockdown: `none`, `integrity` or `confidentiality`.
    pub lockdown: Option<String>,
    /// Maps are read and written only with `CAP_BPF`, as before Linux 5.19.
    pub maps_need_cap_bpf: bool,
    /// What there is to confine the tracer with.
    pub confinement: Confinement,
    /// `kernel.unprivileged_bpf_disabled`
    pub unprivileged_bpf_disabled: Option<i32>,
    /// `kernel.perf_event_paranoid`
    pub perf_event_paranoid: Option<i32>,
    /// `kernel.kptr_restrict`
    pub kptr_restrict: Option<i32>,
    /// Where tracefs is mounted.
    pub tracefs: Option<PathBuf>,
    /// Where the unified cgroup hierarchy is mounted.
    pub cgroup2: Option<PathBuf>,
    /// This program's file, for commands that grant it privileges.
    pub executable: PathBuf,
}

impl Facts {
    /// Looks at the running host, of which the types and the place of `tcp_rcv_state_process` are known.
    #[must_use]
    pub fn gather(
        btf: Result<&Btf, &BtfError>,
        rcv_state_process: Result<Range<u64>, SymbolError>,
    ) -> Self {
        Self {
            release: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
            btf: btf.map(|_| ()).map_err(ToString::to_string),
            raw_tracepoints: btf
                .map(|btf| btf.tracepoints().map(str::to_owned).collect())
                .unwrap_or_default(),
            functions: btf
                .map(|btf| {
                    let functions = btf.functions(&plan::functions());
                    functions
                        .into_iter()
                        .map(|(name, it)| (name, it.arguments))
                        .collect()
                })
                .unwrap_or_default(),
            jit: number("/proc/sys/net/core/bpf_jit_enable") != Some(0),
            kprobes: Path::new(KPROBES).exists(),
            rcv_state_process,
            capabilities: caps::read(None, CapSet::Effective)
                .map(|set| set.into_iter().collect())
                .unwrap_or_default(),
            initial_user_namespace: is_link("/proc/self/ns/user", INITIAL_USER),
            initial_pid_namespace: !Path::new(PID).exists() || is_link(PID, INITIAL_PID),
            lockdown: text("/sys/kernel/security/lockdown").and_then(|modes| chosen(&modes)),
            maps_need_cap_bpf: privileges::maps_need_cap_bpf(),
            confinement: Confinement::of_kernel(),
            unprivileged_bpf_disabled: number("/proc/sys/kernel/unprivileged_bpf_disabled"),
            perf_event_paranoid: number("/proc/sys/kernel/perf_event_paranoid"),
            kptr_restrict: number("/proc/sys/kernel/kptr_restrict"),
            tracefs: mount_point("tracefs"),
            cgroup2: mount_point("cgroup2"),
            executable: std::env::current_exe().unwrap_or_else(|_| "tcptrace".into()),
        }
    }

    /// The capability is effective where it counts, itself or through one that includes it.
    /// <https://github.com/torvalds/linux/blob/v6.18/include/linux/capability.h> (`bpf_capable`)
    #[must_use]
    pub fn has(&self, capability: Capability) -> bool {
        self.initial_user_namespace && self.holding(capability).is_some()
    }

    /// The capability, or the one held in its place that includes it.
    pub(super) fn holding(&self, capability: Capability) -> Option<Capability> {
        let includes = match capability {
            Capability::CAP_BPF | Capability::CAP_PERFMON => Capability::CAP_SYS_ADMIN,
            Capability::CAP_DAC_READ_SEARCH => Capability::CAP_DAC_OVERRIDE,
            other => other,
        };
        [capability, includes]
            .into_iter()
            .find(|it| self.capabilities.contains(it))
    }
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

fn number(path: &str) -> Option<i32> {
    text(path)?.parse().ok()
}

fn is_link(path: &str, target: &str) -> bool {
    fs::read_link(path).is_ok_and(|link| link.as_os_str() == target)
}

/// The word in brackets, as in `none [integrity] confidentiality`.
fn chosen(modes: &str) -> Option<String> {
    let (_, rest) = modes.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

fn mount_point(kind: &str) -> Option<PathBuf> {
    let mounts = procfs::process::Process::myself()
        .and_then(|me| me.mountinfo())
        .ok()?;
    mounts
        .into_iter()
        .find(|mount| mount.fs_type == kind)
        .map(|mount| mount.mount_point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockdown_is_the_word_in_brackets() {
        assert_eq!(
            chosen("none [integrity] confidentiality").as_deref(),
            Some("integrity")
        );
        assert_eq!(chosen("none integrity"), None);
    }

    #[test]
    fn the_running_host_has_a_release_and_a_program() {
        let facts = Facts::gather(
            Err(&BtfError::UnknownKind { kind: 31, at: 24 }),
            Err(SymbolError::Absent),
        );
        assert!(
            facts
                .release
                .starts_with(|first: char| first.is_ascii_digit())
        );
        assert!(facts.executable.is_absolute());
        assert!(facts.btf.is_err());
        assert!(facts.raw_tracepoints.is_empty());
    }
}
