//! A line of a recording becomes an event again: the inverse of `sink/record.rs`, by the same names.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::event::{
    Acceptor, CallError, Cause, CloseWait, Comm, Confidence, ConnectFailed, Container, Coverage,
    Dropped, Errno, Event, EventId, Exit, Fact, FdExhausted, Flow, Held, Holding, Holdings, Kind,
    Loss, Nearby, Overflow, OverflowPath, Owner, PeerFin, Pool, PortHolder, Ports, Process,
    ResetReason, ResetReceived, ResetSent, Retransmit, Side, Socket, SocketId, Stack, State,
    StateChange, Suppressed, SynQueue, Syscall, Target, Timeout, Timestamp, Turn, Workload,
};
use crate::sink::record::{SCHEMA_VERSION, name};
use crate::sink::{Context, Runs};

/// A record that was read.
#[derive(Debug, PartialEq)]
pub struct Record {
    /// Which run it is of.
    pub run: u16,
    /// How far time had passed for the analysis, where that was news.
    pub judged_until: Option<Timestamp>,
    /// It was judged before what precedes it.
    pub kept: bool,
    /// What it holds.
    pub line: Line,
}

/// What a line holds.
#[derive(Debug, PartialEq)]
pub enum Line {
    /// An event, or something about the stream.
    Event(Box<Event>),
    /// What the recording run made of its events; `first`: told for the first time.
    Finding {
        /// It is no update.
        first: bool,
    },
    /// The counts of the recording run.
    Summary(Timestamp),
}

/// Why a line is none of ours.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong(String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Versions that are told.
const VERSIONS: usize = 8;

type Result<T, E = Wrong> = std::result::Result<T, E>;

/// Reads lines, and knows the runs they are of.
#[derive(Debug, Default)]
pub struct Reader {
    runs: Runs,
    known: HashMap<u32, u16>,
    new: Vec<Context>,
    versions: BTreeSet<String>,
}

impl Reader {
    /// Reads a line.
    ///
    /// # Errors
    /// It is no record of this version of the schema.
    pub fn read(&mut self, line: &[u8]) -> Result<Record> {
        let record: Map<String, Value> = serde_json::from_slice(line)
            .map_err(|error| Wrong(format!("no JSON object: {error}")))?;
        let text = |name: &str| match record.get(name) {
            Some(Value::String(text)) => Ok(text.as_str()),
            _ => Err(Wrong(format!("no record of tcptrace: it has no {name}"))),
        };
        let object = |name: &str| match record.get(name) {
            Some(Value::Object(object)) => Ok(object),
            _ => Err(Wrong(format!("no record of tcptrace: it has no {name}"))),
        };
        let version = text("schema_version")?;
        let major = |version: &str| version.split('.').next().map(str::to_owned);
        if major(version) != major(SCHEMA_VERSION) {
            return Err(Wrong(format!(
                "it is of schema version {version:?}, and this tcptrace reads {SCHEMA_VERSION}: replay it \
                 with the version that wrote it"
            )));
        }
        let attributes = Attributes(object("attributes")?);
        let time = timestamp(text("timestamp")?)?;
        let (number, id) = event_id(attributes.need(name::EVENT_ID, Attributes::str)?)?;
        let run = self.run(number, object("resource")?)?;
        let line = match text("event_name")? {
            "tcptrace.finding" => Line::Finding {
                first: attributes.int::<u64>(name::FINDING_UPDATE)? == Some(0),
            },
            "tcptrace.summary" => Line::Summary(time),
            event => {
                let caused_by = attributes.str(name::CAUSED_BY)?.map(event_id);
                let caused_by = caused_by.transpose()?.map(|(_, id)| id.of_run(run));
                Line::Event(Box::new(Event {
                    id: id.of_run(run),
                    time,
                    caused_by,
                    socket: attributes.socket()?,
                    owner: attributes.owner()?,
                    actor: attributes.process(name::ACTOR)?.map(Box::new),
                    facts: attributes.facts()?,
                    kind: attributes.kind(event)?,
                }))
            }
        };
        let judged_until = attributes.int::<u64>(name::JUDGED_UNTIL)?;
        Ok(Record {
            run,
            judged_until: judged_until.map(|ms| Timestamp(ms.saturating_mul(1_000_000))),
            kept: attributes.flag(name::EVENT_KEPT),
            line,
        })
    }

