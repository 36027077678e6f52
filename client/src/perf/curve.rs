//! Cost over size, from the results of `scripts/bench --curve`, as an SVG.
//!
//! A line `{"settings":{"partitions":N}}` says for what size of cluster the results after it are.

mod svg;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use self::svg::Panel;
use super::PerfError;

#[derive(Debug, Clone, Args)]
pub struct CurveArgs {
    /// Files of results
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What is drawn: the title, the measurement, and which number of its line. Where sizes have several lines, the last.
const PANELS: [(&str, &str, Figure); 6] = [
    ("create 1 topic, p50 (ms)", "create", Figure::Field("p50")),
    ("mutation, 1 client, p99 (ms)", "mutate", Figure::Field("p99")),
    ("RSS of the largest node (MB)", "mutate", Figure::Rss),
    ("failover to the next create, p50 (ms)", "failover", Figure::Field("p50")),
    ("broker fenced, all leaders moved, p50 (ms)", "fence-all-leaders", Figure::Field("p50")),
    ("building the cluster (partitions/s)", "build", Figure::Result("partitions_per_second")),
];

#[derive(Clone, Copy)]
enum Figure {
    Field(&'static str),
    Result(&'static str),
    Rss,
}

pub fn run(arguments: &CurveArgs) -> Result<String, PerfError> {
    let mut text = String::new();
    for file in &arguments.files {
        let io = |source| PerfError::Io { what: format!("cannot read {}", file.display()), source };
        text.push_str(&std::fs::read_to_string(file).map_err(io)?);
        text.push('\n');
    }
    draw(&text)
}

fn draw(lines: &str) -> Result<String, PerfError> {
    let results = results(lines)?;
    let points = |measurement: &str, figure: Figure| -> Vec<(f64, f64)> {
        let of_size =
            |(size, lines): (&u64, &BTreeMap<String, Value>)| Some((*size as f64, figure.of(lines.get(measurement)?)?));
        results.iter().filter_map(of_size).collect()
    };
    let panels = PANELS.map(|(title, measurement, figure)| Panel { title, points: points(measurement, figure) });
    if panels.iter().all(|panel| panel.points.is_empty()) {
        return Err(PerfError::cluster("no results follow a line {\"settings\":{\"partitions\":N}}"));
    }
    Ok(svg::draw("Cost over size", "partitions in the cluster", &panels))
}

/// The results by size and measurement.
fn results(lines: &str) -> Result<BTreeMap<u64, BTreeMap<String, Value>>, PerfError> {
    let mut results: BTreeMap<u64, BTreeMap<String, Value>> = BTreeMap::new();
    let mut size = None;
    for (number, line) in (1..).zip(lines.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let value: Value = serde_json::from_str(line)
            .map_err(|error| PerfError::cluster(format!("line {number} is not a result: {error}")))?;
        if let Some(partitions) = value["settings"]["partitions"].as_u64() {
            size = Some(partitions);
        } else if let (Some(size), Some(measurement)) = (size, value["measurement"].as_str()) {
            results.entry(size).or_default().insert(measurement.to_owned(), value.clone());
        }
    }
    Ok(results)
}

impl Figure {
    fn of(self, line: &Value) -> Option<f64> {
        match self {
            Self::Field(name) => line[name].as_f64(),
            Self::Result(name) => line["results"][name].as_f64(),
            Self::Rss => {
                let nodes = line["nodes"].as_array()?.iter();
                nodes.filter_map(|node| node["rss_mb"].as_f64()).max_by(f64::total_cmp)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r#"
{"measurement":"mutate","p99":9.9}
{"settings":{"partitions":1000}}
{"measurement":"create","p50":1.5}
{"measurement":"mutate","p99":2.0,"nodes":[{"node":1,"rss_mb":40.0},{"node":2,"rss_mb":60.0}]}
{"settings":{"partitions":10000}}
{"measurement":"mutate","p99":3.0,"nodes":[]}
"#;

    #[test]
    fn results_belong_to_the_size_before_them() {
        let results = results(LINES).expect("well formed");
        assert_eq!(results.keys().copied().collect::<Vec<_>>(), [1_000, 10_000]);
        assert_eq!(Figure::Rss.of(&results[&1_000]["mutate"]), Some(60.0));
        assert_eq!(Figure::Rss.of(&results[&10_000]["mutate"]), None);
        assert_eq!(Figure::Field("p50").of(&results[&1_000]["create"]), Some(1.5));
    }

    #[test]
    fn what_is_no_result_is_named_by_its_line() {
        let error = results("{\"settings\":{\"partitions\":1}}\nnonsense").expect_err("no JSON");
        assert!(error.to_string().starts_with("line 2 is not a result"), "{error}");
        assert!(draw("{\"measurement\":\"mutate\",\"p99\":1.0}").is_err(), "no size is named");
    }

    #[test]
    fn every_point_is_drawn() {
        let svg = draw(LINES).expect("draws");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<circle").count(), 4, "one create, two mutations, one RSS");
    }
}
