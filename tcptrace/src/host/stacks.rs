//! Where in its code a process was, of the registers and the stack the kernel half copied: unwound with
//! what its binaries say of their frames, and named from their symbols and debug information.
//!
//! Nothing is guessed. What the process runs is read from the files it has mapped, which
//! `/proc/PID/map_files` opens whatever their names lead to by now, here or in its container; and only if
//! it still is the program the stack was taken of.

mod cut_short;
mod module;
mod names;
mod process;
mod unwind;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tcptrace_common::event as wire;

use crate::event::{Frame, Stack};
use module::Modules;
use names::Names;
use process::{Mapping, Process, Seen};

/// What turns stacks into names. It is made and used by one thread.
#[expect(missing_debug_implementations, reason = "what it holds has none")]
pub struct Stacks {
    modules: Modules,
    names: Names,
    /// Processes looked at last, the last one first: one that ends just after what it did is known from
    /// before.
    seen: VecDeque<(Id, Arc<Process>)>,
}

/// A process and the program it runs.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Id {
    tgid: u32,
    start: u64,
}

/// Processes remembered.
const SEEN: usize = 64;

impl Stacks {
    /// Reads the kernel's symbols, for which it may take privileges that are given up afterwards.
    #[must_use]
    pub fn new() -> Self {
        Self {
            modules: Modules::default(),
            names: Names::new(),
            seen: VecDeque::new(),
        }
    }

    /// The stack by name.
    #[must_use]
    pub fn name(&mut self, raw: &wire::Stack) -> Stack {
        let kernel = self.kernel(raw);
        // A binary that somebody made for it must not end the trace.
        let program = catch_unwind(AssertUnwindSafe(|| self.program(raw)));
        let (program, missing) = program.unwrap_or_else(|_| {
            let why = "what its binaries say of themselves cannot be read";
            (Vec::new(), Some(why.to_owned()))
        });
        Stack::new(kernel.into_iter().chain(program), missing)
    }

    /// Without our own part of it: the hook and what led to it.
    fn kernel(&self, raw: &wire::Stack) -> Vec<Frame> {
        let known = usize::try_from(raw.kernel_bytes).unwrap_or(0) / size_of::<u64>();
        let addresses = &raw.kernel[..known.min(raw.kernel.len())];
        let names = self.names.of_kernel(addresses);
        let hook = names.iter().rposition(|name| is_hook(name));
        let names = names.iter().skip(hook.map_or(0, |at| at + 1));
        names.map(|name| Frame::of_kernel(name)).collect()
    }

    fn program(&mut self, raw: &wire::Stack) -> (Vec<Frame>, Option<String>) {
        let why = |why: &str| (Vec::new(), Some(why.to_owned()));
        if raw.start == 0 {
            return why("the process was exiting and had given up its memory");
        }
        if raw.ip == 0 {
            return why("an io_uring worker and a 32-bit program have no registers to begin with");
        }
        let id = Id {
            tgid: raw.tgid,
            start: raw.start,
        };
        let process = match self.process(id, raw.ip) {
            Ok(process) => process,
            Err(why) => {
                let address = Frame::of_program(&format!("{:#x}", raw.ip), None);
                return (vec![address], Some(why));
            }
        };
        let (addresses, mut missing) = unwind::unwind(raw, &process, &mut self.modules);
        let mut frames = Vec::new();
        for (nth, address) in addresses.iter().enumerate() {
            // A return address lies behind the call, which may be the last of its line.
            let address = address.saturating_sub(u64::from(nth > 0));
            let Some(mapping) = process.at(address) else {
                break;
            };
            let mut why = self.name_at(mapping, address, &mut frames);
            missing = missing.or(why.take());
        }
        (frames, missing)
    }

    /// Adds the function at an address, with those that were inlined there; says why it has no name.
    fn name_at(
        &mut self,
        mapping: &Mapping,
        address: u64,
        frames: &mut Vec<Frame>,
    ) -> Option<String> {
        let offset = mapping.offset_of(address);
        let Some(file) = &mapping.file else {
            frames.push(Frame::of_program(&mapping.name_of(address), None));
            return mapping.why.clone();
        };
        let before = frames.len();
        self.names.of_file(file, offset, frames);
        if frames.len() > before {
            return None;
        }
        let module = self.modules.get(file);
        let address = module.as_ref().map_or(offset, |it| it.address_of(offset));
        frames.push(Frame::of_program(
            &format!("{}+{address:#x}", mapping.name),
            None,
        ));
        let build_id = module.as_ref().and_then(|it| it.build_id.as_deref());
        build_id.map(|id| format!("{} (build id {id}) has no symbol there", mapping.name))
    }

