//! From batches, as they are kept, to records.

use prost::Message;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::log::{RecordBatch, Records};

use super::{ConsumedRecord, Partition};

/// The records of a batch from offset `from` on; the batch may begin earlier.
pub fn decode(partition: &Partition, batch: RecordBatch, from: i64) -> Result<Vec<ConsumedRecord>, ApiError> {
    let corrupt = |why: &str| {
        ApiError::new(ErrorName::CorruptMessage, format!("the batch at offset {} {why}", batch.base_offset))
    };
    if batch.crc.is_some_and(|crc| crc != crc32fast::hash(&batch.records)) {
        return Err(corrupt("does not have its checksum"));
    }
    let records = Records::decode(batch.records.clone()).map_err(|error| corrupt(&error.to_string()))?.records;
    if i32::try_from(records.len()) != Ok(batch.record_count) {
        return Err(corrupt(&format!("has {} records and claims {}", records.len(), batch.record_count)));
    }
    let records = (batch.base_offset..).zip(records).skip_while(|(offset, _)| *offset < from);
    Ok(records
        .map(|(offset, record)| ConsumedRecord {
            topic: partition.topic.clone(),
            partition: partition.partition,
            offset,
            leader_epoch: batch.leader_epoch,
            timestamp_ms: record.timestamp_ms(),
            key: record.key,
            value: record.value,
            headers: record.headers.into_iter().map(|header| (header.key, header.value)).collect(),
        })
        .collect())
}

/// Of the record after the batch.
pub fn end_offset(batch: &RecordBatch) -> i64 {
    batch.base_offset.saturating_add(batch.record_count.into())
}

#[cfg(test)]
mod tests {
    use quorate_proto::log::RecordBatch;

    use super::super::fake::{batch, partition};
    use super::*;

    fn offsets(batch: RecordBatch, from: i64) -> Result<Vec<i64>, ErrorName> {
        let records = decode(&partition(), batch, from).map_err(|error| error.name)?;
        Ok(records.iter().map(|record| record.offset).collect())
    }

    #[test]
    fn each_record_takes_one_offset() {
        assert_eq!(offsets(batch(10, 1, &["a", "b", "c"]), 10), Ok(vec![10, 11, 12]));
    }

    #[test]
    fn what_comes_before_the_offset_asked_for_is_dropped() {
        assert_eq!(offsets(batch(10, 1, &["a", "b", "c"]), 12), Ok(vec![12]));
    }

    #[test]
    fn a_batch_without_its_checksum_or_its_records_is_corrupt() {
        let whole = batch(10, 1, &["a", "b"]);
        let crc = whole.crc.map(|crc| crc ^ 1);
        assert_eq!(offsets(RecordBatch { crc, ..whole.clone() }, 10), Err(ErrorName::CorruptMessage));
        assert_eq!(offsets(RecordBatch { record_count: 3, ..whole.clone() }, 10), Err(ErrorName::CorruptMessage));
        let records = whole.records.slice(1..);
        let crc = Some(crc32fast::hash(&records));
        assert_eq!(offsets(RecordBatch { records, crc, ..whole }, 10), Err(ErrorName::CorruptMessage));
    }
}
