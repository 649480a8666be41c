//! Headers of every request, such as a receiver's credentials: from the environment, as every sender of
//! OTLP takes them, so that they are neither on the command line nor in a record.

use std::fmt;

use anyhow::{Context as _, Result};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use super::answer::percent_decoded;

/// `name=value,name=value`, where `%2C` is a comma.
/// <https://opentelemetry.io/docs/specs/otel/protocol/exporter/#specifying-headers-via-environment-variables>
const VARIABLE: &str = "OTEL_EXPORTER_OTLP_HEADERS";

/// What is said of this host in each request.
#[derive(Clone, Default)]
pub struct Headers(HeaderMap);

/// Says nothing of the values.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl Headers {
    /// Those of the environment.
    ///
    /// # Errors
    /// It has something else. The error does not tell what.
    pub fn from_env() -> Result<Self> {
        let text = std::env::var_os(VARIABLE).unwrap_or_default();
        let text = text.to_str().context("it is not text");
        text.and_then(Self::parse).context(VARIABLE)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut headers = HeaderMap::new();
        let items = text.split(',').map(str::trim);
        for (nth, item) in items.enumerate().filter(|(_, it)| !it.is_empty()) {
            let header = || {
                let (name, value) = item.split_once('=')?;
                let name: HeaderName = name.trim().parse().ok()?;
                let mut value: HeaderValue = percent_decoded(value.trim()).parse().ok()?;
                value.set_sensitive(true);
                Some((name, value))
            };
            let header = header();
            let (name, value) = header.with_context(|| {
                format!(
                    "item {} of it is no header; write NAME=VALUE,NAME=VALUE",
                    nth + 1
                )
            })?;
            headers.append(name, value);
        }
        Ok(Self(headers))
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_read_as_the_specification_has_them() {
        let headers = Headers::parse("api-key=a%2Cb%20c, Authorization = Basic x=,");
        let headers = headers.expect("they are headers");
        let all: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().expect("text")))
            .collect();
        assert_eq!(all, [("api-key", "a,b c"), ("authorization", "Basic x=")]);
        assert_eq!(Headers::parse("").expect("none").iter().count(), 0);
    }

    #[test]
    fn no_secret_is_told() {
        for text in ["a=1,secret", "a=1,sec ret=secret", "a=1,b=secret%0A"] {
            let error = format!("{:#}", Headers::parse(text).expect_err(text));
            assert!(
                error.starts_with("item 2 of it") && !error.contains("secret"),
                "{error}"
            );
        }
        let headers = Headers::parse("api-key=secret").expect("a header");
        assert_eq!(format!("{headers:?}"), r#"["api-key"]"#);
    }
}
