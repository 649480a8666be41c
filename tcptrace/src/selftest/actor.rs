//! Actors: processes that make the system calls they are told to, one at a time, and say what each
//! returned. So every failure is provoked in a known order by a known process, and what the program
//! saw is on record.
//!
//! A request is a line: a word and its arguments. A number stands for itself, `x6869` for the
//! address of these bytes, `m0000` for the address of memory whose content comes back. The reply is
//! a line as well: what the call returned, the errno, and the content of each `m`.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A descriptor in an actor's table.
pub type Fd = i32;

/// How long is waited for what must come at once: long, because a busy machine is no failure.
pub const SOON: Duration = Duration::from_secs(30);

/// An argument of a system call.
#[derive(Clone, Debug)]
pub enum Arg<'a> {
    /// A number.
    Int(i64),
    /// Memory the kernel reads.
    Bytes(&'a [u8]),
    /// Memory the kernel reads and writes; its content comes back.
    Memory(Vec<u8>),
}

impl From<Fd> for Arg<'_> {
    fn from(value: Fd) -> Self {
        Self::Int(value.into())
    }
}

impl From<usize> for Arg<'_> {
    /// Panics past `i64::MAX`, which is no length.
    fn from(value: usize) -> Self {
        Self::Int(i64::try_from(value).expect("a length"))
    }
}

impl<'a> From<&'a [u8]> for Arg<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self::Bytes(value)
    }
}

/// What a call returned, with the content of its writable memory.
#[derive(Clone, Debug, Default)]
pub struct Returned {
    /// The value, not negative.
    pub value: i64,
    /// One for each [`Arg::Memory`].
    pub memory: Vec<Vec<u8>>,
}

/// A call that failed in an actor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The request's first words: `sys` and the call's number, or another verb.
    pub call: String,
    /// The error, positive.
    pub errno: i32,
}

/// The near end of an actor. Dropping it kills the process.
#[derive(Debug)]
pub struct Actor {
    pid: u32,
    tid: u32,
    child: Option<Child>,
    requests: File,
    replies: BufReader<File>,
    failed: Vec<Failed>,
    call: String,
    /// Its process has ended: the number may be another's by now.
    ended: bool,
}

