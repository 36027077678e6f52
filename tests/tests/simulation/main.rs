//! Whole clusters in one process each, on simulated time, network and disks: real nodes, real gRPC, real brokers, the
//! workloads and checkers of `jepsen-lite`, and invariants that are looked at after every millisecond. A seed decides
//! everything; every tenth is run twice, and both times must be the same.
//!
//! ```sh
//! scripts/simulate --seeds 500      # the first 500
//! scripts/simulate --seed 17        # one of them again; with RUST_LOG=debug it tells what happened
//! ```

mod cluster;
mod faults;
mod invariants;
mod network;
mod observe;
mod process;
mod run;

use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use run::Outcome;

/// Of these one is run twice.
const TWICE: u64 = 10;

fn main() -> ExitCode {
    if !cfg!(tokio_unstable) {
        println!("nothing is simulated: tokio does not draw from a seed in this build; see scripts/simulate");
        return ExitCode::SUCCESS;
    }
    match process::seed_of_this_one() {
        Some(seed) => process::run(seed),
        None => every_seed_keeps_the_promises(),
    }
}

fn every_seed_keeps_the_promises() -> ExitCode {
    let (first, count) = (number("QUORATE_SIM_SEED", 0), number("QUORATE_SIM_SEEDS", 20));
    let twice = number("QUORATE_SIM_TWICE", TWICE);
    let left = Mutex::new(first..first + count);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(|| work(&left, twice))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a process can be started")).collect()
    });
    println!("{}", run::sum(&outcomes));
    if outcomes.iter().all(|outcome| outcome.violations.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Seeds until none is left.
fn work(left: &Mutex<std::ops::Range<u64>>, twice: u64) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    loop {
        let Some(seed) = left.lock().expect("no holder panics").next() else { return outcomes };
        let mut outcome = process::start(seed);
        if twice > 0 && seed.is_multiple_of(twice) {
            let again = process::start(seed);
            let difference = outcome.trace.difference(&again.trace);
            outcome.violations.extend(again.violations.into_iter().map(|violation| format!("run again: {violation}")));
            outcome.violations.extend(difference);
        }
        if !outcome.violations.is_empty() {
            tell(&outcome);
        }
        outcomes.push(outcome);
    }
}

/// At once: whoever waits for many seeds wants to know.
fn tell(outcome: &Outcome) {
    let violations: Vec<String> = outcome.violations.iter().map(|violation| format!("  {violation}\n")).collect();
    let (seed, shape) = (outcome.seed, &outcome.shape);
    println!("seed {seed} ({shape}):\n{}again: scripts/simulate --seed {seed}", violations.concat());
}

fn number(variable: &str, otherwise: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}
