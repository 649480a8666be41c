//! Reading a socket: the one place that knows what a `struct sock` may be asked, and when.

use core::{cmp::Ordering, mem::MaybeUninit};

use aya_ebpf::helpers::{bpf_jiffies64, generated::bpf_probe_read_kernel};
use tcptrace_common::event::{Event, Sock, Tuple, flag, side, slot_of};

use crate::{
    kernel::{config, field, has_casts, layout, read, read_address},
    maps::STREAMS,
    owner, words,
};

/// <https://github.com/torvalds/linux/blob/v6.18/include/net/tcp_states.h>
pub(crate) const ESTABLISHED: u8 = 1;
pub(crate) const SYN_SENT: u8 = 2;
pub(crate) const SYN_RECV: u8 = 3;
pub(crate) const FIN_WAIT1: u8 = 4;
pub(crate) const TIME_WAIT: u8 = 6;
pub(crate) const CLOSE: u8 = 7;
pub(crate) const CLOSE_WAIT: u8 = 8;
pub(crate) const LAST_ACK: u8 = 9;
pub(crate) const LISTEN: u8 = 10;
pub(crate) const CLOSING: u8 = 11;
const NEW_SYN_RECV: u8 = 12;

const IPPROTO_TCP: u16 = 6;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// `sk_shutdown`: the peer's FIN was received, or the program asked for it.
const RCV_SHUTDOWN: u8 = 1;
/// Bits of `skc_flags`.
/// <https://github.com/torvalds/linux/blob/v6.18/include/net/sock.h>
const SOCK_DEAD: u64 = 1;
const SOCK_DONE: u64 = 1 << 1;
const SOCK_LINGER: u64 = 1 << 4;
const O_NONBLOCK: u32 = 0o4000;
/// How long an acknowledgement is put off in the hope of an answer, ns: 40 to 200 ms, and the
/// rounding of a jiffy.
/// <https://github.com/torvalds/linux/blob/v6.18/include/net/tcp.h> (`TCP_DELACK_MIN`, `TCP_DELACK_MAX`)
const LATE_ACK: core::ops::RangeInclusive<u64> = 30_000_000..=220_000_000;
const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;

/// A `struct sock`, which in hooks that say so may be NULL, a TIME_WAIT or a request socket.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Socket(pub(crate) u64);

impl Socket {
    /// The TCP socket behind a `struct file`. The file is one when its inode is a socket's and the
    /// `struct socket` it names points back at it.
    #[inline(always)]
    pub(crate) fn of_file(file: u64) -> Option<Self> {
        let mode = field!(field!(file, file_inode: u64), inode_mode: u16);
        if file == 0 || mode & S_IFMT != S_IFSOCK {
            return None;
        }
        let socket = field!(file, file_private_data: u64);
        if socket == 0 || field!(socket, socket_file: u64) != file {
            return None;
        }
        let sk = Self(field!(socket, socket_sk: u64));
        (sk.0 != 0 && sk.is_inet() && sk.is_tcp()).then_some(sk)
    }

    /// The TCP socket behind the file that `accept` has just returned: of a socket, if no other thread
    /// was faster. One that is remembered needs no second look.
    #[inline(always)]
    pub(crate) fn of_accepted(file: u64) -> Option<Self> {
        let sk = Self(field!(field!(file, file_private_data: u64), socket_sk: u64));
        if owner::of(sk).is_some() {
            Some(sk)
        } else {
            Self::of_file(file)
        }
    }

    /// Its state now. Valid for every kind of socket.
    #[inline(always)]
    pub(crate) fn state(self) -> u8 {
        field!(self.0, skc_state: u8)
    }

    /// A full socket, neither TIME_WAIT nor request: everything beyond `sock_common` may be read.
    #[inline(always)]
    pub(crate) fn is_full(self) -> bool {
        let state = self.state();
        self.0 != 0 && state != TIME_WAIT && state != NEW_SYN_RECV
    }

