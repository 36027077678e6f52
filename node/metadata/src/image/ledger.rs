//! The image with its transactions: what a node replays batches on.
//!
//! While a transaction is open, readers see the image from before it, and watchers hear nothing of it. Its end shows
//! everything at once; its abort forgets everything but the offsets.

use crate::ids::Offset;
use crate::record::{Batch, Record};

use super::replay::ReplayError;
use super::{Delta, MetadataImage};

#[derive(Debug, Clone, Default)]
pub struct Ledger {
    working: MetadataImage,
    open: Option<Box<OpenTransaction>>,
}

#[derive(Debug, Clone)]
struct OpenTransaction {
    before: MetadataImage,
    /// What was replayed since it began, with its Begin record first.
    batches: Vec<Batch>,
}

/// What replaying one batch did.
#[derive(Debug, Clone)]
pub struct Replayed {
    pub first_offset: Offset,
    pub next_offset: Offset,
    /// What became visible with it, oldest first.
    pub visible: Vec<Delta>,
}

impl Ledger {
    pub fn new(image: MetadataImage) -> Self {
        Self { working: image, open: None }
    }

    /// What readers see.
    pub fn visible(&self) -> &MetadataImage {
        self.open.as_ref().map_or(&self.working, |open| &open.before)
    }

    /// What the next batch is replayed on, an open transaction included.
    pub fn working(&self) -> &MetadataImage {
        &self.working
    }

    pub fn has_open_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// The batches of the open transaction, for a snapshot.
    pub fn open_batches(&self) -> &[Batch] {
        self.open.as_ref().map_or(&[], |open| &open.batches)
    }

    /// Replays a batch; after an error the ledger is as it was.
    pub fn replay(&mut self, batch: &Batch) -> Result<Replayed, ReplayError> {
        let mut next = self.clone();
        let replayed = next.advance(batch)?;
        *self = next;
        Ok(replayed)
    }

    /// A batch is cut where a transaction begins or ends, so that each part is wholly inside or outside.
    fn advance(&mut self, batch: &Batch) -> Result<Replayed, ReplayError> {
        let first_offset = self.working.next_offset;
        let mut visible = Vec::new();
        let mut rest = batch.records.as_slice();
        while !rest.is_empty() {
            let (part, after) = rest.split_at(part_length(rest, self.open.is_some()));
            rest = after;
            let part = Batch { records: part.to_vec(), ..*batch };
            self.advance_part(part, &mut visible)?;
        }
        Ok(Replayed { first_offset, next_offset: self.working.next_offset, visible })
    }

    fn advance_part(&mut self, part: Batch, visible: &mut Vec<Delta>) -> Result<(), ReplayError> {
        self.check_nesting(&part)?;
        let first_offset = self.working.next_offset;
        if matches!(part.records.first(), Some(Record::BeginTransaction { .. })) {
            self.open = Some(Box::new(OpenTransaction { before: self.working.clone(), batches: Vec::new() }));
        }
        self.working.replay(&part)?;
        let Some(open) = &mut self.open else {
            visible.push(Delta::of(first_offset, part));
            return Ok(());
        };
        let ends = part.records.last().cloned();
        open.batches.push(part);
        match ends {
            Some(Record::EndTransaction) => self.commit(visible),
            Some(Record::AbortTransaction { .. }) => self.abort(visible),
            _ => {}
        }
        Ok(())
    }

    fn check_nesting(&self, part: &Batch) -> Result<(), ReplayError> {
        let begins = part.records.iter().skip(usize::from(self.open.is_none()));
        if begins.clone().any(|record| matches!(record, Record::BeginTransaction { .. })) {
            return Err(ReplayError::TransactionWithinTransaction);
        }
        let begun = self.open.is_some() || matches!(part.records.first(), Some(Record::BeginTransaction { .. }));
        let ends = |record: &Record| matches!(record, Record::EndTransaction | Record::AbortTransaction { .. });
        if !begun && part.records.iter().any(ends) {
            return Err(ReplayError::NoTransaction);
        }
        Ok(())
    }

    fn commit(&mut self, visible: &mut Vec<Delta>) {
        let Some(open) = self.open.take() else { return };
        let mut first_offset = open.before.next_offset;
        for batch in open.batches {
            let delta = Delta::of(first_offset, batch);
            first_offset = delta.next_offset;
            visible.push(delta);
        }
    }

