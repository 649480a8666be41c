//! Processes: what they run, how many descriptors they may open, whether they still live.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use nix::time::{ClockId, clock_gettime};
use procfs::process::LimitValue;

use super::cgroup::Cgroups;
use super::container;
use crate::event::{Comm, Container, Process};

/// The processes this `/proc` shows.
///
/// # Errors
///
/// When `/proc` is not mounted.
pub fn pids() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// It exists and has not ended: a zombie holds nothing any more.
#[must_use]
pub fn alive(pid: u32) -> bool {
    started(pid).is_some()
}

/// When a process started, in the kernel's clock ticks since boot: with its number that is one process and no
/// other. `None` when it has ended, also while its parent has not noticed, and of a thread that is not the
/// first of its process: `/proc` opens these by their numbers too.
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/sched/signal.h> (`thread_group_leader`)
#[must_use]
pub fn started(pid: u32) -> Option<u64> {
    let stat = open(pid)?.stat().ok()?;
    let is_process = stat.exit_signal.is_none_or(|signal| signal >= 0);
    (is_process && !"ZXx".contains(stat.state)).then_some(stat.starttime)
}

/// The process of a thread that is not its first.
#[must_use]
pub fn of_thread(tid: u32) -> Option<u32> {
    let process = u32::try_from(open(tid)?.status().ok()?.tgid).ok()?;
    (process != tid).then_some(process)
}

/// How long ago that was, to a tick.
#[must_use]
pub fn age(started: u64) -> Duration {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    now.saturating_sub(since_boot(started))
}

fn since_boot(ticks: u64) -> Duration {
    Duration::from_millis(ticks.saturating_mul(1000) / procfs::ticks_per_second().max(1))
}

/// The process that a process belongs to.
#[must_use]
pub fn parent(pid: u32) -> Option<u32> {
    u32::try_from(open(pid)?.stat().ok()?.ppid).ok()
}

/// The children of a process, and theirs.
#[must_use]
pub fn descendants(pid: u32) -> Vec<u32> {
    let all = pids().into_iter().flatten();
    let mut left: Vec<_> = all
        .filter_map(|child| Some((child, parent(child)?)))
        .collect();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&of) = found.get(next) {
        found.extend(left.extract_if(.., |it| it.1 == of).map(|it| it.0));
        next += 1;
    }
    found.split_off(1)
}

/// The process as an event names it; `None` when it is gone.
#[must_use]
pub fn describe(pid: u32, cgroups: Option<&Cgroups>) -> Option<Process> {
    let process = open(pid)?;
    let details = Details::read(&process)?;
    Some(Process {
        pid,
        tid: None,
        comm: details.comm,
        uid: process.status().ok()?.euid,
        exe: details.exe,
        cgroup: cgroups.and_then(|cgroups| cgroups.of(pid)),
        container: details.container,
        exit: None,
    })
}

/// Number of descriptors open in a process.
///
/// # Errors
///
/// When it is gone, or may not be read.
pub fn open_files(pid: u32) -> io::Result<u64> {
    let path = format!("/proc/{pid}/fd");
    // The size is the number since Linux 6.2, before it was 0.
    // <https://github.com/torvalds/linux/commit/f1f1f2569901>
    match fs::metadata(&path)?.len() {
        0 => Ok(fs::read_dir(&path)?.count() as u64),
        open => Ok(open),
    }
}

/// How many descriptors a process may have (its soft `RLIMIT_NOFILE`); `None` when it is gone.
#[must_use]
pub fn open_files_limit(pid: u32) -> Option<u64> {
    match open(pid)?.limits().ok()?.max_open_files.soft_limit {
        LimitValue::Value(limit) => Some(limit),
        LimitValue::Unlimited => Some(u64::MAX),
    }
}

/// Open files of the whole host, whose limit is behind ENFILE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFiles {
    /// Open files.
    pub open: u64,
    /// The limit, `fs.file-max`.
    pub limit: u64,
}

