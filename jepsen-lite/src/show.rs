//! Results, for people.

use std::path::Path;

use clap::ValueEnum;
use jepsen_lite::checker::Report;
use jepsen_lite::network::Layer;
use jepsen_lite::run::{Results, Setup};

pub fn show(results: &Results, folder: &Path) {
    results.reports.iter().for_each(show_report);
    results.skipped.iter().for_each(|skipped| println!("skipped: {skipped}"));
    println!("{:?}: {} operations, {} faults", results.verdict, results.operations, results.fired.len());
    println!("again: {}", results.again);
    println!("details: {}", folder.display());
}

pub fn show_report(report: &Report) {
    println!("{:<12} {:?}", report.checker, report.verdict);
    for (what, count) in &report.counts {
        println!("  {count:>8}  {what}");
    }
    for finding in &report.findings {
        println!("  {}: {} (lines {:?})", finding.rule, finding.message, finding.lines);
    }
}

pub fn names<T: ValueEnum>(values: &[T]) -> String {
    let name = |value: &T| value.to_possible_value().map(|value| value.get_name().to_owned());
    values.iter().filter_map(name).collect::<Vec<_>>().join(",")
}

/// Of a command line that runs on this.
pub fn flags(setup: &Setup) -> String {
    let mut flags = format!(" --workload {}", names(&setup.workloads));
    for setting in &setup.settings {
        flags.push_str(&format!(" --set '{setting}'"));
    }
    if setup.layer != Layer::default() {
        flags.push_str(&format!(" --layer {}", names(&[setup.layer])));
    }
    flags
}

/// With what the values mean.
pub fn list<T: ValueEnum>(what: &str) {
    println!("{what}:");
    for value in T::value_variants().iter().filter_map(ValueEnum::to_possible_value) {
        println!("  {:<16} {}", value.get_name(), value.get_help().map(ToString::to_string).unwrap_or_default());
    }
}