impl Actor {
    /// Starts `command`, which must end in [`serve`]. It is born into the calling thread's network
    /// namespace and dies with the calling thread.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(mut command: Command) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: prctl is async-signal-safe and touches no memory.
        unsafe {
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let mut child = command.spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("an actor without pipes"));
        };
        let requests = File::from(OwnedFd::from(stdin));
        let replies = File::from(OwnedFd::from(stdout));
        let mut actor = Self::attach(child.id(), child.id(), requests, replies);
        actor.child = Some(child);
        // The first reply says that the process has its name and stands ready.
        actor.read_reply()?;
        Ok(actor)
    }

    /// Takes hold of a process or thread that serves on these pipes already.
    #[must_use]
    pub fn attach(pid: u32, tid: u32, requests: File, replies: File) -> Self {
        let replies = BufReader::new(replies);
        Self {
            pid,
            tid,
            child: None,
            requests,
            replies,
            failed: vec![],
            call: String::new(),
            ended: false,
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its thread id.
    #[must_use]
    pub fn tid(&self) -> u32 {
        self.tid
    }

    /// Every error a call has returned to it so far.
    #[must_use]
    pub fn failed(&self) -> &[Failed] {
        &self.failed
    }

    /// Makes a system call and waits for its return.
    ///
    /// # Errors
    /// The error the call returned.
    pub fn sys(&mut self, number: libc::c_long, args: &[Arg<'_>]) -> io::Result<Returned> {
        self.call(&format!("sys {number}"), args)
    }

    /// Asks for any verb the actor knows and waits for the reply.
    ///
    /// # Errors
    /// The error the call returned.
    pub fn call(&mut self, call: &str, args: &[Arg<'_>]) -> io::Result<Returned> {
        self.begin(call, args)?;
        self.finish()
    }

    /// Sends a request and does not wait.
    ///
    /// # Errors
    /// When the actor is gone.
    pub fn begin(&mut self, call: &str, args: &[Arg<'_>]) -> io::Result<()> {
        let mut line = call.to_owned();
        for arg in args {
            match arg {
                Arg::Int(number) => _ = write!(line, " {number}"),
                Arg::Bytes(bytes) => _ = write!(line, " x{}", to_hex(bytes)),
                Arg::Memory(bytes) => _ = write!(line, " m{}", to_hex(bytes)),
            }
        }
        line.push('\n');
        call.clone_into(&mut self.call);
        self.requests.write_all(line.as_bytes())
    }

    /// Waits for the reply to [`Actor::begin`].
    ///
    /// # Errors
    /// The error the call returned.
    pub fn finish(&mut self) -> io::Result<Returned> {
        let (value, errno, memory) = self.read_reply()?;
        if errno == 0 {
            return Ok(Returned { value, memory });
        }
        self.failed.push(Failed {
            call: self.call.clone(),
            errno,
        });
        Err(io::Error::from_raw_os_error(errno))
    }

    fn read_reply(&mut self) -> io::Result<(i64, i32, Vec<Vec<u8>>)> {
        let mut line = String::new();
        if self.replies.read_line(&mut line)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the actor is gone",
            ));
        }
        let mut words = line.split_whitespace();
        let reply = (|| {
            let value = words.next()?.parse().ok()?;
            let errno = words.next()?.parse().ok()?;
            Some((value, errno, words.map(from_hex).collect::<Option<_>>()?))
        })();
        reply.ok_or_else(|| io::Error::other(format!("an actor answered {line:?}")))
    }

    fn fd(&mut self, number: libc::c_long, args: &[Arg<'_>]) -> io::Result<Fd> {
        let value = self.sys(number, args)?.value;
        Fd::try_from(value).map_err(io::Error::other)
    }

    /// `socket(domain, SOCK_STREAM | flags, 0)`.
    ///
    /// # Errors
    /// The call's.
    pub fn socket(&mut self, domain: i32, flags: i32) -> io::Result<Fd> {
        self.fd(
            libc::SYS_socket,
            &[domain.into(), (libc::SOCK_STREAM | flags).into(), 0.into()],
        )
    }

    /// `bind`.
    ///
    /// # Errors
    /// The call's.
    pub fn bind(&mut self, fd: Fd, addr: SocketAddr) -> io::Result<()> {
        let addr = sockaddr(addr);
        self.sys(
            libc::SYS_bind,
            &[fd.into(), addr[..].into(), addr.len().into()],
        )
        .map(drop)
    }

    /// `listen`.
    ///
    /// # Errors
    /// The call's.
    pub fn listen(&mut self, fd: Fd, backlog: i32) -> io::Result<()> {
        self.sys(libc::SYS_listen, &[fd.into(), backlog.into()])
            .map(drop)
    }

    /// A listening socket on `addr`, and the address it got.
    ///
    /// # Errors
    /// That of the first call that fails.
    pub fn listener(&mut self, addr: SocketAddr, backlog: i32) -> io::Result<(Fd, SocketAddr)> {
        let fd = self.socket(domain(addr), 0)?;
        self.bind(fd, addr)?;
        self.listen(fd, backlog)?;
        Ok((fd, self.local_addr(fd)?))
    }

    /// `connect`.
    ///
    /// # Errors
    /// The call's.
    pub fn connect(&mut self, fd: Fd, addr: SocketAddr) -> io::Result<()> {
        let addr = sockaddr(addr);
        self.sys(
            libc::SYS_connect,
            &[fd.into(), addr[..].into(), addr.len().into()],
        )
        .map(drop)
    }

    /// A new socket connected to `addr`.
    ///
    /// # Errors
    /// That of the first call that fails.
    pub fn connected(&mut self, addr: SocketAddr) -> io::Result<Fd> {
        let fd = self.socket(domain(addr), 0)?;
        self.connect(fd, addr)?;
        Ok(fd)
    }

    /// A new non-blocking socket whose connect has begun.
    ///
    /// # Errors
    /// That of the first call that fails other than with EINPROGRESS.
    pub fn connecting(&mut self, addr: SocketAddr) -> io::Result<Fd> {
        let fd = self.socket(domain(addr), libc::SOCK_NONBLOCK)?;
        match self.connect(fd, addr) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                self.failed.pop();
                Ok(fd)
            }
            result => result.map(|()| fd),
        }
    }

    /// `accept4`.
    ///
    /// # Errors
    /// The call's.
    pub fn accept(&mut self, listener: Fd) -> io::Result<Fd> {
        self.fd(
            libc::SYS_accept4,
            &[listener.into(), 0.into(), 0.into(), 0.into()],
        )
    }

    /// `sendto` without flags: a write to a dead connection would raise SIGPIPE, which actors
    /// ignore.
    ///
    /// # Errors
    /// The call's.
    pub fn send(&mut self, fd: Fd, bytes: &[u8]) -> io::Result<usize> {
        let args = [
            fd.into(),
            bytes.into(),
            bytes.len().into(),
            0.into(),
            0.into(),
            0.into(),
        ];
        let sent = self.sys(libc::SYS_sendto, &args)?.value;
        usize::try_from(sent).map_err(io::Error::other)
    }

    /// Sends without waiting until the buffer takes no more.
    ///
    /// # Errors
    /// The call's, except EAGAIN.
    pub fn fill(&mut self, fd: Fd) -> io::Result<()> {
        let bytes = [0; 4096];
        let args = [
            fd.into(),
            bytes[..].into(),
            bytes.len().into(),
            libc::MSG_DONTWAIT.into(),
            0.into(),
            0.into(),
        ];
        loop {
            match self.sys(libc::SYS_sendto, &args) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.failed.pop();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// `recvfrom` of at most `len` bytes.
    ///
    /// # Errors
    /// The call's.
    pub fn recv(&mut self, fd: Fd, len: usize) -> io::Result<Vec<u8>> {
        let buffer = Arg::Memory(vec![0; len]);
        let args = [fd.into(), buffer, len.into(), 0.into(), 0.into(), 0.into()];
        let mut returned = self.sys(libc::SYS_recvfrom, &args)?;
        let mut bytes = returned.memory.pop().unwrap_or_default();
        bytes.truncate(usize::try_from(returned.value).map_err(io::Error::other)?);
        Ok(bytes)
    }

    /// `shutdown`.
    ///
    /// # Errors
    /// The call's.
    pub fn shutdown(&mut self, fd: Fd, how: i32) -> io::Result<()> {
        self.sys(libc::SYS_shutdown, &[fd.into(), how.into()])
            .map(drop)
    }

    /// `close`.
    ///
    /// # Errors
    /// The call's.
    pub fn close(&mut self, fd: Fd) -> io::Result<()> {
        self.sys(libc::SYS_close, &[fd.into()]).map(drop)
    }

    /// `setsockopt` with a value made of 32-bit words, as nearly all are.
    ///
    /// # Errors
    /// The call's.
    pub fn set(&mut self, fd: Fd, level: i32, option: i32, words: &[i32]) -> io::Result<()> {
        let value: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let args = [
            fd.into(),
            level.into(),
            option.into(),
            value[..].into(),
            value.len().into(),
        ];
        self.sys(libc::SYS_setsockopt, &args).map(drop)
    }

    /// Sets `SO_RCVTIMEO`.
    ///
    /// # Errors
    /// The call's.
    pub fn set_receive_timeout(&mut self, fd: Fd, timeout: Duration) -> io::Result<()> {
        self.set_timeout(fd, libc::SO_RCVTIMEO, timeout)
    }

    /// Sets `SO_SNDTIMEO`.
    ///
    /// # Errors
    /// The call's.
    pub fn set_send_timeout(&mut self, fd: Fd, timeout: Duration) -> io::Result<()> {
        self.set_timeout(fd, libc::SO_SNDTIMEO, timeout)
    }

    fn set_timeout(&mut self, fd: Fd, option: i32, timeout: Duration) -> io::Result<()> {
        let seconds = timeout.as_secs().to_ne_bytes();
        let value = [seconds, u64::from(timeout.subsec_micros()).to_ne_bytes()].concat();
        let args = [
            fd.into(),
            libc::SOL_SOCKET.into(),
            option.into(),
            value[..].into(),
            value.len().into(),
        ];
        self.sys(libc::SYS_setsockopt, &args).map(drop)
    }

    /// Closes with `SO_LINGER` on and a time of 0.
    ///
    /// # Errors
    /// That of the first call that fails.
    pub fn abort(&mut self, fd: Fd) -> io::Result<()> {
        self.set(fd, libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0])?;
        self.close(fd)
    }

    /// `getsockname`.
    ///
    /// # Errors
    /// The call's.
    pub fn local_addr(&mut self, fd: Fd) -> io::Result<SocketAddr> {
        let size = 28_u32;
        let args = [
            fd.into(),
            Arg::Memory(vec![0; 28]),
            Arg::Memory(size.to_ne_bytes().to_vec()),
        ];
        let returned = self.sys(libc::SYS_getsockname, &args)?;
        returned
            .memory
            .first()
            .and_then(|bytes| from_sockaddr(bytes))
            .ok_or_else(|| io::Error::other("not an internet address"))
    }

    /// Limits the number of descriptors it may open (`RLIMIT_NOFILE`).
    ///
    /// # Errors
    /// The call's.
    pub fn limit_descriptors(&mut self, limit: u64) -> io::Result<()> {
        let value = [limit.to_ne_bytes(), limit.to_ne_bytes()].concat();
        let resource = i64::from(libc::RLIMIT_NOFILE);
        let args = [0.into(), Arg::Int(resource), value[..].into(), 0.into()];
        self.sys(libc::SYS_prlimit64, &args).map(drop)
    }

    /// Waits until `poll` reports one of `events` on the descriptor, and returns what it reports.
    ///
    /// # Errors
    /// The call's, or `TimedOut` after [`SOON`].
    pub fn wait_for(&mut self, fd: Fd, events: i16) -> io::Result<i16> {
        let mut entry = fd.to_ne_bytes().to_vec();
        entry.extend(events.to_ne_bytes());
        entry.extend([0, 0]);
        let timeout = [SOON.as_secs().to_ne_bytes(), [0; 8]].concat();
        let args = [
            Arg::Memory(entry),
            1.into(),
            timeout[..].into(),
            0.into(),
            8.into(),
        ];
        let returned = self.sys(libc::SYS_ppoll, &args)?;
        match returned.memory.first().map(Vec::as_slice) {
            Some(&[.., low, high]) if returned.value == 1 => Ok(i16::from_ne_bytes([low, high])),
            _ => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "poll saw nothing in time",
            )),
        }
    }

    /// Waits until the receive queue holds `count` bytes, without reading them.
    ///
    /// # Errors
    /// The call's, or `TimedOut` after [`SOON`].
    pub fn wait_for_unread(&mut self, fd: Fd, count: u32) -> io::Result<()> {
        wait_until("bytes in the receive queue", || {
            let request = i64::try_from(libc::FIONREAD).map_err(io::Error::other)?;
            let args = [fd.into(), Arg::Int(request), Arg::Memory(vec![0; 4])];
            let returned = self.sys(libc::SYS_ioctl, &args)?;
            Ok(returned.memory.first() == Some(&count.to_ne_bytes().to_vec()))
        })
    }

    /// Waits until the accept queue of a listener holds `count` connections.
    ///
    /// # Errors
    /// The call's, or `TimedOut` after [`SOON`].
    pub fn wait_for_queue(&mut self, listener: Fd, count: u32) -> io::Result<()> {
        wait_until("connections in the accept queue", || {
            // For a listener tcpi_unacked, the 7th word, is the queue's length.
            // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp.c (tcp_get_info)
            let args = [
                listener.into(),
                libc::IPPROTO_TCP.into(),
                libc::TCP_INFO.into(),
                Arg::Memory(vec![0; 104]),
                Arg::Memory(104_u32.to_ne_bytes().to_vec()),
            ];
            let returned = self.sys(libc::SYS_getsockopt, &args)?;
            let unacked = returned.memory.first().and_then(|info| info.get(24..28));
            Ok(unacked == Some(&count.to_ne_bytes()[..]))
        })
    }

    /// Ends it by `exit_group(code)`, its descriptors open as they are.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn exit(&mut self, code: i32) -> io::Result<()> {
        self.begin(&format!("sys {}", libc::SYS_exit_group), &[code.into()])?;
        self.wait().map(drop)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill(self.nix_pid(), signal)?)
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait().map(drop)
    }

    /// Waits for its end: by then its descriptors are closed. `None` for one that another actor
    /// forked.
    fn wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.ended = true;
        let Some(mut child) = self.child.take() else {
            // Not our child: its end of the pipe closes with it.
            let mut rest = String::new();
            while self.replies.read_line(&mut rest)? > 0 {}
            return Ok(None);
        };
        child.wait().map(Some)
    }

    fn nix_pid(&self) -> Pid {
        Pid::from_raw(self.pid.cast_signed())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            _ = child.kill();
            _ = child.wait();
        } else if !self.ended && self.tid == self.pid && kill(self.nix_pid(), None).is_ok() {
            _ = kill(self.nix_pid(), Signal::SIGKILL);
        }
    }
}

