//! The report for a program.

use std::iter;

use serde_json::{Value, json};

use super::{Outcome, Report, Verdict};
use crate::event::Coverage;
use crate::kernel::privileges::{Tracing, privileges};

impl Report {
    /// The report for a program: everything.
    #[must_use]
    pub fn json(&self) -> Value {
        let facts = &self.facts;
        let signals: Vec<_> = self
            .plan
            .signals
            .iter()
            .map(|planned| self.signal_json(&self.outcome(planned)))
            .chain(self.polled().map(|polled| {
                json!({
                    "signal": polled.signal.0,
                    "required": false,
                    "seen": true,
                    "way": polled.way,
                    "does_not_show": polled.loses,
                    "ways": [{
                        "way": polled.way,
                        "verdict": Verdict::Taken.name(),
                        "does_not_show": polled.loses,
                    }],
                })
            }))
            .chain(iter::once(self.listed_json()))
            .collect();
        let capabilities: Vec<_> = privileges(facts)
            .map(|privilege| {
                json!({
                    "name": privilege.capability.to_string(),
                    "effective": facts.has(privilege.capability),
                    "required": privilege.required,
                    "until_attached": privilege.attaching,
                    "kept_for": privilege.kept_for(facts),
                    "kept_by_one_thread": matches!(privilege.tracing, Tracing::Confined(_)),
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
            "confinement": {
                "seccomp": facts.confinement.seccomp,
                "landlock": facts.confinement.landlock,
            },
            "grant": self.grant(),
            "signals": signals,
            "never_seen": never_seen,
        })
    }

    fn signal_json(&self, outcome: &Outcome<'_>) -> Value {
        let ways: Vec<_> = outcome
            .ways
            .iter()
            .map(|tried| {
                let (way, verdict) = (&tried.way, tried.verdict.name());
                match &tried.verdict {
                    Verdict::Refused { why, remedy } => {
                        json!({ "way": way, "verdict": verdict, "why": why, "remedy": remedy })
                    }
                    _ => json!({ "way": way, "verdict": verdict, "does_not_show": tried.loses }),
                }
            })
            .collect();
        let taken = outcome.taken();
        json!({
            "signal": outcome.signal.0,
            "required": outcome.core,
            "seen": self.attempts.as_ref().map(|_| taken.is_some()),
            "way": taken.map(|it| &it.way),
            "does_not_show": taken.map_or(&[][..], |it| it.loses),
            "costs": taken.and_then(|it| it.costs),
            "ways": ways,
        })
    }

    fn listed_json(&self) -> Value {
        let Coverage {
            signal, way, note, ..
        } = &self.listed;
        let lost = note
            .as_deref()
            .map(|note| note.trim_start_matches("does not show "));
        let lost: Vec<_> = lost.into_iter().collect();
        json!({
            "signal": signal,
            "required": false,
            "seen": true,
            "way": way,
            "does_not_show": lost,
            "ways": [{
                "way": way,
                "verdict": Verdict::Taken.name(),
                "does_not_show": lost,
            }],
        })
    }
}
