//! What the command line asks for, checked and put into the terms of the kernel half.

pub mod fail_on;
pub mod file;

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use nix::time::{ClockId, clock_getres};
use tcptrace_common::event::kind;
use tcptrace_common::filter::{Config, role};

use crate::cli::{SocketFilter, Trace};
use crate::event::{Comm, Errno, Event, Flow, Kind, Process};
use crate::host::{cgroup::Cgroups, netns, process};
use crate::kernel::maps::FilterValues;

/// Which events are printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// One flag for each of [`Kind::SELECTABLE`].
    chosen: [bool; Kind::SELECTABLE.len()],
    /// Names the user asked for by name: without them tracing makes no sense.
    required: Vec<&'static str>,
    errnos: Vec<Errno>,
}

/// Kinds that are printed only when asked for: normal life, or what slows every call of the host.
const OPT_IN: [&str; 4] = [
    "close_wait.entered",
    "fd.invalid",
    "state.changed",
    "retransmit",
];

/// What findings are made of.
const EVIDENCE: [u8; 9] = [
    kind::RESET_SENT,
    kind::RESET_RECEIVED,
    kind::CLOSE_WAIT,
    kind::ACCEPT_OVERFLOW,
    kind::SOCKET_ERROR,
    kind::CONNECT_FAILED,
    kind::TIMEOUT,
    kind::FD_EXHAUSTED,
    kind::CLOSE,
];

impl Selection {
    /// Reads the lists of `--event` and `--errno`. Entries into CLOSE_WAIT are printed too when they
    /// are asked for at once.
    ///
    /// # Errors
    /// A name that is none.
    pub fn parse(events: &[String], errnos: &[Errno], close_wait_at_once: bool) -> Result<Self> {
        let usual = Kind::SELECTABLE.map(|name| {
            !OPT_IN.contains(&name) || close_wait_at_once && name == "close_wait.entered"
        });
        let only_adds = events.is_empty() || events.iter().any(|item| item.starts_with('+'));
        let mut chosen = if only_adds {
            usual
        } else {
            [false; Kind::SELECTABLE.len()]
        };
        let mut required = Vec::new();
        for item in events {
            let name = item.strip_prefix('+').unwrap_or(item);
            let name = name.strip_prefix("tcptrace.").unwrap_or(name);
            let mut known = name == "all";
            for (chosen, kind) in chosen.iter_mut().zip(Kind::SELECTABLE) {
                let first_word = kind.split_once('.').map_or(kind, |(word, _)| word);
                if name == kind || name == first_word || name == "all" {
                    *chosen = true;
                    known = true;
                    if name != "all" {
                        required.push(kind);
                    }
                }
            }
            ensure!(
                known,
                "--event: there is no event {name:?}; {}",
                Self::help()
            );
        }
        Ok(Self {
            chosen,
            required,
            errnos: errnos.to_vec(),
        })
    }

    /// The names that can be chosen.
    #[must_use]
    pub fn help() -> String {
        let mut help = String::from("the events are");
        for (nth, name) in Kind::SELECTABLE.iter().enumerate() {
            let comma = if nth == 0 { "" } else { "," };
            let mark = if OPT_IN.contains(name) {
                " (on request)"
            } else {
                ""
            };
            // Writing to a String does not fail.
            let _ = write!(help, "{comma} {name}{mark}");
        }
        help
    }

    /// Whether an event is printed for its own sake.
    #[must_use]
    pub fn prints(&self, event: &Event) -> bool {
        let Some(index) = event.kind.selectable() else {
            // Coverage, loss and the summary are about the stream itself.
            return true;
        };
        if self.errnos.is_empty() {
            return self.chosen[index];
        }
        let asked_for = match &event.kind {
            Kind::Finding(finding) => finding
                .errors
                .iter()
                .any(|(errno, _)| self.errnos.contains(errno)),
            _ => errno(event).is_some_and(|errno| self.errnos.contains(&errno)),
        };
        self.chosen[index] && asked_for
    }

