//! The gRPC services: translate, call the controller's handle or read the image, translate back. No decisions here.

mod admin;
mod broker;
mod controllers;
mod describe;
mod elections;
mod features;
#[cfg(test)]
pub(crate) mod fixture;
mod gateway;
mod health;
mod heartbeat;
mod inventory;
mod listing;
mod log;
mod pages;
mod proxy;
mod quorum;
mod readiness;
mod reassignment;
mod request;
mod server;
mod watch;

pub use gateway::Gateway;
pub use heartbeat::HeartbeatTerms;
pub use log::DataPlaneSlot;
pub use proxy::{Controllers, Proxy};
pub use readiness::Readiness;
pub use server::{Api, ApiServer, Control, serve};
pub use watch::events_of as snapshot_events;
