//! Network namespaces: which there are, how to look into one, and what a user's name for one means.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::iter;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::time::{ClockId, clock_gettime};

use super::{door, mounts, process};

/// Numbers up to this one are process ids, numbers above it are inodes of namespaces.
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/threads.h> (`PID_MAX_LIMIT`)
const MAX_PID: u32 = 4 * 1024 * 1024;

/// Where `ip netns add NAME` keeps a namespace.
const NAMED: &str = "/run/netns";

/// A network namespace and a way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Inode number of `/proc/PID/ns/net`.
    pub inode: u32,
    /// The file to enter it by.
    pub path: PathBuf,
    /// A process in it; `None` when it is only kept by a mount.
    pub pid: Option<u32>,
    /// Name of its mount, as `ip netns` and container runtimes give one.
    pub name: Option<String>,
}

/// The network namespaces that are visible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// The calling thread's own first, then by inode.
    pub list: Vec<Namespace>,
    /// Processes whose namespace could not be read, for lack of privilege.
    pub unreadable: u64,
}

impl Namespaces {
    /// What cannot be seen, in words.
    #[must_use]
    pub fn unseen(&self) -> Option<String> {
        (self.unreadable > 0).then(|| {
            format!(
                "processes whose network namespace may not be read: {} (CAP_SYS_PTRACE opens most); \
                 sockets in namespaces of their own are not seen",
                self.unreadable
            )
        })
    }
}

/// The calling thread's network namespace.
///
/// # Errors
///
/// When `/proc` is not mounted.
pub fn current() -> Result<u32> {
    let path = Path::new("/proc/thread-self/ns/net");
    inode(path).with_context(|| format!("cannot read {}: is /proc mounted?", path.display()))
}

/// The namespace a process is in.
///
/// # Errors
///
/// When the process is gone, or may not be read.
pub fn of(pid: u32) -> io::Result<Namespace> {
    let path = of_process(pid);
    Ok(Namespace {
        inode: inode(&path)?,
        path,
        pid: Some(pid),
        name: None,
    })
}

/// The namespace of this number, with a process that is likely to be in it.
#[must_use]
pub fn numbered(inode: u32, pid: Option<u32>) -> Namespace {
    Namespace {
        inode,
        path: pid.map_or_else(|| "/proc/thread-self/ns/net".into(), of_process),
        pid,
        name: None,
    }
}

