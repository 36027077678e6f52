//! Registers: one config of one topic each. Half of the clients know one node only, so that what a node says that is cut
//! off is heard as well.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_client::{AdminClient, ClientError, Freshness, Mode, check_item};
use quorate_metadata::ErrorName;
use quorate_proto::admin::config_resource::Resource;
use quorate_proto::admin::{ConfigAlteration, ConfigChange, ConfigOp, ConfigResource};
use tokio::task::JoinSet;

use super::{Context, WorkloadName, small_topic};
use crate::generator::{Asker, Keys};
use crate::history::Outcome;
use crate::op::Op;

const CLIENTS: u32 = 8;
const PACE: Duration = Duration::from_millis(40);

/// A config that takes any number, and that does nothing while nobody writes to the topic.
const CONFIG: &str = "retention.ms";

/// What a register begins with.
const INITIAL: i64 = 1;

/// What the clients share.
struct Shared {
    keys: Mutex<Keys>,
    /// Values are never written twice.
    last_value: AtomicI64,
}

pub fn start(context: &Context, tasks: &mut JoinSet<()>) {
    let shared = Arc::new(Shared { keys: Mutex::default(), last_value: AtomicI64::new(INITIAL) });
    for number in 0..CLIENTS {
        let client = if number % 2 == 0 { context.client_of(number as usize / 2) } else { context.client() };
        let asker = context.asker(WorkloadName::MetaRegister, number, PACE);
        tasks.spawn(ask(context.clone(), client, asker, shared.clone()));
    }
}

async fn ask(context: Context, client: AdminClient, mut asker: Asker, shared: Arc<Shared>) {
    let (mut made, mut last_read) = (None, INITIAL);
    while asker.turn().await {
        let key = shared.keys.lock().expect("no holder panics").draw();
        if made != Some(key) {
            // Somebody else may have made it, or nobody can: then the operation is refused.
            let _ = make(&context.client(), key).await;
            (made, last_read) = (Some(key), INITIAL);
        }
        let op = draw(&mut asker, key, last_read, &shared);
        let call = carry_out(&client, op.clone());
        let done = context.recorder.record(WorkloadName::MetaRegister, asker.process, op, call).await;
        match (&done.op, done.outcome) {
            (Op::Read { value: Some(value), .. } | Op::Write { value, .. } | Op::Cas { value, .. }, Outcome::Ok) => {
                last_read = *value;
            }
            (Op::Read { .. }, _) | (_, Outcome::Ok | Outcome::Fail) => {}
            (_, Outcome::Info) => {
                shared.keys.lock().expect("no holder panics").lose(key);
                asker.retire();
            }
        }
    }
}

fn draw(asker: &mut Asker, key: u32, last_read: i64, shared: &Shared) -> Op {
    let fresh = || shared.last_value.fetch_add(1, Ordering::Relaxed) + 1;
    match asker.random.below(10) {
        0..5 => Op::Read { key, value: None, offset: None },
        5..8 => Op::Write { key, value: fresh(), offset: None },
        _ => Op::Cas { key, expected: last_read, value: fresh(), offset: None },
    }
}

fn topic(key: u32) -> String {
    format!("register-{key}")
}

async fn make(client: &AdminClient, key: u32) -> Result<(), ClientError> {
    let mut topic = small_topic(topic(key), 3);
    topic.configs.insert(CONFIG.to_owned(), INITIAL.to_string());
    let reply = client.create_topics(vec![topic], Mode::Apply).await?;
    check_item(reply.topics.first().and_then(|topic| topic.error.as_ref()))
}

async fn carry_out(client: &AdminClient, op: Op) -> Result<Op, ClientError> {
    match op {
        Op::Write { key, value, .. } => {
            let offset = set(client, key, value, None).await?;
            Ok(Op::Write { key, value, offset })
        }
        Op::Cas { key, expected, value, .. } => {
            let offset = set(client, key, value, Some(expected.to_string())).await?;
            Ok(Op::Cas { key, expected, value, offset })
        }
        Op::Read { key, .. } => read(client, key).await,
        other => unreachable!("{other:?} is no operation on a register"),
    }
}

fn resource(key: u32) -> Option<ConfigResource> {
    Some(ConfigResource { resource: Some(Resource::Topic(topic(key))) })
}

async fn set(client: &AdminClient, key: u32, value: i64, expected: Option<String>) -> Result<Option<i64>, ClientError> {
    let change = ConfigChange { key: CONFIG.to_owned(), op: ConfigOp::Set.into(), value: value.to_string(), expected };
    let alteration = ConfigAlteration { resource: resource(key), changes: vec![change] };
    let reply = client.alter_configs(vec![alteration], Mode::Apply).await?;
    check_item(reply.resources.first().and_then(|resource| resource.error.as_ref()))?;
    Ok(reply.result.map(|result| result.offset))
}

async fn read(client: &AdminClient, key: u32) -> Result<Op, ClientError> {
    let asked = resource(key).into_iter().collect();
    let reply = client.describe_configs(asked, Freshness::Linearizable).await?;
    let Some(description) = reply.resources.first() else { return Err(malformed("no resource")) };
    check_item(description.error.as_ref())?;
    let entry = description.entries.iter().find(|entry| entry.key == CONFIG);
    let value = entry.and_then(|entry| entry.value.parse().ok()).ok_or_else(|| malformed("no value"))?;
    Ok(Op::Read { key, value: Some(value), offset: Some(reply.offset) })
}

fn malformed(what: &str) -> ClientError {
    ClientError::failed(ErrorName::UnknownServerError, format!("the answer has {what}"))
}
