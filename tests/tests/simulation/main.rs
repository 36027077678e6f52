//! Whole clusters in one thread each, on simulated time, network and disks: real nodes, real gRPC, real brokers, the
//! workloads and checkers of `jepsen-lite`, and invariants that are looked at after every millisecond. A seed decides
//! everything; every fiftieth is run twice, and both times must be the same.
//!
//! ```sh
//! scripts/simulate --seeds 500      # the first 500
//! scripts/simulate --seed 17        # one of them again
//! ```
#![cfg(tokio_unstable)]

mod cluster;
mod faults;
mod invariants;
mod network;
mod observe;
mod run;

use std::sync::Mutex;
use std::thread;

use run::Outcome;

/// Of these one is run twice.
const TWICE: u64 = 50;

#[test]
fn every_seed_keeps_the_promises() {
    let (first, count) = (number("QUORATE_SIM_SEED", 0), number("QUORATE_SIM_SEEDS", 20));
    let left = Mutex::new(first..first + count);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(|| work(&left))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("it catches what it runs")).collect()
    });
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.violations.is_empty()).collect();
    for outcome in &failed {
        println!("seed {} ({}):", outcome.seed, outcome.shape);
        outcome.violations.iter().for_each(|violation| println!("  {violation}"));
        println!("again: scripts/simulate --seed {}", outcome.seed);
    }
    println!("{}", run::sum(&outcomes));
    assert!(failed.is_empty(), "{} of {count} seeds broke a promise", failed.len());
}

/// Seeds until none is left.
fn work(left: &Mutex<std::ops::Range<u64>>) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    loop {
        let Some(seed) = left.lock().expect("no holder panics").next() else { return outcomes };
        let mut outcome = alone(seed);
        if seed % TWICE == 0 && alone(seed).trace != outcome.trace {
            outcome.violations.push("two runs of this seed differ".to_owned());
        }
        outcomes.push(outcome);
    }
}

/// On a thread of its own, so that nothing of an earlier seed is left in it.
fn alone(seed: u64) -> Outcome {
    let ran = thread::Builder::new().name(format!("seed-{seed}")).spawn(move || run::run(seed));
    ran.expect("a thread can be started").join().unwrap_or_else(|panic| Outcome::of_panic(seed, &panic))
}

fn number(variable: &str, otherwise: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}
