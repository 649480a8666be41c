//! The running task: who it is, which call it is in, what a descriptor of its names.

use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task,
    bpf_get_current_task_btf, bpf_get_current_uid_gid, bpf_task_pt_regs,
};
use tcptrace_common::{
    event::{Event, Sock, Task, flag},
    layout::ABSENT,
};

use crate::{
    filter,
    kernel::{LOOKS, config, field, has_typed_task, layout, own_field, read, read_name},
    sock::{self, Socket},
    stack, words,
};

/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/sched.h>
pub(crate) const PF_EXITING: u32 = 0x4;
pub(crate) const PF_KTHREAD: u32 = 0x0020_0000;
const PF_IO_WORKER: u32 = 0x10;

/// Thread group and thread id of the running task, as the kernel's helpers key them.
#[inline(always)]
pub(crate) fn pid_tgid() -> u64 {
    bpf_get_current_pid_tgid()
}

/// The flags of the process that acts on the socket, of which this is known, if the hook runs for one.
/// A lock that is held says so: the network's interrupt never touches a locked socket, it queues for the
/// task instead. A kernel thread only finishes what a process began.
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c> (`tcp_v4_rcv`)
#[inline(always)]
pub(crate) fn acting_on(socket: Socket, known: Option<&Sock>) -> Option<u32> {
    if !socket.is_locked() {
        return None;
    }
    let flags = own_field!(current(), task_flags: u32);
    let is_owner = known.is_some_and(|known| known.owner.tgid == (pid_tgid() >> 32) as u32);
    (flags & PF_KTHREAD == 0 && (is_owner || !only_looks())).then_some(flags)
}

/// The running task looks at files by name. In `/proc/PID/fd` that takes a reference for a moment, and
/// it is the last one when the process closes the file meanwhile: then the end of the look ends the
/// socket, but whoever looked has nothing to do with it.
/// <https://github.com/torvalds/linux/blob/v6.18/fs/proc/fd.c> (`proc_fd_link`)
#[inline(never)]
fn only_looks() -> bool {
    let number = Call::current().number() as u32;
    let Some(looks) = LOOKS.get(number as usize / 64) else {
        return false;
    };
    // SAFETY: a static's element is valid for reads. Volatile, as in `layout!`.
    unsafe { core::ptr::read_volatile(looks) >> (number % 64) & 1 != 0 }
}

/// The running task.
#[inline(always)]
pub(crate) fn running() -> Task {
    let mut task = words::nobody();
    describe(&mut task);
    task
}

/// The running task, if a filter asks who it is; else nobody.
#[inline(always)]
pub(crate) fn running_if_filtered() -> Task {
    if filter::has_owner_filter() {
        running()
    } else {
        words::nobody()
    }
}

/// Describes the running task.
#[inline(never)]
pub(crate) fn describe(task: &mut Task) {
    let current = current();
    let id = bpf_get_current_pid_tgid();
    task.tgid = (id >> 32) as u32;
    task.tid = id as u32;
    task.uid = bpf_get_current_uid_gid() as u32;
    // SAFETY: the helper takes nothing.
    task.cgroup = unsafe { bpf_get_current_cgroup_id() };
    task.flags = own_field!(current, task_flags: u32);
    task.comm = name_of(current);
}

/// Network namespace of the running task.
#[inline(always)]
pub(crate) fn netns() -> u32 {
    sock::netns(field!(field!(current(), task_nsproxy: u64), nsproxy_net: u64))
}

/// Describes a task that is not running, from its `struct task_struct`.
#[inline(never)]
pub(crate) fn describe_other(other: u64, task: &mut Task) {
    task.tgid = field!(other, task_tgid: u32);
    task.tid = task.tgid;
    task.uid = field!(field!(other, task_cred: u64), cred_uid: u32);
    let cgroup = field!(field!(other, task_cgroups: u64), css_set_cgroup: u64);
    task.cgroup = field!(field!(cgroup, cgroup_kn: u64), kernfs_id: u64);
    task.flags = field!(other, task_flags: u32);
    task.comm = name_of(other);
}

/// The name of a task's process: its leader's.
#[inline(always)]
pub(crate) fn name_of(task: u64) -> [u8; 16] {
    read_name(field!(task, task_group_leader: u64), layout!(task_comm))
}

/// Records who is running and in which call, which names the socket by this descriptor (-1: by none),
/// for a hook that runs for that task.
#[inline(never)]
pub(crate) fn record(event: &mut Event, fd: i32) {
    describe(&mut event.task);
    event.flags |= flag::TASK_CONTEXT;
    if config!(stack) != 0 && stack::take(event.id) {
        event.flags |= flag::STACK;
    }
    if event.task.flags & PF_EXITING != 0 {
        event.flags |= flag::EXITING;
        event.exit_code = exit_code();
        return;
    }
    event.syscall = Call::current().number();
    if fd >= 0 {
        event.fd = fd;
    }
}

