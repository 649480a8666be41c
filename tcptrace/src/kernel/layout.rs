//! Fills in the load-time constants of the kernel half from the running kernel's types.

use std::ops::Range;

use tcptrace_common::layout::{ABSENT, Layout, Looks, OFFSETS};

use super::btf::{Argument, Btf};

/// The layout of one kernel.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What the kernel half is loaded with.
    pub layout: Layout,
    /// Names of the fields of [`Layout`] this kernel lacks.
    pub missing: Vec<&'static str>,
    /// A program is skipped where it would run inside itself, as since 6.1.
    /// <https://github.com/torvalds/linux/blob/v6.1/kernel/bpf/syscall.c> (`bpf_prog_inc_misses_counter`)
    pub skips_nested: bool,
    /// `enum sk_rst_reason` without the prefix `SK_RST_REASON_`; empty before 6.10.
    pub reset_reasons: Vec<(u32, String)>,
}

impl Resolved {
    /// The layout of a kernel that shows no types: nothing is known.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            layout: Layout::ABSENT,
            missing: missing(&Layout::ABSENT),
            skips_nested: false,
            reset_reasons: Vec::new(),
        }
    }
}

/// The function came with what it counts.
const COUNTS_SKIPPED: &str = "bpf_prog_inc_misses_counter";

/// See [`Layout::cast`].
const CASTS: &str = "bpf_rdonly_cast";

/// `TS_COMPAT` of x86, `_TIF_32BIT` of arm64.
/// <https://github.com/torvalds/linux/blob/v6.18/arch/x86/include/asm/thread_info.h>,
/// <https://github.com/torvalds/linux/blob/v6.18/arch/arm64/include/asm/thread_info.h>
const COMPAT: u32 = if cfg!(target_arch = "aarch64") {
    1 << 22
} else {
    1 << 1
};

/// Looks every offset, argument position and enum value up. `rcv_state_process` is the address range
/// of `tcp_rcv_state_process`, where it is known.
#[must_use]
pub fn resolve(btf: &Btf, rcv_state_process: Option<Range<u64>>) -> Resolved {
    let mut layout = Layout::ABSENT;
    for offset in OFFSETS {
        let found = btf.offset(offset.strukt, offset.path).unwrap_or(ABSENT);
        bytemuck::bytes_of_mut(&mut layout)[offset.at..][..4].copy_from_slice(&found.to_ne_bytes());
    }
    if let Some(range) = rcv_state_process {
        layout.rcv_state_process_start = range.start;
        layout.rcv_state_process_end = range.end;
    }

    // The programs take an argument from the place it has always had: somewhere else it is not there
    // for them, and what needs it is refused aloud.
    let argument = |tracepoint, ty, place| {
        let found = btf.argument(tracepoint, ty);
        found.filter(|&found| found == place).unwrap_or(ABSENT)
    };
    layout.send_reset_reason = argument("tcp_send_reset", Argument::Enum("sk_rst_reason"), 2);
    layout.kfree_skb_reason = argument("kfree_skb", Argument::Enum("skb_drop_reason"), 2);
    layout.kfree_skb_rx_sk = argument("kfree_skb", Argument::Struct("sock"), 3);
    layout.consume_skb_location = argument("consume_skb", Argument::VoidPointer, 1);
    layout.retransmit_err = argument("tcp_retransmit_skb", Argument::Int, 2);

    let value = |name| {
        btf.enum_value(name)
            .and_then(|value| u32::try_from(value).ok())
    };
    layout.drop_listen_overflow = value("SKB_DROP_REASON_TCP_LISTEN_OVERFLOW").unwrap_or(ABSENT);
    layout.drop_no_socket = value("SKB_DROP_REASON_NO_SOCKET").unwrap_or(ABSENT);
    let functions = btf.functions(&[CASTS, COUNTS_SKIPPED].into());
    if let (Some(cast), Some(words)) = (functions.get(CASTS), btf.id("pt_regs")) {
        (layout.cast, layout.words) = (cast.id, words);
    }
    layout.has_task_pt_regs = value("BPF_FUNC_task_pt_regs").is_some().into();

    // f_count holds the number of references, file_ref_t one less:
    // https://github.com/torvalds/linux/blob/v6.12/include/linux/fs.h
    // https://github.com/torvalds/linux/blob/v6.18/include/linux/file_ref.h
    layout.file_refs_one = btf.offset("file", "f_count").is_some().into();
    if layout.has_task_pt_regs == 0 {
        layout.saved_regs = saved_regs(btf).unwrap_or(ABSENT);
    }
    number_calls(&mut layout);
    layout.compat = COMPAT;

    let reset_reasons = btf
        .enum_variants("sk_rst_reason")
        .filter_map(|(value, name)| {
            let name = name
                .strip_prefix("SK_RST_REASON_")
                .filter(|&name| name != "MAX")?;
            Some((u32::try_from(value).ok()?, name.to_owned()))
        })
        .collect();
    Resolved {
        layout,
        missing: missing(&layout),
        skips_nested: functions.contains_key(COUNTS_SKIPPED),
        reset_reasons,
    }
}

