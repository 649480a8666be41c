//! A broker of Kafka in a process of its own, and what came to it.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::log_servers::wait_for_port;
use crate::program::Program;
use crate::{Record, SOON, wait_for_process_state};

const TOPIC: &str = "tcptrace.events";
const PARTITIONS: i32 = 3;

/// A broker, and socat before it: a broker takes another port each time it starts.
#[derive(Debug)]
pub struct Broker {
    program: Program,
    /// Dropped, it ends.
    _front: Program,
    own_address: String,
}

impl Broker {
    /// What reaches it.
    pub const EXPORT: &str = "kafka=127.0.0.1:9092/tcptrace.events";

    /// Starts the program of this package that is one.
    ///
    /// # Errors
    /// When it cannot be started or does not serve.
    pub fn start(program: &str) -> Result<Self> {
        let mut command = Command::new(program);
        command.args([TOPIC, &PARTITIONS.to_string()]);
        let program = Program::start(command)?;
        let (_, own_address) = program.line(0, |_| true)?;
        let mut command = Command::new("socat");
        command
            .arg("TCP-LISTEN:9092,bind=127.0.0.1,reuseaddr,fork")
            .arg(format!("TCP:{own_address}"));
        let front = Program::start(command)?;
        wait_for_port(9092)?;
        Ok(Self {
            program,
            _front: front,
            own_address,
        })
    }

    fn consumer(&self) -> Result<BaseConsumer> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.own_address);
        config.set("group.id", "test");
        Ok(config.create()?)
    }

    /// Stops it, until it is to go on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn stop_answering(&self) -> Result<()> {
        self.program.signal(Signal::SIGSTOP)?;
        wait_for_process_state(self.program.pid(), 'T')
    }

    /// Lets it answer again.
    ///
    /// # Errors
    /// When it has ended.
    pub fn go_on(&self) -> Result<()> {
        self.program.signal(Signal::SIGCONT)
    }

    /// How many messages it has.
    ///
    /// # Errors
    /// When it does not say.
    pub fn count(&self) -> Result<u64> {
        let consumer = self.consumer()?;
        let ends = (0..PARTITIONS).map(|it| {
            let (_, end) = consumer.fetch_watermarks(TOPIC, it, SOON)?;
            Ok(u64::try_from(end)?)
        });
        ends.sum()
    }

    /// All it has: this many, or as many more as there are once they have come.
    ///
    /// # Errors
    /// When they do not in time, or one is not as it should be.
    pub fn messages(&self, count: u64) -> Result<Vec<Came>> {
        let begun = Instant::now();
        while self.count()? < count {
            ensure!(begun.elapsed() < SOON, "{} of {count} came", self.count()?);
        }
        let all = self.count()?;
        let mut assigned = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            assigned.add_partition_offset(TOPIC, partition, Offset::Beginning)?;
        }
        let consumer = self.consumer()?;
        consumer.assign(&assigned)?;
        let mut messages = vec![];
        while (messages.len() as u64) < all {
            let message = consumer.poll(SOON).context("the broker falls silent")??;
            let key = message.key().map(|it| String::from_utf8_lossy(it).into());
            let headers = message.headers().context("no headers")?;
            let content_type = headers.get_as::<str>(0)?;
            ensure!(content_type.key == "content-type" && headers.count() == 1);
            ensure!(content_type.value == Some("application/json"));
            messages.push(Came {
                key,
                partition: message.partition(),
                record: Record(serde_json::from_slice(
                    message.payload().context("no payload")?,
                )?),
            });
        }
        Ok(messages)
    }
}

/// A message that came.
#[derive(Debug)]
pub struct Came {
    /// Its key.
    pub key: Option<String>,
    /// Where it is.
    pub partition: i32,
    /// What is in it.
    pub record: Record,
}
