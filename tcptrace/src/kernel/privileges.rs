//! Which capabilities tcptrace uses, what for and until when; and how it gives up the others.
//!
//! What needs a capability only before the trace begins loses it with [`keep_only`] once everything is
//! attached, for root as for everybody else. Capabilities belong to threads: it is called before
//! there are others, and threads started later begin with what is left.

use std::io;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use procfs::sys::kernel::Version;

use super::facts::Facts;
use crate::sink::text::printable;

/// A capability and what it is for.
#[derive(Debug)]
pub struct Privilege {
    /// The capability.
    pub capability: Capability,
    /// Nothing can be traced without it.
    pub required: bool,
    /// The command that grants privileges grants it. `CAP_SYS_ADMIN` is left to sudo: it would make
    /// all others pointless. So is what only an option takes.
    pub granted: bool,
    /// What it is needed for until everything is attached; empty when for nothing.
    pub attaching: &'static str,
    /// What it is needed for from then on.
    pub tracing: Tracing,
    /// Needed only before this version of Linux.
    pub before: Option<Version>,
}

/// What a capability is needed for while tracing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracing {
    /// For nothing: it is given up.
    Nothing,
    /// For this.
    For(&'static str),
    /// For this, and only one thread has it, which is kept from all else it opens.
    Confined(&'static str),
    /// For this, where the kernel asks for it: [`Facts::maps_need_cap_bpf`].
    ForMaps(&'static str),
}

/// What opens a file through a mapping of another process.
/// <https://github.com/torvalds/linux/blob/v6.18/fs/proc/base.c> (`proc_map_files_get_link`)
pub const MAP_FILES: Capability = Capability::CAP_CHECKPOINT_RESTORE;

/// All that tcptrace uses on any kernel.
const PRIVILEGES: &[Privilege] = &[
    Privilege {
        capability: Capability::CAP_BPF,
        required: true,
        granted: true,
        attaching: "make the tables of the kernel half and load it",
        tracing: Tracing::ForMaps("read those tables, which this kernel asks it for each time"),
        before: None,
    },
    Privilege {
        capability: Capability::CAP_PERFMON,
        required: true,
        granted: true,
        attaching: "let the kernel half read kernel memory, and attach it",
        tracing: Tracing::Nothing,
        before: None,
    },
    Privilege {
        capability: Capability::CAP_SYS_PTRACE,
        required: false,
        granted: true,
        attaching: "",
        tracing: Tracing::For(
            "see whose descriptors are sockets, and what others run and wait for",
        ),
        before: None,
    },
    Privilege {
        capability: Capability::CAP_DAC_READ_SEARCH,
        required: false,
        granted: true,
        attaching: "read tracefs",
        tracing: Tracing::For("read other users' entries in /proc"),
        before: None,
    },
    Privilege {
        capability: MAP_FILES,
        required: false,
        granted: false,
        attaching: "",
        tracing: Tracing::Confined("with --stack: open the binaries that others have mapped"),
        before: None,
    },
    Privilege {
        capability: Capability::CAP_SYSLOG,
        required: false,
        granted: true,
        attaching: "see the addresses of kernel functions",
        tracing: Tracing::Nothing,
        before: None,
    },
    Privilege {
        capability: Capability::CAP_SYS_NICE,
        required: false,
        granted: true,
        attaching: "keep up when a storm fills every core",
        tracing: Tracing::Nothing,
        before: None,
    },
    // https://github.com/torvalds/linux/blob/v5.10/kernel/bpf/syscall.c (bpf_charge_memlock)
    Privilege {
        capability: Capability::CAP_SYS_RESOURCE,
        required: false,
        granted: true,
        attaching: "raise the limit of locked memory, which those tables count against",
        tracing: Tracing::Nothing,
        before: Some(Version {
            major: 5,
            minor: 11,
            patch: 0,
        }),
    },
    Privilege {
        capability: Capability::CAP_SYS_ADMIN,
        required: false,
        granted: false,
        attaching: "mount a private tracefs where there is none",
        tracing: Tracing::Confined("look into other network namespaces"),
        before: None,
    },
];

/// All that tcptrace uses on this kernel.
pub fn privileges(facts: &Facts) -> impl Iterator<Item = &'static Privilege> {
    let version = facts.release.parse::<Version>();
    let is_past = move |before| version.as_ref().is_ok_and(|version| *version >= before);
    PRIVILEGES
        .iter()
        .filter(move |it| !it.before.is_some_and(&is_past))
}

impl Privilege {
    /// What it is kept for on this host after everything is attached; `None` when it is given up.
    #[must_use]
    pub fn kept_for(&self, facts: &Facts) -> Option<&'static str> {
        match self.tracing {
            Tracing::Nothing => None,
            Tracing::ForMaps(what) => facts.maps_need_cap_bpf.then_some(what),
            Tracing::For(what) | Tracing::Confined(what) => Some(what),
        }
    }
}

