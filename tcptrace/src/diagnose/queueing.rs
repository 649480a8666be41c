//! Listeners that lose connections: the accept queue or the SYN queue was full.

use super::verdict::Words;
use crate::event::{
    Acceptor, Cause, Count, End, Errno, Event, Fact, Kind, Micros, Millis, Overflow, OverflowPath,
    Process, SynQueue, Timestamp,
};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

/// Clients told apart.
const CLIENTS: usize = 1_024;

/// One episode of a full accept queue.
#[derive(Debug)]
pub(super) struct FullQueue {
    /// `None` where the kernel's counters do not say which.
    listener: Option<SocketAddr>,
    queue_len: Option<u32>,
    queue_max: Option<u32>,
    backlog: Option<u32>,
    somaxconn: Option<u32>,
    /// Dropped SYNs, final ACKs, ACKs of a SYN cookie: of one connection mostly several.
    by_path: [u64; 3],
    /// Whichever of these, by the kernel's counter.
    polled: u64,
    /// Seen one by one, and still to come in what is polled.
    unpolled: u64,
    clients: HashSet<SocketAddr>,
    last_accept_ago_us: Option<u64>,
    acceptor: Option<Arc<Acceptor>>,
    holders: usize,
    /// What its owner could not get when it tried to accept.
    failing: Option<Errno>,
    /// Resets sent in place of silent drops.
    resets: u64,
    begun: Timestamp,
    ended: Timestamp,
}

impl FullQueue {
    /// Its episode begins with this loss.
    pub(super) fn new(listener: Option<SocketAddr>, time: Timestamp) -> Self {
        Self {
            listener,
            queue_len: None,
            queue_max: None,
            backlog: None,
            somaxconn: None,
            by_path: [0; 3],
            polled: 0,
            unpolled: 0,
            clients: HashSet::new(),
            last_accept_ago_us: None,
            acceptor: None,
            holders: 0,
            failing: None,
            resets: 0,
            begun: time,
            ended: time,
        }
    }

    /// The process that should accept, where the host said.
    pub(super) fn acceptor(&self) -> Option<Process> {
        self.acceptor.as_ref().map(|it| it.process.clone())
    }

    /// Where it listens, if that is known.
    pub(super) fn listener(&self) -> Option<SocketAddr> {
        self.listener
    }

    /// Takes a loss, and returns how much of it is new.
    pub(super) fn take(&mut self, event: &Event, overflow: &Overflow) -> u64 {
        let known = match overflow.path {
            Some(_) => 0,
            None => self.unpolled.min(overflow.count),
        };
        let new = overflow.count - known;
        *match overflow.path {
            Some(OverflowPath::Syn) => &mut self.by_path[0],
            Some(OverflowPath::Ack) => &mut self.by_path[1],
            Some(OverflowPath::Cookie) => &mut self.by_path[2],
            None => &mut self.polled,
        } += new;
        match overflow.path {
            Some(_) => self.unpolled += new,
            None => self.unpolled -= known,
        }
        let peer = event.socket.as_ref().and_then(|socket| socket.flow.peer);
        if self.clients.len() < CLIENTS {
            self.clients.extend(peer);
        }
        self.queue_len = self.queue_len.max(overflow.queue_len);
        self.queue_max = overflow.queue_max.or(self.queue_max);
        self.backlog = overflow.backlog.or(self.backlog);
        self.last_accept_ago_us = self.last_accept_ago_us.max(overflow.last_accept_ago_us);
        self.holders = self.holders.max(event.owner.holders.len());
        self.begun = self.begun.min(event.time);
        self.ended = self.ended.max(event.time);
        for fact in &event.facts {
            match fact {
                Fact::Acceptor(acceptor) => self.acceptor = Some(Arc::clone(acceptor)),
                Fact::Somaxconn(limit) => self.somaxconn = Some(*limit),
                _ => {}
            }
        }
        new
    }

    /// Its owner wanted to accept and had no descriptor left.
    pub(super) fn is_failing(&mut self, errno: Errno) {
        self.failing = Some(errno);
    }

    /// A lost connection was answered with a RST.
    pub(super) fn was_reset(&mut self) {
        self.resets += 1;
    }

