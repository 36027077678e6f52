//! The broker and the cluster that a directory belongs to.

use std::fmt;

use quorate_metadata::ids::{BrokerId, ClusterId};

use crate::keys;
use crate::table::Failure;

/// The broker that a directory belongs to. Its logs are of partitions of this cluster, and of no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub cluster: ClusterId,
    pub broker: BrokerId,
}

impl Owner {
    pub(crate) fn encode(self) -> Vec<u8> {
        keys::seal(keys::OWNER, &[&self.cluster.as_bytes()[..], &self.broker.get().to_be_bytes()].concat())
    }

    pub(crate) fn decode(value: &[u8]) -> Result<Self, Failure> {
        let body = keys::unseal(keys::OWNER, value)?;
        let (cluster, broker) = body.split_first_chunk::<16>().ok_or("the owner is cut short")?;
        let broker = broker.try_into().map_err(|_| format!("the owner has {} bytes", body.len()))?;
        Ok(Self { cluster: ClusterId::from_bytes(*cluster), broker: BrokerId::new(i32::from_be_bytes(broker)) })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broker {} of cluster {}", self.broker, self.cluster)
    }
}
