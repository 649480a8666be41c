//! Corrects the owner of a socket from `/proc`, after the event and within a budget.
//!
//! The kernel half remembers who created or last used a socket. A descriptor that was inherited by
//! a child or passed to another process since then shows only in `/proc`.

use std::sync::Arc;
use std::time::Duration;

use super::cgroup::Cgroups;
use super::holders::{self, Holder, Scan};
use super::process;
use crate::event::{Confidence, Owner, Process};

/// What the verifier asks `/proc`; a fake in tests.
pub trait Proc {
    /// Whether a descriptor of a process is this socket.
    fn verify(&self, pid: u32, fd: i32, inode: u64) -> bool;
    /// Everybody who holds this socket, in order of pid and descriptor.
    fn find(&self, inode: u64) -> (Vec<Holder>, Scan);
    /// The process of that number; `None` when it is gone.
    fn describe(&self, pid: u32) -> Option<Process>;
}

/// The real `/proc`.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// To name the cgroup of a process; `None` where there is no cgroup v2.
    pub cgroups: Option<Cgroups>,
}

impl Proc for Host {
    fn verify(&self, pid: u32, fd: i32, inode: u64) -> bool {
        holders::verify(pid, fd, inode)
    }

    fn find(&self, inode: u64) -> (Vec<Holder>, Scan) {
        holders::find(inode)
    }

    fn describe(&self, pid: u32) -> Option<Process> {
        process::describe(pid, self.cgroups.as_ref())
    }
}

/// The event whose owner is to be checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Question {
    /// Inode number of the socket's file; without one nothing can be checked.
    pub inode: Option<u64>,
    /// The kernel saw more than one reference to that file, so a descriptor that fits proves only
    /// that its process is one of the holders.
    pub shared: bool,
    /// Milliseconds since the event.
    pub delay_ms: u64,
}

/// How often the verifier looked, and how often it could not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Owners confirmed.
    pub confirmed: u64,
    /// Owners corrected, or found to be several.
    pub corrected: u64,
    /// Sockets nobody was seen to hold any more.
    pub not_found: u64,
    /// Left as they were because the budget was spent.
    pub skipped: u64,
}

/// Checks owners against `/proc`, within a budget: past it an owner stays what the kernel half said,
/// at the cost of a few comparisons (8 ns).
///
/// A scan of a host with 100,000 descriptors holds the caller up for a quarter of a second.
#[derive(Debug)]
pub struct Verifier<P = Host> {
    proc: P,
    links: Budget,
    scans: Budget,
    /// The last answers, each in the slot of its inode.
    cache: Vec<Option<Answer>>,
    /// What came of the questions so far.
    pub counts: Counts,
}

#[derive(Clone, Debug)]
struct Answer {
    inode: u64,
    at: Duration,
    holders: Vec<Holder>,
    reach: Reach,
}

/// How far a look went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// One descriptor.
    One,
    /// All processes that may be read.
    Readable,
    /// All processes.
    All,
}

/// Single descriptors looked at, per second: at the 1.1 µs each that were measured, 0.2 % of one
/// core.
const LINKS: u32 = 2_000;
/// Descriptors read in scans, per second: at the 2.4 µs each that were measured, 5 % of one core.
const SCANNED: u32 = 20_000;
/// The least a scan is charged, so that there are at most 20 in a second.
const SCAN: u64 = 1_000;
/// How long an answer stands: a train of errors on one socket is one question.
const FRESH: Duration = Duration::from_secs(1);
/// Answers held.
const SLOTS: usize = 256;

impl<P: Proc> Verifier<P> {
    /// With a full budget.
    #[must_use]
    pub fn new(proc: P) -> Self {
        Self {
            proc,
            links: Budget::per_second(LINKS),
            scans: Budget::per_second(SCANNED),
            cache: vec![None; SLOTS],
            counts: Counts::default(),
        }
    }

