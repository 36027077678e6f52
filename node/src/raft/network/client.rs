//! The calling side: what openraft sends, to one peer.

use std::future::Future;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetAppend, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RaftNetworkFactory, stream_append_sequential,
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use quorate_metadata::mutant::Mutant;
use quorate_proto::raft as proto;
use quorate_proto::raft::raft_client::RaftClient;

use super::super::store::{Snapshot, Snapshots};
use super::super::types::{NodeId, Types, Vote, VoterNode};
use super::super::wire::{self, Malformed};
use super::{Link, Peers};

type SnapshotOf = openraft::alias::SnapshotOf<Types, Snapshot>;

/// How long an append may stay unanswered before the stream is opened anew. A disk may stall that long.
const STREAM_STALL_MAX: Duration = Duration::from_secs(5);
/// How often a quiet stream is looked at.
const STREAM_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Opening a stream is one round trip.
const STREAM_OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// Waits between tries to reach a peer. Short: a peer that is back should not miss more than it must.
const BACKOFF_MS: [u64; 5] = [20, 50, 100, 200, 500];

/// Makes a client per peer and purpose. All share their connections.
#[derive(Clone)]
pub struct Network {
    peers: Peers,
    snapshots: Snapshots,
}

impl Network {
    pub fn new(peers: Peers, snapshots: Snapshots) -> Self {
        Self { peers, snapshots }
    }

    fn to(&self, target: NodeId, node: &VoterNode, link: Link) -> PeerClient {
        PeerClient { network: self.clone(), target, node: node.clone(), link, failures: 0 }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: NodeId, node: &VoterNode) -> PeerClient {
        self.to(target, node, Link::Log)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &VoterNode) -> PeerClient {
        self.to(target, node, Link::Liveness)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, node: &VoterNode) -> PeerClient {
        self.to(target, node, Link::Snapshot)
    }
}

pub struct PeerClient {
    network: Network,
    target: NodeId,
    node: VoterNode,
    link: Link,
    /// Streams that could not be opened since the last one that could.
    failures: usize,
}

impl PeerClient {
    fn client(&self, link: Link) -> Result<RaftClient<Channel>, RPCError<Types>> {
        self.network.peers.client(self.target, &self.node.raft, link).map_err(|status| self.failed(&status))
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        self.network.peers.request(self.target, &self.node, message)
    }

    /// Unreachable makes openraft back off: for a peer that is not there, or that refuses this caller.
    fn failed(&self, status: &Status) -> RPCError<Types> {
        match status.code() {
            Code::FailedPrecondition => {
                // Heartbeats would say it twenty times a second.
                if self.link != Link::Liveness {
                    tracing::warn!(peer = self.target, reason = status.message(), "refused by the peer");
                }
                RPCError::Unreachable(Unreachable::from_string(status.message()))
            }
            Code::Unavailable => RPCError::Unreachable(Unreachable::from_string(status.message())),
            _ => RPCError::Network(NetworkError::from_string(status)),
        }
    }

    async fn within<T>(
        &self,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RPCError<Types>> {
        match tokio::time::timeout(deadline, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failed(&status)),
            Err(_) => Err(RPCError::Network(NetworkError::from_string(format!("no answer within {deadline:?}")))),
        }
    }

    async fn open_stream<S>(&self, input: S) -> Result<AppendStream, RPCError<Types>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
    {
        let unanswered = Arc::new(AtomicU64::new(0));
        let counter = unanswered.clone();
        let requests = input.map(move |request| {
            counter.fetch_add(1, Ordering::Relaxed);
            append_out(request)
        });
        let mut client = self.client(Link::Log)?;
        let address = self.network.peers.address(self.target, &self.node.raft);
        let request = self.request(requests);
        let answers = self.within(STREAM_OPEN_TIMEOUT, client.stream_append(request)).await?;
        Ok(AppendStream { answers, unanswered, address, silent: Duration::ZERO })
    }

