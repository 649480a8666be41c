//! Which processes hold a socket: inode number to process and descriptor, from `/proc/PID/fd`.
//!
//! A socket can live without a descriptor: it waits for `accept`, travels in a message
//! (`SCM_RIGHTS`), is registered with `io_uring`, or is held only by a thread that unshared its
//! table. No holder found therefore never means that nobody holds it.

use std::collections::HashSet;
use std::ffi::CStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::{RawDir, readlinkat_raw};
use rustix::io::Errno;
use rustix::path::Arg;

use super::process;

/// A process and its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its descriptor.
    pub fd: i32,
}

/// What a pass over all descriptors covered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Processes whose descriptors were read.
    pub processes: u64,
    /// Descriptors open in all processes, as far as they could be listed.
    pub descriptors: u64,
    /// Processes whose descriptors could not be read for lack of privilege: each may hold anything.
    pub unreadable: u64,
}

impl Scan {
    /// Every process this `/proc` shows was read.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.unreadable == 0 && self.processes > 0
    }

    /// What could not be seen, in words.
    #[must_use]
    pub fn unseen(&self) -> Option<String> {
        (self.unreadable > 0).then(|| {
            format!(
                "processes whose descriptors may not be read: {} (CAP_SYS_PTRACE and \
                 CAP_DAC_READ_SEARCH open most); what they hold may have no owner here",
                self.unreadable
            )
        })
    }
}

/// Whether this descriptor is this socket, at the cost of one `readlink`.
#[must_use]
pub fn verify(pid: u32, fd: i32, inode: u64) -> bool {
    let mut path = String::with_capacity(32);
    let written = write!(path, "/proc/{pid}/fd/{fd}");
    written.is_ok() && socket_inode(rustix::fs::CWD, path.as_str()) == Ok(Some(inode))
}

/// Who holds one socket, in order of pid and descriptor.
#[must_use]
pub fn find(inode: u64) -> (Vec<Holder>, Scan) {
    let mut holders = Vec::new();
    let scan = scan(
        |holder, found| {
            if found == inode {
                holders.push(holder);
            }
        },
        |_, _| {},
    );
    holders.sort_unstable();
    (holders, scan)
}

/// Who holds which sockets; 16 bytes a descriptor.
#[derive(Clone, Debug, Default)]
pub struct Holders(Vec<(u64, Holder)>);

impl Holders {
    /// From what a pass over the descriptors gave.
    #[must_use]
    pub fn new(mut held: Vec<(u64, Holder)>) -> Self {
        held.sort_unstable();
        Self(held)
    }

    /// Those of one socket, in order of pid and descriptor.
    pub fn of(&self, inode: u64) -> impl Iterator<Item = Holder> + Clone + '_ {
        let first = self.0.partition_point(|&(held, _)| held < inode);
        let of_inode = self.0[first..]
            .iter()
            .take_while(move |&&(held, _)| held == inode);
        of_inode.map(|&(_, holder)| holder)
    }
}

/// Who holds each of these sockets; one pass for all of them, in which `process` gets what it gets of
/// [`scan`].
#[must_use]
pub fn find_all(
    inodes: impl IntoIterator<Item = u64>,
    process: impl FnMut(u32, Option<u64>),
) -> (Holders, Scan) {
    let wanted: HashSet<u64> = inodes.into_iter().collect();
    let mut held = Vec::new();
    let scan = scan(
        |holder, inode| {
            if wanted.contains(&inode) {
                held.push((inode, holder));
            }
        },
        process,
    );
    (Holders::new(held), scan)
}

