//! Says what is seen on this host and through what, what is not, and how to mend it.

use std::io::{self, Write};

use caps::Capability;
use serde_json::{Value, json};

use super::facts::Facts;
use super::plan::{Plan, Planned, Refused};
use crate::event::{Coverage, Signal};

/// The capabilities tcptrace uses: whether it can run without, and what for.
const CAPABILITIES: &[(Capability, bool, &str)] = &[
    (Capability::CAP_BPF, true, "load eBPF programs"),
    (
        Capability::CAP_PERFMON,
        true,
        "attach them and read kernel memory",
    ),
    (
        Capability::CAP_SYS_PTRACE,
        false,
        "see the descriptors of other users' processes",
    ),
    (
        Capability::CAP_DAC_READ_SEARCH,
        false,
        "read tracefs and other users' /proc entries",
    ),
    (
        Capability::CAP_SYSLOG,
        false,
        "see the addresses of kernel functions",
    ),
    (
        Capability::CAP_SYS_ADMIN,
        false,
        "enter other network namespaces, mount a private tracefs",
    ),
];

/// Capabilities without which nothing can be traced.
#[must_use]
pub fn required_missing(facts: &Facts) -> Vec<Capability> {
    CAPABILITIES
        .iter()
        .filter(|&&(capability, required, _)| required && !facts.has(capability))
        .map(|&(capability, ..)| capability)
        .collect()
}

/// How to get the missing capabilities. `CAP_SYS_ADMIN` is left to sudo: it would make all others
/// pointless.
#[must_use]
pub fn grant_command(facts: &Facts) -> String {
    if !facts.initial_user_namespace {
        return "run it outside the user namespace: capabilities in here do not open eBPF"
            .to_owned();
    }
    let names: Vec<_> = CAPABILITIES
        .iter()
        .filter(|&&(capability, ..)| capability != Capability::CAP_SYS_ADMIN)
        .map(|(capability, ..)| capability.to_string().to_lowercase())
        .collect();
    let path = facts.executable.display();
    format!(
        "sudo setcap {}+ep '{path}', or run it with sudo",
        names.join(",")
    )
}

/// One program the loader tried for one signal.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The signal.
    pub signal: Signal,
    /// The way it belongs to, as [`super::plan::Rung`] prints itself.
    pub way: String,
    /// The program.
    pub program: &'static str,
    /// Attached, or why not.
    pub outcome: Result<(), String>,
}

/// What is seen on this host. What it says is derived; nothing is looked up.
#[derive(Debug)]
pub struct Report {
    /// The host.
    pub facts: Facts,
    /// What was planned on it.
    pub plan: Plan,
    /// What became of it; `None` when nothing was tried, for want of privileges.
    pub attempts: Option<Vec<Attempt>>,
}

/// What became of one signal.
struct Outcome<'a> {
    signal: Signal,
    way: Option<String>,
    loses: &'a [&'static str],
    refused: Vec<Refused>,
}

impl Report {
    /// One record for each wanted signal, each that is polled and each that is never seen.
    #[must_use]
    pub fn coverage(&self) -> Vec<Coverage> {
        let planned = self.plan.signals.iter().map(|planned| {
            let outcome = self.outcome(planned);
            let notes: Vec<_> = if outcome.way.is_some() {
                not_shown(outcome.loses)
            } else {
                outcome.refused.iter().map(sentence).collect()
            };
            let note = (!notes.is_empty()).then(|| notes.join("; "));
            Coverage {
                signal: outcome.signal,
                way: outcome.way,
                note,
            }
        });
        let polled = self.plan.polled.iter().map(|polled| Coverage {
            signal: polled.signal,
            way: Some(polled.way.to_owned()),
            note: Some(not_shown(polled.loses).join("; ")),
        });
        let never = self.plan.never_seen.iter().map(|&(signal, why)| Coverage {
            signal,
            way: None,
            note: Some(why.to_owned()),
        });
        planned.chain(polled).chain(never).collect()
    }

