//! Cannot assign requested address, address already in use: no local port is left, or it is taken.

use super::{Expect, FAMILIES, Failure, actor};

pub(super) const FAILURE: Failure = Failure {
    name: "ports_exhausted",
    symptom: "connect: cannot assign requested address; bind: address already in use",
    changes_host: false,
    provoke: |stage| {
        let mut server = actor("is-popular")?;
        let mut client = actor("out-of-ports")?;
        let (_, addr) = server.listener(FAMILIES[0].addr()?, 8)?;
        stage
            .netns
            .sysctl("net.ipv4.ip_local_port_range", "40000 40000")?;
        client.connected(addr)?;
        client.connected(addr).expect_err("the only port is taken");
        let fd = client.socket(libc::AF_INET, 0)?;
        client.bind(fd, addr).expect_err("the server has that port");
        Ok(vec![
            Expect::new("connect.failed", "connect, no port left")
                .peer(addr)
                .owner(&client)
                .says("error.type", "EADDRNOTAVAIL"),
            Expect::new("socket.error", "bind, port taken")
                .through("address in use")
                .with("tcptrace.syscall.name", "bind")
                .owner(&client)
                .says("error.type", "EADDRINUSE"),
        ])
    },
};
