//! The last changes of a partition, encoded: about 15 bytes each, where a `ChangeNote` has 40.
//!
//! One change is inline, more are on the heap. A note is a byte with the tag of its cause and three flags, followed by
//! what it has of: the broker of the cause, offset, time, leader, leader epoch, each as a LEB128 number.

use std::fmt;
use std::iter::from_fn;

use crate::ids::{BrokerId, LeaderEpoch, Offset};
use crate::record::{Cause, ChangeNote};

/// What fits beside its length, the count and the tag into the 24 bytes that the pointer to a longer one takes.
const INLINE_BYTES: usize = 21;

/// Flags in the first byte of a note. Tags of causes are below them.
const UNCLEAN: u8 = 0x80;
const HAS_LEADER: u8 = 0x40;
const HAS_CAUSING_BROKER: u8 = 0x20;
const TAG: u8 = 0x1f;

#[derive(Clone)]
pub(crate) enum History {
    Inline { count: u8, len: u8, bytes: [u8; INLINE_BYTES] },
    Boxed { count: u32, bytes: Box<[u8]> },
}

impl History {
    /// Oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = ChangeNote> {
        let mut rest = self.bytes();
        from_fn(move || (!rest.is_empty()).then(|| read_note(&mut rest)))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Inline { count, .. } => usize::from(*count),
            Self::Boxed { count, .. } => *count as usize,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a change; of more than `max` the oldest are dropped.
    pub(crate) fn push(&mut self, note: &ChangeNote, max: usize) {
        let surplus = (self.len() + 1).saturating_sub(max);
        let mut kept = self.bytes();
        for _ in 0..surplus {
            read_note(&mut kept);
        }
        let mut bytes = Vec::with_capacity(kept.len() + INLINE_BYTES);
        bytes.extend_from_slice(kept);
        write_note(&mut bytes, note);
        *self = Self::encoded(self.len() + 1 - surplus, bytes);
    }

    fn encoded(count: usize, encoded: Vec<u8>) -> Self {
        let mut bytes = [0; INLINE_BYTES];
        match (bytes.get_mut(..encoded.len()), u8::try_from(count), u8::try_from(encoded.len())) {
            (Some(inline), Ok(count), Ok(len)) => {
                inline.copy_from_slice(&encoded);
                Self::Inline { count, len, bytes }
            }
            _ => {
                let count = u32::try_from(count).expect("a record has fewer notes");
                Self::Boxed { count, bytes: encoded.into_boxed_slice() }
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Inline { len, bytes, .. } => &bytes[..usize::from(*len)],
            Self::Boxed { bytes, .. } => bytes,
        }
    }
}

impl From<&[ChangeNote]> for History {
    fn from(notes: &[ChangeNote]) -> Self {
        let mut bytes = Vec::with_capacity(INLINE_BYTES * notes.len());
        notes.iter().for_each(|note| write_note(&mut bytes, note));
        Self::encoded(notes.len(), bytes)
    }
}

impl PartialEq for History {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for History {}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

fn write_note(out: &mut Vec<u8>, note: &ChangeNote) {
    let ChangeNote { cause, offset, time_ms, leader, leader_epoch, unclean } = note;
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    let by = cause.broker();
    out.push(
        cause.tag()
            | flag(*unclean, UNCLEAN)
            | flag(leader.is_some(), HAS_LEADER)
            | flag(by.is_some(), HAS_CAUSING_BROKER),
    );
    by.iter().for_each(|broker| write_broker(out, broker));
    write_number(out, offset.get().cast_unsigned());
    write_number(out, time_ms.cast_unsigned());
    leader.iter().for_each(|leader| write_broker(out, leader));
    write_number(out, u64::from(leader_epoch.get().cast_unsigned()));
}

fn read_note(rest: &mut &[u8]) -> ChangeNote {
    let first = read_byte(rest);
    let by = (first & HAS_CAUSING_BROKER != 0).then(|| BrokerId::new(read_i32(rest)));
    ChangeNote {
        cause: Cause::from_tag(first & TAG, by).expect("it was encoded from a cause"),
        offset: Offset::new(read_number(rest).cast_signed()),
        time_ms: read_number(rest).cast_signed(),
        leader: (first & HAS_LEADER != 0).then(|| BrokerId::new(read_i32(rest))),
        leader_epoch: LeaderEpoch::new(read_i32(rest)),
        unclean: first & UNCLEAN != 0,
    }
}

fn write_broker(out: &mut Vec<u8>, broker: &BrokerId) {
    write_number(out, u64::from(broker.get().cast_unsigned()));
}

fn write_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn read_byte(rest: &mut &[u8]) -> u8 {
    let (first, others) = rest.split_first().expect("a note is encoded as a whole");
    *rest = others;
    *first
}

fn read_number(rest: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..).step_by(7) {
        let byte = read_byte(rest);
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    number
}

fn read_i32(rest: &mut &[u8]) -> i32 {
    u32::try_from(read_number(rest)).expect("it was encoded from 32 bits").cast_signed()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn broker() -> impl Strategy<Value = BrokerId> {
        prop_oneof![0..3_i32, any::<i32>()].prop_map(BrokerId::new)
    }

    fn note() -> impl Strategy<Value = ChangeNote> {
        let cause = (1..=Cause::TAG_MAX, broker()).prop_map(|(tag, by)| {
            Cause::from_tag(tag, Some(by)).or_else(|| Cause::from_tag(tag, None)).expect("each tag has a cause")
        });
        (cause, any::<i64>(), any::<i64>(), prop::option::of(broker()), any::<i32>(), any::<bool>()).prop_map(
            |(cause, offset, time_ms, leader, leader_epoch, unclean)| {
                let (offset, leader_epoch) = (Offset::new(offset), LeaderEpoch::new(leader_epoch));
                ChangeNote { cause, offset, time_ms, leader, leader_epoch, unclean }
            },
        )
    }

    proptest! {
        #[test]
        fn notes_survive_their_encoding(notes in prop::collection::vec(note(), 0..6)) {
            let mut history = History::from(&notes[..]);
            prop_assert_eq!(history.iter().collect::<Vec<_>>(), &notes[..]);
            prop_assert_eq!(history.len(), notes.len());
            prop_assert_eq!(history.is_empty(), notes.is_empty());
            let Some(last) = notes.last() else { return Ok(()) };
            history.push(last, 4);
            let all: Vec<_> = notes.iter().chain([last]).copied().collect();
            prop_assert_eq!(history, History::from(&all[all.len().saturating_sub(4)..]));
        }
    }

    #[test]
    fn the_creation_of_a_partition_is_noted_inline() {
        let created = ChangeNote {
            cause: Cause::Created,
            offset: Offset::new(1 << 34),
            time_ms: 1 << 41,
            leader: Some(BrokerId::new(16_000)),
            leader_epoch: LeaderEpoch::new(0),
            unclean: false,
        };
        assert!(matches!(History::from(&[created][..]), History::Inline { .. }));
        assert_eq!(size_of::<History>(), 24);
    }
}
