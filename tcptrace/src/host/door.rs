//! The one thread that keeps `CAP_SYS_ADMIN`, because to enter a network namespace takes it, and can
//! do little else with it.
//!
//! Containers come and go while a trace runs, and only from within a namespace the kernel tells what
//! its sockets are. So this thread, and those it starts for each visit, keep the capability; a
//! seccomp filter takes from them what else it would open: eBPF, mounts, modules, other namespaces.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::{Context as _, Result};
use caps::{Capability, CapsHashSet};
use libc::{sock_filter, sock_fprog};

use crate::kernel::privileges::keep_only;

type Visit<'a> = Box<dyn FnOnce() + Send + 'a>;

static DOOR: OnceLock<Sender<Visit<'static>>> = OnceLock::new();

/// The name of these threads.
pub const NAME: &str = "netns";

/// Starts the thread: from now on namespaces are entered through it.
///
/// # Errors
/// There is no thread, or its privileges cannot be confined; then no other namespace can be entered
/// once the caller has given up its own.
pub fn keep() -> Result<()> {
    let (send, visits) = mpsc::channel::<Visit>();
    let (tell, told) = mpsc::sync_channel(1);
    let serve = move || {
        let kept = CapsHashSet::from([Capability::CAP_SYS_ADMIN]);
        let confined = keep_only(&kept).and_then(|()| confine());
        let stays = confined.is_ok();
        if tell.send(confined).is_err() || !stays {
            return;
        }
        for visit in visits {
            // Each in a thread of its own: a long one holds up no other. One that cannot be started
            // is dropped, which its caller notices.
            drop(thread::Builder::new().name(NAME.into()).spawn(visit));
        }
    };
    thread::Builder::new().name(NAME.into()).spawn(serve)?;
    told.recv()??;
    // A second one would do the same.
    let _ = DOOR.set(send);
    Ok(())
}

/// Why a visit gave no result.
#[derive(Debug)]
pub(super) enum Failed {
    /// It panicked with this.
    Panicked(Box<dyn Any + Send>),
    /// There was no thread for it.
    NotStarted,
}

/// Whether namespaces are entered through the door.
pub(super) fn is_kept() -> bool {
    DOOR.get().is_some()
}

/// Runs `visit` in a thread behind the door, and waits for it.
pub(super) fn through<T: Send>(visit: impl FnOnce() -> T + Send) -> Result<T, Failed> {
    let door = DOOR.get().ok_or(Failed::NotStarted)?;
    let (tell, told) = mpsc::sync_channel(1);
    let visit: Visit<'_> = Box::new(move || {
        // Nobody left to tell is impossible: the caller waits.
        let _ = tell.send(catch_unwind(AssertUnwindSafe(visit)));
    });
    // SAFETY: only the lifetime is changed. What the visit borrows lives until this function returns,
    // which it does once the visit has told its result, and so consumed all it borrowed, or was
    // dropped.
    let visit = unsafe { std::mem::transmute::<Visit<'_>, Visit<'static>>(visit) };
    door.send(visit).map_err(|_| Failed::NotStarted)?;
    match told.recv() {
        Ok(result) => result.map_err(Failed::Panicked),
        Err(_) => Err(Failed::NotStarted),
    }
}

/// What the capability opens and no look into a namespace needs.
/// <https://man7.org/linux/man-pages/man7/capabilities.7.html> (`CAP_SYS_ADMIN`)
const CLOSED: [libc::c_long; 36] = [
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_io_uring_setup,
    libc::SYS_ioctl,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// How the kernel names this machine's calls.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/audit.h>
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

/// On x86-64 numbers from here on are the same calls by another name (x32).
/// <https://github.com/torvalds/linux/blob/v6.18/arch/x86/include/uapi/asm/unistd.h>
const X32: u32 = 0x4000_0000;

/// Forbids the calling thread, and those it starts, the calls of [`CLOSED`], and `setns` into
/// anything but a network namespace.
fn confine() -> Result<()> {
    let mut program = filter();
    let program = sock_fprog {
        len: program.len().try_into().context("a short program")?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which is alive and as long as it says.
    let set = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    nix::errno::Errno::result(set).context("seccomp does not take the filter")?;
    Ok(())
}

/// The filter, over `struct seccomp_data`.
/// <https://docs.kernel.org/userspace-api/seccomp_filter.html>
fn filter() -> Vec<sock_filter> {
    /// Offset of the call's number.
    const NUMBER: u32 = 0;
    /// Offset of the architecture.
    const MACHINE: u32 = 4;
    /// Offset of the second argument's lower half on a little-endian machine.
    const SECOND: u32 = 16 + 8;
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let give = |action| statement(libc::BPF_RET | libc::BPF_K, action);
    let refuse = || give(libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned());
    let is = |value| jump(libc::BPF_JEQ, value, 0, 1);
    let number = |call: libc::c_long| u32::try_from(call).unwrap_or(u32::MAX);
    let mut program = vec![
        load(MACHINE),
        jump(libc::BPF_JEQ, ARCH, 1, 0),
        refuse(),
        load(NUMBER),
        jump(libc::BPF_JGE, X32, 0, 1),
        refuse(),
    ];
    for call in CLOSED {
        program.extend([is(number(call)), refuse()]);
    }
    program.extend([
        jump(libc::BPF_JEQ, number(libc::SYS_setns), 0, 3),
        load(SECOND),
        jump(libc::BPF_JEQ, libc::CLONE_NEWNET.cast_unsigned(), 1, 0),
        refuse(),
        give(libc::SECCOMP_RET_ALLOW),
    ]);
    program
}

fn statement(code: u32, k: u32) -> sock_filter {
    instruction(code, k, 0, 0)
}

fn jump(condition: u32, k: u32, then: u8, otherwise: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_K | condition, k, then, otherwise)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt,
        jf,
        k,
    }
}
