//! The loaded kernel half's maps: what is filtered, counted and remembered there.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray};
use bytemuck::{AnyBitPattern, bytes_of, pod_read_unaligned};
use ipnet::IpNet;
use tcptrace_common::event::{self as wire, SLOTS, gate, hook, stat};
use tcptrace_common::filter::{NetworkKey, PortKey, pid};

use super::load::{Kernel, STOOD_FOR};
use crate::event::{Comm, Flow};

/// The values behind the switches of a [`Config`](tcptrace_common::filter::Config).
#[derive(Clone, Debug, Default)]
pub struct FilterValues {
    /// `--pid`
    pub pids: Vec<u32>,
    /// `--comm`
    pub comms: Vec<[u8; 16]>,
    /// `--uid`
    pub uids: Vec<u32>,
    /// `--cgroup`: v2 ids
    pub cgroups: Vec<u64>,
    /// `--netns`: inode numbers
    pub netns: Vec<u32>,
    /// Ports, by [`tcptrace_common::filter::role`].
    pub ports: Vec<(u16, u16)>,
    /// Networks, by [`tcptrace_common::filter::role`].
    pub networks: Vec<(u16, IpNet)>,
}

impl FilterValues {
    /// Those that `other` does not have.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        fn difference<T: Copy + PartialEq>(all: &[T], out: &[T]) -> Vec<T> {
            let left = all.iter().filter(|it| !out.contains(it));
            left.copied().collect()
        }
        Self {
            pids: difference(&self.pids, &other.pids),
            comms: difference(&self.comms, &other.comms),
            uids: difference(&self.uids, &other.uids),
            cgroups: difference(&self.cgroups, &other.cgroups),
            netns: difference(&self.netns, &other.netns),
            ports: difference(&self.ports, &other.ports),
            networks: difference(&self.networks, &other.networks),
        }
    }
}

impl Kernel {
    /// Writes the values the filters match.
    ///
    /// # Errors
    /// There are more than the map holds.
    pub fn set_filters(&mut self, values: &FilterValues) -> Result<()> {
        self.change_filters(values, true)
    }

    /// Takes values out of the filters' maps.
    ///
    /// # Errors
    /// A map cannot be written.
    pub fn unset_filters(&mut self, values: &FilterValues) -> Result<()> {
        self.change_filters(values, false)
    }

    fn change_filters(&mut self, values: &FilterValues, set: bool) -> Result<()> {
        let all = |keys: &[u32]| keys.iter().map(|key| key.to_ne_bytes()).collect::<Vec<_>>();
        self.fill("PIDS", &all(&values.pids), set)?;
        self.fill("UIDS", &all(&values.uids), set)?;
        self.fill("NETNS", &all(&values.netns), set)?;
        self.fill("COMMS", &values.comms, set)?;
        let cgroups: Vec<_> = values.cgroups.iter().map(|id| id.to_ne_bytes()).collect();
        self.fill("CGROUPS", &cgroups, set)?;
        let ports: Vec<[u8; size_of::<PortKey>()]> = values
            .ports
            .iter()
            .map(|&(role, port)| array(&PortKey { role, port }))
            .collect();
        self.fill("PORTS", &ports, set)?;
        let map = self.map_mut("NETWORKS")?;
        let mut networks: LpmTrie<_, [u8; size_of::<NetworkKey>()], u8> = LpmTrie::try_from(map)?;
        for &(role, network) in &values.networks {
            let (addr, prefix) = mapped(network);
            let data = NetworkKey {
                family: if network.network().is_ipv4() { 4 } else { 6 },
                role: u8::try_from(role).context("a role is 0, 1 or 2")?,
                addr,
            };
            let key = Key::new(16 + prefix, array(&data));
            if set {
                networks
                    .insert(&key, 1, 0)
                    .with_context(|| format!("too many networks: {network}"))?;
            } else {
                absent_is_fine(networks.remove(&key))?;
            }
        }
        Ok(())
    }

