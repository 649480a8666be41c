//! SIGHUP: the file of `--config` is read again, and what can change while events come changes.

use std::ffi::OsString;

use anyhow::{Result, ensure};
use tcptrace_common::filter::Config;

use crate::cli::Trace;
use crate::config::file::{self, File};
use crate::config::{Filters, Selection};

/// Options that hold from one event to the next. The others are constants of the kernel half, or were
/// opened with privileges that are gone since.
const LIVE: [&str; 14] = [
    "addr",
    "cgroup",
    "close-wait-after",
    "comm",
    "errno",
    "event",
    "local-port",
    "netns",
    "peer",
    "peer-port",
    "pid",
    "port",
    "rate-limit",
    "uid",
];

/// A command line whose file can be read again.
#[derive(Debug)]
pub(super) struct Reload {
    /// The command line.
    pub(super) args: Vec<OsString>,
    /// Its file as it was read last.
    pub(super) file: File,
}

/// What another file asks for.
pub(super) struct Change {
    file: File,
    /// Names of the options that changed.
    pub(super) keys: Vec<String>,
    pub(super) trace: Trace,
    pub(super) selection: Selection,
    pub(super) filters: Filters,
}

impl Reload {
    /// Reads the file again. Nothing is changed yet: all of it will be, or nothing.
    ///
    /// # Errors
    /// It is wrong, or asks for what only a new start can give.
    pub(super) fn read(&self, selection: &Selection, filters: &Filters) -> Result<Change> {
        let file::Line { cli, file } = file::read(&self.args)?;
        let file = file.unwrap_or_default();
        let mut keys: Vec<_> = self.file.changes(&file).map(str::to_owned).collect();
        keys.sort_unstable();
        let fixed: Vec<_> = keys
            .iter()
            .map(String::as_str)
            .filter(|key| !LIVE.contains(key))
            .collect();
        ensure!(
            fixed.is_empty(),
            "{} changes only with a new start",
            fixed.join(", ")
        );
        let trace = cli.trace;
        let wanted = super::selection(&trace)?;
        ensure!(
            wanted.is_within(selection),
            "event: more events than at the start come only with a new start"
        );
        let mut changed = Filters::of(&trace, &wanted)?;
        // The command's own, which no option names, and whoever goes on for those that options name.
        changed.values.pids.clone_from(&filters.values.pids);
        let switches = Config {
            kinds: filters.config.kinds,
            ..changed.config
        };
        ensure!(
            bytemuck::bytes_of(&switches) == bytemuck::bytes_of(&filters.config),
            "a filter that there was none of, or that is gone, changes only with a new start"
        );
        Ok(Change {
            file,
            keys,
            trace,
            selection: wanted,
            filters: Filters {
                config: switches,
                values: changed.values,
            },
        })
    }

    /// The change was made.
    pub(super) fn done(&mut self, change: Change) {
        self.file = change.file;
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn what_changes_while_events_come_are_options() {
        let command = Cli::command();
        let options: Vec<_> = command
            .get_arguments()
            .filter_map(clap::Arg::get_long)
            .collect();
        for name in LIVE {
            assert!(options.contains(&name), "{name}");
        }
    }
}
