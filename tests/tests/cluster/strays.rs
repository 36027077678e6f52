//! Replicas that the metadata does not know: kept, shown, and deleted by nobody but an operator.

use quorate_log::{Flush, LogDirectory};
use quorate_metadata::ErrorName;
use quorate_metadata::ids::{PartitionId, TopicId, TopicPartition};
use quorate_proto::log::{DeleteStraysRequest, ListStraysRequest, PartitionRef, Stray};
use quorate_tests::{Cluster, new_topic, outcome, wait};

/// Of a cluster that this one knows nothing of.
const FOREIGN: [u8; 16] = [9; 16];
const PARTITIONS: i32 = 3;

async fn strays(cluster: &Cluster, id: i32, page_size: u32) -> Option<Vec<Stray>> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListStraysRequest { page_size, page_token };
        let reply = outcome(cluster.log_of(id).list_strays(request)).await.ok()?;
        found.extend(reply.strays);
        if reply.next_page_token.is_empty() {
            return Some(found);
        }
        page_token = reply.next_page_token;
    }
}

/// The names of the refusals, empty where there is none.
async fn delete(cluster: &Cluster, id: i32, strays: Vec<PartitionRef>) -> Vec<String> {
    let request = DeleteStraysRequest { strays };
    let reply = outcome(cluster.log_of(id).delete_strays(request)).await.expect("each is answered by itself");
    reply.strays.into_iter().map(|stray| stray.error.map_or_else(String::new, |error| error.name)).collect()
}

fn named(topic_id: &str, partition: i32) -> PartitionRef {
    PartitionRef { topic_id: topic_id.to_owned(), partition }
}

#[tokio::test]
async fn a_stray_is_kept_until_an_operator_deletes_it() {
    let mut cluster = Cluster::start(3).await;
    let orders = cluster.create(new_topic("orders", 1, 3)).await.id;
    cluster.stop(3).await;
    let directory = LogDirectory::open(&cluster.data(3).join("logs"), Flush::Always).expect("the node has stopped");
    for partition in 0..PARTITIONS {
        let id = TopicPartition::new(TopicId::from_bytes(FOREIGN), PartitionId::new(partition));
        directory.log(id, 0).expect("the directory works");
    }
    drop(directory);
    cluster.set(3, "stray_grace_ms", "100");
    cluster.restart(3);
    cluster.ready().await;
    let found = wait("the strays to be found", async || {
        strays(&cluster, 3, 2).await.filter(|found| found.len() == 3 && found.iter().all(|stray| stray.bytes.is_some()))
    })
    .await;
    let foreign = TopicId::from_bytes(FOREIGN).to_string();
    let partitions: Vec<_> = found.iter().map(|stray| (stray.topic_id.as_str(), stray.partition)).collect();
    assert_eq!(partitions, [(&*foreign, 0), (&*foreign, 1), (&*foreign, 2)]);
    // What is known to be deleted goes, and the strays stay.
    cluster.delete("orders").await;
    wait("the replica of the deleted topic to be gone", async || {
        let replicas = cluster.replicas_on(3).await?.replicas;
        replicas.iter().all(|replica| replica.topic_id != orders).then_some(())
    })
    .await;
    assert_eq!(strays(&cluster, 3, 0).await.map(|found| found.len()), Some(3));

    let kept = cluster.create(new_topic("kept", 1, 3)).await.id;
    let refused = ErrorName::ReplicaNotAvailable.to_string();
    let asked = vec![named(&foreign, 1), named(&kept, 0), named(&foreign, 7)];
    assert_eq!(delete(&cluster, 3, asked).await, [String::new(), refused.clone(), refused]);
    assert_eq!(strays(&cluster, 3, 0).await.map(|found| found.len()), Some(2));
    cluster.stop(3).await;
    cluster.restart(3);
    cluster.ready().await;
    wait("the two that were left to be found again", async || {
        let found = strays(&cluster, 3, 0).await?;
        found.iter().map(|stray| stray.partition).eq([0, 2]).then_some(())
    })
    .await;
}
