//! What every live test needs: a private network namespace, actors in it, a tracer that looks on,
//! and the kernel's own counters to hold its output against.
//!
//! Run as root, one test at a time: `cargo test -p tcptrace-tests -- --test-threads=1`. The program
//! under test is `$TCPTRACE_BIN`, or else the release build of this workspace.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tcptrace::selftest::actor::Arg;
pub use tcptrace::selftest::actor::{Actor, Fd, Pair, SOON, wait_until};
pub use tcptrace::selftest::netns::{Counters, Netns};
pub use tcptrace::selftest::tracer::{Record, Trace, Tracer, note_unseen, unseen};

pub mod accounts;
pub mod bpf;
pub mod browser;
pub mod certificates;
pub mod cgroup;
pub mod findings;
pub mod hosts;
pub mod http;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod log_servers;
pub mod own_connections;
pub mod program;
pub mod servers;
pub mod sock_diag;
pub mod sockets;
pub mod terminal;

/// IPv4, IPv6, and IPv4 between IPv6 sockets; any port.
pub const LOOPBACKS: [&str; 3] = ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"];

/// Runs a test on a thread of its own in a namespace of its own, and fails with its error. A failure
/// beside which the tracer said that the kernel let changes of state go by unseen proves nothing: the
/// test runs again.
///
/// # Panics
/// When the test does.
pub fn in_netns(mut test: impl FnMut(&Netns) -> Result<()> + Send) {
    const ATTEMPTS: u32 = 4;
    let mut attempts = 1..ATTEMPTS;
    loop {
        let before = unseen();
        match std::thread::scope(|scope| scope.spawn(|| test(&Netns::enter()?)).join()) {
            Ok(Ok(())) => return,
            _ if unseen() > before && attempts.next().is_some() => {
                eprintln!("changes of state went by unseen: once more");
            }
            Ok(Err(error)) => panic!("{error:?}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// How often something is done: ten times as often in the full run (`cargo xtask test --full`).
#[must_use]
pub fn volume(usual: usize) -> usize {
    if std::env::var_os("TCPTRACE_FULL").is_some() {
        10 * usual
    } else {
        usual
    }
}

/// The program under test.
#[must_use]
pub fn tcptrace() -> Command {
    let built = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/release/tcptrace");
    Command::new(std::env::var_os("TCPTRACE_BIN").map_or_else(built, PathBuf::from))
}

/// A tracer of this namespace with further arguments, once it traces.
///
/// # Errors
/// When it does not come up.
pub fn trace(netns: &Netns, args: &[&str]) -> Result<Tracer> {
    let netns = netns.path();
    let netns = netns.to_str().context("a path in /proc")?;
    trace_unfiltered(&[&["--netns", netns], args].concat())
}

/// A tracer with these arguments and the stream as its output, once it traces.
///
/// # Errors
/// When it does not come up.
pub fn trace_unfiltered(args: &[&str]) -> Result<Tracer> {
    let mut command = tcptrace();
    command.args(["-o", "json"]).args(args);
    Tracer::start(command)
}

/// A new process of this name, in the calling thread's namespace.
///
/// # Errors
/// When it cannot be started.
pub fn actor(name: &str) -> Result<Actor> {
    let mut command = Command::new(built("actor")?);
    command.arg(name);
    Actor::spawn(command).with_context(|| format!("cannot start the actor {name}"))
}

/// A program of this package.
///
/// # Errors
/// When this is no test of it.
pub fn built(program: &str) -> Result<PathBuf> {
    // Beside the test programs' own directory, where cargo puts the package's binaries.
    let test = std::env::current_exe()?;
    let built = test.parent().and_then(|deps| deps.parent());
    Ok(built.context("a test outside target")?.join(program))
}

/// A new process of this name that has become this user.
///
/// # Errors
/// When it cannot be started.
pub fn actor_as(name: &str, uid: i32) -> Result<Actor> {
    let mut actor = actor(name)?;
    actor.sys(libc::SYS_setresuid, &[uid.into(), uid.into(), uid.into()])?;
    Ok(actor)
}

/// A listener on an address like `127.0.0.1:0`.
///
/// # Errors
/// That of the first call that fails.
pub fn listen(server: &mut Actor, addr: &str, backlog: i32) -> Result<(Fd, SocketAddr)> {
    Ok(server.listener(addr.parse()?, backlog)?)
}

/// A server and a client of these names, connected.
///
/// # Errors
/// That of the first call that fails.
pub fn connected(server: &mut Actor, client: &mut Actor, addr: &str) -> Result<Pair> {
    let listener = listen(server, addr, 128)?;
    Ok(Pair::new(server, client, listener)?)
}

/// The server closes with these many bytes unread, and the client has seen the RST.
///
/// # Errors
/// That of the first call that fails.
pub fn close_unread(
    server: &mut Actor,
    client: &mut Actor,
    pair: &Pair,
    unread: u32,
) -> Result<()> {
    client.send(pair.client, &vec![b'x'; unread as usize])?;
    server.wait_for_unread(pair.server, unread)?;
    server.close(pair.server)?;
    client.wait_for(pair.client, libc::POLLHUP)?;
    Ok(())
}

/// A forked child of the actor, with all its descriptors.
///
/// # Errors
/// That of the first call that fails.
pub fn fork(actor: &mut Actor) -> Result<Actor> {
    let (pid, requests, replies) = split(actor, "fork")?;
    Ok(Actor::attach(pid, pid, requests, replies))
}

/// A further thread of the actor.
///
/// # Errors
/// That of the first call that fails.
pub fn thread(actor: &mut Actor) -> Result<Actor> {
    let (tid, requests, replies) = split(actor, "thread")?;
    Ok(Actor::attach(actor.pid(), tid, requests, replies))
}

/// Lets the actor start a second self that obeys on pipes of its own.
fn split(actor: &mut Actor, verb: &str) -> Result<(u32, std::fs::File, std::fs::File)> {
    let mut pipe = || -> Result<[Fd; 2]> {
        let returned = actor.sys(libc::SYS_pipe2, &[Arg::Memory(vec![0; 8]), 0.into()])?;
        let bytes = returned.memory.first().context("no pipe")?;
        let (ends, _) = bytes.as_chunks::<4>();
        ensure!(ends.len() == 2, "a pipe has two ends");
        Ok([Fd::from_ne_bytes(ends[0]), Fd::from_ne_bytes(ends[1])])
    };
    let (requests, replies) = (pipe()?, pipe()?);
    let end = |fd: Fd| format!("/proc/{}/fd/{fd}", actor.pid());
    let to = OpenOptions::new().write(true).open(end(requests[1]))?;
    let from = OpenOptions::new().read(true).open(end(replies[0]))?;
    let args = [
        requests[0].into(),
        replies[1].into(),
        requests[1].into(),
        replies[0].into(),
    ];
    let id = u32::try_from(actor.call(verb, &args)?.value)?;
    Ok((id, to, from))
}

/// Gives a socket to another process over a Unix socket, and returns its descriptor there.
///
/// # Errors
/// That of the first call that fails.
pub fn pass(from: &mut Actor, fd: Fd, to: &mut Actor) -> Result<Fd> {
    let name = format!("\0tcptrace-test-{}-{fd}", from.pid());
    to.call("prepare_to_take", &[name.as_bytes().into()])?;
    from.call("pass", &[fd.into(), name.as_bytes().into()])?;
    Ok(Fd::try_from(to.call("take", &[])?.value)?)
}

/// Waits until this is the state of a process in `/proc/PID/stat`, e.g. `T` once it is stopped.
///
/// # Errors
/// When it is not soon.
pub fn wait_for_process_state(pid: u32, state: char) -> Result<()> {
    wait_until("a process state", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        Ok(after_name.trim_start().starts_with(state))
    })?;
    Ok(())
}

/// The fields of the `status` of each thread of a process. One that ends meanwhile is left out.
///
/// # Errors
/// When there is no such process.
pub fn threads(pid: u32) -> Result<Vec<BTreeMap<String, String>>> {
    let mut threads = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(status) = std::fs::read_to_string(thread?.path().join("status")) else {
            continue;
        };
        let fields = status.lines().filter_map(|line| line.split_once(":\t"));
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
        threads.push(fields.collect());
    }
    Ok(threads)
}

/// What a record says of its event: its attributes but for those that tell a replay when and in which
/// order it was judged ([`Place`](tcptrace::sink::Place)), which any record of JSON may carry and no
/// other format does.
#[must_use]
pub fn told(record: &Record) -> BTreeMap<&str, &Value> {
    let attributes = record.0["attributes"].as_object().into_iter().flatten();
    let told = attributes.map(|(name, value)| (name.as_str(), value));
    told.filter(|(name, _)| !matches!(*name, "tcptrace.judged_until_ms" | "tcptrace.event.kept"))
        .collect()
}

/// The records of a trace that ended well, and ways to ask them.
#[derive(Clone, Debug, Default)]
pub struct Events(pub Vec<Record>);

impl Events {
    /// Interrupts a tracer and takes what it wrote.
    ///
    /// # Errors
    /// When it ends otherwise than with 0, or a line is no record.
    pub fn of(tracer: Tracer) -> Result<Self> {
        Self::from_trace(&tracer.stop()?)
    }

    /// What an ended tracer wrote.
    ///
    /// # Errors
    /// When it ended otherwise than with 0, or a line is no record.
    pub fn from_trace(trace: &Trace) -> Result<Self> {
        ensure!(
            trace.status.success(),
            "{}: {}",
            trace.status,
            trace.stderr.join("\n")
        );
        Ok(Self(trace.records()?))
    }

    /// Those of one name.
    #[must_use]
    pub fn named(&self, name: &str) -> Self {
        self.only(|record| record.name() == name)
    }

    /// Those for which this holds.
    #[must_use]
    pub fn only(&self, holds: impl Fn(&Record) -> bool) -> Self {
        Self(
            self.0
                .iter()
                .filter(|record| holds(record))
                .cloned()
                .collect(),
        )
    }

    /// Connections lost to a full accept queue. One that the look around at the start found full,
    /// which may come late, lost none that was seen.
    #[must_use]
    pub fn lost_connections(&self) -> Self {
        let overflows = self.named("accept_queue.overflow");
        overflows.only(|record| record.number("tcptrace.accept_queue.count").is_some())
    }

    /// Those of this `error.type`.
    #[must_use]
    pub fn error(&self, error: &str) -> Self {
        self.only(|record| record.text("error.type") == Some(error))
    }

    /// Those of sockets with this local address.
    #[must_use]
    pub fn local(&self, addr: SocketAddr) -> Self {
        self.end("local", addr)
    }

    /// Those of sockets with this peer.
    #[must_use]
    pub fn peer(&self, addr: SocketAddr) -> Self {
        self.end("peer", addr)
    }

    fn end(&self, end: &str, addr: SocketAddr) -> Self {
        let ip = addr.ip().to_canonical().to_string();
        self.only(|record| {
            record.number(&format!("network.{end}.port")) == Some(addr.port().into())
                && record.text(&format!("network.{end}.address")) == Some(&ip)
        })
    }

    /// Those at the server's end of this connection.
    #[must_use]
    pub fn at_server(&self, pair: &Pair) -> Self {
        self.local(pair.server_addr).peer(pair.client_addr)
    }

    /// Those at the client's end of this connection.
    #[must_use]
    pub fn at_client(&self, pair: &Pair) -> Self {
        self.local(pair.client_addr).peer(pair.server_addr)
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// The owners, one entry an event.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let pid = |record: &Record| record.pid().and_then(|pid| u32::try_from(pid).ok());
        self.0
            .iter()
            .map(|record| pid(record).unwrap_or(0))
            .collect()
    }

    /// The one event there must be.
    ///
    /// # Errors
    /// When there is none or more than one.
    pub fn one(&self) -> Result<&Record> {
        ensure!(
            self.0.len() == 1,
            "one event was expected, these came: {:#?}",
            self.0
        );
        Ok(&self.0[0])
    }
}