    /// Writes the report for a person.
    ///
    /// # Errors
    /// `w` failed.
    pub fn text(&self, w: &mut impl Write) -> io::Result<()> {
        let facts = &self.facts;
        writeln!(w, "Linux {}", facts.release)?;
        for (name, value) in self.host() {
            writeln!(w, "  {name:<26} {value}")?;
        }
        writeln!(w, "\nPrivileges")?;
        for &(capability, required, purpose) in CAPABILITIES {
            let state = match (facts.has(capability), required) {
                (true, _) => "yes",
                (false, true) => "MISSING",
                (false, false) => "no",
            };
            writeln!(w, "  {:<20} {state:<8} {purpose}", capability.to_string())?;
        }
        if let Some(command) = self.grant() {
            writeln!(w, "  -> {command}")?;
        }
        let heading = if self.attempts.is_some() {
            "Signals"
        } else {
            "Signals (nothing was tried)"
        };
        writeln!(w, "\n{heading}")?;
        for planned in &self.plan.signals {
            let outcome = self.outcome(planned);
            let verdict = match (&outcome.way, &self.attempts) {
                (Some(_), Some(_)) => "seen",
                (Some(_), None) => "would try",
                (None, _) => "NOT SEEN",
            };
            writeln!(w, "  {verdict:<10} {}", outcome.signal.0)?;
            if let Some(way) = &outcome.way {
                writeln!(w, "             through {way}")?;
            }
            for lost in outcome.loses {
                writeln!(w, "             does not show {lost}")?;
            }
            for Refused { way, why, remedy } in &outcome.refused {
                writeln!(w, "             not through {way}: {why}")?;
                if let Some(remedy) = remedy {
                    writeln!(w, "             -> {remedy}")?;
                }
            }
        }
        for polled in self.plan.polled {
            writeln!(w, "  {:<10} {}", "seen", polled.signal.0)?;
            writeln!(w, "             through {}", polled.way)?;
            for lost in polled.loses {
                writeln!(w, "             does not show {lost}")?;
            }
        }
        for (signal, why) in self.plan.never_seen {
            writeln!(w, "  {:<10} {}\n             {why}", "never", signal.0)?;
        }
        Ok(())
    }

    /// The report for a program.
    #[must_use]
    pub fn json(&self) -> Value {
        let facts = &self.facts;
        let signals: Vec<_> = self
            .plan
            .signals
            .iter()
            .map(|planned| {
                let outcome = self.outcome(planned);
                let refused: Vec<_> = outcome
                    .refused
                    .iter()
                    .map(|refused| {
                        json!({ "way": refused.way, "why": refused.why, "remedy": refused.remedy })
                    })
                    .collect();
                json!({
                    "signal": outcome.signal.0,
                    "required": planned.core,
                    "seen": self.attempts.as_ref().map(|_| outcome.way.is_some()),
                    "way": outcome.way,
                    "does_not_show": outcome.loses,
                    "refused": refused,
                })
            })
            .chain(self.plan.polled.iter().map(|polled| {
                json!({
                    "signal": polled.signal.0,
                    "required": false,
                    "seen": true,
                    "way": polled.way,
                    "does_not_show": polled.loses,
                    "refused": [],
                })
            }))
            .collect();
        let capabilities: Vec<_> = CAPABILITIES
            .iter()
            .map(|&(capability, required, purpose)| {
                json!({
                    "name": capability.to_string(),
                    "effective": facts.has(capability),
                    "required": required,
                    "purpose": purpose,
                })
            })
            .collect();
        let never_seen: Vec<_> = self
            .plan
            .never_seen
            .iter()
            .map(|(signal, why)| json!({ "signal": signal.0, "why": why }))
            .collect();
        json!({
            "kernel": facts.release,
            "btf": { "readable": facts.btf.is_ok(), "error": facts.btf.as_ref().err() },
            "lockdown": facts.lockdown,
            "initial_user_namespace": facts.initial_user_namespace,
            "initial_pid_namespace": facts.initial_pid_namespace,
            "tracefs": facts.tracefs,
            "cgroup2": facts.cgroup2,
            "sysctl": {
                "kernel.unprivileged_bpf_disabled": facts.unprivileged_bpf_disabled,
                "kernel.perf_event_paranoid": facts.perf_event_paranoid,
                "kernel.kptr_restrict": facts.kptr_restrict,
            },
            "capabilities": capabilities,
            "grant": self.grant(),
            "signals": signals,
            "never_seen": never_seen,
        })
    }

    /// The command that gives what is missing, if anything is.
    fn grant(&self) -> Option<String> {
        CAPABILITIES
            .iter()
            .any(|&(capability, ..)| !self.facts.has(capability))
            .then(|| grant_command(&self.facts))
    }

