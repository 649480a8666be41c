//! The thread that should accept, and what it does instead; and how long a queue its namespace
//! allows.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;

use super::netns::{self, Namespace};
use super::{descriptors, process};
use crate::event::Acceptor;

/// Threads looked at, of all processes together: each costs 10 µs.
const THREADS: usize = 64;

/// Of what an epoll instance watches this much text is read: some 15,000 descriptors.
const WATCHED: u64 = 1 << 20;

/// Who holds a listener: its descriptors by process. Without any of a process they are not known.
pub type Holders = BTreeMap<u32, Vec<i32>>;

/// Finds the thread that should accept from a listener.
///
/// Of the processes that hold it, one that is seen to wait for its connections goes before one that
/// may, and a parent that only keeps it for its children comes last. Of several the one that is
/// stopped goes first, then the one that is blocked, then the one that computes. Of a process it is
/// the thread that waits for a connection where there is one, else the main thread. `read_after_ms`
/// is how long after the event this is. `None` when all are gone.
#[must_use]
pub fn look(holders: &Holders, read_after_ms: u64) -> Option<Acceptor> {
    let share = (THREADS / holders.len().max(1)).max(1);
    let holders = holders.iter().take(THREADS);
    let suspects = holders.filter_map(|(&pid, fds)| Suspect::look(pid, fds, share));
    let found = suspects.min_by_key(|suspect| (suspect.role, news(suspect.state)))?;
    let Suspect { pid, tid, .. } = found;
    Some(Acceptor {
        process: process::describe(pid, None)?,
        tid,
        state: found.state,
        wait_channel: wait_channel(pid, tid),
        syscall: found.call.map(|call| call.number),
        read_after_ms,
    })
}

/// A process that may be the one that should accept.
struct Suspect {
    pid: u32,
    tid: u32,
    role: Role,
    state: char,
    call: Option<Call>,
}

/// What a process has to do with a listener it holds, as far as it can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    /// It waits for connections, or will when it has done what it does now.
    Accepts,
    /// It waits for many things, this may be among them.
    Polls,
    /// It does something.
    Works,
    /// It waits for something else: for its children, as a parent of workers does.
    Elsewhere,
}

impl Suspect {
    fn look(pid: u32, fds: &[i32], share: usize) -> Option<Self> {
        let watches = |epoll| fds.iter().any(|&fd| watches(pid, epoll, fd));
        let waits = |tid: &u32| {
            let call = call(pid, *tid)?;
            Some((call.waits(fds, watches)?, *tid, call))
        };
        let threads = threads(pid).into_iter().take(share);
        let found = threads
            .filter_map(|tid| waits(&tid))
            .min_by_key(|it| (it.0, it.1));
        let (role, tid, call) = match found {
            Some((Waits::Accepts | Waits::Epolls, tid, call)) => (Role::Accepts, tid, Some(call)),
            // Busy with what it got.
            _ if descriptors::epolls(pid).into_iter().any(watches) => {
                (Role::Accepts, pid, call(pid, pid))
            }
            Some((Waits::Polls, tid, call)) => (Role::Polls, tid, Some(call)),
            None => match call(pid, pid) {
                Some(call) if call.waits_elsewhere() => (Role::Elsewhere, pid, Some(call)),
                call => (Role::Works, pid, call),
            },
        };
        let state = state(pid, tid)?;
        Some(Self {
            pid,
            tid,
            role,
            state,
            call,
        })
    }
}

/// Why nobody accepts, the least usual first.
fn news(state: char) -> u8 {
    match state {
        'T' | 't' => 0,
        'D' => 1,
        'R' => 2,
        _ => 3,
    }
}

/// `net.core.somaxconn` of a network namespace: no queue of a listener there is longer. `None` when
/// it may not be entered.
#[must_use]
pub fn somaxconn(namespace: &Namespace) -> Option<u32> {
    netns::enter(namespace, own_somaxconn).ok()?
}

/// The same of the calling thread's namespace.
pub(super) fn own_somaxconn() -> Option<u32> {
    let text = fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?;
    text.trim().parse().ok()
}

/// The threads of a process, the main one first.
fn threads(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let tids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    tids.take(THREADS).collect()
}

/// The system call a thread is in, and its first argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    number: i32,
    first: i32,
}

/// How surely a thread waits for a connection, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Waits {
    /// In `accept` on the listener.
    Accepts,
    /// In `epoll_wait` on an instance that watches the listener.
    Epolls,
    /// In a call that may wait for many things.
    Polls,
}

