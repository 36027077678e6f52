//! What must hold in every state, and what must be reached in some. The names are those of the TLA+ models of KIP-966 and
//! of KRaft by J. Vanlightly, where those have the property.

use quorate_metadata::ids::{BrokerId, LeaderEpoch};
use quorate_metadata::record::Cause;
use stateright::Property;

use crate::members::{Members, REPLICAS, at};
use crate::model::Cluster;
use crate::replica::{Office, Replica};
use crate::state::State;

pub const LEADER_COMPLETENESS: &str = "LeaderCompleteness";
pub const LEADER_CANDIDATE_COMPLETENESS: &str = "LeaderCandidateCompleteness";
pub const NO_COMMITTED_RECORD_LOST_GLOBALLY: &str = "NoCommittedRecordLostGlobally";
pub const LOG_MATCHING: &str = "LogMatching";
pub const REPLICATION_QUORUM_SUPERSET: &str = "ReplicationQuorumSuperset";
pub const METADATA_LOG_MATCHING: &str = "MetadataLogMatching";
pub const NEVER_TWO_LEADERS_IN_SAME_EPOCH: &str = "NeverTwoLeadersInSameEpoch";
pub const VALID_CONTROLLER_ISR_AND_ELR: &str = "ValidControllerIsrAndElr";
/// P3: there is no unclean election where the topic does not allow it.
pub const LEADER_ELECTED_CLEANLY: &str = "LeaderElectedCleanly";

/// In place of liveness, which a model without fairness cannot promise.
pub const FENCED_BROKER_IS_UNFENCED: &str = "a fenced broker is unfenced";
pub const ALTER_PARTITION_COMPLETES: &str = "AlterPartition completes: the ISR is whole again";
pub const CHANGE_IS_TAKEN_BACK: &str = "a change that was refused in doubt is taken back";
pub const ELR_MEMBER_IS_ELECTED: &str = "a member of the ELR is elected";
pub const UNCLEAN_RESTART_IS_SURVIVED: &str = "a broker that restarted uncleanly is back in the ISR";
pub const ELR_KEEPS_WHO_STOPPED: &str = "a broker that stopped is in the ELR";
pub const UNCLEAN_ELECTION_IS_ON_RECORD: &str = "an unclean election is on record";
pub const LOSS_IS_ON_RECORD: &str = "a record is lost to an unclean election that is on record";

pub fn all() -> Vec<Property<Cluster>> {
    vec![
        Property::always(LEADER_COMPLETENESS, leader_completeness),
        Property::always(LEADER_CANDIDATE_COMPLETENESS, leader_candidate_completeness),
        Property::always(NO_COMMITTED_RECORD_LOST_GLOBALLY, no_committed_record_lost_globally),
        Property::always(LOG_MATCHING, log_matching),
        Property::always(REPLICATION_QUORUM_SUPERSET, replication_quorum_superset),
        Property::always(METADATA_LOG_MATCHING, |_, state: &State| !state.has_diverged),
        Property::always(NEVER_TWO_LEADERS_IN_SAME_EPOCH, never_two_leaders_in_same_epoch),
        Property::always(VALID_CONTROLLER_ISR_AND_ELR, valid_controller_isr_and_elr),
        Property::always(LEADER_ELECTED_CLEANLY, leader_elected_cleanly),
        Property::sometimes(FENCED_BROKER_IS_UNFENCED, fenced_broker_is_unfenced),
        Property::sometimes(ALTER_PARTITION_COMPLETES, alter_partition_completes),
        Property::sometimes(CHANGE_IS_TAKEN_BACK, change_is_taken_back),
        Property::sometimes(ELR_MEMBER_IS_ELECTED, elr_member_is_elected),
        Property::sometimes(UNCLEAN_RESTART_IS_SURVIVED, |_, state: &State| {
            state.used.crashes > 0 && state.committed.end() > 0 && is_whole(state)
        }),
        Property::sometimes(ELR_KEEPS_WHO_STOPPED, elr_keeps_who_stopped),
        Property::sometimes(UNCLEAN_ELECTION_IS_ON_RECORD, |_, state: &State| state.unclean_epoch.is_some()),
        Property::sometimes(LOSS_IS_ON_RECORD, |_, state: &State| state.has_lost),
    ]
}

/// Whoever leads has every committed record, if it runs.
fn leader_completeness(_: &Cluster, state: &State) -> bool {
    let leader = state.controller.now.partition().leader.map(|leader| state.replica(leader));
    leader.is_none_or(|leader| has_committed(state, leader))
}

/// So has everyone in ISR and ELR. One that is down may have lost records: it loses its seat when it registers.
fn leader_candidate_completeness(_: &Cluster, state: &State) -> bool {
    state.candidates().all(|candidate| has_committed(state, candidate))
}

fn has_committed(state: &State, replica: &Replica) -> bool {
    replica.up().is_none() || replica.log.starts_with(state.committed.entries())
}

