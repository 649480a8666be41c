//! `tcptrace sockets` against `ss`, `nstat`, `/proc` and what the actors did.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};
use tcptrace_tests::sock_diag::without_sock_diag;
use tcptrace_tests::sockets::{Socket, wait_for_close_wait, wait_for_sockets};
use tcptrace_tests::*;

/// `tcptrace sockets` of the calling thread's namespace alone, with further arguments.
fn look_with(netns: &Netns, args: &[&str]) -> Result<Output> {
    let path = netns.path();
    let path = path.to_str().context("a path in /proc")?;
    let mut command = tcptrace();
    command.args(["sockets", "--netns", path]).args(args);
    Ok(command.stdin(Stdio::null()).output()?)
}

/// The records of one.
fn look(netns: &Netns, args: &[&str]) -> Result<Events> {
    let output = look_with(netns, &[&["-o", "json"], args].concat())?;
    records(&output)
}

fn records(output: &Output) -> Result<Events> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", output.status);
    let lines = str::from_utf8(&output.stdout)?.lines();
    let records = lines.map(|line| Ok(Record(serde_json::from_str(line)?)));
    Ok(Events(records.collect::<Result<_>>()?))
}

/// Lines of a tool of iproute2, in words.
fn lines_of(program: &str, args: &[&str]) -> Result<Vec<Vec<String>>> {
    let output = Command::new(program).args(args).output()?;
    ensure!(output.status.success(), "{program}: {}", output.status);
    let lines = str::from_utf8(&output.stdout)?.lines();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    Ok(lines.map(words).collect())
}

/// How many sockets `ss` shows in each state, by our name of it.
fn states_of_ss() -> Result<BTreeMap<String, u64>> {
    let mut states = BTreeMap::new();
    for line in lines_of("ss", &["-tanH"])? {
        let state = match line.first().map_or("", String::as_str) {
            "ESTAB" => "established",
            "SYN-SENT" => "syn_sent",
            "SYN-RECV" => "syn_received",
            "FIN-WAIT-1" => "fin_wait_1",
            "FIN-WAIT-2" => "fin_wait_2",
            "TIME-WAIT" => "time_wait",
            "CLOSE-WAIT" => "close_wait",
            "LAST-ACK" => "last_ack",
            "LISTEN" => "listen",
            "CLOSING" => "closing",
            other => other,
        };
        *states.entry(state.to_owned()).or_default() += 1;
    }
    Ok(states)
}

/// The counts by state of a record.
fn states(record: &Record) -> BTreeMap<String, u64> {
    let attributes = record.0["attributes"].as_object().into_iter().flatten();
    let states = attributes.filter_map(|(name, value)| {
        let state = name.strip_prefix("tcptrace.sockets.")?;
        Some((state.to_owned(), value.as_u64()?))
    });
    states.filter(|(state, _)| state != "total").collect()
}

/// A look between two of `ss` that say the same.
fn look_beside_ss(netns: &Netns) -> Result<(Events, BTreeMap<String, u64>)> {
    let mut found = None;
    wait_until("ss to say the same twice", || {
        let look = || -> Result<_> { Ok((states_of_ss()?, look(netns, &[])?, states_of_ss()?)) };
        let (before, events, after) = look().map_err(std::io::Error::other)?;
        let settled = before == after;
        found = Some((events, after));
        Ok(settled)
    })?;
    found.context("no look")
}

/// What the actors left in one family: on the server four connections that the client has closed (one with
/// five bytes unread, one whose end was read, two neither), one that waits for `accept`, and one in
/// TIME_WAIT at each end.
struct Scene {
    listener: Fd,
    addr: SocketAddr,
    read: Fd,
}

const STUCK: u64 = 4;

