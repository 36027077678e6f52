use super::*;
use crate::records::Header;

/// Of Kafka 4.3.1's own metadata log: a no-op, and the ids of producers.
const GOLDEN: [(&str, i64, &str); 2] = [
    (
        "000000000000000d0000003c0000000102754a5ea4000000000000000001a207a4cdce000001a207a4cdceffffffffffffffffffffffffffff\
         000000011400000001080114000000",
        13,
        "01140000",
    ),
    (
        "00000000000000b8000000500000000102a6849636000000000000000001a207a60cb9000001a207a60cb9ffffffffffffffffffffffffffff\
         000000013c0000000130010f0000000001000000000000001e00000000000003e80000",
        184,
        "010f0000000001000000000000001e00000000000003e800",
    ),
];

fn bytes_of(hex: &str) -> Bytes {
    let digits: Vec<u8> = hex.bytes().map(|digit| char::from(digit).to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect::<Vec<_>>().into()
}

fn record(timestamp_ms: i64, key: &'static str, value: Option<&'static str>) -> Record {
    let header = Header { key: "h".into(), value: Some("1".into()) };
    Record {
        offset_delta: 0,
        timestamp_ms,
        key: Some(key.into()),
        value: value.map(Bytes::from),
        headers: vec![header],
    }
}

fn batch() -> NewBatch {
    let records = vec![record(90, "a", Some("1")), record(99, "b", None), record(80, "c", Some(""))];
    NewBatch::of(records, Some(Producer { id: 7, epoch: 2, base_sequence: 40 })).unwrap()
}

fn stored() -> StoredBatch {
    StoredBatch::new(LogOffset(10), LeaderEpoch::new(4), &batch()).unwrap()
}

fn seal(mut frame: Vec<u8>) -> Bytes {
    let checksum = crc32c::crc32c(&frame[ATTRIBUTES..]);
    frame[CRC..ATTRIBUTES].copy_from_slice(&checksum.to_be_bytes());
    frame.into()
}

#[test]
fn frames_of_kafka_are_read_and_written_byte_for_byte() {
    for (hex, base, value) in GOLDEN {
        let frame = bytes_of(hex);
        let read = StoredBatch::decode(frame.clone()).unwrap();
        assert_eq!(
            (read.base_offset(), read.leader_epoch(), read.producer()),
            (LogOffset(base), LeaderEpoch::new(1), None)
        );
        let records = read.decode_records().unwrap();
        let [only] = &records[..] else { panic!("{records:?}") };
        assert_eq!((only.key.as_ref(), only.value.as_ref()), (None, Some(&bytes_of(value))));
        assert_eq!(only.timestamp_ms, read.max_timestamp_ms());
        let written = NewBatch::of(records, None).unwrap();
        let written = StoredBatch::new(LogOffset(base), LeaderEpoch::new(1), &written).unwrap();
        assert_eq!(written.frame(), &frame);
    }
}

#[test]
fn a_batch_survives_its_frame() {
    let read = StoredBatch::decode(stored().frame().clone()).unwrap();
    assert_eq!((read.base_offset(), read.next_offset()), (LogOffset(10), LogOffset(13)));
    assert_eq!((read.leader_epoch(), read.record_count(), read.offset_count()), (LeaderEpoch::new(4), 3, 3));
    assert_eq!((read.max_timestamp_ms(), read.producer()), (99, batch().producer));
    assert_eq!(read.delete_horizon_ms(), None);
    let records = read.decode_records().unwrap();
    let expected = [record(90, "a", Some("1")), record(99, "b", None), record(80, "c", Some(""))];
    let expected: Vec<_> =
        (0..).zip(expected).map(|(offset_delta, record)| Record { offset_delta, ..record }).collect();
    assert_eq!(records, expected);
}

#[test]
fn records_that_stay_keep_their_offsets_and_times() {
    let kept: Vec<_> = stored().decode_records().unwrap().drain(1..).collect();
    for horizon in [None, Some(1_000)] {
        let part = stored().keep(&kept, horizon).unwrap();
        let part = StoredBatch::decode(part.frame().clone()).unwrap();
        assert_eq!((part.base_offset(), part.next_offset()), (LogOffset(10), LogOffset(13)));
        assert_eq!((part.record_count(), part.offset_count(), part.delete_horizon_ms()), (2, 3, horizon));
        assert_eq!(part.decode_records().unwrap(), kept);
        assert_eq!((part.max_timestamp_ms(), part.producer()), (99, batch().producer));
    }
    let empty = stored().keep(&[], None).unwrap();
    assert_eq!((empty.record_count(), empty.next_offset()), (0, LogOffset(13)));
    assert_eq!(StoredBatch::decode(empty.frame().clone()).unwrap().decode_records(), Ok(Vec::new()));
}

#[test]
fn no_flipped_bit_and_no_missing_byte_goes_unnoticed() {
    let stored = stored();
    for at in 0..stored.frame().len() {
        let mut damaged = stored.frame().to_vec();
        damaged[at] ^= 0x10;
        // The offset and the epoch are outside of the checksum: the log compares them with its keys and its order.
        let is_covered = (LENGTH..BODY).contains(&at) || at >= MAGIC;
        assert!(!is_covered || StoredBatch::decode(damaged.into()).is_err(), "byte {at}");
        assert!(StoredBatch::decode(stored.frame().slice(..at)).is_err(), "cut at {at}");
    }
}

#[test]
fn without_a_producer_nothing_of_one_is_there() {
    let none = NewBatch { producer: None, ..batch() };
    let stored = StoredBatch::new(LogOffset(10), LeaderEpoch::new(4), &none).unwrap();
    assert_eq!(StoredBatch::decode(stored.frame().clone()).unwrap().producer(), None);
    let mut other = stored.frame().to_vec();
    other[PRODUCER + 9] = 0;
    assert_eq!(StoredBatch::decode(seal(other)), Err(CorruptBatch("negative producer id")));
}

#[test]
fn fields_out_of_range_are_refused() {
    let epoch = LeaderEpoch::new(0);
    let refused = |base, batch: NewBatch| StoredBatch::new(LogOffset(base), epoch, &batch).unwrap_err().0;
    assert_eq!(refused(0, NewBatch { record_count: 0, ..batch() }), "record count out of range");
    assert_eq!(refused(i64::MAX, batch()), "offset out of range");
    let producer = |id, epoch, base_sequence| Some(Producer { id, epoch, base_sequence });
    assert_eq!(refused(0, NewBatch { producer: producer(-1, 0, 0), ..batch() }), "negative producer id");
    assert_eq!(refused(0, NewBatch { producer: producer(-1, -1, -1), ..batch() }), "negative producer id");
    assert_eq!(refused(0, NewBatch { producer: producer(1, -1, 0), ..batch() }), "negative producer epoch");
    assert_eq!(refused(0, NewBatch { producer: producer(1, 0, -1), ..batch() }), "negative sequence");
    let with = |at: usize, byte| {
        let mut frame = stored().frame().to_vec();
        frame[at] = byte;
        StoredBatch::decode(seal(frame)).unwrap_err().0
    };
    assert_eq!(with(ATTRIBUTES + 1, 0x01), "unknown attributes");
    assert_eq!(with(LAST_DELTA + 3, 1), "record count out of range");
    assert_eq!(with(LAST_DELTA, 0x80), "record count out of range");
}

#[test]
fn records_at_odd_offsets_are_refused() {
    let at = |deltas: [i32; 2]| {
        let records = deltas.map(|offset_delta| Record { offset_delta, ..record(1, "a", None) });
        stored().keep(&records, None).unwrap().decode_records()
    };
    assert!(at([0, 2]).is_ok());
    for deltas in [[2, 1], [1, 1], [0, 3], [-1, 0]] {
        assert_eq!(at(deltas), Err(CorruptBatch("offset of a record out of range")), "{deltas:?}");
    }
}
