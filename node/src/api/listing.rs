//! Topics and partitions in the words of the wire, page by page.

use prost::Message;
use quorate_metadata::ids::{BrokerId, PartitionId, TopicPartition};
use quorate_metadata::image::Topic;
use quorate_metadata::record::{ChangeNote, ConfigResource, LeaderRecoveryState, Partition};
use quorate_metadata::{ApiError, MetadataImage, config};
use quorate_proto::admin;
use quorate_proto::error::to_item;

use super::describe::{count, find_topic, is_under_min_isr, is_under_replicated, unknown_topic};
use super::pages::{Page, Slices, Token};
use super::request::topic_ref;

/// A page of the topics, in the order of their names.
pub async fn topics(
    image: &MetadataImage,
    asked: &admin::ListTopicsRequest,
) -> Result<admin::ListTopicsReply, ApiError> {
    const CALL: &str = "topics";
    let first = Token::decode(CALL, &asked.page_token)?;
    let mut page = Page::new(asked.page_size, &asked.page_token);
    let mut reply = admin::ListTopicsReply { offset: image.next_offset.get(), ..Default::default() };
    for topic in image.topic_names.range(first.name..).filter_map(|(_, id)| image.topic(*id)) {
        let summary = summary(topic, &mut page.slices).await;
        if !page.take(&summary)? {
            reply.next_page_token = Token { name: summary.name, ..Token::default() }.encode(CALL);
            break;
        }
        reply.topics.push(summary);
    }
    Ok(reply)
}

async fn summary(topic: &Topic, slices: &mut Slices) -> admin::TopicSummary {
    let mut summary = admin::TopicSummary {
        name: topic.name.clone(),
        id: topic.id.to_string(),
        kind: topic.kind.to_string(),
        partitions: count(topic.partitions.len()),
        replication_factor: topic.partitions.front().map_or(0, |partition| count(partition.replicas.len())),
        ..admin::TopicSummary::default()
    };
    for partition in &topic.partitions {
        slices.step().await;
        summary.leaderless += i32::from(partition.leader.is_none());
        summary.under_replicated += i32::from(is_under_replicated(partition));
    }
    summary
}

/// A page of the topics asked for. Its items are their partitions: a topic may go on in the next page.
pub async fn described_topics(
    image: &MetadataImage,
    asked: admin::DescribeTopicsRequest,
) -> Result<admin::DescribeTopicsReply, ApiError> {
    const CALL: &str = "descriptions";
    let first = Token::decode(CALL, &asked.page_token)?;
    let mut page = Page::new(asked.page_size, &asked.page_token);
    let mut reply = admin::DescribeTopicsReply { offset: image.next_offset.get(), ..Default::default() };
    for (item, asked) in asked.topics.into_iter().enumerate().skip(first.item) {
        if page.is_full() {
            reply.next_page_token = Token { item, ..Token::default() }.encode(CALL);
            break;
        }
        let begun = if first.item == item { first.clone() } else { Token::default() };
        let (description, rest) = described(image, asked, &begun, &mut page).await?;
        // A topic that has no partition in this page is not mentioned there.
        if rest.as_ref().is_none_or(|rest| rest.partition > begun.partition) {
            reply.topics.push(description);
        }
        if let Some(rest) = rest {
            reply.next_page_token = Token { item, ..rest }.encode(CALL);
            break;
        }
    }
    Ok(reply)
}

/// One topic from where the page before has left it, and where it goes on if the page has no room for all of it.
async fn described(
    image: &MetadataImage,
    asked: admin::TopicRef,
    begun: &Token,
    page: &mut Page,
) -> Result<(admin::TopicDescription, Option<Token>), ApiError> {
    let continued = begun.partition > 0;
    let found = topic_ref(&asked).and_then(|topic| find_topic(image, &topic)).and_then(|topic| {
        if continued && Some(topic.id) != begun.topic { Err(unknown_topic(&topic.name)) } else { Ok(topic) }
    });
    let topic = match found {
        Ok(topic) => topic,
        Err(error) => {
            let error = Some(to_item(&error));
            let refused = admin::TopicDescription { topic: Some(asked), error, continued, ..Default::default() };
            page.put(&refused)?;
            return Ok((refused, None));
        }
    };
    let mut description = admin::TopicDescription { continued, ..head(image, &topic, asked) };
    page.add(description.encoded_len())?;
    let min_isr = config::min_insync_replicas(image, &topic.name);
    for (at, id) in partition_ids(&topic, begun.partition) {
        page.slices.step().await;
        let Some(state) = topic.partition(id.partition) else { break };
        let item = partition(&topic.name, id, state, min_isr);
        if !page.take(&item)? {
            let rest = Token { partition: at, topic: Some(topic.id), ..Token::default() };
            return Ok((description, Some(rest)));
        }
        description.partitions.push(item);
    }
    Ok((description, None))
}

