use prost::Message;
use quorate_proto::log::{ProduceRequest, ProducedBatch, Record, RecordBatch, Records};
use quorate_tests::{Cluster, new_topic, wait};

#[tokio::test]
async fn smoke() {
    let mut cluster = Cluster::start(3).await;
    let created = cluster.create(new_topic("orders", 1, 3)).await;
    let leader = wait("leader", async || cluster.topic("orders").await.partitions[0].leader).await;
    let produce = async |cluster: &Cluster, leader: i32, value: String| {
        let records = Records {
            records: vec![Record { value: Some(value.into_bytes().into()), timestamp_ms: 5, ..Record::default() }],
        };
        let batch = RecordBatch { record_count: 1, records: records.encode_to_vec().into(), ..RecordBatch::default() };
        let batches =
            vec![ProducedBatch { topic_id: created.id.clone(), partition: 0, leader_epoch: None, batch: Some(batch) }];
        let reply = cluster.log_of(leader).produce(ProduceRequest { acks: -1, timeout_ms: 5000, batches }).await;
        let reply = reply.map(|r| r.into_inner());
        eprintln!("{reply:?}");
        reply.ok().filter(|r| r.partitions[0].error.is_none())
    };
    for n in 0..10 {
        let at = std::time::Instant::now();
        wait("produce", async || produce(&cluster, leader, format!("value {n}")).await).await;
        eprintln!("took {:?}", at.elapsed());
    }
    cluster.identical_logs("orders").await;
    cluster.kill(leader);
    let at = std::time::Instant::now();
    wait("produce", async || {
        let leader = cluster.topic("orders").await.partitions[0].leader?;
        produce(&cluster, leader, format!("after")).await
    })
    .await;
    eprintln!("took {:?}", at.elapsed());
    let logs = cluster.identical_logs("orders").await;
    assert_eq!(logs[0].values().len(), 11);
    cluster.restart(leader);
    cluster.ready().await;
    let logs = cluster.identical_logs("orders").await;
    assert_eq!(logs[0].values().len(), 11);
    eprintln!("{:?}", cluster.replicas_on(leader).await);
}
