//! The commands that move replicas.

use goldenscript::Command;
use quorate_metadata::MetadataImage;
use quorate_metadata::ids::ReassignmentId;
use quorate_metadata::plan::reassignment::{
    self, Cancelled, ChangeReassignment, MoveReplica, PartitionRef, StartReassignment,
};

use crate::arguments::{Arguments, Result, brokers, directory};
use crate::commands::{refusal, step};
use crate::world::Step;

/// `reassign [throttle=N] PARTITION REPLICAS…`; `none` is no replicas.
pub fn start(image: &MetadataImage, command: &Command) -> Result<Step> {
    let mut args = Arguments::of(command);
    let throttle_bytes_per_second = args.value("throttle")?;
    let words = args.words();
    args.end()?;
    let target = |pair: &[&str]| Ok((named(pair[0])?, brokers(if pair[1] == "none" { "" } else { pair[1] })?));
    let targets = words.chunks_exact(2).map(target).collect::<Result<Vec<_>>>()?;
    let plan = reassignment::start(image, &StartReassignment { targets, throttle_bytes_per_second });
    step(plan, |started| started.partitions.iter().filter_map(|answer| refusal("", answer)).collect())
}

/// `cancel PARTITION…|operation=PARTITION [force]`: an operation is named by one of its partitions.
pub fn cancel(image: &MetadataImage, command: &Command) -> Result<Step> {
    let mut args = Arguments::of(command);
    let operation = args.text("operation").map(|text| id(image, text)).transpose()?;
    let (flags, partitions): (Vec<&str>, Vec<&str>) = args.words().into_iter().partition(|&word| word == "force");
    let what = match operation {
        Some(id) => Cancelled::Operation(id),
        None => Cancelled::Partitions(partitions.into_iter().map(named).collect::<Result<_>>()?),
    };
    args.end()?;
    let plan = reassignment::cancel(image, &what, !flags.is_empty());
    step(plan, |answers| answers.iter().filter_map(|(_, answer)| refusal("", answer)).collect())
}

/// `pace PARTITION [paused=true|false] [throttle=N|none]`: of the operation that the partition belongs to.
pub fn change(image: &MetadataImage, command: &Command) -> Result<Step> {
    let mut args = Arguments::of(command);
    let id = id(image, args.word("partition")?)?;
    let throttle = args.text("throttle").map(|text| if text == "none" { Ok(None) } else { text.parse().map(Some) });
    let wanted = ChangeReassignment { paused: args.value("paused")?, throttle_bytes_per_second: throttle.transpose()? };
    args.end()?;
    step(reassignment::change(image, id, wanted), |()| Vec::new())
}

/// `move PARTITION BROKER DIRECTORY`
pub fn move_replica(image: &MetadataImage, command: &Command) -> Result<Step> {
    let mut args = Arguments::of(command);
    let partition = named(args.word("partition")?)?;
    let wanted = MoveReplica { partition, broker: args.broker()?, directory: directory(args.word("directory")?) };
    args.end()?;
    step(reassignment::move_replica(image, &wanted), |()| Vec::new())
}

fn named(text: &str) -> Result<PartitionRef> {
    let (topic, partition) = text.rsplit_once('-').ok_or("a partition is topic-number")?;
    Ok(PartitionRef { topic: topic.to_owned(), partition: partition.parse()? })
}

/// Of the operation that moves a partition; one that is over has an id that is unknown.
fn id(image: &MetadataImage, text: &str) -> Result<ReassignmentId> {
    let partition = crate::arguments::partition(image, text)?;
    Ok(image.reassignment_of(partition).map(|operation| operation.id).unwrap_or_default())
}
