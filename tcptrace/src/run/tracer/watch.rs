//! What is looked after while a trace runs: losses, connections stuck in CLOSE_WAIT, processes that
//! are gone, queues of listeners, and the kernel half's own tables.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use tcptrace_common::event::{hook, stat};

use super::live::Upkeep;
use super::reload::Reload;
use super::service::Service;
use super::targets::Targets;
use super::top::Feed;
use crate::cli::Trace;
use crate::config::{self, Filters};
use crate::event::{Event, Kind, Loss, Owner, State, Summary};
use crate::host::listen_queues::{self, ListenQueues};
use crate::host::{netns, process, sockets};
use crate::kernel::load::{Kernel, KernelLog};
use crate::kernel::maps::FilterValues;
use crate::session::{Session, monotonic};
use crate::sink::text::{self, printable};
use crate::sink::{Delivery, Error, Exports, Messages, News};
use crate::top::Shared;

/// The kernel half, and what is known of it so far.
pub(super) struct Watch {
    /// The counts of the whole run, once it is over.
    pub(super) summary: Summary,
    kernel: Kernel,
    targets: Targets,
    log: Option<KernelLog>,
    /// Of standard output and of the output file, in the order in which they end.
    local: Vec<Delivery>,
    exports: Exports,
    messages: Messages,
    lost: [u64; hook::COUNT as usize],
    stats: [u64; stat::COUNT as usize],
    missed: HashMap<String, u64>,
    malformed: u64,
    unseen: u64,
    /// Connections in CLOSE_WAIT, by their socket and its entry: those that are older have no entry.
    waiting: HashMap<(u64, u64), Waiting>,
    /// When they are looked at next; `None`: at once.
    close_waits_due: Option<Instant>,
    close_wait_after: Duration,
    /// `None` when nobody asked.
    queues: Option<ListenQueues>,
    filters: Filters,
    cgroups: Vec<String>,
    /// Those named that are not there yet, where they are waited for.
    awaited: Vec<String>,
    /// Processes are traced by number, so the trace ends with the last of them.
    by_pid: bool,
    /// None of them is left.
    gone: bool,
    chores: Instant,
    service: Option<Service>,
    /// `None` without a file of configuration.
    reload: Option<Reload>,
    /// `None` without a screen.
    feed: Option<Feed>,
}

/// A connection is stuck in CLOSE_WAIT after this long even when every entry is shown.
const STUCK: Duration = Duration::from_secs(1);
/// It is told of again when it is this many times as old.
const AGAIN: u32 = 10;
/// To look at all of them takes no more than this part of the time: thousands take milliseconds.
const SELDOM: u32 = 100;
/// Connections told of in one round; the others follow in the next.
const ROUND: usize = 1000;
/// What costs more than reading a counter is done this often.
const CHORES: Duration = Duration::from_secs(1);
/// How long the end of a traced process's connection is remembered for its other end.
const RETENTION: Duration = Duration::from_mins(1);

/// A connection in CLOSE_WAIT at the last look.
#[derive(Clone, Copy)]
struct Waiting {
    age: Duration,
    /// The age at which it is told of.
    next: Duration,
}

const HOOKS: [&str; hook::COUNT as usize] = [
    "inet_sock_set_state",
    "tcp_send_reset",
    "tcp_receive_reset",
    "tcp_destroy_sock",
    "sock_send_length",
    "sock_recv_length",
    "tcp_retransmit_skb",
    "consume_skb",
    "kfree_skb",
    "sched_process_fork",
    "sys_exit_accept4",
    "sys_exit_socket",
    "sys_exit_connect",
    "sys_exit_bind",
    "sys_exit",
    "sys_exit_shutdown",
    "tcp_sendmsg",
    "tcp_recvmsg",
    "sys_exit",
    "tcp_v4_send_reset",
    "tcp_conn_request",
    "tcp_v4_syn_recv_sock",
];

/// Tables that can be full, and what is lost then.
const TABLES: [(u32, &str); 6] = [
    (stat::SOCKETS_FULL, "sockets"),
    (stat::LISTENERS_FULL, "listeners"),
    (stat::FLOWS_FULL, "flows"),
    (stat::CLOSE_WAITS_FULL, "close_waits"),
    (stat::STACKS_FULL, "stacks"),
    (stat::CANDIDATES_FULL, "candidates"),
];

