//! A row of the log is an entry or is refused, whatever its bytes; what is an entry is written again as the same one. Its
//! batch is one or is refused, is encoded again as the same one, and replays or is refused.

use quorate_metadata::Ledger;
use quorate_node::raft::{EntryKind, StoredEntry};
use quorate_proto::batch;

const KEY: usize = 8;
const VERSION: u8 = 1;

/// `bytes`: the key, and then the value as it is or, since no fuzzer guesses a checksum, the body of one.
pub fn check(bytes: &[u8]) {
    let (key, rest) = bytes.split_at(bytes.len().min(KEY));
    let _ = StoredEntry::decode(key, rest);
    let Ok(entry) = StoredEntry::decode(key, &sealed(key, rest)) else { return };
    let again = StoredEntry::decode(key, &entry.encode());
    assert_eq!(again.as_ref(), Ok(&entry));
    let dumped = entry.dump();
    if dumped.kind == EntryKind::Normal {
        check_payload(&dumped.payload);
    }
}

fn sealed(key: &[u8], body: &[u8]) -> Vec<u8> {
    let checksum = crc32fast::hash(&[key, body].concat());
    [&[VERSION], &checksum.to_le_bytes()[..], body].concat()
}

fn check_payload(payload: &[u8]) {
    let Ok((base, batch)) = batch::decode(payload) else { return };
    let again = batch::decode(&batch::encode(base, &batch));
    assert_eq!(again.as_ref(), Ok(&(base, batch.clone())));
    let mut ledger = Ledger::default();
    if ledger.replay(&batch).is_err() {
        assert_eq!(ledger, Ledger::default(), "a batch that is refused changes nothing");
    }
}
