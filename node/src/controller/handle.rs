//! How the rest of the node reaches the controller.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use quorate_metadata::ids::{BrokerId, ControllerEpoch};
use quorate_metadata::rng::Rng;
use quorate_metadata::{ApiError, ErrorName, MetadataImage, Plan, Record};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::liveness::SessionTable;
use super::operation::{Mutation, Operation, Origin, Position, Progress, RemovalTarget, RequestId, Weight};
use super::pulse::Pulse;
use super::queue::QueueSender;
use super::slow::Activity;

/// When to come back after THROTTLED: about two commits of a full queue on a slow disk.
pub const RETRY_AFTER_THROTTLED: Duration = Duration::from_millis(50);

/// How a mutation asks to be run.
#[derive(Debug, Clone, Copy)]
pub struct MutationTerms {
    pub origin: Origin,
    pub request: Option<RequestId>,
    pub plan_only: bool,
    /// Whether all of it shows at once. Not where a plan names its own offsets, which a transaction would shift, nor
    /// where the first partitions must not wait for the last.
    pub atomic: bool,
    pub timeout: Duration,
    pub weight: Weight,
}

impl MutationTerms {
    /// The same, with what is left of the time.
    pub fn within(self, left: Duration) -> Self {
        Self { timeout: left, ..self }
    }

    /// The same, for a request of so many bytes that may lead to so many records.
    pub fn weighing(self, bytes: usize, records: usize) -> Self {
        Self { weight: Weight { bytes, records, ..self.weight }, ..self }
    }

    /// The same, for a broker that may come or go by it.
    pub fn about(self, broker: BrokerId) -> Self {
        Self { weight: Weight { broker: Some(broker), ..self.weight }, ..self }
    }
}

/// A mutation that was not applied, or may not have been.
pub type MutationFailure = ApiError;

#[derive(Clone)]
pub struct ControllerHandle {
    operations: QueueSender,
    claim: watch::Receiver<Option<ControllerEpoch>>,
    pub sessions: Arc<SessionTable>,
    pulse: Arc<Pulse>,
}

/// A mutation whose plan and reply have these types.
struct Typed<P, A, R> {
    plan: P,
    answer: A,
    response: Option<R>,
}

impl<P, A, R, M> Mutation for Typed<P, A, R>
where
    P: FnMut(&MetadataImage, &mut Rng) -> Result<Plan<R>, ApiError> + Send,
    A: FnMut(R, &Position, &[Record]) -> M + Send,
    R: Send,
    M: Message,
{
    fn plan(&mut self, image: &MetadataImage, rng: &mut Rng) -> Result<Plan<()>, ApiError> {
        let plan = (self.plan)(image, rng)?;
        Ok(plan.map(|response| self.response = Some(response)))
    }

    fn reply(&mut self, position: &Position, records: &[Record]) -> Vec<u8> {
        let response = self.response.take().expect("a reply follows a plan");
        (self.answer)(response, position, records).encode_to_vec()
    }
}

impl ControllerHandle {
    pub(super) fn new(
        operations: QueueSender,
        claim: watch::Receiver<Option<ControllerEpoch>>,
        sessions: Arc<SessionTable>,
        pulse: Arc<Pulse>,
    ) -> Self {
        Self { operations, claim, sessions, pulse }
    }

    /// The epoch under which this node is the active controller, if it is.
    pub fn claimed(&self) -> Option<ControllerEpoch> {
        *self.claim.borrow()
    }

    /// For tests: the event loop waits for ever from its next turn on.
    pub fn hold_event_loop(&self) {
        self.pulse.hold();
    }

    /// What took long here lately.
    pub fn slow(&self) -> Vec<String> {
        self.pulse.slow.list()
    }

    /// Changes whenever this node claims or resigns from now on.
    pub fn claims(&self) -> watch::Receiver<Option<ControllerEpoch>> {
        let mut claims = self.claim.clone();
        // A clone has seen no more than what it is a clone of, which nobody waits on: it would wake at once.
        claims.mark_unchanged();
        claims
    }

    /// Runs a mutation and waits until it is committed. `answer` makes the reply from the plan's response.
    pub async fn mutate<R, M>(
        &self,
        name: &'static str,
        terms: MutationTerms,
        plan: impl FnMut(&MetadataImage, &mut Rng) -> Result<Plan<R>, ApiError> + Send + 'static,
        answer: impl FnMut(R, &Position, &[Record]) -> M + Send + 'static,
    ) -> Result<M, MutationFailure>
    where
        R: Send + 'static,
        M: Message + Default,
    {
        self.request(name, terms, None, Box::new(Typed { plan, answer, response: None })).await
    }

