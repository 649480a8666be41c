//! A service that is started again and again. What it does in this life it reads, byte by byte, from the
//! standard input that it shares with its supervisor; each line is answered with `PID WORD`. Arguments mean
//! nothing: they tell it from others of its name.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::exit;

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

fn main() -> io::Result<()> {
    loop {
        let line = line()?;
        let (word, times) = line.split_once(' ').unwrap_or((&line, "0"));
        let times = times.parse().map_err(|_| invalid())?;
        match word {
            "fail" => fail(times)?,
            "fork" => fail_in_child(times)?,
            _ => return Ok(()),
        }
        writeln!(io::stdout(), "{} {word}", std::process::id())?;
    }
}

/// Connects so often to a port where nobody listens.
fn fail(times: u32) -> io::Result<()> {
    for _ in 0..times {
        match TcpStream::connect("127.0.0.1:1") {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(invalid()),
        }
    }
    Ok(())
}

fn fail_in_child(times: u32) -> io::Result<()> {
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            waitpid(child, None)?;
            Ok(())
        }
        ForkResult::Child => exit(i32::from(fail(times).is_err())),
    }
}

/// The next line; nothing of the one after it is read. Empty at the end.
fn line() -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    // Not through `Stdin`, which reads ahead; and a bare kernel has no `/dev/stdin`.
    let mut input = std::fs::File::open("/proc/self/fd/0")?;
    while input.read(&mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    String::from_utf8(line).map_err(|_| invalid())
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidInput.into()
}
