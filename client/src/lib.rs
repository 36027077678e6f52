//! The client side of Quorate: the admin client with its retries, the metadata feed, and the measurements of `quorate perf`.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use quorate_client::{AdminClient, Freshness, Options};
//!
//! let client = AdminClient::connect(&["127.0.0.1:7001", "127.0.0.1:7002"], Options::default())?;
//! for topic in client.list_topics(Freshness::Linearizable).await?.topics {
//!     println!("{} has {} partitions", topic.name, topic.partitions);
//! }
//! # Ok(())
//! # }
//! ```

mod admin;
pub mod agent;
mod error;
mod health;
mod identities;
pub mod log;
pub mod network;
mod nodes;
mod pages;
pub mod perf;
mod replicas;
mod retry;
pub mod spec;
mod watch;
pub mod world;

pub use admin::{AdminClient, Freshness, Mode};
pub use error::{ClientError, InvalidAddress, check_item};
use nodes::Nodes;
pub use nodes::Options;
pub use watch::{Event, Watch, WatchFilter};