    /// Some event of this name, without the prefix, may be printed.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        Kind::SELECTABLE
            .iter()
            .zip(self.chosen)
            .any(|(&kind, chosen)| chosen && kind == name)
    }

    /// All that this asks for comes where that was asked for: of the kernel half, of the analysis and of
    /// what is polled.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        let beyond = |name| self.has(name) && !other.has(name);
        self.kinds() & !other.kinds() == 0 && !beyond("finding") && !beyond("syn_queue.overflow")
    }

    /// Some event the kernel half hands over is not printed for its own sake.
    #[must_use]
    pub fn keeps_evidence(&self) -> bool {
        !self.errnos.is_empty()
            || self.has("finding")
            || !self.has("reset.sent")
            || !self.has("reset.received")
    }

    /// The kinds the kernel half hands over, `1 << kind` each: those printed, and the evidence of
    /// those printed.
    #[must_use]
    pub fn kinds(&self) -> u32 {
        let mut mask = 0;
        let mut add = |name, kinds: &[u8]| {
            if self.has(name) {
                mask |= kinds.iter().fold(0, |mask, kind| mask | 1 << kind);
            }
        };
        add("reset.sent", &[kind::RESET_SENT]);
        add("reset.received", &[kind::RESET_RECEIVED]);
        add("close_wait.entered", &[kind::CLOSE_WAIT]);
        add("close_wait.stuck", &[kind::CLOSE_WAIT]);
        add("accept_queue.overflow", &[kind::ACCEPT_OVERFLOW]);
        let causes = [kind::RESET_SENT, kind::RESET_RECEIVED, kind::TIMEOUT];
        add("socket.error", &causes);
        add("socket.error", &[kind::SOCKET_ERROR]);
        add(
            "connect.failed",
            &[kind::CONNECT_FAILED, kind::RESET_RECEIVED],
        );
        // A timeout whose error a program has taken already shows by the RST that did not come.
        add(
            "connection.timeout",
            &[kind::TIMEOUT, kind::RESET_SENT, kind::RESET_RECEIVED],
        );
        add("fd.exhausted", &[kind::FD_EXHAUSTED]);
        add("fd.invalid", &[kind::FD_INVALID]);
        add("state.changed", &[kind::STATE]);
        add("retransmit", &[kind::RETRANSMIT]);
        add("finding", &EVIDENCE);
        mask
    }

    /// The kinds asked for by name, in the same form.
    #[must_use]
    pub fn required(&self) -> u32 {
        let mut only = Self {
            chosen: [false; Kind::SELECTABLE.len()],
            ..self.clone()
        };
        let own = |name: &str| match name {
            "fd.invalid" => 1 << kind::FD_INVALID,
            "state.changed" => 1 << kind::STATE,
            "retransmit" => 1 << kind::RETRANSMIT,
            // A finding rests on what can be seen here; no kind of evidence is in all of them.
            "finding" => 0,
            _ => u32::MAX,
        };
        self.required.iter().fold(0, |mask, name| {
            only.chosen = Kind::SELECTABLE.map(|kind| kind == *name);
            mask | only.kinds() & own(name)
        })
    }
}

/// The error a program sees, where the event tells one.
pub(crate) fn errno(event: &Event) -> Option<Errno> {
    match &event.kind {
        Kind::ResetReceived(reset) => reset.errno,
        Kind::SocketError(call) | Kind::FdInvalid(call) => Some(call.errno),
        Kind::ConnectFailed(failed) => failed.errno,
        Kind::ConnectionTimeout(timeout) => Some(timeout.errno),
        Kind::FdExhausted(fds) => Some(fds.errno),
        Kind::StateChanged(change) => change.errno,
        _ => None,
    }
}

/// The filters in the kernel half's terms.
#[derive(Clone, Debug)]
pub struct Filters {
    /// Its switches.
    pub config: Config,
    /// Its values.
    pub values: FilterValues,
}

impl Filters {
    /// Resolves what names a thing of this host: pids, namespaces, cgroups.
    ///
    /// # Errors
    /// There is no such thing.
    pub fn of_sockets(filter: &SocketFilter) -> Result<Self> {
        check_pids(filter.pid.iter().copied())?;
        let cgroups = cgroups(&filter.cgroup)?;
        Self::resolve(filter, cgroups)
    }

    fn resolve(filter: &SocketFilter, cgroups: Vec<u64>) -> Result<Self> {
        let netns = filter
            .netns
            .iter()
            .map(|name| netns::resolve(name).context("--netns"));
        let ports = |list: &[u16], role| {
            list.iter()
                .map(move |&port| (role, port))
                .collect::<Vec<_>>()
        };
        let networks = |list: &[ipnet::IpNet], role| {
            list.iter()
                .map(move |&network| (role, network))
                .collect::<Vec<_>>()
        };
        let values = FilterValues {
            pids: filter.pid.clone(),
            comms: filter
                .comm
                .iter()
                .map(|name| *Comm::from(name.as_str()).as_array())
                .collect(),
            uids: filter.uid.clone(),
            cgroups,
            netns: netns.collect::<Result<_>>()?,
            ports: [
                ports(&filter.port, role::ANY),
                ports(&filter.local_port, role::LOCAL),
                ports(&filter.peer_port, role::PEER),
            ]
            .concat(),
            networks: [
                networks(&filter.addr, role::ANY),
                networks(&filter.peer, role::PEER),
            ]
            .concat(),
        };
        let on = |given: bool| u8::from(given);
        let config = Config {
            pid: on(!filter.pid.is_empty()),
            comm: on(!filter.comm.is_empty()),
            uid: on(!filter.uid.is_empty()),
            cgroup: on(!filter.cgroup.is_empty()),
            netns: on(!filter.netns.is_empty()),
            local_port: on(!filter.local_port.is_empty()),
            peer_port: on(!filter.peer_port.is_empty()),
            port: on(!filter.port.is_empty()),
            addr: on(!filter.addr.is_empty()),
            peer: on(!filter.peer.is_empty()),
            family: if filter.ipv4 {
                4
            } else if filter.ipv6 {
                6
            } else {
                0
            },
            ..Config::OFF
        };
        Ok(Self { config, values })
    }

