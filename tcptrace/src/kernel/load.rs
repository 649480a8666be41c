//! Loading the kernel half and attaching its programs. With [`maps`](super::maps) and `source::ring` the only
//! room that names aya.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::maps::{MapData, ProgramArray, RingBuf};
use aya::programs::fentry::FEntryLink;
use aya::programs::fexit::FExitLink;
use aya::programs::kprobe::KProbeLink;
use aya::programs::raw_trace_point::RawTracePointLink;
use aya::programs::trace_point::TracePointLink;
use aya::programs::{self, FEntry, FExit, Iter, KProbe, ProgramError, RawTracePoint, TracePoint};
use aya::{Btf, BtfError, Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use bytemuck::{bytes_of, cast_slice};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use tcptrace_common::event::{hook, kind};
use tcptrace_common::filter::Config;
use tcptrace_common::layout::{ABSENT, CAST_CALL, Layout};

use super::doctor::Attempt;
use super::layout::looks;
use super::plan::{Plan, Program, Rung, Way};

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
pub(super) const STOOD_FOR: [&str; hook::STAND_INS as usize] = [
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
    types: Types,
}

/// The kernel's types, which programs are attached by: eleven megabytes.
#[derive(Debug)]
pub struct Types(Result<Btf, BtfError>);

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
                types: Types(types),
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

/// The smallest ring there is.
fn page_size() -> u32 {
    u32::try_from(rustix::param::page_size()).unwrap_or(1 << 16)
}

/// The loaded kernel half. Dropping it detaches everything.
#[derive(Debug)]
pub struct Kernel {
    pub(super) ebpf: Ebpf,
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
    /// Creates the maps. No program is loaded yet; that takes the types.
    ///
    /// # Errors
    /// This build has no kernel half, or the kernel refuses the maps.
    pub fn load(loader: Loader, setup: &Setup) -> Result<(Self, Types)> {
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
        let kernel = Self {
            ebpf,
            stand_ins: setup.stand_ins,
            links: BTreeMap::new(),
        };
        Ok((kernel, types))
    }

    /// Tries to see what the plan asks for: for each signal the first way whose programs all attach.
    /// A program that serves several signals is attached once and reported for each. Afterwards nobody
    /// needs the types.
    #[expect(clippy::needless_pass_by_value, reason = "it gives their memory back")]
    pub fn attach(&mut self, plan: &Plan, types: Types) -> Vec<Attempt> {
        let mut failures = self.load_all(plan, &types);
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
                        let outcome = self.attach_program(rung.way, name, target, &types);
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
    fn load_all(&mut self, plan: &Plan, types: &Types) -> BTreeMap<&'static str, String> {
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

    fn attach_program(
        &mut self,
        way: Way,
        name: &'static str,
        target: &'static str,
        types: &Types,
    ) -> Result<()> {
        let object = self.ebpf.program_mut(name);
        let object = object.with_context(|| format!("the object has no program {name}"))?;
        // What takes the place of a way that loads and then does not attach is not loaded before.
        load(object, target, types)?;
        let link = match way {
            Way::RawTracepoint => {
                let link = attach_raw_tracepoint(object, target)?;
                Link::RawTracepoint(link, self.attach_stand_in(name, target, types)?)
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
        types: &Types,
    ) -> Result<Option<RawTracePointLink>> {
        let index = STOOD_FOR.iter().position(|it| *it == name);
        let Some(index) = index.filter(|_| self.stand_ins) else {
            return Ok(None);
        };
        let program = self.ebpf.program(name).context("it is attached")?;
        let program = program.fd()?.try_clone()?;
        let map = self.map_mut("STOOD_FOR")?;
        ProgramArray::try_from(map)?.set(u32::try_from(index)?, &program, 0)?;
        let name = format!("stand_in_for_{name}");
        let object = self.ebpf.program_mut(&name);
        let object = object.with_context(|| format!("the object has no program {name}"))?;
        load(object, target, types)?;
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
fn load(object: &mut programs::Program, target: &str, Types(types): &Types) -> Result<()> {
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
