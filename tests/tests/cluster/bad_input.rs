//! What is wrong is refused by name, and changes nothing (P11).

mod bytes;
mod elsewhere;
mod partitions;
mod reassignment;
mod registration;
mod topics;

use quorate_proto::admin::{Assignment, NewTopic};
use quorate_proto::error::from_status;
use quorate_proto::metadata::record::Record;
use quorate_tests::{Cluster, UNHURRIED, records_between, wait};
use tonic::Status;

/// Where the metadata is before something that must not change it.
struct Untouched {
    from: i64,
}

impl Untouched {
    async fn since_now(cluster: &Cluster) -> Self {
        Self { from: cluster.converged().await.0 }
    }

    /// Nothing was written since but the digests that the nodes check each other by.
    async fn check(self, cluster: &Cluster) {
        let until = cluster.converged().await.0;
        for record in records_between(cluster.broker(1), self.from, until).await {
            assert!(matches!(record, Record::Digest(_)), "bad input was written: {record:?}");
        }
    }
}

/// The name of the refusal of the whole call, or of its last item.
fn name_of<Reply>(
    answer: Result<Reply, Status>,
    item: impl Fn(&Reply) -> Option<&quorate_proto::admin::Error>,
) -> String {
    match &answer {
        Err(status) => from_status(status).name.to_string(),
        Ok(reply) => item(reply).map_or_else(|| "none".to_owned(), |error| error.name.clone()),
    }
}

fn assigned(name: &str, replicas: &[&[i32]]) -> NewTopic {
    let assignment =
        (0..).zip(replicas).map(|(partition, replicas)| Assignment { partition, replicas: replicas.to_vec() });
    NewTopic { name: name.to_owned(), assignment: assignment.collect(), ..NewTopic::default() }
}

/// A cluster of three with a fourth broker that is registered and never comes.
async fn cluster_with_an_absent_broker() -> Cluster {
    let cluster = Cluster::start_with(3, UNHURRIED).await;
    cluster.register_phantom(1, ABSENT).await.expect("a new broker may register");
    wait("the registration to be seen", async || cluster.broker_seen(ABSENT).await).await;
    cluster
}

/// Registered, and fenced.
const ABSENT: i32 = 9;

/// Nobody.
const STRANGER: i32 = 77;
