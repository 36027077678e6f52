//! What a node is started with.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use quorate_client::world;

use crate::link::Member;

/// Raft's library says of every peer that is down, many times a second, that it is down.
const LOG_LEVEL: &str = "info,openraft=error";

/// Where a node reads which boot of its machine it runs in.
const BOOT_ID: &str = "boot-id";

/// The text of its file. `http` is where it listens for who asks what it counts.
pub fn configuration(
    member: &Member,
    members: &[Member],
    folder: &Path,
    http: &str,
    dial_map: Option<&String>,
) -> anyhow::Result<String> {
    let voter = |voter: &Member| format!("\"{}@{}/{}\"", voter.id, voter.raft, voter.api);
    let voters: Vec<String> = members.iter().map(voter).collect();
    let mut text = format!(
        "node_id = {}\nroles = [\"controller\", \"broker\"]\ndata_dir = {:?}\nboot_id_file = {:?}\nvoters = [{}]\n\
         api_listen = \"{}\"\nraft_listen = \"{}\"\nhttp_listen = \"{http}\"\nlog_level = \"{LOG_LEVEL}\"\n",
        member.id,
        folder.join("data"),
        folder.join(BOOT_ID),
        voters.join(", "),
        member.api,
        member.raft,
    );
    match dial_map {
        Some(map) => {
            let file = folder.join("dial.toml");
            fs::write(&file, map)?;
            text.push_str(&format!("dial_map = {file:?}\n"));
        }
        // Nothing is led through us, so the nodes listen where all can see them.
        None => text.push_str("insecure = true\n"),
    }
    Ok(text)
}

/// The machine of the node whose folder this is is started, for the first time or after a loss of power.
pub fn boot(folder: &Path) -> anyhow::Result<()> {
    fs::write(folder.join(BOOT_ID), world::uuid().to_string()).context("cannot start a machine")
}

/// A node takes its configuration from variables as well: those of this process are not meant for it.
pub fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("QUORATE_")) {
        command.env_remove(name);
    }
}