/// Every namespace with a process in it or a mount that keeps it. A namespace that only one thread
/// of a process is in, or only an open socket keeps, is not found.
///
/// # Errors
///
/// When `/proc` is not mounted.
pub fn list() -> Result<Namespaces> {
    let own = current()?;
    let mut unreadable = 0;
    let mut found = HashMap::from([(
        own,
        Namespace {
            inode: own,
            path: "/proc/thread-self/ns/net".into(),
            pid: Some(std::process::id()),
            name: None,
        },
    )]);
    for pid in process::pids().context("cannot list /proc")? {
        let path = of_process(pid);
        match inode(&path) {
            Ok(inode) => {
                found.entry(inode).or_insert(Namespace {
                    inode,
                    path,
                    pid: Some(pid),
                    name: None,
                });
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => unreadable += 1,
            Err(_) => {}
        }
    }
    for mount in mounts().into_iter().filter(|mount| mount.fs_type == "nsfs") {
        let Some(inode) = bracketed(&mount.root) else {
            continue;
        };
        let path = mount.mount_point;
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let namespace = found.entry(inode).or_insert(Namespace {
            inode,
            path,
            pid: None,
            name: None,
        });
        namespace.name = namespace.name.take().or(name);
    }
    let mut list: Vec<_> = found.into_values().collect();
    list.sort_by_key(|namespace| (namespace.inode != own, namespace.inode));
    Ok(Namespaces { list, unreadable })
}

/// Runs `look` in a namespace: in the calling thread when it is there already, else in a thread that
/// enters it and ends, which is behind the [`door`] once there is one: there `look` has no privilege
/// over other processes.
///
/// # Errors
///
/// The namespace is gone, or may not be entered.
pub fn enter<T: Send>(
    namespace: &Namespace,
    look: impl FnOnce() -> T + Send,
) -> Result<T, Refusal> {
    if current().is_ok_and(|own| own == namespace.inode) {
        return Ok(look());
    }
    let refusal = |why| Refusal {
        inode: namespace.inode,
        why,
    };
    let file = open(namespace).map_err(|error| refusal(error.to_string()))?;
    let visit = || {
        let seen = setns(&file, CloneFlags::CLONE_NEWNET).map(|()| look());
        (seen, thread_clock())
    };
    let seen = if door::is_kept() {
        door::through(visit)
    } else {
        thread::scope(|scope| {
            let visitor = thread::Builder::new().name(door::NAME.into());
            let visitor = visitor.spawn_scoped(scope, visit);
            let visitor = visitor.map_err(|_| door::Failed::NotStarted)?;
            visitor.join().map_err(door::Failed::Panicked)
        })
    };
    let seen = seen.map(|(seen, took)| {
        VISITS.set(VISITS.get() + took);
        seen
    });
    match seen {
        Ok(Err(Errno::EPERM)) => Err(refusal("to enter it takes CAP_SYS_ADMIN".into())),
        Ok(seen) => seen.map_err(|errno| refusal(errno.desc().into())),
        Err(door::Failed::Panicked(cause)) => panic::resume_unwind(cause),
        Err(door::Failed::NotStarted) => Err(refusal("there is no thread to enter it".into())),
    }
}

thread_local! {
    /// What the visits of this thread have taken of a processor.
    static VISITS: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// What the calling thread has taken of a processor, its visits to namespaces included.
#[must_use]
pub fn processor_time() -> Duration {
    thread_clock() + VISITS.get()
}

fn thread_clock() -> Duration {
    // Of the own thread it cannot fail; an unknown time is not charged.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The file of a namespace. Its process may have ended since it was found: then any other in it.
fn open(namespace: &Namespace) -> io::Result<File> {
    let others = process::pids()?
        .map(of_process)
        .filter(|path| inode(path).is_ok_and(|inode| inode == namespace.inode));
    for path in iter::once(namespace.path.clone()).chain(others) {
        match File::open(path).and_then(|file| Ok((file.metadata()?.ino(), file))) {
            Ok((inode, file)) if inode == u64::from(namespace.inode) => return Ok(file),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Err(io::Error::other("no process is in it any more"))
}

fn of_process(pid: u32) -> PathBuf {
    format!("/proc/{pid}/ns/net").into()
}

/// A namespace that was not looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which.
    pub inode: u32,
    /// Why not.
    pub why: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "network namespace {}: {}", self.inode, self.why)
    }
}

impl std::error::Error for Refusal {}

/// What a user's `--netns` names: the inode number (also as `net:[N]`), a path, a name under
/// `/run/netns`, or the pid of a process in it. An inode number is taken at its word: a namespace
/// that no process and no mount shows may still exist.
///
/// # Errors
///
/// When there is no such namespace, process or file, or it may not be read.
pub fn resolve(argument: &str) -> Result<u32> {
    if let Some(inode) = bracketed(argument) {
        return Ok(inode);
    }
    match argument.parse() {
        Ok(inode) if inode > MAX_PID => Ok(inode),
        Ok(pid) => inode(&of_process(pid)).with_context(|| {
            format!("cannot read the network namespace of process {pid}: is it running, are you root?")
        }),
        Err(_) if argument.contains('/') => of_file(Path::new(argument)),
        Err(_) => of_file(&Path::new(NAMED).join(argument)).with_context(|| {
            format!(
                "no network namespace is named {argument:?}; give one that `ip netns list` shows, a \
                 path, a pid or an inode number"
            )
        }),
    }
}

/// What a user's `--netns` names, and a way in.
///
/// # Errors
///
/// As [`resolve`].
pub fn named(argument: &str) -> Result<Namespace> {
    let inode = resolve(argument)?;
    let path = match argument.parse::<u32>() {
        Ok(pid) if pid <= MAX_PID => of_process(pid),
        Err(_) if argument.contains('/') => argument.into(),
        Err(_) if bracketed(argument).is_none() => Path::new(NAMED).join(argument),
        _ => {
            let visible = list()?.list.into_iter().find(|it| it.inode == inode);
            return Ok(visible.unwrap_or_else(|| numbered(inode, None)));
        }
    };
    Ok(Namespace {
        inode,
        path,
        pid: None,
        name: None,
    })
}

fn of_file(path: &Path) -> Result<u32> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    // SAFETY: this request takes no argument and writes nothing; a file that is no namespace
    // answers with an error.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) };
    if kind != libc::CLONE_NEWNET {
        bail!("{} is not a network namespace", path.display());
    }
    u32::try_from(file.metadata()?.ino()).context("the namespace's inode number has over 32 bits")
}

/// A namespace's inode number has 32 bits.
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/ns_common.h>
fn inode(path: &Path) -> io::Result<u32> {
    u32::try_from(fs::metadata(path)?.ino()).map_err(io::Error::other)
}

/// The number in `net:[N]`.
fn bracketed(text: &str) -> Option<u32> {
    text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_for_our_own_namespace_means_it() {
        let own = current().expect("/proc is mounted");
        for argument in [
            own.to_string(),
            format!("net:[{own}]"),
            "/proc/self/ns/net".into(),
            std::process::id().to_string(),
        ] {
            assert_eq!(resolve(&argument).expect("it is there"), own, "{argument}");
        }
    }

    #[test]
    fn what_names_no_namespace_is_refused() {
        for (argument, word) in [
            ("no-such-namespace", "ip netns list"),
            ("/proc/self/ns/mnt", "not a network namespace"),
            ("/proc/self/status", "not a network namespace"),
            ("/no/such/file", "cannot open"),
            ("0", "process 0"),
        ] {
            let error = format!("{:#}", resolve(argument).expect_err("no such namespace"));
            assert!(error.contains(word), "{argument}: {error}");
        }
    }

    #[test]
    fn the_own_namespace_is_listed_first_and_entered_in_place() {
        let own = current().expect("/proc is mounted");
        let namespaces = list().expect("/proc is mounted");
        assert_eq!(namespaces.list[0].inode, own);
        let thread = thread::current().id();
        let entered = enter(&namespaces.list[0], || {
            (current().ok(), thread::current().id())
        });
        assert_eq!(entered, Ok((Some(own), thread)));
    }

    #[test]
    fn a_namespace_that_is_gone_is_not_entered() {
        let gone = Namespace {
            inode: 1,
            path: "/proc/self/ns/net".into(),
            pid: Some(std::process::id()),
            name: None,
        };
        let refusal = enter(&gone, || ()).expect_err("another inode");
        assert_eq!(
            (refusal.inode, refusal.why.contains("no process")),
            (1, true)
        );
    }
}
