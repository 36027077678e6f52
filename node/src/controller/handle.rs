//! How the rest of the node reaches the controller.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use quorate_metadata::ids::ControllerEpoch;
use quorate_metadata::rng::Rng;
use quorate_metadata::{ApiError, ErrorName, MetadataImage, Plan, Record};
use tokio::sync::{mpsc, oneshot, watch};

use super::liveness::SessionTable;
use super::operation::{Encode, Operation, PlanFn, Position, RequestId};

/// When to come back after THROTTLED: about two commits of a full queue on a slow disk.
pub const RETRY_AFTER_THROTTLED: Duration = Duration::from_millis(50);

/// How a mutation asks to be run.
#[derive(Debug, Clone, Copy)]
pub struct MutationTerms {
    pub request: Option<RequestId>,
    pub plan_only: bool,
    /// Whether all of it shows at once. Not where a plan names its own offsets, which a transaction would shift, nor
    /// where the first partitions must not wait for the last.
    pub atomic: bool,
    pub timeout: Duration,
}

impl MutationTerms {
    /// The same, with what is left of the time.
    pub fn within(self, left: Duration) -> Self {
        Self { timeout: left, ..self }
    }
}

/// A mutation that was not applied, or may not have been.
pub type MutationFailure = ApiError;

#[derive(Clone)]
pub struct ControllerHandle {
    operations: mpsc::Sender<Operation>,
    claim: watch::Receiver<Option<ControllerEpoch>>,
    pub sessions: Arc<SessionTable>,
}

impl ControllerHandle {
    pub(super) fn new(
        operations: mpsc::Sender<Operation>,
        claim: watch::Receiver<Option<ControllerEpoch>>,
        sessions: Arc<SessionTable>,
    ) -> Self {
        Self { operations, claim, sessions }
    }

    /// The epoch under which this node is the active controller, if it is.
    pub fn claimed(&self) -> Option<ControllerEpoch> {
        *self.claim.borrow()
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
        plan: impl FnOnce(&MetadataImage, &mut Rng) -> Result<Plan<R>, ApiError> + Send + 'static,
        answer: impl FnOnce(R, &Position, &[Record]) -> M + Send + 'static,
    ) -> Result<M, MutationFailure>
    where
        R: Send + 'static,
        M: Message + Default,
    {
        let (reply, receiver) = oneshot::channel();
        let plan: PlanFn = Box::new(move |image, rng| {
            Ok(plan(image, rng)?.map(|response| -> Encode {
                Box::new(move |position: &Position, records: &[Record]| {
                    answer(response, position, records).encode_to_vec()
                })
            }))
        });
        self.submit(Operation {
            name,
            request: terms.request,
            plan_only: terms.plan_only,
            atomic: terms.atomic,
            plan,
            reply,
        })?;
        let reply = tokio::time::timeout(terms.timeout, receiver)
            .await
            .map_err(|_| timed_out(terms.timeout))?
            .map_err(|_| ApiError::new(ErrorName::OutcomeUnknown, "the node is stopping"))??;
        M::decode(reply.as_slice()).map_err(|error| ApiError::new(ErrorName::UnknownServerError, error.to_string()))
    }

    /// Queues an operation, or says at once that the queue is full.
    pub fn submit(&self, operation: Operation) -> Result<(), ApiError> {
        self.operations.try_send(operation).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                ApiError::new(ErrorName::Throttled, "the controller's queue is full; nothing was done")
            }
            mpsc::error::TrySendError::Closed(_) => {
                ApiError::new(ErrorName::ControllerUnavailable, "the node is stopping")
            }
        })
    }
}

fn timed_out(after: Duration) -> ApiError {
    let message = format!(
        "not committed within {} ms; a majority of the voters may be unreachable, and it may still be applied",
        after.as_millis()
    );
    ApiError::new(ErrorName::RequestTimedOut, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_wakes_at_the_next_claim_and_not_at_those_before() {
        let (operations, _queue) = mpsc::channel(1);
        let (lost, _losses) = mpsc::unbounded_channel();
        let (office, claim) = watch::channel(None);
        let sessions = Arc::new(SessionTable::new(Duration::from_secs(3), lost));
        let handle = ControllerHandle::new(operations, claim, sessions);
        office.send_replace(Some(ControllerEpoch::new(1)));
        office.send_replace(None);
        let claims = handle.claims();
        assert!(!claims.has_changed().expect("the office is there"), "it would be asked again without a pause");
        office.send_replace(Some(ControllerEpoch::new(2)));
        assert!(claims.has_changed().expect("the office is there"));
    }
}
