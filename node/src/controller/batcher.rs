//! From operations to batches: plan on the draft, replay there, remember the reply, encode.
//!
//! The same steps run on the event loop, for the many operations that change little, and beside it (`large_plan`), for
//! the few that change much. What a batch may hold is decided here, before the log: nothing that is proposed can be too
//! large for an entry.

use std::collections::VecDeque;
use std::vec;

use bytes::Bytes;
use quorate_metadata::ids::{ControllerEpoch, Offset};
use quorate_metadata::image::{Ledger, RequestOutcome};
use quorate_metadata::plan::checkpoint;
use quorate_metadata::rng::Rng;
use quorate_metadata::{ApiError, Batch, ErrorName, MetadataImage, Plan, Record, limits};
use quorate_proto::batch;

use super::inflight::Parked;
use super::large_plan;
use super::operation::{Operation, Position, RequestId};

/// The claim and the time under which batches are planned: both are part of what is replayed.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    pub epoch: ControllerEpoch,
    pub timestamp_ms: i64,
}

/// What planning an operation came to.
pub enum Planned {
    /// Nothing to write: the reply waits until the leadership is confirmed.
    Answered(Result<Vec<u8>, ApiError>),
    /// Records to write, and the reply for when they are committed.
    Records { batches: Vec<Vec<Record>>, reply: Vec<u8> },
    /// The records of one step; the operation is to be planned again after them.
    Step(Vec<Record>),
}

/// Plans an operation on the draft.
pub fn plan(operation: &mut Operation, draft: &Ledger, epoch: ControllerEpoch, rng: &mut Rng) -> Planned {
    let image = draft.working();
    if let Some(answered) = answered_before(image, operation.request) {
        return Planned::Answered(answered);
    }
    let plan = match operation.mutation.plan(image, rng) {
        Ok(plan) => plan,
        Err(error) => return Planned::Answered(Err(error)),
    };
    if let Some(reason) = plan.waiting_on {
        tracing::debug!(operation = operation.name, reason = reason.as_str(), "nothing to propose");
    }
    if let Err(error) = check_records(operation.name, &plan.records) {
        return Planned::Answered(Err(error));
    }
    if plan.is_partial {
        return Planned::Step(plan.records);
    }
    if operation.plan_only || plan.records.is_empty() {
        let position = Position { controller_epoch: epoch, offset: image.next_offset };
        return Planned::Answered(Ok(operation.mutation.reply(&position, &plan.records)));
    }
    with_reply(operation, plan, image.next_offset, epoch)
}

/// Splits the records into batches and adds the reply to them, if a retry is to find it.
fn with_reply(operation: &mut Operation, plan: Plan<()>, base: Offset, epoch: ControllerEpoch) -> Planned {
    let mut batches = checkpoint::into_batches(plan.records, operation.atomic, operation.name);
    let count = batches.iter().map(Vec::len).sum::<usize>() + usize::from(operation.request.is_some());
    let position = Position { controller_epoch: epoch, offset: base.advance(count) };
    let reply = operation.mutation.reply(&position, &[]);
    if let Some(request) = operation.request {
        if reply.len() > limits::REMEMBERED_REPLY_BYTES_MAX {
            return Planned::Answered(Err(reply_too_large(operation.name, reply.len())));
        }
        remember(&mut batches, request, reply.clone());
    }
    Planned::Records { batches, reply }
}

/// A record that fits into no batch is refused by name, before anything of its operation is written.
fn check_records(operation: &str, records: &[Record]) -> Result<(), ApiError> {
    let max = limits::RECORD_BYTES_MAX;
    let too_large = records.iter().find(|record| record.approximate_bytes() > max);
    too_large.map_or(Ok(()), |record| {
        let (kind, bytes) = (record.kind(), record.approximate_bytes());
        let message = format!("{operation} leads to a {kind} record of {bytes} bytes, expected at most {max}");
        Err(ApiError::new(ErrorName::RecordListTooLarge, message))
    })
}

fn reply_too_large(operation: &str, bytes: usize) -> ApiError {
    let max = limits::REMEMBERED_REPLY_BYTES_MAX;
    let message = format!(
        "the reply to {operation} has {bytes} bytes, expected at most {max} to remember for a retry; request fewer items"
    );
    ApiError::new(ErrorName::RecordListTooLarge, message)
}