    pub(super) fn words(&self, owner: &str) -> Words {
        let lost = self.lost();
        let span = self.ended.0.saturating_sub(self.begun.0) / 1_000_000;
        let span = if span == 0 {
            String::new()
        } else {
            format!(" in {}", Millis(span))
        };
        let title = format!(
            "{} was full{}: {lost}{span}{}{}",
            self.whose(owner),
            self.fill(),
            self.paths(),
            self.acceptor_says()
        );
        let words = Words::new(
            title,
            "Connections are complete before accept is called and wait in the listener's queue. When it \
             holds one more than its limit the kernel drops the SYN or the final ACK: clients send again, \
             connect late or time out. More arrive than are accepted.",
        );
        let words = self.reason(owner, words);
        words
            .fix(self.limit(owner, &format!("{lost}{span}")))
            .fix("confirm: ss -ltn (Recv-Q above Send-Q), nstat -az TcpExtListenOverflows TcpExtListenDrops")
            .ruled_out("the network: the segments arrived here and were dropped by this host")
    }

    fn whose(&self, owner: &str) -> String {
        match self.listener {
            Some(listener) => format!("the accept queue of {owner} on {}", End(listener)),
            None => "the accept queue of some listener of this network namespace".to_owned(),
        }
    }

    fn fill(&self) -> String {
        match (self.queue_len, self.queue_max) {
            (Some(len), Some(max)) => format!(" ({len} waiting, limit {max})"),
            (Some(len), None) => format!(" ({len} waiting)"),
            _ => String::new(),
        }
    }

    fn lost(&self) -> String {
        // Where no segment named its sender, each may be of another one.
        let clients = match self.clients.len() as u64 {
            0 => self.by_path.iter().sum::<u64>() + self.polled,
            clients => clients,
        };
        let bound = match (self.clients.len(), self.polled) {
            (CLIENTS.., _) => "at least ",
            (_, 0) => "",
            // A client that waits sends again, and each time counts.
            _ => "at most ",
        };
        format!("{bound}{} lost", Count(clients, "connection"))
    }

    fn paths(&self) -> String {
        let [syn, ack, cookie] = self.by_path;
        let mut parts = Vec::new();
        for (count, what) in [
            (syn, "SYN"),
            (ack, "final ACK"),
            (cookie, "cookie ACK"),
            (self.polled, "handshake segment"),
        ] {
            if count > 0 {
                parts.push(format!("{} dropped", Count(count, what)));
            }
        }
        if self.resets > 0 {
            parts.push(format!(
                "{} of them reset (tcp_abort_on_overflow)",
                self.resets
            ));
        }
        format!(" ({})", parts.join(", "))
    }

    fn acceptor_says(&self) -> String {
        let mut text = match self.last_accept_ago_us {
            Some(us) => format!("; it last accepted {} before", Micros(us)),
            None => String::new(),
        };
        if let Some(errno) = self.failing {
            let _ = write!(text, "; its accept fails with {errno}");
        } else if let Some(acceptor) = &self.acceptor {
            text.push_str(match acceptor.state {
                'T' | 't' => "; its process is stopped",
                'D' => "; the thread that should accept is blocked in the kernel",
                'R' => "; the thread that should accept is busy computing",
                'Z' | 'X' => "; its process is dead",
                _ => "; the thread that should accept sleeps",
            });
            let syscall = acceptor.syscall.map(crate::event::Syscall);
            if let Some(name) = syscall.and_then(crate::event::Syscall::name) {
                let _ = write!(text, " in {name}");
            }
            if let Some(channel) = &acceptor.wait_channel {
                let _ = write!(text, " ({channel})");
            }
        }
        text
    }

    /// Why nobody accepts comes before how many may wait.
    fn reason(&self, owner: &str, words: Words) -> Words {
        let shared = self.holders > 1;
        let words = match (&self.acceptor, self.failing) {
            (_, Some(errno)) => words.fix(format!(
                "{owner} cannot accept ({errno}): close what leaks or raise its limit; no backlog helps"
            )),
            (Some(acceptor), _) if matches!(acceptor.state, 'T' | 't') => words.fix(format!(
                "process {} is stopped (SIGSTOP, a debugger, the freezer): kill -CONT {}",
                acceptor.process.pid, acceptor.process.pid
            )),
            (Some(acceptor), _) => words.fix(format!(
                "see what thread {} does instead of accepting: cat /proc/{}/task/{}/stack, a profiler, \
                 the event loop's longest handler",
                acceptor.tid, acceptor.process.pid, acceptor.tid
            )),
            (None, None) if self.listener.is_none() => words.fix(
                "find the listener: ss -ltnp in that namespace, several times (Recv-Q above Send-Q)",
            ),
            (None, None) => words.fix(format!("let {owner} accept faster: a thread of its own, more workers")),
        };
        if shared {
            words.fix(format!(
                "{} processes share the listener: SO_REUSEPORT gives each a queue of its own",
                self.holders
            ))
        } else {
            words
        }
    }

