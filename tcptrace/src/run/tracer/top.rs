//! What the screen of `top` shows beside events: what the kernel half remembers now, and what a look at the
//! host says, once a second each.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::time::ClockId;
use tcptrace_common::event as wire;

use crate::config::Filters;
use crate::event::{Comm, Flow, State, Timestamp};
use crate::host::netns::{self, Namespace};
use crate::host::{process, sockets};
use crate::kernel::load::Kernel;
use crate::session::{Session, clock, monotonic};
use crate::top::{Accepting, Descriptors, Listening, Looked, Pid, Shared, Waiting};

/// How often it is looked.
const PERIOD: Duration = Duration::from_secs(1);
/// How often it is looked which namespaces there are.
const LISTED: Duration = Duration::from_secs(10);
/// What a round may take for namespaces other than the first.
const BUDGET: Duration = Duration::from_millis(20);
/// Owners not known yet that are looked for in one round.
const UNKNOWN: usize = 256;
/// Decisions of the filters remembered.
const DECISIONS: usize = 4096;

/// Feeds a view.
#[derive(Debug)]
pub(super) struct Feed {
    shared: Shared,
    /// Connections in CLOSE_WAIT, by their socket and its entry: those that are older have no entry.
    waiting: HashMap<(u64, u64), Waiting>,
    /// Whether the filters include this listener of this process.
    included: HashMap<(Flow, Option<u32>), bool>,
    /// When it was last looked at connections in CLOSE_WAIT, and at listeners.
    remembered: Option<Instant>,
    last: Option<Instant>,
    /// Dropped, it ends the looks.
    _looks: Sender<()>,
}

impl Feed {
    /// Begins to look at the host.
    pub(super) fn new(shared: Shared, filters: &Filters) -> Result<Self> {
        let (looks, ended) = mpsc::channel();
        let (of_thread, filters) = (shared.clone(), filters.clone());
        let look = move || Looks::new(filters).run(&of_thread, &ended);
        thread::Builder::new()
            .name("looks".into())
            .spawn(look)
            .context("no thread to look at the host")?;
        Ok(Self {
            shared,
            waiting: HashMap::new(),
            included: HashMap::new(),
            remembered: None,
            last: None,
            _looks: looks,
        })
    }

    /// Time has passed; these are in CLOSE_WAIT now, where it was looked.
    pub(super) fn tend(
        &mut self,
        kernel: &Kernel,
        session: &Session,
        filters: &Filters,
        close_waits: Option<&[(u64, wire::CloseWait)]>,
    ) -> Result<()> {
        if let Some(close_waits) = close_waits
            && self.remembered.is_none_or(|last| last.elapsed() >= PERIOD)
        {
            self.remembered = Some(Instant::now());
            self.remember(kernel, session, close_waits)?;
            let waiting = self.waiting.values().copied();
            self.shared.lock().close_waits(waiting);
        }
        let now = Timestamp(clock(ClockId::CLOCK_REALTIME));
        if self.last.is_some_and(|last| last.elapsed() < PERIOD) {
            self.shared.lock().tick(now);
            return Ok(());
        }
        self.last = Some(Instant::now());
        let listeners = self.listeners(kernel, session, filters)?;
        let mut view = self.shared.lock();
        view.accepting(&listeners, now);
        view.tick(now);
        Ok(())
    }

    fn remember(
        &mut self,
        kernel: &Kernel,
        session: &Session,
        close_waits: &[(u64, wire::CloseWait)],
    ) -> Result<()> {
        let now = monotonic();
        let mut looked_again = 0;
        let mut still = HashMap::with_capacity(close_waits.len());
        for &(address, ref entry) in close_waits {
            let known = self.waiting.remove(&(address, entry.id));
            let waiting = match known {
                Some(known) if known.owner.0.pid != 0 || looked_again >= UNKNOWN => known,
                known => {
                    looked_again += usize::from(known.is_some());
                    let known = kernel.sock(address)?;
                    let event = session.decoder.stuck((address, entry), known.as_ref(), now);
                    let owner = event.owner.process.as_ref();
                    Waiting {
                        owner: (
                            Pid::live(owner.map_or(0, |it| it.pid)),
                            owner.map_or(Comm::default(), |it| it.comm),
                        ),
                        flow: event.socket.map(|it| it.flow).unwrap_or_default(),
                        since: session.decoder.wall(entry.since),
                        older: entry.older != 0,
                        count: 1,
                    }
                }
            };
            still.insert((address, entry.id), waiting);
        }
        self.waiting = still;
        Ok(())
    }