    /// The runs that have come up since the last time, in the order of their numbers in events.
    pub fn new_runs(&mut self) -> std::vec::Drain<'_, Context> {
        self.new.drain(..)
    }

    /// The versions of tcptrace that wrote what was read; of many the first.
    pub fn versions(&self) -> impl Iterator<Item = &str> {
        self.versions.iter().map(String::as_str)
    }

    fn run(&mut self, number: u32, resource: &Map<String, Value>) -> Result<u16> {
        if let Some(&known) = self.known.get(&number) {
            return Ok(known);
        }
        let next = u16::try_from(self.known.len()).ok();
        let next = next.filter(|&next| usize::from(next) < EventId::RUNS);
        let next = next.ok_or_else(|| {
            Wrong(format!(
                "more than {} runs in one replay: replay fewer files",
                EventId::RUNS
            ))
        })?;
        let text = |name: &str| resource.get(name)?.as_str().map(str::to_owned);
        if self.versions.len() < VERSIONS {
            self.versions.extend(text("service.version"));
        }
        self.known.insert(number, next);
        self.new.push(Context {
            run: number,
            key: [0; 16],
            host_name: text("host.name").unwrap_or_default(),
            host_id: text("host.id"),
            boot_id: text("tcptrace.boot.id"),
            node_name: text("k8s.node.name"),
            replayed: Some(self.runs.clone()),
        });
        Ok(next)
    }
}

/// `2026-11-20T11:10:03.123456789Z`
fn timestamp(text: &str) -> Result<Timestamp> {
    let time = jiff::Timestamp::from_str(text).ok();
    time.and_then(|time| u64::try_from(time.as_nanosecond()).ok())
        .map(Timestamp)
        .ok_or_else(|| Wrong(format!("{text:?} is no time")))
}

/// `5eed0001-40000000002`: the run, and the id in it.
fn event_id(text: &str) -> Result<(u32, EventId)> {
    let parsed = text.split_once('-').and_then(|(run, id)| {
        let id = EventId(u64::from_str_radix(id, 16).ok()?);
        let whole = id.of_run(0) == id;
        Some((u32::from_str_radix(run, 16).ok()?, id)).filter(|_| whole)
    });
    parsed.ok_or_else(|| Wrong(format!("{text:?} is no id of an event")))
}

/// The attributes of a record, by name.
struct Attributes<'a>(&'a Map<String, Value>);

impl<'a> Attributes<'a> {
    fn wrong(name: &str) -> Wrong {
        Wrong(format!("{name} is not what the schema says"))
    }

    fn need<T>(&self, name: &str, get: impl FnOnce(&Self, &str) -> Result<Option<T>>) -> Result<T> {
        get(self, name)?.ok_or_else(|| Wrong(format!("it has no {name}")))
    }

    fn int<T: TryFrom<i64>>(&self, name: &str) -> Result<Option<T>> {
        let Some(value) = self.0.get(name) else {
            return Ok(None);
        };
        let number = value.as_i64().and_then(|number| number.try_into().ok());
        number.map(Some).ok_or_else(|| Self::wrong(name))
    }

    fn count<T: TryFrom<i64> + Default>(&self, name: &str) -> Result<T> {
        Ok(self.int(name)?.unwrap_or_default())
    }

    fn flag(&self, name: &str) -> bool {
        self.0.get(name) == Some(&Value::Bool(true))
    }

