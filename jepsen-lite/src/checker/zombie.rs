//! An incarnation that was replaced is refused everywhere.

use std::collections::BTreeMap;

use super::{Placed, Report};
use crate::op::Op;

/// A controller that was replaced knows it after that long: the longest election timeout, and some time to be scheduled.
const OFFICE_US: u64 = 1_000_000;

/// When it had registered, under which epoch, and where that is said.
type Registered = (u64, i64, usize);

pub fn check(history: &[Placed<'_>]) -> Report {
    let mut report = Report::new("zombie-fence");
    let mut registered: BTreeMap<i32, Vec<Registered>> = BTreeMap::new();
    for (place, operation) in history {
        let Op::Register { broker, live, epoch: Some(epoch) } = operation.op else { continue };
        report.count("registrations", 1);
        if live {
            report.object("live-broker-stays", format!("broker {broker} lives, and was replaced"), &[*place]);
        }
        let known = registered.entry(broker).or_default();
        for (ended_us, earlier, by) in known.iter() {
            if operation.invoked_us > *ended_us && epoch <= *earlier {
                let message = format!("broker {broker} registers with epoch {epoch} after {earlier}");
                report.object("epochs-grow", message, &[*by, *place]);
            }
        }
        known.push((operation.ended_us, epoch, *place));
    }
    for (place, operation) in history {
        let Op::Beat { broker, epoch, fenced: Some(_) } = operation.op else { continue };
        report.count("heartbeats", 1);
        let newer =
            registered.get(&broker).into_iter().flatten().find(|(ended_us, newer, _)| {
                *newer > epoch && operation.invoked_us > ended_us.saturating_add(OFFICE_US)
            });
        if let Some((_, newer, by)) = newer {
            let message = format!("broker {broker} is heard with epoch {epoch}, and had registered with {newer}");
            report.object("old-epoch-refused", message, &[*by, *place]);
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Told, assert_breaks, assert_valid};
    use super::*;

    fn register(epoch: i64, live: bool) -> Told {
        Told::ok(Op::Register { broker: 101, live, epoch: Some(epoch) })
    }

    fn beat(epoch: i64) -> Told {
        Told::ok(Op::Beat { broker: 101, epoch, fenced: Some(true) })
    }

    #[test]
    fn the_newest_incarnation_is_heard() {
        let told = [register(5, false).at(0), beat(5).at(1), register(9, false).at(2), beat(9).at(3), beat(5).at(3)];
        assert_valid(check, &told);
        assert_valid(check, &[register(9, false).at(u64::MAX), beat(5).at(u64::MAX)]);
    }

    #[test]
    fn an_old_one_is_not() {
        assert_breaks(
            "old-epoch-refused",
            check,
            &[register(5, false).at(0), register(9, false).at(2), beat(5).at(2 + OFFICE_US * 2)],
        );
    }

    #[test]
    fn epochs_grow() {
        assert_breaks("epochs-grow", check, &[register(5, false).at(0), register(5, false).at(9)]);
    }

    #[test]
    fn a_broker_that_lives_is_not_replaced() {
        assert_breaks("live-broker-stays", check, &[register(5, true)]);
    }
}
