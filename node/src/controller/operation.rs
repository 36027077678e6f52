//! A mutation on its way to the event loop: how to plan it, and where its reply goes.

use quorate_metadata::ids::{ClientId, ControllerEpoch, Offset};
use quorate_metadata::rng::Rng;
use quorate_metadata::{ApiError, MetadataImage, Plan, Record};
use tokio::sync::oneshot;

/// What makes a retry recognisable (P8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId {
    pub client: ClientId,
    pub request: u64,
}

/// Where a mutation stands in the log.
#[derive(Debug, Clone)]
pub struct Position {
    pub controller_epoch: ControllerEpoch,
    /// A reader that has replayed up to here sees the mutation.
    pub offset: Offset,
}

/// Encodes the answer once the position is known.
pub type Encode = Box<dyn FnOnce(&Position, &[Record]) -> Vec<u8> + Send>;

/// Plans on the draft. Pure but for the randomness it is handed.
pub type PlanFn = Box<dyn FnOnce(&MetadataImage, &mut Rng) -> Result<Plan<Encode>, ApiError> + Send>;

pub type Reply = Result<Vec<u8>, ApiError>;

pub struct Operation {
    /// For logs and metrics.
    pub name: &'static str,
    pub request: Option<RequestId>,
    /// Plan, answer, and write nothing.
    pub plan_only: bool,
    /// Whether its records may become visible only together. Fencing is the exception (design section 2).
    pub atomic: bool,
    pub plan: PlanFn,
    pub reply: oneshot::Sender<Reply>,
}

impl Operation {
    /// An operation of the controller's own, for which nobody waits.
    pub fn internal(
        name: &'static str,
        plan: impl FnOnce(&MetadataImage, &mut Rng) -> Result<Plan<()>, ApiError> + Send + 'static,
    ) -> Self {
        let (reply, _) = oneshot::channel();
        let plan: PlanFn = Box::new(move |image, rng| {
            Ok(plan(image, rng)?.map(|()| -> Encode { Box::new(|_: &Position, _: &[Record]| Vec::new()) }))
        });
        Self { name, request: None, plan_only: false, atomic: false, plan, reply }
    }
}
