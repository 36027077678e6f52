//! The reference data plane over the wire: records in, records out, replication, and what the replicas are doing.

#[cfg(test)]
mod config_readers;
mod describe;
mod fetch;
mod offsets;
mod partition;
mod produce;
mod records;
mod replicate;
mod strays;
mod timestamps;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::error::{Context, to_status};
use quorate_proto::log::log_server::{Log, LogServer};
use quorate_proto::log::{
    DeleteStraysReply, DeleteStraysRequest, DescribeReplicasReply, DescribeReplicasRequest, EpochEndOffsetsReply,
    EpochEndOffsetsRequest, FetchReply, FetchRequest, InitProducerReply, InitProducerRequest, ListOffsetsReply,
    ListOffsetsRequest, ListStraysReply, ListStraysRequest, ProduceReply, ProduceRequest, ReplicateReply,
    ReplicateRequest,
};
use tokio::sync::Semaphore;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::broker::DataPlane;

/// The data plane of this node, while it is open. Cheap to clone; all clones are one slot.
#[derive(Clone, Default)]
pub struct DataPlaneSlot(Arc<ArcSwapOption<DataPlane>>);

impl DataPlaneSlot {
    pub fn get(&self) -> Option<DataPlane> {
        self.0.load().as_deref().cloned()
    }

    pub fn fill(&self, plane: DataPlane) {
        self.0.store(Some(Arc::new(plane)));
    }

    /// The broker closes its log directories, and may open them again.
    pub fn clear(&self) {
        self.0.store(None);
    }
}

/// Records that are on their way to the disk or to the replicas; producers wait beyond it.
const PRODUCED_BYTES_MAX: usize = 64 << 20;

/// A request of a producer: several batches for many partitions.
pub const REQUEST_BYTES_MAX: usize = 16 << 20;

pub struct LogService {
    slot: DataPlaneSlot,
    room: Arc<Semaphore>,
}

impl LogService {
    pub fn server(slot: DataPlaneSlot) -> LogServer<Self> {
        LogServer::new(Self { slot, room: Arc::new(Semaphore::new(PRODUCED_BYTES_MAX)) })
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(super::server::REPLY_BYTES_MAX)
    }

    fn plane(&self) -> Result<DataPlane, Status> {
        let starting = || ApiError::new(ErrorName::ReplicaNotAvailable, "this node has no open log directory");
        self.slot.get().ok_or_else(|| status(&starting()))
    }
}

fn status(error: &ApiError) -> Status {
    to_status(error, Context::default())
}

#[tonic::async_trait]
impl Log for LogService {
    async fn init_producer(
        &self,
        request: Request<InitProducerRequest>,
    ) -> Result<Response<InitProducerReply>, Status> {
        let plane = self.plane()?;
        let InitProducerRequest { timeout_ms, newest } = request.into_inner();
        let timeout = super::request::timeout(timeout_ms);
        let id = plane.producer_ids().next(newest, timeout).await.map_err(|error| status(&error))?;
        Ok(Response::new(InitProducerReply { producer_id: id, producer_epoch: 0 }))
    }

    async fn produce(&self, request: Request<ProduceRequest>) -> Result<Response<ProduceReply>, Status> {
        let plane = self.plane()?;
        let reply = produce::produce(&plane, &self.room, request.into_inner()).await;
        reply.map(Response::new).map_err(|error| status(&error))
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<FetchReply>, Status> {
        let plane = self.plane()?;
        let reply = fetch::fetch(&plane, request.into_inner()).await;
        reply.map(Response::new).map_err(|error| status(&error))
    }

    async fn list_offsets(&self, request: Request<ListOffsetsRequest>) -> Result<Response<ListOffsetsReply>, Status> {
        let plane = self.plane()?;
        let mut partitions = Vec::new();
        for query in request.into_inner().partitions {
            partitions.push(offsets::list(&plane, query).await);
        }
        Ok(Response::new(ListOffsetsReply { partitions }))
    }

    async fn epoch_end_offsets(
        &self,
        request: Request<EpochEndOffsetsRequest>,
    ) -> Result<Response<EpochEndOffsetsReply>, Status> {
        let plane = self.plane()?;
        let partitions = request.into_inner().partitions;
        let partitions = partitions.into_iter().map(|query| offsets::epoch_end(&plane, query)).collect();
        Ok(Response::new(EpochEndOffsetsReply { partitions }))
    }

    async fn describe_replicas(
        &self,
        request: Request<DescribeReplicasRequest>,
    ) -> Result<Response<DescribeReplicasReply>, Status> {
        let plane = self.plane()?;
        Ok(Response::new(describe::describe(&plane, request.into_inner()).await))
    }

    async fn list_strays(&self, request: Request<ListStraysRequest>) -> Result<Response<ListStraysReply>, Status> {
        let plane = self.plane()?;
        let reply = strays::list(&plane, request.into_inner()).await;
        reply.map(Response::new).map_err(|error| status(&error))
    }

    async fn delete_strays(
        &self,
        request: Request<DeleteStraysRequest>,
    ) -> Result<Response<DeleteStraysReply>, Status> {
        let plane = self.plane()?;
        let reply = strays::delete(&plane, request.into_inner()).await;
        reply.map(Response::new).map_err(|error| status(&error))
    }

    type ReplicateStream = ReceiverStream<Result<ReplicateReply, Status>>;

    async fn replicate(
        &self,
        request: Request<Streaming<ReplicateRequest>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        let plane = self.plane()?;
        Ok(Response::new(replicate::serve(plane, request.into_inner())))
    }
}
