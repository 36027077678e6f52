//! A broker's heartbeat stream.
//!
//! The contact is stamped here, in the RPC's own task, before anything else: a busy event loop cannot fence a live
//! broker. A heartbeat that changes nothing is answered from the image; the others go through the event loop.

use std::time::Duration;

use prost::Message;
use quorate_metadata::ids::{BrokerEpoch, BrokerId, ControllerEpoch, DirectoryId, Offset};
use quorate_metadata::plan::heartbeat::{Heartbeat, HeartbeatAnswer, awaits_others, heartbeat};
use quorate_metadata::{ApiError, ErrorName, MetadataImage};
use quorate_proto::broker::{HeartbeatReply, HeartbeatRequest};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::gateway::Gateway;
use super::request::invalid;
use crate::controller::{Contact, MutationTerms, OpenStream, SessionTable, Weight};

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
        let is_late = self.stamp(&wanted);
        // Another one may be in office, under whom the broker has registered anew. To hang up makes every broker look for
        // another controller, so it takes longer to come to than to grant no lease (see `reply`).
        if self.gateway.raft.is_deaf() {
            return Err(ApiError::new(ErrorName::NotController, "no majority answers this controller"));
        }
        let answer = if is_late && !self.is_fenced(wanted.broker) {
            // Its fencing goes on: a lease now would let it lead beside its successors.
            HeartbeatAnswer { fenced: true, caught_up: false, should_shut_down: false }
        } else if let Some(answer) = self.unchanged(&wanted)? {
            answer
        } else {
            self.decide(wanted).await?
        };
        Ok(self.reply(request.sequence, &answer))
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
    /// its epoch finds it here, since the reply came after the replay. Returns whether its fencing has begun already.
    fn stamp(&mut self, heartbeat: &Heartbeat) -> bool {
        let registered = self.gateway.view.inspect(|image| image.broker(heartbeat.broker).map(|known| known.epoch));
        if registered != Some(heartbeat.epoch) {
            return false;
        }
        let sessions = &self.gateway.controller.sessions;
        let is_late = sessions.touch(Contact {
            broker: heartbeat.broker,
            epoch: heartbeat.epoch,
            metadata_offset: heartbeat.metadata_offset,
        });
        if self.open.is_none() {
            let open = sessions.open_stream(heartbeat.broker, heartbeat.epoch);
            self.open = Some((heartbeat.broker, heartbeat.epoch, open));
        }
        is_late
    }

    /// Whether the committed metadata has the broker fenced.
    fn is_fenced(&self, broker: BrokerId) -> bool {
        self.gateway.view.inspect(|image| image.broker(broker).is_none_or(|known| known.fenced))
    }

    /// The answer when nothing has to be written. What is committed decides; the event loop decides the rest.
    fn unchanged(&self, wanted: &Heartbeat) -> Result<Option<HeartbeatAnswer>, ApiError> {
        let sessions = &self.gateway.controller.sessions;
        // Unknown or stale here may be merely not yet committed: the draft knows.
        let plan = self.gateway.view.inspect(|image| heartbeat(image, wanted, lowest_other(sessions, image, wanted)));
        let Ok(plan) = plan else { return Ok(None) };
        Ok(plan.records.is_empty().then_some(plan.response))
    }

    async fn decide(&self, wanted: Heartbeat) -> Result<HeartbeatAnswer, ApiError> {
        let sessions = self.gateway.controller.sessions.clone();
        let (timeout, weight) = (DECISION_TIMEOUT, Weight::default());
        let terms = MutationTerms { request: None, plan_only: false, atomic: false, timeout, weight };
        let reply: Decision = self
            .gateway
            .controller
            .mutate(
                "heartbeat",
                terms,
                move |image, _| heartbeat(image, &wanted, lowest_other(&sessions, image, &wanted)),
                |answer, _, _| Decision {
                    fenced: answer.fenced,
                    caught_up: answer.caught_up,
                    should_shut_down: answer.should_shut_down,
                },
            )
            .await?;
        Ok(HeartbeatAnswer {
            fenced: reply.fenced,
            caught_up: reply.caught_up,
            should_shut_down: reply.should_shut_down,
        })
    }

    fn reply(&self, sequence: u64, answer: &HeartbeatAnswer) -> HeartbeatReply {
        // A fenced broker leads nothing; and an office that may be lost must not keep a leader in its own.
        let may_lead = !answer.fenced && self.gateway.raft.quorum_acked_within(self.terms.quorum_silence_max);
        HeartbeatReply {
            sequence,
            fenced: answer.fenced,
            caught_up: answer.caught_up,
            should_shut_down: answer.should_shut_down,
            lease_ms: if may_lead { millis(self.terms.lease) } else { 0 },
            interval_ms: millis(self.terms.interval),
            controller_epoch: self.gateway.claimed().map_or(0, |epoch| epoch.get()),
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
fn lowest_other(sessions: &SessionTable, image: &MetadataImage, wanted: &Heartbeat) -> Option<Offset> {
    awaits_others(image, wanted.broker).then(|| sessions.lowest_active_offset(image, wanted.broker)).flatten()
}

async fn resigned(claims: &mut watch::Receiver<Option<ControllerEpoch>>) {
    // A dropped sender means that the event loop is gone, which is a resignation as well.
    let _ = claims.wait_for(Option::is_none).await;
}

fn directories(texts: &[String]) -> Result<Vec<DirectoryId>, ApiError> {
    let parse = |text: &String| text.parse().map_err(|error| invalid(format!("directory {text:?}: {error}")));
    texts.iter().map(parse).collect()
}

/// `HeartbeatAnswer` on its way through the event loop.
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

    use quorate_metadata::record::BrokerRegistration;
    use quorate_metadata::{Batch, Record};
    use quorate_proto::batch;

    use super::*;
    use crate::api::fixture::{lone_gateway, registration};
    use crate::raft::Replica;
    use crate::replica::{MetadataReplica, MetadataView};

    const BROKER: BrokerId = BrokerId::new(1);

    /// The committed metadata has the broker, unfenced.
    fn register(view: &MetadataView) {
        let controller_epoch = ControllerEpoch::new(1);
        let unfenced = BrokerRegistration { fenced: false, ..registration(BROKER.get()) };
        let records = vec![Record::RegisterBroker(unfenced)];
        let payload = batch::encode(Offset::default(), &Batch { controller_epoch, timestamp_ms: 0, records });
        let mut replica = MetadataReplica::new(view.clone(), BTreeMap::new());
        replica.replay(controller_epoch, &payload).expect("it is the first batch");
        replica.publish();
    }

    #[tokio::test]
    async fn a_broker_that_is_being_fenced_is_answered_as_fenced() {
        let gateway = lone_gateway().await;
        register(&gateway.view);
        let second = Duration::from_secs(1);
        let terms = HeartbeatTerms { interval: second, lease: second, quorum_silence_max: second };
        let mut stream = BrokerStream { gateway, terms, open: None };
        let request = || HeartbeatRequest {
            broker: BROKER.get(),
            broker_epoch: 1,
            metadata_offset: 2,
            ..HeartbeatRequest::default()
        };
        let reply = stream.answer(request()).await.expect("the broker is registered");
        assert!(!reply.fenced);
        stream.gateway.controller.sessions.begin_fencing(BROKER);
        let reply = stream.answer(request()).await.expect("the broker is registered");
        assert!(reply.fenced && reply.lease_ms == 0);
    }
}
