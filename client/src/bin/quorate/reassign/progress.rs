//! How far reassignments are. The metadata knows who is to have the records, and only the leaders know who has how many:
//! each is asked once, for a bounded time, and what none of them tells is unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use indicatif::HumanBytes;
use quorate_client::Freshness;
use quorate_proto::admin::{ReassigningPartition, ReassignmentDescription};
use quorate_proto::log::{DescribeReplicasReply, FollowerProgress, PartitionRef};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::failure::Outcome;
use crate::output::{cell, list as ids, table};
use crate::partition::time;
use crate::session::Session;
use crate::view;

/// A broker that is there answers in milliseconds; one that is not must not hold up the list.
const ASK_AT_MOST: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize)]
struct Reassignment {
    id: i64,
    paused: bool,
    throttle_bytes_per_second: Option<u64>,
    started_ms: i64,
    started: String,
    partitions: Vec<Partition>,
}

#[derive(Debug, Serialize)]
struct Partition {
    topic: String,
    partition: i32,
    leader: Option<i32>,
    replicas: Vec<i32>,
    isr: Vec<i32>,
    adding: Vec<i32>,
    removing: Vec<i32>,
    target: Vec<i32>,
    original: Vec<i32>,
    /// What the replicas that are yet to come into sync lack; null is unknown.
    left: Option<Left>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Left {
    offsets: i64,
    bytes: i64,
    /// Null where the rate of one of them was not measured lately.
    bytes_per_second: Option<i64>,
    /// Until the slowest has everything; null while one of them stands still, or its rate is not known.
    eta_seconds: Option<i64>,
}

/// What leaders say of their followers, by topic id and partition.
type Told = BTreeMap<(String, i32), Vec<FollowerProgress>>;

pub async fn list(session: &Session) -> Outcome {
    let reassignments = session.client.list_reassignments(Freshness::Linearizable).await?.reassignments;
    let told = if reassignments.is_empty() { Told::new() } else { ask_leaders(session, &reassignments).await? };
    let described: Vec<Reassignment> =
        reassignments.into_iter().map(|reassignment| Reassignment::new(reassignment, &told)).collect();
    session.show(&described, |described| text(described))
}

async fn ask_leaders(session: &Session, reassignments: &[ReassignmentDescription]) -> Outcome<Told> {
    let mut led: BTreeMap<i32, Vec<PartitionRef>> = BTreeMap::new();
    for partition in reassignments.iter().flat_map(|reassignment| &reassignment.partitions) {
        let Some(leader) = partition.leader else { continue };
        let wanted = PartitionRef { topic_id: partition.topic_id.clone(), partition: partition.partition };
        led.entry(leader).or_default().push(wanted);
    }
    let client = session.client.with_timeout(ASK_AT_MOST.min(session.options.timeout));
    let brokers = session.client.list_brokers(Freshness::Linearizable).await?.brokers;
    let mut asked = JoinSet::new();
    for broker in brokers.into_iter().map(view::Broker::from) {
        let (Some(address), Some(partitions)) = (broker.endpoint, led.remove(&broker.id)) else { continue };
        let client = client.clone();
        asked.spawn(async move { client.describe_replicas(&address, partitions).await });
    }
    // A leader that does not answer leaves its partitions unknown.
    Ok(asked.join_all().await.into_iter().flatten().flat_map(followers).collect())
}

fn followers(reply: DescribeReplicasReply) -> impl Iterator<Item = ((String, i32), Vec<FollowerProgress>)> {
    let led = reply.replicas.into_iter().filter(|replica| replica.error.is_none() && replica.role == "leader");
    led.map(|replica| ((replica.topic_id, replica.partition), replica.followers))
}

impl Reassignment {
    fn new(reassignment: ReassignmentDescription, told: &Told) -> Self {
        Self {
            id: reassignment.id,
            paused: reassignment.paused,
            throttle_bytes_per_second: reassignment.throttle_bytes_per_second,
            started_ms: reassignment.started_ms,
            started: time(reassignment.started_ms),
            partitions: reassignment.partitions.into_iter().map(|moved| Partition::new(moved, told)).collect(),
        }
    }
}

impl Partition {
    fn new(moved: ReassigningPartition, told: &Told) -> Self {
        let followers = told.get(&(moved.topic_id.clone(), moved.partition));
        let left = followers.and_then(|followers| left(&moved, followers));
        let ReassigningPartition {
            topic,
            topic_id: _,
            partition,
            leader,
            replicas,
            isr,
            adding,
            removing,
            target,
            original,
        } = moved;
        Self { topic, partition, leader, replicas, isr, adding, removing, target, original, left }
    }
}

/// Known only if the leader tells of every replica that is yet to come into sync.
fn left(moved: &ReassigningPartition, followers: &[FollowerProgress]) -> Option<Left> {
    let by_broker: BTreeMap<i32, &FollowerProgress> =
        followers.iter().map(|follower| (follower.broker, follower)).collect();
    let awaited: BTreeSet<i32> = moved.target.iter().copied().filter(|broker| !moved.isr.contains(broker)).collect();
    let awaited: Vec<&FollowerProgress> =
        awaited.into_iter().map(|broker| by_broker.get(&broker).copied()).collect::<Option<_>>()?;
    // One that has not fetched from this leader tells nothing.
    if awaited.iter().any(|follower| follower.log_end_offset.is_none()) {
        return None;
    }
    let etas: Option<Vec<i64>> = awaited.iter().map(|follower| eta_seconds(follower)).collect();
    Some(Left {
        offsets: awaited.iter().map(|follower| follower.offsets_left).sum(),
        bytes: awaited.iter().map(|follower| follower.bytes_left).sum(),
        bytes_per_second: awaited.iter().map(|follower| rate(follower)).sum(),
        eta_seconds: etas.map(|etas| etas.into_iter().max().unwrap_or(0)),
    })
}

/// One that has everything does not have to move.
fn rate(follower: &FollowerProgress) -> Option<i64> {
    follower.bytes_per_second.or((follower.bytes_left <= 0).then_some(0))
}

fn eta_seconds(follower: &FollowerProgress) -> Option<i64> {
    match (follower.bytes_left, follower.bytes_per_second) {
        (..=0, _) => Some(0),
        (_, None | Some(..=0)) => None,
        (left, Some(rate)) => Some((left - 1) / rate + 1),
    }
}

fn text(reassignments: &[Reassignment]) -> String {
    if reassignments.is_empty() {
        return "nothing is being reassigned".to_owned();
    }
    let blocks: Vec<String> = reassignments.iter().map(block).collect();
    blocks.join("\n\n")
}

fn block(reassignment: &Reassignment) -> String {
    let paused = if reassignment.paused { ", paused" } else { "" };
    let throttle = reassignment
        .throttle_bytes_per_second
        .map_or_else(String::new, |limit| format!(", at {}/s at most", HumanBytes(limit)));
    let head = format!("reassignment {} since {}{throttle}{paused}", reassignment.id, reassignment.started);
    let header = ["partition", "from", "to", "isr", "offsets left", "bytes left", "rate", "eta"];
    let rows = reassignment.partitions.iter().map(|moved| {
        let [offsets, bytes, rate, eta] = left_cells(moved.left);
        let name = format!("{}-{}", moved.topic, moved.partition);
        let (from, to, isr) = (ids(&moved.original), ids(&moved.target), ids(&moved.isr));
        [cell(name), cell(from), cell(to), cell(isr), cell(offsets), cell(bytes), cell(rate), cell(eta)]
    });
    format!("{head}\n{}", table(header, rows))
}

fn left_cells(left: Option<Left>) -> [String; 4] {
    let unknown = || "-".to_owned();
    let Some(left) = left else { return [unknown(), unknown(), unknown(), unknown()] };
    let human = |bytes: i64| HumanBytes(u64::try_from(bytes).unwrap_or(0)).to_string();
    let duration = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let eta = left.eta_seconds.map_or_else(unknown, |eta| humantime::format_duration(duration(eta)).to_string());
    let rate = left.bytes_per_second.map_or_else(unknown, |rate| format!("{}/s", human(rate)));
    [left.offsets.to_string(), human(left.bytes), rate, eta]
}

#[cfg(test)]
mod tests {
    use quorate_proto::log::ReplicaDescription;

