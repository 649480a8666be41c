//! A connection that never came to be.

use super::connection::{Seen, View};
use super::verdict::{Verdict, Words, fact, who};
use super::waiting::LONG_MS;
use crate::event::{
    Cause, Certainty, ConnectFailed, Count, End, Fact, Micros, Millis, Nearby, Severity, Socket,
};

/// What a refusal or a failed connect comes to; of a refusal whose client is not here, the end that
/// refused.
pub(super) fn judge(view: View<'_>, sees_all_resets: bool) -> Option<Verdict> {
    let Some((seen, connect)) = view.this.connect_failed() else {
        return refusing(view);
    };
    let cause = match connect.errno.map(|errno| errno.0) {
        None => {
            let waited = connect.duration_us.map(|us| us / 1_000);
            // The slower of two happy eyeballs.
            if waited.is_some_and(|ms| ms < LONG_MS) {
                return None;
            }
            let verdict = Verdict::new(Cause::ConnectAbandoned).interval(waited);
            return Some(verdict.severity(Severity::Info));
        }
        Some(libc::ECONNREFUSED) => return Some(refused(view, seen, sees_all_resets)),
        Some(libc::ETIMEDOUT) => Cause::ConnectTimeout,
        // EACCES: an ICMPv6 message or a route says that it is prohibited.
        Some(
            libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::EHOSTDOWN
            | libc::EACCES,
        ) => Cause::Unreachable,
        Some(libc::EADDRNOTAVAIL) => Cause::PortsExhausted,
        Some(libc::EADDRINUSE) => Cause::AddressInUse,
        _ => return None,
    };
    Some(Verdict::new(cause))
}

fn refused(view: View<'_>, seen: &Seen, sees_all_resets: bool) -> Verdict {
    let loopback = seen
        .socket()
        .is_some_and(|socket| socket.flow.local.ip().is_loopback());
    let rst_here = view.other.reset_sent().is_some();
    if rst_here {
        Verdict::new(Cause::NoListener)
    } else if loopback && (view.this.reset_received().is_none() || sees_all_resets) {
        // TCP of this host would have been seen to refuse.
        Verdict::new(Cause::RejectedByFirewall).certainty(Certainty::Medium)
    } else if loopback {
        Verdict::new(Cause::NoListener).certainty(Certainty::Medium)
    } else {
        // A REJECT on the way, or in this host's own output, answers in the peer's name.
        Verdict::new(Cause::RefusedByPeer).certainty(Certainty::Medium)
    }
}

/// This end refused a client; one of another host, or one that is not traced, is not known.
fn refusing(view: View<'_>) -> Option<Verdict> {
    let (seen, _) = view.this.reset_sent()?;
    if seen.cause() != Some(Cause::NoListener) || view.other.connect_failed().is_some() {
        return None;
    }
    let verdict = Verdict::new(Cause::NoListener);
    Some(if view.other.is_unseen() {
        verdict.severity(Severity::Info)
    } else {
        verdict.of_other()
    })
}

pub(super) fn tell(view: View<'_>, cause: Cause) -> Option<Words> {
    let Some((seen, connect)) = view.this.connect_failed() else {
        return (cause == Cause::NoListener).then(|| tell_refusing(view));
    };
    let socket = seen.socket();
    let client = who(view.this, "a process");
    let server = server(socket);
    let words = match cause {
        Cause::NoListener => no_listener(seen, &format!("{client} was refused by {server}: ")),
        Cause::RejectedByFirewall => Words::new(
            format!("{client} was refused by {server}, and no TCP of this host did it"),
            "An ICMP error, or a RST that netfilter made, reads as ECONNREFUSED: a rule with REJECT does \
             that in TCP's place.",
        )
        .fix("nft list ruleset; iptables-save -c: a REJECT rule whose counter grows")
        .ruled_out("a missing listener: TCP would have answered with a RST of its own"),
        Cause::RefusedByPeer => Words::new(
            format!("{client} was refused by {server}{}", after(connect)),
            "A RST (or an ICMP error) answered the SYN: nothing listens on that port of that host, or a \
             firewall rejects it. The host itself was reached.",
        )
        .fix("on that host: ss -ltn, is anything listening on this port and address, or only on 127.0.0.1?")
        .fix("does the name resolve to the host you mean, and is this the right port?")
        .fix("an answer faster than the way there and back is a REJECT of this host: nft list ruleset, iptables-save -c")
        .ruled_out("routing and DNS: something there answered at once"),
        Cause::Unreachable => Words::new(
            format!(
                "{client} has no way to {server}: {}{}",
                connect.errno.map_or(String::new(), |it| it.to_string()),
                after(connect)
            ),
            "ENETUNREACH: no route fits the address, so nothing was sent. EHOSTUNREACH: a route fits, but \
             the neighbour did not answer, or a router said so. EACCES: a router or a route of this host \
             prohibits it.",
        )
        .fix("ip route get ADDRESS, ip neigh: in the network namespace of this process (nsenter -t PID -n)")
        .fix("for an IPv6 address on a host without IPv6: prefer IPv4 or let the client try both")
        .ruled_out("the server's program: nothing reached it"),
        Cause::ConnectTimeout => Words::new(
            format!(
                "{client} sent {} to {server} and never got an answer{}",
                Count(connect.attempts.into(), "SYN"),
                after(connect)
            ),
            "The SYNs were lost or dropped: the host is down, a firewall drops them, the answer takes \
             another way, or the server's accept or SYN queue was full.",
        )
        .fix("tcpdump on both ends: do the SYNs arrive there, and does a SYN-ACK leave?")
        .fix("on the server: nstat -az TcpExtListenDrops TcpExtListenOverflows TcpExtTCPReqQFullDrop")
        .fix("a shorter limit fails faster: the client's connect timeout, or net.ipv4.tcp_syn_retries")
        .ruled_out("a refusal: nobody answered at all"),
        Cause::PortsExhausted => ports(seen, &format!("{client} found no free local port for {server}")),
        Cause::ConnectAbandoned => Words::new(
            format!(
                "{client} gave up connecting to {server}{}, {} unanswered",
                after(connect),
                Count(connect.attempts.into(), "SYN")
            ),
            "The program closed the socket while its SYN had no answer: its own connect deadline, or it \
             was told to stop.",
        )
        .fix("see connect_timeout for why nothing answered; the program's deadline only came first")
        .ruled_out("a refusal: nobody answered at all"),
        Cause::AddressInUse => Words::new(
            format!("{client} could not connect to {server}: the local address and port are taken"),
            "The program chose its local port itself, and a connection with these very ends exists or is \
             in TIME_WAIT.",
        )
        .fix("do not bind before connect, or let the kernel choose the port")
        .ruled_out("the network and the server: no SYN was sent"),
        _ => return None,
    };
    Some(words)
}