/// While fewer processes than `min.insync.replicas` have lost records, every committed one is somewhere.
fn no_committed_record_lost_globally(model: &Cluster, state: &State) -> bool {
    let is_kept = |entry| state.replicas.iter().any(|replica| replica.log.entries().contains(entry));
    usize::from(state.used.crashes) >= model.min_isr || state.committed.entries().iter().all(is_kept)
}

/// Two logs are the same up to the last position at which both have a record of the same epoch, and no two leaders have
/// committed different records at one position.
fn log_matching(_: &Cluster, state: &State) -> bool {
    let are_alike = |(one, other): (&Replica, &Replica)| {
        let mut both = one.log.entries().iter().zip(other.log.entries());
        let last = both.rposition(|(left, right)| left.epoch == right.epoch);
        one.log.common(&other.log) >= last.map_or(0, |last| last + 1)
    };
    !state.has_forked && pairs(state).all(are_alike)
}

/// A leader that is not stale, and has enough in sync to commit, counts with everyone whom the controllers may elect.
fn replication_quorum_superset(model: &Cluster, state: &State) -> bool {
    let partition = state.controller.now.partition();
    let candidates = Members::of(&partition.isr).and(Members::of(partition.elr()));
    let is_safe = |office: &Office| {
        office.leader_epoch != partition.leader_epoch
            || office.isr.len() < model.min_isr
            || office.maximal_isr().contains_all(candidates)
    };
    state.replicas.iter().filter_map(Replica::office).all(is_safe)
}

fn never_two_leaders_in_same_epoch(_: &Cluster, state: &State) -> bool {
    let partition = state.controller.now.partition();
    let epoch = |replica: &Replica| replica.office().map(|office| office.leader_epoch);
    let apart = pairs(state).all(|(one, other)| epoch(one).is_none() || epoch(one) != epoch(other));
    let mut current = state.replicas.iter().filter(|replica| epoch(replica) == Some(partition.leader_epoch));
    apart && current.all(|replica| partition.leader == Some(replica.id))
}

/// What `verify` checks, and that there is an ELR only beside an ISR that is too small.
fn valid_controller_isr_and_elr(model: &Cluster, state: &State) -> bool {
    let partition = state.controller.now.partition();
    !state.controller.is_unsound && (partition.elr().is_empty() || partition.isr.len() < model.min_isr)
}

fn leader_elected_cleanly(model: &Cluster, state: &State) -> bool {
    state.unclean_epoch.is_none() || model.unclean_allowed
}

fn pairs(state: &State) -> impl Iterator<Item = (&Replica, &Replica)> {
    let [one, two, three] = &state.replicas;
    [(one, two), (one, three), (two, three)].into_iter()
}

fn is_whole(state: &State) -> bool {
    state.controller.now.partition().isr.len() == REPLICAS.len()
}

fn fenced_broker_is_unfenced(_: &Cluster, state: &State) -> bool {
    is_after_election(state) && REPLICAS.iter().all(|&broker| state.controller.now.image.is_active(broker))
}

fn alter_partition_completes(_: &Cluster, state: &State) -> bool {
    is_after_election(state) && matches!(last_note(state).0, Cause::AlterPartition(_)) && is_whole(state)
}

/// The leader has not heard of it yet, and nothing but the partition epoch is another.
fn change_is_taken_back(_: &Cluster, state: &State) -> bool {
    let partition = state.controller.now.partition();
    let is_taken_back = |leader: &Replica| {
        let office = leader.office().filter(|office| office.is_in_doubt && office.isr == Members::of(&partition.isr));
        office.is_some_and(|office| office.partition_epoch < partition.partition_epoch)
            && last_note(state).0 == Cause::AlterPartition(leader.id)
    };
    state.replicas.iter().any(is_taken_back)
}

/// One that is unfenced leads at once, and is alone in the ISR.
fn elr_member_is_elected(_: &Cluster, state: &State) -> bool {
    let (partition, (cause, unclean)) = (state.controller.now.partition(), last_note(state));
    let is_alone = partition.leader.is_some_and(|leader| partition.isr == [leader]);
    is_alone && !unclean && matches!(cause, Cause::BrokerUnfenced(_)) && state.committed.end() > 0
}

/// It has registered again since.
fn elr_keeps_who_stopped(_: &Cluster, state: &State) -> bool {
    let partition = state.controller.now.partition();
    let has_restarted = |broker: &BrokerId| state.incarnations[at(*broker)].len() > 1;
    state.used.stops > 0 && state.used.crashes == 0 && partition.elr().iter().any(has_restarted)
}

fn is_after_election(state: &State) -> bool {
    state.controller.now.partition().leader_epoch > LeaderEpoch::default()
}

/// Why the partition changed last, and whether that was an unclean election.
fn last_note(state: &State) -> (Cause, bool) {
    let last = state.controller.now.partition().history().last().expect("it was created");
    (last.cause, last.unclean)
}
