//! Proxies between the nodes, one for each port that one node dials of another, so that each direction of each link
//! can be cut. The nodes are led through them by their dial maps.
//!
//! A direction that is silent loses nothing: what was on its way arrives when it is open again, as with TCP.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::{Cluster, free_port};

/// What happens to bytes on their way from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Open,
    /// They do not arrive, and nobody says so.
    Silent,
    /// Connections are cut, and new ones refused.
    Refusing,
}

/// Which of a node's ports a link leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Port {
    Raft,
    Api,
}

/// By who dials, who is dialled, and at which port.
type Directions = BTreeMap<(i32, i32, Port), watch::Sender<Link>>;

/// The links of a cluster. Dropping them cuts all.
pub struct Links {
    directions: Arc<Directions>,
    _proxies: JoinSet<()>,
}

impl Links {
    /// Puts proxies between the nodes of a cluster that has not been started.
    pub fn between(cluster: &mut Cluster) -> Self {
        let ids = cluster.ids();
        let pairs: Vec<(i32, i32)> =
            ids.iter().flat_map(|from| ids.iter().map(|to| (*from, *to))).filter(|(from, to)| from != to).collect();
        let ports = pairs.iter().flat_map(|(from, to)| [Port::Raft, Port::Api].map(|port| (*from, *to, port)));
        let directions: Arc<Directions> = Arc::new(ports.map(|port| (port, watch::Sender::new(Link::Open))).collect());
        let mut proxies = JoinSet::new();
        for from in ids {
            let mut map = "[peers]\n".to_owned();
            for (_, to) in pairs.iter().filter(|(dialler, _)| *dialler == from) {
                let mut lead = |port: Port, target: &str| {
                    let proxy = Proxy::new(&directions, (from, *to, port), target);
                    let address = proxy.address.clone();
                    proxies.spawn(proxy.serve());
                    address
                };
                let (raft, api) = (lead(Port::Raft, cluster.raft(*to)), lead(Port::Api, cluster.api(*to)));
                writeln!(map, "{to} = {{ raft = \"{raft}\", api = \"{api}\" }}").expect("a string takes all");
            }
            let path = cluster.file(&format!("dial-{from}.toml"));
            fs::write(&path, map).expect("the test's folder can be written");
            cluster.set(from, "dial_map", &path.display().to_string());
        }
        Self { directions, _proxies: proxies }
    }

    pub fn set(&self, from: i32, to: i32, link: Link) {
        self.put(link, |(dialler, dialled, _)| (dialler, dialled) == (from, to));
    }

    /// Cuts a node off from all others, in both directions.
    pub fn isolate(&self, id: i32, link: Link) {
        self.put(link, |(from, to, _)| from == id || to == id);
    }

    /// Cuts a voter off from the other voters, and leaves its API within everybody's reach.
    pub fn isolate_raft(&self, id: i32, link: Link) {
        self.put(link, |(from, to, port)| port == Port::Raft && (from == id || to == id));
    }

    /// The node hears nobody, and everybody hears it.
    pub fn deafen(&self, id: i32) {
        self.put(Link::Silent, |(_, to, _)| to == id);
    }

    pub fn heal(&self) {
        self.put(Link::Open, |_| true);
    }

    fn put(&self, link: Link, concerns: impl Fn((i32, i32, Port)) -> bool) {
        for (port, direction) in self.directions.iter() {
            if concerns(*port) {
                direction.send_replace(link);
            }
        }
    }
}

/// Stands for one port of `to`, as `from` sees it.
struct Proxy {
    address: String,
    target: String,
    there: watch::Receiver<Link>,
    back: watch::Receiver<Link>,
}

impl Proxy {
    fn new(directions: &Directions, (from, to, port): (i32, i32, Port), target: &str) -> Self {
        Self {
            address: format!("127.0.0.1:{}", free_port()),
            target: target.to_owned(),
            there: directions[&(from, to, port)].subscribe(),
            back: directions[&(to, from, port)].subscribe(),
        }
    }

    async fn serve(mut self) {
        loop {
            until(&mut self.there, |link| link != Link::Refusing).await;
            let listener = TcpListener::bind(&self.address).await.expect("the port is ours");
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((incoming, _)) = listener.accept() => {
                        connections.spawn(relay(incoming, self.target.clone(), self.there.clone(), self.back.clone()));
                    }
                    // Cut connections are cleared away.
                    Some(_) = connections.join_next() => {}
                    () = until(&mut self.there, |link| link == Link::Refusing) => break,
                }
            }
        }
    }
}

/// Carries bytes both ways until one side closes, or cannot be reached.
async fn relay(
    incoming: TcpStream,
    target: String,
    mut there: watch::Receiver<Link>,
    back: watch::Receiver<Link>,
) -> io::Result<()> {
    until(&mut there, |link| link == Link::Open).await;
    let outgoing = TcpStream::connect(target).await?;
    incoming.set_nodelay(true)?;
    outgoing.set_nodelay(true)?;
    let (from_dialler, to_dialler) = incoming.into_split();
    let (from_target, to_target) = outgoing.into_split();
    tokio::select! {
        ended = carry(from_dialler, to_target, there) => ended,
        ended = carry(from_target, to_dialler, back) => ended,
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut link: watch::Receiver<Link>) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await;
        // The end of a connection is news as well, and travels no faster than bytes.
        until(&mut link, |link| link == Link::Open).await;
        match read? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count]).await?,
        }
    }
}

async fn until(link: &mut watch::Receiver<Link>, wanted: impl Fn(Link) -> bool) {
    if link.wait_for(|link| wanted(*link)).await.is_err() {
        // The links are dropped, and this task with them.
        std::future::pending().await
    }
}