impl Call {
    /// How a thread in this call waits for a connection on one of these descriptors of a listener;
    /// without any, on whatever listener.
    fn waits(self, listener: &[i32], watches: impl FnOnce(i32) -> bool) -> Option<Waits> {
        let number = libc::c_long::from(self.number);
        if [libc::SYS_accept, libc::SYS_accept4].contains(&number) {
            let this = listener.is_empty() || listener.contains(&self.first);
            return this.then_some(Waits::Accepts);
        }
        if EPOLLS.contains(&number) {
            return watches(self.first).then_some(Waits::Epolls);
        }
        if SELECTS.contains(&number) {
            // The first argument is above all descriptors that are watched.
            let may = listener.is_empty() || listener.iter().any(|&fd| fd < self.first);
            return may.then_some(Waits::Polls);
        }
        POLLS.contains(&number).then_some(Waits::Polls)
    }

    /// A thread in this call, and not waiting for a connection, waits for something else.
    fn waits_elsewhere(self) -> bool {
        let number = libc::c_long::from(self.number);
        [EPOLLS, SELECTS, CHILDREN]
            .iter()
            .any(|calls| calls.contains(&number))
    }
}

#[cfg(target_arch = "x86_64")]
const EPOLLS: &[libc::c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
];
#[cfg(not(target_arch = "x86_64"))]
const EPOLLS: &[libc::c_long] = &[libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2];

#[cfg(target_arch = "x86_64")]
const SELECTS: &[libc::c_long] = &[libc::SYS_select, libc::SYS_pselect6];
#[cfg(not(target_arch = "x86_64"))]
const SELECTS: &[libc::c_long] = &[libc::SYS_pselect6];

#[cfg(target_arch = "x86_64")]
const POLLS: &[libc::c_long] = &[libc::SYS_poll, libc::SYS_ppoll, libc::SYS_io_uring_enter];
#[cfg(not(target_arch = "x86_64"))]
const POLLS: &[libc::c_long] = &[libc::SYS_ppoll, libc::SYS_io_uring_enter];