    use super::*;
    use crate::output::json;

    fn moved() -> ReassigningPartition {
        ReassigningPartition {
            topic: "orders".to_owned(),
            topic_id: "AQEBAQEBAQEBAQEBAQEBAQ".to_owned(),
            partition: 0,
            leader: Some(1),
            replicas: vec![4, 3, 1, 2],
            isr: vec![1, 2],
            adding: vec![4, 3],
            removing: vec![2],
            target: vec![4, 3, 1],
            original: vec![1, 2],
        }
    }

    fn follower(broker: i32, bytes_left: i64, bytes_per_second: impl Into<Option<i64>>) -> FollowerProgress {
        FollowerProgress {
            broker,
            log_end_offset: Some(5),
            offsets_left: 10,
            bytes_left,
            bytes_per_second: bytes_per_second.into(),
            ..FollowerProgress::default()
        }
    }

    #[test]
    fn what_is_left_is_of_those_who_are_awaited_and_the_slowest_sets_the_time() {
        let followers = [follower(4, 1_000, 100), follower(3, 501, 10), follower(2, 99_999, 1)];
        let expected = Left { offsets: 20, bytes: 1_501, bytes_per_second: Some(110), eta_seconds: Some(51) };
        assert_eq!(left(&moved(), &followers), Some(expected));
        let stands_still = [follower(4, 1_000, 0), follower(3, 0, 0)];
        assert_eq!(left(&moved(), &stands_still).map(|left| left.eta_seconds), Some(None));
        let not_measured = left(&moved(), &[follower(4, 1_000, None), follower(3, 501, 10)]);
        assert_eq!(
            not_measured.map(|left| (left.bytes, left.bytes_per_second, left.eta_seconds)),
            Some((1_501, None, None))
        );
        let all_there = [follower(4, 0, 0), follower(3, 0, 0)];
        assert_eq!(left(&moved(), &all_there).and_then(|left| left.eta_seconds), Some(0));
    }

