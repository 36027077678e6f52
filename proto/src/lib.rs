//! The wire: one .proto per audience, the code generated from it, and the conversions to and from domain types.

mod convert;
pub mod encoded;
pub mod error;
pub mod snapshot;

pub use convert::{
    DecodeError, batch, endpoint_from_wire, endpoint_to_wire, features_from_wire, features_to_wire, probe_from_wire,
    probe_to_wire, record,
};

/// The packages as they are nested on the wire: generated code refers to its neighbours by these paths.
#[expect(clippy::too_many_lines, reason = "generated")]
mod quorate {
    pub mod metadata {
        pub mod v1 {
            tonic::include_proto!("quorate.metadata.v1");
        }
    }
    pub mod admin {
        pub mod v1 {
            tonic::include_proto!("quorate.admin.v1");
        }
    }
    pub mod broker {
        pub mod v1 {
            tonic::include_proto!("quorate.broker.v1");
        }
    }
    pub mod log {
        pub mod v1 {
            tonic::include_proto!("quorate.log.v1");
        }
    }
    pub mod raft {
        pub mod v1 {
            tonic::include_proto!("quorate.raft.v1");
        }
    }
}

/// What people and tools ask.
pub use quorate::admin::v1 as admin;
/// What brokers ask, and the feed.
pub use quorate::broker::v1 as broker;
/// Records into the partitions' logs and out of them.
pub use quorate::log::v1 as log;
/// The facts of the log.
pub use quorate::metadata::v1 as metadata;
/// Between voters; private.
pub use quorate::raft::v1 as raft;

/// Every public message and service, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quorate.descriptors.bin"));