/// In these a parent waits for a child or a signal.
#[cfg(target_arch = "x86_64")]
const CHILDREN: &[libc::c_long] = &[
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_pause,
];
#[cfg(not(target_arch = "x86_64"))]
const CHILDREN: &[libc::c_long] = &[
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

fn call(pid: u32, tid: u32) -> Option<Call> {
    parse_call(&of_thread(pid, tid, "syscall")?)
}

/// The number and six arguments; `running` on a CPU, and -1 in the kernel but in no call.
/// <https://man7.org/linux/man-pages/man5/proc_pid_syscall.5.html>
fn parse_call(text: &str) -> Option<Call> {
    let mut words = text.split_whitespace();
    let number = words.next()?.parse().ok().filter(|&number| number >= 0)?;
    let first = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    // A descriptor is the lower half of its register.
    let first = i32::try_from((first << 32).cast_signed() >> 32).ok()?;
    Some(Call { number, first })
}

/// The scheduler's letter, after the name, which may hold anything.
fn state(pid: u32, tid: u32) -> Option<char> {
    let stat = of_thread(pid, tid, "stat")?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// `0` for a thread that does not sleep, and for everybody without the right to know.
fn wait_channel(pid: u32, tid: u32) -> Option<String> {
    of_thread(pid, tid, "wchan").filter(|name| !name.is_empty() && name != "0")
}

fn of_thread(pid: u32, tid: u32, file: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/task/{tid}/{file}")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The epoll instance watches the descriptor.
/// <https://docs.kernel.org/filesystems/proc.html#eventpoll-files>
fn watches(pid: u32, epoll: i32, fd: i32) -> bool {
    let mut text = String::new();
    let path = format!("/proc/{pid}/fdinfo/{epoll}");
    let read = File::open(path).and_then(|file| file.take(WATCHED).read_to_string(&mut text));
    read.is_ok() && is_watched(&text, fd)
}

fn is_watched(fdinfo: &str, fd: i32) -> bool {
    let watched = fdinfo.lines().filter_map(|line| line.strip_prefix("tfd:"));
    let mut watched = watched.filter_map(|rest| rest.split_whitespace().next()?.parse().ok());
    watched.any(|watched: i32| watched == fd)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn calls_are_read_as_the_kernel_writes_them() {
        let accept = "288 0x3 0x7ffc 0x7ffd 0x80000 0x0 0x0 0x7ffe 0x7fff\n";
        let expected = Call {
            number: 288,
            first: 3,
        };
        assert_eq!(parse_call(accept), Some(expected));
        // The upper half of the register is what was left there.
        let upper = "288 0xdeadbeef00000003 0x0";
        assert_eq!(parse_call(upper), Some(expected));
        for none in ["running\n", "-1 0x7ffe 0x7fff\n", ""] {
            assert_eq!(parse_call(none), None, "{none}");
        }
    }

    #[test]
    fn who_accepts_goes_before_who_may() {
        let call = |number: libc::c_long, first| Call {
            number: i32::try_from(number).expect("small"),
            first,
        };
        let accept = |first| call(libc::SYS_accept4, first);
        let epoll = call(libc::SYS_epoll_pwait, 5);
        let waits = |call: Call, listener: &[i32]| call.waits(listener, |epoll| epoll == 5);
        assert_eq!(waits(accept(3), &[3]), Some(Waits::Accepts));
        assert_eq!(waits(accept(3), &[2, 3]), Some(Waits::Accepts));
        assert_eq!(waits(accept(4), &[3]), None, "on another listener");
        assert_eq!(waits(accept(4), &[]), Some(Waits::Accepts));
        assert_eq!(waits(epoll, &[3]), Some(Waits::Epolls));
        assert_eq!(epoll.waits(&[3], |_| false), None);
        let select = |first| call(libc::SYS_pselect6, first);
        assert_eq!(waits(select(4), &[3]), Some(Waits::Polls));
        assert_eq!(waits(select(3), &[3]), None, "of lower descriptors only");
        assert_eq!(waits(call(libc::SYS_futex, 3), &[3]), None);
        assert!(Waits::Accepts < Waits::Epolls && Waits::Epolls < Waits::Polls);
    }

    #[test]
    fn a_parent_of_workers_waits_for_something_else() {
        let elsewhere = |number: libc::c_long| {
            let number = i32::try_from(number).expect("small");
            Call { number, first: 3 }.waits_elsewhere()
        };
        assert!(elsewhere(libc::SYS_rt_sigsuspend) && elsewhere(libc::SYS_wait4));
        assert!(elsewhere(libc::SYS_epoll_pwait), "of others");
        assert!(!elsewhere(libc::SYS_recvfrom) && !elsewhere(libc::SYS_futex));
        assert!(Role::Accepts < Role::Polls && Role::Works < Role::Elsewhere);
        assert!(news('T') < news('D') && news('D') < news('R') && news('R') < news('S'));
    }

    #[test]
    fn an_epoll_instance_tells_what_it_watches() {
        let text = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t2057\n\
                    tfd:        3 events:       19 data: 3  pos:0 ino:4f sdev:8\n\
                    tfd:       17 events: 80000019 data: 11 pos:0 ino:51 sdev:8\n";
        assert!(is_watched(text, 3) && is_watched(text, 17));
        assert!(!is_watched(text, 19) && !is_watched("", 3));
    }

    #[test]
    fn the_thread_in_accept_is_found_among_the_others() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let fd = listener.as_raw_fd();
        let acceptor = thread::spawn(move || {
            listener.accept().expect("one comes");
            nix::unistd::gettid().as_raw().cast_unsigned()
        });
        let pid = std::process::id();
        let begun = Instant::now();
        let found = loop {
            let found = look(&Holders::from([(pid, vec![fd])]), 7).expect("we run");
            let in_accept = found.syscall.is_some_and(|number| {
                let number = libc::c_long::from(number);
                [libc::SYS_accept, libc::SYS_accept4].contains(&number)
            });
            if in_accept && found.state == 'S' || begun.elapsed() > Duration::from_secs(10) {
                break found;
            }
            thread::yield_now();
        };
        TcpStream::connect(addr).expect("listening");
        let tid = acceptor.join().expect("it accepted");
        let Acceptor { process, .. } = &found;
        assert_eq!((process.pid, found.tid, found.state), (pid, tid, 'S'));
        assert_eq!(found.wait_channel.as_deref(), Some("inet_csk_accept"));
        assert_eq!(found.read_after_ms, 7);
    }

    #[test]
    fn the_limit_of_queues_is_read() {
        let own = netns::of(std::process::id()).expect("our own");
        assert!(somaxconn(&own) > Some(0));
        assert_eq!(look(&Holders::from([(u32::MAX, vec![])]), 0), None);
    }
}
