//! Breaks a Quorate cluster on purpose, and checks every answer that it gave.

pub mod checker;
pub mod conductor;
pub mod coverage;
pub mod db;
pub mod disk;
pub mod generator;
pub mod health;
pub mod history;
pub mod link;
pub mod mutants;
pub mod nemesis;
pub mod op;
pub mod ports;
pub mod random;
pub mod recorder;
pub mod report;
pub mod run;
pub mod schedule;
pub mod soak;
pub mod synthetic;
pub mod workload;
