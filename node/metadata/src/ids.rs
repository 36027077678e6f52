//! The names of things. Each id is its own type, so that a broker cannot be passed for a partition
//! and an epoch cannot be compared with an offset. Widths are Kafka's: ids and epochs i32, offsets i64.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name($inner);

        impl $name {
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

macro_rules! counter {
    ($name:ident) => {
        impl $name {
            /// The next one. Panics at the end of the range: wrapping would let an old epoch win.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect(concat!(stringify!($name), " exhausted")))
            }
        }
    };
}

number!(
    /// A broker. Shares its namespace with controllers, as in Kafka.
    BrokerId(i32)
);
number!(
    /// A controller node, voter or not.
    ControllerId(i32)
);
number!(
    /// A partition within its topic; dense from 0.
    PartitionId(i32)
);
number!(
    /// A position in the metadata log: one per record, in replay order.
    Offset(i64)
);
number!(
    /// An operation that moves replicas: the offset of its first record.
    ReassignmentId(i64)
);
number!(
    /// The Raft term under which a controller claimed its office.
    ControllerEpoch(i32)
);
number!(
    /// The offset of the record that registered this incarnation of a broker.
    BrokerEpoch(i64)
);
number!(
    /// Grows whenever a partition's leader is written, even to the same leader.
    LeaderEpoch(i32)
);
number!(
    /// Grows with every change of a partition: the compare-and-set token of AlterPartition.
    PartitionEpoch(i32)
);
counter!(Offset);
counter!(LeaderEpoch);
counter!(PartitionEpoch);

impl Offset {
    /// The offset `count` records later.
    #[must_use]
    pub fn advance(self, count: usize) -> Self {
        let count = i64::try_from(count).expect("a record count fits in i64");
        Self(self.0.checked_add(count).expect("Offset exhausted"))
    }
}

impl From<Offset> for BrokerEpoch {
    fn from(offset: Offset) -> Self {
        Self(offset.get())
    }
}

impl From<Offset> for ReassignmentId {
    fn from(offset: Offset) -> Self {
        Self(offset.get())
    }
}

macro_rules! unique {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(Uuid);

        impl $name {
            pub const fn new(value: Uuid) -> Self {
                Self(value)
            }

            pub const fn get(self) -> Uuid {
                self.0
            }

            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        /// Kafka's text form: 22 characters of URL-safe base64.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&URL_SAFE_NO_PAD.encode(self.0.as_bytes()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidUuid;

            fn from_str(text: &str) -> Result<Self, InvalidUuid> {
                let invalid = || InvalidUuid(text.to_owned());
                let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
                Ok(Self(Uuid::from_slice(&bytes).map_err(|_| invalid())?))
            }
        }
    };
}

/// A text that is not 22 characters of URL-safe base64.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id: expected 22 characters of URL-safe base64")]
pub struct InvalidUuid(String);

unique!(
    /// A topic for its whole life; a topic re-created under the same name has another one.
    TopicId
);
unique!(
    /// One start of one process.
    IncarnationId
);
unique!(
    /// A log directory, that is, a disk: a wiped disk has another one.
    DirectoryId
);
unique!(
    /// The cluster: nodes of another one are refused.
    ClusterId
);
unique!(
    /// A client for the purpose of deduplicating its retries.
    ClientId
);

impl DirectoryId {
    /// No directory has been assigned yet (Kafka's reserved id).
    pub const UNASSIGNED: Self = Self::from_bytes([0; 16]);

    /// Ids 0..100 are reserved by Kafka for UNASSIGNED, LOST, MIGRATING and what may follow.
    pub fn is_reserved(self) -> bool {
        self.0.as_u128() < 100
    }
}

/// A partition of a topic, by id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    pub topic: TopicId,
    pub partition: PartitionId,
}

impl TopicPartition {
    pub const fn new(topic: TopicId, partition: PartitionId) -> Self {
        Self { topic, partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

impl fmt::Debug for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text_form() {
        let id = TopicId::from_bytes([0xfb; 16]);
        assert_eq!(id.to_string().len(), 22);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("not-an-id".parse::<TopicId>().is_err());
    }

    #[test]
    #[should_panic(expected = "LeaderEpoch exhausted")]
    fn an_epoch_never_wraps() {
        let _ = LeaderEpoch::new(i32::MAX).next();
    }
}