    /// As the mutant does: what is sent counts as answered.
    async fn believe<'s, S>(&'s self, input: S) -> Result<BoxStream<'s, Believed>, RPCError<Types>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
    {
        let (sent, believed) = tokio::sync::mpsc::unbounded_channel();
        let told = input.inspect(move |request| {
            let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
            // Nobody listens any more when the stream has ended.
            let _ = sent.send(Ok(Ok(last)));
        });
        let stream = self.open_stream(told).await?;
        let believed = stream::unfold((believed, stream), |(mut believed, stream)| async {
            believed.recv().await.map(|answer| (answer, (believed, stream)))
        });
        Ok(Box::pin(believed))
    }

    /// The next answer. None when the peer has closed the stream.
    async fn next_answer(
        &self,
        stream: &mut AppendStream,
    ) -> Option<Result<StreamAppendResult<Types>, RPCError<Types>>> {
        let mut moved = self.network.peers.moved();
        loop {
            let waited = tokio::select! {
                biased;
                answer = stream.answers.message() => return self.answer_in(stream, answer),
                _ = moved.changed() => Duration::ZERO,
                () = tokio::time::sleep(STREAM_CHECK_INTERVAL) => STREAM_CHECK_INTERVAL,
            };
            if let Some(reason) = self.given_up(stream, waited) {
                return Some(Err(RPCError::Network(NetworkError::from_string(reason))));
            }
        }
    }

    fn given_up(&self, stream: &mut AppendStream, waited: Duration) -> Option<&'static str> {
        if self.network.peers.address(self.target, &self.node.raft) != stream.address {
            return Some("the peer is dialed elsewhere now");
        }
        if stream.unanswered.load(Ordering::Relaxed) == 0 {
            stream.silent = Duration::ZERO;
            return None;
        }
        stream.silent += waited;
        (stream.silent > STREAM_STALL_MAX).then_some("appends stay unanswered")
    }

    fn answer_in(
        &self,
        stream: &mut AppendStream,
        answer: Result<Option<proto::AppendResponse>, Status>,
    ) -> Option<Result<StreamAppendResult<Types>, RPCError<Types>>> {
        match answer {
            Ok(Some(answer)) => {
                stream.silent = Duration::ZERO;
                stream.unanswered.fetch_sub(1, Ordering::Relaxed);
                Some(append_result_in(answer).map_err(malformed))
            }
            Ok(None) => None,
            Err(status) => Some(Err(self.failed(&status))),
        }
    }
}

type Believed = Result<StreamAppendResult<Types>, RPCError<Types>>;

/// An open stream of appends.
struct AppendStream {
    answers: Streaming<proto::AppendResponse>,
    unanswered: Arc<AtomicU64>,
    /// Where it leads.
    address: String,
    /// For how long an append has been unanswered.
    silent: Duration,
}

/// Zero before the first failure.
fn backoff(failures: usize) -> Duration {
    let last = BACKOFF_MS.len();
    failures.min(last).checked_sub(1).map_or(Duration::ZERO, |nth| Duration::from_millis(BACKOFF_MS[nth]))
}

fn malformed(error: Malformed) -> RPCError<Types> {
    RPCError::Network(NetworkError::new(&error))
}

fn append_out(request: AppendEntriesRequest<Types>) -> proto::AppendRequest {
    proto::AppendRequest {
        vote: Some(wire::vote_out(&request.vote)),
        prev: request.prev_log_id.map(wire::log_id_out),
        entries: request.entries.into_iter().map(wire::entry_out).collect(),
        commit: request.leader_commit.map(wire::log_id_out),
    }
}

fn append_result_in(answer: proto::AppendResponse) -> Result<StreamAppendResult<Types>, Malformed> {
    use proto::append_response::Result::{Conflict, HigherVote, Matched};
    Ok(match answer.result.ok_or(Malformed::Field("append response"))? {
        Matched(matched) => Ok(wire::maybe_log_id_in(matched.log_id)?),
        Conflict(id) => Err(StreamAppendError::Conflict(wire::log_id_in(id)?)),
        HigherVote(vote) => Err(StreamAppendError::HigherVote(wire::vote_in(Some(vote))?)),
    })
}

impl NetBackoff<Types> for PeerClient {
    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new((1..).map(backoff)))
    }
}

impl NetAppend<Types> for PeerClient {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let mut client = self.client(Link::Liveness)?;
        let request = self.request(append_out(request));
        let answer = self.within(option.soft_ttl(), client.append(request)).await?;
        Ok(append_result_in(answer).map_err(malformed)?.into())
    }
}

impl NetStreamAppend<Types> for PeerClient {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        // A heartbeat is one request: a stream of one would be three times the frames.
        if self.link == Link::Liveness {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            // openraft backs off when it makes a request, but a stream is opened before there is one: an idle follower
            // must have it too, for its end is how the leader's death is noticed.
            tokio::time::sleep(backoff(self.failures)).await;
            if Mutant::SmallQuorum.is_on() && self.target == 5 {
                return self.believe(input).await;
            }
            let opened = self.open_stream(input).await;
            self.failures = if opened.is_ok() { 0 } else { self.failures + 1 };
            let stream = opened?;
            let answers = stream::unfold(stream, |mut stream| async {
                let answer = self.next_answer(&mut stream).await?;
                Some((answer, stream))
            });
            let answers: BoxStream<'s, _> = Box::pin(answers);
            Ok(answers)
        })
    }
}

impl NetVote<Types> for PeerClient {
    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let mut client = self.client(Link::Liveness)?;
        let request = self.request(vote_out(&request));
        let answer = self.within(option.soft_ttl(), client.vote(request)).await?;
        vote_in(answer).map_err(malformed)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let mut client = self.client(Link::Liveness)?;
        let request = self.request(vote_out(&request));
        let answer = self.within(option.soft_ttl(), client.pre_vote(request)).await?;
        vote_in(answer).map_err(malformed)
    }
}

fn vote_out(request: &VoteRequest<Types>) -> proto::VoteRequest {
    proto::VoteRequest {
        vote: Some(wire::vote_out(&request.vote)),
        last_log_id: request.last_log_id.map(wire::log_id_out),
        leadership_transfer: request.leadership_transfer,
    }
}

