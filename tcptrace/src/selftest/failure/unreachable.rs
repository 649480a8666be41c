//! No way to the host or the network: no route fits, or the neighbour is not there.

use std::net::{Ipv4Addr, SocketAddr};

use super::{Expect, Failure, Named, Shown};
use crate::event::Cause;

/// In the network of the cable, and nobody has it.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

pub(super) const FAILURE: Failure = Failure {
    name: "unreachable",
    symptom: "connect: network is unreachable, no route to host",
    changes_host: None,
    provoke: |stage| {
        let _neighbour = stage.netns.neighbour()?;
        let far: SocketAddr = "198.51.100.1:80".parse()?;
        let far6: SocketAddr = "[2001:db8::1]:80".parse()?;
        let nobody = (NOBODY, 80).into();
        let mut shown = Shown::default();
        let (route, neighbour) = ("connect without a route", "state changes");
        for (what, error, addr, signal) in [
            ("IPv4: no route", "ENETUNREACH", far, route),
            ("IPv6: no route", "ENETUNREACH", far6, route),
            ("IPv4: no neighbour", "EHOSTUNREACH", nobody, neighbour),
        ] {
            let mut client = stage.actor("is-lost")?;
            client.connected(addr).expect_err("there is no way");
            shown.events.push(
                Expect::new("connect.failed", what)
                    .through(signal)
                    .peer(addr)
                    .only_of(&client)
                    .says("error.type", error),
            );
            shown
                .findings
                .push(Named::new(Cause::Unreachable, what).of(&client));
        }
        Ok(shown)
    },
};
