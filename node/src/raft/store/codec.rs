//! The bytes of one stored value: `version u8 | crc32 u32 LE | body`. The checksum covers the key too, so that a value
//! under another's key is found out. An entry's body: `term u64 BE | kind u8 | payload`.

use bytes::Bytes;
use openraft::EntryPayload;
use prost::Message;
use quorate_metadata::mutant::Mutant;
use quorate_proto::raft as proto;

use super::super::types::{Entry, LogId, Payload, Vote};
use super::super::wire;

const VERSION: u8 = 1;
const HEAD: usize = 5;
const ENTRY_HEAD: usize = 9;

const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

pub fn seal(key: &[u8], body: &[&[u8]]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEAD + body.iter().map(|part| part.len()).sum::<usize>());
    value.push(VERSION);
    value.extend_from_slice(&[0; 4]);
    body.iter().for_each(|part| value.extend_from_slice(part));
    let checksum = checksum(key, &value[HEAD..]);
    value[1..HEAD].copy_from_slice(&checksum.to_le_bytes());
    value
}

pub fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], String> {
    if value.len() < HEAD {
        return Err(format!("value of {} bytes", value.len()));
    }
    if value[0] != VERSION {
        return Err(format!("version {} is not known to this release", value[0]));
    }
    let stored = u32::from_le_bytes(value[1..HEAD].try_into().expect("four bytes"));
    if stored != checksum(key, &value[HEAD..]) && !Mutant::UncheckedBytes.is_on() {
        return Err("checksum mismatch".into());
    }
    Ok(&value[HEAD..])
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

pub fn entry_key(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    let membership;
    let (kind, payload): (u8, &[u8]) = match &entry.payload {
        EntryPayload::Blank => (BLANK, &[]),
        EntryPayload::Normal(Payload(bytes)) => (NORMAL, bytes),
        EntryPayload::Membership(value) => {
            membership = wire::membership_out(value).encode_to_vec();
            (MEMBERSHIP, &membership)
        }
    };
    let term = entry.log_id.leader_id.term.to_be_bytes();
    seal(&entry_key(entry.log_id.index), &[&term, &[kind], payload])
}

pub fn decode_entry(key: &[u8], value: &[u8]) -> Result<Entry, String> {
    let index = u64::from_be_bytes(key.try_into().map_err(|_| "key is not an index")?);
    let body = unseal(key, value)?;
    if body.len() < ENTRY_HEAD {
        return Err("entry is cut short".into());
    }
    let term = u64::from_be_bytes(body[..8].try_into().expect("eight bytes"));
    let payload = &body[ENTRY_HEAD..];
    let payload = match body[8] {
        BLANK => EntryPayload::Blank,
        NORMAL => EntryPayload::Normal(Payload(Bytes::copy_from_slice(payload))),
        MEMBERSHIP => EntryPayload::Membership(decode_membership(payload)?),
        kind => return Err(format!("entry kind {kind} is not known to this release")),
    };
    Ok(Entry { log_id: wire::log_id(term, index), payload })
}

fn decode_membership(bytes: &[u8]) -> Result<super::super::types::Membership, String> {
    let membership = proto::Membership::decode(bytes).map_err(|error| error.to_string())?;
    wire::membership_in(membership).map_err(|error| error.to_string())
}

pub fn encode_vote(key: &[u8], vote: &Vote) -> Vec<u8> {
    seal(key, &[&wire::vote_out(vote).encode_to_vec()])
}

pub fn decode_number(key: &[u8], value: &[u8]) -> Result<u64, String> {
    let body = unseal(key, value)?;
    Ok(u64::from_be_bytes(body.try_into().map_err(|_| format!("number of {} bytes", body.len()))?))
}

pub fn decode_vote(key: &[u8], value: &[u8]) -> Result<Vote, String> {
    let vote = proto::Vote::decode(unseal(key, value)?).map_err(|error| error.to_string())?;
    wire::vote_in(Some(vote)).map_err(|error| error.to_string())
}

pub fn encode_log_id(key: &[u8], id: LogId) -> Vec<u8> {
    seal(key, &[&wire::log_id_out(id).encode_to_vec()])
}

pub fn decode_log_id(key: &[u8], value: &[u8]) -> Result<LogId, String> {
    let id = proto::LogId::decode(unseal(key, value)?).map_err(|error| error.to_string())?;
    wire::log_id_in(id).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(payload: EntryPayload<Payload, u64, super::super::super::types::VoterNode>) -> Entry {
        Entry { log_id: wire::log_id(7, 42), payload }
    }

    #[test]
    fn an_entry_survives_its_bytes() {
        for payload in [EntryPayload::Blank, EntryPayload::Normal(Payload("abc".into()))] {
            let entry = entry(payload);
            assert_eq!(decode_entry(&entry_key(42), &encode_entry(&entry)).unwrap(), entry);
        }
    }

    #[test]
    fn every_flipped_bit_and_a_foreign_key_are_found_out() {
        let value = encode_entry(&entry(EntryPayload::Normal(Payload("abc".into()))));
        assert!(decode_entry(&entry_key(43), &value).is_err());
        for bit in 0..value.len() * 8 {
            let mut flipped = value.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_entry(&entry_key(42), &flipped).is_err(), "bit {bit}");
        }
    }
}
