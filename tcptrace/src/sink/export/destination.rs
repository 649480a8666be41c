//! Where an export goes, as on the command line, and how to get there.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::Access;
#[cfg(feature = "kafka")]
use super::kafka::{Records, Topic};
use super::link::{Datagrams, Framing, Link, Stream, TooLarge};
use super::otlp::{Endpoint, Requests};
use super::tls::Session;
use crate::sink::Format;

/// Where journald listens.
/// <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Bytes of a path that a Unix socket can have.
/// <https://man7.org/linux/man-pages/man7/unix.7.html>
const LONGEST_PATH: usize = 107;

/// Where an export goes: what the records look like, and over which socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// journald on this host, in its native protocol.
    Journald,
    /// A syslog server, in RFC 5424.
    Syslog(Way),
    /// Whoever reads JSON Lines from a stream.
    Lines(Way),
    /// A receiver of OTLP.
    Otlp(Endpoint),
    /// A topic of Kafka.
    #[cfg(feature = "kafka")]
    Kafka(Topic),
}

/// A kind of socket and its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A stream.
    Tcp(Host),
    /// A stream of a server that shows who it is, which nobody on the way can read.
    Tls(Host),
    /// Datagrams.
    Udp(Host),
    /// On this host: a stream for lines, datagrams for syslog.
    Unix(PathBuf),
}

/// A name or an address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    name: String,
    port: u16,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "journald" {
            return Ok(Self::Journald);
        }
        if let Some(endpoint) = text.strip_prefix("otlp=") {
            return Ok(Self::Otlp(endpoint.parse()?));
        }
        if let Some(topic) = text.strip_prefix("kafka=") {
            return kafka(topic);
        }
        let (is_syslog, way) = match text.strip_prefix("syslog=") {
            Some(way) => (true, way),
            None => (false, text),
        };
        let way = if let Some(host) = way.strip_prefix("tcp://") {
            Way::Tcp(host.parse()?)
        } else if let Some(host) = way.strip_prefix("tls://") {
            Way::Tls(host.parse()?)
        } else if let Some(host) = way.strip_prefix("udp://").filter(|_| is_syslog) {
            Way::Udp(host.parse()?)
        } else if let Some(path) = way.strip_prefix("unix:") {
            Way::Unix(socket_path(path)?)
        } else {
            return Err(
                "there is no such export; there are otlp=grpc://HOST, otlp=grpcs://HOST, otlp=http://HOST, \
                 otlp=https://HOST, kafka=HOST:PORT/TOPIC, journald, syslog=tcp://HOST:PORT, syslog=tls://HOST:PORT, \
                 syslog=udp://HOST:PORT, syslog=unix:/PATH, and for JSON Lines tcp://HOST:PORT, \
                 tls://HOST:PORT and unix:/PATH"
                    .to_owned(),
            );
        };
        Ok(if is_syslog {
            Self::Syslog(way)
        } else {
            Self::Lines(way)
        })
    }
}

#[cfg(feature = "kafka")]
fn kafka(topic: &str) -> Result<Destination, String> {
    Ok(Destination::Kafka(topic.parse()?))
}

