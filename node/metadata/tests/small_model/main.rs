//! A partition of three replicas, explored to the end: every order in which leaders, followers and controllers can act
//! within the bounds is played, and every state is checked.
//!
//! The controllers are the real ones: `plan` decides, `replay` makes it so, and a broker knows what it has replayed from
//! the feed or begun with as a snapshot. The data plane is a model of what `quorate_log::leadership` and
//! `broker/replica` do, without time: a follower that lags may be thrown out at any moment, an unclean restart may lose
//! any part of the end of a log. The high watermark is that of the leader, and each step that can move it does.
//!
//! Goals in order: the plans are exercised, not their likeness; nothing within the bounds is left out; each run takes
//! seconds. So a step that changes nothing, or could as well have happened before, is none: a broker that follows a
//! leader who is out of office hears the latest at once, and one that learns skips what lies between.
//!
//! | run | from | bounds | states | transitions |
//! |---|---|---|---|---|
//! | `changes_of_the_isr` | whole | 1 record, 1 crash, 3 changes | 469 941 | 2 791 314 |
//! | `late_requests` | whole | 1 record, 3 changes; requests come late, and again | 1 014 582 | 6 637 897 |
//! | `late_requests_of_who_restarted` | last standing | 1 record, 1 crash, 2 changes; so do they | 406 066 | 2 767 520 |
//! | `unclean_restarts` | last standing | 2 crashes, 3 changes | 198 916 | 1 195 892 |
//! | `records_after_the_last_stands` | last standing | 2 records, 1 crash, 2 changes | 146 131 | 805 244 |
//! | `stops_and_kills` | last standing | 1 record, 1 crash, 1 stop or kill, 2 changes | 301 728 | 1 708 781 |
//! | `unclean_elections` | last standing, unclean allowed | 1 record, 1 crash, 2 changes | 95 220 | 511 464 |
//!
//! A change is one of the partition: an election, another ISR. "Last standing" has two of them behind it: a record is on
//! 1 and 2 and not on 3, the ISR is [1], the ELR is [2]. Fencing, unfencing, starting, fetching, learning and elections
//! have no bound of their own. One AlterPartition request is under way at a time, and beside it one that takes it back;
//! where late ones are not played, one that can only be refused is lost. All runs together take two minutes of one core.
//!
//! Not here: more than one controller (what a failover loses was never committed), topics and replicas that change, log
//! directories, elections by hand, deletion of old records.
//!
//! That the model can fail is shown by the last tests, a mistake each, and by the mutants of the plans:
//! `MUTANT=M7 cargo test -p quorate-metadata --features mutants --test small_model` breaks `ReplicationQuorumSuperset`,
//! M8 `LeaderCompleteness` and `LeaderCandidateCompleteness`, M10 `NeverTwoLeadersInSameEpoch`. M6 breaks nothing: who
//! registers anew has lost its leader epoch with its broker epoch. M9 is a mistake of leaders, here `CommitsAlone`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bounds;
mod controller;
mod deviation;
mod log;
mod members;
mod model;
mod properties;
mod replica;
mod state;

use std::collections::BTreeSet;

use quorate_metadata::ids::BrokerId;
use stateright::{Checker, Expectation, HasDiscoveries, Model};

use bounds::{Bounds, Used};
use deviation::Deviation;
use members::{Members, REPLICAS};
use model::{Action, Cluster};
use properties as p;

const ONE: BrokerId = REPLICAS[0];
const TWO: BrokerId = REPLICAS[1];

/// A record is committed by 1 and 2, then 2 is fenced: ISR [1], ELR [2], and 3 has nothing.
const LAST_STANDING: &[Action] = &[
    Action::Produce(ONE),
    Action::Fetch(TWO),
    Action::Fetch(TWO),
    Action::Ask(ONE, Members::ONE_AND_TWO),
    Action::Deliver { request: 0, copy_stays: false },
    Action::Learn(ONE),
    Action::Fence(TWO),
    Action::Learn(ONE),
];

/// `min.insync.replicas` is 2, and late requests are lost.
fn cluster(start: &'static [Action], used: Used, changes: i32) -> Cluster {
    let bounds = Bounds { used, changes, requests: 1, late: false, repeats: false };
    Cluster { min_isr: 2, unclean_allowed: false, start, bounds, deviation: None }
}

