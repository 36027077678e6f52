//! A frame of a partition's log is a batch or is refused, whatever its bytes; the records of a batch are written again with
//! the same bytes. So are the rows beside it: leader epochs, and what producers did.

use bytes::Bytes;
use quorate_log::{Epochs, HEADER_BYTES, LogOffset, NewBatch, Producer, Producers, StoredBatch, frame_v1};
use quorate_metadata::ids::LeaderEpoch;

/// Where a frame has the count of the bytes that follow, its magic, and its checksum.
const LENGTH: usize = 8;
const MAGIC: usize = 16;
const CRC: usize = 17;
const CHECKED: usize = 21;

/// `bytes`: a frame as it is or, since no fuzzer guesses a checksum, one without its checksum.
pub fn check(bytes: &[u8]) {
    let _ = StoredBatch::decode(Bytes::copy_from_slice(bytes));
    if let Some(Ok(batch)) = sealed(bytes).map(StoredBatch::decode) {
        check_batch(&batch);
    }
    if let Ok(batch) = StoredBatch::decode(sealed_v1(bytes)) {
        check_old_batch(&batch);
    }
    if let Ok(epochs) = Epochs::decode(bytes) {
        assert_eq!(Epochs::decode(&epochs.encode()), Ok(epochs));
    }
    if let Ok(producers) = Producers::decode(bytes) {
        check_producers(producers, bytes);
    }
}

fn check_producers(mut producers: Producers, bytes: &[u8]) {
    assert_eq!(Producers::decode(&producers.encode()).as_ref(), Ok(&producers));
    let Some((id, _)) = bytes.split_first_chunk() else { return };
    let producer = Some(Producer { id: i64::from_be_bytes(*id), epoch: 0, base_sequence: 0 });
    let parts =
        NewBatch { record_count: 1, base_timestamp_ms: 0, max_timestamp_ms: 0, producer, records: Bytes::new() };
    if let Ok(next) = StoredBatch::new(LogOffset(0), LeaderEpoch::new(0), &parts) {
        let _ = producers.check(next.producer().expect("it was given one"), next.record_count());
        producers.record(&next);
        let _ = producers.check(next.producer().expect("it was given one"), next.record_count());
    }
}

fn sealed(bytes: &[u8]) -> Option<Bytes> {
    let mut frame = bytes.to_vec();
    let length = i32::try_from(frame.len().checked_sub(LENGTH + 4)?).ok()?;
    frame.get_mut(LENGTH..LENGTH + 4)?.copy_from_slice(&length.to_be_bytes());
    *frame.get_mut(MAGIC)? = 2;
    let checksum = crc32c::crc32c(frame.get(CHECKED..)?);
    frame[CRC..CHECKED].copy_from_slice(&checksum.to_be_bytes());
    Some(frame.into())
}

fn sealed_v1(rest: &[u8]) -> Bytes {
    [&crc32fast::hash(rest).to_be_bytes(), rest].concat().into()
}

fn check_batch(batch: &StoredBatch) {
    assert_eq!(batch.size_bytes(), (HEADER_BYTES + batch.records().len()) as u64);
    assert!(batch.base_offset() < batch.next_offset());
    let Ok(records) = batch.decode_records() else { return };
    assert_eq!(records.len(), batch.record_count() as usize);
    let kept = batch.keep(&records, batch.delete_horizon_ms()).expect("it was a batch before");
    assert_eq!((kept.base_offset(), kept.next_offset()), (batch.base_offset(), batch.next_offset()));
    assert_eq!((kept.records(), kept.producer()), (batch.records(), batch.producer()));
    assert_eq!(kept.decode_records(), Ok(records));
}

/// It was upgraded, and is read by its own release as well.
fn check_old_batch(batch: &StoredBatch) {
    check_batch(batch);
    assert!(batch.decode_records().is_ok());
    let frame = frame_v1::encode(batch).expect("it has no gaps");
    assert_eq!(StoredBatch::decode(frame).as_ref(), Ok(batch));
}
