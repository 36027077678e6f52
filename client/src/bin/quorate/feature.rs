//! `quorate feature …`

use clap::{Args, Subcommand};
use quorate_client::{ClientError, Freshness};
use quorate_metadata::ErrorName;
use quorate_proto::admin::{self, FeatureUpdate, UpgradeType};
use serde::Serialize;

use crate::args::{Consent, Planning};
use crate::failure::Outcome;
use crate::output::{cell, judged, table};
use crate::plan;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub enum Feature {
    /// Finalized levels, and what every controller and broker supports
    Describe {
        /// Only this feature [default: all]
        feature: Option<String>,
    },
    /// Raise finalized levels
    Upgrade {
        #[arg(required = true, value_name = "FEATURE=LEVEL", value_parser = feature_level)]
        features: Vec<FeatureLevel>,
        #[command(flatten)]
        planning: Planning,
    },
    /// Lower finalized levels, where that is possible
    Downgrade(Downgrade),
}

#[derive(Debug, Args)]
pub struct Downgrade {
    #[arg(required = true, value_name = "FEATURE=LEVEL", value_parser = feature_level)]
    features: Vec<FeatureLevel>,
    /// Accept that what was written since is lost
    #[arg(long = "unsafe")]
    is_unsafe: bool,
    #[command(flatten)]
    planning: Planning,
    #[command(flatten)]
    consent: Consent,
}

pub type FeatureLevel = (String, i16);

fn feature_level(text: &str) -> Result<FeatureLevel, String> {
    let parsed = text.rsplit_once('=').and_then(|(feature, level)| Some((feature, level.parse().ok()?)));
    match parsed {
        Some((feature, level)) if !feature.is_empty() && level >= 0 => Ok((feature.to_owned(), level)),
        _ => Err("expected FEATURE=LEVEL, such as metadata.version=2".to_owned()),
    }
}

pub async fn run(session: &Session, command: Feature) -> Outcome {
    match command {
        Feature::Describe { feature } => describe(session, feature).await,
        Feature::Upgrade { features, planning } => {
            update(session, updates(features, UpgradeType::Upgrade), planning).await
        }
        Feature::Downgrade(Downgrade { features, is_unsafe, planning, consent }) => {
            session.confirm(&format!("lower {}", listed(&features)), consent, planning)?;
            let kind = if is_unsafe { UpgradeType::UnsafeDowngrade } else { UpgradeType::SafeDowngrade };
            update(session, updates(features, kind), planning).await
        }
    }
}

fn listed(features: &[FeatureLevel]) -> String {
    let features: Vec<String> = features.iter().map(|(feature, level)| format!("{feature} to {level}")).collect();
    features.join(", ")
}