/// A connection between two actors, its server end accepted.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The server's descriptor.
    pub server: Fd,
    /// The client's descriptor.
    pub client: Fd,
    /// The server's address, as the client names it.
    pub server_addr: SocketAddr,
    /// The client's address, as the client names it.
    pub client_addr: SocketAddr,
}

impl Pair {
    /// Connects `client` to this listener of `server` and accepts.
    ///
    /// # Errors
    /// That of the first call that fails.
    pub fn new(
        server: &mut Actor,
        client: &mut Actor,
        (listener, server_addr): (Fd, SocketAddr),
    ) -> io::Result<Self> {
        let client_fd = client.connected(server_addr)?;
        let server_fd = server.accept(listener)?;
        let client_addr = client.local_addr(client_fd)?;
        Ok(Self {
            server: server_fd,
            client: client_fd,
            server_addr,
            client_addr,
        })
    }

    /// A request and its answer: both ends have written and read, and nothing is left unread.
    ///
    /// # Errors
    /// That of the first call that fails.
    pub fn exchange(&self, server: &mut Actor, client: &mut Actor) -> io::Result<()> {
        client.send(self.client, b"request")?;
        server.recv(self.server, 64)?;
        server.send(self.server, b"answer")?;
        client.recv(self.client, 64).map(drop)
    }

