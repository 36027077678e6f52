//! `quorate.admin.v1.Admin`.

use std::time::Duration;

use prost::Message;
use quorate_metadata::ids::BrokerId;
use quorate_metadata::plan::topics::{CreatePartitions, CreateTopic};
use quorate_metadata::plan::{brokers, configs, topics};
use quorate_metadata::record::Kind;
use quorate_metadata::{ApiError, ErrorName, MetadataImage, Plan};
use quorate_proto::admin::admin_client::AdminClient;
use quorate_proto::admin::admin_server::Admin;
use quorate_proto::admin::*;
use quorate_proto::error::to_item;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::elections::{elect, election_kind};
use super::gateway::Gateway;
use super::request::{assignment, config_resource, invalid, item_error, passage, result, terms, timeout, topic_ref};
use super::{describe, features, inventory, listing, quorum, reassignment};

pub struct AdminService {
    pub gateway: Gateway,
}

/// A client to the active controller, with this service's message limits.
pub(super) fn remote(channel: Channel) -> AdminClient<Channel> {
    AdminClient::new(channel)
        .max_decoding_message_size(super::server::REPLY_BYTES_MAX)
        .max_encoding_message_size(super::server::REQUEST_BYTES_MAX)
}

impl AdminService {
    async fn image(&self, options: Option<&ReadOptions>) -> Result<MetadataImage, Status> {
        let options = options.copied().unwrap_or_default();
        self.gateway.read(options.stale, timeout(options.timeout_ms)).await
    }

    /// What this node says of itself as the active controller is true only if it still is.
    async fn confirm_office(&self, left: Duration) -> Result<(), ApiError> {
        self.gateway
            .raft
            .read_barrier(left)
            .await
            .map_err(|error| ApiError::new(ErrorName::ControllerUnavailable, format!("cannot read: {error}")))
    }

    fn refused(&self) -> impl Fn(ApiError) -> Status + '_ {
        |error| self.gateway.status(&error)
    }
}

