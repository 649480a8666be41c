//! An end that was reset, or that wrote or read where that cannot work.

use super::connection::{End, View};
use super::idle::{answered_our_write, silence_before_reset, stale_pooled};
use super::verdict::{Verdict, Words, connection, fd, named, peer, who};
use super::waiting;
use crate::event::{
    CallError, Cause, Certainty, Count, Micros, Millis, Severity, Side, Socket, State,
};
use std::fmt::Write as _;

/// A RST came in, and nobody on this host is seen to have sent it.
pub(super) fn judge_reset(view: View<'_>, sees_all_resets: bool) -> Option<Verdict> {
    let (seen, received) = view.this.reset_received()?;
    let socket = seen.socket()?;
    // Its program had closed already: nobody gets an error.
    if received.orphan || received.errno.is_none() || socket.state == Some(State::SynSent) {
        return None;
    }
    if view.other.is_unseen() && socket.flow.local.ip().is_loopback() && sees_all_resets {
        return Some(Verdict::new(Cause::RejectedByFirewall).certainty(Certainty::Medium));
    }
    if let Some(verdict) = waiting::closed_on_accept(view.turned()) {
        return Some(verdict.of_other());
    }
    if let Some(verdict) = waiting::peer_gave_up(view) {
        return Some(verdict);
    }
    if socket.state == Some(State::CloseWait) {
        return Some(wrote_on(view.this));
    }
    let silent = silence_before_reset(socket).map(|_| Cause::IdleTimeout);
    let verdict = Verdict::new(Cause::ResetByPeer)
        .certainty(Certainty::Medium)
        .hint(silent)
        .interval(socket.heard_ago_ms);
    // A client may leave a server at any time; nothing is wrong here.
    Some(match socket.side {
        Some(Side::Server) if silent.is_none() => verdict.severity(Severity::Info),
        _ => verdict,
    })
}

/// An end wrote after the other had closed. A client may leave in the middle of an answer; a server
/// that closes on its client is worth a look.
pub(super) fn wrote_on(writer: &End) -> Verdict {
    let verdict = Verdict::new(Cause::WriteAfterPeerClose).hint(stale_pooled(writer));
    match writer.side() {
        Some(Side::Server) => verdict.severity(Severity::Info),
        _ => verdict,
    }
}

/// A call failed, and no event on the wire is behind it.
pub(super) fn judge_error(view: View<'_>) -> Option<Verdict> {
    let (seen, call) = view.this.first_error()?;
    let socket = seen.socket()?;
    let shut = socket.shutdown_ago_us.is_some();
    let cause = match call.errno.0 {
        _ if call.timeout => Cause::SocketTimeout,
        libc::EADDRINUSE => Cause::AddressInUse,
        libc::EPIPE | libc::ENOTCONN if is_unconnected(socket) => Cause::NotConnected,
        libc::EPIPE if shut && socket.state != Some(State::CloseWait) => Cause::WriteAfterShutdown,
        libc::ENOTCONN if seen.first.caused_by.is_none() && !shut => Cause::NotConnected,
        libc::EPIPE => match socket.state {
            Some(State::FinWait1 | State::FinWait2 | State::LastAck | State::Closing) => {
                Cause::WriteAfterShutdown
            }
            _ => return None,
        },
        // Its RST came before the trace began.
        libc::ECONNRESET if seen.first.caused_by.is_none() => {
            return Some(Verdict::new(Cause::ResetByPeer).certainty(Certainty::Low));
        }
        _ => return None,
    };
    Some(Verdict::new(cause))
}

/// Never connected, or a listener.
fn is_unconnected(socket: &Socket) -> bool {
    socket.state == Some(State::Listen)
        || socket.flow.peer.is_none() && matches!(socket.state, None | Some(State::Closed))
}

