//! A cluster of one node that is a script.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{Db, Layout};
use crate::network::Layer;

/// It formats, has an empty log, and runs after it has done `CHECK`. `$data` is its data directory.
const NODE: &str = r#"#!/bin/sh
case "$1" in
  run) data=$(dirname "$3")/data; CHECK; exec sleep 600 ;;
  format) mkdir "$6"; printf 'node = %s\ndirectory = "new"\ncluster = "%s"\n' "$3" "${4#*=}" > "$6/quorate.meta" ;;
  inspect) echo '{"index":0,"term":1}' ;;
esac
"#;

/// Within a tokio runtime. It lasts as long as the folder.
pub fn one_node(check: &str, silent_sockets: u64) -> (tempfile::TempDir, Db) {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("quorate-node");
    fs::write(&binary, NODE.replace("CHECK", check)).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let layout = Layout {
        binaries: folder.path().to_owned(),
        folder: folder.path().join("run"),
        nodes: 1,
        settings: Vec::new(),
        layer: Layer::Proxy,
        sets_clocks: false,
        limits_memory: false,
        silent_sockets,
    };
    let db = Db::prepare(layout).unwrap();
    (folder, db)
}
