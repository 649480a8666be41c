//! The processes that `--pid` means: until they end, and with `--follow` and `--wait` from one to the next.
//!
//! The kernel half traces a process by its number and gives the number up when the kernel gives it to
//! another. With `--follow` it also hands over what candidates do, processes that begin under a name the
//! successor may begin under; which of them is one is decided here, before anything of it is printed.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cli::Trace;
use crate::config;
use crate::event::{Comm, Event, Process, Target, Turn};
use crate::host::identity::Identity;
use crate::host::process;
use crate::kernel::load::Kernel;

/// How often it is looked who has ended and who has come.
pub(super) const LOOK: Duration = Duration::from_millis(20);
/// Others that are alike and come this soon after the first successor are followed too.
const SETTLING: Duration = Duration::from_secs(1);
/// How long events of one that is no successor may still be in the ring.
const IN_THE_RING: Duration = Duration::from_secs(1);
/// Processes that stand by at a time.
const HEIRS: usize = 64;
/// Names a successor may begin under, of all processes: some change theirs again and again.
const NAMES: usize = 256;
/// What a look may take for candidates; the others are judged at the next.
const BUDGET: Duration = Duration::from_millis(2);

/// What is told of a process.
pub(super) type News = (Process, Target);

/// The processes asked for.
#[derive(Debug)]
pub(super) struct Targets {
    list: Vec<Followed>,
    follow: bool,
    wait: bool,
    children: bool,
    names: HashSet<Comm>,
    heirs: HashMap<u32, Heir>,
    /// Candidates that are no successors, and since when that is known.
    dismissed: HashMap<u32, Instant>,
    /// Candidates that ended before anything was seen of them.
    unseen: HashMap<u32, Instant>,
    news: Vec<News>,
}

/// One process asked for, and those that go on for it.
#[derive(Debug)]
struct Followed {
    /// As it was asked for.
    named: u32,
    /// `None` until it is there.
    identity: Option<Identity>,
    /// Those that live.
    now: Vec<Birth>,
    /// How many there were at most: more than one where several were alike.
    places: usize,
    /// The last that ended.
    ended: Option<u32>,
    /// When the first successor of that came.
    since: Option<Instant>,
}

/// A process in one life: numbers are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Birth {
    pub(super) pid: u32,
    started: u64,
}

/// One that is alike and began before the process it may go on for has ended.
#[derive(Debug)]
struct Heir {
    /// The process, as it was asked for.
    of: u32,
    birth: Birth,
    left_out: u64,
}

impl Birth {
    fn of(pid: u32) -> Option<Self> {
        let started = process::started(pid)?;
        Some(Self { pid, started })
    }

    fn lives(self) -> bool {
        process::started(self.pid) == Some(self.started)
    }
}

impl Targets {
    /// The processes asked for that are there, and with `--children` those below them. The kernel half
    /// has to know them when it is attached: it looks once at the connections there are.
    pub(super) fn there(args: &Trace) -> Vec<Birth> {
        let mut pids = args.filter.pid.clone();
        if args.children {
            pids.extend(
                args.filter
                    .pid
                    .iter()
                    .flat_map(|&pid| process::descendants(pid)),
            );
        }
        pids.into_iter().filter_map(Birth::of).collect()
    }

    /// Traces the processes asked for, of which these were there before the kernel half was attached:
    /// from then on it gives up the numbers of those that end.
    ///
    /// # Errors
    /// One is not there, or there are more than the kernel half holds.
    pub(super) fn new(args: &Trace, before: &[Birth], kernel: &mut Kernel) -> Result<Self> {
        for birth in before.iter().filter(|birth| !birth.lives()) {
            kernel.forget_pid(birth.pid)?;
        }
        let mut targets = Self {
            list: Vec::new(),
            follow: args.follow,
            wait: args.wait,
            children: args.children,
            names: HashSet::new(),
            heirs: HashMap::new(),
            dismissed: HashMap::new(),
            unseen: HashMap::new(),
            news: Vec::new(),
        };
        targets.change(&args.filter.pid, kernel)?;
        Ok(targets)
    }