/// Where the registers of a call lie in the stack of the task that made it: at its end. Newer kernels,
/// where something may lie behind them, have `bpf_task_pt_regs`.
/// <https://github.com/torvalds/linux/blob/v5.10/arch/x86/include/asm/processor.h> (`task_pt_regs`)
/// <https://github.com/torvalds/linux/blob/v5.10/arch/arm64/include/asm/processor.h> (`task_pt_regs`)
///
/// Not every kernel's types hold the union that is as large as a stack; on x86 the stack of an interrupt
/// is as large.
/// <https://github.com/torvalds/linux/blob/v5.10/arch/x86/include/asm/page_64_types.h>
fn saved_regs(btf: &Btf) -> Option<u32> {
    let stack = btf.size("thread_union").or_else(|| btf.size("irq_stack"))?;
    stack.checked_sub(btf.size("pt_regs")?)
}

/// The numbers of system calls, which every architecture gives its own.
fn number_calls(layout: &mut Layout) {
    let number = |number: libc::c_long| u32::try_from(number).unwrap_or(ABSENT);
    layout.nr_accept = number(libc::SYS_accept);
    layout.nr_accept4 = number(libc::SYS_accept4);
    layout.nr_bind = number(libc::SYS_bind);
    layout.nr_close = number(libc::SYS_close);
    layout.nr_connect = number(libc::SYS_connect);
    layout.nr_listen = number(libc::SYS_listen);
    layout.nr_read = number(libc::SYS_read);
    layout.nr_readv = number(libc::SYS_readv);
    layout.nr_recvfrom = number(libc::SYS_recvfrom);
    layout.nr_recvmmsg = number(libc::SYS_recvmmsg);
    layout.nr_recvmsg = number(libc::SYS_recvmsg);
    layout.nr_sendfile = number(libc::SYS_sendfile);
    layout.nr_sendmmsg = number(libc::SYS_sendmmsg);
    layout.nr_sendmsg = number(libc::SYS_sendmsg);
    layout.nr_sendto = number(libc::SYS_sendto);
    layout.nr_shutdown = number(libc::SYS_shutdown);
    layout.nr_socket = number(libc::SYS_socket);
    layout.nr_write = number(libc::SYS_write);
    layout.nr_writev = number(libc::SYS_writev);
}

/// The system calls that look at files by name, or, `read`, at what another one's descriptor is.
pub(super) fn looks() -> Looks {
    let mut looks = Looks::default();
    let calls = [
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
        libc::SYS_getdents64,
        libc::SYS_newfstatat,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_pread64,
        libc::SYS_read,
        libc::SYS_readlinkat,
        libc::SYS_statx,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_access,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_lstat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_readlink,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_stat,
    ];
    for number in calls.into_iter().filter_map(|it| usize::try_from(it).ok()) {
        if let Some(word) = looks.get_mut(number / 64) {
            *word |= 1 << (number % 64);
        }
    }
    looks
}

/// Names of the fields that hold nothing.
fn missing(layout: &Layout) -> Vec<&'static str> {
    let offsets = OFFSETS
        .iter()
        .filter(|offset| bytemuck::bytes_of(layout)[offset.at..][..4] == ABSENT.to_ne_bytes())
        .map(|offset| offset.name);
    let values = [
        ("send_reset_reason", layout.send_reset_reason == ABSENT),
        ("kfree_skb_reason", layout.kfree_skb_reason == ABSENT),
        ("kfree_skb_rx_sk", layout.kfree_skb_rx_sk == ABSENT),
        (
            "consume_skb_location",
            layout.consume_skb_location == ABSENT,
        ),
        ("retransmit_err", layout.retransmit_err == ABSENT),
        (
            "drop_listen_overflow",
            layout.drop_listen_overflow == ABSENT,
        ),
        ("drop_no_socket", layout.drop_no_socket == ABSENT),
        (
            "rcv_state_process_start",
            layout.rcv_state_process_start == u64::MAX,
        ),
        (
            "call_registers",
            layout.has_task_pt_regs != 1 && layout.saved_regs == ABSENT,
        ),
    ];
    let values = values
        .into_iter()
        .filter(|&(_, absent)| absent)
        .map(|(name, _)| name);
    offsets.chain(values).collect()
}

