//! What a receiver of OTLP says to a request: that it has all, that it has some, that it wants none of it,
//! or that it may be asked again.
//! <https://opentelemetry.io/docs/specs/otlp/#failures>

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use prost::Message;
use serde_json::Value;

use super::endpoint::Protocol;

/// The longest time a receiver is left alone: a mistake in one header is not to silence an export for good.
pub(crate) const LONGEST_REST: Duration = Duration::from_mins(5);

/// Of what a receiver says of itself so much is told, in characters.
pub(crate) const LONGEST_WORDS: usize = 200;

/// An answer, before anything is made of it.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// Those before the body, and for gRPC also those after it.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// What it means for what was sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The receiver has it, but for so many records or points, for this reason.
    Taken(u64, String),
    /// It will never take it.
    Refused(String),
    /// It may take it later, but not before this time is over.
    Later(String, Duration),
}

/// The body of an answer to logs; that to metrics has the same shape.
/// <https://github.com/open-telemetry/opentelemetry-proto/blob/v1.8.0/opentelemetry/proto/collector/logs/v1/logs_service.proto>
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// <https://github.com/googleapis/googleapis/blob/master/google/rpc/status.proto>
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Detail>,
}

/// A `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Detail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// <https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto>
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

#[derive(Clone, PartialEq, Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

impl Answer {
    /// What it means, at this time.
    pub(crate) fn verdict(&self, protocol: Protocol, now: Timestamp) -> Verdict {
        let grpc = match protocol {
            Protocol::Http => None,
            Protocol::Grpc => self.header("grpc-status"),
        };
        match (protocol, grpc) {
            (Protocol::Grpc, Some(code)) => self.grpc(code),
            // What stands between answers over HTTP, or somebody listens there who knows no gRPC.
            (Protocol::Grpc, None) if self.status.is_success() => Verdict::Refused(
                "the answer is not of gRPC; http:// and https:// are for OTLP over HTTP".to_owned(),
            ),
            (Protocol::Http, _) if self.status.is_success() => taken(self.partial_success()),
            _ => self.failed(protocol, now),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A receiver should answer as it was asked. Quickwit answers in JSON all the same:
    /// <https://github.com/quickwit-oss/quickwit/issues/6786>
    fn partial_success(&self) -> Option<PartialSuccess> {
        let kind = self.header(CONTENT_TYPE.as_str()).unwrap_or_default();
        if kind.starts_with("application/json") {
            in_json(&self.body)
        } else {
            in_protobuf(&self.body)
        }
    }

    /// What is no number is the status 2, UNKNOWN.
    fn grpc(&self, code: &str) -> Verdict {
        let code: u32 = code.parse().unwrap_or(2);
        if code == 0 {
            // One byte for compression, four for the length, and the message.
            return taken(in_protobuf(self.body.get(5..).unwrap_or_default()));
        }
        let message = percent_decoded(self.header("grpc-message").unwrap_or_default());
        let why = told(&format!("gRPC status {code}"), &message);
        let details = self.header("grpc-status-details-bin").unwrap_or_default();
        let details = STANDARD_NO_PAD.decode(details.trim_end_matches('='));
        let rest = details.ok().and_then(|it| rest(&it));
        // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS; and
        // RESOURCE_EXHAUSTED where it says for how long.
        match code {
            1 | 4 | 10 | 11 | 14 | 15 => Verdict::Later(why, rest.unwrap_or_default()),
            8 if rest.is_some() => Verdict::Later(why, rest.unwrap_or_default()),
            _ => Verdict::Refused(why),
        }
    }

    fn failed(&self, protocol: Protocol, now: Timestamp) -> Verdict {
        let status = Status::decode(&self.body[..]).map(|it| it.message);
        let words = match (protocol, status) {
            (Protocol::Http, Ok(message)) => message,
            _ => String::new(),
        };
        let why = told(&format!("HTTP status {}", self.status), &words);
        match self.status.as_u16() {
            429 | 502 | 503 | 504 => {
                let rest = self.headers.get(RETRY_AFTER);
                let rest = rest.and_then(|it| it.to_str().ok());
                let rest = rest.and_then(|it| retry_after(it, now));
                Verdict::Later(why, rest.unwrap_or_default())
            }
            _ => Verdict::Refused(why),
        }
    }
}

/// Whoever says that all went well need not say it in OTLP.
fn in_protobuf(body: &[u8]) -> Option<PartialSuccess> {
    Response::decode(body).ok()?.partial_success
}

/// The same with the names of JSON or of protocol buffers. 64 bits are text in JSON, as a rule.
fn in_json(body: &[u8]) -> Option<PartialSuccess> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let named = |of: &Value, names: &[&str]| names.iter().find_map(|&name| of.get(name).cloned());
    let partial = named(&answer, &["partialSuccess", "partial_success"])?;
    let rejected = named(
        &partial,
        &[
            "rejectedLogRecords",
            "rejected_log_records",
            "rejectedDataPoints",
            "rejected_data_points",
        ],
    );
    let rejected = rejected.and_then(|it| it.as_i64().or_else(|| it.as_str()?.parse().ok()));
    let message = named(&partial, &["errorMessage", "error_message"]);
    let message = message.and_then(|it| it.as_str().map(str::to_owned));
    Some(PartialSuccess {
        rejected: rejected.unwrap_or_default(),
        error_message: message.unwrap_or_default(),
    })
}

fn taken(partial: Option<PartialSuccess>) -> Verdict {
    let partial = partial.unwrap_or_default();
    let rejected = u64::try_from(partial.rejected).unwrap_or_default();
    Verdict::Taken(rejected, told("rejected", &partial.error_message))
}

/// What is wrong, and what the receiver says of it.
fn told(what: &str, words: &str) -> String {
    let words: String = words.chars().take(LONGEST_WORDS).collect();
    if words.is_empty() {
        what.to_owned()
    } else {
        format!("{what}: {words}")
    }
}

/// How long the details of a status ask for.
fn rest(details: &[u8]) -> Option<Duration> {
    let status = Status::decode(details).ok()?;
    let is_retry = |it: &&Detail| it.type_url.ends_with("/google.rpc.RetryInfo");
    let detail = status.details.iter().find(is_retry)?;
    let delay = RetryInfo::decode(&detail.value[..]).ok()?.retry_delay?;
    let seconds = Duration::from_secs(delay.seconds.try_into().ok()?);
    let nanos = Duration::from_nanos(delay.nanos.try_into().ok()?);
    Some(seconds.saturating_add(nanos).min(LONGEST_REST))
}

/// Seconds, or a date.
/// <https://www.rfc-editor.org/rfc/rfc9110.html#field.retry-after>
fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let rest = if let Ok(seconds) = text.trim().parse() {
        Duration::from_secs(seconds)
    } else {
        let then = DateTimeParser::new().parse_timestamp(text.trim()).ok()?;
        then.duration_since(now).try_into().ok()?
    };
    Some(rest.min(LONGEST_REST))
}