fn scene(server: &mut Actor, client: &mut Actor, addr: &str) -> Result<Scene> {
    let (listener, addr) = listen(server, addr, 8)?;
    let pair = |server: &mut Actor, client: &mut Actor| -> Result<Pair> {
        Ok(Pair::new(server, client, (listener, addr))?)
    };
    for bytes in [&b"five!"[..], b"", b""] {
        let pair = pair(server, client)?;
        if !bytes.is_empty() {
            client.send(pair.client, bytes)?;
        }
        client.shutdown(pair.client, libc::SHUT_WR)?;
        server.wait_for(pair.server, libc::POLLRDHUP)?;
    }
    let read = pair(server, client)?;
    client.shutdown(read.client, libc::SHUT_WR)?;
    server.wait_for(read.server, libc::POLLRDHUP)?;
    assert!(server.recv(read.server, 1)?.is_empty(), "the end");
    // Whoever closes first is in TIME_WAIT.
    let first = pair(server, client)?;
    server.close(first.server)?;
    client.wait_for(first.client, libc::POLLRDHUP)?;
    client.close(first.client)?;
    let first = pair(server, client)?;
    client.close(first.client)?;
    server.wait_for(first.server, libc::POLLRDHUP)?;
    server.close(first.server)?;
    client.connected(addr)?;
    server.wait_for_queue(listener, 1)?;
    // The ACK of a FIN may be late.
    wait_for_sockets(0, |socket| UNSETTLED.contains(&socket.state))?;
    Ok(Scene {
        listener,
        addr,
        read: read.server,
    })
}

#[test]
fn counts_agree_with_ss() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        for addr in LOOPBACKS {
            scene(&mut server, &mut client, addr)?;
        }
        wait_for_sockets(6, |socket| socket.state == TIME_WAIT)?;
        let (events, by_ss) = look_beside_ss(netns)?;
        let namespace = events.named("sockets.netns");
        let namespace = namespace.one()?;
        assert_eq!(states(namespace), by_ss);
        assert_eq!(by_ss.get("close_wait"), Some(&(3 * STUCK)));
        assert_eq!(
            namespace.number("tcptrace.netns"),
            Some(netns.inode().into())
        );

        // Each process holds what /proc says, and the rest is accounted for.
        let process = |pid: u32| {
            events
                .named("sockets.process")
                .only(|it| it.pid() == Some(pid.into()))
        };
        let (of_server, of_client) = (process(server.pid()), process(client.pid()));
        let (of_server, of_client) = (of_server.one()?, of_client.one()?);
        for (actor, row) in [(&server, of_server), (&client, of_client)] {
            let open = fs::read_dir(format!("/proc/{}/fd", actor.pid()))?.count();
            assert_eq!(row.number("tcptrace.fd.open"), Some(u64::try_from(open)?));
        }
        let held = states(of_server);
        assert_eq!(
            held,
            BTreeMap::from([("close_wait".into(), 12), ("listen".into(), 3)])
        );
        let held = states(of_client);
        assert_eq!(
            held,
            BTreeMap::from([("established".into(), 3), ("fin_wait_2".into(), 12)])
        );
        let nobodys = events.named("sockets.unowned");
        let of = |why: &str| {
            let rows = nobodys.only(|it| it.text("tcptrace.sockets.unowned") == Some(why));
            rows.0.first().map(states)
        };
        assert_eq!(
            of("not_accepted"),
            Some(BTreeMap::from([("established".into(), 3)]))
        );
        assert_eq!(
            of("no_process"),
            Some(BTreeMap::from([("time_wait".into(), 6)]))
        );
        assert_eq!(of("not_seen"), None);
        let each = look(netns, &["--all"])?.named("sockets.socket");
        assert_eq!(each.count(), by_ss.values().sum::<u64>(), "each once");
        Ok(())
    });
}

