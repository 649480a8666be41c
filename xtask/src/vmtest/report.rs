//! What a machine showed: judged, as lines for the terminal and as docs/kernels.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, ensure};
use serde_json::Value;

use super::LIVE;
use super::console::{Console, Section};

/// What came of one row.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    /// Debian's, of the kernel.
    pub(crate) version: String,
    /// The day.
    pub(crate) tested: String,
    /// How long its commands took by its own clock.
    took: Duration,
    /// What `doctor` says, in its order.
    signals: Vec<Signal>,
    /// How many failures of the selftest were seen and named, and of how many.
    named: (usize, usize),
    /// Failures that could not be provoked or not be seen whole, and why.
    not_shown: Vec<(String, String)>,
    live_tests: u32,
    /// What is wrong; empty is success.
    pub(crate) faults: Vec<String>,
}

#[derive(Debug)]
struct Signal {
    name: String,
    /// Through what it is seen.
    way: Option<String>,
    /// What that does not show, and what it costs.
    limits: Vec<String>,
    /// Why the ways there are were refused.
    refusals: Vec<String>,
}

impl Outcome {
    /// Of a machine that did not come to its end.
    pub(crate) fn failed(error: &Error) -> Self {
        Self {
            faults: vec![format!("{error:#}")],
            ..Self::default()
        }
    }

    /// Judges what a machine wrote.
    pub(crate) fn of(console: &Console) -> Self {
        let mut outcome = Self {
            took: console.sections.iter().map(|section| section.took).sum(),
            ..Self::default()
        };
        for section in &console.sections {
            let judged = match section.name.as_str() {
                "doctor" => outcome.read_doctor(section),
                "selftest" => outcome.read_selftest(section),
                name if LIVE.contains(&name) => outcome.read_live_test(section),
                _ => require_success(section),
            };
            if let Err(error) = judged {
                outcome.faults.push(format!("{}: {error:#}", section.name));
            }
        }
        let complaints = console.complaints().into_iter();
        outcome
            .faults
            .extend(complaints.map(|line| format!("the kernel: {line}")));
        outcome
    }

    fn read_doctor(&mut self, section: &Section) -> Result<()> {
        let document = document(section)?;
        for signal in list(&document["signals"]) {
            let refusal = |way: &Value| {
                let why = way["why"].as_str()?;
                Some(format!("{}: {why}", text(&way["way"])))
            };
            let lost = list(&signal["does_not_show"]).iter();
            let lost = lost.map(|lost| format!("does not show {}", text(lost)));
            let costs = signal["costs"].as_str();
            let costs = costs.map(|costs| format!("costs: {costs}"));
            self.signals.push(Signal {
                name: text(&signal["signal"]).to_owned(),
                way: signal["way"].as_str().map(str::to_owned),
                limits: lost.chain(costs).collect(),
                refusals: list(&signal["ways"]).iter().filter_map(refusal).collect(),
            });
        }
        ensure!(!self.signals.is_empty(), "it lists no signals");
        require_success(section)
    }

    fn read_selftest(&mut self, section: &Section) -> Result<()> {
        let document = document(section)?;
        for failure in list(&document["failures"]) {
            let name = text(&failure["name"]);
            if let Some(why) = failure["not_shown"].as_str() {
                self.not_shown.push((name.to_owned(), why.to_owned()));
                continue;
            }
            self.named.1 += 1;
            if let Some(why) = hidden(failure) {
                self.not_shown.push((name.to_owned(), why.to_owned()));
            } else if failure["passed"] == true {
                self.named.0 += 1;
            }
            if failure["passed"] != true {
                self.faults
                    .push(format!("selftest, {name}: {}", wrong(failure)));
            }
        }
        ensure!(self.named.1 > 0, "it provoked nothing");
        let is_told = document["passed"] == false && !self.faults.is_empty();
        if is_told {
            return Ok(());
        }
        require_success(section)
    }

