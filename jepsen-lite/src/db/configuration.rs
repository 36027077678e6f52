//! What a node is started with.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::link::Member;

/// Raft's library says of every peer that is down, many times a second, that it is down.
const LOG_LEVEL: &str = "info,openraft=error";

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
        "node_id = {}\nroles = [\"controller\", \"broker\"]\ndata_dir = {:?}\nvoters = [{}]\napi_listen = \"{}\"\n\
         raft_listen = \"{}\"\nhttp_listen = \"{http}\"\nlog_level = \"{LOG_LEVEL}\"\n",
        member.id,
        folder.join("data"),
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

/// A node takes its configuration from variables as well: those of this process are not meant for it.
pub fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("QUORATE_")) {
        command.env_remove(name);
    }
}
