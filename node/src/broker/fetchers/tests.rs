use quorate_log::{Flush, LogDirectory, MemoryLogs};
use quorate_metadata::ids::{DirectoryId, PartitionId, TopicId};

use super::*;

const LEADER: BrokerId = BrokerId::new(2);

fn id(partition: usize) -> TopicPartition {
    let partition = i32::try_from(partition).expect("a few thousand");
    TopicPartition::new(TopicId::from_bytes([1; 16]), PartitionId::new(partition))
}

fn fetcher() -> Fetcher {
    let unregistered = Standing { epoch: None, fenced: true, lease_until: None, may_stop: false };
    let dialing = Dialing { dial: Arc::new(|_, address| address.to_owned()), network: Network::default() };
    let (metadata, standing) = (watch::Sender::new(MetadataImage::default()), watch::Sender::new(unregistered));
    let ground =
        Ground { broker: BrokerId::new(1), metadata: metadata.subscribe(), standing: standing.subscribe(), dialing };
    Fetcher::new(LEADER, ground)
}

fn fetch(partition: usize) -> Wish {
    let directory = LogDirectory::in_memory(&MemoryLogs::new(DirectoryId::from_bytes([9; 16])), Flush::Os);
    let (shard, _) = ShardHandle::new(&directory);
    let leader_epoch = LeaderEpoch::new(3);
    let position = Position {
        id: id(partition),
        leader_epoch,
        fetch_offset: LogOffset(0),
        last_fetched_epoch: None,
        max_bytes: 1,
        high_watermark: LogOffset(0),
    };
    Wish::Fetch(Source { leader: LEADER, leader_epoch }, position, shard)
}

fn answer(partition: usize) -> ReplicatedPartition {
    ReplicatedPartition { replica: Some(wire::replica_to_wire(id(partition))), ..Default::default() }
}

#[test]
fn a_stream_is_kept_when_what_was_asked_is_not_wanted_any_more() {
    let mut fetcher = fetcher();
    fetcher.take(fetch(0));
    assert_eq!(fetcher.request().positions.len(), 1);
    fetcher.take(Wish::Forget(id(0)));
    fetcher.take(fetch(1));
    assert!(!fetcher.is_stale);
    assert!(fetcher.supplied(answer(0)).is_none(), "nobody wants it");
    fetcher.take(fetch(0));
    assert!(!fetcher.is_stale, "the answer has come before");
}

#[test]
fn a_stream_is_left_before_an_old_answer_can_be_taken_for_a_new_one() {
    let mut fetcher = fetcher();
    fetcher.take(fetch(0));
    fetcher.request();
    fetcher.take(Wish::Forget(id(0)));
    fetcher.take(fetch(0));
    assert!(fetcher.is_stale);
}

#[test]
fn many_positions_travel_in_several_requests() {
    let mut fetcher = fetcher();
    (0..POSITIONS_PER_REQUEST_MAX + 500).for_each(|partition| fetcher.take(fetch(partition)));
    assert_eq!(fetcher.request().positions.len(), POSITIONS_PER_REQUEST_MAX);
    assert_eq!(fetcher.request().positions.len(), 500);
    assert!(fetcher.due.is_empty() && !fetcher.is_stale);
}

#[test]
fn what_was_refused_is_asked_for_again_when_its_pause_is_over() {
    let mut fetcher = fetcher();
    (0..3).for_each(|partition| fetcher.take(fetch(partition)));
    fetcher.request();
    let now = Instant::now();
    fetcher.later.extend([(now, id(0)), (now + Duration::from_secs(3_600), id(1)), (now, id(2))]);
    fetcher.take(Wish::Forget(id(2)));
    fetcher.retry();
    assert_eq!(fetcher.due, BTreeSet::from([id(0)]));
    assert_eq!(fetcher.later, BTreeSet::from([(now + Duration::from_secs(3_600), id(1))]));
}
