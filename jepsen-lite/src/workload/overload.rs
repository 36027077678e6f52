//! More at once than a cluster can do: large requests to every node without a pause, in bursts only.
//!
//! Each is a creation of topics that is only planned, so that nothing stays of it: work for the active controller, and
//! bytes that wait for their turn at it.

use std::time::Duration;

use quorate_proto::admin::{CreateTopicsRequest, MutationOptions, NewTopic};
use tokio::task::JoinSet;

use super::direct::ask;
use super::{CALL_TIMEOUT, Context, WorkloadName};
use crate::generator::Asker;
use crate::op::Op;

/// Clients of each node, with a request under way each: all together more than the bytes that may wait at a controller
/// (64 MiB), and than what its forwarding and planning hold besides.
const CLIENTS_PER_NODE: u32 = 60;

/// Ten times as often in a burst. A request that is refused is sent again after so long, as THROTTLED asks for.
const PACE: Duration = Duration::from_millis(500);

/// All together more than a controller plans on its event loop (2 000 records).
const TOPICS: u32 = 2_400;

/// A topic name has at most 249 characters.
const NAME_BYTES: usize = 240;

pub fn start(context: &Context, tasks: &mut JoinSet<()>) {
    let mut number = 0;
    for (node, address) in &context.nodes {
        for _ in 0..CLIENTS_PER_NODE {
            let asker = context.asker(WorkloadName::Overload, number, PACE);
            tasks.spawn(burden(context.clone(), *node, address.clone(), asker));
            number += 1;
        }
    }
}

async fn burden(context: Context, node: i32, address: String, mut asker: Asker) {
    let mut admin = None;
    while asker.burst().await && asker.turn().await {
        let admin = admin.get_or_insert_with(|| context.admin(&address));
        let call = async {
            ask(admin.create_topics(request())).await?;
            Ok(Op::Burden { node })
        };
        context.recorder.record(WorkloadName::Overload, asker.process, Op::Burden { node }, call).await;
    }
}

fn request() -> CreateTopicsRequest {
    let timeout_ms = u32::try_from(CALL_TIMEOUT.as_millis()).expect("it is short");
    let topic = |number| NewTopic {
        name: format!("burden-{number:0>width$}", width = NAME_BYTES - "burden-".len()),
        partitions: Some(1),
        replication_factor: Some(3),
        ..NewTopic::default()
    };
    let options = Some(MutationOptions { plan_only: true, timeout_ms, ..MutationOptions::default() });
    CreateTopicsRequest { options, topics: (0..TOPICS).map(topic).collect() }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// Of the queue of a controller.
    const QUEUE_BYTES_MAX: usize = 64 << 20;

    #[test]
    fn all_requests_under_way_together_are_more_than_may_wait() {
        let bytes = request().encoded_len();
        assert!(bytes < 1 << 20, "{bytes} bytes: it must be taken as a request");
        for nodes in [3, 5] {
            let all = nodes * CLIENTS_PER_NODE as usize * bytes;
            assert!(all > QUEUE_BYTES_MAX * 3 / 2, "{nodes} nodes: {all} bytes");
        }
    }
}
