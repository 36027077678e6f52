//! The watchdog of a loop that does not turn. What the other voters do is seen in clusters.

use super::super::super::watchdog::Watchdog;
use super::*;
use crate::disks::DiskProblems;

const STEP_DOWN_AFTER: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_loop_that_is_held_gives_its_claim_back_and_ends_the_node() {
    let mut driven = Driven::start().await;
    let (pulse, metrics) = (driven.event_loop.pulse(), driven.event_loop.metrics.clone());
    let ((ended, ends), (_stop, stopped)) = (watch::channel(None), watch::channel(false));
    let watchdog = Watchdog {
        pulse: pulse.clone(),
        raft: driven.event_loop.raft.clone(),
        metrics: metrics.clone(),
        claim: driven.event_loop.published_claim(),
        step_down_after: STEP_DOWN_AFTER,
        end_after: 4 * STEP_DOWN_AFTER,
        disk_timeout: 3 * STEP_DOWN_AFTER,
        problems: DiskProblems::default(),
        ended,
    };
    tokio::spawn(watchdog.run(stopped));
    for _ in 0..100 {
        pulse.turn();
        tokio::time::sleep(STEP_DOWN_AFTER / 10).await;
    }
    assert_eq!((driven.controller.claimed(), metrics.event_loop_held.get()), (Some(driven.epoch), 0));
    pulse.begin("create-topics", pulse.next_number());
    tokio::time::sleep(2 * STEP_DOWN_AFTER).await;
    assert_eq!((driven.controller.claimed(), metrics.event_loop_held.get()), (None, 1));
    assert!(!pulse.end(), "the plan is given up");
    driven.event_loop.on_tick();
    assert_eq!(driven.controller.claimed(), Some(driven.epoch), "it turns again");
    pulse.turn();
    tokio::time::sleep(STEP_DOWN_AFTER / 2).await;
    assert!(ends.borrow().is_none());
    pulse.begin("create-topics", pulse.next_number());
    tokio::time::sleep(8 * STEP_DOWN_AFTER).await;
    assert!(ends.borrow().as_ref().is_some_and(|reason| reason.contains("create-topics")));
}

#[tokio::test(start_paused = true)]
async fn a_raft_log_that_hangs_is_named_and_ends_a_leader_without_successor() {
    let driven = Driven::start().await;
    let (pulse, problems) = (driven.event_loop.pulse(), DiskProblems::default());
    let ((ended, ends), (_stop, stopped)) = (watch::channel(None), watch::channel(false));
    let watchdog = Watchdog {
        pulse: pulse.clone(),
        raft: driven.event_loop.raft.clone(),
        metrics: driven.event_loop.metrics.clone(),
        claim: driven.event_loop.published_claim(),
        step_down_after: STEP_DOWN_AFTER,
        end_after: 4 * STEP_DOWN_AFTER,
        disk_timeout: 2 * STEP_DOWN_AFTER,
        problems: problems.clone(),
        ended,
    };
    tokio::spawn(watchdog.run(stopped));
    let turns = async |count: u32| {
        for _ in 0..count {
            pulse.turn();
            tokio::time::sleep(STEP_DOWN_AFTER / 10).await;
        }
    };
    let write = driven.event_loop.raft.disk_operations().begin();
    turns(10).await;
    assert!(problems.list().is_empty() && driven.controller.claimed().is_some(), "it may take that long");
    turns(20).await;
    assert!(problems.list()[0].contains("raft log"), "{:?}", problems.list());
    assert!(driven.controller.claimed().is_none() && ends.borrow().is_none());
    drop(write);
    turns(10).await;
    assert!(problems.list().is_empty(), "it answers again");
    let _write = driven.event_loop.raft.disk_operations().begin();
    turns(100).await;
    assert!(ends.borrow().as_ref().is_some_and(|reason| reason.contains("the disk of the raft log")));
}
