//! Operations that go on in a later turn, and the brokers that they take out of ISRs.

use std::collections::{BTreeMap, VecDeque};

use quorate_metadata::liveness::Removal;

use super::operation::{Operation, RemovalTarget, Weight};

#[derive(Default)]
pub struct UnderWay {
    /// Fencings, in the order in which they go on.
    fencings: VecDeque<Operation>,
    /// Other operations of several steps, and those that change much and wait for their turn.
    others: VecDeque<Operation>,
    /// Operations that change much and came while a large plan is made or waits, which waits for the steps of those before
    /// it. They have their turns after it.
    after_large: VecDeque<Operation>,
    /// A fencing had the last turn.
    is_turn_of_others: bool,
    /// Operations that were taken from the queue together with one that has batches of its own, and go on after it.
    deferred: Vec<Operation>,
    /// Why these operations take brokers out of ISRs, by the incarnation of the broker.
    removals: BTreeMap<RemovalTarget, Vec<Removal>>,
}

impl UnderWay {
    pub fn push_step(&mut self, operation: Operation) {
        self.add_removal(&operation);
        match operation.removal() {
            Some((_, Removal::Fencing)) => self.fencings.push_back(operation),
            Some(_) | None => self.others.push_back(operation),
        }
    }

    /// The next step is of a fencing and of another operation in turn: what a dead broker led has no leader until then.
    pub fn pop_step(&mut self) -> Option<Operation> {
        let is_of_others = !self.others.is_empty() && (self.is_turn_of_others || self.fencings.is_empty());
        let operation = if is_of_others { self.others.pop_front() } else { self.fencings.pop_front() }?;
        self.is_turn_of_others = !is_of_others;
        self.remove_removal(&operation);
        Some(operation)
    }

    pub fn step_count(&self) -> usize {
        self.fencings.len() + self.others.len()
    }

    /// Operations other than fencings, whether or not it is their turn yet.
    pub fn others_count(&self) -> usize {
        self.others.len() + self.after_large.len()
    }

    /// It has its turns after the large plan that is made or waits.
    pub fn push_after_large(&mut self, operation: Operation) {
        self.after_large.push_back(operation);
    }

    pub fn has_after_large(&self) -> bool {
        !self.after_large.is_empty()
    }

    /// No large plan is made or waits any longer.
    pub fn end_large(&mut self) {
        std::mem::take(&mut self.after_large).into_iter().for_each(|operation| self.push_step(operation));
    }

    pub fn defer(&mut self, operation: Operation) {
        self.add_removal(&operation);
        // Its request is no longer counted in the queue.
        self.deferred.push(Operation { weight: Weight { bytes: 0, ..operation.weight }, ..operation });
    }

    pub fn take_deferred(&mut self) -> Vec<Operation> {
        let deferred = std::mem::take(&mut self.deferred);
        deferred.iter().for_each(|operation| self.remove_removal(operation));
        deferred
    }

    pub fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    pub fn take_all(&mut self) -> impl Iterator<Item = Operation> + use<> {
        let Self { fencings, others, after_large, deferred, .. } = std::mem::take(self);
        fencings.into_iter().chain(others).chain(after_large).chain(deferred)
    }

    /// Whether any broker is being taken out of ISRs.
    pub fn has_removals(&self) -> bool {
        !self.removals.is_empty()
    }

    /// Whether this incarnation of a broker is being taken out of ISRs.
    pub fn removes(&self, target: RemovalTarget) -> bool {
        self.removals.contains_key(&target)
    }

    pub fn fences(&self, target: RemovalTarget) -> bool {
        self.removals.get(&target).is_some_and(|removals| removals.contains(&Removal::Fencing))
    }

    fn add_removal(&mut self, operation: &Operation) {
        if let Some((target, removal)) = operation.removal() {
            self.removals.entry(target).or_default().push(removal);
        }
    }

    fn remove_removal(&mut self, operation: &Operation) {
        let Some((target, removal)) = operation.removal() else { return };
        let Some(removals) = self.removals.get_mut(&target) else { return };
        if let Some(at) = removals.iter().position(|counted| *counted == removal) {
            removals.swap_remove(at);
        }
        if removals.is_empty() {
            self.removals.remove(&target);
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::ids::{BrokerEpoch, BrokerId};
    use quorate_metadata::rng::Rng;
    use quorate_metadata::{ApiError, MetadataImage, Plan, Record};

    use super::super::operation::{Mutation, Position};
    use super::*;

    const TARGET: RemovalTarget = RemovalTarget { broker: BrokerId::new(1), epoch: BrokerEpoch::new(7) };

    struct Removing(Removal);

    impl Mutation for Removing {
        fn plan(&mut self, _: &MetadataImage, _: &mut Rng) -> Result<Plan<()>, ApiError> {
            Ok(Plan::new(Vec::new(), ()))
        }

        fn reply(&mut self, _: &Position, _: &[Record]) -> Vec<u8> {
            Vec::new()
        }

        fn removal(&self) -> Option<Removal> {
            Some(self.0)
        }
    }

    fn removing(removal: Removal) -> Operation {
        Operation { target: Some(TARGET), ..Operation::without_caller("test", Removing(removal)) }
    }

    #[test]
    fn a_broker_is_removed_for_as_long_as_an_operation_goes_on() {
        let mut under_way = UnderWay::default();
        under_way.push_step(removing(Removal::ControlledShutdown));
        assert!(under_way.removes(TARGET) && !under_way.fences(TARGET));
        under_way.push_step(removing(Removal::Fencing));
        under_way.defer(removing(Removal::Fencing));
        under_way.pop_step().expect("it was pushed");
        under_way.pop_step().expect("it was pushed");
        assert!(under_way.fences(TARGET), "one is deferred");
        let other = RemovalTarget { epoch: BrokerEpoch::new(8), ..TARGET };
        assert!(!under_way.removes(other), "it is another incarnation");
        assert_eq!(under_way.take_deferred().len(), 1);
        assert!(!under_way.has_removals() && !under_way.removes(TARGET));
    }

    #[test]
    fn fencings_and_others_take_turns() {
        let mut under_way = UnderWay::default();
        for removal in [Removal::ControlledShutdown, Removal::ControlledShutdown, Removal::Fencing, Removal::Fencing] {
            under_way.push_step(removing(removal));
        }
        let order: Vec<bool> = std::iter::from_fn(|| under_way.pop_step())
            .map(|operation| matches!(operation.removal(), Some((_, Removal::Fencing))))
            .collect();
        assert_eq!(order, [true, false, true, false]);
    }

    #[test]
    fn take_all_clears_removals() {
        let mut under_way = UnderWay::default();
        under_way.push_step(removing(Removal::Fencing));
        under_way.defer(removing(Removal::DirectoryFailure));
        assert_eq!(under_way.take_all().count(), 2);
        assert!(!under_way.has_removals() && !under_way.has_deferred() && under_way.step_count() == 0);
    }
}
