//! The retries against a server in this process, with the clock paused: every wait takes no time and is exact.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use quorate_proto::admin::admin_server::{Admin, AdminServer};
use quorate_proto::admin::*;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Endpoint, Server};
use tower::service_fn;

use super::*;
use crate::{AdminClient, Mode};

/// What a node does with a mutation.
#[derive(Debug, Clone)]
enum Act {
    Answer,
    Refuse(ErrorName),
    RefuseFor(ErrorName, Duration),
    Say(Code),
    Hang,
}

/// (client id, request id) of every mutation that arrived, by node.
type Seen = Arc<Mutex<Vec<(usize, String, u64)>>>;

/// Does one act after the other; the last one again and again.
struct Fake {
    node: usize,
    acts: Mutex<VecDeque<Act>>,
    seen: Seen,
}

impl Fake {
    async fn act(&self, options: Option<MutationOptions>) -> Result<(), Status> {
        let options = options.expect("every mutation has options");
        self.seen.lock().expect("unpoisoned").push((self.node, options.client_id, options.request_id));
        let act = {
            let mut acts = self.acts.lock().expect("unpoisoned");
            if acts.len() > 1 { acts.pop_front() } else { acts.front().cloned() }
        };
        let refusal = |name| ApiError::new(name, "refused");
        match act.expect("a fake has something to do") {
            Act::Answer => Ok(()),
            Act::Refuse(name) => Err(error::to_status(&refusal(name), error::Context::default())),
            Act::RefuseFor(name, delay) => {
                let context = error::Context { retry_after: Some(delay), ..Default::default() };
                Err(error::to_status(&refusal(name), context))
            }
            Act::Say(code) => Err(Status::new(code, "said by a library")),
            Act::Hang => std::future::pending().await,
        }
    }
}

fn unused<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not part of the test"))
}

#[tonic::async_trait]
impl Admin for Fake {
    async fn create_topics(
        &self,
        request: Request<CreateTopicsRequest>,
    ) -> Result<Response<CreateTopicsReply>, Status> {
        self.act(request.into_inner().options).await?;
        Ok(Response::new(CreateTopicsReply::default()))
    }

    async fn cluster_status(&self, _: Request<ClusterStatusRequest>) -> Result<Response<ClusterStatusReply>, Status> {
        self.act(Some(MutationOptions::default())).await?;
        Ok(Response::new(ClusterStatusReply::default()))
    }

    async fn delete_topics(&self, _: Request<DeleteTopicsRequest>) -> Result<Response<DeleteTopicsReply>, Status> {
        unused()
    }

    async fn create_partitions(
        &self,
        _: Request<CreatePartitionsRequest>,
    ) -> Result<Response<CreatePartitionsReply>, Status> {
        unused()
    }

    async fn list_topics(&self, _: Request<ListTopicsRequest>) -> Result<Response<ListTopicsReply>, Status> {
        unused()
    }

    async fn describe_topics(
        &self,
        _: Request<DescribeTopicsRequest>,
    ) -> Result<Response<DescribeTopicsReply>, Status> {
        unused()
    }

    async fn list_partitions(
        &self,
        _: Request<ListPartitionsRequest>,
    ) -> Result<Response<ListPartitionsReply>, Status> {
        unused()
    }

    async fn elect_leaders(&self, _: Request<ElectLeadersRequest>) -> Result<Response<ElectLeadersReply>, Status> {
        unused()
    }

    async fn alter_configs(&self, _: Request<AlterConfigsRequest>) -> Result<Response<AlterConfigsReply>, Status> {
        unused()
    }

    async fn describe_configs(
        &self,
        _: Request<DescribeConfigsRequest>,
    ) -> Result<Response<DescribeConfigsReply>, Status> {
        unused()
    }

    async fn list_brokers(&self, _: Request<ListBrokersRequest>) -> Result<Response<ListBrokersReply>, Status> {
        unused()
    }

    async fn unregister_broker(
        &self,
        _: Request<UnregisterBrokerRequest>,
    ) -> Result<Response<UnregisterBrokerReply>, Status> {
        unused()
    }

    async fn describe_quorum(
        &self,
        _: Request<DescribeQuorumRequest>,
    ) -> Result<Response<DescribeQuorumReply>, Status> {
        unused()
    }

