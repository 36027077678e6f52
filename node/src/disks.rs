//! The disks of a node: whether they answer, whether they have room, and what is wrong with them.

mod hang;
mod problems;
mod reserve;
mod space;

pub use hang::{Hang, LOOKS_PER_TIMEOUT, hangs};
pub use problems::DiskProblems;
pub use reserve::Reserve;
pub use space::{Space, mebibytes};