    /// Confirms or corrects an owner and its descriptor. For events that did not happen in the
    /// owner's own context: where they did, the kernel half is right.
    ///
    /// One holder is the owner, and the process recorded before becomes the creator; it is only
    /// [`Confidence::Seeded`] where others may hold the socket that this process may not read.
    /// Several are all listed, the recorded owner first when it is one of them. With no holder left the owner
    /// stays: it has closed the socket since. `now` is the time since any fixed moment.
    pub fn check(
        &mut self,
        owner: &mut Owner,
        fd: &mut Option<i32>,
        question: Question,
        now: Duration,
    ) {
        let Some(inode) = question.inode else { return };
        let recorded = owner.process.as_ref().map(|process| process.pid);
        let holder = recorded.zip(*fd).map(|(pid, fd)| Holder { pid, fd });
        let Some(answer) = self.answer(inode, holder, question.shared, now) else {
            self.counts.skipped += 1;
            return;
        };
        let mut pids: Vec<u32> = answer.holders.iter().map(|holder| holder.pid).collect();
        pids.dedup();
        let Some(&first) = pids.first() else {
            self.counts.not_found += 1;
            return;
        };
        // The recorded owner stays where it is one of the holders.
        let pid = recorded.filter(|pid| pids.contains(pid)).unwrap_or(first);
        let fds: Vec<i32> = answer
            .holders
            .iter()
            .filter(|holder| holder.pid == pid)
            .map(|holder| holder.fd)
            .collect();
        if recorded != Some(pid) {
            // Gone between the scan and now: nothing better is known.
            let Some(process) = self.proc.describe(pid) else {
                self.counts.not_found += 1;
                return;
            };
            owner.process = Some(process);
            owner.creator = owner.creator.or(recorded);
            // The only reference to the file needs no look at everybody else.
            let sole = answer.reach == Reach::All || !question.shared;
            owner.confidence = if sole {
                Confidence::Exact
            } else {
                Confidence::Seeded
            };
            *fd = None;
        }
        if pids.len() > 1 {
            pids.sort_by_key(|&other| (other != pid, other));
            owner.confidence = Confidence::Shared;
            owner.holders = Arc::from(pids);
            self.counts.corrected += 1;
        } else if recorded == Some(pid) {
            self.counts.confirmed += 1;
        } else {
            self.counts.corrected += 1;
        }
        if fd.is_none_or(|fd| !fds.contains(&fd)) {
            *fd = fds.first().copied();
        }
        owner.checked_after_ms = Some(question.delay_ms);
    }

    /// Who holds the socket; `None` when the budget does not allow to find out.
    fn answer(
        &mut self,
        inode: u64,
        recorded: Option<Holder>,
        shared: bool,
        now: Duration,
    ) -> Option<Answer> {
        let slot = usize::try_from(inode).unwrap_or_default() % SLOTS;
        let known = self.cache[slot].as_ref().filter(|answer| {
            answer.inode == inode
                && now.saturating_sub(answer.at) < FRESH
                && (answer.reach != Reach::One
                    || (!shared && recorded.is_some_and(|it| answer.holders.contains(&it))))
        });
        if let Some(answer) = known {
            return Some(answer.clone());
        }
        let mut answer = Answer {
            inode,
            at: now,
            holders: Vec::new(),
            reach: Reach::One,
        };
        if let Some(holder) = recorded.filter(|_| !shared && self.links.allows(now)) {
            self.links.charge(1, now);
            if self.proc.verify(holder.pid, holder.fd, inode) {
                answer.holders.push(holder);
            }
        }
        if answer.holders.is_empty() {
            if !self.scans.allows(now) {
                return None;
            }
            let (holders, scan) = self.proc.find(inode);
            self.scans.charge(scan.descriptors.max(SCAN), now);
            answer.holders = holders;
            answer.reach = if scan.is_complete() {
                Reach::All
            } else {
                Reach::Readable
            };
        }
        self.cache[slot] = Some(answer.clone());
        Some(answer)
    }
}

