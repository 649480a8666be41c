//! What can be seen, and the ways to see it, best first; a new way is a new row.

use std::collections::BTreeSet;
use std::fmt;

use tcptrace_common::event::kind;

use crate::event::Signal;

/// A way to attach a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a program at a raw tracepoint.
    RawTracepoint,
    /// At the entry of a kernel function, through a trampoline.
    Fentry,
    /// At its end.
    Fexit,
    /// At its entry, through a breakpoint or what ftrace put in its place.
    Kprobe,
    /// At a classic tracepoint of this category.
    Tracepoint(&'static str),
    /// As a BPF iterator, read once.
    Iterator,
}

/// How programs read the kernel's memory, where it can be done without a helper: see
/// [`tcptrace_common::layout::Layout::cast`].
pub(crate) const CAST: &str = "cast";

impl Way {
    /// Every name `--without` knows: of these ways, and `cast`, of reading the kernel's memory.
    pub const NAMES: [&'static str; 7] = [
        "raw_tracepoint",
        "fentry",
        "fexit",
        "kprobe",
        "tracepoint",
        "iterator",
        CAST,
    ];

    /// Its name for `--without`.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[match self {
            Self::RawTracepoint => 0,
            Self::Fentry => 1,
            Self::Fexit => 2,
            Self::Kprobe => 3,
            Self::Tracepoint(_) => 4,
            Self::Iterator => 5,
        }]
    }
}

/// A program of the eBPF object and what it is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Function of the eBPF object.
    pub name: &'static str,
    /// Tracepoint or kernel function.
    pub target: &'static str,
    /// Arguments the kernel function has to take, where it took others on other kernels.
    pub arguments: Option<usize>,
}

/// A program named as what it is attached to.
const fn at(target: &'static str) -> Program {
    program(target, target)
}

const fn program(name: &'static str, target: &'static str) -> Program {
    Program {
        name,
        target,
        arguments: None,
    }
}

const fn taking(arguments: usize, name: &'static str, target: &'static str) -> Program {
    Program {
        name,
        target,
        arguments: Some(arguments),
    }
}

/// One way to see one signal: all its programs attach, or none counts.
#[derive(Debug)]
pub struct Rung {
    /// How the programs attach.
    pub way: Way,
    /// A program that serves several signals is attached once.
    pub programs: &'static [Program],
    /// Fields of the layout the programs cannot do without.
    pub needs: &'static [&'static str],
    /// What it costs those who are not traced.
    pub costs: Option<&'static str>,
    pub(super) loses: &'static [Loss],
}

impl fmt::Display for Rung {
    /// E.g. `tracepoint syscalls:sys_exit_bind, sys_exit_listen`, `fexit tcp_recvmsg of 5 arguments`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.way.name())?;
        if let Way::Tracepoint(category) = self.way {
            write!(f, " {category}:")?;
        } else {
            f.write_str(" ")?;
        }
        for (nth, program) in self.programs.iter().enumerate() {
            let comma = if nth == 0 { "" } else { ", " };
            write!(f, "{comma}{}", program.target)?;
            if let Some(arguments) = program.arguments {
                write!(f, " of {arguments} arguments")?;
            }
        }
        Ok(())
    }
}

/// The kernel functions any way needs.
pub(crate) fn functions() -> BTreeSet<&'static str> {
    let rungs = SIGNALS.iter().flat_map(|row| row.rungs);
    rungs
        .filter(|rung| rung.is_at_function())
        .flat_map(|rung| rung.programs)
        .map(|program| program.target)
        .collect()
}

