//! The commands about features and controllers.

use std::collections::BTreeSet;

use goldenscript::Command;
use quorate_metadata::ids::ControllerId;
use quorate_metadata::plan::brokers;
use quorate_metadata::plan::features::{self, Direction, FeatureChange, METADATA_VERSION, UpdatedFeature};
use quorate_metadata::record::ControllerRegistration;
use quorate_metadata::{MetadataImage, Record};

use crate::arguments::{Arguments, Result, incarnation, items};
use crate::commands::{feature, step};
use crate::world::{Step, World};

/// `level N`: as in a cluster that was created by an earlier release.
pub fn level(world: &mut World, command: &Command) -> Result<Vec<String>> {
    let mut args = Arguments::of(command);
    let level = args.word("level")?.parse()?;
    args.end()?;
    Ok(world.apply(&[Record::FeatureLevel { name: METADATA_VERSION.to_owned(), level }]))
}

/// `controller ID [features=NAME:MIN:MAX,…] [incarnation=NAME] [voters=1,2,3]`: a voter registers.
pub fn controller(image: &MetadataImage, command: &Command) -> Result<Step> {
    let mut args = Arguments::of(command);
    let controller = args.word("controller")?.parse()?;
    let ranges = args.text("features").map(|text| items(text, ',').map(feature).collect::<Result<_>>());
    let registration = ControllerRegistration {
        controller,
        incarnation: incarnation(args.text("incarnation").unwrap_or("first")),
        endpoints: Vec::new(),
        features: ranges.transpose()?.unwrap_or_else(features::supported),
    };
    let voters = voters(&mut args)?;
    args.end()?;
    step(brokers::register_controller(image, registration, &voters), |()| Vec::new())
}

/// `upgrade NAME=LEVEL… [voters=1,2,3]`, `downgrade NAME=LEVEL… [unsafe]`
pub fn update(image: &MetadataImage, command: &Command, direction: Direction) -> Result<Step> {
    let mut args = Arguments::of(command);
    let voters = voters(&mut args)?;
    let direction = if args.words().contains(&"unsafe") { Direction::UnsafeDowngrade } else { direction };
    let change =
        |(name, level): (&str, &str)| Ok(FeatureChange { name: name.to_owned(), level: level.parse()?, direction });
    let changes = args.rest().into_iter().map(change).collect::<Result<Vec<_>>>()?;
    let answer = |UpdatedFeature { name, from, to }: UpdatedFeature| format!("{name} {from}→{to}");
    step(features::update(image, &changes, &voters), |updated| updated.into_iter().map(answer).collect())
}

/// Controllers 1 to 3 have a vote, unless others are named.
fn voters(args: &mut Arguments<'_>) -> Result<BTreeSet<ControllerId>> {
    items(args.text("voters").unwrap_or("1,2,3"), ',').map(|id| Ok(id.parse()?)).collect()
}
