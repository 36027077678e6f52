//! Claim and resign: how this node becomes the active controller, and stops being it.

use std::collections::{BTreeMap, BTreeSet};

use quorate_metadata::ids::{BrokerId, ControllerEpoch};
use quorate_metadata::plan::{brokers, checkpoint};
use tokio::time::Instant;
use tracing::info;

use super::event_loop::{Claim, EventLoop};
use super::inflight::InFlight;
use super::large_plan::{LargePlans, not_controller};
use super::operation::Operation;
use super::tasks::TaskTable;
use super::under_way::UnderWay;

impl EventLoop {
    /// Everything committed before this epoch has been replayed here, so the draft starts as what is true.
    pub(super) fn activate(&mut self, epoch: ControllerEpoch) {
        let draft = self.view.ledger().to_draft();
        info!(controller_epoch = %epoch, offset = %draft.working().next_offset, "claimed");
        self.metrics.claims.inc();
        self.sessions.start_all(draft.working());
        self.claim = Some(Claim {
            epoch,
            draft,
            in_flight: InFlight::default(),
            tasks: TaskTable::starting(Instant::now()),
            under_way: UnderWay::default(),
            large: LargePlans::default(),
            suspects: BTreeSet::new(),
            returned: BTreeMap::new(),
            digest_due: false,
            digested_at: None,
        });
        self.abort_open_transaction("its controller resigned");
        self.run_all(self.first_operations());
        self.look_at_leaderless();
        self.publish_claim(Some(epoch));
        self.probe_every_broker();
    }

    pub(super) fn resign(&mut self, why: &str) {
        let Some(mut claim) = self.claim.take() else { return };
        self.publish_claim(None);
        claim.in_flight.fail_all();
        self.view.drafts.clear();
        claim.large.fail_all();
        for operation in claim.under_way.take_all() {
            self.operations.bytes().remove(operation.origin, operation.weight.bytes);
            operation.refuse(not_controller());
        }
        self.sessions.clear();
        self.probes.abort_all();
        info!(controller_epoch = %claim.epoch, why, "resigned");
    }

    /// Ends the transaction that is open on the draft, if there is one: nothing of it stays.
    pub(super) fn abort_open_transaction(&mut self, why: &'static str) {
        let Some(claim) = &self.claim else { return };
        let abort = checkpoint::abort_transaction(&claim.draft, why);
        if abort.records.is_empty() {
            return;
        }
        self.run_all(vec![Operation::internal("abort-transaction", move |_, _| Ok(abort.clone()))]);
    }

    /// The controller before this one may not have come to all that a returned broker can lead.
    fn look_at_leaderless(&mut self) {
        let Some(claim) = &mut self.claim else { return };
        let image = claim.draft.working();
        let has_leaderless = |broker: &BrokerId| image.index.leaderless_on(*broker, None).next().is_some();
        let active = image.brokers.keys().copied().filter(|&broker| image.is_active(broker));
        claim.returned = active.filter(has_leaderless).map(|broker| (broker, None)).collect();
    }

    /// What a new controller writes before it serves: the cluster's first records, and its own registration.
    fn first_operations(&self) -> Vec<Operation> {
        let claim = self.claim.as_ref().expect("called while claiming");
        let mut operations = Vec::new();
        if claim.draft.visible().cluster.is_none() {
            let (cluster, level) = (self.raft.cluster(), self.raft.level_when_formed());
            operations.push(Operation::internal("bootstrap", move |image, _| {
                Ok(checkpoint::bootstrap_up_to(image, cluster, level))
            }));
        }
        let (registration, voters) = (self.config.registration.clone(), self.raft.voters());
        operations.push(Operation::internal("register-controller", move |image, _| {
            brokers::register_controller(image, registration.clone(), &voters)
        }));
        operations
    }

    /// A broker that died together with the last controller costs no session timeout.
    fn probe_every_broker(&mut self) {
        let claim = self.claim.as_mut().expect("called while claiming");
        let unfenced: Vec<BrokerId> = claim
            .draft
            .working()
            .brokers
            .values()
            .filter(|broker| !broker.fenced)
            .map(|broker| broker.broker)
            .collect();
        claim.suspects.extend(&unfenced);
        unfenced.into_iter().for_each(|broker| self.probe(broker));
    }
}
