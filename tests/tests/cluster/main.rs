//! What a cluster of real processes promises, one subject a file. Build the binaries first: `cargo build --bins`.

mod bad_input;
mod compaction;
mod controlled_shutdown;
mod directories;
mod disks;
mod exactly_once;
mod failover;
mod identity;
mod kill_rounds;
mod kinds;
mod links;
mod lost_disks;
mod majority;
mod pause;
mod proxy;
mod readiness;
mod reassignment;
mod replication;
mod snapshot;
mod strays;
mod timestamps;
mod watch;
