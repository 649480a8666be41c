//! Which processes hold a socket: inode number to process and descriptor, from `/proc/PID/fd`.
//!
//! A socket can live without a descriptor: it waits for `accept`, travels in a message
//! (`SCM_RIGHTS`), is registered with `io_uring`, or is held only by a thread that unshared its
//! table. No holder found therefore never means that nobody holds it.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{RawDir, readlinkat_raw};

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
    /// Descriptors read.
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
}

/// Whether this descriptor is this socket, at the cost of one `readlink`.
#[must_use]
pub fn verify(pid: u32, fd: i32, inode: u64) -> bool {
    let mut path = String::with_capacity(32);
    let written = write!(path, "/proc/{pid}/fd/{fd}");
    written.is_ok() && socket_inode(rustix::fs::CWD, path.as_str()) == Some(inode)
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

/// Who holds each of these sockets, in order of pid and descriptor, nobody seen included; one pass
/// for all of them, in which `process` gets the number of descriptors open in each process.
#[must_use]
pub fn find_all(
    inodes: impl IntoIterator<Item = u64>,
    process: impl FnMut(u32, u64),
) -> (HashMap<u64, Vec<Holder>>, Scan) {
    let mut holders: HashMap<u64, Vec<Holder>> = inodes
        .into_iter()
        .map(|inode| (inode, Vec::new()))
        .collect();
    let scan = scan(
        |holder, inode| {
            if let Some(holders) = holders.get_mut(&inode) {
                holders.push(holder);
            }
        },
        process,
    );
    for holders in holders.values_mut() {
        holders.sort_unstable();
    }
    (holders, scan)
}

/// One pass over the descriptors of every process: `socket` gets every descriptor that is a socket
/// of any kind, and `process` the number of descriptors open in a process, after its sockets.
/// Processes that end meanwhile are left out.
pub fn scan(mut socket: impl FnMut(Holder, u64), mut process: impl FnMut(u32, u64)) -> Scan {
    let mut scan = Scan::default();
    let mut buffer = vec![MaybeUninit::uninit(); 32 * 1024];
    for pid in process::pids().into_iter().flatten() {
        match descriptors(pid, &mut buffer, |fd, inode| {
            socket(Holder { pid, fd }, inode);
        }) {
            Ok(open) => {
                scan.processes += 1;
                scan.descriptors += open;
                process(pid, open);
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => scan.unreadable += 1,
            Err(_) => {}
        }
    }
    scan
}

/// The sockets among a process's descriptors; returns how many descriptors are open.
fn descriptors(
    pid: u32,
    buffer: &mut [MaybeUninit<u8>],
    mut each: impl FnMut(i32, u64),
) -> io::Result<u64> {
    let directory = File::open(format!("/proc/{pid}/fd"))?;
    let mut entries = RawDir::new(&directory, buffer);
    let mut open = 0;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let Some(fd) = number(entry.file_name()) else {
            continue;
        };
        open += 1;
        if let Some(inode) = socket_inode(&directory, entry.file_name()) {
            each(fd, inode);
        }
    }
    Ok(open)
}

fn number(name: &CStr) -> Option<i32> {
    name.to_str().ok()?.parse().ok()
}

/// Follows one link; `None` when it is not `socket:[N]`, or gone.
fn socket_inode(directory: impl AsFd, name: impl rustix::path::Arg) -> Option<u64> {
    // Longer links are cut off, and are no sockets.
    let mut buffer = [MaybeUninit::uninit(); 40];
    let (link, _) = readlinkat_raw(directory, name, &mut buffer).ok()?;
    parse_link(link)
}

/// The number in `socket:[N]`.
fn parse_link(link: &[u8]) -> Option<u64> {
    let digits = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Inode number of a socket of our own.
///
/// # Errors
///
/// When `/proc` is not mounted.
pub fn inode_of(socket: &impl std::os::fd::AsRawFd) -> io::Result<u64> {
    Ok(fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd()))?.ino())
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
                open = count;
            }
        });
        assert!(open >= 2);
        assert_eq!(all.get(&u64::MAX), Some(&Vec::new()));
        assert_eq!(all.get(&inode).cloned().map(ours), Some(expected.to_vec()));

        assert!(verify(pid, twin.as_raw_fd(), inode));
        assert!(!verify(pid, twin.as_raw_fd(), inode + 1));
        let closed = twin.as_raw_fd();
        drop(twin);
        assert!(!verify(pid, closed, inode));
        let left = ours(find(inode).0);
        assert!(left.len() == 1 && left[0].fd == listener.as_raw_fd());
    }
}
