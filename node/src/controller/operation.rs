//! A mutation on its way to the event loop: how to plan it, and where its reply goes.

use quorate_metadata::ids::{BrokerEpoch, BrokerId, ClientId, ControllerEpoch, Offset};
use quorate_metadata::liveness::Removal;
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

/// What a mutation costs, as far as its request says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weight {
    /// Of the request, for the bound of the queue.
    pub bytes: usize,
    /// Records that it may lead to: many of them are planned beside the event loop.
    pub records: usize,
    /// The broker that comes or goes by it, which may change each partition that has it.
    pub broker: Option<BrokerId>,
}

impl Weight {
    /// About how many records it leads to, without planning it.
    pub fn estimated_records(&self, image: &MetadataImage) -> usize {
        self.records.max(self.broker.map_or(0, |broker| image.index.seat_count(broker)))
    }
}

/// Who asks for an operation: neither waits behind all that the other asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Client,
    /// A broker or a controller.
    Broker,
}

impl Origin {
    pub const COUNT: usize = 2;

    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Broker,
            Self::Broker => Self::Client,
        }
    }
}

/// How a mutation is planned, and how its reply is made from what the last plan came to.
pub trait Mutation: Send {
    /// Plans on the draft; called again after each step of a plan in steps. Pure but for the randomness that it is given,
    /// and for what a plan about brokers asks of their sessions.
    fn plan(&mut self, image: &MetadataImage, rng: &mut Rng) -> Result<Plan<()>, ApiError>;

    /// Encodes the reply once the position is known; called after `plan`. A plan that is made again has another reply.
    fn reply(&mut self, position: &Position, records: &[Record]) -> Vec<u8>;

    /// Why the last plan takes a broker out of ISRs, if it does.
    fn removal(&self) -> Option<Removal> {
        None
    }
}

/// The steps of an operation, for the one line that it leaves in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    pub steps: usize,
    pub records: usize,
}

impl Progress {
    pub fn add(&mut self, records: usize) {
        self.steps += 1;
        self.records += records;
    }
}

/// An incarnation of a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RemovalTarget {
    pub broker: BrokerId,
    pub epoch: BrokerEpoch,
}

pub type Reply = Result<Vec<u8>, ApiError>;

pub struct Operation {
    /// For logs and metrics.
    pub name: &'static str,
    /// Distinguishes it from all others of this process.
    pub number: u64,
    pub origin: Origin,
    pub request: Option<RequestId>,
    /// Plan, answer, and write nothing.
    pub plan_only: bool,
    /// Whether its records may become visible only together. Fencing is the exception (design section 2).
    pub atomic: bool,
    pub weight: Weight,
    /// The broker that it may take out of ISRs.
    pub target: Option<RemovalTarget>,
    /// Whether somebody waits for its reply, or has waited.
    pub has_caller: bool,
    /// What it has planned so far, if it is planned in steps.
    pub progress: Progress,
    pub mutation: Box<dyn Mutation>,
    pub reply: oneshot::Sender<Reply>,
}

/// The number of the operations that the controller runs on its own account, until they are planned.
pub const INTERNAL: u64 = 0;

impl Operation {
    /// An operation of the controller's own, whose reply nothing waits for.
    pub fn internal(
        name: &'static str,
        plan: impl FnMut(&MetadataImage, &mut Rng) -> Result<Plan<()>, ApiError> + Send + 'static,
    ) -> Self {
        Self::without_caller(name, Internal(plan))
    }

    pub fn without_caller(name: &'static str, mutation: impl Mutation + 'static) -> Self {
        let (reply, _) = oneshot::channel();
        Self {
            name,
            number: INTERNAL,
            origin: Origin::Broker,
            request: None,
            plan_only: false,
            atomic: false,
            weight: Weight::default(),
            target: None,
            has_caller: false,
            progress: Progress::default(),
            mutation: Box::new(mutation),
            reply,
        }
    }

    /// Whether its caller has gone, so that it need not be planned at all. What a broker has begun in steps goes on.
    pub fn is_abandoned(&self) -> bool {
        let may_end = self.request.is_some() || (self.has_caller && self.progress.steps == 0);
        may_end && self.reply.is_closed()
    }

    /// The broker that its last plan takes out of ISRs, and why, if it does.
    pub fn removal(&self) -> Option<(RemovalTarget, Removal)> {
        self.target.zip(self.mutation.removal())
    }

    pub fn refuse(self, error: ApiError) {
        // The caller may have given up meanwhile.
        let _ = self.reply.send(Err(error));
    }
}

struct Internal<P>(P);

impl<P> Mutation for Internal<P>
where
    P: FnMut(&MetadataImage, &mut Rng) -> Result<Plan<()>, ApiError> + Send,
{
    fn plan(&mut self, image: &MetadataImage, rng: &mut Rng) -> Result<Plan<()>, ApiError> {
        (self.0)(image, rng)
    }

    fn reply(&mut self, _: &Position, _: &[Record]) -> Vec<u8> {
        Vec::new()
    }
}
