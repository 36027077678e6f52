//! A list of brokers in 16 bytes: up to three are inline, a longer list is shared by its clones.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::ids::BrokerId;

/// The usual replication factor.
const INLINE_MAX: usize = 3;

/// Used as the slice that it dereferences to.
#[derive(Clone)]
pub struct BrokerList(Form);

#[derive(Clone)]
enum Form {
    Inline { len: u8, brokers: [BrokerId; INLINE_MAX] },
    Shared(Arc<Vec<BrokerId>>),
}

impl BrokerList {
    pub(super) const EMPTY: Self = Self(Form::Inline { len: 0, brokers: [BrokerId::new(0); INLINE_MAX] });

    fn inline(list: &[BrokerId]) -> Option<Self> {
        let mut brokers = [BrokerId::default(); INLINE_MAX];
        brokers.get_mut(..list.len())?.copy_from_slice(list);
        let len = u8::try_from(list.len()).ok()?;
        Some(Self(Form::Inline { len, brokers }))
    }
}

impl Default for BrokerList {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl Deref for BrokerList {
    type Target = [BrokerId];

    fn deref(&self) -> &[BrokerId] {
        match &self.0 {
            Form::Inline { len, brokers } => &brokers[..usize::from(*len)],
            Form::Shared(brokers) => brokers,
        }
    }
}

impl From<Vec<BrokerId>> for BrokerList {
    fn from(list: Vec<BrokerId>) -> Self {
        Self::inline(&list).unwrap_or_else(|| Self(Form::Shared(Arc::new(list))))
    }
}

impl From<&[BrokerId]> for BrokerList {
    fn from(list: &[BrokerId]) -> Self {
        Self::inline(list).unwrap_or_else(|| Self(Form::Shared(Arc::new(list.to_vec()))))
    }
}

impl FromIterator<BrokerId> for BrokerList {
    fn from_iter<I: IntoIterator<Item = BrokerId>>(brokers: I) -> Self {
        let mut rest = brokers.into_iter();
        let mut inline = [BrokerId::default(); INLINE_MAX];
        let mut len = 0;
        for (slot, broker) in inline.iter_mut().zip(rest.by_ref()) {
            *slot = broker;
            len += 1;
        }
        match rest.next() {
            None => Self(Form::Inline { len, brokers: inline }),
            Some(next) => Self(Form::Shared(Arc::new(inline.into_iter().chain([next]).chain(rest).collect()))),
        }
    }
}

impl<'a> IntoIterator for &'a BrokerList {
    type Item = &'a BrokerId;
    type IntoIter = std::slice::Iter<'a, BrokerId>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl PartialEq for BrokerList {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for BrokerList {}

impl<L: AsRef<[BrokerId]>> PartialEq<L> for BrokerList {
    fn eq(&self, other: &L) -> bool {
        **self == *other.as_ref()
    }
}

impl PartialEq<BrokerList> for Vec<BrokerId> {
    fn eq(&self, other: &BrokerList) -> bool {
        self[..] == other[..]
    }
}

impl fmt::Debug for BrokerList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_any_length_is_its_brokers() {
        assert_eq!(size_of::<BrokerList>(), 16);
        for len in 0..6 {
            let brokers: Vec<BrokerId> = (0..len).map(BrokerId::new).collect();
            let list = BrokerList::from(brokers.clone());
            assert_eq!(list, brokers);
            assert_eq!(list, BrokerList::from(&brokers[..]));
            assert_eq!(list, brokers.iter().copied().collect::<BrokerList>());
        }
    }
}
