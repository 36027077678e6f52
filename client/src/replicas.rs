//! What brokers say of the replicas on them.

use quorate_metadata::ErrorName;
use quorate_proto::log::log_client::LogClient;
use quorate_proto::log::{DescribeReplicasReply, DescribeReplicasRequest, PartitionRef};

use crate::admin::{AdminClient, REPLY_BYTES_MAX};
use crate::error::{ClientError, InvalidAddress};
use crate::nodes::Nodes;
use crate::retry::{Effect, Timed, run};

// It is bounded by the deadline of the call alone.
impl Timed for DescribeReplicasRequest {
    fn set_timeout_ms(&mut self, _: u32) {}
}

impl AdminClient {
    /// Asks the broker at this address, and no other; with no partitions, about every replica that it has.
    pub async fn describe_replicas(
        &self,
        address: &str,
        partitions: Vec<PartitionRef>,
    ) -> Result<DescribeReplicasReply, ClientError> {
        let unusable = |error: InvalidAddress| ClientError::failed(ErrorName::ReplicaNotAvailable, error.to_string());
        let broker = Nodes::open(&[address], &self.options).map_err(unusable)?;
        let request = DescribeReplicasRequest { partitions };
        run(&broker, &self.options, Effect::None, request, |channel, request| async move {
            let mut wire = LogClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
            wire.describe_replicas(request).await
        })
        .await
    }
}