/// From three replicas in sync.
fn whole(used: Used, changes: i32) -> Cluster {
    cluster(&[], used, changes)
}

fn last_standing(used: Used, changes: i32) -> Cluster {
    cluster(LAST_STANDING, used, changes)
}

fn with_late_requests(cluster: Cluster) -> Cluster {
    Cluster { bounds: Bounds { late: true, repeats: true, ..cluster.bounds }, ..cluster }
}

/// Visits every state. All properties hold, `reached` among them, and there are as many states as there were.
fn exhaust(cluster: Cluster, states: usize, reached: &[&str]) {
    let checker = cluster.checker().finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        match property.expectation {
            Expectation::Sometimes if reached.contains(&property.name) => {
                assert!(found.is_some(), "{:?} is not reached", property.name);
            }
            Expectation::Sometimes => {}
            _ => {
                assert!(found.is_none(), "{} is broken by {:#?}", property.name, found.map(|path| path.into_actions()))
            }
        }
    }
    assert!(checker.is_done(), "states are left");
    let visited = checker.unique_state_count();
    assert!(visited >= states, "{visited} states are fewer than {states}: the model has lost some of what can happen");
}

/// The mistake breaks the property. Breadth first: what is found is short.
fn breaks(cluster: Cluster, deviation: Deviation, property: &'static str) {
    let deviant = Cluster { deviation: Some(deviation), ..cluster };
    let until = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = deviant.checker().finish_when(until).spawn_bfs().join();
    assert!(checker.discovery(property).is_some(), "{deviation:?} does not break {property}");
}

#[test]
fn changes_of_the_isr() {
    let reached = [p::FENCED_BROKER_IS_UNFENCED, p::ALTER_PARTITION_COMPLETES, p::UNCLEAN_RESTART_IS_SURVIVED];
    exhaust(whole(Used { writes: 1, crashes: 1, stops: 0 }, 3), 469_000, &reached);
}

#[test]
fn late_requests() {
    let reached = [p::FENCED_BROKER_IS_UNFENCED, p::ALTER_PARTITION_COMPLETES, p::CHANGE_IS_TAKEN_BACK];
    exhaust(with_late_requests(whole(Used { writes: 1, crashes: 0, stops: 0 }, 3)), 1_014_000, &reached);
}

#[test]
fn late_requests_of_who_restarted() {
    let reached = [p::FENCED_BROKER_IS_UNFENCED, p::ELR_MEMBER_IS_ELECTED, p::UNCLEAN_RESTART_IS_SURVIVED];
    exhaust(with_late_requests(last_standing(Used { writes: 1, crashes: 1, stops: 0 }, 2)), 406_000, &reached);
}

#[test]
fn unclean_restarts() {
    let reached = [p::ALTER_PARTITION_COMPLETES, p::ELR_MEMBER_IS_ELECTED, p::UNCLEAN_RESTART_IS_SURVIVED];
    exhaust(last_standing(Used { writes: 0, crashes: 2, stops: 0 }, 3), 198_000, &reached);
}

#[test]
fn records_after_the_last_stands() {
    let reached = [p::ELR_MEMBER_IS_ELECTED, p::UNCLEAN_RESTART_IS_SURVIVED];
    exhaust(last_standing(Used { writes: 2, crashes: 1, stops: 0 }, 2), 145_000, &reached);
}

#[test]
fn stops_and_kills() {
    let reached = [p::ELR_MEMBER_IS_ELECTED, p::ELR_KEEPS_WHO_STOPPED];
    exhaust(last_standing(Used { writes: 1, crashes: 1, stops: 1 }, 2), 301_000, &reached);
}

#[test]
fn unclean_elections() {
    let reached = [p::ELR_MEMBER_IS_ELECTED, p::UNCLEAN_ELECTION_IS_ON_RECORD, p::LOSS_IS_ON_RECORD];
    let cluster = last_standing(Used { writes: 1, crashes: 1, stops: 0 }, 2);
    exhaust(Cluster { unclean_allowed: true, ..cluster }, 95_000, &reached);
}

