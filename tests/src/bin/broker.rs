//! A broker of Kafka until its stdin ends: librdkafka's own, which keeps records in memory. Prints its
//! address once it serves. Takes the name of a topic and how many partitions it has.

use std::env;
use std::io::{self, Read as _};

use anyhow::{Context as _, Result};
use rdkafka::mocking::MockCluster;

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let topic = arguments.next().context("broker TOPIC PARTITIONS")?;
    let partitions = arguments.next().context("broker TOPIC PARTITIONS")?;
    let cluster = MockCluster::new(1)?;
    cluster.create_topic(&topic, partitions.parse()?, 1)?;
    println!("{}", cluster.bootstrap_servers());
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
