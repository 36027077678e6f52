//! `quorate.broker.v1.Broker`.

use std::pin::Pin;
use std::time::Duration;

use prost::Message;
use quorate_metadata::ids::{BrokerEpoch, BrokerId, LeaderEpoch, PartitionEpoch, PartitionId, TopicPartition};
use quorate_metadata::plan::alter_partition::{self, IsrMember};
use quorate_metadata::plan::brokers::{self, RegisterBroker};
use quorate_metadata::plan::producer_ids;
use quorate_metadata::record::{Kind, LeaderRecoveryState};
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::broker::broker_client::BrokerClient;
use quorate_proto::broker::*;
use quorate_proto::encoded;
use quorate_proto::encoded::broker_server::Broker;
use quorate_proto::{endpoint_from_wire, features_from_wire, probe_from_wire};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::controllers;
use super::gateway::{Gateway, Passage};
use super::heartbeat::{self, HeartbeatTerms};
use super::request::{invalid, item_error, result, topic_id};
use super::watch;
use crate::controller::{MutationTerms, Origin, Weight};

/// Registration and ISR changes are small; a broker that waited this long asks anew.
const BROKER_CALL_TIMEOUT: Duration = Duration::from_secs(5);

pub struct BrokerService {
    pub gateway: Gateway,
    pub heartbeat: HeartbeatTerms,
}

pub(super) fn terms() -> MutationTerms {
    MutationTerms {
        origin: Origin::Broker,
        request: None,
        plan_only: false,
        atomic: false,
        timeout: BROKER_CALL_TIMEOUT,
        weight: Weight::default(),
    }
}

/// A repetition is recognised or refused by its epochs, or gives another block of ids, of which there are enough.
pub(super) fn passage(forwarded: bool) -> Passage {
    Passage { forwarded, deadline: tokio::time::Instant::now() + BROKER_CALL_TIMEOUT, repeatable: true }
}

#[tonic::async_trait]
impl Broker for BrokerService {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterReply>, Status> {
        let forwarded = Gateway::was_forwarded(&request);
        let local = |body: RegisterRequest, left: Duration| async move {
            let wanted = registration(body)?;
            let terms = terms().about(wanted.broker);
            let sessions = self.gateway.controller.sessions.clone();
            self.gateway
                .controller
                .mutate(
                    "register-broker",
                    terms.within(left),
                    move |image, _| {
                        let live = sessions.has_live(wanted.broker);
                        brokers::register(image, wanted.clone(), live)
                    },
                    |epoch, position, planned| RegisterReply {
                        broker_epoch: epoch.get(),
                        result: result(position, planned),
                    },
                )
                .await
        };
        let remote = |channel, request| async move { BrokerClient::new(channel).register(request).await };
        self.gateway.route(passage(forwarded), request.into_inner(), local, remote).await
    }

    type HeartbeatStream = Pin<Box<dyn Stream<Item = Result<HeartbeatReply, Status>> + Send>>;

    async fn heartbeat(
        &self,
        request: Request<Streaming<HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let replies = heartbeat::serve(self.gateway.clone(), self.heartbeat, request.into_inner())?;
        Ok(Response::new(Box::pin(replies)))
    }

    async fn alter_partition(
        &self,
        request: Request<AlterPartitionRequest>,
    ) -> Result<Response<AlterPartitionReply>, Status> {
        let forwarded = Gateway::was_forwarded(&request);
        let local = |body: AlterPartitionRequest, left: Duration| async move {
            let wanted = alteration(&body)?;
            let terms = terms().weighing(body.encoded_len(), wanted.partitions.len());
            let sessions = self.gateway.controller.sessions.clone();
            let is_leaving = move |broker| sessions.is_leaving(broker);
            self.gateway
                .controller
                .mutate(
                    "alter-partition",
                    terms.within(left),
                    move |image, _| alter_partition::alter_partition(image, &wanted, &is_leaving),
                    |altered, position, planned| AlterPartitionReply {
                        result: result(position, planned),
                        partitions: altered.into_iter().map(altered_partition).collect(),
                    },
                )
                .await
        };
        let remote = |channel, request| async move { BrokerClient::new(channel).alter_partition(request).await };
        // The leader has to know that a copy may be under way: a refusal of a later one then proves nothing.
        let passage = Passage { repeatable: false, ..passage(forwarded) };
        self.gateway.route(passage, request.into_inner(), local, remote).await
    }

