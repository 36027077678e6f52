//! Between the records of the API, in messages, and those of the log.

use bytes::Bytes;
use prost::Message;
use quorate_log::{CorruptBatch, Header, LogOffset, NewBatch, Producer, Record as Stored, StoredBatch};
use quorate_proto::log::{ProducerStamp, Record, RecordBatch, RecordHeader, Records};

/// Sequences are 0 to i32::MAX, and then 0 again.
const SEQUENCES: i64 = 1 << 31;

/// What a leader is asked to append. Each record has its time.
pub fn to_batch(records: Vec<Record>, producer: Option<Producer>) -> Result<NewBatch, CorruptBatch> {
    NewBatch::of(records.into_iter().map(to_stored).collect(), producer)
}

fn to_stored(record: Record) -> Stored {
    let timestamp_ms = record.timestamp_ms();
    let header = |header: RecordHeader| Header { key: header.key.into(), value: Some(header.value) };
    let headers = record.headers.into_iter().map(header).collect();
    Stored { offset_delta: 0, timestamp_ms, key: record.key, value: record.value, headers }
}

fn to_wire(record: Stored) -> Record {
    let header = |header: Header| RecordHeader {
        // Produced as text.
        key: String::from_utf8_lossy(&header.key).into_owned(),
        value: header.value.unwrap_or_default(),
    };
    Record {
        key: record.key,
        value: record.value,
        timestamp_ms: Some(record.timestamp_ms),
        headers: record.headers.into_iter().map(header).collect(),
    }
}

/// Batches for a reader, up to so many bytes.
pub struct ForReader {
    batches: Vec<RecordBatch>,
    bytes: usize,
    bytes_max: usize,
}

