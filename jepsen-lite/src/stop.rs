//! SIGTERM, SIGINT and SIGHUP: the run that is under way ends, with the processes that it has started, and no other begins.

use std::io;
use std::sync::LazyLock;
use std::thread;

use tokio::runtime::Builder;
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Debug, thiserror::Error)]
#[error("stopped by a signal")]
pub struct Stopped;

/// Listened to from the first run to the end: between two runs as well.
static TOLD: LazyLock<CancellationToken> = LazyLock::new(|| listen().expect("signals can be listened to"));

/// Ends when this process has been told to stop.
pub async fn told() {
    TOLD.cancelled().await;
}

fn listen() -> io::Result<CancellationToken> {
    let told = CancellationToken::new();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    drop(entered);
    let teller = told.clone();
    thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        teller.cancel();
    })?;
    Ok(told)
}