pub(super) fn tell(view: View<'_>, verdict: &Verdict) -> Option<Words> {
    let words = match verdict.cause {
        Cause::WriteAfterPeerClose => write_after_peer_close(view, verdict),
        Cause::ResetByPeer => reset_by_peer(view, verdict),
        Cause::RejectedByFirewall => {
            let socket = view.this.socket();
            Words::new(
                format!(
                    "{} was rejected on {}: a RST or an ICMP error came that no socket of this host sent",
                    who(view.this, "a process"),
                    connection(socket)
                ),
                "Both ends are on this host, and the kernel's TCP sent no RST. A netfilter rule with \
                 REJECT answers in TCP's place (--reject-with tcp-reset, or icmp-port-unreachable, \
                 which a program sees as ECONNREFUSED).",
            )
            .fix("nft list ruleset; iptables-save -c: a REJECT rule whose counter grows")
            .ruled_out("the programs at both ends: TCP sent no RST on this host")
        }
        Cause::WriteAfterShutdown => {
            let (seen, call) = view.this.first_error()?;
            let socket = seen.socket();
            let ago = socket.and_then(|socket| socket.shutdown_ago_us);
            let when = ago.map_or("before".to_owned(), |us| format!("{} before", Micros(us)));
            Words::new(
                format!(
                    "{} wrote on {}{}, whose sending side it had shut down itself {when}, and got {}",
                    who(view.this, "a process"),
                    connection(socket),
                    fd(socket),
                    call.errno
                ),
                "After shutdown(SHUT_WR) nothing can be sent. The peer has nothing to do with it: no RST \
                 came.",
            )
            .fix("find the second writer: often another thread, a retry, or a flush after the shutdown (TLS close_notify, a buffered stream's close)")
            .ruled_out("the peer: no RST was received")
            .not_the_network(view)
        }
        Cause::NotConnected | Cause::SocketTimeout | Cause::AddressInUse => {
            let (seen, call) = view.this.first_error()?;
            calls(view, verdict.cause, seen.socket(), call)
        }
        _ => return None,
    };
    Some(words)
}

fn write_after_peer_close(view: View<'_>, verdict: &Verdict) -> Words {
    let received = view.this.reset_received();
    let socket = received
        .and_then(|(seen, _)| seen.socket())
        .or(view.this.socket());
    let writer = who(view.this, "a process");
    let closer = peer(view, "the peer");
    let fin = view.this.sockets().find_map(|socket| socket.fin);
    let when = fin.map_or("before".to_owned(), |fin| {
        format!("{} before", Micros(fin.ago_us))
    });
    let written = fin.and_then(|fin| fin.written).unwrap_or(0);
    let mut title = format!(
        "{closer} had closed {} {when}; {writer} still wrote",
        connection(socket)
    );
    if written > 0 {
        let _ = write!(title, " {}", Count(written.into(), "byte"));
    }
    title.push_str(" and drew a RST");
    let broken = train(view);
    if !broken.is_empty() {
        let _ = write!(title, ", then got {broken}");
    }
    let words = Words::new(
        title,
        "The peer's FIN says that it will send no more; the first write after its close still \
         \"works\", is answered with a RST, and the writes after that fail with EPIPE and SIGPIPE.",
    );
    let words = if verdict.hint == Some(Cause::StalePooledConnection) {
        let idle = fin.map_or(0, |fin| fin.idle_ms);
        let words = words.fix(format!(
            "the connection had rested for {} when its server closed it: keep connections in the pool for \
             less than that, or check before use (a read that returns 0), and retry once on a new one",
            Millis(idle)
        ));
        match waiting::deadline(idle) {
            Some(known) => words.fix(format!(
                "{known}: raise the server's keep-alive above the client's"
            )),
            None => words,
        }
    } else {
        words
            .fix(format!(
                "let {writer} read (or poll for POLLRDHUP) and close when the read returns 0, before it writes again"
            ))
            .fix(format!("and ask why {closer} closed: a deadline, a limit, an error in its log"))
    };
    words.not_the_network(view)
}

fn reset_by_peer(view: View<'_>, verdict: &Verdict) -> Words {
    let received = view.this.reset_received();
    let socket = received
        .and_then(|(seen, _)| seen.socket())
        .or(view.this.socket());
    let victim = who(view.this, "a process");
    let here = socket.is_some_and(|socket| socket.flow.local.ip().is_loopback());
    let sender = if here {
        "of this host"
    } else {
        "from elsewhere"
    };
    let mut title = format!("a RST {sender} ended {} of {victim}", connection(socket));
    if let Some(socket) = socket {
        if answered_our_write(socket) {
            let _ = write!(
                title,
                ": it answered {}",
                Count(socket.unacked.into(), "byte")
            );
            title.push_str(" just written");
        } else {
            title.push_str(": it came unprovoked");
        }
        if let Some(heard) = socket.heard_ago_ms {
            let _ = write!(title, ", {} after the peer was last heard", Millis(heard));
        }
    }
    if here {
        return Words::new(
            title,
            "The RST came over loopback, so this host sent it, and that was not seen. Not every kernel has a \
             hook that shows the RSTs of sockets that are gone and of ports that nobody listens on (tcptrace \
             doctor).",
        )
        .fix("ask whether the server restarted or closed the connection: ss -ltnp says who listens now")
        .ruled_out("the network: loopback has none");
    }
    let words = Words::new(
        title,
        "The RST came from the network. It cannot be seen whether the peer sent it or something on the \
         way in its name (a firewall, a load balancer, a NAT that forgot the connection).",
    );
    let words = match (verdict.hint, socket.and_then(silence_before_reset)) {
        (Some(Cause::IdleTimeout), Some(silence)) => {
            let words = words
                .fix(format!(
                    "nothing had been heard for {}: something may forget silent connections. Send \
                     keepalives more often than that (SO_KEEPALIVE with TCP_KEEPIDLE, the pool's own \
                     ping), or close pooled connections earlier",
                    Millis(silence)
                ));
            match waiting::deadline(silence) {
                Some(known) => words.fix(known.to_string()),
                None => words,
            }
        }
        _ => words.fix("look at the peer at this moment: a restart, a crash, a limit, SO_LINGER 0, a close with unread data (tcptrace there names it)"),
    };
    let words = words.fix(
        "a RST whose TTL differs from the connection's other segments is not the peer's: tcpdump -nv \
         'tcp[tcpflags] & tcp-rst != 0'",
    );
    words.ruled_out("this host: it sent no RST")
}

