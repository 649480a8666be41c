//! The record: an event as a flat list of named values, the one list every machine format is made
//! from.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

use super::Context;
use crate::diagnose;
use crate::event::{
    Address, Cause, End, Event, EventId, Exit, Fact, Finding, Flow, Held, Holding, Kind, LimitedBy,
    Nearby, OverflowPath, Owner, Pool, Process, ResetSent, Severity, Side, Socket, SocketId,
    Sockets, State, States, Summary, TimeWaits, Timestamp,
};

/// A value of the record.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// An integer, below 2^53 so that every JSON reader keeps it exact.
    Int(i64),
    /// A fact that holds; one that does not has no key.
    True,
    /// Text as it is.
    Str(&'a str),
    /// Text that is written rather than stored.
    Text(&'a dyn fmt::Display),
    /// Process ids.
    Ints(&'a [u32]),
    /// Lines of text.
    Strs(&'a [String]),
}

/// How grave an event is.
#[must_use]
pub fn severity(event: &Event) -> Severity {
    match &event.kind {
        Kind::Finding(finding) => finding.severity,
        Kind::AcceptQueueOverflow(_)
        | Kind::SynQueueOverflow(_)
        | Kind::ConnectionTimeout(_)
        | Kind::EventsLost(_)
        | Kind::ExportDropped(_) => Severity::Error,
        Kind::ConnectFailed(connect)
            if connect
                .errno
                .is_some_and(|errno| errno.0 == libc::ETIMEDOUT) =>
        {
            Severity::Error
        }
        Kind::ResetSent(_)
        | Kind::ResetReceived(_)
        | Kind::CloseWaitStuck(_)
        | Kind::SocketError(_)
        | Kind::ConnectFailed(_)
        | Kind::FdExhausted(_)
        | Kind::FdInvalid(_) => Severity::Warn,
        // A signal that is not seen is a gap the reader must know of.
        Kind::Coverage(coverage) if coverage.way.is_none() => Severity::Warn,
        Kind::CloseWaitEntered(_)
        | Kind::StateChanged(_)
        | Kind::Retransmit(_)
        | Kind::Coverage(_)
        | Kind::TargetChanged(_)
        | Kind::EventsSuppressed(_)
        | Kind::Summary(_) => Severity::Info,
        Kind::Sockets(found) => found.severity(),
    }
}

macro_rules! names {
    ($($constant:ident = $name:literal)*) => {
        /// The name of every attribute.
        pub mod name {
            $(
                #[doc = concat!("`", $name, "`")]
                pub const $constant: &str = $name;
            )*

            /// All of them.
            pub const ALL: &[&str] = &[$($constant),*];

            /// Pid, name and command name of a process beside the owner.
            pub type Beside = [&'static str; 3];
            /// The process that acted.
            pub const ACTOR: Beside = [ACTOR_PID, ACTOR_NAME, ACTOR_COMM];
            /// The one that should accept.
            pub const ACCEPTOR: Beside = [ACCEPTOR_PID, ACCEPTOR_NAME, ACCEPTOR_COMM];
            /// The one that holds the port.
            pub const HOLDER: Beside = [HOLDER_PID, HOLDER_NAME, HOLDER_COMM];
            /// The one at the other end.
            pub const OTHER_END: Beside = [OTHER_END_PID, OTHER_END_NAME, OTHER_END_COMM];
        }
    };
}

names! {
    OTEL_EVENT_NAME = "otel.event.name"
    ERROR_TYPE = "error.type"
    NETWORK_TRANSPORT = "network.transport"
    NETWORK_TYPE = "network.type"
    LOCAL_ADDRESS = "network.local.address"
    LOCAL_PORT = "network.local.port"
    PEER_ADDRESS = "network.peer.address"
    PEER_PORT = "network.peer.port"
    CONNECTION_STATE = "network.connection.state"
    PROCESS_PID = "process.pid"
    PROCESS_NAME = "process.executable.name"
    PROCESS_PATH = "process.executable.path"
    PROCESS_USER = "process.user.id"
    CONTAINER_ID = "container.id"
    POD_UID = "k8s.pod.uid"
    THREAD_ID = "thread.id"
    EVENT_ID = "tcptrace.event.id"
    EVENT_KEPT = "tcptrace.event.kept"
    JUDGED_UNTIL = "tcptrace.judged_until_ms"
    CAUSED_BY = "tcptrace.caused_by"
    CAUSE = "tcptrace.cause"
    PROCESS_COMM = "tcptrace.process.comm"
    OWNER_CONFIDENCE = "tcptrace.owner.confidence"
    OWNER_PIDS = "tcptrace.owner.pids"
    OWNER_CHECKED = "tcptrace.owner.checked_ms"
    CREATOR_PID = "tcptrace.creator.pid"
    ACTOR_PID = "tcptrace.actor.pid"
    ACTOR_NAME = "tcptrace.actor.name"
    ACTOR_COMM = "tcptrace.actor.comm"
    EXIT_CODE = "tcptrace.exit.code"
    EXIT_SIGNAL = "tcptrace.exit.signal"
    FLOW_ID = "tcptrace.flow.id"
    COMMUNITY_ID = "tcptrace.flow.community_id"
    NETNS = "tcptrace.netns"
    IDLE = "tcptrace.idle_ms"
    SOCKET_FD = "tcptrace.socket.fd"
    SOCKET_INODE = "tcptrace.socket.inode"
    SOCKET_UNREAD = "tcptrace.socket.unread"
    SOCKET_UNACKED = "tcptrace.socket.unacked"
    SOCKET_RETRANSMITS = "tcptrace.socket.retransmits"
    SOCKET_RTT = "tcptrace.socket.rtt_us"
    SOCKET_RECEIVED_AGO = "tcptrace.socket.received_ago_ms"
    SOCKET_SENT_AGO = "tcptrace.socket.sent_ago_ms"
    SOCKET_EOF_READ = "tcptrace.socket.eof_read"
    SOCKET_NONBLOCKING = "tcptrace.socket.nonblocking"
    SOCKET_ORPHAN = "tcptrace.socket.orphan"
    SOCKET_SIDE = "tcptrace.socket.side"
    SOCKET_AGE = "tcptrace.socket.age_us"
    SOCKET_ACCEPTED_AGO = "tcptrace.socket.accepted_ago_us"
    SOCKET_HEARD_AGO = "tcptrace.socket.heard_ago_ms"
    SOCKET_BYTES_RECEIVED = "tcptrace.socket.bytes_received"
    SOCKET_BYTES_SENT = "tcptrace.socket.bytes_sent"
    SOCKET_SHUTDOWN_AGO = "tcptrace.socket.shutdown_ago_us"
    SOCKET_ANSWERS = "tcptrace.socket.service_answers"
    FIN_AGO = "tcptrace.fin.ago_us"
    FIN_WRITTEN = "tcptrace.fin.written"
    FIN_WAITED = "tcptrace.fin.waited_ms"
    FIN_IDLE = "tcptrace.fin.idle_ms"
    RESET_REASON = "tcptrace.reset.kernel_reason"
    RESET_LINGER_ZERO = "tcptrace.reset.linger_zero"
    RESET_ANSWER = "tcptrace.reset.answers_segment"
    RESET_ANSWERS_SYN = "tcptrace.reset.answers_syn"
    RESET_NO_SOCKET = "tcptrace.reset.no_socket"
    RESET_QUEUE_FULL = "tcptrace.reset.queue_full"
    RESET_UNACCEPTED = "tcptrace.reset.unaccepted"
    RESET_ABORTED = "tcptrace.reset.aborted"
    SYSCALL_NAME = "tcptrace.syscall.name"
    SYSCALL_ERRNO = "tcptrace.syscall.errno"
    SYSCALL_LEN = "tcptrace.syscall.len"
    SYSCALL_DIRECTION = "tcptrace.syscall.direction"
    SYSCALL_TIMEOUT = "tcptrace.syscall.timeout"
    QUEUE_COUNT = "tcptrace.accept_queue.count"
    QUEUE_POLLED = "tcptrace.accept_queue.polled"
    QUEUE_LEN = "tcptrace.accept_queue.len"
    QUEUE_MAX = "tcptrace.accept_queue.max"
    QUEUE_BACKLOG = "tcptrace.accept_queue.backlog"
    QUEUE_PATH = "tcptrace.accept_queue.path"
    QUEUE_DROPS = "tcptrace.accept_queue.drops"
    QUEUE_LAST_ACCEPT = "tcptrace.accept_queue.idle_us"
    SYN_QUEUE_LEN = "tcptrace.syn_queue.len"
    SYN_QUEUE_MAX = "tcptrace.syn_queue.max"
    SYN_QUEUE_COOKIES = "tcptrace.syn_queue.cookies"
    SYN_QUEUE_COUNT = "tcptrace.syn_queue.count"
    CLOSE_WAIT_AGE = "tcptrace.close_wait.age_ms"
    CLOSE_WAIT_COUNT = "tcptrace.close_wait.count"
    CLOSE_WAIT_AT_LEAST = "tcptrace.close_wait.at_least"
    CLOSE_WAIT_AT_START = "tcptrace.close_wait.at_start"
    CONNECT_ATTEMPTS = "tcptrace.connect.attempts"
    CONNECT_DURATION = "tcptrace.connect.duration_us"
    TIMEOUT_RETRANSMITS = "tcptrace.timeout.retransmits"
    TIMEOUT_PROBES = "tcptrace.timeout.probes"
    TIMEOUT_WINDOW = "tcptrace.timeout.send_window"
    TIMEOUT_USER = "tcptrace.timeout.user_timeout_ms"
    TIMEOUT_KEEPALIVE = "tcptrace.timeout.keepalive"
    RETRANSMIT_ATTEMPT = "tcptrace.retransmit.attempt"
    FD_OPEN = "tcptrace.fd.open"
    FD_LIMIT = "tcptrace.fd.limit"
    FD_CHECKED = "tcptrace.fd.checked_ms"
    STATE_PREVIOUS = "tcptrace.state.previous"
    STATE_DURATION = "tcptrace.state.duration_ms"
    STATE_DURATION_EXACT = "tcptrace.state.duration_us"
    FINDING_ID = "tcptrace.finding.id"
    FINDING_UPDATE = "tcptrace.finding.update"
    FINDING_CLOSED = "tcptrace.finding.closed"
    FINDING_HINT = "tcptrace.finding.hint"
    FINDING_CONFIDENCE = "tcptrace.finding.confidence"
    FINDING_COUNT = "tcptrace.finding.count"
    FINDING_FIRST = "tcptrace.finding.first"
    FINDING_LAST = "tcptrace.finding.last"
    FINDING_TITLE = "tcptrace.finding.title"
    FINDING_WHY = "tcptrace.finding.why"
    FINDING_FIX = "tcptrace.finding.fix"
    FINDING_RULED_OUT = "tcptrace.finding.ruled_out"
    FINDING_ERRORS = "tcptrace.finding.errors"
    FINDING_EVIDENCE = "tcptrace.finding.evidence"
    FD_HELD = "tcptrace.fd.held"
    FD_HELD_OTHERS = "tcptrace.fd.held_others"
    ACCEPTOR_PID = "tcptrace.acceptor.pid"
    ACCEPTOR_NAME = "tcptrace.acceptor.name"
    ACCEPTOR_COMM = "tcptrace.acceptor.comm"
    ACCEPTOR_TID = "tcptrace.acceptor.tid"
    ACCEPTOR_STATE = "tcptrace.acceptor.state"
    ACCEPTOR_WAIT = "tcptrace.acceptor.wait_channel"
    ACCEPTOR_SYSCALL = "tcptrace.acceptor.syscall"
    ACCEPTOR_CHECKED = "tcptrace.acceptor.checked_ms"
    QUEUE_SOMAXCONN = "tcptrace.accept_queue.somaxconn"
    QUEUE_LIMITED_BY = "tcptrace.accept_queue.limited_by"
    NEARBY = "tcptrace.nearby"
    PORTS_FIRST = "tcptrace.ports.first"
    PORTS_LAST = "tcptrace.ports.last"
    PORTS_TIME_WAIT = "tcptrace.ports.time_wait"
    PORTS_IN_USE = "tcptrace.ports.in_use"
    HOLDER_ADDRESS = "tcptrace.port.holder.address"
    HOLDER_PORT = "tcptrace.port.holder.port"
    HOLDER_STATE = "tcptrace.port.holder.state"
    HOLDER_PID = "tcptrace.port.holder.pid"
    HOLDER_NAME = "tcptrace.port.holder.name"
    HOLDER_COMM = "tcptrace.port.holder.comm"
    WORK_INBOUND = "tcptrace.work.inbound"
    WORK_OLDEST = "tcptrace.work.inbound_oldest_ms"
    WORK_OUTBOUND = "tcptrace.work.outbound"
    OTHER_END_PID = "tcptrace.other_end.pid"
    OTHER_END_NAME = "tcptrace.other_end.name"
    OTHER_END_COMM = "tcptrace.other_end.comm"
    CODE_STACKTRACE = "code.stacktrace"
    STACK_FOLDED = "tcptrace.stack.folded"
    STACK_MISSING = "tcptrace.stack.missing"
    PEER_PID = "tcptrace.peer.pid"
    PEER_NAME = "tcptrace.peer.name"
    LOST_COUNT = "tcptrace.lost.count"
    LOST_HOOK = "tcptrace.lost.hook"
    LOST_REASON = "tcptrace.lost.reason"
    EXPORT_TO = "tcptrace.export.to"
    EXPORT_ERROR = "tcptrace.export.error"
    SUPPRESSED_COUNT = "tcptrace.suppressed.count"
    SUPPRESSED_EVENT = "tcptrace.suppressed.event"
    COVERAGE_SIGNAL = "tcptrace.coverage.signal"
    COVERAGE_WAY = "tcptrace.coverage.way"
    COVERAGE_NOTE = "tcptrace.coverage.note"
    COVERAGE_COMPLETE = "tcptrace.coverage.complete"
    TARGET_TURN = "tcptrace.target.turn"
    TARGET_PREVIOUS = "tcptrace.target.previous_pid"
    TARGET_WHY = "tcptrace.target.why"
    TARGET_AFTER = "tcptrace.target.after_ms"
    TARGET_LEFT_OUT = "tcptrace.target.left_out"
    SUMMARY_DURATION = "tcptrace.summary.duration_ms"
    SUMMARY_EVENTS = "tcptrace.summary.events"
    SUMMARY_LOST = "tcptrace.summary.lost"
    SUMMARY_CLOSE_WAITS = "tcptrace.summary.close_waits"
    SUMMARY_KINDS = "tcptrace.summary.kinds"
    SUMMARY_PROCESSES = "tcptrace.summary.processes"
    SUMMARY_LISTENERS = "tcptrace.summary.listeners"
    SUMMARY_RESETS = "tcptrace.summary.resets"
    SUMMARY_OVERFLOWS = "tcptrace.summary.overflows"
    KERNEL_RESETS = "tcptrace.kernel.out_rsts"
    KERNEL_OVERFLOWS = "tcptrace.kernel.listen_overflows"
    UNSEEN_RESETS = "tcptrace.unseen.resets"
    UNSEEN_OVERFLOWS = "tcptrace.unseen.overflows"
    SOCKETS_TOTAL = "tcptrace.sockets.total"
    SOCKETS_ESTABLISHED = "tcptrace.sockets.established"
    SOCKETS_SYN_SENT = "tcptrace.sockets.syn_sent"
    SOCKETS_SYN_RECEIVED = "tcptrace.sockets.syn_received"
    SOCKETS_FIN_WAIT_1 = "tcptrace.sockets.fin_wait_1"
    SOCKETS_FIN_WAIT_2 = "tcptrace.sockets.fin_wait_2"
    SOCKETS_TIME_WAIT = "tcptrace.sockets.time_wait"
    SOCKETS_CLOSED = "tcptrace.sockets.closed"
    SOCKETS_CLOSE_WAIT = "tcptrace.sockets.close_wait"
    SOCKETS_LAST_ACK = "tcptrace.sockets.last_ack"
    SOCKETS_LISTEN = "tcptrace.sockets.listen"
    SOCKETS_CLOSING = "tcptrace.sockets.closing"
    SOCKETS_NETNS_NAME = "tcptrace.sockets.netns_name"
    SOCKETS_UNOWNED = "tcptrace.sockets.unowned"
    CLOSE_WAIT_EOF_UNREAD = "tcptrace.close_wait.eof_unread"
    CLOSE_WAIT_UNREAD = "tcptrace.close_wait.unread"
    TIME_WAIT_COUNT = "tcptrace.time_wait.count"
    TIME_WAIT_CLOSER = "tcptrace.time_wait.closed_first"
    TIME_WAIT_ADDRESSES = "tcptrace.time_wait.addresses"
    TIME_WAIT_MOST = "tcptrace.time_wait.most"
    COUNTER_OVERFLOWS = "tcptrace.counter.overflows"
    COUNTER_LISTEN_DROPS = "tcptrace.counter.listen_drops"
    COUNTER_SYN_DROPS = "tcptrace.counter.syn_drops"
    COUNTER_SYN_COOKIES = "tcptrace.counter.syn_cookies"
}

/// The version of the record's shape; additions do not change it.
pub const SCHEMA_VERSION: &str = "1.0";

/// What every record of a run says of where it comes from.
pub fn resource(context: &Context) -> impl Iterator<Item = (&'static str, &str)> {
    let always = [
        ("service.name", "tcptrace"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("host.name", &context.host_name),
        ("tcptrace.schema.version", SCHEMA_VERSION),
    ];
    let known = [
        ("host.id", &context.host_id),
        ("tcptrace.boot.id", &context.boot_id),
        ("k8s.node.name", &context.node_name),
    ];
    let known = known
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_deref()?)));
    always.into_iter().chain(known)
}

/// Gives each attribute of an event to `each`, in a stable order.
///
/// # Errors
///
/// The first error of `each`.
pub fn attributes<E>(
    context: &Context,
    event: &Event,
    each: &mut impl FnMut(&'static str, Value<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut put = Put(each);
    put.str(name::OTEL_EVENT_NAME, event.name())?;
    put.text(name::EVENT_ID, &context.event_id(event.id))?;
    if let Some(id) = event.caused_by {
        put.text(name::CAUSED_BY, &context.event_id(id))?;
    }
    if let Some(error) = diagnose::error_type(event) {
        put.str(name::ERROR_TYPE, &error)?;
    }
    put.maybe_str(
        name::CAUSE,
        diagnose::cause(event).map(diagnose::Cause::as_str),
    )?;
    if let Some(socket) = &event.socket {
        put.socket(context, socket, &event.kind)?;
    }
    let named = match &event.kind {
        Kind::SocketError(call) | Kind::FdInvalid(call) => call.fd,
        _ => None,
    };
    let owners = event.socket.as_ref().and_then(|socket| socket.fd);
    put.maybe(name::SOCKET_FD, named.or(owners))?;
    put.owner(&event.owner, event.socket.is_some())?;
    if let Some(actor) = &event.actor {
        put.process(name::ACTOR, actor)?;
    }
    put.kind(context, &event.kind)?;
    event.facts.iter().try_for_each(|fact| put.fact(fact))
}

/// Descriptors of one sort: `931 tcp CLOSE_WAIT out 10.0.0.5:5432`, `40 file`.
fn held(row: &Holding) -> String {
    let Holding { count, what } = row;
    match what {
        Held::Tcp {
            state,
            service,
            outbound,
        } => {
            let way = if *outbound { "out" } else { "in" };
            format!("{count} tcp {state} {way} {}", End(*service))
        }
        Held::Other(sort) => format!("{count} {sort}"),
    }
}

/// A listener: `127.0.0.1:8080 netns 4026532000 nginx[12]`. The name comes last: it may hold
/// anything.
fn listener(listener: &Nearby) -> String {
    let address = End(listener.address);
    let netns = listener.netns;
    match &listener.owner {
        Some(owner) => format!("{address} netns {netns} {owner}"),
        None => format!("{address} netns {netns}"),
    }
}

/// Connections to one server: `10 10.0.0.9:3306 busy 10 oldest_ms 900`.
fn pool(pool: &Pool) -> String {
    let server = End(pool.server);
    format!(
        "{} {server} busy {} oldest_ms {}",
        pool.connections, pool.busy, pool.oldest_ms
    )
}

/// A time as the record's own `timestamp` has it.
struct Rfc3339(Timestamp);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every number of nanoseconds in 64 bits is a time jiff knows.
        let time = jiff::Timestamp::from_nanosecond(i128::from(self.0.0)).unwrap_or_default();
        write!(f, "{}", time.strftime("%Y-%m-%dT%H:%M:%S%.9fZ"))
    }
}

/// The attributes of each part of an event, on top of one way to give one away.
struct Put<'f, F>(&'f mut F);