    fn process(&mut self, id: Id, ip: u64) -> Result<Arc<Process>, String> {
        let known = self.seen.iter().position(|(known, _)| *known == id);
        let known = known.and_then(|at| self.seen.remove(at));
        let process = match (Process::read(id.tgid, id.start), known) {
            (Ok(Seen::Maps(maps)), known) => {
                let before = known.map(|(_, process)| process);
                Arc::new(Process::open(id.tgid, &maps, before.as_deref()))
            }
            (_, Some((_, process))) if process.at(ip).is_some() => process,
            (Ok(Seen::Another), _) => return Err("the process runs another program by now".into()),
            (Err(why), _) => return Err(why),
        };
        self.seen.push_front((id, Arc::clone(&process)));
        self.seen.truncate(SEEN);
        Ok(process)
    }
}

impl Default for Stacks {
    fn default() -> Self {
        Self::new()
    }
}

/// What the kernel runs between the place of a hook and our program, by how it begins.
/// <https://github.com/torvalds/linux/blob/v6.18/include/trace/bpf_probe.h>
fn is_hook(name: &str) -> bool {
    const OURS: [&str; 9] = [
        "__bpf_",
        "__traceiter_",
        "bpf_",
        "get_callchain_entry",
        "kprobe_",
        "perf_",
        "stack_trace_save",
        "trace_call_bpf",
        "aggr_pre_handler",
    ];
    OURS.iter().any(|begin| name.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    /// This process, at this line, as the kernel half would have seen it.
    #[inline(never)]
    fn here() -> (Box<wire::Stack>, u32) {
        let mut raw = Box::new(wire::Stack::zeroed());
        let stat = procfs::process::Process::myself().and_then(|it| it.stat());
        raw.start = stat.expect("there is /proc").startstack;
        raw.tgid = std::process::id();
        raw.ip = here as fn() -> (Box<wire::Stack>, u32) as usize as u64;
        (raw, line!())
    }

    #[test]
    fn what_a_process_was_in_has_its_name_and_line_only_while_it_is_the_same() {
        let (mut raw, line) = here();
        let stack = Stacks::new().name(&raw);
        let first = stack.program().next().expect("a frame");
        assert!(first.name().ends_with("here"), "{first}");
        let (file, at) = first
            .place()
            .and_then(|it| it.rsplit_once(':'))
            .expect("a place");
        assert!(file.ends_with("host/stacks.rs"), "{file}");
        let at: u32 = at.parse().expect("a line");
        assert!((line - 10..=line).contains(&at), "{at}");

        raw.start += 1;
        let stack = Stacks::new().name(&raw);
        let missing = stack.missing.as_deref();
        assert_eq!(missing, Some("the process runs another program by now"));
        let frames: Vec<_> = stack.program().map(Frame::name).collect();
        assert_eq!(frames, [format!("{:#x}", raw.ip)]);
    }

    #[test]
    fn what_there_is_no_way_to_know_is_said() {
        let missing = |change: fn(&mut wire::Stack)| {
            let (mut raw, _) = here();
            change(&mut raw);
            let stack = Stacks::new().name(&raw);
            assert_eq!(
                stack
                    .program()
                    .filter(|it| !it.name().starts_with("0x"))
                    .count(),
                0
            );
            stack.missing.expect("it says why")
        };
        assert!(missing(|raw| raw.start = 0).contains("exiting"));
        assert!(missing(|raw| raw.ip = 0).contains("io_uring"));
        // No process has this number.
        assert!(missing(|raw| raw.tgid = 1 << 30).contains("gone"));
    }

    #[test]
    fn our_own_part_of_the_kernels_is_known_by_its_names() {
        let names = [
            "bpf_get_task_stack",
            "bpf_prog_0123456789abcdef_tcp_send_reset",
            "bpf_trace_run3",
            "__bpf_trace_tcp_send_reset",
            "__traceiter_tcp_send_reset",
        ];
        assert!(names.iter().all(|name| is_hook(name)));
        assert!(
            !["tcp_send_active_reset", "__tcp_close", "do_syscall_64"]
                .map(is_hook)
                .contains(&true)
        );
    }
}
