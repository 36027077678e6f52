//! Which votes are refused before anything of them is kept: those of no voter, and those of a term beyond any epoch.

use futures::stream;
use prost::Message;
use quorate_metadata::ids::{ClusterId, ControllerId, DirectoryId};
use quorate_node::raft;
use quorate_proto::raft as proto;
use quorate_proto::raft::raft_client::RaftClient;
use quorate_proto::raft::snapshot_part::Part;
use tokio::time::{Duration, Instant, sleep};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::harness::{Cluster, PATIENCE, start};

/// Beyond any controller epoch.
const HUGE_TERM: u64 = 1 << 40;
/// Larger than any term of a test, and a controller epoch.
const HIGH_TERM: u64 = 1 << 20;
const STRANGER: i32 = 77;

/// A caller that claims to be one voter and calls another.
#[derive(Clone, Copy)]
struct Caller {
    cluster: ClusterId,
    from: (i32, DirectoryId),
    to: (i32, DirectoryId),
}

impl Caller {
    fn request<T>(&self, message: T) -> Request<T> {
        let header = proto::Header {
            cluster_id: self.cluster.as_bytes().to_vec().into(),
            from_id: self.from.0,
            from_directory: self.from.1.as_bytes().to_vec().into(),
            to_id: self.to.0,
            to_directory: self.to.1.as_bytes().to_vec().into(),
            acknowledged: None,
        };
        let mut request = Request::new(message);
        let value = MetadataValue::from_bytes(&header.encode_to_vec());
        request.metadata_mut().insert_bin("quorate-header-bin", value);
        request
    }

    /// Sends `vote` by each call that carries one.
    async fn refusals(&self, client: &mut RaftClient<Channel>, vote: proto::Vote) -> Vec<Result<(), Status>> {
        let append = proto::AppendRequest { vote: Some(vote), ..Default::default() };
        let offer = proto::SnapshotOffer { vote: Some(vote), meta: Some(meta(vote.term)) };
        let parts = [Part::Offer(offer), Part::End(0)].map(|part| proto::SnapshotPart { part: Some(part) });
        let transfer = proto::TransferLeaderRequest {
            from_leader: Some(vote),
            to_node_id: self.to.0,
            last_log_id: Some(log_id(vote.term)),
        };
        vec![
            client.vote(self.request(ask(vote))).await.map(drop),
            client.pre_vote(self.request(ask(vote))).await.map(drop),
            client.append(self.request(append.clone())).await.map(drop),
            self.stream(client, append).await,
            client.transfer_leader(self.request(transfer)).await.map(drop),
            client.install_snapshot(self.request(stream::iter(parts))).await.map(drop),
        ]
    }

    async fn stream(&self, client: &mut RaftClient<Channel>, append: proto::AppendRequest) -> Result<(), Status> {
        let mut answers = client.stream_append(self.request(stream::iter([append]))).await?.into_inner();
        answers.message().await.map(drop)
    }
}

fn log_id(term: u64) -> proto::LogId {
    proto::LogId { term, index: 1 << 40 }
}

fn meta(term: u64) -> proto::SnapshotMeta {
    proto::SnapshotMeta { last_log_id: Some(log_id(term)), membership: Some(proto::StoredMembership::default()) }
}

/// The way of a transfer, which no lease holds back, with a log longer than any.
fn ask(vote: proto::Vote) -> proto::VoteRequest {
    proto::VoteRequest { vote: Some(vote), last_log_id: Some(log_id(vote.term)), leadership_transfer: true }
}

fn vote(term: u64, node_id: i32) -> proto::Vote {
    proto::Vote { term, node_id, committed: false }
}

async fn connect(address: &str) -> RaftClient<Channel> {
    RaftClient::connect(format!("http://{address}")).await.unwrap()
}

fn assert_refused(refusals: Vec<Result<(), Status>>, reason: &str) {
    for (call, refusal) in refusals.into_iter().enumerate() {
        let refused = refusal.expect_err(&format!("call {call} is refused"));
        assert!(refused.message().contains(reason), "call {call}: {refused}");
    }
}

fn directory(cluster: &Cluster, id: i32) -> DirectoryId {
    cluster.running[&id].raft.directory()
}

async fn goes_on(cluster: &Cluster, payload: &str) {
    cluster.write(payload).await;
    let (_, epoch) = cluster.leader().await;
    assert!(u64::try_from(epoch.get()).unwrap() < HIGH_TERM, "epoch {epoch}");
}

