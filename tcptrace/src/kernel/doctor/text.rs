//! The report for a person.

use std::io::{self, Write};

use caps::Capability;

use super::{Outcome, Report, Verdict};
use crate::event::Coverage;
use crate::kernel::confinement::{self, Confinement, Part};
use crate::kernel::facts::Facts;
use crate::kernel::privileges::{HOST_PIDS, Tracing, privileges, required_missing};

impl Report {
    /// Writes the report for a person: what is seen, what is not, and what to do. `every_way` adds the
    /// host, and of every signal each way with what became of it and what it leaves out.
    ///
    /// # Errors
    /// `w` failed.
    pub fn text(&self, w: &mut impl Write, every_way: bool) -> io::Result<()> {
        let outcomes: Vec<_> = self
            .plan
            .signals
            .iter()
            .map(|it| self.outcome(it))
            .collect();
        self.verdict(w, &outcomes)?;
        self.to_do(w, &outcomes)?;
        self.privileges(w)?;
        self.confinement(w, every_way)?;
        if every_way {
            writeln!(w, "\nHost")?;
            for (name, value) in self.host() {
                writeln!(w, "  {name:<26} {value}")?;
            }
            self.every_way(w, &outcomes)
        } else {
            writeln!(
                w,
                "\n`tcptrace doctor -v` shows the host, and every way to see each signal with what \
                 it leaves out."
            )
        }
    }

