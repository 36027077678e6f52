//! Disks that are full, and disks that do not answer.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use jepsen_lite::disk::{Disk, Mode as DiskMode, compile_shim};
use quorate_client::Freshness;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::admin::NewTopic;
use quorate_proto::log::Record;
use quorate_tests::{Cluster, Load, new_topic, produce, wait};

/// A small file system in memory, which only root may mount.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, mebibytes: u32) -> Option<Self> {
        fs::create_dir_all(&path).expect("the test's folder can be written");
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).output();
        let is_mounted = mounted.is_ok_and(|mounted| mounted.status.success());
        if !is_mounted {
            eprintln!("skipped: this user may not mount a file system");
        }
        is_mounted.then_some(Self(path))
    }

    /// Takes all the room that is left.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let mut file = File::create(&path).expect("a file without content takes no room");
        for bytes in [1 << 20, 1 << 12] {
            while file.write_all(&vec![1; bytes]).is_ok() {}
        }
        path
    }

    fn free_bytes(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(&self.0).expect("it is mounted");
        found.blocks_available() * found.fragment_size()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Nodes that still run keep it until they end.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The leader of partition 0 of the topic.
async fn leader(cluster: &Cluster, topic: &str) -> i32 {
    wait("a leader", async || cluster.topic(topic).await.partitions[0].leader).await
}

async fn write_one(cluster: &Cluster, topic: &str) -> Result<(), ApiError> {
    let id = cluster.topic(topic).await.id;
    let leader = leader(cluster, topic).await;
    let record = Record { value: Some(vec![7; 900_000].into()), timestamp_ms: None, ..Record::default() };
    produce(&mut cluster.log_of(leader), &id, -1, record).await.map(drop)
}

/// Writes until a producer is refused for lack of room.
async fn write_until_refused(cluster: &Cluster, topic: &str) {
    wait("producers to be refused", async || match write_one(cluster, topic).await {
        Err(error) if error.name == ErrorName::KafkaStorageError => {
            assert!(error.message.contains("producers are refused"), "{error}");
            Some(())
        }
        Ok(()) | Err(_) => None,
    })
    .await;
}

async fn producers_are_let_in(cluster: &Cluster, topic: &str) {
    wait("producers to be let in again", async || write_one(cluster, topic).await.ok()).await;
}

#[tokio::test]
async fn full_log_directories_refuse_producers_and_end_no_node() {
    let mut cluster = Cluster::prepare(3, &[]).await;
    let mut disks = Vec::new();
    for id in cluster.ids() {
        let path = cluster.file(&format!("disk-{id}"));
        let Some(disk) = SmallDisk::mount(path.clone(), 600) else { return };
        disks.push(disk);
        cluster.set(id, "log_dirs", &path.join("logs").display().to_string());
    }
    cluster.restart_all();
    cluster.ready().await;
    cluster.create(new_topic("orders", 1, 3)).await;
    write_until_refused(&cluster, "orders").await;
    cluster.assert_alive();
    wait("the status to name the disks", async || {
        let status = cluster.client().cluster_status(Freshness::Linearizable).await.ok()?;
        status.reasons.iter().any(|reason| reason.contains("producers are refused")).then_some(())
    })
    .await;
    cluster.create(new_topic("others", 1, 3)).await;
    cluster.delete("orders").await;
    producers_are_let_in(&cluster, "others").await;
    cluster.assert_alive();
}

/// Something else has taken all the room: the directory is offline, the controller is not, and both return by themselves.
#[tokio::test]
async fn a_log_directory_without_room_returns_when_there_is_room() {
    let mut cluster = Cluster::prepare(3, &[]).await;
    let path = cluster.file("disk");
    let Some(disk) = SmallDisk::mount(path.clone(), 200) else { return };
    cluster.set(1, "log_dirs", &path.join("logs").display().to_string());
    // Nobody is refused in time.
    cluster.set(1, "log_dir_free_bytes_min", "0");
    cluster.restart_all();
    cluster.ready().await;
    let configs = [("min.insync.replicas".to_owned(), "2".to_owned())].into();
    cluster.create(NewTopic { configs, ..new_topic("orders", 6, 3) }).await;
    cluster.create(new_topic("others", 6, 3)).await;
    let ballast = disk.fill();
    let load = Load::start(&cluster, "orders");
    wait("the broker to be fenced", async || {
        // Who leads may change, and the room in the log of writes may last for a while.
        let _ = write_one(&cluster, "others").await;
        cluster.broker_seen(1).await.filter(|broker| broker.state == "fenced")
    })
    .await;
    cluster.assert_alive();
    fs::remove_file(ballast).expect("it is there");
    cluster.broker_to_be(1, "unfenced").await;
    wait("node 1 back in every ISR", async || {
        cluster.topic("orders").await.partitions.iter().all(|at| at.isr.contains(&1)).then_some(())
    })
    .await;
    cluster.assert_alive();
    let account = load.stop().await;
    account.check(&cluster.identical_logs("orders").await);
}

#[tokio::test]
async fn everything_on_a_full_disk_starts_again_and_deletes() {
    let mut cluster = Cluster::prepare(3, &[]).await;
    let path = cluster.file("disk");
    let Some(disk) = SmallDisk::mount(path.clone(), 1_500) else { return };
    for id in cluster.ids() {
        cluster.set(id, "data_dir", &path.join(id.to_string()).display().to_string());
    }
    cluster.restart_all();
    cluster.ready().await;
    cluster.create(new_topic("orders", 1, 3)).await;
    write_until_refused(&cluster, "orders").await;
    cluster.assert_alive();
    cluster.kill_all();
    let ballast = disk.fill();
    assert!(disk.free_bytes() < 1 << 20);
    cluster.restart_all();
    cluster.ready().await;
    let before = disk.free_bytes();
    cluster.delete("orders").await;
    wait("the room of the topic", async || (disk.free_bytes() > before + (16 << 20)).then_some(())).await;
    fs::remove_file(ballast).expect("it is there");
    cluster.create(new_topic("others", 1, 3)).await;
    producers_are_let_in(&cluster, "others").await;
    wait("the reserves of the raft logs", async || {
        let has_reserve = |id: &i32| path.join(id.to_string()).join("raft.reserve").exists();
        cluster.ids().iter().all(has_reserve).then_some(())
    })
    .await;
    cluster.assert_alive();
}

fn on_shim(cluster: &mut Cluster, shim: &Path, id: i32) -> Disk {
    let (folder, logs) = (cluster.file(&format!("shim-{id}")), cluster.file(&format!("logs-{id}")));
    fs::create_dir_all(&folder).expect("the test's folder can be written");
    let disk = Disk::prepare(shim, &folder, &logs).expect("the test's folder can be written");
    cluster.set(id, "log_dirs", &logs.display().to_string());
    cluster.set_variable(id, "LD_PRELOAD", &disk.shim().display().to_string());
    for (name, value) in disk.environment() {
        cluster.set_variable(id, name, &value.to_string_lossy());
    }
    disk
}

#[tokio::test]
async fn others_lead_what_is_on_a_disk_that_hangs_and_it_returns() {
    let mut cluster = Cluster::prepare(3, &[("disk_timeout_ms", "1000")]).await;
    let folder = cluster.file("shim");
    fs::create_dir_all(&folder).expect("the test's folder can be written");
    let shim = compile_shim(&folder).expect("there is a C compiler");
    let disks: BTreeMap<i32, Disk> =
        cluster.ids().into_iter().map(|id| (id, on_shim(&mut cluster, &shim, id))).collect();
    cluster.restart_all();
    cluster.ready().await;
    let configs = [("min.insync.replicas".to_owned(), "2".to_owned())].into();
    cluster.create(NewTopic { configs, ..new_topic("orders", 6, 3) }).await;
    let load = Load::start(&cluster, "orders");
    let hung = leader(&cluster, "orders").await;
    disks[&hung].set(DiskMode::Hangs).expect("the test's folder can be written");
    wait("others to lead", async || {
        let partitions = cluster.topic("orders").await.partitions;
        partitions.iter().all(|at| at.leader.is_some_and(|leader| leader != hung)).then_some(())
    })
    .await;
    cluster.broker_to_be(hung, "fenced").await;
    wait("the status to name the disk", async || {
        let status = cluster.client().cluster_status(Freshness::Linearizable).await.ok()?;
        status.reasons.iter().any(|reason| reason.contains("has not answered for")).then_some(())
    })
    .await;
    disks[&hung].set(DiskMode::Sound).expect("the test's folder can be written");
    wait("the node back in every ISR", async || {
        cluster.topic("orders").await.partitions.iter().all(|at| at.isr.contains(&hung)).then_some(())
    })
    .await;
    cluster.assert_alive();
    let account = load.stop().await;
    assert!(account.failed.is_empty(), "{:?}", account.failed);
    account.check(&cluster.identical_logs("orders").await);
}
