//! Histories of a register that never existed: linearizable by construction, to test and to time the checkers with.

use std::collections::BTreeMap;

use crate::history::{Operation, Outcome};
use crate::op::Op;
use crate::random::Random;
use crate::workload::WorkloadName;

#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub operations: usize,
    pub processes: u32,
    /// Operations on a key before the next one is begun.
    pub operations_per_key: usize,
    /// How many of a hundred operations nobody hears of again.
    pub lost_percent: u64,
}

/// An operation that has been invoked.
struct Pending {
    invoked_us: u64,
    op: Op,
    /// It has taken effect, or was refused.
    done: Option<Outcome>,
    is_lost: bool,
}

/// A history with the given shape: at each step some process begins, takes effect, or hears the answer.
pub fn register(shape: Shape, seed: u64) -> Vec<Operation> {
    let mut random = Random::new(seed);
    let mut pending: BTreeMap<u32, Pending> = BTreeMap::new();
    let mut registers: BTreeMap<u32, i64> = BTreeMap::new();
    let mut names: Vec<u32> = (0..shape.processes).collect();
    let (mut offset, mut fresh, mut begun, mut now_us) = (0, 0, 0, 0);
    let mut history = Vec::with_capacity(shape.operations);
    while begun < shape.operations || !pending.is_empty() {
        now_us += 1 + random.below(3);
        let slot = usize::try_from(random.below(u64::from(shape.processes))).expect("processes are few");
        let process = names[slot];
        match pending.get_mut(&process) {
            None if begun < shape.operations => {
                let key = u32::try_from(begun / shape.operations_per_key).expect("keys are few");
                let guess = registers.get(&key).copied().unwrap_or(0);
                fresh += 1;
                let op = some_op(&mut random, key, guess, fresh);
                let is_lost = random.percent(shape.lost_percent);
                pending.insert(process, Pending { invoked_us: now_us, op, done: None, is_lost });
                begun += 1;
            }
            None => {}
            Some(waiting) if waiting.is_lost && (waiting.done.is_some() || random.percent(50)) => {
                let lost = pending.remove(&process).expect("just seen");
                history.push(lost.end(process, now_us, Outcome::Info));
                // Whoever does not know what became of an operation may not begin another one.
                names[slot] += shape.processes;
            }
            Some(waiting) if waiting.done.is_none() => waiting.take_effect(&mut registers, &mut offset),
            Some(_) => {
                let answered = pending.remove(&process).expect("just seen");
                let outcome = answered.done.unwrap_or(Outcome::Info);
                history.push(answered.end(process, now_us, outcome));
            }
        }
    }
    history
}

fn some_op(random: &mut Random, key: u32, guess: i64, fresh: i64) -> Op {
    match random.below(4) {
        0 | 1 => Op::Read { key, value: None, offset: None },
        2 => Op::Write { key, value: fresh, offset: None },
        _ => Op::Cas { key, expected: guess, value: fresh, offset: None },
    }
}

impl Pending {
    fn take_effect(&mut self, registers: &mut BTreeMap<u32, i64>, end: &mut i64) {
        let mut outcome = Outcome::Ok;
        match &mut self.op {
            Op::Read { key, value, offset } => {
                *value = Some(registers.get(key).copied().unwrap_or(0));
                *offset = Some(*end);
            }
            Op::Write { key, value, offset } => {
                registers.insert(*key, *value);
                *end += 1;
                *offset = Some(*end);
            }
            Op::Cas { key, expected, value, offset } if registers.get(key).copied().unwrap_or(0) == *expected => {
                registers.insert(*key, *value);
                *end += 1;
                *offset = Some(*end);
            }
            _ => outcome = Outcome::Fail,
        }
        self.done = Some(outcome);
    }

    fn end(mut self, process: u32, ended_us: u64, outcome: Outcome) -> Operation {
        if outcome == Outcome::Info {
            match &mut self.op {
                Op::Read { value, offset, .. } => (*value, *offset) = (None, None),
                Op::Write { offset, .. } | Op::Cas { offset, .. } => *offset = None,
                _ => {}
            }
        }
        let error = match outcome {
            Outcome::Ok => None,
            Outcome::Fail => Some("INVALID_UPDATE_VERSION".to_owned()),
            Outcome::Info => Some("REQUEST_TIMED_OUT".to_owned()),
        };
        let workload = WorkloadName::MetaRegister;
        Operation { workload, process, invoked_us: self.invoked_us, ended_us, outcome, error, op: self.op }
    }
}
