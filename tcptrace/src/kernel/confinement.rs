//! What a thread can no longer do once it traces, on top of the capabilities it gave up: a seccomp
//! filter leaves it the calls of its [`Part`], and landlock keeps the thread that writes the output file
//! in its directory.
//!
//! Only that thread is under landlock. Whoever is may look into no process outside its own domain, and
//! to look into others is what the rest of tcptrace is for:
//! <https://github.com/torvalds/linux/blob/v6.18/security/landlock/task.c> (`hook_ptrace_access_check`).
//! The others open nothing for writing at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    Scope, path_beneath_rules,
};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{getpid, gettid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// What a thread is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Reads the ring and the host, and writes to what is open.
    Reader,
    /// Enters network namespaces.
    Door,
    /// Writes the output file, opens it and moves it aside.
    Files,
    /// Delivers records or counts over sockets.
    Export,
    /// Answers on the port of `--metrics`.
    Metrics,
    /// Draws the screen of `top` and reads its keys.
    Screen,
    /// Reads the binaries of other processes.
    Stacks,
}

impl Part {
    /// Each, and in words which thread it is.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Reader, "every thread"),
        (Self::Door, "the thread that enters namespaces"),
        (Self::Files, "the thread that writes --output-file"),
        (Self::Export, "the threads of --export and --metrics otlp"),
        (Self::Metrics, "the thread that answers on --metrics"),
        (Self::Screen, "the thread that draws for top"),
        (Self::Stacks, "the thread that names what --stack shows"),
    ];
}

/// What some calls are for, and for whom. To let a new thing be done is to add a row.
struct Use {
    /// Named in `doctor --verbose`.
    purpose: &'static str,
    parts: &'static [Part],
    calls: &'static [Call],
}

