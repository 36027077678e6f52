//! The metadata domain: what is true (`image`), what shall be (`plan`), and how one becomes the other (`record`).
//!
//! Pure: no runtime, wire, disk, clock or logging. Time, randomness and limits are arguments.

pub mod config;
pub mod error;
pub mod ids;
pub mod image;
pub mod limits;
pub mod liveness;
pub mod mutant;
pub mod placement;
pub mod plan;
pub mod record;
pub mod rng;

pub use error::{ApiError, ErrorName};
pub use image::{Ledger, MetadataImage};
pub use plan::Plan;
pub use record::{Batch, Record};
