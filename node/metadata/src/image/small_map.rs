//! A map that is small for few entries and cheap to change for many: a sorted array up to a bound, and a tree above it.
//!
//! Invariants: no value is the default one, and the form follows from the number of entries alone, so that equal contents
//! are equal values.

use std::sync::Arc;

use imbl::OrdMap;

/// Entries of the array, which a change copies as a whole.
const FEW_MAX: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SmallMap<K: Ord + Copy, V: Clone> {
    /// Ascending by key.
    Few(Arc<Vec<(K, V)>>),
    Many(OrdMap<K, V>),
}

impl<K: Ord + Copy, V: Clone> Default for SmallMap<K, V> {
    fn default() -> Self {
        Self::Few(Arc::default())
    }
}

impl<K: Ord + Copy, V: Clone + Default + PartialEq> SmallMap<K, V> {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Few(entries) if entries.is_empty())
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        match self {
            Self::Few(entries) => position(entries, key).ok().map(|at| &entries[at].1),
            Self::Many(entries) => entries.get(key),
        }
    }

    /// Ascending by key.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let (few, many) = match self {
            Self::Few(entries) => (&entries[..], None),
            Self::Many(entries) => (&[][..], Some(entries)),
        };
        few.iter().map(|(key, value)| (key, value)).chain(many.into_iter().flatten())
    }

    /// Changes the value at `key`, which is the default one where there is none.
    pub(super) fn change<R>(&mut self, key: K, change: impl FnOnce(&mut V) -> R) -> R {
        match self {
            Self::Few(entries) => {
                let entries = Arc::make_mut(entries);
                let at = position(entries, &key).unwrap_or_else(|at| {
                    entries.insert(at, (key, V::default()));
                    at
                });
                let result = change(&mut entries[at].1);
                if entries[at].1 == V::default() {
                    entries.remove(at);
                } else if entries.len() > FEW_MAX {
                    *self = Self::Many(entries.iter().cloned().collect());
                }
                result
            }
            Self::Many(entries) => {
                if !entries.contains_key(&key) {
                    entries.insert(key, V::default());
                }
                let value = entries.get_mut(&key).expect("it was just inserted");
                let result = change(value);
                if *value == V::default() {
                    entries.remove(&key);
                }
                if entries.len() <= FEW_MAX {
                    *self = Self::Few(Arc::new(entries.iter().map(|(key, value)| (*key, value.clone())).collect()));
                }
                result
            }
        }
    }
}

/// Where the key is, or else where it belongs.
fn position<K: Ord, V>(entries: &[(K, V)], key: &K) -> Result<usize, usize> {
    entries.binary_search_by(|(other, _)| other.cmp(key))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_map_has_the_entries_of_a_btree_map(changes in prop::collection::vec((0..48_u16, 0..3_u8), 0..600)) {
            let (mut map, mut model) = (SmallMap::default(), BTreeMap::new());
            for (key, value) in changes {
                map.change(key, |now| *now = value);
                if value == 0 { model.remove(&key); } else { model.insert(key, value); }
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert_eq!(map.is_empty(), model.is_empty());
                prop_assert_eq!(matches!(map, SmallMap::Few(_)), model.len() <= FEW_MAX, "the form follows from the size");
            }
            prop_assert!(map.iter().eq(model.iter()));
            let mut other = SmallMap::default();
            model.iter().rev().for_each(|(&key, &value)| other.change(key, |now| *now = value));
            prop_assert_eq!(&map, &other, "equal contents are equal values");
        }
    }

    #[test]
    fn a_clone_keeps_its_entries() {
        for entries in [1, FEW_MAX, FEW_MAX + 1] {
            let mut map = SmallMap::default();
            (0..entries).for_each(|key| map.change(key, |now| *now = 1));
            let before = map.clone();
            (0..entries).for_each(|key| map.change(key, |now| *now = 0));
            assert!(map.is_empty() && before.iter().count() == entries, "{entries}");
        }
    }
}