impl<E, F: FnMut(&'static str, Value<'_>) -> Result<(), E>> Put<'_, F> {
    fn int(&mut self, name: &'static str, value: impl TryInto<i64>) -> Result<(), E> {
        const MAX: i64 = (1 << 53) - 1;
        (self.0)(name, Value::Int(value.try_into().unwrap_or(MAX).min(MAX)))
    }

    fn maybe(&mut self, name: &'static str, value: Option<impl TryInto<i64>>) -> Result<(), E> {
        value.map_or(Ok(()), |value| self.int(name, value))
    }

    fn flag(&mut self, name: &'static str, holds: bool) -> Result<(), E> {
        if holds {
            (self.0)(name, Value::True)
        } else {
            Ok(())
        }
    }

    fn str(&mut self, name: &'static str, value: &str) -> Result<(), E> {
        (self.0)(name, Value::Str(value))
    }

    fn maybe_str(&mut self, name: &'static str, value: Option<&str>) -> Result<(), E> {
        value.map_or(Ok(()), |value| self.str(name, value))
    }

    fn text(&mut self, name: &'static str, value: &dyn fmt::Display) -> Result<(), E> {
        (self.0)(name, Value::Text(value))
    }

    fn maybe_text(
        &mut self,
        name: &'static str,
        value: Option<&impl fmt::Display>,
    ) -> Result<(), E> {
        value.map_or(Ok(()), |value| self.text(name, value))
    }

    fn socket(&mut self, context: &Context, socket: &Socket, kind: &Kind) -> Result<(), E> {
        let flow = &socket.flow;
        self.str(name::NETWORK_TRANSPORT, "tcp")?;
        self.str(
            name::NETWORK_TYPE,
            if flow.is_ipv4() { "ipv4" } else { "ipv6" },
        )?;
        if flow.local.port() != 0 || !flow.local.ip().is_unspecified() {
            self.text(name::LOCAL_ADDRESS, &Address(flow.local.ip()))?;
        }
        if flow.local.port() != 0 {
            self.int(name::LOCAL_PORT, flow.local.port())?;
        }
        if let Some(peer) = flow.peer {
            self.text(name::PEER_ADDRESS, &Address(peer.ip()))?;
            self.int(name::PEER_PORT, peer.port())?;
        }
        let state = match kind {
            Kind::StateChanged(change) => Some(change.to),
            _ => socket.state,
        };
        self.maybe_str(name::CONNECTION_STATE, state.map(State::as_str))?;
        if socket.id.sk != 0 {
            self.text(name::FLOW_ID, &context.flow_id(socket.id))?;
        }
        self.maybe_text(name::COMMUNITY_ID, community_id(flow).as_ref())?;
        if flow.netns != 0 {
            self.int(name::NETNS, flow.netns)?;
        }
        let idle = [socket.received_ago_ms, socket.sent_ago_ms]
            .into_iter()
            .flatten()
            .min();
        self.maybe(name::IDLE, idle)?;
        self.maybe(name::SOCKET_RECEIVED_AGO, socket.received_ago_ms)?;
        self.maybe(name::SOCKET_SENT_AGO, socket.sent_ago_ms)?;
        self.maybe(name::SOCKET_INODE, socket.inode)?;
        // The reset has its own count: it was taken before the close emptied the queue.
        let unread = match kind {
            Kind::ResetSent(reset) => reset.unread,
            _ => socket.unread,
        };
        self.int(name::SOCKET_UNREAD, unread)?;
        self.int(name::SOCKET_UNACKED, socket.unacked)?;
        self.maybe(name::SOCKET_RETRANSMITS, socket.retransmits)?;
        self.maybe(name::SOCKET_RTT, socket.rtt_us)?;
        self.flag(name::SOCKET_EOF_READ, socket.eof_read)?;
        self.flag(name::SOCKET_NONBLOCKING, socket.nonblocking)?;
        self.maybe_str(name::SOCKET_SIDE, socket.side.map(Side::as_str))?;
        self.maybe(name::SOCKET_AGE, socket.age_us)?;
        self.maybe(name::SOCKET_ACCEPTED_AGO, socket.accepted_ago_us)?;
        self.maybe(name::SOCKET_HEARD_AGO, socket.heard_ago_ms)?;
        self.int(name::SOCKET_BYTES_RECEIVED, socket.bytes_received)?;
        self.int(name::SOCKET_BYTES_SENT, socket.bytes_sent)?;
        self.maybe(name::SOCKET_SHUTDOWN_AGO, socket.shutdown_ago_us)?;
        self.flag(name::SOCKET_ANSWERS, socket.service_answers)?;
        let Some(fin) = &socket.fin else {
            return Ok(());
        };
        self.int(name::FIN_AGO, fin.ago_us)?;
        self.maybe(name::FIN_WRITTEN, fin.written)?;
        self.maybe(name::FIN_WAITED, fin.waited_ms)?;
        self.int(name::FIN_IDLE, fin.idle_ms)
    }

    /// The command name only where it is not the name.
    fn process(&mut self, [pid, name, comm]: name::Beside, process: &Process) -> Result<(), E> {
        self.int(pid, process.pid)?;
        self.text(name, &process.name())?;
        let exe = process.exe.as_deref();
        let exe = exe.map(|path| path.rsplit('/').next().unwrap_or(path));
        let differs = exe.is_some_and(|exe| exe.as_bytes() != process.comm.as_bytes());
        self.maybe_text(comm, differs.then_some(&process.comm))
    }

    /// The confidence is said wherever there could be an owner: also that there is none.
    fn owner(&mut self, owner: &Owner, of_socket: bool) -> Result<(), E> {
        if let Some(process) = &owner.process {
            self.int(name::PROCESS_PID, process.pid)?;
            self.maybe(name::THREAD_ID, process.tid)?;
            self.text(name::PROCESS_NAME, &process.name())?;
            self.maybe_str(name::PROCESS_PATH, process.exe.as_deref())?;
            self.text(name::PROCESS_COMM, &process.comm)?;
            self.int(name::PROCESS_USER, process.uid)?;
            if let Some(container) = &process.container {
                self.str(name::CONTAINER_ID, &container.id)?;
                self.maybe_str(name::POD_UID, container.pod.as_deref())?;
            }
            match process.exit {
                Some(Exit::Code(code)) => self.int(name::EXIT_CODE, code)?,
                Some(Exit::Signal(signal)) => self.int(name::EXIT_SIGNAL, signal)?,
                None => {}
            }
        }
        if of_socket || owner.process.is_some() {
            self.str(name::OWNER_CONFIDENCE, owner.confidence.as_str())?;
        }
        if !owner.holders.is_empty() {
            (self.0)(name::OWNER_PIDS, Value::Ints(&owner.holders))?;
        }
        self.maybe(name::OWNER_CHECKED, owner.checked_after_ms)?;
        self.maybe(name::CREATOR_PID, owner.creator)
    }

    fn kind(&mut self, context: &Context, kind: &Kind) -> Result<(), E> {
        match kind {
            Kind::ResetSent(reset) => self.reset(reset),
            Kind::ResetReceived(reset) => self.flag(name::SOCKET_ORPHAN, reset.orphan),
            Kind::CloseWaitEntered(wait) | Kind::CloseWaitStuck(wait) => {
                self.int(name::CLOSE_WAIT_AGE, wait.age_ms)?;
                self.flag(name::CLOSE_WAIT_AT_LEAST, wait.at_least)?;
                self.int(name::CLOSE_WAIT_COUNT, wait.count)?;
                self.flag(name::CLOSE_WAIT_AT_START, wait.at_start)
            }
            Kind::AcceptQueueOverflow(overflow) => {
                self.maybe_str(name::QUEUE_PATH, overflow.path.map(OverflowPath::as_str))?;
                if overflow.count > 0 {
                    self.int(name::QUEUE_COUNT, overflow.count)?;
                }
                self.flag(name::QUEUE_POLLED, overflow.is_polled())?;
                self.maybe(name::QUEUE_LEN, overflow.queue_len)?;
                self.maybe(name::QUEUE_MAX, overflow.queue_max)?;
                self.maybe(name::QUEUE_BACKLOG, overflow.backlog)?;
                self.maybe(name::QUEUE_DROPS, overflow.drops)?;
                self.maybe(name::QUEUE_LAST_ACCEPT, overflow.last_accept_ago_us)
            }
            Kind::SocketError(call) | Kind::FdInvalid(call) => {
                self.maybe_text(name::SYSCALL_NAME, call.syscall.as_ref())?;
                self.maybe_str(
                    name::SYSCALL_DIRECTION,
                    call.send.map(|send| if send { "send" } else { "receive" }),
                )?;
                self.int(name::SYSCALL_ERRNO, call.errno.0)?;
                self.maybe(name::SYSCALL_LEN, call.len)?;
                self.flag(name::SYSCALL_TIMEOUT, call.timeout)
            }
            Kind::ConnectFailed(connect) => {
                self.maybe(name::SYSCALL_ERRNO, connect.errno.map(|errno| errno.0))?;
                self.int(name::CONNECT_ATTEMPTS, connect.attempts)?;
                self.maybe(name::CONNECT_DURATION, connect.duration_us)
            }
            Kind::ConnectionTimeout(timeout) => {
                self.int(name::SYSCALL_ERRNO, timeout.errno.0)?;
                self.int(name::TIMEOUT_RETRANSMITS, timeout.retransmits)?;
                self.int(name::TIMEOUT_PROBES, timeout.probes)?;
                self.int(name::TIMEOUT_WINDOW, timeout.send_window)?;
                self.maybe(name::TIMEOUT_USER, timeout.user_timeout_ms)?;
                self.flag(name::TIMEOUT_KEEPALIVE, timeout.keepalive)
            }
            Kind::FdExhausted(fds) => {
                self.maybe_text(name::SYSCALL_NAME, fds.syscall.as_ref())?;
                self.int(name::SYSCALL_ERRNO, fds.errno.0)?;
                self.maybe(name::FD_OPEN, fds.open)?;
                self.maybe(name::FD_LIMIT, fds.limit)?;
                self.maybe(name::FD_CHECKED, fds.read_after_ms)
            }
            Kind::StateChanged(change) => {
                self.str(name::STATE_PREVIOUS, change.from.as_str())?;
                self.maybe(
                    name::STATE_DURATION,
                    change.duration_us.map(|us| us / 1_000),
                )?;
                self.maybe(name::STATE_DURATION_EXACT, change.duration_us)?;
                self.maybe(name::SYSCALL_ERRNO, change.errno.map(|errno| errno.0))
            }
            Kind::Retransmit(retransmit) => self.int(name::RETRANSMIT_ATTEMPT, retransmit.attempt),
            Kind::SynQueueOverflow(queue) => {
                self.maybe(name::SYN_QUEUE_LEN, queue.len)?;
                self.maybe(name::SYN_QUEUE_MAX, queue.max)?;
                self.flag(name::SYN_QUEUE_COOKIES, queue.cookies)?;
                self.int(name::SYN_QUEUE_COUNT, queue.count)
            }
            Kind::Finding(finding) => self.finding(context, finding),
            Kind::Coverage(coverage) => {
                self.str(name::COVERAGE_SIGNAL, &coverage.signal)?;
                self.maybe_str(name::COVERAGE_WAY, coverage.way.as_deref())?;
                self.maybe_str(name::COVERAGE_NOTE, coverage.note.as_deref())?;
                self.flag(name::COVERAGE_COMPLETE, coverage.complete)
            }
            Kind::TargetChanged(target) => {
                self.str(name::TARGET_TURN, target.turn.as_str())?;
                self.maybe(name::TARGET_PREVIOUS, target.previous)?;
                self.str(name::TARGET_WHY, &target.why)?;
                self.maybe(name::TARGET_AFTER, target.after_ms)?;
                self.int(name::TARGET_LEFT_OUT, target.left_out)
            }
            Kind::EventsLost(loss) => {
                self.int(name::LOST_COUNT, loss.count)?;
                self.str(name::LOST_HOOK, &loss.hook)?;
                self.str(name::LOST_REASON, loss.reason)
            }
            Kind::ExportDropped(dropped) => {
                self.str(name::EXPORT_TO, &dropped.to)?;
                self.maybe_str(name::EXPORT_ERROR, dropped.error.as_deref())?;
                self.int(name::LOST_COUNT, dropped.count)?;
                self.str(name::LOST_REASON, dropped.reason)
            }
            Kind::EventsSuppressed(suppressed) => {
                self.int(name::SUPPRESSED_COUNT, suppressed.count)?;
                self.str(name::SUPPRESSED_EVENT, suppressed.name)
            }
            Kind::Summary(summary) => self.summary(summary),
            Kind::Sockets(found) => self.sockets(found),
        }
    }

    fn sockets(&mut self, found: &Sockets) -> Result<(), E> {
        match found {
            Sockets::Namespace(namespace) => {
                self.int(name::NETNS, namespace.inode)?;
                self.maybe_str(name::SOCKETS_NETNS_NAME, namespace.name.as_deref())?;
                self.states(&namespace.states)?;
                self.maybe(name::COUNTER_OVERFLOWS, namespace.overflows)?;
                self.maybe(name::COUNTER_LISTEN_DROPS, namespace.listen_drops)?;
                self.maybe(name::COUNTER_SYN_DROPS, namespace.syn_drops)?;
                self.maybe(name::COUNTER_SYN_COOKIES, namespace.syn_cookies)
            }
            Sockets::Process(process) => {
                self.states(&process.states)?;
                self.int(name::FD_OPEN, process.open)?;
                self.maybe(name::FD_LIMIT, process.limit)
            }
            Sockets::Unowned(why, states) => {
                self.str(name::SOCKETS_UNOWNED, why.as_str())?;
                self.states(states)
            }
            Sockets::Listener(listener) => {
                self.int(name::QUEUE_LEN, listener.len)?;
                self.maybe(name::QUEUE_MAX, listener.max)?;
                self.maybe(name::QUEUE_DROPS, listener.drops)?;
                let limited_by = listener.limited_by().map(LimitedBy::as_str);
                self.maybe_str(name::QUEUE_LIMITED_BY, limited_by)?;
                self.maybe(name::QUEUE_SOMAXCONN, listener.somaxconn)?;
                self.int(name::SYN_QUEUE_LEN, listener.half_done)
            }
            Sockets::CloseWait(waits) => {
                self.maybe(name::CLOSE_WAIT_AGE, waits.age_ms)?;
                self.flag(name::CLOSE_WAIT_AT_LEAST, waits.age_ms.is_some())?;
                self.int(name::CLOSE_WAIT_COUNT, waits.count)?;
                self.int(name::CLOSE_WAIT_EOF_UNREAD, waits.eof_unread)?;
                self.int(name::CLOSE_WAIT_UNREAD, waits.unread)
            }
            Sockets::TimeWait(waits) => self.time_waits(waits),
            Sockets::Socket { close_wait_ms } => {
                self.maybe(name::CLOSE_WAIT_AGE, *close_wait_ms)?;
                self.flag(name::CLOSE_WAIT_AT_LEAST, close_wait_ms.is_some())
            }
        }
    }

    /// A state without sockets has no key.
    fn states(&mut self, states: &States) -> Result<(), E> {
        self.int(name::SOCKETS_TOTAL, states.total())?;
        for (name, state) in [
            (name::SOCKETS_ESTABLISHED, State::Established),
            (name::SOCKETS_SYN_SENT, State::SynSent),
            (name::SOCKETS_SYN_RECEIVED, State::SynReceived),
            (name::SOCKETS_FIN_WAIT_1, State::FinWait1),
            (name::SOCKETS_FIN_WAIT_2, State::FinWait2),
            (name::SOCKETS_TIME_WAIT, State::TimeWait),
            (name::SOCKETS_CLOSED, State::Closed),
            (name::SOCKETS_CLOSE_WAIT, State::CloseWait),
            (name::SOCKETS_LAST_ACK, State::LastAck),
            (name::SOCKETS_LISTEN, State::Listen),
            (name::SOCKETS_CLOSING, State::Closing),
        ] {
            let count = states.of(state);
            self.maybe(name, (count > 0).then_some(count))?;
        }
        Ok(())
    }

    /// The serving end with its port, and of the other end the address that most have.
    fn time_waits(&mut self, waits: &TimeWaits) -> Result<(), E> {
        let (service, most) = (Address(waits.service.ip()), Address(waits.most));
        let port = waits.service.port();
        self.str(name::NETWORK_TRANSPORT, "tcp")?;
        if waits.side == Some(Side::Client) {
            self.text(name::LOCAL_ADDRESS, &most)?;
            self.text(name::PEER_ADDRESS, &service)?;
            self.int(name::PEER_PORT, port)?;
        } else {
            self.text(name::LOCAL_ADDRESS, &service)?;
            self.int(name::LOCAL_PORT, port)?;
            self.text(name::PEER_ADDRESS, &most)?;
        }
        self.int(name::NETNS, waits.netns)?;
        self.int(name::TIME_WAIT_COUNT, waits.count)?;
        self.maybe_str(name::TIME_WAIT_CLOSER, waits.side.map(Side::as_str))?;
        self.int(name::TIME_WAIT_ADDRESSES, waits.addresses)?;
        self.int(name::TIME_WAIT_MOST, waits.most_count)?;
        if let Some(ports) = &waits.ports {
            self.int(name::PORTS_FIRST, *ports.start())?;
            self.int(name::PORTS_LAST, *ports.end())?;
        }
        Ok(())
    }

    fn reset(&mut self, reset: &ResetSent) -> Result<(), E> {
        let reason = reset.reason.as_ref().map(|reason| reason.0.as_ref());
        self.maybe_str(name::RESET_REASON, reason)?;
        self.flag(name::RESET_LINGER_ZERO, reset.linger_zero)?;
        self.flag(name::RESET_ANSWER, reset.answers_segment)?;
        self.flag(name::RESET_ANSWERS_SYN, reset.answers_syn)?;
        self.flag(name::RESET_NO_SOCKET, reset.no_socket)?;
        self.flag(name::RESET_QUEUE_FULL, reset.queue_full)?;
        self.flag(name::RESET_UNACCEPTED, reset.unaccepted)?;
        self.flag(name::RESET_ABORTED, reset.aborted)?;
        self.maybe_text(name::SYSCALL_NAME, reset.syscall.as_ref())
    }

    /// Lists are lines with the count first, as those of the summary.
    fn fact(&mut self, fact: &Fact) -> Result<(), E> {
        match fact {
            Fact::Holdings(holdings) => {
                let rows: Vec<_> = holdings.rows.iter().map(held).collect();
                (self.0)(name::FD_HELD, Value::Strs(&rows))?;
                self.int(name::FD_HELD_OTHERS, holdings.others)
            }
            Fact::Acceptor(acceptor) => {
                self.process(name::ACCEPTOR, &acceptor.process)?;
                self.int(name::ACCEPTOR_TID, acceptor.tid)?;
                self.text(name::ACCEPTOR_STATE, &acceptor.state)?;
                self.maybe_str(name::ACCEPTOR_WAIT, acceptor.wait_channel.as_deref())?;
                self.maybe(name::ACCEPTOR_SYSCALL, acceptor.syscall)?;
                self.int(name::ACCEPTOR_CHECKED, acceptor.read_after_ms)
            }
            Fact::Somaxconn(somaxconn) => self.int(name::QUEUE_SOMAXCONN, *somaxconn),
            Fact::Nearby(listeners) => {
                let listeners: Vec<_> = listeners.iter().map(listener).collect();
                (self.0)(name::NEARBY, Value::Strs(&listeners))
            }
            Fact::Ports(ports) => {
                self.int(name::PORTS_FIRST, ports.first)?;
                self.int(name::PORTS_LAST, ports.last)?;
                self.int(name::PORTS_TIME_WAIT, ports.time_wait)?;
                self.int(name::PORTS_IN_USE, ports.in_use)
            }
            Fact::PortHolder(holder) => {
                self.text(name::HOLDER_ADDRESS, &Address(holder.address.ip()))?;
                self.int(name::HOLDER_PORT, holder.address.port())?;
                self.str(name::HOLDER_STATE, holder.state.as_str())?;
                let Some(owner) = &holder.owner else {
                    return Ok(());
                };
                self.process(name::HOLDER, owner)
            }
            Fact::Workload(workload) => {
                self.int(name::WORK_INBOUND, workload.inbound)?;
                self.int(name::WORK_OLDEST, workload.inbound_oldest_ms)?;
                let outbound: Vec<_> = workload.outbound.iter().map(pool).collect();
                (self.0)(name::WORK_OUTBOUND, Value::Strs(&outbound))
            }
            Fact::OtherEnd(process) => self.process(name::OTHER_END, process),
            Fact::Stack(stack) => {
                self.text(name::CODE_STACKTRACE, &stack.trace())?;
                self.text(name::STACK_FOLDED, &stack.folded())?;
                self.maybe_str(name::STACK_MISSING, stack.missing.as_deref())
            }
        }
    }

    /// What a finding rests on comes last: it is what may be left out of a line that is too long.
    fn finding(&mut self, context: &Context, finding: &Finding) -> Result<(), E> {
        self.text(name::FINDING_ID, &context.event_id(finding.id))?;
        self.int(name::FINDING_UPDATE, finding.update)?;
        self.flag(name::FINDING_CLOSED, finding.closed)?;
        self.maybe_str(name::FINDING_HINT, finding.hint.map(Cause::as_str))?;
        self.str(name::FINDING_CONFIDENCE, finding.certainty.as_str())?;
        self.int(name::FINDING_COUNT, finding.count)?;
        self.text(name::FINDING_FIRST, &Rfc3339(finding.first))?;
        self.text(name::FINDING_LAST, &Rfc3339(finding.last))?;
        if let Some(peer) = &finding.peer {
            self.int(name::PEER_PID, peer.pid)?;
            self.text(name::PEER_NAME, &peer.name())?;
        }
        self.str(name::FINDING_TITLE, &finding.title)?;
        self.str(name::FINDING_WHY, &finding.why)?;
        (self.0)(name::FINDING_FIX, Value::Strs(&finding.fix))?;
        if !finding.ruled_out.is_empty() {
            (self.0)(name::FINDING_RULED_OUT, Value::Strs(&finding.ruled_out))?;
        }
        let errors = finding.errors.iter();
        let errors: Vec<_> = errors
            .map(|(errno, count)| format!("{count} {errno}"))
            .collect();
        if !errors.is_empty() {
            (self.0)(name::FINDING_ERRORS, Value::Strs(&errors))?;
        }
        let evidence = finding.evidence.iter();
        let evidence: Vec<_> = evidence
            .map(|&id| context.event_id(id).to_string())
            .collect();
        (self.0)(name::FINDING_EVIDENCE, Value::Strs(&evidence))
    }

    /// Lists are lines with the count first, as `uniq -c` writes them.
    fn summary(&mut self, summary: &Summary) -> Result<(), E> {
        self.int(name::SUMMARY_DURATION, summary.duration_ms)?;
        self.int(name::SUMMARY_EVENTS, summary.events)?;
        self.int(name::SUMMARY_LOST, summary.lost)?;
        self.int(name::SUMMARY_CLOSE_WAITS, summary.close_waits)?;
        let kinds: Vec<_> = summary
            .kinds
            .iter()
            .map(|row| match &row.error {
                Some(error) => format!("{} {} {error}", row.count, row.name),
                None => format!("{} {}", row.count, row.name),
            })
            .collect();
        (self.0)(name::SUMMARY_KINDS, Value::Strs(&kinds))?;
        let processes = summary.processes.iter();
        let processes: Vec<_> = processes
            .map(|(pid, comm, count)| format!("{count} {pid} {comm}"))
            .collect();
        (self.0)(name::SUMMARY_PROCESSES, Value::Strs(&processes))?;
        let listeners = summary.listeners.iter();
        let listeners: Vec<_> = listeners
            .map(|(listener, count)| format!("{count} {listener}"))
            .collect();
        (self.0)(name::SUMMARY_LISTENERS, Value::Strs(&listeners))?;
        if let Some(resets) = summary.resets {
            self.int(name::SUMMARY_RESETS, resets.seen)?;
            self.int(name::KERNEL_RESETS, resets.counted)?;
            let unseen = resets.partial.then(|| resets.unseen());
            self.maybe(name::UNSEEN_RESETS, unseen)?;
        }
        if let Some(overflows) = summary.overflows {
            self.int(name::SUMMARY_OVERFLOWS, overflows.seen)?;
            self.int(name::KERNEL_OVERFLOWS, overflows.counted)?;
            let unseen = overflows.partial.then(|| overflows.unseen());
            self.maybe(name::UNSEEN_OVERFLOWS, unseen)?;
        }
        Ok(())
    }
}

