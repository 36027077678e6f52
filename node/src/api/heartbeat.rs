//! A broker's heartbeat stream.
//!
//! The contact is stamped here, in the RPC's own task, before anything else: a busy event loop cannot fence a live
//! broker. A heartbeat that changes nothing is answered from the image; the others go through the event loop.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use quorate_metadata::ids::{BrokerEpoch, BrokerId, ControllerEpoch, DirectoryId, Offset};
use quorate_metadata::liveness::Removal;
use quorate_metadata::plan::heartbeat::{Heartbeat, HeartbeatAnswer, HeartbeatSteps, awaits_others};
use quorate_metadata::rng::Rng;
use quorate_metadata::{ApiError, ErrorName, MetadataImage, Plan, Record};
use quorate_proto::broker::{HeartbeatReply, HeartbeatRequest};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::gateway::Gateway;
use super::request::invalid;
use crate::controller::{
    Contact, Mutation, MutationTerms, OpenStream, Origin, Position, RemovalTarget, SessionTable, Weight,
};

/// Replies that may wait for a slow broker before its stream is held back.
const REPLIES_BUFFERED_MAX: usize = 4;

/// A heartbeat that could not be decided within this time is answered by the next one.
const DECISION_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub struct HeartbeatTerms {
    pub interval: Duration,
    /// Ends before the session does: counted from when the broker sent, the session from when we received, and
    /// shortened for clocks that run at different rates.
    pub lease: Duration,
    /// An office that no majority has confirmed for so long grants no leases.
    pub quorum_silence_max: Duration,
}

/// One broker's stream on the active controller.
struct BrokerStream {
    gateway: Gateway,
    terms: HeartbeatTerms,
    open: Option<(BrokerId, BrokerEpoch, OpenStream)>,
}

pub fn serve(
    gateway: Gateway,
    terms: HeartbeatTerms,
    mut requests: Streaming<HeartbeatRequest>,
) -> Result<impl Stream<Item = Result<HeartbeatReply, Status>>, Status> {
    if gateway.claimed().is_none() {
        return Err(gateway.not_controller());
    }
    let (sender, replies) = mpsc::channel(REPLIES_BUFFERED_MAX);
    let mut claims = gateway.controller.claims();
    let mut stream = BrokerStream { gateway, terms, open: None };
    tokio::spawn(async move {
        loop {
            let request = tokio::select! {
                biased;
                // Resigned: the broker looks for the new controller at once.
                () = resigned(&mut claims) => {
                    let _ = sender.send(Err(stream.gateway.not_controller())).await;
                    return stream.leave();
                }
                () = sender.closed() => return,
                request = requests.message() => request,
            };
            // The end of the stream, broken or not: without a goodbye, `open` reports it as lost when dropped.
            let Ok(Some(request)) = request else { return };
            match stream.answer(request).await {
                Ok(reply) => {
                    let goodbye = reply.should_shut_down;
                    if sender.send(Ok(reply)).await.is_err() {
                        return;
                    }
                    if goodbye {
                        return stream.leave();
                    }
                }
                Err(error) => {
                    // The receiver is the broker's connection; when it is gone there is nobody to tell.
                    let _ = sender.send(Err(stream.gateway.status(&error))).await;
                    return stream.leave();
                }
            }
        }
    });
    Ok(ReceiverStream::new(replies))
}

impl BrokerStream {
    async fn answer(&mut self, request: HeartbeatRequest) -> Result<HeartbeatReply, ApiError> {
        let wanted = Heartbeat {
            broker: BrokerId::new(request.broker),
            epoch: BrokerEpoch::new(request.broker_epoch),
            metadata_offset: Offset::new(request.metadata_offset),
            want_fence: request.want_fence,
            want_shutdown: request.want_shutdown,
            offline_directories: directories(&request.offline_directories)?,
        };
        self.check_identity(&wanted)?;
        let claimed = self.gateway.claimed();
        let removal = self.stamp(&wanted);
        if self.open.is_some() {
            self.gateway.controller.sessions.disk_reports.report(wanted.broker, &request.disk_problems);
        }
        // Another one may be in office, under whom the broker has registered anew. To hang up makes every broker look for
        // another controller, so it takes longer to come to than to grant no lease (see `reply`).
        if self.gateway.raft.is_deaf() {
            return Err(ApiError::new(ErrorName::NotController, "no majority answers this controller"));
        }
        let answer = match removal.filter(|removal| self.is_uncommitted(wanted.broker, *removal)) {
            Some(removal) => answer_during(removal),
            None => self.plan(wanted).await?,
        };
        Ok(self.reply(request.sequence, &answer, claimed))
    }