/// A token bucket that holds one second's worth. A single charge may overdraw it: the debt is paid
/// off before anything else is allowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    per_unit: Duration,
    /// Of so long a time more may be spent at once.
    burst: Duration,
    /// Everything up to this moment is spent.
    spent: Duration,
}

impl Budget {
    pub(crate) fn per_second(units: u32) -> Self {
        Self {
            per_unit: Duration::from_secs(1) / units,
            burst: Duration::from_secs(1),
            spent: Duration::ZERO,
        }
    }

    /// The same, saved up for so long.
    pub(crate) fn saving(self, burst: Duration) -> Self {
        Self { burst, ..self }
    }

    pub(crate) fn allows(&self, now: Duration) -> bool {
        self.spent < now + self.burst
    }

    pub(crate) fn charge(&mut self, units: u64, now: Duration) {
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        self.spent = self
            .spent
            .max(now)
            .saturating_add(self.per_unit.saturating_mul(units));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::net::TcpListener;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::process::Command;
    use std::rc::Rc;

    use super::*;

    /// A `/proc` made of (inode, pid, fd), with the number of looks at it.
    #[derive(Clone, Debug, Default)]
    struct Fake {
        held: Rc<RefCell<Vec<(u64, u32, i32)>>>,
        links: Rc<Cell<u64>>,
        scans: Rc<Cell<u64>>,
        descriptors: u64,
        unreadable: u64,
    }

    impl Proc for Fake {
        fn verify(&self, pid: u32, fd: i32, inode: u64) -> bool {
            self.links.set(self.links.get() + 1);
            self.held.borrow().contains(&(inode, pid, fd))
        }

        fn find(&self, inode: u64) -> (Vec<Holder>, Scan) {
            self.scans.set(self.scans.get() + 1);
            let held = self.held.borrow();
            let mut holders: Vec<_> = held
                .iter()
                .filter(|held| held.0 == inode)
                .map(|&(_, pid, fd)| Holder { pid, fd })
                .collect();
            holders.sort_unstable();
            let (descriptors, unreadable) = (self.descriptors, self.unreadable);
            (
                holders,
                Scan {
                    processes: 1,
                    descriptors,
                    unreadable,
                },
            )
        }

        fn describe(&self, pid: u32) -> Option<Process> {
            (pid < 1000).then(|| Process {
                pid,
                comm: "found".into(),
                ..Process::default()
            })
        }
    }

    fn holding(held: &[(u64, u32, i32)]) -> Fake {
        Fake {
            held: Rc::new(RefCell::new(held.to_vec())),
            ..Fake::default()
        }
    }

    fn recorded(pid: u32) -> Owner {
        let process = Process {
            pid,
            comm: "recorded".into(),
            ..Process::default()
        };
        Owner {
            confidence: Confidence::Exact,
            process: Some(process),
            ..Owner::default()
        }
    }

    const NOW: Duration = Duration::from_secs(1000);

    /// Who holds which socket.
    type Held = &'static [(u64, u32, i32)];
    /// Owner and descriptor, and whether the file is known to be shared.
    type Before = (Option<u32>, Option<i32>, bool);
    /// Owner, descriptor, confidence, all holders, creator, and whether that was checked.
    type After = (
        Option<u32>,
        Option<i32>,
        Confidence,
        &'static [u32],
        Option<u32>,
        bool,
    );

    #[test]
    fn proc_has_the_last_word() {
        use Confidence::{Exact, Shared, Unknown};
        // The last two: what was recorded of socket 7, and what becomes of that.
        let cases: [(&str, Held, Before, After); 9] = [
            (
                "the descriptor fits",
                &[(7, 1, 5), (7, 2, 5)],
                (Some(1), Some(5), false),
                (Some(1), Some(5), Exact, &[], None, true),
            ),
            (
                "another descriptor of the owner",
                &[(7, 1, 6)],
                (Some(1), Some(5), false),
                (Some(1), Some(6), Exact, &[], None, true),
            ),
            (
                "passed to another process",
                &[(7, 2, 9), (7, 2, 11), (8, 1, 5)],
                (Some(1), Some(5), false),
                (Some(2), Some(9), Exact, &[], Some(1), true),
            ),
            (
                "shared, the recorded owner among the holders",
                &[(7, 1, 5), (7, 3, 5), (7, 2, 5)],
                (Some(2), Some(5), true),
                (Some(2), Some(5), Shared, &[2, 1, 3], None, true),
            ),
            (
                "shared, but not with the recorded owner any more",
                &[(7, 2, 4), (7, 3, 6)],
                (Some(1), Some(5), true),
                (Some(2), Some(4), Shared, &[2, 3], Some(1), true),
            ),
            (
                "a shared file that one process holds twice",
                &[(7, 1, 5), (7, 1, 6)],
                (Some(1), Some(6), true),
                (Some(1), Some(6), Exact, &[], None, true),
            ),
            (
                "nobody holds it any more",
                &[(8, 1, 5)],
                (Some(1), Some(5), false),
                (Some(1), Some(5), Exact, &[], None, false),
            ),
            (
                "nobody was known",
                &[(7, 2, 9)],
                (None, None, false),
                (Some(2), Some(9), Exact, &[], None, true),
            ),
            (
                "the holder ended meanwhile",
                &[(7, 1000, 9)],
                (None, None, false),
                (None, None, Unknown, &[], None, false),
            ),
        ];
        for (what, held, (pid, mut fd, shared), expected) in cases {
            let mut owner = pid.map(recorded).unwrap_or_default();
            let question = Question {
                inode: Some(7),
                shared,
                delay_ms: 3,
            };
            Verifier::new(holding(held)).check(&mut owner, &mut fd, question, NOW);
            let pid = owner.process.as_ref().map(|process| process.pid);
            let checked = owner.checked_after_ms == Some(3);
            let got = (
                pid,
                fd,
                owner.confidence,
                &*owner.holders,
                owner.creator,
                checked,
            );
            assert_eq!(got, expected, "{what}");
        }
    }

    #[test]
    fn without_an_inode_nothing_is_asked() {
        let fake = holding(&[(7, 2, 9)]);
        let (mut owner, mut fd) = (recorded(1), Some(5));
        Verifier::new(fake.clone()).check(&mut owner, &mut fd, Question::default(), NOW);
        assert_eq!((owner, fd), (recorded(1), Some(5)));
        assert_eq!((fake.links.get(), fake.scans.get()), (0, 0));
    }

    #[test]
    fn where_not_every_process_is_seen_a_lone_holder_is_not_sure_to_be_alone() {
        for (unreadable, shared, confidence) in [
            (0, true, Confidence::Exact),
            (1, true, Confidence::Seeded),
            (1, false, Confidence::Exact),
        ] {
            let fake = Fake {
                unreadable,
                ..holding(&[(7, 2, 9)])
            };
            let (mut owner, mut fd) = (recorded(1), Some(5));
            let question = Question {
                inode: Some(7),
                shared,
                delay_ms: 3,
            };
            Verifier::new(fake).check(&mut owner, &mut fd, question, NOW);
            assert_eq!(
                (owner.confidence, owner.creator, fd),
                (confidence, Some(1), Some(9))
            );
        }
    }

    /// Asks once for each inode, of an owner whose descriptor does not fit.
    fn storm(verifier: &mut Verifier<Fake>, inodes: std::ops::Range<u64>, now: Duration) {
        for inode in inodes {
            let question = Question {
                inode: Some(inode),
                ..Question::default()
            };
            verifier.check(&mut recorded(1), &mut Some(5), question, now);
        }
    }

    #[test]
    fn a_storm_stays_within_the_budget() {
        let fake = holding(&[]);
        let mut verifier = Verifier::new(fake.clone());
        storm(&mut verifier, 0..200_000, NOW);
        assert_eq!((fake.links.get(), fake.scans.get()), (2_000, 20));
        assert_eq!(verifier.counts.skipped, 200_000 - 20);
        // A tenth of a second later there is a tenth more.
        storm(
            &mut verifier,
            200_000..400_000,
            NOW + Duration::from_millis(100),
        );
        assert_eq!((fake.links.get(), fake.scans.get()), (2_200, 22));
        // However long it was quiet, a second's worth is all.
        storm(
            &mut verifier,
            400_000..600_000,
            NOW + Duration::from_hours(1),
        );
        assert_eq!((fake.links.get(), fake.scans.get()), (4_200, 42));
    }

    #[test]
    fn a_scan_of_a_large_host_is_charged_for_its_size() {
        let fake = Fake {
            descriptors: 200_000,
            ..holding(&[])
        };
        let mut verifier = Verifier::new(fake.clone());
        for (after, scans) in [(0, 1), (5, 1), (9, 1), (11, 2)] {
            storm(
                &mut verifier,
                after..after + 1,
                NOW + Duration::from_secs(after),
            );
            assert_eq!(fake.scans.get(), scans, "{after} s later");
        }
    }

    #[test]
    fn a_train_of_events_on_one_socket_is_one_question() {
        let fake = holding(&[(7, 1, 5), (7, 2, 5)]);
        let mut verifier = Verifier::new(fake.clone());
        let ask = |verifier: &mut Verifier<Fake>, shared, now| {
            let (mut owner, mut fd) = (recorded(1), Some(5));
            let question = Question {
                inode: Some(7),
                shared,
                delay_ms: 0,
            };
            verifier.check(&mut owner, &mut fd, question, now);
            owner.confidence
        };
        for _ in 0..10 {
            assert_eq!(ask(&mut verifier, false, NOW), Confidence::Exact);
        }
        assert_eq!((fake.links.get(), fake.scans.get()), (1, 0));
        // One look at one process does not answer who else there is.
        for _ in 0..10 {
            assert_eq!(ask(&mut verifier, true, NOW), Confidence::Shared);
        }
        assert_eq!((fake.links.get(), fake.scans.get()), (1, 1));
        fake.held.borrow_mut().remove(1);
        assert_eq!(
            ask(&mut verifier, true, NOW + Duration::from_secs(2)),
            Confidence::Exact
        );
        assert_eq!(fake.scans.get(), 2);
    }

    fn check(pid: u32, fd: i32, inode: u64, shared: bool) -> (Owner, Option<i32>) {
        let mut verifier = Verifier::new(Host::default());
        let (mut owner, mut fd) = (recorded(pid), Some(fd));
        let question = Question {
            inode: Some(inode),
            shared,
            delay_ms: 1,
        };
        verifier.check(&mut owner, &mut fd, question, NOW);
        (owner, fd)
    }

    #[test]
    fn a_child_shares_and_a_parent_that_closes_hands_over() {
        let _alone = crate::host::ALONE.lock();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let inode = holders::inode_of(&listener).expect("a socket");
        let (me, fd) = (std::process::id(), listener.as_raw_fd());
        let inherited = OwnedFd::from(listener.try_clone().expect("a second descriptor"));
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(inherited)
            .spawn()
            .expect("sleep is there");

        let (owner, found) = check(me, fd, inode, true);
        assert_eq!(
            (owner.confidence, &*owner.holders),
            (Confidence::Shared, &[me, child.id()][..])
        );
        assert_eq!((owner.creator, found), (None, Some(fd)));
        drop(listener);
        let (owner, found) = check(me, fd, inode, false);
        assert_eq!(owner.process.map(|process| process.pid), Some(child.id()));
        assert_eq!(
            (owner.confidence, owner.creator, found),
            (Confidence::Exact, Some(me), Some(0))
        );
        child.kill().expect("our child");
        child.wait().expect("our child");
    }
}