/// A call by its number, and what must hold of its arguments. Several rows for one number are
/// alternatives.
type Call = (libc::c_long, &'static [When]);

/// What holds of an argument, counted from 0.
#[derive(Clone, Copy)]
enum When {
    /// It is this number.
    Is(u8, i32),
    /// It has all of these bits.
    Has(u8, i32),
    /// It has none of these bits.
    Lacks(u8, i32),
}
use When::{Has, Is, Lacks};

const ALL: &[Part] = &[
    Part::Reader,
    Part::Door,
    Part::Files,
    Part::Export,
    Part::Metrics,
    Part::Screen,
    Part::Stacks,
];
const ANY: &[When] = &[];

/// Flags with which a file is changed or made.
const CHANGING: i32 = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;

/// Whether it is a terminal, and how wide.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/asm-generic/ioctls.h>
const TCGETS: i32 = 0x5401;
const TCSETS: i32 = 0x5402;
const TCGETS2: i32 = 0x802c_542a_u32.cast_signed();
const TCSETS2: i32 = 0x402c_542b;
const TIOCGWINSZ: i32 = 0x5413;
/// How much of what was sent is underway, and how much can be read.
const TIOCOUTQ: i32 = 0x5411;
const FIONREAD: i32 = 0x541b;
const FIONBIO: i32 = 0x5421;

/// Whether a file is a network namespace.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/nsfs.h>
const NS_GET_NSTYPE: i32 = 0xb703;

/// Commands of bpf(2) that read and write the maps there are.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h> (`enum bpf_cmd`)
const MAP_COMMANDS: [i32; 4] = [1, 2, 3, 4];
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/perf_event.h>
const PERF_EVENT_IOC_DISABLE: i32 = 0x2401;

/// All that may still be done. Anything else gives EPERM.
const USES: &[Use] = &[
    Use {
        purpose: "read files and directories",
        parts: ALL,
        calls: &[
            (libc::SYS_openat, &[Lacks(2, CHANGING)]),
            (libc::SYS_read, ANY),
            (libc::SYS_pread64, ANY),
            (libc::SYS_readv, ANY),
            (libc::SYS_lseek, ANY),
            (libc::SYS_getdents64, ANY),
            (libc::SYS_readlinkat, ANY),
            (libc::SYS_fstat, ANY),
            (libc::SYS_newfstatat, ANY),
            (libc::SYS_statx, ANY),
            (libc::SYS_statfs, ANY),
            (libc::SYS_fstatfs, ANY),
            (libc::SYS_faccessat, ANY),
            (libc::SYS_faccessat2, ANY),
            (libc::SYS_getcwd, ANY),
            (libc::SYS_close, ANY),
            (libc::SYS_fcntl, ANY),
            (libc::SYS_dup, ANY),
        ],
    },
    #[cfg(target_arch = "x86_64")]
    Use {
        purpose: "read files and directories, by older names",
        parts: ALL,
        calls: &[
            (libc::SYS_open, &[Lacks(1, CHANGING)]),
            (libc::SYS_stat, ANY),
            (libc::SYS_lstat, ANY),
            (libc::SYS_access, ANY),
            (libc::SYS_readlink, ANY),
        ],
    },
    Use {
        purpose: "write to what is open",
        parts: ALL,
        calls: &[
            (libc::SYS_write, ANY),
            (libc::SYS_writev, ANY),
            (libc::SYS_pwrite64, ANY),
            (libc::SYS_fsync, ANY),
            (libc::SYS_fdatasync, ANY),
            (libc::SYS_ioctl, &[Is(1, TCGETS)]),
            (libc::SYS_ioctl, &[Is(1, TIOCGWINSZ)]),
        ],
    },
    Use {
        purpose: "have memory, none of it code",
        parts: ALL,
        calls: &[
            (libc::SYS_mmap, &[Lacks(2, libc::PROT_EXEC)]),
            (libc::SYS_mprotect, &[Lacks(2, libc::PROT_EXEC)]),
            (libc::SYS_munmap, ANY),
            (libc::SYS_mremap, ANY),
            (libc::SYS_madvise, ANY),
            (libc::SYS_brk, ANY),
        ],
    },
    Use {
        purpose: "start threads and end, but no process",
        parts: ALL,
        calls: &[
            (libc::SYS_clone, &[Has(0, libc::CLONE_THREAD)]),
            (libc::SYS_set_robust_list, ANY),
            (libc::SYS_set_tid_address, ANY),
            (libc::SYS_rseq, ANY),
            (libc::SYS_futex, ANY),
            (libc::SYS_sched_yield, ANY),
            (libc::SYS_setpriority, ANY),
            (libc::SYS_sched_getaffinity, ANY),
            (libc::SYS_membarrier, ANY),
            (libc::SYS_prctl, &[Is(0, libc::PR_SET_NAME)]),
            (libc::SYS_exit, ANY),
            (libc::SYS_exit_group, ANY),
        ],
    },
    Use {
        purpose: "know itself, the time and chance",
        parts: ALL,
        calls: &[
            (libc::SYS_getpid, ANY),
            (libc::SYS_gettid, ANY),
            (libc::SYS_getuid, ANY),
            (libc::SYS_geteuid, ANY),
            (libc::SYS_getgid, ANY),
            (libc::SYS_getegid, ANY),
            (libc::SYS_capget, ANY),
            (libc::SYS_prlimit64, &[Is(2, 0)]),
            (libc::SYS_uname, ANY),
            (libc::SYS_sysinfo, ANY),
            (libc::SYS_clock_gettime, ANY),
            (libc::SYS_clock_getres, ANY),
            (libc::SYS_gettimeofday, ANY),
            (libc::SYS_getrandom, ANY),
        ],
    },
    Use {
        purpose: "wait",
        parts: ALL,
        calls: &[
            (libc::SYS_epoll_create1, ANY),
            (libc::SYS_epoll_ctl, ANY),
            (libc::SYS_epoll_pwait, ANY),
            (libc::SYS_epoll_pwait2, ANY),
            (libc::SYS_ppoll, ANY),
            (libc::SYS_eventfd2, ANY),
            (libc::SYS_pipe2, ANY),
            (libc::SYS_nanosleep, ANY),
            (libc::SYS_clock_nanosleep, ANY),
            (libc::SYS_restart_syscall, ANY),
            (libc::SYS_wait4, ANY),
            (libc::SYS_waitid, ANY),
        ],
    },
    #[cfg(target_arch = "x86_64")]
    Use {
        purpose: "wait, by older names",
        parts: ALL,
        calls: &[(libc::SYS_epoll_wait, ANY), (libc::SYS_poll, ANY)],
    },
    Use {
        purpose: "take signals, and send them to itself",
        parts: ALL,
        calls: &[
            (libc::SYS_rt_sigaction, ANY),
            (libc::SYS_rt_sigprocmask, ANY),
            (libc::SYS_rt_sigreturn, ANY),
            (libc::SYS_sigaltstack, ANY),
            (libc::SYS_tgkill, ANY),
            (libc::SYS_tkill, ANY),
            (libc::SYS_socketpair, ANY),
        ],
    },
    Use {
        purpose: "read and write the tables of the kernel half, and detach it",
        parts: &[Part::Reader],
        calls: &[
            (libc::SYS_bpf, &[Is(0, MAP_COMMANDS[0])]),
            (libc::SYS_bpf, &[Is(0, MAP_COMMANDS[1])]),
            (libc::SYS_bpf, &[Is(0, MAP_COMMANDS[2])]),
            (libc::SYS_bpf, &[Is(0, MAP_COMMANDS[3])]),
            (libc::SYS_ioctl, &[Is(1, PERF_EVENT_IOC_DISABLE)]),
        ],
    },
    Use {
        purpose: "ask the kernel for its sockets, addresses and namespaces",
        parts: &[Part::Reader, Part::Door],
        calls: &[
            (
                libc::SYS_socket,
                &[Is(0, libc::AF_NETLINK), Is(2, libc::NETLINK_SOCK_DIAG)],
            ),
            (
                libc::SYS_socket,
                &[Is(0, libc::AF_NETLINK), Is(2, libc::NETLINK_ROUTE)],
            ),
            (libc::SYS_ioctl, &[Is(1, NS_GET_NSTYPE)]),
            (libc::SYS_bind, ANY),
            (libc::SYS_getsockname, ANY),
            (libc::SYS_setsockopt, ANY),
            (libc::SYS_sendto, ANY),
            (libc::SYS_sendmsg, ANY),
        ],
    },
    Use {
        purpose: "hear from the kernel and from its own threads",
        parts: ALL,
        calls: &[(libc::SYS_recvfrom, ANY), (libc::SYS_recvmsg, ANY)],
    },
    Use {
        purpose: "answer on the port it was given",
        parts: &[Part::Metrics],
        calls: &[
            (libc::SYS_accept4, ANY),
            (libc::SYS_sendto, ANY),
            (libc::SYS_shutdown, ANY),
        ],
    },
    Use {
        // Raw, and as it was. The main thread does the latter where the one that draws does not.
        purpose: "set the modes of the terminal",
        parts: &[Part::Screen, Part::Reader],
        calls: &[
            (libc::SYS_ioctl, &[Is(1, TCSETS)]),
            (libc::SYS_ioctl, &[Is(1, TCGETS2)]),
            (libc::SYS_ioctl, &[Is(1, TCSETS2)]),
        ],
    },
    Use {
        purpose: "enter network namespaces",
        parts: &[Part::Door],
        calls: &[(libc::SYS_setns, &[Is(1, libc::CLONE_NEWNET)])],
    },
    Use {
        purpose: "find, reach and feed the destinations of records",
        parts: &[Part::Export],
        calls: &[
            (libc::SYS_socket, &[Is(0, libc::AF_INET)]),
            (libc::SYS_socket, &[Is(0, libc::AF_INET6)]),
            (libc::SYS_socket, &[Is(0, libc::AF_UNIX)]),
            // The resolver orders addresses by what this host can reach.
            (
                libc::SYS_socket,
                &[Is(0, libc::AF_NETLINK), Is(2, libc::NETLINK_ROUTE)],
            ),
            (libc::SYS_bind, ANY),
            (libc::SYS_connect, ANY),
            (libc::SYS_getsockname, ANY),
            (libc::SYS_getpeername, ANY),
            (libc::SYS_getsockopt, ANY),
            (libc::SYS_setsockopt, ANY),
            (libc::SYS_sendto, ANY),
            (libc::SYS_sendmsg, ANY),
            (libc::SYS_sendmmsg, ANY),
            (libc::SYS_shutdown, ANY),
            (libc::SYS_memfd_create, ANY),
            (libc::SYS_ioctl, &[Is(1, TIOCOUTQ)]),
            (libc::SYS_ioctl, &[Is(1, FIONREAD)]),
            // Connecting with a limit of time.
            (libc::SYS_ioctl, &[Is(1, FIONBIO)]),
        ],
    },
    Use {
        purpose: "open the output file and move it aside",
        parts: &[Part::Files],
        calls: &[
            (libc::SYS_openat, ANY),
            (libc::SYS_renameat, ANY),
            (libc::SYS_renameat2, ANY),
            (libc::SYS_unlinkat, ANY),
        ],
    },
];

/// Calls whose arguments lie in memory, where no filter can look. They do not exist for us: libc goes
/// back to the ones before them.
const OPAQUE: [libc::c_long; 2] = [libc::SYS_clone3, libc::SYS_openat2];

/// What this kernel has to confine with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// It filters calls.
    pub seccomp: bool,
    /// It keeps threads to directories.
    pub landlock: bool,
}