#[test]
fn what_is_stuck_and_what_waits_is_told_by_holder_and_service() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut scenes = vec![];
        for addr in LOOPBACKS {
            scenes.push(scene(&mut server, &mut client, addr)?);
        }
        wait_for_sockets(6, |socket| socket.state == TIME_WAIT)?;
        let events = look(netns, &["--all"])?;
        for scene in &scenes {
            let leak = events
                .named("sockets.close_wait")
                .only(|it| it.number("network.local.port") == Some(scene.addr.port().into()));
            let leak = leak.one()?;
            assert_eq!(leak.pid(), Some(server.pid().into()));
            // Others may hold it where the machine keeps some process from everybody.
            let sure = leak.text("tcptrace.owner.confidence");
            assert!(sure == Some("exact") || sure == Some("seeded"), "{sure:?}");
            assert_eq!(leak.number("tcptrace.close_wait.count"), Some(STUCK));
            assert_eq!(
                leak.number("tcptrace.close_wait.eof_unread"),
                Some(STUCK - 1)
            );
            assert_eq!(leak.number("tcptrace.close_wait.unread"), Some(5));
            let fd = leak.number("tcptrace.socket.fd").context("a descriptor")?;
            let link = fs::read_link(format!("/proc/{}/fd/{fd}", server.pid()))?;
            let inode = leak.number("tcptrace.socket.inode").context("an inode")?;
            assert_eq!(link.to_str(), Some(&*format!("socket:[{inode}]")));
            let waits = events.named("sockets.time_wait").only(|it| {
                let own = it.number("network.local.port") == Some(scene.addr.port().into());
                own || it.number("network.peer.port") == Some(scene.addr.port().into())
            });
            let closers = waits
                .0
                .iter()
                .map(|it| it.text("tcptrace.time_wait.closed_first"));
            let mut closers: Vec<_> = closers.collect();
            closers.sort_unstable();
            assert_eq!(closers, [Some("client"), Some("server")]);
            assert!(
                waits
                    .0
                    .iter()
                    .all(|it| it.number("tcptrace.time_wait.count") == Some(1))
            );
        }
        // The kernel's ages only grow: the FINs came before the look.
        let ages = events.named("sockets.close_wait");
        let ages = ages
            .0
            .iter()
            .map(|it| it.number("tcptrace.close_wait.age_ms"));
        assert!(
            ages.clone().all(|age| age.is_some_and(|age| age < 60_000)),
            "{ages:?}"
        );

        let each = events.named("sockets.socket");
        let read = each.only(|it| it.get("tcptrace.socket.eof_read").is_some());
        let fds: Vec<_> = read
            .0
            .iter()
            .map(|it| it.number("tcptrace.socket.fd"))
            .collect();
        let expected: Vec<_> = scenes
            .iter()
            .map(|it| u64::try_from(it.read).ok())
            .collect();
        assert_eq!(fds.len(), expected.len());
        assert!(
            expected.iter().all(|fd| fds.contains(fd)),
            "{fds:?} {expected:?}"
        );
        Ok(())
    });
}

/// Its number in `/proc/net/tcp`.
const TIME_WAIT: u8 = 6;
/// Those of FIN_WAIT1, LAST_ACK and CLOSING.
const UNSETTLED: [u8; 3] = [4, 9, 11];

#[test]
fn listeners_agree_with_ss_and_drops_with_nstat() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        netns.sysctl("net.core.somaxconn", "64")?;
        let (full, at) = listen(&mut server, "127.0.0.1:0", 1)?;
        listen(&mut server, "[::1]:0", 4096)?;
        netns.sysctl("net.core.somaxconn", "32")?;
        listen(&mut server, "[::]:0", 4096)?;
        for _ in 0..2 {
            client.connected(at)?;
        }
        server.wait_for_queue(full, 2)?;
        let before = netns.counters()?;
        let late = client.connecting(at)?;
        wait_until("an overflow", || {
            let now = netns.counters().map_err(std::io::Error::other)?;
            Ok(now.since(&before, "TcpExtListenOverflows") > Some(0))
        })?;
        client.close(late)?;

        let events = look(netns, &[])?;
        let rows = events.named("sockets.listener");
        let number = |row: &Record, name: &str| row.number(name).unwrap_or(u64::MAX);
        let mut told: Vec<_> = rows
            .0
            .iter()
            .map(|row| {
                let ip = row.text("network.local.address").unwrap_or_default();
                let port = number(row, "network.local.port");
                let at = if ip.contains(':') {
                    format!("[{ip}]:{port}")
                } else {
                    format!("{ip}:{port}")
                };
                let len = number(row, "tcptrace.accept_queue.len").to_string();
                let max = number(row, "tcptrace.accept_queue.max").to_string();
                [len, max, at]
            })
            .collect();
        let by_ss = lines_of("ss", &["-ltnH"])?;
        // ss writes the unspecified address of both families as `*`.
        let by_ss = by_ss
            .iter()
            .map(|line| [1, 2, 3].map(|at| line[at].replace('*', "[::]")));
        let mut by_ss: Vec<_> = by_ss.collect();
        told.sort_unstable();
        by_ss.sort_unstable();
        assert_eq!(told, by_ss);
        assert_eq!(told.len(), 3, "the provocation itself");

        let gravest = &rows.0[0];
        assert_eq!(gravest.number("network.local.port"), Some(at.port().into()));
        assert_eq!(gravest.0["severity_text"], "ERROR");
        assert_eq!(gravest.pid(), Some(server.pid().into()));
        assert!(gravest.number("tcptrace.accept_queue.drops") > Some(0));
        let mut limited = rows.0.iter().map(|row| {
            let by = row.text("tcptrace.accept_queue.limited_by");
            (row.number("tcptrace.accept_queue.max"), by)
        });
        assert_eq!(limited.next(), Some((Some(1), Some("listen"))));
        let mut limited: Vec<_> = limited.collect();
        limited.sort_unstable();
        let expected = [
            (Some(32), Some("somaxconn")),
            (Some(64), Some("lowered_somaxconn")),
        ];
        assert_eq!(limited, expected);

        let namespace = events.named("sockets.netns");
        let namespace = namespace.one()?;
        for (ours, theirs) in [
            ("tcptrace.counter.overflows", "TcpExtListenOverflows"),
            ("tcptrace.counter.listen_drops", "TcpExtListenDrops"),
        ] {
            // Absolute, and without a history of its own.
            let by_nstat = lines_of("nstat", &["-asz", theirs])?;
            let count = by_nstat.iter().find(|line| line[0] == theirs);
            let count = count.context("nstat knows it")?[1].parse()?;
            assert!(count > 0);
            assert_eq!(namespace.number(ours), Some(count), "{theirs}");
        }
        Ok(())
    });
}

