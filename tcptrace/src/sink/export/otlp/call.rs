//! A connection to a receiver of OTLP, and one request after the other over it.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, TE, USER_AGENT};
use hyper::rt::{Read, Write};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::pki_types::ServerName;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::super::Access;
use super::super::link::{ENDED, hear};
use super::answer::{Answer, Verdict};
use super::endpoint::{Endpoint, Protocol};
use super::headers::Headers;

/// How long a receiver may take for an answer, as OTLP's own senders have it.
/// <https://opentelemetry.io/docs/specs/otel/protocol/exporter/#configuration-options>
const PATIENCE: Duration = Duration::from_secs(10);

/// Of an answer no more is read.
const LONGEST_ANSWER: usize = 64 * 1024;

/// In which the driver of a connection takes note of what has come.
const MOMENT: Duration = Duration::from_millis(1);

/// How long the end of a connection may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Signal {
    /// An `ExportLogsServiceRequest`.
    Logs,
    /// An `ExportMetricsServiceRequest`.
    Metrics,
}

/// A receiver, connected to.
pub(crate) struct Caller {
    endpoint: Endpoint,
    headers: Headers,
    /// The same socket, to be looked at while the runtime does not run.
    socket: TcpStream,
    runtime: Runtime,
    sender: Option<Sender>,
    /// Moves bytes, while the runtime runs.
    driver: JoinHandle<()>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Caller {
    /// Connects, which may take `patience` for each address, and once more for TLS.
    pub(crate) fn connect(
        endpoint: &Endpoint,
        access: &Access,
        patience: Duration,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let host = &endpoint.host;
        let socket = host.open(|it| TcpStream::connect_timeout(&it, patience))?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let opened = runtime.block_on(open(endpoint, access, socket.try_clone()?, patience));
        let (sender, driver) = opened.map_err(|it| plain(&it))?;
        Ok(Self {
            endpoint: endpoint.clone(),
            headers: access.headers.clone(),
            socket,
            runtime,
            sender: Some(sender),
            driver,
        })
    }

    /// Sends a request and waits for what is said to it. After an error the connection is of no more use.
    pub(crate) fn call(&mut self, signal: Signal, message: &[u8]) -> io::Result<Verdict> {
        let protocol = self.endpoint.protocol;
        let request = self.request(signal, message)?;
        let sender = &mut self.sender;
        let answer = async {
            let sender = sender.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            let response = sender.send(request).await.map_err(io::Error::other)?;
            read(response).await
        };
        let answer = self.runtime.block_on(async {
            let late = |_| {
                let error = format!("no answer within {} s", PATIENCE.as_secs());
                io::Error::new(io::ErrorKind::TimedOut, error)
            };
            timeout(PATIENCE, answer).await.map_err(late)?
        });
        Ok(answer
            .map_err(|it| plain(&it))?
            .verdict(protocol, jiff::Timestamp::now()))
    }

    /// Whether the other end has not ended the connection, as far as it is known by now.
    pub(crate) fn is_open(&mut self) -> bool {
        if self.finds(ENDED) {
            return false;
        }
        // What came may say that this is about to be so.
        if self.finds(PollFlags::POLLIN) {
            self.runtime.block_on(async { sleep(MOMENT).await });
        }
        !self.driver.is_finished()
    }

    /// Whether the socket is in this state, or broken.
    fn finds(&self, state: PollFlags) -> bool {
        let mut look = [PollFd::new(self.socket.as_fd(), state)];
        poll(&mut look, PollTimeout::ZERO) != Ok(0)
    }

    fn request(&self, signal: Signal, message: &[u8]) -> io::Result<Request<Full<Bytes>>> {
        let mut compressed = GzEncoder::new(Vec::new(), Compression::fast());
        compressed.write_all(message)?;
        let compressed = compressed.finish()?;
        let Endpoint { host, base, .. } = &self.endpoint;
        let request = Request::post(match (self.endpoint.protocol, signal) {
            (Protocol::Http, Signal::Logs) => format!("{base}/v1/logs"),
            (Protocol::Http, Signal::Metrics) => format!("{base}/v1/metrics"),
            (Protocol::Grpc, signal) => {
                let scheme = if self.endpoint.is_tls {
                    "https"
                } else {
                    "http"
                };
                let service = match signal {
                    Signal::Logs => "logs.v1.LogsService",
                    Signal::Metrics => "metrics.v1.MetricsService",
                };
                format!("{scheme}://{host}/opentelemetry.proto.collector.{service}/Export")
            }
        });
        let request = request.header(USER_AGENT, concat!("tcptrace/", env!("CARGO_PKG_VERSION")));
        let (mut request, body) = match self.endpoint.protocol {
            Protocol::Http => {
                let request = request
                    .header(HOST, host.to_string())
                    .header(CONTENT_TYPE, "application/x-protobuf")
                    .header(CONTENT_ENCODING, "gzip");
                (request, compressed)
            }
            // <https://github.com/grpc/grpc/blob/v1.75.0/doc/PROTOCOL-HTTP2.md>
            Protocol::Grpc => {
                let request = request
                    .header(CONTENT_TYPE, "application/grpc")
                    .header(TE, "trailers")
                    .header("grpc-encoding", "gzip");
                let length = u32::try_from(compressed.len()).map_err(io::Error::other)?;
                let mut framed = vec![1];
                framed.extend_from_slice(&length.to_be_bytes());
                framed.extend_from_slice(&compressed);
                (request, framed)
            }
        };
        for (name, value) in self.headers.iter() {
            request = request.header(name, value);
        }
        request.body(Full::from(body)).map_err(io::Error::other)
    }
}

/// Says goodbye, but not to who has ended the connection and would answer with a reset. What the other end
/// has said meanwhile is read, so that the end is none either.
impl Drop for Caller {
    fn drop(&mut self) {
        if self.finds(ENDED) {
            // It ends with the error that nothing more will come.
            let _ = hear(self.socket.as_fd(), |_| Ok(()));
            return;
        }
        self.sender = None;
        let driver = &mut self.driver;
        // Whoever does not hear it is left.
        let _ = self
            .runtime
            .block_on(async { timeout(GOODBYE, driver).await });
    }
}

impl Sender {
    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

async fn read(response: Response<Incoming>) -> io::Result<Answer> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, LONGEST_ANSWER).collect().await;
    let body = body.map_err(io::Error::other)?;
    let mut headers = parts.headers;
    if let Some(trailers) = body.trailers() {
        headers.extend(trailers.clone());
    }
    Ok(Answer {
        status: parts.status,
        headers,
        body: body.to_bytes().into(),
    })
}

