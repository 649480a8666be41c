//! A private network namespace for the calling thread: loopback up, its own sysctls, its own
//! counters, and a second one beside it where a failure needs another host.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
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
        set_flags(
            &control()?,
            "lo",
            if up {
                libc::IFF_UP | libc::IFF_RUNNING
            } else {
                0
            },
        )
        .context("cannot switch the loopback device")
    }

    /// Makes a second namespace, joined to this one. Call it on the thread that entered.
    ///
    /// # Errors
    /// When the kernel has no virtual Ethernet devices.
    pub fn neighbour(&self) -> Result<Neighbour> {
        Neighbour::new(&self.file)
    }

    /// Does something in the namespace the process came from, on the calling thread.
    ///
    /// # Errors
    /// Those of `what`, or when the kernel does not let the thread over.
    pub fn outside<T>(&self, what: impl FnOnce() -> Result<T>) -> Result<T> {
        // The main thread has stayed there.
        let outside = File::open("/proc/self/ns/net").context("cannot read /proc")?;
        within(&outside, &self.file, what)
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

/// A namespace beside one, joined to it by a cable: another host, as far as TCP can tell.
#[derive(Debug)]
pub struct Neighbour {
    home: File,
    there: File,
}

impl Neighbour {
    /// The address at this end of the cable.
    pub const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    /// The neighbour's.
    pub const THERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn new(home: &File) -> Result<Self> {
        let home = home.try_clone()?;
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a second network namespace")?;
        let there = File::open("/proc/thread-self/ns/net").context("cannot read /proc");
        let wired = there.and_then(|there| {
            make_pair("there", "here", &home)
                .context("cannot make a pair of virtual Ethernet devices (CONFIG_VETH)")?;
            switch_on("there", Self::THERE)?;
            switch_on("lo", Ipv4Addr::LOCALHOST)?;
            Ok(there)
        });
        setns(&home, CloneFlags::CLONE_NEWNET).context("cannot come back from a namespace")?;
        let there = wired?;
        switch_on("here", Self::HERE)?;
        Ok(Self { home, there })
    }

    /// Does something in the neighbour's namespace, on the calling thread: what is started there is
    /// born there.
    ///
    /// # Errors
    /// Those of `what`, or when the kernel does not let the thread over.
    pub fn within<T>(&self, what: impl FnOnce() -> Result<T>) -> Result<T> {
        within(&self.there, &self.home, what)
    }
}

fn within<T>(there: &File, home: &File, what: impl FnOnce() -> Result<T>) -> Result<T> {
    setns(there, CloneFlags::CLONE_NEWNET).context("cannot enter a namespace")?;
    let done = what();
    setns(home, CloneFlags::CLONE_NEWNET).context("cannot come back from a namespace")?;
    done
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

fn switch_on(device: &str, addr: Ipv4Addr) -> Result<()> {
    let control = control()?;
    set_addr(&control, device, addr)
        .and_then(|()| set_flags(&control, device, libc::IFF_UP | libc::IFF_RUNNING))
        .with_context(|| format!("cannot switch the device {device} on"))
}

/// Any socket will do to talk to the kernel about devices.
fn control() -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
}

fn set_flags(control: &OwnedFd, device: &str, flags: libc::c_int) -> nix::Result<()> {
    let mut request = ifreq(device);
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    configure(control, libc::SIOCSIFFLAGS, &request)
}

/// Gives a device an address with the mask of its class.
fn set_addr(control: &OwnedFd, device: &str, addr: Ipv4Addr) -> nix::Result<()> {
    let mut request = ifreq(device);
    // SAFETY: every bit pattern, all zero too, is a valid sockaddr.
    let mut sockaddr: libc::sockaddr = unsafe { std::mem::zeroed() };
    sockaddr.sa_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default();
    // A port of 2 bytes comes first.
    for (to, from) in sockaddr.sa_data[2..].iter_mut().zip(addr.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_addr = sockaddr;
    configure(control, libc::SIOCSIFADDR, &request)
}

fn ifreq(device: &str) -> libc::ifreq {
    // SAFETY: every bit pattern, all zero too, is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

fn configure(control: &OwnedFd, call: libc::c_ulong, request: &libc::ifreq) -> nix::Result<()> {
    // musl's ioctl takes an int, of which the kernel reads the same 32 bits.
    let call = call as libc::Ioctl;
    // SAFETY: the kernel reads one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), call, &raw const *request) };
    nix::errno::Errno::result(result).map(drop)
}

/// Asks the kernel to make a pair of Ethernet devices: one here, one in another namespace.
fn make_pair(here: &str, there: &str, netns: &File) -> Result<()> {
    // https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/veth.h
    const VETH_INFO_PEER: u16 = 1;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_DATA: u16 = 2;
    const REQUEST: u16 = 0x1 | 0x4 | 0x200 | 0x400; // NLM_F_REQUEST, ACK, EXCL, CREATE
    // An empty struct ifinfomsg: any type, any index.
    let any = [0; 16];
    let peer = [
        any.to_vec(),
        attribute(libc::IFLA_IFNAME, there.as_bytes()),
        attribute(libc::IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes()),
    ];
    let data = attribute(VETH_INFO_PEER, &peer.concat());
    let info = [
        attribute(IFLA_INFO_KIND, b"veth"),
        attribute(IFLA_INFO_DATA, &data),
    ];
    let message = [
        any.to_vec(),
        attribute(libc::IFLA_IFNAME, here.as_bytes()),
        attribute(libc::IFLA_LINKINFO, &info.concat()),
    ]
    .concat();
    let mut request = Vec::new();
    request.extend(u32::try_from(message.len() + 16)?.to_ne_bytes());
    request.extend(libc::RTM_NEWLINK.to_ne_bytes());
    request.extend(REQUEST.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(message);
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.send_to(&request, &netlink_sys::SocketAddr::new(0, 0), 0)?;
    let (reply, _) = socket.recv_from_full()?;
    // A header of 16 bytes, then the error, negative.
    let error = reply.get(16..20).and_then(|bytes| bytes.try_into().ok());
    match error.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(std::io::Error::from_raw_os_error(-error).into()),
        None => bail!("the kernel's answer is too short"),
    }
}

/// A netlink attribute, padded to the next one's place.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
