//! Single calls to one node over a connection of their own, as no client library would make them.

use std::time::Duration;

use quorate_client::ClientError;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::admin::admin_client::AdminClient;
use quorate_proto::broker::broker_client::BrokerClient;
use quorate_proto::error::{from_status, is_ours};
use quorate_proto::log::log_client::LogClient;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::{CALL_TIMEOUT, Context};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A whole image of a run fits, and so does a whole log.
pub const REPLY_BYTES_MAX: usize = 64 << 20;

impl Context {
    fn channel(&self, address: &str) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("the addresses are our own");
        self.network.open_lazily(&endpoint.connect_timeout(CONNECT_TIMEOUT))
    }

    pub fn admin(&self, address: &str) -> AdminClient<Channel> {
        AdminClient::new(self.channel(address)).max_decoding_message_size(REPLY_BYTES_MAX)
    }

    pub fn broker(&self, address: &str) -> BrokerClient<Channel> {
        BrokerClient::new(self.channel(address)).max_decoding_message_size(REPLY_BYTES_MAX)
    }

    pub fn log(&self, address: &str) -> LogClient<Channel> {
        LogClient::new(self.channel(address)).max_decoding_message_size(REPLY_BYTES_MAX)
    }
}

/// The answer. Whatever no node of ours has said leaves open what became of the call.
pub async fn ask<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, ClientError> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) if is_ours(&status) => Err(from_status(&status).into()),
        Ok(Err(status)) => Err(ClientError::Unknown(from_status(&status))),
        Err(_) => Err(ClientError::Unknown(ApiError::new(ErrorName::RequestTimedOut, "no answer"))),
    }
}
