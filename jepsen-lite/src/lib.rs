//! Breaks a Quorate cluster on purpose, and checks every answer that it gave.

pub mod checker;
pub mod history;
pub mod op;
pub mod random;
pub mod synthetic;
pub mod workload;
