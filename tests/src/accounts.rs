//! What tcptrace says at its end became of the records of an output.

use anyhow::{Context, Result, ensure};

use crate::Trace;

/// The account of one output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Records written for it.
    pub produced: u64,
    /// Records its destination has.
    pub sent: u64,
    /// Records it will not get.
    pub lost: u64,
}

/// The account of the export that the command line names so.
///
/// # Errors
/// When there is none, or it does not add up.
pub fn account(trace: &Trace, export: &str) -> Result<Account> {
    read(trace, &format!("--export {export}"))
}

/// The account of `stdout` or `output-file`, where it lost some.
///
/// # Errors
/// When there is none, or it does not add up.
pub fn lost_locally(trace: &Trace, name: &str) -> Result<Account> {
    read(trace, name)
}

fn read(trace: &Trace, name: &str) -> Result<Account> {
    let before = format!("tcptrace: {name}: ");
    let lines = trace.stderr.iter();
    let mut accounts = lines.filter_map(|line| {
        let words: Vec<_> = line.strip_prefix(&before)?.split_whitespace().collect();
        let [produced, "records,", sent, "sent,", lost, ..] = words[..] else {
            return None;
        };
        Some(Account {
            produced: produced.parse().ok()?,
            sent: sent.parse().ok()?,
            lost: lost.parse().ok()?,
        })
    });
    let account = accounts.next();
    let account = account.with_context(|| format!("{before}… of:\n{}", trace.stderr.join("\n")))?;
    ensure!(
        account.produced == account.sent + account.lost,
        "{account:?}"
    );
    Ok(account)
}
