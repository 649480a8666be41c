//! Says what is seen on this host and through what, what is not, and how to mend it.

mod json;
mod text;

use std::iter;

use caps::Capability;

use super::facts::Facts;
use super::plan::{
    ACCEPT_OVERFLOW, ACCEPT_QUEUE, FINAL_ACK, Plan, Planned, Polled, Refused, Rung, Way,
};
use super::privileges::{grant_command, privileges, required_missing};
use crate::event::{Coverage, Signal};

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
    /// How the host lists its sockets, which takes no hook.
    pub listed: Coverage,
}

/// What became of one signal.
struct Outcome<'a> {
    signal: Signal,
    core: bool,
    /// Every way there is, best first.
    ways: Vec<Tried<'a>>,
}

/// What became of one way to see a signal.
struct Tried<'a> {
    way: String,
    /// What it does not show on this kernel, where it is not ruled out.
    loses: &'a [&'static str],
    costs: Option<&'static str>,
    verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// It serves the signal; where nothing was tried, it would be tried first.
    Taken,
    /// It was not needed: a better one is taken.
    Spare,
    Refused {
        why: String,
        remedy: Option<String>,
    },
}

impl Verdict {
    fn name(&self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Spare => "spare",
            Self::Refused { .. } => "refused",
        }
    }
}

impl Outcome<'_> {
    /// The way that serves it.
    fn taken(&self) -> Option<&Tried<'_>> {
        self.ways.iter().find(|it| it.verdict == Verdict::Taken)
    }

    /// Each way better than the one that serves it, why it does not, and what to do.
    fn refused(&self) -> impl Iterator<Item = (&str, &str, Option<&str>)> {
        let better = |it: &&Tried<'_>| it.verdict != Verdict::Taken;
        self.ways
            .iter()
            .take_while(better)
            .filter_map(|it| match &it.verdict {
                Verdict::Refused { why, remedy } => {
                    Some((it.way.as_str(), why.as_str(), remedy.as_deref()))
                }
                _ => None,
            })
    }
}

impl Report {
    /// Whether no RST of this host's TCP goes unseen; `None` when nobody wants them.
    #[must_use]
    pub fn shows_resets(&self) -> Option<bool> {
        self.shows("reset sent")
    }

    /// Whether no connection lost at a full accept queue goes uncounted; `None` when nobody wants them.
    #[must_use]
    pub fn shows_overflows(&self) -> Option<bool> {
        Some(self.shows(ACCEPT_QUEUE)? || self.polls(ACCEPT_OVERFLOW))
    }

    /// Whether an event tells of each handshake refused at a full accept queue, where they are wanted.
    #[must_use]
    pub fn shows_final_acks(&self) -> bool {
        self.shows(FINAL_ACK) != Some(false)
    }

    /// This signal is counted by the agent, now and then.
    #[must_use]
    pub fn polls(&self, signal: Signal) -> bool {
        self.polled().any(|polled| polled.signal == signal)
    }

    /// Whether all wanted signals that begin so are seen; `None` when none is wanted.
    fn shows(&self, prefix: &str) -> Option<bool> {
        let mut seen = self.seen(prefix).peekable();
        seen.peek()?;
        Some(seen.all(|seen| seen))
    }

    /// Of each wanted signal that begins so, whether it is seen.
    fn seen(&self, prefix: &str) -> impl Iterator<Item = bool> {
        let wanted = self.plan.signals.iter();
        let wanted = wanted.filter(move |it| it.signal.0.starts_with(prefix));
        wanted.map(|planned| self.outcome(planned).taken().is_some())
    }

