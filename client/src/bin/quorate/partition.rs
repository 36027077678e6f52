//! `quorate partition …`

use clap::{ArgGroup, Args, Subcommand};
use quorate_client::Freshness;
use quorate_client::spec::{TopicPartition, topic_partition};
use quorate_metadata::ErrorName;
use quorate_proto::admin::{self, ElectedPartition, ElectionKind, ListPartitionsRequest, PartitionChangeNote};
use serde::Serialize;

use crate::args::Planning;
use crate::failure::{Failure, Outcome};
use crate::output::{cell, judged, list, note, optional, table};
use crate::plan;
use crate::reasons::{BrokerStates, reasons};
use crate::reassign::{self, Reassign};
use crate::session::Session;
use crate::view;

#[derive(Debug, Subcommand)]
pub enum Partition {
    /// Find partitions, those in trouble above all
    List(Filter),
    /// Why a partition is as it is
    Explain {
        #[arg(value_name = "TOPIC-PARTITION", value_parser = topic_partition)]
        partition: TopicPartition,
    },
    /// Elect leaders
    Elect(Elect),
    /// Move replicas to other brokers
    Reassign(Reassign),
    /// Move a replica to another log directory of its broker, where it starts afresh
    Move(Move),
}

#[derive(Debug, Args)]
pub struct Move {
    #[arg(value_name = "TOPIC-PARTITION", value_parser = topic_partition)]
    partition: TopicPartition,
    #[arg(long, value_name = "ID")]
    broker: i32,
    /// As `quorate broker describe` names it
    #[arg(long, value_name = "DIRECTORY", allow_hyphen_values = true)]
    to: String,
    #[command(flatten)]
    planning: Planning,
}

#[derive(Debug, Args)]
pub struct Filter {
    /// Those without a leader
    #[arg(long)]
    leaderless: bool,
    /// Those with replicas out of sync
    #[arg(long)]
    under_replicated: bool,
    /// Those with fewer replicas in sync than min.insync.replicas
    #[arg(long)]
    under_min_isr: bool,
    /// Those of this topic
    #[arg(long)]
    topic: Option<String>,
    /// Those with a replica on this broker
    #[arg(long, value_name = "ID")]
    broker: Option<i32>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["partitions", "all"]))]
pub struct Elect {
    /// Return the lead to the preferred replicas (the default)
    #[arg(long, conflicts_with = "unclean")]
    preferred: bool,
    /// Let a replica lead that may lack records
    #[arg(long, requires = "accept_loss")]
    unclean: bool,
    /// Accept that an unclean election loses records
    #[arg(long, requires = "unclean")]
    accept_loss: bool,
    #[arg(value_name = "TOPIC-PARTITION", value_parser = topic_partition)]
    partitions: Vec<TopicPartition>,
    /// Every partition
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    planning: Planning,
}

pub async fn run(session: &Session, command: Partition) -> Outcome {
    match command {
        Partition::List(filter) => list_some(session, filter).await,
        Partition::Explain { partition } => explain(session, partition).await,
        Partition::Elect(arguments) => elect(session, arguments).await,
        Partition::Reassign(arguments) => reassign::run(session, arguments).await,
        Partition::Move(arguments) => move_replica(session, arguments).await,
    }
}

async fn list_some(session: &Session, filter: Filter) -> Outcome {
    let request = ListPartitionsRequest {
        leaderless: filter.leaderless,
        under_replicated: filter.under_replicated,
        under_min_isr: filter.under_min_isr,
        topic: filter.topic,
        broker: filter.broker,
        ..ListPartitionsRequest::default()
    };
    let partitions = session.client.list_partitions(request, Freshness::Linearizable).await?.partitions;
    let partitions: Vec<view::Partition> = partitions.into_iter().map(view::Partition::from).collect();
    session.show(&partitions, |partitions| partitions_table(partitions))
}

