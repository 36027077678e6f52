//! A set of partition numbers of one topic: small, and cheap to clone and to change.
//!
//! Up to three numbers are inline. A larger set is cut into chunks of 16 384 numbers, each a sorted array or a bitmap,
//! whichever is smaller, behind an `Arc`: a clone copies one pointer, and the first change after it copies the list of
//! chunks and one chunk of at most 2 KiB.
//!
//! Invariant: the form follows from the members alone, so that equal sets are equal values.

use std::iter::{from_fn, once};
use std::sync::Arc;

/// With its length and the tag as long as a pointer and the tag.
const INLINE_MAX: usize = 3;

/// Numbers per chunk. A change copies a chunk and the list of chunks, which touches each of them: this many balance
/// the two, with 2 KiB as a bitmap and 61 chunks for a million partitions.
const CHUNK_SPAN: u32 = 16_384;

const WORDS_PER_CHUNK: usize = CHUNK_SPAN as usize / 64;

/// Members of a sorted array; of more, the bitmap is smaller.
const SPARSE_MAX: usize = CHUNK_SPAN as usize / 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PartitionSet {
    /// Sorted; what is beyond `len` is 0.
    Few {
        len: u8,
        members: [u32; INLINE_MAX],
    },
    Many(Arc<Chunks>),
}

impl Default for PartitionSet {
    fn default() -> Self {
        Self::Few { len: 0, members: [0; INLINE_MAX] }
    }
}

impl PartitionSet {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Few { len, .. } => usize::from(*len),
            Self::Many(chunks) => chunks.len,
        }
    }

    /// The members in ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        let (few, many) = match self {
            Self::Few { len, members } => (&members[..usize::from(*len)], None),
            Self::Many(chunks) => (&[][..], Some(chunks)),
        };
        few.iter().copied().chain(many.into_iter().flat_map(|chunks| chunks.iter()))
    }

    /// As `iter`, from `first` on. The chunks before it are not looked at.
    pub(super) fn iter_from(&self, first: u32) -> impl Iterator<Item = u32> {
        let (few, many) = match self {
            Self::Few { len, members } => (&members[..usize::from(*len)], None),
            Self::Many(chunks) => (&[][..], Some(chunks)),
        };
        let many = many.into_iter().flat_map(move |chunks| chunks.iter_from(first));
        few.iter().copied().filter(move |number| *number >= first).chain(many)
    }

    /// As `iter_from`, of those that `others` does not have. Both are walked once: a look-up for each member costs more.
    pub(super) fn iter_without<'a>(&'a self, others: Option<&'a Self>, first: u32) -> impl Iterator<Item = u32> + 'a {
        let mut others = others.into_iter().flat_map(move |others| others.iter_from(first)).peekable();
        self.iter_from(first).filter(move |number| {
            while others.next_if(|other| other < number).is_some() {}
            others.peek() != Some(number)
        })
    }

    pub(super) fn contains(&self, number: u32) -> bool {
        match self {
            Self::Few { len, members } => members[..usize::from(*len)].contains(&number),
            Self::Many(chunks) => chunks.contains(number),
        }
    }

    /// Whether `number` was not a member before.
    pub(super) fn insert(&mut self, number: u32) -> bool {
        match self {
            Self::Few { len, members } => {
                let held = usize::from(*len);
                let Err(at) = members[..held].binary_search(&number) else { return false };
                if held == INLINE_MAX {
                    *self = Self::Many(Arc::new(members.iter().copied().chain(once(number)).collect()));
                    return true;
                }
                members.copy_within(at..held, at + 1);
                members[at] = number;
                *len += 1;
                true
            }
            Self::Many(chunks) => Arc::make_mut(chunks).insert(number),
        }
    }

    /// Whether `number` was a member before.
    pub(super) fn remove(&mut self, number: u32) -> bool {
        match self {
            Self::Few { len, members } => {
                let held = usize::from(*len);
                let Ok(at) = members[..held].binary_search(&number) else { return false };
                members.copy_within(at + 1..held, at);
                members[held - 1] = 0;
                *len -= 1;
                true
            }
            Self::Many(chunks) => {
                let was_member = Arc::make_mut(chunks).remove(number);
                if chunks.len <= INLINE_MAX {
                    *self = chunks.iter().collect();
                }
                was_member
            }
        }
    }
}

