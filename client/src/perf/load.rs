//! The loop of every load measurement: clients that repeat an operation, and how long each repetition took.

use std::future::Future;
use std::time::Duration;

use futures::future::try_join_all;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::usage::NodeUsage;
use super::{PerfError, Report, Samples, Target};

/// What one client repeats.
pub(super) trait Operation: Send + 'static {
    /// Opens the connection and whatever else must not be measured.
    fn prepare(&mut self) -> impl Future<Output = Result<(), PerfError>> + Send;

    /// One repetition.
    fn run(&mut self) -> impl Future<Output = Result<(), PerfError>> + Send;
}

/// How often a client repeats its operation.
#[derive(Debug, Clone, Copy)]
pub(super) enum Limit {
    Times(u64),
    For(Duration),
}

/// What all clients together did.
pub(super) struct Load {
    pub samples: Samples,
    pub elapsed: Duration,
    /// Changes of the active controller meanwhile.
    pub elections: i32,
    pub nodes: Vec<NodeUsage>,
}

impl Load {
    /// Runs the clients at once. The first failure ends the measurement.
    pub async fn run<O: Operation>(
        target: &Target,
        what: &'static str,
        mut clients: Vec<(O, Limit)>,
    ) -> Result<Self, PerfError> {
        try_join_all(clients.iter_mut().map(|(operation, _)| operation.prepare())).await?;
        let epoch = target.controller_epoch().await?;
        let observation = target.observe();
        let bar = progress(what, length(&clients));
        let started = Instant::now();
        let samples = repeat_all(clients, &bar).await;
        let elapsed = started.elapsed();
        bar.finish_and_clear();
        let nodes = observation.end().await;
        Ok(Self { samples: samples?, elapsed, elections: target.controller_epoch().await? - epoch, nodes })
    }

    /// The report of it, with the rate of repetitions.
    pub fn report(self, measurement: &'static str, parameters: serde_json::Value) -> Report {
        Report::new(measurement, &self.samples, parameters)
            .with_rate(self.elapsed)
            .with_result("elections", self.elections)
            .with_nodes(self.nodes)
    }
}

async fn repeat_all<O: Operation>(clients: Vec<(O, Limit)>, bar: &ProgressBar) -> Result<Samples, PerfError> {
    let mut tasks = JoinSet::new();
    for (operation, limit) in clients {
        tasks.spawn(repeat(operation, limit, bar.clone()));
    }
    let mut samples = Samples::default();
    while let Some(share) = tasks.join_next().await {
        samples.merge(&share.expect("a client of ours does not panic")?);
    }
    Ok(samples)
}

async fn repeat<O: Operation>(mut operation: O, limit: Limit, bar: ProgressBar) -> Result<Samples, PerfError> {
    let begin = Instant::now();
    let mut samples = Samples::default();
    while !limit.is_reached(samples.len(), begin) {
        let started = Instant::now();
        operation.run().await?;
        samples.record(started.elapsed());
        match limit {
            Limit::Times(_) => bar.inc(1),
            Limit::For(_) => bar.set_position(begin.elapsed().as_secs()),
        }
    }
    Ok(samples)
}

impl Limit {
    fn is_reached(self, done: u64, begin: Instant) -> bool {
        match self {
            Self::Times(times) => done >= times,
            Self::For(duration) => begin.elapsed() >= duration,
        }
    }
}

fn length<O>(clients: &[(O, Limit)]) -> u64 {
    let times = clients.iter().map(|(_, limit)| if let Limit::Times(times) = limit { *times } else { 0 }).sum();
    let seconds = clients.iter().map(|(_, limit)| if let Limit::For(time) = limit { time.as_secs() } else { 0 }).max();
    seconds.unwrap_or_default().max(times)
}

/// Repeats a measurement that breaks something, one round after the other, until the first failure.
pub(super) async fn rounds<T>(
    what: &'static str,
    count: u32,
    mut round: impl AsyncFnMut(usize) -> Result<T, PerfError>,
) -> Result<Vec<T>, PerfError> {
    let bar = progress(what, count.into());
    let mut measured = Vec::new();
    for number in 0..count as usize {
        measured.push(round(number).await?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(measured)
}

/// Shown on a terminal only.
pub(super) fn progress(what: &'static str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}").expect("the template is well formed");
    ProgressBar::new(length).with_style(style).with_message(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counted(u64);

    impl Operation for Counted {
        async fn prepare(&mut self) -> Result<(), PerfError> {
            Ok(())
        }

        async fn run(&mut self) -> Result<(), PerfError> {
            self.0 += 1;
            if self.0 > 5 { Err(PerfError::cluster("the sixth fails")) } else { Ok(()) }
        }
    }

    #[tokio::test]
    async fn each_client_repeats_as_often_as_it_was_asked() {
        let bar = ProgressBar::hidden();
        let clients = vec![(Counted(0), Limit::Times(3)), (Counted(0), Limit::Times(5))];
        assert_eq!(repeat_all(clients, &bar).await.expect("none fails").len(), 8);
        assert_eq!(bar.position(), 8);
    }

    #[tokio::test]
    async fn the_first_failure_ends_the_measurement() {
        let clients = vec![(Counted(0), Limit::Times(6)), (Counted(0), Limit::Times(1))];
        let failure = repeat_all(clients, &ProgressBar::hidden()).await.expect_err("the sixth fails");
        assert_eq!(failure.to_string(), "the sixth fails");
    }

    #[tokio::test]
    async fn rounds_stop_at_the_first_failure() {
        let mut begun = 0;
        let outcome = rounds("test", 5, async |number| {
            begun += 1;
            if number == 2 { Err(PerfError::cluster("the third fails")) } else { Ok(number) }
        });
        assert!(outcome.await.is_err());
        assert_eq!(begun, 3);
    }
}
