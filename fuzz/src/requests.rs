//! Whatever is asked of the planner, in whatever order: it answers; twice the same where it is asked twice; a refusal is
//! named, and certain to have changed nothing. What is planned replays, wherever its batches are cut, and after each of
//! them
//! - the image keeps every rule of `image/verify.rs`;
//! - the batch survives its encoding; the image survives its snapshot, also with a transaction that is open;
//! - a partition has had one leader in a leader epoch, and its epochs do not fall (P2);
//! - whoever was elected was in ISR or ELR, or the change says that it is unclean and had a right to be (P3).
//!
//! A follower of the feed is where the controller is.

pub(crate) mod draw;
pub(crate) mod plan;

use std::collections::BTreeMap;

use quorate_metadata::ids::{BrokerId, ControllerEpoch, LeaderEpoch, Offset, TopicPartition};
use quorate_metadata::image::RequestOutcome;
use quorate_metadata::plan::checkpoint;
use quorate_metadata::record::{Cause, PartitionChange};
use quorate_metadata::rng::Rng;
use quorate_metadata::{Batch, Ledger, MetadataImage, Record, config};
use quorate_proto::{batch, snapshot};

use draw::{Cut, Draw, RequestId};
use plan::{Planned, Request};

/// Enough for a broker to come, lead, be lost and come back, a few times.
const REQUESTS_MAX: usize = 64;

/// `bytes`: what requests are drawn from.
pub fn check(bytes: &[u8]) {
    let mut draw = Draw::new(bytes);
    let mut cluster = Cluster::default();
    if draw.flag() {
        cluster.bring_up();
    }
    for _ in 0..REQUESTS_MAX {
        if draw.is_exhausted() {
            break;
        }
        let request = draw.request(cluster.image());
        cluster.ask(&request, draw.request_id(), draw.cut());
    }
    check_snapshot(&cluster.draft);
    assert_eq!(cluster.follower.visible(), cluster.draft.visible(), "the feed does not lead to where it comes from");
}

struct Cluster {
    draft: Ledger,
    /// Replays what the feed tells.
    follower: Ledger,
    /// Who led each partition under each epoch.
    leaders: BTreeMap<(TopicPartition, LeaderEpoch), Option<BrokerId>>,
    controller_epoch: i32,
    rng: Rng,
}

impl Default for Cluster {
    fn default() -> Self {
        let (draft, follower, leaders) = Default::default();
        Self { draft, follower, leaders, controller_epoch: 1, rng: Rng::new(1) }
    }
}

impl Cluster {
    fn image(&self) -> &MetadataImage {
        self.draft.working()
    }

    /// Four brokers, unfenced, so that not every input has to find out how.
    fn bring_up(&mut self) {
        self.propose(checkpoint::bootstrap(self.image(), draw::CLUSTER).records);
        for broker in (1..=4).map(BrokerId::new) {
            for request in [Request::Register(draw::registration(broker), false), Request::Unfence(broker)] {
                self.ask(&request, None, Cut::WHOLE);
            }
        }
    }

    fn ask(&mut self, request: &Request, id: Option<RequestId>, cut: Cut) {
        let mut again = self.rng.clone();
        let planned = request.plan(self.draft.working(), &mut self.rng);
        assert_eq!(planned, request.plan(self.draft.working(), &mut again), "{request:?} planned twice");
        match planned {
            Err(refusal) => {
                assert!(refusal.name.is_definite() && !refusal.message.is_empty(), "{request:?}: {refusal:?}");
            }
            Ok(Planned { records, waiting_on, .. }) if records.is_empty() => {
                assert!(waiting_on.is_some(), "{request:?} comes to nothing, and nobody says why");
            }
            Ok(planned) => self.propose_all(planned, id, cut),
        }
    }

    /// In batches that are cut anywhere, where `checkpoint::into_batches` cuts at a megabyte.
    fn propose_all(&mut self, planned: Planned, id: Option<RequestId>, cut: Cut) {
        assert!(planned.waiting_on.is_none());
        let size = if begins_reassignment(&planned.records) { usize::MAX } else { cut.records };
        let mut batches: Vec<Vec<Record>> = planned.records.chunks(size).map(<[Record]>::to_vec).collect();
        let is_transaction = planned.atomic && batches.len() > 1;
        let last = batches.last_mut().expect("a plan with records has a batch");
        last.extend(id.and_then(|id| self.remembered(id)));
        if is_transaction {
            last.push(Record::EndTransaction);
            batches[0].insert(0, Record::BeginTransaction { name: "fuzz".to_owned() });
        }
        let last = batches.len() - 1;
        for (at, records) in batches.into_iter().enumerate() {
            if cut.resigns && at == last {
                // The others are in the log, for a successor to find.
                return self.succeed();
            }
            self.propose(records);
        }
    }

