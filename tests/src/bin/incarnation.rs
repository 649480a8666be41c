//! A service that is started again and again: it reads from the standard input it shares with its
//! supervisor, byte by byte, what it does in this life, and answers a line with `PID WORD`. Its arguments
//! mean nothing; they only tell it from others.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::{Command, exit};

use nix::unistd::{ForkResult, fork};

fn main() -> io::Result<()> {
    loop {
        let line = line()?;
        let (word, count) = line.split_once(' ').unwrap_or((&line, "0"));
        match word {
            "fail" => fail(count.parse().map_err(|_| invalid())?)?,
            // SAFETY: this process has one thread.
            "fork" => match unsafe { fork() }? {
                ForkResult::Parent { child } => {
                    nix::sys::wait::waitpid(child, None)?;
                }
                ForkResult::Child => {
                    fail(count.parse().map_err(|_| invalid())?)?;
                    exit(0);
                }
            },
            // A process of the same name that is another one.
            "stranger" => {
                let own = std::env::current_exe()?;
                Command::new(own).arg("stranger").status()?;
            }
            "end" => return Ok(()),
            _ => return Err(invalid()),
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

fn line() -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while io::stdin().lock().read(&mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    String::from_utf8(line).map_err(|_| invalid())
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidInput.into()
}
