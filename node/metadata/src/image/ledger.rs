//! The image together with an open transaction, if there is one.
//!
//! A transaction is a run of batches that shows as a whole: until its end readers and the feed are where they were
//! before it, while replay and planning go on inside. One that is aborted leaves nothing behind but its offsets.

use std::sync::Arc;

use imbl::Vector;

use super::{Delta, MetadataImage, ReplayError};
use crate::ids::Offset;
use crate::record::{Batch, Record};

/// What a node replays batches on. A clone is cheap, and independent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    working: MetadataImage,
    open: Option<Box<OpenTransaction>>,
    /// It is planned on and read by nothing else: it keeps no records.
    is_draft: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct OpenTransaction {
    /// Its first record, for the feed of one that is aborted.
    begin: Record,
    before: MetadataImage,
    /// All its records so far: the feed gets them when it ends, and a snapshot takes them along. They take as much
    /// memory as the transaction is large, which `limits::PARTITIONS_PER_REQUEST_MAX` bounds.
    withheld: Vector<Delta>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    pub first_offset: Offset,
    pub next_offset: Offset,
    /// What became visible with this batch, oldest first.
    pub visible: Vec<Delta>,
}

impl Ledger {
    pub fn new(image: MetadataImage) -> Self {
        Self { working: image, open: None, is_draft: false }
    }

    /// The same, to plan on: of what is replayed on a draft only the images are kept, no records, so that a large
    /// transaction does not have its records in memory once more.
    pub fn to_draft(&self) -> Self {
        let mut draft = Self { is_draft: true, ..self.clone() };
        if let Some(open) = &mut draft.open {
            open.withheld = Vector::new();
        }
        draft
    }

    /// What readers see: before the open transaction.
    pub fn visible(&self) -> &MetadataImage {
        self.open.as_ref().map_or(&self.working, |open| &open.before)
    }

    /// What plans start from: with the open transaction.
    pub fn working(&self) -> &MetadataImage {
        &self.working
    }

    pub fn has_open_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Takes over the images of `draft`, which another replay of the same batches has built: then both share one structure
    /// in memory. False, and nothing is changed, if they do not hold the same.
    pub fn share(&mut self, draft: &Self) -> bool {
        let is_same = self.working.is_same(&draft.working)
            && self.has_open_transaction() == draft.has_open_transaction()
            && self.visible().is_same(draft.visible());
        if is_same {
            self.working = draft.working.clone();
            if let (Some(open), Some(drafted)) = (&mut self.open, &draft.open) {
                open.before = drafted.before.clone();
            }
        }
        is_same
    }

