//! The records the kernel half hands over, and what it remembers of each socket.

/// Declares a wire struct: `repr(C)`, copyable, all-zero by default and, on the agent's side,
/// readable from bytes.
macro_rules! wire {
    ($(#[$meta:meta])* pub struct $name:ident { $($body:tt)* } size $size:expr) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        #[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
        pub struct $name { $($body)* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}
pub(crate) use wire;

wire! {
    /// A process as the kernel half saw it.
    pub struct Task {
        /// Id of the cgroup v2 the task is in, as `bpf_get_current_cgroup_id` gives it; 0: not known.
        pub cgroup: u64,
        /// Process id (thread group); 0: no task.
        pub tgid: u32,
        /// Thread id.
        pub tid: u32,
        /// Real user id.
        pub uid: u32,
        /// `PF_*` flags of the task.
        pub flags: u32,
        /// Name of the thread group's leader, zero-padded.
        pub comm: [u8; 16],
    } size 40
}

wire! {
    /// The two ends of a connection; IPv4 addresses are stored v4-mapped.
    pub struct Tuple {
        /// This socket's address, network byte order.
        pub local: [u8; 16],
        /// The other end's address; all zero on a listener.
        pub peer: [u8; 16],
        /// This socket's port, host byte order.
        pub local_port: u16,
        /// The other end's port, host byte order.
        pub peer_port: u16,
        /// Network namespace: the inode number of `/proc/PID/ns/net`.
        pub netns: u32,
    } size 40
}

wire! {
    /// One thing the kernel did. Every record the ring carries has this shape.
    pub struct Event {
        /// Unique in one run, see [`ID_CPU_SHIFT`].
        pub id: u64,
        /// `CLOCK_MONOTONIC`, ns.
        pub time: u64,
        /// Id of the event that ended this socket before; 0: none.
        pub cause: u64,
        /// When this life of the socket was first seen, ns; with `sk` it names the socket. 1: it is
        /// older than the tracer.
        pub born: u64,
        /// Address of the `struct sock`; 0: none.
        pub sk: u64,
        /// Inode number of the socket's file; 0: no file.
        pub inode: u64,
        /// When the state before this event began, ns; 0: not known.
        pub state_since: u64,
        /// Bytes the failed call asked for; 0: not known.
        pub len: u64,
        /// When `accept` handed the connection over, ns; for a listener, when it last handed one
        /// over. 0: not seen.
        pub accepted: u64,
        /// When this end shut down its sending, ns; 0: it did not, or it was not seen.
        pub shut: u64,
        /// When the peer's FIN came, ns; 0: none came, or it was not seen.
        pub fin: u64,
        /// Bytes the peer has sent, its FIN not counted.
        pub bytes_received: u64,
        /// Bytes handed to the network, those sent again not counted twice.
        pub bytes_sent: u64,
        /// Who owns the socket; `tgid` 0: not known.
        pub owner: Task,
        /// The task that was running; says something only under [`flag::TASK_CONTEXT`].
        pub task: Task,
        /// Process that created the socket when it is not the owner; 0: same or not known.
        pub creator: u32,
        /// Descriptor; -1: not known.
        pub fd: i32,
        /// Number of the running system call; -1: none or not known.
        pub syscall: i32,
        /// Error, positive; 0: none.
        pub errno: i32,
        /// `enum sk_rst_reason` of this kernel; [`NO_REASON`]: it gives none.
        pub reason: u32,
        /// Exit code of the running task as `wait` reports it, under [`flag::EXITING`].
        pub exit_code: i32,
        /// Bytes received and never read.
        pub unread: u32,
        /// Bytes written and not acknowledged.
        pub unacked: u32,
        /// Connections waiting for `accept`.
        pub queue_len: u32,
        /// Limit of that queue; it holds one more.
        pub queue_max: u32,
        /// The listener's `sk_drops`.
        pub drops: u32,
        /// Smoothed round trip, in eighths of a microsecond.
        pub srtt: u32,
        /// Segments sent again in the socket's life.
        pub retransmits: u32,
        /// The peer's receive window, bytes.
        pub send_window: u32,
        /// `TCP_USER_TIMEOUT`, ms; 0: off.
        pub user_timeout: u32,
        /// Jiffies since data was last received (`icsk_ack.lrcvtime`).
        pub received_ago: u32,
        /// Jiffies since data was last sent (`lsndtime`).
        pub sent_ago: u32,
        /// Jiffies since any segment was last received (`rcv_tstamp`).
        pub heard_ago: u32,
        /// Bytes written since the peer's FIN.
        pub fin_written: u32,
        /// Jiffies the peer waited for an answer before its FIN; `u32::MAX`: it did not, or that is
        /// not known.
        pub fin_waited: u32,
        /// Jiffies before the FIN in which neither end sent data.
        pub fin_idle: u32,
        /// The backlog the program asked `listen` for; 0: not known, or it asked for none.
        pub backlog: u32,
        /// See [`flag`].
        pub flags: u32,
        /// The connection; all zero where there is none.
        pub tuple: Tuple,
        /// See [`kind`].
        pub kind: u8,
        /// See [`hook`].
        pub hook: u8,
        /// Address family of the socket: 2 or 10; 0: no socket.
        pub family: u8,
        /// TCP state at the event (a `TCP_*` number); the state left, for a change of state.
        pub state: u8,
        /// For a change of state the state entered; else the state before `state`; 0: not known.
        pub other_state: u8,
        /// See [`confidence`].
        pub confidence: u8,
        /// See [`path`].
        pub path: u8,
        /// Consecutive retransmissions of the last segment (`icsk_retransmits`).
        pub backoff: u8,
        /// Unanswered zero-window or keepalive probes (`icsk_probes_out`).
        pub probes: u8,
        /// See [`side`].
        pub side: u8,
        /// Zero.
        pub pad: [u8; 2],
    } size 328
}

wire! {
    /// What the kernel half remembers of a live socket.
    pub struct Sock {
        /// See [`Event::owner`].
        pub owner: Task,
        /// See [`Event::born`].
        pub born: u64,
        /// When the present state began, ns; 0: before the start.
        pub state_since: u64,
        /// When the kernel destroyed it, ns; 0: it lives.
        pub destroyed: u64,
        /// Id of the last event that ended it; 0: none.
        pub cause: u64,
        /// Address of the listener it came from; 0: none, or not known.
        pub parent: u64,
        /// See [`Event::accepted`].
        pub accepted: u64,
        /// See [`Event::shut`].
        pub shut: u64,
        /// See [`Event::fin`].
        pub fin: u64,
        /// `write_seq` when the FIN came; of a listener, the connections it has handed over. Of two handed
        /// over at a time one may not be counted.
        pub fin_seq: u32,
        /// See [`Event::fin_waited`].
        pub fin_waited: u32,
        /// See [`Event::fin_idle`].
        pub fin_idle: u32,
        /// See [`Event::creator`].
        pub creator: u32,
        /// See [`Event::fd`].
        pub fd: i32,
        /// State before the present one.
        pub previous: u8,
        /// The present state.
        pub state: u8,
        /// See [`confidence`].
        pub confidence: u8,
        /// 1 while this listener's accept queue is near its limit.
        pub full: u8,
        /// 1 once a read returned 0.
        pub eof_read: u8,
        /// 1: a process the filter matches holds it, whoever the owner is.
        pub held: u8,
        /// See [`side`].
        pub side: u8,
        /// 1: of a listener, that one of its connections has been seen to send; of a connection,
        /// that its listener's was set, as far as it has looked.
        pub answers: u8,
        /// The listener's `sk_drops` at the last look.
        pub drops: u32,
        /// See [`Event::backlog`].
        pub backlog: u32,
        /// The CPU that destroyed it, and will forget it.
        pub grave: u32,
    } size 144
}

wire! {
    /// A socket that is in CLOSE_WAIT now.
    pub struct CloseWait {
        /// When it entered, ns.
        pub since: u64,
        /// Id of the entry as an event, whether it was handed over or not.
        pub id: u64,
        /// The connection.
        pub tuple: Tuple,
        /// Address family.
        pub family: u8,
        /// 1: it was in CLOSE_WAIT at the start and `since` is the latest it can have entered.
        pub older: u8,
        /// Zero.
        pub pad: [u8; 6],
    } size 64
}

wire! {
    /// Key of the connections of traced processes; their other ends look themselves up.
    pub struct FlowKey {
        /// See [`Tuple::local`].
        pub local: [u8; 16],
        /// See [`Tuple::peer`].
        pub peer: [u8; 16],
        /// See [`Tuple::local_port`].
        pub local_port: u16,
        /// See [`Tuple::peer_port`].
        pub peer_port: u16,
    } size 36
}

wire! {
    /// Key of the listeners: one slot for each of those that share an address (`SO_REUSEPORT`).
    pub struct ListenerKey {
        /// Address, v4-mapped; zero: any.
        pub addr: [u8; 16],
        /// Network namespace.
        pub netns: u32,
        /// Port, host byte order.
        pub port: u16,
        /// Address family of the socket: 2 or 10.
        pub family: u8,
        /// Which of those that share the address.
        pub slot: u8,
    } size 24
}

/// Size of a piece of [`Stack::memory`], bytes.
pub const STACK_CHUNK: usize = 1024;

wire! {
    /// The stack of the task behind an event, in a ring of its own.
    pub struct Stack {
        /// The [`Event::id`].
        pub id: u64,
        /// `mm->start_stack` of the process, which `/proc/PID/stat` shows too and every program started
        /// has anew; 0: it has no memory any more.
        pub start: u64,
        /// Where the program was when it entered the kernel; 0: its registers are not known.
        pub ip: u64,
        /// Its stack pointer.
        pub sp: u64,
        /// Its frame pointer's register, whatever the program keeps there.
        pub fp: u64,
        /// Its link register; only on arm64.
        pub lr: u64,
        /// Process id (thread group).
        pub tgid: u32,
        /// Bytes of `kernel` that hold addresses, or a negative error.
        pub kernel_bytes: i32,
        /// Bytes of `memory` that could be copied.
        pub copied: u32,
        /// Zero or whatever was there before.
        pub pad: u32,
        /// Return addresses in the kernel, innermost first.
        pub kernel: [u64; 48],
        /// The program's stack, from `sp` rounded down to a multiple of [`STACK_CHUNK`].
        pub memory: [[u8; STACK_CHUNK]; 16],
    } size 16832
}

/// What an [`Event`] is about.
pub mod kind {
    /// A RST went out.
    pub const RESET_SENT: u8 = 1;
    /// A RST came in.
    pub const RESET_RECEIVED: u8 = 2;
    /// The peer closed and this end has not.
    pub const CLOSE_WAIT: u8 = 3;
    /// A connection was lost because the accept queue was full.
    pub const ACCEPT_OVERFLOW: u8 = 4;
    /// A call on a socket failed.
    pub const SOCKET_ERROR: u8 = 5;
    /// A connection attempt failed.
    pub const CONNECT_FAILED: u8 = 6;
    /// The kernel gave a connection up.
    pub const TIMEOUT: u8 = 7;
    /// No descriptor was left.
    pub const FD_EXHAUSTED: u8 = 8;
    /// A call named a descriptor that is not open, or no socket.
    pub const FD_INVALID: u8 = 9;
    /// A change of state.
    pub const STATE: u8 = 10;
    /// A segment was sent again.
    pub const RETRANSMIT: u8 = 11;
    /// A close that may matter: one of those [`STATE`] tells all of.
    pub const CLOSE: u8 = 12;
    /// One more than the last kind.
    pub const COUNT: u8 = 13;
}

/// Where in the kernel an [`Event`] was seen; index of the per-hook counters.
pub mod hook {
    /// `inet_sock_set_state`
    pub const SET_STATE: u8 = 0;
    /// `tcp_send_reset`
    pub const SEND_RESET: u8 = 1;
    /// `tcp_receive_reset`
    pub const RECEIVE_RESET: u8 = 2;
    /// `tcp_destroy_sock`
    pub const DESTROY_SOCK: u8 = 3;
    /// `sock_send_length`
    pub const SEND_LENGTH: u8 = 4;
    /// `sock_recv_length`
    pub const RECV_LENGTH: u8 = 5;
    /// `tcp_retransmit_skb`
    pub const RETRANSMIT: u8 = 6;
    /// `consume_skb`
    pub const CONSUME_SKB: u8 = 7;
    /// `kfree_skb`
    pub const KFREE_SKB: u8 = 8;
    /// `sched_process_fork`
    pub const FORK: u8 = 9;
    /// `sys_exit_accept` and `sys_exit_accept4`
    pub const ACCEPT_EXIT: u8 = 10;
    /// `sys_exit_socket`
    pub const SOCKET_EXIT: u8 = 11;
    /// `sys_exit_connect`
    pub const CONNECT_EXIT: u8 = 12;
    /// `sys_exit_bind` and `sys_exit_listen`
    pub const BIND_EXIT: u8 = 13;
    /// `sys_exit`, for every call
    pub const SYS_EXIT: u8 = 14;
    /// `sys_exit_shutdown`
    pub const SHUTDOWN_EXIT: u8 = 15;
    /// The end of `tcp_sendmsg` and `tcp_sendpage`
    pub const SENDMSG: u8 = 16;
    /// The end of `tcp_recvmsg`
    pub const RECVMSG: u8 = 17;
    /// `sys_exit`, for calls that send or receive
    pub const IO_EXIT: u8 = 18;
    /// `tcp_v4_send_reset` and `tcp_v6_send_reset`
    pub const ANSWER_RESET: u8 = 19;
    /// `tcp_conn_request`
    pub const CONN_REQUEST: u8 = 20;
    /// `tcp_v4_syn_recv_sock` and `tcp_v6_syn_recv_sock`
    pub const SYN_RECV_SOCK: u8 = 21;
    /// One more than the last hook.
    pub const COUNT: u8 = 22;
    /// One more than the last hook whose program has a stand-in.
    pub const STAND_INS: u8 = 4;
}

/// Where a hook counts: programs first, by hook, then their stand-ins.
pub const SLOTS: u32 = (hook::COUNT + hook::STAND_INS) as u32;

wire! {
    /// Whether a program that has a stand-in is at work on a CPU.
    pub struct StandIn {
        /// How often its stand-in did its work.
        pub times: u64,
        /// 1 while the program works.
        pub runs: u64,
        /// 1 while its stand-in does, or before 6.1 the program itself in the midst of its work.
        pub stands_in: u64,
    } size 24
}

/// How sure the owner of a socket is.
pub mod confidence {
    /// Nobody known.
    pub const UNKNOWN: u8 = 0;
    /// Queued child: the listener's owner.
    pub const INHERITED: u8 = 1;
    /// Found at the start.
    pub const SEEDED: u8 = 2;
    /// Seen using it.
    pub const EXACT: u8 = 3;
}

/// Which end of a connection a socket is.
pub mod side {
    /// Not known, or none: a listener.
    pub const UNKNOWN: u8 = 0;
    /// It called `connect`.
    pub const CLIENT: u8 = 1;
    /// It came in through a listener.
    pub const SERVER: u8 = 2;
}

/// On which way into the accept queue a connection was lost.
pub mod path {
    /// The SYN was dropped.
    pub const SYN: u8 = 1;
    /// The final ACK of the handshake was dropped.
    pub const ACK: u8 = 2;
    /// The final ACK that carried a SYN cookie was dropped.
    pub const COOKIE: u8 = 3;
}

/// Bits of [`Event::flags`].
pub mod flag {
    /// The hook ran for the task in `Event::task`, not in an interrupt that borrowed its CPU.
    pub const TASK_CONTEXT: u32 = 1;
    /// That task is exiting.
    pub const EXITING: u32 = 1 << 1;
    /// `SO_LINGER` is on with a time of 0.
    pub const LINGER_ZERO: u32 = 1 << 2;
    /// More than one reference to the socket's file exists.
    pub const FILE_SHARED: u32 = 1 << 3;
    /// The failed call ran into `SO_RCVTIMEO` or `SO_SNDTIMEO`.
    pub const SOCKET_TIMEOUT: u32 = 1 << 4;
    /// The failed call was a send, else a receive.
    pub const SEND: u32 = 1 << 5;
    /// No process holds the socket any more (`SOCK_DEAD`).
    pub const ORPHAN: u32 = 1 << 6;
    /// The RST answers a segment; else this end sent it unasked.
    pub const ANSWERS: u32 = 1 << 7;
    /// There was no socket; the tuple was read from the segment.
    pub const FROM_SEGMENT: u32 = 1 << 8;
    /// The program has read the end of the stream.
    pub const EOF_READ: u32 = 1 << 9;
    /// The segment that provoked the RST was a SYN.
    pub const SYN: u32 = 1 << 10;
    /// The socket was never accepted: the listener closed on it.
    pub const UNACCEPTED: u32 = 1 << 11;
    /// The reset came through `tcp_abort`: an administrator's doing, not the owner's.
    pub const ABORTED: u32 = 1 << 12;
    /// `O_NONBLOCK` is set on the socket's file.
    pub const NONBLOCK: u32 = 1 << 13;
    /// A connection of the same listener has been seen to send.
    pub const SERVICE_ANSWERS: u32 = 1 << 14;
    /// The stack of `Event::task` is in the ring of stacks, where it was put before this event.
    pub const STACK: u32 = 1 << 15;
}

/// [`Event::reason`] where the kernel gives none.
pub const NO_REASON: u32 = u32::MAX;

/// First bit of the CPU number in [`Event::id`].
///
/// An id is a CPU, a slot of a hook and a count of it on that CPU: what interrupts a program to do the
/// same has another slot, so the count needs no atomic operation (which could return its result only
/// from 5.12 on).
pub const ID_CPU_SHIFT: u32 = 43;

/// First bit of the slot in [`Event::id`]; the count is below.
pub const ID_HOOK_SHIFT: u32 = 38;

/// The slot in an [`Event::id`].
#[must_use]
pub const fn slot_of(id: u64) -> u32 {
    (id >> ID_HOOK_SHIFT) as u32 & ((1 << (ID_CPU_SHIFT - ID_HOOK_SHIFT)) - 1)
}

/// The hook an [`Event::id`] comes from: a stand-in's slot comes after those of all hooks.
#[must_use]
pub const fn hook_of(id: u64) -> u32 {
    slot_of(id) % hook::COUNT as u32
}

/// Work the kernel half leaves out while a gate is closed.
pub mod gate {
    /// Some listener's accept queue is near its limit: look for dropped SYNs.
    pub const NEARLY_FULL: u32 = 0;
    /// Somebody accepts without the call `accept`: look for the first use of a socket.
    pub const FIRST_USES: u32 = 1;
    /// One more than the last gate.
    pub const COUNT: u32 = 2;
}

/// Counters that are neither events nor loss, one per CPU.
pub mod stat {
    /// Entries into CLOSE_WAIT that passed the filter.
    pub const CLOSE_WAITS: u32 = 0;
    /// Sockets that found no room in the table: their owner stays unknown.
    pub const SOCKETS_FULL: u32 = 1;
    /// Listeners that found no room in theirs.
    pub const LISTENERS_FULL: u32 = 2;
    /// Connections of traced processes that found no room in the table of flows.
    pub const FLOWS_FULL: u32 = 3;
    /// Sockets in CLOSE_WAIT that found no room in theirs.
    pub const CLOSE_WAITS_FULL: u32 = 4;
    /// Sockets found in another state than the one remembered.
    pub const CHANGES_UNSEEN: u32 = 5;
    /// Stacks that found no room in their ring.
    pub const STACKS_FULL: u32 = 6;
    /// Processes that may be successors and found no room in their table.
    pub const CANDIDATES_FULL: u32 = 7;
    /// One more than the last counter.
    pub const COUNT: u32 = 8;
}
