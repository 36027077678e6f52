//! What the active controller has built for the batches that it has proposed.
//!
//! Planning replays each batch on a draft, and the log replays it again once it is committed. The two replays check each
//! other; then the second takes over the structure of the first, so that the active controller has its image once in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use quorate_metadata::ids::{ControllerEpoch, Offset};
use quorate_metadata::image::Ledger;

/// Drafts of batches in flight, oldest first: no more than there are batches in flight. Cheap to clone.
#[derive(Clone, Default)]
pub struct Drafts {
    in_flight: Arc<Mutex<VecDeque<Draft>>>,
}

struct Draft {
    epoch: ControllerEpoch,
    ledger: Ledger,
}

/// Two replays of the same batch lead to different metadata.
#[derive(Debug, thiserror::Error)]
#[error("the metadata at offset {0} differs from what the controller of this node planned")]
pub struct Differs(Offset);

impl Drafts {
    /// What a batch leads to that is about to be proposed under `epoch`.
    pub fn push(&self, epoch: ControllerEpoch, ledger: Ledger) {
        self.lock().push_back(Draft { epoch, ledger });
    }

    /// The claim is lost: its drafts are of no more use.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Lets `ledger`, to which a batch of `epoch` has led, share the draft of that batch, if there is one.
    pub fn share_with(&self, ledger: &mut Ledger, epoch: ControllerEpoch) -> Result<(), Differs> {
        let end = ledger.working().next_offset;
        let Some(draft) = self.take(epoch, end) else { return Ok(()) };
        if ledger.share(&draft) { Ok(()) } else { Err(Differs(end)) }
    }

    /// The draft that ends at `end`; those that end before it are dropped.
    fn take(&self, epoch: ControllerEpoch, end: Offset) -> Option<Ledger> {
        let mut in_flight = self.lock();
        while in_flight.front().is_some_and(|draft| draft.ledger.working().next_offset <= end) {
            let draft = in_flight.pop_front().expect("it was just looked at");
            if draft.epoch == epoch && draft.ledger.working().next_offset == end {
                return Some(draft.ledger);
            }
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Draft>> {
        self.in_flight.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::{Batch, Record};

    use super::*;

    const EPOCH: ControllerEpoch = ControllerEpoch::new(1);

    fn ledger(levels: &[i16]) -> Ledger {
        let mut ledger = Ledger::default();
        for &level in levels {
            let records = vec![Record::FeatureLevel { name: "f".to_owned(), level }];
            let batch = Batch { controller_epoch: EPOCH, timestamp_ms: 0, records };
            ledger.replay(&batch).expect("it replays");
        }
        ledger
    }

    #[test]
    fn a_draft_is_shared_at_its_end_and_those_before_it_are_dropped() {
        let drafts = Drafts::default();
        for levels in [&[1][..], &[1, 2], &[1, 2, 3]] {
            drafts.push(EPOCH, ledger(levels));
        }
        drafts.share_with(&mut ledger(&[1, 2]), EPOCH).expect("it holds the same");
        assert_eq!(drafts.lock().len(), 1);
    }

    #[test]
    fn a_draft_that_differs_is_an_error_and_one_of_another_claim_is_not() {
        let drafts = Drafts::default();
        drafts.push(EPOCH, ledger(&[1]));
        assert!(drafts.share_with(&mut ledger(&[2]), EPOCH).is_err());
        drafts.push(EPOCH, ledger(&[1]));
        assert!(drafts.share_with(&mut ledger(&[2]), ControllerEpoch::new(2)).is_ok());
        drafts.push(EPOCH, ledger(&[1]));
        drafts.clear();
        assert!(drafts.share_with(&mut ledger(&[2]), EPOCH).is_ok());
    }
}
