//! What the kernel knows of attached programs: where they are, how often each ran and how long.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};

use super::floor::Hook;

/// The kernel's switch for timing eBPF programs.
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// By program.
pub(super) type Programs = BTreeMap<String, Runs>;

/// How often a program ran, and how long in all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Runs {
    pub(super) count: u64,
    pub(super) nanoseconds: u64,
}

/// The programs a process has attached.
pub(super) fn of(process: u32) -> Result<Programs> {
    Ok(joined(&infos(process)?))
}

/// What ran between two looks.
pub(super) fn since(before: &Programs, mut now: Programs) -> Programs {
    for (name, runs) in &mut now {
        let before = before.get(name).copied().unwrap_or_default();
        runs.count -= before.count;
        runs.nanoseconds -= before.nanoseconds;
    }
    now
}

/// The hooks a process has attached programs to.
pub(super) fn hooks(process: u32) -> Result<Vec<Hook>> {
    let mut hooks = Vec::new();
    for hook in infos(process)?.iter().filter_map(|info| hook(info)) {
        // Once, also where a program has a stand-in.
        if !hooks.contains(&hook) {
            hooks.push(hook);
        }
    }
    Ok(hooks)
}

/// Bytes of the kernel's memory that the maps of a process take.
pub(super) fn map_bytes(process: u32) -> Result<u64> {
    let infos = infos(process)?;
    let maps = infos
        .iter()
        .filter(|info| field(info, "map_type").is_some());
    Ok(maps.filter_map(|info| number(info, "memlock")).sum())
}

/// What `/proc` says of each descriptor.
fn infos(process: u32) -> Result<Vec<String>> {
    let mut infos = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process}/fdinfo"))? {
        // A descriptor that is closed meanwhile.
        infos.extend(fs::read_to_string(entry?.path()));
    }
    Ok(infos)
}

/// Joins what is said of programs (their runs) and of links (where they are attached, which is what
/// they are called).
/// <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/syscall.c> (`bpf_prog_show_fdinfo`,
/// `bpf_link_show_fdinfo`)
fn joined(infos: &[String]) -> Programs {
    let names: BTreeMap<u64, String> = infos
        .iter()
        .filter_map(|info| Some((number(info, "prog_id")?, field(info, "tp_name")?)))
        .collect();
    let mut programs = Programs::new();
    for info in infos {
        if let (Some(count), Some(nanoseconds)) =
            (number(info, "run_cnt"), number(info, "run_time_ns"))
            && let Some(name) = number(info, "prog_id").and_then(|id| names.get(&id))
        {
            let runs = programs.entry(name.clone()).or_default();
            // A program and its stand-in are called together, and only one of them works.
            runs.count = runs.count.max(count);
            runs.nanoseconds += nanoseconds;
        }
    }
    programs
}

fn hook(info: &str) -> Option<Hook> {
    let name = field(info, "tp_name")?;
    match field(info, "link_type")?.as_str() {
        "raw_tracepoint" => Some(Hook::Raw(name)),
        "perf" => Some(Hook::Syscall(name)),
        _ => None,
    }
}

fn field(info: &str, name: &str) -> Option<String> {
    let mut lines = info.lines().filter_map(|line| line.split_once(":\t"));
    lines
        .find(|&(key, _)| key == name)
        .map(|(_, value)| value.to_owned())
}

fn number(info: &str, name: &str) -> Option<u64> {
    field(info, name)?.parse().ok()
}

/// The kernel times eBPF programs until this is dropped; a Ctrl-C meanwhile leaves it timing.
pub(super) struct Switch(String);

impl Switch {
    pub(super) fn on() -> Result<Self> {
        let before = fs::read_to_string(STATISTICS)?;
        fs::write(STATISTICS, "1").with_context(|| format!("cannot write {STATISTICS}"))?;
        Ok(Self(before))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if let Err(error) = fs::write(STATISTICS, &self.0) {
            eprintln!(
                "xtask: {STATISTICS} is still 1, it was {}: {error}",
                self.0.trim_end()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: &str = "pos:\t0\nlink_type:\tperf\nprog_id:\t7\ntp_name:\tsys_exit_bind\n";

    #[test]
    fn a_program_is_called_after_where_its_link_attaches_it() {
        let infos = [
            "pos:\t0\nprog_id:\t7\nrun_time_ns:\t300\nrun_cnt:\t3\n",
            LINK,
            // Not attached.
            "pos:\t0\nprog_id:\t8\nrun_time_ns:\t0\nrun_cnt:\t0\n",
            "pos:\t0\nflags:\t02\n",
        ];
        let runs = Runs {
            count: 3,
            nanoseconds: 300,
        };
        let found = joined(&infos.map(str::to_owned));
        assert_eq!(found, [("sys_exit_bind".to_owned(), runs)].into());
    }

    #[test]
    fn a_program_and_its_stand_in_are_one() {
        let program = |id: u64, time: u64, count: u64| {
            format!("prog_id:\t{id}\nrun_time_ns:\t{time}\nrun_cnt:\t{count}\n")
        };
        let link = |id: u64| format!("link_type:\traw_tracepoint\nprog_id:\t{id}\ntp_name:\ttp\n");
        let found = joined(&[program(1, 900, 3), link(1), program(2, 60, 4), link(2)]);
        let runs = Runs {
            count: 4,
            nanoseconds: 960,
        };
        assert_eq!(found, [("tp".to_owned(), runs)].into());
    }

    #[test]
    fn a_link_says_where_it_leads() {
        assert_eq!(hook(LINK), Some(Hook::Syscall("sys_exit_bind".to_owned())));
        let raw = "link_type:\traw_tracepoint\nprog_id:\t9\ntp_name:\tkfree_skb\n";
        assert_eq!(hook(raw), Some(Hook::Raw("kfree_skb".to_owned())));
        assert_eq!(hook("pos:\t0\nflags:\t02\n"), None);
    }
}
