//! The content of a snapshot: a header, then the image re-emitted as records, each frame length-delimited.
//!
//! Checksums are the business of whoever stores or sends it.

use std::io::{self, Read, Write};

use prost::Message;
use quorate_metadata::ids::{ControllerEpoch, Offset};
use quorate_metadata::image::{Ledger, MetadataImage, ReplayError, SnapshotHeader};

use crate::convert::{DecodeError, record};
use crate::metadata as wire;

/// One record never comes near this; a longer frame is corruption, not data.
const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot read snapshot: {0}")]
    Io(#[from] io::Error),
    #[error("snapshot frame {frame}: {source}")]
    Decode { frame: usize, source: DecodeError },
    #[error("snapshot frame {frame} claims {length} bytes")]
    FrameTooLong { frame: usize, length: usize },
    #[error("snapshot does not replay: {0}")]
    Replay(#[from] ReplayError),
}

/// Writes the ledger. An open transaction goes with it as the image before it and the records since, so that whoever
/// installs the snapshot is where this node is.
pub fn write(ledger: &Ledger, out: &mut dyn Write) -> io::Result<()> {
    write_image(ledger.visible(), out)?;
    write_frame(out, &wire::OpenTransaction { batches: open_batches(ledger) })
}

pub fn read(content: &mut dyn Read) -> Result<Ledger, SnapshotError> {
    let mut frames = Frames { content, count: 0 };
    let header: wire::SnapshotHeader = frames.next()?;
    let digest = header.digest.as_slice().try_into().map(u128::from_be_bytes).map_err(|_| SnapshotError::Decode {
        frame: 0,
        source: DecodeError::IdLength { field: "digest", length: header.digest.len() },
    })?;
    let mut records = Vec::new();
    for _ in 0..header.records {
        let frame: wire::Record = frames.next()?;
        records.push(record::from_wire(frame).map_err(|source| SnapshotError::Decode { frame: frames.count, source })?);
    }
    let image = MetadataImage::from_snapshot(
        SnapshotHeader {
            next_offset: Offset::new(header.next_offset),
            controller_epoch: ControllerEpoch::new(header.controller_epoch),
            timestamp_ms: header.timestamp_ms,
            digest,
        },
        records,
    )?;
    let open: wire::OpenTransaction = frames.next()?;
    let mut ledger = Ledger::new(image);
    for encoded in open.batches {
        let batch = crate::convert::batch::from_wire(encoded)
            .map_err(|source| SnapshotError::Decode { frame: frames.count, source })?;
        ledger.replay(&batch)?;
    }
    Ok(ledger)
}

fn open_batches(ledger: &Ledger) -> Vec<wire::Batch> {
    ledger.open_batches().iter().map(crate::convert::batch::to_wire).collect()
}

fn write_image(image: &MetadataImage, out: &mut dyn Write) -> io::Result<()> {
    let header = image.header();
    write_frame(
        out,
        &wire::SnapshotHeader {
            next_offset: header.next_offset.get(),
            controller_epoch: header.controller_epoch.get(),
            timestamp_ms: header.timestamp_ms,
            digest: header.digest.to_be_bytes().to_vec(),
            records: image.to_records().count() as u64,
        },
    )?;
    image.to_records().try_for_each(|item| write_frame(out, &record::to_wire(&item)))
}

fn write_frame(out: &mut dyn Write, message: &impl Message) -> io::Result<()> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_be_bytes())?;
    out.write_all(&bytes)
}

struct Frames<'a> {
    content: &'a mut dyn Read,
    count: usize,
}

impl Frames<'_> {
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
}
