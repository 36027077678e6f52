//! A snapshot is one or is refused, whatever its bytes: the file with its frames, and the records in it. What is a sound
//! one is written again as the same.

use std::fs;
use std::io::{Read, copy, sink};

use prost::Message;
use quorate_metadata::Ledger;
use quorate_metadata::image::ReplayError;
use quorate_node::raft::dump_snapshot;
use quorate_proto::metadata::SnapshotHeader;
use quorate_proto::snapshot::{self, SnapshotError};

const FILE: &str = "00000000000000000001-0000000001.checkpoint";

/// `bytes`: a zero and a content, or anything else and a file.
pub fn check(bytes: &[u8]) {
    match bytes.split_first() {
        Some((0, content)) => check_content(content),
        Some((_, file)) => check_file(file),
        None => {}
    }
}

fn check_content(content: &[u8]) {
    match snapshot::read(&mut &*content) {
        Ok(ledger) => check_ledger(&ledger),
        Err(SnapshotError::Replay(ReplayError::DigestMismatch { actual, .. })) => {
            // No fuzzer guesses a digest.
            let Some(content) = with_digest(content, actual) else { return };
            if let Ok(ledger) = snapshot::read(&mut &*content) {
                check_ledger(&ledger);
            }
        }
        Err(_) => {}
    }
}

/// The content with another digest in its first frame.
fn with_digest(content: &[u8], digest: u128) -> Option<Vec<u8>> {
    let (length, rest) = content.split_first_chunk()?;
    let (header, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let header = SnapshotHeader { digest: digest.to_be_bytes().to_vec(), ..SnapshotHeader::decode(header).ok()? };
    let header = header.encode_to_vec();
    let length = u32::try_from(header.len()).ok()?;
    Some([&length.to_be_bytes(), &*header, rest].concat())
}

/// Records that add up to a digest need not make sense together: whoever wrote them verified that.
fn check_ledger(ledger: &Ledger) {
    if !ledger.visible().verify().is_empty() {
        return;
    }
    let mut written = Vec::new();
    snapshot::write(ledger, &mut written).expect("memory can be written");
    let again = snapshot::read(&mut &*written).expect("what is written can be read");
    assert_eq!(&again, ledger);
}

fn check_file(file: &[u8]) {
    let data = tempfile::tempdir().expect("there is room for a file");
    let folder = data.path().join("snapshots");
    fs::create_dir(&folder).expect("there is room for a file");
    for file in [file, &*sealed(file)] {
        fs::write(folder.join(FILE), file).expect("there is room for a file");
        let Ok(Some(mut snapshot)) = dump_snapshot(data.path()) else { continue };
        let _ = copy(&mut snapshot.content.by_ref().take(file.len() as u64 + 1), &mut sink())
            .inspect(|read| assert!(*read <= file.len() as u64, "more is read than there is"));
    }
}

/// The file with its checksums made right, as far as it has the form of one.
fn sealed(file: &[u8]) -> Vec<u8> {
    let mut sealed = file.to_vec();
    let mut frame = 8;
    while let Some(head) = sealed.get(frame..frame + 8) {
        let length = u32::from_le_bytes(head[..4].try_into().expect("four bytes")) as usize;
        // The last frame is of length 0, and has the content's length.
        let length = if length == 0 && frame > 8 { 8 } else { length };
        let Some(body) = sealed.get(frame + 8..(frame + 8).saturating_add(length)) else { break };
        let checksum = crc32fast::hash(body);
        sealed[frame + 4..frame + 8].copy_from_slice(&checksum.to_le_bytes());
        frame += 8 + length;
    }
    sealed
}