    /// A stream speaks for one incarnation of one broker.
    fn check_identity(&self, heartbeat: &Heartbeat) -> Result<(), ApiError> {
        match &self.open {
            Some((broker, epoch, _)) if (*broker, *epoch) != (heartbeat.broker, heartbeat.epoch) => Err(ApiError::new(
                ErrorName::InvalidRequest,
                format!("this stream speaks for broker {broker} at epoch {epoch}"),
            )),
            _ => Ok(()),
        }
    }

    /// Only for the registered epoch: a made-up higher one would shut the real broker's heartbeats out. Whoever was told
    /// its epoch finds it here, since the reply came after the replay. Returns what the broker is being taken out of ISRs
    /// for.
    fn stamp(&mut self, heartbeat: &Heartbeat) -> Option<Removal> {
        let registered = self.gateway.view.inspect(|image| image.broker(heartbeat.broker).map(|known| known.epoch));
        if registered != Some(heartbeat.epoch) {
            return None;
        }
        let sessions = &self.gateway.controller.sessions;
        // Before the contact counts: a fencing that has seen no stream has begun then.
        if self.open.is_none() {
            let open = sessions.open_stream(heartbeat.broker, heartbeat.epoch);
            self.open = Some((heartbeat.broker, heartbeat.epoch, open));
        }
        sessions.touch(Contact {
            broker: heartbeat.broker,
            epoch: heartbeat.epoch,
            metadata_offset: heartbeat.metadata_offset,
        })
    }

    /// Whether the committed metadata does not have the end of it yet.
    fn is_uncommitted(&self, broker: BrokerId, removal: Removal) -> bool {
        self.gateway.view.inspect(|image| match removal {
            Removal::Fencing => image.broker(broker).is_some_and(|known| !known.fenced),
            Removal::ControlledShutdown | Removal::DirectoryFailure => image.is_active(broker),
        })
    }

    /// Where nothing has to be written, what is committed decides; the event loop decides the rest. A broker with many
    /// partitions is answered at once, so that it does not lose the lease of those that are not moved yet.
    async fn plan(&self, wanted: Heartbeat) -> Result<HeartbeatAnswer, ApiError> {
        let mut steps = self.steps(&wanted);
        match self.gateway.view.inspect(|image| steps.plan(image)) {
            Ok(plan) if plan.records.is_empty() => Ok(plan.response),
            Ok(plan) if plan.is_partial => {
                let target = RemovalTarget { broker: wanted.broker, epoch: wanted.epoch };
                self.gateway.controller.remove_from_isrs(target, self.steps(&wanted))?;
                Ok(plan.response)
            }
            // Unknown or stale here may be merely not yet committed: the draft knows.
            Ok(_) | Err(_) => self.decide(wanted).await,
        }
    }

    fn steps(&self, wanted: &Heartbeat) -> Steps {
        Steps {
            broker: wanted.broker,
            steps: HeartbeatSteps::new(wanted.clone()),
            sessions: self.gateway.controller.sessions.clone(),
            answer: None,
        }
    }

    async fn decide(&self, wanted: Heartbeat) -> Result<HeartbeatAnswer, ApiError> {
        let terms = MutationTerms {
            origin: Origin::Broker,
            request: None,
            plan_only: false,
            atomic: false,
            timeout: DECISION_TIMEOUT,
            weight: Weight { broker: Some(wanted.broker), ..Weight::default() },
        };
        let target = Some(RemovalTarget { broker: wanted.broker, epoch: wanted.epoch });
        let mutation = Box::new(self.steps(&wanted));
        let reply: Decision = self.gateway.controller.request("heartbeat", terms, target, mutation).await?;
        Ok(HeartbeatAnswer {
            fenced: reply.fenced,
            caught_up: reply.caught_up,
            should_shut_down: reply.should_shut_down,
        })
    }

