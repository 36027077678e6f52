//! Connections that come in at a socket. The process keeps descriptors for its files: connections have half of them, the
//! others wait to be accepted. A connection is served when it has said what it begins with; one that does not is closed.

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

/// How long a new connection may take to say what it begins with.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two looks at a connection that has said a part of it.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The longest opening: the preface of HTTP/2.
const OPENING_BYTES_MAX: usize = 24;

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
    /// The bytes that a connection begins with: the preface of HTTP/2, from which on pings find out who is gone.
    fn opening_bytes(self) -> usize {
        match self {
            Self::Api | Self::Raft => OPENING_BYTES_MAX,
            Self::Http => 1,
        }
    }

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
    Ok(accept_up_to(listener, purpose, purpose.connections_max(descriptors), OPENING_TIMEOUT))
}

fn accept_up_to(
    listener: TcpListener,
    purpose: Purpose,
    max: usize,
    opening_timeout: Duration,
) -> ReceiverStream<io::Result<Accepted>> {
    let (served, connections) = mpsc::channel(HANDED_OVER_MAX);
    let accepting = Accepting { listener, purpose, room: Arc::new(Semaphore::new(max)), max, opening_timeout, served };
    tokio::spawn(accepting.run());
    ReceiverStream::new(connections)
}

struct Accepting {
    listener: TcpListener,
    purpose: Purpose,
    room: Arc<Semaphore>,
    max: usize,
    opening_timeout: Duration,
    served: mpsc::Sender<io::Result<Accepted>>,
}

impl Accepting {
    /// Until the server has ended.
    async fn run(self) {
        let mut is_full = false;
        loop {
            let place = match self.room.clone().try_acquire_owned() {
                Ok(place) => {
                    is_full = false;
                    place
                }
                Err(_) => {
                    if !std::mem::replace(&mut is_full, true) {
                        warn!(purpose = ?self.purpose, max = self.max, "as many connections are open as may be; others wait");
                    }
                    let Some(place) = self.unless_ended(self.room.clone().acquire_owned()).await else { return };
                    place.expect("it is never closed")
                }
            };
            match self.unless_ended(self.listener.accept()).await {
                Some(Ok((stream, _))) => drop(tokio::spawn(self.await_opening(stream, place))),
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

    fn await_opening(
        &self,
        stream: TcpStream,
        place: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (served, limit) = (self.served.clone(), self.opening_timeout);
        let bytes = self.purpose.opening_bytes();
        async move {
            let has_opened = tokio::select! {
                opened = timeout(limit, has_said(&stream, bytes)) => opened.unwrap_or(false),
                () = served.closed() => false,
            };
            if has_opened && stream.set_nodelay(true).is_ok() {
                // The server may have ended meanwhile.
                let _ = served.send(Ok(Accepted { stream, _place: place })).await;
            }
        }
    }
}

/// Waits until the connection has said so many bytes, which are left for its server. False: it is closed.
async fn has_said(stream: &TcpStream, bytes: usize) -> bool {
    let mut opening = [0; OPENING_BYTES_MAX];
    loop {
        match stream.peek(&mut opening[..bytes]).await {
            Ok(0) | Err(_) => return false,
            Ok(said) if said == bytes => return true,
            // It would be ready again at once.
            Ok(_) => sleep(LOOK_INTERVAL).await,
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

    const PREFACE: [u8; OPENING_BYTES_MAX] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const LIMIT: Duration = Duration::from_millis(200);

    async fn port(max: usize, limit: Duration) -> (SocketAddr, ReceiverStream<io::Result<Accepted>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        (address, accept_up_to(listener, Purpose::Api, max, limit))
    }

    async fn speaking(address: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(&PREFACE).await.expect("it is open");
        stream
    }

    #[tokio::test]
    async fn a_connection_that_says_a_part_of_its_opening_is_closed() {
        let (address, mut connections) = port(1, LIMIT).await;
        let mut partly = TcpStream::connect(address).await.expect("it listens");
        partly.write_all(&PREFACE[1..]).await.expect("it is open");
        let _speaking = speaking(address).await;
        assert!(matches!(partly.read(&mut [0]).await, Ok(0) | Err(_)), "it is closed");
        connections.next().await.expect("it accepts").expect("the next one has its place");
    }

    #[tokio::test]
    async fn what_was_said_first_is_served() {
        let (address, mut connections) = port(1, Duration::MAX).await;
        let _client = speaking(address).await;
        let mut connection = connections.next().await.expect("it accepts").expect("it works");
        let mut opening = [0; OPENING_BYTES_MAX];
        connection.read_exact(&mut opening).await.expect("it was sent");
        assert_eq!(opening, PREFACE);
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
