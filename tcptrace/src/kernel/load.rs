//! Loading the kernel half and talking to its maps. With `source::ring` the only room that names
//! aya.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray, ProgramArray, RingBuf};
use aya::programs::fentry::FEntryLink;
use aya::programs::fexit::FExitLink;
use aya::programs::kprobe::KProbeLink;
use aya::programs::raw_trace_point::RawTracePointLink;
use aya::programs::trace_point::TracePointLink;
use aya::programs::{self, FEntry, FExit, Iter, KProbe, ProgramError, RawTracePoint, TracePoint};
use aya::{Btf, BtfError, Ebpf, EbpfLoader, Pod};
use aya_log::EbpfLogger;
use bytemuck::{AnyBitPattern, bytes_of, cast_slice, pod_read_unaligned};
use ipnet::IpNet;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use tcptrace_common::event::{self as wire, SLOTS, gate, hook, kind, stat};
use tcptrace_common::filter::{Config, NetworkKey, PortKey, pid};
use tcptrace_common::layout::{ABSENT, CAST_CALL, Layout};

use super::doctor::Attempt;
use super::layout::looks;
use super::plan::{Plan, Program, Rung, Way};
use crate::event::{Comm, Flow};

/// The kernel half as the build script compiled it; empty in a build that cannot trace.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tcptrace-ebpf"));

/// Connections of traced processes that are remembered for their other ends; without a filter by
/// owner nobody asks.
const FLOWS: u32 = 1 << 16;

/// Places for connections closed from this end; fewer would not be found where the kernel half
/// looks.
const CLOSED: u32 = 1 << 15;

/// Bytes of stacks on their way: some five hundred. The thread that names their functions takes them out
/// as their events come.
const STACKS: u32 = 1 << 23;

/// Descriptors of which the last connection is remembered.
const CLOSED_FDS: u32 = 1 << 14;

/// The object, with its calls of [`CAST_CALL`] as calls of the kernel's function with this id; where
/// there is none the verifier never gets to them. aya's loader does not know such calls.
/// <https://github.com/torvalds/linux/blob/v6.18/Documentation/bpf/kfuncs.rst>
///
/// In words, as ELF has what it aligns: nothing but an instruction is eight bytes like these.
fn object(cast: u32) -> Vec<u64> {
    const CALL: u8 = 0x85;
    const PSEUDO_KFUNC_CALL: u8 = 2;
    let call = |kind: u8, id: u32| {
        let [a, b, c, d] = id.to_ne_bytes();
        u64::from_ne_bytes([CALL, kind << 4, 0, 0, a, b, c, d])
    };
    let words = OBJECT.chunks(size_of::<u64>()).map(|bytes| {
        let mut word = [0; size_of::<u64>()];
        word[..bytes.len()].copy_from_slice(bytes);
        match u64::from_ne_bytes(word) {
            word if cast != ABSENT && word == call(0, CAST_CALL) => call(PSEUDO_KFUNC_CALL, cast),
            word => word,
        }
    });
    words.collect()
}

/// The programs that have a stand-in, by hook.
const STOOD_FOR: [&str; hook::STAND_INS as usize] = [
    "inet_sock_set_state",
    "tcp_send_reset",
    "tcp_receive_reset",
    "tcp_destroy_sock",
];

/// What reads the object, and the kernel's types as it reads them: a tenth of the start, so it is made
/// while the host is looked at.
#[derive(Debug)]
pub struct Loader {
    object: EbpfLoader<'static>,
    types: Result<Btf, BtfError>,
}

impl Loader {
    /// Reads the kernel's types.
    #[must_use]
    pub fn new() -> Self {
        thread::scope(|scope| {
            // It reads them for itself, too, whether it needs them or not.
            let object = scope.spawn(EbpfLoader::new);
            let types = Btf::from_sys_fs();
            let object = object.join();
            Self {
                object: object.unwrap_or_else(|panic| resume_unwind(panic)),
                types,
            }
        })
    }
}

impl Default for Loader {
    fn default() -> Self {
        Self::new()
    }
}

/// What the kernel half is loaded with.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Where this kernel keeps each field.
    pub layout: Layout,
    /// What the user asked for.
    pub config: Config,
    /// Programs that are skipped inside themselves have stand-ins.
    pub stand_ins: bool,
    /// Size of the ring, bytes; a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    /// Sockets whose owner is remembered.
    pub max_sockets: u32,
}