    fn str(&self, name: &str) -> Result<Option<&'a str>> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Self::wrong(name)),
        }
    }

    fn string(&self, name: &str) -> Result<Option<String>> {
        Ok(self.str(name)?.map(str::to_owned))
    }

    /// Text that `read` knows.
    fn word<T>(&self, name: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>> {
        let Some(text) = self.str(name)? else {
            return Ok(None);
        };
        read(text).map(Some).ok_or_else(|| Self::wrong(name))
    }

    fn list(&self, name: &str) -> Result<Option<&'a [Value]>> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(Self::wrong(name)),
        }
    }

    /// Lines that `read` knows.
    fn lines<T>(&self, name: &str, read: impl Fn(&str) -> Option<T>) -> Result<Option<Vec<T>>> {
        let Some(list) = self.list(name)? else {
            return Ok(None);
        };
        let lines = list.iter().map(|line| read(line.as_str()?));
        let lines: Option<Vec<_>> = lines.collect();
        lines.map(Some).ok_or_else(|| Self::wrong(name))
    }

    fn socket(&self) -> Result<Option<Socket>> {
        if self.str(name::NETWORK_TRANSPORT)?.is_none() {
            return Ok(None);
        }
        let ipv6_socket = self.str(name::NETWORK_TYPE)? == Some("ipv6");
        let unspecified = if ipv6_socket {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        let address = |name| self.word(name, |text| text.parse::<IpAddr>().ok());
        let local = address(name::LOCAL_ADDRESS)?.unwrap_or(unspecified);
        let local = SocketAddr::new(local, self.count(name::LOCAL_PORT)?);
        let peer_port = self.int(name::PEER_PORT)?;
        let peer = address(name::PEER_ADDRESS)?.zip(peer_port);
        let fin = match self.int(name::FIN_AGO)? {
            Some(ago_us) => Some(PeerFin {
                ago_us,
                written: self.int(name::FIN_WRITTEN)?,
                waited_ms: self.int(name::FIN_WAITED)?,
                idle_ms: self.count(name::FIN_IDLE)?,
            }),
            None => None,
        };
        // A change of state is recorded with the one it led to.
        let before = self.word(name::STATE_PREVIOUS, State::from_word)?;
        let state = self.word(name::CONNECTION_STATE, State::from_word)?;
        let hashed = self.word(name::FLOW_ID, |text| u64::from_str_radix(text, 16).ok())?;
        Ok(Some(Socket {
            id: SocketId {
                sk: hashed.unwrap_or_default(),
                born: 0,
            },
            flow: Flow {
                local,
                peer: peer.map(|(address, port)| SocketAddr::new(address, port)),
                ipv6_socket,
                netns: self.count(name::NETNS)?,
            },
            state: before.or(state),
            fd: self.int(name::SOCKET_FD)?,
            inode: self.int(name::SOCKET_INODE)?,
            unread: self.count(name::SOCKET_UNREAD)?,
            unacked: self.count(name::SOCKET_UNACKED)?,
            retransmits: self.int(name::SOCKET_RETRANSMITS)?,
            rtt_us: self.int(name::SOCKET_RTT)?,
            received_ago_ms: self.int(name::SOCKET_RECEIVED_AGO)?,
            sent_ago_ms: self.int(name::SOCKET_SENT_AGO)?,
            eof_read: self.flag(name::SOCKET_EOF_READ),
            nonblocking: self.flag(name::SOCKET_NONBLOCKING),
            side: self.word(name::SOCKET_SIDE, |text| {
                let sides = [Side::Client, Side::Server];
                sides.into_iter().find(|side| side.as_str() == text)
            })?,
            age_us: self.int(name::SOCKET_AGE)?,
            accepted_ago_us: self.int(name::SOCKET_ACCEPTED_AGO)?,
            heard_ago_ms: self.int(name::SOCKET_HEARD_AGO)?,
            bytes_received: self.count(name::SOCKET_BYTES_RECEIVED)?,
            bytes_sent: self.count(name::SOCKET_BYTES_SENT)?,
            shutdown_ago_us: self.int(name::SOCKET_SHUTDOWN_AGO)?,
            fin,
            service_answers: self.flag(name::SOCKET_ANSWERS),
        }))
    }

    fn owner(&self) -> Result<Owner> {
        let confidence = self.word(name::OWNER_CONFIDENCE, |text| {
            let all = [
                Confidence::Unknown,
                Confidence::Inherited,
                Confidence::Seeded,
                Confidence::Shared,
                Confidence::Exact,
            ];
            all.into_iter().find(|it| it.as_str() == text)
        })?;
        let holders = self.list(name::OWNER_PIDS)?.unwrap_or_default().iter();
        let holders = holders.map(|pid| u32::try_from(pid.as_u64()?).ok());
        let holders: Option<Vec<_>> = holders.collect();
        Ok(Owner {
            confidence: confidence.unwrap_or_default(),
            process: self.owning()?,
            holders: holders.ok_or_else(|| Self::wrong(name::OWNER_PIDS))?.into(),
            creator: self.int(name::CREATOR_PID)?,
            checked_after_ms: self.int(name::OWNER_CHECKED)?,
        })
    }

    fn owning(&self) -> Result<Option<Process>> {
        let beside = [name::PROCESS_PID, name::PROCESS_NAME, name::PROCESS_COMM];
        let Some(process) = self.process(beside)? else {
            return Ok(None);
        };
        let path = self.str(name::PROCESS_PATH)?.map(Arc::from);
        let pod = self.string(name::POD_UID)?;
        let container = self.string(name::CONTAINER_ID)?;
        let code = self.int(name::EXIT_CODE)?.map(Exit::Code);
        let signal = self.int(name::EXIT_SIGNAL)?.map(Exit::Signal);
        Ok(Some(Process {
            tid: self.int(name::THREAD_ID)?,
            uid: self.count(name::PROCESS_USER)?,
            exe: path.or(process.exe),
            container: container.map(|id| Arc::new(Container { id, pod })),
            exit: code.or(signal),
            ..process
        }))
    }

    /// A process of which pid and names are recorded. Its executable's name stands for the path.
    fn process(&self, [pid, name, comm]: name::Beside) -> Result<Option<Process>> {
        let Some(pid) = self.int(pid)? else {
            return Ok(None);
        };
        let name = self.str(name)?.unwrap_or_default();
        let comm = Comm::from_text(self.str(comm)?.unwrap_or(name));
        Ok(Some(Process {
            pid,
            comm,
            exe: (comm.to_string() != name).then(|| name.into()),
            ..Process::default()
        }))
    }

    fn facts(&self) -> Result<Vec<Fact>> {
        let mut facts = Vec::new();
        if let Some(others) = self.int(name::FD_HELD_OTHERS)? {
            let rows = self.lines(name::FD_HELD, held)?.unwrap_or_default();
            facts.push(Fact::Holdings(Arc::new(Holdings { rows, others })));
        }
        if let Some(tid) = self.int(name::ACCEPTOR_TID)? {
            facts.push(Fact::Acceptor(Arc::new(Acceptor {
                process: self.process(name::ACCEPTOR)?.unwrap_or_default(),
                tid,
                state: self
                    .word(name::ACCEPTOR_STATE, |text| text.chars().next())?
                    .unwrap_or('?'),
                wait_channel: self.string(name::ACCEPTOR_WAIT)?,
                syscall: self.int(name::ACCEPTOR_SYSCALL)?,
                read_after_ms: self.count(name::ACCEPTOR_CHECKED)?,
            })));
        }
        let somaxconn = self.int(name::QUEUE_SOMAXCONN)?.map(Fact::Somaxconn);
        facts.extend(somaxconn);
        let nearby = self.lines(name::NEARBY, nearby)?;
        facts.extend(nearby.map(|listeners| Fact::Nearby(listeners.into())));
        if let Some((first, last)) = self
            .int(name::PORTS_FIRST)?
            .zip(self.int(name::PORTS_LAST)?)
        {
            facts.push(Fact::Ports(Ports {
                first,
                last,
                time_wait: self.count(name::PORTS_TIME_WAIT)?,
                in_use: self.count(name::PORTS_IN_USE)?,
            }));
        }
        let address = self.word(name::HOLDER_ADDRESS, |text| text.parse::<IpAddr>().ok())?;
        if let Some(address) = address {
            facts.push(Fact::PortHolder(Arc::new(PortHolder {
                address: SocketAddr::new(address, self.count(name::HOLDER_PORT)?),
                state: self.need(name::HOLDER_STATE, |it, name| {
                    it.word(name, State::from_word)
                })?,
                owner: self.process(name::HOLDER)?,
            })));
        }
        if let Some(inbound) = self.int(name::WORK_INBOUND)? {
            facts.push(Fact::Workload(Arc::new(Workload {
                inbound,
                inbound_oldest_ms: self.count(name::WORK_OLDEST)?,
                outbound: self.lines(name::WORK_OUTBOUND, pool)?.unwrap_or_default(),
            })));
        }
        let other_end = self.process(name::OTHER_END)?;
        facts.extend(other_end.map(|process| Fact::OtherEnd(Arc::new(process))));
        if let Some(trace) = self.str(name::CODE_STACKTRACE)? {
            let missing = self.string(name::STACK_MISSING)?;
            facts.push(Fact::Stack(Arc::new(Stack::parse(trace, missing))));
        }
        Ok(facts)
    }

    fn kind(&self, event: &str) -> Result<Kind> {
        Ok(match event {
            "tcptrace.reset.sent" => Kind::ResetSent(self.reset_sent()?),
            "tcptrace.reset.received" => Kind::ResetReceived(ResetReceived {
                errno: self.error_type()?,
                orphan: self.flag(name::SOCKET_ORPHAN),
            }),
            "tcptrace.close_wait.entered" => Kind::CloseWaitEntered(self.close_wait()?),
            "tcptrace.close_wait.stuck" => Kind::CloseWaitStuck(self.close_wait()?),
            "tcptrace.accept_queue.overflow" => Kind::AcceptQueueOverflow(self.overflow()?),
            "tcptrace.syn_queue.overflow" => Kind::SynQueueOverflow(SynQueue {
                count: self.need(name::SYN_QUEUE_COUNT, Self::int)?,
                cookies: self.flag(name::SYN_QUEUE_COOKIES),
                len: self.int(name::SYN_QUEUE_LEN)?,
                max: self.int(name::SYN_QUEUE_MAX)?,
            }),
            "tcptrace.socket.error" => Kind::SocketError(self.call()?),
            "tcptrace.fd.invalid" => Kind::FdInvalid(self.call()?),
            "tcptrace.connect.failed" => Kind::ConnectFailed(ConnectFailed {
                errno: self.int(name::SYSCALL_ERRNO)?.map(Errno),
                attempts: self.count(name::CONNECT_ATTEMPTS)?,
                duration_us: self.int(name::CONNECT_DURATION)?,
            }),
            "tcptrace.connection.timeout" => Kind::ConnectionTimeout(Timeout {
                errno: self.errno()?,
                retransmits: self.count(name::TIMEOUT_RETRANSMITS)?,
                probes: self.count(name::TIMEOUT_PROBES)?,
                send_window: self.count(name::TIMEOUT_WINDOW)?,
                user_timeout_ms: self.int(name::TIMEOUT_USER)?,
                keepalive: self.flag(name::TIMEOUT_KEEPALIVE),
            }),
            "tcptrace.fd.exhausted" => Kind::FdExhausted(FdExhausted {
                syscall: self.syscall()?,
                errno: self.errno()?,
                open: self.int(name::FD_OPEN)?,
                limit: self.int(name::FD_LIMIT)?,
                read_after_ms: self.int(name::FD_CHECKED)?,
            }),
            "tcptrace.state.changed" => {
                let state = |it: &Self, name: &str| it.word(name, State::from_word);
                Kind::StateChanged(StateChange {
                    from: self.need(name::STATE_PREVIOUS, state)?,
                    to: self.need(name::CONNECTION_STATE, state)?,
                    duration_us: self.int(name::STATE_DURATION_EXACT)?,
                    errno: self.int(name::SYSCALL_ERRNO)?.map(Errno),
                })
            }
            "tcptrace.retransmit" => Kind::Retransmit(Retransmit {
                attempt: self.count(name::RETRANSMIT_ATTEMPT)?,
            }),
            "tcptrace.coverage" => Kind::Coverage(Coverage {
                signal: self.need(name::COVERAGE_SIGNAL, Self::string)?.into(),
                way: self.string(name::COVERAGE_WAY)?,
                note: self.string(name::COVERAGE_NOTE)?,
                complete: self.flag(name::COVERAGE_COMPLETE),
            }),
            "tcptrace.target.changed" => Kind::TargetChanged(Target {
                turn: self.need(name::TARGET_TURN, |it, name| it.word(name, Turn::from_word))?,
                previous: self.int(name::TARGET_PREVIOUS)?,
                why: self.need(name::TARGET_WHY, Self::string)?,
                after_ms: self.int(name::TARGET_AFTER)?,
                left_out: self.need(name::TARGET_LEFT_OUT, Self::int)?,
            }),
            "tcptrace.events.lost" => Kind::EventsLost(Loss {
                hook: self.need(name::LOST_HOOK, Self::string)?,
                count: self.need(name::LOST_COUNT, Self::int)?,
                reason: self.reason()?,
            }),
            "tcptrace.export.dropped" => Kind::ExportDropped(Dropped {
                to: self.need(name::EXPORT_TO, Self::string)?,
                count: self.need(name::LOST_COUNT, Self::int)?,
                reason: self.reason()?,
                error: self.string(name::EXPORT_ERROR)?,
            }),
            "tcptrace.events.suppressed" => Kind::EventsSuppressed(Suppressed {
                name: self.need(name::SUPPRESSED_EVENT, |it, name| {
                    it.word(name, Kind::selectable_name)
                })?,
                cause: self.word(name::CAUSE, Cause::from_name)?,
                errno: self.error_type()?,
                count: self.need(name::SUPPRESSED_COUNT, Self::int)?,
            }),
            look if look.starts_with("tcptrace.sockets.") => {
                return Err(Wrong(
                    "it is of `tcptrace sockets`: one look is no trace to replay".to_owned(),
                ));
            }
            other => return Err(Wrong(format!("{other:?} is no event this version knows"))),
        })
    }

    fn reset_sent(&self) -> Result<ResetSent> {
        let reason = self.string(name::RESET_REASON)?;
        Ok(ResetSent {
            reason: reason.map(|reason| ResetReason(reason.into())),
            unread: self.count(name::SOCKET_UNREAD)?,
            linger_zero: self.flag(name::RESET_LINGER_ZERO),
            answers_segment: self.flag(name::RESET_ANSWER),
            answers_syn: self.flag(name::RESET_ANSWERS_SYN),
            no_socket: self.flag(name::RESET_NO_SOCKET),
            queue_full: self.flag(name::RESET_QUEUE_FULL),
            unaccepted: self.flag(name::RESET_UNACCEPTED),
            aborted: self.flag(name::RESET_ABORTED),
            syscall: self.syscall()?,
        })
    }

    fn close_wait(&self) -> Result<CloseWait> {
        Ok(CloseWait {
            age_ms: self.count(name::CLOSE_WAIT_AGE)?,
            at_least: self.flag(name::CLOSE_WAIT_AT_LEAST),
            count: self.count(name::CLOSE_WAIT_COUNT)?,
            at_start: self.flag(name::CLOSE_WAIT_AT_START),
        })
    }

    fn overflow(&self) -> Result<Overflow> {
        let paths = [OverflowPath::Syn, OverflowPath::Ack, OverflowPath::Cookie];
        Ok(Overflow {
            path: self.word(name::QUEUE_PATH, |text| {
                paths.into_iter().find(|path| path.as_str() == text)
            })?,
            count: self.count(name::QUEUE_COUNT)?,
            queue_len: self.int(name::QUEUE_LEN)?,
            queue_max: self.int(name::QUEUE_MAX)?,
            backlog: self.int(name::QUEUE_BACKLOG)?,
            drops: self.int(name::QUEUE_DROPS)?,
            last_accept_ago_us: self.int(name::QUEUE_LAST_ACCEPT)?,
        })
    }

    fn call(&self) -> Result<CallError> {
        Ok(CallError {
            syscall: self.syscall()?,
            send: self.word(name::SYSCALL_DIRECTION, |text| match text {
                "send" => Some(true),
                "receive" => Some(false),
                _ => None,
            })?,
            errno: self.errno()?,
            len: self.int(name::SYSCALL_LEN)?,
            timeout: self.flag(name::SYSCALL_TIMEOUT),
            fd: self.int(name::SOCKET_FD)?,
        })
    }

    fn syscall(&self) -> Result<Option<Syscall>> {
        self.word(name::SYSCALL_NAME, Syscall::from_text)
    }

    fn errno(&self) -> Result<Errno> {
        self.need(name::SYSCALL_ERRNO, Self::int).map(Errno)
    }

    /// The error a program sees, where `error.type` is none of the causes.
    fn error_type(&self) -> Result<Option<Errno>> {
        Ok(self.str(name::ERROR_TYPE)?.and_then(Errno::from_text))
    }

    fn reason(&self) -> Result<&'static str> {
        let known = [
            "ring_full",
            "table_full",
            "recursion",
            "unseen",
            "malformed",
            "queue_full",
            "too_large",
            "undelivered",
        ];
        let reason = self.need(name::LOST_REASON, Self::str)?;
        Ok(known
            .into_iter()
            .find(|it| *it == reason)
            .unwrap_or("unknown"))
    }
}