impl Watch {
    /// `polls_accept_queues` where no hook tells of lost connections.
    pub(super) fn new(
        args: &Trace,
        (mut kernel, targets): (Kernel, Targets),
        ((local, exports), messages): ((Vec<Delivery>, Exports), Messages),
        filters: Filters,
        session: &Session,
        polls_accept_queues: bool,
    ) -> Result<Self> {
        let log = args.verbose.then(|| {
            let messages = messages.clone();
            kernel.take_log(move |said| messages.warn(format_args!("kernel half: {said}")))
        });
        let log = log.transpose()?;
        let polls_accept_queues = polls_accept_queues && session.wants("accept_queue.overflow");
        let queues = (polls_accept_queues || session.wants("syn_queue.overflow"))
            .then(|| queues(args, &filters, polls_accept_queues))
            .transpose()?;
        Ok(Self {
            summary: Summary::default(),
            kernel,
            targets,
            log,
            local,
            exports,
            messages,
            lost: [0; hook::COUNT as usize],
            stats: [0; stat::COUNT as usize],
            missed: HashMap::new(),
            malformed: 0,
            unseen: 0,
            waiting: HashMap::new(),
            close_waits_due: None,
            close_wait_after: args.close_wait_after.max(STUCK),
            queues,
            filters,
            cgroups: args.filter.cgroup.clone(),
            awaited: awaited(args),
            by_pid: !args.filter.pid.is_empty(),
            gone: false,
            chores: Instant::now(),
            service: None,
            reload: None,
            feed: None,
        })
    }

    /// Who is told how it goes, and the configuration that may change.
    pub(super) fn serve(&mut self, service: Service, reload: Option<Reload>) {
        self.service = Some(service);
        self.reload = reload;
    }

    /// Tells the screen of what is looked at.
    pub(super) fn feed(&mut self, shared: Shared) -> Result<()> {
        self.feed = Some(Feed::new(shared, &self.filters)?);
        Ok(())
    }

    /// Events are traced.
    pub(super) fn begin(&self, session: &Session) {
        if let Some(metrics) = session.metrics() {
            // A first loss is seen to grow from 0 only where the 0 was scraped.
            let hooks = HOOKS.map(|hook| (hook, "ring_full"));
            let tables = TABLES.map(|(_, table)| (table, "table_full"));
            for (stage, reason) in hooks.into_iter().chain(tables) {
                metrics.lost(stage, reason, 0);
            }
            self.count_deliveries(session);
            metrics.set_ready(true);
        }
        if let Some(service) = &self.service {
            service.ready("tracing");
        }
    }

    /// No more events are taken.
    pub(super) fn end(&self, session: &Session) {
        if let Some(metrics) = session.metrics() {
            metrics.set_ready(false);
        }
        if let Some(service) = &self.service {
            service.stopping();
        }
    }

    /// Makes the changes in the configuration. The new values of a filter come before the old ones go,
    /// so that no event of both falls between.
    fn change(&mut self, session: &mut Session) -> Result<Vec<String>> {
        let Some(reload) = &mut self.reload else {
            return Ok(Vec::new());
        };
        let mut change = reload.read(session.selection(), &self.filters)?;
        if self.by_pid {
            self.targets.check(&change.trace.filter.pid)?;
            self.targets
                .change(&change.trace.filter.pid, &mut self.kernel)?;
            change.filters.values.pids = self.targets.pids();
        }
        self.kernel.set_filters(&change.filters.values)?;
        // Cgroups made below those named since are in the map too.
        self.filters.values.cgroups = config::cgroups_there(&self.cgroups).unwrap_or_default();
        let gone = self.filters.values.without(&change.filters.values);
        self.kernel.unset_filters(&gone)?;
        self.filters = change.filters.clone();
        self.cgroups.clone_from(&change.trace.filter.cgroup);
        self.awaited = awaited(&change.trace);
        self.close_wait_after = change.trace.close_wait_after.max(STUCK);
        session.select(change.selection.clone());
        session.limit_rate(change.trace.rate_limit);
        let keys = change.keys.clone();
        reload.done(change);
        Ok(keys)
    }

    /// Ends all hooks. What the ring still holds stays.
    pub(super) fn detach(&mut self) {
        self.kernel.detach();
    }

    /// Entries into CLOSE_WAIT, also those that passed quickly.
    pub(super) fn close_waits(&self) -> u64 {
        self.stats[stat::CLOSE_WAITS as usize]
    }