    /// The batches of the open transaction, copied one at a time. Replayed on `visible`, they lead to where this ledger
    /// is. A draft has none.
    pub fn open_batches(&self) -> impl Iterator<Item = Batch> + '_ {
        let withheld = self.open.iter().flat_map(|open| &open.withheld);
        withheld.map(|delta| Batch {
            controller_epoch: delta.controller_epoch,
            timestamp_ms: delta.timestamp_ms,
            records: delta.records.to_vec(),
        })
    }

    /// How many `open_batches` there are.
    pub fn open_batch_count(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.withheld.len())
    }

    /// Replays a batch, all of it or, on an error, nothing. Whether its epoch may speak is for the caller to know.
    pub fn replay(&mut self, batch: &Batch) -> Result<Replayed, ReplayError> {
        let mut next = self.clone();
        let replayed = next.replay_in_place(batch)?;
        *self = next;
        Ok(replayed)
    }

    /// As `replay`, but after an error the ledger is of no more use. No second holder of the image makes it copy what the
    /// batch changes.
    pub fn replay_in_place(&mut self, batch: &Batch) -> Result<Replayed, ReplayError> {
        let first_offset = self.working.next_offset;
        let mut visible = Vec::new();
        if !batch.records.is_empty() {
            // Of a batch without records no delta would tell the epoch and the time, nor would a snapshot: they would be
            // on this node alone.
            self.working.controller_epoch = batch.controller_epoch;
            self.working.timestamp_ms = batch.timestamp_ms;
        }
        for segment in segments(&batch.records) {
            self.replay_segment(segment, &mut visible)?;
        }
        Ok(Replayed { first_offset, next_offset: self.working.next_offset, visible })
    }

    /// Goes on to `next_offset` in an open transaction without what is replayed until then. Such a ledger is good for an
    /// abort of the transaction, which drops all of that, and for nothing else.
    pub fn skip_to(&mut self, next_offset: Offset) {
        assert!(self.has_open_transaction(), "only what is aborted may be left out");
        self.working.next_offset = next_offset;
    }

    /// Replays what became visible on another node. Of an aborted transaction that is its two ends only, and its other
    /// offsets are skipped.
    pub fn replay_visible(&mut self, batch: &Batch, next_offset: Offset) -> Result<Replayed, ReplayError> {
        let mut replayed = self.replay(batch)?;
        if let Some(Record::AbortTransaction { .. }) = batch.records.last() {
            self.working.next_offset = self.working.next_offset.max(next_offset);
            replayed.next_offset = self.working.next_offset;
        }
        Ok(replayed)
    }

    fn replay_segment(&mut self, segment: &[Record], visible: &mut Vec<Delta>) -> Result<(), ReplayError> {
        let first_offset = self.working.next_offset;
        if let Some(begin @ Record::BeginTransaction { .. }) = segment.first() {
            self.begin(begin)?;
        }
        self.working.replay_records(segment)?;
        match segment.last() {
            Some(Record::EndTransaction) => self.end(first_offset, segment, visible),
            Some(abort @ Record::AbortTransaction { .. }) => self.abort(abort, visible),
            _ if self.is_draft => Ok(()),
            _ => {
                let delta = self.delta(first_offset, segment.into());
                match &mut self.open {
                    Some(open) => open.withheld.push_back(delta),
                    None => visible.push(delta),
                }
                Ok(())
            }
        }
    }

    fn begin(&mut self, begin: &Record) -> Result<(), ReplayError> {
        if self.has_open_transaction() {
            return Err(ReplayError::TransactionOpen(self.working.next_offset));
        }
        let before = self.working.clone();
        self.open = Some(Box::new(OpenTransaction { begin: begin.clone(), before, withheld: Vector::new() }));
        Ok(())
    }

    fn end(&mut self, first_offset: Offset, segment: &[Record], visible: &mut Vec<Delta>) -> Result<(), ReplayError> {
        let open = self.close()?;
        if !self.is_draft {
            visible.extend(open.withheld);
            visible.push(self.delta(first_offset, segment.into()));
        }
        Ok(())
    }

    /// Back to the image from before, but not back in offset, epoch or time.
    fn abort(&mut self, abort: &Record, visible: &mut Vec<Delta>) -> Result<(), ReplayError> {
        let open = self.close()?;
        let first_offset = open.before.next_offset;
        self.working = MetadataImage {
            next_offset: self.working.next_offset,
            controller_epoch: self.working.controller_epoch,
            timestamp_ms: self.working.timestamp_ms,
            ..open.before
        };
        if !self.is_draft {
            visible.push(self.delta(first_offset, Arc::new([open.begin, abort.clone()])));
        }
        Ok(())
    }

    fn close(&mut self) -> Result<OpenTransaction, ReplayError> {
        let end = Offset::new(self.working.next_offset.get() - 1);
        self.open.take().map(|open| *open).ok_or(ReplayError::NoTransaction(end))
    }

    /// Of records that end where the image is now.
    fn delta(&self, first_offset: Offset, records: Arc<[Record]>) -> Delta {
        Delta {
            first_offset,
            next_offset: self.working.next_offset,
            controller_epoch: self.working.controller_epoch,
            timestamp_ms: self.working.timestamp_ms,
            records,
        }
    }
}