#[test]
fn the_exit_status_is_that_of_a_health_check() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let scene = scene(&mut server, &mut client, LOOPBACKS[0])?;
        let open = fs::read_dir(format!("/proc/{}/fd", server.pid()))?.count();
        server.limit_descriptors(u64::try_from(open)? + 1)?;
        let status = |list: &str| -> Result<(Option<i32>, String)> {
            let output = look_with(netns, &["--fail-on", list])?;
            ensure!(
                !output.stdout.is_empty(),
                "the tables are printed all the same"
            );
            let said = String::from_utf8(output.stderr)?;
            Ok((output.status.code(), said))
        };
        let pid = format!("server[{}]", server.pid());
        for (list, expected, words) in [
            ("close-wait:5,overflow,queue:13%", 0, &[][..]),
            ("close-wait:4", 6, &["close-wait:4: 4", &pid, "CLOSE_WAIT"]),
            ("overflow,queue:12%", 6, &["queue:12%: 12%", "1 of 8"]),
            ("fd", 6, &["fd:90%", &pid, "descriptors open"]),
        ] {
            let (code, said) = status(list)?;
            assert_eq!(code, Some(expected), "{list}: {said}");
            for word in words {
                assert!(said.contains(word), "{list}: {word:?} is not in {said}");
            }
        }
        // One more than the limit: the next is lost.
        for _ in 0..8 {
            client.connected(scene.addr)?;
        }
        server.wait_for_queue(scene.listener, 9)?;
        let (code, said) = status("overflow")?;
        assert_eq!(
            (code, said.contains("queue 9 > 8")),
            (Some(6), true),
            "{said}"
        );

        for (list, word) in [
            ("clsoe-wait", "close-wait"),
            ("fd:90", "fd:90%"),
            ("close-wait:x", "close-wait:1"),
        ] {
            let output = look_with(netns, &["--fail-on", list])?;
            let said = String::from_utf8(output.stderr)?;
            assert_eq!(
                (output.status.code(), said.contains(word)),
                (Some(2), true),
                "{said}"
            );
        }
        Ok(())
    });
}

#[test]
fn filters_choose_the_sockets_that_are_counted() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut ports = vec![];
        for addr in LOOPBACKS {
            ports.push(scene(&mut server, &mut client, addr)?.addr.port());
        }
        let total = |args: &[&str]| -> Result<u64> {
            let events = look(netns, args)?.named("sockets.netns");
            let total = events.one()?.number("tcptrace.sockets.total");
            total.context("a total")
        };
        // At the server of each family 4 stuck, a listener and one that waits; at the client their other ends.
        let (pid, port) = (server.pid().to_string(), ports[0].to_string());
        for (args, expected) in [
            (&["--pid", &pid][..], 3 * 6),
            (&["--comm", "client"], 3 * 5),
            (&["--pid", &pid, "--port", &port], 6),
            (&["--local-port", &port], 7),
            (&["--peer-port", &port], 6),
            (&["--peer", "127.0.0.0/8", "--pid", &pid], 2 * 5),
            // The listener of the third is on a mapped address, which is one of IPv4.
            (&["-4", "--pid", &pid], 2 * 6),
            (&["-6", "--pid", &pid], 6),
            (&["--uid", "65534"], 0),
        ] {
            assert_eq!(total(args)?, expected, "{args:?}");
        }
        Ok(())
    });
}

