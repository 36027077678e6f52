//! The content of a snapshot: a header, then the image re-emitted as records, then the batches of an open transaction.
//! Each is a frame: its length in four bytes, and a message.
//!
//! Written and read a frame at a time. Checksums are the business of what stores or sends it.

use std::io::{self, Read, Write};

use prost::Message;
use quorate_metadata::Record;
use quorate_metadata::ids::{ControllerEpoch, Offset};
use quorate_metadata::image::{Ledger, MetadataImage, ReplayError, SnapshotHeader};

use crate::convert::{DecodeError, batch, record};
use crate::metadata as wire;

/// Bytes per frame, for the writer and the reader alike. The largest frame is a batch: 1 MiB of records and a remembered
/// reply. What is longer is refused when it is written, because it could never be read back.
pub const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot read snapshot: {0}")]
    Io(#[from] io::Error),
    #[error("snapshot frame {frame}: {source}")]
    Decode { frame: usize, source: DecodeError },
    #[error("snapshot frame {frame} has {length} bytes, limit {FRAME_BYTES_MAX}")]
    FrameTooLong { frame: usize, length: usize },
    #[error("snapshot does not replay: {0}")]
    Replay(#[from] ReplayError),
}

/// Writes the ledger. An open transaction goes with it as the image before it and the batches since, so that a node that
/// installs the snapshot is where this node is.
pub fn write(ledger: &Ledger, out: &mut dyn Write) -> io::Result<()> {
    let mut frames = FrameWriter { out, buffer: Vec::new(), count: 0 };
    let image = ledger.visible();
    let open = ledger.has_open_transaction().then(|| ledger.open_batch_count() as u64);
    frames.write(&header_to_wire(image, open))?;
    for item in image.to_records() {
        frames.write(&record::to_wire(&item))?;
    }
    match open {
        Some(_) => ledger.open_batches().try_for_each(|open| frames.write(&batch::to_wire(&open))),
        None => frames.write(&wire::OpenTransaction::default()),
    }
}

pub fn read(content: &mut dyn Read) -> Result<Ledger, SnapshotError> {
    let mut frames = FrameReader { content, count: 0 };
    let header: wire::SnapshotHeader = frames.next()?;
    let records = (0..header.records).map(|_| frames.next_record());
    let image = MetadataImage::try_from_snapshot(header_from_wire(&header)?, records)?;
    let mut ledger = Ledger::new(image);
    match header.open_batches {
        Some(batches) => {
            for _ in 0..batches {
                let open = frames.next()?;
                replay(&mut ledger, open, frames.count)?;
            }
        }
        None => {
            let open: wire::OpenTransaction = frames.next()?;
            for open in open.batches {
                replay(&mut ledger, open, frames.count)?;
            }
        }
    }
    Ok(ledger)
}

fn replay(ledger: &mut Ledger, open: wire::Batch, frame: usize) -> Result<(), SnapshotError> {
    let open = batch::from_wire(open).map_err(|source| SnapshotError::Decode { frame, source })?;
    ledger.replay(&open)?;
    Ok(())
}

fn header_to_wire(image: &MetadataImage, open_batches: Option<u64>) -> wire::SnapshotHeader {
    let header = image.header();
    wire::SnapshotHeader {
        next_offset: header.next_offset.get(),
        controller_epoch: header.controller_epoch.get(),
        timestamp_ms: header.timestamp_ms,
        digest: header.digest.to_be_bytes().to_vec(),
        records: image.record_count() as u64,
        open_batches,
    }
}

fn header_from_wire(header: &wire::SnapshotHeader) -> Result<SnapshotHeader, SnapshotError> {
    let length = header.digest.len();
    let digest = header.digest.as_slice().try_into().map(u128::from_be_bytes);
    Ok(SnapshotHeader {
        next_offset: Offset::new(header.next_offset),
        controller_epoch: ControllerEpoch::new(header.controller_epoch),
        timestamp_ms: header.timestamp_ms,
        digest: digest.map_err(|_| SnapshotError::Decode {
            frame: 0,
            source: DecodeError::IdLength { field: "digest", length },
        })?,
    })
}

struct FrameWriter<'a> {
    out: &'a mut dyn Write,
    /// Kept between frames, so that they do not allocate one each.
    buffer: Vec<u8>,
    count: usize,
}

impl FrameWriter<'_> {
    fn write(&mut self, message: &impl Message) -> io::Result<()> {
        let length = message.encoded_len();
        if length > FRAME_BYTES_MAX {
            return Err(io::Error::other(SnapshotError::FrameTooLong { frame: self.count, length }));
        }
        self.count += 1;
        self.buffer.clear();
        message.encode(&mut self.buffer).map_err(io::Error::other)?;
        let length = u32::try_from(length).map_err(io::Error::other)?;
        self.out.write_all(&length.to_be_bytes())?;
        self.out.write_all(&self.buffer)
    }
}