    async fn allocate_producer_ids(
        &self,
        request: Request<AllocateProducerIdsRequest>,
    ) -> Result<Response<AllocateProducerIdsReply>, Status> {
        let forwarded = Gateway::was_forwarded(&request);
        let local = |body: AllocateProducerIdsRequest, left: Duration| async move {
            let (broker, epoch) = (BrokerId::new(body.broker), BrokerEpoch::new(body.broker_epoch));
            self.gateway
                .controller
                .mutate(
                    "allocate-producer-ids",
                    terms().within(left),
                    move |image, _| producer_ids::allocate(image, broker, epoch),
                    |block, position, planned| AllocateProducerIdsReply {
                        result: result(position, planned),
                        first_id: block.start,
                        length: i32::try_from(block.end - block.start).unwrap_or(i32::MAX),
                    },
                )
                .await
        };
        let remote = |channel, request| async move { BrokerClient::new(channel).allocate_producer_ids(request).await };
        self.gateway.route(passage(forwarded), request.into_inner(), local, remote).await
    }

    async fn register_controller(
        &self,
        request: Request<RegisterControllerRequest>,
    ) -> Result<Response<RegisterControllerReply>, Status> {
        let forwarded = Gateway::was_forwarded(&request);
        controllers::register(&self.gateway, forwarded, request.into_inner()).await
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<encoded::WatchEvent, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let events = watch::serve(&self.gateway, request.into_inner())?;
        Ok(Response::new(Box::pin(events)))
    }
}

fn registration(body: RegisterRequest) -> Result<RegisterBroker, ApiError> {
    let malformed = |what: &str, error: String| {
        ApiError::new(ErrorName::InvalidRegistration, format!("broker {}: {what}: {error}", body.broker))
    };
    Ok(RegisterBroker {
        broker: BrokerId::new(body.broker),
        cluster: body.cluster_id.parse().map_err(|error| {
            ApiError::new(ErrorName::InconsistentClusterId, format!("cluster id {:?}: {error}", body.cluster_id))
        })?,
        incarnation: body.incarnation.parse().map_err(|error| malformed("incarnation", format!("{error}")))?,
        endpoints: body
            .endpoints
            .iter()
            .cloned()
            .map(endpoint_from_wire)
            .collect::<Result<_, _>>()
            .map_err(|error| malformed("endpoint", error.to_string()))?,
        probe: probe_from_wire(body.probe.clone()),
        kind: Kind::parse(body.kind.as_deref()).map_err(|error| malformed("kind", error.message))?,
        rack: body.rack.clone(),
        features: features_from_wire(body.features.clone()).map_err(|error| malformed("feature", error.to_string()))?,
        directories: body
            .directories
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()
            .map_err(|error| malformed("directory", format!("{error}")))?,
        cordoned_directories: None,
        previous_epoch: body.previous_epoch.map(BrokerEpoch::new),
    })
}

fn alteration(body: &AlterPartitionRequest) -> Result<alter_partition::AlterPartition, ApiError> {
    let partitions = body
        .partitions
        .iter()
        .map(|asked| {
            Ok(alter_partition::PartitionAlteration {
                id: TopicPartition::new(topic_id(&asked.topic_id)?, PartitionId::new(asked.partition)),
                leader_epoch: LeaderEpoch::new(asked.leader_epoch),
                partition_epoch: PartitionEpoch::new(asked.partition_epoch),
                isr: asked
                    .isr
                    .iter()
                    .map(|member| IsrMember {
                        broker: BrokerId::new(member.broker),
                        epoch: member.epoch.map(BrokerEpoch::new),
                    })
                    .collect(),
                recovery: recovery(asked.recovery)?,
                supersedes: asked.supersedes,
            })
        })
        .collect::<Result<_, ApiError>>()?;
    Ok(alter_partition::AlterPartition {
        broker: BrokerId::new(body.broker),
        broker_epoch: BrokerEpoch::new(body.broker_epoch),
        partitions,
    })
}

fn recovery(number: i32) -> Result<LeaderRecoveryState, ApiError> {
    match number {
        0 => Ok(LeaderRecoveryState::Recovered),
        1 => Ok(LeaderRecoveryState::Recovering),
        other => Err(invalid(format!("leader recovery state {other} is unknown"))),
    }
}

fn altered_partition(
    (id, altered): (TopicPartition, Result<alter_partition::AlteredPartition, ApiError>),
) -> AlteredPartition {
    let mut reply = AlteredPartition {
        topic_id: id.topic.to_string(),
        partition: id.partition.get(),
        error: item_error(&altered),
        ..AlteredPartition::default()
    };
    if let Ok(state) = altered {
        reply.leader = state.leader.map(BrokerId::get);
        reply.leader_epoch = state.leader_epoch.get();
        reply.isr = state.isr.iter().map(|broker| broker.get()).collect();
        reply.recovery = i32::from(state.recovery as i8);
        reply.partition_epoch = state.partition_epoch.get();
    }
    reply
}
