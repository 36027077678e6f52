use quorate_metadata::ids::{ControllerEpoch, DirectoryId, TopicId};
use quorate_metadata::record::{
    ConfigResource, Kind, PartitionRegistration, PartitionState, ReassignedPartition, ReassignmentStart,
};
use quorate_metadata::{Batch, ErrorName, Ledger, Record};

use super::*;
use crate::api::fixture::registration;

const TOPICS: u8 = 2;
const PARTITIONS: i32 = 5;

fn id(topic: u8, partition: i32) -> TopicPartition {
    TopicPartition::new(TopicId::from_bytes([topic; 16]), PartitionId::new(partition))
}

/// Brokers 1 to 7, two topics of five partitions, and the operations that move those named.
fn image(operations: &[(i64, &[TopicPartition])]) -> MetadataImage {
    let mut records: Vec<Record> = (1..=7).map(registration).map(Record::RegisterBroker).collect();
    for topic in 1..=TOPICS {
        records.push(Record::CreateTopic {
            topic: TopicId::from_bytes([topic; 16]),
            name: format!("t{topic}"),
            kind: Kind::LOG,
        });
        records.extend((0..PARTITIONS).map(|partition| created(id(topic, partition))));
    }
    records.extend(operations.iter().map(|(operation, partitions)| begun(*operation, partitions)));
    let mut ledger = Ledger::default();
    let batch = Batch { controller_epoch: ControllerEpoch::new(1), timestamp_ms: 1, records };
    ledger.replay(&batch).expect("the records of this test replay");
    ledger.visible().clone()
}

fn created(id: TopicPartition) -> Record {
    let broker = BrokerId::new(1);
    let state = PartitionState {
        replicas: vec![broker],
        directories: vec![DirectoryId::UNASSIGNED],
        isr: vec![broker],
        leader: Some(broker),
        ..PartitionState::default()
    };
    Record::CreatePartition(PartitionRegistration { id, state: state.into() })
}

fn begun(operation: i64, partitions: &[TopicPartition]) -> Record {
    let moved = |id: &TopicPartition| ReassignedPartition { id: *id, original: vec![BrokerId::new(1)] };
    Record::BeginReassignment(ReassignmentStart {
        id: ReassignmentId::new(operation),
        partitions: partitions.iter().map(moved).collect(),
        paused: false,
        throttle_bytes_per_second: None,
        started_ms: None,
    })
}

/// Each operation of a page, whether it goes on there, and its partitions.
type Listed = Vec<(i64, bool, Vec<(String, i32)>)>;

async fn reassignments_page(image: &MetadataImage, page_size: u32, page_token: &str) -> (Listed, String) {
    let asked = admin::ListReassignmentsRequest { page_size, page_token: page_token.to_owned(), ..Default::default() };
    let page = reassignments(image, &asked).await.expect("a page");
    let listed = page.reassignments.into_iter().map(|operation| {
        let partitions = operation.partitions.into_iter().map(|moved| (moved.topic, moved.partition));
        (operation.id, operation.continued, partitions.collect())
    });
    (listed.collect(), page.next_page_token)
}

#[tokio::test]
async fn pages_of_brokers_add_up_to_the_whole() {
    let image = image(&[]);
    let (mut asked, mut pages) = (admin::ListBrokersRequest { page_size: 3, ..Default::default() }, Vec::new());
    loop {
        let page = brokers(&image, &asked).await.expect("a page");
        pages.push(page.brokers.iter().map(|broker| broker.id).collect::<Vec<_>>());
        asked.page_token = page.next_page_token;
        if asked.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, [vec![1, 2, 3], vec![4, 5, 6], vec![7]]);
    let whole = brokers(&image, &admin::ListBrokersRequest::default()).await.expect("a whole answer");
    assert_eq!(whole.brokers.len(), 7);
}

#[tokio::test]
async fn pages_of_configs_have_each_resource_once_in_order() {
    let resource = |resource| admin::ConfigResource { resource: Some(resource) };
    let topic = |name: &str| resource(admin::config_resource::Resource::Topic(name.to_owned()));
    let resources = vec![topic("t2"), topic("unknown"), resource(admin::config_resource::Resource::Broker(3))];
    let mut asked = admin::DescribeConfigsRequest { page_size: 2, resources: resources.clone(), ..Default::default() };
    let image = image(&[]);
    let first = configs(&image, asked.clone()).await.expect("a page");
    asked.page_token.clone_from(&first.next_page_token);
    let second = configs(&image, asked).await.expect("a page");
    assert_eq!((first.resources.len(), second.resources.len(), second.next_page_token.as_str()), (2, 1, ""));
    let described: Vec<_> = first.resources.into_iter().chain(second.resources).collect();
    assert!(described.iter().map(|one| one.resource.clone()).eq(resources.into_iter().map(Some)));
    assert_eq!(described.iter().map(|one| one.error.is_some()).collect::<Vec<_>>(), [false, true, false]);
}

