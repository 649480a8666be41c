//! What can be seen, and the ways to see it, best first; a new way is a new row.

use std::fmt;

use tcptrace_common::event::kind;

use crate::event::Signal;

/// A way to attach a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the raw tracepoint of the program's name.
    RawTracepoint,
    /// To the classic tracepoint of the program's name in this category.
    Tracepoint(&'static str),
    /// As the BPF iterator of the program's name, read once.
    Iterator,
}

impl Way {
    /// Every name `--without` knows.
    pub const NAMES: [&'static str; 3] = ["raw_tracepoint", "tracepoint", "iterator"];

    /// Its name for `--without`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RawTracepoint => Self::NAMES[0],
            Self::Tracepoint(_) => Self::NAMES[1],
            Self::Iterator => Self::NAMES[2],
        }
    }
}

/// One way to see one signal: all its programs attach, or none counts.
#[derive(Debug)]
pub struct Rung {
    /// How the programs attach.
    pub way: Way,
    /// Functions of the eBPF object; a program that serves several signals is attached once.
    pub programs: &'static [&'static str],
    /// Fields of the layout the programs cannot do without.
    pub needs: &'static [&'static str],
    pub(super) loses: &'static [Loss],
}

impl fmt::Display for Rung {
    /// E.g. `tracepoint syscalls:sys_exit_bind, sys_exit_listen`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.way.name())?;
        if let Way::Tracepoint(category) = self.way {
            write!(f, "{category}:")?;
        }
        f.write_str(&self.programs.join(", "))
    }
}

/// What a way does not show.
#[derive(Debug)]
pub(super) struct Loss {
    /// Only where this field of the layout is missing.
    pub(super) without: Option<&'static str>,
    pub(super) what: &'static str,
}

const fn never(what: &'static str) -> Loss {
    Loss {
        without: None,
        what,
    }
}

const fn without(field: &'static str, what: &'static str) -> Loss {
    Loss {
        without: Some(field),
        what,
    }
}

/// A signal and the ways to see it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) signal: Signal,
    pub(super) asked: Asked,
    pub(super) rungs: &'static [Rung],
}

#[derive(Debug)]
pub(super) enum Asked {
    /// Everything else rests on it.
    Core,
    /// By any of these kinds of event.
    By(u32),
    /// When children are followed.
    ByChildren,
}

const fn kinds(list: &[u8]) -> u32 {
    let (mut mask, mut nth) = (0, 0);
    while nth < list.len() {
        mask |= 1 << list[nth];
        nth += 1;
    }
    mask
}

/// Kinds about a connection, whose owner matters.
const CONNECTIONS: u32 = kinds(&[
    kind::RESET_SENT,
    kind::RESET_RECEIVED,
    kind::CLOSE_WAIT,
    kind::ACCEPT_OVERFLOW,
    kind::SOCKET_ERROR,
    kind::TIMEOUT,
    kind::STATE,
    kind::RETRANSMIT,
    kind::CLOSE,
]);

const NO_CALL: Loss = without(
    "has_task_pt_regs",
    "the system call and descriptor (bpf_task_pt_regs, Linux 5.15)",
);