#[tokio::test]
async fn votes_of_no_voter_are_refused_and_the_cluster_goes_on() {
    let mut cluster = Cluster::formed(3).await;
    cluster.write("before").await;
    cluster.wait_equal(1).await;
    for id in 1..=3 {
        let mut client = connect(&cluster.address(id)).await;
        let stranger = Caller {
            cluster: cluster.running[&id].raft.cluster(),
            from: (STRANGER, DirectoryId::from_bytes([7; 16])),
            to: (id, directory(&cluster, id)),
        };
        assert_refused(stranger.refusals(&mut client, vote(HUGE_TERM, STRANGER)).await, "");
        assert_refused(stranger.refusals(&mut client, vote(HIGH_TERM, STRANGER)).await, "node 77 is not a voter");
        // A voter asks for itself, and for no other.
        let peer = id % 3 + 1;
        let voter = Caller { from: (peer, directory(&cluster, peer)), ..stranger };
        assert_refused(voter.refusals(&mut client, vote(HIGH_TERM, STRANGER)).await, "a vote for node 77");
        // And it asks this voter, on this disk.
        let astray = Caller { to: (peer, directory(&cluster, peer)), ..voter };
        assert_refused(astray.refusals(&mut client, vote(HIGH_TERM, peer)).await, "the call is for node");
        let another_disk = Caller { to: (id, DirectoryId::from_bytes([7; 16])), ..voter };
        assert_refused(another_disk.refusals(&mut client, vote(HIGH_TERM, peer)).await, "this disk is");
    }
    goes_on(&cluster, "after").await;
    cluster.stop_all().await;
    cluster.start_all().await;
    goes_on(&cluster, "after a restart").await;
}

#[tokio::test]
async fn a_term_that_is_no_controller_epoch_is_refused_from_voters_too() {
    let mut cluster = Cluster::formed(3).await;
    cluster.write("before").await;
    cluster.wait_equal(1).await;
    for id in 1..=3 {
        let mut client = connect(&cluster.address(id)).await;
        let peer = id % 3 + 1;
        let voter = Caller {
            cluster: cluster.running[&id].raft.cluster(),
            from: (peer, directory(&cluster, peer)),
            to: (id, directory(&cluster, id)),
        };
        assert_refused(voter.refusals(&mut client, vote(HUGE_TERM, peer)).await, "invalid term 1099511627776");
        // Also where only the log is of such a term.
        let mut request = ask(vote(HIGH_TERM, peer));
        request.last_log_id = Some(log_id(HUGE_TERM));
        let refused = client.vote(voter.request(request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    goes_on(&cluster, "after").await;
    cluster.stop_all().await;
    for id in 1..=3 {
        let stored = raft::dump_vote(&cluster.data(id)).unwrap().unwrap();
        assert!(stored.term < HIGH_TERM, "voter {id} keeps term {}", stored.term);
    }
    cluster.start_all().await;
    goes_on(&cluster, "after a restart").await;
}

#[tokio::test]
async fn an_empty_voter_takes_calls_of_configured_voters_only() {
    let mut cluster = Cluster::new(3);
    let disk = raft::format(&cluster.data(2), ControllerId::new(2), None, false).unwrap().directory;
    let waiting = tokio::spawn(start(cluster.config(2), cluster.address(2)));
    let to = (2, disk);
    let first = Caller { cluster: ClusterId::from_bytes([9; 16]), from: (1, DirectoryId::from_bytes([1; 16])), to };
    let until = Instant::now() + PATIENCE;
    let mut client = loop {
        match RaftClient::connect(format!("http://{}", cluster.address(2))).await {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        sleep(Duration::from_millis(5)).await;
    };
    let stranger = Caller { from: (STRANGER, DirectoryId::from_bytes([7; 16])), ..first };
    let refused = stranger.refusals(&mut client, vote(HIGH_TERM, STRANGER)).await;
    assert_refused(refused, "node 77 is not among the configured voters");
    assert_refused(first.refusals(&mut client, vote(HUGE_TERM, 1)).await, "invalid term 1099511627776");
    // A question that leaves nothing behind: the first leader may call a voter that knows no membership.
    let answer = client.pre_vote(first.request(ask(vote(1, 1)))).await.unwrap().into_inner();
    assert!(answer.granted);
    let others = [1, 3].map(|id| start(cluster.config(id), cluster.address(id)));
    for (id, voter) in [1, 3].into_iter().zip(futures::future::join_all(others).await) {
        cluster.running.insert(id, voter.unwrap());
    }
    cluster.running.insert(2, waiting.await.unwrap().unwrap());
    cluster.write("formed").await;
    let refused = client.pre_vote(first.request(ask(vote(1, 1)))).await.unwrap_err();
    assert!(refused.message().contains("node 1 is a voter with directory"), "{refused}");
}