/// Adds the reply to the last batch, inside the transaction if there is one.
fn remember(batches: &mut [Vec<Record>], request: RequestId, reply: Vec<u8>) {
    let last = batches.last_mut().expect("a plan with records has a batch");
    let at = last.len() - usize::from(last.last() == Some(&Record::EndTransaction));
    let RequestId { client, request } = request;
    last.insert(at, Record::RequestApplied { client, request, reply, offset: None, forgotten_up_to: None });
}

/// A retry of a request that was applied gets the same reply.
fn answered_before(image: &MetadataImage, request: Option<RequestId>) -> Option<Result<Vec<u8>, ApiError>> {
    let request = request?;
    match image.requests.look_up(request.client, request.request) {
        RequestOutcome::New => None,
        RequestOutcome::Applied { reply, .. } => Some(Ok(reply.to_vec())),
        RequestOutcome::Expired => Some(Err(ApiError::new(
            ErrorName::RequestExpired,
            format!("request {} is older than what is remembered of this client", request.request),
        ))),
    }
}

/// Replays records on the draft; what does not replay, or breaks an invariant, never reaches the log.
pub fn replay(draft: &Ledger, stamp: Stamp, records: Vec<Record>) -> Result<(Ledger, Vec<Record>), String> {
    let mut next = draft.clone();
    let records = replay_in_place(&mut next, stamp, records)?;
    Ok((next, records))
}

/// As `replay`; after an error the draft is of no more use.
fn replay_in_place(draft: &mut Ledger, stamp: Stamp, records: Vec<Record>) -> Result<Vec<Record>, String> {
    let batch = Batch { controller_epoch: stamp.epoch, timestamp_ms: stamp.timestamp_ms, records };
    draft.replay_in_place(&batch).map_err(|error| error.to_string())?;
    match draft.working().verify_changed(&batch).first() {
        Some(violation) => Err(violation.to_string()),
        None => Ok(batch.records),
    }
}

/// A batch as it is proposed.
pub struct PreparedBatch {
    pub payload: Bytes,
    pub next_offset: Offset,
    /// What it leads to. None between the first and the last batch of a transaction, where nothing is planned: so many
    /// drafts, each with its copies of what its batch has changed, would take more memory than the image.
    pub draft: Option<Ledger>,
}

/// Replays and encodes batches that stand one after the other.
pub fn prepare(draft: &Ledger, stamp: Stamp, batches: Vec<Vec<Record>>) -> Result<VecDeque<PreparedBatch>, String> {
    Unprepared::new(draft, stamp, batches).prepare(usize::MAX).map(|(prepared, _)| prepared)
}

/// The first batches of what was to be prepared, and the rest.
pub type Part = (VecDeque<PreparedBatch>, Option<Box<Unprepared>>);

/// Batches that stand one after the other, still to be replayed and encoded.
pub struct Unprepared {
    draft: Ledger,
    stamp: Stamp,
    batches: vec::IntoIter<Vec<Record>>,
}

impl Unprepared {
    pub fn new(draft: &Ledger, stamp: Stamp, batches: Vec<Vec<Record>>) -> Box<Self> {
        Box::new(Self { draft: draft.clone(), stamp, batches: batches.into_iter() })
    }

    pub fn epoch(&self) -> ControllerEpoch {
        self.stamp.epoch
    }

    /// Prepares the next batches, at most so many, and returns what is left then.
    pub fn prepare(mut self: Box<Self>, count: usize) -> Result<Part, String> {
        let mut prepared = VecDeque::new();
        while prepared.len() < count
            && let Some(records) = self.batches.next()
        {
            prepared.push_back(self.prepare_one(records)?);
        }
        let has_more = self.batches.len() > 0;
        Ok((prepared, has_more.then_some(self)))
    }

    fn prepare_one(&mut self, records: Vec<Record>) -> Result<PreparedBatch, String> {
        let Self { draft, stamp, .. } = self;
        let (base, was_open) = (draft.working().next_offset, draft.has_open_transaction());
        let records = replay_in_place(draft, *stamp, records)?;
        let is_inside = was_open && draft.has_open_transaction();
        Ok(PreparedBatch {
            payload: encode(base, *stamp, records)?,
            next_offset: draft.working().next_offset,
            draft: (!is_inside).then(|| draft.clone()),
        })
    }
}

