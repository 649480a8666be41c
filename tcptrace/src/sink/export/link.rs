//! A socket to a destination, and what it can tell of the records that went into it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    ControlMessage, MsgFlags, getsockopt, recv, send, sendmsg, setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::tls::{Session, closed};

/// How long a call waits for a destination that takes nothing, before it is seen whether the run ends.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long a peer may leave what was sent unacknowledged, or its window closed, before the connection
/// is given up: `TCP_USER_TIMEOUT`, which the kernel counts.
/// <https://man7.org/linux/man-pages/man7/tcp.7.html>
const SILENCE: Duration = Duration::from_secs(30);

/// How often a connection with nothing to do is looked at: what the other end has ended and this one has
/// not is a CLOSE_WAIT of this program's own.
pub(super) const LOOK: Duration = Duration::from_millis(250);

/// The other end has ended its half. nix has no name for it.
pub(super) const ENDED: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);

/// What became of the records a link was given, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    /// The destination has them, as far as the protocol can tell.
    pub(super) sent: usize,
    /// It takes no record of that size.
    pub(super) too_large: usize,
    /// It has said that it will not have them.
    pub(super) refused: usize,
    /// And why not.
    pub(super) why: Option<String>,
}

impl Done {
    /// The destination has so many.
    pub(super) fn sent(sent: usize) -> Self {
        Self {
            sent,
            ..Self::default()
        }
    }

    /// All of them.
    pub(super) fn count(&self) -> usize {
        self.sent + self.too_large + self.refused
    }
}

/// An open way to a destination.
pub(super) trait Link {
    /// It has nothing left to hand over.
    fn wants_more(&self) -> bool;

    /// Takes a record, in order. A link that fails to is of no more use.
    fn take(&mut self, record: &Bytes) -> io::Result<()>;

    /// Goes on handing over, for a moment at most. Says what became of records since it was asked last,
    /// and whether it can go on; also when it cannot, that is to be counted.
    fn advance(&mut self) -> (Done, io::Result<()>);

    /// After how long with nothing to hand over it is asked whether it is still of use; `None` for never.
    fn idle(&self) -> Option<Duration> {
        None
    }

    /// Whether it is still of use: what the other end has ended may not be written to any more.
    fn is_alive(&mut self) -> bool {
        true
    }

    /// How long the destination has asked to be left alone, when the link has failed.
    fn rest(&self) -> Duration {
        Duration::ZERO
    }
}

/// How the end of a record is found in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Each ends with a newline, which it brings.
    Lines,
    /// Each comes after its length: <https://www.rfc-editor.org/rfc/rfc6587#section-3.4.1>.
    Octets,
}

impl Framing {
    fn frame(self, record: &[u8], to: &mut Vec<u8>) {
        if self == Self::Octets {
            let mut length = itoa::Buffer::new();
            to.extend_from_slice(length.format(record.len()).as_bytes());
            to.push(b' ');
        }
        to.extend_from_slice(record);
    }
}

/// A stream. A record is sent once the other end has all of its bytes: over TCP its kernel has
/// acknowledged them, on this host the program has read them. A connection that breaks takes nothing
/// with it that was not; so a record whose acknowledgement got lost comes twice.
pub(super) struct Stream<S> {
    socket: S,
    framing: Framing,
    /// `None` where everybody on the way may read it.
    tls: Option<Session>,
    /// Reused from record to record: one before it is sealed.
    plain: Vec<u8>,
    /// Framed, sealed, and written up to `at`.
    buffer: Vec<u8>,
    at: usize,
    /// Bytes of the stream up to the end of the buffer, and up to the end of each record not yet known
    /// to be sent.
    end: u64,
    ends: VecDeque<u64>,
    /// Whether what a broken connection did not deliver can be told from what it did.
    outlives_the_peer: bool,
}

impl Stream<TcpStream> {
    pub(super) fn tcp(socket: TcpStream, framing: Framing) -> io::Result<Self> {
        let silence = u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX);
        setsockopt(&socket, sockopt::TcpUserTimeout, &silence)?;
        setsockopt(&socket, sockopt::KeepAlive, &true)?;
        Self::new(socket, framing, true)
    }

    /// The same, once the server has shown who it is.
    pub(super) fn tls(socket: TcpStream, framing: Framing, session: Session) -> io::Result<Self> {
        Ok(Self {
            tls: Some(session),
            ..Self::tcp(socket, framing)?
        })
    }
}

