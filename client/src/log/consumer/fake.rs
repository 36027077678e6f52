//! A broker in this process, and what it has to say.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use prost::Message;
use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::error::to_item;
use quorate_proto::log::log_server::{Log, LogServer};
use quorate_proto::log::*;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use tower::service_fn;

use super::Partition;

pub fn partition() -> Partition {
    Partition { topic: "orders".into(), partition: 0 }
}

pub fn batch(base_offset: i64, leader_epoch: i32, values: &[&str]) -> RecordBatch {
    let record = |value: &&str| Record { value: Some(value.to_string().into()), ..Record::default() };
    let records = Records { records: values.iter().map(record).collect() }.encode_to_vec();
    RecordBatch {
        base_offset,
        leader_epoch,
        record_count: i32::try_from(values.len()).expect("few"),
        crc: Some(crc32fast::hash(&records)),
        records: records.into(),
        ..RecordBatch::default()
    }
}

pub fn fetched(high_watermark: i64, batches: Vec<RecordBatch>) -> FetchedPartition {
    FetchedPartition { topic_id: "id".to_owned(), high_watermark, batches, ..FetchedPartition::default() }
}

pub fn refused(name: ErrorName) -> FetchedPartition {
    FetchedPartition { error: Some(to_item(&ApiError::new(name, "refused"))), ..fetched(-1, Vec::new()) }
}

/// Gives one answer after the other, and then none.
#[derive(Clone, Default)]
pub struct Broker {
    pub answers: Arc<Mutex<VecDeque<FetchedPartition>>>,
    pub offsets: Arc<Mutex<VecDeque<i64>>>,
    pub asked: Arc<Mutex<Vec<FetchPartition>>>,
}

impl Broker {
    pub fn with(answers: impl IntoIterator<Item = FetchedPartition>) -> Self {
        let broker = Self::default();
        broker.answers.lock().expect("unpoisoned").extend(answers);
        broker
    }

    /// A connection that ends in this process.
    pub fn serve(&self) -> Channel {
        let (connections, accepted) = mpsc::unbounded_channel::<DuplexStream>();
        let incoming = UnboundedReceiverStream::new(accepted).map(Ok::<_, std::io::Error>);
        tokio::spawn(Server::builder().add_service(LogServer::new(self.clone())).serve_with_incoming(incoming));
        let connector = service_fn(move |_| {
            let (ours, theirs) = duplex(64 * 1024);
            let sent = connections.send(theirs).map_err(|_| std::io::Error::other("the server ended"));
            async move { sent.map(|()| TokioIo::new(ours)) }
        });
        Endpoint::from_static("http://fake").connect_with_connector_lazy(connector)
    }

    pub fn asked(&self) -> Vec<FetchPartition> {
        self.asked.lock().expect("unpoisoned").clone()
    }
}

fn unused<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not part of the test"))
}

#[tonic::async_trait]
impl Log for Broker {
    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<FetchReply>, Status> {
        self.asked.lock().expect("unpoisoned").extend(request.into_inner().partitions);
        let answer = self.answers.lock().expect("unpoisoned").pop_front();
        match answer {
            Some(answer) => Ok(Response::new(FetchReply { partitions: vec![answer] })),
            None => std::future::pending().await,
        }
    }

    async fn list_offsets(&self, request: Request<ListOffsetsRequest>) -> Result<Response<ListOffsetsReply>, Status> {
        let mut offsets = self.offsets.lock().expect("unpoisoned");
        let listed = request.into_inner().partitions.into_iter().map(|query| ListedOffset {
            topic_id: query.topic_id,
            partition: query.partition,
            offset: offsets.pop_front(),
            ..ListedOffset::default()
        });
        Ok(Response::new(ListOffsetsReply { partitions: listed.collect() }))
    }

    async fn init_producer(&self, _: Request<InitProducerRequest>) -> Result<Response<InitProducerReply>, Status> {
        unused()
    }

    async fn produce(&self, _: Request<ProduceRequest>) -> Result<Response<ProduceReply>, Status> {
        unused()
    }

    async fn epoch_end_offsets(
        &self,
        _: Request<EpochEndOffsetsRequest>,
    ) -> Result<Response<EpochEndOffsetsReply>, Status> {
        unused()
    }

    async fn describe_replicas(
        &self,
        _: Request<DescribeReplicasRequest>,
    ) -> Result<Response<DescribeReplicasReply>, Status> {
        unused()
    }

    async fn list_strays(&self, _: Request<ListStraysRequest>) -> Result<Response<ListStraysReply>, Status> {
        unused()
    }

    async fn delete_strays(&self, _: Request<DeleteStraysRequest>) -> Result<Response<DeleteStraysReply>, Status> {
        unused()
    }

    type ReplicateStream = ReceiverStream<Result<ReplicateReply, Status>>;

    async fn replicate(
        &self,
        _: Request<tonic::Streaming<ReplicateRequest>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        unused()
    }
}
