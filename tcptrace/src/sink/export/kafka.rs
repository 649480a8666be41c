//! The export to Kafka, through librdkafka: a producer of its own threads, whose delivery reports say what
//! became of each record.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};

use super::destination::Host;
use super::link::{Done, LOOK, Link};

/// The port where nothing else is said.
const PORT: u16 = 9092;

/// Characters that the name of a topic has at most; which ones, is there, too.
/// <https://github.com/apache/kafka/blob/3.9.0/clients/src/main/java/org/apache/kafka/common/internals/Topic.java>
const LONGEST_NAME: usize = 249;

/// Bytes of records that librdkafka holds at most.
const HELD: usize = 4 << 20;

/// How long other addresses of brokers are tried once none has answered at its first.
const ANOTHER: Duration = Duration::from_secs(1);

/// How long the reports that are there take to be read.
const MOMENT: Duration = Duration::from_millis(1);

/// How long reports are waited for while librdkafka takes no more.
const PATIENCE: Duration = Duration::from_millis(10);

/// A topic and the brokers that know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    brokers: Vec<Host>,
    name: String,
}

impl FromStr for Topic {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (brokers, name) = text.split_once('/').unwrap_or((text, ""));
        if name.is_empty() {
            return Err("a topic is missing: write kafka=HOST:PORT/TOPIC".to_owned());
        }
        let brokers = brokers.split(',');
        let brokers = brokers.map(|it| Host::with_port(it, PORT));
        let is_of_names = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !name.chars().all(is_of_names)
            || name.len() > LONGEST_NAME
            || [".", ".."].contains(&name)
        {
            return Err(format!(
                "{name:?} is not the name of a topic: it has up to {LONGEST_NAME} of the letters and \
                 digits of ASCII, '.', '_' and '-'"
            ));
        }
        Ok(Self {
            brokers: brokers.collect::<Result<_, _>>()?,
            name: name.to_owned(),
        })
    }
}

impl Topic {
    fn servers(&self) -> String {
        let brokers = self.brokers.iter().map(Host::to_string);
        brokers.collect::<Vec<_>>().join(",")
    }

    /// Asks for the addresses of all brokers, and has no use for the answers.
    pub(super) fn ask_resolver(&self) {
        for broker in &self.brokers {
            // Connecting asks again, and says what is wrong.
            let _ = broker.addresses();
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.servers(), self.name)
    }
}

/// What became of a record.
#[derive(Debug)]
enum Fate {
    Sent,
    TooLarge,
    /// The brokers will not have it, in their words.
    Refused(String),
    /// Nobody has taken it for as long as librdkafka tries.
    Late,
}

/// What librdkafka has told since it was read last, and whether it reaches anybody.
#[derive(Debug, Default)]
struct Told {
    /// By the number of the record.
    fates: Vec<(usize, Fate)>,
    error: Option<String>,
    is_down: bool,
}

#[derive(Default)]
struct Reports(Mutex<Told>);

impl Reports {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Reports {
    /// What matters of it comes as an error, too.
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let mut told = self.told();
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            told.is_down = true;
        } else {
            told.error = Some(reason.to_owned());
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let fate = result
            .as_ref()
            .map_or_else(|(it, _)| fate(it), |_| Fate::Sent);
        self.told().fates.push((number, fate));
    }
}

fn fate(error: &KafkaError) -> Fate {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => Fate::TooLarge,
        Some(RDKafkaErrorCode::MessageTimedOut) => Fate::Late,
        _ => Fate::Refused(error.to_string()),
    }
}

/// A producer that has found its topic.
pub(super) struct Records {
    producer: BaseProducer<Reports>,
    topic: String,
    /// Sizes of the records that librdkafka holds, in the order they came, with what became of those
    /// that wait for one before them.
    held: VecDeque<(usize, Option<Fate>)>,
    bytes: usize,
    /// The number of the first of them.
    first: usize,
}

impl Records {
    pub(super) fn connect(topic: &Topic, patience: Duration) -> io::Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", topic.servers())
            .set("client.id", "tcptrace")
            .set("compression.codec", "lz4")
            .set("linger.ms", "100")
            .set("reconnect.backoff.max.ms", "250")
            // Nothing comes twice or out of order that one producer has to send again.
            .set("enable.idempotence", "true")
            // As long as any other destination may leave what it was sent unacknowledged.
            .set("message.timeout.ms", "30000")
            // What Kafka's own clients do with keys.
            .set("partitioner", "murmur2_random");
        let producer = config.create_with_context(Reports::default());
        let producer: BaseProducer<Reports> = producer.map_err(io::Error::other)?;
        let begun = Instant::now();
        while let Err(error) = find(&producer, &topic.name) {
            let is_down = producer.context().told().is_down;
            let patience = if is_down { ANOTHER } else { patience };
            if begun.elapsed() > patience {
                return Err(io::Error::other(error));
            }
            producer.poll(LOOK);
        }
        producer.context().told().is_down = false;
        Ok(Self {
            producer,
            topic: topic.name.clone(),
            held: VecDeque::new(),
            bytes: 0,
            first: 0,
        })
    }

    /// Sorts what was told into the order of the records.
    fn sort(&mut self) {
        for (number, fate) in mem::take(&mut self.producer.context().told().fates) {
            self.held[number - self.first].1 = Some(fate);
        }
    }

    fn failed(&self) -> io::Error {
        let error = self.producer.context().told().error.clone();
        io::Error::other(error.unwrap_or_else(|| "no broker answers".to_owned()))
    }
}