#[test]
fn a_leader_that_commits_too_early_is_found() {
    let writes = whole(Used { writes: 1, crashes: 0, stops: 0 }, 2);
    breaks(writes.clone(), Deviation::CommitsAlone, p::LEADER_CANDIDATE_COMPLETENESS);
    breaks(writes.clone(), Deviation::CommitsAlone, p::LEADER_COMPLETENESS);
    breaks(writes.clone(), Deviation::CommitsByAskedIsr, p::LEADER_CANDIDATE_COMPLETENESS);
    let alone = last_standing(Used { writes: 1, crashes: 0, stops: 0 }, 2);
    breaks(alone, Deviation::CommitsBelowMinIsr, p::LEADER_CANDIDATE_COMPLETENESS);
    let joins = whole(Used { writes: 1, crashes: 0, stops: 0 }, 3);
    breaks(joins, Deviation::CommitsByCommittedIsr, p::LEADER_CANDIDATE_COMPLETENESS);
    let crashes = whole(Used { writes: 1, crashes: 1, stops: 0 }, 2);
    breaks(crashes, Deviation::CommitsAlone, p::NO_COMMITTED_RECORD_LOST_GLOBALLY);
}

#[test]
fn a_leader_that_asks_wrongly_is_found() {
    let alone = last_standing(Used { writes: 1, crashes: 1, stops: 0 }, 2);
    breaks(alone.clone(), Deviation::AsksForLaggards, p::LEADER_CANDIDATE_COMPLETENESS);
    breaks(alone, Deviation::NamesNoEpochs, p::LEADER_CANDIDATE_COMPLETENESS);
}

/// Without a crash: 2 is fenced and out of the ISR; the leader asks for it, and again as nobody answers; the second request
/// is refused, so it commits without 2; 2 is unfenced; the first request comes, and is granted; the leader is fenced.
#[test]
fn a_leader_that_trusts_a_refusal_while_a_copy_is_under_way_is_found() {
    let late = with_late_requests(whole(Used { writes: 1, crashes: 0, stops: 0 }, 3));
    breaks(late.clone(), Deviation::TrustsAnyRefusal, p::REPLICATION_QUORUM_SUPERSET);
    breaks(late.clone(), Deviation::TrustsAnyRefusal, p::LEADER_CANDIDATE_COMPLETENESS);
    breaks(late, Deviation::TrustsAnyRefusal, p::LEADER_COMPLETENESS);
}

#[test]
fn a_leader_that_takes_back_without_another_partition_epoch_is_found() {
    let late = with_late_requests(whole(Used { writes: 1, crashes: 0, stops: 0 }, 3));
    breaks(late, Deviation::TakesBackNothing, p::REPLICATION_QUORUM_SUPERSET);
}

#[test]
fn a_follower_that_keeps_what_its_leader_lacks_is_found() {
    let writes = whole(Used { writes: 2, crashes: 0, stops: 0 }, 2);
    breaks(writes.clone(), Deviation::NeverTruncates, p::LEADER_CANDIDATE_COMPLETENESS);
    let more = whole(Used { writes: 3, crashes: 0, stops: 0 }, 1);
    breaks(more, Deviation::NeverTruncates, p::LOG_MATCHING);
}

#[test]
fn a_broker_that_claims_a_clean_stop_is_found() {
    let alone = last_standing(Used { writes: 0, crashes: 1, stops: 0 }, 2);
    breaks(alone.clone(), Deviation::ClaimsCleanStop, p::LEADER_CANDIDATE_COMPLETENESS);
    breaks(alone, Deviation::ClaimsCleanStop, p::LEADER_COMPLETENESS);
}

#[test]
fn controllers_that_take_a_late_request_are_found() {
    let late = with_late_requests(whole(Used { writes: 1, crashes: 0, stops: 0 }, 3));
    breaks(late.clone(), Deviation::TakesAnyPartitionEpoch, p::REPLICATION_QUORUM_SUPERSET);
    breaks(late, Deviation::TakesAnyLeaderEpoch, p::REPLICATION_QUORUM_SUPERSET);
}

#[test]
fn controllers_that_elect_wrongly_are_found() {
    let alone = last_standing(Used { writes: 0, crashes: 1, stops: 0 }, 2);
    breaks(alone.clone(), Deviation::ElectsAnyone, p::LEADER_COMPLETENESS);
    let unclean = Cluster { unclean_allowed: true, ..alone };
    breaks(unclean, Deviation::ConcealsUncleanElections, p::LEADER_COMPLETENESS);
}
