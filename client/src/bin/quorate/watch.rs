//! `quorate watch`: the metadata feed, a line (or JSON object) a record.

use clap::Args;
use quorate_client::{ClientError, Event, Freshness, WatchFilter};
use quorate_metadata::ids::TopicId;
use quorate_metadata::{ErrorName, Record};
use quorate_proto::{DecodeError, metadata, record};
use serde::Serialize;

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, json};
use crate::partition::time;
use crate::record_line::{Known, record_line};
use crate::record_view::RecordView;
use crate::session::Session;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Begin at this offset [default: what comes from now on]
    #[arg(long, value_name = "OFFSET", conflicts_with = "snapshot", value_parser = clap::value_parser!(i64).range(0..))]
    from: Option<i64>,
    /// Begin with everything that is true now
    #[arg(long)]
    snapshot: bool,
    /// Only records of this type, such as PartitionChange; may be repeated
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<String>,
    /// Only records of this topic, by name or id, and of the cluster; may be repeated
    #[arg(long = "topic", value_name = "TOPIC", value_delimiter = ',')]
    topics: Vec<String>,
    /// Only what concerns this broker
    #[arg(long, value_name = "ID")]
    broker: Option<i32>,
    /// End after so many records
    #[arg(long, value_name = "N")]
    max: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    offset: i64,
    epoch: i32,
    time_ms: Option<i64>,
    /// Part of a snapshot: true since some earlier time, below this offset.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<bool>,
    record: &'a RecordView,
}

/// Where and when records stand.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: i64,
    epoch: i32,
    time_ms: Option<i64>,
}

pub async fn run(session: &Session, arguments: Arguments) -> Outcome {
    // A topic that was created before the command must be found, also by a node that lags behind.
    let freshness = if arguments.topics.is_empty() { Freshness::Stale } else { Freshness::Linearizable };
    let known = names(session, freshness).await?;
    let topics = arguments.topics.iter().map(|name| id_of(name, &known)).collect::<Outcome<_>>()?;
    let mut printer = Printer { format: session.format, known, left: arguments.max };
    let from = match (arguments.from, arguments.snapshot) {
        (_, true) => None,
        (Some(offset), false) => Some(offset),
        (None, false) => Some(session.client.describe_quorum(Freshness::Stale).await?.metadata_offset),
    };
    let filter = WatchFilter { from, broker: arguments.broker, kinds: arguments.kinds, topics };
    let mut watch = session.client.watch(filter);
    while printer.left != Some(0) {
        match watch.next().await? {
            Event::Snapshot(part) => {
                let place = Place { offset: part.next_offset, epoch: part.controller_epoch, time_ms: None };
                for record in part.records {
                    printer.print(place, record)?;
                }
            }
            Event::Records(records) => {
                for committed in records.records {
                    let place = Place {
                        offset: committed.offset,
                        epoch: records.controller_epoch,
                        time_ms: Some(records.time_ms),
                    };
                    printer.print(place, committed.record.unwrap_or_default())?;
                }
            }
            Event::Bookmark(_) => {}
        }
    }
    Ok(())
}

/// What the topics are called that were there before.
async fn names(session: &Session, freshness: Freshness) -> Outcome<Known> {
    let mut known = Known::default();
    for topic in session.client.list_topics(freshness).await?.topics {
        if let Ok(id) = topic.id.parse() {
            known.names.insert(id, topic.name);
        }
    }
    Ok(known)
}

/// Of a topic by its name or, also when it is removed, its id.
fn id_of(topic: &str, known: &Known) -> Outcome<String> {
    let named = known.names.iter().find_map(|(id, name)| (name == topic).then_some(*id));
    let id = named.or_else(|| topic.parse::<TopicId>().ok());
    let unknown = || ClientError::failed(ErrorName::UnknownTopicOrPartition, format!("there is no topic {topic:?}"));
    Ok(id.ok_or_else(unknown)?.to_string())
}

struct Printer {
    format: Format,
    known: Known,
    left: Option<u64>,
}

impl Printer {
    fn print(&mut self, place: Place, wire: metadata::Record) -> Outcome {
        if self.left == Some(0) {
            return Ok(());
        }
        let record = match record::from_wire(wire) {
            Ok(record) => Some(record),
            Err(DecodeError::UnknownRecord) => None,
            Err(error) => return Err(Failure::local(format!("the record at offset {}", place.offset), error)),
        };
        if let Some(record) = &record {
            self.known.learn(record);
        }
        output::line(&self.line(place, record.as_ref()))?;
        if let Some(record) = &record {
            self.known.forget(record);
        }
        self.left = self.left.map(|left| left - 1);
        Ok(())
    }

    fn line(&self, place: Place, record: Option<&Record>) -> String {
        let view = || record.map_or(RecordView::Unknown, |record| RecordView::new(record, &self.known.names));
        let Place { offset, epoch, time_ms } = place;
        let snapshot = if time_ms.is_none() { Some(true) } else { None };
        match self.format {
            Format::Json => json(&Line { offset, epoch, time_ms, snapshot, record: &view() }),
            Format::Yaml => format!("- {}", json(&Line { offset, epoch, time_ms, snapshot, record: &view() })),
            Format::Table => {
                let when = time_ms.map_or_else(|| "snapshot".to_owned(), time);
                let what = record.map_or_else(
                    || "a record of a newer version".to_owned(),
                    |record| record_line(record, &self.known),
                );
                format!("{when} {offset:>8} {what}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::ids::{BrokerEpoch, BrokerId};

    use super::*;

    fn printer(format: Format) -> Printer {
        Printer { format, known: Known::default(), left: None }
    }

    const FENCED: Record = Record::FenceBroker { broker: BrokerId::new(3), epoch: BrokerEpoch::new(12) };
    const PLACE: Place = Place { offset: 40, epoch: 2, time_ms: Some(1_700_000_000_000) };

    #[test]
    fn a_topic_has_a_name_or_an_id_and_an_unknown_one_is_refused() {
        let mut known = Known::default();
        let id = TopicId::new(uuid::Uuid::from_u128(7));
        known.names.insert(id, "orders".to_owned());
        assert_eq!(id_of("orders", &known).expect("it is known"), id.to_string());
        let removed = TopicId::new(uuid::Uuid::from_u128(8)).to_string();
        assert_eq!(id_of(&removed, &known).expect("it is an id"), removed);
        let refused = id_of("order", &known).expect_err("it is not there");
        assert_eq!(refused.to_string(), "UNKNOWN_TOPIC_OR_PARTITION: there is no topic \"order\"");
    }

    #[test]
    fn a_record_is_one_json_line() {
        assert_eq!(
            printer(Format::Json).line(PLACE, Some(&FENCED)),
            r#"{"offset":40,"epoch":2,"time_ms":1700000000000,"record":{"type":"FenceBroker","broker":3,"epoch":12}}"#
        );
    }

    #[test]
    fn a_record_of_a_newer_version_is_shown_as_such() {
        assert_eq!(
            printer(Format::Json).line(Place { time_ms: None, ..PLACE }, None),
            r#"{"offset":40,"epoch":2,"time_ms":null,"snapshot":true,"record":{"type":"Unknown"}}"#
        );
    }

    #[test]
    fn people_read_a_line() {
        assert_eq!(
            printer(Format::Table).line(PLACE, Some(&FENCED)),
            "2023-11-14T22:13:20.000Z       40 broker 3 fenced (epoch 12)"
        );
    }
}
