//! `quorate consume`: the records of a topic, a line (or JSON object) a record.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use clap::Args;
use quorate_client::log::{ConsumedRecord, Consumer, ConsumerOptions, Partition, Reset, Skipped, Start};
use quorate_client::{ClientError, spec};
use serde::Serialize;
use tokio::time::Instant;

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, json};
use crate::session::Session;
use crate::topic;

/// Between two looks at whether it goes on at all.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub struct Arguments {
    #[arg(value_name = "TOPIC")]
    topic: String,
    /// Only these partitions [default: all]
    #[arg(short, long = "partition", value_name = "P", value_delimiter = ',', value_parser = clap::value_parser!(i32).range(0..))]
    partitions: Vec<i32>,
    /// Begin here: an offset, beginning, end, or a time in milliseconds since 1970. From the beginning, it goes on where
    /// the log begins when retention removes records before they are read, and says so
    #[arg(long, value_name = "OFFSET|beginning|end|@TIMESTAMP_MS", default_value = "beginning", value_parser = spec::start)]
    from: Start,
    /// Go on with the records to come, rather than end where the log ended at the start
    #[arg(long)]
    follow: bool,
    /// End after so many records
    #[arg(long, value_name = "N")]
    max_records: Option<usize>,
    /// The key and a tab before each value
    #[arg(long)]
    print_key: bool,
    /// Read from followers where there are any
    #[arg(long)]
    from_follower: bool,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    partition: i32,
    offset: i64,
    leader_epoch: i32,
    timestamp_ms: i64,
    key: Option<Cow<'a, str>>,
    value: Option<Cow<'a, str>>,
}

pub async fn run(session: &Session, arguments: Arguments) -> Outcome {
    tokio::select! {
        outcome = consume(session, arguments) => outcome,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(|error| Failure::local("cannot wait for Ctrl-C", error)),
    }
}

async fn consume(session: &Session, arguments: Arguments) -> Outcome {
    // Who wants all that there is goes on where the log begins, should that move meanwhile.
    let reset = if arguments.from == Start::Beginning { Reset::Earliest } else { Reset::None };
    let options = ConsumerOptions { from_follower: arguments.from_follower, reset, ..ConsumerOptions::default() };
    let mut consumer = Consumer::new(session.client.clone(), options);
    let partitions = partitions(session, &arguments).await?;
    for partition in &partitions {
        consumer.assign(&arguments.topic, *partition, arguments.from);
    }
    let ends = || Ends(partitions.iter().map(|partition| (*partition, None)).collect());
    let mut ends = (!arguments.follow).then(ends);
    let mut left = arguments.max_records.unwrap_or(usize::MAX);
    let mut well_at = Instant::now();
    while left > 0 && !ends.as_ref().is_some_and(|ends| ends.are_reached(&consumer.positions())) {
        let polled = consumer.poll(LOOK_EVERY).await;
        for Skipped { partition, offsets: Range { start, end } } in consumer.take_skipped() {
            eprintln!("{partition}: skipped offsets {start} to {}, which were deleted before they were read", end - 1);
        }
        let mut records = polled?;
        if let Some(ends) = &mut ends {
            ends.learn(&consumer.high_watermarks());
            records.retain(|record| ends.is_before(record));
        }
        records.truncate(left);
        left -= records.len();
        if !records.is_empty() {
            output::write(&lines(session.format, arguments.print_key, &records))?;
        }
        match consumer.troubles().into_iter().next() {
            None => well_at = Instant::now(),
            Some((partition, error)) if well_at.elapsed() >= session.options.timeout => {
                let message = format!("{partition}: {} (tried for {:?})", error.message, session.options.timeout);
                return Err(ClientError::failed(error.name, message).into());
            }
            Some(_) => {}
        }
    }
    Ok(())
}

async fn partitions(session: &Session, arguments: &Arguments) -> Outcome<Vec<i32>> {
    if !arguments.partitions.is_empty() {
        return Ok(arguments.partitions.clone());
    }
    let (topic, _) = topic::find(session, arguments.topic.clone()).await?;
    Ok(topic.partitions.iter().map(|partition| partition.partition).collect())
}

/// Where each partition ended when it was first heard of; `None` where nothing was heard yet.
#[derive(Debug)]
struct Ends(BTreeMap<i32, Option<i64>>);