    fn listeners(
        &mut self,
        kernel: &Kernel,
        session: &Session,
        filters: &Filters,
    ) -> Result<Vec<Accepting>> {
        if self.included.len() > DECISIONS {
            self.included.clear();
        }
        let mut listeners = Vec::new();
        for (key, socket) in kernel.listeners()? {
            let known = kernel.sock(socket)?;
            let listener = session.decoder.listener(&key, known.as_ref());
            let owner = listener.owner.process.as_ref();
            let pid = owner.map(|it| it.pid);
            let included = self.included.entry((listener.flow, pid));
            if !*included.or_insert_with(|| filters.include(Some(&listener.flow), pid)) {
                continue;
            }
            listeners.push(Accepting {
                netns: listener.flow.netns,
                address: listener.flow.local,
                accepted: listener.accepted,
                last_accept: listener.last_accept,
                backlog: listener.backlog,
                owner: owner.map(|it| (it.pid, it.comm)),
            });
        }
        Ok(listeners)
    }
}

/// Looks at the host, on a thread of its own: namespaces take their time.
struct Looks {
    filters: Filters,
    namespaces: Vec<Namespace>,
    /// The next one to look into, after the first.
    next: usize,
    listed: Option<Instant>,
    /// Limits of descriptors, which change rarely.
    limits: HashMap<u32, u64>,
}

impl Looks {
    fn new(filters: Filters) -> Self {
        Self {
            filters,
            namespaces: Vec::new(),
            next: 0,
            listed: None,
            limits: HashMap::new(),
        }
    }

    fn run(mut self, shared: &Shared, ended: &Receiver<()>) {
        loop {
            let asked = shared.lock().asks_for();
            let looked = self.look(&asked);
            shared.lock().look(&looked);
            if ended.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    fn look(&mut self, asked: &[u32]) -> Looked {
        if self.listed.is_none_or(|listed| listed.elapsed() >= LISTED) {
            self.listed = Some(Instant::now());
            self.limits.clear();
            // As long as it cannot be read, those known stay.
            if let Ok(listed) = netns::list() {
                self.namespaces = listed.list;
                self.namespaces
                    .retain(|it| self.filters.may_be_in(it.inode));
            }
        }
        let mut looked = Looked {
            only_known: self.filters.by_owner(),
            ..Looked::default()
        };
        let begun = Instant::now();
        for nth in 0..self.namespaces.len() {
            // The first is our own, or the one asked for.
            let place = match nth {
                0 => 0,
                _ if begun.elapsed() >= BUDGET => break,
                _ => {
                    self.next = self.next % (self.namespaces.len() - 1) + 1;
                    self.next
                }
            };
            self.look_into(place, &mut looked);
        }
        looked.descriptors = asked
            .iter()
            .map(|&pid| (pid, self.descriptors(pid)))
            .collect();
        looked
    }

    fn look_into(&self, place: usize, looked: &mut Looked) {
        let namespace = &self.namespaces[place];
        let (filters, mut listeners) = (&self.filters, Vec::new());
        let seen = netns::enter(namespace, || {
            sockets::dump(&[State::Listen], |socket| {
                if filters.include_flow(&socket.flow) {
                    listeners.push(Listening {
                        netns: socket.flow.netns,
                        address: socket.flow.local,
                        len: socket.recv_queue,
                        max: socket.accept_queue_limit(),
                    });
                }
            })
        });
        // What cannot be looked into stays as it was known.
        if let Ok(Ok(dump)) = seen {
            looked.listeners.extend(listeners);
            if !dump.interrupted {
                looked.namespaces.insert(namespace.inode);
            }
        }
    }

    fn descriptors(&mut self, pid: u32) -> Option<Descriptors> {
        let open = process::open_files(pid).ok()?;
        if let Some(&limit) = self.limits.get(&pid) {
            return Some(Descriptors { open, limit });
        }
        let limit = process::open_files_limit(pid)?;
        self.limits.insert(pid, limit);
        Some(Descriptors { open, limit })
    }
}