/// `931 tcp CLOSE_WAIT out 10.0.0.5:5432`, `40 file`
fn held(line: &str) -> Option<Holding> {
    let (count, what) = line.split_once(' ')?;
    let count = count.parse().ok()?;
    let connection = |what: &str| {
        let mut words = what.strip_prefix("tcp ")?.split(' ');
        let state = words.next()?;
        let all = (1..=11).filter_map(State::from_number);
        let outbound = match (words.next()?, words.next()?) {
            ("out", service) => (true, service),
            ("in", service) => (false, service),
            _ => return None,
        };
        Some(Held::Tcp {
            state: all.into_iter().find(|it| it.to_string() == state)?,
            service: outbound.1.parse().ok()?,
            outbound: outbound.0,
        })
    };
    let what = connection(what).unwrap_or_else(|| Held::Other(what.to_owned()));
    Some(Holding { count, what })
}

/// `127.0.0.1:8080 netns 4026532000 nginx[12]`
fn nearby(line: &str) -> Option<Nearby> {
    let (address, rest) = line.split_once(" netns ")?;
    let (netns, owner) = match rest.split_once(' ') {
        Some((netns, owner)) => (netns, Some(owner)),
        None => (rest, None),
    };
    let owner = owner.map(|owner| {
        let (comm, pid) = owner.strip_suffix(']')?.rsplit_once('[')?;
        Some(Process {
            pid: pid.parse().ok()?,
            comm: Comm::from_text(comm),
            ..Process::default()
        })
    });
    Some(Nearby {
        address: address.parse().ok()?,
        netns: netns.parse().ok()?,
        owner: match owner {
            Some(owner) => Some(owner?),
            None => None,
        },
    })
}

