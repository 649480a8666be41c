//! The maps: what the kernel half remembers, and what it shares with the agent.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
};
use tcptrace_common::{
    event::{CloseWait, FlowKey, ListenerKey, SLOTS, Sock, StandIn, gate, hook, stat},
    filter::{NetworkKey, PortKey},
};

use crate::{
    closed::Closed,
    fds::{Connection, Descriptor},
    owner::Grave,
    sock::Stream,
};

/// Records on their way to the agent; the agent sets the size.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 25, 0);

/// Stacks on their way to the agent, which sets the size: they are large, and must not take the room of
/// records.
#[map]
pub(crate) static STACKS: RingBuf = RingBuf::with_byte_size(1 << 23, 0);

/// Records that found no room in [`EVENTS`], by slot of the hook.
#[map]
pub(crate) static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(SLOTS, 0);

/// Count part of the event ids, by slot of the hook.
#[map]
pub(crate) static SEQUENCE: PerCpuArray<u64> = PerCpuArray::with_max_entries(SLOTS, 0);

/// Whether a program or its stand-in is at work, by hook.
#[map]
pub(crate) static STAND_INS: PerCpuArray<StandIn> =
    PerCpuArray::with_max_entries(hook::STAND_INS as u32, 0);

/// The programs that have stand-ins, by hook.
#[map]
pub(crate) static STOOD_FOR: ProgramArray =
    ProgramArray::with_max_entries(hook::STAND_INS as u32, 0);

/// What of a socket the program of a hook is looking at, by its slot.
#[map]
pub(crate) static STREAMS: PerCpuArray<Stream> = PerCpuArray::with_max_entries(SLOTS, 0);

/// The counters of [`stat`].
#[map]
pub(crate) static STATS: PerCpuArray<u64> = PerCpuArray::with_max_entries(stat::COUNT, 0);

/// Live sockets by address. Not an LRU: past its capacity a socket's owner is unknown, never
/// somebody else's.
#[map]
pub(crate) static SOCKS: HashMap<u64, Sock> = HashMap::with_max_entries(1 << 17, 0);

/// Sockets destroyed last, a ring per CPU: their entries stay in [`SOCKS`] until the ring comes
/// round, because a RST can go out after the end.
#[map]
pub(crate) static DESTROYED: PerCpuArray<Grave> =
    PerCpuArray::with_max_entries(RING_OF_DEAD + 1, 0);

/// Entries a CPU keeps of destroyed sockets; [`DESTROYED`] has one more, the position.
pub(crate) const RING_OF_DEAD: u32 = 64;

/// Listening sockets by address, port and namespace.
#[map]
pub(crate) static LISTENERS: HashMap<ListenerKey, u64> = HashMap::with_max_entries(1 << 14, 0);

/// Tasks that are closing a listener, and its port: the queued children are reset meanwhile.
#[map]
pub(crate) static CLOSING: LruHashMap<u64, u16> = LruHashMap::with_max_entries(1024, 0);

/// The gates of [`gate`]: work nobody needs while they are closed. This half opens them, the agent
/// closes them.
#[map]
pub(crate) static GATES: Array<u32> = Array::with_max_entries(gate::COUNT, 0);

/// Sockets in CLOSE_WAIT now.
#[map]
pub(crate) static CLOSE_WAITS: HashMap<u64, CloseWait> = HashMap::with_max_entries(1 << 16, 0);

/// Connections of processes the filter matches; 0, or when the socket was destroyed. The agent sets
/// the size.
#[map]
pub(crate) static FLOWS: HashMap<FlowKey, u64> = HashMap::with_max_entries(1 << 16, 0);

/// RSTs that answered the SYN of somebody who may be a traced process, under the ends as that process
/// sees them: whose it was shows when the RST reaches the socket.
#[map]
pub(crate) static REFUSALS: LruHashMap<FlowKey, Refusal> = LruHashMap::with_max_entries(1024, 0);

/// A RST in [`REFUSALS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Refusal {
    /// Its id as an event.
    pub(crate) id: u64,
    /// When it was sent, ns.
    pub(crate) time: u64,
    /// The kernel's reason.
    pub(crate) reason: u32,
    /// Network namespace it was sent in.
    pub(crate) netns: u32,
}

/// Connections closed from this end, each at the place its ports lead to. The agent takes all but
/// one away when nobody asks for RSTs.
#[map]
pub(crate) static CLOSED: Array<Closed> = Array::with_max_entries(CLOSED_PLACES, 0);

/// Places in [`CLOSED`]: a power of two.
pub(crate) const CLOSED_PLACES: u32 = 1 << 15;

/// The connections that descriptors named last. The agent sets the size: it is used on request only.
#[map]
pub(crate) static CLOSED_FDS: LruHashMap<Descriptor, Connection> =
    LruHashMap::with_max_entries(1 << 14, 0);

/// Processes to trace, as [`pid`](tcptrace_common::filter::pid) says.
#[map]
pub(crate) static PIDS: HashMap<u32, u8> = HashMap::with_max_entries(1 << 14, 0);

/// Names that the successor of a traced process may begin under.
#[map]
pub(crate) static NAMES: HashMap<[u8; 16], u8> = HashMap::with_max_entries(256, 0);

/// Processes that began under one of [`NAMES`]: the agent decides which are successors, and takes the
/// others out.
#[map]
pub(crate) static CANDIDATES: HashMap<u32, u8> = HashMap::with_max_entries(1 << 10, 0);

/// Command names to trace.
#[map]
pub(crate) static COMMS: HashMap<[u8; 16], u8> = HashMap::with_max_entries(256, 0);

/// Users to trace.
#[map]
pub(crate) static UIDS: HashMap<u32, u8> = HashMap::with_max_entries(256, 0);

/// Ids of the cgroups to trace.
#[map]
pub(crate) static CGROUPS: HashMap<u64, u8> = HashMap::with_max_entries(1 << 14, 0);

/// Network namespaces to trace.
#[map]
pub(crate) static NETNS: HashMap<u32, u8> = HashMap::with_max_entries(256, 0);

/// Ports to trace.
#[map]
pub(crate) static PORTS: HashMap<PortKey, u8> = HashMap::with_max_entries(4096, 0);

/// Networks to trace. `BPF_F_NO_PREALLOC` is the only kind of trie there is.
#[map]
pub(crate) static NETWORKS: LpmTrie<NetworkKey, u8> = LpmTrie::with_max_entries(1024, 1);

/// A gate is open.
#[inline(always)]
pub(crate) fn is_open(gate: u32) -> bool {
    GATES.get(gate).is_some_and(|&open| open != 0)
}

/// Opens a gate.
#[inline(always)]
pub(crate) fn open_gate(gate: u32) {
    if let Some(open) = GATES.get_ptr_mut(gate) {
        // SAFETY: an aligned element; every writer of this half writes the same.
        unsafe { open.write_volatile(1) };
    }
}

/// Adds one to a per-CPU counter.
#[inline(always)]
pub(crate) fn count(counters: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: the pointer is this CPU's own element. A hook that interrupts another adds to
        // another element, or, for a counter both share, may rarely lose one.
        unsafe { *counter += 1 };
    }
}