    /// That other processes can be asked for.
    ///
    /// # Errors
    /// One is not there.
    pub(super) fn check(&self, pids: &[u32]) -> Result<()> {
        if self.wait {
            return Ok(());
        }
        config::check_pids(self.new_of(pids).into_iter())
    }

    fn new_of(&self, pids: &[u32]) -> Vec<u32> {
        let known = |pid: u32| self.list.iter().any(|it| it.named == pid);
        pids.iter().copied().filter(|&pid| !known(pid)).collect()
    }

    /// Other processes are asked for. Those that were before stay as they are.
    ///
    /// # Errors
    /// As of [`new`](Self::new).
    pub(super) fn change(&mut self, pids: &[u32], kernel: &mut Kernel) -> Result<()> {
        for pid in self.new_of(pids) {
            let mut followed = Followed {
                named: pid,
                identity: None,
                now: Vec::new(),
                places: 1,
                ended: None,
                since: None,
            };
            match Birth::of(pid) {
                Some(birth) => self.begin(&mut followed, birth, kernel)?,
                None if self.wait => kernel.await_pid(pid)?,
                None => config::check_pids([pid].into_iter())?,
            }
            self.list.push(followed);
        }
        let dropped = self.list.extract_if(.., |it| !pids.contains(&it.named));
        for followed in dropped {
            kernel.forget_pid(followed.named)?;
            for birth in followed.now {
                kernel.forget_pid(birth.pid)?;
            }
        }
        Ok(())
    }

    /// The numbers of those traced that have not ended, without their children.
    pub(super) fn pids(&self) -> Vec<u32> {
        let now = self.list.iter().flat_map(|it| &it.now);
        now.filter(|birth| birth.lives())
            .map(|birth| birth.pid)
            .collect()
    }

    /// Whether this is one of them, also when it has ended since the last look.
    fn follows(&self, pid: u32) -> bool {
        let mut now = self.list.iter().flat_map(|it| &it.now);
        now.any(|birth| birth.pid == pid)
    }

    /// Whether somebody may come.
    pub(super) fn awaits(&self) -> bool {
        self.follow || self.list.iter().any(Followed::is_awaited)
    }

    /// What happened since this was asked last.
    pub(super) fn news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Traces a process, and with `--children` those it has already.
    fn begin(&mut self, followed: &mut Followed, birth: Birth, kernel: &mut Kernel) -> Result<()> {
        kernel.trace_pid(birth.pid)?;
        followed.now.push(birth);
        followed.places = followed.places.max(followed.now.len());
        if self.children {
            // What it forks from now on the kernel half traces.
            for child in process::descendants(birth.pid) {
                kernel.trace_pid(child)?;
            }
        }
        self.know(followed, kernel)
    }

    /// Looks what a process is: it may have become another user, or written a title, since it began.
    fn know(&mut self, followed: &mut Followed, kernel: &mut Kernel) -> Result<()> {
        let of = followed.now.first().map(|birth| birth.pid);
        let Some(identity) = of.and_then(Identity::of) else {
            return Ok(());
        };
        if self.follow {
            let mut names = identity.names();
            names.retain(|name| self.names.len() < NAMES && self.names.insert(*name));
            kernel.add_names(&names)?;
        }
        followed.identity = Some(identity);
        Ok(())
    }

    /// Looks at those traced once more.
    ///
    /// # Errors
    /// A map cannot be written.
    pub(super) fn tend(&mut self, kernel: &mut Kernel) -> Result<()> {
        if self.follow {
            let mut list = std::mem::take(&mut self.list);
            let known = list.iter_mut().try_for_each(|it| self.know(it, kernel));
            self.list = list;
            known?;
        }
        self.dismissed
            .retain(|_, since| since.elapsed() < IN_THE_RING);
        Ok(())
    }

