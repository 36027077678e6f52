//! One call, until it is answered, refused or out of time.
//!
//! Mutations carry a request id that stays the same over all attempts, so a retry takes effect once, and whatever a
//! later attempt answers is the answer of the whole call. Only when the time is up while an attempt's outcome is open
//! does the call end as unknown.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::{admin, broker, error};
use rand::RngExt as _;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, ConnectError, Request, Response, Status};

use crate::error::ClientError;
use crate::health;
use crate::nodes::{Node, Nodes, Options};
use crate::world;

/// The first pause between attempts is at least this long: shorter than any election.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// No pause is longer: a new controller should not wait for its clients.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// An attempt with less time than this could only turn what is known into an open outcome.
const ATTEMPT_MIN: Duration = Duration::from_millis(20);

/// Of an attempt's time, the share that the node is given, so that its named answer arrives before we give up.
const NODE_SHARE: f64 = 0.9;

/// What a call may do to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    Change,
}

/// A request that says how long the cluster may take.
pub(crate) trait Timed: Clone {
    fn set_timeout_ms(&mut self, timeout_ms: u32);
}

macro_rules! timed {
    ($($request:ident)*) => {
        $(impl Timed for admin::$request {
            fn set_timeout_ms(&mut self, timeout_ms: u32) {
                self.options.get_or_insert_default().timeout_ms = timeout_ms;
            }
        })*
    };
}

timed! {
    CreateTopicsRequest DeleteTopicsRequest CreatePartitionsRequest ListTopicsRequest DescribeTopicsRequest
    ListPartitionsRequest ElectLeadersRequest AlterConfigsRequest DescribeConfigsRequest ListBrokersRequest
    UnregisterBrokerRequest DescribeQuorumRequest ClusterStatusRequest
    StartReassignmentRequest CancelReassignmentRequest ChangeReassignmentRequest MoveReplicaRequest
    ListReassignmentsRequest DescribeFeaturesRequest UpdateFeaturesRequest
}

impl Timed for admin::ReplaceVoterRequest {
    fn set_timeout_ms(&mut self, timeout_ms: u32) {
        self.timeout_ms = timeout_ms;
    }
}

// These are bounded by the deadline of the call alone.
impl Timed for broker::RegisterRequest {
    fn set_timeout_ms(&mut self, _: u32) {}
}

impl Timed for broker::AlterPartitionRequest {
    fn set_timeout_ms(&mut self, _: u32) {}
}

impl Timed for broker::WatchRequest {
    fn set_timeout_ms(&mut self, _: u32) {}
}

pub(crate) async fn run<Req, Rep, Send, Answer>(
    nodes: &Nodes,
    options: &Options,
    effect: Effect,
    request: Req,
    send: Send,
) -> Result<Rep, ClientError>
where
    Req: Timed,
    Send: Fn(Channel, Request<Req>) -> Answer,
    Answer: Future<Output = Result<Response<Rep>, Status>>,
{
    let deadline = Instant::now() + options.timeout;
    let mut pace = Pace::new(nodes.len());
    let mut in_doubt = false;
    let mut answer = None;
    loop {
        let (place, node) = nodes.current();
        let limit = options.attempt_timeout.min(deadline.saturating_duration_since(Instant::now()));
        let attempted = tokio::select! {
            biased;
            attempted = attempt(node, limit, request.clone(), &send) => attempted,
            other = health::silence(nodes, place) => {
                nodes.leave_for(place, other);
                Err(Failure::silent(&node.address))
            }
        };
        let failure = match attempted {
            Ok(reply) => return Ok(reply),
            Err(failure) => failure,
        };
        let Some(pause) = pace.pause(failure.next) else { return Err(refused(effect, failure)) };
        in_doubt |= !failure.definite;
        // What a node said tells more than that another one is not there.
        if failure.next != Next::Absent {
            answer = Some(failure.error.clone());
        }
        if failure.next != Next::Stay {
            nodes.leave(place);
        }
        if Instant::now() + pause.max(failure.delay) + ATTEMPT_MIN >= deadline {
            return Err(out_of_time(effect, in_doubt, answer.unwrap_or(failure.error), options.timeout));
        }
        sleep(pause.max(failure.delay)).await;
    }
}

async fn attempt<Req, Rep, Answer>(
    node: &Node,
    limit: Duration,
    mut body: Req,
    send: impl Fn(Channel, Request<Req>) -> Answer,
) -> Result<Rep, Failure>
where
    Req: Timed,
    Answer: Future<Output = Result<Response<Rep>, Status>>,
{
    let node_ms = limit.mul_f64(NODE_SHARE).as_millis().clamp(1, u128::from(u32::MAX));
    body.set_timeout_ms(u32::try_from(node_ms).expect("clamped to u32"));
    match timeout(limit, send(node.channel.clone(), Request::new(body))).await {
        Ok(Ok(reply)) => {
            node.answered();
            Ok(reply.into_inner())
        }
        Ok(Err(status)) => {
            if error::is_ours(&status) {
                node.answered();
            }
            Err(judge(&node.address, &status))
        }
        Err(_) => Err(Failure::new(
            ApiError::new(ErrorName::RequestTimedOut, format!("{} did not answer within {limit:.1?}", node.address)),
            Next::Elsewhere,
        )),
    }
}