    fn read_live_test(&mut self, section: &Section) -> Result<()> {
        let result = section
            .lines
            .iter()
            .find_map(|line| line.strip_prefix("test result: "));
        let passed = result
            .and_then(|result| result.strip_prefix("ok. "))
            .and_then(|counts| counts.split_once(" passed; 0 failed; 0 ignored"))
            .and_then(|(count, _)| count.parse::<u32>().ok());
        let said = || section.lines.join("\n");
        self.live_tests += passed.filter(|count| *count > 0).with_context(said)?;
        require_success(section)
    }

    /// A kernel from which no way is withheld shows every signal. The selftest cannot say so: for it what
    /// is not seen is what this kernel does not show.
    pub(crate) fn require_every_signal(&mut self) {
        let unseen = self.signals.iter().filter(|signal| signal.way.is_none());
        let faults =
            unseen.map(|it| format!("{} is not seen: {}", it.name, it.refusals.join("; ")));
        self.faults.extend(faults);
    }

    /// One line for the record of a test run.
    pub(crate) fn line(&self) -> String {
        format!(
            "{} ({}): {} of {} failures seen and named, {} live tests passed, {} s",
            self.name,
            self.version,
            self.named.0,
            self.named.1,
            self.live_tests,
            self.took.as_secs()
        )
    }

    /// The same with what is wrong.
    pub(crate) fn summary(&self) -> String {
        let mut summary = self.line() + "\n";
        for fault in &self.faults {
            let _ = writeln!(summary, "    {}", fault.replace('\n', "\n    "));
        }
        summary
    }
}

fn require_success(section: &Section) -> Result<()> {
    let said = || section.lines.join("\n");
    ensure!(
        section.status == Some(0),
        "status {:?}. {}",
        section.status,
        said()
    );
    Ok(())
}

/// The JSON document a command wrote, among what else it said.
fn document(section: &Section) -> Result<Value> {
    let document = section.lines.join("\n");
    let start = document.find('{').with_context(|| document.clone())?;
    let mut documents = serde_json::Deserializer::from_str(&document[start..]).into_iter();
    let first = documents.next().context("no document")?;
    first.with_context(|| document.clone())
}

/// Why this kernel hides some of a failure, if it does.
fn hidden(failure: &Value) -> Option<&str> {
    list(&failure["checks"])
        .iter()
        .find(|check| check["verdict"] == "not visible")
        .map(|check| text(&check["remark"]))
}