#[test]
fn twenty_thousand_sockets_are_counted_as_ss_counts_them() {
    const PAIRS: u64 = 10_000;
    const CLOSED: usize = 4_000;
    in_netns(|netns| {
        let mut server = actor("server")?;
        let (listener, at) = listen(&mut server, "127.0.0.1:0", 4_096)?;
        let mut clients = vec![];
        for _ in 0..PAIRS {
            clients.push(TcpStream::connect(at)?);
            server.accept(listener)?;
        }
        for client in &clients[..CLOSED] {
            client.shutdown(std::net::Shutdown::Write)?;
        }
        wait_for_close_wait(CLOSED)?;
        let (events, by_ss) = look_beside_ss(netns)?;
        let namespace = events.named("sockets.netns");
        assert_eq!(states(namespace.one()?), by_ss);
        assert_eq!(by_ss.get("close_wait"), Some(&CLOSED.try_into()?));
        assert_eq!(by_ss.values().sum::<u64>(), 2 * PAIRS + 1);
        let leak = events.named("sockets.close_wait");
        let leak = leak.one()?;
        assert_eq!(
            leak.number("tcptrace.close_wait.count"),
            Some(CLOSED.try_into()?)
        );
        assert_eq!(leak.pid(), Some(server.pid().into()));

        // For a person it is a screen of lines that do not wrap.
        let columns = look_with(netns, &[])?;
        let text = String::from_utf8(columns.stdout)?;
        assert!(text.lines().count() < 30, "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 120, "{line}");
        }
        // It is marked once it is a second old, which it may be.
        let leak = text.lines().find(|line| line.contains(" unread "));
        let count = leak.and_then(|leak| leak.trim_start_matches([' ', '!']).split(' ').next());
        assert_eq!(count, Some(CLOSED.to_string().as_str()), "{text}");
        Ok(())
    });
}

/// A namespace that `ip netns` made, and removes again.
struct Named(String);

impl Named {
    fn new() -> Result<Self> {
        let name = format!("tcptrace-sockets-{}", std::process::id());
        lines_of("ip", &["netns", "add", &name])?;
        Ok(Self(name))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // There is nobody to tell.
        let _ = lines_of("ip", &["netns", "delete", &self.0]);
    }
}

#[test]
fn namespaces_of_ip_netns_are_looked_into_by_name() {
    in_netns(|_| {
        let named = Named::new()?;
        let file = File::open(format!("/run/netns/{}", named.0))?;
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        let mut server = actor("server")?;
        let (_, at) = listen(&mut server, "0.0.0.0:0", 7)?;
        for args in [&[][..], &["--netns", &named.0]] {
            let mut command = tcptrace();
            command.args(["sockets", "-o", "json"]).args(args);
            let events = records(&command.stdin(Stdio::null()).output()?)?;
            let namespace = events
                .named("sockets.netns")
                .only(|it| it.text("tcptrace.sockets.netns_name") == Some(&named.0));
            let number = if args.is_empty() {
                namespace.one()?.number("tcptrace.netns")
            } else {
                events
                    .named("sockets.netns")
                    .one()?
                    .number("tcptrace.netns")
            };
            let listener = events
                .named("sockets.listener")
                .only(|it| it.pid() == Some(server.pid().into()));
            let listener = listener.one()?;
            assert_eq!(listener.number("tcptrace.netns"), number);
            assert_eq!(
                listener.number("network.local.port"),
                Some(at.port().into())
            );
        }
        Ok(())
    });
}

