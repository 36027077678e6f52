//! Records as Kafka writes them into a batch of magic 2: `length | attributes i8 | timestamp delta | offset delta | key
//! length | key | value length | value | header count | headers`. Numbers are zig-zag varints; the length of what is absent
//! is -1. Pure.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

use crate::batch::CorruptBatch;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its offset, from the first one of its batch.
    pub offset_delta: i32,
    pub timestamp_ms: i64,
    pub key: Option<Bytes>,
    /// `None`: a tombstone.
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub key: Bytes,
    pub value: Option<Bytes>,
}

/// With times relative to `base_timestamp_ms`.
pub fn encode(records: &[Record], base_timestamp_ms: i64) -> Result<Bytes, CorruptBatch> {
    let mut encoded = BytesMut::new();
    let mut body = BytesMut::new();
    for record in records {
        body.clear();
        encode_body(record, base_timestamp_ms, &mut body)?;
        put_length(Some(body.len()), &mut encoded)?;
        encoded.put_slice(&body);
    }
    Ok(encoded.freeze())
}

fn encode_body(record: &Record, base_timestamp_ms: i64, body: &mut BytesMut) -> Result<(), CorruptBatch> {
    body.put_i8(0);
    // Wraps, as it does when it is read: any two times have a delta.
    put_number(record.timestamp_ms.wrapping_sub(base_timestamp_ms), body);
    put_number(record.offset_delta.into(), body);
    put_bytes(record.key.as_ref(), body)?;
    put_bytes(record.value.as_ref(), body)?;
    put_length(Some(record.headers.len()), body)?;
    for header in &record.headers {
        put_bytes(Some(&header.key), body)?;
        put_bytes(header.value.as_ref(), body)?;
    }
    Ok(())
}

fn put_bytes(bytes: Option<&Bytes>, body: &mut BytesMut) -> Result<(), CorruptBatch> {
    put_length(bytes.map(Bytes::len), body)?;
    body.put_slice(bytes.map_or(&[], |bytes| &bytes[..]));
    Ok(())
}

fn put_length(length: Option<usize>, body: &mut BytesMut) -> Result<(), CorruptBatch> {
    let length = length.map_or(Ok(-1), i32::try_from).map_err(|_| CorruptBatch("a record longer than 2 GiB"))?;
    put_number(length.into(), body);
    Ok(())
}

fn put_number(number: i64, body: &mut BytesMut) {
    encode_varint(((number << 1) ^ (number >> 63)).cast_unsigned(), body);
}

/// `count` records, and nothing after them.
pub fn decode(mut encoded: Bytes, count: u32, base_timestamp_ms: i64) -> Result<Vec<Record>, CorruptBatch> {
    let mut records = Vec::new();
    for _ in 0..count {
        let mut body = take_bytes(&mut encoded)?.ok_or(CorruptBatch("a record without a length"))?;
        records.push(decode_body(&mut body, base_timestamp_ms)?);
        expect_end(&body)?;
    }
    expect_end(&encoded)?;
    Ok(records)
}

fn expect_end(rest: &Bytes) -> Result<(), CorruptBatch> {
    if rest.is_empty() { Ok(()) } else { Err(CorruptBatch("surplus bytes after a record")) }
}

fn decode_body(body: &mut Bytes, base_timestamp_ms: i64) -> Result<Record, CorruptBatch> {
    if body.try_get_i8().map_err(|_| CUT_SHORT)? != 0 {
        return Err(CorruptBatch("unknown attributes of a record"));
    }
    let timestamp_ms = base_timestamp_ms.wrapping_add(take_number(body)?);
    let offset_delta = take_int(body)?;
    let (key, value) = (take_bytes(body)?, take_bytes(body)?);
    let mut headers = Vec::new();
    let header_count = u32::try_from(take_int(body)?).map_err(|_| CorruptBatch("a negative number of headers"))?;
    for _ in 0..header_count {
        let key = take_bytes(body)?.ok_or(CorruptBatch("a header without a key"))?;
        headers.push(Header { key, value: take_bytes(body)? });
    }
    Ok(Record { offset_delta, timestamp_ms, key, value, headers })
}

const CUT_SHORT: CorruptBatch = CorruptBatch("a record is cut short");

fn take_bytes(body: &mut Bytes) -> Result<Option<Bytes>, CorruptBatch> {
    let length = take_int(body)?;
    if length == -1 {
        return Ok(None);
    }
    let length = usize::try_from(length).map_err(|_| CorruptBatch("a negative length"))?;
    if length > body.len() {
        return Err(CUT_SHORT);
    }
    Ok(Some(body.split_to(length)))
}

fn take_int(body: &mut Bytes) -> Result<i32, CorruptBatch> {
    i32::try_from(take_number(body)?).map_err(|_| CorruptBatch("a number out of range"))
}

/// Written in the shortest way, as [`put_number`] does.
fn take_number(body: &mut Bytes) -> Result<i64, CorruptBatch> {
    let before = body.len();
    let raw = decode_varint(body).map_err(|_| CUT_SHORT)?;
    if before - body.len() != encoded_len_varint(raw) {
        return Err(CorruptBatch("a number that is not in its shortest form"));
    }
    Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(timestamp_ms: i64) -> Record {
        let header = |value: Option<&'static str>| Header { key: "".into(), value: value.map(Bytes::from) };
        let headers = vec![header(None), header(Some("x"))];
        Record { offset_delta: 300, timestamp_ms, key: None, value: Some("v".into()), headers }
    }

    #[test]
    fn any_times_are_kept() {
        for (base, time) in [(0, 0), (5, 3), (i64::MAX, i64::MIN), (-1, i64::MAX), (i64::MIN, 7)] {
            let encoded = encode(&[record(time)], base).unwrap();
            assert_eq!(decode(encoded, 1, base), Ok(vec![record(time)]), "{time} from {base}");
        }
    }

    #[test]
    fn records_that_are_cut_or_too_long_are_refused() {
        let encoded = encode(&[record(9), record(8)], 9).unwrap();
        assert_eq!(decode(encoded.clone(), 2, 9), Ok(vec![record(9), record(8)]));
        for cut in 0..encoded.len() {
            assert!(decode(encoded.slice(..cut), 2, 9).is_err(), "cut at {cut}");
        }
        assert_eq!(decode(encoded.clone(), 1, 9), Err(CorruptBatch("surplus bytes after a record")));
        assert!(decode(encoded, 3, 9).is_err());
        let mut longer = encode(&[record(9)], 9).unwrap().to_vec();
        longer[0] += 2;
        longer.push(0);
        assert_eq!(decode(longer.into(), 1, 9), Err(CorruptBatch("surplus bytes after a record")));
    }
}
