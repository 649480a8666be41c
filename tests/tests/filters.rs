//! Each filter lets through what it names, and the other end of it on this host, and no more.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tcptrace_tests::cgroup::Cgroup;
use tcptrace_tests::*;

/// Two servers and a client, over IPv4 and IPv6: each server closes with unread bytes.
struct Town {
    left: Actor,
    right: Actor,
    client: Actor,
    /// The connections to the left server, IPv4 then IPv6.
    to_left: [Pair; 2],
    to_right: [Pair; 2],
}

impl Town {
    fn new() -> Result<Self> {
        let (mut left, mut right) = (actor_as("left", 1001)?, actor_as("right", 1002)?);
        let mut client = actor_as("client", 1003)?;
        let mut to = |server: &mut Actor, ends: [&str; 2]| -> Result<[Pair; 2]> {
            let mut pair = |addr| connected(server, &mut client, addr);
            Ok([pair(ends[0])?, pair(ends[1])?])
        };
        let to_left = to(&mut left, ["127.0.0.1:7001", "[::1]:7001"])?;
        let to_right = to(&mut right, ["127.0.0.2:7002", "[::1]:7002"])?;
        Ok(Self {
            left,
            right,
            client,
            to_left,
            to_right,
        })
    }

    /// Provokes all four resets.
    fn fall(&mut self) -> Result<()> {
        for (server, pairs) in [
            (&mut self.left, &self.to_left),
            (&mut self.right, &self.to_right),
        ] {
            for pair in pairs {
                close_unread(server, &mut self.client, pair, 4)?;
            }
        }
        Ok(())
    }
}

/// Provokes the resets under a filter: the servers' addresses of those seen, each at both ends.
fn resets(args: &[&str]) -> Result<Vec<SocketAddr>> {
    let (events, pairs) = fall_under(args)?;
    Ok(both_ends(&events, &pairs))
}

/// How many resets were sent by which server's address, and how many received from it.
fn ends(args: &[&str], server: &str) -> Result<(u64, u64)> {
    let (events, _) = fall_under(args)?;
    let server = server.parse()?;
    let sent = events.named("reset.sent");
    let received = events.named("reset.received");
    let counts = (sent.local(server).count(), received.peer(server).count());
    assert_eq!((sent.count(), received.count()), counts, "and no other");
    Ok(counts)
}

fn fall_under(args: &[&str]) -> Result<(Events, Vec<Pair>)> {
    let mut result = Ok((Events::default(), vec![]));
    in_netns(|netns| {
        result = (|| {
            let tracer = trace(netns, args)?;
            let mut town = Town::new()?;
            town.fall()?;
            Ok((Events::of(tracer)?, [town.to_left, town.to_right].concat()))
        })();
        Ok(())
    });
    result
}

fn both_ends(events: &Events, pairs: &[Pair]) -> Vec<SocketAddr> {
    let mut seen = vec![];
    for pair in pairs {
        let sent = events.named("reset.sent").at_server(pair).count();
        let received = events.named("reset.received").at_client(pair).count();
        assert_eq!(
            sent, received,
            "of a connection inside the host both ends are shown"
        );
        if sent > 0 {
            seen.push(pair.server_addr);
        }
    }
    let resets = events.only(|event| event.name().starts_with("reset."));
    assert_eq!(resets.count(), 2 * seen.len() as u64, "and no other");
    seen
}

/// The namespace this program was started in, by number.
fn hosts_netns() -> Result<String> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self/ns/net")?.ino().to_string())
}

fn addrs(list: &[&str]) -> Vec<SocketAddr> {
    list.iter().filter_map(|addr| addr.parse().ok()).collect()
}

const LEFT: [&str; 2] = ["127.0.0.1:7001", "[::1]:7001"];
const RIGHT: [&str; 2] = ["127.0.0.2:7002", "[::1]:7002"];
const ALL: [&str; 4] = [LEFT[0], LEFT[1], RIGHT[0], RIGHT[1]];

#[test]
fn without_a_filter_all_are_seen() -> Result<()> {
    assert_eq!(resets(&[])?, addrs(&ALL));
    Ok(())
}

#[test]
fn by_name() -> Result<()> {
    assert_eq!(resets(&["--comm", "left"])?, addrs(&LEFT));
    assert_eq!(resets(&["--comm", "left", "--comm", "right"])?, addrs(&ALL));
    assert_eq!(resets(&["--comm", "client"])?, addrs(&ALL));
    assert_eq!(resets(&["--comm", "nobody"])?, []);
    Ok(())
}

