use quorate_metadata::ids::{BrokerEpoch, TopicPartition};
use tokio::sync::mpsc;

use super::super::fixture::{broker, id, image, lead, reassign};
use super::super::host::{Assignment, DeleteReason, OfflineReason};
use super::*;

const LEASE: Duration = Duration::from_secs(3);
const GRACE: Duration = Duration::from_secs(60);

/// Says what it is called for.
struct Recorder {
    hosted: Vec<TopicPartition>,
    said: mpsc::UnboundedSender<String>,
}

impl Recorder {
    fn say(&self, what: String) {
        self.said.send(what).expect("the test listens");
    }
}

#[tonic::async_trait]
impl PartitionHost for Recorder {
    fn hosted(&self) -> Vec<TopicPartition> {
        self.hosted.clone()
    }

    async fn become_leader(&self, assignment: Assignment) {
        self.say(format!("lead {} at {}", assignment.id.partition, assignment.leader_epoch()));
    }

    async fn become_follower(&self, assignment: Assignment) {
        self.say(format!("follow {} at {}", assignment.id.partition, assignment.leader_epoch()));
    }

    async fn become_offline(&self, assignment: Assignment, reason: OfflineReason) {
        self.say(format!("offline {} {reason:?}", assignment.id.partition));
    }

    async fn delete_replica(&self, id: TopicPartition, reason: DeleteReason) {
        self.say(format!("delete {} {reason:?}", id.partition));
    }

    async fn found_stray(&self, id: TopicPartition) {
        self.say(format!("stray {}", id.partition));
    }
}

struct Driven {
    standing: watch::Sender<Standing>,
    metadata: watch::Sender<MetadataImage>,
    heard: mpsc::UnboundedReceiver<String>,
    driver: tokio::task::JoinHandle<()>,
}

impl Driven {
    fn start(hosted: Vec<TopicPartition>, metadata: MetadataImage) -> Self {
        let (said, heard) = mpsc::unbounded_channel();
        let host = Arc::new(Recorder { hosted, said });
        let (standing, standings) = watch::channel(Standing::UNREGISTERED);
        let (metadata, images) = watch::channel(metadata);
        let driver = tokio::spawn(run(broker(1), GRACE, host, standings, images));
        Self { standing, metadata, heard, driver }
    }

    fn register(&self, epoch: i64) {
        self.standing.send_replace(Standing { epoch: Some(BrokerEpoch::new(epoch)), ..Standing::UNREGISTERED });
    }

    fn grant(&self) {
        let lease_until = Some(Instant::now() + LEASE);
        self.standing.send_modify(|standing| *standing = Standing { fenced: false, lease_until, ..*standing });
    }

    async fn hear(&mut self) -> String {
        self.heard.recv().await.expect("the driver lives")
    }

    /// What it says while the others have nothing left to do.
    async fn is_silent(&mut self) -> bool {
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.heard.is_empty()
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_called_before_the_broker_has_read_of_its_own_registration() {
    let mut image = image(&[&[1, 2]]);
    let mut driven = Driven::start(vec![id(0)], image.clone());
    assert!(driven.is_silent().await);
    driven.register(image.next_offset.get());
    assert!(driven.is_silent().await);
    lead(&mut image, 0, Some(2));
    driven.metadata.send_replace(image);
    assert_eq!(driven.hear().await, "follow 0 at 1");
}

#[tokio::test(start_paused = true)]
async fn at_the_end_of_the_lease_nobody_has_to_say_anything() {
    let mut driven = Driven::start(Vec::new(), image(&[&[1, 2]]));
    driven.register(0);
    assert_eq!(driven.hear().await, "offline 0 LeaseEnded");
    driven.grant();
    assert_eq!(driven.hear().await, "lead 0 at 0");
    let granted = Instant::now();
    assert_eq!(driven.hear().await, "offline 0 LeaseEnded");
    assert!(granted.elapsed() <= LEASE + Duration::from_millis(1), "{:?}", granted.elapsed());
    driven.grant();
    assert_eq!(driven.hear().await, "lead 0 at 0");
}

#[tokio::test(start_paused = true)]
async fn a_moved_replica_is_kept_for_the_grace_period_a_stray_for_ever() {
    let mut image = image(&[&[2, 3], &[2, 3]]);
    let mut driven = Driven::start(vec![id(0), id(1), id(5)], image.clone());
    driven.register(0);
    assert_eq!(driven.hear().await, "stray 5");
    let found = Instant::now();
    reassign(&mut image, 0, &[2, 1]);
    driven.metadata.send_replace(image.clone());
    assert_eq!(driven.hear().await, "follow 0 at 1");
    assert_eq!(driven.hear().await, "delete 1 Reassigned");
    assert!(found.elapsed() >= GRACE, "{:?}", found.elapsed());
    reassign(&mut image, 0, &[2, 3]);
    driven.metadata.send_replace(image);
    assert_eq!(driven.hear().await, "delete 0 Reassigned");
}

#[tokio::test(start_paused = true)]
async fn without_a_session_the_leaders_step_down() {
    let mut driven = Driven::start(Vec::new(), image(&[&[1, 2]]));
    driven.register(0);
    driven.grant();
    assert_eq!(driven.hear().await, "lead 0 at 0");
    drop(driven.standing);
    assert_eq!(driven.heard.recv().await.as_deref(), Some("offline 0 LeaseEnded"));
    driven.driver.await.expect("it ends without a panic");
}