pub fn partitions_table(partitions: &[view::Partition]) -> String {
    let header = ["partition", "leader", "epoch", "replicas", "isr", "elr", "cause"];
    let rows = partitions.iter().map(|partition| {
        let in_sync = partition.isr.len() == partition.replicas.len();
        let leader = partition.leader.map_or_else(|| judged("none", false), cell);
        let isr = if in_sync { cell(list(&partition.isr)) } else { judged(list(&partition.isr), false) };
        [
            cell(format!("{}-{}", partition.topic, partition.partition)),
            leader,
            cell(format!("{}/{}", partition.leader_epoch, partition.partition_epoch)),
            cell(list(&partition.replicas)),
            isr,
            cell(list(&partition.elr)),
            cell(&partition.cause),
        ]
    });
    table(header, rows)
}

#[derive(Debug, Serialize)]
struct Explanation {
    #[serde(flatten)]
    state: view::Partition,
    healthy: bool,
    reasons: Vec<String>,
    /// Its last changes, oldest first.
    history: Vec<Change>,
}

#[derive(Debug, Serialize)]
struct Change {
    offset: i64,
    time_ms: i64,
    time: String,
    cause: String,
    leader: Option<i32>,
    leader_epoch: i32,
    unclean: bool,
}

impl From<PartitionChangeNote> for Change {
    fn from(note: PartitionChangeNote) -> Self {
        Self {
            offset: note.offset,
            time_ms: note.time_ms,
            time: time(note.time_ms),
            cause: note.cause,
            leader: note.leader,
            leader_epoch: note.leader_epoch,
            unclean: note.unclean,
        }
    }
}

/// As people write it, in UTC.
pub fn time(time_ms: i64) -> String {
    let since_epoch = std::time::Duration::from_millis(u64::try_from(time_ms).unwrap_or(0));
    humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + since_epoch).to_string()
}

async fn explain(session: &Session, wanted: TopicPartition) -> Outcome {
    let (topic, _) = crate::topic::find(session, wanted.topic.clone()).await?;
    let count = topic.partitions.len();
    let Some(partition) = topic.partitions.into_iter().find(|partition| partition.partition == wanted.partition) else {
        let message = format!("topic {} has {count} partitions, and no number {}", wanted.topic, wanted.partition);
        return Err(quorate_client::ClientError::failed(ErrorName::UnknownTopicOrPartition, message).into());
    };
    let brokers = session.client.list_brokers(Freshness::Linearizable).await?.brokers;
    let brokers: BrokerStates = brokers.into_iter().map(|broker| (broker.id, broker.state)).collect();
    let history = partition.history.iter().cloned().map(Change::from).collect();
    let state = view::Partition::from(partition);
    let reasons = reasons(&state, &brokers);
    let explanation = Explanation { healthy: reasons.is_empty(), reasons, history, state };
    session.show(&explanation, explanation_text)
}

fn explanation_text(explanation: &Explanation) -> String {
    let state = &explanation.state;
    let mut text = partitions_table(std::slice::from_ref(state));
    text.push_str("\n\nwhy:\n");
    if explanation.healthy {
        text.push_str("  nothing is wrong: every replica is in sync, and the preferred one leads\n");
    }
    for reason in &explanation.reasons {
        text.push_str(&format!("  {reason}\n"));
    }
    text.push_str("\nits last changes:\n");
    let rows = explanation.history.iter().map(|change| {
        let cause = if change.unclean { format!("{} (unclean)", change.cause) } else { change.cause.clone() };
        let leader = change.leader.map_or_else(|| "none".to_owned(), |leader| optional(Some(leader)));
        [cell(&change.time), cell(change.offset), cell(cause), cell(leader), cell(change.leader_epoch)]
    });
    text + &table(["time", "offset", "cause", "leader", "leader epoch"], rows)
}

#[derive(Debug, Serialize)]
struct Elected {
    offset: i64,
    partitions: Vec<ElectionResult>,
}

#[derive(Debug, Serialize)]
struct ElectionResult {
    topic: String,
    partition: i32,
    /// "elected", "not-needed" or "refused".
    result: &'static str,
    error: Option<String>,
    message: Option<String>,
}