    /// What is worth knowing about the host.
    fn host(&self) -> Vec<(&'static str, String)> {
        let facts = &self.facts;
        let number = |value: Option<i32>| value.map_or("unknown".to_owned(), |it| it.to_string());
        let mounted = |path: &Option<std::path::PathBuf>, otherwise: &str| {
            path.as_ref()
                .map_or(otherwise.to_owned(), |path| path.display().to_string())
        };
        let lockdown = match facts.lockdown.as_deref() {
            Some("confidentiality") => {
                "confidentiality: keeps eBPF from reading kernel memory; boot with \
                 lockdown=integrity or without"
            }
            Some(mode) => mode,
            None => "unknown: not built in, or securityfs is not mounted",
        };
        let mut host = vec![
            (
                "types (BTF)",
                facts
                    .btf
                    .clone()
                    .err()
                    .unwrap_or_else(|| "readable".to_owned()),
            ),
            ("lockdown", lockdown.to_owned()),
            (
                "tracefs",
                mounted(
                    &facts.tracefs,
                    "not mounted; CAP_SYS_ADMIN mounts a private one",
                ),
            ),
            ("cgroup v2", mounted(&facts.cgroup2, "not mounted")),
            (
                "unprivileged_bpf_disabled",
                number(facts.unprivileged_bpf_disabled),
            ),
            ("perf_event_paranoid", number(facts.perf_event_paranoid)),
            ("kptr_restrict", number(facts.kptr_restrict)),
        ];
        if !facts.initial_user_namespace {
            host.push((
                "user namespace",
                "not the host's: eBPF stays closed in here".to_owned(),
            ));
        }
        if !facts.initial_pid_namespace {
            let what = "not the host's: /proc shows other numbers than the kernel gives; run \
                        the container with the host's PID namespace";
            host.push(("PID namespace", what.to_owned()));
        }
        host
    }

    fn outcome<'a>(&'a self, planned: &'a Planned) -> Outcome<'a> {
        let mut refused = planned.refused.clone();
        let mut taken = None;
        for candidate in &planned.candidates {
            let way = candidate.rung.to_string();
            let Some(why) = self.failure(planned.signal, &way) else {
                taken = Some((way, candidate.loses.as_slice()));
                break;
            };
            let remedy = self.remedy();
            refused.push(Refused { way, why, remedy });
        }
        let (way, loses) = taken.map_or((None, [].as_slice()), |(way, loses)| (Some(way), loses));
        Outcome {
            signal: planned.signal,
            way,
            loses,
            refused,
        }
    }

    /// Why a way that was tried does not serve a signal; `None` when it does, or nothing was tried.
    fn failure(&self, signal: Signal, way: &str) -> Option<String> {
        let mut attempts = self
            .attempts
            .as_ref()?
            .iter()
            .filter(|attempt| attempt.signal == signal && attempt.way == way)
            .peekable();
        if attempts.peek().is_none() {
            return Some("not tried".to_owned());
        }
        attempts.find_map(|attempt| {
            let error = attempt.outcome.as_ref().err()?;
            Some(format!("{}: {error}", attempt.program))
        })
    }

    /// What to do about a program that the kernel refused.
    fn remedy(&self) -> Option<String> {
        if !required_missing(&self.facts).is_empty() {
            return Some(grant_command(&self.facts));
        }
        (self.facts.lockdown.as_deref() == Some("confidentiality"))
            .then(|| "boot with lockdown=integrity or without lockdown".to_owned())
    }
}

/// A refused way in one line.
fn sentence(refused: &Refused) -> String {
    let Refused { way, why, remedy } = refused;
    match remedy {
        Some(remedy) => format!("not through {way}: {why} -> {remedy}"),
        None => format!("not through {way}: {why}"),
    }
}