    /// Tells what was lost since the last look.
    pub(super) fn account(&mut self, session: &mut Session) -> Result<()> {
        if let Some(log) = &mut self.log {
            log.flush();
        }
        let lost = self.kernel.lost()?;
        for ((hook, now), before) in HOOKS.into_iter().zip(lost).zip(self.lost) {
            tell(session, hook.to_owned(), now - before, "ring_full")?;
        }
        self.lost = lost;
        let stats = self.kernel.stats()?;
        for (index, table) in TABLES {
            let grown = stats[index as usize] - self.stats[index as usize];
            tell(session, table.to_owned(), grown, "table_full")?;
        }
        self.stats = stats;
        let malformed = session.tally().malformed;
        tell(
            session,
            "records".to_owned(),
            malformed - self.malformed,
            "malformed",
        )?;
        self.malformed = malformed;
        // What changed unseen is noticed at the socket's next change. What the kernel says it skipped is
        // told below.
        let missed = self.kernel.recursion_misses()?;
        let said = missed.iter().find(|(program, _)| program == HOOKS[0]);
        let unseen = stats[stat::CHANGES_UNSEEN as usize]
            .saturating_sub(said.map_or(0, |&(_, missed)| missed))
            .max(self.unseen);
        let grown = unseen - self.unseen;
        tell(session, HOOKS[0].to_owned(), grown, "unseen")?;
        self.unseen = unseen;
        for (program, now) in missed {
            let before = self.missed.insert(program.clone(), now).unwrap_or_default();
            tell(session, program, now - before, "recursion")?;
        }
        Ok(())
    }

    /// Tells what outputs lost, and to a person how exports go.
    fn tell_of_deliveries(&mut self, session: &mut Session) -> Result<()> {
        self.check_local()?;
        self.exports.check()?;
        self.count_deliveries(session);
        let now = Instant::now();
        let local = self.local.iter_mut();
        let dropped = local.flat_map(|it| it.dropped(now, false));
        for dropped in dropped.chain(self.exports.dropped(now, false)) {
            session.note(Kind::ExportDropped(dropped))?;
        }
        let local = self.local.iter_mut().filter_map(Delivery::news);
        for news in local.chain(self.exports.news()) {
            match news {
                News::Failing(..) => self.messages.warn(news),
                News::Delivering(_) => self.messages.say(news),
            }
        }
        Ok(())
    }

    fn count_deliveries(&self, session: &Session) {
        let Some(metrics) = session.metrics() else {
            return;
        };
        let local = self.local.iter().map(Delivery::account);
        for (name, account) in self.exports.accounts().chain(local) {
            metrics.exported(name, &account);
        }
    }

    /// Delivers what waits, and tells what became of all records of each export, and of those of standard
    /// output and of the output file where it did not take all.
    pub(super) async fn close_deliveries(&mut self, session: &mut Session) -> Result<()> {
        self.exports.close().await;
        for (name, account) in self.exports.accounts() {
            self.messages
                .say(format_args!("--export {name}: {account}"));
        }
        for dropped in self.exports.dropped(Instant::now(), true) {
            session.note(Kind::ExportDropped(dropped))?;
        }
        for local in &mut self.local {
            session.flush()?;
            local.close().await;
            for dropped in local.dropped(Instant::now(), true) {
                session.note(Kind::ExportDropped(dropped))?;
            }
            let (name, account) = local.account();
            if account.lost.total() > 0 {
                self.messages.say(format_args!("{name}: {account}"));
            }
        }
        self.count_deliveries(session);
        self.check_local()
    }

    fn check_local(&self) -> Result<()> {
        self.local.iter().try_for_each(Delivery::check)
    }

    /// Records that an output did not get.
    pub(super) fn not_delivered(&self) -> u64 {
        let local = self.local.iter().map(|it| it.account().1.lost.total());
        self.exports.lost() + local.sum::<u64>()
    }