struct FrameReader<'a> {
    content: &'a mut dyn Read,
    count: usize,
}

impl FrameReader<'_> {
    fn next<M: Message + Default>(&mut self) -> Result<M, SnapshotError> {
        let mut length = [0; 4];
        self.content.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(SnapshotError::FrameTooLong { frame: self.count, length });
        }
        let mut bytes = vec![0; length];
        self.content.read_exact(&mut bytes)?;
        let message = M::decode(bytes.as_slice()).map_err(|error| SnapshotError::Decode {
            frame: self.count,
            source: DecodeError::Malformed(error.to_string()),
        })?;
        self.count += 1;
        Ok(message)
    }

    fn next_record(&mut self) -> Result<Record, SnapshotError> {
        let frame = self.next()?;
        record::from_wire(frame).map_err(|source| SnapshotError::Decode { frame: self.count, source })
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::Batch;
    use quorate_metadata::record::ConfigResource;

    use super::*;

    const MIB: usize = 1024 * 1024;

    fn replay(ledger: &mut Ledger, records: Vec<Record>) {
        let batch = Batch { controller_epoch: ControllerEpoch::new(3), timestamp_ms: 7, records };
        ledger.replay(&batch).expect("the records of this test replay");
    }

    fn begin() -> Record {
        Record::BeginTransaction { name: "test".to_owned() }
    }

    fn config(key: usize, bytes: usize) -> Record {
        let (resource, value) = (ConfigResource::BrokerDefault, Some("v".repeat(bytes)));
        Record::Config { resource, key: format!("key-{key}"), value }
    }

    /// A transaction of so many batches of 1 MiB, still open.
    fn open_ledger(batches: usize) -> Ledger {
        let mut ledger = Ledger::default();
        replay(&mut ledger, vec![config(0, 10), begin()]);
        for batch in 1..=batches {
            replay(&mut ledger, (0..32).map(|key| config(batch * 32 + key, MIB / 32)).collect());
        }
        ledger
    }

    fn written(ledger: &Ledger) -> Vec<u8> {
        let mut content = Vec::new();
        write(ledger, &mut content).expect("memory can be written");
        content
    }

    #[test]
    fn an_open_transaction_larger_than_a_frame_is_read_back() {
        let ledger = open_ledger(17);
        let content = written(&ledger);
        assert!(content.len() > 2 * FRAME_BYTES_MAX, "the batches are in the content");
        let copy = read(&mut &*content).expect("what is written is read");
        assert_eq!(copy.working().digest(), ledger.working().digest());
        assert_eq!(copy, ledger);
    }

    #[test]
    fn a_transaction_that_was_read_back_ends_or_aborts() {
        let ledger = open_ledger(3);
        for end in [Record::EndTransaction, Record::AbortTransaction { reason: "test".to_owned() }] {
            let mut copy = read(&mut &*written(&ledger)).expect("what is written is read");
            let mut original = ledger.clone();
            replay(&mut copy, vec![end.clone()]);
            replay(&mut original, vec![end]);
            assert!(!copy.has_open_transaction());
            assert_eq!(copy, original);
        }
    }

    #[test]
    fn an_open_transaction_in_one_frame_is_still_read() {
        let ledger = open_ledger(2);
        let content = &mut Vec::new();
        let mut frames = FrameWriter { out: content, buffer: Vec::new(), count: 0 };
        frames.write(&header_to_wire(ledger.visible(), None)).expect("memory can be written");
        for item in ledger.visible().to_records() {
            frames.write(&record::to_wire(&item)).expect("memory can be written");
        }
        let batches = ledger.open_batches().map(|open| batch::to_wire(&open)).collect();
        frames.write(&wire::OpenTransaction { batches }).expect("memory can be written");
        assert_eq!(read(&mut &**content).expect("the older form is read"), ledger);
    }

    #[test]
    fn a_reader_of_the_older_form_refuses_a_batch_frame() {
        let ledger = open_ledger(1);
        let open = ledger.open_batches().next().expect("a transaction is open");
        let frame = batch::to_wire(&open).encode_to_vec();
        assert!(wire::OpenTransaction::decode(frame.as_slice()).is_err(), "it would take the transaction for empty");
    }

    #[test]
    fn a_frame_over_the_bound_is_refused_when_it_is_written() {
        let mut ledger = Ledger::default();
        replay(&mut ledger, vec![begin(), config(0, FRAME_BYTES_MAX)]);
        let refused = write(&ledger, &mut Vec::new()).expect_err("the reader would refuse it");
        assert!(refused.to_string().contains("limit 8388608"), "{refused}");
    }

    #[test]
    fn a_frame_over_the_bound_is_refused_when_it_is_read() {
        let content = u32::try_from(FRAME_BYTES_MAX + 1).expect("it fits").to_be_bytes();
        assert!(matches!(read(&mut &content[..]), Err(SnapshotError::FrameTooLong { frame: 0, .. })));
    }
}
