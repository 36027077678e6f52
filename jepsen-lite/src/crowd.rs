//! Many connections to a node that say nothing, and processes that may have few descriptors.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Descriptors of a node in a run that uses them up: what many systems grant a process that asks for nothing.
pub const NODE_DESCRIPTORS: u64 = 1_024;

/// Descriptors that a run has for all else: proxies, clients and files.
const OTHER_DESCRIPTORS: u64 = 4_096;

/// Before a connection that the node has closed, or refused, is made again: a few hundred a second of a whole crowd.
const AGAIN_AFTER: Duration = Duration::from_secs(4);

/// The shell limits itself and becomes the program: what it was started with stays as it is.
const LIMITED: &str = "ulimit -n \"$1\" && shift && exec \"$@\"";

/// Makes `command` start `program` with at most so many descriptors. `shell` is a command that starts a shell.
pub fn limited(mut shell: Command, descriptors: u64, program: &Path) -> Command {
    shell.args(["-c", LIMITED, "sh"]).arg(descriptors.to_string()).arg(program);
    shell
}

/// Lets this process have descriptors for a crowd. The error is a reason to leave it out.
pub fn make_room(sockets: u64) -> Result<(), String> {
    let failed = |error| format!("cannot raise the limit of descriptors: {error}");
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    let needed = sockets + OTHER_DESCRIPTORS;
    if soft >= needed {
        return Ok(());
    }
    if hard < needed {
        return Err(format!("a process may have {hard} descriptors here, {needed} are needed"));
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, hard).map_err(failed)
}

/// Connections that are open until it is dropped.
pub struct Crowd {
    sockets: u64,
    made: Arc<AtomicU64>,
    _connections: JoinSet<()>,
}

impl Crowd {
    /// So many connections, spread over the addresses. Those that are closed are made again. Within a tokio runtime.
    pub fn around(addresses: &[String], sockets: u64) -> Self {
        let made = Arc::new(AtomicU64::new(0));
        let mut connections = JoinSet::new();
        for (address, _) in addresses.iter().cycle().zip(0..sockets) {
            connections.spawn(stay_silent(address.clone(), made.clone()));
        }
        Self { sockets, made, _connections: connections }
    }

    pub fn sockets(&self) -> u64 {
        self.sockets
    }

    /// Connections that were made since it began.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }
}

async fn stay_silent(address: String, made: Arc<AtomicU64>) {
    loop {
        if let Ok(mut stream) = TcpStream::connect(&address).await {
            made.fetch_add(1, Ordering::Relaxed);
            // It ends when the other side closes it, whatever that side has said before.
            while stream.read(&mut [0; 64]).await.is_ok_and(|bytes| bytes > 0) {}
        }
        sleep(AGAIN_AFTER).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_limited_program_has_so_many_descriptors_and_its_arguments() {
        let mut command = limited(Command::new("sh"), 77, Path::new("sh"));
        let output = command.args(["-c", "ulimit -n; ulimit -Hn; echo \"$1\"", "-", "a b"]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "77\n77\na b\n");
    }

    #[test]
    fn room_for_more_than_the_system_grants_is_refused() {
        assert_eq!(make_room(1), Ok(()));
        assert!(make_room(u64::MAX / 2).unwrap_err().contains("are needed"));
    }

    #[tokio::test]
    async fn a_crowd_says_nothing_comes_back_and_ends_when_dropped() {
        tokio::time::pause();
        let listeners =
            [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
        let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap().to_string());
        let crowd = Crowd::around(&addresses, 6);
        let mut streams = Vec::new();
        for listener in &listeners {
            for _ in 0..3 {
                streams.push(listener.accept().await.unwrap().0);
            }
        }
        drop(streams.pop());
        streams.push(listeners[1].accept().await.unwrap().0);
        // The other end may not have noticed yet that it is connected.
        while crowd.made() < 7 {
            tokio::task::yield_now().await;
        }
        assert_eq!((crowd.sockets(), crowd.made()), (6, 7));
        assert!(
            streams.iter().all(|stream| stream.try_read(&mut [0]).is_err()),
            "nothing was said, and none is closed"
        );
        drop(crowd);
        for stream in &mut streams {
            assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
        }
    }
}