impl Context {
    /// An event's id, unique over runs.
    pub(crate) fn event_id(&self, id: EventId) -> impl fmt::Display + use<> {
        // By hand, as the ids below: every record has these, and the library's formatting of each
        // would be a twentieth of its time.
        let mut text = [b'-'; 25];
        let run = self.replayed.as_ref().and_then(|it| it.number(id.run()));
        text[..8].copy_from_slice(&hex(run.unwrap_or(self.run).into())[8..]);
        let id = hex(id.in_run());
        let digits = id.iter().skip_while(|&&digit| digit == b'0').count().max(1);
        text[9..9 + digits].copy_from_slice(&id[16 - digits..]);
        fmt::from_fn(move |f| f.write_str(ascii(&text[..9 + digits])))
    }

    /// The same text for all events of one socket. The address of a kernel object must not leave
    /// the program: it would help an attacker. So it is hashed with a key nobody else knows.
    fn flow_id(&self, id: SocketId) -> impl fmt::Display + use<> {
        let hashed = if self.replayed.is_some() {
            id.sk
        } else {
            let mut hash = Sha1::new();
            hash.update(self.key);
            hash.update(id.sk.to_ne_bytes());
            hash.update(id.born.to_ne_bytes());
            let digest = hash.finalize();
            u64::from_be_bytes(digest.first_chunk().copied().unwrap_or_default())
        };
        let text = hex(hashed);
        fmt::from_fn(move |f| f.write_str(ascii(&text)))
    }
}

