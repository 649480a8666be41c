//! An administrator ended the connection from outside, as `ss -K` does.

use std::io;
use std::net::SocketAddr;

use anyhow::{Result, bail};

use super::{Expect, FAMILIES, Failure, Lacks, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::{Actor, Arg, Pair};

pub(super) const FAILURE: Failure = Failure {
    name: "killed_by_admin",
    symptom: "software caused connection abort; connection reset by peer at the other end",
    changes_host: None,
    provoke: |stage| {
        let mut admin = stage.actor("admin")?;
        let mut shown = Shown::default();
        for family in &FAMILIES[..2] {
            let mut server = stage.actor("loses-it")?;
            let mut client = stage.actor("is-reset")?;
            let listener = server.listener(family.addr()?, 8)?;
            let pair = Pair::new(&mut server, &mut client, listener)?;
            pair.exchange(&mut server, &mut client)?;
            destroy(&mut admin, pair.server_addr, pair.client_addr)?;
            server
                .recv(pair.server, 16)
                .expect_err("the connection was aborted");
            client.wait_for(pair.client, libc::POLLHUP)?;
            shown.events.push(
                Expect::new("reset.sent", format!("{}: the RST", family.name))
                    .at_server(&pair)
                    .owner(&server)
                    .says("error.type", "killed_by_admin"),
            );
            shown.findings.push(
                Named::new(Cause::KilledByAdmin, family.name)
                    .of(&server)
                    .says("tcptrace.actor.pid", admin.pid()),
            );
        }
        Ok(shown)
    },
};

/// Lets the actor ask the kernel to abort the socket with these ends.
fn destroy(admin: &mut Actor, local: SocketAddr, peer: SocketAddr) -> Result<()> {
    // https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/sock_diag.h
    const NETLINK_SOCK_DIAG: i32 = 4;
    const SOCK_DESTROY: u16 = 21;
    const REQUEST_AND_ACK: u16 = 0x1 | 0x4;
    const ANY_COOKIE: [u8; 8] = [0xff; 8];
    let family = if local.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let mut message = vec![
        u8::try_from(family)?,
        u8::try_from(libc::IPPROTO_TCP)?,
        0,
        0,
    ];
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(local.port().to_be_bytes());
    message.extend(peer.port().to_be_bytes());
    message.extend(address(local));
    message.extend(address(peer));
    message.extend([0; 4]);
    message.extend(ANY_COOKIE);
    let mut request = Vec::new();
    request.extend(u32::try_from(message.len() + 16)?.to_ne_bytes());
    request.extend(SOCK_DESTROY.to_ne_bytes());
    request.extend(REQUEST_AND_ACK.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(message);
    let args = [
        Arg::Int(libc::AF_NETLINK.into()),
        libc::SOCK_RAW.into(),
        NETLINK_SOCK_DIAG.into(),
    ];
    let fd = i32::try_from(admin.sys(libc::SYS_socket, &args)?.value)?;
    admin.send(fd, &request)?;
    let reply = admin.recv(fd, 256)?;
    admin.close(fd)?;
    // A header of 16 bytes, then the error, negative.
    let error = reply.get(16..20).and_then(|bytes| bytes.try_into().ok());
    match error.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) if -error == libc::EOPNOTSUPP => bail!(Lacks(
            "this kernel ends no connections for anybody (CONFIG_INET_DIAG_DESTROY)".to_owned()
        )),
        Some(error) => Err(io::Error::from_raw_os_error(-error).into()),
        None => bail!("the kernel's answer is too short"),
    }
}

/// An address in the 16 bytes of `inet_diag_sockid`.
fn address(addr: SocketAddr) -> Vec<u8> {
    let mut bytes = match addr {
        SocketAddr::V4(addr) => addr.ip().octets().to_vec(),
        SocketAddr::V6(addr) => addr.ip().octets().to_vec(),
    };
    bytes.resize(16, 0);
    bytes
}