    async fn replace_voter(&self, _: Request<ReplaceVoterRequest>) -> Result<Response<ReplaceVoterReply>, Status> {
        unused()
    }

    async fn describe_features(
        &self,
        _: Request<DescribeFeaturesRequest>,
    ) -> Result<Response<DescribeFeaturesReply>, Status> {
        unused()
    }

    async fn update_features(
        &self,
        _: Request<UpdateFeaturesRequest>,
    ) -> Result<Response<UpdateFeaturesReply>, Status> {
        unused()
    }

    async fn start_reassignment(
        &self,
        _: Request<StartReassignmentRequest>,
    ) -> Result<Response<StartReassignmentReply>, Status> {
        unused()
    }

    async fn cancel_reassignment(
        &self,
        _: Request<CancelReassignmentRequest>,
    ) -> Result<Response<CancelReassignmentReply>, Status> {
        unused()
    }

    async fn change_reassignment(
        &self,
        _: Request<ChangeReassignmentRequest>,
    ) -> Result<Response<ChangeReassignmentReply>, Status> {
        unused()
    }

    async fn move_replica(&self, _: Request<MoveReplicaRequest>) -> Result<Response<MoveReplicaReply>, Status> {
        unused()
    }

    async fn list_reassignments(
        &self,
        _: Request<ListReassignmentsRequest>,
    ) -> Result<Response<ListReassignmentsReply>, Status> {
        unused()
    }
}

/// A node whose connections end in this process.
fn node(number: usize, acts: &[Act], seen: &Seen) -> Node {
    let (connections, accepted) = mpsc::unbounded_channel::<DuplexStream>();
    let fake = Fake { node: number, acts: Mutex::new(acts.iter().cloned().collect()), seen: seen.clone() };
    let incoming = UnboundedReceiverStream::new(accepted).map(Ok::<_, std::io::Error>);
    tokio::spawn(Server::builder().add_service(AdminServer::new(fake)).serve_with_incoming(incoming));
    let connector = service_fn(move |_| {
        let (ours, theirs) = duplex(64 * 1024);
        let sent = connections.send(theirs).map_err(|_| std::io::Error::other("the server ended"));
        async move { sent.map(|()| TokioIo::new(ours)) }
    });
    let channel = Endpoint::from_static("http://fake").connect_with_connector_lazy(connector);
    Node::new(format!("node-{number}"), channel)
}

/// A node that is not there.
fn absent(number: usize) -> Node {
    let connector = service_fn(|_| async {
        Err::<TokioIo<DuplexStream>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
    });
    let channel = Endpoint::from_static("http://fake").connect_with_connector_lazy(connector);
    Node::new(format!("node-{number}"), channel)
}

/// A node whose process is stopped: the host accepts connections for it, and nothing answers.
fn silent(number: usize) -> Node {
    let held = Arc::new(Mutex::new(Vec::new()));
    let connector = service_fn(move |_| {
        let (ours, theirs) = duplex(64 * 1024);
        held.lock().expect("unpoisoned").push(theirs);
        async move { Ok::<_, std::io::Error>(TokioIo::new(ours)) }
    });
    let channel = Endpoint::from_static("http://fake").connect_with_connector_lazy(connector);
    Node::new(format!("node-{number}"), channel)
}

fn client(nodes: Vec<Node>) -> AdminClient {
    AdminClient::over(Nodes::new(nodes), Options::default())
}

async fn create(client: &AdminClient) -> Result<CreateTopicsReply, ClientError> {
    client.create_topics(Vec::new(), Mode::Apply).await
}

fn ids(seen: &Seen) -> Vec<u64> {
    seen.lock().expect("unpoisoned").iter().map(|(_, _, request)| *request).collect()
}

fn nodes_asked(seen: &Seen) -> Vec<usize> {
    seen.lock().expect("unpoisoned").iter().map(|(node, _, _)| *node).collect()
}

