use std::time::Duration;

use porcupine_rs::{CheckResult, Model, Operation as Judged, check_operations_timeout};
use proptest::prelude::*;

use super::*;

fn at(from_us: u64, until_us: u64, effect: Effect) -> Interval {
    Interval { from_us, until_us, effect }
}

fn answer(operations: &[Interval]) -> Answer {
    search(operations, CONFIGURATIONS_MAX)
}

#[test]
fn a_read_after_a_write_sees_it() {
    let (first, later) = (at(0, 1, Effect::Write(1)), at(2, 3, Effect::Write(2)));
    assert_eq!(answer(&[first, later, at(4, 5, Effect::Read(2))]), Answer::Linearizable);
    assert_eq!(answer(&[first, later, at(4, 5, Effect::Read(1))]), Answer::Not);
}

#[test]
fn a_read_beside_a_write_sees_it_or_not_and_does_not_forget_it() {
    let (first, beside) = (at(0, 1, Effect::Write(1)), at(2, 9, Effect::Write(2)));
    for value in [1, 2] {
        assert_eq!(answer(&[first, beside, at(3, 4, Effect::Read(value))]), Answer::Linearizable);
    }
    let forgets = [first, beside, at(3, 4, Effect::Read(2)), at(5, 6, Effect::Read(1))];
    assert_eq!(answer(&forgets), Answer::Not);
}

#[test]
fn an_open_write_takes_effect_late_or_never_but_once() {
    let (open, closed) = (at(0, u64::MAX, Effect::Write(1)), at(1, 2, Effect::Write(2)));
    assert_eq!(answer(&[open, closed, at(3, 4, Effect::Read(2)), at(5, 6, Effect::Read(1))]), Answer::Linearizable);
    let twice = [open, closed, at(3, 4, Effect::Read(1)), at(5, 6, Effect::Read(2))];
    assert_eq!(answer(&twice), Answer::Not, "it would have to be overwritten by what had ended before");
}

#[test]
fn two_swaps_of_one_value_cannot_both_succeed() {
    let start = at(0, 1, Effect::Write(1));
    assert_eq!(answer(&[start, at(2, 5, Effect::Swap(1, 2)), at(3, 6, Effect::Swap(1, 3))]), Answer::Not);
    assert_eq!(answer(&[start, at(2, 5, Effect::Swap(1, 2)), at(3, 6, Effect::Swap(2, 3))]), Answer::Linearizable);
    assert_eq!(answer(&[start, at(2, 5, Effect::Differs(1))]), Answer::Not);
}

#[test]
fn a_search_that_grows_too_large_says_so() {
    let writes = (0..12).map(|value| at(0, 100, Effect::Write(value)));
    let operations: Vec<Interval> = writes.chain([at(200, 201, Effect::Read(99))]).collect();
    assert_eq!(search(&operations, 1_000), Answer::Unknown);
    assert_eq!(answer(&operations), Answer::Not);
}

#[test]
fn a_mistake_at_the_end_of_many_operations_is_found() {
    let mut operations = Vec::new();
    for value in 0..100 {
        let from_us = 4 * value;
        operations.push(at(from_us, from_us + 1, Effect::Write(value as i64)));
        operations.push(at(from_us + 2, from_us + 3, Effect::Read(value as i64)));
    }
    assert_eq!(answer(&operations), Answer::Linearizable);
    operations.push(at(400, 401, Effect::Read(98)));
    assert_eq!(answer(&operations), Answer::Not);
}

/// The same register for the other engine.
#[derive(Clone)]
struct Register;

impl Model for Register {
    type State = Option<i64>;
    type Op = Effect;
    type Metadata = ();

    fn init() -> Self::State {
        None
    }

    fn step(state: &Self::State, op: &Self::Op) -> (bool, Self::State) {
        // Written out once more, so that one mistake is not made twice.
        match *op {
            Effect::Write(value) => (true, Some(value)),
            Effect::Read(value) => (state.unwrap_or(value) == value, Some(value)),
            Effect::Swap(old, new) => (state.unwrap_or(old) == old, Some(new)),
            Effect::Differs(value) => (*state != Some(value), *state),
            Effect::MaybeSwap(old, new) if *state == Some(old) => (true, Some(new)),
            Effect::MaybeSwap(..) => (true, *state),
        }
    }
}

fn other_engine(operations: &[Interval]) -> CheckResult {
    let judged: Vec<Judged<Register>> = operations
        .iter()
        .map(|operation| Judged {
            client_id: None,
            call_time: i64::try_from(operation.from_us).unwrap(),
            return_time: i64::try_from(operation.until_us).unwrap_or(i64::MAX),
            op: operation.effect,
            metadata: None,
        })
        .collect();
    check_operations_timeout(&judged, Duration::from_secs(20))
}

fn effect() -> impl Strategy<Value = Effect> {
    let value = 0..4i64;
    prop_oneof![
        3 => value.clone().prop_map(Effect::Write),
        4 => value.clone().prop_map(Effect::Read),
        1 => (value.clone(), value.clone()).prop_map(|(old, new)| Effect::Swap(old, new)),
        1 => (value.clone(), value.clone()).prop_map(|(old, new)| Effect::MaybeSwap(old, new)),
        1 => value.prop_map(Effect::Differs),
    ]
}

/// Distinct times, so that both engines agree about what is at the same time.
fn operations() -> impl Strategy<Value = Vec<Interval>> {
    let interval = (0..400u64, 1..60u64, effect(), 0..12u8);
    proptest::collection::vec(interval, 1..14).prop_map(|drawn| {
        let distinct = |(number, (from, takes, effect, luck)): (u64, (u64, u64, Effect, u8))| {
            let is_open = luck == 0 && matches!(effect, Effect::Write(_) | Effect::MaybeSwap(..));
            let until_us = if is_open { u64::MAX } else { (from + takes) * 100 + 2 * number + 1 };
            Interval { from_us: from * 100 + 2 * number, until_us, effect }
        };
        (0..).zip(drawn).map(distinct).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn both_engines_agree(operations in operations()) {
        let expected = match other_engine(&operations) {
            CheckResult::Ok => Answer::Linearizable,
            CheckResult::Illegal => Answer::Not,
            CheckResult::Unknown => return Ok(()),
        };
        prop_assert_eq!(answer(&operations), expected);
    }
}
