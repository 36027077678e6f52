//! Single calls, as any client of the API makes them.

use std::time::Duration;

use quorate_client::world;
use quorate_metadata::ids::ClientId;
use quorate_proto::admin::admin_client::AdminClient;
use quorate_proto::admin::{self as wire, MutationOptions, NewTopic, TopicRef};
use quorate_proto::broker::broker_client::BrokerClient;
use quorate_proto::error::from_status;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::PATIENCE;

pub type Admin = AdminClient<Channel>;
pub type Broker = BrokerClient<Channel>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A whole image of a test is far smaller.
const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;

pub fn channel(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("the address is well formed")
        .connect_timeout(CONNECT_TIMEOUT)
        .connect_lazy()
}

pub(crate) fn admin(address: &str) -> Admin {
    AdminClient::new(channel(address)).max_decoding_message_size(REPLY_BYTES_MAX)
}

pub(crate) fn broker(address: &str) -> Broker {
    BrokerClient::new(channel(address)).max_decoding_message_size(REPLY_BYTES_MAX)
}

/// The answer to a call: the reply, or the name of the refusal. A call that hangs fails the test.
pub async fn outcome<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match timeout(PATIENCE, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => panic!("a call hangs: no answer within {PATIENCE:?}"),
    }
}

/// The name under which a call is refused.
pub async fn refusal<T: std::fmt::Debug>(call: impl Future<Output = Result<Response<T>, Status>>) -> String {
    match outcome(call).await {
        Ok(reply) => panic!("should be refused, but was answered: {reply:?}"),
        Err(status) => from_status(&status).name.to_string(),
    }
}

/// Options of a mutation with an identity of its own.
pub fn mutation(timeout: Duration) -> Option<MutationOptions> {
    Some(MutationOptions {
        client_id: ClientId::new(world::uuid()).to_string(),
        request_id: 1,
        timeout_ms: u32::try_from(timeout.as_millis()).expect("a test's timeout is short"),
        plan_only: false,
    })
}

pub fn new_topic(name: impl Into<String>, partitions: i32, replication_factor: i32) -> NewTopic {
    NewTopic {
        name: name.into(),
        partitions: Some(partitions),
        replication_factor: Some(replication_factor),
        ..NewTopic::default()
    }
}

pub fn topic_named(name: impl Into<String>) -> TopicRef {
    wire::TopicRef { name: Some(name.into()), id: None }
}