/// What is wrong with a failure of the selftest.
fn wrong(failure: &Value) -> String {
    let error = failure["error"].as_str().map(str::to_owned);
    let checks = list(&failure["checks"])
        .iter()
        .chain(list(&failure["findings"]));
    let failed = checks
        .filter(|check| check["verdict"] == "FAILED")
        .chain(list(&failure["unexpected"]))
        .map(Value::to_string);
    error
        .into_iter()
        .chain(failed)
        .collect::<Vec<_>>()
        .join("\n")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// docs/kernels.md.
pub(crate) fn page(outcomes: &[Outcome]) -> String {
    let mut page = String::from(
        "# What tcptrace sees on which kernel\n\n\
         Written by `cargo xtask vmtest`: Debian's cloud kernels, each in an emulated machine \
         with nothing but\nthe kernel, tcptrace and its tests. A cell names the hook that serves the \
         signal there; `tcptrace selftest` then\nprovoked the failures and held what was seen \
         against the kernel's own counters.\n\n",
    );
    page += &table(outcomes);
    page +=
        "\n## Not seen, and why\n\nIn the tool's own words: each way it has, and what is in it.\n";
    page += &reasons(outcomes);
    page += "\n## What a way does not show, and what it costs\n";
    page += &limits(outcomes);
    page
}

/// The signals of every row, and what its tests came to.
fn table(outcomes: &[Outcome]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for signal in outcomes.iter().flat_map(|outcome| &outcome.signals) {
        if !names.contains(&signal.name.as_str()) {
            names.push(&signal.name);
        }
    }
    let mut table = String::new();
    let mut row = |name: &str, cell: &dyn Fn(&Outcome) -> String| {
        let cells: Vec<String> = outcomes.iter().map(cell).collect();
        let _ = writeln!(table, "| {name} | {} |", cells.join(" | "));
    };
    row("kernel", &|outcome| outcome.name.clone());
    row("---", &|_| "---".to_owned());
    row("version", &|outcome| outcome.version.clone());
    for name in names {
        row(name, &|outcome| {
            // What is polled instead of other signals is listed only where it is.
            let signal = outcome.signals.iter().find(|signal| signal.name == name);
            signal.map_or("not needed".to_owned(), |signal| {
                let way = signal.way.clone();
                way.unwrap_or_else(|| "**not seen**".to_owned())
            })
        });
    }
    row("**failures seen and named**", &|outcome| {
        format!("{} of {}", outcome.named.0, outcome.named.1)
    });
    row(
        "**live tests passed**",
        &|outcome| match outcome.live_tests {
            0 => "not run".to_owned(),
            count => count.to_string(),
        },
    );
    row("**seconds there**", &|outcome| {
        outcome.took.as_secs().to_string()
    });
    row("**tested**", &|outcome| {
        outcome.tested.trim_end().to_owned()
    });
    row("**result**", &|outcome| {
        let is_good = outcome.faults.is_empty();
        if is_good { "passed" } else { "FAILED" }.to_owned()
    });
    table
}

/// Each way that is taken somewhere and shows less than all, or is not for nothing.
fn limits(outcomes: &[Outcome]) -> String {
    let signals = outcomes.iter().flat_map(|outcome| &outcome.signals);
    let by_way: BTreeMap<(&str, &str), &[String]> = signals
        .filter(|signal| !signal.limits.is_empty())
        .filter_map(|signal| {
            Some((
                (signal.name.as_str(), signal.way.as_deref()?),
                &signal.limits[..],
            ))
        })
        .collect();
    let mut text = String::new();
    for ((name, way), limits) in by_way {
        let _ = write!(
            text,
            "\n**{name}** through {way}:\n\n- {}\n",
            limits.join("\n- ")
        );
    }
    text
}

/// Each thing that is not seen with the rows it is not seen in, those of one reason together.
fn reasons(outcomes: &[Outcome]) -> String {
    let mut by_reason: BTreeMap<(&str, String), Vec<&str>> = BTreeMap::new();
    for outcome in outcomes {
        let signals = outcome.signals.iter().filter(|signal| signal.way.is_none());
        let unseen = signals.map(|signal| (signal.name.as_str(), signal.refusals.join("\n- ")));
        let not_shown = outcome
            .not_shown
            .iter()
            .map(|(name, why)| (name.as_str(), why.clone()));
        for reason in unseen.chain(not_shown) {
            by_reason.entry(reason).or_default().push(&outcome.name);
        }
    }
    let mut text = String::new();
    for ((name, reason), rows) in by_reason {
        let _ = write!(text, "\n**{name}** on {}:\n\n- {reason}\n", rows.join("; "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_nothing_serves_is_a_fault_where_nothing_is_withheld() {
        let mut outcome = Outcome::of(&Console::read(
            r#"@@ begin doctor
{"signals": [
{"signal": "reset sent", "way": "raw_tracepoint", "ways": []},
{"signal": "final ACK", "way": null, "ways": [
{"way": "fentry", "why": "error 524"}, {"way": "kprobe", "why": "not tried"}]}
]}
@@ end doctor 0 1
"#,
        ));
        assert!(outcome.faults.is_empty(), "{:?}", outcome.faults);
        outcome.require_every_signal();
        let fault = "final ACK is not seen: fentry: error 524; kprobe: not tried";
        assert_eq!(outcome.faults, [fault]);
    }
}
