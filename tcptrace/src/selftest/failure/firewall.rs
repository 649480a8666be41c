//! Rejected by this host's own packet filter.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::{Expect, FAMILIES, Failure, Lacks, Named, Shown};
use crate::event::Cause;
use crate::selftest::actor::Pair;

pub(super) const FAILURE: Failure = Failure {
    name: "rejected_by_firewall",
    symptom: "connection refused or reset, by a rule of this host",
    changes_host: None,
    provoke: |stage| {
        nft("add table inet selftest\n\
             add chain inet selftest input { type filter hook input priority 0; }")?;
        let mut shown = Shown::default();
        for (what, with) in [
            ("a SYN, with a RST", "reject with tcp reset"),
            ("a SYN, with ICMP", "reject"),
        ] {
            let mut server = stage.actor("is-walled-in")?;
            let mut client = stage.actor("is-rejected")?;
            let (_, addr) = server.listener(FAMILIES[0].addr()?, 8)?;
            reject(addr.port(), with)?;
            client.connected(addr).expect_err("the rule rejects it");
            shown.events.push(
                Expect::new("connect.failed", what)
                    .peer(addr)
                    .only_of(&client)
                    .says("error.type", "ECONNREFUSED"),
            );
            shown
                .findings
                .push(Named::new(Cause::RejectedByFirewall, what).of(&client));
        }
        let mut server = stage.actor("is-walled-in")?;
        let mut client = stage.actor("is-cut-off")?;
        let listener = server.listener(FAMILIES[0].addr()?, 8)?;
        let pair = Pair::new(&mut server, &mut client, listener)?;
        pair.exchange(&mut server, &mut client)?;
        reject(pair.server_addr.port(), "reject with tcp reset")?;
        client.send(pair.client, b"request")?;
        client.wait_for(pair.client, libc::POLLHUP)?;
        client
            .recv(pair.client, 16)
            .expect_err("the rule rejects it");
        shown.events.push(
            Expect::new("reset.received", "data, with a RST")
                .at_client(&pair)
                .only_of(&client)
                .says("error.type", "ECONNRESET"),
        );
        shown
            .findings
            .push(Named::new(Cause::RejectedByFirewall, "data, with a RST").of(&client));
        Ok(shown)
    },
};

fn reject(port: u16, with: &str) -> Result<()> {
    nft(&format!(
        "add rule inet selftest input tcp dport {port} {with}"
    ))
}

/// Runs commands of nftables in the calling thread's namespace.
fn nft(commands: &str) -> Result<()> {
    let nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut nft) = nft else {
        bail!(Lacks(
            "the program nft is not here: install nftables".to_owned()
        ));
    };
    nft.stdin
        .take()
        .context("nft without stdin")?
        .write_all(commands.as_bytes())?;
    let output = nft.wait_with_output()?;
    if !output.status.success() {
        bail!(Lacks(format!(
            "nft cannot make a rule with reject (CONFIG_NF_TABLES_INET, CONFIG_NFT_REJECT_INET): {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(())
}