fn address_in_use(view: View<'_>, socket: Option<&Socket>, call: &CallError) -> Words {
    let process = who(view.this, "a process");
    let local = socket.map(|socket| crate::event::End(socket.flow.local).to_string());
    let mut title = format!(
        "{process} wanted {} and got {}",
        local.unwrap_or_else(|| "a port".to_owned()),
        call.errno
    );
    let holder = view.this.port_holder();
    let why = "A listener, or a socket bound to it, holds this address and port; without SO_REUSEADDR so \
               does a connection in TIME_WAIT, for a minute.";
    match holder {
        Some(holder) => {
            let _ = write!(
                title,
                ": {} holds {} ({})",
                named(holder.owner.as_ref(), "nobody"),
                crate::event::End(holder.address),
                holder.state
            );
            let words = Words::new(title, why);
            match &holder.owner {
                Some(owner) => words.fix(format!(
                    "stop {owner} or choose another port; a second start of the same service is the usual reason"
                )),
                None => words.fix("set SO_REUSEADDR before bind: then TIME_WAIT does not keep the port"),
            }
        }
        None => Words::new(title, why)
            .fix("ss -tlnp 'sport = :PORT' names the holder; ss -tn state time-wait shows what only waits")
            .fix("set SO_REUSEADDR before bind: then TIME_WAIT does not keep the port"),
    }
    .ruled_out("the network: no segment was sent")
}

/// The errors that followed, e.g. `3 EPIPE`.
fn train(view: View<'_>) -> String {
    let errors = view.this.errnos();
    let list: Vec<_> = errors
        .map(|(errno, count)| format!("{count} {errno}"))
        .collect();
    list.join(", ")
}

fn calls(view: View<'_>, cause: Cause, socket: Option<&Socket>, call: &CallError) -> Words {
    let process = who(view.this, "a process");
    let on = call
        .syscall
        .map_or("a call".to_owned(), |it| it.to_string());
    let fd = fd(socket);
    match cause {
        Cause::NotConnected => {
            let state = socket.and_then(|socket| socket.state);
            let what = match state {
                Some(State::Listen) => "a listening socket",
                _ => "a socket that is not connected",
            };
            Words::new(
                format!("{process} called {on} on{fd}, {what}, and got {}", call.errno),
                "Only a connected socket sends and receives. recv and shutdown fail with ENOTCONN, a \
                 send with EPIPE: it looks like a broken connection, and there never was one.",
            )
            .fix("look for the descriptor that was mixed up (the listener's instead of the accepted one), or for a connect whose failure was not looked at")
            .ruled_out("the peer and the network: nothing was sent")
        }
        Cause::SocketTimeout => {
            let (option, why) = if call.send == Some(true) {
                (
                    "SO_SNDTIMEO",
                    "the send buffer stayed full: the peer did not take the bytes",
                )
            } else {
                ("SO_RCVTIMEO", "no byte came in that time")
            };
            let silent = socket.and_then(|socket| socket.received_ago_ms);
            let words = Words::new(
                format!(
                    "{process} waited in {on} on{fd} {} until {option} expired, and got {}{}",
                    connection(socket),
                    call.errno,
                    silent.map_or(String::new(), |ms| format!("; the peer last sent data {} ago", Millis(ms)))
                ),
                format!("The program limited the wait with {option}; {why}. It reads as \"resource temporarily unavailable\"."),
            )
            .fix(format!("look at the peer: why does it not {}?", if call.send == Some(true) { "read" } else { "answer" }))
            .fix(format!("raise {option} only if such a wait is worth it"));
            words.not_the_network(view)
        }
        _ => address_in_use(view, socket, call),
    }
}