    /// Records that could not be handed over so far, by hook.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn lost(&self) -> Result<[u64; hook::COUNT as usize]> {
        let slots: [u64; SLOTS as usize] = self.sums("LOST")?;
        let (programs, stand_ins) = slots.split_at(usize::from(hook::COUNT));
        Ok(std::array::from_fn(|hook| {
            programs[hook] + stand_ins.get(hook).copied().unwrap_or_default()
        }))
    }

    /// The counters of [`stat`].
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn stats(&self) -> Result<[u64; stat::COUNT as usize]> {
        self.sums("STATS")
    }

    /// Runs each program missed because it would have interrupted itself, and nobody stood in.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn recursion_misses(&self) -> Result<Vec<(String, u64)>> {
        let stood_in = self.stood_in()?;
        // What a stand-in misses its program missed as well, or has seen.
        let stood_for = |name: &&str| !name.starts_with("stand_in_for_");
        let programs = self.ebpf.programs().filter(|(name, _)| stood_for(name));
        let programs = programs.filter_map(|(name, program)| {
            let fd = program.fd().ok()?.as_fd().as_raw_fd();
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
            let missed = info
                .lines()
                .find_map(|line| line.strip_prefix("recursion_misses:"))?;
            let missed: u64 = missed.trim().parse().ok()?;
            let index = STOOD_FOR.iter().position(|it| *it == name);
            let taken = index.map_or(0, |index| stood_in[index]);
            Some((name.to_owned(), missed.saturating_sub(taken)))
        });
        Ok(programs.filter(|&(_, missed)| missed > 0).collect())
    }

    /// How often each stand-in did a program's work, by hook.
    fn stood_in(&self) -> Result<[u64; STOOD_FOR.len()]> {
        let map = self.map("STAND_INS")?;
        let map: PerCpuArray<_, [u8; size_of::<wire::StandIn>()]> = PerCpuArray::try_from(map)?;
        let mut sums = [0; STOOD_FOR.len()];
        for (sum, index) in sums.iter_mut().zip(0..) {
            let states = map.get(&index, 0)?;
            let times = states.iter().map(|state| {
                let state: wire::StandIn = pod_read_unaligned(state);
                state.times
            });
            *sum = times.sum();
        }
        Ok(sums)
    }

    /// Sockets in CLOSE_WAIT now, by address.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn close_waits(&self) -> Result<Vec<(u64, wire::CloseWait)>> {
        self.entries::<{ size_of::<wire::CloseWait>() }, _>("CLOSE_WAITS")
    }

    /// What is remembered of a socket.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn sock(&self, address: u64) -> Result<Option<wire::Sock>> {
        let map = self.map("SOCKS")?;
        let socks: HashMap<_, u64, [u8; size_of::<wire::Sock>()]> = HashMap::try_from(map)?;
        match socks.get(&address, 0) {
            Ok(bytes) => Ok(Some(pod_read_unaligned(&bytes))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Closes the gate of the dropped SYNs when no listener is near its limit any more.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn tend_gate(&mut self) -> Result<()> {
        if self.gate(gate::NEARLY_FULL)? == 0 {
            return Ok(());
        }
        if self.any_nearly_full()? {
            return Ok(());
        }
        self.set_gate(gate::NEARLY_FULL, 0)?;
        // One that filled up meanwhile had opened it in vain.
        if self.any_nearly_full()? {
            self.set_gate(gate::NEARLY_FULL, 1)?;
        }
        Ok(())
    }

    /// Listeners now, with the addresses of their sockets.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn listeners(&self) -> Result<Vec<(wire::ListenerKey, u64)>> {
        let map = self.map("LISTENERS")?;
        let listeners: HashMap<_, [u8; size_of::<wire::ListenerKey>()], u64> =
            HashMap::try_from(map)?;
        // A slot whose listener has closed is empty.
        let there = listeners.iter().filter_map(Result::ok);
        let there = there.filter(|&(_, socket)| socket != 0);
        Ok(there
            .map(|(key, socket)| (pod_read_unaligned(&key), socket))
            .collect())
    }

    fn any_nearly_full(&self) -> Result<bool> {
        for (_, socket) in self.listeners()? {
            if self.sock(socket)?.is_some_and(|known| known.full != 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Opens the gate of first uses: nothing else tells who accepted a connection.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn watch_first_uses(&mut self) -> Result<()> {
        self.set_gate(gate::FIRST_USES, 1)
    }

    /// The processes traced now, by number.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let pids: HashMap<_, u32, u8> = self.set("PIDS")?;
        let entries = pids.iter().filter_map(Result::ok);
        let traced = entries.filter(|&(_, state)| state == pid::TRACED);
        Ok(traced.map(|(pid, _)| pid).collect())
    }

    /// A process is traced from now on.
    ///
    /// # Errors
    /// There are more than the map holds.
    pub fn trace_pid(&mut self, id: u32) -> Result<()> {
        self.set_pid(id, pid::TRACED)
    }

    /// The next process that gets this number is traced from its first moment.
    ///
    /// # Errors
    /// There are more than the map holds.
    pub fn await_pid(&mut self, id: u32) -> Result<()> {
        self.set_pid(id, pid::AWAITED)
    }

    fn set_pid(&mut self, id: u32, state: u8) -> Result<()> {
        let mut pids: HashMap<_, u32, u8> = self.set_mut("PIDS")?;
        pids.insert(id, state, 0)
            .with_context(|| format!("too many processes to trace {id} too"))
    }

    /// A traced process is gone, and its number may be given to another.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn forget_pid(&mut self, pid: u32) -> Result<()> {
        let mut pids: HashMap<_, u32, u8> = self.set_mut("PIDS")?;
        absent_is_fine(pids.remove(&pid))
    }

    /// Processes that begin under one of these names are candidates from now on.
    ///
    /// # Errors
    /// There are more than the map holds.
    pub fn add_names(&mut self, names: &[Comm]) -> Result<()> {
        let names: Vec<_> = names.iter().map(|name| *name.as_array()).collect();
        self.fill("NAMES", &names, true)
    }

    /// Processes that may be successors.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn candidates(&self) -> Result<Vec<u32>> {
        let candidates: HashMap<_, u32, u8> = self.set("CANDIDATES")?;
        Ok(candidates.keys().filter_map(Result::ok).collect())
    }

    /// Whether a process may be a successor.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn is_candidate(&self, pid: u32) -> Result<bool> {
        let candidates: HashMap<_, u32, u8> = self.set("CANDIDATES")?;
        is_there(candidates.get(&pid, 0))
    }

    /// What a candidate is, is decided.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn dismiss(&mut self, pid: u32) -> Result<()> {
        let mut candidates: HashMap<_, u32, u8> = self.set_mut("CANDIDATES")?;
        absent_is_fine(candidates.remove(&pid))
    }

    /// The other end of this connection is a traced process's.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn traces_other_end(&self, flow: &Flow) -> Result<bool> {
        let Some(peer) = flow.peer else {
            return Ok(false);
        };
        let key = wire::FlowKey {
            local: v6(peer.ip()),
            peer: v6(flow.local.ip()),
            local_port: peer.port(),
            peer_port: flow.local.port(),
        };
        let flows: HashMap<_, [u8; size_of::<wire::FlowKey>()], u64> = self.set("FLOWS")?;
        is_there(flows.get(&array(&key), 0))
    }

    /// Forgets the connections of traced processes that ended before `monotonic`, ns.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub fn sweep_flows(&mut self, monotonic: u64) -> Result<()> {
        const KEY: usize = size_of::<wire::FlowKey>();
        let map = self.map_mut("FLOWS")?;
        let mut flows: HashMap<_, [u8; KEY], u64> = HashMap::try_from(map)?;
        let ended = |ended: u64| ended != 0 && ended < monotonic;
        let old: Vec<_> = flows
            .iter()
            .filter_map(Result::ok)
            .filter(|flow| ended(flow.1))
            .collect();
        for (flow, _) in old {
            // Gone already: nothing is left to do.
            let _ = flows.remove(&flow);
        }
        Ok(())
    }

    /// Puts these keys into a map, or takes them out.
    fn fill<K: Pod>(&mut self, name: &str, keys: &[K], set: bool) -> Result<()> {
        let map = self.map_mut(name)?;
        let mut map: HashMap<_, K, u8> = HashMap::try_from(map)?;
        for key in keys {
            if set {
                map.insert(key, 1, 0)
                    .with_context(|| format!("too many values for {name}"))?;
            } else {
                absent_is_fine(map.remove(key))?;
            }
        }
        Ok(())
    }

    fn map(&self, name: &str) -> Result<&Map> {
        let map = self.ebpf.map(name);
        map.with_context(|| format!("the object has no map {name}"))
    }

    pub(super) fn map_mut(&mut self, name: &str) -> Result<&mut Map> {
        let map = self.ebpf.map_mut(name);
        map.with_context(|| format!("the object has no map {name}"))
    }

    fn set<K: Pod, V: Pod>(&self, name: &str) -> Result<HashMap<&MapData, K, V>> {
        Ok(HashMap::try_from(self.map(name)?)?)
    }

    fn set_mut<K: Pod, V: Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, V>> {
        Ok(HashMap::try_from(self.map_mut(name)?)?)
    }

    fn gate(&self, index: u32) -> Result<u32> {
        let map = self.map("GATES")?;
        Ok(Array::<_, u32>::try_from(map)?.get(&index, 0)?)
    }

    fn set_gate(&mut self, index: u32, open: u32) -> Result<()> {
        let map = self.map_mut("GATES")?;
        Ok(Array::<_, u32>::try_from(map)?.set(index, open, 0)?)
    }

    fn sums<const N: usize>(&self, name: &str) -> Result<[u64; N]> {
        let map = self.map(name)?;
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        let mut sums = [0; N];
        for (sum, index) in sums.iter_mut().zip(0..) {
            *sum = map.get(&index, 0)?.iter().sum();
        }
        Ok(sums)
    }

    fn entries<const N: usize, V: AnyBitPattern>(&self, name: &str) -> Result<Vec<(u64, V)>> {
        let map = self.map(name)?;
        let map: HashMap<_, u64, [u8; N]> = HashMap::try_from(map)?;
        let read = map.iter().filter_map(Result::ok);
        Ok(read
            .map(|(key, value)| (key, pod_read_unaligned(&value)))
            .collect())
    }
}

/// What is not there need not be taken out.
fn absent_is_fine(removed: Result<(), MapError>) -> Result<()> {
    match removed {
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        removed => Ok(removed?),
    }
}

fn is_there<V>(found: Result<V, MapError>) -> Result<bool> {
    match found {
        Ok(_) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A network as the kernel half has addresses: IPv4 v4-mapped.
fn mapped(network: IpNet) -> ([u8; 16], u32) {
    match network {
        IpNet::V4(network) => (
            network.network().to_ipv6_mapped().octets(),
            u32::from(network.prefix_len()) + 96,
        ),
        IpNet::V6(network) => (network.network().octets(), u32::from(network.prefix_len())),
    }
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn array<T: bytemuck::NoUninit, const N: usize>(value: &T) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(bytes_of(value));
    bytes
}