fn not_shown(loses: &[&str]) -> Vec<String> {
    let lost = loses.iter();
    lost.map(|lost| format!("does not show {lost}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::plan::plan;
    use super::super::plan::tests::{everything, facts, find};
    use super::*;

    fn report(facts: Facts, attempts: Option<Vec<Attempt>>) -> Report {
        let plan = plan(&everything(), &facts, &[]);
        Report {
            facts,
            plan,
            attempts,
        }
    }

    fn text(report: &Report) -> String {
        let mut text = Vec::new();
        report.text(&mut text).expect("a vector takes everything");
        String::from_utf8(text).expect("the report is text")
    }

    /// Every first way of the plan, attached.
    fn attached(plan: &Plan) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        for planned in &plan.signals {
            for candidate in planned.candidates.iter().take(1) {
                attempts.extend(candidate.rung.programs.iter().map(|program| Attempt {
                    signal: planned.signal,
                    way: candidate.rung.to_string(),
                    program: program.name,
                    outcome: Ok(()),
                }));
            }
        }
        attempts
    }

    fn coverage(report: &Report, signal: &str) -> Coverage {
        report
            .coverage()
            .into_iter()
            .find(|coverage| coverage.signal.0 == signal)
            .expect("a record for the signal")
    }

    #[test]
    fn what_attached_is_seen_with_what_it_loses() {
        let mut report = report(facts(), None);
        report.attempts = Some(attached(&report.plan));
        let coverage = coverage(&report, "failed receives");
        assert_eq!(
            coverage.way.as_deref(),
            Some("raw_tracepoint sock_recv_length")
        );
        assert!(
            coverage
                .note
                .is_some_and(|note| note.contains("does not show splice()"))
        );
        let text = text(&report);
        assert!(text.contains("  seen       failed receives\n"));
        assert!(!text.contains("NOT SEEN"), "{text}");
        assert!(text.contains("  seen       syn_queue.overflow\n             through polled"));
        assert!(text.contains("  never      header of a received RST\n"));
    }

    #[test]
    fn one_program_that_fails_takes_its_way_down_and_the_next_counts() {
        let mut report = report(facts(), None);
        let mut attempts = attached(&report.plan);
        let owners = "owners of accepted connections";
        for attempt in attempts.iter_mut().filter(|it| it.signal.0 == owners) {
            if attempt.program == "sys_exit_accept4" {
                attempt.outcome = Err("EACCES".to_owned());
            }
        }
        let second = find(&report.plan, owners).candidates[1].rung;
        attempts.extend(second.programs.iter().map(|program| Attempt {
            signal: Signal(owners),
            way: second.to_string(),
            program: program.name,
            outcome: Ok(()),
        }));
        report.attempts = Some(attempts);
        let way = coverage(&report, owners).way;
        assert_eq!(
            way.as_deref(),
            Some("raw_tracepoint sock_send_length, sock_recv_length")
        );
        assert!(text(&report).contains(
            "not through tracepoint syscalls:sys_exit_accept, sys_exit_accept4: \
             sys_exit_accept4: EACCES\n"
        ));
    }

    #[test]
    fn a_signal_nothing_serves_says_why() {
        let mut facts = facts();
        facts.release = "6.1.192".to_owned();
        facts.raw_tracepoints.remove("sock_send_length");
        let mut report = report(facts, None);
        report.attempts = Some(attached(&report.plan));
        let coverage = coverage(&report, "failed sends");
        assert_eq!(coverage.way, None);
        assert_eq!(
            coverage.note.as_deref(),
            Some(
                "not through raw_tracepoint sock_send_length: Linux 6.1.192 has no tracepoint \
                 sock_send_length -> Linux 6.18 has it"
            )
        );
        assert!(text(&report).contains("  NOT SEEN   failed sends\n"));
    }

    #[test]
    fn without_privileges_it_says_what_it_would_try_and_how_to_get_them() {
        let mut facts = facts();
        facts.capabilities = Vec::new();
        facts.tracefs = Some("/sys/kernel/tracing".into());
        assert_eq!(
            required_missing(&facts),
            [Capability::CAP_BPF, Capability::CAP_PERFMON]
        );
        let report = report(facts, None);
        let text = text(&report);
        assert!(
            text.contains("  CAP_BPF              MISSING  load eBPF programs\n"),
            "{text}"
        );
        assert!(text.contains(
            "-> sudo setcap cap_bpf,cap_perfmon,cap_sys_ptrace,cap_dac_read_search,cap_syslog+ep \
             '/usr/bin/tcptrace', or run it with sudo\n"
        ));
        assert!(text.contains("  would try  reset sent\n"));
        let json = report.json();
        assert_eq!(json["signals"][0]["seen"], Value::Null);
        assert_eq!(
            json["signals"][0]["way"],
            "raw_tracepoint inet_sock_set_state"
        );
        assert_eq!(json["capabilities"][0]["effective"], false);
    }

    #[test]
    fn an_administrator_needs_neither_of_the_two() {
        let mut facts = facts();
        facts.capabilities = vec![Capability::CAP_SYS_ADMIN];
        assert_eq!(required_missing(&facts), []);
        facts.initial_user_namespace = false;
        assert_eq!(required_missing(&facts).len(), 2);
        assert!(grant_command(&facts).contains("outside the user namespace"));
    }

    #[test]
    fn lockdown_is_named_where_a_program_was_refused() {
        let mut facts = facts();
        facts.lockdown = Some("confidentiality".to_owned());
        let mut report = report(facts, None);
        let mut attempts = attached(&report.plan);
        for attempt in &mut attempts {
            attempt.outcome = Err("EPERM".to_owned());
        }
        report.attempts = Some(attempts);
        let coverage = coverage(&report, "state changes");
        assert!(
            coverage
                .note
                .is_some_and(|note| note.ends_with("without lockdown"))
        );
        assert_eq!(report.json()["signals"][0]["seen"], false);
    }
}
