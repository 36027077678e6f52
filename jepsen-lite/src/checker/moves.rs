//! What was moved is at the end where it should be, and nothing is on its way any more.

use std::collections::BTreeMap;

use super::{Placed, Report};
use crate::history::Outcome;
use crate::op::Op;

/// The last thing that was asked of a partition: where to, if that is known, and where it is said.
type Last<'a> = (Option<&'a [i32]>, usize);

pub fn check(history: &[Placed<'_>]) -> Report {
    let mut report = Report::new("reassign");
    // One client asks, one thing after the other.
    let mut last: BTreeMap<i32, Last<'_>> = BTreeMap::new();
    for (place, operation) in history {
        match (&operation.op, operation.outcome) {
            (Op::Move { partition, replicas, .. }, Outcome::Ok) => {
                report.count("moves", 1);
                last.insert(*partition, (Some(replicas), *place));
            }
            // Back to where it came from, which may be on the way of an earlier move.
            (Op::CancelMove { partition, .. }, Outcome::Ok | Outcome::Info)
            | (Op::Move { partition, .. }, Outcome::Info) => {
                report.count("cancelled or open", 1);
                last.insert(*partition, (None, *place));
            }
            (Op::Replicas { partitions: Some(partitions) }, _) => {
                at_the_end(partitions, &last, *place, &mut report);
            }
            _ => {}
        }
    }
    report
}

fn at_the_end(partitions: &[(i32, Vec<i32>, bool)], last: &BTreeMap<i32, Last<'_>>, place: usize, report: &mut Report) {
    for (partition, replicas, moves) in partitions {
        if *moves {
            report.object("moves-end", format!("partition {partition} still moves: {replicas:?}"), &[place]);
        }
        if let Some((Some(target), by)) = last.get(partition)
            && *target != replicas.as_slice()
        {
            let message = format!("partition {partition} should be on {target:?}, and is on {replicas:?}");
            report.object("moves-arrive", message, &[*by, place]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Told, assert_breaks, assert_valid};
    use super::*;

    fn moved(replicas: &[i32]) -> Told {
        Told::ok(Op::Move { partition: 0, replicas: replicas.to_vec(), offset: Some(1) })
    }

    fn end(replicas: &[i32], moves: bool) -> Told {
        Told::ok(Op::Replicas { partitions: Some(vec![(0, replicas.to_vec(), moves)]) })
    }

    #[test]
    fn what_is_moved_arrives() {
        assert_valid(check, &[moved(&[1, 2]), moved(&[3, 4]), end(&[3, 4], false)]);
        assert_breaks("moves-arrive", check, &[moved(&[1, 2]), moved(&[3, 4]), end(&[1, 2], false)]);
        assert_breaks("moves-end", check, &[moved(&[3, 4]), end(&[3, 4], true)]);
    }

    #[test]
    fn what_was_cancelled_may_be_anywhere() {
        let cancelled = Told::ok(Op::CancelMove { partition: 0, offset: Some(2) });
        assert_valid(check, &[moved(&[3, 4]), cancelled, end(&[1, 2], false)]);
    }
}
