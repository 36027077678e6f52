//! Who may be which node: a voter is an id and a disk, a broker an id and a process.

use std::path::Path;
use std::process::Command;

use quorate_client::world;
use quorate_metadata::ids::ClusterId;
use quorate_proto::admin::{Assignment, NewTopic};
use quorate_tests::{CALM, Cluster, Run, binary, free_port, new_topic, wait};

#[tokio::test]
async fn a_wiped_disk_under_an_old_id_is_refused_by_name() {
    let mut cluster = Cluster::start(3).await;
    let wiped = cluster.standby().await;
    cluster.kill(wiped);
    cluster.wipe(wiped);
    let printed = cluster.run_again(wiped, &[]).refused("the wiped node to end").await;
    assert!(printed.contains("INVALID_VOTER_KEY"), "{printed}");
    // And again: that it has an identity by now changes nothing.
    let printed = cluster.run_again(wiped, &[]).refused("the wiped node to end once more").await;
    assert!(printed.contains("INVALID_VOTER_KEY"), "{printed}");
    cluster.create(new_topic("the-others-go-on", 2, 2)).await;
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_by_name() {
    let mut cluster = Cluster::start(3).await;
    let stranger = cluster.standby().await;
    let other = ClusterId::new(world::uuid()).to_string();
    cluster.kill(stranger);
    // Its configuration contradicts its own disk.
    let configured = cluster.run_again(stranger, &[("cluster_id", &other)]);
    let printed = configured.refused("the node configured for another cluster to end").await;
    assert!(printed.contains("INCONSISTENT_CLUSTER_ID"), "{printed}");
    // A disk that was formatted for another cluster meets the voters of this one.
    cluster.wipe(stranger);
    format_for(&cluster.data(stranger), stranger, &other);
    let printed = cluster.run_again(stranger, &[]).refused("the node of another cluster to end").await;
    assert!(printed.contains("INCONSISTENT_CLUSTER_ID"), "{printed}");
    cluster.create(new_topic("the-others-go-on", 2, 2)).await;
}

fn format_for(data: &Path, id: i32, cluster: &str) {
    let mut format = Command::new(binary());
    // One word, because an id may begin with a hyphen.
    let cluster = format!("--cluster-id={cluster}");
    format.arg("format").arg("--data").arg(data).args(["--node-id", &id.to_string(), &cluster]);
    assert!(format.output().expect("the binary can be started").status.success());
}

#[tokio::test]
async fn of_two_nodes_with_one_id_the_second_is_refused() {
    let mut cluster = Cluster::start(3).await;
    let id = cluster.standby().await;
    let address = || format!("127.0.0.1:{}", free_port());
    let (api, raft, http) = (address(), address(), address());
    let elsewhere = [("api_listen", api.as_str()), ("raft_listen", &raft), ("http_listen", &http)];

    let same_ports = cluster.run_again(id, &[]).refused("the second on the same ports to end").await;
    assert!(same_ports.contains("cannot listen on"), "{same_ports}");
    let same_disk = cluster.run_again(id, &elsewhere).refused("the second on the same disk to end").await;
    assert!(same_disk.contains("is in use by another process"), "{same_disk}");
    let data = cluster.file("another-disk").display().to_string();
    let settings: Vec<_> = elsewhere.into_iter().chain([("data_dir", data.as_str())]).collect();
    let other_disk = cluster.run_again(id, &settings).refused("the second on another disk to end").await;
    assert!(other_disk.contains("INVALID_VOTER_KEY"), "{other_disk}");

    cluster.ready().await;
    cluster.create(new_topic("the-first-goes-on", 2, 3)).await;
}

#[tokio::test]
async fn a_second_broker_under_a_live_ones_id_is_refused_by_name() {
    // In short sessions a broker that stood still for a second looks for another controller, and has no stream meanwhile.
    let mut cluster = Cluster::start_with(3, CALM).await;
    cluster.add_broker(4);
    cluster.restart(4);
    let first = cluster.broker_to_be(4, "unfenced").await;
    let address = || format!("127.0.0.1:{}", free_port());
    let (api, http) = (address(), address());
    let data = cluster.file("another-disk").display().to_string();
    let second = [
        ("api_listen", api.as_str()),
        ("http_listen", &http),
        ("data_dir", &data),
        ("broker_registration_timeout_ms", "5000"),
    ];
    let printed = cluster.run_again(4, &second).refused("the second broker to give up").await;
    assert!(printed.contains("DUPLICATE_BROKER_REGISTRATION"), "{printed}");
    let still = cluster.broker_to_be(4, "unfenced").await;
    assert_eq!((still.epoch, still.incarnation), (first.epoch, first.incarnation));
    // When the first is gone, another process takes its place, at a higher epoch.
    cluster.kill(4);
    cluster.broker_to_be(4, "fenced").await;
    cluster.restart(4);
    assert!(cluster.broker_to_be(4, "unfenced").await.epoch > first.epoch);
}

/// Runs a node with nothing but these settings, which it refuses; what it printed.
async fn refused_alone(settings: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let data = folder.path().join("data").display().to_string();
    let [api, raft, http] = [(); 3].map(|()| format!("127.0.0.1:{}", free_port()));
    let voters = format!("1@{raft}/{api}");
    let usual = [
        ("node_id", "1"),
        ("data_dir", &data),
        ("voters", &voters),
        ("api_listen", &api),
        ("raft_listen", &raft),
        ("http_listen", &http),
    ];
    let settings = usual.iter().chain(settings).flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")]);
    let arguments: Vec<String> = ["run".to_owned()].into_iter().chain(settings).collect();
    let printed = Run::start(&arguments, &[], &folder.path().join("log")).refused("the node to be refused").await;
    assert!(!folder.path().join("data").exists(), "a refused node leaves nothing behind");
    printed
}

#[tokio::test]
async fn an_empty_disk_is_not_formatted_by_accident() {
    let printed = refused_alone(&[("auto_format", "never")]).await;
    assert!(printed.contains("is not formatted: run `quorate-node format`"), "{printed}");
}

#[tokio::test]
async fn an_address_that_others_reach_needs_insecure_spelled_out() {
    let printed = refused_alone(&[("api_listen", "0.0.0.0:0")]).await;
    assert!(printed.contains("api_listen") && printed.contains("--insecure"), "{printed}");
}

#[tokio::test]
async fn an_unknown_key_is_refused_with_the_nearest_name() {
    let printed = refused_alone(&[("broker_session_timout_ms", "1000")]).await;
    assert!(printed.contains("did you mean \"broker_session_timeout_ms\"?"), "{printed}");
}

/// A broker without a controller, whose disk is put under the controllers of another cluster.
#[tokio::test]
async fn the_disk_of_another_cluster_is_refused_and_keeps_its_replicas() {
    let mut home = Cluster::start(3).await;
    home.add_broker(4);
    home.restart(4);
    home.broker_to_be(4, "unfenced").await;
    let assignment = vec![Assignment { partition: 0, replicas: vec![4] }];
    let kept = home.create(NewTopic { name: "kept".to_owned(), assignment, ..NewTopic::default() }).await.id;
    wait("broker 4 to have its replica", async || {
        let described = home.replicas_on(4).await?;
        described.replicas.iter().any(|replica| replica.topic_id == kept).then_some(())
    })
    .await;
    home.stop(4).await;

    let other = home.start_beside(3).await;
    let voters = other.voters().collect::<Vec<_>>().join(",");
    let elsewhere =
        home.run_again(4, &[("voters", &voters)]).refused("the broker under other controllers to end").await;
    assert!(elsewhere.contains("INCONSISTENT_CLUSTER_ID"), "{elsewhere}");
    // Its log directory alone, in a data directory of that cluster.
    let logs = home.data(4).join("logs").display().to_string();
    let data = home.file("other").display().to_string();
    let moved = [("voters", voters.as_str()), ("data_dir", &data), ("log_dirs", &logs)];
    let elsewhere = home.run_again(4, &moved).refused("the broker with a foreign log directory to end").await;
    assert!(elsewhere.contains("INCONSISTENT_CLUSTER_ID"), "{elsewhere}");

    home.restart(4);
    home.broker_to_be(4, "unfenced").await;
    let described = wait("broker 4 to open its logs", async || home.replicas_on(4).await).await;
    let replica = described.replicas.iter().find(|replica| replica.topic_id == kept).expect("it was kept");
    assert!(!replica.stray, "{replica:?}");
}