    /// Its protocol is TCP.
    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        field!(self.0, sk_protocol: u16) == IPPROTO_TCP
    }

    /// 2 or 10.
    #[inline(always)]
    pub(crate) fn family(self) -> u8 {
        field!(self.0, skc_family: u16) as u8
    }

    #[inline(always)]
    fn is_inet(self) -> bool {
        let family = field!(self.0, skc_family: u16);
        family == AF_INET || family == AF_INET6
    }

    /// A task holds the socket's lock.
    #[inline(always)]
    pub(crate) fn is_locked(self) -> bool {
        field!(self.0, sk_lock_owned: u32) != 0
    }

    /// Its `struct file`; 0 before `accept` and after the last `close`.
    #[inline(always)]
    pub(crate) fn file(self) -> u64 {
        let socket = field!(self.0, sk_socket: u64);
        if socket == 0 {
            0
        } else {
            field!(socket, socket_file: u64)
        }
    }

    /// A process holds it, or did until this call.
    #[inline(always)]
    pub(crate) fn has_socket(self) -> bool {
        field!(self.0, sk_socket: u64) != 0
    }

    /// The error it holds for its program.
    #[inline(always)]
    pub(crate) fn error(self) -> i32 {
        field!(self.0, sk_err: i32)
    }

    /// The error an ICMP message left, which it would end with if it were given up now.
    #[inline(always)]
    pub(crate) fn soft_error(self) -> i32 {
        field!(self.0, sk_err_soft: i32)
    }

    /// Network namespace.
    #[inline(always)]
    pub(crate) fn netns(self) -> u32 {
        netns(field!(self.0, skc_net: u64))
    }

    /// Its port, host byte order. `skc_num` is zero already when a socket that was not bound by
    /// its program closes; `inet_sport` stays.
    #[inline(always)]
    pub(crate) fn local_port(self) -> u16 {
        u16::from_be(field!(self.0, inet_sport: u16))
    }

    /// The other end's port, host byte order.
    #[inline(always)]
    pub(crate) fn peer_port(self) -> u16 {
        u16::from_be(field!(self.0, skc_dport: u16))
    }

    /// Its ends. Valid for every kind of socket.
    #[inline(never)]
    pub(crate) fn tuple(self, tuple: &mut Tuple) {
        let head = Head::of(self);
        tuple.netns = self.netns();
        if head.at::<u16>(layout!(skc_family)) == AF_INET6 {
            read_address(self.0, layout!(skc_v6_rcv_saddr), &mut tuple.local);
            read_address(self.0, layout!(skc_v6_daddr), &mut tuple.peer);
        } else {
            map(head.at(layout!(skc_rcv_saddr)), &mut tuple.local);
            map(head.at(layout!(skc_daddr)), &mut tuple.peer);
        }
        tuple.peer_port = u16::from_be(head.at(layout!(skc_dport)));
        let state: u8 = head.at(layout!(skc_state));
        tuple.local_port = if state == TIME_WAIT || state == NEW_SYN_RECV {
            head.at(layout!(skc_num))
        } else {
            self.local_port()
        };
    }

    /// Connections waiting for `accept`, and the limit.
    #[inline(always)]
    pub(crate) fn accept_queue(self) -> (u32, u32) {
        if layout!(sk_max_ack_backlog) != layout!(sk_ack_backlog).wrapping_add(4) {
            return (
                field!(self.0, sk_ack_backlog: u32),
                field!(self.0, sk_max_ack_backlog: u32),
            );
        }
        let [len, max]: [u32; 2] = field!(self.0, sk_ack_backlog: [u32; 2]);
        (len, max)
    }

    /// Segments a listener dropped.
    #[inline(always)]
    pub(crate) fn drops(self) -> u32 {
        field!(self.0, sk_drops: u32)
    }

    /// Jiffies since the last segment from the peer.
    #[inline(always)]
    pub(crate) fn silence(self) -> u32 {
        jiffies().wrapping_sub(field!(self.0, rcv_tstamp: u32))
    }

    /// Bytes the peer sent. The kernel counts its FIN as one.
    /// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_input.c> (`tcp_queue_rcv`)
    #[inline(always)]
    pub(crate) fn bytes_received(self, fin_received: bool) -> u64 {
        field!(self.0, bytes_received: u64).saturating_sub(u64::from(fin_received))
    }

    /// It has sent data.
    #[inline(always)]
    pub(crate) fn has_sent(self) -> bool {
        field!(self.0, bytes_sent: u64) != 0
    }

    /// Sequence number of the next byte that is written; a FIN sent counts one.
    #[inline(always)]
    pub(crate) fn write_seq(self) -> u32 {
        field!(self.0, write_seq: u32)
    }

    /// Jiffies since data last came, and since data was last sent. Both begin with the handshake.
    #[inline(always)]
    pub(crate) fn data_ago(self) -> (u32, u32) {
        let now = jiffies();
        (
            now.wrapping_sub(field!(self.0, lrcvtime: u32)),
            now.wrapping_sub(field!(self.0, lsndtime: u32)),
        )
    }

    /// Jiffies since data was last sent, or since the handshake.
    #[inline(always)]
    pub(crate) fn sent_ago(self) -> u32 {
        jiffies().wrapping_sub(field!(self.0, lsndtime: u32))
    }

    /// How long the peer, whose FIN comes just now, had waited for an answer (`u32::MAX`: nothing
    /// says that it had), and how long neither end had sent data: jiffies.
    #[inline(always)]
    pub(crate) fn before_fin(self, now: u64) -> (u32, u32) {
        let (received, sent) = self.data_ago();
        let unanswered = match received.cmp(&sent) {
            Ordering::Less => true,
            Ordering::Equal => !self.has_sent() || self.sent_late_ack(sent, now),
            Ordering::Greater => !self.has_sent(),
        };
        let waited = if unanswered && self.bytes_received(true) > 0 {
            received
        } else {
            u32::MAX
        };
        (waited, received.min(sent))
    }

    /// The last thing sent was a delayed acknowledgement: what came last had no answer, although
    /// data went both ways in the same jiffy. An answer would have carried the acknowledgement, and
    /// only one that was missing for so long makes the kernel leave interactive mode.
    /// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_timer.c> (`tcp_delack_timer_handler`)
    #[inline(always)]
    fn sent_late_ack(self, sent: u32, now: u64) -> bool {
        let data = u64::from(sent) * u64::from(config!(ns_per_jiffy));
        if data < *LATE_ACK.start() {
            return false;
        }
        let anything = now.saturating_sub(field!(self.0, last_sent: u64));
        let delay = data.saturating_sub(anything);
        field!(self.0, ack_pingpong: u8) == 0 && LATE_ACK.contains(&delay)
    }

    /// Bytes received and never read. The receive queue is empty already when a closed socket is
    /// looked at, the sequence numbers still tell; a FIN received counts one.
    #[inline(always)]
    pub(crate) fn unread(self, fin_received: bool) -> u32 {
        unread(
            field!(self.0, rcv_nxt: u32),
            field!(self.0, copied_seq: u32),
            fin_received,
        )
    }

    /// Records the socket as it is now, with these ends; what is remembered of it says how it came
    /// there.
    #[inline(never)]
    pub(crate) fn record(self, event: &mut Event, tuple: &Tuple, known: Option<&Sock>) {
        let state = self.state();
        event.sk = self.0;
        event.family = self.family();
        event.state = state;
        event.tuple = *tuple;
        if let Some(known) = known {
            event.owner = known.owner;
            event.creator = known.creator;
            event.confidence = known.confidence;
            event.born = known.born;
            event.cause = known.cause;
            event.fd = known.fd;
            event.state_since = known.state_since;
            event.other_state = known.previous;
            event.backlog = known.backlog;
            event.accepted = known.accepted;
            event.shut = known.shut;
            event.side = known.side;
            if known.eof_read != 0 {
                event.flags |= flag::EOF_READ;
            }
            if known.side == side::SERVER && owner::service_answers(known) {
                event.flags |= flag::SERVICE_ANSWERS;
            }
            if known.fin != 0 {
                self.record_fin(event, known);
            }
        }
        if state == TIME_WAIT || state == NEW_SYN_RECV {
            return;
        }
        let shutdown = field!(self.0, sk_shutdown: u8);
        let flags = field!(self.0, skc_flags: u64);
        event.errno = self.error();
        if flags & SOCK_DEAD != 0 {
            event.flags |= flag::ORPHAN;
        }
        if flags & SOCK_LINGER != 0 && field!(self.0, sk_lingertime: u64) == 0 {
            event.flags |= flag::LINGER_ZERO;
        }
        if state == LISTEN {
            (event.queue_len, event.queue_max) = self.accept_queue();
            event.drops = self.drops();
        } else {
            self.record_stream(event, shutdown, flags);
        }
        self.record_file(event);
    }

    #[inline(always)]
    fn record_stream(self, event: &mut Event, shutdown: u8, flags: u64) {
        // SOCK_DONE is set when a FIN is received and nowhere else; RCV_SHUTDOWN also by a program.
        // https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp_input.c (tcp_fin)
        let fin_received = shutdown & RCV_SHUTDOWN != 0 && flags & SOCK_DONE != 0;
        let Some(stream) = Read::new(self, slot_of(event.id)) else {
            return;
        };
        event.unread = unread(
            stream.at(layout!(rcv_nxt)),
            stream.at(layout!(copied_seq)),
            fin_received,
        );
        let bytes: u64 = stream.at(layout!(bytes_received));
        event.bytes_received = bytes.saturating_sub(fin_received.into());
        // Those sent again not counted twice.
        let bytes: u64 = stream.at(layout!(bytes_sent));
        event.bytes_sent = bytes.saturating_sub(stream.at(layout!(bytes_retrans)));
        let written: u32 = stream.at(layout!(write_seq));
        let unacked = written.wrapping_sub(stream.at(layout!(snd_una)));
        event.unacked = if unacked > 1 << 30 { 0 } else { unacked };
        event.srtt = stream.at(layout!(srtt_us));
        event.retransmits = field!(self.0, total_retrans: u32);
        event.send_window = stream.at(layout!(snd_wnd));
        event.user_timeout = stream.at(layout!(icsk_user_timeout));
        event.backoff = stream.at(layout!(icsk_retransmits));
        event.probes = stream.at(layout!(icsk_probes_out));
        let now = jiffies();
        event.received_ago = ago(now, stream.at(layout!(lrcvtime)));
        event.sent_ago = ago(now, stream.at(layout!(lsndtime)));
        event.heard_ago = ago(now, stream.at(layout!(rcv_tstamp)));
    }

    #[inline(always)]
    fn record_fin(self, event: &mut Event, known: &Sock) {
        event.fin = known.fin;
        event.fin_waited = known.fin_waited;
        event.fin_idle = known.fin_idle;
        let written = self.write_seq().wrapping_sub(known.fin_seq);
        // This end's own FIN counts one too, if it came later.
        event.fin_written = if known.shut > known.fin {
            written.saturating_sub(1)
        } else {
            written
        };
    }

    #[inline(always)]
    fn record_file(self, event: &mut Event) {
        let file = self.file();
        if file == 0 {
            return;
        }
        event.inode = field!(field!(file, file_inode: u64), inode_ino: u64);
        // While the last reference is put the count is negative.
        if field!(file, file_refs: i64) > i64::from(layout!(file_refs_one)) {
            event.flags |= flag::FILE_SHARED;
        }
        if field!(file, file_flags: u32) & O_NONBLOCK != 0 {
            event.flags |= flag::NONBLOCK;
        }
    }

    /// `O_NONBLOCK` is set on its file.
    #[inline(always)]
    pub(crate) fn is_nonblocking(self) -> bool {
        let file = self.file();
        file != 0 && field!(file, file_flags: u32) & O_NONBLOCK != 0
    }
}