    /// `claimed` is the claim when the heartbeat arrived.
    fn reply(&self, sequence: u64, answer: &HeartbeatAnswer, claimed: Option<ControllerEpoch>) -> HeartbeatReply {
        // A fenced broker leads nothing; and an office that may be lost must not keep a leader in its own. A claim that ended
        // meanwhile has taken the sessions with it.
        let is_kept = claimed.is_some() && claimed == self.gateway.claimed();
        let may_lead =
            is_kept && !answer.fenced && self.gateway.raft.quorum_acked_within(self.terms.quorum_silence_max);
        HeartbeatReply {
            sequence,
            fenced: answer.fenced,
            caught_up: answer.caught_up,
            should_shut_down: answer.should_shut_down,
            lease_ms: if may_lead { millis(self.terms.lease) } else { 0 },
            interval_ms: millis(self.terms.interval),
            controller_epoch: claimed.map_or(0, |epoch| epoch.get()),
            metadata_offset: self.gateway.view.inspect(|image| image.next_offset.get()),
        }
    }

    /// The stream ends with a goodbye: nobody is to be suspected for it.
    fn leave(self) {
        if let Some((_, _, open)) = self.open {
            open.close();
        }
    }
}

/// What the answer needs to know of the other brokers. Not looked for where it needs nothing: heartbeats come by the ten
/// thousand, and each look costs all brokers.
fn lowest_other(sessions: &SessionTable, image: &MetadataImage, broker: BrokerId) -> Option<Offset> {
    awaits_others(image, broker).then(|| sessions.lowest_active_offset(image, broker)).flatten()
}

/// The answer to a broker that is being taken out of ISRs: what it wants it says again afterwards.
fn answer_during(removal: Removal) -> HeartbeatAnswer {
    match removal {
        // A lease now would let it lead beside its successors.
        Removal::Fencing => HeartbeatAnswer { fenced: true, caught_up: false, should_shut_down: false },
        Removal::ControlledShutdown | Removal::DirectoryFailure => {
            HeartbeatAnswer { fenced: false, caught_up: true, should_shut_down: false }
        }
    }
}

async fn resigned(claims: &mut watch::Receiver<Option<ControllerEpoch>>) {
    // A dropped sender means that the event loop is gone, which is a resignation as well.
    let _ = claims.wait_for(Option::is_none).await;
}

fn directories(texts: &[String]) -> Result<Vec<DirectoryId>, ApiError> {
    let parse = |text: &String| text.parse().map_err(|error| invalid(format!("directory {text:?}: {error}")));
    texts.iter().map(parse).collect()
}

/// A heartbeat on its way through the event loop.
struct Steps {
    broker: BrokerId,
    steps: HeartbeatSteps,
    sessions: Arc<SessionTable>,
    /// Of the last plan.
    answer: Option<HeartbeatAnswer>,
}

impl Steps {
    fn plan(&mut self, image: &MetadataImage) -> Result<Plan<HeartbeatAnswer>, ApiError> {
        self.steps.plan(image, lowest_other(&self.sessions, image, self.broker))
    }
}

impl Mutation for Steps {
    fn plan(&mut self, image: &MetadataImage, _: &mut Rng) -> Result<Plan<()>, ApiError> {
        let plan = Self::plan(self, image)?;
        Ok(plan.map(|answer| self.answer = Some(answer)))
    }

    fn reply(&mut self, _: &Position, _: &[Record]) -> Vec<u8> {
        let HeartbeatAnswer { fenced, caught_up, should_shut_down } = self.answer.expect("a reply follows a plan");
        Decision { fenced, caught_up, should_shut_down }.encode_to_vec()
    }

    fn removal(&self) -> Option<Removal> {
        self.steps.removal()
    }
}

/// `HeartbeatAnswer` as a reply of the event loop.
#[derive(Clone, PartialEq, Message)]
struct Decision {
    #[prost(bool, tag = "1")]
    fenced: bool,
    #[prost(bool, tag = "2")]
    caught_up: bool,
    #[prost(bool, tag = "3")]
    should_shut_down: bool,
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use quorate_metadata::Batch;
    use quorate_metadata::ids::{PartitionId, TopicId, TopicPartition};
    use quorate_metadata::limits::CHANGES_PER_STEP_MAX;
    use quorate_metadata::record::{BrokerRegistration, Kind, PartitionRegistration, PartitionState};
    use quorate_proto::batch;

    use super::*;
    use crate::api::describe;
    use crate::api::fixture::{lone_gateway, registration};
    use crate::controller::EventLoop;
    use crate::raft::Replica;
    use crate::replica::{MetadataReplica, MetadataView};

