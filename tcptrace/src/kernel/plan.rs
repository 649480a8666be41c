//! Decides through which hooks each signal will be seen, before anything is loaded.
//!
//! [`plan`] takes out of the ways to see each signal what this host rules out, and says why; the
//! loader tries what is left in order.

mod signals;

use caps::Capability;
use tcptrace_common::layout::OFFSETS;

use super::facts::Facts;
use super::symbols::SymbolError;
use crate::event::Signal;
pub(super) use signals::ACCEPT_QUEUE;
pub use signals::FINAL_ACK;
pub use signals::{ACCEPT_OVERFLOW, Polled, Program, Rung, Way};
use signals::{Asked, NEVER_SEEN, POLLED, SIGNALS};
pub(crate) use signals::{CAST, functions};

/// The names of all signals that hooks show.
#[cfg(test)]
pub(crate) fn names() -> impl Iterator<Item = &'static str> + Clone {
    SIGNALS.iter().map(|row| row.signal.0)
}

/// What is to be seen.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Kinds of event, `1 << kind` each, those needed as evidence included.
    pub kinds: u32,
    /// What is to be known of processes.
    pub processes: Processes,
    /// Ways taken out, of [`Way::NAMES`].
    pub without: Vec<String>,
}

/// What is to be known of the processes traced.
#[derive(Clone, Copy, Debug, Default)]
pub struct Processes {
    /// They are traced by number.
    pub by_pid: bool,
    /// Their children are followed.
    pub children: bool,
    /// Their successors are.
    pub successors: bool,
}

impl Processes {
    /// All there is to know.
    pub const ALL: Self = Self {
        by_pid: true,
        children: true,
        successors: true,
    };
}

/// How each wanted signal will be seen.
#[derive(Debug)]
pub struct Plan {
    /// The wanted signals.
    pub signals: Vec<Planned>,
    /// What no hook shows and the kernel counts.
    pub polled: &'static [Polled],
    /// What is never seen, and where to look instead.
    pub never_seen: &'static [(Signal, &'static str)],
}

/// How one signal will be seen.
#[derive(Debug)]
pub struct Planned {
    /// The signal.
    pub signal: Signal,
    /// Nothing works without it.
    pub core: bool,
    /// The kinds of event that are not seen without it, `1 << kind` each.
    pub asked_by: u32,
    /// The ways left, best first: the first that loads and attaches is taken.
    pub candidates: Vec<Candidate>,
    /// The ways ruled out.
    pub refused: Vec<Refused>,
}

impl Planned {
    /// Every way to see the signal on any kernel, best first.
    pub(super) fn ways(&self) -> impl Iterator<Item = &'static Rung> {
        let row = SIGNALS.iter().find(|row| row.signal == self.signal);
        row.into_iter().flat_map(|row| row.rungs)
    }
}

/// A way to try.
#[derive(Debug)]
pub struct Candidate {
    /// The way.
    pub rung: &'static Rung,
    /// What it does not show on this kernel.
    pub loses: Vec<&'static str>,
}

/// A way that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The way.
    pub way: String,
    /// Why.
    pub why: String,
    /// What to do, where something can be done.
    pub remedy: Option<String>,
}

/// Plans how to see what is wanted. `missing` names the fields of the layout this kernel lacks.
#[must_use]
pub fn plan(wanted: &Wanted, facts: &Facts, missing: &[&str]) -> Plan {
    let signals = SIGNALS
        .iter()
        .filter(|row| match row.asked {
            Asked::Core => true,
            Asked::By(kinds) | Asked::With(kinds) => wanted.kinds & kinds != 0,
            Asked::ByPid => wanted.processes.by_pid,
            Asked::ByChildren => wanted.processes.children,
            Asked::BySuccessors => wanted.processes.successors,
        })
        .map(|row| {
            let mut planned = Planned {
                signal: row.signal,
                core: matches!(row.asked, Asked::Core),
                asked_by: match row.asked {
                    Asked::By(kinds) => kinds,
                    Asked::Core
                    | Asked::With(_)
                    | Asked::ByPid
                    | Asked::ByChildren
                    | Asked::BySuccessors => 0,
                },
                candidates: Vec::new(),
                refused: Vec::new(),
            };
            for rung in row.rungs {
                match obstacle(rung, wanted, facts, missing) {
                    None => planned.candidates.push(Candidate {
                        rung,
                        loses: loses(rung, missing),
                    }),
                    Some((why, remedy)) => {
                        planned.refused.push(Refused {
                            way: rung.to_string(),
                            why,
                            remedy,
                        });
                    }
                }
            }
            planned
        })
        .collect();
    Plan {
        signals,
        polled: POLLED,
        never_seen: NEVER_SEEN,
    }
}