#[cfg(test)]
mod tests {
    use super::super::btf::writer::Writer;
    use super::*;

    /// A kernel like 6.1: no reset reasons, no receiving socket, `f_count`.
    fn old_kernel() -> Writer {
        let mut w = Writer::new();
        let int = w.int("int");
        w.strukt("sock", &[("sk_err", int, 4352)]);
        w.strukt("file", &[("f_count", int, 448), ("f_flags", int, 512)]);
        let skb = w.strukt("sk_buff", &[("head", int, 1600)]);
        let sock = w.strukt("sock", &[]);
        let (skb, sock, void) = (w.pointer(skb), w.pointer(sock), w.pointer(0));
        let reason = w.enumeration("skb_drop_reason", &[("SKB_DROP_REASON_NO_SOCKET", 2)]);
        w.tracepoint("kfree_skb", &[skb, void, reason]);
        w.tracepoint("consume_skb", &[skb]);
        w.tracepoint("tcp_send_reset", &[sock, skb]);
        w.tracepoint("tcp_retransmit_skb", &[sock, skb]);
        w.enumeration("bpf_func_id", &[("BPF_FUNC_task_pt_regs", 175)]);
        w
    }

    fn resolved(writer: &Writer) -> Resolved {
        resolve(
            &Btf::parse(writer.finish()).expect("the writer writes BTF"),
            None,
        )
    }

    #[test]
    fn what_the_kernel_has_is_filled_in_and_the_rest_named() {
        let Resolved {
            layout,
            missing,
            skips_nested,
            reset_reasons,
        } = resolved(&old_kernel());
        assert_eq!(
            (layout.sk_err, layout.skb_head, layout.file_flags),
            (544, 200, 64)
        );
        assert_eq!((layout.file_refs, layout.file_refs_one), (56, 1));
        assert_eq!((layout.kfree_skb_reason, layout.drop_no_socket), (2, 2));
        assert_eq!((layout.has_task_pt_regs, layout.sk_protocol), (1, ABSENT));
        assert_eq!((layout.cast, layout.words), (ABSENT, ABSENT));
        for name in [
            "sk_protocol",
            "kfree_skb_rx_sk",
            "consume_skb_location",
            "retransmit_err",
        ] {
            assert!(missing.contains(&name), "{name} is not in {missing:?}");
        }
        for name in [
            "send_reset_reason",
            "drop_listen_overflow",
            "rcv_state_process_start",
        ] {
            assert!(missing.contains(&name), "{name} is not in {missing:?}");
        }
        for name in [
            "sk_err",
            "kfree_skb_reason",
            "drop_no_socket",
            "call_registers",
        ] {
            assert!(!missing.contains(&name), "{name} is in {missing:?}");
        }
        assert!(!skips_nested);
        assert_eq!(reset_reasons, []);
    }

    #[test]
    fn what_newer_kernels_added_is_found() {
        let mut w = Writer::new();
        let int = w.int("int");
        w.strukt("file", &[("f_ref", int, 1408)]);
        let (skb, sock) = (w.strukt("sk_buff", &[]), w.strukt("sock", &[]));
        let (skb, sock, void) = (w.pointer(skb), w.pointer(sock), w.pointer(0));
        let reason = w.enumeration(
            "sk_rst_reason",
            &[("SK_RST_REASON_NO_SOCKET", 1), ("SK_RST_REASON_MAX", 2)],
        );
        let drop = w.enumeration(
            "skb_drop_reason",
            &[("SKB_DROP_REASON_TCP_LISTEN_OVERFLOW", 40)],
        );
        w.tracepoint("kfree_skb", &[skb, void, drop, sock]);
        w.tracepoint("consume_skb", &[skb, void]);
        w.tracepoint("tcp_send_reset", &[sock, skb, reason]);
        w.tracepoint("tcp_retransmit_skb", &[sock, skb, int]);
        w.function("bpf_prog_inc_misses_counter");
        w.function("bpf_rdonly_cast");
        w.strukt("pt_regs", &[]);

        let Resolved {
            layout,
            missing,
            skips_nested,
            reset_reasons,
        } = resolved(&w);
        assert_eq!((layout.file_refs, layout.file_refs_one), (176, 0));
        assert_eq!((layout.kfree_skb_reason, layout.kfree_skb_rx_sk), (2, 3));
        assert_eq!(
            (layout.consume_skb_location, layout.send_reset_reason),
            (1, 2)
        );
        assert_eq!(
            (layout.retransmit_err, layout.drop_listen_overflow),
            (2, 40)
        );
        assert!(layout.cast != ABSENT && layout.words != ABSENT);
        assert!(missing.contains(&"call_registers"));
        assert!(missing.contains(&"drop_no_socket"));
        assert!(skips_nested);
        assert_eq!(reset_reasons, [(1, "NO_SOCKET".to_owned())]);
    }

