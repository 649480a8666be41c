//! What each part of an event is in a record: its names and values, in a stable order.

use std::fmt;

use super::{Value, community_id, name};
use crate::diagnose;
use crate::event::{
    Address, Cause, End, Event, Exit, Fact, Finding, Held, Holding, Kind, LimitedBy, Nearby,
    OverflowPath, Owner, Pool, Process, ResetSent, Side, Socket, Sockets, State, States, Summary,
    TimeWaits, Timestamp,
};
use crate::sink::Context;

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
