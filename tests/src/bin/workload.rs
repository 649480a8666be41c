//! The workloads of `cargo xtask overhead`, on one CPU and in a network namespace of their own:
//! each line that comes in asks for one (`churn 8000`), each line that goes out answers with the
//! nanoseconds one operation took.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Instant;

use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, setsockopt, sockopt};
use nix::unistd::{Pid, getppid};

/// An answer is the median of this many batches. They are far shorter than a time slice, so that
/// most of them are not interrupted, even where others want the CPU.
const BATCHES: u32 = 1000;

fn main() -> io::Result<()> {
    let cpu = std::env::args().nth(1).ok_or_else(invalid)?;
    let mut cpus = CpuSet::new();
    cpus.set(cpu.parse().map_err(|_| invalid())?)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    enter_network_namespace()?;
    let mut held = Vec::new();
    for line in io::stdin().lines() {
        let line = line?;
        let (name, operations) = line.split_once(' ').ok_or_else(invalid)?;
        let batch = operations.parse::<u32>().map_err(|_| invalid())? / BATCHES;
        let nanoseconds = match name {
            "ping-pong" => ping_pong(batch),
            "churn" => churn(batch),
            "getppid" => time(batch, || {
                getppid();
                Ok(())
            }),
            "recv" => idle_recv(batch),
            "resets" => resets(batch),
            "bulk" => bulk(batch),
            "errors" => errors(batch),
            "hold" => hold(operations.parse().map_err(|_| invalid())?, &mut held),
            _ => Err(invalid()),
        }?;
        println!("{nanoseconds}");
    }
    Ok(())
}

/// One byte each way, between two threads.
fn ping_pong(batch: u32) -> io::Result<f64> {
    let (mut client, mut server) = connection(&listener()?)?;
    let echo = thread::spawn(move || {
        let mut byte = [0];
        while server.read(&mut byte)? == 1 {
            server.write_all(&byte)?;
        }
        io::Result::Ok(())
    });
    let result = time(batch, || {
        client.write_all(b"a")?;
        client.read_exact(&mut [0])
    });
    drop(client);
    echo.join()
        .map_err(|_| io::Error::other("echo panicked"))??;
    result
}

/// Connect, accept, one byte each way, close by the client and then by the server.
fn churn(batch: u32) -> io::Result<f64> {
    let listener = listener()?;
    time(batch, || {
        let (mut client, mut server) = connection(&listener)?;
        let mut byte = [0];
        client.write_all(b"a")?;
        server.read_exact(&mut byte)?;
        server.write_all(b"a")?;
        client.read_exact(&mut byte)?;
        drop(client);
        match server.read(&mut byte)? {
            0 => Ok(()),
            _ => Err(io::Error::other("a byte nobody sent")),
        }
    })
}

/// A non-blocking receive that finds nothing.
fn idle_recv(batch: u32) -> io::Result<f64> {
    let (mut client, _server) = connection(&listener()?)?;
    client.set_nonblocking(true)?;
    time(batch, || match client.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        _ => Err(io::Error::other("the socket is not idle")),
    })
}

/// A connection that its client resets.
fn resets(batch: u32) -> io::Result<f64> {
    let listener = listener()?;
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    time(batch, || {
        let (client, _server) = connection(&listener)?;
        setsockopt(&client, sockopt::Linger, &at_once)?;
        drop(client);
        Ok(())
    })
}

/// A megabyte one way, and a byte back when it has been read.
fn bulk(batch: u32) -> io::Result<f64> {
    const BLOCK: usize = 1 << 20;
    let (mut client, mut server) = connection(&listener()?)?;
    let sink = thread::spawn(move || {
        let mut block = vec![0; BLOCK];
        while server.read_exact(&mut block).is_ok() {
            server.write_all(b"a")?;
        }
        io::Result::Ok(())
    });
    let block = vec![0; BLOCK];
    let result = time(batch, || {
        client.write_all(&block)?;
        client.read_exact(&mut [0])
    });
    drop(client);
    sink.join()
        .map_err(|_| io::Error::other("the reader panicked"))??;
    result
}

/// A send after the program's own shutdown.
fn errors(batch: u32) -> io::Result<f64> {
    let (mut client, _server) = connection(&listener()?)?;
    client.shutdown(Shutdown::Write)?;
    // Rust's programs ignore SIGPIPE.
    time(batch, || match client.write(b"a") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(io::Error::other("a send after shutdown did not fail")),
    })
}

/// Connections that stay open as long as the process.
fn hold(connections: u32, held: &mut Vec<(TcpStream, TcpStream)>) -> io::Result<f64> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let listener = listener()?;
    for _ in 0..connections {
        held.push(connection(&listener)?);
    }
    Ok(0.0)
}

/// How long the operation takes, in nanoseconds.
fn time(batch: u32, mut operation: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    let mut took = Vec::new();
    for _ in 0..BATCHES {
        let start = Instant::now();
        for _ in 0..batch {
            operation()?;
        }
        took.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(batch));
    }
    took.sort_by(f64::total_cmp);
    Ok(took[took.len() / 2])
}

fn listener() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

fn connection(listener: &TcpListener) -> io::Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    Ok((client, server))
}

/// Nobody else's packets, and no `TIME_WAIT`: a million closed connections would use up the ports.
fn enter_network_namespace() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let any = socket::socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: every bit pattern, all zero too, is a valid ifreq.
    let mut loopback: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in loopback.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    loopback.ifr_ifru.ifru_flags = libc::IFF_UP.try_into().map_err(|_| invalid())?;
    // SAFETY: the kernel reads one ifreq, which outlives the call.
    let up = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const loopback) };
    nix::errno::Errno::result(up)?;
    std::fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0")
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidInput.into()
}
