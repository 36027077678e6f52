//! A frame of a partition's log is a batch or is refused, whatever its bytes; what is a batch is written again with the
//! same bytes. So are the rows beside it: leader epochs, and what producers did.

use bytes::Bytes;
use quorate_log::{Epochs, HEADER_BYTES, LogOffset, NewBatch, Producer, Producers, StoredBatch};
use quorate_metadata::ids::LeaderEpoch;

const CRC: usize = 4;

/// `bytes`: a frame as it is or, since no fuzzer guesses a checksum, what comes after one.
pub fn check(bytes: &[u8]) {
    let _ = StoredBatch::decode(Bytes::copy_from_slice(bytes));
    if let Ok(batch) = StoredBatch::decode(sealed(bytes)) {
        check_batch(&batch);
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
    let parts = NewBatch { record_count: 1, max_timestamp_ms: 0, producer, records: Bytes::new() };
    if let Ok(next) = StoredBatch::new(LogOffset(0), LeaderEpoch::new(0), &parts) {
        let _ = producers.check(next.producer().expect("it was given one"), next.record_count());
        producers.record(&next);
        let _ = producers.check(next.producer().expect("it was given one"), next.record_count());
    }
}

fn sealed(rest: &[u8]) -> Bytes {
    let checksum: [u8; CRC] = crc32fast::hash(rest).to_be_bytes();
    [&checksum, rest].concat().into()
}

fn check_batch(batch: &StoredBatch) {
    assert_eq!(batch.size_bytes(), (HEADER_BYTES + batch.records().len()) as u64);
    assert!(batch.base_offset() < batch.next_offset());
    let parts = NewBatch {
        record_count: batch.record_count(),
        max_timestamp_ms: batch.max_timestamp_ms(),
        producer: batch.producer(),
        records: batch.records(),
    };
    assert_eq!(StoredBatch::new(batch.base_offset(), batch.leader_epoch(), &parts).as_ref(), Ok(batch));
}