fn tell_refusing(view: View<'_>) -> Words {
    let socket = view.this.socket();
    let local = socket.map_or("a port".to_owned(), |it| End(it.flow.local).to_string());
    let peer = socket
        .and_then(|socket| socket.flow.peer)
        .map_or("somebody".to_owned(), |peer| {
            crate::event::Address(peer.ip()).to_string()
        });
    Words::new(
        format!("{peer} was refused: nothing listens on {local}"),
        "A SYN for a port without a listener is answered with a RST: the client sees ECONNREFUSED.",
    )
    .fix("if it should be served: is the service down, on another port, or bound to another address (ss -ltn)?")
    .fix("many ports of one client are a port scan")
    .ruled_out("a firewall of this host: TCP itself refused")
}

fn no_listener(seen: &Seen, begin: &str) -> Words {
    let mut title = format!("{begin}nothing listens there");
    let nearby = fact(seen, |fact| match fact {
        Fact::Nearby(list) => Some(list),
        _ => None,
    });
    let netns = seen.socket().map_or(0, |socket| socket.flow.netns);
    let words = match nearby.map(|list| &**list) {
        None | Some([]) => Words::new(
            title,
            "The kernel answered the SYN with a RST, because no socket listens on this port and address.",
        )
        .fix("start the service, or mend the port: ss -ltnp"),
        Some(list) => {
            title.push_str("; but there is ");
            let there: Vec<_> = list.iter().take(3).map(|it| describe(it, netns)).collect();
            title.push_str(&there.join(", "));
            Words::new(
                title,
                "The kernel answered the SYN with a RST, because no socket listens on this port and \
                 address in this network namespace.",
            )
            .fix(
                "connect to the address that is listened on, or let the service listen on 0.0.0.0 or [::]; \
                 for another namespace (a container) publish the port or use its address",
            )
        }
    };
    words.ruled_out("the network: the refusal came from this host")
}

fn describe(nearby: &Nearby, netns: u32) -> String {
    let place = if nearby.netns == netns {
        String::new()
    } else {
        format!(" in network namespace {}", nearby.netns)
    };
    let by = match &nearby.owner {
        Some(owner) => format!(" of {owner}"),
        None => String::new(),
    };
    format!("a listener{by} on {}{place}", End(nearby.address))
}

fn ports(seen: &Seen, title: &str) -> Words {
    let ports = fact(seen, |fact| match fact {
        Fact::Ports(ports) => Some(*ports),
        _ => None,
    });
    let why = "Each connection to one server address and port needs a local port of its own, from \
               net.ipv4.ip_local_port_range; those in TIME_WAIT keep theirs for a minute.";
    let words = match ports {
        Some(ports) => {
            let size = u32::from(ports.last).saturating_sub(ports.first.into()) + 1;
            Words::new(
                format!(
                    "{title}: of the {size} ports {}-{}, {} are in TIME_WAIT to it and {} in use",
                    ports.first, ports.last, ports.time_wait, ports.in_use
                ),
                why,
            )
        }
        None => Words::new(title.to_owned(), why),
    };
    words
        .fix("use connections again (keep-alive, a pool) instead of one for each request")
        .fix("widen net.ipv4.ip_local_port_range, or use more addresses at either end")
        .fix("net.ipv4.tcp_tw_reuse=1 lets outgoing connections take ports in TIME_WAIT")
        .ruled_out("the network and the server: no SYN was sent")
}

fn server(socket: Option<&Socket>) -> String {
    socket
        .and_then(|socket| socket.flow.peer)
        .map_or("its server".to_owned(), |peer| End(peer).to_string())
}

fn after(connect: &ConnectFailed) -> String {
    match connect.duration_us {
        Some(us) if us >= 1_000_000 => format!(" after {}", Millis(us / 1_000)),
        Some(us) => format!(" after {}", Micros(us)),
        None => String::new(),
    }
}