#[test]
fn without_privileges_it_tells_what_it_sees_and_what_not() {
    in_netns(|_| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        scene(&mut server, &mut client, LOOPBACKS[0])?;
        let look = |args: &[&str]| {
            let mut command = tcptrace();
            command.args(["sockets"]).args(args).uid(65_534).gid(65_534);
            command.stdin(Stdio::null()).output()
        };
        let output = look(&["-o", "json"])?;
        let events = records(&output)?;
        let namespace = events.named("sockets.netns");
        assert_eq!(states(namespace.one()?), states_of_ss()?);
        let unseen = events.named("sockets.unowned");
        let unseen = unseen.only(|it| it.text("tcptrace.sockets.unowned") == Some("not_seen"));
        let held = states(unseen.one()?);
        assert_eq!(held.get("close_wait"), Some(&STUCK));
        let said = String::from_utf8(output.stderr)?;
        assert!(
            said.contains("not seen") && said.contains("CAP_SYS_PTRACE"),
            "{said}"
        );
        let gaps = events
            .named("coverage")
            .only(|it| it.get("tcptrace.coverage.way").is_none());
        assert_eq!(gaps.count(), u64::try_from(said.lines().count())?, "{said}");
        assert_eq!(look(&["--quiet"])?.stderr, b"");
        let failed = look(&["--fail-on", "close-wait:4"])?;
        assert_eq!(failed.status.code(), Some(6));
        // What may not be read has not passed.
        let pid = server.pid().to_string();
        for args in [
            &["--fail-on", "fd"][..],
            &["--pid", &pid, "--fail-on", "close-wait"],
        ] {
            let refused = look(args)?;
            let said = String::from_utf8(refused.stderr)?;
            assert_eq!(refused.status.code(), Some(3), "{args:?}: {said}");
            assert!(said.contains("sudo"), "{said}");
        }
        Ok(())
    });
}

#[test]
fn without_sock_diag_it_counts_and_says_what_is_not_told() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        for addr in LOOPBACKS {
            scene(&mut server, &mut client, addr)?;
        }
        let (_, by_ss) = look_beside_ss(netns)?;
        let look = |args: &[&str]| -> Result<_> {
            let mut command = tcptrace();
            command.args(["sockets", "--netns"]).arg(netns.path());
            command.args(args).stdin(Stdio::null());
            without_sock_diag(&mut command)?;
            Ok(command.output()?)
        };
        let events = records(&look(&["-o", "json"])?)?;
        assert_eq!(states(events.named("sockets.netns").one()?), by_ss);
        let leaks = events.named("sockets.close_wait");
        assert_eq!(leaks.count(), 3);
        for leak in &leaks.0 {
            assert_eq!(leak.number("tcptrace.close_wait.count"), Some(STUCK));
            assert!(leak.get("tcptrace.close_wait.age_ms").is_none());
        }
        let unchecked = look(&["--fail-on", "overflow"])?;
        let said = String::from_utf8(unchecked.stderr)?;
        assert_eq!(unchecked.status.code(), Some(4), "{said}");
        assert!(said.contains("modprobe tcp_diag"), "{said}");
        Ok(())
    });
}

#[test]
fn its_records_follow_the_schema() {
    let schema = tcptrace().arg("schema").output().expect("it starts");
    let schema = serde_json::from_slice(&schema.stdout).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        for addr in LOOPBACKS {
            scene(&mut server, &mut client, addr)?;
        }
        let events = look(netns, &["--all"])?;
        for record in &events.0 {
            let errors = validator
                .iter_errors(&record.0)
                .map(|error| error.to_string());
            let errors: Vec<_> = errors.collect();
            assert!(errors.is_empty(), "{errors:?} in {}", record.0);
        }
        let mut names: Vec<_> = events.0.iter().map(Record::name).collect();
        names.sort_unstable();
        names.dedup();
        let all = [
            "coverage",
            "sockets.close_wait",
            "sockets.listener",
            "sockets.netns",
            "sockets.process",
            "sockets.socket",
            "sockets.time_wait",
            "sockets.unowned",
        ];
        assert_eq!(names, all);
        let pretty = look_with(netns, &["-o", "jsonpretty"])?;
        let pretty = serde_json::Deserializer::from_slice(&pretty.stdout);
        let pretty = pretty.into_iter::<serde_json::Value>();
        let pretty: Vec<_> = pretty.collect::<Result<_, _>>()?;
        assert!(pretty.iter().all(|it| validator.is_valid(it)) && pretty.len() > 7);
        Ok(())
    });
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        listen(&mut server, LOOPBACKS[0], 8)?;
        wait_for_sockets(1, |socket| socket.state == Socket::LISTEN)?;
        for output in ["columns", "json"] {
            let path = netns.path();
            let mut command = tcptrace();
            command
                .args(["sockets", "--quiet", "-o", output, "--netns"])
                .arg(path);
            let mut child = command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            drop(child.stdout.take());
            let ended = child.wait_with_output()?;
            let said = String::from_utf8(ended.stderr)?;
            assert_eq!((ended.status.code(), &*said), (Some(0), ""), "{output}");
        }
        Ok(())
    });
}
