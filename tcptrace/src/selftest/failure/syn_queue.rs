//! SYNs lost under a flood: the queue of half-done handshakes was full.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Fd;

/// The listener's backlog, which limits this queue too; it holds one more.
const BACKLOG: i32 = 4;
/// SYNs that find it full.
const LATE: u64 = 20;

pub(super) const FAILURE: Failure = Failure {
    name: "syn_queue_overflow",
    symptom: "connect: slow or timed out, under a flood of SYNs",
    changes_host: None,
    provoke: |stage| {
        // Else the SYNs were answered with cookies.
        stage.netns.sysctl("net.ipv4.tcp_syncookies", "0")?;
        let before = stage.netns.counters()?;
        let mut server = stage.actor("is-flooded")?;
        let mut client = stage.actor("flood")?;
        let (listener, addr) = server.listener(FAMILIES[0].addr()?, BACKLOG)?;
        // Handshakes stay half done where the server wants to see data first.
        server.set(listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &[30])?;
        for _ in 0..=BACKLOG {
            client.connecting(addr)?;
        }
        let late: Vec<Fd> = (0..LATE)
            .map(|_| client.connecting(addr))
            .collect::<Result<_, _>>()?;
        // Gone before their SYN is sent again, a second later.
        late.into_iter().try_for_each(|fd| client.close(fd))?;
        let counter = "TcpExtTCPReqQFullDrop";
        let counted = stage.netns.counters()?.since(&before, counter);
        let full = Expect::new("syn_queue.overflow", "SYNs dropped")
            .through("syn_queue.overflow")
            .local(addr)
            .owner(&server)
            .says("tcptrace.syn_queue.count", counted)
            .says("tcptrace.syn_queue.max", BACKLOG);
        // It is polled: the queue must be full for as long.
        stage.wait_for(&full)?;
        Ok(Shown {
            events: vec![full],
            findings: vec![
                Named::new(Cause::SynQueueOverflow, "without cookies")
                    .of(&server)
                    .times_counted(counter),
            ],
        })
    },
};