    /// Where the limit comes from, and which of the two to raise.
    fn limit(&self, owner: &str, lost: &str) -> String {
        match (self.backlog, self.somaxconn) {
            (Some(asked), Some(somaxconn)) if asked > somaxconn => format!(
                "listen() asked for {asked} and net.core.somaxconn is {somaxconn}: raise somaxconn and \
                 restart {owner}; {lost}"
            ),
            (Some(asked), Some(somaxconn)) => format!(
                "listen() asked for {asked} and net.core.somaxconn is {somaxconn}: raise the listen \
                 argument (nginx: listen … backlog=, Go reads somaxconn, Java: the backlog of \
                 ServerSocket); {lost}"
            ),
            (None, Some(somaxconn)) if Some(somaxconn) == self.queue_max => format!(
                "the limit is net.core.somaxconn's ({somaxconn}), or listen() asked for the same: raise \
                 both; {lost}"
            ),
            (None, Some(somaxconn)) if let Some(limit) = self.queue_max => format!(
                "net.core.somaxconn is {somaxconn} and the limit {limit}: it was listen()'s argument, \
                 raise that; {lost}"
            ),
            (asked, somaxconn) => {
                let in_brackets = |number: Option<u32>| {
                    number.map_or(String::new(), |number| format!(" ({number})"))
                };
                let limit = self.queue_max;
                format!(
                    "the limit{} is the smaller of listen()'s argument{} and net.core.somaxconn{}: \
                     raise that one; {lost}",
                    limit.map_or(String::new(), |limit| format!(" {limit}")),
                    in_brackets(asked),
                    in_brackets(somaxconn)
                )
            }
        }
    }
}

/// SYNs dropped or answered with cookies in a namespace.
#[derive(Debug, Default)]
pub(super) struct FullSynQueue {
    dropped: u64,
    cookies: u64,
    len: Option<u32>,
    max: Option<u32>,
}

impl FullSynQueue {
    pub(super) fn take(&mut self, queue: &SynQueue) {
        *if queue.cookies {
            &mut self.cookies
        } else {
            &mut self.dropped
        } += queue.count;
        self.len = self.len.max(queue.len);
        self.max = self.max.max(queue.max);
    }

    pub(super) fn words(&self, owner: &str, listener: Option<SocketAddr>) -> Words {
        let at = listener.map_or(String::new(), |it| format!(" on {}", End(it)));
        let half_done = match (self.len, self.max) {
            (Some(len), Some(max)) => format!(", {len} handshakes half done of {max}"),
            _ => String::new(),
        };
        let outcome = match (self.dropped, self.cookies) {
            (dropped, 0) => format!("{} dropped", Count(dropped, "SYN")),
            (0, cookies) => format!("{} answered with cookies", Count(cookies, "SYN")),
            (dropped, cookies) => format!(
                "{} dropped and {cookies} answered with cookies",
                Count(dropped, "SYN")
            ),
        };
        Words::new(
            format!("the SYN queue of {owner}{at} was full: {outcome}{half_done}"),
            "Handshakes that were begun and not finished fill the SYN queue, whose limit is the accept \
             queue's: a flood of forged SYNs, clients whose answers get lost, or more new clients in one \
             round trip than the limit. With cookies they can still connect, without some TCP options.",
        )
        .fix("ss -tn state syn-recv: many addresses that never finish are a flood; few are a lost way back")
        .fix("keep net.ipv4.tcp_syncookies=1; raise the listen backlog and net.core.somaxconn (tcp_max_syn_backlog limits only without cookies)")
        .ruled_out("the accept queue: these SYNs were counted as TCPReqQFull, not as ListenOverflows")
    }
}

/// The loss that a RST of the listener tells of, where no other event does.
pub(super) fn refused(reset: &Event) -> Option<Event> {
    let is_of_queue = matches!(reset.kind, Kind::ResetSent(_))
        && super::cause(reset) == Some(Cause::AcceptQueueOverflow);
    is_of_queue.then(|| Event {
        kind: Kind::AcceptQueueOverflow(Overflow {
            path: Some(OverflowPath::Ack),
            count: 1,
            queue_len: None,
            queue_max: None,
            backlog: None,
            drops: None,
            last_accept_ago_us: None,
        }),
        ..reset.clone()
    })
}

/// A loss, and the listener whose queue it is about, where that is known.
pub(super) fn overflow(event: &Event) -> Option<(&Overflow, Option<SocketAddr>)> {
    let Kind::AcceptQueueOverflow(overflow) = &event.kind else {
        return None;
    };
    let socket = event.socket.as_ref()?;
    let local = socket.flow.local;
    Some((overflow, (local.port() != 0).then_some(local)))
}