impl Ends {
    fn learn(&mut self, high_watermarks: &BTreeMap<Partition, i64>) {
        for (partition, high_watermark) in high_watermarks {
            if let Some(end) = self.0.get_mut(&partition.partition) {
                end.get_or_insert(*high_watermark);
            }
        }
    }

    fn is_before(&self, record: &ConsumedRecord) -> bool {
        self.0.get(&record.partition).copied().flatten().is_none_or(|end| record.offset < end)
    }

    fn are_reached(&self, positions: &BTreeMap<Partition, i64>) -> bool {
        let reached = |partition: &i32, end: i64| {
            positions.iter().any(|(known, position)| known.partition == *partition && *position >= end)
        };
        self.0.iter().all(|(partition, end)| end.is_some_and(|end| reached(partition, end)))
    }
}

/// In one go: a line at a time would be slow.
fn lines(format: Format, print_key: bool, records: &[ConsumedRecord]) -> Vec<u8> {
    let mut lines = Vec::new();
    for record in records {
        match format {
            Format::Table => {
                if print_key {
                    lines.extend_from_slice(record.key.as_deref().unwrap_or_default());
                    lines.push(b'\t');
                }
                lines.extend_from_slice(record.value.as_deref().unwrap_or_default());
            }
            Format::Json => lines.extend(object(record).into_bytes()),
            Format::Yaml => lines.extend(format!("- {}", object(record)).into_bytes()),
        }
        lines.push(b'\n');
    }
    lines
}

fn object(record: &ConsumedRecord) -> String {
    json(&Line {
        partition: record.partition,
        offset: record.offset,
        leader_epoch: record.leader_epoch,
        timestamp_ms: record.timestamp_ms,
        key: record.key.as_deref().map(String::from_utf8_lossy),
        value: record.value.as_deref().map(String::from_utf8_lossy),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(partition: i32, offset: i64, value: Option<&'static [u8]>) -> ConsumedRecord {
        ConsumedRecord {
            topic: "orders".into(),
            partition,
            offset,
            leader_epoch: 3,
            timestamp_ms: 1_700_000_000_000,
            key: Some("k".into()),
            value: value.map(Into::into),
            headers: Vec::new(),
        }
    }

    fn text(format: Format, print_key: bool, value: Option<&'static [u8]>) -> String {
        String::from_utf8_lossy(&lines(format, print_key, &[record(0, 7, value)])).into_owned()
    }

    fn at(partition: i32, offset: i64) -> BTreeMap<Partition, i64> {
        BTreeMap::from([(Partition { topic: "orders".into(), partition }, offset)])
    }

    #[test]
    fn people_read_the_value_and_the_key_where_they_want_it() {
        assert_eq!(text(Format::Table, false, Some(b"v")), "v\n");
        assert_eq!(text(Format::Table, true, Some(b"v")), "k\tv\n");
        assert_eq!(lines(Format::Table, false, &[record(0, 7, Some(b"\xff"))]), b"\xff\n", "byte for byte");
    }

    #[test]
    fn programs_read_an_object_a_line() {
        let place = r#"{"partition":0,"offset":7,"leader_epoch":3,"timestamp_ms":1700000000000"#;
        let object = format!("{place},\"key\":\"k\",\"value\":\"v\u{fffd}\"}}\n");
        assert_eq!(text(Format::Json, false, Some(b"v\xff")), object);
        assert!(text(Format::Json, false, None).ends_with("\"value\":null}\n"), "a tombstone");
    }

    #[test]
    fn reading_ends_where_the_log_ended_when_it_was_first_heard_of() {
        let mut ends = Ends(BTreeMap::from([(0, None), (1, None)]));
        ends.learn(&at(0, 5));
        ends.learn(&at(0, 9));
        let positions: BTreeMap<_, _> = at(0, 6).into_iter().chain(at(1, 2)).collect();
        assert!(!ends.are_reached(&positions), "nothing was heard of partition 1");
        ends.learn(&at(1, 2));
        assert!(ends.are_reached(&positions));
        assert!(!ends.are_reached(&at(0, 6)), "partition 1 is not read yet");
        assert!(ends.is_before(&record(0, 4, None)) && !ends.is_before(&record(0, 5, None)));
    }
}