    fn tell_stuck(&mut self, session: &mut Session) -> Result<()> {
        let is_due = self.close_waits_due.is_none_or(|due| Instant::now() >= due);
        let begun = Instant::now();
        let entries = is_due.then(|| self.kernel.close_waits()).transpose()?;
        if let Some(feed) = &mut self.feed {
            feed.tend(&self.kernel, session, &self.filters, entries.as_deref())?;
        }
        let Some(entries) = entries else {
            return Ok(());
        };
        self.close_waits_due = Some(begun + begun.elapsed() * SELDOM);
        let now = monotonic();
        let mut due = Vec::new();
        let mut still = HashMap::with_capacity(entries.len());
        for (address, entry) in entries {
            let id = (address, entry.id);
            let age = Duration::from_nanos(now.saturating_sub(entry.since));
            let known = self.waiting.remove(&id);
            let mut next = known.map_or(self.close_wait_after, |known| known.next);
            // What was there at the start was told of then.
            if entry.older == 0 && age >= next && due.len() < ROUND {
                next = age.max(next) * AGAIN;
                due.push((address, entry));
            }
            still.insert(id, Waiting { age, next });
        }
        // Those that are not waiting any more are forgotten.
        let left = std::mem::replace(&mut self.waiting, still);
        if let Some(metrics) = session.metrics() {
            let ages = self.waiting.values().map(|it| it.age);
            metrics.close_waits(ages, left.into_values().map(|it| it.age));
        }
        let mut events = Vec::with_capacity(due.len());
        for (address, entry) in due {
            let known = self.kernel.sock(address)?;
            events.push(
                session
                    .decoder
                    .stuck((address, &entry), known.as_ref(), now),
            );
        }
        look_closer(&mut events);
        for mut event in events {
            event.id = session.next_id();
            session.confirm(&mut event, Duration::ZERO);
            session.publish(event, Duration::ZERO)?;
        }
        Ok(())
    }

    /// Handshakes that found no room since the last look.
    pub(super) fn tell_full_queues(&mut self, session: &mut Session) -> Result<()> {
        let Some(queues) = &mut self.queues else {
            return Ok(());
        };
        for full in queues.poll(listen_queues::BUDGET) {
            let mut event = Event {
                id: session.next_id(),
                time: session.decoder.wall(monotonic()),
                caused_by: None,
                socket: Some(full.socket),
                owner: Owner::default(),
                actor: None,
                facts: Vec::new(),
                kind: full.kind,
            };
            session.confirm(&mut event, Duration::ZERO);
            let flow = event.socket.as_ref().map(|socket| &socket.flow);
            let pid = event.owner.process.as_ref().map(|owner| owner.pid);
            if self.filters.include(flow, pid) {
                session.publish(event, Duration::ZERO)?;
            }
        }
        Ok(())
    }

    /// Tells who is traced now.
    fn tell_of_targets(&mut self, session: &mut Session) -> Result<()> {
        let news = self.targets.news();
        if news.is_empty() {
            return Ok(());
        }
        self.filters.values.pids = self.targets.pids();
        for (process, target) in news {
            self.messages.say(text::turn(&process, &target));
            session.note_of(Owner::exact(process), Kind::TargetChanged(target))?;
        }
        Ok(())
    }

    /// New cgroups below those named, too; that one of those named is gone is no failure.
    fn look_for_cgroups(&mut self) -> Result<()> {
        self.kernel.set_filters(&FilterValues {
            cgroups: config::cgroups_there(&self.cgroups).unwrap_or_default(),
            ..FilterValues::default()
        })
    }

    /// A number of a process that is gone may be given to another.
    fn forget_the_gone(&mut self) -> Result<()> {
        if !self.by_pid {
            return Ok(());
        }
        let pids = self.kernel.pids()?;
        // The sockets of the dying are closed after the process can no longer be seen, but long
        // before the next look.
        let (alive, gone): (Vec<_>, Vec<_>) =
            pids.into_iter().partition(|&pid| process::alive(pid));
        for pid in &gone {
            self.kernel.forget_pid(*pid)?;
        }
        self.gone = alive.is_empty() && !self.targets.awaits();
        self.targets.tend(&mut self.kernel)
    }
}

impl Upkeep for Watch {
    fn tend(&mut self, session: &mut Session) -> Result<()> {
        self.account(session)?;
        self.tell_of_deliveries(session)?;
        if let Some(service) = &mut self.service {
            let tally = session.tally();
            service.tend(|| format!("{} events printed, {} lost", tally.printed, tally.lost));
        }
        self.tell_stuck(session)?;
        self.kernel.tend_gate()?;
        if self.chores.elapsed() >= CHORES {
            self.chores = Instant::now();
            self.forget_the_gone()?;
            self.tell_full_queues(session)?;
            let retention = u64::try_from(RETENTION.as_nanos())?;
            self.kernel
                .sweep_flows(monotonic().saturating_sub(retention))?;
            if !self.cgroups.is_empty() {
                // New ones below those named; that one of those named is gone is no failure.
                self.look_for_cgroups()?;
            }
        }
        Ok(())
    }