    /// How much is seen, what is not, and why.
    fn verdict(&self, w: &mut impl Write, outcomes: &[Outcome<'_>]) -> io::Result<()> {
        // Those that need no hook.
        let others = self.polled().count() + 1;
        let served = outcomes.iter().filter(|it| it.taken().is_some()).count() + others;
        let all = outcomes.len() + others;
        let release = &self.facts.release;
        match (&self.attempts, required_missing(&self.facts).as_slice()) {
            (Some(_), _) => writeln!(w, "{served} of {all} signals are seen on Linux {release}.")?,
            (None, missing) => {
                writeln!(
                    w,
                    "Nothing was tried: {}. {served} of {all} signals could be seen on Linux \
                     {release}.",
                    obstacles(missing, &self.facts)
                )?;
            }
        }
        let blind: Vec<_> = outcomes.iter().filter(|it| it.taken().is_none()).collect();
        if !blind.is_empty() {
            writeln!(w, "\nNot seen")?;
        }
        for outcome in blind {
            writeln!(w, "  {}", outcome.signal.0)?;
            for (way, why, _) in outcome.refused() {
                writeln!(w, "      {way}: {why}")?;
            }
        }
        let second = |it: &&Outcome<'_>| it.taken().is_some() && it.refused().next().is_some();
        let second: Vec<_> = outcomes.iter().filter(second).collect();
        if !second.is_empty() {
            writeln!(w, "\nSeen, but not by the best way")?;
        }
        for outcome in second {
            writeln!(w, "  {}", outcome.signal.0)?;
            if let Some(taken) = outcome.taken() {
                writeln!(w, "      through {}", taken.way)?;
                for lost in taken.loses {
                    writeln!(w, "      does not show {lost}")?;
                }
                if let Some(costs) = taken.costs {
                    writeln!(w, "      costs: {costs}")?;
                }
            }
        }
        Ok(())
    }

    /// Each remedy once, with the signals it may bring.
    fn to_do(&self, w: &mut impl Write, outcomes: &[Outcome<'_>]) -> io::Result<()> {
        let mut remedies: Vec<(String, Vec<&str>)> = Vec::new();
        if let Some(command) = self.grant() {
            remedies.push((command, Vec::new()));
        }
        if !self.facts.initial_pid_namespace {
            remedies.push((HOST_PIDS.to_owned(), Vec::new()));
        }
        for outcome in outcomes {
            for remedy in outcome.refused().filter_map(|(_, _, remedy)| remedy) {
                let known = remedies.iter().position(|(known, _)| known == remedy);
                let at = known.unwrap_or_else(|| {
                    remedies.push((remedy.to_owned(), Vec::new()));
                    remedies.len() - 1
                });
                let signals = &mut remedies[at].1;
                if !signals.contains(&outcome.signal.0) {
                    signals.push(outcome.signal.0);
                }
            }
        }
        if !remedies.is_empty() {
            writeln!(w, "\nTo do")?;
        }
        for (remedy, signals) in remedies {
            writeln!(w, "  -> {remedy}")?;
            if !signals.is_empty() {
                writeln!(w, "     for: {}", signals.join(", "))?;
            }
        }
        Ok(())
    }

    fn privileges(&self, w: &mut impl Write) -> io::Result<()> {
        writeln!(w, "\nPrivileges")?;
        for privilege in privileges(&self.facts) {
            let state = match (self.facts.has(privilege.capability), privilege.required) {
                (true, _) => "yes",
                (false, true) => "MISSING",
                (false, false) => "no",
            };
            let name = privilege.capability.to_string();
            let until = match privilege.attaching {
                "" => None,
                attaching => Some(format!("until attached: {attaching}")),
            };
            let kept = privilege.kept_for(&self.facts);
            let kept = kept.map(|tracing| match privilege.tracing {
                Tracing::Confined(_) => format!("kept by one confined thread: {tracing}"),
                _ => format!("kept: {tracing}"),
            });
            let mut uses = until.into_iter().chain(kept);
            let first = uses.next().unwrap_or_default();
            writeln!(w, "  {name:<22} {state:<8} {first}")?;
            for more in uses {
                writeln!(w, "  {:<22} {:<8} {more}", "", "")?;
            }
        }
        Ok(())
    }

    fn every_way(&self, w: &mut impl Write, outcomes: &[Outcome<'_>]) -> io::Result<()> {
        const INDENT: &str = "              ";
        let heading = if self.attempts.is_some() {
            "Signals"
        } else {
            "Signals (nothing was tried)"
        };
        writeln!(w, "\n{heading}")?;
        for outcome in outcomes {
            let verdict = match (outcome.taken(), &self.attempts) {
                (Some(_), Some(_)) => "seen",
                (Some(_), None) => "would try",
                (None, _) => "NOT SEEN",
            };
            writeln!(w, "  {verdict:<10} {}", outcome.signal.0)?;
            for tried in &outcome.ways {
                writeln!(w, "    {:<9} {}", tried.verdict.name(), tried.way)?;
                match &tried.verdict {
                    Verdict::Refused { why, remedy } => {
                        writeln!(w, "{INDENT}{why}")?;
                        if let Some(remedy) = remedy {
                            writeln!(w, "{INDENT}-> {remedy}")?;
                        }
                    }
                    Verdict::Spare => {}
                    Verdict::Taken => {
                        for lost in tried.loses {
                            writeln!(w, "{INDENT}does not show {lost}")?;
                        }
                        if let Some(costs) = tried.costs {
                            writeln!(w, "{INDENT}costs: {costs}")?;
                        }
                    }
                }
            }
        }
        for polled in self.polled() {
            writeln!(w, "  {:<10} {}", "seen", polled.signal.0)?;
            writeln!(w, "    {:<9} {}", "taken", polled.way)?;
            for lost in polled.loses {
                writeln!(w, "{INDENT}does not show {lost}")?;
            }
        }
        let Coverage {
            signal, way, note, ..
        } = &self.listed;
        writeln!(w, "  {:<10} {signal}", "seen")?;
        writeln!(
            w,
            "    {:<9} {}",
            "taken",
            way.as_deref().unwrap_or_default()
        )?;
        if let Some(note) = note {
            writeln!(w, "{INDENT}{note}")?;
        }
        for (signal, why) in self.plan.never_seen {
            writeln!(w, "  {:<10} {}\n{INDENT}{why}", "never", signal.0)?;
        }
        Ok(())
    }

    /// What no thread can do any more once everything is attached.
    fn confinement(&self, w: &mut impl Write, every_part: bool) -> io::Result<()> {
        let Confinement { seccomp, landlock } = self.facts.confinement;
        writeln!(w, "\nConfined once attached")?;
        writeln!(
            w,
            "  {:<10} {}",
            "seccomp",
            if seccomp {
                "each thread can make only the calls of its part"
            } else {
                "this kernel has none: what the privileges left allow can be done"
            }
        )?;
        writeln!(
            w,
            "  {:<10} {}",
            "landlock",
            if landlock {
                "the thread that writes --output-file is kept to its directory, the others open none"
            } else {
                "this kernel has none: the thread that writes --output-file could open others"
            }
        )?;
        if seccomp && every_part {
            for (part, name) in Part::ALL {
                let purposes: Vec<_> = confinement::purposes(part).collect();
                writeln!(w, "  {name} may")?;
                for purpose in purposes {
                    writeln!(w, "      {purpose}")?;
                }
            }
        }
        Ok(())
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
            let what = "not the host's: /proc shows other numbers than the kernel gives";
            host.push(("PID namespace", what.to_owned()));
        }
        host
    }
}

/// Why nothing was tried.
fn obstacles(missing: &[Capability], facts: &Facts) -> String {
    let names: Vec<_> = missing.iter().map(ToString::to_string).collect();
    match &facts.btf {
        _ if !names.is_empty() => format!("{} missing", names.join(" and ")),
        Err(error) => error.clone(),
        Ok(()) if !facts.initial_pid_namespace => {
            "in this PID namespace processes have other numbers than the kernel gives".to_owned()
        }
        Ok(()) => String::new(),
    }
}
