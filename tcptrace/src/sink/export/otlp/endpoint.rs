//! Where a receiver of OTLP listens and in which of its two protocols, as the command line has it.

use std::fmt;
use std::str::FromStr;

use super::super::destination::Host;

/// How requests are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Over HTTP/2, by a service's name: <https://opentelemetry.io/docs/specs/otlp/#otlpgrpc>.
    Grpc,
    /// As the body of a POST: <https://opentelemetry.io/docs/specs/otlp/#otlphttp>.
    Http,
}

/// A receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub(super) protocol: Protocol,
    pub(super) is_tls: bool,
    pub(super) host: Host,
    /// What comes before `/v1/logs` over HTTP.
    pub(super) base: String,
}

/// Schemes, of which the one for none comes last.
const SCHEMES: [(&str, Protocol, bool); 5] = [
    ("http://", Protocol::Http, false),
    ("https://", Protocol::Http, true),
    ("grpcs://", Protocol::Grpc, true),
    ("grpc://", Protocol::Grpc, false),
    ("", Protocol::Grpc, false),
];

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let scheme = SCHEMES
            .iter()
            .find_map(|&(scheme, protocol, is_tls)| {
                Some((text.strip_prefix(scheme)?, protocol, is_tls))
            })
            .filter(|(rest, ..)| !rest.contains("://"));
        let Some((rest, protocol, is_tls)) = scheme else {
            return Err(
                "a receiver of OTLP is at grpc://HOST, grpcs://HOST, http://HOST or https://HOST"
                    .to_owned(),
            );
        };
        let (host, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let base = base.trim_end_matches('/');
        if protocol == Protocol::Grpc && !base.is_empty() {
            return Err(format!(
                "gRPC has no path such as {base:?}: leave it out, or write http://"
            ));
        }
        let may_be = |it: char| it.is_ascii_graphic() && !"?#\"<>\\^`{|}".contains(it);
        if !base.chars().all(may_be) {
            return Err(format!("{base:?} is not a path"));
        }
        let port = match protocol {
            Protocol::Grpc => 4317,
            Protocol::Http => 4318,
        };
        Ok(Self {
            protocol,
            is_tls,
            host: Host::with_port(host, port)?,
            base: base.to_owned(),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_ours = |it: &&(&str, Protocol, bool)| (it.1, it.2) == (self.protocol, self.is_tls);
        let scheme = SCHEMES.iter().find(is_ours).map_or("", |it| it.0);
        write!(f, "{scheme}{}{}", self.host, self.base)
    }
}

impl Endpoint {
    /// Asks for the addresses of its host, and has no use for the answer: connecting asks again.
    pub(crate) fn ask_resolver(&self) {
        let _ = self.host.addresses();
    }

    /// It is reached over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_read_as_people_write_them() {
        for (text, expected) in [
            ("grpc://collector", "grpc://collector:4317"),
            ("collector:55680", "grpc://collector:55680"),
            ("grpcs://[2001:db8::1]", "grpcs://[2001:db8::1]:4317"),
            ("http://127.0.0.1/", "http://127.0.0.1:4318"),
            (
                "https://otlp.example:443/a/b/",
                "https://otlp.example:443/a/b",
            ),
        ] {
            let endpoint = text.parse::<Endpoint>();
            assert_eq!(endpoint.map(|it| it.to_string()), Ok(expected.to_owned()));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_the_remedy() {
        for (text, expected) in [
            (
                "tcp://collector:4317",
                "grpc://HOST, grpcs://HOST, http://HOST or",
            ),
            ("", "\"\" is not the name"),
            ("grpc://collector/v1/logs", "leave it out, or write http://"),
            ("http://collector/v1?key=1", "is not a path"),
            ("http://user:secret@collector", "not a port"),
            ("http://me@collector", "\"me@collector\" is not the name"),
        ] {
            let error = text.parse::<Endpoint>().expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
