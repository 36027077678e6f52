//! One proxy: accepts what one node dials, and carries bytes both ways.

use std::io;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::Condition;
use crate::random::Random;

/// Of one read.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks on a slow link; then the sender feels it.
const CHUNKS_ON_THE_WAY: usize = 64;

/// Between two attempts to listen: another process may hold the port for a moment.
const LISTEN_AGAIN: Duration = Duration::from_millis(20);

/// Stands for one port of a node, as another one sees it.
pub struct Proxy {
    pub address: String,
    pub target: String,
    pub there: watch::Receiver<Condition>,
    pub back: watch::Receiver<Condition>,
}

impl Proxy {
    pub async fn serve(mut self) {
        loop {
            until(&mut self.there, |now| now != Condition::Refusing).await;
            let Ok(listener) = TcpListener::bind(&self.address).await else {
                sleep(LISTEN_AGAIN).await;
                continue;
            };
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((incoming, _)) = listener.accept() => {
                        let (there, back) = (self.there.clone(), self.back.clone());
                        connections.spawn(connection(incoming, self.target.clone(), there, back));
                    }
                    Some(ended) = connections.join_next() => {
                        // Nobody is behind it: then nobody is here either, so that whoever dials can tell.
                        if ended.is_ok_and(is_refused) {
                            drop(listener);
                            reachable(&self.target).await;
                            break;
                        }
                    }
                    () = until(&mut self.there, |now| now == Condition::Refusing) => break,
                }
            }
        }
    }
}

fn is_refused(ended: io::Result<()>) -> bool {
    ended.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

async fn reachable(target: &str) {
    while TcpStream::connect(target).await.is_err() {
        sleep(LISTEN_AGAIN).await;
    }
}

async fn connection(
    mut incoming: TcpStream,
    target: String,
    mut there: watch::Receiver<Condition>,
    mut back: watch::Receiver<Condition>,
) -> io::Result<()> {
    until(&mut there, |now| !matches!(now, Condition::Silent)).await;
    let mut outgoing = TcpStream::connect(target).await?;
    incoming.set_nodelay(true)?;
    outgoing.set_nodelay(true)?;
    let ended = {
        let (from_dialler, to_dialler) = incoming.split();
        let (from_target, to_target) = outgoing.split();
        tokio::select! {
            ended = carry(from_dialler, to_target, there.clone()) => Some(ended),
            ended = carry(from_target, to_dialler, back.clone()) => Some(ended),
            () = until(&mut there, |now| now == Condition::Resetting) => None,
            () = until(&mut back, |now| now == Condition::Resetting) => None,
        }
    };
    if let Some(ended) = ended {
        return ended;
    }
    // Closed in this state a socket sends a reset instead of an orderly end.
    for socket in [&incoming, &outgoing] {
        SockRef::from(socket).set_linger(Some(Duration::ZERO))?;
    }
    Ok(())
}

/// Bytes, and when they came.
type Chunk = (Instant, Vec<u8>);

/// Carries bytes one way until their sender ends.
async fn carry(from: ReadHalf<'_>, to: WriteHalf<'_>, link: watch::Receiver<Condition>) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel(CHUNKS_ON_THE_WAY);
    tokio::try_join!(take(from, sender), give(to, receiver, link))?;
    Ok(())
}

async fn take(mut from: ReadHalf<'_>, chunks: mpsc::Sender<Chunk>) -> io::Result<()> {
    loop {
        let mut buffer = vec![0; CHUNK_BYTES];
        let count = from.read(&mut buffer).await?;
        buffer.truncate(count);
        if count == 0 || chunks.send((Instant::now(), buffer)).await.is_err() {
            return Ok(());
        }
    }
}

async fn give(
    mut to: WriteHalf<'_>,
    mut chunks: mpsc::Receiver<Chunk>,
    mut link: watch::Receiver<Condition>,
) -> io::Result<()> {
    let mut random = Random::new(u64::from(to.as_ref().local_addr()?.port()));
    let mut given = 0;
    while let Some((came, chunk)) = chunks.recv().await {
        let passed = pass(&mut to, &mut link, came, &chunk, given, &mut random).await?;
        to.write_all(&chunk[passed..]).await?;
        given += chunk.len() as u64;
    }
    // The end of a connection is news as well, and travels no faster than bytes.
    until(&mut link, |now| !matches!(now, Condition::Silent | Condition::Stalling { .. })).await;
    Ok(())
}

/// Waits until the link lets the chunk through; how much of it has got through before.
async fn pass(
    to: &mut WriteHalf<'_>,
    link: &mut watch::Receiver<Condition>,
    came: Instant,
    chunk: &[u8],
    given: u64,
    random: &mut Random,
) -> io::Result<usize> {
    let mut passed = 0;
    loop {
        let now = *link.borrow_and_update();
        match now {
            // Those two end the connection elsewhere.
            Condition::Open | Condition::Refusing | Condition::Resetting => return Ok(passed),
            // A proxy sees no packets.
            Condition::Lossy { .. } | Condition::Shaped { .. } => return Ok(passed),
            Condition::Slow { delay_ms, jitter_ms } => {
                let delay = delay_ms + random.between(0, jitter_ms);
                sleep_until(came + Duration::from_millis(delay)).await;
                return Ok(passed);
            }
            Condition::Limited { bytes_per_second } => {
                let left = chunk.len() - passed;
                sleep(Duration::from_secs(1).mul_f64(left as f64 / bytes_per_second.max(1) as f64)).await;
                return Ok(passed);
            }
            Condition::Stalling { after_bytes } => {
                let room = usize::try_from(after_bytes.saturating_sub(given)).unwrap_or(usize::MAX);
                if chunk.len() <= room {
                    return Ok(passed);
                }
                if room > passed {
                    to.write_all(&chunk[passed..room]).await?;
                    passed = room;
                }
            }
            Condition::HalfClosed => to.shutdown().await?,
            Condition::Silent => {}
        }
        if link.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn until(link: &mut watch::Receiver<Condition>, wanted: impl Fn(Condition) -> bool) {
    if link.wait_for(|now| wanted(*now)).await.is_err() {
        // The links are dropped, and this task with them.
        std::future::pending().await
    }
}
