//! The calls that a broker makes to its controllers beside heartbeats: to any node, which forwards them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use quorate_metadata::ids::{BrokerEpoch, BrokerId};
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::broker::broker_client::BrokerClient;
use quorate_proto::error;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::connect::{Candidates, connect};
use super::{AgentConfig, Standing};

/// A call that is not answered by then is asked elsewhere.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// A handle; clones share one connection.
#[derive(Clone)]
pub struct ControllerCalls {
    config: Arc<AgentConfig>,
    standing: watch::Receiver<Standing>,
    /// The node that answered last, and the connection to it.
    link: Arc<Mutex<Link>>,
}

struct Link {
    candidates: Candidates,
    open: Option<(String, Channel)>,
}

impl ControllerCalls {
    pub(super) fn new(config: Arc<AgentConfig>, standing: watch::Receiver<Standing>) -> Self {
        let candidates = Candidates::new(&config);
        Self { config, standing, link: Arc::new(Mutex::new(Link { candidates, open: None })) }
    }

    /// One attempt. The caller knows whether the outcome of a failed one matters, and whether to ask again.
    pub async fn call<Body, Answer, Sent>(
        &self,
        body: Body,
        send: impl FnOnce(BrokerClient<Channel>, Request<Body>) -> Sent,
    ) -> Result<Answer, ApiError>
    where
        Sent: Future<Output = Result<Response<Answer>, Status>>,
    {
        let (address, channel) = self.open().await?;
        let mut request = Request::new(body);
        request.set_timeout(CALL_TIMEOUT);
        match timeout(CALL_TIMEOUT, send(BrokerClient::new(channel), request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => {
                if !error::is_ours(&status) {
                    self.leave(&address).await;
                }
                Err(error::from_status(&status))
            }
            Err(_) => {
                self.leave(&address).await;
                Err(ApiError::new(ErrorName::RequestTimedOut, format!("{address} does not answer")))
            }
        }
    }

    async fn open(&self) -> Result<(String, Channel), ApiError> {
        let mut link = self.link.lock().await;
        if let Some(open) = &link.open {
            return Ok(open.clone());
        }
        let address = link.candidates.next().await;
        let channel = connect(&self.config, &address).await.map_err(|error| {
            ApiError::new(ErrorName::ControllerUnavailable, format!("cannot connect to {address}: {error}"))
        })?;
        link.open = Some((address.clone(), channel.clone()));
        Ok((address, channel))
    }

    /// The node is paused, gone or cut off: ask others first.
    async fn leave(&self, address: &str) {
        let mut link = self.link.lock().await;
        if link.open.take_if(|(open, _)| open == address).is_some() {
            link.candidates.pass_over(address);
        }
    }

    pub fn broker(&self) -> BrokerId {
        self.config.broker
    }

    /// Under which epoch this broker is registered; waits until it is. `None`: the agent has ended.
    pub async fn epoch(&self) -> Option<BrokerEpoch> {
        let mut standing = self.standing.clone();
        let registered = standing.wait_for(|standing| standing.epoch.is_some()).await.ok()?;
        registered.epoch
    }
}