    /// The same for a trace, which asks for more than sockets. Its processes may have ended, or not be
    /// there yet.
    ///
    /// # Errors
    /// As of [`of_sockets`](Self::of_sockets), besides.
    pub fn of(trace: &Trace, selection: &Selection) -> Result<Self> {
        let names = &trace.filter.cgroup;
        let cgroups = if trace.wait {
            cgroups_there(names)?
        } else {
            cgroups(names)?
        };
        let Self { config, values } = Self::resolve(&trace.filter, cgroups)?;
        let on = |given: bool| u8::from(given);
        let config = Config {
            kinds: selection.kinds(),
            pid: on(config.pid != 0 || !trace.cmd.is_empty()),
            children: on(trace.children || !trace.cmd.is_empty()),
            follow: on(trace.follow),
            last_user: on(trace.last_user),
            stack: on(trace.stack),
            close_wait_at_once: on(
                trace.close_wait_after.is_zero() || selection.has("close_wait.entered")
            ),
            verbose: on(trace.verbose),
            ns_per_jiffy: ns_per_jiffy()?,
            ..config
        };
        Ok(Self { config, values })
    }

    /// Nothing is filtered out: what is counted can be compared with the kernel's own counters.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let Config {
            kinds,
            children: _,
            follow: _,
            last_user,
            stack,
            close_wait_at_once,
            verbose,
            ns_per_jiffy,
            ..
        } = self.config;
        let open = Config {
            kinds,
            last_user,
            stack,
            close_wait_at_once,
            verbose,
            ns_per_jiffy,
            ..Config::OFF
        };
        bytemuck::bytes_of(&open) == bytemuck::bytes_of(&self.config)
    }
}

impl Filters {
    /// Decides as the kernel half does, for what is found in `/proc`: a socket of this flow held by
    /// this process, or a process alone.
    #[must_use]
    pub fn include(&self, flow: Option<&Flow>, pid: Option<u32>) -> bool {
        let socket = match flow {
            Some(flow) => self.include_flow(flow),
            None => !self.by_flow() && self.config.netns == 0,
        };
        let describe = |pid| process::describe(pid, Cgroups::open().ok().as_ref());
        socket
            && (!self.by_owner()
                || pid
                    .and_then(describe)
                    .is_some_and(|owner| self.include_owner(&owner)))
    }

    /// Some sockets are left out by what they are, besides their namespace.
    #[must_use]
    pub fn by_flow(&self) -> bool {
        let config = &self.config;
        let filters = [
            config.family,
            config.local_port,
            config.peer_port,
            config.port,
            config.addr,
            config.peer,
        ];
        filters != [0; 6]
    }

    /// Some sockets are left out by whose they are.
    #[must_use]
    pub fn by_owner(&self) -> bool {
        let config = &self.config;
        [config.pid, config.comm, config.uid, config.cgroup] != [0; 4]
    }

    /// Sockets of this process are asked for.
    #[must_use]
    pub fn include_owner(&self, owner: &Process) -> bool {
        let Self { config, values } = self;
        let cgroup = owner.cgroup.unwrap_or_default();
        (config.pid == 0 || values.pids.contains(&owner.pid))
            && (config.comm == 0 || values.comms.contains(owner.comm.as_array()))
            && (config.uid == 0 || values.uids.contains(&owner.uid))
            && (config.cgroup == 0 || values.cgroups.contains(&cgroup))
    }

    /// A socket in this network namespace may be asked for.
    #[must_use]
    pub fn may_be_in(&self, netns: u32) -> bool {
        self.config.netns == 0 || self.values.netns.contains(&netns)
    }

