//! Clusters of voters in one process, on real sockets and real disks.

mod disks;
mod harness;
mod identity;
mod quorum;
