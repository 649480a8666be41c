//! Address already in use: another process holds the port.

use super::{Expect, FAMILIES, Failure, Named, Shown};
use crate::event::Cause;
use crate::selftest::tracer::Record;

pub(super) const FAILURE: Failure = Failure {
    name: "address_in_use",
    symptom: "bind: address already in use",
    changes_host: None,
    provoke: |stage| {
        let mut shown = Shown::default();
        for family in FAMILIES {
            let mut holder = stage.actor("was-first")?;
            let mut late = stage.actor("comes-late")?;
            let (_, addr) = holder.listener(family.addr()?, 8)?;
            let fd = late.socket(
                if addr.is_ipv4() {
                    libc::AF_INET
                } else {
                    libc::AF_INET6
                },
                0,
            )?;
            let pid = Some(late.pid().into());
            let looked_at = |record: &Record| {
                record.pid() == pid && record.get("tcptrace.port.holder.pid").is_some()
            };
            let (_, failed) = stage.repeat_until("who holds the port", looked_at, || {
                late.bind(fd, addr).expect_err("the port is taken");
                Ok(())
            })?;
            shown.events.push(
                Expect::new("socket.error", format!("{}: bind", family.name))
                    .through("address in use")
                    .with("tcptrace.syscall.name", "bind")
                    .times(failed)
                    .only_of(&late)
                    .says("error.type", "EADDRINUSE"),
            );
            shown.findings.push(
                Named::new(Cause::AddressInUse, family.name)
                    .of(&late)
                    .times(failed)
                    .with(&holder),
            );
        }
        Ok(shown)
    },
};
