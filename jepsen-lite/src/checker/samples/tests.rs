use super::super::Verdict;
use super::*;
use crate::history::{Operation, Outcome};
use crate::workload::WorkloadName;

fn state(leader: i32, leader_epoch: i32, partition_epoch: i32) -> PartitionState {
    let topic = "t".to_owned();
    let leader = Some(leader);
    PartitionState { topic, partition: 0, leader, leader_epoch, partition_epoch, isr: vec![1, 2], elr: vec![] }
}

fn sample(node: i32, offset: i64, digest: &str, state: PartitionState) -> Operation {
    let seen = Sample { offset, digest: Some(digest.to_owned()), partitions: vec![state] };
    let (workload, op) = (WorkloadName::LeaderEpoch, Op::Sample { node, seen: Some(seen) });
    Operation { workload, process: 0, invoked_us: 0, ended_us: 1, outcome: Outcome::Ok, error: None, op }
}

fn judge(history: &[Operation]) -> Report {
    check(&history.iter().enumerate().collect::<Vec<_>>())
}

fn assert_breaks(rule: &str, history: &[Operation]) {
    let report = judge(history);
    assert!(report.has(rule), "{rule} is not among {report:?}");
}

#[test]
fn nodes_may_lag_behind_each_other() {
    let history =
        [sample(1, 5, "x", state(1, 0, 0)), sample(2, 9, "y", state(2, 1, 1)), sample(3, 5, "x", state(1, 0, 0))];
    assert_eq!((judge(&history).verdict, judge(&history).findings), (Verdict::Valid, vec![]));
}

#[test]
fn two_images_at_one_offset_are_found() {
    assert_breaks("one-image-per-offset", &[sample(1, 5, "x", state(1, 0, 0)), sample(2, 5, "y", state(1, 0, 0))]);
    assert_breaks("one-state-per-offset", &[sample(1, 5, "x", state(1, 0, 0)), sample(2, 5, "x", state(1, 0, 1))]);
}

#[test]
fn epochs_do_not_fall_and_change_with_the_state() {
    assert_breaks("epochs-never-fall", &[sample(1, 5, "x", state(1, 3, 3)), sample(2, 6, "y", state(1, 2, 4))]);
    assert_breaks("epochs-never-fall", &[sample(1, 5, "x", state(1, 3, 3)), sample(2, 6, "y", state(1, 3, 2))]);
    let unbumped = [sample(1, 5, "x", state(1, 3, 3)), sample(2, 6, "y", state(2, 4, 3))];
    assert_breaks("one-state-per-partition-epoch", &unbumped);
}

#[test]
fn an_epoch_has_one_leader_who_is_in_sync() {
    assert_breaks("one-leader-per-epoch", &[sample(1, 5, "x", state(1, 3, 3)), sample(2, 6, "y", state(2, 3, 4))]);
    assert_breaks("leader-in-sync", &[sample(1, 5, "x", state(3, 3, 3))]);
}
