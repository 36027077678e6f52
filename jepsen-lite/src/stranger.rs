//! Another cluster of one node, whose disk is put in the place of a node's own. It is stopped meanwhile, and afterwards
//! must have what it had.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use nix::sys::signal::Signal;
use quorate_client::log::{Consumer, ConsumerOptions, ProducedRecord, Producer, ProducerOptions, Start};
use quorate_client::{Freshness, Mode, check_item, world};
use quorate_metadata::ids::ClusterId;
use quorate_proto::admin::NewTopic;
use tokio::time::{Instant, sleep};

use crate::db::{signal, without_settings};
use crate::disk::Disk;
use crate::ports::free_port;
use crate::stderr::Stderr;
use crate::workload::client;

const TOPIC: &str = "kept";
const RECORDS: u64 = 100;

/// Until it answers, has written or read all, or has ended.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A cluster that does not run.
pub struct Stranger {
    binary: PathBuf,
    folder: PathBuf,
    /// Of the node that shares its id, so that nothing but the cluster tells their disks apart.
    node: i32,
    cluster: String,
    api: String,
    raft: String,
    /// None where there is no shim: with it, a harness that is killed leaves no process behind.
    disk: Option<Disk>,
}

impl Stranger {
    /// Starts it, has it keep some records, and stops it.
    pub async fn found(binary: &Path, shim: Option<&Path>, folder: PathBuf, node: i32) -> anyhow::Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let disk = shim.map(|shim| Disk::prepare(shim, &folder, &folder.join("data"))).transpose()?;
        let [api, raft] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
        let cluster = ClusterId::new(world::uuid()).to_string();
        let stranger = Self { binary: binary.to_owned(), folder, node, cluster, api, raft, disk };
        let run = stranger.start().await?;
        stranger.keep_records().await.context("another cluster does not take records")?;
        run.stop().await?;
        Ok(stranger)
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// What it keeps records in.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("data").join("logs")
    }

    /// Starts it, and looks for its records. The error says what is missing.
    pub async fn has_kept_all(&self) -> anyhow::Result<Result<(), String>> {
        let run = match self.start().await {
            Ok(run) => run,
            Err(error) => return Ok(Err(format!("its cluster does not start: {error:#}"))),
        };
        let kept = self.read_records().await;
        run.stop().await?;
        Ok(kept)
    }

    async fn start(&self) -> anyhow::Result<Run> {
        let log = self.folder.join("log");
        let mut command = Command::new(&self.binary);
        command.arg("run").stdin(Stdio::null()).stdout(Stderr::File.open(&log)?).stderr(Stderr::File.open(&log)?);
        without_settings(&mut command);
        for setting in self.settings() {
            command.arg("--set").arg(setting);
        }
        if let Some(disk) = &self.disk {
            command.env("LD_PRELOAD", disk.shim()).envs(disk.environment());
        }
        let child = command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))?;
        let mut run = Run { child };
        let deadline = Instant::now() + PATIENCE;
        while !self.is_up().await {
            if let Some(status) = run.child.try_wait()? {
                bail!("it has ended ({status}): {}", log.display());
            }
            ensure!(Instant::now() < deadline, "its broker is not unfenced after {PATIENCE:?}: {}", log.display());
            sleep(LOOK_AGAIN).await;
        }
        Ok(run)
    }

    fn settings(&self) -> [String; 7] {
        let Self { folder, node, cluster, api, raft, .. } = self;
        [
            format!("node_id={node}"),
            format!("data_dir={}", folder.join("data").display()),
            format!("cluster_id={cluster}"),
            format!("voters={node}@{raft}/{api}"),
            format!("api_listen={api}"),
            format!("raft_listen={raft}"),
            "http_listen=".to_owned(),
        ]
    }

    async fn is_up(&self) -> bool {
        let client = client(std::slice::from_ref(&self.api), Duration::from_secs(2));
        let listed = client.list_brokers(Freshness::Linearizable).await;
        listed.is_ok_and(|reply| reply.brokers.iter().any(|broker| broker.state == "unfenced"))
    }

    async fn keep_records(&self) -> anyhow::Result<()> {
        let addresses = std::slice::from_ref(&self.api);
        let (partitions, replication_factor) = (Some(1), Some(1));
        let topic = NewTopic { name: TOPIC.to_owned(), partitions, replication_factor, ..NewTopic::default() };
        let created = client(addresses, PATIENCE).create_topics(vec![topic], Mode::Apply).await?;
        check_item(created.topics.first().and_then(|topic| topic.error.as_ref()))?;
        let options = ProducerOptions { delivery_timeout: PATIENCE, ..ProducerOptions::default() };
        let producer = Producer::start(addresses, options)?;
        for number in 0..RECORDS {
            let value = Some(Bytes::copy_from_slice(&number.to_be_bytes()));
            let record = ProducedRecord { value, ..ProducedRecord::default() };
            producer.send(TOPIC, Some(0), record).await?.acknowledged().await?;
        }
        Ok(())
    }

    async fn read_records(&self) -> Result<(), String> {
        let client = client(std::slice::from_ref(&self.api), PATIENCE);
        let mut consumer = Consumer::new(client, ConsumerOptions::default());
        consumer.assign(TOPIC, 0, Start::Beginning);
        let (mut read, mut last_error, deadline) = (Vec::new(), None, Instant::now() + PATIENCE);
        while (read.len() as u64) < RECORDS && Instant::now() < deadline {
            match consumer.poll(Duration::from_millis(500)).await {
                Ok(records) => read.extend(records.into_iter().filter_map(|record| record.value)),
                Err(error) => {
                    last_error = Some(error);
                    sleep(LOOK_AGAIN).await;
                }
            }
        }
        let expected = (0..RECORDS).map(|number| Bytes::copy_from_slice(&number.to_be_bytes()));
        if read.iter().cloned().eq(expected) {
            return Ok(());
        }
        Err(format!("of {RECORDS} records it has {} (last error: {last_error:?})", read.len()))
    }
}

/// Its process. Dropping it kills it.
struct Run {
    child: Child,
}

impl Run {
    /// SIGTERM, and waits until it has ended well.
    async fn stop(mut self) -> anyhow::Result<()> {
        signal(&self.child, Signal::SIGTERM).context("cannot stop another cluster")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "another cluster did not end well: {status}");
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "another cluster did not stop within {PATIENCE:?} of SIGTERM");
            sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It may have ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