impl ForReader {
    pub fn new(bytes_max: usize) -> Self {
        Self { batches: Vec::new(), bytes: 0, bytes_max }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds what the batch has from `from` on: a batch for each run of consecutive offsets. False: there is no room for all of
    /// it; the first is taken however large it is.
    pub fn add(&mut self, batch: &StoredBatch, from: LogOffset) -> Result<bool, CorruptBatch> {
        let mut records = batch.decode_records()?;
        // A batch without gaps is sent as a whole.
        if batch.record_count() != batch.offset_count() {
            records.retain(|record| batch.base_offset().0 + i64::from(record.offset_delta) >= from.0);
        }
        let mut records = records.into_iter().peekable();
        while let Some(first) = records.next() {
            let (delta, mut run) = (first.offset_delta, vec![to_wire(first)]);
            let is_next =
                |run: &Vec<Record>, next: &Stored| usize::try_from(next.offset_delta - delta) == Ok(run.len());
            while let Some(next) = records.next_if(|next| is_next(&run, next)) {
                run.push(to_wire(next));
            }
            if !self.push(run_of(batch, delta, run)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn push(&mut self, batch: RecordBatch) -> bool {
        let bytes = batch.encoded_len();
        if !self.batches.is_empty() && self.bytes + bytes > self.bytes_max {
            return false;
        }
        self.bytes += bytes;
        self.batches.push(batch);
        true
    }

    /// All of `last` and what is before it was added. Where it ends with a gap, a batch without records says where to go on.
    pub fn end(mut self, last: &StoredBatch) -> Vec<RecordBatch> {
        let next = last.next_offset().0;
        let end = self.batches.last().map(|batch| batch.base_offset + i64::from(batch.record_count));
        if end != Some(next) {
            let crc = Some(crc32fast::hash(&[]));
            let (base_offset, leader_epoch) = (next, last.leader_epoch().get());
            self.batches.push(RecordBatch { base_offset, leader_epoch, crc, ..RecordBatch::default() });
        }
        self.batches
    }

    /// As far as there was room.
    pub fn cut(self) -> Vec<RecordBatch> {
        self.batches
    }
}

fn run_of(batch: &StoredBatch, delta: i32, records: Vec<Record>) -> RecordBatch {
    let record_count = i32::try_from(records.len()).unwrap_or(i32::MAX);
    let max_timestamp_ms = records.iter().map(Record::timestamp_ms).max().unwrap_or(0);
    let records = Bytes::from(Records { records }.encode_to_vec());
    let sequence = |base: i32| i32::try_from((i64::from(base) + i64::from(delta)) % SEQUENCES).unwrap_or(0);
    RecordBatch {
        base_offset: batch.base_offset().0 + i64::from(delta),
        leader_epoch: batch.leader_epoch().get(),
        max_timestamp_ms,
        record_count,
        crc: Some(crc32fast::hash(&records)),
        producer: batch.producer().map(|producer| ProducerStamp {
            id: producer.id,
            epoch: producer.epoch.into(),
            base_sequence: sequence(producer.base_sequence),
        }),
        records,
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::ids::LeaderEpoch;

    use super::*;

    fn batch(count: usize, kept: &[i32]) -> StoredBatch {
        let record =
            |at: usize| Record { key: Some(vec![b'k'; at].into()), timestamp_ms: Some(5), ..Record::default() };
        let producer = Some(Producer { id: 1, epoch: 0, base_sequence: i32::MAX });
        let batch = to_batch((0..count).map(record).collect(), producer).unwrap();
        let whole = StoredBatch::new(LogOffset(10), LeaderEpoch::new(2), &batch).unwrap();
        let mut records = whole.decode_records().unwrap();
        records.retain(|record| kept.contains(&record.offset_delta));
        whole.keep(&records, None).unwrap()
    }

    fn read(batch: &StoredBatch, from: i64) -> Vec<(i64, i32)> {
        let mut reader = ForReader::new(usize::MAX);
        assert!(reader.add(batch, LogOffset(from)).unwrap());
        reader.end(batch).iter().map(|batch| (batch.base_offset, batch.record_count)).collect()
    }

    #[test]
    fn a_batch_without_gaps_is_read_as_one() {
        assert_eq!(read(&batch(3, &[0, 1, 2]), 11), [(10, 3)]);
    }

    #[test]
    fn each_run_of_offsets_is_a_batch() {
        let compacted = batch(6, &[1, 2, 4]);
        assert_eq!(read(&compacted, 10), [(11, 2), (14, 1), (16, 0)]);
        assert_eq!(read(&compacted, 12), [(12, 1), (14, 1), (16, 0)]);
        assert_eq!(read(&compacted, 15), [(16, 0)]);
        assert_eq!(read(&batch(2, &[]), 10), [(12, 0)]);
    }

    #[test]
    fn a_run_has_the_keys_and_the_sequence_of_its_records() {
        let mut reader = ForReader::new(usize::MAX);
        let compacted = batch(6, &[0, 4]);
        reader.add(&compacted, LogOffset(0)).unwrap();
        let batches = reader.end(&compacted);
        assert_eq!(batches[0].producer.map(|producer| producer.base_sequence), Some(i32::MAX));
        assert_eq!(batches[1].producer.map(|producer| producer.base_sequence), Some(3), "it wraps to 0");
        let records = Records::decode(batches[1].records.clone()).unwrap().records;
        assert_eq!(records.iter().map(|record| record.key().len()).collect::<Vec<_>>(), [4]);
        assert_eq!(batches[1].crc, Some(crc32fast::hash(&batches[1].records)));
    }

    #[test]
    fn a_reader_gets_as_much_as_it_has_room_for_and_goes_on_there() {
        let compacted = batch(6, &[1, 3, 5]);
        let mut reader = ForReader::new(1);
        assert!(!reader.add(&compacted, LogOffset(10)).unwrap());
        let first = reader.cut();
        assert_eq!(first.iter().map(|batch| batch.base_offset).collect::<Vec<_>>(), [11]);
        assert_eq!(read(&compacted, 12), [(13, 1), (15, 1)]);
    }
}
