//! Tells a torn tail from a damaged middle, before RocksDB opens its write-ahead logs.
//!
//! A crash cuts the last record: nothing valid follows, and dropping it is right, for it was acknowledged to nobody. A
//! flipped length byte looks the same to RocksDB, which then drops acknowledged records behind it without a word. So each
//! file is walked record by record, and where one is bad the rest is searched: a valid record behind a bad one is damage.
//!
//! Format: blocks of 32 KiB; a record is `crc32c u32 LE masked | length u16 LE | type u8 | payload`, never across blocks.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::RaftError;

const BLOCK: usize = 32 << 10;
const HEAD: usize = 7;
/// Head with the log number of a recycled file.
const RECYCLED_HEAD: usize = 11;

/// Where the valid part of a log ends before the file does.
pub struct Torn {
    pub file: PathBuf,
    pub offset: u64,
}

/// Refuses damage in any write-ahead log of `database`; returns the torn tail, if there is one.
pub fn check(database: &Path) -> Result<Option<Torn>, RaftError> {
    let failed = |error| RaftError::io(format!("read {database:?}"))(error);
    let mut torn = None;
    for entry in fs::read_dir(database).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|extension| extension == "log") {
            let bytes = fs::read(&file).map_err(failed)?;
            torn = check_file(file, &bytes)?.or(torn);
        }
    }
    Ok(torn)
}

fn check_file(file: PathBuf, bytes: &[u8]) -> Result<Option<Torn>, RaftError> {
    let end = valid_end(bytes);
    let offset = end as u64;
    if let Some(later) = valid_record_after(bytes, end) {
        let reason = format!("record checksum or length is wrong, while a valid record follows at {later}");
        return Err(RaftError::Corrupt { file, offset, reason });
    }
    Ok((end < bytes.len()).then_some(Torn { file, offset }))
}

/// The offset of the first record that is not valid.
fn valid_end(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let left = BLOCK - at % BLOCK;
        if left < HEAD {
            at = (at + left).min(bytes.len());
        }
        match record_at(bytes, at) {
            Some(length) => at += length,
            None => return at,
        }
    }
}

/// Searches the rest of the block byte by byte, then the start of each later block, where a record must begin.
fn valid_record_after(bytes: &[u8], bad: usize) -> Option<usize> {
    let block_end = (bad / BLOCK + 1) * BLOCK;
    let in_block = bad + 1..block_end.min(bytes.len());
    let block_starts = (block_end..bytes.len()).step_by(BLOCK);
    in_block.chain(block_starts).find(|at| record_at(bytes, *at).is_some())
}

/// The length of the valid record at `at`, head included.
fn record_at(bytes: &[u8], at: usize) -> Option<usize> {
    let left_in_block = BLOCK - at % BLOCK;
    let record = &bytes[at..bytes.len().min(at + left_in_block)];
    let stored = u32::from_le_bytes(record.get(..4)?.try_into().ok()?);
    let length = usize::from(u16::from_le_bytes(record.get(4..6)?.try_into().ok()?));
    let kind = *record.get(6)?;
    let head = match kind {
        0 => return None,
        // Recyclable records, and the recyclable form of the later kinds.
        5..=8 | 11 | 131 => RECYCLED_HEAD,
        _ => HEAD,
    };
    // The checksum begins at the type byte and covers what follows it.
    let covered = record.get(6..head + length)?;
    (mask(crc32c(covered)) == stored).then_some(head + length)
}

fn mask(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8))
}

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(payload: &[u8]) -> Vec<u8> {
        let mut covered = vec![1];
        covered.extend_from_slice(payload);
        let length = u16::try_from(payload.len()).unwrap();
        [&mask(crc32c(&covered)).to_le_bytes()[..], &length.to_le_bytes(), &covered].concat()
    }

    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_cut_record_is_a_torn_tail_and_a_damaged_one_before_another_is_refused() {
        let log = [record(b"first"), record(b"second"), record(b"third")].concat();
        let torn = check_file(PathBuf::from("1.log"), &log[..log.len() - 1]).unwrap();
        assert_eq!(torn.unwrap().offset, (log.len() - 12) as u64);
        for byte in 0..record(b"first").len() {
            let mut damaged = log.clone();
            damaged[byte] ^= 1;
            assert!(check_file(PathBuf::from("1.log"), &damaged).is_err(), "byte {byte}");
        }
    }
}
