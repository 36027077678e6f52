//! Compaction beside the rounds.

use quorate_log::{LogOffset, Record as Stored};

use super::*;

/// Each record is a segment.
fn compacted() -> Vec<Record> {
    let configs = [("cleanup.policy", "compact"), ("segment.bytes", "14"), ("min.cleanable.dirty.ratio", "0")];
    let config = |(key, value): (&str, &str)| Record::Config {
        resource: ConfigResource::Topic("orders".to_owned()),
        key: key.to_owned(),
        value: Some(value.to_owned()),
    };
    configs.into_iter().map(config).collect()
}

async fn put(driven: &mut Driven, id: TopicPartition, key: &'static str) {
    let (reply, mut answer) = oneshot::channel();
    let record = Stored {
        offset_delta: 0,
        timestamp_ms: 0,
        key: Some(key.into()),
        value: Some("v".into()),
        headers: Vec::new(),
    };
    let batch = NewBatch::of(vec![record], None).expect("it can be written");
    let records = NewRecords { leader_epoch: None, batch, acks: Acks::All, reply };
    driven.handle.send(Command::Produce(id, records)).await.expect("the owner lives");
    driven.round();
    assert!(matches!(answer.try_recv(), Ok(Ok(_))));
}

/// Lets one step be written, as a round of the owner does.
async fn step(driven: &mut Driven) {
    let stepped = driven.shard.compactions.stepped().await;
    let mut round = Round::default();
    driven.shard.on_step(&mut round, stepped);
    driven.end(round);
}

fn offsets(driven: &Driven, id: TopicPartition) -> Vec<i64> {
    let log = driven.shard.owned[&id].log();
    let batches = log.reader().read(LogOffset(0), log.log_end(), usize::MAX).expect("the disk works");
    let full = batches.iter().filter(|batch| batch.record_count() > 0);
    full.map(|batch| batch.base_offset().0).collect()
}

async fn with_records() -> Driven {
    let mut driven = Driven::leading().await;
    driven.learn(compacted());
    while driven.shard.has_more_to_do() {
        driven.round();
    }
    for partition in [3, 7] {
        for key in ["a", "b", "a", "a"] {
            put(&mut driven, id(partition), key).await;
        }
    }
    driven.tick();
    driven
}

#[tokio::test]
async fn logs_that_are_due_are_compacted_one_after_the_other() {
    let mut driven = with_records().await;
    assert!(driven.shard.compactions.is_running());
    let mut steps = 0;
    while driven.shard.compactions.is_running() {
        step(&mut driven).await;
        put(&mut driven, id(5), "c").await;
        steps += 1;
        assert!(steps < 100, "it does not end");
    }
    for partition in [3, 7] {
        assert_eq!(offsets(&driven, id(partition)), [1, 2, 3], "the last one is in the active segment");
    }
    assert_eq!(offsets(&driven, id(5)).len(), steps, "what came in meanwhile was taken");
}

#[tokio::test]
async fn a_compaction_ends_with_its_replica() {
    let mut driven = with_records().await;
    step(&mut driven).await;
    driven.delete(id(3), None).await;
    driven.delete(id(7), None).await;
    driven.round();
    let mut steps = 0;
    while driven.shard.compactions.is_running() {
        step(&mut driven).await;
        steps += 1;
        assert!(steps < 100, "it does not end");
    }
    driven.tick();
    assert!(!driven.is_found(id(3)));
    assert!(!driven.shard.directory.partitions().expect("the disk works").contains(&id(3)));
}
