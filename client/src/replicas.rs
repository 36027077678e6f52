//! What brokers say of the replicas on them.

use quorate_metadata::ErrorName;
use quorate_proto::log::log_client::LogClient;
use quorate_proto::log::{
    DeleteStraysReply, DeleteStraysRequest, DescribeReplicasReply, DescribeReplicasRequest, ListStraysReply,
    ListStraysRequest, PartitionRef,
};

use crate::admin::{AdminClient, REPLY_BYTES_MAX};
use crate::error::{ClientError, InvalidAddress};
use crate::nodes::Nodes;
use crate::pages::all_pages;
use crate::retry::{Effect, Timed, run};

macro_rules! bounded_by_the_deadline_of_the_call {
    ($($request:ident)*) => {
        $(impl Timed for $request {
            fn set_timeout_ms(&mut self, _: u32) {}
        })*
    };
}

bounded_by_the_deadline_of_the_call! { DescribeReplicasRequest ListStraysRequest DeleteStraysRequest }

impl AdminClient {
    /// Asks the broker at this address, and no other; with no partitions, about every replica that it has.
    pub async fn describe_replicas(
        &self,
        address: &str,
        partitions: Vec<PartitionRef>,
    ) -> Result<DescribeReplicasReply, ClientError> {
        let broker = self.broker_at(address)?;
        let request = DescribeReplicasRequest { partitions };
        run(&broker, &self.options, Effect::None, request, |channel, request| async move {
            let mut wire = LogClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
            wire.describe_replicas(request).await
        })
        .await
    }

    /// The strays of the broker at this address: replicas that the metadata does not know.
    pub async fn list_strays(&self, address: &str) -> Result<ListStraysReply, ClientError> {
        let broker = self.broker_at(address)?;
        all_pages(ListStraysRequest::default(), |request| {
            run(&broker, &self.options, Effect::None, request, |channel, request| async move {
                LogClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX).list_strays(request).await
            })
        })
        .await
    }

    /// Deletes strays of the broker at this address. Those that are deleted already are refused as no strays.
    pub async fn delete_strays(
        &self,
        address: &str,
        strays: Vec<PartitionRef>,
    ) -> Result<DeleteStraysReply, ClientError> {
        let broker = self.broker_at(address)?;
        let request = DeleteStraysRequest { strays };
        run(&broker, &self.options, Effect::Change, request, |channel, request| async move {
            LogClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX).delete_strays(request).await
        })
        .await
    }

    fn broker_at(&self, address: &str) -> Result<Nodes, ClientError> {
        let unusable = |error: InvalidAddress| ClientError::failed(ErrorName::ReplicaNotAvailable, error.to_string());
        Nodes::open(&[address], &self.options).map_err(unusable)
    }
}
