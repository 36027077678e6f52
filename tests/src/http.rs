//! The HTTP port of a node.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{Cluster, PATIENCE};

impl Cluster {
    /// Status and body of `GET path`; `None` while nothing listens.
    pub async fn http(&self, id: i32, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.http_address(id)).await.ok()?;
        let asked = async {
            stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.map(|_| answer)
        };
        let answer = timeout(PATIENCE, asked).await.expect("it is answered").ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    }
}