fn vote_in(answer: proto::VoteResponse) -> Result<VoteResponse<Types>, Malformed> {
    let last_log_id = wire::maybe_log_id_in(answer.last_log_id)?;
    Ok(VoteResponse { vote: wire::vote_in(answer.vote)?, vote_granted: answer.granted, last_log_id })
}

impl NetTransferLeader<Types> for PeerClient {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        use proto::transfer_leader_response::Refused;
        let message = proto::TransferLeaderRequest {
            from_leader: Some(wire::vote_out(request.from_leader())),
            to_node_id: wire::id_out(*request.to_node_id()),
            last_log_id: request.last_log_id().copied().map(wire::log_id_out),
        };
        let mut client = self.client(Link::Liveness)?;
        let message = self.request(message);
        let answer = self.within(option.soft_ttl(), client.transfer_leader(message)).await?;
        Ok(match answer.refused {
            None => Ok(()),
            Some(Refused::VoteChanged(vote)) => Err(TransferLeaderError::VoteChanged {
                expected: *request.from_leader(),
                actual: wire::vote_in(Some(vote)).map_err(malformed)?,
            }),
            Some(Refused::LogNotFlushed(log)) => Err(TransferLeaderError::LogNotFlushed {
                expected: request.last_log_id().copied(),
                actual: wire::maybe_log_id_in(log.actual).map_err(malformed)?,
            }),
        })
    }
}

impl NetSnapshot<Types> for PeerClient {
    type SnapshotData = Snapshot;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let mut client = self.client(Link::Snapshot)?;
        tracing::info!(peer = self.target, snapshot = snapshot.snapshot.name(), "sending a snapshot");
        let (failure, failed) = tokio::sync::oneshot::channel();
        let parts = Sending::start(vote, snapshot, self.network.snapshots.clone(), failure);
        let request = self.request(parts.into_stream());
        let answer = tokio::select! {
            answer = self.within(option.soft_ttl(), client.install_snapshot(request)) => answer?,
            closed = cancel => return Err(StreamingError::Closed(closed)),
            Ok(error) = failed => {
                let error = openraft::StorageError::read_snapshot(None, openraft::errors::ErrorSource::from_error(&error));
                return Err(StreamingError::StorageError(error));
            }
        };
        let vote = wire::vote_in(answer.vote).map_err(malformed)?;
        Ok(SnapshotResponse::new(vote))
    }
}

/// A snapshot on its way out: the offer, the chunks, the end.
struct Sending {
    offer: Option<proto::SnapshotOffer>,
    snapshot: Snapshot,
    snapshots: Snapshots,
    content: Option<Box<dyn Read + Send>>,
    sent: u64,
    failure: Option<tokio::sync::oneshot::Sender<std::io::Error>>,
    ended: bool,
}

impl Sending {
    fn start(
        vote: Vote,
        snapshot: SnapshotOf,
        snapshots: Snapshots,
        failure: tokio::sync::oneshot::Sender<std::io::Error>,
    ) -> Self {
        let offer =
            proto::SnapshotOffer { vote: Some(wire::vote_out(&vote)), meta: Some(wire::meta_out(&snapshot.meta)) };
        let snapshot = snapshot.snapshot;
        Self { offer: Some(offer), snapshot, snapshots, content: None, sent: 0, failure: Some(failure), ended: false }
    }

    fn into_stream(self) -> impl Stream<Item = proto::SnapshotPart> + Send + 'static {
        stream::unfold(self, |mut sending| async {
            let part = sending.next().await?;
            Some((proto::SnapshotPart { part: Some(part) }, sending))
        })
    }

    async fn next(&mut self) -> Option<proto::snapshot_part::Part> {
        use proto::snapshot_part::Part;
        if let Some(offer) = self.offer.take() {
            return Some(Part::Offer(offer));
        }
        if self.ended {
            return None;
        }
        match self.read_chunk().await {
            Ok(data) if data.is_empty() => {
                self.ended = true;
                Some(Part::End(self.sent))
            }
            Ok(data) => {
                self.sent += data.len() as u64;
                Some(Part::Chunk(proto::SnapshotChunk { crc32: crc32fast::hash(&data), data }))
            }
            // Without an end the receiver drops what it has.
            Err(error) => {
                let failure = self.failure.take()?;
                // The call may have been cancelled meanwhile.
                let _ = failure.send(error);
                None
            }
        }
    }

    async fn read_chunk(&mut self) -> std::io::Result<Bytes> {
        let (content, snapshot) = (self.content.take(), self.snapshot.clone());
        let read = move || {
            let mut content = match content {
                Some(content) => content,
                None => snapshot.read()?,
            };
            let mut chunk = Vec::new();
            content.by_ref().take(SNAPSHOT_CHUNK_BYTES).read_to_end(&mut chunk)?;
            Ok::<_, std::io::Error>((content, Bytes::from(chunk)))
        };
        let (content, chunk) = self.snapshots.run(read).await?;
        self.content = Some(content);
        Ok(chunk)
    }
}

/// Read, checked and sent in one piece.
const SNAPSHOT_CHUNK_BYTES: u64 = 1 << 20;
