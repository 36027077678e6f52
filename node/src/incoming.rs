//! Connections that come in at a socket. The process keeps descriptors for its files: connections have half of them, the
//! others wait to be accepted. A connection is served when it has said what it begins with; one that does not is closed.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use quorate_metadata::mutant::Mutant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep, sleep, timeout};
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

/// Connections whose opening is awaited at the least; a quarter of those that may be open otherwise.
const OPENINGS_MIN: usize = 4;

/// Between two warnings that a port is full.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// A connection of the HTTP port is closed after so long, whatever it is at: its answers are short.
const HTTP_LIFETIME: Duration = Duration::from_secs(30);

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
    let (max, opening_timeout) = match Mutant::NoAcceptReserve.is_on() {
        true => (Semaphore::MAX_PERMITS, Duration::MAX),
        false => (purpose.connections_max(descriptors), OPENING_TIMEOUT),
    };
    Ok(accept_up_to(listener, purpose, max, opening_timeout))
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
        let openings_max = (self.max / 4).max(OPENINGS_MIN);
        let mut openings: VecDeque<AbortOnDrop> = VecDeque::new();
        let mut warned_at: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.served.closed() => return,
            };
            openings.retain(|opening| !opening.0.is_finished());
            match accepted {
                Ok((stream, _)) => {
                    // The longest silent one makes room: a client that speaks at once is never kept out by those that do not.
                    if openings.len() >= openings_max {
                        openings.pop_front();
                    }
                    openings.push_back(AbortOnDrop(tokio::spawn(self.open(stream)).abort_handle()));
                }
                Err(error) => {
                    warn!(purpose = ?self.purpose, %error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
            let is_quiet = warned_at.is_none_or(|at| at.elapsed() >= WARN_INTERVAL);
            if self.room.available_permits() == 0 && is_quiet {
                warned_at = Some(Instant::now());
                warn!(purpose = ?self.purpose, max = self.max, "as many connections are open as may be; others wait");
            }
        }
    }

    fn open(&self, stream: TcpStream) -> impl Future<Output = ()> + Send + 'static {
        let (served, room, limit) = (self.served.clone(), self.room.clone(), self.opening_timeout);
        let bytes = self.purpose.opening_bytes();
        async move {
            if !timeout(limit, has_said(&stream, bytes)).await.unwrap_or(false) || stream.set_nodelay(true).is_err() {
                return;
            }
            let permit = room.acquire_owned().await.expect("it is never closed");
            // The server may have ended meanwhile.
            let _ = served.send(Ok(Accepted { stream, _permit: permit })).await;
        }
    }
}

/// A connection that is not served yet ends with the port.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
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
    _permit: OwnedSemaphorePermit,
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
pub struct HttpListener {
    connections: ReceiverStream<io::Result<Accepted>>,
    lifetime: Duration,
}

impl HttpListener {
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        Ok(Self { connections: accept(listener, Purpose::Http)?, lifetime: HTTP_LIFETIME })
    }
}

impl Listener for HttpListener {
    type Io = ShortLived;
    type Addr = ();

    async fn accept(&mut self) -> (ShortLived, ()) {
        loop {
            match self.connections.next().await {
                Some(Ok(connection)) => {
                    return (ShortLived { connection, end: Box::pin(sleep(self.lifetime)) }, ());
                }
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection that ends by itself.
pub struct ShortLived {
    connection: Accepted,
    end: Pin<Box<Sleep>>,
}

impl AsyncRead for ShortLived {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.connection).poll_read(cx, buf)
    }
}

impl AsyncWrite for ShortLived {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.connection).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
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

    #[tokio::test]
    async fn a_client_that_speaks_is_served_beside_very_many_that_do_not() {
        let (address, mut connections) = port(1, Duration::MAX).await;
        let mut silent = Vec::new();
        for _ in 0..10 * OPENINGS_MIN {
            silent.push(TcpStream::connect(address).await.expect("it listens"));
        }
        let _speaking = speaking(address).await;
        connections.next().await.expect("it accepts").expect("it is served");
    }

    #[tokio::test]
    async fn a_connection_of_the_http_port_ends_by_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let connections = accept_up_to(listener, Purpose::Http, 1, Duration::MAX);
        let mut listener = HttpListener { connections, lifetime: LIMIT };
        let mut partly = TcpStream::connect(address).await.expect("it listens");
        partly.write_all(b"GET /readyz").await.expect("it is open");
        let (mut connection, ()) = listener.accept().await;
        let mut said = Vec::new();
        let ended = connection.read_to_end(&mut said).await.expect_err("the request never ends");
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
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
