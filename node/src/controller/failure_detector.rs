//! Decides which brokers are gone: by broken streams, refused probes and ended sessions.

use quorate_metadata::ids::BrokerId;
use quorate_metadata::liveness::Removal;
use quorate_metadata::plan::brokers::Departure;
use quorate_metadata::rng::Rng;
use quorate_metadata::{ApiError, MetadataImage, Plan, Record};
use tokio::time::Instant;
use tracing::{info, warn};

use super::event_loop::{EventLoop, StreamLost};
use super::operation::{Mutation, Operation, Position, RemovalTarget};
use super::probe::{Evidence, Probed, probe};

/// The steps of a fencing.
struct Fencing {
    target: RemovalTarget,
    departure: Departure,
}

impl Mutation for Fencing {
    fn plan(&mut self, image: &MetadataImage, _: &mut Rng) -> Result<Plan<()>, ApiError> {
        let RemovalTarget { broker, epoch } = self.target;
        match image.broker(broker) {
            Some(known) if known.epoch == epoch => self.departure.fence(image, broker),
            // The broker has registered again meanwhile, which gave up its seats.
            Some(_) | None => Ok(Plan::new(Vec::new(), ())),
        }
    }

    fn reply(&mut self, _: &Position, _: &[Record]) -> Vec<u8> {
        Vec::new()
    }

    fn removal(&self) -> Option<Removal> {
        Some(Removal::Fencing)
    }
}

impl EventLoop {
    pub(super) fn on_stream_lost(&mut self, lost: StreamLost) {
        let Some(claim) = &mut self.claim else { return };
        if claim.draft.working().broker(lost.broker).is_some_and(|known| known.epoch == lost.epoch && !known.fenced) {
            info!(broker = %lost.broker, "heartbeat stream lost");
            claim.suspects.insert(lost.broker);
            self.probe(lost.broker);
        }
    }

    /// Starts a probe of one broker; its result comes back to the loop.
    pub(super) fn probe(&mut self, broker: BrokerId) {
        let Some(claim) = &self.claim else { return };
        let Some(registration) = claim.draft.working().broker(broker).cloned() else { return };
        let dial = self.config.dial.clone();
        self.probes.spawn(async move { probe(&registration, &dial).await });
    }

    pub(super) fn on_probed(&mut self, probed: Probed) {
        let Some(claim) = &mut self.claim else { return };
        let current = claim.draft.working().broker(probed.broker).is_some_and(|known| known.epoch == probed.epoch);
        // A broker that listens, or cannot be reached, stays a suspect until its stream is back: the next probe may show
        // more.
        if probed.evidence == Evidence::Refused && current && self.sessions.begin_fencing_without_stream(probed.broker)
        {
            claim.suspects.remove(&probed.broker);
            self.fence(probed.broker, "process gone: its host refused the connection");
        }
    }

    /// Begins the fencing of a broker: its steps come in the next turns, beside other operations, so that many brokers
    /// that are gone at once hold nothing up.
    pub(super) fn fence(&mut self, broker: BrokerId, why: &str) {
        let Some(claim) = &self.claim else { return };
        let unfenced = claim.draft.working().broker(broker).filter(|known| !known.fenced);
        let Some(target) = unfenced.map(|known| RemovalTarget { broker, epoch: known.epoch }) else { return };
        if claim.under_way.fences(target) {
            return;
        }
        warn!(%broker, why, silence_ms = self.sessions.silence(broker).map(|s| s.as_millis() as u64), "fencing");
        self.sessions.begin_removal(broker, Removal::Fencing);
        self.metrics.brokers_fenced.inc();
        self.interrupt_large_plan();
        let fencing = Fencing { target, departure: Departure::default() };
        let operation = Operation { target: Some(target), ..Operation::without_caller("fence", fencing) };
        if let Some(claim) = &mut self.claim {
            claim.under_way.push_step(operation);
        }
    }

    pub(super) fn on_tick(&mut self) {
        let now = Instant::now();
        let late = now.duration_since(self.last_tick).saturating_sub(super::event_loop::TICK * 4);
        self.last_tick = now;
        self.publish_claim_again();
        if !late.is_zero() {
            // The loop, or the whole process, stood still: no silence counts for that time.
            warn!(late_ms = late.as_millis() as u64, "stalled; all sessions extended");
            self.sessions.extend_all(late);
        }
        self.give_up_overdue_plan(now);
        self.run_due_tasks(now);
    }
}