    /// Sockets of this flow are asked for.
    #[must_use]
    pub fn include_flow(&self, flow: &Flow) -> bool {
        let Self { config, values } = self;
        let port = |wanted, port| values.ports.contains(&(wanted, port));
        let network = |wanted, address: IpAddr| {
            values
                .networks
                .iter()
                .any(|(role, net)| *role == wanted && net.contains(&address))
        };
        let (local, peer) = (flow.local, flow.peer);
        let family = if flow.is_ipv4() { 4 } else { 6 };
        (config.family == 0 || config.family == family)
            && self.may_be_in(flow.netns)
            && (config.local_port == 0 || port(role::LOCAL, local.port()))
            && (config.peer_port == 0 || peer.is_some_and(|peer| port(role::PEER, peer.port())))
            && (config.port == 0
                || port(role::ANY, local.port())
                || peer.is_some_and(|peer| port(role::ANY, peer.port())))
            && (config.peer == 0 || peer.is_some_and(|peer| network(role::PEER, peer.ip())))
            && (config.addr == 0
                || network(role::ANY, local.ip())
                || peer.is_some_and(|peer| network(role::ANY, peer.ip())))
    }
}

/// That these processes are there.
///
/// # Errors
/// One is not.
pub fn check_pids(mut pids: impl Iterator<Item = u32>) -> Result<()> {
    let Some(pid) = pids.find(|&pid| !process::alive(pid)) else {
        return Ok(());
    };
    match process::of_thread(pid) {
        Some(process) => bail!("--pid: {pid} is a thread of process {process}; name that"),
        None => bail!("--pid: there is no process {pid}; `pgrep -l NAME` finds the number"),
    }
}

/// As [`cgroups`], of those that are there.
///
/// # Errors
/// There is no cgroup v2.
pub fn cgroups_there(names: &[String]) -> Result<Vec<u64>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let cgroups = Cgroups::open().context("--cgroup")?;
    let there = names.iter().filter_map(|name| cgroups.resolve(name).ok());
    Ok(there.flatten().collect())
}

/// Ids of the cgroups named, and of all below them now.
///
/// # Errors
/// There is no cgroup v2, or none of a name.
pub fn cgroups(names: &[String]) -> Result<Vec<u64>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let cgroups = Cgroups::open().context("--cgroup")?;
    let ids = names
        .iter()
        .map(|name| cgroups.resolve(name).context("--cgroup"));
    Ok(ids.collect::<Result<Vec<_>>>()?.concat())
}

/// The coarse clock ticks once a jiffy.
/// <https://github.com/torvalds/linux/blob/v6.18/kernel/time/posix-timers.c>
fn ns_per_jiffy() -> Result<u32> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("the clock has no tick")?;
    u32::try_from(tick.tv_nsec()).context("the clock's tick is longer than four seconds")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(events: &[&str]) -> Result<Selection> {
        Selection::parse(
            &events
                .iter()
                .map(|&event| event.to_owned())
                .collect::<Vec<_>>(),
            &[],
            false,
        )
    }

    #[test]
    fn first_words_names_and_additions_choose() {
        let usual = selection(&[]).expect("no list");
        assert!(usual.has("reset.sent") && !usual.has("state.changed"));
        let resets = selection(&["reset"]).expect("a first word");
        assert!(resets.has("reset.sent") && resets.has("reset.received"));
        assert!(!resets.has("socket.error"));
        let added = selection(&["+state"]).expect("an addition");
        assert!(added.has("reset.sent") && added.has("state.changed"));
        assert!(selection(&["all"]).expect("all").has("fd.invalid"));
        assert!(
            selection(&["tcptrace.retransmit"])
                .expect("a full name")
                .has("retransmit")
        );
        let error = selection(&["resets"])
            .expect_err("no such event")
            .to_string();
        assert!(
            error.contains("\"resets\"") && error.contains("reset.sent"),
            "{error}"
        );
    }

    #[test]
    fn the_evidence_of_what_is_printed_is_handed_over() {
        let errors = selection(&["socket.error"]).expect("a name");
        assert_ne!(errors.kinds() & 1 << kind::RESET_RECEIVED, 0);
        assert_eq!(errors.kinds() & 1 << kind::STATE, 0);
        assert!(errors.keeps_evidence());
        let timeouts = selection(&["connection.timeout"]).expect("a name");
        assert_ne!(timeouts.kinds() & 1 << kind::RESET_RECEIVED, 0);
        let resets = selection(&["reset"]).expect("a first word");
        let both = 1 << kind::RESET_SENT | 1 << kind::RESET_RECEIVED;
        assert_eq!(resets.kinds(), both);
        let findings = selection(&["finding"]).expect("a name");
        for kind in EVIDENCE {
            assert_ne!(findings.kinds() & 1 << kind, 0, "{kind}");
        }
        assert!(findings.keeps_evidence());
    }

    #[test]
    fn what_is_named_is_required() {
        let added = selection(&["+fd.invalid"]).expect("an addition");
        assert_eq!(added.required(), 1 << kind::FD_INVALID);
        assert_eq!(selection(&[]).expect("no list").required(), 0);
        let finding = selection(&["finding"]).expect("a name");
        assert_eq!(finding.required(), 0, "it degrades");
    }
}