/// The first bytes of a socket: on every kernel they hold IPv4 addresses, ports, family and state. Where
/// a read calls a helper they are read at once.
/// <https://github.com/torvalds/linux/blob/v6.18/include/net/sock.h> (`struct sock_common`)
struct Head {
    socket: Socket,
    /// Not written where each field is read by itself.
    bytes: MaybeUninit<[u64; 3]>,
}

impl Head {
    #[inline(always)]
    fn of(socket: Socket) -> Self {
        let mut bytes = MaybeUninit::<[u64; 3]>::uninit();
        if !has_casts() {
            let from = socket.0 as *const _;
            // A read that fails leaves zeroes.
            // SAFETY: the helper checks where it reads, and writes all of `bytes` in any case.
            unsafe { bpf_probe_read_kernel(bytes.as_mut_ptr().cast(), 24, from) };
        }
        Self { socket, bytes }
    }

    /// What the layout says is there. On a kernel that has it further on the verifier refuses the
    /// program.
    #[inline(always)]
    fn at<T: Copy + Default>(&self, offset: u32) -> T {
        if has_casts() {
            return read(self.socket.0, offset);
        }
        let field = (&raw const self.bytes)
            .cast::<u8>()
            .wrapping_add(offset as usize);
        // SAFETY: the verifier checks that it lies within; integers have no invalid value. Volatile,
        // because the compiler cannot know that.
        unsafe { field.cast::<T>().read_volatile() }
    }
}

