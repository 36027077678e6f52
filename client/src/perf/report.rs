//! What a measurement says: its spread, its parameters.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::Value;

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
        }
    }

    /// How many were done a second, all clients together.
    #[must_use]
    pub fn with_rate(mut self, elapsed: Duration) -> Self {
        let rate = self.n as f64 / elapsed.as_secs_f64();
        self.per_second = Some((rate * 10.0).round() / 10.0);
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_one_json_line_with_its_spread() {
        let mut samples = Samples::default();
        for millis in 1..=10 {
            samples.record(Duration::from_millis(millis));
        }
        let report = Report::new("mutate", &samples, json!({"clients": 1})).with_rate(Duration::from_secs(2));
        assert_eq!(
            serde_json::to_string(&report).expect("serializes"),
            concat!(
                r#"{"measurement":"mutate","n":10,"min":1.0,"p50":5.003,"p90":9.007,"p99":10.007,"max":10.007,"#,
                r#""unit":"ms","per_second":5.0,"parameters":{"clients":1}}"#
            )
        );
    }
}