#[tokio::test(start_paused = true)]
async fn retries_keep_the_request_id_and_new_calls_get_another() {
    let seen = Seen::default();
    let acts = [Act::Refuse(ErrorName::NotController), Act::Say(Code::Internal), Act::Answer];
    let client = client(vec![node(1, &acts, &seen)]);
    create(&client).await.expect("the third attempt is answered");
    create(&client).await.expect("answered at once");
    assert_eq!(ids(&seen), [1, 1, 1, 2]);
    let clients: std::collections::BTreeSet<String> =
        seen.lock().expect("unpoisoned").iter().map(|(_, client, _)| client.clone()).collect();
    assert_eq!(clients.len(), 1, "one client, one id");
    assert_eq!(clients.first().map(String::len), Some(22));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_final_and_definite() {
    let seen = Seen::default();
    let client = client(vec![node(1, &[Act::Refuse(ErrorName::TopicAlreadyExists)], &seen)]);
    let error = create(&client).await.expect_err("refused");
    assert_eq!((error.name(), error.is_definite()), (ErrorName::TopicAlreadyExists, true));
    assert_eq!(ids(&seen).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_too_large_is_not_sent_again() {
    let seen = Seen::default();
    let client = client(vec![node(1, &[Act::Say(Code::ResourceExhausted)], &seen)]);
    let error = create(&client).await.expect_err("refused");
    assert_eq!((error.name(), error.is_definite()), (ErrorName::MessageTooLarge, true));
    assert_eq!(ids(&seen).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_not_there_costs_no_pause() {
    let seen = Seen::default();
    let client = client(vec![absent(1), absent(2), node(3, &[Act::Answer], &seen)]);
    let started = Instant::now();
    create(&client).await.expect("the third node answers");
    assert!(started.elapsed() < PAUSE_MIN, "{:?}", started.elapsed());
    assert_eq!(nodes_asked(&seen), [3]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_answers_nothing_is_left_for_one_that_does() {
    let seen = Seen::default();
    let client = client(vec![silent(1), silent(2), node(3, &[Act::Answer], &seen)]);
    let started = Instant::now();
    create(&client).await.expect("the third node answers");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    let started = Instant::now();
    create(&client).await.expect("the third node answers");
    assert!(started.elapsed() < PAUSE_MIN, "it is asked first now: {:?}", started.elapsed());
    assert_eq!(nodes_asked(&seen), [3, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_slow_to_answer_a_call_keeps_it_while_it_answers_checks() {
    let seen = Seen::default();
    let client = client(vec![node(1, &[Act::Hang], &seen), node(2, &[Act::Answer], &seen)]);
    let started = Instant::now();
    create(&client).await.expect("the second node answers");
    assert!(started.elapsed() >= Options::default().attempt_timeout, "{:?}", started.elapsed());
    assert_eq!(nodes_asked(&seen), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_mutation_sent_to_nodes_that_answer_nothing_is_unknown() {
    let error = create(&client(vec![silent(1), silent(2)])).await.expect_err("nobody answers");
    assert_eq!((error.name(), error.is_definite()), (ErrorName::OutcomeUnknown, false));
}

#[tokio::test(start_paused = true)]
async fn when_no_node_is_there_nothing_was_changed() {
    let client = client(vec![absent(1), absent(2)]);
    let started = Instant::now();
    let error = create(&client).await.expect_err("nobody is there");
    assert_eq!((error.name(), error.is_definite()), (ErrorName::ControllerUnavailable, true));
    let tried = started.elapsed();
    assert!(tried > Duration::from_secs(9) && tried <= Duration::from_secs(10), "{tried:?}");
}

#[tokio::test(start_paused = true)]
async fn sent_and_never_answered_is_unknown() {
    let seen = Seen::default();
    let client = client(vec![node(1, &[Act::Hang], &seen), absent(2)]);
    let error = create(&client).await.expect_err("nobody answers");
    assert_eq!((error.name(), error.is_definite()), (ErrorName::OutcomeUnknown, false));
    assert!(ids(&seen).len() >= 3, "asked again and again");
    assert!(ids(&seen).iter().all(|request| *request == 1), "always the same request");
}

#[tokio::test(start_paused = true)]
async fn one_open_attempt_leaves_the_whole_call_unknown() {
    let seen = Seen::default();
    let acts = [Act::Say(Code::Unknown), Act::Refuse(ErrorName::NotController)];
    let error = create(&client(vec![node(1, &acts, &seen)])).await.expect_err("never answered");
    assert!(!error.is_definite(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn server_without_the_call_is_named() {
    let seen = Seen::default();
    let node = node(1, &[Act::Say(Code::Unimplemented)], &seen);
    let address = node.address.clone();
    let error = create(&client(vec![node])).await.expect_err("it is a port of something else");
    assert_eq!((error.name(), error.is_definite()), (ErrorName::UnsupportedVersion, true));
    assert!(error.error().message.starts_with(&format!("{address} does not serve this call")), "{error}");
}

#[tokio::test(start_paused = true)]
async fn broken_connection_names_the_node() {
    let seen = Seen::default();
    let node = node(1, &[Act::Say(Code::Unknown)], &seen);
    let address = node.address.clone();
    let error = create(&client(vec![node])).await.expect_err("no node answers");
    assert!(error.error().message.contains(&format!("{address}: said by a library")), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_after_an_open_attempt_settles_it() {
    let seen = Seen::default();
    let acts = [Act::Say(Code::Unknown), Act::Refuse(ErrorName::TopicAlreadyExists)];
    let error = create(&client(vec![node(1, &acts, &seen)])).await.expect_err("refused");
    assert!(error.is_definite(), "the same request was answered: {error}");
}

#[tokio::test(start_paused = true)]
async fn without_a_controller_the_refusal_stays_definite() {
    let seen = Seen::default();
    let acts = [Act::Refuse(ErrorName::ControllerUnavailable)];
    let client = client(vec![node(1, &acts, &seen), node(2, &acts, &seen)]);
    let error = create(&client).await.expect_err("no controller");
    assert_eq!((error.name(), error.is_definite()), (ErrorName::ControllerUnavailable, true));
    let asked = nodes_asked(&seen);
    assert_eq!(asked[..4], [1, 2, 1, 2], "the nodes take turns");
    // Pauses grow from 10-20 ms to 100-200 ms: some 70 attempts in ten seconds.
    assert!((45..120).contains(&asked.len()), "{}", asked.len());
}

#[tokio::test(start_paused = true)]
async fn what_a_node_said_tells_more_than_one_that_is_not_there() {
    let seen = Seen::default();
    let nodes = vec![node(1, &[Act::Refuse(ErrorName::NotController)], &seen), absent(2), absent(3)];
    let error = create(&client(nodes)).await.expect_err("no controller");
    assert_eq!((error.name(), error.is_definite()), (ErrorName::NotController, true));
}

#[tokio::test(start_paused = true)]
async fn a_throttled_client_waits_as_long_as_it_is_told() {
    let seen = Seen::default();
    let told = Duration::from_millis(1500);
    let acts = [Act::RefuseFor(ErrorName::Throttled, told), Act::Answer];
    let client = client(vec![node(1, &acts, &seen), node(2, &[Act::Answer], &seen)]);
    let started = Instant::now();
    create(&client).await.expect("answered after the wait");
    assert!(started.elapsed() >= told);
    assert_eq!(nodes_asked(&seen), [1, 1], "another node would forward to the same controller");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_hangs_costs_one_attempt() {
    let seen = Seen::default();
    let client = client(vec![node(1, &[Act::Hang], &seen), node(2, &[Act::Answer], &seen)]);
    let started = Instant::now();
    create(&client).await.expect("the second node answers");
    assert!(started.elapsed() >= Duration::from_secs(3) && started.elapsed() < Duration::from_millis(3100));
}

#[tokio::test(start_paused = true)]
async fn a_read_or_a_plan_is_never_unknown() {
    let seen = Seen::default();
    let client = client(vec![node(1, &[Act::Hang], &seen)]);
    let read = client.cluster_status(crate::Freshness::Linearizable).await.expect_err("nobody answers");
    let plan = client.create_topics(Vec::new(), Mode::PlanOnly).await.expect_err("nobody answers");
    assert!(read.is_definite() && plan.is_definite());
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_the_server_leaves_a_mutation_unknown() {
    let seen = Seen::default();
    let client = client(vec![node(1, &[Act::Refuse(ErrorName::UnknownServerError)], &seen)]);
    let error = create(&client).await.expect_err("failed");
    assert_eq!((error.name(), error.is_definite()), (ErrorName::UnknownServerError, false));
    assert_eq!(ids(&seen).len(), 1);
}
