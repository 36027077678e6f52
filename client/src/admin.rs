//! What people and tools ask of the cluster: one method for each call of `quorate.admin.v1`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::mutant::Mutant;
use quorate_proto::admin as wire;
use quorate_proto::admin::admin_client::AdminClient as Wire;
use quorate_proto::broker;
use quorate_proto::broker::broker_client::BrokerClient;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::error::{ClientError, InvalidAddress};
use crate::identities::{Identities, Identity};
use crate::nodes::{Nodes, Options};
use crate::pages::all_pages;
use crate::retry::{Effect, Timed, run};
use crate::watch::{Watch, WatchFilter};

/// A description of a hundred thousand partitions fits; a peer gone mad does not take all memory.
pub(crate) const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Whether a mutation is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Apply,
    /// Computes what would be written, and changes nothing.
    PlanOnly,
}

/// How a read is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Shows every mutation that was acknowledged before the read began.
    Linearizable,
    /// What the asked node has, without asking the quorum.
    Stale,
}

/// A client of the cluster. Clones share their connections and their identity.
///
/// Any node answers: it forwards to the active controller. Mutations are retried with one request id until the
/// deadline, so they take effect once.
#[derive(Debug, Clone)]
pub struct AdminClient {
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) options: Options,
    identities: Identities,
}

impl AdminClient {
    /// Opens nothing yet: each connection is made when it is first needed. To be called within a tokio runtime.
    pub fn connect(bootstrap: &[impl AsRef<str>], options: Options) -> Result<Self, InvalidAddress> {
        Ok(Self::over(Nodes::open(bootstrap, &options)?, options))
    }

    pub(crate) fn over(nodes: Nodes, options: Options) -> Self {
        Self { nodes: Arc::new(nodes), options, identities: Identities::default() }
    }

