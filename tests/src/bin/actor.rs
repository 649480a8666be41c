//! An actor of the live tests: makes the calls it is told to. Beyond single system calls it forks,
//! starts threads, passes descriptors, drives `io_uring` and raises storms.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};

use io_uring::{IoUring, opcode, types};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::{ForkResult, fork, gettid};
use tcptrace::selftest::actor::{Returned, from_hex, obey, serve};

fn main() -> io::Result<()> {
    serve(&std::env::args().nth(1).unwrap_or_default(), verb)
}

thread_local! {
    static INBOX: RefCell<Option<UnixDatagram>> = const { RefCell::new(None) };
    static RING: RefCell<Option<IoUring>> = const { RefCell::new(None) };
}

fn verb(verb: &str, args: &[&str]) -> io::Result<Returned> {
    match (verb, args) {
        ("fork", [requests, replies, theirs @ ..]) => {
            let (requests, replies) = (number(requests)?, number(replies)?);
            // SAFETY: this process has one thread, or its others hold no lock the child needs.
            match unsafe { fork() }? {
                ForkResult::Parent { child } => Ok(value(child.as_raw())),
                ForkResult::Child => {
                    for fd in theirs {
                        close(number(fd)?);
                    }
                    // Its own end of the story: never back into the parent's loop.
                    let status = obey(take(requests), take(replies), self::verb).is_err();
                    std::process::exit(status.into());
                }
            }
        }
        ("thread", [requests, replies, ..]) => {
            let (requests, replies) = (number(requests)?, number(replies)?);
            let (tell, told) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                _ = tell.send(gettid().as_raw());
                obey(take(requests), take(replies), self::verb)
            });
            Ok(value(told.recv().map_err(io::Error::other)?))
        }
        ("prepare_to_take", [name]) => {
            let inbox = UnixDatagram::bind_addr(&abstract_addr(name)?)?;
            INBOX.set(Some(inbox));
            Ok(value(0))
        }
        ("pass", [fd, name]) => {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&abstract_addr(name)?)?;
            let fds = [number(fd)?];
            let control = [ControlMessage::ScmRights(&fds)];
            let data = [IoSlice::new(b"fd")];
            sendmsg::<()>(socket.as_raw_fd(), &data, &control, MsgFlags::empty(), None)?;
            Ok(value(0))
        }
        ("take", []) => INBOX.with_borrow(|inbox| {
            let inbox = inbox.as_ref().ok_or_else(invalid)?;
            let mut space = nix::cmsg_space!(RawFd);
            let mut byte = [0; 2];
            let mut data = [IoSliceMut::new(&mut byte)];
            let (fd, flags) = (inbox.as_raw_fd(), MsgFlags::empty());
            let message = recvmsg::<()>(fd, &mut data, Some(&mut space), flags)?;
            let rights = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                _ => None,
            });
            Ok(value(rights.ok_or_else(invalid)?))
        }),
        ("uring_accept", [listener]) => {
            let listener = types::Fd(number(listener)?);
            let (none, no_len) = (std::ptr::null_mut(), std::ptr::null_mut());
            Ok(value(submit(
                &opcode::Accept::new(listener, none, no_len).build(),
            )?))
        }
        ("uring_recv", [fd, len]) => {
            let mut buffer = vec![0_u8; number::<usize>(len)?];
            let len = u32::try_from(buffer.len()).map_err(io::Error::other)?;
            let fd = types::Fd(number(fd)?);
            let received = submit(&opcode::Recv::new(fd, buffer.as_mut_ptr(), len).build())?;
            Ok(Returned {
                value: received.into(),
                memory: vec![buffer],
            })
        }
        ("be_refused", [port, times]) => {
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, number(port)?));
            let refused = (0..number::<u32>(times)?).filter(|_| TcpStream::connect(addr).is_err());
            Ok(value(
                i32::try_from(refused.count()).map_err(io::Error::other)?,
            ))
        }
        ("churn", [times]) => churn(number(times)?),
        _ => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
    }
}

/// Opens, accepts and closes connections of its own, one after the other.
fn churn(times: u32) -> io::Result<Returned> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    for _ in 0..times {
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        // A RST leaves no TIME_WAIT socket behind, so the ports last.
        nix::sys::socket::setsockopt(
            &client,
            nix::sys::socket::sockopt::Linger,
            &libc::linger {
                l_onoff: 1,
                l_linger: 0,
            },
        )?;
        drop((client, server));
    }
    Ok(value(0))
}

/// One operation through this thread's ring, and its result.
fn submit(entry: &io_uring::squeue::Entry) -> io::Result<i32> {
    RING.with_borrow_mut(|ring| {
        if ring.is_none() {
            *ring = Some(IoUring::new(8)?);
        }
        let ring = ring.as_mut().ok_or_else(invalid)?;
        // SAFETY: what the entry points to outlives it: we wait for its completion.
        unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        let result = ring.completion().next().ok_or_else(invalid)?.result();
        if result < 0 {
            Err(io::Error::from_raw_os_error(-result))
        } else {
            Ok(result)
        }
    })
}

fn abstract_addr(name: &str) -> io::Result<UnixAddr> {
    let name = from_hex(name).ok_or_else(invalid)?;
    UnixAddr::from_abstract_name(&name[1..])
}

fn value(value: i32) -> Returned {
    Returned {
        value: value.into(),
        memory: vec![],
    }
}

fn number<T: std::str::FromStr>(word: &str) -> io::Result<T> {
    word.parse().map_err(|_| invalid())
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// Takes over one of this process's own descriptors.
fn take(fd: RawFd) -> File {
    // SAFETY: whoever asked made this descriptor for this purpose; the file below is a copy, so
    // that the same number taken twice is harmless.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed
        .try_clone_to_owned()
        .map_or_else(|_| std::process::exit(1), File::from)
}

fn close(fd: RawFd) {
    // SAFETY: the far end's descriptor, inherited by the fork and unused here.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}