impl Confinement {
    /// Asks the running kernel.
    #[must_use]
    pub fn of_kernel() -> Self {
        /// Gives the version of the interface instead of a ruleset.
        /// <https://docs.kernel.org/userspace-api/landlock.html>
        const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
        let nothing = std::ptr::null::<libc::c_void>();
        // SAFETY: with this flag the kernel reads no attributes, and there are none.
        let version = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                nothing,
                0_usize,
                LANDLOCK_CREATE_RULESET_VERSION,
            )
        };
        Self {
            seccomp: fs::metadata("/proc/sys/kernel/seccomp").is_ok(),
            landlock: version > 0,
        }
    }
}

/// What a part may still do, in words.
pub fn purposes(part: Part) -> impl Iterator<Item = &'static str> {
    USES.iter()
        .filter(move |it| it.parts.contains(&part))
        .map(|it| it.purpose)
}

/// Takes from the calling thread, and from every thread it starts later, all calls but those of its
/// part. A kernel without seccomp leaves it all of them. Signals are left to the main thread: to pass one
/// on from another thread takes calls that its part has no other use for, and the signal would be lost.
/// Those of its own faults a thread keeps; blocked they would end the program whoever handles them.
///
/// # Errors
/// The kernel has seccomp and refuses.
pub fn confine(part: Part) -> Result<()> {
    if gettid() != getpid() {
        let mut others = SigSet::all();
        for fault in [
            Signal::SIGBUS,
            Signal::SIGFPE,
            Signal::SIGILL,
            Signal::SIGSEGV,
        ] {
            others.remove(fault);
        }
        others.thread_block()?;
    }
    if !Confinement::of_kernel().seccomp {
        return Ok(());
    }
    let uses = USES.iter().filter(|it| it.parts.contains(&part));
    let (free, bound): (Vec<Call>, Vec<Call>) = uses
        .flat_map(|it| it.calls)
        .partition(|(_, when)| when.is_empty());
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (call, when) in bound {
        let conditions = when.iter().map(|when| when.condition());
        let rule = SeccompRule::new(conditions.collect::<Result<_, _>>()?)?;
        allowed.entry(call).or_default().push(rule);
    }
    // No rule at all stands for no condition.
    let opaque: BTreeMap<_, _> = OPAQUE.map(|call| (call, Vec::new())).into();
    allowed.extend(free.into_iter().map(|(call, _)| (call, Vec::new())));
    allowed.extend(opaque.clone());
    let errno = |errno: i32| SeccompAction::Errno(errno.unsigned_abs());
    // Of two filters that refuse, the later one's error counts, so that one lets these through.
    install(opaque, SeccompAction::Allow, errno(libc::ENOSYS))?;
    install(allowed, errno(libc::EPERM), SeccompAction::Allow)
}

fn install(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<()> {
    let machine = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, otherwise, matched, machine)?;
    apply_filter(&BpfProgram::try_from(filter)?).context("seccomp does not take the filter")
}

impl When {
    fn condition(self) -> Result<SeccompCondition, seccompiler::BackendError> {
        let bits = |bits: i32| u64::from(bits.cast_unsigned());
        let (argument, operator, value) = match self {
            Is(argument, value) => (argument, SeccompCmpOp::Eq, bits(value)),
            Has(argument, mask) => (argument, SeccompCmpOp::MaskedEq(bits(mask)), bits(mask)),
            Lacks(argument, mask) => (argument, SeccompCmpOp::MaskedEq(bits(mask)), 0),
        };
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
    }
}

/// Keeps the calling thread to files in these directories, which it may make, write, rename and remove
/// but not read. A kernel without landlock lets it have more.
///
/// # Errors
/// The kernel has landlock and refuses.
pub fn keep_to<'a>(directories: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let abi = ABI::V6;
    let change =
        AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile | AccessFs::Truncate;
    Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules(directories, change))?
        .restrict_self()
        .context("landlock does not take the rules")?;
    Ok(())
}
