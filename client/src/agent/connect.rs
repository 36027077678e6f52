//! Connections to nodes, and finding the active controller among them.

use std::time::Duration;

use quorate_proto::error::{self, CONTROLLER_ENDPOINT};
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::AgentConfig;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A full image comes in parts; each stays far below this.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Between rounds over the candidates: short, because after a controller's death every round counts.
pub const ROUND_PAUSE: Duration = Duration::from_millis(20);

/// Opens a connection, by the address that this broker dials the announced one under.
pub async fn connect(config: &AgentConfig, announced: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{}", (config.resolve)(announced)))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    config.network.open(&endpoint).await
}

/// A node that has just fallen silent is passed over for so long: others go on naming it until they have elected.
const PASSED_OVER: Duration = Duration::from_secs(1);

/// Whom to ask next: a node that another one named as the active controller, or else the bootstrap list in turn.
pub struct Candidates {
    named: Option<String>,
    bootstrap: Vec<String>,
    next: usize,
    silent: Option<(String, Instant)>,
}

impl Candidates {
    pub fn new(config: &AgentConfig) -> Self {
        Self { named: None, bootstrap: config.bootstrap.clone(), next: 0, silent: None }
    }

    /// The next address, after a pause when a whole round has been in vain.
    pub async fn next(&mut self) -> String {
        if let Some(named) = self.named.take()
            && !self.is_silent(&named)
        {
            return named;
        }
        loop {
            if self.next == self.bootstrap.len() {
                self.next = 0;
                tokio::time::sleep(ROUND_PAUSE).await;
            }
            self.next += 1;
            let candidate = &self.bootstrap[self.next - 1];
            if !self.is_silent(candidate) {
                return candidate.clone();
            }
        }
    }

    fn is_silent(&self, address: &str) -> bool {
        self.silent.as_ref().is_some_and(|(silent, since)| silent == address && since.elapsed() < PASSED_OVER)
    }

    /// The candidate does not answer, or answers what helps nobody: ask others first.
    pub fn pass_over(&mut self, address: &str) {
        self.silent = Some((address.to_owned(), Instant::now()));
    }

    /// Learns from a refusal who the active controller is.
    pub fn learn(&mut self, status: &Status) {
        self.named = error::fact(status, CONTROLLER_ENDPOINT);
    }

    /// The candidate worked: begin with it next time.
    pub fn prefer(&mut self, address: &str) {
        self.named = Some(address.to_owned());
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(bootstrap: &[&str]) -> Candidates {
        let bootstrap = bootstrap.iter().map(ToString::to_string).collect();
        Candidates { named: None, bootstrap, next: 0, silent: None }
    }

    #[tokio::test(start_paused = true)]
    async fn who_fell_silent_is_passed_over_even_when_others_name_it() {
        let mut candidates = candidates(&["a", "b", "c"]);
        assert_eq!(candidates.next().await, "a");
        candidates.pass_over("b");
        assert_eq!(candidates.next().await, "c");
        candidates.prefer("b");
        assert_eq!(candidates.next().await, "a");
        tokio::time::advance(PASSED_OVER).await;
        assert_eq!(candidates.next().await, "b");
    }

    #[tokio::test(start_paused = true)]
    async fn the_only_node_there_is_is_asked_again() {
        let mut candidates = candidates(&["a"]);
        candidates.pass_over("a");
        assert_eq!(candidates.next().await, "a");
    }
}