/// Open files of the host against `fs.file-max`.
///
/// # Errors
///
/// When `/proc` is not mounted.
pub fn host_files() -> io::Result<HostFiles> {
    let text = fs::read_to_string("/proc/sys/fs/file-nr")?;
    parse_file_nr(&text).ok_or_else(|| io::Error::other(format!("unexpected file-nr: {text:?}")))
}

/// Allocated, free and maximum; the second is always 0.
/// <https://docs.kernel.org/admin-guide/sysctl/fs.html#file-max-file-nr>
fn parse_file_nr(text: &str) -> Option<HostFiles> {
    let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
    let (allocated, free, limit): (u64, u64, u64) =
        (numbers.next()??, numbers.next()??, numbers.next()??);
    Some(HostFiles {
        open: allocated.checked_sub(free)?,
        limit,
    })
}

/// What a process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// Path of its executable; `None` for a kernel thread, and without the right to read it.
    pub exe: Option<Arc<str>>,
    /// That file is not there any more: it was replaced while the process runs.
    pub deleted: bool,
    /// Name of its main thread.
    pub comm: Comm,
    /// The container it runs in.
    pub container: Option<Arc<Container>>,
    /// When it started, since boot; to a hundredth of a second.
    pub started: Duration,
}

impl Details {
    /// All read through one handle, so that they are about one process even when its number is
    /// given away meanwhile.
    fn read(process: &procfs::process::Process) -> Option<Self> {
        let stat = process.stat().ok()?;
        let link = process.exe().ok();
        let link = link.as_ref().map(|link| link.to_string_lossy());
        let (exe, deleted) = match link.as_deref() {
            Some(path) => match path.strip_suffix(" (deleted)") {
                Some(path) => (Some(path.into()), true),
                None => (Some(path.into()), false),
            },
            None => (None, false),
        };
        // The file is there on every kernel that has cgroups.
        let mut cgroups = String::new();
        let container = process.open_relative("cgroup").ok().and_then(|mut file| {
            file.read_to_string(&mut cgroups).ok()?;
            container::parse(&cgroups)
        });
        Some(Self {
            exe,
            deleted,
            comm: Comm::from(stat.comm.as_str()),
            container: container.map(Arc::new),
            started: since_boot(stat.starttime),
        })
    }
}

/// What processes run, remembered for a while, also after they ended. Holds at most
/// [`Processes::CAPACITY`] of them: those asked for longest ago make room.
#[derive(Debug, Default)]
pub struct Processes {
    recent: HashMap<u32, Entry, RandomState>,
    older: HashMap<u32, Entry, RandomState>,
}

#[derive(Clone, Debug)]
struct Entry {
    details: Details,
    read: Duration,
}

impl Processes {
    /// Most processes held.
    pub const CAPACITY: usize = 4096;

    /// An answer this young is given again without a look.
    const FRESH: Duration = Duration::from_secs(1);

    /// What the process `pid` ran when an event happened, `age` before now; up to a second old.
    ///
    /// `None` when it is not known: it ended before anybody asked, or the number now belongs to a
    /// process that started after the event.
    pub fn get(&mut self, pid: u32, age: Duration) -> Option<&Details> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
        let is_fresh = |entry: &Entry| now.saturating_sub(entry.read) < Self::FRESH;
        if !self.recent.get(&pid).is_some_and(is_fresh) {
            self.look(pid, now, is_fresh);
        }
        let entry = self.recent.get(&pid)?;
        // The start is rounded down to a tick, so a process never seems younger than it is.
        (entry.details.started <= now.saturating_sub(age)).then_some(&entry.details)
    }

    /// Looks at a process, and remembers it as one asked for lately.
    fn look(&mut self, pid: u32, now: Duration, is_fresh: impl Fn(&Entry) -> bool) {
        let known = self.recent.remove(&pid).or_else(|| self.older.remove(&pid));
        let entry = if known.as_ref().is_some_and(is_fresh) {
            known
        } else {
            let details = open(pid).and_then(|process| Details::read(&process));
            details
                .map(|details| Entry { details, read: now })
                .or(known)
        };
        if let Some(entry) = entry {
            self.remember(pid, entry);
        }
    }

    fn remember(&mut self, pid: u32, entry: Entry) {
        if self.recent.len() >= Self::CAPACITY / 2 {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(pid, entry);
    }
}