impl FromIterator<u32> for PartitionSet {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        let mut set = Self::default();
        for number in numbers {
            set.insert(number);
        }
        set
    }
}

/// More members than fit inline. No chunk is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chunks {
    len: usize,
    /// By number divided by `CHUNK_SPAN`, ascending.
    chunks: Vec<(u32, Chunk)>,
}

impl Chunks {
    fn iter(&self) -> impl Iterator<Item = u32> {
        self.chunks.iter().flat_map(|(at, chunk)| chunk.iter().map(move |offset| at * CHUNK_SPAN + u32::from(offset)))
    }

    fn iter_from(&self, first: u32) -> impl Iterator<Item = u32> {
        let (chunk, _) = place_of(first);
        let begin = self.chunks.partition_point(|(at, _)| *at < chunk);
        let numbers = self.chunks[begin..]
            .iter()
            .flat_map(|(at, chunk)| chunk.iter().map(move |offset| at * CHUNK_SPAN + u32::from(offset)));
        numbers.skip_while(move |number| *number < first)
    }

    fn contains(&self, number: u32) -> bool {
        let (chunk, offset) = place_of(number);
        let found = self.chunks.binary_search_by_key(&chunk, |(at, _)| *at);
        found.is_ok_and(|at| self.chunks[at].1.contains(offset))
    }

    fn insert(&mut self, number: u32) -> bool {
        let (chunk, offset) = place_of(number);
        let is_new = match self.chunks.binary_search_by_key(&chunk, |(at, _)| *at) {
            Ok(at) => self.chunks[at].1.insert(offset),
            Err(at) => {
                // Most topics need one chunk, where a growing list would take room for four.
                self.chunks.reserve_exact(1);
                self.chunks.insert(at, (chunk, Chunk::Sparse(Arc::new(vec![offset]))));
                true
            }
        };
        self.len += usize::from(is_new);
        is_new
    }

    fn remove(&mut self, number: u32) -> bool {
        let (chunk, offset) = place_of(number);
        let Ok(at) = self.chunks.binary_search_by_key(&chunk, |(at, _)| *at) else { return false };
        let was_member = self.chunks[at].1.remove(offset);
        if self.chunks[at].1.is_empty() {
            self.chunks.remove(at);
        }
        self.len -= usize::from(was_member);
        was_member
    }
}

impl FromIterator<u32> for Chunks {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        let mut chunks = Self::default();
        for number in numbers {
            chunks.insert(number);
        }
        chunks
    }
}

/// The chunk of a number, and its offset there.
fn place_of(number: u32) -> (u32, u16) {
    let offset = u16::try_from(number % CHUNK_SPAN).expect("a chunk spans less than u16 can count");
    (number / CHUNK_SPAN, offset)
}

/// Sparse with up to `SPARSE_MAX` members, dense with more.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Chunk {
    /// Ascending.
    Sparse(Arc<Vec<u16>>),
    Dense(Arc<[u64; WORDS_PER_CHUNK]>),
}

