//! The frame of the releases before record batches had gaps. It is read wherever a frame is, so that a directory is upgraded
//! batch by batch, as its segments are appended, compacted or expire; and it is written for followers of such a release.
//!
//! Big endian: `crc32 u32 | base offset i64 | leader epoch i32 | record count u32 | max timestamp i64 | producer id i64 |
//! producer epoch i16 | base sequence i32 | records`, where the checksum covers all that follows it, and the records are a
//! message of Protocol Buffers.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use quorate_metadata::ids::LeaderEpoch;

use crate::batch::{CorruptBatch, LogOffset, NewBatch, Producer, StoredBatch};
use crate::records::{Header, Record};

const CRC_BYTES: usize = 4;
const HEADER_BYTES: usize = 42;

#[derive(Clone, PartialEq, Message)]
struct RecordsV1 {
    #[prost(message, repeated, tag = "1")]
    records: Vec<RecordV1>,
}

#[derive(Clone, PartialEq, Message)]
struct RecordV1 {
    #[prost(bytes = "bytes", optional, tag = "1")]
    key: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    value: Option<Bytes>,
    #[prost(int64, optional, tag = "3")]
    timestamp_ms: Option<i64>,
    #[prost(message, repeated, tag = "4")]
    headers: Vec<HeaderV1>,
}

#[derive(Clone, PartialEq, Message)]
struct HeaderV1 {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// The batch in the frame of this release.
pub fn decode(mut frame: Bytes) -> Result<StoredBatch, CorruptBatch> {
    if frame.len() < HEADER_BYTES {
        return Err(CorruptBatch("shorter than its header"));
    }
    if frame.get_u32() != crc32fast::hash(&frame) {
        return Err(CorruptBatch("checksum mismatch"));
    }
    let (base, epoch) = (LogOffset(frame.get_i64()), LeaderEpoch::new(frame.get_i32()));
    let (record_count, max_timestamp_ms) = (frame.get_u32(), frame.get_i64());
    let producer = Producer { id: frame.get_i64(), epoch: frame.get_i16(), base_sequence: frame.get_i32() };
    let producer =
        Some(producer).filter(|producer| (producer.id, producer.epoch, producer.base_sequence) != (-1, -1, -1));
    let records = RecordsV1::decode(frame).map_err(|_| CorruptBatch("records that cannot be decoded"))?.records;
    if u32::try_from(records.len()) != Ok(record_count) {
        return Err(CorruptBatch("record count out of range"));
    }
    let batch = NewBatch::of(records.into_iter().map(upgrade).collect(), producer)?;
    StoredBatch::new(base, epoch, &NewBatch { max_timestamp_ms, ..batch })
}

/// A record without a time was read as one of 1970.
fn upgrade(record: RecordV1) -> Record {
    let timestamp_ms = record.timestamp_ms.unwrap_or_default();
    let header = |header: HeaderV1| Header { key: header.key.into(), value: Some(header.value) };
    let headers = record.headers.into_iter().map(header).collect();
    Record { offset_delta: 0, timestamp_ms, key: record.key, value: record.value, headers }
}

/// Refused: the frame has no place for gaps.
pub fn encode(batch: &StoredBatch) -> Result<Bytes, CorruptBatch> {
    if batch.record_count() != batch.offset_count() {
        return Err(CorruptBatch("a compacted batch has no frame of an earlier release"));
    }
    let records = batch.decode_records()?.into_iter().map(downgrade).collect::<Result<_, _>>()?;
    let records = RecordsV1 { records };
    let producer = batch.producer().unwrap_or(Producer { id: -1, epoch: -1, base_sequence: -1 });
    let mut frame = BytesMut::with_capacity(HEADER_BYTES + records.encoded_len());
    frame.put_u32(0);
    frame.put_i64(batch.base_offset().0);
    frame.put_i32(batch.leader_epoch().get());
    frame.put_u32(batch.record_count());
    frame.put_i64(batch.max_timestamp_ms());
    frame.put_i64(producer.id);
    frame.put_i16(producer.epoch);
    frame.put_i32(producer.base_sequence);
    frame.put_slice(&records.encode_to_vec());
    let checksum = crc32fast::hash(&frame[CRC_BYTES..]);
    frame[..CRC_BYTES].copy_from_slice(&checksum.to_be_bytes());
    Ok(frame.freeze())
}

fn downgrade(record: Record) -> Result<RecordV1, CorruptBatch> {
    let header = |header: Header| {
        let key = String::from_utf8(header.key.into()).map_err(|_| CorruptBatch("a header key that is no UTF-8"))?;
        Ok(HeaderV1 { key, value: header.value.unwrap_or_default() })
    };
    let headers = record.headers.into_iter().map(header).collect::<Result<_, _>>()?;
    Ok(RecordV1 { key: record.key, value: record.value, timestamp_ms: Some(record.timestamp_ms), headers })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> StoredBatch {
        let headers = vec![Header { key: "h".into(), value: Some("x".into()) }];
        let of = |key: Option<&'static str>, timestamp_ms| Record {
            offset_delta: 0,
            timestamp_ms,
            key: key.map(Bytes::from),
            value: key.map(Bytes::from),
            headers: headers.clone(),
        };
        let producer = Some(Producer { id: 3, epoch: 1, base_sequence: 9 });
        let batch = NewBatch::of(vec![of(Some("k"), 20), of(None, 10)], producer).unwrap();
        StoredBatch::new(LogOffset(5), LeaderEpoch::new(2), &batch).unwrap()
    }

    /// Written by the release before: offset 5, epoch 2, one record with key `k`, value `v` and time 20, no producer.
    const FRAME: [u8; 52] = [
        0x43, 0xc7, 0x9e, 0x96, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 20, 255, 255, 255,
        255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0x0a, 0x08, 0x0a, 0x01, b'k', 0x12, 0x01, b'v', 0x18,
        0x14,
    ];

    #[test]
    fn a_frame_of_an_earlier_release_is_read() {
        let read = StoredBatch::decode(Bytes::from_static(&FRAME)).unwrap();
        let record = |key, value| Record { offset_delta: 0, timestamp_ms: 20, key, value, headers: Vec::new() };
        let batch = NewBatch::of(vec![record(Some("k".into()), Some("v".into()))], None).unwrap();
        assert_eq!(StoredBatch::new(LogOffset(5), LeaderEpoch::new(2), &batch), Ok(read.clone()));
        assert_eq!(encode(&read).unwrap(), &FRAME[..]);
    }

    #[test]
    fn a_batch_survives_a_follower_of_an_earlier_release() {
        assert_eq!(StoredBatch::decode(encode(&batch()).unwrap()), Ok(batch()));
    }

    #[test]
    fn damage_of_an_old_frame_is_found() {
        let frame = encode(&batch()).unwrap();
        for at in 0..frame.len() {
            let mut damaged = frame.to_vec();
            damaged[at] ^= 0x10;
            assert!(StoredBatch::decode(damaged.into()).is_err(), "byte {at}");
            assert!(StoredBatch::decode(frame.slice(..at)).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn gaps_have_no_old_frame() {
        let kept: Vec<_> = batch().decode_records().unwrap().drain(1..).collect();
        assert!(encode(&batch().keep(&kept, None).unwrap()).is_err());
    }
}
