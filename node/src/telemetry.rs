//! Logs to stderr, as text for people or JSON for machines.

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;

use prometheus_client::metrics::counter::Counter;
use quorate_metadata::mutant::Mutant;
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts logging. `filter` has the form of `RUST_LOG`.
pub fn start(format: LogFormat, filter: &str) -> Result<(), String> {
    // openraft tells every message at info, and warns at every heartbeat to a dead peer; whoever wants that asks for it by name.
    let quiet = if filter.contains("openraft") { filter.to_owned() } else { format!("{filter},openraft=error") };
    let filter = EnvFilter::try_new(quiet).map_err(|error| format!("log_level {filter:?}: {error}"))?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Droppable(io::stderr())).with_target(false);
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let started = match format {
        LogFormat::Text => builder.with_ansi(colours).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| error.to_string())
}

static LINES_DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Lines of the log that could not be written.
pub fn lines_dropped() -> Counter {
    LINES_DROPPED.clone()
}

/// A log whose reader has gone, or whose disk is full, must not end the node: its lines are dropped and counted.
struct Droppable<W>(W);

impl<W: Write> Write for Droppable<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.0.write_all(line) {
            Err(error) if Mutant::LogPanics.is_on() => return Err(error),
            Err(_) => drop(LINES_DROPPED.inc()),
            Ok(()) => {}
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // Each line was written as a whole.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn a_line_that_cannot_be_written_is_dropped_and_counted() {
        let before = lines_dropped().get();
        let mut log = Droppable(Gone);
        log.write_all(b"line\n").expect("it is dropped");
        log.flush().expect("there is nothing to flush");
        assert_eq!(lines_dropped().get(), before + 1);
        let mut log = Droppable(Vec::new());
        log.write_all(b"line\n").expect("a Vec takes it");
        assert_eq!((log.0.as_slice(), lines_dropped().get()), (&b"line\n"[..], before + 1));
    }
}
