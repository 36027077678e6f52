//! What a node must not do while its disk does not answer.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_client::Freshness;
use quorate_proto::admin::{ListPartitionsRequest, PartitionDescription};
use tokio::time::{Instant, sleep};

use super::Conductor;
use crate::workload::client;

/// Within that the disk timeout is over, the directory is reported, and others lead.
pub(super) const OTHERS_LEAD_SURELY: Duration = Duration::from_secs(8);

/// Within that a controller answers, which may itself just have been elected.
const ANSWER_SURELY: Duration = Duration::from_secs(5);

const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Conductor<'_> {
    /// Whoever hangs leads nothing that another replica could lead.
    pub(super) async fn others_lead(&mut self, hung: &BTreeSet<i32>) {
        let up = self.db.up().into_iter().filter(|id| !hung.contains(id));
        let others: Vec<String> = up.map(|id| self.db.api(id).to_owned()).collect();
        if others.is_empty() {
            return;
        }
        let (client, from) = (client(&others, Duration::from_secs(1)), Instant::now());
        while from.elapsed() < ANSWER_SURELY {
            let listed = client.list_partitions(ListPartitionsRequest::default(), Freshness::Linearizable).await;
            if let Ok(listed) = listed {
                for partition in listed.partitions.iter().filter(|partition| is_held(partition, hung)) {
                    let (topic, number, leader) = (&partition.topic, partition.partition, partition.leader);
                    let message = format!("{topic}-{number} is led by {leader:?}, whose disk does not answer");
                    self.report.object("others-lead-when-a-disk-hangs", message, &[]);
                }
                return;
            }
            sleep(LOOK_AGAIN).await;
        }
        let message = format!("no answer from {others:?} while the disk of {hung:?} does not answer");
        self.report.object("others-lead-when-a-disk-hangs", message, &[]);
    }
}

fn is_held(partition: &PartitionDescription, hung: &BTreeSet<i32>) -> bool {
    let leads = partition.leader.is_some_and(|leader| hung.contains(&leader));
    leads && partition.isr.iter().any(|member| !hung.contains(member))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_held_where_another_replica_could_lead() {
        let hung = BTreeSet::from([1]);
        let partition = |leader, isr: &[i32]| PartitionDescription { leader, isr: isr.to_vec(), ..Default::default() };
        assert!(is_held(&partition(Some(1), &[1, 2]), &hung));
        assert!(!is_held(&partition(Some(1), &[1]), &hung), "nobody else could");
        assert!(!is_held(&partition(Some(2), &[1, 2]), &hung));
        assert!(!is_held(&partition(None, &[2]), &hung));
    }
}
