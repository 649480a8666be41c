//! What this host answers.

use std::sync::Arc;
use std::time::Duration;

use super::question::Question;
use crate::event::{Acceptor, Fact};
use crate::host::descriptors::Table;
use crate::host::{acceptor, holders, nearby, netns, ports, process, workload};
use crate::session::{millis, monotonic};

/// Asks this host.
pub(super) fn look(question: &Question, happened: u64) -> Vec<Fact> {
    match *question {
        Question::Holdings { pid } => {
            let table = Table::read(pid).ok();
            let holdings = table.map(|table| Fact::Holdings(Arc::new(table.holdings())));
            holdings.into_iter().collect()
        }
        Question::AcceptQueue {
            pid,
            fd,
            inode,
            netns,
        } => accept_queue(pid, fd, inode, netns, happened),
        Question::Nearby { netns, meant } => {
            let found = nearby::listeners(netns, meant, nearby::BUDGET);
            found
                .map(|found| Fact::Nearby(found.into()))
                .into_iter()
                .collect()
        }
        Question::Ports { netns, pid, peer } => {
            let ports = ports::ephemeral(&netns::numbered(netns, pid), peer);
            ports.map(Fact::Ports).into_iter().collect()
        }
        Question::PortHolder { netns, pid, wanted } => {
            let holder = ports::holder(&netns::numbered(netns, pid), wanted);
            let holder = holder.map(|holder| Fact::PortHolder(Arc::new(holder)));
            holder.into_iter().collect()
        }
        Question::Workload { pid } => {
            let workload = Table::read(pid).ok().and_then(|table| workload::of(&table));
            let workload = workload.map(|it| Fact::Workload(Arc::new(it)));
            workload.into_iter().collect()
        }
        Question::OtherEnd {
            netns,
            pid,
            local,
            peer,
        } => {
            let namespace = netns::numbered(netns, pid);
            let found = nearby::other_end(&namespace, (local, peer), nearby::BUDGET);
            let found = found.map(|process| Fact::OtherEnd(Arc::new(process)));
            found.into_iter().collect()
        }
    }
}

fn accept_queue(
    pid: u32,
    fd: Option<i32>,
    inode: Option<u64>,
    netns: u32,
    happened: u64,
) -> Vec<Fact> {
    let mut facts = Vec::new();
    facts.extend(acceptor(pid, fd, inode, happened).map(|it| Fact::Acceptor(Arc::new(it))));
    let namespace = netns::numbered(netns, Some(pid));
    facts.extend(acceptor::somaxconn(&namespace).map(Fact::Somaxconn));
    if is_short_of_descriptors(pid)
        && let Ok(table) = Table::read(pid)
    {
        facts.push(Fact::Holdings(Arc::new(table.holdings())));
    }
    facts
}

/// What a thread does is soon past: the owner is looked at before it is found out who else holds the
/// listener.
fn acceptor(pid: u32, fd: Option<i32>, inode: Option<u64>, happened: u64) -> Option<Acceptor> {
    let look = |holders: &acceptor::Holders| {
        let age = Duration::from_nanos(monotonic().saturating_sub(happened));
        acceptor::look(holders, millis(age))
    };
    let holds = |fd: &i32| inode.is_none_or(|inode| holders::verify(pid, *fd, inode));
    let fd = fd.filter(holds);
    let mut known = acceptor::Holders::from([(pid, fd.into_iter().collect())]);
    let first = fd.and_then(|_| look(&known));
    let Some(inode) = inode else {
        return first.or_else(|| look(&known));
    };
    for holder in holders::find(inode).0 {
        let fds = known.entry(holder.pid).or_default();
        if !fds.contains(&holder.fd) {
            fds.push(holder.fd);
        }
    }
    // An owner that gave it away is no holder any more.
    if known.values().any(|fds| !fds.is_empty()) {
        known.retain(|_, fds| !fds.is_empty());
    }
    if first.is_some() && known.len() == 1 {
        return first;
    }
    look(&known)
}

/// Nine tenths of those allowed are open.
fn is_short_of_descriptors(pid: u32) -> bool {
    let limit = process::open_files_limit(pid);
    process::open_files(pid)
        .ok()
        .zip(limit)
        .is_some_and(|(open, limit)| u128::from(open) * 10 >= u128::from(limit) * 9)
}