/// The exit code of the running task, which is exiting.
#[inline(always)]
pub(crate) fn exit_code() -> i32 {
    let current = current();
    let group = field!(field!(current, task_signal: u64), signal_group_exit_code: i32);
    if group != 0 {
        group
    } else {
        field!(current, task_exit_code: i32)
    }
}

/// The call the running task is in, from the registers it entered the kernel with.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    /// Address of the saved registers; 0: there are none to trust.
    regs: u64,
}

impl Call {
    /// The running task's call. Only for hooks that run for that task: in an interrupt the
    /// registers are a stranger's.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        if !has_typed_task() && layout!(saved_regs) == ABSENT {
            return Self { regs: 0 };
        }
        let current = current();
        let compat = layout!(task_status) != ABSENT
            && own_field!(current, task_status: u32) & layout!(compat) != 0;
        // An io_uring worker never entered the kernel through a call of its own.
        if compat || own_field!(current, task_flags: u32) & (PF_KTHREAD | PF_IO_WORKER) != 0 {
            return Self { regs: 0 };
        }
        if !has_typed_task() {
            let stack = field!(current, task_stack: u64);
            return Self {
                regs: stack + u64::from(layout!(saved_regs)),
            };
        }
        // SAFETY: the helper takes nothing and returns the running task.
        let task = unsafe { bpf_get_current_task_btf() };
        // SAFETY: the argument is the running task.
        let regs = unsafe { bpf_task_pt_regs(task) } as u64;
        Self { regs }
    }

    /// Address of the registers the call was made with; 0: there are none to trust.
    #[inline(always)]
    pub(crate) fn regs(self) -> u64 {
        self.regs
    }

    /// The call's number, else -1.
    #[inline(always)]
    pub(crate) fn number(self) -> i32 {
        if self.regs == 0 {
            -1
        } else {
            own_field!(self.regs, regs_syscall: i32)
        }
    }

    /// First argument.
    #[inline(always)]
    pub(crate) fn arg0(self) -> u64 {
        if self.regs == 0 {
            u64::MAX
        } else {
            own_field!(self.regs, regs_arg0: u64)
        }
    }

    /// Second argument.
    #[inline(always)]
    pub(crate) fn arg1(self) -> u64 {
        if self.regs == 0 {
            0
        } else {
            own_field!(self.regs, regs_arg1: u64)
        }
    }

    /// Third argument.
    #[inline(always)]
    pub(crate) fn arg2(self) -> u64 {
        if self.regs == 0 {
            0
        } else {
            own_field!(self.regs, regs_arg2: u64)
        }
    }

    /// Fourth argument.
    #[inline(always)]
    pub(crate) fn arg3(self) -> u64 {
        if self.regs == 0 {
            0
        } else {
            own_field!(self.regs, regs_arg3: u64)
        }
    }

    /// The first argument as a descriptor, if it names this socket; else -1. Calls that are about one
    /// socket are about this one; while `close` runs the table no longer holds it.
    #[inline(always)]
    pub(crate) fn descriptor_of(self, socket: Socket) -> i32 {
        if self.regs == 0 {
            return -1;
        }
        let fd = self.arg0();
        let number = self.number() as u32;
        if number == layout!(nr_close)
            || number == layout!(nr_connect)
            || number == layout!(nr_shutdown)
            || number == layout!(nr_listen)
        {
            return fd as i32;
        }
        let named = if fd < 1 << 20 { file(fd as u32) } else { 0 };
        if named != 0 && named == socket.file() {
            fd as i32
        } else {
            -1
        }
    }
}

/// The open file a descriptor of the running task names; 0: none.
#[inline(never)]
pub(crate) fn file(fd: u32) -> u64 {
    let table = field!(field!(current(), task_files: u64), files_fdt: u64);
    if table == 0 || fd >= field!(table, fdt_max_fds: u32) {
        return 0;
    }
    read(field!(table, fdt_fd: u64), fd * 8)
}

/// The TCP socket a descriptor of the running task names.
#[inline(always)]
pub(crate) fn socket(fd: u32) -> Option<Socket> {
    Socket::of_file(file(fd))
}

#[inline(always)]
pub(crate) fn current() -> u64 {
    if has_typed_task() {
        // SAFETY: the helper takes nothing and returns the running task.
        return unsafe { bpf_get_current_task_btf() } as u64;
    }
    // SAFETY: the helper takes nothing.
    unsafe { bpf_get_current_task() }
}
