use futures::StreamExt;
use quorate_metadata::ids::{ClientId, ControllerEpoch, PartitionId, TopicId, TopicPartition};
use quorate_metadata::image::LEVEL_HIGHEST;
use quorate_metadata::record::{ConfigResource, Kind, PartitionRegistration, PartitionState};
use quorate_metadata::{Batch, Ledger, Record};
use quorate_proto::broker::CommittedRecords;
use quorate_proto::error;

use super::*;
use crate::api::fixture::lone_gateway;

/// A node whose feed the test feeds.
struct Fed {
    gateway: Gateway,
    ledger: Ledger,
}

impl Fed {
    async fn start() -> Self {
        let (gateway, _) = lone_gateway().await;
        Self { gateway, ledger: Ledger::default() }
    }

    fn push(&mut self, records: Vec<Record>) {
        let before = self.ledger.visible().clone();
        let batch = Batch { controller_epoch: ControllerEpoch::new(1), timestamp_ms: 5, records };
        let replayed = self.ledger.replay(&batch).expect("the records of this test replay");
        self.gateway.view.feed.push(&before, self.ledger.visible(), replayed.visible);
        self.gateway.view.feed.wake();
    }

    fn watch(&self, from: i64) -> impl Stream<Item = Result<WatchEvent, Status>> + Unpin + use<> {
        self.serve(WatchRequest {
            from_offset: Some(from),
            kinds: vec!["Config".to_owned()],
            ..WatchRequest::default()
        })
    }

    fn watch_topic(
        &self,
        topic: TopicId,
        from_offset: Option<i64>,
    ) -> impl Stream<Item = Result<WatchEvent, Status>> + Unpin + use<> {
        let max_level = Some(LEVEL_HIGHEST.into());
        let topics = vec![topic.to_string()];
        self.serve(WatchRequest { from_offset, topics, max_level, ..WatchRequest::default() })
    }

    fn serve(&self, request: WatchRequest) -> impl Stream<Item = Result<WatchEvent, Status>> + Unpin + use<> {
        Box::pin(serve(&self.gateway, request).expect("the offset is there"))
    }
}

fn topic(id: u128) -> TopicId {
    TopicId::new(uuid::Uuid::from_u128(id))
}

fn create_topic(id: u128, name: &str) -> Record {
    Record::CreateTopic { topic: topic(id), name: name.to_owned(), kind: Kind::LOG }
}

fn topic_config(name: &str) -> Record {
    let resource = ConfigResource::Topic(name.to_owned());
    Record::Config { resource, key: "retention.ms".to_owned(), value: Some("1".to_owned()) }
}

fn feature(level: i16) -> Record {
    Record::FeatureLevel { name: "f".to_owned(), level }
}

fn config() -> Record {
    Record::Config { resource: ConfigResource::BrokerDefault, key: "k".to_owned(), value: Some("v".to_owned()) }
}

async fn next(events: &mut (impl Stream<Item = Result<WatchEvent, Status>> + Unpin)) -> Result<WatchEvent, ErrorName> {
    let event = events.next().await.expect("the stream goes on");
    event.map_err(|status| error::from_status(&status).name)
}

fn offsets(event: Result<WatchEvent, ErrorName>) -> Vec<i64> {
    let records = event.expect("no error").records.expect("records");
    let records = CommittedRecords::decode(records).expect("it is encoded by us");
    records.records.iter().map(|committed| committed.offset).collect()
}

#[tokio::test]
async fn a_watcher_that_the_feed_has_left_behind_is_refused_and_sees_no_gap() {
    let mut fed = Fed::start().await;
    fed.push(vec![config()]);
    let mut events = fed.watch(0);
    assert_eq!(offsets(next(&mut events).await), [0]);
    fed.gateway.view.feed.restart(Offset::new(70));
    fed.gateway.view.feed.wake();
    assert_eq!(next(&mut events).await, Err(ErrorName::ResyncRequired));
    assert!(events.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_watcher_learns_where_it_is_once_while_nothing_passes() {
    let mut fed = Fed::start().await;
    let mut events = fed.watch(0);
    (1..4).for_each(|level| fed.push(vec![feature(level)]));
    let bookmark = next(&mut events).await.expect("no error").bookmark.expect("a bookmark");
    assert_eq!(Bookmark::decode(bookmark).expect("it is encoded by us").next_offset, 3);
    assert!(timeout(10 * BOOKMARK_INTERVAL, events.next()).await.is_err(), "there is nothing new");
    fed.push(vec![feature(4), config()]);
    assert_eq!(offsets(next(&mut events).await), [4]);
}

fn create_partition(id: u128) -> Record {
    let id = TopicPartition::new(topic(id), PartitionId::new(0));
    Record::CreatePartition(PartitionRegistration { id, state: PartitionState::default().into() })
}

fn answered() -> Record {
    let client = ClientId::new(uuid::Uuid::from_u128(7));
    Record::RequestApplied { client, request: 1, reply: b"bills".to_vec(), offset: None, forgotten_up_to: None }
}

#[tokio::test]
async fn a_feed_of_one_topic_has_no_records_of_another() {
    let mut fed = Fed::start().await;
    fed.push(vec![create_topic(1, "orders"), create_topic(2, "bills"), topic_config("orders"), topic_config("bills")]);
    fed.push(vec![create_partition(1), create_partition(2), topic_config("bills"), answered()]);
    fed.push(vec![feature(1), Record::RemoveTopic { topic: topic(1) }, Record::RemoveTopic { topic: topic(2) }]);
    let mut orders = fed.watch_topic(topic(1), Some(0));
    assert_eq!(offsets(next(&mut orders).await), [0, 2]);
    assert_eq!(offsets(next(&mut orders).await), [4]);
    assert_eq!(offsets(next(&mut orders).await), [8, 9]);
    let mut bills = fed.watch_topic(topic(2), Some(0));
    assert_eq!(offsets(next(&mut bills).await), [1, 3]);
    assert_eq!(offsets(next(&mut bills).await), [5, 6]);
    assert_eq!(offsets(next(&mut bills).await), [8, 10]);
}

#[test]
fn a_snapshot_of_one_topic_has_no_records_of_another() {
    let mut ledger = Ledger::default();
    let records = vec![
        feature(1),
        create_topic(1, "orders"),
        create_topic(2, "bills"),
        create_partition(1),
        create_partition(2),
        topic_config("orders"),
        topic_config("bills"),
        answered(),
    ];
    ledger.replay(&Batch { controller_epoch: ControllerEpoch::new(1), timestamp_ms: 5, records }).expect("they replay");
    let kinds_of = |kinds: &[&str]| {
        let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        let request = WatchRequest { topics: vec![topic(1).to_string()], kinds, ..WatchRequest::default() };
        let filter = Filter::new(&request).expect("it is an id");
        assert!(!filter.is_whole());
        let records = filter.candidates(ledger.visible()).filter(|record| filter.passes_in_snapshot(record));
        records.map(|record| record.kind()).collect::<Vec<_>>()
    };
    assert_eq!(kinds_of(&[]), ["FeatureLevel", "CreateTopic", "CreatePartition", "Config"]);
    assert_eq!(kinds_of(&["CreateTopic", "RequestApplied"]), ["CreateTopic", "RequestApplied"]);
}