    /// Looks who has ended and who has come.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub(super) fn look(&mut self, kernel: &mut Kernel) -> Result<()> {
        self.look_at_all(kernel)?;
        if !self.follow {
            return Ok(());
        }
        let begun = Instant::now();
        for pid in kernel.candidates()? {
            if process::alive(pid) {
                self.judge(pid, None, kernel)?;
            } else if !self.heirs.contains_key(&pid) {
                // It is judged with its first event, if there is one.
                let since = *self.unseen.entry(pid).or_insert(begun);
                if begun.duration_since(since) >= IN_THE_RING {
                    kernel.dismiss(pid)?;
                    self.unseen.remove(&pid);
                }
            }
            if begun.elapsed() >= BUDGET {
                break;
            }
        }
        let dead = self.heirs.extract_if(|_, heir| !heir.birth.lives());
        for (pid, _) in dead {
            kernel.dismiss(pid)?;
            self.dismissed.insert(pid, begun);
        }
        Ok(())
    }

    fn look_at_all(&mut self, kernel: &mut Kernel) -> Result<()> {
        let mut list = std::mem::take(&mut self.list);
        let looked = list
            .iter_mut()
            .try_for_each(|followed| self.look_at(followed, kernel));
        self.list = list;
        looked
    }

    fn look_at(&mut self, followed: &mut Followed, kernel: &mut Kernel) -> Result<()> {
        if followed.is_awaited()
            && let Some(birth) = Birth::of(followed.named)
        {
            self.begin(followed, birth, kernel)?;
            let target = Target {
                turn: Turn::Appeared,
                previous: None,
                why: "--wait waited for it".to_owned(),
                after_ms: None,
                left_out: 0,
            };
            self.tell(followed.describe(birth.pid), target);
        }
        if self.follow {
            self.look_for_ends(followed);
            if followed.has_room() {
                self.look_for_heirs(followed, kernel)?;
            }
        }
        Ok(())
    }

    fn look_for_ends(&mut self, followed: &mut Followed) {
        let ended: Vec<_> = followed.now.extract_if(.., |it| !it.lives()).collect();
        for Birth { pid, .. } in ended {
            self.tell_end(followed, pid);
        }
    }

    fn tell_end(&mut self, followed: &mut Followed, pid: u32) {
        followed.ended = Some(pid);
        followed.since = None;
        let why = followed.identity.as_ref().map(ToString::to_string);
        let target = Target {
            turn: Turn::Ended,
            previous: None,
            why: why.unwrap_or_default(),
            after_ms: None,
            left_out: 0,
        };
        self.tell(followed.describe(pid), target);
    }

    /// Those that stood by when it ended go on for it.
    fn look_for_heirs(&mut self, followed: &mut Followed, kernel: &mut Kernel) -> Result<()> {
        let heirs = self.heirs.iter().filter(|it| it.1.of == followed.named);
        let heirs: Vec<_> = heirs.map(|(&pid, _)| pid).collect();
        for pid in heirs {
            let found = Birth::of(pid).zip(Identity::of(pid));
            if !self.judge_for(followed, pid, (found.as_ref(), None), kernel)? {
                self.heirs.remove(&pid);
                self.dismiss(pid, kernel)?;
            }
        }
        Ok(())
    }

    fn dismiss(&mut self, pid: u32, kernel: &mut Kernel) -> Result<()> {
        self.dismissed.insert(pid, Instant::now());
        kernel.dismiss(pid)
    }

    /// Whether an event is of those traced, as far as its owner says; candidates are judged here.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub(super) fn admit(&mut self, event: &Event, kernel: &mut Kernel) -> Result<bool> {
        let Some(owner) = event.owner.process.as_ref().filter(|_| self.follow) else {
            return Ok(true);
        };
        let pid = owner.pid;
        if self.follows(pid) {
            return Ok(true);
        }
        if !self.heirs.contains_key(&pid) && kernel.is_candidate(pid)? {
            self.look_at_all(kernel)?;
            self.judge(pid, Some(owner), kernel)?;
        }
        if !self.heirs.contains_key(&pid) && !self.dismissed.contains_key(&pid) {
            return Ok(true);
        }
        // It may be told as the other end of a connection all the same.
        let flow = event.socket.as_ref().map(|socket| &socket.flow);
        let is_other_end = flow.map_or(Ok(false), |flow| kernel.traces_other_end(flow))?;
        if !is_other_end && let Some(heir) = self.heirs.get_mut(&pid) {
            heir.left_out += 1;
        }
        Ok(is_other_end)
    }

    /// Decides what a candidate is. `seen` is what an event told of it.
    fn judge(&mut self, pid: u32, seen: Option<&Process>, kernel: &mut Kernel) -> Result<()> {
        let is_known = self.heirs.get(&pid).is_some_and(|heir| heir.birth.lives());
        if is_known || self.follows(pid) {
            return Ok(());
        }
        let found = Birth::of(pid).zip(Identity::of(pid));
        if found.is_none() && seen.is_none() {
            // It is judged with its first event, if there is one.
            return Ok(());
        }
        let mut list = std::mem::take(&mut self.list);
        let mut judged = Ok(false);
        for followed in &mut list {
            judged = self.judge_for(followed, pid, (found.as_ref(), seen), kernel);
            if !matches!(judged, Ok(false)) {
                break;
            }
        }
        self.list = list;
        if !judged? {
            self.dismiss(pid, kernel)?;
        }
        Ok(())
    }

    /// Whether it goes on for this one, or may.
    fn judge_for(
        &mut self,
        followed: &mut Followed,
        pid: u32,
        (found, seen): (Option<&(Birth, Identity)>, Option<&Process>),
        kernel: &mut Kernel,
    ) -> Result<bool> {
        let Some(before) = &followed.identity else {
            return Ok(false);
        };
        let is_worker = before.is_worker();
        let has_room = followed.has_room();
        let why = match (found, seen) {
            (Some((_, identity)), _) => before.recognise(identity),
            // It may have ended before one that is looked at first began.
            (None, Some(seen)) if has_room => before.recognise_ended(seen),
            (None, _) => None,
        };
        let Some(mut why) = why else { return Ok(false) };
        let birth = found.map(|&(birth, _)| birth);
        if !has_room {
            // Of workers one that comes beside another is a sibling.
            let stands_by = !is_worker && self.heirs.len() < HEIRS;
            if let Some(birth) = birth.filter(|_| stands_by) {
                let heir = Heir {
                    of: followed.named,
                    birth,
                    left_out: 0,
                };
                self.heirs.insert(pid, heir);
            }
            return Ok(stands_by);
        }
        if let Some(first) = followed.now.first() {
            why = format!("{why}; so it is with {}", first.pid);
        }
        let after = birth.map(|birth| process::age(birth.started));
        let target = Target {
            turn: Turn::Succeeded,
            previous: followed.ended,
            why,
            after_ms: after.and_then(|it| u64::try_from(it.as_millis()).ok()),
            left_out: self.heirs.remove(&pid).map_or(0, |heir| heir.left_out),
        };
        self.dismissed.remove(&pid);
        kernel.dismiss(pid)?;
        if let Some(birth) = birth {
            followed.since.get_or_insert_with(Instant::now);
            self.begin(followed, birth, kernel)?;
            self.tell(followed.describe(pid), target);
        } else {
            self.tell(followed.describe(pid), target);
            self.tell_end(followed, pid);
        }
        Ok(true)
    }

    fn tell(&mut self, process: Process, target: Target) {
        self.news.push((process, target));
    }
}

impl Followed {
    fn is_awaited(&self) -> bool {
        self.now.is_empty() && self.ended.is_none()
    }

    /// Somebody may go on for one that ended, maybe beside another.
    fn has_room(&self) -> bool {
        let settling = self.since.is_some_and(|it| it.elapsed() < SETTLING);
        self.ended.is_some() && (self.now.len() < self.places || settling)
    }

    /// One of its processes, as it was known last.
    fn describe(&self, pid: u32) -> Process {
        let known = self.identity.as_ref().map(|it| it.process(pid));
        known.unwrap_or(Process {
            pid,
            ..Process::default()
        })
    }
}