/// Plans the items that are well formed, and answers the others with their own error, in the order of the request.
pub(super) fn plan_items<T: Clone, U>(
    checked: &[Result<T, ApiError>],
    plan: impl FnOnce(Vec<T>) -> Plan<Vec<Result<U, ApiError>>>,
) -> Plan<Vec<Result<U, ApiError>>> {
    let well_formed = checked.iter().filter_map(|item| item.as_ref().ok()).cloned().collect();
    plan(well_formed).map(|planned| {
        let mut planned = planned.into_iter();
        let answer = |item: &Result<T, ApiError>| match item {
            Err(error) => Err(error.clone()),
            Ok(_) => planned.next().expect("a plan answers every item"),
        };
        checked.iter().map(answer).collect()
    })
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_topics(
        &self,
        request: Request<CreateTopicsRequest>,
    ) -> Result<Response<CreateTopicsReply>, Status> {
        let forwarded = Gateway::was_forwarded(&request);
        let body = request.into_inner();
        let terms = terms(body.options.as_ref()).map_err(self.refused())?;
        let local = |body: CreateTopicsRequest, left: Duration| async move {
            let wanted: Vec<CreateTopic> = body.topics.iter().map(create_topic).collect::<Result<_, _>>()?;
            let terms = terms.weighing(body.encoded_len(), partitions_of(&wanted));
            self.gateway
                .controller
                .mutate(
                    "create-topics",
                    terms.within(left),
                    move |image, rng| topics::create_topics(image, &wanted, rng),
                    move |created, position, planned| CreateTopicsReply {
                        result: result(position, planned),
                        topics: body
                            .topics
                            .iter()
                            .zip(created)
                            .map(|(asked, created)| created_topic(asked, created))
                            .collect(),
                    },
                )
                .await
        };
        let remote = |channel, request| async move { remote(channel).create_topics(request).await };
        self.gateway.route(passage(forwarded, &terms), body, local, remote).await
    }

    async fn delete_topics(
        &self,
        request: Request<DeleteTopicsRequest>,
    ) -> Result<Response<DeleteTopicsReply>, Status> {
        let forwarded = Gateway::was_forwarded(&request);
        let body = request.into_inner();
        let terms = terms(body.options.as_ref()).map_err(self.refused())?;
        let local = |body: DeleteTopicsRequest, left: Duration| async move {
            let wanted: Vec<_> = body.topics.iter().map(topic_ref).collect();
            let terms = terms.weighing(body.encoded_len(), wanted.len());
            self.gateway
                .controller
                .mutate(
                    "delete-topics",
                    terms.within(left),
                    move |image, _| Ok(plan_items(&wanted, |wanted| topics::delete_topics(image, &wanted))),
                    move |deleted, position, planned| DeleteTopicsReply {
                        result: result(position, planned),
                        topics: body
                            .topics
                            .iter()
                            .cloned()
                            .zip(deleted)
                            .map(|(topic, deleted)| DeletedTopic {
                                topic: Some(topic),
                                error: item_error(&deleted),
                                id: deleted.map(|id| id.to_string()).unwrap_or_default(),
                            })
                            .collect(),
                    },
                )
                .await
        };
        let remote = |channel, request| async move { remote(channel).delete_topics(request).await };
        self.gateway.route(passage(forwarded, &terms), body, local, remote).await
    }

    async fn create_partitions(
        &self,
        request: Request<CreatePartitionsRequest>,
    ) -> Result<Response<CreatePartitionsReply>, Status> {
        let forwarded = Gateway::was_forwarded(&request);
        let body = request.into_inner();
        let terms = terms(body.options.as_ref()).map_err(self.refused())?;
        let local = |body: CreatePartitionsRequest, left: Duration| async move {
            let wanted: Vec<CreatePartitions> = body.topics.iter().map(more_partitions).collect();
            let partitions = wanted.iter().map(|wanted| usize::try_from(wanted.count).unwrap_or_default()).sum();
            let terms = terms.weighing(body.encoded_len(), partitions);
            self.gateway
                .controller
                .mutate(
                    "create-partitions",
                    terms.within(left),
                    move |image, rng| Ok(topics::create_partitions(image, &wanted, rng)),
                    move |expanded, position, planned| CreatePartitionsReply {
                        result: result(position, planned),
                        topics: body
                            .topics
                            .iter()
                            .cloned()
                            .zip(expanded)
                            .map(|(asked, expanded)| ExpandedTopic {
                                topic: asked.topic,
                                error: item_error(&expanded),
                                partitions: expanded.unwrap_or_default(),
                            })
                            .collect(),
                    },
                )
                .await
        };
        let remote = |channel, request| async move { remote(channel).create_partitions(request).await };
        self.gateway.route(passage(forwarded, &terms), body, local, remote).await
    }

    async fn elect_leaders(
        &self,
        request: Request<ElectLeadersRequest>,
    ) -> Result<Response<ElectLeadersReply>, Status> {
        let forwarded = Gateway::was_forwarded(&request);
        let body = request.into_inner();
        let terms = terms(body.options.as_ref()).map_err(self.refused())?;
        let local = |body: ElectLeadersRequest, left: Duration| async move {
            let kind = election_kind(body.kind())?;
            if body.all && !body.partitions.is_empty() {
                return Err(invalid("either all partitions or a list of them"));
            }
            let index = self.gateway.view.image().index;
            let all = index.misplaced_count() + index.leaderless_count();
            let elections = if body.all { all } else { body.partitions.len() };
            let terms = terms.weighing(body.encoded_len(), elections);
            self.gateway
                .controller
                .mutate(
                    "elect-leaders",
                    terms.within(left),
                    move |image, _| Ok(elect(image, kind, &body)),
                    |elected, position, planned| ElectLeadersReply {
                        result: result(position, planned),
                        partitions: elected,
                    },
                )
                .await
        };
        let remote = |channel, request| async move { remote(channel).elect_leaders(request).await };
        self.gateway.route(passage(forwarded, &terms), body, local, remote).await
    }

    async fn alter_configs(
        &self,
        request: Request<AlterConfigsRequest>,
    ) -> Result<Response<AlterConfigsReply>, Status> {
        let forwarded = Gateway::was_forwarded(&request);
        let body = request.into_inner();
        let terms = terms(body.options.as_ref()).map_err(self.refused())?;
        let local = |body: AlterConfigsRequest, left: Duration| async move {
            let wanted: Vec<_> = body.resources.iter().map(config_alteration).collect();
            let changes = body.resources.iter().map(|resource| resource.changes.len()).sum();
            let terms = terms.weighing(body.encoded_len(), changes);
            self.gateway
                .controller
                .mutate(
                    "alter-configs",
                    terms.within(left),
                    move |image, _| Ok(plan_items(&wanted, |wanted| configs::alter_configs(image, &wanted))),
                    move |altered, position, planned| AlterConfigsReply {
                        result: result(position, planned),
                        resources: body
                            .resources
                            .iter()
                            .cloned()
                            .zip(altered)
                            .map(|(asked, altered)| AlteredConfig {
                                resource: asked.resource,
                                error: item_error(&altered),
                            })
                            .collect(),
                    },
                )
                .await
        };
        let remote = |channel, request| async move { remote(channel).alter_configs(request).await };
        self.gateway.route(passage(forwarded, &terms), body, local, remote).await
    }

    async fn unregister_broker(
        &self,
        request: Request<UnregisterBrokerRequest>,
    ) -> Result<Response<UnregisterBrokerReply>, Status> {
        let forwarded = Gateway::was_forwarded(&request);
        let body = request.into_inner();
        let terms = terms(body.options.as_ref()).map_err(self.refused())?;
        let local = |body: UnregisterBrokerRequest, left: Duration| async move {
            let broker = BrokerId::new(body.broker);
            self.gateway
                .controller
                .mutate(
                    "unregister-broker",
                    terms.within(left),
                    move |image, _| brokers::unregister(image, broker, body.force),
                    |(), position, planned| UnregisterBrokerReply { result: result(position, planned) },
                )
                .await
        };
        let remote = |channel, request| async move { remote(channel).unregister_broker(request).await };
        self.gateway.route(passage(forwarded, &terms), body, local, remote).await
    }

    async fn list_topics(&self, request: Request<ListTopicsRequest>) -> Result<Response<ListTopicsReply>, Status> {
        let image = self.image(request.get_ref().options.as_ref()).await?;
        listing::topics(&image, request.get_ref()).await.map(Response::new).map_err(self.refused())
    }

    async fn describe_topics(
        &self,
        request: Request<DescribeTopicsRequest>,
    ) -> Result<Response<DescribeTopicsReply>, Status> {
        let image = self.image(request.get_ref().options.as_ref()).await?;
        listing::described_topics(&image, request.into_inner()).await.map(Response::new).map_err(self.refused())
    }

    async fn list_partitions(
        &self,
        request: Request<ListPartitionsRequest>,
    ) -> Result<Response<ListPartitionsReply>, Status> {
        let image = self.image(request.get_ref().options.as_ref()).await?;
        listing::partitions(&image, request.get_ref()).await.map(Response::new).map_err(self.refused())
    }

    async fn describe_configs(
        &self,
        request: Request<DescribeConfigsRequest>,
    ) -> Result<Response<DescribeConfigsReply>, Status> {
        let image = self.image(request.get_ref().options.as_ref()).await?;
        inventory::configs(&image, request.into_inner()).await.map(Response::new).map_err(self.refused())
    }

    async fn list_brokers(&self, request: Request<ListBrokersRequest>) -> Result<Response<ListBrokersReply>, Status> {
        let image = self.image(request.get_ref().options.as_ref()).await?;
        inventory::brokers(&image, request.get_ref()).await.map(Response::new).map_err(self.refused())
    }

    async fn describe_quorum(
        &self,
        request: Request<DescribeQuorumRequest>,
    ) -> Result<Response<DescribeQuorumReply>, Status> {
        let forwarded = Gateway::was_forwarded(&request);
        let body = request.into_inner();
        let options = body.options.unwrap_or_default();
        if options.stale {
            return Ok(Response::new(describe::quorum(&self.gateway)));
        }
        let passage = super::gateway::Passage {
            forwarded,
            deadline: tokio::time::Instant::now() + timeout(options.timeout_ms),
            repeatable: true,
        };
        let local = |_, left| async move {
            self.confirm_office(left).await?;
            Ok(describe::quorum(&self.gateway))
        };
        let remote = |channel, request| async move { remote(channel).describe_quorum(request).await };
        self.gateway.route(passage, body, local, remote).await
    }

    async fn replace_voter(
        &self,
        request: Request<ReplaceVoterRequest>,
    ) -> Result<Response<ReplaceVoterReply>, Status> {
        quorum::replace_voter(&self.gateway, request).await
    }

    async fn cluster_status(
        &self,
        request: Request<ClusterStatusRequest>,
    ) -> Result<Response<ClusterStatusReply>, Status> {
        let forwarded = Gateway::was_forwarded(&request);
        let body = request.into_inner();
        let options = body.options.unwrap_or_default();
        let passage = super::gateway::Passage {
            forwarded,
            deadline: tokio::time::Instant::now() + timeout(options.timeout_ms),
            repeatable: true,
        };
        let local = |_, left| async move {
            self.confirm_office(left).await?;
            Ok(describe::status(&self.gateway).await)
        };
        let remote = |channel, request| async move { remote(channel).cluster_status(request).await };
        self.gateway.route(passage, body, local, remote).await
    }

    async fn start_reassignment(
        &self,
        request: Request<StartReassignmentRequest>,
    ) -> Result<Response<StartReassignmentReply>, Status> {
        reassignment::start(&self.gateway, request).await
    }

    async fn cancel_reassignment(
        &self,
        request: Request<CancelReassignmentRequest>,
    ) -> Result<Response<CancelReassignmentReply>, Status> {
        reassignment::cancel(&self.gateway, request).await
    }

    async fn change_reassignment(
        &self,
        request: Request<ChangeReassignmentRequest>,
    ) -> Result<Response<ChangeReassignmentReply>, Status> {
        reassignment::change(&self.gateway, request).await
    }

    async fn move_replica(&self, request: Request<MoveReplicaRequest>) -> Result<Response<MoveReplicaReply>, Status> {
        reassignment::move_replica(&self.gateway, request).await
    }

    async fn list_reassignments(
        &self,
        request: Request<ListReassignmentsRequest>,
    ) -> Result<Response<ListReassignmentsReply>, Status> {
        let image = self.image(request.get_ref().options.as_ref()).await?;
        inventory::reassignments(&image, request.get_ref()).await.map(Response::new).map_err(self.refused())
    }

    async fn describe_features(
        &self,
        request: Request<DescribeFeaturesRequest>,
    ) -> Result<Response<DescribeFeaturesReply>, Status> {
        let image = self.image(request.get_ref().options.as_ref()).await?;
        Ok(Response::new(features::describe(&image, &self.gateway.raft.voters())))
    }

    async fn update_features(
        &self,
        request: Request<UpdateFeaturesRequest>,
    ) -> Result<Response<UpdateFeaturesReply>, Status> {
        features::update(&self.gateway, request).await
    }
}