/// `10 10.0.0.9:3306 busy 10 oldest_ms 900`
fn pool(line: &str) -> Option<Pool> {
    let mut words = line.split(' ');
    let connections = words.next()?.parse().ok()?;
    let server = words.next()?.parse().ok()?;
    let mut after = |word| {
        words.next().filter(|it| *it == word)?;
        words.next()?.parse::<u64>().ok()
    };
    Some(Pool {
        server,
        connections,
        busy: after("busy")?.try_into().ok()?,
        oldest_ms: after("oldest_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytemuck::Zeroable as _;
    use proptest::prelude::*;
    use tcptrace_common::event as wire;

    use super::*;
    use crate::decode::Decoder;
    use crate::sink::{Outputs, samples};

    /// The record of an event, and of the event it is read as.
    fn there_and_back(event: &Event) -> (Value, Option<Value>) {
        let mut recorded = Outputs::new(samples::context());
        let line = recorded.line(event);
        let mut reader = Reader::default();
        let read = match reader.read(&line) {
            Ok(Record {
                line: Line::Event(read),
                ..
            }) => read,
            Ok(_) => return (value(&line), None),
            Err(wrong) => panic!("{wrong}: {}", String::from_utf8_lossy(&line)),
        };
        let mut replayed = Outputs::of_replay();
        for context in reader.new_runs() {
            replayed.add_run(context);
        }
        (value(&line), Some(value(&replayed.line(&read))))
    }

    fn value(line: &[u8]) -> Value {
        serde_json::from_slice(line).expect("a line is JSON")
    }

    #[test]
    fn an_event_of_every_kind_is_the_same_when_it_was_recorded_and_read() {
        let mut again = BTreeSet::new();
        for event in samples::all().iter().chain(&samples::verdicts()) {
            let (recorded, read) = there_and_back(event);
            match read {
                Some(read) => {
                    assert_eq!(recorded, read);
                    again.insert(event.name());
                }
                None => assert!(matches!(event.kind, Kind::Finding(_) | Kind::Summary(_))),
            }
        }
        assert_eq!(again.len(), 18, "all but findings and summaries: {again:?}");
    }

    #[test]
    fn what_is_judged_of_an_event_is_read_exactly() {
        let event = samples::reset_sent();
        let mut recorded = Outputs::new(samples::context());
        let line = recorded.line(&event);
        let read = Reader::default().read(&line).map(|record| record.line);
        let Ok(Line::Event(read)) = read else {
            panic!("it is a record");
        };
        let socket = |event: &Event| event.socket.clone().expect("it has one");
        assert_eq!((read.id, read.time), (event.id, event.time));
        assert_eq!(read.owner, event.owner);
        assert_eq!(read.kind, event.kind);
        let expected = Socket {
            id: socket(&read).id,
            // A RST has its own count.
            unread: 512,
            ..socket(&event)
        };
        assert_eq!(socket(&read), expected);
        assert_ne!(expected.id.sk, 0);
    }

    #[test]
    fn what_is_none_of_ours_is_refused_with_the_reason() {
        let line = Outputs::new(samples::context()).line(&samples::reset_sent());
        let good = value(&line);
        let with = |pointer: &str, value: Value| {
            let mut record = good.clone();
            *record.pointer_mut(pointer).expect("it is there") = value;
            record.to_string()
        };
        for (line, words) in [
            ("{".to_owned(), "no JSON"),
            ("[]".to_owned(), "no JSON object"),
            ("{}".to_owned(), "it has no schema_version"),
            (
                with("/schema_version", "2.0".into()),
                "schema version \"2.0\"",
            ),
            (with("/timestamp", "yesterday".into()), "is no time"),
            (
                with("/event_name", "tcptrace.new".into()),
                "no event this version knows",
            ),
            (
                with("/attributes/tcptrace.event.id", "1".into()),
                "no id of an event",
            ),
            (
                with(
                    "/attributes/tcptrace.event.id",
                    "5eed0001-20000000000000".into(),
                ),
                "no id of an event",
            ),
            (
                with("/attributes/process.pid", "1".into()),
                "process.pid is not",
            ),
            (
                with("/attributes/network.local.port", 65_536.into()),
                "network.local.port is not",
            ),
            (
                with("/attributes/network.peer.address", "here".into()),
                "network.peer.address",
            ),
        ] {
            let wrong = Reader::default().read(line.as_bytes()).expect_err(&line);
            assert!(wrong.to_string().contains(words), "{wrong}: {line}");
        }
        assert!(
            Reader::default()
                .read(with("/schema_version", "1.9".into()).as_bytes())
                .is_ok()
        );
    }

    proptest! {
        /// Whatever the kernel half hands over.
        #[test]
        fn any_record_of_the_kernel_half_is_the_same_when_it_was_read(
            bytes in proptest::collection::vec(any::<u8>(), size_of::<wire::Event>()),
            kind in 0_u8..16,
            state in 1_u8..13,
            family in prop_oneof![Just(2_u8), Just(10_u8)],
        ) {
            let mut raw = wire::Event::zeroed();
            bytemuck::bytes_of_mut(&mut raw).copy_from_slice(&bytes);
            raw.kind = kind;
            raw.state = state;
            raw.id &= (1 << 53) - 1;
            raw.cause &= (1 << 53) - 1;
            raw.family = family;
            // Times the record can hold.
            raw.time %= 1 << 50;
            let decoder = Decoder {
                clock_offset: 1_700_000_000_000_000_000,
                ns_per_jiffy: 4_000_000,
                reset_reasons: vec![(1, "NO_SOCKET")],
            };
            if let Ok(decoded) = decoder.decode(bytemuck::bytes_of(&raw)) {
                let (recorded, read) = there_and_back(&decoded.event);
                prop_assert_eq!(Some(recorded), read);
            }
        }
    }
}