    /// What is polled on this host.
    fn polled(&self) -> impl Iterator<Item = &'static Polled> {
        self.plan.polled.iter().filter(|polled| {
            let Some(prefix) = polled.instead_of else {
                return true;
            };
            let mut seen = self.seen(prefix).peekable();
            seen.peek().is_some() && !seen.any(|seen| seen)
        })
    }

    /// One record for each wanted signal, each that is polled and each that is never seen.
    #[must_use]
    pub fn coverage(&self) -> Vec<Coverage> {
        let planned = self.plan.signals.iter().map(|planned| {
            let outcome = self.outcome(planned);
            let notes: Vec<_> = match outcome.taken() {
                Some(taken) => not_shown(taken.loses),
                None => outcome.refused().map(sentence).collect(),
            };
            Coverage {
                signal: outcome.signal.0.into(),
                way: outcome.taken().map(|taken| taken.way.clone()),
                note: (!notes.is_empty()).then(|| notes.join("; ")),
                complete: false,
            }
        });
        let polled = self.polled().map(|polled| Coverage {
            signal: polled.signal.0.into(),
            way: Some(polled.way.to_owned()),
            note: Some(not_shown(polled.loses).join("; ")),
            complete: false,
        });
        let listed = iter::once(self.listed.clone());
        let never = self.plan.never_seen.iter().map(|&(signal, why)| Coverage {
            signal: signal.0.into(),
            way: None,
            note: Some(why.to_owned()),
            complete: false,
        });
        planned.chain(polled).chain(listed).chain(never).collect()
    }

    /// The command that gives what is missing, if anything is.
    fn grant(&self) -> Option<String> {
        privileges(&self.facts)
            .any(|it| it.granted && !self.facts.has(it.capability))
            .then(|| grant_command(&self.facts))
    }

    fn outcome<'a>(&'a self, planned: &'a Planned) -> Outcome<'a> {
        let mut is_served = false;
        let ways = planned.ways().map(|rung| {
            let way = rung.to_string();
            let candidate = planned
                .candidates
                .iter()
                .find(|it| it.rung.to_string() == way);
            let ruled_out = planned.refused.iter().find(|it| it.way == way);
            let verdict = match (ruled_out, is_served) {
                (Some(Refused { why, remedy, .. }), _) => Verdict::Refused {
                    why: why.clone(),
                    remedy: remedy.clone().or_else(|| self.types()),
                },
                (None, true) => Verdict::Spare,
                (None, false) => match self.failure(planned.signal, &way) {
                    Some(why) => Verdict::Refused {
                        why,
                        remedy: self.remedy(rung),
                    },
                    None => Verdict::Taken,
                },
            };
            is_served |= verdict == Verdict::Taken;
            Tried {
                way,
                loses: candidate.map_or(&[], |it| &it.loses),
                costs: rung.costs,
                verdict,
            }
        });
        Outcome {
            signal: planned.signal,
            core: planned.core,
            ways: ways.collect(),
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

    /// What to do about a kernel that shows no types: then every way is ruled out.
    fn types(&self) -> Option<String> {
        let remedy = "run a kernel with CONFIG_DEBUG_INFO_BTF, as distributions build theirs";
        self.facts.btf.is_err().then(|| remedy.to_owned())
    }

    /// What to do about a way that the kernel refused, by the settings of the host that close such ways.
    fn remedy(&self, rung: &Rung) -> Option<String> {
        let facts = &self.facts;
        if !required_missing(facts).is_empty() {
            return Some(grant_command(facts));
        }
        if facts.lockdown.as_deref() == Some("confidentiality") {
            return Some("boot with lockdown=integrity or without lockdown".to_owned());
        }
        // Distributions let levels above 2 close perf_event_open even to CAP_PERFMON.
        let by_perf = matches!(rung.way, Way::Tracepoint(_));
        let paranoid = facts.perf_event_paranoid.is_some_and(|level| level > 2);
        (by_perf && paranoid && !facts.has(Capability::CAP_SYS_ADMIN))
            .then(|| "sudo sysctl kernel.perf_event_paranoid=2, or run it with sudo".to_owned())
    }
}

/// A refused way in one line.
fn sentence((way, why, remedy): (&str, &str, Option<&str>)) -> String {
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
    use serde_json::Value;

    use super::super::plan::tests::{everything, facts, find};
    use super::super::plan::{Wanted, plan};
    use super::*;

    fn listed() -> Coverage {
        Coverage {
            signal: "queues and ages of sockets".into(),
            way: Some("sock_diag".to_owned()),
            note: None,
            complete: false,
        }
    }

    fn report(facts: Facts, attempts: Option<Vec<Attempt>>) -> Report {
        let plan = plan(&everything(), &facts, &[]);
        Report {
            facts,
            plan,
            attempts,
            listed: listed(),
        }
    }

    fn text(report: &Report) -> String {
        written(report, false)
    }

    fn written(report: &Report, every_way: bool) -> String {
        let mut text = Vec::new();
        report
            .text(&mut text, every_way)
            .expect("a vector takes everything");
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
            .find(|coverage| coverage.signal == signal)
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
        let short = text(&report);
        assert!(
            short.starts_with("24 of 24 signals are seen on Linux 6.18.44.\n\nTo do\n"),
            "{short}"
        );
        let long = written(&report, true);
        assert!(!long.contains("NOT SEEN"), "{long}");
        for part in [
            "  seen       failed receives\n    taken     raw_tracepoint sock_recv_length\n              \
             does not show splice() from a socket\n",
            "    taken     tracepoint syscalls:sys_exit_listen\n",
            "    spare     raw_tracepoint inet_sock_set_state\n",
            "  seen       syn_queue.overflow\n    taken     polled",
            "  seen       queues and ages of sockets\n    taken     sock_diag\n",
            "  never      header of a received RST\n",
        ] {
            assert!(long.contains(part), "{part} is not in:\n{long}");
        }
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
        assert_eq!(way.as_deref(), Some("fexit inet_csk_accept of 2 arguments"));
        let short = text(&report);
        assert!(short.starts_with("24 of 24"), "{short}");
        assert!(
            short.contains(
                "Seen, but not by the best way\n  owners of accepted connections\n      through \
                 fexit inet_csk_accept of 2 arguments\n      does not show the descriptor"
            ),
            "{short}"
        );
        assert!(written(&report, true).contains(
            "    refused   tracepoint syscalls:sys_exit_accept, sys_exit_accept4\n              \
             sys_exit_accept4: EACCES\n    taken     fexit inet_csk_accept of 2 arguments"
        ));
        let json = report.json();
        let mut signals = json["signals"].as_array().into_iter().flatten();
        let signal = signals.find(|it| it["signal"] == owners);
        let ways = signal.map(|it| [&it["ways"][0], &it["ways"][1]]);
        assert_eq!(
            ways.map(|ways| ways.map(|way| way["verdict"].as_str())),
            Some([Some("refused"), Some("taken")])
        );
    }

    /// Whether all of what accept queues lose is shown, whether it is polled, and whether the refused
    /// are shown, when these of the two ways to lose a connection are seen.
    fn accept_queues(seen: [bool; 2]) -> (Option<bool>, bool, bool) {
        let mut report = report(facts(), None);
        let mut attempts = attached(&report.plan);
        let rows = [
            "accept queue: SYN dropped",
            "accept queue: final ACK dropped",
        ];
        for (row, seen) in rows.into_iter().zip(seen) {
            for candidate in find(&report.plan, row).candidates.iter().skip(1) {
                attempts.extend(candidate.rung.programs.iter().map(|program| Attempt {
                    signal: Signal(row),
                    way: candidate.rung.to_string(),
                    program: program.name,
                    outcome: Ok(()),
                }));
            }
            for attempt in attempts.iter_mut().filter(|it| it.signal.0 == row && !seen) {
                attempt.outcome = Err("EPERM".to_owned());
            }
        }
        report.attempts = Some(attempts);
        let polls = report.polls(ACCEPT_OVERFLOW);
        (report.shows_overflows(), polls, report.shows_final_acks())
    }

    #[test]
    fn accept_queues_are_polled_where_no_hook_shows_one() {
        assert_eq!(accept_queues([true, true]), (Some(true), false, true));
        assert_eq!(accept_queues([true, false]), (Some(false), false, false));
        assert_eq!(accept_queues([false, true]), (Some(false), false, true));
        assert_eq!(accept_queues([false, false]), (Some(true), true, false));
        let nobody = Wanted::default();
        let report = Report {
            plan: plan(&nobody, &facts(), &[]),
            facts: facts(),
            attempts: None,
            listed: listed(),
        };
        assert_eq!(report.shows_overflows(), None);
        assert!(report.shows_final_acks(), "of all there are to be seen");
        assert!(!report.polls(ACCEPT_OVERFLOW));
    }

    #[test]
    fn a_signal_nothing_serves_says_why() {
        let mut facts = facts();
        facts.release = "6.1.192".to_owned();
        facts.raw_tracepoints.remove("tcp_retransmit_skb");
        let mut report = report(facts, None);
        report.attempts = Some(attached(&report.plan));
        let coverage = coverage(&report, "retransmits");
        assert_eq!(coverage.way, None);
        assert_eq!(
            coverage.note.as_deref(),
            Some(
                "not through raw_tracepoint tcp_retransmit_skb: Linux 6.1.192 has no tracepoint \
                 tcp_retransmit_skb -> Linux 6.18 has it"
            )
        );
        let short = text(&report);
        assert!(
            short.starts_with(
                "23 of 24 signals are seen on Linux 6.1.192.\n\nNot seen\n  retransmits\n      \
                 raw_tracepoint tcp_retransmit_skb: Linux 6.1.192 has no tracepoint"
            ),
            "{short}"
        );
        assert!(
            short.contains("  -> Linux 6.18 has it\n     for: retransmits\n"),
            "{short}"
        );
        assert!(written(&report, true).contains("  NOT SEEN   retransmits\n"));
    }

    #[test]
    fn without_privileges_it_says_what_it_would_try_and_how_to_get_them() {
        let mut facts = facts();
        facts.capabilities = Vec::new();
        facts.tracefs = Some("/sys/kernel/tracing".into());
        let report = report(facts, None);
        let short = text(&report);
        for part in [
            "Nothing was tried: CAP_BPF and CAP_PERFMON missing. 24 of 24 signals could be seen on \
             Linux 6.18.44.\n",
            "  -> sudo setcap cap_bpf,cap_perfmon,cap_sys_ptrace,cap_dac_read_search,cap_syslog,\
             cap_sys_nice+ep '/usr/bin/tcptrace', or run it with sudo\n",
            "  CAP_BPF                MISSING  until attached: make the tables of the kernel half",
            "  CAP_SYS_ADMIN          no       until attached: mount a private tracefs where there is \
             none\n                                  kept by one confined thread: look into other \
             network namespaces\n",
        ] {
            assert!(short.contains(part), "{part} is not in:\n{short}");
        }
        assert!(written(&report, true).contains("  would try  reset sent\n"));
        let json = report.json();
        assert_eq!(json["signals"][0]["seen"], Value::Null);
        assert_eq!(
            json["signals"][0]["way"],
            "raw_tracepoint inet_sock_set_state"
        );
        assert_eq!(json["capabilities"][0]["effective"], false);
        assert_eq!(json["capabilities"][0]["kept_for"], Value::Null);
    }

    #[test]
    fn a_capability_the_kernel_asks_for_again_and_again_is_said_to_be_kept() {
        let mut facts = facts();
        facts.capabilities.push(Capability::CAP_BPF);
        facts.maps_need_cap_bpf = true;
        let text = text(&report(facts, None));
        let expected = "  CAP_BPF                yes      until attached: make the tables of the \
                        kernel half and load it\n                                  kept: read those \
                        tables";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn a_host_without_types_is_told_what_to_run() {
        let mut facts = facts();
        facts.btf = Err("cannot read /sys/kernel/btf/vmlinux".to_owned());
        let text = text(&report(facts, None));
        assert!(
            text.starts_with("Nothing was tried: cannot read /sys/kernel/btf"),
            "{text}"
        );
        assert!(
            text.contains("-> run a kernel with CONFIG_DEBUG_INFO_BTF"),
            "{text}"
        );
    }

    #[test]
    fn a_host_that_closes_perf_events_is_named_where_a_tracepoint_was_refused() {
        let mut facts = facts();
        facts.capabilities = vec![Capability::CAP_BPF, Capability::CAP_PERFMON];
        facts.tracefs = Some("/sys/kernel/tracing".into());
        facts.perf_event_paranoid = Some(3);
        let mut report = report(facts, None);
        let mut attempts = attached(&report.plan);
        for attempt in attempts
            .iter_mut()
            .filter(|it| it.way.starts_with("tracepoint"))
        {
            attempt.outcome = Err("EACCES".to_owned());
        }
        report.attempts = Some(attempts);
        let text = text(&report);
        let remedy = "  -> sudo sysctl kernel.perf_event_paranoid=2, or run it with sudo\n     for: \
                      owners of accepted connections, ";
        assert!(text.contains(remedy), "{text}");
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