/// Without a count there will be the cluster's default, which is small.
fn partitions_of(topics: &[CreateTopic]) -> usize {
    let partitions = |topic: &CreateTopic| topic.partitions.and_then(|count| usize::try_from(count).ok()).unwrap_or(1);
    topics.iter().map(|topic| partitions(topic).max(topic.assignment.len())).sum()
}

fn create_topic(topic: &NewTopic) -> Result<CreateTopic, ApiError> {
    let replication_factor = topic
        .replication_factor
        .map(|factor| {
            i16::try_from(factor).map_err(|_| {
                ApiError::new(
                    ErrorName::InvalidReplicationFactor,
                    format!("replication factor {factor} is out of range"),
                )
            })
        })
        .transpose()?;
    Ok(CreateTopic {
        name: topic.name.clone(),
        kind: Kind::parse(topic.kind.as_deref())
            .map_err(|error| ApiError { message: format!("topic {:?}: {}", topic.name, error.message), ..error })?,
        partitions: topic.partitions,
        replication_factor,
        assignment: assignment(&topic.assignment),
        configs: topic.configs.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect(),
    })
}

fn created_topic(asked: &NewTopic, created: Result<topics::CreatedTopic, ApiError>) -> CreatedTopic {
    match created {
        Ok(created) => CreatedTopic {
            name: created.name,
            error: None,
            id: created.id.to_string(),
            partitions: created.partitions,
            replication_factor: created.replication_factor.into(),
            configs: created.configs.into_iter().collect(),
            warnings: created.warnings,
        },
        Err(error) => {
            CreatedTopic { name: asked.name.clone(), error: Some(to_item(&error)), ..CreatedTopic::default() }
        }
    }
}

fn more_partitions(asked: &MorePartitions) -> CreatePartitions {
    let replicas = assignment(&asked.assignment);
    CreatePartitions {
        topic: asked.topic.clone(),
        count: asked.count,
        assignment: (!replicas.is_empty()).then(|| replicas.into_iter().map(|(_, replicas)| replicas).collect()),
    }
}

fn config_alteration(asked: &ConfigAlteration) -> Result<configs::AlterConfigs, ApiError> {
    let change = |change: &ConfigChange| {
        let op = match change.op() {
            ConfigOp::Set => configs::ConfigOp::Set(change.value.clone()),
            ConfigOp::Delete => configs::ConfigOp::Delete,
            ConfigOp::Append => configs::ConfigOp::Append(change.value.clone()),
            ConfigOp::Subtract => configs::ConfigOp::Subtract(change.value.clone()),
            ConfigOp::Unspecified => return Err(invalid(format!("config {}: unknown operation", change.key))),
        };
        Ok(configs::ConfigChange { key: change.key.clone(), op, expected: change.expected.clone() })
    };
    Ok(configs::AlterConfigs {
        resource: config_resource(asked.resource.as_ref())?,
        changes: asked.changes.iter().map(change).collect::<Result<_, _>>()?,
    })
}
