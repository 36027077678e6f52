//! Where a request is served: here, or by the active controller.
//!
//! A request is forwarded at most once; the node that receives it then answers or says NOT_CONTROLLER, so two nodes
//! that disagree about who is active cannot play ping-pong.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_metadata::ids::{ControllerEpoch, ControllerId};
use quorate_metadata::mutant::Mutant;
use quorate_metadata::{ApiError, ErrorName, MetadataImage};
use quorate_proto::error::{self, CONTROLLER_ENDPOINT, Context};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::controller::{ControllerHandle, RETRY_AFTER_THROTTLED};
use crate::raft::{DialMap, LeaderInfo, RaftNode};
use crate::replica::MetadataView;

/// Marks a request that has been forwarded already, with the forwarding node's id.
const FORWARDED: &str = "quorate-forwarded";

/// A pause before asking again a controller that was not (yet, or any more) active.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// For how long the mutant trusts a majority's last answer: longer than an election takes.
const LONG_LEASE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Gateway {
    node: ControllerId,
    pub controller: ControllerHandle,
    pub raft: RaftNode,
    pub view: MetadataView,
    dial: DialMap,
    channels: Arc<Mutex<BTreeMap<String, Channel>>>,
}

/// Whether the request may still go to another node, and until when it must be answered.
#[derive(Debug, Clone, Copy)]
pub struct Passage {
    pub forwarded: bool,
    pub deadline: Instant,
    /// A retry of it takes effect once, so it may be sent again when its outcome is unknown.
    pub repeatable: bool,
}

impl Passage {
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

impl Gateway {
    pub fn new(
        node: ControllerId,
        controller: ControllerHandle,
        raft: RaftNode,
        view: MetadataView,
        dial: DialMap,
    ) -> Self {
        Self { node, controller, raft, view, dial, channels: Arc::default() }
    }

    pub fn node(&self) -> ControllerId {
        self.node
    }

    pub fn was_forwarded<T>(request: &Request<T>) -> bool {
        request.metadata().contains_key(FORWARDED)
    }

    /// Runs a mutation on whichever node is the active controller, until it is answered or the time is up.
    pub async fn route<T, M, Local, Remote, LocalFuture, RemoteFuture>(
        &self,
        passage: Passage,
        body: T,
        local: Local,
        remote: Remote,
    ) -> Result<Response<M>, Status>
    where
        T: Clone,
        Local: Fn(T, Duration) -> LocalFuture,
        LocalFuture: Future<Output = Result<M, ApiError>>,
        Remote: Fn(Channel, Request<T>) -> RemoteFuture,
        RemoteFuture: Future<Output = Result<Response<M>, Status>>,
    {
        let mut in_doubt = false;
        loop {
            let attempt = if self.controller.claimed().is_some() {
                local(body.clone(), passage.remaining()).await.map(Response::new).map_err(|error| self.status(&error))
            } else if passage.forwarded {
                Err(self.not_controller())
            } else {
                self.forward(&passage, body.clone(), &remote).await
            };
            match attempt {
                Err(status) if !passage.forwarded && may_retry(&status, &passage) => {
                    let refusal = error::from_status(&status);
                    in_doubt |= !refusal.is_definite();
                    if !self.pause(passage.deadline).await {
                        return Err(if in_doubt { self.status(&open_outcome(refusal)) } else { status });
                    }
                }
                answered => return answered,
            }
        }
    }

    async fn forward<T, M, Remote, RemoteFuture>(
        &self,
        passage: &Passage,
        body: T,
        remote: &Remote,
    ) -> Result<Response<M>, Status>
    where
        Remote: Fn(Channel, Request<T>) -> RemoteFuture,
        RemoteFuture: Future<Output = Result<Response<M>, Status>>,
    {
        let leaders = self.raft.leader_changes();
        let Some(leader) = self.another_leader() else { return Err(self.no_controller()) };
        let channel = self.channel(&leader).await?;
        let mut request = Request::new(body);
        request.set_timeout(passage.remaining());
        request.metadata_mut().insert(FORWARDED, MetadataValue::from(self.node.get()));
        match answered(remote(channel, request), leader.epoch, leaders, passage.deadline).await {
            Ok(answer) => answer.map_err(|status| self.as_ours(status)),
            Err(why) => Err(self.status(&why)),
        }
    }