    /// Closes the client's end and then the server's, in good order.
    ///
    /// # Errors
    /// That of the first call that fails.
    pub fn close(&self, server: &mut Actor, client: &mut Actor) -> io::Result<()> {
        client.close(self.client)?;
        server.wait_for(self.server, libc::POLLRDHUP)?;
        server.close(self.server)
    }
}

/// What a program of its own may add to the verbs an actor knows: the verb with its arguments.
pub type Verb = fn(&str, &[&str]) -> io::Result<Returned>;

/// The far end: takes `name` as the process's name and obeys until stdin ends.
///
/// # Errors
/// When the pipes break.
pub fn serve(name: &str, verb: Verb) -> io::Result<()> {
    if let Ok(name) = std::ffi::CString::new(name) {
        prctl::set_name(&name)?;
    }
    let requests = File::open("/proc/self/fd/0")?;
    let mut replies = std::fs::OpenOptions::new()
        .write(true)
        .open("/proc/self/fd/1")?;
    replies.write_all(b"0 0\n")?;
    obey(requests, replies, verb)
}

/// Obeys the requests of one pipe until it ends.
///
/// # Errors
/// When the pipes break.
pub fn obey(requests: File, mut replies: File, verb: Verb) -> io::Result<()> {
    for line in BufReader::new(requests).lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let result = match words.as_slice() {
            ["sys", args @ ..] => system_call(args),
            [other, args @ ..] => verb(other, args),
            [] => continue,
        };
        let mut reply = match &result {
            Ok(returned) => format!("{} 0", returned.value),
            Err(error) => format!("-1 {}", error.raw_os_error().unwrap_or(libc::ENOSYS)),
        };
        for memory in result.map(|returned| returned.memory).unwrap_or_default() {
            // A word even when empty, so that the words stay in place.
            _ = write!(reply, " m{}", to_hex(&memory));
        }
        reply.push('\n');
        replies.write_all(reply.as_bytes())?;
    }
    Ok(())
}

