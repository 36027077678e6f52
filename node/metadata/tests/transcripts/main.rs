//! Behaviour as transcripts: each file in `testscripts/` is a claim, named after the behaviour.
//!
//! A command plans on the image, its records are replayed, and what changed is printed. After every command the
//! image must keep its rules, and planning the same again must propose nothing. `UPDATE_GOLDENFILES=1` writes the
//! transcripts anew; the difference is then to be read as carefully as code.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arguments;
mod commands;
mod display;
mod features;
mod reassignment;
mod world;

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use world::World;

#[test]
fn every_transcript_is_what_happens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts");
    let mut scripts: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty(), "there are no scripts in {}", folder.display());
    // A script that fails has said why by its panic; the others are played all the same.
    let plays = |script: &PathBuf| catch_unwind(|| goldenscript::run(&mut World::default(), script).unwrap()).is_ok();
    let failed: Vec<&PathBuf> = scripts.iter().filter(|script| !plays(script)).collect();
    assert!(failed.is_empty(), "these do not happen as written: {failed:?}");
}