/// Whether somebody knows of the topic, or else why not.
fn find(producer: &BaseProducer<Reports>, topic: &str) -> Result<(), String> {
    let metadata = match producer.client().fetch_metadata(Some(topic), LOOK) {
        Ok(metadata) => metadata,
        Err(error) => {
            producer.poll(MOMENT);
            let told = producer.context().told().error.clone();
            return Err(told.unwrap_or_else(|| error.to_string()));
        }
    };
    let error = metadata.topics().iter().find_map(MetadataTopic::error);
    error.map_or(Ok(()), |it| {
        Err(format!("topic {topic}: {}", RDKafkaErrorCode::from(it)))
    })
}

impl Link for Records {
    fn wants_more(&self) -> bool {
        self.bytes < HELD
    }

    fn take(&mut self, record: &Bytes) -> io::Result<()> {
        let line = record.strip_suffix(b"\n").unwrap_or(record);
        let content_type = Header {
            key: "content-type",
            value: Some("application/json"),
        };
        let number = self.first + self.held.len();
        let mut message = BaseRecord::with_opaque_to(&self.topic, number)
            .payload(line)
            .headers(OwnedHeaders::new().insert(content_type));
        message.key = key(line);
        let fate = match self.producer.send(message) {
            Ok(()) => None,
            Err((error, _)) => match fate(&error) {
                too_large @ Fate::TooLarge => Some(too_large),
                _ => return Err(io::Error::other(error)),
            },
        };
        self.bytes += line.len();
        self.held.push_back((line.len(), fate));
        Ok(())
    }

    fn advance(&mut self) -> (Done, io::Result<()>) {
        let patience = if self.wants_more() { MOMENT } else { PATIENCE };
        self.producer.poll(patience);
        self.sort();
        let mut done = Done::default();
        while let Some((size, Some(fate))) = self.held.front_mut() {
            match fate {
                Fate::Sent => done.sent += 1,
                Fate::TooLarge => done.too_large += 1,
                Fate::Refused(why) => {
                    done.refused += 1;
                    done.why = Some(mem::take(why));
                }
                Fate::Late => return (done, Err(self.failed())),
            }
            self.bytes -= *size;
            self.first += 1;
            self.held.pop_front();
        }
        let is_down = self.producer.context().told().is_down;
        let result = if is_down && !self.held.is_empty() {
            Err(self.failed())
        } else {
            Ok(())
        };
        (done, result)
    }

    fn idle(&self) -> Option<Duration> {
        Some(LOOK)
    }

    fn is_alive(&mut self) -> bool {
        self.producer.poll(Duration::ZERO);
        !self.held.is_empty() || !self.producer.context().told().is_down
    }
}

/// The id of a record's flow, so that what happens to one connection comes in order; a finding that is of
/// no connection has its own. No text in a line has a quote of its own, so these are keys.
fn key(line: &[u8]) -> Option<&[u8]> {
    const NAMES: [&[u8]; 2] = [b"\"tcptrace.flow.id\":\"", b"\"tcptrace.finding.id\":\""];
    NAMES.into_iter().find_map(|name| {
        let at = line.windows(name.len()).position(|it| it == name)?;
        line[at + name.len()..].split(|&it| it == b'"').next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_read_as_they_are_written() {
        for (text, written) in [
            ("one:9092,[2001:db8::1]:9093/tcp.errors", None),
            ("one,two/x", Some("one:9092,two:9092/x")),
        ] {
            let topic = text.parse::<Topic>().map(|it| it.to_string());
            assert_eq!(topic, Ok(written.unwrap_or(text).to_owned()));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_the_remedy() {
        for (text, expected) in [
            ("one:9092", "write kafka=HOST:PORT/TOPIC"),
            ("one:9092/", "write kafka=HOST:PORT/TOPIC"),
            ("one:9092/a/b", "\"a/b\" is not the name of a topic"),
            ("one:9092/..", "\"..\" is not the name of a topic"),
            ("one,/x", "\"\" is not the name or the address of a host"),
            ("one:x/y", "\"x\" is not a port"),
        ] {
            let error = text.parse::<Topic>().expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_record_has_the_key_of_its_flow_or_of_its_finding() {
        for (line, expected) in [
            (
                r#"{"a":{"tcptrace.finding.id":"f","tcptrace.flow.id":"5eed"}}"#,
                Some("5eed"),
            ),
            (r#"{"a":{"tcptrace.finding.id":"f"}}"#, Some("f")),
            (r#"{"body":"\"tcptrace.flow.id\":\"not this\""}"#, None),
            (r#"{"body":"tcptrace.flow.id"}"#, None),
        ] {
            assert_eq!(key(line.as_bytes()), expected.map(str::as_bytes), "{line}");
        }
    }

    #[test]
    fn every_error_of_a_delivery_is_a_fate() {
        let of = |code| fate(&KafkaError::MessageProduction(code));
        assert!(matches!(
            of(RDKafkaErrorCode::MessageSizeTooLarge),
            Fate::TooLarge
        ));
        assert!(matches!(of(RDKafkaErrorCode::MessageTimedOut), Fate::Late));
        let refused = of(RDKafkaErrorCode::TopicAuthorizationFailed);
        assert!(matches!(refused, Fate::Refused(why) if why.contains("authorization")));
    }
}
