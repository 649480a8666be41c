//! The port of `--metrics`: `/metrics`, `/healthz` and `/readyz`, answered by a thread that can do
//! nothing else.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use caps::CapsHashSet;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::{Format, Metrics};
use crate::kernel::confinement::{Part, confine};
use crate::kernel::privileges::keep_only;
use crate::session::monotonic;

/// Connections answered at a time; others wait.
const CONNECTIONS: usize = 8;
/// How long one may take: a scrape is one request and a few kilobytes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before another connection is tried for when there was none to be had, for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Reads the address of `--metrics`: `9847`, which is on loopback, `10.0.0.1:9847`, `[::]:9847`.
///
/// # Errors
/// It is none.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    if let Ok(port) = port.parse() {
        return Ok((IpAddr::from(Ipv4Addr::LOCALHOST), port).into());
    }
    text.parse().map_err(|_| {
        "not a port such as 9847, an address such as 10.0.0.1:9847, nor otlp=http://HOST".to_owned()
    })
}

/// Takes the port, while there may be a privilege for it.
///
/// # Errors
/// It is taken, or the address is not this host's.
pub fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listen = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(listener)
    };
    listen().with_context(|| {
        format!("--metrics {address}: cannot listen there; choose another port or address")
    })
}

/// Starts the thread that answers, which gives up all else first.
///
/// # Errors
/// There is no thread, or it cannot be confined.
pub fn start(listener: TcpListener, metrics: Arc<Metrics>) -> Result<()> {
    let (tell, told) = mpsc::sync_channel(1);
    let answer = move || {
        let begin = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            keep_only(&CapsHashSet::new())?;
            confine(Part::Metrics)?;
            Ok(runtime)
        };
        match begin() {
            Ok(runtime) => {
                // The caller waits.
                let _ = tell.send(Ok(()));
                runtime.block_on(serve(listener, metrics));
            }
            Err(error) => {
                let _ = tell.send(Err(error));
            }
        }
    };
    thread::Builder::new()
        .name("metrics".into())
        .spawn(answer)
        .context("no thread for --metrics")?;
    told.recv().context("the thread of --metrics has ended")?
}

async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    // Only a runtime without sockets refuses one.
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            let _place = place;
            let answer = service_fn(|request: Request<Incoming>| {
                let response = respond(&request, &metrics);
                async { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                // So that nobody keeps a place without asking.
                .keep_alive(false)
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), answer);
            // Who does not take the answer does not get it.
            let _ = timeout(PATIENCE, connection).await;
        });
    }
}

fn respond<B>(request: &Request<B>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let plain = "text/plain; charset=utf-8";
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, plain, "only GET\n".into());
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let state = |holds, yes: &str, no: &str| {
        let (status, text) = if holds {
            (StatusCode::OK, yes)
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, no)
        };
        reply(status, plain, text.to_owned())
    };
    match request.uri().path() {
        "/metrics" => {
            let accepts = request.headers().get_all(ACCEPT).iter();
            let accepts: Vec<_> = accepts.filter_map(|it| it.to_str().ok()).collect();
            let format = wanted(&accepts.join(","));
            let media_type = match format {
                Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
                Format::Classic => "text/plain; version=0.0.4; charset=utf-8",
            };
            match metrics.encode(format) {
                Ok(text) => reply(StatusCode::OK, media_type, text),
                Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, plain, error.to_string()),
            }
        }
        "/healthz" => state(
            metrics.is_alive(monotonic()),
            "alive\n",
            "no look at the kernel half for 10 seconds\n",
        ),
        "/readyz" => state(metrics.is_ready(), "tracing\n", "not tracing\n"),
        _ => reply(
            StatusCode::NOT_FOUND,
            plain,
            "there are /metrics, /healthz and /readyz\n".to_owned(),
        ),
    }
}

fn reply(status: StatusCode, media_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The format an `Accept` header asks for: `OpenMetrics` where it is named and nothing else is preferred.
/// <https://www.rfc-editor.org/rfc/rfc9110.html#field.accept>
pub(crate) fn wanted(accept: &str) -> Format {
    let (mut open, mut classic) = (0.0, 0.0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let (mut weight, mut is_ours) = (1.0_f32, true);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => weight = value.trim().parse().unwrap_or(0.0),
                "version" => is_ours = value.trim().trim_matches('"') == "1.0.0",
                _ => {}
            }
        }
        match media_type.to_ascii_lowercase().as_str() {
            "application/openmetrics-text" if is_ours => open = weight.max(open),
            "text/plain" | "text/*" | "*/*" => classic = weight.max(classic),
            _ => {}
        }
    }
    if open > 0.0 && open >= classic {
        Format::OpenMetrics
    } else {
        Format::Classic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_on_loopback() {
        for (text, expected) in [
            ("9847", "127.0.0.1:9847"),
            (":9847", "127.0.0.1:9847"),
            ("0.0.0.0:9847", "0.0.0.0:9847"),
            ("[::1]:0", "[::1]:0"),
        ] {
            assert_eq!(address(text), Ok(expected.parse().expect("an address")));
        }
        for wrong in ["", "localhost", "::1:9847", "10.0.0.1", "65536", "1:2:3"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_names_open_metrics_gets_it() {
        for (accept, expected) in [
            // Prometheus 2.42 and 2.53.
            (
                "application/openmetrics-text;version=1.0.0,\
                 application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,\
                 */*;q=0.1",
                Format::OpenMetrics,
            ),
            ("application/openmetrics-text", Format::OpenMetrics),
            (
                "Application/OpenMetrics-Text; Version=\"1.0.0\"",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text; version=0.0.1",
                Format::Classic,
            ),
            (
                "application/openmetrics-text;q=0.2, text/plain;q=0.9",
                Format::Classic,
            ),
            ("application/openmetrics-text;q=0", Format::Classic),
            ("application/openmetrics-text;q=x", Format::Classic),
            ("*/*", Format::Classic),
            ("text/html", Format::Classic),
            ("", Format::Classic),
        ] {
            assert_eq!(wanted(accept), expected, "{accept}");
        }
    }

    #[test]
    fn each_path_says_what_it_is_for() {
        let metrics = Metrics::new();
        let ask = |method: Method, path: &str| {
            let request = Request::builder().method(method).uri(path).body(());
            respond(&request.expect("a request"), &metrics)
                .status()
                .as_u16()
        };
        metrics.beat(monotonic());
        assert_eq!(ask(Method::GET, "/readyz"), 503);
        metrics.set_ready(true);
        assert_eq!(ask(Method::GET, "/readyz"), 200);
        assert_eq!(ask(Method::GET, "/healthz"), 200);
        assert_eq!(ask(Method::HEAD, "/metrics?x=1"), 200);
        assert_eq!(ask(Method::POST, "/metrics"), 405);
        assert_eq!(ask(Method::GET, "/"), 404);
    }
}