impl Chunk {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Sparse(members) if members.is_empty())
    }

    fn iter(&self) -> impl Iterator<Item = u16> {
        let (sparse, dense) = match self {
            Self::Sparse(members) => (&members[..], &[][..]),
            Self::Dense(words) => (&[][..], &words[..]),
        };
        sparse
            .iter()
            .copied()
            .chain((0..=u16::MAX).step_by(64).zip(dense).flat_map(|(base, &word)| members_of(base, word)))
    }

    fn contains(&self, offset: u16) -> bool {
        match self {
            Self::Sparse(members) => members.binary_search(&offset).is_ok(),
            Self::Dense(words) => {
                let (word, bit) = bit_of(offset);
                words[word] & bit != 0
            }
        }
    }

    fn insert(&mut self, offset: u16) -> bool {
        match self {
            Self::Sparse(members) => {
                let Err(at) = members.binary_search(&offset) else { return false };
                if members.len() < SPARSE_MAX {
                    Arc::make_mut(members).insert(at, offset);
                } else {
                    *self = Self::dense(members.iter().copied().chain(once(offset)));
                }
                true
            }
            Self::Dense(words) => {
                let (word, bit) = bit_of(offset);
                let is_new = words[word] & bit == 0;
                Arc::make_mut(words)[word] |= bit;
                is_new
            }
        }
    }

    fn remove(&mut self, offset: u16) -> bool {
        match self {
            Self::Sparse(members) => {
                let Ok(at) = members.binary_search(&offset) else { return false };
                Arc::make_mut(members).remove(at);
                true
            }
            Self::Dense(words) => {
                let (word, bit) = bit_of(offset);
                let was_member = words[word] & bit != 0;
                Arc::make_mut(words)[word] &= !bit;
                if words.iter().map(|word| word.count_ones()).sum::<u32>() as usize <= SPARSE_MAX {
                    *self = Self::Sparse(Arc::new(self.iter().collect()));
                }
                was_member
            }
        }
    }

    fn dense(offsets: impl Iterator<Item = u16>) -> Self {
        let mut words = [0; WORDS_PER_CHUNK];
        for (word, bit) in offsets.map(bit_of) {
            words[word] |= bit;
        }
        Self::Dense(Arc::new(words))
    }
}

fn bit_of(offset: u16) -> (usize, u64) {
    (usize::from(offset / 64), 1 << (offset % 64))
}

/// The bits that are set, ascending from `base`.
fn members_of(base: u16, mut word: u64) -> impl Iterator<Item = u16> {
    from_fn(move || {
        let lowest = (word != 0).then(|| word.trailing_zeros() as u16)?;
        word &= word - 1;
        Some(base + lowest)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn numbers() -> impl Strategy<Value = u32> {
        // Few numbers at a chunk's border, so that sets shrink to nothing; many in one chunk, so that it becomes dense.
        prop_oneof![1 => 0..4_u32, 1 => CHUNK_SPAN - 2..CHUNK_SPAN + 2, 8 => 3 * CHUNK_SPAN..3 * CHUNK_SPAN + 1_600]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_set_has_the_members_of_a_btree_set(
            changes in prop::collection::vec((any::<bool>(), numbers()), 0..6_000),
            inserts_first in 0..5_000_usize,
        ) {
            let (mut set, mut model) = (PartitionSet::default(), BTreeSet::new());
            for (at, (inserts, number)) in changes.into_iter().enumerate() {
                if inserts || at < inserts_first {
                    prop_assert_eq!(set.insert(number), model.insert(number));
                } else {
                    prop_assert_eq!(set.remove(number), model.remove(&number));
                }
                prop_assert_eq!(set.len(), model.len());
            }
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            for first in [0, 3, CHUNK_SPAN - 1, CHUNK_SPAN + 1, 3 * CHUNK_SPAN + 700] {
                let expected: Vec<u32> = model.range(first..).copied().collect();
                prop_assert_eq!(set.iter_from(first).collect::<Vec<_>>(), expected);
            }
            prop_assert_eq!(&set, &model.iter().copied().collect());
            prop_assert!((0..4 * CHUNK_SPAN).all(|number| set.contains(number) == model.contains(&number)));
        }
    }

    #[test]
    fn a_set_emptied_from_every_form_is_the_empty_set() {
        for members in [1, 3, 4, 1_024, 1_025, CHUNK_SPAN, CHUNK_SPAN + 1_000] {
            let mut set: PartitionSet = (0..members).collect();
            let before = set.clone();
            assert!(set.remove(members - 1) && set.insert(members - 1) && set.remove(members - 1), "{members}");
            assert_eq!(set, (0..members - 1).collect(), "{members}");
            set.insert(members - 1);
            assert!((0..members).rev().all(|number| set.remove(number)), "{members}");
            assert_eq!(set, PartitionSet::default(), "{members}");
            assert!(before.iter().eq(0..members), "a clone keeps its members");
        }
    }

    #[test]
    fn a_set_is_as_small_as_it_says() {
        assert_eq!(size_of::<PartitionSet>(), 16);
        assert_eq!(size_of::<(u32, Chunk)>(), 24);
    }
}
