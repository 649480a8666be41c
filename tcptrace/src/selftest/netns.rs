//! A private network namespace for the calling thread: loopback up, its own sysctls, its own
//! counters.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// The network namespace a thread made for itself. Everything the thread starts is born into it.
///
/// It lives as long as this value, also when the thread has ended: the number of a namespace that
/// is gone is given to the next one made on the host.
#[derive(Debug)]
pub struct Netns {
    file: File,
    inode: u32,
}

impl Netns {
    /// Moves the calling thread, and no other, into a new namespace and turns its loopback on.
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN`, or on a kernel without network namespaces.
    pub fn enter() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)
            .context("cannot make a private network namespace: run as root (CAP_SYS_ADMIN)")?;
        let file = File::open("/proc/thread-self/ns/net").context("cannot read /proc")?;
        let inode = file.metadata().context("cannot read /proc")?.ino();
        let netns = Self {
            file,
            inode: u32::try_from(inode).context("namespace inode")?,
        };
        netns.set_loopback(true)?;
        Ok(netns)
    }

    /// Its number in the records: the inode of `/proc/PID/ns/net`.
    #[must_use]
    pub fn inode(&self) -> u32 {
        self.inode
    }

    /// A path to it for `--netns`, good in any process while this value lives. A number would be
    /// taken at its word; this is a namespace that exists.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let (pid, fd) = (std::process::id(), self.file.as_raw_fd());
        format!("/proc/{pid}/fd/{fd}").into()
    }

    /// Turns the loopback on or off: off, every packet is lost.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_loopback(&self, up: bool) -> Result<()> {
        let control = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        set_flags(
            &control,
            if up {
                libc::IFF_UP | libc::IFF_RUNNING
            } else {
                0
            },
        )
        .context("cannot switch the loopback device")
    }

    /// Writes a sysctl of this namespace, e.g. `net.ipv4.tcp_abort_on_overflow`.
    ///
    /// # Errors
    /// When the kernel has no such sysctl or refuses the value.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value)
            .with_context(|| format!("cannot set {name} to {value}"))
    }

    /// The kernel's counters of this namespace under the names `nstat` uses. Call it on the thread
    /// that entered.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn counters(&self) -> Result<Counters> {
        let mut counters = HashMap::new();
        for file in ["snmp", "netstat"] {
            let path = format!("/proc/thread-self/net/{file}");
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            let mut lines = text.lines();
            // Two lines a group: the names, then the values, both after the group's own name.
            while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
                let group = names.split(':').next().unwrap_or_default();
                for (name, value) in names.split(' ').zip(values.split(' ')).skip(1) {
                    if let Ok(value) = value.parse() {
                        counters.insert(format!("{group}{name}"), value);
                    }
                }
            }
        }
        Ok(Counters(counters))
    }
}

/// The kernel's counters at one moment.
#[derive(Clone, Debug, Default)]
pub struct Counters(HashMap<String, u64>);

impl Counters {
    /// By how much a counter grew since `earlier`; `None` when this kernel has no such counter.
    #[must_use]
    pub fn since(&self, earlier: &Self, name: &str) -> Option<u64> {
        Some(
            self.0
                .get(name)?
                .saturating_sub(earlier.0.get(name).copied().unwrap_or(0)),
        )
    }
}

fn set_flags(control: &OwnedFd, flags: libc::c_int) -> nix::Result<()> {
    // SAFETY: every bit pattern, all zero too, is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    // SAFETY: the kernel reads one ifreq, which outlives the call.
    let result =
        unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    nix::errno::Errno::result(result).map(drop)
}
