//! The part of `quorate.admin.v1.Admin` about features.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prost::Message;
use quorate_metadata::ids::ControllerId;
use quorate_metadata::plan::features::{self, Direction, FeatureChange};
use quorate_metadata::record::{BrokerRegistration, VersionRange};
use quorate_metadata::{ApiError, MetadataImage};
use quorate_proto::admin::*;
use tonic::{Request, Response, Status};

use super::admin::remote;
use super::describe::broker_state;
use super::gateway::Gateway;
use super::request::{invalid, passage, result, terms};

pub async fn update(
    gateway: &Gateway,
    request: Request<UpdateFeaturesRequest>,
) -> Result<Response<UpdateFeaturesReply>, Status> {
    let forwarded = Gateway::was_forwarded(&request);
    let body = request.into_inner();
    let terms = terms(body.options.as_ref()).map_err(|error| gateway.status(&error))?;
    let local = |body: UpdateFeaturesRequest, left: Duration| async move {
        let wanted: Vec<FeatureChange> = body.updates.iter().map(change).collect::<Result<_, _>>()?;
        let voters = gateway.raft.voters();
        let terms = terms.weighing(body.encoded_len(), wanted.len());
        gateway
            .controller
            .mutate(
                "update-features",
                terms.within(left),
                move |image, _| features::update(image, &wanted, &voters),
                |updated, position, planned| UpdateFeaturesReply {
                    result: result(position, planned),
                    features: updated.into_iter().map(updated_feature).collect(),
                },
            )
            .await
    };
    let remote = |channel, request| async move { remote(channel).update_features(request).await };
    gateway.route(passage(forwarded, &terms), body, local, remote).await
}

fn change(asked: &FeatureUpdate) -> Result<FeatureChange, ApiError> {
    let FeatureUpdate { feature, level, .. } = asked;
    let direction = match asked.r#type() {
        UpgradeType::Upgrade => Direction::Upgrade,
        UpgradeType::SafeDowngrade => Direction::SafeDowngrade,
        UpgradeType::UnsafeDowngrade => Direction::UnsafeDowngrade,
        UpgradeType::Unspecified => return Err(invalid(format!("feature {feature:?}: unknown upgrade type"))),
    };
    let level = i16::try_from(*level)
        .map_err(|_| invalid(format!("invalid level {level} of {feature:?}: a level has 16 bits")))?;
    Ok(FeatureChange { name: feature.clone(), level, direction })
}

fn updated_feature(updated: features::UpdatedFeature) -> UpdatedFeature {
    UpdatedFeature { feature: updated.name, from: updated.from.into(), to: updated.to.into() }
}

pub fn describe(image: &MetadataImage, voters: &BTreeSet<ControllerId>) -> DescribeFeaturesReply {
    let describe = |(name, VersionRange { min, max }): (String, VersionRange)| FeatureDescription {
        finalized: features::finalized(image, &name).into(),
        min: min.into(),
        max: max.into(),
        controllers: voters.iter().map(|id| controller(image, *id, &name)).collect(),
        brokers: image.brokers.values().map(|registration| broker(registration, &name)).collect(),
        name,
    };
    DescribeFeaturesReply {
        offset: image.next_offset.get(),
        features: features::supported().into_iter().map(describe).collect(),
    }
}

fn controller(image: &MetadataImage, id: ControllerId, feature: &str) -> SupportedLevels {
    let (range, state) = match image.controllers.get(&id) {
        Some(registration) => (features::range(&registration.features, feature), "registered"),
        None => (features::range(&BTreeMap::new(), feature), "unregistered"),
    };
    SupportedLevels { id: id.get(), min: range.min.into(), max: range.max.into(), state: state.to_owned() }
}

fn broker(registration: &BrokerRegistration, feature: &str) -> SupportedLevels {
    let range = features::range(&registration.features, feature);
    SupportedLevels {
        id: registration.broker.get(),
        min: range.min.into(),
        max: range.max.into(),
        state: broker_state(registration).to_owned(),
    }
}
