//! The shell around the metadata domain: log, controller, API, broker role, process.

#[cfg(all(feature = "failpoints", not(debug_assertions)))]
compile_error!("failpoints must not be in a release build");

pub mod api;
pub mod broker;
pub mod config;
pub mod controller;
pub mod disks;
pub mod drafts;
pub mod feed;
pub mod http;
mod incoming;
pub mod inspect;
pub mod machine;
pub mod metrics;
pub mod node;
pub mod note;
pub mod raft;
pub mod replica;
pub mod telemetry;

pub use incoming::raise_descriptor_limit;
