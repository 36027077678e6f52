//! What the controller writes on its own account, and how records become batches.

use crate::ids::ClusterId;
use crate::image::{LEVEL_HIGHEST, Ledger, MetadataImage};
use crate::limits;
use crate::plan::{Plan, features};
use crate::record::Record;

/// States the digest of the image, for every node to compare with its own.
pub fn digest_checkpoint(image: &MetadataImage) -> Plan<()> {
    Plan::new(vec![Record::Digest { digest: image.digest() }], ())
}

/// The first records of a cluster whose voters all run this release.
pub fn bootstrap(image: &MetadataImage, cluster: ClusterId) -> Plan<()> {
    bootstrap_up_to(image, cluster, LEVEL_HIGHEST)
}

/// The first records of a cluster: its id, and every feature at its highest level. `level` is the highest
/// `metadata.version` that all its voters support.
pub fn bootstrap_up_to(image: &MetadataImage, cluster: ClusterId, level: i16) -> Plan<()> {
    if image.cluster.is_some() {
        return Plan::new(Vec::new(), ());
    }
    let mut records = vec![Record::ClusterCreated { cluster }];
    let levels = features::supported_up_to(level).into_iter();
    records.extend(levels.map(|(name, range)| Record::FeatureLevel { name, level: range.max }));
    Plan::new(records, ())
}

/// Ends a transaction that its controller did not come to the end of.
pub fn abort_transaction(ledger: &Ledger, why: &str) -> Plan<()> {
    if !ledger.has_open_transaction() {
        return Plan::new(Vec::new(), ());
    }
    Plan::new(vec![Record::AbortTransaction { reason: why.to_owned() }], ())
}

/// Splits records into batches of at most `limits::BATCH_BYTES_MAX`, in order. Where it takes more than one and they
/// must show as a whole (`atomic`), they become a transaction called `name`.
///
/// Only plans that do not name their own offsets may be atomic: the first record of a transaction shifts the others.
pub fn into_batches(records: Vec<Record>, atomic: bool, name: &str) -> Vec<Vec<Record>> {
    let mut batches = split(records);
    if atomic && batches.len() > 1 {
        // The first and the last record stay outside the bound: they are small, and the bound is far below any limit.
        batches[0].insert(0, Record::BeginTransaction { name: name.to_owned() });
        let last = batches.last_mut().expect("there are at least two batches");
        last.push(Record::EndTransaction);
    }
    batches
}

fn split(records: Vec<Record>) -> Vec<Vec<Record>> {
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    let mut bytes = 0;
    for record in records {
        let size = record.approximate_bytes();
        if !batch.is_empty() && bytes + size > limits::BATCH_BYTES_MAX {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += size;
        batch.push(record);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::ConfigResource;

    fn records(count: usize, bytes: usize) -> Vec<Record> {
        let config = |at: usize| Record::Config {
            resource: ConfigResource::BrokerDefault,
            key: at.to_string(),
            value: Some("x".repeat(bytes)),
        };
        (0..count).map(config).collect()
    }

    #[test]
    fn what_fits_is_one_batch_without_a_transaction() {
        let batches = into_batches(records(10, 100), true, "small");
        assert_eq!(batches, [records(10, 100)]);
        assert!(into_batches(Vec::new(), true, "nothing").is_empty());
    }

    #[test]
    fn every_batch_is_bounded_and_nothing_is_lost_or_reordered() {
        let batches = into_batches(records(300, 10_000), false, "large");
        assert!(batches.len() > 1);
        for batch in &batches {
            assert!(batch.iter().map(Record::approximate_bytes).sum::<usize>() <= limits::BATCH_BYTES_MAX);
        }
        assert_eq!(batches.concat(), records(300, 10_000));
    }

    #[test]
    fn an_atomic_plan_of_several_batches_is_one_transaction() {
        let batches = into_batches(records(300, 10_000), true, "create-topics");
        let flat = batches.concat();
        assert_eq!(flat.first(), Some(&Record::BeginTransaction { name: "create-topics".to_owned() }));
        assert_eq!(flat.last(), Some(&Record::EndTransaction));
        assert_eq!(flat[1..flat.len() - 1], records(300, 10_000));
    }
}