impl Rung {
    /// Its programs are attached to kernel functions.
    pub(super) fn is_at_function(&self) -> bool {
        matches!(self.way, Way::Fentry | Way::Fexit | Way::Kprobe)
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
    /// Along with any of these kinds of event, which tell more with it and are seen without.
    With(u32),
    /// When processes are traced by number.
    ByPid,
    /// When children are followed.
    ByChildren,
    /// When successors are.
    BySuccessors,
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
    "call_registers",
    "the system call and descriptor (bpf_task_pt_regs, Linux 5.15)",
);

/// <https://github.com/torvalds/linux/blob/v6.18/kernel/entry/syscall-common.c> (`syscall_exit_work`)
const SLOW_CALLS: Option<&str> = Some("every system call of the host takes the slower way out");

const ALL_EXITS: &[Program] = &[program("sys_exit_of_sockets", "sys_exit")];
const DEQUEUED_2: &[Program] = &[taking(2, "fexit_inet_csk_accept_2", "inet_csk_accept")];
const DEQUEUED_4: &[Program] = &[taking(4, "fexit_inet_csk_accept_4", "inet_csk_accept")];

/// What a program at the entry of `tcp_v4_send_reset` or `tcp_v6_send_reset` reads of the segment.
const ANSWERED: &[&str] = &[
    "skb_head",
    "skb_transport_header",
    "skb_network_header",
    "skb_refdst",
    "rtable_type",
    "rt6_flags",
];

/// What a program at the end of every call reads of it.
const EXITS: &[&str] = &[
    "call_registers",
    "regs_syscall",
    "regs_arg0",
    "task_files",
    "files_fdt",
];
const IO_EXITS: &[Program] = &[program("sys_exit_of_io", "sys_exit")];

const REFUSED_SEND: Loss = never("a send refused by a security module");
const REFUSED_RECEIVE: Loss = never("a receive refused by a security module");
const NO_FLAGS: Loss = never("MSG_DONTWAIT of one call, so that it can look like SO_SNDTIMEO");
const NO_SPLICE: Loss = never("splice() from a socket");
const NO_DESCRIPTOR: Loss = never("the descriptor, before the first use");

/// The end of the function by which every accept takes a connection from the queue.
const fn dequeued(programs: &'static [Program]) -> Rung {
    Rung {
        way: Way::Fexit,
        programs,
        needs: &["sk_protocol"],
        costs: None,
        loses: &[NO_DESCRIPTOR],
    }
}

/// The last way to learn who accepted.
const FIRST_USE: Rung = Rung {
    way: Way::RawTracepoint,
    programs: &[at("sock_send_length"), at("sock_recv_length")],
    needs: &["sk_protocol"],
    costs: None,
    loses: &[never(
        "the owner before the first use: the listener's stands in",
    )],
};

/// What a program at the entry of a function that looks at an accept queue reads.
const QUEUE: &[&str] = &[
    "skb_head",
    "skb_transport_header",
    "skb_network_header",
    "skb_protocol",
    "sk_ack_backlog",
    "sk_max_ack_backlog",
];

const NO_FOREIGN_COOKIE: Loss = never("a SYN that an XDP or tc program answers with a cookie");

const NO_IO_URING: Loss = never("the same by io_uring");

/// The end of every system call, for those that end here.
const fn all_exits(loses: &'static [Loss]) -> Rung {
    Rung {
        way: Way::RawTracepoint,
        programs: ALL_EXITS,
        needs: EXITS,
        costs: SLOW_CALLS,
        loses,
    }
}

pub(super) const SIGNALS: &[Row] = &[
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/af_inet.c (inet_sk_set_state)
    Row {
        signal: Signal("state changes"),
        asked: Asked::Core,
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &[at("inet_sock_set_state")],
            needs: &[
                "skc_state",
                "sk_protocol",
                "skc_family",
                "inet_sport",
                "sk_err",
                "sk_err_soft",
            ],
            costs: None,
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
            programs: &[at("tcp_destroy_sock")],
            needs: &[],
            costs: None,
            loses: &[],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/include/trace/events/tcp.h (tcp_send_reset)
    Row {
        signal: Signal("reset sent"),
        asked: Asked::By(kinds(&[kind::RESET_SENT])),
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &[at("tcp_send_reset")],
            needs: &["skc_state"],
            costs: None,
            loses: &[
                never("a RST that netfilter's REJECT sends"),
                without("send_reset_reason", "the kernel's reason (Linux 6.10)"),
                NO_CALL,
            ],
        }],
    },
    // https://github.com/torvalds/linux/blob/v5.10/net/ipv4/tcp_ipv4.c (tcp_v4_send_reset)
    Row {
        signal: Signal("reset sent without a connection"),
        asked: Asked::By(kinds(&[kind::RESET_SENT])),
        rungs: &[
            Rung {
                way: Way::RawTracepoint,
                programs: &[at("tcp_send_reset")],
                needs: &["send_reset_reason"],
                costs: None,
                loses: &[],
            },
            Rung {
                way: Way::Fentry,
                programs: &[
                    program("fentry_tcp_v4_send_reset", "tcp_v4_send_reset"),
                    program("fentry_tcp_v6_send_reset", "tcp_v6_send_reset"),
                ],
                needs: ANSWERED,
                costs: None,
                loses: &[],
            },
            Rung {
                way: Way::Kprobe,
                programs: &[
                    program("kprobe_tcp_v4_send_reset", "tcp_v4_send_reset"),
                    program("kprobe_tcp_v6_send_reset", "tcp_v6_send_reset"),
                ],
                needs: ANSWERED,
                costs: None,
                loses: &[],
            },
        ],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_input.c (tcp_reset)
    Row {
        signal: Signal("reset received"),
        asked: Asked::By(kinds(&[kind::RESET_RECEIVED])),
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &[at("tcp_receive_reset")],
            needs: &["skc_state"],
            costs: None,
            loses: &[never(
                "a RST to a handshake before its final ACK, or to a TIME_WAIT socket",
            )],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/socket.c (call_trace_sock_send_length)
    Row {
        signal: Signal("failed sends"),
        asked: Asked::By(kinds(&[kind::SOCKET_ERROR])),
        rungs: &[
            Rung {
                way: Way::RawTracepoint,
                programs: &[at("sock_send_length")],
                needs: &["sk_protocol"],
                costs: None,
                loses: &[REFUSED_SEND, NO_FLAGS, NO_CALL],
            },
            Rung {
                way: Way::Fexit,
                programs: &[
                    program("fexit_tcp_sendmsg", "tcp_sendmsg"),
                    program("fexit_tcp_sendpage", "tcp_sendpage"),
                ],
                needs: &["sk_protocol"],
                costs: None,
                loses: &[REFUSED_SEND, NO_FLAGS, NO_CALL],
            },
            Rung {
                way: Way::RawTracepoint,
                programs: IO_EXITS,
                needs: EXITS,
                costs: SLOW_CALLS,
                loses: &[NO_FLAGS, NO_IO_URING],
            },
        ],
    },
    Row {
        signal: Signal("failed receives"),
        asked: Asked::By(kinds(&[kind::SOCKET_ERROR, kind::CLOSE_WAIT])),
        rungs: &[
            Rung {
                way: Way::RawTracepoint,
                programs: &[at("sock_recv_length")],
                needs: &["sk_protocol"],
                costs: None,
                loses: &[
                    NO_SPLICE,
                    never("io_uring zero-copy receive"),
                    REFUSED_RECEIVE,
                    NO_CALL,
                ],
            },
            Rung {
                way: Way::Fexit,
                programs: &[taking(5, "fexit_tcp_recvmsg_5", "tcp_recvmsg")],
                needs: &["sk_protocol"],
                costs: None,
                loses: &[NO_SPLICE, REFUSED_RECEIVE, NO_CALL],
            },
            Rung {
                way: Way::Fexit,
                programs: &[taking(6, "fexit_tcp_recvmsg_6", "tcp_recvmsg")],
                needs: &["sk_protocol"],
                costs: None,
                loses: &[NO_SPLICE, REFUSED_RECEIVE, NO_CALL],
            },
            Rung {
                way: Way::RawTracepoint,
                programs: IO_EXITS,
                needs: EXITS,
                costs: SLOW_CALLS,
                loses: &[NO_SPLICE, NO_IO_URING],
            },
        ],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/socket.c (__sys_accept4)
    Row {
        signal: Signal("owners of accepted connections"),
        asked: Asked::With(CONNECTIONS),
        rungs: &[
            Rung {
                way: Way::Tracepoint("syscalls"),
                programs: &[at("sys_exit_accept"), at("sys_exit_accept4")],
                needs: &[
                    "task_files",
                    "files_fdt",
                    "fdt_fd",
                    "file_private_data",
                    "socket_sk",
                ],
                costs: SLOW_CALLS,
                loses: &[],
            },
            dequeued(DEQUEUED_2),
            dequeued(DEQUEUED_4),
            all_exits(&[]),
            FIRST_USE,
        ],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/inet_connection_sock.c (inet_csk_accept)
    Row {
        signal: Signal("owners of connections accepted by io_uring"),
        asked: Asked::With(CONNECTIONS),
        rungs: &[dequeued(DEQUEUED_2), dequeued(DEQUEUED_4), FIRST_USE],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_input.c (tcp_conn_request)
    Row {
        signal: Signal("accept queue: SYN dropped"),
        asked: Asked::By(kinds(&[kind::ACCEPT_OVERFLOW])),
        rungs: &[
            Rung {
                way: Way::Fentry,
                programs: &[program("fentry_tcp_conn_request", "tcp_conn_request")],
                needs: QUEUE,
                costs: None,
                loses: &[NO_FOREIGN_COOKIE],
            },
            Rung {
                way: Way::RawTracepoint,
                programs: &[at("consume_skb")],
                needs: &[
                    "rcv_state_process_start",
                    "consume_skb_location",
                    "skb_head",
                    "skb_transport_header",
                    "skb_network_header",
                    "sk_ack_backlog",
                    "sk_max_ack_backlog",
                ],
                costs: None,
                loses: &[NO_FOREIGN_COOKIE],
            },
            Rung {
                way: Way::Kprobe,
                programs: &[program("kprobe_tcp_conn_request", "tcp_conn_request")],
                needs: QUEUE,
                costs: None,
                loses: &[NO_FOREIGN_COOKIE],
            },
        ],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c (tcp_v4_syn_recv_sock)
    Row {
        signal: Signal(FINAL_ACK),
        asked: Asked::By(kinds(&[kind::ACCEPT_OVERFLOW])),
        rungs: &[
            Rung {
                way: Way::Fentry,
                programs: &[
                    program("fentry_tcp_v4_syn_recv_sock", "tcp_v4_syn_recv_sock"),
                    program("fentry_tcp_v6_syn_recv_sock", "tcp_v6_syn_recv_sock"),
                ],
                needs: QUEUE,
                costs: None,
                loses: &[],
            },
            Rung {
                way: Way::RawTracepoint,
                programs: &[at("kfree_skb")],
                needs: &[
                    "drop_listen_overflow",
                    "drop_no_socket",
                    "kfree_skb_reason",
                    "kfree_skb_rx_sk",
                ],
                costs: None,
                loses: &[],
            },
            Rung {
                way: Way::Kprobe,
                programs: &[
                    program("kprobe_tcp_v4_syn_recv_sock", "tcp_v4_syn_recv_sock"),
                    program("kprobe_tcp_v6_syn_recv_sock", "tcp_v6_syn_recv_sock"),
                ],
                needs: QUEUE,
                costs: None,
                loses: &[],
            },
        ],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/socket.c (__sys_listen_socket)
    Row {
        signal: Signal("backlog asked for"),
        asked: Asked::By(kinds(&[kind::ACCEPT_OVERFLOW])),
        rungs: &[
            Rung {
                way: Way::Tracepoint("syscalls"),
                programs: &[at("sys_exit_listen")],
                needs: &["call_registers", "regs_arg0", "regs_arg1"],
                costs: None,
                loses: &[
                    NO_IO_URING,
                    never("the backlog of a listener older than the start"),
                ],
            },
            Rung {
                way: Way::RawTracepoint,
                programs: &[at("inet_sock_set_state")],
                needs: &["call_registers", "regs_arg1"],
                costs: None,
                loses: &[
                    never("a second listen on the same socket, which changes the backlog"),
                    NO_IO_URING,
                    never("the backlog of a listener older than the start"),
                ],
            },
        ],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/socket.c (__sys_accept4_file)
    Row {
        signal: Signal("descriptors exhausted in accept, accept4, socket"),
        asked: Asked::By(kinds(&[kind::FD_EXHAUSTED])),
        rungs: &[
            Rung {
                way: Way::Tracepoint("syscalls"),
                programs: &[
                    at("sys_exit_accept"),
                    at("sys_exit_accept4"),
                    at("sys_exit_socket"),
                ],
                needs: &[],
                costs: SLOW_CALLS,
                loses: &[
                    NO_IO_URING,
                    never("other calls that open descriptors, such as open and pipe"),
                    without(
                        "call_registers",
                        "the listener (bpf_task_pt_regs, Linux 5.15)",
                    ),
                ],
            },
            all_exits(&[
                NO_IO_URING,
                never("other calls that open descriptors, such as open and pipe"),
                without(
                    "call_registers",
                    "the listener (bpf_task_pt_regs, Linux 5.15)",
                ),
            ]),
        ],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_ipv4.c (tcp_v4_connect)
    Row {
        signal: Signal("connect without a route"),
        asked: Asked::By(kinds(&[kind::CONNECT_FAILED])),
        rungs: &[
            Rung {
                way: Way::Tracepoint("syscalls"),
                programs: &[at("sys_exit_connect")],
                needs: &["call_registers", "regs_arg0", "regs_arg1"],
                costs: SLOW_CALLS,
                loses: &[NO_IO_URING],
            },
            all_exits(&[NO_IO_URING]),
        ],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/af_inet.c (__inet_bind)
    Row {
        signal: Signal("address in use"),
        asked: Asked::By(kinds(&[kind::SOCKET_ERROR])),
        rungs: &[
            Rung {
                way: Way::Tracepoint("syscalls"),
                programs: &[at("sys_exit_bind"), at("sys_exit_listen")],
                needs: &["call_registers", "regs_arg0", "regs_arg1"],
                costs: SLOW_CALLS,
                loses: &[NO_IO_URING],
            },
            all_exits(&[NO_IO_URING]),
        ],
    },
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/af_inet.c (inet_shutdown)
    Row {
        signal: Signal("shutdown without a connection"),
        asked: Asked::By(kinds(&[kind::SOCKET_ERROR])),
        rungs: &[
            Rung {
                way: Way::Tracepoint("syscalls"),
                programs: &[at("sys_exit_shutdown")],
                needs: &["call_registers", "regs_arg0"],
                costs: SLOW_CALLS,
                loses: &[NO_IO_URING],
            },
            all_exits(&[NO_IO_URING]),
        ],
    },
    Row {
        signal: Signal("invalid descriptors"),
        asked: Asked::By(kinds(&[kind::FD_INVALID])),
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &[at("sys_exit")],
            needs: &[],
            costs: SLOW_CALLS,
            loses: &[
                NO_IO_URING,
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
            programs: &[at("tcp_retransmit_skb")],
            needs: &[],
            costs: None,
            loses: &[
                never("a SYN-ACK sent again"),
                never("how many segments one event stands for: TcpRetransSegs counts each"),
            ],
        }],
    },
    Row {
        signal: Signal("process numbers given anew"),
        asked: Asked::ByPid,
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &[at("sched_process_fork")],
            needs: &["task_pid", "task_tgid"],
            costs: None,
            loses: &[],
        }],
    },
    Row {
        signal: Signal("children of traced processes"),
        asked: Asked::ByChildren,
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &[at("sched_process_fork")],
            needs: &["task_pid", "task_tgid"],
            costs: None,
            loses: &[],
        }],
    },
    Row {
        signal: Signal("successors of traced processes"),
        asked: Asked::BySuccessors,
        rungs: &[Rung {
            way: Way::RawTracepoint,
            programs: &[at("sched_process_exec"), at("sched_process_fork")],
            needs: &["task_pid", "task_tgid"],
            costs: None,
            loses: &[],
        }],
    },
    // https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/task_iter.c
    Row {
        signal: Signal("sockets older than the start"),
        asked: Asked::With(CONNECTIONS),
        rungs: &[Rung {
            way: Way::Iterator,
            programs: &[at("task_file")],
            needs: &[
                "file_private_data",
                "file_inode",
                "inode_mode",
                "socket_file",
                "socket_sk",
            ],
            costs: None,
            loses: &[never(
                "a socket no descriptor names: registered with io_uring, in flight between \
                 processes, or not yet accepted",
            )],
        }],
    },
];

/// How the signals begin that show connections lost at a full accept queue.
pub(in crate::kernel) const ACCEPT_QUEUE: &str = "accept queue: ";

/// The one of them for handshakes that were all but done.
pub const FINAL_ACK: &str = "accept queue: final ACK dropped";

/// Connections lost at a full accept queue, where they are only counted.
pub const ACCEPT_OVERFLOW: Signal = Signal("accept_queue.overflow");

/// A signal no hook shows: the kernel only counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Polled {
    /// The signal.
    pub signal: Signal,
    /// What is read, and how often.
    pub way: &'static str,
    /// Only where nothing shows any of the signals that begin so.
    pub instead_of: Option<&'static str>,
    /// What the counters do not say.
    pub loses: &'static [&'static str],
}

pub(super) const POLLED: &[Polled] = &[
    // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_input.c (tcp_syn_flood_action)
    Polled {
        signal: Signal("syn_queue.overflow"),
        way: "polled each second: TcpExtTCPReqQFullDrop, TcpExtTCPReqQFullDoCookies",
        instead_of: None,
        loses: &[
            "which SYN it was and who sent it",
            "SYNs dropped near tcp_max_syn_backlog with SYN cookies off: these two do not count them",
            "a namespace nobody named in the seconds before it is found, and where no process is \
             in it nor a mount keeps it",
        ],
    },
    // https://github.com/torvalds/linux/blob/v6.18/include/net/tcp.h (tcp_listendrop)
    Polled {
        signal: ACCEPT_OVERFLOW,
        way: "polled each second: TcpExtListenOverflows",
        instead_of: Some(ACCEPT_QUEUE),
        loses: &[
            "what was dropped and whose it was",
            "how much of it each of several listeners of a namespace lost: their counts of drops \
             give an estimate",
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
