//! `quorate partition reassign …`

mod progress;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use quorate_client::spec::{Throttle, moves, rate, throttle};
use quorate_proto::admin::{self, CancelReassignmentRequest, ChangeReassignmentRequest, PartitionTarget};
use serde::Serialize;

use crate::args::{Consent, Planning};
use crate::failure::{Failure, Outcome};
use crate::output::{cell, judged, note, table};
use crate::plan;
use crate::session::Session;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Reassign {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// What goes where, as JSON: {"version":1,"partitions":[{"topic":"t","partition":0,"replicas":[1,2,3]}]}
    #[arg(short, long, value_name = "FILE", required = true)]
    file: Option<PathBuf>,
    /// At how many bytes per second a broker may fill new replicas, such as 10MiB
    #[arg(long, value_name = "RATE", value_parser = rate)]
    throttle: Option<u64>,
    #[command(flatten)]
    planning: Planning,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Those under way, and how far they are
    List,
    /// Go back to the replicas from before
    Cancel {
        id: i64,
        /// Even where it leaves a partition without a leader, or with too few replicas in sync
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        planning: Planning,
        #[command(flatten)]
        consent: Consent,
    },
    /// Stop filling new replicas until it is resumed
    Pause {
        id: i64,
        #[command(flatten)]
        planning: Planning,
    },
    /// Go on filling new replicas
    Resume {
        id: i64,
        #[command(flatten)]
        planning: Planning,
    },
    /// Fill new replicas at another rate
    Throttle {
        id: i64,
        /// Bytes per second, such as 10MiB, or none
        #[arg(value_name = "RATE", value_parser = throttle)]
        rate: Throttle,
        #[command(flatten)]
        planning: Planning,
    },
}

pub async fn run(session: &Session, arguments: Reassign) -> Outcome {
    let change = |id| ChangeReassignmentRequest { id, ..ChangeReassignmentRequest::default() };
    match arguments.verb {
        None => start(session, arguments).await,
        Some(Verb::List) => progress::list(session).await,
        Some(Verb::Cancel { id, force, planning, consent }) => cancel(session, id, force, planning, consent).await,
        Some(Verb::Pause { id, planning }) => {
            let request = ChangeReassignmentRequest { paused: Some(true), ..change(id) };
            go_on(session, request, "paused", planning).await
        }
        Some(Verb::Resume { id, planning }) => {
            let request = ChangeReassignmentRequest { paused: Some(false), ..change(id) };
            go_on(session, request, "resumed", planning).await
        }
        Some(Verb::Throttle { id, rate: Throttle(rate), planning }) => {
            let request =
                ChangeReassignmentRequest { throttle_bytes_per_second: Some(rate.unwrap_or(0)), ..change(id) };
            go_on(session, request, if rate.is_some() { "throttled" } else { "unthrottled" }, planning).await
        }
    }
}

#[derive(Debug, Serialize)]
struct Answer {
    /// Of the operation; null where nothing has to be waited for.
    id: Option<i64>,
    offset: i64,
    partitions: Vec<Item>,
}

#[derive(Debug, Serialize)]
struct Item {
    topic: String,
    partition: i32,
    /// "moving", "done", "unchanged", "cancelled" or "refused".
    result: String,
    error: Option<String>,
    message: Option<String>,
}

impl Item {
    fn new(partition: Option<admin::TopicPartition>, error: Option<admin::Error>, otherwise: &str) -> Self {
        let admin::TopicPartition { topic, partition } = partition.unwrap_or_default();
        let result = if error.is_some() { "refused" } else { otherwise }.to_owned();
        let (error, message) = error.map(|error| (error.name, error.message)).unzip();
        Self { topic, partition, result, error, message }
    }

    fn is_refused(&self) -> bool {
        self.error.is_some()
    }
}

async fn start(session: &Session, arguments: Reassign) -> Outcome {
    let Some(path) = arguments.file else { return Err(Failure::usage("--file is missing")) };
    let targets = read(&path)?;
    let planning = arguments.planning;
    session.confirm(&format!("move the replicas of {} partitions", targets.len()), arguments.consent, planning)?;
    let reply = session.client.start_reassignment(targets, arguments.throttle, planning.mode()).await?;
    let items =
        reply.partitions.into_iter().map(|started| Item::new(started.partition, started.error, &started.progress));
    answer(session, reply.id, reply.result, items.collect(), planning).await
}

