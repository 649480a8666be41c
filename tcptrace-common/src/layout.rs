//! The load-time constants: where this kernel keeps each field, read from its BTF at start.

/// An offset, position or value this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// The number of the helper, which there is not, that the kernel half calls for [`Layout::cast`]. The
/// agent makes each such call one of the kernel's function.
pub const CAST_CALL: u32 = 0x7463_7074;

/// A set of system calls: a bit for each number.
pub type Looks = [u64; LOOKS_WORDS];

/// Words of [`Looks`]: room for every number there is.
pub const LOOKS_WORDS: usize = 8;

/// Declares [`Layout`] and the BTF path of each of its offsets, so that neither can drift from the
/// other.
macro_rules! layout {
    (
        offsets { $($(#[$ometa:meta])* $offset:ident: $strukt:literal $path:literal,)* }
        values { $($(#[$vmeta:meta])* $value:ident: $vty:ty,)* }
    ) => {
        /// Byte offsets into kernel structures, argument positions and enum values.
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        #[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
        pub struct Layout {
            $($(#[$vmeta])* pub $value: $vty,)*
            $(
                $(#[$ometa])*
                #[doc = concat!("`", $strukt, ".", $path, "`")]
                pub $offset: u32,
            )*
            /// Makes the size a multiple of eight, so that no byte is padding.
            pub pad: [u32; PAD],
        }

        const PAD: usize =
            (4 * [$(stringify!($offset)),*].len() $(+ size_of::<$vty>())*) % 8 / 4;

        impl Layout {
            /// Nothing known: every offset and value absent.
            pub const ABSENT: Self = Self {
                $($value: <$vty>::MAX,)*
                $($offset: ABSENT,)*
                pad: [ABSENT; PAD],
            };
        }

        /// One offset of [`Layout`]: its own name, the kernel's struct and the member's path.
        ///
        /// Alternatives in a path are separated by `|`; `+N` after a member adds bytes.
        pub struct Offset {
            /// Name of the field of [`Layout`].
            pub name: &'static str,
            /// The kernel's struct.
            pub strukt: &'static str,
            /// Members, outermost first, separated by dots; anonymous ones are not named.
            pub path: &'static str,
            /// Where in [`Layout`] the offset is stored, bytes.
            pub at: usize,
        }

        /// Every offset of [`Layout`].
        pub const OFFSETS: &[Offset] = &[
            $(Offset {
                name: stringify!($offset),
                strukt: $strukt,
                path: $path,
                at: core::mem::offset_of!(Layout, $offset),
            },)*
        ];
    };
}

layout! {
    offsets {
        skc_daddr: "sock_common" "skc_daddr",
        skc_rcv_saddr: "sock_common" "skc_rcv_saddr",
        skc_dport: "sock_common" "skc_dport",
        skc_num: "sock_common" "skc_num",
        skc_family: "sock_common" "skc_family",
        skc_state: "sock_common" "skc_state",
        skc_net: "sock_common" "skc_net.net",
        skc_v6_daddr: "sock_common" "skc_v6_daddr",
        skc_v6_rcv_saddr: "sock_common" "skc_v6_rcv_saddr",
        skc_flags: "sock_common" "skc_flags",
        sk_err: "sock" "sk_err",
        sk_err_soft: "sock" "sk_err_soft",
        sk_ack_backlog: "sock" "sk_ack_backlog",
        sk_max_ack_backlog: "sock" "sk_max_ack_backlog",
        sk_drops: "sock" "sk_drops",
        sk_protocol: "sock" "sk_protocol",
        sk_shutdown: "sock" "sk_shutdown",
        sk_lingertime: "sock" "sk_lingertime",
        sk_rcvtimeo: "sock" "sk_rcvtimeo",
        sk_sndtimeo: "sock" "sk_sndtimeo",
        sk_socket: "sock" "sk_socket",
        /// Set while a task holds the socket's lock: a hook that runs then runs for that task.
        sk_lock_owned: "sock" "sk_lock.owned",
        inet_sport: "inet_sock" "inet_sport",
        syn_queue_len: "inet_connection_sock" "icsk_accept_queue.qlen",
        icsk_retransmits: "inet_connection_sock" "icsk_retransmits",
        icsk_probes_out: "inet_connection_sock" "icsk_probes_out",
        icsk_user_timeout: "inet_connection_sock" "icsk_user_timeout",
        lrcvtime: "inet_connection_sock" "icsk_ack.lrcvtime",
        /// 0 once the acknowledgement of what came last had to be sent without an answer.
        ack_pingpong: "inet_connection_sock" "icsk_ack.pingpong",
        rcv_nxt: "tcp_sock" "rcv_nxt",
        copied_seq: "tcp_sock" "copied_seq",
        snd_una: "tcp_sock" "snd_una",
        write_seq: "tcp_sock" "write_seq",
        lsndtime: "tcp_sock" "lsndtime",
        /// Jiffies at the last segment received: bounds the age of a CLOSE_WAIT from below.
        rcv_tstamp: "tcp_sock" "rcv_tstamp",
        srtt_us: "tcp_sock" "srtt_us",
        total_retrans: "tcp_sock" "total_retrans",
        snd_wnd: "tcp_sock" "snd_wnd",
        /// When anything was last sent, an acknowledgement too: ns of the monotonic clock.
        last_sent: "tcp_sock" "tcp_wstamp_ns",
        bytes_received: "tcp_sock" "bytes_received",
        bytes_sent: "tcp_sock" "bytes_sent",
        bytes_retrans: "tcp_sock" "bytes_retrans",
        skb_head: "sk_buff" "head",
        skb_transport_header: "sk_buff" "transport_header",
        skb_network_header: "sk_buff" "network_header",
        skb_dev: "sk_buff" "dev",
        skb_refdst: "sk_buff" "_skb_refdst",
        skb_protocol: "sk_buff" "protocol",
        dst_dev: "dst_entry" "dev",
        rtable_type: "rtable" "rt_type",
        rt6_flags: "rt6_info" "rt6i_flags",
        dev_net: "net_device" "nd_net.net",
        net_inum: "net" "ns.inum",
        net_syncookies: "net" "ipv4.sysctl_tcp_syncookies",
        task_group_leader: "task_struct" "group_leader",
        task_comm: "task_struct" "comm",
        task_flags: "task_struct" "flags",
        task_pid: "task_struct" "pid",
        task_tgid: "task_struct" "tgid",
        task_exit_code: "task_struct" "exit_code",
        task_signal: "task_struct" "signal",
        task_files: "task_struct" "files",
        task_cred: "task_struct" "cred",
        task_stack: "task_struct" "stack",
        task_mm: "task_struct" "mm",
        mm_start_stack: "mm_struct" "start_stack",
        task_nsproxy: "task_struct" "nsproxy",
        nsproxy_net: "nsproxy" "net_ns",
        task_cgroups: "task_struct" "cgroups",
        cred_uid: "cred" "uid",
        css_set_cgroup: "css_set" "dfl_cgrp",
        cgroup_kn: "cgroup" "kn",
        kernfs_id: "kernfs_node" "id",
        /// Where `compat` is: x86 has `status`, arm64 only `flags`.
        task_status: "task_struct" "thread_info.status|thread_info.flags",
        signal_group_exit_code: "signal_struct" "group_exit_code",
        files_fdt: "files_struct" "fdt",
        fdt_max_fds: "fdtable" "max_fds",
        fdt_fd: "fdtable" "fd",
        file_private_data: "file" "private_data",
        file_inode: "file" "f_inode",
        file_flags: "file" "f_flags",
        file_refs: "file" "f_count|f_ref",
        socket_file: "socket" "file",
        socket_sk: "socket" "sk",
        inode_ino: "inode" "i_ino",
        inode_mode: "inode" "i_mode",
        regs_syscall: "pt_regs" "orig_ax|syscallno",
        /// On arm64 the first register has the result by the time a call returns.
        /// <https://github.com/torvalds/linux/blob/v6.18/arch/arm64/kernel/syscall.c> (`el0_svc_common`)
        regs_arg0: "pt_regs" "di|orig_x0",
        regs_arg1: "pt_regs" "si|regs+8",
        regs_arg2: "pt_regs" "dx|regs+16",
        regs_arg3: "pt_regs" "r10|regs+24",
        regs_ip: "pt_regs" "ip|pc",
        regs_sp: "pt_regs" "sp",
        regs_fp: "pt_regs" "bp|regs+232",
        /// x86 has none.
        regs_lr: "pt_regs" "regs+240",
    }
    values {
        /// First byte of `tcp_rcv_state_process`.
        rcv_state_process_start: u64,
        /// First byte of the function after it.
        rcv_state_process_end: u64,
        /// Position of `enum sk_rst_reason` in `tcp_send_reset`.
        send_reset_reason: u32,
        /// Position of the reason in `kfree_skb`.
        kfree_skb_reason: u32,
        /// Position of the receiving socket in `kfree_skb`.
        kfree_skb_rx_sk: u32,
        /// Position of the caller's address in `consume_skb`.
        consume_skb_location: u32,
        /// Position of the result in `tcp_retransmit_skb`.
        retransmit_err: u32,
        /// `SKB_DROP_REASON_TCP_LISTEN_OVERFLOW`
        drop_listen_overflow: u32,
        /// `SKB_DROP_REASON_NO_SOCKET`
        drop_no_socket: u32,
        /// What the reference count of a file with one reference reads.
        file_refs_one: u32,
        /// Id of the kernel's function `bpf_rdonly_cast`, with which a program reads memory without a
        /// helper: since 6.2.
        /// <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/helpers.c> (`bpf_rdonly_cast`)
        cast: u32,
        /// With `cast` the id of `struct pt_regs`, which begins with words that are numbers.
        words: u32,
        /// 1 where `bpf_task_pt_regs` exists.
        has_task_pt_regs: u32,
        /// Where a task's stack holds the registers it entered the kernel with, bytes; only where
        /// `bpf_task_pt_regs` does not exist.
        saved_regs: u32,
        /// The bit of `task_status` that marks a 32-bit call, whose numbers differ.
        compat: u32,
        /// Number of `close` in this architecture's system calls.
        nr_close: u32,
        /// Number of `accept`.
        nr_accept: u32,
        /// Number of `accept4`.
        nr_accept4: u32,
        /// Number of `bind`.
        nr_bind: u32,
        /// Number of `connect`.
        nr_connect: u32,
        /// Number of `listen`.
        nr_listen: u32,
        /// Number of `read`.
        nr_read: u32,
        /// Number of `readv`.
        nr_readv: u32,
        /// Number of `recvfrom`.
        nr_recvfrom: u32,
        /// Number of `recvmmsg`.
        nr_recvmmsg: u32,
        /// Number of `recvmsg`.
        nr_recvmsg: u32,
        /// Number of `sendfile`.
        nr_sendfile: u32,
        /// Number of `sendmmsg`.
        nr_sendmmsg: u32,
        /// Number of `sendmsg`.
        nr_sendmsg: u32,
        /// Number of `sendto`.
        nr_sendto: u32,
        /// Number of `shutdown`.
        nr_shutdown: u32,
        /// Number of `socket`.
        nr_socket: u32,
        /// Number of `write`.
        nr_write: u32,
        /// Number of `writev`.
        nr_writev: u32,
    }
}
