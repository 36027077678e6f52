//! A node's configuration is one or is refused, whatever its file, environment and settings say. What is in effect can be
//! printed, and is in effect again when that is a node's whole file.

use std::time::Duration;

use quorate_node::config::{NodeConfig, merge};

/// `bytes`: the file's text, then after a zero the environment, then after another the settings, both as lines of
/// `KEY=VALUE`.
pub fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(3, '\0');
    let mut part = || parts.next().unwrap_or_default();
    let (file, environment, settings) = (part(), pairs(part()), pairs(part()));
    let Ok(config) = merge("node.toml", file, environment.into_iter(), &settings) else { return };
    check_sound(&config);
    let printed = toml::to_string(&config).expect("a configuration can be printed");
    let again = merge("node.toml", &printed, std::iter::empty(), &[]).expect("what is printed is in effect");
    assert_eq!(again, config);
}

fn pairs(text: &str) -> Vec<(String, String)> {
    let pair = |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    text.lines().filter_map(pair).collect()
}

/// What a node takes for granted once its configuration is accepted.
fn check_sound(config: &NodeConfig) {
    assert!(config.lease() < config.session_timeout());
    let beat = Duration::from_millis(config.broker_heartbeat_interval_ms);
    assert!(!beat.is_zero() && 2 * beat <= config.session_timeout(), "a lost heartbeat ends a session");
    assert!(!config.log_directories().is_empty());
    assert!(config.controller_id().get() > 0);
    assert!(config.cluster().is_ok());
    assert!(config.may_auto_format().is_ok());
    assert!(config.voter_addresses().is_ok_and(|voters| !voters.is_empty()));
}
