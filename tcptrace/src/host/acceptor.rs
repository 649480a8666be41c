//! The thread that should accept, and what it does instead; and how long a queue its namespace
//! allows.

use std::fs::{self, File};
use std::io::Read as _;

use super::netns::{self, Namespace};
use crate::event::Acceptor;

/// Threads of one process looked at: each costs 10 µs.
const THREADS: usize = 64;

/// Of what an epoll instance watches this much text is read: some 15,000 descriptors.
const WATCHED: u64 = 1 << 20;

/// Looks at the process that owns a listener: at the thread that waits for a connection on the
/// descriptor `listener` where there is one, else at the main thread. `read_after_ms` is how long
/// after the event this is. `None` when the process is gone.
#[must_use]
pub fn look(pid: u32, listener: Option<i32>, read_after_ms: u64) -> Option<Acceptor> {
    let waits = |tid: &u32| {
        let call = call(pid, *tid)?;
        let watches = |epoll| listener.is_some_and(|fd| watches(pid, epoll, fd));
        Some((call.waits(listener, watches)?, *tid))
    };
    let found = threads(pid).iter().filter_map(waits).min();
    let tid = found.map_or(pid, |(_, tid)| tid);
    Some(Acceptor {
        pid,
        tid,
        state: state(pid, tid)?,
        wait_channel: wait_channel(pid, tid),
        syscall: call(pid, tid).map(|call| call.number),
        read_after_ms,
    })
}

/// `net.core.somaxconn` of a network namespace: no queue of a listener there is longer. `None` when
/// it may not be entered.
#[must_use]
pub fn somaxconn(namespace: &Namespace) -> Option<u32> {
    let read = || fs::read_to_string("/proc/sys/net/core/somaxconn");
    netns::enter(namespace, read)
        .ok()?
        .ok()?
        .trim()
        .parse()
        .ok()
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
    fn waits(self, listener: Option<i32>, watches: impl FnOnce(i32) -> bool) -> Option<Waits> {
        let number = libc::c_long::from(self.number);
        if [libc::SYS_accept, libc::SYS_accept4].contains(&number) {
            let this = listener.is_none_or(|fd| fd == self.first);
            return this.then_some(Waits::Accepts);
        }
        if EPOLLS.contains(&number) {
            return watches(self.first).then_some(Waits::Epolls);
        }
        POLLS.contains(&number).then_some(Waits::Polls)
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
const POLLS: &[libc::c_long] = &[
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_io_uring_enter,
];
#[cfg(not(target_arch = "x86_64"))]
const POLLS: &[libc::c_long] = &[
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_io_uring_enter,
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
        let waits = |call: Call, listener| call.waits(listener, |epoll| epoll == 5);
        assert_eq!(waits(accept(3), Some(3)), Some(Waits::Accepts));
        assert_eq!(waits(accept(4), Some(3)), None, "on another listener");
        assert_eq!(waits(accept(4), None), Some(Waits::Accepts));
        assert_eq!(waits(epoll, Some(3)), Some(Waits::Epolls));
        assert_eq!(epoll.waits(Some(3), |_| false), None);
        assert_eq!(waits(call(libc::SYS_futex, 3), Some(3)), None);
        assert!(Waits::Accepts < Waits::Epolls && Waits::Epolls < Waits::Polls);
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
            let found = look(pid, Some(fd), 7).expect("we run");
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
        assert_eq!((found.pid, found.tid, found.state), (pid, tid, 'S'));
        assert_eq!(found.wait_channel.as_deref(), Some("inet_csk_accept"));
        assert_eq!(found.read_after_ms, 7);
    }

    #[test]
    fn the_limit_of_queues_is_read() {
        let own = netns::of(std::process::id()).expect("our own");
        assert!(somaxconn(&own) > Some(0));
        assert_eq!(look(u32::MAX, None, 0), None);
    }
}