fn open(pid: u32) -> Option<procfs::process::Process> {
    procfs::process::Process::new_with_root(Path::new("/proc").join(pid.to_string())).ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn our_own_process_is_described() {
        let pid = std::process::id();
        let exe = std::env::current_exe().expect("a test has one");
        let process = describe(pid, None).expect("we run");
        assert_eq!(process.exe.as_deref(), exe.to_str());
        assert_eq!(process.uid, nix::unistd::geteuid().as_raw());
        let comm = fs::read_to_string("/proc/self/comm").expect("we run");
        assert_eq!(process.comm.to_string(), comm.trim_end());
        assert!(pids().expect("/proc is mounted").any(|found| found == pid));
    }

    #[test]
    fn a_thread_is_no_process() {
        let pid = std::process::id();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let tid = nix::unistd::gettid().as_raw().cast_unsigned();
                assert_eq!((alive(tid), of_thread(tid)), (false, Some(pid)));
            });
        });
        assert_eq!((alive(pid), of_thread(pid)), (true, None));
    }

    #[test]
    fn a_process_outlives_its_end_in_the_cache_only() {
        let _alone = crate::host::ALONE.lock();
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat is there");
        let pid = child.id();
        let mut processes = Processes::default();
        let exe = processes
            .get(pid, Duration::ZERO)
            .and_then(|details| details.exe.clone());
        assert!(exe.is_some());
        assert!(alive(pid));
        child.kill().expect("our child");
        let waited = nix::sys::wait::waitid(
            nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(pid.cast_signed())),
            nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
        );
        assert!(waited.is_ok());
        assert!(!alive(pid), "a zombie holds nothing");
        child.wait().expect("our child");
        assert!(!alive(pid));
        let after = processes
            .get(pid, Duration::ZERO)
            .and_then(|details| details.exe.clone());
        assert_eq!(after, exe);
        assert!(Processes::default().get(pid, Duration::ZERO).is_none());
    }

    #[test]
    fn a_process_that_started_after_the_event_is_another() {
        let mut processes = Processes::default();
        let pid = std::process::id();
        assert!(processes.get(pid, Duration::ZERO).is_some());
        assert!(processes.get(pid, Duration::from_hours(24 * 365)).is_none());
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut processes = Processes::default();
        let details = describe_self();
        for pid in 0..100_000 {
            // So many processes cannot be started.
            let entry = Entry {
                details: details.clone(),
                read: Duration::MAX,
            };
            processes.remember(pid, entry);
            assert!(processes.get(pid, Duration::ZERO).is_some());
            assert!(processes.recent.len() + processes.older.len() <= Processes::CAPACITY);
        }
    }

    fn describe_self() -> Details {
        Details::read(&open(std::process::id()).expect("we run")).expect("we run")
    }

    #[test]
    fn descriptors_are_counted_against_their_limits() {
        let pid = std::process::id();
        let before = open_files(pid).expect("our own");
        let more = [(); 50].map(|()| fs::File::open("/dev/null").expect("it is there"));
        // Other tests open and close files meanwhile.
        assert!(open_files(pid).expect("our own") >= before.saturating_sub(40) + 50);
        drop(more);
        let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .expect("our own");
        assert_eq!(open_files_limit(pid), Some(soft));
        let host = host_files().expect("/proc is mounted");
        assert!(host.open > 0 && host.open < host.limit);
    }

    #[test]
    fn file_nr_is_read() {
        assert_eq!(
            parse_file_nr("1504\t4\t9223372036854775807\n"),
            Some(HostFiles {
                open: 1500,
                limit: i64::MAX.cast_unsigned()
            })
        );
        assert_eq!(parse_file_nr("1504\t0\n"), None);
        assert_eq!(parse_file_nr("x 0 1"), None);
    }
}