/// Cuts before each beginning and after each end of a transaction: a group commit may put several into one batch, and
/// what stands beside a transaction does not wait for it.
fn segments(records: &[Record]) -> impl Iterator<Item = &[Record]> {
    let is_end = |record: &Record| matches!(record, Record::EndTransaction | Record::AbortTransaction { .. });
    let is_begin = |record: &Record| matches!(record, Record::BeginTransaction { .. });
    records.chunk_by(move |this, next| !is_end(this) && !is_begin(next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::fixture::{batch, begin, end, feature};

    fn abort() -> Record {
        Record::AbortTransaction { reason: "its controller resigned".to_owned() }
    }

    fn replay(ledger: &mut Ledger, epoch: i32, records: &[Record]) -> Replayed {
        ledger.replay(&batch(epoch, records)).expect("the records of this test replay")
    }

    fn ends(deltas: &[Delta]) -> Vec<(i64, i64, i32)> {
        let end = |delta: &Delta| (delta.first_offset.get(), delta.next_offset.get(), delta.controller_epoch.get());
        deltas.iter().map(end).collect()
    }

    #[test]
    fn a_batch_is_visible_at_once() {
        let mut ledger = Ledger::default();
        let replayed = replay(&mut ledger, 1, &[feature("a", 1), feature("b", 1)]);
        assert_eq!(ends(&replayed.visible), [(0, 2, 1)]);
        assert_eq!(ledger.visible().features.len(), 2);
    }

    #[test]
    fn a_batch_without_records_changes_nothing() {
        let mut ledger = Ledger::default();
        replay(&mut ledger, 1, &[begin(), feature("a", 1)]);
        let before = ledger.clone();
        let replayed = replay(&mut ledger, 2, &[]);
        assert_eq!((replayed.first_offset, replayed.next_offset), (Offset::new(2), Offset::new(2)));
        assert_eq!(ledger, before);
    }

    #[test]
    fn who_replays_what_is_visible_stays_in_step_over_an_aborted_transaction() {
        let mut origin = Ledger::default();
        let mut copy = Ledger::default();
        for records in [&[begin(), feature("a", 1)][..], &[feature("b", 1)], &[abort()], &[feature("c", 1)]] {
            for delta in replay(&mut origin, 1, records).visible {
                let visible = batch(1, &delta.records);
                copy.replay_visible(&visible, delta.next_offset).expect("what is visible replays");
            }
        }
        assert_eq!(copy.visible().next_offset, Offset::new(5));
        assert_eq!(copy.visible(), origin.visible());
    }

    #[test]
    fn a_transaction_shows_as_a_whole() {
        let mut ledger = Ledger::default();
        assert!(replay(&mut ledger, 1, &[begin(), feature("a", 1)]).visible.is_empty());
        assert!(replay(&mut ledger, 2, &[feature("b", 1)]).visible.is_empty());
        assert!(ledger.has_open_transaction());
        assert_eq!(ledger.visible().features.len(), 0);
        assert_eq!(ledger.visible().next_offset, Offset::new(0));
        assert_eq!(ledger.working().features.len(), 2);

        let replayed = replay(&mut ledger, 2, &[feature("c", 1), end()]);
        assert_eq!(ends(&replayed.visible), [(0, 2, 1), (2, 3, 2), (3, 5, 2)]);
        assert_eq!(ledger.visible(), ledger.working());
        assert_eq!(ledger.visible().features.len(), 3);
    }

    #[test]
    fn an_aborted_transaction_leaves_only_its_offsets() {
        let mut ledger = Ledger::default();
        replay(&mut ledger, 1, &[feature("a", 1)]);
        let before = ledger.visible().clone();
        replay(&mut ledger, 1, &[begin(), feature("a", 2), feature("b", 1)]);
        let replayed = replay(&mut ledger, 2, &[abort()]);

        let offsets: Vec<_> =
            replayed.visible[0].offsets().map(|(offset, record)| (offset.get(), record.clone())).collect();
        assert_eq!(offsets, [(1, begin()), (4, abort())]);
        assert_eq!(ends(&replayed.visible), [(1, 5, 2)]);
        let moved_on = MetadataImage {
            next_offset: Offset::new(5),
            controller_epoch: ledger.working().controller_epoch,
            timestamp_ms: ledger.working().timestamp_ms,
            ..before
        };
        assert_eq!(*ledger.visible(), moved_on);
        assert_eq!(ledger.visible().controller_epoch.get(), 2);
        assert_eq!(ledger.working(), ledger.visible());
    }

    #[test]
    fn a_transaction_is_aborted_without_what_was_skipped_of_it() {
        let mut ledger = Ledger::default();
        replay(&mut ledger, 1, &[feature("a", 1), begin(), feature("b", 1)]);
        let mut skipping = ledger.clone();
        replay(&mut ledger, 1, &[feature("c", 1), feature("d", 1)]);
        skipping.skip_to(ledger.working().next_offset);
        assert_eq!(replay(&mut skipping, 1, &[abort()]), replay(&mut ledger, 1, &[abort()]));
        assert_eq!(skipping, ledger);
    }

    #[test]
    fn what_stands_beside_a_transaction_does_not_wait_for_it() {
        let mut ledger = Ledger::default();
        let records = [feature("a", 1), begin(), feature("b", 1), end(), feature("c", 1), begin(), feature("d", 1)];
        let replayed = replay(&mut ledger, 1, &records);
        assert_eq!(ends(&replayed.visible), [(0, 1, 1), (1, 4, 1), (4, 5, 1)]);
        assert_eq!((replayed.first_offset.get(), replayed.next_offset.get()), (0, 7));
        assert_eq!(ledger.visible().features.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(ledger.visible().next_offset, Offset::new(5));
    }

    #[test]
    fn a_batch_that_fails_changes_nothing() {
        let mut ledger = Ledger::default();
        replay(&mut ledger, 1, &[begin(), feature("a", 1)]);
        let before = ledger.clone();
        let bad = Record::Digest { digest: 1 };
        let refused = ledger.replay(&batch(2, &[feature("b", 1), end(), bad]));
        assert!(matches!(refused, Err(ReplayError::DigestMismatch { offset, .. }) if offset.get() == 4));
        assert_eq!(ledger, before);
    }

    #[test]
    fn transactions_neither_nest_nor_end_twice() {
        let mut ledger = Ledger::default();
        let refused = ledger.replay(&batch(1, &[feature("a", 1), end()]));
        assert_eq!(refused, Err(ReplayError::NoTransaction(Offset::new(1))));
        let refused = ledger.replay(&batch(1, &[begin(), begin()]));
        assert_eq!(refused, Err(ReplayError::TransactionOpen(Offset::new(1))));
        assert_eq!(ledger, Ledger::default());
    }

    #[test]
    fn a_ledger_shares_a_draft_that_holds_the_same_and_no_other() {
        let (mut ledger, mut draft) = (Ledger::default(), Ledger::default());
        for ledger in [&mut ledger, &mut draft] {
            replay(ledger, 1, &[feature("a", 1), begin(), feature("b", 1)]);
        }
        let before = ledger.clone();
        assert!(ledger.share(&draft));
        assert_eq!(ledger, before);
        assert!(ledger.working.features.ptr_eq(&draft.working.features), "they share one structure");
        replay(&mut draft, 1, &[feature("b", 2)]);
        assert!(!ledger.share(&draft), "it is ahead");
        replay(&mut ledger, 1, &[feature("b", 3)]);
        assert!(!ledger.share(&draft), "it holds something else");
        replay(&mut ledger, 1, &[feature("b", 2), end()]);
        replay(&mut draft, 1, &[feature("b", 2)]);
        assert!(!ledger.share(&draft), "its transaction is still open");
    }

    #[test]
    fn a_draft_comes_to_the_same_and_keeps_no_records() {
        let mut ledger = Ledger::default();
        replay(&mut ledger, 1, &[feature("a", 1), begin(), feature("b", 1)]);
        let mut draft = ledger.to_draft();
        assert_eq!(draft.open_batch_count(), 0);
        for records in [&[feature("c", 1)][..], &[feature("d", 1), end()], &[begin(), feature("e", 1)], &[abort()]] {
            assert_eq!(replay(&mut draft, 1, records).visible, []);
            replay(&mut ledger, 1, records);
            assert!(ledger.share(&draft) && draft.open_batch_count() == 0);
        }
    }

    #[test]
    fn the_open_batches_lead_from_the_visible_image_to_the_ledger() {
        let mut ledger = Ledger::default();
        replay(&mut ledger, 1, &[feature("a", 1), begin(), feature("b", 1)]);
        replay(&mut ledger, 2, &[feature("c", 1)]);
        let mut copy = Ledger::new(ledger.visible().clone());
        for batch in ledger.open_batches() {
            copy.replay(&batch).expect("they replayed once");
        }
        assert_eq!(copy, ledger);
    }
}
