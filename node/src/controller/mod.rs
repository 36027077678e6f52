//! The controller: one task owns the draft, plans every mutation on it and proposes the records.
//!
//! Goals in order: never promise what a majority has not stored; never let one request starve another; answer fast.
//!
//! ```text
//!   rpc handler ──bounded queues─► event loop ── plan on draft ── propose ──► log
//!        ▲                            │ parks the reply                        │ replayed here
//!        └──────── reply at its offset ◄───────────────────────────────────────┘
//! ```
//!
//! Only the active controller plans. A claim starts from the image replayed so far; a resignation drops the draft and
//! fails every parked reply.

mod activation;
mod batcher;
mod disk_reports;
mod event_loop;
mod failure_detector;
#[cfg(test)]
pub(crate) mod fixture;
mod handle;
mod inflight;
mod large_plan;
mod liveness;
mod operation;
mod probe;
mod proposals;
mod pulse;
mod queue;
mod slow;
mod tasks;
mod under_way;
mod watchdog;

pub use batcher::{PreparedBatch, Stamp, entries_of};
pub use event_loop::{ControllerConfig, EventLoop};
pub use handle::{ControllerHandle, MutationTerms, RETRY_AFTER_THROTTLED};
pub use liveness::{Contact, OpenStream, SessionTable};
pub use operation::{Mutation, Operation, Origin, Position, RemovalTarget, Reply, RequestId, Weight};
pub use watchdog::Watchdog;