/// Capabilities without which nothing can be traced.
#[must_use]
pub fn required_missing(facts: &Facts) -> Vec<Capability> {
    privileges(facts)
        .filter(|it| it.required && !facts.has(it.capability))
        .map(|it| it.capability)
        .collect()
}

/// What to do where [`Facts::initial_pid_namespace`] does not hold.
pub const HOST_PIDS: &str =
    "run it in the host's PID namespace (docker run --pid=host; in Kubernetes hostPID: true)";

/// How to get the missing capabilities.
#[must_use]
pub fn grant_command(facts: &Facts) -> String {
    if !facts.initial_user_namespace {
        return "run it outside the user namespace: capabilities in here do not open eBPF"
            .to_owned();
    }
    let names: Vec<_> = privileges(facts)
        .filter(|it| it.granted)
        .map(|it| it.capability.to_string().to_lowercase())
        .collect();
    // A shell takes all as it is between these quotes but another one.
    let path = facts
        .executable
        .display()
        .to_string()
        .replace('\'', r"'\''");
    format!(
        "sudo setcap {}+ep '{}', or run it with sudo",
        names.join(","),
        printable(path)
    )
}

/// What the thread that names stacks keeps, of what there is.
#[must_use]
pub fn kept_for_stacks(facts: &Facts) -> CapsHashSet {
    let kept = [
        MAP_FILES,
        Capability::CAP_SYS_PTRACE,
        Capability::CAP_DAC_READ_SEARCH,
    ];
    kept.into_iter()
        .filter_map(|it| facts.holding(it))
        .collect()
}

/// What every thread keeps once everything is attached, of what there is.
#[must_use]
pub fn kept(facts: &Facts) -> CapsHashSet {
    privileges(facts)
        .filter(|it| !matches!(it.tracing, Tracing::Confined(_)) && it.kept_for(facts).is_some())
        .filter_map(|it| facts.holding(it.capability))
        .collect()
}

/// Takes from the calling thread, and from every thread it starts later, all capabilities but these,
/// for good: no program it could start gets any either.
///
/// The bounding set is emptied only by who has `CAP_SETPCAP`. Without it, as with it,
/// `NO_NEW_PRIVS` says that exec gives nothing:
/// <https://docs.kernel.org/userspace-api/no_new_privs.html>
///
/// # Errors
/// The kernel refuses, or something remains that was to go.
pub fn keep_only(kept: &CapsHashSet) -> Result<()> {
    const FAILED: &str = "cannot give up the privileges that are needed no longer";
    let give_up = || -> Result<()> {
        if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
            for capability in caps::read(None, CapSet::Bounding)? {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
        caps::clear(None, CapSet::Ambient)?;
        prctl::set_no_new_privs()?;
        for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
            let held = caps::read(None, set)?;
            let left = match set {
                CapSet::Inheritable => CapsHashSet::new(),
                _ => held.intersection(kept).copied().collect(),
            };
            caps::set(None, set, &left)?;
        }
        Ok(())
    };
    give_up().context(FAILED)?;
    let permitted = caps::read(None, CapSet::Permitted).context(FAILED)?;
    match permitted.difference(kept).next() {
        Some(left) => Err(anyhow!("{left} is still there").context(FAILED)),
        None => Ok(()),
    }
}