/// All entries of an operation, one after the other, as the event loop proposes them: for those who check what an accepted
/// operation becomes. Err: it is refused, or a record of it does not replay.
pub fn entries_of(
    mut operation: Operation,
    draft: &Ledger,
    stamp: Stamp,
    rng: &mut Rng,
) -> Result<Vec<PreparedBatch>, ApiError> {
    let mut entries: Vec<PreparedBatch> = Vec::new();
    loop {
        let reached = entries.last().map(|entry| entry.draft.as_ref().expect("the last batch ends the transaction"));
        let before = reached.unwrap_or(draft).clone();
        let (batches, is_last) = match plan(&mut operation, &before, stamp.epoch, rng) {
            Planned::Answered(answer) => return answer.map(|_| entries),
            Planned::Step(records) => (vec![records], false),
            Planned::Records { batches, .. } => (batches, true),
        };
        let prepared = prepare(&before, stamp, batches);
        entries.extend(prepared.map_err(|broken| large_plan::does_not_replay(operation.name, &broken))?);
        if is_last {
            return Ok(entries);
        }
    }
}

/// Encodes a batch, which must fit into an entry of the log.
pub fn encode(base: Offset, stamp: Stamp, records: Vec<Record>) -> Result<Bytes, String> {
    let batch = Batch { controller_epoch: stamp.epoch, timestamp_ms: stamp.timestamp_ms, records };
    let payload = batch::encode(base, &batch);
    if payload.len() > limits::ENTRY_BYTES_MAX {
        return Err(format!("a batch of {} bytes, expected at most {}", payload.len(), limits::ENTRY_BYTES_MAX));
    }
    Ok(payload)
}

/// Operations planned so far, to be proposed as one batch.
pub struct Group {
    pub stamp: Stamp,
    pub records: Vec<Record>,
    pub parked: Vec<Parked>,
    /// A step of what changes much is among them.
    pub has_step: bool,
    /// The draft before the first of its records, once there is one.
    before: Option<Ledger>,
    bytes: usize,
}

impl Group {
    pub fn new(stamp: Stamp) -> Self {
        Self { stamp, records: Vec::new(), parked: Vec::new(), has_step: false, before: None, bytes: 0 }
    }

    pub fn take_before(&mut self) -> Option<Ledger> {
        self.before.take()
    }

    pub fn has_room_for(&self, records: &[Record]) -> bool {
        self.records.is_empty() || self.bytes + size(records) <= limits::BATCH_BYTES_MAX
    }

    /// Adds records that were replayed on the draft `before`.
    pub fn add(&mut self, before: Ledger, records: Vec<Record>, parked: Option<Parked>) {
        self.before.get_or_insert(before);
        self.bytes += size(&records);
        self.records.extend(records);
        self.parked.extend(parked);
    }
}

fn size(records: &[Record]) -> usize {
    records.iter().map(Record::approximate_bytes).sum()
}

#[cfg(test)]
mod tests {
    use quorate_metadata::ids::ClientId;
    use quorate_metadata::record::ConfigResource;

    use super::super::operation::Mutation;
    use super::*;

    fn config(bytes: usize) -> Record {
        let value = Some("x".repeat(bytes));
        Record::Config { resource: ConfigResource::BrokerDefault, key: "key".to_owned(), value }
    }

    fn planned(records: Vec<Record>) -> Planned {
        let mut operation = Operation::internal("test", move |_, _| Ok(Plan::new(records.clone(), ())));
        plan(&mut operation, &Ledger::default(), ControllerEpoch::new(1), &mut Rng::new(1))
    }

    #[test]
    fn a_record_that_fits_no_batch_is_refused_by_name() {
        let Planned::Answered(Err(refused)) = planned(vec![config(limits::RECORD_BYTES_MAX)]) else {
            panic!("it must not reach the log")
        };
        assert_eq!(refused.name, ErrorName::RecordListTooLarge);
        assert!(matches!(planned(vec![config(limits::RECORD_BYTES_MAX / 2)]), Planned::Records { .. }));
    }