    /// An open connection to the leader's API. That none can be opened proves that nothing was sent.
    async fn channel(&self, leader: &LeaderInfo) -> Result<Channel, Status> {
        let address = self.dial.api(leader.id, &leader.api);
        if let Some(known) = self.channels.lock().expect("no one panics while holding the channels").get(&address) {
            return Ok(known.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Status::internal(format!("the controller's address is unusable: {error}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5));
        let channel = self.dial.network().open(&endpoint).await.map_err(|_| self.no_controller())?;
        self.channels.lock().expect("no one panics while holding the channels").insert(address, channel.clone());
        Ok(channel)
    }

    fn another_leader(&self) -> Option<LeaderInfo> {
        self.raft.leader().filter(|leader| leader.id != self.node)
    }

    /// Waits a little, or until this node claims; false when the time is up.
    async fn pause(&self, deadline: Instant) -> bool {
        let mut claims = self.controller.claims();
        let wake = (Instant::now() + RETRY_PAUSE).min(deadline);
        tokio::select! {
            _ = sleep_until(wake) => {}
            // Where the event loop is gone with its node, nobody claims any more.
            Ok(()) = claims.changed() => {}
        }
        Instant::now() < deadline
    }

    /// The image for a read, as fresh as it asked for.
    pub async fn read(&self, stale: bool, timeout: Duration) -> Result<MetadataImage, Status> {
        if !stale && !self.reads_unconfirmed() {
            self.raft.read_barrier(timeout).await.map_err(|error| {
                self.status(&ApiError::new(ErrorName::ControllerUnavailable, format!("cannot read: {error}")))
            })?;
        }
        Ok(self.view.image())
    }

    /// As the mutants do.
    fn reads_unconfirmed(&self) -> bool {
        let by_lease = || self.claimed().is_some() && self.raft.quorum_acked_within(LONG_LEASE);
        Mutant::LocalReads.is_on() || (Mutant::LongLease.is_on() && by_lease())
    }

    pub fn claimed(&self) -> Option<ControllerEpoch> {
        self.controller.claimed()
    }

    /// The status of a refusal, with what helps the caller on.
    pub fn status(&self, refusal: &ApiError) -> Status {
        let mut context = Context::default();
        if refusal.name == ErrorName::NotController
            && let Some(leader) = self.another_leader()
        {
            context.metadata.insert(CONTROLLER_ENDPOINT.to_owned(), leader.api);
        }
        if refusal.name == ErrorName::Throttled {
            context.retry_after = Some(RETRY_AFTER_THROTTLED);
        }
        error::to_status(refusal, context)
    }

    pub fn not_controller(&self) -> Status {
        self.status(&ApiError::new(ErrorName::NotController, "this node is not the active controller"))
    }

    fn no_controller(&self) -> Status {
        self.status(&ApiError::new(
            ErrorName::ControllerUnavailable,
            "no active controller can be reached; a majority of the voters may be down",
        ))
    }

    /// A status that a library raised on the way to the controller: its outcome is unknown.
    fn as_ours(&self, status: Status) -> Status {
        if error::is_ours(&status) {
            return status;
        }
        match status.code() {
            Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal => self.status(&ApiError::new(
                ErrorName::OutcomeUnknown,
                format!("the connection to the active controller broke: {}", status.message()),
            )),
            Code::DeadlineExceeded => self.status(&ApiError::new(ErrorName::RequestTimedOut, status.message())),
            _ => status,
        }
    }
}

/// The answer of the controller of this epoch. The wait ends with the time, and as soon as a controller of another epoch
/// is known: the one that was asked may be paused or cut off, and answers in time only by chance.
///
/// That no controller is known ends nothing: most elections that begin so end in a moment, and the answer is on its way.
async fn answered<T>(
    answer: impl Future<Output = T>,
    epoch: ControllerEpoch,
    mut leaders: watch::Receiver<Option<LeaderInfo>>,
    deadline: Instant,
) -> Result<T, ApiError> {
    let succeeded = leaders.wait_for(|leader| leader.as_ref().is_some_and(|leader| leader.epoch != epoch));
    tokio::select! {
        biased;
        answer = answer => Ok(answer),
        // Where Raft has ended with its node, no leader is known any more.
        Ok(_) = succeeded => Err(ApiError::new(
            ErrorName::OutcomeUnknown,
            format!("the controller of epoch {epoch} has a successor and did not answer; it may have been applied"),
        )),
        () = sleep_until(deadline) => Err(ApiError::new(
            ErrorName::RequestTimedOut,
            "the active controller did not answer in time; it may still be applied",
        )),
    }
}

/// That the last attempt did nothing says nothing of those before it.
fn open_outcome(last: ApiError) -> ApiError {
    if last.is_definite() {
        let message = format!("an earlier attempt may still be applied; the last one: {}", last.message);
        return ApiError::new(ErrorName::OutcomeUnknown, message);
    }
    last
}

/// Whether the same request may be sent again: it certainly did nothing, or a repetition is recognised.
fn may_retry(status: &Status, passage: &Passage) -> bool {
    match error::from_status(status).name {
        ErrorName::NotController | ErrorName::ControllerUnavailable => true,
        ErrorName::OutcomeUnknown => passage.repeatable,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::pin;

    use futures::poll;

    use super::*;

    const EPOCH: ControllerEpoch = ControllerEpoch::new(7);

    fn leader(id: i32, epoch: i32) -> Option<LeaderInfo> {
        let (id, epoch) = (ControllerId::new(id), ControllerEpoch::new(epoch));
        Some(LeaderInfo { id, epoch, api: String::new() })
    }

    fn in_an_hour() -> Instant {
        Instant::now() + Duration::from_secs(3_600)
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_an_answer_ends_when_a_successor_is_known() {
        let leaders = watch::Sender::new(leader(1, 7));
        let mut waiting = pin!(answered(pending::<()>(), EPOCH, leaders.subscribe(), in_an_hour()));
        assert!(poll!(&mut waiting).is_pending());
        leaders.send_replace(None);
        assert!(poll!(&mut waiting).is_pending(), "there may be no election");
        leaders.send_replace(leader(1, 7));
        assert!(poll!(&mut waiting).is_pending(), "it is the same controller");
        leaders.send_replace(leader(2, 8));
        let ended = waiting.await.expect_err("there is no answer");
        assert_eq!(ended.name, ErrorName::OutcomeUnknown, "it may have been applied");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_an_answer_ends_when_the_same_node_leads_again() {
        let leaders = watch::Sender::new(leader(1, 9));
        let ended = answered(pending::<()>(), EPOCH, leaders.subscribe(), in_an_hour()).await;
        assert_eq!(ended.expect_err("there is no answer").name, ErrorName::OutcomeUnknown);
    }

    #[tokio::test]
    async fn an_answer_that_has_come_counts_before_a_successor() {
        let leaders = watch::Sender::new(leader(2, 8));
        assert_eq!(answered(ready(5), EPOCH, leaders.subscribe(), in_an_hour()).await.expect("it is there"), 5);
    }

    #[tokio::test]
    async fn a_wait_for_an_answer_ends_with_its_time_where_raft_has_ended() {
        let leaders = watch::Sender::new(leader(1, 7)).subscribe();
        let ended = answered(pending::<()>(), EPOCH, leaders, Instant::now()).await;
        assert_eq!(ended.expect_err("there is no answer").name, ErrorName::RequestTimedOut);
    }

    #[test]
    fn only_what_is_recognised_is_sent_again_when_its_outcome_is_unknown() {
        let status = error::to_status(&ApiError::new(ErrorName::OutcomeUnknown, "no answer"), Context::default());
        let passage = |repeatable| Passage { forwarded: false, deadline: in_an_hour(), repeatable };
        assert!(may_retry(&status, &passage(true)));
        assert!(!may_retry(&status, &passage(false)));
    }

    #[test]
    fn an_attempt_that_did_nothing_does_not_settle_those_before_it() {
        let after = |name| open_outcome(ApiError::new(name, "the last")).name;
        assert_eq!(after(ErrorName::NotController), ErrorName::OutcomeUnknown);
        assert_eq!(after(ErrorName::ControllerUnavailable), ErrorName::OutcomeUnknown);
        assert_eq!(after(ErrorName::RequestTimedOut), ErrorName::RequestTimedOut, "as open as it was");
    }
}
