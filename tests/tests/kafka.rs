//! `--export kafka=`: a broker in a process of its own gets every record with its key; whatever fails, what
//! was sent and what was lost is all there was.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tcptrace_tests::accounts::{Account, account};
use tcptrace_tests::kafka::{Broker, Came};
use tcptrace_tests::log_servers::ensure_same;
use tcptrace_tests::*;

/// How long the exports may take at the end, and the tracer for everything else.
const END: Duration = Duration::from_secs(5 + 10);

fn start() -> Result<Broker> {
    Broker::start(env!("CARGO_BIN_EXE_broker"))
}

/// Is refused this many times: three events each at least, and a finding.
fn provoke(times: usize) -> Result<()> {
    let mut client = actor("client")?;
    client.call("be_refused", &[1.into(), times.into()])?;
    Ok(())
}

fn id(record: &Record) -> Result<String> {
    let id = record.text("tcptrace.event.id");
    Ok(id.context("a record without an id")?.to_owned())
}

/// The ids of the events on the stream that the export was to have as well.
fn wanted(trace: &Trace) -> Result<Vec<String>> {
    let events = Events::from_trace(trace)?;
    let records = events.0.iter().filter(|it| it.name() != "export.dropped");
    records.map(id).collect()
}

fn came(messages: &[Came]) -> Result<Vec<String>> {
    messages.iter().map(|it| id(&it.record)).collect()
}

#[test]
fn every_record_comes_once_with_the_key_of_its_flow() {
    in_netns(|netns| {
        let broker = start()?;
        let tracer = trace(netns, &["--export", Broker::EXPORT])?;
        provoke(200)?;
        let trace = tracer.stop()?;
        let wanted = wanted(&trace)?;
        let all = wanted.len() as u64;
        ensure!(all >= 600, "the provocation itself: {all}");
        let messages = broker.messages(all)?;
        ensure_same(&wanted, &came(&messages)?)?;
        let expected = Account {
            produced: all,
            sent: all,
            lost: 0,
        };
        let said = account(&trace, Broker::EXPORT)?;
        ensure!(said == expected, "{said:?}, not {expected:?}");
        let mut partitions: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for Came {
            key,
            partition,
            record,
        } in &messages
        {
            let flow = record.text("tcptrace.flow.id");
            let of_record = flow.or(record.text("tcptrace.finding.id"));
            ensure!(key.as_deref() == of_record, "{key:?} of {record:?}");
            if let Some(key) = key {
                partitions.entry(key).or_default().insert(partition);
            }
        }
        ensure!(partitions.len() >= 200, "{} keys", partitions.len());
        ensure!(
            partitions.values().all(|it| it.len() == 1),
            "{partitions:?}"
        );
        Ok(())
    });
}

/// The ids of the refusals that a broker has, once there are so many.
fn refusals(broker: &Broker, count: usize) -> Result<BTreeSet<String>> {
    let begun = Instant::now();
    loop {
        let messages = broker.messages(0)?;
        let refused = messages.iter().map(|it| &it.record);
        let refused = refused.filter(|it| it.name() == "connect.failed");
        let ids: BTreeSet<_> = refused.map(id).collect::<Result<_>>()?;
        if ids.len() >= count {
            return Ok(ids);
        }
        ensure!(begun.elapsed() < END, "{} of {count} came", ids.len());
    }
}

#[test]
fn a_broker_that_is_killed_and_comes_back_misses_nothing() {
    in_netns(|netns| {
        let broker = start()?;
        let tracer = trace(netns, &["--port", "1", "--export", Broker::EXPORT])?;
        provoke(50)?;
        let mut came = refusals(&broker, 50)?;
        drop(broker);
        provoke(50)?;
        let broker = start()?;
        provoke(50)?;
        let trace = tracer.stop()?;
        let said = account(&trace, Broker::EXPORT)?;
        ensure!(said.lost == 0 && said.sent >= 450, "{said:?}");
        // What was underway when it was killed may have come to both.
        came.append(&mut refusals(&broker, 100)?);
        let events = Events::from_trace(&trace)?.named("connect.failed");
        let wanted: BTreeSet<_> = events.0.iter().map(id).collect::<Result<_>>()?;
        ensure!(
            wanted.len() == 150,
            "the provocation itself: {}",
            wanted.len()
        );
        ensure!(came == wanted, "{came:?}, not {wanted:?}");
        Ok(())
    });
}