#[test]
fn by_user() -> Result<()> {
    assert_eq!(resets(&["--uid", "1001"])?, addrs(&LEFT));
    assert_eq!(resets(&["--uid", "1002"])?, addrs(&RIGHT));
    assert_eq!(resets(&["--uid", "0"])?, []);
    Ok(())
}

#[test]
fn by_port() -> Result<()> {
    assert_eq!(resets(&["--port", "7001"])?, addrs(&LEFT));
    assert_eq!(resets(&["--port", "7003"])?, []);
    Ok(())
}

#[test]
fn by_address() -> Result<()> {
    assert_eq!(resets(&["--addr", "127.0.0.2/32"])?, addrs(&RIGHT[..1]));
    assert_eq!(
        resets(&["--addr", "127.0.0.0/8"])?,
        addrs(&[LEFT[0], RIGHT[0]])
    );
    assert_eq!(resets(&["--addr", "::1"])?, addrs(&[LEFT[1], RIGHT[1]]));
    assert_eq!(resets(&["--addr", "10.0.0.0/8"])?, []);
    Ok(())
}

#[test]
fn a_v4_mapped_address_lies_in_no_ipv6_network() {
    in_netns(|netns| {
        let by_v4 = trace(netns, &["--addr", "0.0.0.0/0"])?;
        let by_v6 = trace(netns, &["--addr", "::/0"])?;
        let by_peer = trace(netns, &["--peer", "::/0"])?;
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut pairs = vec![];
        for addr in LOOPBACKS {
            let pair = connected(&mut server, &mut client, addr)?;
            close_unread(&mut server, &mut client, &pair, 4)?;
            pairs.push(pair);
        }
        let [v4, v6, mapped] = [0, 1, 2].map(|which| pairs[which].server_addr);
        assert_eq!(both_ends(&Events::of(by_v4)?, &pairs), [v4, mapped]);
        assert_eq!(both_ends(&Events::of(by_v6)?, &pairs), [v6]);
        assert_eq!(both_ends(&Events::of(by_peer)?, &pairs), [v6]);
        Ok(())
    });
}

#[test]
fn by_one_ends_port_or_address_only_that_end_is_seen() -> Result<()> {
    assert_eq!(ends(&["-4", "-L", "7002"], RIGHT[0])?, (1, 0));
    assert_eq!(ends(&["-4", "-D", "7001"], LEFT[0])?, (0, 1));
    assert_eq!(ends(&["--peer", "127.0.0.2"], RIGHT[0])?, (0, 1));
    assert_eq!(ends(&["-6", "--peer", "10.0.0.0/8"], RIGHT[1])?, (0, 0));
    Ok(())
}

#[test]
fn by_family() -> Result<()> {
    assert_eq!(resets(&["-4"])?, addrs(&[LEFT[0], RIGHT[0]]));
    assert_eq!(resets(&["-6"])?, addrs(&[LEFT[1], RIGHT[1]]));
    Ok(())
}

#[test]
fn by_namespace() {
    in_netns(|netns| {
        let mut town = Town::new()?;
        let elsewhere = trace_unfiltered(&["--netns", &hosts_netns()?])?;
        let here = trace(netns, &[])?;
        town.fall()?;
        let pairs = [town.to_left, town.to_right].concat();
        assert_eq!(both_ends(&Events::of(here)?, &pairs), addrs(&ALL));
        assert_eq!(both_ends(&Events::of(elsewhere)?, &pairs), []);
        Ok(())
    });
}

#[test]
fn a_call_without_a_socket_is_made_in_its_callers_namespace() {
    in_netns(|netns| {
        let elsewhere = trace_unfiltered(&["--netns", &hosts_netns()?, "--event", "fd"])?;
        let here = trace(netns, &["--event", "fd"])?;
        let mut program = actor("program")?;
        program.send(-1, b"x").expect_err("EBADF");
        program.limit_descriptors(1)?;
        program.socket(libc::AF_INET, 0).expect_err("EMFILE");
        let here = Events::of(here)?;
        assert_eq!(here.named("fd.invalid").pids(), [program.pid()]);
        assert_eq!(here.named("fd.exhausted").pids(), [program.pid()]);
        let elsewhere = Events::of(elsewhere)?;
        assert_eq!(
            elsewhere
                .only(|e| e.name().starts_with("fd.") && e.pid() == Some(program.pid().into()))
                .count(),
            0
        );
        Ok(())
    });
}

