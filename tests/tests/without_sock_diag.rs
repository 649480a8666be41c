//! A kernel without `sock_diag`: what `/proc/PID/net/tcp` tells stands in, and what it leaves out is said.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tcptrace_tests::*;

const SOON: Duration = Duration::from_secs(10);

/// To this program the kernel says that it has no `sock_diag`, as one without the module does.
fn without_sock_diag(command: &mut Command) -> Result<()> {
    const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT as u32;
    let load = |offset| (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    // Leaves out as many instructions as are given when it is another value.
    let is = |value, skip| (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, skip, value);
    let answer = |value| (libc::BPF_RET | libc::BPF_K, 0, 0, value);
    // `struct seccomp_data`: the call, and the lower halves of its first and third argument.
    // https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/seccomp.h
    let program = [
        load(0),
        is(u32::try_from(libc::SYS_socket)?, 5),
        load(16),
        is(u32::try_from(libc::AF_NETLINK)?, 3),
        load(32),
        is(u32::try_from(libc::NETLINK_SOCK_DIAG)?, 1),
        answer(DENY),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = program.map(|(code, jt, jf, k)| libc::sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    });
    let restrict = move || {
        let mut program = program;
        let filter = libc::sock_fprog {
            len: 8,
            filter: program.as_mut_ptr(),
        };
        // SAFETY: the kernel copies the program, which lives until the call has returned.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const filter,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(restrict) };
    Ok(())
}

#[test]
fn what_is_wrong_at_the_start_is_told_with_what_is_known() {
    in_netns(|netns| {
        let mut server = actor("server")?;
        let mut client = actor("client")?;
        let mut pairs = vec![];
        for addr in LOOPBACKS {
            let pair = connected(&mut server, &mut client, addr)?;
            client.send(pair.client, b"unread")?;
            client.close(pair.client)?;
            server.wait_for(pair.server, libc::POLLRDHUP)?;
            pairs.push(pair);
        }
        let mut command = tcptrace();
        let path = netns.path();
        let path = path.to_str().context("a path in /proc")?;
        command.args(["-o", "json", "--netns", path]);
        without_sock_diag(&mut command)?;
        let tracer = Tracer::start(command)?;
        for pair in &pairs {
            let port = u64::from(pair.client_addr.port());
            tracer.wait_for("a stuck connection", SOON, |record| {
                record.name() == "close_wait.stuck"
                    && record.number("network.peer.port") == Some(port)
            })?;
        }
        let events = Events::of(tracer)?;
        let coverage = events.named("coverage").only(|record| {
            record.text("tcptrace.coverage.signal") == Some("queues and ages of sockets")
        });
        let coverage = coverage.one()?;
        assert_eq!(
            coverage.text("tcptrace.coverage.way"),
            Some("/proc/PID/net/tcp, tcp6")
        );
        let note = coverage.text("tcptrace.coverage.note").unwrap_or_default();
        assert!(note.contains("modprobe tcp_diag"), "{note}");

        let stuck = events.named("close_wait.stuck");
        for pair in &pairs {
            let stuck = stuck.at_server(pair);
            let stuck = stuck.one()?;
            assert_eq!(stuck.pid(), Some(server.pid().into()));
            assert_eq!(stuck.number("tcptrace.socket.unread"), Some(6));
            // It was seen twice, a second apart; what only tcp_info knows is not there.
            assert_eq!(stuck.number("tcptrace.close_wait.age_ms"), Some(1_000));
            assert!(stuck.get("tcptrace.close_wait.at_least").is_some());
            assert!(stuck.get("tcptrace.socket.retransmits").is_none());
            assert!(stuck.get("tcptrace.idle_ms").is_none());
        }
        assert_eq!(stuck.count(), 3);
        Ok(())
    });
}