/// The middle of a `struct tcp_sock`: nearly all that is asked of a connection lies within 600 bytes from
/// its retransmission counters on. Where a read calls a helper they are read at once, which costs as much
/// as two reads of a word.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Stream([u64; 80]);

/// A [`Stream`] that was read, or need not be.
#[derive(Clone, Copy)]
struct Read {
    socket: Socket,
    stream: *const Stream,
    start: u32,
}

impl Read {
    /// Reads the connection's, to where the program that counts in this slot looks at sockets.
    #[inline(always)]
    fn new(socket: Socket, slot: u32) -> Option<Self> {
        let stream = STREAMS.get_ptr_mut(slot)?;
        let start = layout!(icsk_retransmits) & !7;
        if !has_casts() {
            let from = (socket.0 + u64::from(start)) as *const _;
            // A read that fails leaves zeroes.
            // SAFETY: the helper checks where it reads, and writes all of this CPU's own element; what
            // interrupts the program has another slot.
            unsafe { bpf_probe_read_kernel(stream.cast(), size_of::<Stream>() as u32, from) };
        }
        Some(Self {
            socket,
            stream,
            start,
        })
    }

    /// The field the layout says is there; one that lies outside is read by itself.
    #[inline(always)]
    fn at<T: Copy + Default>(self, offset: u32) -> T {
        let within = offset.wrapping_sub(self.start) as usize;
        if has_casts() || within > size_of::<Stream>() - size_of::<T>() {
            return read(self.socket.0, offset);
        }
        let field = self.stream.cast::<u8>().wrapping_add(within).cast::<T>();
        // SAFETY: it lies within, and integers have no invalid value. Volatile, because the compiler
        // does not know that the helper has written it.
        unsafe { field.read_volatile() }
    }
}