/// The verb of an actor that knows none but `sys`.
///
/// # Errors
/// Always ENOSYS.
pub fn no_verb(_: &str, _: &[&str]) -> io::Result<Returned> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

fn system_call(words: &[&str]) -> io::Result<Returned> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let mut memory: Vec<Option<Vec<u8>>> = vec![None; words.len()];
    let mut values = [0_i64; 7];
    if words.len() > values.len() {
        return Err(invalid());
    }
    for ((word, value), memory) in words.iter().zip(&mut values).zip(&mut memory) {
        if word.starts_with(['x', 'm']) {
            let bytes = memory.insert(from_hex(word).ok_or_else(invalid)?);
            *value = bytes.as_mut_ptr().expose_provenance().cast_signed() as i64;
        } else {
            *value = word.parse().map_err(|_| invalid())?;
        }
    }
    let [number, args @ ..] = values;
    // SAFETY: the addresses are those of buffers that outlive the call; whoever asks for the call
    // passes their lengths, and an actor is made to be wrecked.
    let value =
        unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]) };
    if value < 0 {
        return Err(io::Error::last_os_error());
    }
    let returned = words.iter().zip(memory);
    let memory = returned
        .filter(|(word, _)| word.starts_with('m'))
        .filter_map(|(_, m)| m);
    Ok(Returned {
        value,
        memory: memory.collect(),
    })
}