pub(super) const SIGNALS: &[Row] = &[
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/af_inet.c (inet_sk_set_state)
    Row {
        signal: Signal("state changes"),
        asked: Asked::Core,
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &["inet_sock_set_state"],
            needs: &[
                "skc_state",
                "sk_protocol",
                "skc_family",
                "inet_sport",
                "sk_err",
            ],
            loses: &[
                never("a handshake before its final ACK: a request socket has no events"),
                never("what happens in TIME_WAIT"),
                NO_CALL,
            ],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c (tcp_v4_destroy_sock)
    Row {
        signal: Signal("socket end"),
        asked: Asked::Core,
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &["tcp_destroy_sock"],
            needs: &[],
            loses: &[],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/include/trace/events/tcp.h (tcp_send_reset)
    Row {
        signal: Signal("reset sent"),
        asked: Asked::By(kinds(&[kind::RESET_SENT])),
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &["tcp_send_reset"],
            needs: &["skc_state"],
            loses: &[
                never("a RST that netfilter's REJECT sends"),
                without(
                    "send_reset_reason",
                    "a RST for a closed port or a TIME_WAIT socket, and the kernel's reason \
                     (Linux 6.10)",
                ),
                NO_CALL,
            ],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_input.c (tcp_reset)
    Row {
        signal: Signal("reset received"),
        asked: Asked::By(kinds(&[kind::RESET_RECEIVED])),
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &["tcp_receive_reset"],
            needs: &["skc_state"],
            loses: &[never(
                "a RST to a handshake before its final ACK, or to a TIME_WAIT socket",
            )],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/socket.c (call_trace_sock_send_length)
    Row {
        signal: Signal("failed sends"),
        asked: Asked::By(kinds(&[kind::SOCKET_ERROR])),
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &["sock_send_length"],
            needs: &["sk_protocol"],
            loses: &[
                never("a send refused by a security module"),
                never("MSG_DONTWAIT of one call, so that it can look like SO_SNDTIMEO"),
                NO_CALL,
            ],
        }],
    },
    Row {
        signal: Signal("failed receives"),
        asked: Asked::By(kinds(&[kind::SOCKET_ERROR, kind::CLOSE_WAIT])),
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &["sock_recv_length"],
            needs: &["sk_protocol"],
            loses: &[
                never("splice() from a socket"),
                never("io_uring zero-copy receive"),
                never("a receive refused by a security module"),
                NO_CALL,
            ],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/socket.c (__sys_accept4)
    Row {
        signal: Signal("owners of accepted connections"),
        asked: Asked::By(CONNECTIONS),
        rungs: &[
            Rung {
                way: Way::Tracepoint("syscalls"),
                programs: &["sys_exit_accept", "sys_exit_accept4"],
                needs: &[
                    "task_files",
                    "files_fdt",
                    "fdt_fd",
                    "file_private_data",
                    "socket_sk",
                ],
                loses: &[never(
                    "an accept by io_uring: until the first use the listener's owner stands in",
                )],
            },
            Rung {
                way: Way::RawTracepoint,
                programs: &["sock_send_length", "sock_recv_length"],
                needs: &["sk_protocol"],
                loses: &[never(
                    "the owner before the first use: the listener's stands in",
                )],
            },
        ],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_input.c (tcp_conn_request)
    Row {
        signal: Signal("accept queue: SYN dropped"),
        asked: Asked::By(kinds(&[kind::ACCEPT_OVERFLOW])),
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &["consume_skb"],
            needs: &[
                "rcv_state_process_start",
                "consume_skb_location",
                "skb_head",
                "skb_transport_header",
                "skb_network_header",
                "sk_ack_backlog",
                "sk_max_ack_backlog",
            ],
            loses: &[never(
                "a SYN that an XDP or tc program answers with a cookie",
            )],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c (tcp_v4_syn_recv_sock)
    Row {
        signal: Signal("accept queue: final ACK dropped"),
        asked: Asked::By(kinds(&[kind::ACCEPT_OVERFLOW])),
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &["kfree_skb"],
            needs: &[
                "drop_listen_overflow",
                "kfree_skb_reason",
                "kfree_skb_rx_sk",
            ],
            loses: &[],
        }],
    },
    Row {
        signal: Signal("accept queue: SYN cookie dropped"),
        asked: Asked::By(kinds(&[kind::ACCEPT_OVERFLOW])),
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &["kfree_skb"],
            needs: &["drop_no_socket", "kfree_skb_reason", "kfree_skb_rx_sk"],
            loses: &[],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/socket.c (__sys_listen_socket)
    Row {
        signal: Signal("backlog asked for"),
        asked: Asked::By(kinds(&[kind::ACCEPT_OVERFLOW])),
        rungs: &[
            Rung {
                way: Way::Tracepoint("syscalls"),
                programs: &["sys_exit_listen"],
                needs: &["has_task_pt_regs", "regs_arg0", "regs_arg1"],
                loses: &[
                    never("the same by io_uring"),
                    never("the backlog of a listener older than the start"),
                ],
            },
            Rung {
                way: Way::RawTracepoint,
                programs: &["inet_sock_set_state"],
                needs: &["has_task_pt_regs", "regs_arg1"],
                loses: &[
                    never("a second listen on the same socket, which changes the backlog"),
                    never("the same by io_uring"),
                    never("the backlog of a listener older than the start"),
                ],
            },
        ],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/socket.c (__sys_accept4_file)
    Row {
        signal: Signal("descriptors exhausted in accept, accept4, socket"),
        asked: Asked::By(kinds(&[kind::FD_EXHAUSTED])),
        rungs: &[Rung {
            way: Way::Tracepoint("syscalls"),
            programs: &["sys_exit_accept", "sys_exit_accept4", "sys_exit_socket"],
            needs: &[],
            loses: &[
                never("the same by io_uring"),
                never("other calls that open descriptors, such as open and pipe"),
                without(
                    "has_task_pt_regs",
                    "the listener (bpf_task_pt_regs, Linux 5.15)",
                ),
            ],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c (tcp_v4_connect)
    Row {
        signal: Signal("connect without a route"),
        asked: Asked::By(kinds(&[kind::CONNECT_FAILED])),
        rungs: &[Rung {
            way: Way::Tracepoint("syscalls"),
            programs: &["sys_exit_connect"],
            needs: &["has_task_pt_regs", "regs_arg0", "regs_arg1"],
            loses: &[never("the same by io_uring")],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/af_inet.c (__inet_bind)
    Row {
        signal: Signal("address in use"),
        asked: Asked::By(kinds(&[kind::SOCKET_ERROR])),
        rungs: &[Rung {
            way: Way::Tracepoint("syscalls"),
            programs: &["sys_exit_bind", "sys_exit_listen"],
            needs: &["has_task_pt_regs", "regs_arg0", "regs_arg1"],
            loses: &[never("the same by io_uring")],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/af_inet.c (inet_shutdown)
    Row {
        signal: Signal("shutdown without a connection"),
        asked: Asked::By(kinds(&[kind::SOCKET_ERROR])),
        rungs: &[Rung {
            way: Way::Tracepoint("syscalls"),
            programs: &["sys_exit_shutdown"],
            needs: &["has_task_pt_regs", "regs_arg0"],
            loses: &[never("the same by io_uring")],
        }],
    },
    Row {
        signal: Signal("invalid descriptors"),
        asked: Asked::By(kinds(&[kind::FD_INVALID])),
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &["sys_exit"],
            needs: &[],
            loses: &[
                never("the same by io_uring"),
                never(
                    "what a descriptor was after its last connection: the file that had the \
                     number since, and was closed too",
                ),
                never("which connection it was, when close_range or dup2 closed it"),
                NO_CALL,
            ],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_output.c (__tcp_retransmit_skb)
    Row {
        signal: Signal("retransmits"),
        asked: Asked::By(kinds(&[kind::RETRANSMIT])),
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &["tcp_retransmit_skb"],
            needs: &[],
            loses: &[
                never("a SYN-ACK sent again"),
                never("how many segments one event stands for: TcpRetransSegs counts each"),
            ],
        }],
    },
    Row {
        signal: Signal("children of traced processes"),
        asked: Asked::ByChildren,
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &["sched_process_fork"],
            needs: &["task_pid", "task_tgid"],
            loses: &[],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/task_iter.c
    Row {
        signal: Signal("sockets older than the start"),
        asked: Asked::By(CONNECTIONS),
        rungs: &[Rung {
            way: Way::Iterator,
            programs: &["task_file"],
            needs: &[
                "file_private_data",
                "file_inode",
                "inode_mode",
                "socket_file",
                "socket_sk",
            ],
            loses: &[never(
                "a socket no descriptor names: registered with io_uring, in flight between \
                 processes, or not yet accepted",
            )],
        }],
    },
];

/// A signal no hook shows: the kernel only counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polled {
    /// The signal.
    pub signal: Signal,
    /// What is read, and how often.
    pub way: &'static str,
    /// What the counters do not say.
    pub loses: &'static [&'static str],
}

pub(super) const POLLED: &[Polled] = &[
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_input.c (tcp_syn_flood_action)
    Polled {
        signal: Signal("syn_queue.overflow"),
        way: "polled each second: TcpExtTCPReqQFullDrop, TcpExtTCPReqQFullDoCookies",
        loses: &[
            "which SYN it was and who sent it",
            "SYNs dropped near tcp_max_syn_backlog with SYN cookies off: these two do not count them",
            "a namespace nobody named in the seconds before it is found, and where no process is \
             in it nor a mount keeps it",
        ],
    },
];

/// What this version never sees on any kernel, and where to look instead.
pub(super) const NEVER_SEEN: &[(Signal, &str)] = &[
    (
        Signal("header of a received RST"),
        "no hook hands over the segment; its TTL and flags are in a packet capture: \
         tcpdump 'tcp[tcpflags] & tcp-rst != 0'",
    ),
    (
        Signal("errors of getpeername"),
        "not seen by this version; strace -e trace=network shows them",
    ),
];