/// A topic without its partitions.
fn head(image: &MetadataImage, topic: &Topic, asked: admin::TopicRef) -> admin::TopicDescription {
    let configs = image.configs.get(&ConfigResource::Topic(topic.name.clone()));
    admin::TopicDescription {
        topic: Some(asked),
        name: topic.name.clone(),
        id: topic.id.to_string(),
        kind: topic.kind.to_string(),
        configs: configs.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect(),
        ..admin::TopicDescription::default()
    }
}

/// A page of the partitions that pass the filter, in the order of topic names and partition numbers.
pub async fn partitions(
    image: &MetadataImage,
    filter: &admin::ListPartitionsRequest,
) -> Result<admin::ListPartitionsReply, ApiError> {
    const CALL: &str = "partitions";
    let mut first = Token::decode(CALL, &filter.page_token)?;
    if let Some(name) = &filter.topic {
        if first != Token::default() && first.name != *name {
            return Err(Token::foreign(&filter.page_token));
        }
        let topic = image.topic_named(name).ok_or_else(|| unknown_topic(name))?;
        if !first.is_before(topic) {
            return Err(unknown_topic(name));
        }
        first.name = name.clone();
    }
    let mut page = Page::new(filter.page_size, &filter.page_token);
    let mut reply = admin::ListPartitionsReply { offset: image.next_offset.get(), ..Default::default() };
    let wanted = |name: &String| filter.topic.as_ref().is_none_or(|topic| topic == name);
    let topics = image.topic_names.range(first.name.clone()..).take_while(|(name, _)| wanted(name));
    for topic in topics.filter_map(|(_, id)| image.topic(*id)).filter(|topic| first.is_before(topic)) {
        let begun = if topic.name == first.name { first.partition } else { 0 };
        if let Some(partition) = add_partitions(image, filter, topic, begun, &mut page, &mut reply.partitions).await? {
            let next = Token { item: 0, partition, topic: Some(topic.id), name: topic.name.clone() };
            reply.next_page_token = next.encode(CALL);
            break;
        }
    }
    Ok(reply)
}

impl Token {
    /// Whether the page may have partitions of the topic: not if the pages before have some of a topic that was of the same
    /// name and was deleted.
    fn is_before(&self, topic: &Topic) -> bool {
        self.partition == 0 || self.name != topic.name || self.topic == Some(topic.id)
    }
}

/// Adds the partitions of a topic that pass, from one of them on; the first for which the page has no room.
async fn add_partitions(
    image: &MetadataImage,
    filter: &admin::ListPartitionsRequest,
    topic: &Topic,
    begun: usize,
    page: &mut Page,
    found: &mut Vec<admin::PartitionDescription>,
) -> Result<Option<usize>, ApiError> {
    let min_isr = config::min_insync_replicas(image, &topic.name);
    for (at, id) in partition_ids(topic, begun) {
        page.slices.step().await;
        let Some(state) = topic.partition(id.partition) else { break };
        if !passes(filter, state, min_isr) {
            continue;
        }
        let item = partition(&topic.name, id, state, min_isr);
        if !page.take(&item)? {
            return Ok(Some(at));
        }
        found.push(item);
    }
    Ok(None)
}

fn passes(filter: &admin::ListPartitionsRequest, state: &Partition, min_isr: usize) -> bool {
    (!filter.leaderless || state.leader.is_none())
        && (!filter.under_replicated || is_under_replicated(state))
        && (!filter.under_min_isr || is_under_min_isr(state, min_isr))
        && filter.broker.is_none_or(|broker| state.replicas.contains(&BrokerId::new(broker)))
}