fn loses(rung: &Rung, missing: &[&str]) -> Vec<&'static str> {
    rung.loses
        .iter()
        .filter(|loss| loss.without.is_none_or(|field| missing.contains(&field)))
        .map(|loss| loss.what)
        .collect()
}

/// Why a way is closed before it is tried, and the remedy.
fn obstacle(
    rung: &Rung,
    wanted: &Wanted,
    facts: &Facts,
    missing: &[&str],
) -> Option<(String, Option<String>)> {
    let name = rung.way.name();
    if wanted.without.iter().any(|way| way == name) {
        return Some((format!("taken out with --without {name}"), None));
    }
    if let Err(error) = &facts.btf {
        return Some((error.clone(), None));
    }
    let missing = || rung.needs.iter().find(|field| missing.contains(field));
    absent_target(rung, facts).or_else(|| missing().map(|field| absence(field, facts)))
}

/// Why what the programs of a way attach to is not there.
fn absent_target(rung: &Rung, facts: &Facts) -> Option<(String, Option<String>)> {
    match rung.way {
        Way::RawTracepoint => {
            let targets = &mut rung.programs.iter().map(|program| program.target);
            let absent = targets.find(|target| !facts.raw_tracepoints.contains(*target))?;
            let why = format!("Linux {} has no tracepoint {absent}", facts.release);
            let since = match absent {
                "sock_send_length" | "sock_recv_length" => "6.3",
                _ => NEWEST_READ,
            };
            Some((why, Some(newer(since))))
        }
        Way::Tracepoint(_) => {
            let hidden = facts.tracefs.is_none() && !facts.has(Capability::CAP_SYS_ADMIN);
            hidden.then(|| {
                (
                    "tracefs is not mounted, and mounting a private one needs CAP_SYS_ADMIN"
                        .to_owned(),
                    Some("sudo mount -t tracefs tracefs /sys/kernel/tracing".to_owned()),
                )
            })
        }
        Way::Kprobe if !facts.kprobes => {
            let why = "this kernel has no kprobes (CONFIG_KPROBE_EVENTS)";
            Some((why.to_owned(), None))
        }
        Way::Fentry | Way::Fexit | Way::Kprobe => rung
            .programs
            .iter()
            .find_map(|program| absent_function(program, facts)),
        Way::Iterator => None,
    }
}

/// Why a program cannot be attached to its function.
fn absent_function(program: &Program, facts: &Facts) -> Option<(String, Option<String>)> {
    let Program {
        target, arguments, ..
    } = program;
    let why = match (facts.functions.get(target), arguments) {
        (None, _) => format!("Linux {} has no function {target}", facts.release),
        (Some(here), Some(wanted)) if here != wanted => {
            format!("it takes {here} arguments here")
        }
        (Some(_), _) => return None,
    };
    Some((why, None))
}

/// Why a field of the layout has no value.
fn absence(field: &str, facts: &Facts) -> (String, Option<String>) {
    if field == "rcv_state_process_start"
        && let Err(error) = &facts.rcv_state_process
    {
        return (
            format!("the place of tcp_rcv_state_process is needed: {error}"),
            reveal(error, facts),
        );
    }
    let (what, since) = match field {
        "call_registers" => (
            "the registers of a call cannot be found: no helper bpf_task_pt_regs, no struct pt_regs",
            "5.15",
        ),
        "consume_skb_location" => ("consume_skb does not tell its caller", "6.3"),
        "kfree_skb_reason" => ("kfree_skb gives no reason", "5.17"),
        "kfree_skb_rx_sk" => ("kfree_skb does not tell the socket", "6.11"),
        "drop_listen_overflow" => ("there is no drop reason TCP_LISTEN_OVERFLOW", "6.17"),
        "drop_no_socket" => ("there is no drop reason NO_SOCKET", "5.17"),
        other => {
            let what = match OFFSETS.iter().find(|offset| offset.name == other) {
                Some(offset) => format!("struct {} has no {}", offset.strukt, offset.path),
                None => format!("there is no {other}"),
            };
            return (absent(&what, facts), Some(newer(NEWEST_READ)));
        }
    };
    (absent(what, facts), Some(newer(since)))
}

fn absent(what: &str, facts: &Facts) -> String {
    format!("on Linux {} {what}", facts.release)
}

/// The version whose source every way was written from.
const NEWEST_READ: &str = "6.18";