/// `%2C` is a comma. What is no such number stays, and what is no text then is replaced.
pub(super) fn percent_decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2);
        let digits = digits.filter(|it| it.bytes().all(|it| it.is_ascii_hexdigit()));
        if let Some(byte) = digits.and_then(|it| u8::from_str_radix(it, 16).ok()) {
            bytes.push(byte);
            bytes.extend_from_slice(&part.as_bytes()[2..]);
        } else {
            bytes.push(b'%');
            bytes.extend_from_slice(part.as_bytes());
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-22T03:00:00Z".parse().expect("a time")
    }

    fn http(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Verdict {
        answer(status, headers, body).verdict(Protocol::Http, now())
    }

    fn answer(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Answer {
        let headers = headers
            .iter()
            .map(|(name, value)| Ok((name.parse()?, value.parse()?)));
        Answer {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: headers.collect::<anyhow::Result<_>>().expect("headers"),
            body: body.to_vec(),
        }
    }

    fn later(why: &str, seconds: u64) -> Verdict {
        Verdict::Later(why.to_owned(), Duration::from_secs(seconds))
    }

    fn refused(why: &str) -> Verdict {
        Verdict::Refused(why.to_owned())
    }

    // { 1: { 1: 3, 2: "too old" } }
    const PARTIAL: &[u8] = b"\x0a\x0b\x08\x03\x12\x07too old";

    #[test]
    fn over_http_the_status_tells() {
        let taken = || Verdict::Taken(0, "rejected".to_owned());
        assert_eq!(http(200, &[], b""), taken());
        assert_eq!(http(200, &[], b"<html>"), taken());
        let partial = || Verdict::Taken(3, "rejected: too old".to_owned());
        assert_eq!(http(200, &[], PARTIAL), partial());
        let json = [("content-type", "application/json; charset=utf-8")];
        for body in [
            r#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"too old"}}"#,
            r#"{"partial_success":{"rejected_log_records":3,"error_message":"too old"}}"#,
            r#"{"partialSuccess":{"rejectedDataPoints":"3","errorMessage":"too old"}}"#,
        ] {
            assert_eq!(http(200, &json, body.as_bytes()), partial(), "{body}");
        }
        for body in [
            "",
            "{}",
            r#"{"partialSuccess":null}"#,
            r#"{"partialSuccess":{}}"#,
        ] {
            assert_eq!(http(200, &json, body.as_bytes()), taken(), "{body}");
        }
        // { 2: "no such tenant" }
        let said = http(400, &[], b"\x12\x0eno such tenant");
        assert_eq!(said, refused("HTTP status 400 Bad Request: no such tenant"));
        assert_eq!(
            http(404, &[], b"<html>"),
            refused("HTTP status 404 Not Found")
        );
        assert_eq!(
            http(500, &[], b""),
            refused("HTTP status 500 Internal Server Error")
        );
        for (after, seconds) in [
            ("7", 7),
            ("Sun, 22 Nov 2026 03:00:30 GMT", 30),
            ("Sun, 22 Nov 2026 02:00:00 GMT", 0),
            ("86400", 300),
            ("soon", 0),
        ] {
            let said = http(503, &[("retry-after", after)], b"");
            assert_eq!(
                said,
                later("HTTP status 503 Service Unavailable", seconds),
                "{after}"
            );
        }
        assert_eq!(
            http(429, &[], b""),
            later("HTTP status 429 Too Many Requests", 0)
        );
    }

    #[test]
    fn over_grpc_its_own_status_tells() {
        let grpc = |headers: &[(&'static str, &str)], body: &[u8]| {
            answer(200, headers, body).verdict(Protocol::Grpc, now())
        };
        let framed = [b"\0\0\0\0\x0d", PARTIAL].concat();
        let partial = Verdict::Taken(3, "rejected: too old".to_owned());
        assert_eq!(grpc(&[("grpc-status", "0")], &framed), partial);
        let words = ("grpc-message", "no room%2C 100%");
        assert_eq!(
            grpc(&[("grpc-status", "14"), words], b""),
            later("gRPC status 14: no room, 100%", 0)
        );
        let full = ("grpc-status", "8");
        assert_eq!(grpc(&[full], b""), refused("gRPC status 8"));
        // { 1: 8, 3: { 1: "type.googleapis.com/google.rpc.RetryInfo", 2: { 1: { 1: 4 } } } }
        let details = "CAgaMAoodHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLlJldHJ5SW5mbxIECgIIBA";
        for padding in ["", "=="] {
            let details = format!("{details}{padding}");
            let details = ("grpc-status-details-bin", details.as_str());
            assert_eq!(grpc(&[full, details], b""), later("gRPC status 8", 4));
        }
        assert_eq!(
            grpc(&[("grpc-status", "16")], b""),
            refused("gRPC status 16")
        );
        let Verdict::Refused(why) = grpc(&[], b"<html>") else {
            panic!("a page was taken")
        };
        assert!(why.contains("http://"), "{why}");
        let between = answer(503, &[], b"").verdict(Protocol::Grpc, now());
        assert_eq!(between, later("HTTP status 503 Service Unavailable", 0));
    }

    #[test]
    fn words_are_not_without_end() {
        let long = format!("\x12\u{7f}{}", "x".repeat(127));
        let Verdict::Refused(why) = http(400, &[], long.as_bytes()) else {
            panic!("400 is no refusal")
        };
        assert!(why.ends_with('x'));
        assert_eq!(told("a", &"y".repeat(1_000)).len(), 3 + LONGEST_WORDS);
        let no_number = "6".repeat(1_000);
        let answer = answer(200, &[("grpc-status", no_number.as_str())], b"");
        let verdict = answer.verdict(Protocol::Grpc, now());
        assert_eq!(verdict, refused("gRPC status 2"));
    }
}
