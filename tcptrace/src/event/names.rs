//! Names of the kernel's numbers: errors, states, reset reasons, system calls.

use std::borrow::Cow;
use std::fmt;

/// An error number, positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

/// A system call: its number on this architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Syscall(pub i32);

/// `enum sk_rst_reason` as this kernel names it, without its prefix `SK_RST_REASON_`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ResetReason(pub Cow<'static, str>);

/// A TCP state, with the kernel's number.
/// <https://github.com/torvalds/linux/blob/v6.18/include/net/tcp_states.h>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are RFC 9293's")]
pub enum State {
    Established = 1,
    SynSent = 2,
    SynReceived = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Closed = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
}

impl State {
    /// The state of a word that [`as_str`](Self::as_str) gave.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        let all = (1..=11).filter_map(Self::from_number);
        all.into_iter().find(|state| state.as_str() == word)
    }

    /// From the kernel's number; `TCP_NEW_SYN_RECV` is SYN_RECEIVED.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 | 12 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Closed,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            _ => return None,
        })
    }

    /// OpenTelemetry's `network.connection.state`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::SynSent => "syn_sent",
            Self::SynReceived => "syn_received",
            Self::FinWait1 => "fin_wait_1",
            Self::FinWait2 => "fin_wait_2",
            Self::TimeWait => "time_wait",
            Self::Closed => "closed",
            Self::CloseWait => "close_wait",
            Self::LastAck => "last_ack",
            Self::Listen => "listen",
            Self::Closing => "closing",
        }
    }
}

impl fmt::Display for State {
    /// As `ss` and people write it: `CLOSE_WAIT`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynReceived => "SYN_RECV",
            Self::FinWait1 => "FIN_WAIT1",
            Self::FinWait2 => "FIN_WAIT2",
            Self::TimeWait => "TIME_WAIT",
            Self::Closed => "CLOSE",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::Closing => "CLOSING",
        })
    }
}

macro_rules! errnos {
    ($($name:ident)*) => {
        /// Every error name a user may give to `--errno`, with its number.
        pub(crate) const ERRNOS: &[(&str, i32)] = &[$((stringify!($name), libc::$name)),*];
    };
}

errnos! {
    EPERM EINTR EIO EBADF EAGAIN ENOMEM EACCES EFAULT EINVAL ENFILE EMFILE ENOTTY EFBIG ENOSPC
    EPIPE ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT EOPNOTSUPP
    EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET
    ENOBUFS EISCONN ENOTCONN ESHUTDOWN ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY
    EINPROGRESS EPROTO ENOSYS ECANCELED
}

impl Errno {
    /// The number of an error's name, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        ERRNOS
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|&(_, n)| Self(n))
    }

    /// The error of a text that [`Display`](fmt::Display) wrote.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let unnamed = || text.strip_prefix("errno ")?.parse().ok().map(Self);
        Self::from_name(text).or_else(unnamed)
    }

    /// The symbol, e.g. `EPIPE`; `None` for one tcptrace has no name for.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        ERRNOS
            .iter()
            .find(|&&(_, number)| number == self.0)
            .map(|&(name, _)| name)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

macro_rules! syscalls {
    ($($name:ident $number:ident)*) => {
        const SYSCALLS: &[(&str, i64)] = &[$((stringify!($name), libc::$number)),*];
    };
}

syscalls! {
    read SYS_read write SYS_write close SYS_close readv SYS_readv writev SYS_writev
    sendfile SYS_sendfile socket SYS_socket connect SYS_connect accept SYS_accept sendto SYS_sendto
    recvfrom SYS_recvfrom sendmsg SYS_sendmsg recvmsg SYS_recvmsg shutdown SYS_shutdown
    bind SYS_bind listen SYS_listen getsockname SYS_getsockname getpeername SYS_getpeername
    setsockopt SYS_setsockopt getsockopt SYS_getsockopt accept4 SYS_accept4
    recvmmsg SYS_recvmmsg sendmmsg SYS_sendmmsg exit_group SYS_exit_group exit SYS_exit
    dup3 SYS_dup3 close_range SYS_close_range splice SYS_splice execve SYS_execve
    io_uring_enter SYS_io_uring_enter
}

impl Syscall {
    /// The call of a text that [`Display`](fmt::Display) wrote.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let named = SYSCALLS.iter().find(|(name, _)| *name == text);
        match named {
            Some(&(_, number)) => i32::try_from(number).ok().map(Self),
            None => text.strip_prefix("syscall ")?.parse().ok().map(Self),
        }
    }

    /// The call's name, of those that act on sockets.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        SYSCALLS
            .iter()
            .find(|&&(_, number)| number == i64::from(self.0))
            .map(|&(name, _)| name)
    }
}

impl fmt::Display for Syscall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "syscall {}", self.0),
        }
    }
}