    /// The same client with another deadline.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        let options = Options { timeout, ..self.options.clone() };
        Self { options, ..self.clone() }
    }

    pub async fn create_topics(
        &self,
        topics: Vec<wire::NewTopic>,
        mode: Mode,
    ) -> Result<wire::CreateTopicsReply, ClientError> {
        let request = |options| wire::CreateTopicsRequest { options, topics };
        self.mutate(mode, request, |mut wire, request| async move { wire.create_topics(request).await }).await
    }

    pub async fn delete_topics(
        &self,
        topics: Vec<wire::TopicRef>,
        mode: Mode,
    ) -> Result<wire::DeleteTopicsReply, ClientError> {
        let request = |options| wire::DeleteTopicsRequest { options, topics };
        self.mutate(mode, request, |mut wire, request| async move { wire.delete_topics(request).await }).await
    }

    pub async fn create_partitions(
        &self,
        topics: Vec<wire::MorePartitions>,
        mode: Mode,
    ) -> Result<wire::CreatePartitionsReply, ClientError> {
        let request = |options| wire::CreatePartitionsRequest { options, topics };
        self.mutate(mode, request, |mut wire, request| async move { wire.create_partitions(request).await }).await
    }

    /// Elects leaders of these partitions, or with `None` of all.
    pub async fn elect_leaders(
        &self,
        kind: wire::ElectionKind,
        partitions: Option<Vec<wire::TopicPartition>>,
        mode: Mode,
    ) -> Result<wire::ElectLeadersReply, ClientError> {
        let all = partitions.is_none();
        let partitions = partitions.unwrap_or_default();
        let request = |options| wire::ElectLeadersRequest { options, kind: kind.into(), partitions, all };
        self.mutate(mode, request, |mut wire, request| async move { wire.elect_leaders(request).await }).await
    }

    pub async fn alter_configs(
        &self,
        resources: Vec<wire::ConfigAlteration>,
        mode: Mode,
    ) -> Result<wire::AlterConfigsReply, ClientError> {
        let request = |options| wire::AlterConfigsRequest { options, resources };
        self.mutate(mode, request, |mut wire, request| async move { wire.alter_configs(request).await }).await
    }

    /// Forgets a broker that is fenced, or with `force` any.
    pub async fn unregister_broker(
        &self,
        broker: i32,
        force: bool,
        mode: Mode,
    ) -> Result<wire::UnregisterBrokerReply, ClientError> {
        let request = |options| wire::UnregisterBrokerRequest { options, broker, force };
        self.mutate(mode, request, |mut wire, request| async move { wire.unregister_broker(request).await }).await
    }

    /// All topics, fetched page by page. The offset is that of the first page.
    pub async fn list_topics(&self, freshness: Freshness) -> Result<wire::ListTopicsReply, ClientError> {
        all_pages(wire::ListTopicsRequest::default(), |request| self.list_topics_page(request, freshness)).await
    }

    /// One page of the topics, as large as the request wants; its options are filled in from `freshness`.
    pub async fn list_topics_page(
        &self,
        page: wire::ListTopicsRequest,
        freshness: Freshness,
    ) -> Result<wire::ListTopicsReply, ClientError> {
        let request = wire::ListTopicsRequest { options: read(freshness), ..page };
        self.call(Effect::None, request, |mut wire, request| async move { wire.list_topics(request).await }).await
    }

    /// These topics with all their partitions, fetched page by page. The offset is that of the first page.
    pub async fn describe_topics(
        &self,
        topics: Vec<wire::TopicRef>,
        freshness: Freshness,
    ) -> Result<wire::DescribeTopicsReply, ClientError> {
        let request = wire::DescribeTopicsRequest { topics, ..Default::default() };
        all_pages(request, |request| self.describe_topics_page(request, freshness)).await
    }

    /// One page of the topics' partitions; a topic may go on in the next page. Its options are filled in from `freshness`.
    pub async fn describe_topics_page(
        &self,
        page: wire::DescribeTopicsRequest,
        freshness: Freshness,
    ) -> Result<wire::DescribeTopicsReply, ClientError> {
        let request = wire::DescribeTopicsRequest { options: read(freshness), ..page };
        self.call(Effect::None, request, |mut wire, request| async move { wire.describe_topics(request).await }).await
    }

    /// All partitions that pass the filter, fetched page by page. The offset is that of the first page.
    pub async fn list_partitions(
        &self,
        filter: wire::ListPartitionsRequest,
        freshness: Freshness,
    ) -> Result<wire::ListPartitionsReply, ClientError> {
        all_pages(filter, |request| self.list_partitions_page(request, freshness)).await
    }

    /// One page of the partitions that pass the filter; its options are filled in from `freshness`.
    pub async fn list_partitions_page(
        &self,
        filter: wire::ListPartitionsRequest,
        freshness: Freshness,
    ) -> Result<wire::ListPartitionsReply, ClientError> {
        let request = wire::ListPartitionsRequest { options: read(freshness), ..filter };
        self.call(Effect::None, request, |mut wire, request| async move { wire.list_partitions(request).await }).await
    }

    /// The configs of these resources, fetched page by page. The offset is that of the first page.
    pub async fn describe_configs(
        &self,
        resources: Vec<wire::ConfigResource>,
        freshness: Freshness,
    ) -> Result<wire::DescribeConfigsReply, ClientError> {
        let request = wire::DescribeConfigsRequest { resources, ..Default::default() };
        all_pages(request, |request| self.describe_configs_page(request, freshness)).await
    }

    /// One page of the resources asked for; its options are filled in from `freshness`.
    pub async fn describe_configs_page(
        &self,
        page: wire::DescribeConfigsRequest,
        freshness: Freshness,
    ) -> Result<wire::DescribeConfigsReply, ClientError> {
        let request = wire::DescribeConfigsRequest { options: read(freshness), ..page };
        self.call(Effect::None, request, |mut wire, request| async move { wire.describe_configs(request).await }).await
    }

    /// All brokers, fetched page by page. The offset is that of the first page.
    pub async fn list_brokers(&self, freshness: Freshness) -> Result<wire::ListBrokersReply, ClientError> {
        all_pages(wire::ListBrokersRequest::default(), |request| self.list_brokers_page(request, freshness)).await
    }

    /// One page of the brokers, as large as the request wants; its options are filled in from `freshness`.
    pub async fn list_brokers_page(
        &self,
        page: wire::ListBrokersRequest,
        freshness: Freshness,
    ) -> Result<wire::ListBrokersReply, ClientError> {
        let request = wire::ListBrokersRequest { options: read(freshness), ..page };
        self.call(Effect::None, request, |mut wire, request| async move { wire.list_brokers(request).await }).await
    }

    pub async fn describe_quorum(&self, freshness: Freshness) -> Result<wire::DescribeQuorumReply, ClientError> {
        let request = wire::DescribeQuorumRequest { options: read(freshness) };
        self.call(Effect::None, request, |mut wire, request| async move { wire.describe_quorum(request).await }).await
    }

    /// Makes the empty disk that waits at the voter's address the disk of that voter. May be repeated.
    pub async fn replace_voter(&self, voter: i32) -> Result<wire::ReplaceVoterReply, ClientError> {
        let request = wire::ReplaceVoterRequest { voter, timeout_ms: 0 };
        self.call(Effect::Change, request, |mut wire, request| async move { wire.replace_voter(request).await }).await
    }

    pub async fn cluster_status(&self, freshness: Freshness) -> Result<wire::ClusterStatusReply, ClientError> {
        let request = wire::ClusterStatusRequest { options: read(freshness) };
        self.call(Effect::None, request, |mut wire, request| async move { wire.cluster_status(request).await }).await
    }

    /// Moves partitions to other brokers, as one operation.
    pub async fn start_reassignment(
        &self,
        partitions: Vec<wire::PartitionTarget>,
        throttle_bytes_per_second: Option<u64>,
        mode: Mode,
    ) -> Result<wire::StartReassignmentReply, ClientError> {
        let request = |options| wire::StartReassignmentRequest { options, partitions, throttle_bytes_per_second };
        self.mutate(mode, request, |mut wire, request| async move { wire.start_reassignment(request).await }).await
    }

    /// Leads partitions back to the replicas they had. Which ones, says the request; its options are filled in.
    pub async fn cancel_reassignment(
        &self,
        what: wire::CancelReassignmentRequest,
        mode: Mode,
    ) -> Result<wire::CancelReassignmentReply, ClientError> {
        let request = |options| wire::CancelReassignmentRequest { options, ..what };
        self.mutate(mode, request, |mut wire, request| async move { wire.cancel_reassignment(request).await }).await
    }

    /// Pauses, resumes or throttles. What is to change, says the request; its options are filled in.
    pub async fn change_reassignment(
        &self,
        what: wire::ChangeReassignmentRequest,
        mode: Mode,
    ) -> Result<wire::ChangeReassignmentReply, ClientError> {
        let request = |options| wire::ChangeReassignmentRequest { options, ..what };
        self.mutate(mode, request, |mut wire, request| async move { wire.change_reassignment(request).await }).await
    }

    /// Moves a replica to another log directory of its broker. The request's options are filled in.
    pub async fn move_replica(
        &self,
        what: wire::MoveReplicaRequest,
        mode: Mode,
    ) -> Result<wire::MoveReplicaReply, ClientError> {
        let request = |options| wire::MoveReplicaRequest { options, ..what };
        self.mutate(mode, request, |mut wire, request| async move { wire.move_replica(request).await }).await
    }

    /// All reassignments under way, fetched page by page. The offset is that of the first page.
    pub async fn list_reassignments(&self, freshness: Freshness) -> Result<wire::ListReassignmentsReply, ClientError> {
        all_pages(wire::ListReassignmentsRequest::default(), |request| self.list_reassignments_page(request, freshness))
            .await
    }

    /// One page of the partitions that are moved; an operation may go on in the next page. Its options are filled in from
    /// `freshness`.
    pub async fn list_reassignments_page(
        &self,
        page: wire::ListReassignmentsRequest,
        freshness: Freshness,
    ) -> Result<wire::ListReassignmentsReply, ClientError> {
        let request = wire::ListReassignmentsRequest { options: read(freshness), ..page };
        self.call(Effect::None, request, |mut wire, request| async move { wire.list_reassignments(request).await })
            .await
    }

    pub async fn describe_features(&self, freshness: Freshness) -> Result<wire::DescribeFeaturesReply, ClientError> {
        let request = wire::DescribeFeaturesRequest { options: read(freshness) };
        self.call(Effect::None, request, |mut wire, request| async move { wire.describe_features(request).await }).await
    }

    /// Changes finalized levels, all of them or none.
    pub async fn update_features(
        &self,
        updates: Vec<wire::FeatureUpdate>,
        mode: Mode,
    ) -> Result<wire::UpdateFeaturesReply, ClientError> {
        let request = |options| wire::UpdateFeaturesRequest { options, updates };
        self.mutate(mode, request, |mut wire, request| async move { wire.update_features(request).await }).await
    }

    /// Follows the committed records.
    pub fn watch(&self, filter: WatchFilter) -> Watch {
        Watch::new(self.clone(), filter)
    }

    /// Registers a broker. A repetition with the same incarnation changes nothing more.
    pub async fn register_broker(
        &self,
        request: broker::RegisterRequest,
    ) -> Result<broker::RegisterReply, ClientError> {
        run(&self.nodes, &self.options, Effect::Change, request, |channel, request| async move {
            brokers(channel).register(request).await
        })
        .await
    }

    /// Asks for other ISRs. A repetition meets the partition epoch that the first one left, and is refused by name.
    pub async fn alter_partition(
        &self,
        request: broker::AlterPartitionRequest,
    ) -> Result<broker::AlterPartitionReply, ClientError> {
        run(&self.nodes, &self.options, Effect::Change, request, |channel, request| async move {
            brokers(channel).alter_partition(request).await
        })
        .await
    }

    async fn call<Req, Rep, Answer>(
        &self,
        effect: Effect,
        request: Req,
        send: impl Fn(Wire<Channel>, Request<Req>) -> Answer,
    ) -> Result<Rep, ClientError>
    where
        Req: Timed,
        Answer: Future<Output = Result<Response<Rep>, Status>>,
    {
        let send = |channel, request| send(Wire::new(channel).max_decoding_message_size(REPLY_BYTES_MAX), request);
        run(&self.nodes, &self.options, effect, request, send).await
    }

    /// As `call`, under a request id that no other mutation has.
    async fn mutate<Req, Rep, Answer>(
        &self,
        mode: Mode,
        request: impl FnOnce(Option<wire::MutationOptions>) -> Req,
        send: impl Fn(Wire<Channel>, Request<Req>) -> Answer,
    ) -> Result<Rep, ClientError>
    where
        Req: Timed,
        Answer: Future<Output = Result<Response<Rep>, Status>>,
    {
        let identity = self.identities.next();
        let request = request(Some(options(&identity, mode)));
        self.call(mode.effect(), request, send).await
    }
}

/// The options of a new mutation. The timeout is set attempt by attempt.
fn options(identity: &Identity, mode: Mode) -> wire::MutationOptions {
    let plan_only = mode == Mode::PlanOnly;
    if Mutant::UnnamedRequests.is_on() {
        return wire::MutationOptions { plan_only, ..wire::MutationOptions::default() };
    }
    wire::MutationOptions {
        client_id: identity.client.to_string(),
        request_id: identity.request,
        timeout_ms: 0,
        plan_only,
    }
}

impl Mode {
    fn effect(self) -> Effect {
        match self {
            Self::Apply => Effect::Change,
            Self::PlanOnly => Effect::None,
        }
    }
}

fn read(freshness: Freshness) -> Option<wire::ReadOptions> {
    Some(wire::ReadOptions { stale: freshness == Freshness::Stale, timeout_ms: 0 })
}

pub(crate) fn brokers(channel: Channel) -> BrokerClient<Channel> {
    BrokerClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX)
}