    /// The registers as arm64 saves them: the arguments in `user_pt_regs`, and apart from them the
    /// first one as it was when the call began.
    /// <https://github.com/torvalds/linux/blob/v6.18/arch/arm64/include/asm/ptrace.h>
    #[test]
    fn arguments_are_found_in_the_registers_of_arm64() {
        let mut w = Writer::new();
        let (int, long) = (w.int("int"), w.int("unsigned long"));
        let registers = [("regs", long, 0), ("sp", long, 31 * 64)];
        let user = w.strukt("user_pt_regs", &registers);
        let bare = w.strukt("", &registers);
        let either = w.union("", &[("user_regs", user, 0), ("", bare, 0)]);
        w.strukt(
            "pt_regs",
            &[
                ("", either, 0),
                ("orig_x0", long, 34 * 64),
                ("syscallno", int, 35 * 64),
            ],
        );
        let info = w.strukt("thread_info", &[("flags", long, 0), ("cpu", int, 64)]);
        w.strukt("task_struct", &[("thread_info", info, 128)]);
        let Layout {
            regs_arg0,
            regs_arg1,
            regs_arg2,
            regs_syscall,
            task_status,
            ..
        } = resolved(&w).layout;
        assert_eq!((regs_arg0, regs_arg1, regs_arg2), (34 * 8, 8, 16));
        assert_eq!((regs_syscall, task_status), (35 * 8, 16));
    }

    #[test]
    fn a_kernel_that_shows_nothing_misses_everything() {
        let Resolved {
            layout, missing, ..
        } = Resolved::unknown();
        assert_eq!(layout.sk_err, ABSENT);
        assert!(OFFSETS.iter().all(|offset| missing.contains(&offset.name)));
        assert!(missing.contains(&"rcv_state_process_start"));
        assert!(missing.contains(&"call_registers"));
    }

    /// The first members of `sock_common` have kept their places since 5.10; everything else has to
    /// make sense beside them.
    #[test]
    fn the_running_kernel_makes_sense() {
        let Ok(btf) = Btf::from_kernel() else {
            assert!(!std::path::Path::new(super::super::btf::KERNEL_BTF).exists());
            return;
        };
        let Resolved {
            layout,
            missing,
            skips_nested,
            reset_reasons,
        } = resolve(&btf, Some(0x10..0x20));
        assert_eq!((layout.skc_daddr, layout.skc_rcv_saddr), (0, 4));
        assert_eq!((layout.skc_dport, layout.skc_num), (12, 14));
        assert_eq!((layout.skc_family, layout.skc_state), (16, 18));
        assert_eq!(layout.skc_v6_rcv_saddr, layout.skc_v6_daddr + 16);
        assert_eq!(layout.sk_max_ack_backlog, layout.sk_ack_backlog + 4);
        assert_eq!(layout.task_tgid, layout.task_pid + 4);
        assert!(
            layout.skc_v6_rcv_saddr < layout.sk_err,
            "a sock begins with its sock_common"
        );
        assert!(
            layout.sk_err < layout.inet_sport,
            "an inet_sock begins with its sock"
        );
        assert!(
            layout.inet_sport < layout.icsk_retransmits,
            "then come connection and tcp_sock"
        );
        assert!(layout.icsk_retransmits < layout.rcv_nxt);
        assert_eq!(
            (layout.rcv_state_process_start, layout.rcv_state_process_end),
            (0x10, 0x20)
        );
        for name in [
            "skc_net",
            "sk_socket",
            "net_inum",
            "task_comm",
            "file_refs",
            "regs_arg0",
        ] {
            assert!(!missing.contains(&name), "the running kernel lacks {name}");
        }
        let symbols = std::fs::read_to_string("/proc/kallsyms").expect("anybody may read it");
        let counts = |line: &str| line.ends_with(" T bpf_prog_inc_misses_counter");
        assert_eq!(skips_nested, symbols.lines().any(counts));
        assert_eq!(layout.send_reset_reason == ABSENT, reset_reasons.is_empty());
    }
}