/// Number of a `struct net`; 0: none.
#[inline(always)]
pub(crate) fn netns(net: u64) -> u32 {
    let number = if net == 0 {
        0
    } else {
        field!(net, net_inum: u32)
    };
    words::forget(number.into()) as u32
}

/// An IPv4 address, as the kernel has it, as the wire has it. Any address stays all zeroes.
#[inline(always)]
pub(crate) fn map(address: u32, mapped: &mut [u8; 16]) {
    let mark = if address == 0 {
        0
    } else {
        u32::from_ne_bytes([0, 0, 0xff, 0xff])
    };
    let words: *mut u32 = mapped.as_mut_ptr().cast();
    // Which family it is, and whether it is an address, are of the things the verifier should forget.
    let zero = words::zero();
    for (nth, word) in [zero, zero, zero | mark, zero | address]
        .into_iter()
        .enumerate()
    {
        // SAFETY: the four words are the sixteen bytes, which begin at a multiple of 4 in whatever
        // holds addresses. Volatile, because the compiler would make a
        // call of `memset` of the zeroes.
        unsafe { words.wrapping_add(nth).write_volatile(word) };
    }
}

/// See [`Socket::unread`].
#[inline(always)]
fn unread(rcv_nxt: u32, copied_seq: u32, fin_received: bool) -> u32 {
    let bytes = rcv_nxt
        .wrapping_sub(copied_seq)
        .wrapping_sub(u32::from(fin_received));
    // A connection that never exchanged data can read as minus one.
    if bytes > 1 << 30 { 0 } else { bytes }
}

#[inline(always)]
fn ago(now: u32, then: u32) -> u32 {
    // Zero: never.
    if then == 0 {
        u32::MAX
    } else {
        now.wrapping_sub(then)
    }
}

#[inline(always)]
fn jiffies() -> u32 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_jiffies64() as u32 }
}