/// Where nobody listens, where somebody takes all and says nothing, and where there is no such host.
#[test]
fn brokers_that_are_not_there_hold_up_nobody_and_what_they_miss_is_counted() {
    in_netns(|netns| {
        let silent = TcpListener::bind("127.0.0.1:0")?;
        let silent = format!("kafka={}/x", silent.local_addr()?);
        for (export, why) in [
            ("kafka=127.0.0.1:9/x", "Connection refused"),
            // It may still be about to say so.
            (&*silent, ""),
            ("kafka=no-such-host.invalid:9092/x", "Failed to resolve"),
        ] {
            let tracer = trace(netns, &["--port", "1", "--export", export])?;
            provoke(25)?;
            let asked = Instant::now();
            let trace = tracer.stop()?;
            ensure!(asked.elapsed() < END, "it took {:?}", asked.elapsed());
            let wanted = wanted(&trace)?.len() as u64;
            let expected = Account {
                produced: wanted,
                sent: 0,
                lost: wanted,
            };
            let said = account(&trace, export)?;
            ensure!(wanted >= 75 && said == expected, "{export}: {said:?}");
            let events = Events::from_trace(&trace)?;
            let dropped = events.named("export.dropped");
            let dropped = dropped.one()?;
            ensure!(dropped.number("tcptrace.lost.count") == Some(said.lost));
            ensure!(dropped.text("tcptrace.lost.reason") == Some("undelivered"));
            let error = dropped.text("tcptrace.export.error").unwrap_or_default();
            ensure!(error.contains(why), "{export}: {error}");
        }
        Ok(())
    });
}

#[test]
fn a_broker_that_falls_silent_holds_up_neither_the_trace_nor_the_end() {
    in_netns(|netns| {
        let broker = start()?;
        let tracer = trace(netns, &["--export", Broker::EXPORT])?;
        provoke(25)?;
        let before = broker.messages(75)?.len() as u64;
        broker.stop_answering()?;
        provoke(2_000)?;
        let asked = Instant::now();
        let trace = tracer.stop()?;
        ensure!(asked.elapsed() < END, "it took {:?}", asked.elapsed());
        let refused = Events::from_trace(&trace)?.named("connect.failed").count();
        ensure!(refused == 2_025, "the stream itself: {refused}");
        let said = account(&trace, Broker::EXPORT)?;
        ensure!(
            said.sent >= before && said.lost >= 6_000 - before,
            "{said:?}"
        );
        broker.go_on()?;
        // What was underway comes after it was counted as lost.
        let all = broker.messages(said.sent)?;
        ensure!(
            all.len() as u64 <= said.produced,
            "{} of {said:?}",
            all.len()
        );
        Ok(())
    });
}

/// librdkafka's threads are as confined as the one that started them.
#[test]
fn no_thread_of_it_can_do_more_than_deliver() {
    in_netns(|netns| {
        let broker = start()?;
        let tracer = trace(netns, &["--export", Broker::EXPORT])?;
        provoke(1)?;
        broker.messages(3)?;
        let mut names = BTreeSet::new();
        for thread in threads(tracer.pid())? {
            ensure!(thread["Seccomp"] == "2", "{thread:?}");
            if thread["Name"].starts_with("rdk:") {
                ensure!(thread["CapPrm"] == "0000000000000000", "{thread:?}");
                names.insert(thread["Name"].clone());
            }
        }
        ensure!(names.len() >= 2, "{names:?}");
        tracer.stop()?;
        Ok(())
    });
}

/// A record is told apart from the next by the broker: a message is one object.
#[test]
fn a_message_is_what_a_line_of_json_is() {
    in_netns(|netns| {
        let broker = start()?;
        let tracer = trace(netns, &["--export", Broker::EXPORT])?;
        provoke(1)?;
        let trace = tracer.stop()?;
        let lines = trace.stdout.iter().map(|it| serde_json::from_str(it));
        let mut lines = lines.collect::<Result<Vec<Value>, _>>()?;
        let messages = broker.messages(lines.len() as u64)?;
        let mut came: Vec<_> = messages.into_iter().map(|it| it.record.0).collect();
        for records in [&mut lines, &mut came] {
            records.sort_by_key(|it| it["attributes"]["tcptrace.event.id"].to_string());
        }
        ensure!(came == lines, "{came:?}, not {lines:?}");
        Ok(())
    });
}