async fn open(
    endpoint: &Endpoint,
    access: &Access,
    socket: TcpStream,
    patience: Duration,
) -> io::Result<(Sender, JoinHandle<()>)> {
    let socket = tokio::net::TcpStream::from_std(socket)?;
    if !endpoint.is_tls {
        return speak(endpoint.protocol, TokioIo::new(socket)).await;
    }
    let protocol: &[u8] = match endpoint.protocol {
        Protocol::Grpc => b"h2",
        Protocol::Http => b"http/1.1",
    };
    let connector = TlsConnector::from(Arc::new(access.tls()?.for_protocol(protocol)));
    let name = ServerName::try_from(endpoint.host.name().to_owned()).map_err(io::Error::other)?;
    let socket = timeout(patience, connector.connect(name, socket)).await??;
    speak(endpoint.protocol, TokioIo::new(socket)).await
}

async fn speak(
    protocol: Protocol,
    socket: impl Read + Write + Unpin + Send + 'static,
) -> io::Result<(Sender, JoinHandle<()>)> {
    // Why a connection ended is told with the request that failed for it.
    Ok(match protocol {
        Protocol::Http => {
            let (sender, driver) = http1::handshake(socket).await.map_err(io::Error::other)?;
            let driver = tokio::spawn(async { drop(driver.await) });
            (Sender::Http1(sender), driver)
        }
        Protocol::Grpc => {
            let handshake = http2::handshake(TokioExecutor::new(), socket);
            let (sender, driver) = handshake.await.map_err(io::Error::other)?;
            let driver = tokio::spawn(async { drop(driver.await) });
            (Sender::Http2(sender), driver)
        }
    })
}

/// An error with what is behind it: hyper's own words leave that to whoever asks.
fn plain(error: &io::Error) -> io::Error {
    let mut text = error.to_string();
    let mut behind = error.get_ref().and_then(|it| it.source());
    while let Some(error) = behind {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        behind = error.source();
    }
    io::Error::new(error.kind(), text)
}