/// The partitions of a topic from one of them on.
fn partition_ids(topic: &Topic, begun: usize) -> impl Iterator<Item = (usize, TopicPartition)> + use<> {
    let id = topic.id;
    (begun..topic.partitions.len())
        .zip(count(begun)..)
        .map(move |(at, number)| (at, TopicPartition::new(id, PartitionId::new(number))))
}

fn partition(topic: &str, id: TopicPartition, state: &Partition, min_isr: usize) -> admin::PartitionDescription {
    let ids = |brokers: &[BrokerId]| brokers.iter().map(|broker| broker.get()).collect();
    admin::PartitionDescription {
        topic: topic.to_owned(),
        partition: id.partition.get(),
        leader: state.leader.map(BrokerId::get),
        leader_epoch: state.leader_epoch.get(),
        partition_epoch: state.partition_epoch.get(),
        replicas: ids(&state.replicas),
        isr: ids(&state.isr),
        elr: ids(state.elr()),
        last_known_elr: ids(state.last_known_elr()),
        adding: ids(state.adding()),
        removing: ids(state.removing()),
        leader_recovery_state: recovery(state.recovery()).to_owned(),
        cause: state.history().last().map(|note| note.cause.to_string()).unwrap_or_default(),
        history: state.history().map(change_note).collect(),
        min_insync_replicas: count(min_isr.min(state.replicas.len())),
    }
}

fn change_note(note: ChangeNote) -> admin::PartitionChangeNote {
    admin::PartitionChangeNote {
        cause: note.cause.to_string(),
        offset: note.offset.get(),
        time_ms: note.time_ms,
        leader: note.leader.map(BrokerId::get),
        leader_epoch: note.leader_epoch.get(),
        unclean: note.unclean,
    }
}