/// A number in 16 digits.
fn hex(number: u64) -> [u8; 16] {
    let digit = |nth: usize| b"0123456789abcdef"[(number >> (60 - 4 * nth) & 15) as usize];
    std::array::from_fn(digit)
}

fn ascii(text: &[u8]) -> &str {
    str::from_utf8(text).unwrap_or_default()
}

/// Community ID version 1 with seed 0, the hash other tools give the same connection; `None` where
/// one end is missing. <https://github.com/corelight/community-id-spec>
fn community_id(flow: &Flow) -> Option<impl fmt::Display + use<>> {
    const SEED: [u8; 2] = [0, 0];
    const TCP_AND_PADDING: [u8; 2] = [6, 0];
    let peer = flow.peer?;
    if flow.local.port() == 0 || flow.local.is_ipv4() != peer.is_ipv4() {
        return None;
    }
    // Both directions hash alike: the smaller end comes first. Without scope or flow label.
    let local = (flow.local.ip(), flow.local.port());
    let peer = (peer.ip(), peer.port());
    let (low, high) = if local <= peer {
        (local, peer)
    } else {
        (peer, local)
    };
    let mut hash = Sha1::new();
    hash.update(SEED);
    for (address, _) in [low, high] {
        match address {
            std::net::IpAddr::V4(address) => hash.update(address.octets()),
            std::net::IpAddr::V6(address) => hash.update(address.octets()),
        }
    }
    hash.update(TCP_AND_PADDING);
    hash.update(low.1.to_be_bytes());
    hash.update(high.1.to_be_bytes());
    let mut text = *b"1:                            ";
    // Twenty bytes are 28 of base64.
    let written = STANDARD.encode_slice(hash.finalize(), &mut text[2..]);
    let len = 2 + written.unwrap_or_default();
    Some(fmt::from_fn(move |f| f.write_str(ascii(&text[..len]))))
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::sink::samples;

    #[test]
    fn no_name_is_too_long_or_both_leaf_and_prefix() {
        let mut seen = HashSet::new();
        for name in name::ALL {
            assert!(name.len() <= 32, "{name} has {} characters", name.len());
            assert!(seen.insert(name), "{name} twice");
            for other in name::ALL {
                assert!(
                    !other.starts_with(&format!("{name}.")),
                    "{name} is a prefix of {other}"
                );
            }
        }
    }

    #[test]
    fn no_attribute_is_given_twice_and_all_are_named() {
        let all = [samples::all(), samples::verdicts(), samples::sockets()];
        for event in all.into_iter().flatten() {
            let mut seen = HashSet::new();
            let done = attributes(&samples::context(), &event, &mut |name, _| {
                assert!(name::ALL.contains(&name), "{name} is in no list");
                assert!(seen.insert(name), "{name} twice in {}", event.name());
                Ok::<(), ()>(())
            });
            assert_eq!(done, Ok(()));
        }
    }

    /// The lines and texts of the facts of all samples, by name.
    fn facts() -> HashMap<&'static str, String> {
        let mut found = HashMap::new();
        for event in samples::all() {
            let done = attributes(&samples::context(), &event, &mut |name, value| {
                let text = match value {
                    Value::Int(value) => value.to_string(),
                    Value::Str(value) => value.to_owned(),
                    Value::Text(value) => value.to_string(),
                    Value::Strs(lines) => lines.join("; "),
                    Value::True | Value::Ints(_) => return Ok::<(), ()>(()),
                };
                if !event.facts.is_empty() {
                    found.insert(name, text);
                }
                Ok(())
            });
            assert_eq!(done, Ok(()));
        }
        found
    }

    #[test]
    fn facts_are_lines_that_a_program_can_read_back() {
        let facts = facts();
        for (name, expected) in [
            (
                name::FD_HELD,
                "931 tcp CLOSE_WAIT out 10.0.0.5:5432; 2 tcp LISTEN in [::]:8080; 40 file",
            ),
            (name::FD_HELD_OTHERS, "51"),
            (name::ACCEPTOR_NAME, "nginx"),
            (name::ACCEPTOR_TID, "1240"),
            (name::ACCEPTOR_STATE, "T"),
            (name::ACCEPTOR_WAIT, "do_signal_stop"),
            (name::ACCEPTOR_SYSCALL, "232"),
            (name::QUEUE_SOMAXCONN, "4096"),
            (
                name::NEARBY,
                "127.0.0.1:8080 netns 4026532000 nginx[1234]; [::1]:8080 netns 4026532001",
            ),
            (name::PORTS_LAST, "60999"),
            (name::PORTS_TIME_WAIT, "28231"),
            (name::HOLDER_ADDRESS, "::"),
            (name::HOLDER_STATE, "listen"),
            (name::HOLDER_NAME, "nginx"),
            (name::WORK_INBOUND, "43"),
            (
                name::WORK_OUTBOUND,
                "10 10.0.0.9:3306 busy 10 oldest_ms 900",
            ),
            (name::OTHER_END_PID, "1234"),
            (name::OTHER_END_NAME, "nginx"),
        ] {
            assert_eq!(
                facts.get(name).map(String::as_str),
                Some(expected),
                "{name}"
            );
        }
    }

    #[test]
    fn a_call_without_a_socket_still_names_its_descriptor() {
        let invalid = samples::all()
            .into_iter()
            .find(|event| matches!(event.kind, Kind::FdInvalid(_)));
        let mut fd = None;
        let done = attributes(
            &samples::context(),
            &invalid.expect("a sample of every kind"),
            &mut |name, value| {
                if let (name::SOCKET_FD, Value::Int(value)) = (name, value) {
                    fd = Some(value);
                }
                Ok::<(), ()>(())
            },
        );
        assert_eq!((done, fd), (Ok(()), Some(17)));
    }

    /// The vectors published with the specification, in both directions.
    #[test]
    fn community_id_agrees_with_the_published_vectors() {
        for (one, other, expected) in [
            (
                "128.232.110.120:34855",
                "66.35.250.204:80",
                "1:LQU9qZlK+B5F3KDmev6m5PMibrg=",
            ),
            (
                "[2001:470:e5bf:dead:4957:2174:e82c:4887]:63943",
                "[2607:f8b0:400c:c03::1a]:25",
                "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=",
            ),
        ] {
            for (local, peer) in [(one, other), (other, one)] {
                let flow = samples::flow(local, Some(peer));
                let id = community_id(&flow).map(|id| id.to_string());
                assert_eq!(id.as_deref(), Some(expected), "{local} {peer}");
            }
        }
        assert!(
            community_id(&samples::flow("0.0.0.0:80", None)).is_none(),
            "a listener"
        );
        assert!(community_id(&samples::flow("10.0.0.1:0", Some("10.0.0.2:80"))).is_none());
    }

    #[test]
    fn a_flow_keeps_its_id_and_hides_the_address() {
        let context = samples::context();
        let id = |sk, born| context.flow_id(SocketId { sk, born }).to_string();
        let first = id(0xffff_8881_2345_6780, 7);
        assert_eq!(first, id(0xffff_8881_2345_6780, 7), "the same socket");
        assert_ne!(
            first,
            id(0xffff_8881_2345_6780, 8),
            "another life at the same address"
        );
        assert!(!first.contains("8881234567"), "{first}");
        let other = Context {
            key: [9; 16],
            ..context
        };
        assert_ne!(
            first,
            other
                .flow_id(SocketId {
                    sk: 0xffff_8881_2345_6780,
                    born: 7
                })
                .to_string()
        );
    }

    #[test]
    fn integers_stay_exact_in_every_reader() {
        let mut given = Vec::new();
        let mut each = |_, value: Value<'_>| {
            if let Value::Int(value) = value {
                given.push(value);
            }
            Ok::<(), ()>(())
        };
        let mut put = Put(&mut each);
        assert_eq!(put.int("n", u64::MAX), Ok(()));
        assert_eq!(put.int("n", 1_u64 << 52), Ok(()));
        assert_eq!(put.int("n", -1), Ok(()));
        assert_eq!(given, [9_007_199_254_740_991, 4_503_599_627_370_496, -1]);
    }
}