fn updates(features: Vec<FeatureLevel>, kind: UpgradeType) -> Vec<FeatureUpdate> {
    let update = |(feature, level): FeatureLevel| FeatureUpdate { feature, level: level.into(), r#type: kind.into() };
    features.into_iter().map(update).collect()
}

#[derive(Debug, Serialize)]
struct Description {
    feature: String,
    finalized: i32,
    min: i32,
    max: i32,
    controllers: Vec<Supported>,
    brokers: Vec<Supported>,
}

#[derive(Debug, Serialize)]
struct Supported {
    id: i32,
    min: i32,
    max: i32,
    state: String,
}

impl From<admin::FeatureDescription> for Description {
    fn from(feature: admin::FeatureDescription) -> Self {
        Self {
            feature: feature.name,
            finalized: feature.finalized,
            min: feature.min,
            max: feature.max,
            controllers: feature.controllers.into_iter().map(Supported::from).collect(),
            brokers: feature.brokers.into_iter().map(Supported::from).collect(),
        }
    }
}

impl From<admin::SupportedLevels> for Supported {
    fn from(levels: admin::SupportedLevels) -> Self {
        let admin::SupportedLevels { id, min, max, state } = levels;
        Self { id, min, max, state }
    }
}

async fn describe(session: &Session, feature: Option<String>) -> Outcome {
    let reply = session.client.describe_features(Freshness::Linearizable).await?;
    let wanted = |name: &str| feature.as_deref().is_none_or(|feature| feature == name);
    let features: Vec<Description> =
        reply.features.into_iter().filter(|feature| wanted(&feature.name)).map(Description::from).collect();
    if let (Some(unknown), true) = (&feature, features.is_empty()) {
        let message = format!("unknown feature \"{unknown}\"");
        return Err(ClientError::failed(ErrorName::InvalidUpdateVersion, message).into());
    }
    session.show(&features, |features| features_table(features))
}

/// The members that differ from the release of the answering node stand out.
fn features_table(features: &[Description]) -> String {
    let rows = features.iter().flat_map(|feature| {
        let release = [
            cell(&feature.feature),
            cell(feature.finalized),
            cell("release"),
            cell("-"),
            cell(levels(feature.min, feature.max)),
        ];
        let members = feature.controllers.iter().map(|member| ("controller", member));
        let members = members.chain(feature.brokers.iter().map(|member| ("broker", member)));
        let row = move |(role, member): (&str, &Supported)| {
            let is_current = member.max >= feature.max;
            let named = format!("{role} {}", member.id);
            let levels = levels(member.min, member.max);
            [cell(""), cell(""), cell(named), cell(&member.state), judged(levels, is_current)]
        };
        std::iter::once(release).chain(members.map(row))
    });
    table(["feature", "finalized", "member", "state", "supports"], rows)
}

fn levels(min: i32, max: i32) -> String {
    if min == max { min.to_string() } else { format!("{min} to {max}") }
}

#[derive(Debug, Serialize)]
struct Updated {
    features: Vec<UpdatedFeature>,
    offset: i64,
}

#[derive(Debug, Serialize)]
struct UpdatedFeature {
    feature: String,
    from: i32,
    to: i32,
}

async fn update(session: &Session, updates: Vec<FeatureUpdate>, planning: Planning) -> Outcome {
    let reply = session.client.update_features(updates, planning.mode()).await?;
    if planning.plan {
        return plan::show(session, [reply.result]).await;
    }
    let offset = reply.result.map_or(0, |result| result.offset);
    let updated =
        |admin::UpdatedFeature { feature, from, to }: admin::UpdatedFeature| UpdatedFeature { feature, from, to };
    let features = reply.features.into_iter().map(updated).collect();
    session.show(&Updated { features, offset }, |updated| {
        let lines: Vec<String> = updated.features.iter().map(updated_line).collect();
        lines.join("\n")
    })
}

fn updated_line(feature: &UpdatedFeature) -> String {
    let UpdatedFeature { feature, from, to } = feature;
    if from == to { format!("{feature} is already at level {to}") } else { format!("{feature} {from} → {to}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json;

    fn supported(id: i32, max: i32, state: &str) -> admin::SupportedLevels {
        admin::SupportedLevels { id, min: 1, max, state: state.to_owned() }
    }

    fn description() -> Description {
        Description::from(admin::FeatureDescription {
            name: "metadata.version".to_owned(),
            finalized: 1,
            min: 1,
            max: 2,
            controllers: vec![supported(1, 2, "registered"), supported(2, 1, "unregistered")],
            brokers: vec![supported(1, 2, "unfenced")],
        })
    }

    #[test]
    fn a_feature_for_programs() {
        assert_eq!(
            json(&[description()]),
            concat!(
                r#"[{"feature":"metadata.version","finalized":1,"min":1,"max":2,"#,
                r#""controllers":[{"id":1,"min":1,"max":2,"state":"registered"},"#,
                r#"{"id":2,"min":1,"max":1,"state":"unregistered"}],"#,
                r#""brokers":[{"id":1,"min":1,"max":2,"state":"unfenced"}]}]"#
            )
        );
    }

    #[test]
    fn a_feature_for_people() {
        let text = features_table(&[description()]);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[1], ["metadata.version", "1", "release", "-", "1", "to", "2"]);
        assert_eq!(words[3], ["controller", "2", "unregistered", "1"]);
        assert_eq!(words[4], ["broker", "1", "unfenced", "1", "to", "2"]);
    }

    #[test]
    fn a_level_is_named_with_its_feature() {
        assert_eq!(feature_level("metadata.version=2"), Ok(("metadata.version".to_owned(), 2)));
        for text in ["metadata.version", "=2", "metadata.version=", "metadata.version=two", "metadata.version=-1"] {
            assert!(feature_level(text).is_err(), "{text}");
        }
    }
}
