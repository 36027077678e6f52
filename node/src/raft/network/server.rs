//! The called side. Each call is checked before Raft handles it: see `check`.

use std::collections::BTreeSet;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, future, stream};
use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use tokio::sync::{Notify, mpsc, oneshot};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use quorate_client::network::{Port, to_tokio};
use quorate_proto::raft as proto;
use quorate_proto::raft::raft_server::{self, RaftServer};

use super::super::identity::LocalVoter;
use super::super::store::{LogStore, SnapshotWriter, Snapshots};
use super::super::types::{NodeId, Types};
use super::super::wire::{self, Malformed};
use super::super::{Raft, RaftError};
use super::check::FirstCalls;
use super::peers::header_of;
use super::{
    CONNECTION_WINDOW_BYTES, INCONSISTENT_CLUSTER_ID, INVALID_VOTER_KEY, MESSAGE_BYTES_MAX, PING_INTERVAL,
    PING_TIMEOUT, STREAM_WINDOW_BYTES, check, refusal,
};
use crate::incoming::{self, Purpose};

type SnapshotOf = openraft::alias::SnapshotOf<Types, super::super::store::Snapshot>;

/// Three streams a peer are in use; the rest is room for unary calls.
const STREAMS_PER_CONNECTION_MAX: u32 = 128;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// A sender that is silent for so long in the middle of a snapshot starts over.
const SNAPSHOT_PART_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct Service {
    pub local: LocalVoter,
    pub raft: Raft,
    pub snapshots: Snapshots,
    /// Told of each peer whose stream of appends broke.
    pub broken: mpsc::Sender<NodeId>,
    /// Wakes those who wait when a candidate is refused because its log is worse than the one here.
    pub outlogged: Arc<Notify>,
    /// Notified when a call was meant for another disk.
    pub doubted: Arc<Notify>,
    pub first_calls: FirstCalls,
    /// Ends this voter.
    pub refused: mpsc::Sender<RaftError>,
    pub log: LogStore,
    /// The configured voters.
    pub configured: Arc<BTreeSet<NodeId>>,
    /// The highest `metadata.version` that this node supports.
    pub level_max: i16,
}

impl Service {
    /// Runs until dropped.
    pub async fn serve(self, port: Port) -> Result<(), String> {
        let service = RaftServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let router = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .add_service(service);
        let ended = match port {
            Port::Given(incoming) => router.serve_with_incoming(incoming).await,
            Port::Socket(listener) => {
                let listener = to_tokio(listener).map_err(|error| error.to_string())?;
                let incoming = incoming::accept(listener, Purpose::Raft).map_err(|error| error.to_string())?;
                router.serve_with_incoming(incoming).await
            }
        };
        ended.map_err(|error| error.to_string())
    }
}

pub(super) fn stopped(fatal: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("raft has stopped: {fatal}"))
}

