//! The wire: one .proto per audience, the code generated from it, and the conversions to and from domain types.

mod convert;
pub mod error;
pub mod snapshot;

pub use convert::{DecodeError, batch, endpoint_from_wire, endpoint_to_wire, features_from_wire, features_to_wire, record};

/// The facts of the log.
pub mod metadata {
    tonic::include_proto!("quorate.metadata.v1");
}

/// What people and tools ask.
pub mod admin {
    tonic::include_proto!("quorate.admin.v1");
}

/// What brokers ask, and the feed.
pub mod broker {
    tonic::include_proto!("quorate.broker.v1");
}

/// Between voters; private.
pub mod raft {
    tonic::include_proto!("quorate.raft.v1");
}

/// Every message and service, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quorate.descriptors.bin"));