/// The values behind the switches of a [`Config`].
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

/// The smallest ring there is.
fn page_size() -> u32 {
    u32::try_from(rustix::param::page_size()).unwrap_or(1 << 16)
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

/// The loaded kernel half. Dropping it detaches everything.
#[derive(Debug)]
pub struct Kernel {
    ebpf: Ebpf,
    types: Result<Btf, BtfError>,
    /// See [`Setup::stand_ins`].
    stand_ins: bool,
    /// What keeps the programs attached, by their names.
    links: BTreeMap<&'static str, Link>,
}

/// An attached program; dropping it detaches.
#[derive(Debug)]
#[expect(dead_code, reason = "held for their drop alone")]
enum Link {
    /// With its stand-in behind it.
    RawTracepoint(RawTracePointLink, Option<RawTracePointLink>),
    Fentry(FEntryLink),
    Fexit(FExitLink),
    Kprobe(KProbeLink),
    Tracepoint(TracePointLink),
}

impl Kernel {
    /// Creates the maps. No program is loaded yet.
    ///
    /// # Errors
    /// This build has no kernel half, or the kernel refuses the maps.
    pub fn load(loader: Loader, setup: &Setup) -> Result<Self> {
        ensure!(
            !OBJECT.is_empty(),
            "this tcptrace was built without its kernel half; build it with `cargo xtask build`"
        );
        let Config {
            kinds,
            pid,
            comm,
            uid,
            cgroup,
            stack,
            ..
        } = setup.config;
        raise_memory_limit();
        let by_owner = [pid, comm, uid, cgroup] != [0; 4];
        let wants = |kind: u8| kinds & 1 << kind != 0;
        let object = object(setup.layout.cast);
        let Loader {
            object: mut reader,
            types,
        } = loader;
        let ebpf = reader
            // Nothing in the object is relocated against the kernel's types: offsets come as
            // constants.
            .btf(None)
            .override_global("LAYOUT", bytes_of(&setup.layout), true)
            .override_global("LOOKS", bytes_of(&looks()), true)
            .override_global("CONFIG", bytes_of(&setup.config), true)
            .map_max_entries("EVENTS", setup.ring_bytes)
            .map_max_entries("STACKS", if stack != 0 { STACKS } else { page_size() })
            .map_max_entries("SOCKS", setup.max_sockets)
            .map_max_entries("FLOWS", if by_owner { FLOWS } else { 1 })
            .map_max_entries("CLOSED", if wants(kind::RESET_SENT) { CLOSED } else { 1 })
            .map_max_entries(
                "CLOSED_FDS",
                if wants(kind::FD_INVALID) {
                    CLOSED_FDS
                } else {
                    1
                },
            )
            .load(cast_slice(&object))
            .context("cannot create the maps of the kernel half")?;
        Ok(Self {
            ebpf,
            types,
            stand_ins: setup.stand_ins,
            links: BTreeMap::new(),
        })
    }

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
        let map = self
            .ebpf
            .map_mut("NETWORKS")
            .context("the object has no map NETWORKS")?;
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

    /// Tries to see what the plan asks for: for each signal the first way whose programs all attach.
    /// A program that serves several signals is attached once and reported for each.
    pub fn attach(&mut self, plan: &Plan) -> Vec<Attempt> {
        let mut failures = self.load_all(plan);
        let mut attempts = Vec::new();
        for planned in &plan.signals {
            for candidate in &planned.candidates {
                let rung = candidate.rung;
                let mut attached = Vec::new();
                let mut failed = false;
                for &Program { name, target, .. } in rung.programs {
                    let outcome = if self.links.contains_key(name) {
                        Ok(())
                    } else if let Some(failure) = failures.get(name) {
                        Err(failure.clone())
                    } else {
                        let outcome = self.attach_program(rung.way, name, target);
                        outcome.map_err(|error| reason(&error))
                    };
                    match &outcome {
                        Ok(()) => attached.push(name),
                        Err(failure) => {
                            failed = true;
                            failures.insert(name, failure.clone());
                        }
                    }
                    attempts.push(Attempt {
                        signal: planned.signal,
                        way: rung.to_string(),
                        program: name,
                        outcome,
                    });
                }
                if !failed {
                    break;
                }
                // Half a way beside the next one would tell some things twice.
                for name in attached {
                    if !in_use(&attempts, name) {
                        self.links.remove(name);
                    }
                }
            }
        }
        attempts
    }

    /// Loads all programs the plan comes to, on all CPUs at once: the kernel's verifier takes most of the
    /// time until tcptrace traces. Gives why it does not take those it refuses.
    fn load_all(&mut self, plan: &Plan) -> BTreeMap<&'static str, String> {
        let types = &self.types;
        let programs = self.ebpf.programs_mut().collect();
        let loads = Mutex::new(Loads {
            programs,
            failures: BTreeMap::new(),
        });
        let lock = || loads.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || {
            loop {
                let Some((program, object)) = lock().next(plan) else {
                    return;
                };
                if let Err(error) = load(object, program.target, types) {
                    lock().failures.insert(program.name, reason(&error));
                }
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        let loads = loads.into_inner().unwrap_or_else(PoisonError::into_inner);
        loads.failures
    }

    fn attach_program(&mut self, way: Way, name: &'static str, target: &'static str) -> Result<()> {
        let object = self.ebpf.program_mut(name);
        let object = object.with_context(|| format!("the object has no program {name}"))?;
        let link = match way {
            Way::RawTracepoint => {
                let link = attach_raw_tracepoint(object, target)?;
                Link::RawTracepoint(link, self.attach_stand_in(name, target)?)
            }
            Way::Fentry => {
                let object: &mut FEntry = object.try_into()?;
                let link = object.attach()?;
                Link::Fentry(object.take_link(link)?)
            }
            Way::Fexit => {
                let object: &mut FExit = object.try_into()?;
                let link = object.attach()?;
                Link::Fexit(object.take_link(link)?)
            }
            Way::Kprobe => {
                let object: &mut KProbe = object.try_into()?;
                let link = object.attach(target, 0)?;
                Link::Kprobe(object.take_link(link)?)
            }
            Way::Tracepoint(category) => {
                let object: &mut TracePoint = object.try_into()?;
                let link = with_tracefs(|| Ok(object.attach(category, target)?))?;
                Link::Tracepoint(object.take_link(link)?)
            }
            Way::Iterator => {
                let object: &mut Iter = object.try_into()?;
                let link = object.attach()?;
                let mut run = object.take_link(link)?.into_file()?;
                // It writes nothing: reading runs it over everything there is.
                let mut nothing = [0; 64];
                while run.read(&mut nothing)? != 0 {}
                return Ok(());
            }
        };
        self.links.insert(name, link);
        Ok(())
    }

    /// Attaches the stand-in of a program behind it, where it has one.
    fn attach_stand_in(
        &mut self,
        name: &str,
        target: &'static str,
    ) -> Result<Option<RawTracePointLink>> {
        let index = STOOD_FOR.iter().position(|it| *it == name);
        let Some(index) = index.filter(|_| self.stand_ins) else {
            return Ok(None);
        };
        let program = self.ebpf.program(name).context("it is attached")?;
        let program = program.fd()?.try_clone()?;
        let map = self.ebpf.map_mut("STOOD_FOR");
        let map = map.context("the object has no map STOOD_FOR")?;
        ProgramArray::try_from(map)?.set(u32::try_from(index)?, &program, 0)?;
        let name = format!("stand_in_for_{name}");
        let object = self.ebpf.program_mut(&name);
        let object = object.with_context(|| format!("the object has no program {name}"))?;
        load(object, target, &self.types)?;
        attach_raw_tracepoint(object, target).map(Some)
    }

    /// This program is attached.
    #[must_use]
    pub fn is_attached(&self, program: &str) -> bool {
        self.links.contains_key(program)
    }

    /// The ring, once.
    ///
    /// # Errors
    /// It was taken before.
    pub fn take_ring(&mut self) -> Result<RingBuf<MapData>> {
        let map = self
            .ebpf
            .take_map("EVENTS")
            .context("the ring was taken before")?;
        Ok(RingBuf::try_from(map)?)
    }

    /// The ring of stacks, once.
    ///
    /// # Errors
    /// It was taken before, or it cannot be mapped.
    pub fn take_stacks(&mut self) -> Result<RingBuf<MapData>> {
        let map = self.ebpf.take_map("STACKS");
        Ok(RingBuf::try_from(
            map.context("the ring of stacks was taken before")?,
        )?)
    }

    /// The kernel half's own diagnostics, once: each is passed to `say`.
    ///
    /// # Errors
    /// They were taken before.
    pub fn take_log(
        &mut self,
        say: impl Fn(&fmt::Arguments<'_>) + Send + Sync + 'static,
    ) -> Result<KernelLog> {
        Ok(KernelLog(EbpfLogger::init_with_logger(
            &mut self.ebpf,
            Said(Box::new(say)),
        )?))
    }

    /// Detaches every program. What the maps and the ring hold stays.
    pub fn detach(&mut self) {
        self.links.clear();
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
        let map = self.ebpf.map("STAND_INS");
        let map = map.context("the object has no map STAND_INS")?;
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
        let map = self
            .ebpf
            .map("SOCKS")
            .context("the object has no map SOCKS")?;
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
        let map = self
            .ebpf
            .map("LISTENERS")
            .context("the object has no map LISTENERS")?;
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
        let map = self
            .ebpf
            .map_mut("FLOWS")
            .context("the object has no map FLOWS")?;
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
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("the object has no map {name}"))?;
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

    fn set<K: Pod, V: Pod>(&self, name: &str) -> Result<HashMap<&MapData, K, V>> {
        let map = self.ebpf.map(name);
        let map = map.with_context(|| format!("the object has no map {name}"))?;
        Ok(HashMap::try_from(map)?)
    }

    fn set_mut<K: Pod, V: Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, V>> {
        let map = self.ebpf.map_mut(name);
        let map = map.with_context(|| format!("the object has no map {name}"))?;
        Ok(HashMap::try_from(map)?)
    }

    fn gate(&self, index: u32) -> Result<u32> {
        let map = self
            .ebpf
            .map("GATES")
            .context("the object has no map GATES")?;
        Ok(Array::<_, u32>::try_from(map)?.get(&index, 0)?)
    }

    fn set_gate(&mut self, index: u32, open: u32) -> Result<()> {
        let map = self
            .ebpf
            .map_mut("GATES")
            .context("the object has no map GATES")?;
        Ok(Array::<_, u32>::try_from(map)?.set(index, open, 0)?)
    }

    fn sums<const N: usize>(&self, name: &str) -> Result<[u64; N]> {
        let map = self
            .ebpf
            .map(name)
            .with_context(|| format!("the object has no map {name}"))?;
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        let mut sums = [0; N];
        for (sum, index) in sums.iter_mut().zip(0..) {
            *sum = map.get(&index, 0)?.iter().sum();
        }
        Ok(sums)
    }

    fn entries<const N: usize, V: AnyBitPattern>(&self, name: &str) -> Result<Vec<(u64, V)>> {
        let map = self
            .ebpf
            .map(name)
            .with_context(|| format!("the object has no map {name}"))?;
        let map: HashMap<_, u64, [u8; N]> = HashMap::try_from(map)?;
        let read = map.iter().filter_map(Result::ok);
        Ok(read
            .map(|(key, value)| (key, pod_read_unaligned(&value)))
            .collect())
    }
}

/// What the kernel half says about itself.
#[expect(missing_debug_implementations, reason = "aya's logger has none")]
pub struct KernelLog(EbpfLogger<Said>);

impl KernelLog {
    /// Passes on what was said since the last call.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

/// What diagnostics are passed to, one at a time.
struct Said(Box<dyn Fn(&fmt::Arguments<'_>) + Send + Sync>);

impl log::Log for Said {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        (self.0)(record.args());
    }

    fn flush(&self) {}
}

/// Before 5.11 maps count against the limit of locked memory. Without the privilege to raise it the
/// maps may still fit.
/// <https://github.com/torvalds/linux/blob/v5.10/kernel/bpf/syscall.c> (`bpf_charge_memlock`)
fn raise_memory_limit() {
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}

/// Some signal is seen through a way this program belongs to.
fn in_use(attempts: &[Attempt], name: &str) -> bool {
    let of_way = |way: &Attempt| {
        let mut of_way = attempts
            .iter()
            .filter(|it| it.signal == way.signal && it.way == way.way);
        of_way.all(|it| it.outcome.is_ok())
    };
    attempts.iter().any(|it| it.program == name && of_way(it))
}

/// Programs on their way into the kernel.
struct Loads<'a> {
    /// Those that nobody has begun with.
    programs: BTreeMap<&'a str, &'a mut programs::Program>,
    failures: BTreeMap<&'static str, String>,
}

impl<'a> Loads<'a> {
    /// One more to load: for each signal of the first way that has not failed. What kernels may refuse
    /// is tried first, and then what takes its place, which is loaded beside the rest so.
    fn next(&mut self, plan: &Plan) -> Option<(&'static Program, &'a mut programs::Program)> {
        let failures = &self.failures;
        let works = |rung: &Rung| {
            let mut programs = rung.programs.iter();
            programs.all(|it| !failures.contains_key(it.name))
        };
        let ways = plan.signals.iter().filter_map(|it| {
            let rungs = it.candidates.iter().map(|it| it.rung);
            rungs.enumerate().find(|(_, rung)| works(rung))
        });
        let programs = ways.flat_map(|(nth, rung)| {
            let may_be_refused = matches!(rung.way, Way::Fentry | Way::Fexit);
            let urgency = (may_be_refused, nth);
            rung.programs.iter().map(move |program| (urgency, program))
        });
        let left = programs.filter(|(_, program)| self.programs.contains_key(program.name));
        let (_, program) = left.max_by_key(|&(urgency, _)| urgency)?;
        let object = self.programs.remove(program.name)?;
        Some((program, object))
    }
}

/// Loads a program, unless it is loaded already.
fn load(object: &mut programs::Program, target: &str, types: &Result<Btf, BtfError>) -> Result<()> {
    use programs::Program;
    let types = || types.as_ref().map_err(unreadable);
    let outcome = match object {
        Program::RawTracePoint(object) => object.load(),
        Program::TracePoint(object) => object.load(),
        Program::KProbe(object) => object.load(),
        Program::FEntry(object) => object.load(target, types()?),
        Program::FExit(object) => object.load(target, types()?),
        Program::Iter(object) => object.load(target, types()?),
        _ => bail!("this kind of program is not loaded here"),
    };
    match outcome {
        Err(ProgramError::AlreadyLoaded) => Ok(()),
        outcome => Ok(outcome?),
    }
}

fn attach_raw_tracepoint(
    object: &mut programs::Program,
    target: &str,
) -> Result<RawTracePointLink> {
    let object: &mut RawTracePoint = object.try_into()?;
    let link = object.attach(target)?;
    Ok(object.take_link(link)?)
}

/// Why nothing can be attached by the kernel's types.
fn unreadable(error: &BtfError) -> anyhow::Error {
    anyhow!("the kernel's types cannot be read: {error}")
}

/// An error and what lies behind it, on one line: of a verifier's log the last line says why.
fn reason(error: &anyhow::Error) -> String {
    let chain: Vec<_> = error.chain().map(ToString::to_string).collect();
    let text = chain.join(": ");
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    match (lines.next(), lines.next_back()) {
        (Some(first), Some(last)) => format!("{first} … {last}"),
        (first, _) => first.unwrap_or_default().to_owned(),
    }
}

/// Runs `attach` where tracefs can be seen. On a host that has not mounted it, that is a thread
/// with a mount namespace of its own: nobody else sees the mount, and it ends with the thread.
fn with_tracefs<T: Send>(attach: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    const TRACEFS: &str = "/sys/kernel/tracing";
    let mounted = [TRACEFS, "/sys/kernel/debug/tracing"];
    if mounted
        .iter()
        .any(|at| Path::new(at).join("events").exists())
    {
        return attach();
    }
    let private = || {
        let nothing = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).context("no mount namespace of its own")?;
        mount(
            nothing,
            "/",
            nothing,
            MsFlags::MS_REC | MsFlags::MS_SLAVE,
            nothing,
        )?;
        mount(
            Some("tracefs"),
            TRACEFS,
            Some("tracefs"),
            MsFlags::empty(),
            nothing,
        )?;
        attach()
    };
    thread::scope(|scope| match scope.spawn(private).join() {
        Ok(result) => result.with_context(|| {
            format!("tracefs is not mounted and could not be mounted privately at {TRACEFS}")
        }),
        Err(_) => bail!("the thread that mounts tracefs panicked"),
    })
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
