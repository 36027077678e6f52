//! An event loop that is held: its node gives the leadership away and then ends, the cluster serves again, and the plan
//! that held it is not tried elsewhere.

use quorate_proto::admin::UnregisterBrokerRequest;

use quorate_tests::{Cluster, PATIENCE, mutation, new_topic, refusal, wait};
use tonic::Request;

const VARIABLE: &str = "FAILPOINTS";

/// Which operations the failpoint is for: see `controller.plan` in the event loop.
fn unregister() -> Request<UnregisterBrokerRequest> {
    Request::new(UnregisterBrokerRequest { options: mutation(PATIENCE), broker: 99, force: true })
}

async fn a_plan_is_given_up(action: &str) {
    let mut cluster = Cluster::prepare(3, &[]).await;
    for id in cluster.ids() {
        cluster.set_variable(id, VARIABLE, &format!("controller.plan={action}"));
    }
    cluster.restart_all();
    cluster.ready().await;
    let held = cluster.active_controller().await;
    let refused = refusal(cluster.admin(held).unregister_broker(unregister())).await;
    assert_eq!(refused, "POLICY_VIOLATION");
    wait("another controller", async || (cluster.active_controller().await != held).then_some(())).await;
    cluster.create(new_topic("after", 1, 2)).await;
    let printed = cluster.ends(held, "the watchdog to end the node").await;
    assert!(printed.contains("unregister-broker"), "it names what held it");
    assert_eq!(cluster.running(), cluster.others(held), "the plan held no other node");
    cluster.restart(held);
    cluster.ready().await;
}

#[tokio::test]
async fn a_plan_that_spins_is_given_up() {
    a_plan_is_given_up("delay(600000)").await;
}

#[tokio::test]
async fn a_plan_that_waits_is_given_up() {
    a_plan_is_given_up("sleep(600000)").await;
}

#[tokio::test]
async fn a_loop_that_waits_for_ever_ends_its_node() {
    let mut cluster = Cluster::prepare(3, &[]).await;
    // It turns at every tick, and more often when it has work.
    cluster.set_variable(1, VARIABLE, "controller.loop=200*off->return");
    cluster.restart_all();
    cluster.ready().await;
    cluster.ends(1, "the watchdog to end the node").await;
    cluster.create(new_topic("after", 1, 2)).await;
}
