//! Every request that there is, and the plan for it.

use std::collections::BTreeSet;
use std::fmt::Debug;

use quorate_metadata::ids::{BrokerEpoch, BrokerId, ClusterId, Offset, ReassignmentId, TopicPartition};
use quorate_metadata::plan::alter_partition::{AlterPartition, alter_partition};
use quorate_metadata::plan::brokers::{self, RegisterBroker};
use quorate_metadata::plan::configs::{AlterConfigs, alter_configs};
use quorate_metadata::plan::elections::{self, ElectionKind};
use quorate_metadata::plan::heartbeat::{Heartbeat, heartbeat};
use quorate_metadata::plan::reassignment::{self, Cancelled, ChangeReassignment, MoveReplica, StartReassignment};
use quorate_metadata::plan::topics::{self, CreatePartitions, CreateTopic, TopicRef};
use quorate_metadata::plan::{WaitingOn, checkpoint, producer_ids};
use quorate_metadata::record::ControllerRegistration;
use quorate_metadata::rng::Rng;
use quorate_metadata::{ApiError, MetadataImage, Plan, Record};

#[derive(Debug)]
pub enum Request {
    Bootstrap(ClusterId),
    RegisterController(ControllerRegistration),
    /// And whether another process under its id has a live session.
    Register(RegisterBroker, bool),
    Unfence(BrokerId),
    Fence(BrokerId),
    BeginControlledShutdown(BrokerId),
    Unregister(BrokerId),
    /// And the lowest offset of the other active brokers.
    Heartbeat(Heartbeat, Option<Offset>),
    CreateTopics(Vec<CreateTopic>),
    DeleteTopics(Vec<TopicRef>),
    CreatePartitions(Vec<CreatePartitions>),
    AlterConfigs(Vec<AlterConfigs>),
    AlterPartition(AlterPartition),
    Elect(ElectionKind, Option<Vec<TopicPartition>>),
    BalancePreferred(usize),
    ElectUncleanly(usize),
    StartReassignment(StartReassignment),
    CancelReassignment(Cancelled, bool),
    ChangeReassignment(ReassignmentId, ChangeReassignment),
    MoveReplica(MoveReplica),
    ProducerIds(BrokerId, BrokerEpoch),
    Digest,
}

#[derive(Debug, PartialEq)]
pub struct Planned {
    pub records: Vec<Record>,
    pub waiting_on: Option<WaitingOn>,
    pub answer: String,
    /// Whether its records become visible only together: what the admin API asks for, unlike a broker or the controller.
    pub atomic: bool,
    /// Whether the request is to be planned again on what these records lead to.
    pub is_partial: bool,
}

impl Request {
    pub fn plan(&self, image: &MetadataImage, rng: &mut Rng) -> Result<Planned, ApiError> {
        Ok(match self {
            Self::Bootstrap(cluster) => alone(checkpoint::bootstrap(image, *cluster)),
            Self::RegisterController(controller) => {
                let voters = BTreeSet::from([controller.controller]);
                alone(brokers::register_controller(image, controller.clone(), &voters)?)
            }
            Self::Register(broker, is_live) => alone(brokers::register(image, broker.clone(), *is_live)?),
            Self::Unfence(broker) => alone(brokers::unfence(image, *broker)?),
            Self::Fence(broker) => alone(brokers::fence(image, *broker)?),
            Self::BeginControlledShutdown(broker) => alone(brokers::begin_controlled_shutdown(image, *broker)?),
            Self::Unregister(broker) => whole(brokers::unregister(image, *broker, true)?),
            Self::Heartbeat(beat, lowest) => alone(heartbeat(image, beat, *lowest)?),
            Self::CreateTopics(wanted) => whole(topics::create_topics(image, wanted, rng)?),
            Self::DeleteTopics(wanted) => whole(topics::delete_topics(image, wanted)),
            Self::CreatePartitions(wanted) => whole(topics::create_partitions(image, wanted, rng)),
            Self::AlterConfigs(wanted) => whole(alter_configs(image, wanted)),
            Self::AlterPartition(wanted) => alone(alter_partition(image, wanted, |_| false)?),
            Self::Elect(kind, partitions) => whole(elections::elect(image, *kind, partitions.as_deref())),
            Self::BalancePreferred(max) => alone(elections::balance_preferred(image, None, *max)),
            Self::ElectUncleanly(max) => alone(elections::elect_uncleanly_where_allowed(image, None, *max)),
            Self::StartReassignment(wanted) => whole(reassignment::start(image, wanted)?),
            Self::CancelReassignment(what, force) => whole(reassignment::cancel(image, what, *force)?),
            Self::ChangeReassignment(id, wanted) => whole(reassignment::change(image, *id, *wanted)?),
            Self::MoveReplica(wanted) => whole(reassignment::move_replica(image, wanted)?),
            Self::ProducerIds(broker, epoch) => alone(producer_ids::allocate(image, *broker, *epoch)?),
            Self::Digest => alone(checkpoint::digest_checkpoint(image)),
        })
    }
}

/// Each batch counts as soon as it is committed.
fn alone<R: Debug>(plan: Plan<R>) -> Planned {
    Planned { atomic: false, ..whole(plan) }
}

fn whole<R: Debug>(plan: Plan<R>) -> Planned {
    let Plan { records, response, waiting_on, is_partial } = plan;
    Planned { records, waiting_on, answer: format!("{response:?}"), atomic: true, is_partial }
}