impl From<ElectedPartition> for ElectionResult {
    fn from(elected: ElectedPartition) -> Self {
        let partition = elected.partition.unwrap_or_default();
        let result = match &elected.error {
            None => "elected",
            Some(error) if error.name == ErrorName::ElectionNotNeeded.as_str() => "not-needed",
            Some(_) => "refused",
        };
        let (error, message) = elected.error.map(|error| (error.name, error.message)).unzip();
        Self { topic: partition.topic, partition: partition.partition, result, error, message }
    }
}

async fn elect(session: &Session, arguments: Elect) -> Outcome {
    let kind = if arguments.unclean { ElectionKind::Unclean } else { ElectionKind::Preferred };
    let named = arguments
        .partitions
        .into_iter()
        .map(|partition| admin::TopicPartition { topic: partition.topic, partition: partition.partition });
    let partitions = if arguments.all { None } else { Some(named.collect()) };
    let reply = session.client.elect_leaders(kind, partitions, arguments.planning.mode()).await?;
    let offset = reply.result.as_ref().map_or(0, |result| result.offset);
    let results: Vec<ElectionResult> = reply.partitions.into_iter().map(ElectionResult::from).collect();
    let refused = results.iter().filter(|result| result.result == "refused").count();
    if arguments.planning.plan {
        plan::show(session, [reply.result]).await?;
        refusals(&results);
    } else {
        session.show(&Elected { offset, partitions: results }, elected_text)?;
    }
    if refused > 0 { Err(Failure::Told) } else { Ok(()) }
}

#[derive(Debug, Serialize)]
struct Moved {
    topic: String,
    partition: i32,
    broker: i32,
    directory: String,
    offset: i64,
}

async fn move_replica(session: &Session, arguments: Move) -> Outcome {
    let Move { partition: TopicPartition { topic, partition }, broker, to: directory, planning } = arguments;
    let request = admin::MoveReplicaRequest {
        options: None,
        partition: Some(admin::TopicPartition { topic: topic.clone(), partition }),
        broker,
        directory: directory.clone(),
    };
    let reply = session.client.move_replica(request, planning.mode()).await?;
    if planning.plan {
        return plan::show(session, [reply.result]).await;
    }
    let offset = reply.result.map_or(0, |result| result.offset);
    let moved = Moved { topic, partition, broker, directory, offset };
    session
        .show(&moved, |at| format!("{}-{} of broker {} moves to {}", at.topic, at.partition, at.broker, at.directory))
}

fn refusals(results: &[ElectionResult]) {
    for result in results.iter().filter(|result| result.result == "refused") {
        let (error, message) = (result.error.as_deref(), result.message.as_deref());
        let (error, message) = (error.unwrap_or_default(), message.unwrap_or_default());
        note(&format!("error: {error}: {}-{}: {message}", result.topic, result.partition));
    }
}

fn elected_text(elected: &Elected) -> String {
    if elected.partitions.is_empty() {
        return "no partition needs an election".to_owned();
    }
    let rows = elected.partitions.iter().map(|result| {
        [
            cell(format!("{}-{}", result.topic, result.partition)),
            judged(result.result, result.result != "refused"),
            cell(result.message.as_deref().unwrap_or_default()),
        ]
    });
    table(["partition", "result", "why"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json;

    #[test]
    fn an_election_that_is_not_needed_is_no_refusal() {
        let error = admin::Error {
            name: "ELECTION_NOT_NEEDED".to_owned(),
            message: "it leads".to_owned(),
            ..Default::default()
        };
        let partition = Some(admin::TopicPartition { topic: "orders".to_owned(), partition: 1 });
        let result = ElectionResult::from(ElectedPartition { partition, error: Some(error) });
        assert_eq!(
            json(&result),
            r#"{"topic":"orders","partition":1,"result":"not-needed","error":"ELECTION_NOT_NEEDED","message":"it leads"}"#
        );
    }

    #[test]
    fn times_are_utc_to_the_millisecond() {
        assert_eq!(time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
    }
}
