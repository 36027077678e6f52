//! Clusters of real processes, and verbs to break them with: what the cluster tests are written in.
//!
//! Goals in order: a test that fails says why, with the logs of its nodes; no test depends on how fast the machine is;
//! nothing is left running. A test speaks to nodes through their public API and their signals only.
//!
//! ```no_run
//! # async fn example() {
//! use quorate_tests::{Cluster, wait};
//!
//! let mut cluster = Cluster::start(3).await;
//! let active = cluster.active_controller().await;
//! cluster.kill(active);
//! wait("another controller", async || (cluster.active_controller().await != active).then_some(())).await;
//! # }
//! ```

mod call;
mod cluster;
mod feed;
mod http;
mod links;
mod load;
mod log;
mod mutations;
mod node;
mod observe;
mod phantom;
mod settings;

use std::time::Duration;

use tokio::time::{sleep, timeout};

pub use call::{Admin, Broker, channel, mutation, new_topic, outcome, refusal, topic_named};
pub use cluster::Cluster;
pub use feed::{Follower, MAX_LEVEL, next, records_between};
pub use jepsen_lite::link::Condition as Link;
pub use jepsen_lite::ports::free_port;
pub use links::Links;
pub use load::{Account, Load};
pub use log::{Committed, Log, produce};
pub use mutations::Mutations;
pub use node::{Run, binary};
pub use observe::beginning_of;
pub use phantom::{Heartbeats, registration};
pub use settings::{CALM, ENDLESS_SESSIONS, UNHURRIED};

/// How long anything may take before the test gives up. Nothing takes so long on a healthy machine: it is no claim
/// about speed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Waits until the condition gives something.
pub async fn wait<T>(why: &str, condition: impl AsyncFnMut() -> Option<T>) -> T {
    wait_at_most(PATIENCE, why, condition).await
}

/// As `wait`, for what takes longer than anything else on a healthy machine.
pub async fn wait_at_most<T>(patience: Duration, why: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            sleep(LOOK_AGAIN).await;
        }
    };
    match timeout(patience, looking).await {
        Ok(found) => found,
        Err(_) => panic!("waited {patience:?} in vain for: {why}"),
    }
}
