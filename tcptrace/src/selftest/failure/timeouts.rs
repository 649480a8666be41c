//! Connection timed out: the SYN, the data or the keepalive probes were never answered.

use super::{Expect, FAMILIES, Failure, actor};
use crate::selftest::actor::Pair;

pub(super) const CONNECT: Failure = Failure {
    name: "connect_timeout",
    symptom: "connect: connection timed out",
    changes_host: false,
    provoke: |stage| {
        let mut server = actor("is-slow")?;
        let mut client = actor("gives-up")?;
        // A listener whose queue is full answers no SYN.
        let (listener, addr) = server.listener(FAMILIES[0].addr()?, 0)?;
        client.connected(addr)?;
        server.wait_for_queue(listener, 1)?;
        let fd = client.socket(libc::AF_INET, 0)?;
        client.set(fd, libc::IPPROTO_TCP, libc::TCP_SYNCNT, &[1])?;
        let before = stage.netns.counters()?;
        client.connect(fd, addr).expect_err("no SYN is answered");
        let dropped = stage
            .netns
            .counters()?
            .since(&before, "TcpExtListenOverflows");
        Ok(vec![
            Expect::new("connect.failed", "connect, no SYN answered")
                .peer(addr)
                .owner(&client)
                .says("error.type", "ETIMEDOUT")
                .says("tcptrace.connect.attempts", dropped),
        ])
    },
};

pub(super) const ESTABLISHED: Failure = Failure {
    name: "retransmit_timeout",
    symptom: "read or write: connection timed out",
    changes_host: false,
    provoke: |stage| {
        let mut server = actor("is-cut-off")?;
        let mut client = actor("hears-nothing")?;
        let listener = server.listener(FAMILIES[0].addr()?, 8)?;
        let writes = Pair::new(&mut server, &mut client, listener)?;
        let waits = Pair::new(&mut server, &mut client, listener)?;
        client.set(
            writes.client,
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            &[800],
        )?;
        client.set(waits.client, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &[1])?;
        for option in [libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL, libc::TCP_KEEPCNT] {
            client.set(waits.client, libc::IPPROTO_TCP, option, &[1])?;
        }
        stage.netns.set_loopback(false)?;
        client.send(writes.client, b"into the void")?;
        for fd in [writes.client, waits.client] {
            client.wait_for(fd, libc::POLLHUP)?;
            client
                .recv(fd, 16)
                .expect_err("the connection has timed out");
        }
        let timeout = |pair, what| {
            Expect::new("connection.timeout", what)
                .at_client(pair)
                .owner(&client)
                .says("tcptrace.syscall.errno", libc::ETIMEDOUT)
        };
        Ok(vec![
            timeout(&writes, "data, under TCP_USER_TIMEOUT 800 ms"),
            timeout(&waits, "keepalive probes"),
            Expect::new("reset.sent", "the RST of the keepalive timer")
                .at_client(&waits)
                .owner(&client),
            Expect::new("socket.error", "what read returned")
                .through("failed receives")
                .with("error.type", "ETIMEDOUT")
                .times(2)
                .owner(&client),
        ])
    },
};