/// Why an attempt failed, and what that means for the next one.
#[derive(Debug)]
pub(crate) struct Failure {
    pub error: ApiError,
    /// This attempt certainly changed nothing.
    pub definite: bool,
    pub next: Next,
    /// The node asks to be left alone for so long.
    pub delay: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The answer will not get better.
    GiveUp,
    /// The node has too much to do, and any other would forward to the same controller.
    Stay,
    /// Another node may know better, after a pause.
    Elsewhere,
    /// The node is not there: the others are asked at once, each of them once.
    Absent,
}

impl Failure {
    /// Another node answers, and is asked at once.
    fn silent(address: &str) -> Self {
        let message = format!("{address} answers nothing, not even a health check");
        Self::new(ApiError::new(ErrorName::RequestTimedOut, message), Next::Absent)
    }

    fn new(error: ApiError, next: Next) -> Self {
        Self { definite: error.is_definite(), error, next, delay: Duration::ZERO }
    }
}

pub(crate) fn judge(address: &str, status: &Status) -> Failure {
    if !error::is_ours(status) {
        return judge_foreign(address, status);
    }
    let refusal = error::from_status(status);
    let next = match refusal.name {
        ErrorName::Throttled | ErrorName::ThrottlingQuotaExceeded => Next::Stay,
        ErrorName::NotController
        | ErrorName::ControllerUnavailable
        | ErrorName::RequestTimedOut
        | ErrorName::OutcomeUnknown => Next::Elsewhere,
        _ => Next::GiveUp,
    };
    let delay = error::retry_after(status).unwrap_or_default();
    Failure { delay, ..Failure::new(refusal, next) }
}

/// A status that a library raised, here or on the way.
fn judge_foreign(address: &str, status: &Status) -> Failure {
    if let Some(reason) = never_connected(status) {
        let error = ApiError::new(ErrorName::ControllerUnavailable, format!("cannot connect to {address}: {reason}"));
        return Failure::new(error, Next::Absent);
    }
    let refusal = error::from_status(status);
    match status.code() {
        Code::Unavailable => {
            let error = ApiError::new(ErrorName::OutcomeUnknown, format!("{address}: {}", refusal.message));
            Failure::new(error, Next::Absent)
        }
        // A connection that breaks shows as any of these, depending on where it was.
        Code::Unknown | Code::Internal | Code::Cancelled | Code::Aborted | Code::DeadlineExceeded | Code::DataLoss => {
            let error = ApiError::new(refusal.name, format!("{address}: {}", detail(status)));
            Failure { definite: false, ..Failure::new(error, Next::Elsewhere) }
        }
        // A gRPC server, but none that has the call.
        Code::Unimplemented => {
            let message = format!(
                "{address} does not serve this call: expected the API address of a node of this release, not that of its \
                 raft or HTTP port"
            );
            let error = ApiError::new(ErrorName::UnsupportedVersion, message);
            Failure { definite: true, ..Failure::new(error, Next::GiveUp) }
        }
        // Refused before any handler saw it: too large, not understood, not allowed.
        _ => Failure { definite: true, ..Failure::new(refusal, Next::GiveUp) },
    }
}

/// What a status says, with the error that is at its root: the library's own message is often no more than its kind.
fn detail(status: &Status) -> String {
    match status.source().map(root_cause) {
        Some(cause) if !status.message().contains(&cause) => format!("{} ({cause})", status.message()),
        Some(_) | None => status.message().to_owned(),
    }
}

/// Why no connection came about, which proves that nothing was sent.
fn never_connected(status: &Status) -> Option<String> {
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(ConnectError(reason)) = error.downcast_ref::<ConnectError>() {
            return Some(root_cause(reason.as_ref()));
        }
        source = error.source();
    }
    None
}

fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

fn refused(effect: Effect, failure: Failure) -> ClientError {
    match effect {
        Effect::Change if !failure.definite => ClientError::Unknown(failure.error),
        _ => ClientError::Failed(failure.error),
    }
}

fn out_of_time(effect: Effect, in_doubt: bool, last: ApiError, after: Duration) -> ClientError {
    if effect == Effect::Change && in_doubt {
        let message = format!("sent, but not answered within {after:?}; the last attempt: {last}");
        return ClientError::Unknown(ApiError::new(ErrorName::OutcomeUnknown, message));
    }
    // Of a read, or of attempts that all failed before they could do anything: nothing was changed.
    ClientError::Failed(ApiError::new(last.name, format!("{} (tried for {after:?})", last.message)))
}

/// The pauses between attempts: growing, with jitter, and none while there are nodes that were not asked yet.
#[derive(Debug)]
pub(crate) struct Pace {
    nodes: usize,
    absent: usize,
    step: Duration,
}

impl Pace {
    pub fn new(nodes: usize) -> Self {
        Self { nodes, absent: 0, step: PAUSE_MIN * 2 }
    }

    /// Back to the start, after a success.
    pub fn reset(&mut self) {
        *self = Self::new(self.nodes);
    }

    /// How long to wait before the next attempt; `None` when there shall be none.
    pub fn pause(&mut self, next: Next) -> Option<Duration> {
        match next {
            Next::GiveUp => None,
            Next::Absent if self.absent + 1 < self.nodes => {
                self.absent += 1;
                Some(Duration::ZERO)
            }
            Next::Absent | Next::Stay | Next::Elsewhere => {
                self.absent = 0;
                let longest = self.step;
                self.step = (longest * 3 / 2).min(PAUSE_MAX);
                Some(world::chance().random_range(longest / 2..=longest))
            }
        }
    }
}

#[cfg(test)]
mod tests;
