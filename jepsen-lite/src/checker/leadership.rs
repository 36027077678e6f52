//! Who takes records, and who says who is in sync: one leader in an epoch, who knows the present.

use std::collections::BTreeMap;

use super::{Placed, Report};
use crate::op::Op;

/// In one epoch of a partition all records are taken by one broker.
pub fn one_leader(history: &[Placed<'_>]) -> Report {
    let mut report = Report::new("one-leader");
    let mut leaders: BTreeMap<(i32, i32), (i32, usize)> = BTreeMap::new();
    for (place, operation) in history {
        let Op::Append { partition, broker, epoch: Some(epoch) } = operation.op else { continue };
        report.count("taken", 1);
        let (known, by) = *leaders.entry((partition, epoch)).or_insert((broker, *place));
        if known != broker {
            let message = format!("partition {partition}: {known} and {broker} take records in epoch {epoch}");
            report.object("one-leader-per-epoch", message, &[by, *place]);
        }
    }
    report.count("epochs", leaders.len());
    report
}

/// Whatever is asked with a stale epoch is refused, and so is a record that too few can have.
pub fn isr_safety(history: &[Placed<'_>]) -> Report {
    let mut report = Report::new("isr-safety");
    for (place, operation) in history {
        match &operation.op {
            Op::StaleIsr { partition, stale, isr: Some(isr) } => {
                let message = format!("partition {partition}: the ISR became {isr:?}, asked with a stale {stale:?}");
                report.object("stale-refused", message, &[*place]);
            }
            Op::Squeezed { partition, position: Some(position) } => {
                let message = format!("partition {partition}: {position} is acknowledged below min.insync.replicas");
                report.object("min-isr-kept", message, &[*place]);
            }
            Op::StaleIsr { .. } => report.count("stale requests refused", 1),
            Op::Squeezed { .. } => report.count("records refused", 1),
            _ => {}
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Told, assert_breaks, assert_valid};
    use super::*;
    use crate::op::Stale;

    fn taken(broker: i32, epoch: i32) -> Told {
        Told::ok(Op::Append { partition: 0, broker, epoch: Some(epoch) })
    }

    #[test]
    fn leaders_follow_each_other() {
        assert_valid(one_leader, &[taken(1, 0), taken(2, 1), taken(1, 2), taken(1, 0)]);
        assert_breaks("one-leader-per-epoch", one_leader, &[taken(1, 1), taken(2, 1)]);
    }

    #[test]
    fn the_past_has_no_say() {
        let (partition, stale) = (0, Stale::PartitionEpoch);
        let refused = Told::fail(Op::StaleIsr { partition, stale, isr: None }, "INVALID_UPDATE_VERSION");
        assert_valid(isr_safety, &[refused]);
        let accepted = Told::ok(Op::StaleIsr { partition, stale, isr: Some(vec![1]) });
        assert_breaks("stale-refused", isr_safety, &[accepted]);
        let squeezed = Told::ok(Op::Squeezed { partition, position: Some(7) });
        assert_breaks("min-isr-kept", isr_safety, &[squeezed]);
    }
}