#[test]
fn by_process() {
    in_netns(|netns| {
        let mut town = Town::new()?;
        let tracer = trace(netns, &["--pid", &town.right.pid().to_string()])?;
        town.fall()?;
        let events = Events::of(tracer)?;
        assert_eq!(
            both_ends(&events, &[town.to_left, town.to_right].concat()),
            addrs(&RIGHT)
        );
        Ok(())
    });
}

#[test]
fn by_process_and_its_children() {
    in_netns(|netns| {
        let mut parent = actor("parent")?;
        let mut client = actor("client")?;
        let pid = parent.pid().to_string();
        let alone = trace(netns, &["--pid", &pid])?;
        let family = trace(netns, &["--pid", &pid, "--children"])?;
        let mut child = fork(&mut parent)?;
        let mut grandchild = fork(&mut child)?;
        let pair = connected(&mut grandchild, &mut client, LOOPBACKS[0])?;
        close_unread(&mut grandchild, &mut client, &pair, 4)?;
        assert_eq!(both_ends(&Events::of(alone)?, &[pair]), []);
        assert_eq!(both_ends(&Events::of(family)?, &[pair]), [pair.server_addr]);
        Ok(())
    });
}

#[test]
fn by_cgroup() {
    in_netns(|netns| {
        // First of all, so that it is dropped after the actors.
        let cgroup = Cgroup::new(&format!("tcptrace-test-filter-{}", std::process::id()))?;
        let path = cgroup.path()?;
        let name = path.rsplit('/').next().context("a name")?;
        let (by_path, by_name) = (
            trace(netns, &["--cgroup", path])?,
            trace(netns, &["--cgroup", name])?,
        );
        let (mut inside, mut outside) = (actor("inside")?, actor("outside")?);
        let mut client = actor("client")?;
        cgroup.take(inside.pid())?;
        let mut pairs = vec![];
        for server in [&mut inside, &mut outside] {
            for addr in LOOPBACKS {
                let pair = connected(server, &mut client, addr)?;
                close_unread(server, &mut client, &pair, 4)?;
                pairs.push(pair);
            }
        }
        let of_inside: Vec<_> = pairs[..3].iter().map(|pair| pair.server_addr).collect();
        for tracer in [by_path, by_name] {
            let events = Events::of(tracer)?;
            assert_eq!(both_ends(&events, &pairs), of_inside);
            assert_eq!(
                events.named("reset.sent").pids(),
                [inside.pid()].repeat(LOOPBACKS.len())
            );
        }
        Ok(())
    });
}

#[test]
fn by_kind_of_event() {
    in_netns(|netns| {
        let received = trace(netns, &["--event", "reset.received"])?;
        let resets = trace(netns, &["--event", "reset"])?;
        let with_states = trace(netns, &["--event", "+state.changed"])?;
        let mut town = Town::new()?;
        town.fall()?;
        for pair in [town.to_left, town.to_right].concat() {
            town.client.recv(pair.client, 1).expect_err("ECONNRESET");
        }
        let kinds = |tracer| -> Result<Vec<String>> {
            let mut names: Vec<String> = Events::of(tracer)?
                .0
                .iter()
                .map(|event| event.name().to_owned())
                .collect();
            names.retain(|name| !matches!(name.as_str(), "coverage" | "summary"));
            names.sort_unstable();
            names.dedup();
            Ok(names)
        };
        assert_eq!(kinds(received)?, ["reset.received"]);
        assert_eq!(kinds(resets)?, ["reset.received", "reset.sent"]);
        assert_eq!(
            kinds(with_states)?,
            [
                "finding",
                "reset.received",
                "reset.sent",
                "socket.error",
                "state.changed"
            ]
        );
        Ok(())
    });
}

#[test]
fn by_error() {
    in_netns(|netns| {
        let tracer = trace(netns, &["--event", "socket.error", "--errno", "EPIPE"])?;
        let mut town = Town::new()?;
        town.fall()?;
        for pair in [town.to_left, town.to_right].concat() {
            town.client.recv(pair.client, 1).expect_err("ECONNRESET");
            town.client.send(pair.client, b"x").expect_err("EPIPE");
        }
        let errors = Events::of(tracer)?.named("socket.error");
        assert_eq!(errors.count(), 4);
        assert_eq!(errors.error("EPIPE").pids(), [town.client.pid()].repeat(4));
        Ok(())
    });
}
