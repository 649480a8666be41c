//! Connections as they should be: made, used and closed in every order, by a server and a client
//! that lose nothing and end normally. `ordinary serve ADDRESS…` prints where it listens and ends
//! with its stdin; `ordinary connect COUNT ADDRESS…` ends with its connections.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// How a connection goes, in the first byte of its first request.
const MANNERS: [Manner; 8] = [
    Manner::ClientClosesFirst,
    Manner::ServerClosesFirst,
    Manner::ClientHalfCloses,
    Manner::ServerHalfCloses,
    Manner::BothClose,
    Manner::ManyRequests,
    Manner::MuchData,
    Manner::Pauses,
];
/// One connection in so many pauses: it takes a thousand times as long as the others.
const PAUSES_EVERY: usize = 64;
const MESSAGE: usize = 100;
const MUCH: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// Request, answer, FIN of the client, FIN of the server.
    ClientClosesFirst,
    /// The other way round.
    ServerClosesFirst,
    /// The client's FIN comes with its request, and the answer after it.
    ClientHalfCloses,
    /// The server's FIN comes with its answer, and the client has more to say.
    ServerHalfCloses,
    /// Neither waits for the other's FIN.
    BothClose,
    /// Twenty requests on one connection.
    ManyRequests,
    /// More than the buffers hold, each way.
    MuchData,
    /// Five requests with a little time between them.
    Pauses,
}

impl Manner {
    fn of(connection: usize) -> Self {
        let (last, others) = (MANNERS.len() - 1, connection % (MANNERS.len() - 1));
        MANNERS[if connection % PAUSES_EVERY == PAUSES_EVERY - 1 {
            last
        } else {
            others
        }]
    }

    fn requests(self) -> usize {
        match self {
            Self::ManyRequests => 20,
            Self::Pauses => 5,
            _ => 1,
        }
    }

    fn size(self) -> usize {
        if self == Self::MuchData {
            MUCH
        } else {
            MESSAGE
        }
    }
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["serve", addrs @ ..] => {
            for addr in addrs {
                let listener = TcpListener::bind(addr)?;
                println!("{}", listener.local_addr()?);
                thread::spawn(move || {
                    for connection in listener.incoming() {
                        if let Err(error) = connection.and_then(serve) {
                            println!("error: {error}");
                        }
                    }
                });
            }
            io::copy(&mut io::stdin(), &mut io::sink()).map(drop)
        }
        ["connect", count, addrs @ ..] => {
            let count: usize = count.parse().map_err(io::Error::other)?;
            let addrs = addrs.iter().map(|addr| addr.parse());
            let addrs: Vec<SocketAddr> =
                addrs.collect::<Result<_, _>>().map_err(io::Error::other)?;
            let each = count.div_ceil(addrs.len());
            let clients: Vec<_> = addrs
                .into_iter()
                .map(|addr| thread::spawn(move || connect(addr, each)))
                .collect();
            // Open till the process ends, and closed by its end.
            let mut open = vec![];
            for client in clients {
                open.push(client.join().map_err(|_| io::Error::other("a panic"))??);
            }
            std::process::exit(0);
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Makes so many connections, one after the other, and returns a last one, used and idle.
fn connect(addr: SocketAddr, count: usize) -> io::Result<TcpStream> {
    for connection in 1..count {
        talk(TcpStream::connect(addr)?, connection)?;
    }
    let mut last = TcpStream::connect(addr)?;
    ask(&mut last, Manner::ClientClosesFirst)?;
    Ok(last)
}

fn talk(mut server: TcpStream, connection: usize) -> io::Result<()> {
    let manner = Manner::of(connection);
    for _ in 1..manner.requests() {
        ask(&mut server, manner)?;
        if manner == Manner::Pauses {
            thread::sleep(Duration::from_millis(5));
        }
    }
    if manner == Manner::ClientHalfCloses {
        server.write_all(&request(manner))?;
        server.shutdown(Shutdown::Write)?;
        server.read_exact(&mut vec![0; manner.size()])?;
        return end_of(&mut server);
    }
    ask(&mut server, manner)?;
    match manner {
        Manner::ServerClosesFirst => end_of(&mut server),
        Manner::ServerHalfCloses => {
            end_of(&mut server)?;
            server.write_all(&[0; MESSAGE])
        }
        _ => Ok(()),
    }
}

fn ask(server: &mut TcpStream, manner: Manner) -> io::Result<()> {
    server.write_all(&request(manner))?;
    server.read_exact(&mut vec![0; manner.size()])
}

fn request(manner: Manner) -> Vec<u8> {
    let index = MANNERS.iter().position(|it| *it == manner);
    let mut request = vec![0; manner.size()];
    request[0] = index.and_then(|index| index.try_into().ok()).unwrap_or(0);
    request
}

/// Answers requests until the client has closed, or it is this side's turn to.
fn serve(mut client: TcpStream) -> io::Result<()> {
    let mut first = [0];
    while client.read(&mut first)? == 1 {
        let manner = MANNERS.get(usize::from(first[0]));
        let manner = *manner.ok_or(io::ErrorKind::InvalidData)?;
        client.read_exact(&mut vec![0; manner.size() - 1])?;
        if manner == Manner::ClientHalfCloses {
            end_of(&mut client)?;
        }
        client.write_all(&vec![0; manner.size()])?;
        match manner {
            Manner::ServerHalfCloses => {
                client.shutdown(Shutdown::Write)?;
                client.read_exact(&mut [0; MESSAGE])?;
            }
            Manner::ServerClosesFirst | Manner::ClientHalfCloses | Manner::BothClose => {
                return Ok(());
            }
            _ => {}
        }
    }
    Ok(())
}

fn end_of(peer: &mut TcpStream) -> io::Result<()> {
    match peer.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("a byte nobody sent")),
    }
}