impl Stream<UnixStream> {
    pub(super) fn unix(socket: UnixStream) -> io::Result<Self> {
        Self::new(socket, Framing::Lines, false)
    }
}

impl<S: AsFd + Write> Stream<S> {
    fn new(socket: S, framing: Framing, outlives_the_peer: bool) -> io::Result<Self> {
        wait_briefly(&socket)?;
        Ok(Self {
            socket,
            framing,
            tls: None,
            plain: Vec::new(),
            buffer: Vec::new(),
            at: 0,
            end: 0,
            ends: VecDeque::new(),
            outlives_the_peer,
        })
    }

    fn write(&mut self) -> io::Result<()> {
        while let Some(rest @ [_, ..]) = self.buffer.get(self.at..) {
            match self.socket.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.at += written,
                Err(error) if is_for_later(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.buffer.clear();
        self.at = 0;
        Ok(())
    }

    /// Records whose last byte the other end has.
    fn arrived(&mut self) -> io::Result<usize> {
        let written = self.end - (self.buffer.len() - self.at) as u64;
        let arrived = written.saturating_sub(underway(self.socket.as_fd())?);
        let count = self.ends.iter().take_while(|&&end| end <= arrived).count();
        self.ends.drain(..count);
        Ok(count)
    }
}

impl<S: AsFd + Write> Link for Stream<S> {
    fn wants_more(&self) -> bool {
        self.buffer.is_empty()
    }

    fn take(&mut self, record: &Bytes) -> io::Result<()> {
        let before = self.buffer.len();
        match &mut self.tls {
            None => self.framing.frame(record, &mut self.buffer),
            Some(session) => {
                self.plain.clear();
                self.framing.frame(record, &mut self.plain);
                session.seal(&self.plain, &mut self.buffer)?;
            }
        }
        self.end += (self.buffer.len() - before) as u64;
        self.ends.push_back(self.end);
        Ok(())
    }

    fn advance(&mut self) -> (Done, io::Result<()>) {
        let written = self.write();
        if self.outlives_the_peer {
            // In this order: what breaks meanwhile is noticed next time.
            let heard = written.and_then(|()| self.tls.as_mut().map_or(Ok(()), Session::hear));
            let result = heard.and_then(|()| intact(self.socket.as_fd()));
            return match self.arrived() {
                Ok(sent) => (Done::sent(sent), result),
                Err(error) => (Done::default(), result.and(Err(error))),
            };
        }
        // What a reader left unread when it went is gone from the queue as if it had been read. So what
        // the queue holds counts only if the reader is still there after it was looked at.
        let (ends, outcome) = (self.ends.clone(), self.arrived());
        let outcome = written
            .and(outcome)
            .and_then(|sent| intact(self.socket.as_fd()).map(|()| sent));
        match outcome {
            Ok(sent) => (Done::sent(sent), Ok(())),
            Err(error) => {
                self.ends = ends;
                (Done::default(), Err(error))
            }
        }
    }

    fn idle(&self) -> Option<Duration> {
        Some(LOOK)
    }

    /// Who has ended only its own half still reads what is underway, and then the next connection.
    fn is_alive(&mut self) -> bool {
        if !self.ends.is_empty() {
            return true;
        }
        let heard = match &mut self.tls {
            None => hear(self.socket.as_fd(), |_| Ok(())),
            Some(session) => session.hear(),
        };
        heard.is_ok()
    }
}

/// What is done with a record that no datagram can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooLarge {
    /// It is counted.
    Lost,
    /// It is handed over as a file in memory, as journald allows:
    /// <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.
    InAFile,
}

/// Datagrams, a record each. One is sent once the socket took it: on this host the server's queue has
/// it then, and over UDP nobody knows.
pub(super) struct Datagrams {
    socket: OwnedFd,
    waiting: VecDeque<Bytes>,
    too_large: TooLarge,
}

impl Datagrams {
    pub(super) fn new(socket: impl Into<OwnedFd>, too_large: TooLarge) -> io::Result<Self> {
        let socket = socket.into();
        wait_briefly(&socket)?;
        Ok(Self {
            socket,
            waiting: VecDeque::new(),
            too_large,
        })
    }

    /// Sends one. A host that has no such server says so of a datagram already sent; on this host it
    /// does at once, so the answer is known to be about this one.
    fn send(&self, record: &[u8]) -> Result<(), Errno> {
        let fd = self.socket.as_raw_fd();
        match send(fd, record, MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::EMSGSIZE) if self.too_large == TooLarge::InAFile => {
                send_file(fd, record)?;
            }
            sent => drop(sent?),
        }
        match getsockopt(&self.socket, sockopt::SocketError)? {
            0 => Ok(()),
            error => Err(Errno::from_raw(error)),
        }
    }
}

