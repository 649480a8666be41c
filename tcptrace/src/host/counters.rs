//! The kernel's own counters of a network namespace, by the names `nstat` gives them.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result};

/// The counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(HashMap<String, u64>);

impl Counters {
    /// Of the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// When `/proc` is not mounted.
    pub fn read() -> Result<Self> {
        Self::read_under("/proc/thread-self/net")
    }

    /// Of the network namespace a process is in.
    ///
    /// # Errors
    ///
    /// When it is gone, or its namespace may not be read.
    pub fn read_of(pid: u32) -> Result<Self> {
        Self::read_under(&format!("/proc/{pid}/net"))
    }

    fn read_under(directory: &str) -> Result<Self> {
        let mut counters = Self::default();
        for name in ["snmp", "netstat"] {
            let path = format!("{directory}/{name}");
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read the kernel's counters from {path}"))?;
            counters.parse(&text);
        }
        Ok(counters)
    }

    /// One counter, e.g. `TcpOutRsts` or `TcpExtListenOverflows`; `None` on a kernel without it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// What a counter grew by since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self, name: &str) -> Option<u64> {
        Some(self.get(name)?.wrapping_sub(earlier.get(name)?))
    }

    /// Pairs of lines, `Prefix: name name …` and `Prefix: number number …`.
    /// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/proc.c>
    fn parse(&mut self, text: &str) {
        let mut lines = text.lines().filter_map(|line| line.split_once(": "));
        while let Some((prefix, names)) = lines.next() {
            let Some((_, numbers)) = lines.next().filter(|(again, _)| *again == prefix) else {
                return;
            };
            for (name, number) in names.split_whitespace().zip(numbers.split_whitespace()) {
                // What is negative is a setting, not a counter.
                if let Ok(number) = number.parse() {
                    self.0.insert(format!("{prefix}{name}"), number);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn names_carry_their_prefix() {
        let mut counters = Counters::default();
        counters.parse(
            "Tcp: RtoMin MaxConn OutRsts Added\nTcp: 200 -1 31 7\n\
             TcpExt: ListenOverflows\nTcpExt: 18446744073709551615\n\
             IpExt: Lonely\n",
        );
        for (name, value) in [
            ("TcpOutRsts", Some(31)),
            ("TcpAdded", Some(7)),
            ("TcpMaxConn", None),
            ("TcpExtListenOverflows", Some(u64::MAX)),
            ("IpExtLonely", None),
            ("OutRsts", None),
        ] {
            assert_eq!(counters.get(name), value, "{name}");
        }
    }

    #[test]
    fn counters_grow() {
        let before = Counters::read().expect("/proc is mounted");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        TcpStream::connect(listener.local_addr().expect("bound")).expect("listening");
        let after = Counters::read_of(std::process::id()).expect("our own");
        assert!(after.since(&before, "TcpActiveOpens") >= Some(1));
        assert!(after.get("TcpExtListenOverflows").is_some() && after.get("TcpOutRsts").is_some());
        assert_eq!(after.since(&before, "TcpNoSuchCounter"), None);
    }
}