    /// As `mutate`. `target` is the broker that the mutation may take out of ISRs.
    pub async fn request<M: Message + Default>(
        &self,
        name: &'static str,
        terms: MutationTerms,
        target: Option<RemovalTarget>,
        mutation: Box<dyn Mutation>,
    ) -> Result<M, MutationFailure> {
        let (reply, receiver) = oneshot::channel();
        let number = self.pulse.next_number();
        let mut held = self.pulse.held();
        let since = Instant::now();
        self.submit(Operation {
            name,
            number,
            origin: terms.origin,
            request: terms.request,
            plan_only: terms.plan_only,
            atomic: terms.atomic,
            weight: terms.weight,
            target,
            has_caller: true,
            progress: Progress::default(),
            mutation,
            reply,
        })?;
        let replied = tokio::select! {
            biased;
            replied = tokio::time::timeout(terms.timeout, receiver) => replied,
            Ok(_) = held.wait_for(|held| *held == Some(number)) => return Err(held_the_controller(name)),
        };
        self.pulse.slow.observe(Activity::Request(name), since.elapsed());
        let reply = replied
            .map_err(|_| timed_out(terms.timeout))?
            .map_err(|_| ApiError::new(ErrorName::OutcomeUnknown, "the node is stopping"))??;
        M::decode(reply.as_slice()).map_err(|error| ApiError::new(ErrorName::UnknownServerError, error.to_string()))
    }

    /// Has a broker taken out of ISRs, in as many steps as that needs, while nothing waits for it. No more than once at a
    /// time: a second one for the same broker is dropped.
    pub fn remove_from_isrs(&self, target: RemovalTarget, mutation: impl Mutation + 'static) -> Result<(), ApiError> {
        self.submit(Operation { target: Some(target), ..Operation::without_caller("remove-from-isrs", mutation) })
    }

    pub fn submit(&self, operation: Operation) -> Result<(), ApiError> {
        self.operations.submit(operation)
    }
}

/// Certainly not applied: a plan that is given up is dropped, should it ever come to an end.
pub(super) fn held_the_controller(operation: &str) -> ApiError {
    let message = format!(
        "planning {operation} held the controller for longer than an election timeout; it was given up and nothing was \
         done: request less at once"
    );
    ApiError::new(ErrorName::PolicyViolation, message)
}

fn timed_out(after: Duration) -> ApiError {
    let message = format!(
        "not committed within {} ms: the controller has much to do, or a majority of the voters is unreachable; it may still \
         be applied",
        after.as_millis()
    );
    ApiError::new(ErrorName::RequestTimedOut, message)
}

#[cfg(test)]
mod tests {
    use quorate_metadata::ids::Offset;
    use tokio::sync::mpsc;

    use super::super::queue::queue;
    use super::*;

    #[tokio::test]
    async fn a_listener_wakes_at_the_next_claim_and_not_at_those_before() {
        let (operations, _queue) = queue();
        let (lost, _losses) = mpsc::unbounded_channel();
        let (office, claim) = watch::channel(None);
        let sessions = Arc::new(SessionTable::new(Duration::from_secs(3), lost));
        let handle = ControllerHandle::new(operations, claim, sessions, Arc::new(Pulse::new()));
        office.send_replace(Some(ControllerEpoch::new(1)));
        office.send_replace(None);
        let claims = handle.claims();
        assert!(!claims.has_changed().expect("the office is there"), "it would be asked again without a pause");
        office.send_replace(Some(ControllerEpoch::new(2)));
        assert!(claims.has_changed().expect("the office is there"));
    }

    #[test]
    fn a_mutation_that_is_planned_again_is_answered_again() {
        let plan = |_: &MetadataImage, _: &mut Rng| Ok(Plan::new(Vec::new(), 7));
        let answer = |level: i64, position: &Position, _: &[Record]| quorate_proto::admin::MutationResult {
            controller_epoch: position.controller_epoch.get(),
            offset: level,
            planned: Vec::new(),
        };
        let mut mutation = Typed { plan, answer, response: None };
        let mut reply = |offset| {
            mutation.plan(&MetadataImage::default(), &mut Rng::new(1)).expect("it refuses nothing");
            let position = Position { controller_epoch: ControllerEpoch::new(1), offset: Offset::new(offset) };
            mutation.reply(&position, &[])
        };
        assert_eq!(reply(1), reply(2), "a stale plan is made again, and so is its reply");
    }
}
