//! What goes where, in the form of Kafka's tool.

use quorate_proto::admin::{PartitionTarget, TopicPartition};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Moves {
    version: u32,
    partitions: Vec<Move>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Move {
    topic: String,
    partition: i32,
    replicas: Vec<i32>,
    /// The brokers choose: each must be "any".
    #[serde(default)]
    log_dirs: Vec<String>,
}

/// `{"version":1,"partitions":[{"topic":"orders","partition":0,"replicas":[1,2,3]}]}`
pub fn moves(text: &str) -> Result<Vec<PartitionTarget>, String> {
    let moves: Moves = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if moves.version != 1 {
        return Err(format!("version {} is not known; expected 1", moves.version));
    }
    if moves.partitions.is_empty() {
        return Err("it names no partition".to_owned());
    }
    moves.partitions.into_iter().map(target).collect()
}

fn target(asked: Move) -> Result<PartitionTarget, String> {
    let Move { topic, partition, replicas, log_dirs } = asked;
    if let Some(directory) = log_dirs.iter().find(|directory| *directory != "any") {
        return Err(format!("{topic}-{partition} asks for log directory {directory:?}; expected \"any\""));
    }
    Ok(PartitionTarget { partition: Some(TopicPartition { topic, partition }), replicas })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kafkas_form_is_understood() {
        let text = r#"{"version":1,"partitions":[
            {"topic":"orders","partition":0,"replicas":[1,2,3],"log_dirs":["any","any","any"]},
            {"topic":"orders","partition":1,"replicas":[2]}]}"#;
        let target = |partition, replicas: &[i32]| PartitionTarget {
            partition: Some(TopicPartition { topic: "orders".to_owned(), partition }),
            replicas: replicas.to_vec(),
        };
        assert_eq!(moves(text), Ok(vec![target(0, &[1, 2, 3]), target(1, &[2])]));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let with = |fields: &str| format!(r#"{{"version":1,"partitions":[{{"topic":"t","partition":0,{fields}}}]}}"#);
        assert!(moves(&with(r#""replicas":[1]"#)).is_ok());
        for wrong in [
            with(r#""replicas":[1],"log_dirs":["/data"]"#),
            with(r#""replicas":[1],"leader":1"#),
            with(r#""replica":[1]"#),
            r#"{"version":2,"partitions":[]}"#.to_owned(),
            r#"{"version":1,"partitions":[]}"#.to_owned(),
            "orders-0 1,2,3".to_owned(),
        ] {
            assert!(moves(&wrong).is_err(), "{wrong}");
        }
    }
}
