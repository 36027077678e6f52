//! Clusters of voters in one process, on real sockets and real disks.

#![allow(clippy::unwrap_used)]

mod disks;
mod harness;
mod identity;
mod lost_state;
mod quorum;
mod replacement;
mod votes;
