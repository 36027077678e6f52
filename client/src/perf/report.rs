//! What a measurement says: its spread, its parameters.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Map, Value};

use super::usage::NodeUsage;

/// Three digits are kept of every value.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Durations, kept as microseconds.
#[derive(Debug, Clone)]
pub struct Samples {
    histogram: Histogram<u64>,
}

impl Default for Samples {
    fn default() -> Self {
        Self { histogram: Histogram::new(SIGNIFICANT_DIGITS).expect("three digits are allowed") }
    }
}

impl Samples {
    pub fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.histogram.record(micros).expect("the histogram grows by itself");
    }

    pub fn merge(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("the histogram grows by itself");
    }

    pub fn len(&self) -> u64 {
        self.histogram.len()
    }

    pub fn is_empty(&self) -> bool {
        self.histogram.is_empty()
    }

    /// The samples of these durations.
    pub fn of(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut samples = Self::default();
        durations.into_iter().for_each(|duration| samples.record(duration));
        samples
    }

    fn quantile_ms(&self, quantile: f64) -> f64 {
        millis(self.histogram.value_at_quantile(quantile))
    }
}

fn millis(micros: u64) -> f64 {
    // Values of this size are exact in an f64.
    micros as f64 / 1000.0
}

/// One line of JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    pub measurement: &'static str,
    pub n: u64,
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
    pub unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<f64>,
    pub parameters: Value,
    /// What else was found.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub results: Map<String, Value>,
    /// What the nodes used, where they run on this machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeUsage>,
}

impl Report {
    pub fn new(measurement: &'static str, samples: &Samples, parameters: Value) -> Self {
        Self {
            measurement,
            n: samples.len(),
            min: millis(samples.histogram.min()),
            p50: samples.quantile_ms(0.5),
            p90: samples.quantile_ms(0.9),
            p99: samples.quantile_ms(0.99),
            max: millis(samples.histogram.max()),
            unit: "ms",
            per_second: None,
            parameters,
            results: Map::new(),
            nodes: Vec::new(),
        }
    }

    /// How many were done a second, all clients together.
    #[must_use]
    pub fn with_rate(self, elapsed: Duration) -> Self {
        let count = self.n;
        self.with_rate_of(count, elapsed)
    }

    /// As `with_rate`, where a sample stands for several.
    #[must_use]
    pub fn with_rate_of(mut self, count: u64, elapsed: Duration) -> Self {
        self.per_second = Some(rate(count, elapsed));
        self
    }

    #[must_use]
    pub fn with_result(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.results.insert(name.to_owned(), value.into());
        self
    }

    #[must_use]
    pub fn with_nodes(mut self, nodes: Vec<NodeUsage>) -> Self {
        self.nodes = nodes;
        self
    }
}

/// How many a second, with one digit after the point.
pub(super) fn rate(count: u64, elapsed: Duration) -> f64 {
    (count as f64 / elapsed.as_secs_f64() * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_one_json_line_with_its_spread() {
        let samples = Samples::of((1..=10).map(Duration::from_millis));
        let report = Report::new("mutate", &samples, json!({"clients": 1})).with_rate(Duration::from_secs(2));
        assert_eq!(
            serde_json::to_string(&report).expect("serializes"),
            concat!(
                r#"{"measurement":"mutate","n":10,"min":1.0,"p50":5.003,"p90":9.007,"p99":10.007,"max":10.007,"#,
                r#""unit":"ms","per_second":5.0,"parameters":{"clients":1}}"#
            )
        );
    }

    #[test]
    fn a_sample_may_stand_for_several_changes() {
        let samples = Samples::of([Duration::from_millis(3); 10]);
        let report = Report::new("alter-isr", &samples, json!({})).with_rate_of(2_000, Duration::from_secs(4));
        assert_eq!((report.n, report.per_second), (10, Some(500.0)));
    }

    #[test]
    fn results_and_nodes_follow_the_parameters() {
        let node = NodeUsage { node: 2, cpu_seconds: 1.5, rss_mb: 80.0, rss_max_mb: 90.5 };
        let report = Report::new("create", &Samples::default(), json!({"clients": 1}))
            .with_result("elections", 0)
            .with_nodes(vec![node]);
        let line = serde_json::to_string(&report).expect("serializes");
        let end = concat!(
            r#""parameters":{"clients":1},"results":{"elections":0},"#,
            r#""nodes":[{"node":2,"cpu_seconds":1.5,"rss_mb":80.0,"rss_max_mb":90.5}]}"#
        );
        assert!(line.ends_with(end), "{line}");
    }
}