    const BROKER: BrokerId = BrokerId::new(1);

    /// The committed metadata has the broker, unfenced, and partitions that it leads.
    fn register(view: &MetadataView, partitions: usize) {
        let controller_epoch = ControllerEpoch::new(1);
        let unfenced = BrokerRegistration { fenced: false, ..registration(BROKER.get()) };
        let topic = TopicId::default();
        let mut records = vec![
            Record::RegisterBroker(unfenced),
            Record::CreateTopic { topic, name: "orders".to_owned(), kind: Kind::LOG },
        ];
        records.extend((0..partitions as i32).map(|number| {
            let state = PartitionState {
                replicas: vec![BROKER],
                isr: vec![BROKER],
                directories: vec![DirectoryId::UNASSIGNED],
                leader: Some(BROKER),
                ..PartitionState::default()
            };
            let id = TopicPartition::new(topic, PartitionId::new(number));
            Record::CreatePartition(PartitionRegistration { id, state: state.into() })
        }));
        let payload = batch::encode(Offset::default(), &Batch { controller_epoch, timestamp_ms: 0, records });
        let mut replica = MetadataReplica::new(view.clone(), BTreeMap::new());
        replica.replay(controller_epoch, &payload).expect("it is the first batch");
        replica.publish();
    }

    /// The stream of a broker, and the event loop, which does not run.
    async fn stream(partitions: usize) -> (BrokerStream, EventLoop) {
        let (gateway, event_loop) = lone_gateway().await;
        register(&gateway.view, partitions);
        event_loop.published_claim().send_replace(Some(ControllerEpoch::new(1)));
        let second = Duration::from_secs(1);
        let terms = HeartbeatTerms { interval: second, lease: second, quorum_silence_max: second };
        (BrokerStream { gateway, terms, open: None }, event_loop)
    }

    fn request() -> HeartbeatRequest {
        HeartbeatRequest { broker: BROKER.get(), broker_epoch: 1, metadata_offset: 2, ..HeartbeatRequest::default() }
    }

    #[tokio::test]
    async fn a_broker_that_is_being_fenced_is_answered_as_fenced() {
        let (mut stream, _event_loop) = stream(1).await;
        let reply = stream.answer(request()).await.expect("the broker is registered");
        assert!(!reply.fenced && reply.lease_ms > 0);
        stream.gateway.controller.sessions.begin_removal(BROKER, Removal::Fencing);
        let reply = stream.answer(request()).await.expect("the broker is registered");
        assert!(reply.fenced && reply.lease_ms == 0);
    }

    #[tokio::test]
    async fn a_broker_in_controlled_shutdown_keeps_its_lease() {
        // An answer that waits for the event loop does not come.
        let (mut stream, _event_loop) = stream(CHANGES_PER_STEP_MAX + 1).await;
        let stops = || HeartbeatRequest { want_shutdown: true, ..request() };
        let reply = stream.answer(stops()).await.expect("the broker is registered");
        assert!(!reply.fenced && !reply.should_shut_down && reply.lease_ms > 0);
        stream.gateway.controller.sessions.begin_removal(BROKER, Removal::ControlledShutdown);
        let reply = stream.answer(stops()).await.expect("the broker is registered");
        assert!(!reply.fenced && !reply.should_shut_down && reply.lease_ms > 0);
    }

    #[tokio::test]
    async fn no_lease_is_granted_without_a_claim() {
        let (mut stream, event_loop) = stream(1).await;
        event_loop.published_claim().send_replace(None);
        let reply = stream.answer(request()).await.expect("the broker is registered");
        assert!(!reply.fenced && reply.lease_ms == 0);
    }
    #[tokio::test]
    async fn a_disk_problem_of_a_broker_is_a_reason_of_the_status() {
        let (mut stream, _event_loop) = stream(1).await;
        let problem = "log directory a: is offline".to_owned();
        let sick = HeartbeatRequest { disk_problems: vec![problem], ..request() };
        stream.answer(sick).await.expect("the broker is registered");
        let named = "broker 1: log directory a: is offline".to_owned();
        let status = describe::status(&stream.gateway).await;
        assert!(!status.healthy && status.reasons.contains(&named), "{:?}", status.reasons);
        stream.answer(request()).await.expect("the broker is registered");
        let status = describe::status(&stream.gateway).await;
        assert!(!status.reasons.contains(&named), "{:?}", status.reasons);
    }
}