    fn remembered(&self, RequestId { client, request }: RequestId) -> Option<Record> {
        let is_new = self.image().requests.look_up(client, request) == RequestOutcome::New;
        let reply = request.to_be_bytes().to_vec();
        is_new.then_some(Record::RequestApplied { client, request, reply, offset: None, forgotten_up_to: None })
    }

    /// Another controller claims, which may have begun with a snapshot, and ends what this one has begun.
    fn succeed(&mut self) {
        check_snapshot(&self.draft);
        self.controller_epoch += 1;
        let abort = checkpoint::abort_transaction(&self.draft, "its controller resigned").records;
        if !abort.is_empty() {
            let before = self.draft.visible().digest();
            self.propose(abort);
            assert_eq!(self.draft.visible().digest(), before, "an aborted transaction leaves nothing behind");
        }
        assert!(!self.draft.has_open_transaction());
    }

    fn propose(&mut self, records: Vec<Record>) {
        let before = self.draft.working().clone();
        let epoch = ControllerEpoch::new(self.controller_epoch);
        let batch = Batch { controller_epoch: epoch, timestamp_ms: before.next_offset.get(), records };
        check_encoding(before.next_offset, &batch);
        let replayed = self.draft.replay(&batch).expect("a plan replays");
        assert_eq!(self.image().verify_changed(&batch), [], "{batch:?}");
        assert_eq!(self.image().verify(), [], "{batch:?}");
        for delta in replayed.visible {
            let told = Batch { records: delta.records.to_vec(), ..batch.clone() };
            let told = Batch { controller_epoch: delta.controller_epoch, timestamp_ms: delta.timestamp_ms, ..told };
            self.follower.replay_visible(&told, delta.next_offset).expect("what is visible replays");
        }
        batch.records.iter().for_each(|record| check_change(&before, self.image(), record));
        self.note_leaders();
    }

    fn note_leaders(&mut self) {
        if self.draft.has_open_transaction() {
            return;
        }
        for (id, at) in self.draft.working().partitions() {
            let first = *self.leaders.entry((id, at.leader_epoch)).or_insert(at.leader);
            assert_eq!(first, at.leader, "{id} has had two leaders in epoch {}", at.leader_epoch);
        }
    }
}

/// Such a plan fits one batch or is refused.
fn begins_reassignment(records: &[Record]) -> bool {
    records.iter().any(|record| matches!(record, Record::BeginReassignment(_)))
}

fn check_encoding(base: Offset, batch: &Batch) {
    let decoded = batch::decode(&batch::encode(base, batch)).expect("what is encoded is decoded");
    assert_eq!(decoded, (base, batch.clone()));
}

fn check_snapshot(ledger: &Ledger) {
    let mut written = Vec::new();
    snapshot::write(ledger, &mut written).expect("memory can be written");
    let read = snapshot::read(&mut &*written).expect("what is written can be read");
    assert_eq!(&read, ledger);
}

fn check_change(before: &MetadataImage, after: &MetadataImage, record: &Record) {
    let Record::PartitionChange(change) = record else { return };
    let (was, is) = (before.partition(change.id), after.partition(change.id));
    let (was, is) = (was.expect("it was there"), is.expect("it is there"));
    assert!(is.leader_epoch >= was.leader_epoch && is.partition_epoch > was.partition_epoch, "{change:?}");
    check_election(before, change);
}

/// Whether a leader was elected by right.
fn check_election(before: &MetadataImage, change: &PartitionChange) {
    let Some(Some(leader)) = change.leader else {
        return assert!(!change.unclean, "nobody was elected, uncleanly: {change:?}");
    };
    let was = before.partition(change.id).expect("it was there");
    // The change that ends a reassignment also brings replicas in, on the word of the leader until then.
    let brought_in = change.isr.as_ref().is_some_and(|isr| isr.contains(&leader));
    let vouched_for = change.cause == Cause::Reassignment && was.leader.is_some() && brought_in && !change.unclean;
    let is_clean = was.isr.contains(&leader) || was.elr().contains(&leader) || vouched_for;
    assert_eq!(is_clean, !change.unclean, "{change:?} on {was:?}");
    if change.unclean {
        let topic = before.topic(change.id.topic).expect("it was there");
        let allowed = config::unclean_allowed(before, &topic.name) || change.cause == Cause::ElectionRequested;
        assert!(allowed, "{change:?} on {was:?}");
        assert_eq!(change.isr.as_deref().unwrap_or(&was.isr), [leader]);
    }
}