    #[test]
    fn what_no_leader_tells_is_unknown() {
        assert_eq!(left(&moved(), &[follower(4, 1, 1)]), None);
        let silent = FollowerProgress { log_end_offset: None, ..follower(3, 1, 1) };
        assert_eq!(left(&moved(), &[follower(4, 1, 1), silent]), None);
        let replica = |role: &str| ReplicaDescription { role: role.to_owned(), ..ReplicaDescription::default() };
        let reply = DescribeReplicasReply { replicas: vec![replica("follower")], ..DescribeReplicasReply::default() };
        assert_eq!(followers(reply).count(), 0);
    }

    #[test]
    fn a_list_has_a_stable_shape() {
        let description = ReassignmentDescription {
            id: 7,
            paused: true,
            throttle_bytes_per_second: Some(1_048_576),
            started_ms: 1_700_000_000_123,
            partitions: vec![moved()],
            continued: false,
        };
        let followers = vec![follower(4, 2_048, 1_024), follower(3, 0, 0)];
        let told = Told::from([((moved().topic_id, 0), followers)]);
        let known = [Reassignment::new(description.clone(), &told)];
        assert_eq!(
            json(&known),
            concat!(
                r#"[{"id":7,"paused":true,"throttle_bytes_per_second":1048576,"started_ms":1700000000123,"#,
                r#""started":"2023-11-14T22:13:20.123Z","partitions":[{"topic":"orders","partition":0,"leader":1,"#,
                r#""replicas":[4,3,1,2],"isr":[1,2],"adding":[4,3],"removing":[2],"target":[4,3,1],"original":[1,2],"#,
                r#""left":{"offsets":20,"bytes":2048,"bytes_per_second":1024,"eta_seconds":2}}]}]"#
            )
        );
        let shown = text(&known);
        assert!(shown.starts_with("reassignment 7 since 2023-11-14T22:13:20.123Z, at 1.00 MiB/s at most, paused\n"));
        assert!(shown.contains("2.00 KiB") && shown.contains("1.00 KiB/s") && shown.ends_with("2s"), "{shown}");
        let paused = Told::from([((moved().topic_id, 0), vec![follower(4, 2_048, None), follower(3, 0, None)])]);
        let shown = text(&[Reassignment::new(description.clone(), &paused)]);
        assert!(shown.contains("2.00 KiB") && !shown.contains("/s\n") && shown.trim_end().ends_with('-'), "{shown}");
        let shown = text(&[Reassignment::new(description, &Told::new())]);
        assert!(shown.trim_end().ends_with('-'), "{shown}");
        assert_eq!(text(&[]), "nothing is being reassigned");
    }
}
