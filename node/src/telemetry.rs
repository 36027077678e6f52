//! Logs to stderr, as text for people or JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts logging. `filter` has the form of `RUST_LOG`.
pub fn start(format: LogFormat, filter: &str) -> Result<(), String> {
    // openraft tells every message at info, and warns at every heartbeat to a dead peer; whoever wants that asks for it by name.
    let quiet = if filter.contains("openraft") { filter.to_owned() } else { format!("{filter},openraft=error") };
    let filter = EnvFilter::try_new(quiet).map_err(|error| format!("log_level {filter:?}: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let started = match format {
        LogFormat::Text => builder.with_ansi(colours).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| error.to_string())
}
