//! Behaviour as transcripts: each file in `testscripts/` is a claim, named after the behaviour.
//!
//! A command plans on the image, its records are replayed, and what changed is printed. After every command the
//! image must keep its rules, and planning the same again must propose nothing. `UPDATE_GOLDENFILES=1` writes the
//! transcripts anew; the difference is then to be read as carefully as code.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod arguments;
mod commands;
mod display;
mod world;

use std::path::Path;

use world::World;

#[test]
fn every_transcript_is_what_happens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts");
    let mut scripts: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert!(!scripts.is_empty(), "there are no scripts in {}", folder.display());
    for script in scripts {
        println!("{}", script.display());
        goldenscript::run(&mut World::default(), &script).unwrap();
    }
}
