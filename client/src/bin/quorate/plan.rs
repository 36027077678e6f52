//! `--plan`: what would be written.

use quorate_client::Freshness;
use quorate_metadata::Record;
use quorate_metadata::ids::{PartitionId, TopicPartition};
use quorate_proto::admin::{MutationResult, TopicRef};
use quorate_proto::record;
use serde::Serialize;

use crate::failure::{Failure, Outcome};
use crate::record_line::{Known, record_line};
use crate::record_view::RecordView;
use crate::session::Session;

#[derive(Debug, Serialize)]
struct Planned {
    records: Vec<RecordView>,
}

/// Shows the records of planned mutations, which stand in the order in which they would be carried out.
pub async fn show(session: &Session, results: impl IntoIterator<Item = Option<MutationResult>>) -> Outcome {
    let planned = results.into_iter().flatten().flat_map(|result| result.planned);
    let records: Vec<Record> = planned
        .map(record::from_wire)
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::local("the plan cannot be read", error))?;
    let known = around(session, &records).await?;
    let views = Planned { records: records.iter().map(|record| RecordView::new(record, &known.names)).collect() };
    session.show(&views, |_| lines(&records, &known))
}

fn lines(records: &[Record], known: &Known) -> String {
    if records.is_empty() {
        return "nothing would change".to_owned();
    }
    let lines: Vec<String> = records.iter().map(|record| record_line(record, known)).collect();
    lines.join("\n")
}

/// The topics that the records speak of, as they are now.
async fn around(session: &Session, records: &[Record]) -> Outcome<Known> {
    let mut known = Known::default();
    let mut asked: Vec<String> = Vec::new();
    for record in records {
        known.learn(record);
        let topic = match record {
            Record::RemoveTopic { topic } => *topic,
            Record::CreatePartition(partition) => partition.id.topic,
            Record::PartitionChange(change) => change.id.topic,
            _ => continue,
        };
        if !known.names.contains_key(&topic) {
            asked.push(topic.to_string());
        }
    }
    asked.sort();
    asked.dedup();
    if asked.is_empty() {
        return Ok(known);
    }
    let topics = asked.into_iter().map(|id| TopicRef { name: None, id: Some(id) }).collect();
    for topic in session.client.describe_topics(topics, Freshness::Linearizable).await?.topics {
        // A topic that went away in between is shown by its id.
        let Ok(id) = topic.id.parse() else { continue };
        known.names.insert(id, topic.name);
        for partition in topic.partitions {
            known.before.insert(TopicPartition::new(id, PartitionId::new(partition.partition)), partition);
        }
    }
    Ok(known)
}