    /// A file that is wrong changes nothing: what is traced is worth more than what was asked for
    /// since.
    fn reload(&mut self, session: &mut Session) -> Result<()> {
        if let Some(service) = &self.service {
            service.reloading();
        }
        session.reopen()?;
        let changed = self.change(session);
        let status = match &changed {
            Ok(keys) if keys.is_empty() => "nothing has changed".to_owned(),
            Ok(keys) => format!("changed: {}", keys.join(", ")),
            Err(error) => format!("nothing was changed: {error:#}"),
        };
        // A line of its own in what the service manager is told would be an order.
        let status = printable(&status).to_string();
        match (&self.reload, &changed) {
            (None, _) => {}
            (_, Ok(_)) => self.messages.say(format_args!("configuration: {status}")),
            (_, Err(_)) => self.messages.warn(format_args!("configuration: {status}")),
        }
        if let Some(service) = &self.service {
            service.ready(&format!("configuration: {status}"));
        }
        Ok(())
    }

    fn look(&mut self, session: &mut Session) -> Result<()> {
        self.targets.look(&mut self.kernel)?;
        self.tell_of_targets(session)?;
        let there = |name: &String| config::cgroups(std::slice::from_ref(name)).is_ok();
        let came: Vec<_> = self.awaited.extract_if(.., |name| there(name)).collect();
        for name in came {
            self.look_for_cgroups()?;
            self.messages.say(format_args!("--cgroup {name} is there"));
        }
        Ok(())
    }

    fn awaits(&self) -> bool {
        self.targets.awaits() || !self.awaited.is_empty()
    }

    fn admit(&mut self, event: &Event) -> Result<bool> {
        self.targets.admit(event, &mut self.kernel)
    }

    fn is_over(&self) -> bool {
        self.gone
    }
}

/// Cgroups that are waited for.
fn awaited(args: &Trace) -> Vec<String> {
    let names = args.filter.cgroup.iter().filter(|_| args.wait);
    let absent = names.filter(|name| config::cgroups(std::slice::from_ref(name)).is_err());
    absent.cloned().collect()
}

/// The namespaces named by a filter always, others only where there is no such filter.
fn queues(args: &Trace, filters: &Filters, accept_queues: bool) -> Result<ListenQueues> {
    let named = args.filter.netns.iter().map(|name| netns::named(name));
    let mut named = named.collect::<Result<Vec<_>>>()?;
    if named.is_empty() {
        let pids = filters.values.pids.iter();
        named.extend(pids.filter_map(|&pid| netns::of(pid).ok()));
    }
    let only_named = !named.is_empty();
    Ok(ListenQueues::new(named, only_named, accept_queues))
}

fn tell(
    session: &mut Session,
    hook: String,
    count: u64,
    reason: &'static str,
) -> Result<(), Error> {
    if count == 0 {
        Ok(())
    } else {
        session.lost(Loss {
            hook,
            count,
            reason,
        })
    }
}

/// Completes connections in CLOSE_WAIT with what only the socket itself can say now: its inode, the
/// bytes nobody read, whether the end of the stream was read.
fn look_closer(events: &mut [Event]) {
    let mut netns: Vec<u32> = events
        .iter()
        .filter_map(|event| event.socket.as_ref().map(|socket| socket.flow.netns))
        .collect();
    netns.sort_unstable();
    netns.dedup();
    if netns.is_empty() {
        return;
    }
    let Ok(namespaces) = netns::list() else {
        return;
    };
    for namespace in namespaces
        .list
        .iter()
        .filter(|it| netns.binary_search(&it.inode).is_ok())
    {
        let look = || {
            let mut found = HashMap::new();
            let dump = sockets::dump(&[State::CloseWait], |socket| {
                found.insert((socket.flow.local, socket.flow.peer), socket);
            });
            dump.map(|_| found)
        };
        // A namespace that cannot be entered leaves its events as they are.
        let Ok(Ok(found)) = netns::enter(namespace, look) else {
            continue;
        };
        for socket in events.iter_mut().filter_map(|event| event.socket.as_mut()) {
            if socket.flow.netns == namespace.inode
                && let Some(there) = found.get(&(socket.flow.local, socket.flow.peer))
            {
                socket.inode = (there.inode != 0).then_some(there.inode);
                socket.unread = there.unread();
                socket.eof_read = there.eof_read();
            }
        }
    }
}