/// Asks again and again until `done`, [`SOON`] at most.
///
/// # Errors
/// Those of `done`, or `TimedOut`.
pub fn wait_until(what: &str, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let deadline = Instant::now() + SOON;
    while !done()? {
        if Instant::now() > deadline {
            let message = format!("waited {} s for {what}", SOON.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn domain(addr: SocketAddr) -> i32 {
    if addr.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    }
}

/// The bytes of a `sockaddr_in` or `sockaddr_in6`.
#[must_use]
pub fn sockaddr(addr: SocketAddr) -> Vec<u8> {
    let family = u16::try_from(domain(addr)).unwrap_or_default();
    let mut bytes = family.to_ne_bytes().to_vec();
    bytes.extend(addr.port().to_be_bytes());
    match addr.ip() {
        IpAddr::V4(ip) => {
            bytes.extend(ip.octets());
            bytes.extend([0; 8]);
        }
        IpAddr::V6(ip) => {
            bytes.extend([0; 4]);
            bytes.extend(ip.octets());
            bytes.extend([0; 4]);
        }
    }
    bytes
}

fn from_sockaddr(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let ip: IpAddr = match family {
        libc::AF_INET => Ipv4Addr::from(*bytes.get(4..)?.first_chunk::<4>()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
            _ = write!(hex, "{byte:02x}");
            hex
        })
}

/// The bytes behind a word `x…` or `m…`.
#[must_use]
pub fn from_hex(word: &str) -> Option<Vec<u8>> {
    let digits = word.strip_prefix(['x', 'm'])?;
    if !digits.is_ascii() || digits.len() % 2 != 0 {
        return None;
    }
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).ok())
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn socket_addresses_survive_the_way_there_and_back() {
        for text in ["127.0.0.1:80", "[::1]:65535", "[::ffff:10.0.0.1]:1"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(from_sockaddr(&sockaddr(addr)), Some(addr));
        }
    }

    #[test]
    fn a_call_reports_its_value_its_memory_and_its_error() {
        let pid = system_call(&[&libc::SYS_getpid.to_string()]).unwrap();
        assert_eq!(pid.value, i64::from(std::process::id()));
        let bytes = system_call(&[&libc::SYS_getrandom.to_string(), "m00000000", "4", "0"]);
        let bytes = bytes.unwrap();
        assert_eq!((bytes.value, bytes.memory[0].len()), (4, 4));
        let error = system_call(&[&libc::SYS_close.to_string(), "-1"]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