fn recovery(state: LeaderRecoveryState) -> &'static str {
    match state {
        LeaderRecoveryState::Recovered => "recovered",
        LeaderRecoveryState::Recovering => "recovering",
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::ids::{ControllerEpoch, DirectoryId, TopicId};
    use quorate_metadata::record::{Kind, PartitionRegistration, PartitionState};
    use quorate_metadata::{Batch, ErrorName, Ledger, Record};

    use super::*;

    /// The topics of this name, each with so many partitions; those with an odd number have no leader.
    fn image(topics: &[(&str, i32)]) -> MetadataImage {
        let mut records = Vec::new();
        for (at, (name, partitions)) in topics.iter().enumerate() {
            // Ids in the other order than names.
            let id = TopicId::from_bytes([u8::try_from(topics.len() - at).expect("few topics"); 16]);
            records.push(Record::CreateTopic { topic: id, name: (*name).to_owned(), kind: Kind::LOG });
            records.extend((0..*partitions).map(|number| created(id, number)));
        }
        let mut ledger = Ledger::default();
        let batch = Batch { controller_epoch: ControllerEpoch::new(1), timestamp_ms: 1, records };
        ledger.replay(&batch).expect("the records of this test replay");
        ledger.visible().clone()
    }

    fn created(topic: TopicId, number: i32) -> Record {
        let broker = BrokerId::new(1);
        let state = PartitionState {
            replicas: vec![broker],
            directories: vec![DirectoryId::UNASSIGNED],
            isr: vec![broker],
            leader: (number % 2 == 0).then_some(broker),
            ..PartitionState::default()
        };
        let id = TopicPartition::new(topic, PartitionId::new(number));
        Record::CreatePartition(PartitionRegistration { id, state: state.into() })
    }

    fn refs(names: &[&str]) -> Vec<admin::TopicRef> {
        names.iter().map(|name| admin::TopicRef { name: Some((*name).to_owned()), id: None }).collect()
    }

    fn numbers(partitions: &[admin::PartitionDescription]) -> Vec<(&str, i32)> {
        partitions.iter().map(|partition| (partition.topic.as_str(), partition.partition)).collect()
    }

    /// The sizes of all pages of a listing, and what they have together.
    async fn listed(
        image: &MetadataImage,
        filter: &admin::ListPartitionsRequest,
    ) -> (Vec<usize>, Vec<admin::PartitionDescription>) {
        let (mut sizes, mut found, mut filter) = (Vec::new(), Vec::new(), filter.clone());
        loop {
            let page = partitions(image, &filter).await.expect("a page");
            sizes.push(page.partitions.len());
            found.extend(page.partitions);
            filter.page_token = page.next_page_token;
            if filter.page_token.is_empty() {
                return (sizes, found);
            }
        }
    }

    #[tokio::test]
    async fn pages_of_partitions_add_up_to_the_whole() {
        let image = image(&[("a", 3), ("b", 1), ("c", 4)]);
        let whole = admin::ListPartitionsRequest::default();
        let (sizes, all) = listed(&image, &whole).await;
        assert_eq!(sizes, [8]);
        let (sizes, paged) = listed(&image, &admin::ListPartitionsRequest { page_size: 3, ..whole.clone() }).await;
        assert_eq!((sizes, &paged), (vec![3, 3, 2], &all));
        let leaderless = admin::ListPartitionsRequest { page_size: 2, leaderless: true, ..whole.clone() };
        let (sizes, found) = listed(&image, &leaderless).await;
        assert_eq!((sizes, numbers(&found)), (vec![2, 1], vec![("a", 1), ("c", 1), ("c", 3)]));
        let topic = admin::ListPartitionsRequest { page_size: 2, topic: Some("a".to_owned()), ..whole };
        let (sizes, found) = listed(&image, &topic).await;
        assert_eq!((sizes, numbers(&found)), (vec![2, 1], vec![("a", 0), ("a", 1), ("a", 2)]));
    }

    #[tokio::test]
    async fn a_page_goes_on_although_its_topic_was_deleted() {
        let mut filter = admin::ListPartitionsRequest { page_size: 4, ..Default::default() };
        let page = partitions(&image(&[("a", 3), ("b", 2), ("c", 1)]), &filter).await.expect("a page");
        filter.page_token = page.next_page_token;
        let page = partitions(&image(&[("a", 3), ("c", 1)]), &filter).await.expect("a page");
        assert_eq!((numbers(&page.partitions), page.next_page_token.as_str()), (vec![("c", 0)], ""));
    }

    #[tokio::test]
    async fn a_page_does_not_go_on_with_another_topic_of_the_same_name() {
        let mut filter = admin::ListPartitionsRequest { page_size: 2, ..Default::default() };
        let token = partitions(&image(&[("a", 3), ("c", 1)]), &filter).await.expect("a page").next_page_token;
        filter.page_token.clone_from(&token);
        // The id of "a" is another one.
        let recreated = image(&[("a", 3), ("b", 1), ("c", 1)]);
        let page = partitions(&recreated, &filter).await.expect("a page");
        assert_eq!(numbers(&page.partitions), [("b", 0), ("c", 0)]);
        let of_topic = admin::ListPartitionsRequest { topic: Some("a".to_owned()), ..filter.clone() };
        let refused = partitions(&recreated, &of_topic).await.expect_err("the topic of the first page is gone");
        assert_eq!(refused.name, ErrorName::UnknownTopicOrPartition);
        // No page has shown anything of it yet.
        filter.page_token = Token { name: "a".to_owned(), ..Token::default() }.encode("partitions");
        assert_eq!(numbers(&partitions(&recreated, &filter).await.expect("a page").partitions), [("a", 0), ("a", 1)]);
    }

    #[tokio::test]
    async fn a_token_of_another_request_is_refused_by_name() {
        let image = image(&[("a", 3), ("b", 2)]);
        let of_topic = |topic: &str, page_token: &str| admin::ListPartitionsRequest {
            page_size: 2,
            topic: Some(topic.to_owned()),
            page_token: page_token.to_owned(),
            ..Default::default()
        };
        let token = partitions(&image, &of_topic("a", "")).await.expect("a page").next_page_token;
        for foreign in [of_topic("b", &token), of_topic("a", "topics:0:1::a"), of_topic("a", "?")] {
            let refused = partitions(&image, &foreign).await.expect_err("it was not given out for this");
            assert_eq!(refused.name, ErrorName::InvalidRequest, "{foreign:?}");
        }
    }

    #[tokio::test]
    async fn pages_of_topics_add_up_to_the_whole() {
        let image = image(&[("a", 3), ("b", 1), ("c", 4)]);
        let whole = topics(&image, &admin::ListTopicsRequest::default()).await.expect("all of them");
        let leaderless: Vec<_> = whole.topics.iter().map(|topic| (topic.name.as_str(), topic.leaderless)).collect();
        assert_eq!(leaderless, [("a", 1), ("b", 0), ("c", 2)]);
        let first = admin::ListTopicsRequest { page_size: 2, ..Default::default() };
        let page = topics(&image, &first).await.expect("a page");
        assert_eq!(page.topics, whole.topics[..2]);
        let second = admin::ListTopicsRequest { page_token: page.next_page_token, ..first };
        let page = topics(&image, &second).await.expect("a page");
        assert_eq!((page.next_page_token.as_str(), &page.topics[..]), ("", &whole.topics[2..]));
    }

    #[tokio::test]
    async fn a_description_goes_on_in_the_next_page() {
        let image = image(&[("a", 3), ("b", 5)]);
        let mut asked =
            admin::DescribeTopicsRequest { page_size: 3, topics: refs(&["a", "?", "b", "a"]), ..Default::default() };
        let mut pages = Vec::new();
        loop {
            let page = described_topics(&image, asked.clone()).await.expect("a page");
            let topics = page.topics.iter();
            let topics = topics.map(|topic| (topic.name.clone(), topic.continued, topic.partitions.len()));
            pages.push(topics.collect::<Vec<_>>());
            asked.page_token = page.next_page_token;
            if asked.page_token.is_empty() {
                break;
            }
        }
        let (topic, unknown) = (|name: &str, continued, partitions| (name.to_owned(), continued, partitions), "");
        assert_eq!(
            pages,
            [
                vec![topic("a", false, 3)],
                vec![topic(unknown, false, 0), topic("b", false, 2)],
                vec![topic("b", true, 3)],
                vec![topic("a", false, 3)],
            ]
        );
    }

    #[tokio::test]
    async fn a_page_goes_on_with_a_topic_and_begins_the_next() {
        let image = image(&[("a", 3), ("b", 5)]);
        let asked = admin::DescribeTopicsRequest { page_size: 4, topics: refs(&["b", "a"]), ..Default::default() };
        let page = described_topics(&image, asked.clone()).await.expect("a page");
        let asked = admin::DescribeTopicsRequest { page_token: page.next_page_token, ..asked };
        let page = described_topics(&image, asked).await.expect("a page");
        let found: Vec<_> = page.topics.iter().map(|topic| numbers(&topic.partitions)).collect();
        assert_eq!(found, [vec![("b", 4)], vec![("a", 0), ("a", 1), ("a", 2)]]);
    }

    #[tokio::test]
    async fn the_configs_of_topics_count_for_their_page() {
        const BYTES: usize = 30_000;
        let mut image = image(&[("a", 1)]);
        let resource = ConfigResource::Topic("a".to_owned());
        image.configs.entry(resource).or_default().insert("key".to_owned(), "v".repeat(BYTES));
        let mut asked =
            admin::DescribeTopicsRequest { page_size: 1_000, topics: refs(&["a"; 100]), ..Default::default() };
        let mut described = 0;
        loop {
            let page = described_topics(&image, asked.clone()).await.expect("a page");
            assert!(page.encoded_len() < 1024 * 1024 + 2 * BYTES, "{} bytes", page.encoded_len());
            described += page.topics.len();
            asked.page_token = page.next_page_token;
            if asked.page_token.is_empty() {
                break;
            }
        }
        assert_eq!(described, 100);
    }

    #[tokio::test]
    async fn a_description_does_not_go_on_with_another_topic_of_the_same_name() {
        let asked = admin::DescribeTopicsRequest { page_size: 3, topics: refs(&["b"]), ..Default::default() };
        let page = described_topics(&image(&[("b", 5)]), asked.clone()).await.expect("a page");
        let asked = admin::DescribeTopicsRequest { page_token: page.next_page_token, ..asked };
        // Its id is another one.
        let page = described_topics(&image(&[("b", 5), ("c", 1)]), asked).await.expect("a page");
        let [topic] = &page.topics[..] else { panic!("one was asked for") };
        let error = topic.error.as_ref().map(|error| error.name.as_str());
        assert_eq!((topic.continued, error), (true, Some("UNKNOWN_TOPIC_OR_PARTITION")));
    }
}
