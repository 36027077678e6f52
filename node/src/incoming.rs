//! Connections that come in at a socket. The process keeps descriptors for its files: connections have half of them, the
//! others wait to be accepted. A connection that says nothing is closed, since every client of these ports speaks first.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::{info, warn};

/// How long a new connection may say nothing.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);

/// After a failure to accept, such as for want of descriptors: it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that are not taken over by their server yet.
const HANDED_OVER_MAX: usize = 16;

/// Raises the soft limit of descriptors as far as the process may.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        info!(from = soft, to = hard, "limit of descriptors raised");
    }
    Ok(())
}

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Clients, brokers and forwarded calls.
    Api,
    /// Other voters.
    Raft,
    Http,
}

impl Purpose {
    /// How many connections the port may have when the process may have so many descriptors.
    fn connections_max(self, descriptors: u64) -> usize {
        let share = match self {
            Self::Api => descriptors / 8 * 3,
            Self::Raft | Self::Http => descriptors / 16,
        };
        usize::try_from(share).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS)
    }
}

/// The connections to be served.
pub fn accept(listener: TcpListener, purpose: Purpose) -> io::Result<ReceiverStream<io::Result<Accepted>>> {
    let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(accept_up_to(listener, purpose, purpose.connections_max(descriptors), FIRST_BYTE_TIMEOUT))
}

fn accept_up_to(
    listener: TcpListener,
    purpose: Purpose,
    max: usize,
    first_byte_timeout: Duration,
) -> ReceiverStream<io::Result<Accepted>> {
    let (served, connections) = mpsc::channel(HANDED_OVER_MAX);
    let accepting =
        Accepting { listener, purpose, room: Arc::new(Semaphore::new(max)), max, first_byte_timeout, served };
    tokio::spawn(accepting.run());
    ReceiverStream::new(connections)
}

struct Accepting {
    listener: TcpListener,
    purpose: Purpose,
    room: Arc<Semaphore>,
    max: usize,
    first_byte_timeout: Duration,
    served: mpsc::Sender<io::Result<Accepted>>,
}

impl Accepting {
    /// Until the server has ended.
    async fn run(self) {
        loop {
            let place = match self.room.clone().try_acquire_owned() {
                Ok(place) => place,
                Err(_) => {
                    warn!(purpose = ?self.purpose, max = self.max, "connections wait: as many are open as may be");
                    let Some(place) = self.unless_ended(self.room.clone().acquire_owned()).await else { return };
                    place.expect("it is never closed")
                }
            };
            match self.unless_ended(self.listener.accept()).await {
                Some(Ok((stream, _))) => drop(tokio::spawn(self.await_first_byte(stream, place))),
                Some(Err(error)) => {
                    warn!(purpose = ?self.purpose, %error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
                None => return,
            }
        }
    }

    async fn unless_ended<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.served.closed() => None,
        }
    }

    fn await_first_byte(
        &self,
        stream: TcpStream,
        place: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (served, limit) = (self.served.clone(), self.first_byte_timeout);
        async move {
            let mut first = [0];
            let spoken = tokio::select! {
                peeked = timeout(limit, stream.peek(&mut first)) => matches!(peeked, Ok(Ok(1))),
                () = served.closed() => false,
            };
            if spoken && stream.set_nodelay(true).is_ok() {
                // The server may have ended meanwhile.
                let _ = served.send(Ok(Accepted { stream, _place: place })).await;
            }
        }
    }
}

/// A connection that gives its place back when it is closed.
pub struct Accepted {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// The same for a server that takes its connections one by one.
pub struct HttpListener(ReceiverStream<io::Result<Accepted>>);

impl HttpListener {
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        Ok(Self(accept(listener, Purpose::Http)?))
    }
}

impl Listener for HttpListener {
    type Io = Accepted;
    type Addr = ();

    async fn accept(&mut self) -> (Accepted, ()) {
        loop {
            match self.0.next().await {
                Some(Ok(connection)) => return (connection, ()),
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    async fn port(max: usize, limit: Duration) -> (SocketAddr, ReceiverStream<io::Result<Accepted>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        (address, accept_up_to(listener, Purpose::Api, max, limit))
    }

    async fn speaking(address: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(b"x").await.expect("it is open");
        stream
    }

    #[tokio::test]
    async fn what_was_said_first_is_served() {
        let (address, mut connections) = port(1, Duration::MAX).await;
        let _client = speaking(address).await;
        let mut connection = connections.next().await.expect("it accepts").expect("it works");
        let mut first = [0];
        connection.read_exact(&mut first).await.expect("it was sent");
        assert_eq!(first, *b"x");
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_is_closed_and_not_served() {
        let (address, mut connections) = port(1, LIMIT).await;
        let mut silent = TcpStream::connect(address).await.expect("it listens");
        let _speaking = speaking(address).await;
        assert_eq!(silent.read(&mut [0]).await.expect("it is closed in order"), 0);
        connections.next().await.expect("it accepts").expect("the next one has its place");
    }

    #[tokio::test]
    async fn one_more_than_may_be_open_waits_for_another_to_be_closed() {
        let (address, mut connections) = port(1, Duration::MAX).await;
        let (_first, _second) = (speaking(address).await, speaking(address).await);
        let first = connections.next().await.expect("it accepts").expect("it works");
        assert!(timeout(LIMIT, connections.next()).await.is_err(), "the second one waits");
        drop(first);
        connections.next().await.expect("it accepts").expect("there is room again");
    }

    #[test]
    fn files_keep_half_of_the_descriptors() {
        for descriptors in [256, 1_024, 20_000, 1 << 30] {
            let all = [Purpose::Api, Purpose::Raft, Purpose::Http].map(|purpose| purpose.connections_max(descriptors));
            let sum = all.iter().sum::<usize>() as u64;
            assert!(all.iter().all(|max| *max > 0) && sum <= descriptors / 2, "{descriptors}: {all:?}");
        }
        assert_eq!(Purpose::Api.connections_max(1), 1);
    }
}