#[cfg(not(feature = "kafka"))]
fn kafka(_: &str) -> Result<Destination, String> {
    Err(
        "this tcptrace was built without Kafka: build it with `cargo build --release --features kafka`, \
         or send to an agent that feeds Kafka, over OTLP or tcp://HOST:PORT"
            .to_owned(),
    )
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    // `unix:///run/x` is the same path.
    let path = match text.strip_prefix("//") {
        Some(path) if path.starts_with('/') => path,
        _ => text,
    };
    if !path.starts_with('/') {
        return Err("the path of the socket must begin with a slash".to_owned());
    }
    if path.len() > LONGEST_PATH {
        return Err(format!(
            "the path of a socket has at most {LONGEST_PATH} bytes; make a shorter link to it"
        ));
    }
    Ok(path.into())
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let no_port =
            || "a port is missing: write HOST:PORT, or [ADDRESS]:PORT for IPv6".to_owned();
        let (name, port) = text.rsplit_once(':').ok_or_else(no_port)?;
        let port = match port.parse() {
            Ok(port) if port > 0 => port,
            _ => return Err(format!("{port:?} is not a port from 1 to 65535")),
        };
        let bracketed = name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'));
        if bracketed.is_none() && name.contains(':') {
            return Err(no_port());
        }
        let name = bracketed.unwrap_or(name);
        let is_strange = |c: char| c.is_whitespace() || c.is_control() || "/@?#[]".contains(c);
        if name.is_empty() || name.contains(is_strange) {
            return Err(format!("{name:?} is not the name or the address of a host"));
        }
        Ok(Self {
            name: name.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Journald => f.write_str("journald"),
            Self::Syslog(way) => write!(f, "syslog={way}"),
            Self::Lines(way) => way.fmt(f),
            Self::Otlp(endpoint) => write!(f, "otlp={endpoint}"),
            #[cfg(feature = "kafka")]
            Self::Kafka(topic) => write!(f, "kafka={topic}"),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host) => write!(f, "tcp://{host}"),
            Self::Tls(host) => write!(f, "tls://{host}"),
            Self::Udp(host) => write!(f, "udp://{host}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

impl Host {
    /// As parsed from text, which may leave out the port where there is a usual one.
    pub(super) fn with_port(text: &str, usual: u16) -> Result<Self, String> {
        let after_brackets = text.rsplit_once(']').map_or(text, |(_, rest)| rest);
        if after_brackets.contains(':') {
            text.parse()
        } else {
            format!("{text}:{usual}").parse()
        }
    }

    /// Without the port.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Asks the host's resolver.
    pub(super) fn addresses(&self) -> io::Result<impl Iterator<Item = SocketAddr> + use<>> {
        (self.name.as_str(), self.port).to_socket_addrs()
    }

    /// The first address for which `open` works, or else why the last one did not.
    pub(super) fn open<T>(&self, open: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
        let mut failed = io::Error::other("its name has no address");
        for address in self.addresses()? {
            match open(address) {
                Ok(socket) => return Ok(socket),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

impl Destination {
    /// How the records for it are written.
    #[must_use]
    pub fn format(&self) -> Format {
        match self {
            Self::Journald => Format::Journal,
            Self::Syslog(_) => Format::Syslog,
            Self::Lines(_) => Format::Json,
            Self::Otlp(_) => Format::Otlp,
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => Format::Json,
        }
    }

    /// Asks for the addresses of its host, and has no use for the answer.
    pub(super) fn ask_resolver(&self) {
        let host = match self {
            Self::Syslog(Way::Tcp(host) | Way::Tls(host) | Way::Udp(host))
            | Self::Lines(Way::Tcp(host) | Way::Tls(host) | Way::Udp(host)) => host,
            Self::Otlp(endpoint) => return endpoint.ask_resolver(),
            #[cfg(feature = "kafka")]
            Self::Kafka(topic) => return topic.ask_resolver(),
            Self::Journald | Self::Syslog(Way::Unix(_)) | Self::Lines(Way::Unix(_)) => return,
        };
        // Connecting asks again, and says what is wrong.
        let _ = host.addresses();
    }

    /// It is reached over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        match self {
            Self::Syslog(way) | Self::Lines(way) => matches!(way, Way::Tls(_)),
            Self::Otlp(endpoint) => endpoint.is_tls(),
            Self::Journald => false,
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => false,
        }
    }

    /// Opens a socket to it, which takes `patience` at most for each of its addresses.
    pub(super) fn connect(&self, access: &Access, patience: Duration) -> io::Result<Box<dyn Link>> {
        let tcp = |host: &Host| host.open(|it| TcpStream::connect_timeout(&it, patience));
        let sealed = |host: &Host, framing| {
            let tls = access.tls()?;
            let socket = tcp(host)?;
            let session = Session::open(tls, &host.name, &socket, patience)?;
            Stream::tls(socket, framing, session)
        };
        Ok(match self {
            Self::Journald => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(JOURNAL)?;
                Box::new(Datagrams::new(socket, TooLarge::InAFile)?)
            }
            Self::Otlp(endpoint) => Box::new(Requests::connect(endpoint, access, patience)?),
            #[cfg(feature = "kafka")]
            Self::Kafka(topic) => Box::new(Records::connect(topic, patience)?),
            Self::Lines(Way::Tcp(host)) => Box::new(Stream::tcp(tcp(host)?, Framing::Lines)?),
            Self::Syslog(Way::Tcp(host)) => Box::new(Stream::tcp(tcp(host)?, Framing::Octets)?),
            Self::Lines(Way::Tls(host)) => Box::new(sealed(host, Framing::Lines)?),
            // <https://www.rfc-editor.org/rfc/rfc5425#section-4.3>
            Self::Syslog(Way::Tls(host)) => Box::new(sealed(host, Framing::Octets)?),
            Self::Lines(Way::Udp(host)) | Self::Syslog(Way::Udp(host)) => {
                let any = |to: SocketAddr| -> SocketAddr {
                    match to {
                        SocketAddr::V4(_) => ([0; 4], 0).into(),
                        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
                    }
                };
                let socket = host.open(|to| {
                    let socket = UdpSocket::bind(any(to))?;
                    socket.connect(to)?;
                    Ok(socket)
                })?;
                Box::new(Datagrams::new(socket, TooLarge::Lost)?)
            }
            Self::Lines(Way::Unix(path)) => Box::new(Stream::unix(UnixStream::connect(path)?)?),
            Self::Syslog(Way::Unix(path)) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                Box::new(Datagrams::new(socket, TooLarge::Lost)?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_read_as_they_are_written() {
        for text in [
            "journald",
            "syslog=tcp://logs.example:6514",
            "syslog=tls://logs.example:6514",
            "tls://[2001:db8::1]:6514",
            "syslog=udp://192.0.2.1:514",
            "syslog=unix:/dev/log",
            "tcp://[2001:db8::1]:5140",
            "unix:/run/vector.sock",
            "otlp=grpcs://collector.example:4317",
            "otlp=http://[2001:db8::1]:4318/base",
        ] {
            let parsed = text.parse::<Destination>();
            assert_eq!(parsed.map(|it| it.to_string()), Ok(text.to_owned()));
        }
        let slashes = "unix:///run/vector.sock".parse::<Destination>();
        assert_eq!(
            slashes.map(|it| it.to_string()),
            Ok("unix:/run/vector.sock".to_owned())
        );
    }

    #[test]
    #[cfg(not(feature = "kafka"))]
    fn a_build_without_kafka_says_how_to_have_it() {
        let error = "kafka=one:9092/x".parse::<Destination>();
        let error = error.expect_err("it was built without");
        assert!(error.contains("--features kafka"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named_with_the_remedy() {
        let long = format!("unix:/{}", "x".repeat(LONGEST_PATH));
        for (text, expected) in [
            ("", "there are otlp=grpc://HOST"),
            ("udp://192.0.2.1:514", "journald, syslog="),
            ("syslog", "journald, syslog="),
            ("tcp://logs.example", "write HOST:PORT"),
            ("tcp://2001:db8::1", "[ADDRESS]:PORT for IPv6"),
            (
                "tcp://logs.example:0",
                "\"0\" is not a port from 1 to 65535",
            ),
            ("tcp://logs.example:syslog", "\"syslog\" is not a port"),
            ("tcp://:514", "\"\" is not the name"),
            (
                "tcp://me@logs.example:514",
                "\"me@logs.example\" is not the name",
            ),
            ("unix:run/x", "must begin with a slash"),
            ("syslog=unix:", "must begin with a slash"),
            (&long, "at most 107 bytes"),
        ] {
            let error = text.parse::<Destination>().expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