fn read(path: &Path) -> Outcome<Vec<PartitionTarget>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::local(format!("cannot read {}", path.display()), error))?;
    moves(&text).map_err(|why| Failure::usage(format!("{}: {why}", path.display())))
}

async fn cancel(session: &Session, id: i64, force: bool, planning: Planning, consent: Consent) -> Outcome {
    session.confirm(&format!("lead what reassignment {id} moves back to where it was"), consent, planning)?;
    let request = CancelReassignmentRequest { id: Some(id), force, ..CancelReassignmentRequest::default() };
    let reply = session.client.cancel_reassignment(request, planning.mode()).await?;
    let items = reply.partitions.into_iter().map(|item| Item::new(item.partition, item.error, "cancelled"));
    answer(session, Some(id), reply.result, items.collect(), planning).await
}

async fn answer(
    session: &Session,
    id: Option<i64>,
    result: Option<admin::MutationResult>,
    partitions: Vec<Item>,
    planning: Planning,
) -> Outcome {
    let refused = partitions.iter().filter(|item| item.is_refused()).count();
    if planning.plan {
        plan::show(session, [result]).await?;
        partitions.iter().filter(|item| item.is_refused()).for_each(tell_refusal);
    } else {
        let offset = result.map_or(0, |result| result.offset);
        session.show(&Answer { id, offset, partitions }, answer_text)?;
    }
    if refused > 0 { Err(Failure::Told) } else { Ok(()) }
}

fn tell_refusal(item: &Item) {
    let (error, message) = (item.error.as_deref().unwrap_or_default(), item.message.as_deref().unwrap_or_default());
    note(&format!("error: {error}: {}-{}: {message}", item.topic, item.partition));
}

fn answer_text(answer: &Answer) -> String {
    let rows = answer.partitions.iter().map(|item| {
        [
            cell(format!("{}-{}", item.topic, item.partition)),
            judged(&item.result, !item.is_refused()),
            cell(item.message.as_deref().unwrap_or_default()),
        ]
    });
    let partitions = table(["partition", "result", "why"], rows);
    match answer.id {
        Some(id) => format!("reassignment {id}\n{partitions}"),
        None => partitions,
    }
}

#[derive(Debug, Serialize)]
struct Changed {
    id: i64,
    offset: i64,
    /// "paused", "resumed", "throttled" or "unthrottled".
    result: &'static str,
}

async fn go_on(
    session: &Session,
    request: ChangeReassignmentRequest,
    result: &'static str,
    planning: Planning,
) -> Outcome {
    let id = request.id;
    let reply = session.client.change_reassignment(request, planning.mode()).await?;
    if planning.plan {
        return plan::show(session, [reply.result]).await;
    }
    let offset = reply.result.map_or(0, |result| result.offset);
    session.show(&Changed { id, offset, result }, |changed| format!("reassignment {} {}", changed.id, changed.result))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json;

    #[test]
    fn an_answer_tells_each_partition_by_itself() {
        let partition = |partition| Some(admin::TopicPartition { topic: "orders".to_owned(), partition });
        let error = admin::Error {
            name: "INVALID_REPLICA_ASSIGNMENT".to_owned(),
            message: "no".to_owned(),
            ..admin::Error::default()
        };
        let partitions = vec![Item::new(partition(0), None, "moving"), Item::new(partition(1), Some(error), "")];
        assert_eq!(
            json(&Answer { id: Some(7), offset: 9, partitions }),
            concat!(
                r#"{"id":7,"offset":9,"partitions":["#,
                r#"{"topic":"orders","partition":0,"result":"moving","error":null,"message":null},"#,
                r#"{"topic":"orders","partition":1,"result":"refused","error":"INVALID_REPLICA_ASSIGNMENT","message":"no"}]}"#
            )
        );
    }
}
