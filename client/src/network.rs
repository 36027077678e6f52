//! How connections are made and taken: over the sockets of the machine, or over a network that a simulation gives.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::codegen::http::Uri;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Error};
use tower::service_fn;

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// A network that is not the machine's. Addresses are `host:port`.
pub trait Transport: Send + Sync + 'static {
    fn connect(&self, address: String) -> BoxFuture<'static, io::Result<Connection>>;
    fn listen(&self, address: String) -> BoxFuture<'static, io::Result<Incoming>>;
}

/// A connection over such a network.
pub struct Connection(Box<dyn Duplex>);

/// Those that come in at a port.
pub type Incoming = BoxStream<'static, io::Result<Connection>>;

/// Cheap to clone. Sockets, by default.
#[derive(Clone, Default)]
pub struct Network {
    given: Option<Arc<dyn Transport>>,
}

/// A port that is taken, and not served yet. It may be served on another runtime than it was taken on.
pub enum Port {
    Socket(std::net::TcpListener),
    Given(Incoming),
}

/// To be served on the runtime that this is called on.
pub fn to_tokio(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

impl Network {
    pub fn over(transport: impl Transport) -> Self {
        Self { given: Some(Arc::new(transport)) }
    }

    /// A connection that is open.
    pub async fn open(&self, endpoint: &Endpoint) -> Result<Channel, Error> {
        match &self.given {
            None => endpoint.connect().await,
            Some(transport) => endpoint.connect_with_connector(dialer(transport)).await,
        }
    }

    /// A connection that is made when it is first used, and again when it is lost.
    pub fn open_lazily(&self, endpoint: &Endpoint) -> Channel {
        match &self.given {
            None => endpoint.connect_lazy(),
            Some(transport) => endpoint.connect_with_connector_lazy(dialer(transport)),
        }
    }

    /// Whether a connection can be made at all. It is closed at once.
    pub async fn knock(&self, address: &str) -> io::Result<()> {
        match &self.given {
            None => TcpStream::connect(address).await.map(drop),
            Some(transport) => transport.connect(address.to_owned()).await.map(drop),
        }
    }

    /// At a port that is free on `host`, which has to be an address of this machine, or a name of one. Over sockets only: a
    /// given network has no free ports.
    pub async fn listen_at_free_port(&self, host: &str) -> io::Result<(TcpListener, u16)> {
        if self.given.is_some() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "no free ports on a given network"));
        }
        let listener = TcpListener::bind((host, 0)).await?;
        let port = listener.local_addr()?.port();
        Ok((listener, port))
    }

    pub async fn listen(&self, address: &str) -> io::Result<Port> {
        match &self.given {
            None => TcpListener::bind(address).await?.into_std().map(Port::Socket),
            Some(transport) => transport.listen(address.to_owned()).await.map(Port::Given),
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.given.is_none() { "sockets" } else { "given" })
    }
}

/// As tonic wants it.
fn dialer(
    transport: &Arc<dyn Transport>,
) -> impl tower::Service<
    Uri,
    Response = TokioIo<Connection>,
    Error = io::Error,
    Future = BoxFuture<'static, io::Result<TokioIo<Connection>>>,
> + Send
+ 'static {
    let transport = transport.clone();
    service_fn(move |uri: Uri| {
        let address = uri.authority().map(ToString::to_string).unwrap_or_default();
        let connecting = transport.connect(address);
        Box::pin(async move { connecting.await.map(TokioIo::new) }) as BoxFuture<'static, _>
    })
}

impl Connection {
    pub fn new(bytes: impl Duplex) -> Self {
        Self(Box::new(bytes))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