/// One pass over the descriptors of every process: `socket` gets every descriptor that is a socket
/// of any kind, and `process` the number of descriptors open in a process, after its sockets, and `None`
/// for one whose descriptors may not be read. Processes that end meanwhile are left out.
pub fn scan(
    mut socket: impl FnMut(Holder, u64),
    mut process: impl FnMut(u32, Option<u64>),
) -> Scan {
    let mut scan = Scan::default();
    let mut buffer = vec![MaybeUninit::uninit(); 32 * 1024];
    for pid in process::pids().into_iter().flatten() {
        let each = |fd, inode| socket(Holder { pid, fd }, inode);
        match descriptors(pid, &mut buffer, each) {
            Ok(Table { open, readable }) => {
                scan.descriptors += open;
                *if readable {
                    &mut scan.processes
                } else {
                    &mut scan.unreadable
                } += 1;
                process(pid, Some(open));
                if !readable {
                    process(pid, None);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                scan.unreadable += 1;
                process(pid, None);
            }
            Err(_) => {}
        }
    }
    scan
}

/// A process's table of descriptors.
struct Table {
    /// How many are open.
    open: u64,
    /// What they are could be read: to list them takes less privilege.
    readable: bool,
}

/// Hands the sockets among a process's descriptors to `each`.
fn descriptors(
    pid: u32,
    buffer: &mut [MaybeUninit<u8>],
    mut each: impl FnMut(i32, u64),
) -> io::Result<Table> {
    let directory = File::open(format!("/proc/{pid}/fd"))?;
    let mut entries = RawDir::new(&directory, buffer);
    let mut table = Table {
        open: 0,
        readable: true,
    };
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let Some(fd) = number(entry.file_name()) else {
            continue;
        };
        table.open += 1;
        if !table.readable {
            continue;
        }
        match socket_inode(&directory, entry.file_name()) {
            Ok(Some(inode)) => each(fd, inode),
            Err(Errno::ACCESS | Errno::PERM) => table.readable = false,
            Ok(None) | Err(_) => {}
        }
    }
    Ok(table)
}

fn number(name: &CStr) -> Option<i32> {
    name.to_str().ok()?.parse().ok()
}

/// Follows one link; `None` when it is not `socket:[N]`.
fn socket_inode(directory: impl AsFd, name: impl Arg) -> Result<Option<u64>, Errno> {
    // Longer links are cut off, and are no sockets.
    let mut buffer = [MaybeUninit::uninit(); 40];
    let (link, _) = readlinkat_raw(directory, name, &mut buffer)?;
    Ok(parse_link(link))
}

/// The number in `socket:[N]`.
fn parse_link(link: &[u8]) -> Option<u64> {
    let digits = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Inode number of a socket of our own.
#[cfg(test)]
pub(super) fn inode_of(socket: &impl std::os::fd::AsRawFd) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;

    Ok(std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd()))?.ino())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn reads_links() {
        for (link, inode) in [
            ("socket:[0]", Some(0)),
            ("socket:[4294967295]", Some(4_294_967_295)),
            ("socket:[12", None),
            ("socket:[]", None),
            ("pipe:[12]", None),
            ("/tmp/socket:[12]", None),
            ("", None),
        ] {
            assert_eq!(parse_link(link.as_bytes()), inode, "{link}");
        }
    }

    #[test]
    fn finds_every_descriptor_of_our_own_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let twin = listener.try_clone().expect("a second descriptor");
        let inode = inode_of(&listener).expect("a socket");
        let pid = std::process::id();
        let mut expected = [listener.as_raw_fd(), twin.as_raw_fd()].map(|fd| Holder { pid, fd });
        expected.sort_unstable();

        // A child that another test is just starting holds a copy until it runs its program.
        let ours = |mut holders: Vec<Holder>| {
            holders.retain(|holder| holder.pid == pid);
            holders
        };
        let (holders, scan) = find(inode);
        assert_eq!(ours(holders), expected);
        assert!(scan.processes >= 1 && scan.descriptors >= 2);
        let mut open = 0;
        let (all, _) = find_all([inode, u64::MAX], |found, count| {
            if found == pid {
                open = count.unwrap_or_default();
            }
        });
        assert!(open >= 2);
        assert_eq!(all.of(u64::MAX).next(), None);
        assert_eq!(ours(all.of(inode).collect()), expected);

        assert!(verify(pid, twin.as_raw_fd(), inode));
        assert!(!verify(pid, twin.as_raw_fd(), inode + 1));
        let closed = twin.as_raw_fd();
        drop(twin);
        assert!(!verify(pid, closed, inode));
        let left = ours(find(inode).0);
        assert!(left.len() == 1 && left[0].fd == listener.as_raw_fd());
    }
}
