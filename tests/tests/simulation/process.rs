//! Each seed has a process of its own, in which nothing is left of another seed: tokio numbers its tasks by process, and
//! drops those of a node that is killed in an order that comes from these numbers. Clocks and chance of that process are
//! simulated for libraries as well: hyper's `date`, h2's memory of reset streams, and the order within a `HashMap`.
//!
//! In the process that starts them no clock can be read (`mad_turmoil`: it stands at zero), but a thread can sleep.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::{env, fmt, io, thread};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::run::{self, Outcome};

/// Names the seed that a process is started for.
const SEED: &str = "QUORATE_SIM_THIS_SEED";

/// Of real time. A seed takes a few seconds; many times as much on a machine that is busy with other things.
const LONGEST: Duration = Duration::from_secs(120);

/// Waits for the end.
pub fn start(seed: u64) -> Outcome {
    let this = env::current_exe().expect("a process knows its file");
    let process = Command::new(this).env(SEED, seed.to_string()).stderr(Stdio::inherit()).output();
    let process = process.expect("a process can be started");
    let said = String::from_utf8_lossy(&process.stdout);
    let outcome = said.lines().last().and_then(|last| serde_json::from_str(last).ok());
    outcome.unwrap_or_else(|| Outcome::of_failure(seed, format!("its process ended with {}: {said}", process.status)))
}

pub fn seed_of_this_one() -> Option<u64> {
    env::var(SEED).ok().map(|seed| seed.parse().expect("it comes from `start`"))
}

/// What the process of a seed does. Its last line is the outcome.
pub fn run(seed: u64) -> ExitCode {
    thread::spawn(give_up);
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
    let _clocks = mad_turmoil::time::SimClocksGuard::init();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_timer(SimulatedTime);
    log.with_ansi(false).with_writer(io::stderr).init();
    let outcome = catch_unwind(AssertUnwindSafe(|| run::run(seed)))
        .unwrap_or_else(|panic| Outcome::of_failure(seed, format!("panicked: {}", text(&*panic))));
    println!("{}", serde_json::to_string(&outcome).expect("numbers and texts can be written"));
    ExitCode::SUCCESS
}

/// A seed that hangs must not hang those who wait for all.
#[expect(clippy::disallowed_methods, reason = "real time, in a thread that takes no part in what is simulated")]
fn give_up() {
    thread::sleep(LONGEST);
    println!("it does not end: {LONGEST:?} have passed, and {} ms were simulated", run::AT_MS.load(Ordering::Relaxed));
    std::process::exit(1);
}

fn text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

struct SimulatedTime;

impl FormatTime for SimulatedTime {
    fn format_time(&self, line: &mut Writer<'_>) -> fmt::Result {
        let elapsed = turmoil::sim_elapsed();
        write!(line, "{:>6} ms", elapsed.map_or(0, |elapsed| elapsed.as_millis()))
    }
}
