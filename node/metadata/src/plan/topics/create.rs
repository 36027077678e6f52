//! Creating topics. The checks are in Kafka's order: name, configs, counts or assignment.

use std::collections::{BTreeMap, BTreeSet};

use super::assignment::{Assigner, check_total, invalid_assignment};
use super::named_twice;
use super::names::Names;
use crate::config::{self, DEFAULT_REPLICATION_FACTOR, MIN_INSYNC_REPLICAS, NUM_PARTITIONS};
use crate::error::{ApiError, ErrorName};
use crate::ids::{BrokerId, PartitionId, TopicId, TopicPartition};
use crate::image::MetadataImage;
use crate::plan::{Plan, configs};
use crate::record::{ConfigResource, Kind, Record};
use crate::rng::Rng;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateTopic {
    pub name: String,
    pub kind: Kind,
    /// `None` or -1: the cluster's default.
    pub partitions: Option<i32>,
    /// `None` or -1: the cluster's default.
    pub replication_factor: Option<i16>,
    /// Replicas by hand; empty to have them placed.
    pub assignment: Vec<(PartitionId, Vec<BrokerId>)>,
    pub configs: Vec<(String, Option<String>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedTopic {
    pub name: String,
    pub id: TopicId,
    pub kind: Kind,
    pub partitions: i32,
    pub replication_factor: i16,
    /// Those that it was created with.
    pub configs: BTreeMap<String, String>,
    /// What works otherwise than its configs may let one expect.
    pub warnings: Vec<String>,
}

type Answers = Vec<Result<CreatedTopic, ApiError>>;

/// Creates topics, in one transaction however many partitions they have.
pub fn create_topics(
    image: &MetadataImage,
    requests: &[CreateTopic],
    rng: &mut Rng,
) -> Result<Plan<Answers>, ApiError> {
    let mut creation = Creation::new(image, requests);
    check_total(requests.iter().map(|request| creation.wanted_partitions(request)).sum())?;
    let answers: Answers = requests.iter().map(|request| creation.create(request, rng)).collect();
    let all_refused = !answers.is_empty() && answers.iter().all(Result::is_err);
    Ok(Plan::of_items(creation.records, answers, all_refused))
}

struct Creation<'a> {
    image: &'a MetadataImage,
    names: Names<'a>,
    repeated: BTreeSet<&'a str>,
    assigner: Assigner<'a>,
    records: Vec<Record>,
}

impl<'a> Creation<'a> {
    fn new(image: &'a MetadataImage, requests: &'a [CreateTopic]) -> Self {
        let mut seen = BTreeSet::new();
        let names = requests.iter().map(|request| request.name.as_str());
        let repeated = names.filter(|name| !seen.insert(*name)).collect();
        Self { image, names: Names::new(image), repeated, assigner: Assigner::new(image), records: Vec::new() }
    }

    fn wanted_partitions(&self, request: &CreateTopic) -> usize {
        let by_count = usize::try_from(self.partition_count(request)).unwrap_or_default();
        by_count.max(request.assignment.len())
    }

    fn partition_count(&self, request: &CreateTopic) -> i32 {
        let given = request.partitions.filter(|&count| count != -1);
        given.unwrap_or_else(|| config::cluster_number(self.image, NUM_PARTITIONS))
    }

    fn create(&mut self, request: &CreateTopic, rng: &mut Rng) -> Result<CreatedTopic, ApiError> {
        if self.repeated.contains(request.name.as_str()) {
            return Err(named_twice(&request.name));
        }
        self.names.check(&request.name)?;
        self.image.check_kind(&request.kind)?;
        let configs = configs::check_new_topic(self.image, &request.name, &request.kind, &request.configs)?;
        let partitions =
            if request.assignment.is_empty() { self.place(request, rng)? } else { self.assign_by_hand(request)? };
        if let Some(min_isr) = configs.get(MIN_INSYNC_REPLICAS) {
            configs::check_min_isr_fits(&request.name, min_isr, partitions.first().map_or(0, Vec::len))?;
        }
        let warnings = self.min_isr_warning(&configs, &partitions).into_iter().collect();
        let created = CreatedTopic {
            name: request.name.clone(),
            id: rng.topic_id(),
            kind: request.kind.clone(),
            partitions: i32::try_from(partitions.len()).expect("the number of partitions of a request is bounded"),
            replication_factor: i16::try_from(partitions[0].len()).unwrap_or(i16::MAX),
            configs,
            warnings,
        };
        self.names.add(&request.name);
        self.record(&created, partitions);
        Ok(created)
    }

    /// Where `min.insync.replicas` asks for more replicas than live.
    fn min_isr_warning(&self, configs: &BTreeMap<String, String>, partitions: &[Vec<BrokerId>]) -> Option<String> {
        let own = configs.get(MIN_INSYNC_REPLICAS).map(|value| value.parse().expect("it was checked"));
        let wanted: usize = own.unwrap_or_else(|| config::cluster_number(self.image, MIN_INSYNC_REPLICAS));
        let replicas = partitions.first().map_or(0, Vec::len);
        let needed = wanted.min(replicas);
        let live = |replicas: &Vec<BrokerId>| replicas.iter().filter(|broker| self.image.is_active(**broker)).count();
        let (partition, live) = (0..).zip(partitions.iter().map(live)).min_by_key(|(_, live)| *live)?;
        (live < needed).then(|| {
            format!(
                "{MIN_INSYNC_REPLICAS} is {needed}, and {live} of the {replicas} replicas of partition {partition} are on live \
                 brokers: acks=all fails until others return"
            )
        })
    }

    fn place(&mut self, request: &CreateTopic, rng: &mut Rng) -> Result<Vec<Vec<BrokerId>>, ApiError> {
        let given = request.replication_factor.filter(|&factor| factor != -1);
        let factor = given.unwrap_or_else(|| config::cluster_number(self.image, DEFAULT_REPLICATION_FACTOR));
        if factor < 1 {
            let message = format!("the replication factor must be at least 1, not {factor}");
            return Err(ApiError::new(ErrorName::InvalidReplicationFactor, message));
        }
        let count = self.partition_count(request);
        if count < 1 {
            let message = format!("the number of partitions must be at least 1, not {count}");
            return Err(ApiError::new(ErrorName::InvalidPartitions, message));
        }
        let count = usize::try_from(count).expect("it is positive");
        let factor = usize::try_from(factor).expect("it is positive");
        self.assigner.place(&request.kind, None, count, factor, rng)
    }

    fn assign_by_hand(&mut self, request: &CreateTopic) -> Result<Vec<Vec<BrokerId>>, ApiError> {
        if request.partitions.is_some_and(|count| count != -1)
            || request.replication_factor.is_some_and(|factor| factor != -1)
        {
            let message = "an assignment says how many partitions and replicas there are: give no counts with it";
            return Err(ApiError::new(ErrorName::InvalidRequest, message));
        }
        let partitions = self.check_assignment(request)?;
        for replicas in &partitions {
            self.assigner.count(replicas);
        }
        Ok(partitions)
    }

    fn check_assignment(&self, request: &CreateTopic) -> Result<Vec<Vec<BrokerId>>, ApiError> {
        let mut by_id: BTreeMap<PartitionId, &Vec<BrokerId>> = BTreeMap::new();
        for (id, replicas) in &request.assignment {
            let what = format!("partition {id}");
            if by_id.insert(*id, replicas).is_some() {
                return Err(invalid_assignment(format!("{what} is assigned twice")));
            }
            self.assigner.check_manual(&request.kind, &what, replicas)?;
            let (_, first) = &request.assignment[0];
            if replicas.len() != first.len() {
                let (has, others) = (replicas.len(), first.len());
                return Err(invalid_assignment(format!("{what} has {has} replicas where others have {others}")));
            }
            if !self.assigner.has_active(replicas) {
                let message = format!("{what} has no replica on an active broker");
                return Err(invalid_assignment(message));
            }
        }
        let consecutive = (0..).map(PartitionId::new);
        if !by_id.keys().copied().eq(consecutive.take(by_id.len())) {
            return Err(invalid_assignment("partitions must be numbered from 0 without a gap".to_owned()));
        }
        Ok(by_id.into_values().cloned().collect())
    }

    fn record(&mut self, created: &CreatedTopic, partitions: Vec<Vec<BrokerId>>) {
        let (topic, name, kind) = (created.id, created.name.clone(), created.kind.clone());
        self.records.push(Record::CreateTopic { topic, name, kind });
        for (key, value) in &created.configs {
            let resource = ConfigResource::Topic(created.name.clone());
            self.records.push(Record::Config { resource, key: key.clone(), value: Some(value.clone()) });
        }
        for (id, replicas) in (0..).map(PartitionId::new).zip(partitions) {
            let id = TopicPartition::new(created.id, id);
            self.records.push(self.assigner.registration(id, replicas));
        }
    }
}