#[tokio::test]
async fn an_operation_larger_than_a_page_goes_on_in_the_next() {
    let of_two = [id(1, 0), id(1, 4), id(2, 1)];
    let image = image(&[(5, &of_two), (9, &[id(2, 0)])]);
    let moved = |topic: &str, partition| (topic.to_owned(), partition);
    let (listed, next) = reassignments_page(&image, 2, "").await;
    assert_eq!(listed, [(5, false, vec![moved("t1", 0), moved("t1", 4)])]);
    let (listed, next) = reassignments_page(&image, 2, &next).await;
    assert_eq!(listed, [(5, true, vec![moved("t2", 1)]), (9, false, vec![moved("t2", 0)])]);
    assert_eq!(next, "");
}

#[tokio::test]
async fn a_page_of_reassignments_goes_on_after_what_has_ended() {
    let before = image(&[(5, &[id(1, 0), id(1, 1), id(1, 2)]), (9, &[id(2, 0)])]);
    let (_, next) = reassignments_page(&before, 1, "").await;
    let moved = |topic: &str, partition| (topic.to_owned(), partition);
    let rest_has_ended = image(&[(5, &[id(1, 0)]), (9, &[id(2, 0)])]);
    let (listed, _) = reassignments_page(&rest_has_ended, 9, &next).await;
    assert_eq!(listed, [(9, false, vec![moved("t2", 0)])]);
    let operation_has_ended = image(&[(9, &[id(1, 2)])]);
    let (listed, _) = reassignments_page(&operation_has_ended, 9, &next).await;
    assert_eq!(listed, [(9, false, vec![moved("t1", 2)])]);
}

#[tokio::test]
async fn a_token_of_another_listing_is_refused_by_name() {
    let image = image(&[]);
    let brokers_at = admin::ListBrokersRequest { page_token: "configs:0:0::".to_owned(), ..Default::default() };
    let refused = brokers(&image, &brokers_at).await.expect_err("a token of the configs");
    assert_eq!(refused.name, ErrorName::InvalidRequest);
    let operations_at =
        admin::ListReassignmentsRequest { page_token: "reassignments:0:0::x".to_owned(), ..Default::default() };
    let refused = reassignments(&image, &operations_at).await.expect_err("no operation has this id");
    assert_eq!(refused.name, ErrorName::InvalidRequest);
}

fn config(key: &str) -> Record {
    let resource = ConfigResource::Topic("t1".to_owned());
    Record::Config { resource, key: key.to_owned(), value: Some("5".to_owned()) }
}

#[test]
fn stored_config_without_effect_is_shown_as_unsupported() {
    let mut image = image(&[]);
    image.replay_records(&[config("flush.ms"), config("retention.ms")]).expect("they replay");
    let entries = describe::configs(&image, &ConfigResource::Topic("t1".to_owned())).expect("it is there");
    let of = |key: &str| entries.iter().find(|entry| entry.key == key).expect("it is shown");
    assert_eq!((&*of("flush.ms").value, &*of("flush.ms").r#type), ("5", "unsupported"));
    assert!(of("flush.ms").doc.contains("log_flush"), "{:?}", of("flush.ms"));
    assert_eq!((&*of("retention.ms").r#type, &*of("retention.ms").source), ("long", "topic"));
    assert!(entries.is_sorted_by(|one, other| one.key < other.key), "each key once");
}

#[test]
fn configs_of_another_kind_are_its_own_and_the_controllers() {
    let mut image = image(&[]);
    let topic = TopicId::from_bytes([9; 16]);
    let created = Record::CreateTopic { topic, name: "counts".to_owned(), kind: Kind::from("counter") };
    let resource = ConfigResource::Topic("counts".to_owned());
    let (key, value) = ("counter.window.ms".to_owned(), Some("5".to_owned()));
    image.replay_records(&[created, Record::Config { resource: resource.clone(), key, value }]).expect("they replay");
    let entries = describe::configs(&image, &resource).expect("it is there");
    let shown: Vec<(&str, &str)> = entries.iter().map(|entry| (&*entry.key, &*entry.value)).collect();
    let expected =
        [("counter.window.ms", "5"), ("min.insync.replicas", "1"), ("unclean.leader.election.enable", "false")];
    assert_eq!(shown, expected);
}
