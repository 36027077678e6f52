//! What a node counts: its HTTP port.

use std::io;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Of one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The metric of this name, without labels.
pub async fn read(address: &str, name: &str) -> anyhow::Result<f64> {
    let answer = timeout(ANSWER_TIMEOUT, get(address)).await.context("no answer")?;
    let answer = answer.with_context(|| format!("cannot ask {address}"))?;
    find(&answer, name).with_context(|| format!("{address} has no metric {name}"))
}

async fn get(address: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn find(answer: &str, name: &str) -> Option<f64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    answer.lines().find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let answer = "HTTP/1.0 200 OK\r\n\r\n# HELP quorate_lines Lines.\n# TYPE quorate_lines counter\n\
            quorate_lines_total_old 7\nquorate_lines_total 3\n";
        assert_eq!(find(answer, "quorate_lines_total"), Some(3.0));
        assert_eq!(find(answer, "quorate_lines"), None);
    }
}
