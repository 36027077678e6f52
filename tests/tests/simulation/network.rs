//! The network of a simulation, as nodes and clients see it.

use std::io;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use quorate_client::network::{Connection, Incoming, Transport};
use turmoil::net::{TcpListener, TcpStream};

/// Whoever uses it must be on a host of the simulation.
pub struct SimulatedNetwork;

impl Transport for SimulatedNetwork {
    fn connect(&self, address: String) -> BoxFuture<'static, io::Result<Connection>> {
        Box::pin(async move { TcpStream::connect(address).await.map(Connection::new) })
    }

    fn listen(&self, address: String) -> BoxFuture<'static, io::Result<Incoming>> {
        Box::pin(async move {
            let listener = TcpListener::bind(address).await?;
            let incoming = stream::unfold(listener, |listener| async {
                let accepted = listener.accept().await.map(|(stream, _)| Connection::new(stream));
                Some((accepted, listener))
            });
            Ok(incoming.boxed())
        })
    }
}