fn malformed(error: Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

#[tonic::async_trait]
impl raft_server::Raft for Service {
    async fn greet(&self, request: Request<proto::GreetRequest>) -> Result<Response<proto::GreetResponse>, Status> {
        let request = request.into_inner();
        let theirs = wire::cluster_in(&request.cluster_id).map_err(malformed)?;
        if let (Some(theirs), Some(ours)) = (theirs, self.local.cluster())
            && theirs != ours
        {
            let text = format!("the caller is of cluster {theirs}, node {} is of cluster {ours}", self.local.node);
            return Err(refusal(INCONSISTENT_CLUSTER_ID, text));
        }
        let directory = wire::directory_in(&request.directory).map_err(malformed)?;
        if request.node_id == self.local.node.get() && directory != self.local.directory {
            let text = format!("node {} already runs here with directory {}", self.local.node, self.local.directory);
            return Err(refusal(INVALID_VOTER_KEY, text));
        }
        Ok(Response::new(self.introduce().await?))
    }

    async fn append(&self, request: Request<proto::AppendRequest>) -> Result<Response<proto::AppendResponse>, Status> {
        let header = header_of(&request)?;
        let request = append_in(request.into_inner()).map_err(malformed)?;
        check::own_vote(self.check(&header).await?, &request.vote)?;
        self.check_agreement(&request).await?;
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let prev = request.prev_log_id;
        let answer = self.raft.append_entries(request).await.map_err(stopped)?;
        Ok(Response::new(append_result_out(answer.into_stream_result(prev, last))))
    }

    type StreamAppendStream = Pin<Box<dyn Stream<Item = Result<proto::AppendResponse, Status>> + Send>>;

    async fn stream_append(
        &self,
        request: Request<Streaming<proto::AppendRequest>>,
    ) -> Result<Response<Self::StreamAppendStream>, Status> {
        let caller = self.check(&header_of(&request)?).await?;
        let (refuse, mut refused) = oneshot::channel();
        let appends = Appends { caller, requests: request.into_inner(), service: self.clone(), refuse };
        let answers = self.raft.stream_append(stream::unfold(appends, Appends::next)).map(stream_answer_out);
        // Sent before the answers end, if that is why they end.
        let refusal = stream::once(async move { refused.try_recv().ok().map(Err) }).filter_map(future::ready);
        Ok(Response::new(Box::pin(answers.chain(refusal))))
    }

    async fn vote(&self, request: Request<proto::VoteRequest>) -> Result<Response<proto::VoteResponse>, Status> {
        let request = self.check_vote(request).await?;
        let theirs = request.last_log_id;
        let answer = self.raft.vote(request).await.map_err(stopped)?;
        if !answer.vote_granted && theirs < answer.last_log_id {
            self.outlogged.notify_waiters();
        }
        Ok(Response::new(vote_out(&answer)))
    }

    async fn pre_vote(&self, request: Request<proto::VoteRequest>) -> Result<Response<proto::VoteResponse>, Status> {
        let request = self.check_vote(request).await?;
        let answer = self.raft.pre_vote(request).await.map_err(stopped)?;
        Ok(Response::new(vote_out(&answer)))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferLeaderRequest>,
    ) -> Result<Response<proto::TransferLeaderResponse>, Status> {
        use proto::transfer_leader_response::Refused;
        let header = header_of(&request)?;
        let request = transfer_in(request.into_inner()).map_err(malformed)?;
        check::own_vote(self.check(&header).await?, request.from_leader())?;
        let refused = match self.raft.handle_transfer_leader(request).await.map_err(stopped)? {
            Ok(()) => None,
            Err(TransferLeaderError::VoteChanged { actual, .. }) => Some(Refused::VoteChanged(wire::vote_out(&actual))),
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                Some(Refused::LogNotFlushed(proto::LogNotFlushed { actual: actual.map(wire::log_id_out) }))
            }
        };
        Ok(Response::new(proto::TransferLeaderResponse { refused }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotPart>>,
    ) -> Result<Response<proto::SnapshotResponse>, Status> {
        let caller = self.check(&header_of(&request)?).await?;
        let mut parts = request.into_inner();
        let (vote, writer) = self.accept_offer(caller, &mut parts).await?;
        let snapshot = self.receive(writer, &mut parts).await?;
        let answer = self.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(proto::SnapshotResponse { vote: Some(wire::vote_out(&answer.vote)) }))
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexResponse>, Status> {
        self.check(&header_of(&request)?).await?;
        let read = self.raft.get_read_log_id(ReadPolicy::ReadIndex).await;
        let (id, _) = read.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(proto::ReadIndexResponse { index: id.index() }))
    }
}

impl Service {
    async fn introduce(&self) -> Result<proto::GreetResponse, Status> {
        let initialized = self.raft.is_initialized().await.map_err(stopped)?;
        let membership = self.raft.server_metrics().borrow_watched().membership_config.clone();
        Ok(proto::GreetResponse {
            cluster_id: wire::cluster_out(self.local.cluster()),
            node_id: self.local.node.get(),
            directory: wire::directory_out(self.local.directory),
            initialized,
            membership_index: membership.log_id().map(|id| id.index),
            voters: membership.nodes().map(|(id, node)| wire::voter_out(*id, node)).collect(),
            metadata_version_max: self.level_max.into(),
            replacement: self.local.is_replacement(),
        })
    }

    async fn check_vote(&self, request: Request<proto::VoteRequest>) -> Result<VoteRequest<Types>, Status> {
        let header = header_of(&request)?;
        let request = vote_in(request.into_inner()).map_err(malformed)?;
        check::own_vote(self.check(&header).await?, &request.vote)?;
        Ok(request)
    }

    async fn accept_offer(
        &self,
        caller: NodeId,
        parts: &mut Streaming<proto::SnapshotPart>,
    ) -> Result<(super::super::types::Vote, SnapshotWriter), Status> {
        let Some(proto::snapshot_part::Part::Offer(offer)) = next_part(parts).await? else {
            return Err(Status::invalid_argument("a snapshot begins with its offer"));
        };
        let vote = wire::vote_in(offer.vote).map_err(malformed)?;
        check::own_vote(caller, &vote)?;
        let meta = wire::meta_in(offer.meta).map_err(malformed)?;
        tracing::info!(index = meta.last_log_id.map(|id| id.index), "receiving a snapshot");
        let (snapshots, cluster) = (self.snapshots.clone(), self.local.cluster());
        let writer = self.snapshots.run(move || snapshots.create(meta, cluster)).await.map_err(not_written)?;
        Ok((vote, writer))
    }

    async fn receive(
        &self,
        mut writer: SnapshotWriter,
        parts: &mut Streaming<proto::SnapshotPart>,
    ) -> Result<SnapshotOf, Status> {
        use proto::snapshot_part::Part;
        let mut received = 0;
        loop {
            match next_part(parts).await? {
                Some(Part::Chunk(chunk)) => {
                    if crc32fast::hash(&chunk.data) != chunk.crc32 {
                        return Err(Status::data_loss(format!("snapshot chunk at {received}: checksum mismatch")));
                    }
                    received += chunk.data.len() as u64;
                    writer = self.write_chunk(writer, chunk.data).await?;
                }
                Some(Part::End(length)) if length == received => break,
                _ => return Err(Status::data_loss(format!("the snapshot was cut after {received} bytes"))),
            }
        }
        let snapshot = self.snapshots.run(move || writer.finish()).await.map_err(not_written)?;
        Ok(SnapshotOf { meta: snapshot.meta.clone(), snapshot })
    }

    async fn write_chunk(&self, mut writer: SnapshotWriter, data: bytes::Bytes) -> Result<SnapshotWriter, Status> {
        let write = move || writer.write_all(&data).map(|()| writer);
        self.snapshots.run(write).await.map_err(not_written)
    }
}

fn not_written(error: std::io::Error) -> Status {
    Status::internal(format!("cannot write the snapshot: {error}"))
}

async fn next_part(parts: &mut Streaming<proto::SnapshotPart>) -> Result<Option<proto::snapshot_part::Part>, Status> {
    let part = tokio::time::timeout(SNAPSHOT_PART_TIMEOUT, parts.message()).await;
    let part =
        part.map_err(|_| Status::deadline_exceeded(format!("no snapshot part within {SNAPSHOT_PART_TIMEOUT:?}")))?;
    Ok(part?.and_then(|part| part.part))
}

/// The appends of one stream.
struct Appends {
    caller: NodeId,
    requests: Streaming<proto::AppendRequest>,
    service: Service,
    /// Sends the status of a refused append, with which the stream ends.
    refuse: oneshot::Sender<Status>,
}

impl Appends {
    /// A stream that ends otherwise than by its sender's will may mean that the sender is dead.
    async fn next(mut self) -> Option<(AppendEntriesRequest<Types>, Self)> {
        let request = match self.requests.message().await {
            Ok(request) => request?,
            Err(status) => {
                tracing::debug!(peer = self.caller, %status, "append stream broke");
                // A full queue means that others have reported just now.
                let _ = self.service.broken.try_send(self.caller);
                return None;
            }
        };
        match self.checked(request).await {
            Ok(append) => Some((append, self)),
            Err(status) => {
                tracing::warn!(peer = self.caller, reason = status.message(), "append refused");
                // A caller that has gone away reads no refusal.
                let _ = self.refuse.send(status);
                None
            }
        }
    }

    async fn checked(&self, request: proto::AppendRequest) -> Result<AppendEntriesRequest<Types>, Status> {
        let append = append_in(request).map_err(malformed)?;
        check::own_vote(self.caller, &append.vote)?;
        self.service.check_agreement(&append).await?;
        Ok(append)
    }
}

fn append_in(request: proto::AppendRequest) -> Result<AppendEntriesRequest<Types>, Malformed> {
    Ok(AppendEntriesRequest {
        vote: wire::vote_in(request.vote)?,
        prev_log_id: wire::maybe_log_id_in(request.prev)?,
        entries: request.entries.into_iter().map(wire::entry_in).collect::<Result<_, _>>()?,
        leader_commit: wire::maybe_log_id_in(request.commit)?,
    })
}

fn stream_answer_out(answer: Result<StreamAppendResult<Types>, Fatal<Types>>) -> Result<proto::AppendResponse, Status> {
    answer.map(append_result_out).map_err(stopped)
}

fn append_result_out(result: StreamAppendResult<Types>) -> proto::AppendResponse {
    use proto::append_response::Result::{Conflict, HigherVote, Matched};
    let result = match result {
        Ok(log_id) => Matched(proto::Matched { log_id: log_id.map(wire::log_id_out) }),
        Err(StreamAppendError::Conflict(id)) => Conflict(wire::log_id_out(id)),
        Err(StreamAppendError::HigherVote(vote)) => HigherVote(wire::vote_out(&vote)),
    };
    proto::AppendResponse { result: Some(result) }
}

fn vote_in(request: proto::VoteRequest) -> Result<VoteRequest<Types>, Malformed> {
    Ok(VoteRequest {
        vote: wire::vote_in(request.vote)?,
        last_log_id: wire::maybe_log_id_in(request.last_log_id)?,
        leadership_transfer: request.leadership_transfer,
    })
}

fn transfer_in(request: proto::TransferLeaderRequest) -> Result<TransferLeaderRequest<Types>, Malformed> {
    let (vote, to) = (wire::vote_in(request.from_leader)?, wire::id_in(request.to_node_id)?);
    Ok(TransferLeaderRequest::new(vote, to, wire::maybe_log_id_in(request.last_log_id)?))
}

fn vote_out(answer: &VoteResponse<Types>) -> proto::VoteResponse {
    proto::VoteResponse {
        vote: Some(wire::vote_out(&answer.vote)),
        granted: answer.vote_granted,
        last_log_id: answer.last_log_id.map(wire::log_id_out),
    }
}