    #[test]
    fn a_step_with_a_record_that_fits_no_batch_is_refused_by_name() {
        let step = |_: &MetadataImage, _: &mut Rng| Ok(Plan::partial(vec![config(limits::RECORD_BYTES_MAX)], ()));
        let mut operation = Operation::internal("test", step);
        let planned = plan(&mut operation, &Ledger::default(), ControllerEpoch::new(1), &mut Rng::new(1));
        let Planned::Answered(Err(refused)) = planned else { panic!("it must not reach the log") };
        assert_eq!(refused.name, ErrorName::RecordListTooLarge);
    }

    #[test]
    fn a_group_begins_where_its_first_records_were_replayed() {
        let stamp = Stamp { epoch: ControllerEpoch::new(1), timestamp_ms: 7 };
        let mut group = Group::new(stamp);
        assert!(group.take_before().is_none());
        let first = Ledger::default();
        let (second, records) = replay(&first, stamp, vec![config(1)]).expect("configs replay");
        group.add(first.clone(), records, None);
        group.add(second, vec![config(2)], None);
        assert_eq!(group.take_before(), Some(first));
    }

    #[test]
    fn a_reply_to_remember_is_inside_the_transaction_and_has_a_size() {
        let plan_of = |reply_bytes: usize| {
            let records: Vec<Record> = (0..40).map(|_| config(100_000)).collect();
            let mut operation = Operation {
                atomic: true,
                request: Some(RequestId { client: ClientId::default(), request: 1 }),
                mutation: Box::new(Replying { records, reply_bytes }),
                ..Operation::internal("test", |_, _| Ok(Plan::new(Vec::new(), ())))
            };
            plan(&mut operation, &Ledger::default(), ControllerEpoch::new(1), &mut Rng::new(1))
        };
        let Planned::Records { batches, reply } = plan_of(10) else { panic!("there are records") };
        let records = batches.concat();
        let [.., Record::RequestApplied { reply: remembered, .. }, Record::EndTransaction] = &records[..] else {
            panic!("it ends otherwise")
        };
        // Of 40 configs, the reply, and the two ends of the transaction.
        assert_eq!((remembered, reply.as_slice(), records.len()), (&reply, &b"43xxxxxxxx"[..], 43));
        assert!(matches!(plan_of(limits::REMEMBERED_REPLY_BYTES_MAX), Planned::Records { .. }));
        let Planned::Answered(Err(refused)) = plan_of(limits::REMEMBERED_REPLY_BYTES_MAX + 1) else {
            panic!("it must not reach the log")
        };
        assert_eq!(refused.name, ErrorName::RecordListTooLarge);
    }

    /// Its reply begins with its offset.
    struct Replying {
        records: Vec<Record>,
        reply_bytes: usize,
    }

    impl Mutation for Replying {
        fn plan(&mut self, _: &MetadataImage, _: &mut Rng) -> Result<Plan<()>, ApiError> {
            Ok(Plan::new(self.records.clone(), ()))
        }

        fn reply(&mut self, position: &Position, _: &[Record]) -> Vec<u8> {
            let mut reply = position.offset.get().to_string().into_bytes();
            reply.resize(self.reply_bytes, b'x');
            reply
        }
    }

    #[test]
    fn every_prepared_batch_fits_an_entry_and_leads_to_the_draft() {
        let stamp = Stamp { epoch: ControllerEpoch::new(1), timestamp_ms: 7 };
        let Planned::Records { batches, .. } = planned((0..40).map(|_| config(100_000)).collect()) else {
            panic!("there are records")
        };
        assert!(batches.len() > 1);
        let prepared = prepare(&Ledger::default(), stamp, batches).expect("configs replay");
        assert!(prepared.iter().all(|batch| batch.payload.len() <= limits::ENTRY_BYTES_MAX));
        let last = prepared.back().expect("there are several");
        assert_eq!(last.next_offset, Offset::new(40));
        assert!(encode(Offset::default(), stamp, vec![config(limits::ENTRY_BYTES_MAX)]).is_err());
    }

    #[test]
    fn the_first_step_of_a_plan_in_steps_is_no_answer() {
        for plan_only in [false, true] {
            let mut operation =
                Operation { plan_only, ..Operation::internal("test", |_, _| Ok(Plan::partial(vec![config(1)], ()))) };
            let planned = plan(&mut operation, &Ledger::default(), ControllerEpoch::new(1), &mut Rng::new(1));
            assert!(matches!(planned, Planned::Step(records) if records.len() == 1));
        }
    }
}