    /// Back to the image from before; the offsets stay used. Watchers hear that there was a transaction, not what of.
    fn abort(&mut self, visible: &mut Vec<Delta>) {
        let Some(open) = self.open.take() else { return };
        let end = &self.working;
        let (next_offset, controller_epoch, timestamp_ms) = (end.next_offset, end.controller_epoch, end.timestamp_ms);
        visible.push(Delta {
            first_offset: open.before.next_offset,
            next_offset,
            controller_epoch,
            timestamp_ms,
            records: [].into(),
        });
        self.working = MetadataImage { next_offset, controller_epoch, timestamp_ms, ..open.before };
    }
}

/// How far the records reach until a transaction begins or ends.
fn part_length(records: &[Record], within: bool) -> usize {
    let begins = |record: &Record| matches!(record, Record::BeginTransaction { .. });
    let ends = |record: &Record| matches!(record, Record::EndTransaction | Record::AbortTransaction { .. });
    if within || records.first().is_some_and(begins) {
        records.iter().position(ends).map_or(records.len(), |at| at + 1)
    } else {
        records.iter().position(begins).unwrap_or(records.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ControllerEpoch;

    fn batch(records: Vec<Record>) -> Batch {
        Batch { controller_epoch: ControllerEpoch::new(1), timestamp_ms: 1, records }
    }

    fn feature(level: i16) -> Record {
        Record::FeatureLevel { name: "f".to_owned(), level }
    }

    fn begin() -> Record {
        Record::BeginTransaction { name: "t".to_owned() }
    }

    fn abort() -> Record {
        Record::AbortTransaction { reason: "r".to_owned() }
    }

    fn level(image: &MetadataImage) -> Option<i16> {
        image.features.get("f").copied()
    }

    #[test]
    fn a_transaction_is_seen_whole_or_not_at_all() {
        let mut ledger = Ledger::default();
        ledger.replay(&batch(vec![feature(1), begin(), feature(2)])).unwrap();
        assert_eq!((level(ledger.visible()), level(ledger.working())), (Some(1), Some(2)));
        let hidden = ledger.replay(&batch(vec![feature(3)])).unwrap();
        assert!(hidden.visible.is_empty());
        let shown = ledger.replay(&batch(vec![feature(4), Record::EndTransaction, feature(5)])).unwrap();
        assert_eq!(level(ledger.visible()), Some(5));
        let offsets: Vec<(i64, i64)> =
            shown.visible.iter().map(|delta| (delta.first_offset.get(), delta.next_offset.get())).collect();
        assert_eq!(offsets, [(1, 3), (3, 4), (4, 6), (6, 7)], "no gap and no repeat");
    }

    #[test]
    fn an_aborted_transaction_leaves_only_its_offsets() {
        let mut ledger = Ledger::default();
        ledger.replay(&batch(vec![feature(1)])).unwrap();
        let before = ledger.visible().digest();
        ledger.replay(&batch(vec![begin(), feature(2)])).unwrap();
        let aborted = ledger.replay(&batch(vec![abort()])).unwrap();
        assert_eq!((level(ledger.visible()), ledger.visible().digest()), (Some(1), before));
        assert_eq!(ledger.visible().next_offset, Offset::new(4));
        assert_eq!((aborted.visible.len(), aborted.visible[0].records.len()), (1, 0));
        assert!(ledger.visible().verify().is_empty());
    }

    #[test]
    fn a_batch_that_does_not_replay_changes_nothing() {
        let mut ledger = Ledger::default();
        let error = ledger.replay(&batch(vec![feature(1), Record::EndTransaction])).unwrap_err();
        assert_eq!(error, ReplayError::NoTransaction);
        assert_eq!((level(ledger.working()), ledger.working().next_offset), (None, Offset::new(0)));
        assert_eq!(
            ledger.replay(&batch(vec![begin(), begin()])).unwrap_err(),
            ReplayError::TransactionWithinTransaction
        );
        assert!(!ledger.has_open_transaction());
    }

    #[test]
    fn a_node_whose_digest_differs_stops_at_the_offset() {
        let mut ledger = Ledger::default();
        let error = ledger.replay(&batch(vec![feature(1), Record::Digest { digest: 7 }])).unwrap_err();
        assert!(matches!(error, ReplayError::DigestMismatch { offset, expected: 7, .. } if offset == Offset::new(1)));
    }
}
