//! Why a partition is as it is, in plain words.

use std::collections::BTreeMap;

use crate::output::list;
use crate::view::Partition;

/// The state of each registered broker, as `broker list` names it.
pub type BrokerStates = BTreeMap<i32, String>;

/// What is not as it should be with the partition, and what it waits for. Empty: nothing.
pub fn reasons(partition: &Partition, brokers: &BrokerStates) -> Vec<String> {
    let mut reasons = Vec::new();
    reasons.extend(leaderless(partition, brokers));
    reasons.extend(out_of_sync(partition, brokers));
    if i32::try_from(partition.isr.len()).is_ok_and(|members| members < partition.min_insync_replicas) {
        reasons.push(format!(
            "under min ISR: {} in sync, min.insync.replicas is {}; records with acks=all are refused",
            partition.isr.len(),
            partition.min_insync_replicas
        ));
    }
    if partition.leader_recovery_state == "recovering" {
        reasons
            .push("elected uncleanly: records may be lost, and its leader has yet to say that it is ready".to_owned());
    }
    reasons.extend(not_preferred(partition, brokers));
    if !partition.adding.is_empty() || !partition.removing.is_empty() {
        let (adding, removing) = (list(&partition.adding), list(&partition.removing));
        reasons.push(format!("being reassigned: adding {adding}, removing {removing}"));
    }
    reasons
}

fn leaderless(partition: &Partition, brokers: &BrokerStates) -> Option<String> {
    if partition.leader.is_some() {
        return None;
    }
    let unclean_election = format!(
        "at the price of lost records by quorate partition elect --unclean --accept-loss {}-{}",
        partition.topic, partition.partition
    );
    let conditions = |named: &[i32]| -> Vec<String> {
        named.iter().map(|id| format!("broker {id} {}", condition(*id, brokers))).collect()
    };
    let (what, candidates) = if !partition.isr.is_empty() {
        ("none of its in-sync replicas can lead", &partition.isr)
    } else if !partition.elr.is_empty() {
        ("its ISR is empty, and none of its eligible replicas can lead", &partition.elr)
    } else {
        let last = match conditions(&partition.last_known_elr).as_slice() {
            [] => String::new(),
            last => format!(" (the last leader: {})", last.join(", ")),
        };
        return Some(format!(
            "leaderless: each replica may lack acknowledged records, since its disk or the end of its log was \
             lost{last}. It gets a leader {unclean_election}"
        ));
    };
    let who = conditions(candidates).join(", ");
    Some(format!("leaderless: {what}: {who}. It gets a leader when one of them is back, or {unclean_election}"))
}

fn out_of_sync(partition: &Partition, brokers: &BrokerStates) -> Option<String> {
    let missing: Vec<String> = partition
        .replicas
        .iter()
        .filter(|id| !partition.isr.contains(id))
        .map(|id| format!("broker {id} {}", condition(*id, brokers)))
        .collect();
    if missing.is_empty() { None } else { Some(format!("under-replicated: {}", missing.join(", "))) }
}

fn not_preferred(partition: &Partition, brokers: &BrokerStates) -> Option<String> {
    let (leader, preferred) = (partition.leader?, *partition.replicas.first()?);
    if leader == preferred {
        return None;
    }
    let why = if partition.isr.contains(&preferred) {
        "is in sync and gets the lead back with the next preferred election".to_owned()
    } else {
        condition(preferred, brokers)
    };
    Some(format!("not led by its preferred replica: broker {leader} leads, broker {preferred} {why}"))
}

fn condition(id: i32, brokers: &BrokerStates) -> String {
    match brokers.get(&id).map(String::as_str) {
        Some("unfenced") => "is up, but not in sync yet".to_owned(),
        Some("fenced") => "is fenced".to_owned(),
        Some("controlled-shutdown") => "is shutting down".to_owned(),
        Some(state) => format!("is {state}"),
        None => "is not registered".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::admin::PartitionDescription;

    use super::*;

    fn brokers() -> BrokerStates {
        [(1, "unfenced".to_owned()), (2, "fenced".to_owned())].into()
    }

    fn partition(leader: Option<i32>, replicas: &[i32], isr: &[i32]) -> Partition {
        Partition::from(PartitionDescription {
            topic: "orders".to_owned(),
            leader,
            replicas: replicas.to_vec(),
            isr: isr.to_vec(),
            leader_recovery_state: "recovered".to_owned(),
            min_insync_replicas: 1,
            ..PartitionDescription::default()
        })
    }

    #[test]
    fn a_whole_partition_has_no_reasons() {
        assert!(reasons(&partition(Some(1), &[1, 2], &[1, 2]), &brokers()).is_empty());
    }

    #[test]
    fn under_replicated_says_which_replica_is_missing_and_why() {
        let reasons = reasons(&partition(Some(1), &[1, 2, 3], &[1]), &brokers());
        assert_eq!(reasons, ["under-replicated: broker 2 is fenced, broker 3 is not registered"]);
    }

    #[test]
    fn leaderless_says_whom_it_waits_for() {
        let mut partition = partition(None, &[2], &[]);
        partition.elr = vec![2];
        let reasons = reasons(&partition, &brokers());
        assert!(
            reasons[0].starts_with(
                "leaderless: its ISR is empty, and none of its eligible replicas can lead: broker 2 is fenced."
            ),
            "{reasons:?}"
        );
        assert_eq!(reasons[2], "under min ISR: 0 in sync, min.insync.replicas is 1; records with acks=all are refused");
    }

    #[test]
    fn leaderless_says_that_no_replica_is_known_to_be_whole() {
        let mut partition = partition(None, &[1, 2], &[]);
        partition.last_known_elr = vec![1];
        let reasons = reasons(&partition, &brokers());
        assert_eq!(
            reasons[0],
            "leaderless: each replica may lack acknowledged records, since its disk or the end of its log was lost \
             (the last leader: broker 1 is up, but not in sync yet). It gets a leader at the price of lost records by \
             quorate partition elect --unclean --accept-loss orders-0"
        );
    }

    #[test]
    fn another_leader_than_the_preferred_is_explained() {
        let reasons = reasons(&partition(Some(1), &[2, 1], &[1, 2]), &brokers());
        assert_eq!(
            reasons,
            [
                "not led by its preferred replica: broker 1 leads, broker 2 is in sync and gets the lead back with the next preferred election"
            ]
        );
    }
}