fn newer(since: &str) -> String {
    format!("Linux {since} has it")
}

/// How to make the kernel show its addresses.
/// <https://github.com/torvalds/linux/blob/v6.18/kernel/ksyms_common.c> (`kallsyms_show_value`)
fn reveal(error: &SymbolError, facts: &Facts) -> Option<String> {
    match error {
        SymbolError::Hidden if facts.kptr_restrict == Some(2) => {
            Some("sudo sysctl kernel.kptr_restrict=1".to_owned())
        }
        SymbolError::Hidden => Some("run with CAP_SYSLOG, or with sudo".to_owned()),
        SymbolError::Absent | SymbolError::Unreadable(_) => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use tcptrace_common::event::kind;

    use super::*;
    use crate::kernel::confinement::Confinement;

    /// A host like the development machine: Linux 6.18, root, nothing missing.
    pub(in crate::kernel) fn facts() -> Facts {
        let tracepoints = [
            "consume_skb",
            "inet_sock_set_state",
            "kfree_skb",
            "sched_process_exec",
            "sched_process_fork",
            "sock_recv_length",
            "sock_send_length",
            "sys_exit",
            "tcp_destroy_sock",
            "tcp_receive_reset",
            "tcp_retransmit_skb",
            "tcp_send_reset",
        ];
        Facts {
            release: "6.18.44".to_owned(),
            btf: Ok(()),
            raw_tracepoints: tracepoints.map(str::to_owned).into(),
            functions: functions().into_iter().map(|name| (name, 2)).collect(),
            jit: true,
            kprobes: false,
            rcv_state_process: Ok(0x10..0x20),
            capabilities: vec![
                Capability::CAP_SYS_ADMIN,
                Capability::CAP_SYS_PTRACE,
                Capability::CAP_DAC_READ_SEARCH,
                Capability::CAP_SYSLOG,
            ],
            initial_user_namespace: true,
            initial_pid_namespace: true,
            lockdown: Some("none".to_owned()),
            maps_need_cap_bpf: false,
            confinement: Confinement {
                seccomp: true,
                landlock: false,
            },
            unprivileged_bpf_disabled: Some(2),
            perf_event_paranoid: Some(2),
            kptr_restrict: Some(0),
            tracefs: None,
            cgroup2: None,
            executable: "/usr/bin/tcptrace".into(),
        }
    }

    pub(in crate::kernel) fn everything() -> Wanted {
        Wanted {
            kinds: u32::MAX,
            processes: Processes::ALL,
            without: Vec::new(),
        }
    }

    /// The way each signal would be tried first.
    fn first(plan: &Plan, signal: &str) -> Option<String> {
        find(plan, signal)
            .candidates
            .first()
            .map(|candidate| candidate.rung.to_string())
    }

    pub(in crate::kernel) fn find<'a>(plan: &'a Plan, signal: &str) -> &'a Planned {
        plan.signals
            .iter()
            .find(|planned| planned.signal.0 == signal)
            .expect("a planned signal")
    }

    fn refusal<'a>(plan: &'a Plan, signal: &str) -> &'a Refused {
        let planned = find(plan, signal);
        assert!(planned.candidates.is_empty(), "{signal} has a way");
        &planned.refused[0]
    }

    #[test]
    fn a_kernel_that_has_everything_serves_every_signal() {
        let plan = plan(&everything(), &facts(), &[]);
        let ways: Vec<_> = plan
            .signals
            .iter()
            .map(|planned| (planned.signal.0, planned.candidates[0].rung.to_string()))
            .collect();
        let ways: Vec<_> = ways
            .iter()
            .map(|(signal, way)| (*signal, way.as_str()))
            .collect();
        assert_eq!(
            ways,
            [
                ("state changes", "raw_tracepoint inet_sock_set_state"),
                ("socket end", "raw_tracepoint tcp_destroy_sock"),
                ("reset sent", "raw_tracepoint tcp_send_reset"),
                (
                    "reset sent without a connection",
                    "raw_tracepoint tcp_send_reset"
                ),
                ("reset received", "raw_tracepoint tcp_receive_reset"),
                ("failed sends", "raw_tracepoint sock_send_length"),
                ("failed receives", "raw_tracepoint sock_recv_length"),
                (
                    "owners of accepted connections",
                    "tracepoint syscalls:sys_exit_accept, sys_exit_accept4"
                ),
                (
                    "owners of connections accepted by io_uring",
                    "fexit inet_csk_accept of 2 arguments"
                ),
                ("accept queue: SYN dropped", "fentry tcp_conn_request"),
                (
                    "accept queue: final ACK dropped",
                    "fentry tcp_v4_syn_recv_sock, tcp_v6_syn_recv_sock"
                ),
                ("backlog asked for", "tracepoint syscalls:sys_exit_listen"),
                (
                    "descriptors exhausted in accept, accept4, socket",
                    "tracepoint syscalls:sys_exit_accept, sys_exit_accept4, sys_exit_socket"
                ),
                (
                    "connect without a route",
                    "tracepoint syscalls:sys_exit_connect"
                ),
                (
                    "address in use",
                    "tracepoint syscalls:sys_exit_bind, sys_exit_listen"
                ),
                (
                    "shutdown without a connection",
                    "tracepoint syscalls:sys_exit_shutdown"
                ),
                ("invalid descriptors", "raw_tracepoint sys_exit"),
                ("retransmits", "raw_tracepoint tcp_retransmit_skb"),
                (
                    "process numbers given anew",
                    "raw_tracepoint sched_process_fork"
                ),
                (
                    "children of traced processes",
                    "raw_tracepoint sched_process_fork"
                ),
                (
                    "successors of traced processes",
                    "raw_tracepoint sched_process_exec, sched_process_fork"
                ),
                ("sockets older than the start", "iterator task_file"),
            ]
        );
        let refused = plan.signals.iter().flat_map(|planned| &planned.refused);
        let refused: BTreeSet<_> = refused.map(|refused| refused.why.as_str()).collect();
        let expected = [
            "this kernel has no kprobes (CONFIG_KPROBE_EVENTS)",
            "it takes 2 arguments here",
        ];
        assert_eq!(refused, expected.into());
        let polled = plan.polled.iter().map(|polled| polled.signal.0);
        assert_eq!(
            polled.collect::<Vec<_>>(),
            ["syn_queue.overflow", "accept_queue.overflow"]
        );
    }

    #[test]
    fn nobody_asked_means_only_the_core() {
        let plan = plan(&Wanted::default(), &facts(), &[]);
        let signals: Vec<_> = plan
            .signals
            .iter()
            .map(|planned| planned.signal.0)
            .collect();
        assert_eq!(signals, ["state changes", "socket end"]);
        assert!(plan.signals.iter().all(|planned| planned.core));
    }

    #[test]
    fn what_an_event_is_seen_without_is_not_asked_for() {
        let plan = plan(&everything(), &facts(), &[]);
        assert_ne!(find(&plan, "reset sent").asked_by, 0);
        let owners = find(&plan, "owners of connections accepted by io_uring");
        assert_eq!(owners.asked_by, 0);
    }

    #[test]
    fn calls_are_hooked_only_for_the_kinds_that_need_them() {
        let wanted = Wanted {
            kinds: 1 << kind::FD_EXHAUSTED,
            ..Wanted::default()
        };
        let plan = plan(&wanted, &facts(), &[]);
        let programs: BTreeSet<_> = plan
            .signals
            .iter()
            .flat_map(|planned| planned.candidates[0].rung.programs)
            .map(|program| program.name)
            .collect();
        let expected = [
            "inet_sock_set_state",
            "sys_exit_accept",
            "sys_exit_accept4",
            "sys_exit_socket",
            "tcp_destroy_sock",
        ];
        assert_eq!(programs, expected.into());
    }

    #[test]
    fn a_missing_tracepoint_is_named() {
        let mut facts = facts();
        facts.release = "6.1.192".to_owned();
        facts.raw_tracepoints.remove("sock_send_length");
        let plan = plan(&everything(), &facts, &[]);
        let refused = &find(&plan, "failed sends").refused[0];
        assert_eq!(refused.way, "raw_tracepoint sock_send_length");
        assert_eq!(
            refused.why,
            "Linux 6.1.192 has no tracepoint sock_send_length"
        );
        assert_eq!(
            first(&plan, "failed sends").as_deref(),
            Some("fexit tcp_sendmsg, tcp_sendpage")
        );
        assert_eq!(
            first(&plan, "failed receives").as_deref(),
            Some("raw_tracepoint sock_recv_length")
        );
    }

    #[test]
    fn hidden_addresses_cost_the_dropped_syns_and_the_remedy_depends() {
        let mut facts = facts();
        facts.rcv_state_process = Err(SymbolError::Hidden);
        let missing = ["rcv_state_process_start"];
        let tracepoint = |plan: &Plan| {
            let refused = &find(plan, "accept queue: SYN dropped").refused;
            let refused = refused.iter().find(|it| it.way.contains("consume_skb"));
            refused.expect("a way that is refused").clone()
        };
        let remedy = |facts: &Facts| tracepoint(&plan(&everything(), facts, &missing)).remedy;
        assert_eq!(
            remedy(&facts).as_deref(),
            Some("run with CAP_SYSLOG, or with sudo")
        );
        facts.kptr_restrict = Some(2);
        assert_eq!(
            remedy(&facts).as_deref(),
            Some("sudo sysctl kernel.kptr_restrict=1")
        );
        let plan = plan(&everything(), &facts, &missing);
        assert!(tracepoint(&plan).why.contains("/proc/kallsyms hides"));
        assert!(first(&plan, "accept queue: final ACK dropped").is_some());
    }

    #[test]
    fn an_older_kernel_loses_what_its_hooks_do_not_tell() {
        let missing = [
            "send_reset_reason",
            "drop_listen_overflow",
            "call_registers",
        ];
        let plan = plan(&everything(), &facts(), &missing);
        let lost = |signal| find(&plan, signal).candidates[0].loses.join("\n");
        assert!(lost("reset sent").contains("the kernel's reason"));
        assert!(lost("state changes").contains("the system call and descriptor"));
        assert!(lost("failed receives").contains("splice()"));
        let dropped = find(&plan, "accept queue: final ACK dropped");
        assert_eq!(
            dropped.refused[0].why,
            "on Linux 6.18.44 there is no drop reason TCP_LISTEN_OVERFLOW"
        );
        assert_eq!(
            first(&plan, "reset sent without a connection").as_deref(),
            Some("fentry tcp_v4_send_reset, tcp_v6_send_reset")
        );
        assert!(
            refusal(&plan, "address in use")
                .why
                .contains("bpf_task_pt_regs")
        );

        let whole = super::plan(&everything(), &facts(), &[]);
        let lost = find(&whole, "reset sent").candidates[0].loses.join("\n");
        assert!(!lost.contains("reason") && lost.contains("REJECT"));
    }

    #[test]
    fn a_way_taken_out_leaves_the_next() {
        let out = |way: &str| Wanted {
            without: vec![way.to_owned()],
            ..everything()
        };
        let raw = plan(&out("raw_tracepoint"), &facts(), &[]);
        assert_eq!(
            refusal(&raw, "reset sent").why,
            "taken out with --without raw_tracepoint"
        );
        assert!(first(&raw, "address in use").is_some());

        let classic = plan(&out("tracepoint"), &facts(), &[]);
        assert_eq!(
            first(&classic, "owners of accepted connections").as_deref(),
            Some("fexit inet_csk_accept of 2 arguments")
        );
        assert_eq!(
            first(&classic, "address in use").as_deref(),
            Some("raw_tracepoint sys_exit")
        );

        let iterator = plan(&out("iterator"), &facts(), &[]);
        assert!(
            find(&iterator, "sockets older than the start")
                .candidates
                .is_empty()
        );
    }

    #[test]
    fn tracefs_is_mounted_only_by_an_administrator() {
        let mut facts = facts();
        facts.capabilities = vec![Capability::CAP_BPF, Capability::CAP_PERFMON];
        let before = plan(&everything(), &facts, &[]);
        let refused = &find(&before, "address in use").refused[0];
        assert!(refused.why.starts_with("tracefs is not mounted"));
        facts.tracefs = Some("/sys/kernel/tracing".into());
        let after = plan(&everything(), &facts, &[]);
        let way = first(&after, "address in use");
        assert!(way.is_some_and(|way| way.starts_with("tracepoint")));
    }

    #[test]
    fn without_types_no_way_is_left() {
        let mut facts = facts();
        facts.btf = Err("cannot read /sys/kernel/btf/vmlinux".to_owned());
        let plan = plan(&everything(), &facts, &[]);
        for planned in &plan.signals {
            assert!(planned.candidates.is_empty());
            assert!(planned.refused[0].why.contains("/sys/kernel/btf/vmlinux"));
        }
    }

    #[test]
    fn every_need_is_a_field_of_the_layout() {
        let missing = crate::kernel::layout::Resolved::unknown().missing;
        for rung in SIGNALS.iter().flat_map(|row| row.rungs) {
            let conditions = rung.loses.iter().filter_map(|loss| loss.without);
            for field in rung.needs.iter().copied().chain(conditions) {
                assert!(
                    missing.contains(&field),
                    "{field} is no field of the layout"
                );
            }
        }
    }
}
