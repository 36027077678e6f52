//! The log directories of a partition's replicas, as pointers to ids that the partitions of an image share.
//!
//! A cluster has few directories and each holds many replicas. Eight bytes a replica instead of sixteen is also less
//! than a list of ids shared by the partitions with equal lists: of 1 000 brokers few partitions have equal lists.

use std::fmt;
use std::sync::Arc;

use imbl::OrdMap;

use crate::ids::DirectoryId;

/// The usual replication factor.
const INLINE_MAX: usize = 3;

/// `None` is `DirectoryId::UNASSIGNED`.
type Shared = Option<Arc<DirectoryId>>;

#[derive(Clone)]
pub(crate) enum DirectoryList {
    Inline { len: u8, directories: [Shared; INLINE_MAX] },
    Shared(Arc<Vec<Shared>>),
}

impl DirectoryList {
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = DirectoryId> {
        self.as_slice().iter().map(|shared| shared.as_deref().copied().unwrap_or(DirectoryId::UNASSIGNED))
    }

    fn as_slice(&self) -> &[Shared] {
        match self {
            Self::Inline { len, directories } => &directories[..usize::from(*len)],
            Self::Shared(directories) => directories,
        }
    }

    /// Replaces each id by the one that `known` has.
    pub(crate) fn share(&mut self, known: &SharedDirectories) {
        let directories = match self {
            Self::Inline { directories, .. } => directories.as_mut_slice(),
            Self::Shared(directories) => Arc::make_mut(directories).as_mut_slice(),
        };
        for directory in directories.iter_mut().flatten() {
            if let Some(shared) = known.0.get(&**directory) {
                *directory = shared.clone();
            }
        }
    }
}

impl FromIterator<DirectoryId> for DirectoryList {
    fn from_iter<I: IntoIterator<Item = DirectoryId>>(ids: I) -> Self {
        let shared = |id| (id != DirectoryId::UNASSIGNED).then(|| Arc::new(id));
        let mut rest = ids.into_iter().map(shared);
        let mut directories = [const { None }; INLINE_MAX];
        let mut len = 0;
        for (slot, directory) in directories.iter_mut().zip(rest.by_ref()) {
            *slot = directory;
            len += 1;
        }
        match rest.next() {
            None => Self::Inline { len, directories },
            Some(next) => Self::Shared(Arc::new(directories.into_iter().chain([next]).chain(rest).collect())),
        }
    }
}

impl PartialEq for DirectoryList {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for DirectoryList {}

impl fmt::Debug for DirectoryList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The directories of the registered brokers, to be shared by the partitions that have replicas there.
///
/// A cache: two images are equal whatever they share.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedDirectories(OrdMap<DirectoryId, Arc<DirectoryId>>);

impl SharedDirectories {
    /// A broker has other directories than before.
    pub(crate) fn replace(&mut self, before: &[DirectoryId], after: &[DirectoryId]) {
        for directory in before.iter().filter(|directory| !after.contains(directory)) {
            self.0.remove(directory);
        }
        for &directory in after {
            self.0.entry(directory).or_insert_with(|| Arc::new(directory));
        }
    }
}

impl PartialEq for SharedDirectories {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for SharedDirectories {}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u8]) -> Vec<DirectoryId> {
        numbers.iter().map(|&number| DirectoryId::from_bytes([number; 16])).collect()
    }

    #[test]
    fn a_list_of_any_length_is_its_directories() {
        assert_eq!(size_of::<DirectoryList>(), 32);
        for len in 0..6 {
            // 0 is unassigned.
            let ids = ids(&(0..len).collect::<Vec<u8>>());
            let list: DirectoryList = ids.iter().copied().collect();
            assert_eq!(list.iter().collect::<Vec<_>>(), ids);
        }
    }

    #[test]
    fn lists_share_the_directories_of_registered_brokers() {
        let mut known = SharedDirectories::default();
        known.replace(&[], &ids(&[1, 2]));
        known.replace(&ids(&[1, 2]), &ids(&[2, 3]));
        for numbers in [&[1, 2, 3][..], &[1, 2, 3, 4]] {
            let mut list: DirectoryList = ids(numbers).into_iter().collect();
            let before = list.clone();
            list.share(&known);
            assert_eq!(list, before);
            let is_known =
                |shared: &&Shared| known.0.values().any(|id| shared.as_ref().is_some_and(|at| Arc::ptr_eq(at, id)));
            assert_eq!(list.as_slice().iter().filter(is_known).count(), 2);
        }
    }
}