/// What `work` gives in a thread that has no other capabilities than these.
///
/// # Errors
/// There is no such thread.
pub fn rehearse<T: Send>(kept: &CapsHashSet, work: impl FnOnce() -> T + Send) -> Result<T> {
    let actor = || keep_only(kept).map(|()| work());
    thread::scope(|scope| match scope.spawn(actor).join() {
        Ok(result) => result,
        Err(_) => Err(anyhow!("the thread without privileges panicked")),
    })
}

/// Even reading a map takes `CAP_BPF`. Before Linux 5.19 `kernel.unprivileged_bpf_disabled` closes
/// every command of bpf(2), since then only those that make something.
/// <https://github.com/torvalds/linux/blob/v5.18/kernel/bpf/syscall.c> (`__sys_bpf`),
/// <https://github.com/torvalds/linux/commit/c8644cd0efe719608ddcb341bcf087d4bc0bf6b8>
///
/// Asked of the kernel, as distributions bring such changes to older ones: whoever may use the
/// command is told that there is no such map.
pub(super) fn maps_need_cap_bpf() -> bool {
    /// The first member of `union bpf_attr` for this command is the descriptor of the map.
    /// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>
    const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
    let ask = || {
        let mut attr = [0_i32; 16];
        attr[0] = -1;
        let size = size_of_val(&attr);
        // SAFETY: the kernel reads `size` bytes of `attr`, and writes nothing without a map.
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_ELEM, attr.as_ptr(), size) };
        io::Error::last_os_error().raw_os_error()
    };
    // Where nothing could be asked, what is kept in vain does less harm than what is missed.
    rehearse(&CapsHashSet::new(), ask).map_or(true, |errno| errno == Some(libc::EPERM))
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::facts;
    use super::*;

    #[test]
    fn an_administrator_needs_neither_of_the_two() {
        let mut facts = facts();
        facts.capabilities = vec![Capability::CAP_SYS_ADMIN];
        assert_eq!(required_missing(&facts), []);
        facts.initial_user_namespace = false;
        assert_eq!(
            required_missing(&facts),
            [Capability::CAP_BPF, Capability::CAP_PERFMON]
        );
        assert!(grant_command(&facts).contains("outside the user namespace"));
    }

    #[test]
    fn memory_is_limited_before_5_11() {
        let grants = |release: &str| {
            let mut facts = facts();
            facts.release = release.to_owned();
            grant_command(&facts).contains("cap_sys_resource")
        };
        assert!(grants("5.10.0-46-cloud-amd64"));
        assert!(!grants("5.11.0"));
        assert!(!grants("6.18.44"));
    }

    #[test]
    fn only_what_proc_takes_is_kept_and_for_the_maps_only_where_the_kernel_asks() {
        let proc = [Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH];
        let mut facts = facts();
        facts.capabilities = caps::all().into_iter().collect();
        assert_eq!(kept(&facts), proc.into());
        facts.maps_need_cap_bpf = true;
        assert_eq!(
            kept(&facts),
            CapsHashSet::from([proc[0], proc[1], Capability::CAP_BPF])
        );
    }

    #[test]
    fn a_capability_that_includes_another_is_kept_in_its_place() {
        let mut facts = facts();
        facts.maps_need_cap_bpf = true;
        facts.capabilities = vec![Capability::CAP_SYS_ADMIN, Capability::CAP_DAC_OVERRIDE];
        assert_eq!(
            kept(&facts),
            [Capability::CAP_SYS_ADMIN, Capability::CAP_DAC_OVERRIDE].into()
        );
    }

    #[test]
    fn a_thread_that_keeps_nothing_has_nothing_and_the_others_what_they_had() {
        let sets = || [CapSet::Effective, CapSet::Permitted].map(|set| caps::read(None, set).ok());
        let before = sets();
        let within = rehearse(&CapsHashSet::new(), || {
            (sets(), prctl::get_no_new_privs().ok())
        });
        let nothing = Some(CapsHashSet::new());
        assert_eq!(
            within.expect("a thread"),
            ([nothing.clone(), nothing], Some(true))
        );
        assert_eq!(sets(), before);
    }
}
