//! Too many bytes, and bytes that are no request at all.

use std::time::Duration;

use quorate_proto::admin::CreateTopicsRequest;
use quorate_tests::{Cluster, UNHURRIED, mutation, new_topic, refusal};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Untouched;

const MEBIBYTE: usize = 1024 * 1024;

#[tokio::test]
async fn a_message_above_the_limit_is_refused_by_name() {
    let cluster = Cluster::start_with(3, UNHURRIED).await;
    let untouched = Untouched::since_now(&cluster).await;
    for id in cluster.ids() {
        let options = mutation(Duration::from_secs(30));
        let large = CreateTopicsRequest { options, topics: vec![new_topic("x".repeat(5 * MEBIBYTE), 1, 1)] };
        assert_eq!(refusal(cluster.admin(id).create_topics(large)).await, "MESSAGE_TOO_LARGE");
    }
    untouched.check(&cluster).await;
}

#[tokio::test]
async fn garbage_on_a_port_disturbs_nobody() {
    let mut cluster = Cluster::start_with(3, UNHURRIED).await;
    let epoch = cluster.quorum_seen_by(1).await.expect("it is up").epoch;
    let untouched = Untouched::since_now(&cluster).await;
    let mut noise = vec![0; 64 * 1024];
    StdRng::seed_from_u64(1).fill_bytes(&mut noise);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let frame_of_16_mib = [preface.as_slice(), &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1], &noise].concat();
    let messages = [
        noise.clone(),
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        [preface.as_slice(), &noise].concat(),
        frame_of_16_mib,
        b"P".to_vec(),
    ];
    for id in cluster.ids() {
        for address in [cluster.api(id), cluster.raft(id)] {
            for message in &messages {
                send(address, message).await;
            }
        }
    }
    untouched.check(&cluster).await;
    cluster.assert_alive();
    cluster.create(new_topic("afterwards", 3, 3)).await;
    assert_eq!(cluster.quorum_seen_by(1).await.expect("it is up").epoch, epoch, "nobody had a reason to elect");
}

/// Sends, says that no more will come, and reads what the node has to say to that.
async fn send(address: &str, message: &[u8]) {
    let mut connection = TcpStream::connect(address).await.expect("somebody listens");
    // The node may hang up before it has heard everything, which is its right.
    let talk = async {
        let _ = connection.write_all(message).await;
        let _ = connection.shutdown().await;
        let mut heard = Vec::new();
        let _ = connection.read_to_end(&mut heard).await;
    };
    timeout(quorate_tests::PATIENCE, talk).await.expect("the node hangs up on garbage");
}