impl Link for Datagrams {
    fn wants_more(&self) -> bool {
        self.waiting.is_empty()
    }

    fn take(&mut self, record: &Bytes) -> io::Result<()> {
        self.waiting.push_back(record.clone());
        Ok(())
    }

    fn advance(&mut self) -> (Done, io::Result<()>) {
        let mut done = Done::default();
        while let Some(record) = self.waiting.front() {
            match self.send(record) {
                Ok(()) => done.sent += 1,
                Err(Errno::EMSGSIZE) => done.too_large += 1,
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                Err(error) => return (done, Err(error.into())),
            }
            self.waiting.pop_front();
        }
        (done, Ok(()))
    }
}

fn send_file(socket: i32, record: &[u8]) -> Result<(), Errno> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = std::fs::File::from(memfd_create(c"tcptrace", flags)?);
    file.write_all(record)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    let files = [file.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&files)];
    sendmsg::<()>(socket, &[], &message, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

fn wait_briefly(socket: &impl AsFd) -> io::Result<()> {
    let patience = TimeVal::milliseconds(i64::try_from(PATIENCE.as_millis()).unwrap_or(i64::MAX));
    Ok(setsockopt(socket, sockopt::SendTimeout, &patience)?)
}

fn is_for_later(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

/// Bytes written that the other end does not have: over TCP exactly those not acknowledged, also after
/// the connection broke; between Unix sockets what the queue holds, with its overhead, so not less.
/// <https://github.com/torvalds/linux/blob/v6.18/net/ipv4/tcp.c> (`tcp_ioctl`),
/// <https://github.com/torvalds/linux/blob/v6.18/net/unix/af_unix.c> (`unix_outq_len`)
fn underway(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the call writes one integer to where it is told to, and `bytes` is one.
    let told = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if told < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::try_from(bytes).unwrap_or_default())
}

/// Has all taken that the other end has said by now: what is left unread makes the end of a connection a
/// reset. Fails once it has ended its half.
pub(super) fn hear(
    socket: BorrowedFd<'_>,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(closed()),
            Ok(length) => take(&buffer[..length])?,
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Fails when the connection is broken, although nothing was written since. A peer that has only ended
/// its own half still reads.
fn intact(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut look = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut look, PollTimeout::ZERO)?;
    let found = look[0].revents().unwrap_or(PollFlags::empty());
    if !found.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
        return Ok(());
    }
    match getsockopt(&socket, sockopt::SocketError)? {
        0 => Err(closed()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    const RECORDS: [&[u8]; 3] = [b"one\n", b"second\n", b"3\n"];

    fn take_all(link: &mut impl Link) {
        for record in RECORDS {
            link.take(&Bytes::from_static(record)).expect("it has room");
        }
    }

    /// Goes on until the link says that this many are sent.
    fn advance_to(link: &mut impl Link, wanted: usize) {
        let mut sent = 0;
        while sent < wanted {
            let (done, result) = link.advance();
            result.expect("the other end is there");
            sent += done.sent;
        }
        assert_eq!(sent, wanted);
    }

    fn tcp(framing: Framing) -> (Stream<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let to = listener.local_addr().expect("it is bound");
        let client = TcpStream::connect(to).expect("it listens");
        let (server, _) = listener.accept().expect("somebody connected");
        (Stream::tcp(client, framing).expect("a socket"), server)
    }

    fn read_all(from: &mut impl io::Read) -> String {
        let mut text = String::new();
        from.read_to_string(&mut text).expect("it ends");
        text
    }

    #[test]
    fn a_message_follows_its_length() {
        let (mut link, mut server) = tcp(Framing::Octets);
        take_all(&mut link);
        advance_to(&mut link, 3);
        assert!(link.wants_more());
        drop(link);
        assert_eq!(read_all(&mut server), "4 one\n7 second\n2 3\n");
    }

    #[test]
    fn over_tcp_what_was_acknowledged_is_sent_and_what_a_reset_answered_is_not() {
        let (mut link, mut server) = tcp(Framing::Lines);
        link.take(&Bytes::from_static(RECORDS[0]))
            .expect("it has room");
        advance_to(&mut link, 1);
        server.read_exact(&mut [0; 4]).expect("it was sent");
        // Its RST answers what is written next.
        drop(server);
        link.take(&Bytes::from_static(RECORDS[1]))
            .expect("it has room");
        let mut outcome = link.advance();
        while outcome.1.is_ok() {
            outcome = link.advance();
            assert_eq!(outcome.0, Done::default());
        }
    }

    #[test]
    fn who_has_ended_a_connection_is_noticed_once_nothing_is_underway() {
        let (mut link, mut server) = tcp(Framing::Lines);
        assert!(link.is_alive());
        server.write_all(b"hello").expect("a client is there");
        server
            .shutdown(std::net::Shutdown::Write)
            .expect("a connection");
        let mut look = [PollFd::new(link.socket.as_fd(), ENDED)];
        let ended = poll(&mut look, PollTimeout::from(20_000_u16)).expect("a socket");
        assert_eq!(ended, 1);
        take_all(&mut link);
        assert!(link.is_alive(), "the server still reads");
        advance_to(&mut link, 3);
        assert!(!link.is_alive());
        drop(link);
        // Had nobody read the hello, there would be a reset here.
        assert_eq!(read_all(&mut server), "one\nsecond\n3\n");
    }

    #[test]
    fn between_unix_sockets_what_was_read_is_sent_and_what_was_not_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("the directory is ours");
        let client = UnixStream::connect(&path).expect("it listens");
        let (mut server, _) = listener.accept().expect("somebody connected");
        let mut link = Stream::unix(client).expect("a socket");
        link.take(&Bytes::from_static(RECORDS[0]))
            .expect("it has room");
        let (done, result) = link.advance();
        assert_eq!((done, result.is_ok()), (Done::default(), true));
        server.read_exact(&mut [0; 4]).expect("it was sent");
        advance_to(&mut link, 1);
        link.take(&Bytes::from_static(RECORDS[1]))
            .expect("it has room");
        let (done, result) = link.advance();
        assert_eq!((done, result.is_ok()), (Done::default(), true));
        drop(server);
        let (done, result) = link.advance();
        assert_eq!((done, result.is_ok()), (Done::default(), false));
    }

    #[test]
    fn a_port_without_a_server_gets_nothing() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
        client
            .connect(server.local_addr().expect("it is bound"))
            .expect("an address");
        let mut link = Datagrams::new(client, TooLarge::Lost).expect("a socket");
        link.take(&Bytes::from_static(RECORDS[0]))
            .expect("it has room");
        advance_to(&mut link, 1);
        drop(server);
        link.take(&Bytes::from_static(RECORDS[1]))
            .expect("it has room");
        let (done, result) = link.advance();
        assert_eq!(done, Done::default());
        let error = result.expect_err("nobody is there").kind();
        assert_eq!(error, io::ErrorKind::ConnectionRefused);
    }

    /// A datagram socket that carries little, and a queue for it.
    fn small() -> (UnixDatagram, UnixDatagram) {
        let (client, server) = UnixDatagram::pair().expect("two sockets");
        setsockopt(&client, sockopt::SndBuf, &4096).expect("a size");
        (client, server)
    }

    #[test]
    fn what_no_datagram_can_carry_is_counted_or_goes_as_a_file() {
        let large = Bytes::from(vec![b'x'; 100_000]);
        let (client, server) = small();
        let mut link = Datagrams::new(client, TooLarge::Lost).expect("a socket");
        link.take(&large).expect("it has room");
        link.take(&Bytes::from_static(RECORDS[0]))
            .expect("it has room");
        let (done, result) = link.advance();
        result.expect("the other end is there");
        let expected = Done {
            sent: 1,
            too_large: 1,
            ..Done::default()
        };
        assert_eq!(done, expected);
        let mut buffer = [0; 16];
        assert_eq!(server.recv(&mut buffer).expect("it was sent"), 4);

        let (client, server) = small();
        let mut link = Datagrams::new(client, TooLarge::InAFile).expect("a socket");
        link.take(&large).expect("it has room");
        advance_to(&mut link, 1);
        let mut files = nix::cmsg_space!(i32);
        let flags = MsgFlags::empty();
        let message =
            nix::sys::socket::recvmsg::<()>(server.as_raw_fd(), &mut [], Some(&mut files), flags)
                .expect("it was sent");
        let mut messages = message.cmsgs().expect("it is whole");
        let Some(nix::sys::socket::ControlMessageOwned::ScmRights(files)) = messages.next() else {
            panic!("no file came");
        };
        let path = format!("/proc/self/fd/{}", files[0]);
        assert_eq!(std::fs::read(path).expect("the file"), large);
    }
}
