//! Between voters: gRPC on a port of its own. Three connections per peer, so that a large append or a snapshot never
//! stands in the way of a vote or a heartbeat.

mod check;
mod client;
mod peers;
mod server;

pub use check::FirstCalls;
pub use client::Network;
pub use peers::{Link, Peers};
pub use server::Service;

use std::time::Duration;

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

/// An append holds at most 1 MiB of entries, or one entry that is larger.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// The largest entry: half of a message, so that its frame always fits.
pub const ENTRY_BYTES_MAX: usize = 4 << 20;
/// HTTP/2 flow control: a follower should be limited by its disk, not by a window.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Pings find a connection that hangs, which neither TCP nor an idle stream does.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Where the header of a call travels.
const HEADER: &str = "quorate-header-bin";

const INCONSISTENT_CLUSTER_ID: &str = "INCONSISTENT_CLUSTER_ID";
const INVALID_VOTER_KEY: &str = "INVALID_VOTER_KEY";
const VOTER_STATE_DIVERGED: &str = "VOTER_STATE_DIVERGED";
const VOTER_STATE_LOST: &str = "VOTER_STATE_LOST";

/// Refuses a caller by name.
fn refusal(reason: &'static str, text: impl Into<String>) -> Status {
    named(reason, format!("{reason}: {}", text.into()))
}

/// As `refusal`, with a message that begins with the name.
fn named(reason: &'static str, message: String) -> Status {
    let details = ErrorDetails::with_error_info(reason, "quorate.raft", []);
    Status::with_error_details(tonic::Code::FailedPrecondition, message, details)
}
