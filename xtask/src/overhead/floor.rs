//! The floor: programs that return at once, attached to the hooks of a tracer. What they cost is the
//! kernel's price for being asked, whatever a program does.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use anyhow::{Context as _, Result};
use nix::libc;

/// A place programs are attached to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Hook {
    /// A raw tracepoint.
    Raw(String),
    /// The classic tracepoint of a system call.
    Syscall(String),
}

/// Attached programs, which this process holds; dropping them detaches.
pub(super) struct Floor(#[expect(dead_code, reason = "held for their drop alone")] Vec<OwnedFd>);

impl Floor {
    /// Attaches a program to each hook.
    pub(super) fn attach(hooks: &[Hook]) -> Result<Self> {
        let mut held = Vec::new();
        for hook in hooks {
            attach(hook, &mut held).with_context(|| format!("no empty program at {hook:?}"))?;
        }
        Ok(Self(held))
    }
}

// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_TRACEPOINT: u32 = 5;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
const BPF_PERF_EVENT: u32 = 41;
// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/perf_event.h>
const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
const PERF_EVENT_IOC_ENABLE: libc::c_ulong = 0x2400;

/// `r0 = 0; exit`
const NOTHING: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];

/// The beginning of `union bpf_attr` for each command used.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u32; 6],
}

#[repr(C)]
struct Open {
    name: u64,
    program: u32,
    pad: u32,
}

#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    kind: u32,
    flags: u32,
}

/// `struct perf_event_attr`, its first version.
#[repr(C)]
#[derive(Default)]
struct Event {
    kind: u32,
    size: u32,
    config: u64,
    rest: [u64; 6],
}

fn attach(hook: &Hook, held: &mut Vec<OwnedFd>) -> Result<()> {
    let link = match hook {
        Hook::Raw(name) => {
            let program = load(BPF_PROG_TYPE_RAW_TRACEPOINT)?;
            let name = CString::new(name.as_str())?;
            let open = Open {
                name: name.as_ptr() as u64,
                program: number(&program),
                pad: 0,
            };
            let link = bpf(BPF_RAW_TRACEPOINT_OPEN, &open)?;
            held.push(program);
            link
        }
        Hook::Syscall(name) => {
            let program = load(BPF_PROG_TYPE_TRACEPOINT)?;
            let id = fs::read_to_string(format!("/sys/kernel/tracing/events/syscalls/{name}/id"))?;
            let event = perf_event(id.trim().parse()?)?;
            let link = Link {
                program: number(&program),
                target: number(&event),
                kind: BPF_PERF_EVENT,
                flags: 0,
            };
            let link = bpf(BPF_LINK_CREATE, &link)?;
            held.extend([program, event]);
            link
        }
    };
    held.push(link);
    Ok(())
}

fn load(kind: u32) -> io::Result<OwnedFd> {
    let load = Load {
        kind,
        instructions: 2,
        code: NOTHING.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log: [0; 6],
    };
    bpf(BPF_PROG_LOAD, &load)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as it is told, and what they point to outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const *attributes,
            size_of::<T>(),
        )
    };
    owned(fd)
}

fn perf_event(id: u64) -> io::Result<OwnedFd> {
    let event = Event {
        kind: PERF_TYPE_TRACEPOINT,
        size: size_of::<Event>().try_into().unwrap_or_default(),
        config: id,
        rest: [0; 6],
    };
    // Any process, on one CPU: the program is the tracepoint's, and runs on all.
    // SAFETY: the kernel reads the attributes, which outlive the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const event,
            -1,
            0,
            -1,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    let event = owned(fd)?;
    // SAFETY: the request takes no argument.
    let enabled = unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_ENABLE, 0) };
    if enabled < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(event)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just opened it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}
