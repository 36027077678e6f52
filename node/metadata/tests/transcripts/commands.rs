//! The commands of scripts. Each reads its arguments and plans; `World::propose` does the rest.

use goldenscript::{Argument, Command};
use quorate_metadata::ids::{BrokerEpoch, BrokerId, ClusterId, LeaderEpoch, Offset, PartitionEpoch, PartitionId};
use quorate_metadata::plan::alter_partition::{AlterPartition, IsrMember, PartitionAlteration, alter_partition};
use quorate_metadata::plan::brokers::{self as broker_plans, RegisterBroker};
use quorate_metadata::plan::configs::{AlterConfigs, ConfigChange, ConfigOp, alter_configs};
use quorate_metadata::plan::elections::{self, ElectionKind};
use quorate_metadata::plan::features::{self, Direction};
use quorate_metadata::plan::heartbeat::{Heartbeat, awaits_others, heartbeat};
use quorate_metadata::plan::producer_ids;
use quorate_metadata::plan::topics::{self, CreatePartitions, CreateTopic, TopicRef};
use quorate_metadata::record::{Endpoint, Kind, LeaderRecoveryState, Probe, SecurityProtocol, VersionRange};
use quorate_metadata::rng::Rng;
use quorate_metadata::{ApiError, MetadataImage, Plan, config};

use crate::arguments::{Arguments, Result, brokers, directory, incarnation, items, partition, resource, topic_id};
use crate::display::{name, operation, state, summary};
use crate::reassignment;
use crate::world::{Step, World};

pub fn run(world: &mut World, command: &Command) -> Result<Vec<String>> {
    let mut args = Arguments::of(command);
    match command.name.as_str() {
        "up" => up(world, &mut args),
        "register" => {
            let broker = args.broker()?;
            let lines = world.propose(|world, _| register(world.image(), command))?;
            world.heard(broker);
            Ok(lines)
        }
        "heartbeat" => {
            let broker = args.broker()?;
            report(world, command)?;
            let lines = world.propose(|world, _| beat(world, command))?;
            world.heard(broker);
            Ok(lines)
        }
        "unfence" => on_broker(world, &mut args, broker_plans::unfence),
        "fence" => on_broker(world, &mut args, broker_plans::fence),
        "shutdown" => on_broker(world, &mut args, broker_plans::begin_controlled_shutdown),
        "unregister" => {
            let force = args.value("force")?.unwrap_or(false);
            on_broker(world, &mut args, |image, broker| broker_plans::unregister(image, broker, force))
        }
        "tick" => Ok(world.tick(args.word("ms")?.parse()?)),
        "stall" => {
            let ms = args.word("ms")?.parse()?;
            world.now_ms += ms;
            world.sessions.extend_all(ms, world.now_ms);
            Ok(world.tick(0))
        }
        "claim" => {
            let image = world.image().clone();
            world.sessions.start_all(&image, world.now_ms);
            Ok(Vec::new())
        }
        "create" => world.propose(|world, rng| create(world.image(), rng, command)),
        "expand" => world.propose(|world, rng| expand(world.image(), rng, command)),
        "delete" => world.propose(|world, _| delete(world.image(), command)),
        "alter" => world.propose(|world, _| alter(world.image(), command)),
        "elect" => world.propose(|world, _| elect(world.image(), command)),
        "balance" => world.propose(|world, _| periodic(world.image(), command, elections::balance_preferred)),
        "elect-uncleanly" => {
            world.propose(|world, _| periodic(world.image(), command, elections::elect_uncleanly_where_allowed))
        }
        "config" => world.propose(|world, _| configure(world.image(), command)),
        "effective" => effective(world.image(), &mut args),
        "reassign" => world.propose(|world, _| reassignment::start(world.image(), command)),
        "cancel" => world.propose(|world, _| reassignment::cancel(world.image(), command)),
        "move" => world.propose(|world, _| reassignment::move_replica(world.image(), command)),
        "pace" => world.propose(|world, _| reassignment::change(world.image(), command)),
        "producer-ids" => world.propose(|world, _| producer_ids(world.image(), command)),
        "level" => crate::features::level(world, command),
        "controller" => world.propose(|world, _| crate::features::controller(world.image(), command)),
        "upgrade" => world.propose(|world, _| crate::features::update(world.image(), command, Direction::Upgrade)),
        "downgrade" => {
            world.propose(|world, _| crate::features::update(world.image(), command, Direction::SafeDowngrade))
        }
        "dump" => Ok(dump(world.image())),
        "leaders" => Ok(leaders(world.image())),
        other => Err(format!("unknown command {other}").into()),
    }
}

/// Registers and unfences brokers, of one kind; `racks=a,b` gives them racks in turn.
fn up(world: &mut World, args: &mut Arguments<'_>) -> Result<Vec<String>> {
    let kind = args.text("kind").map_or(Kind::LOG, Kind::from);
    let racks: Vec<&str> = args.text("racks").map(|racks| items(racks, ',').collect()).unwrap_or_default();
    let mut lines = Vec::new();
    for (at, broker) in args.words().into_iter().enumerate() {
        let broker: BrokerId = broker.parse()?;
        let request = RegisterBroker {
            kind: kind.clone(),
            rack: (!racks.is_empty()).then(|| racks[at % racks.len()].to_owned()),
            ..registration(broker)
        };
        let plan = broker_plans::register(world.image(), request, false)?;
        lines.extend(world.apply(&plan.records));
        let plan = broker_plans::unfence(world.image(), broker)?;
        lines.extend(world.apply(&plan.records));
        world.heard(broker);
    }
    args.end()?;
    Ok(lines)
}

fn registration(broker: BrokerId) -> RegisterBroker {
    let endpoint = Endpoint {
        name: "PLAINTEXT".to_owned(),
        host: format!("broker-{broker}"),
        port: 9092,
        security: SecurityProtocol::Plaintext,
    };
    RegisterBroker {
        broker,
        cluster: ClusterId::from_bytes([1; 16]),
        incarnation: incarnation("first"),
        endpoints: vec![endpoint],
        kind: Kind::LOG,
        probe: Probe::Unstated,
        rack: None,
        features: features::supported(),
        directories: vec![directory(&format!("disk-{broker}"))],
        cordoned_directories: None,
        previous_epoch: None,
    }
}

fn register(image: &MetadataImage, command: &Command) -> Result<Step> {
    let mut args = Arguments::of(command);
    let broker = args.broker()?;
    let mut request = registration(broker);
    if let Some(other) = args.text("cluster") {
        request.cluster = ClusterId::from_bytes([other.as_bytes()[0]; 16]);
    }
    request.kind = Kind::parse(args.text("kind"))?;
    request.rack = args.text("rack").map(str::to_owned);
    request.incarnation = args.text("incarnation").map_or(request.incarnation, incarnation);
    if let Some(names) = args.text("dirs") {
        request.directories = items(names, ',').map(directory).collect();
    }
    request.cordoned_directories = args.text("cordoned").map(|names| items(names, ',').map(directory).collect());
    if let Some(host) = args.text("host") {
        request.endpoints[0].host = host.to_owned();
    }
    request.previous_epoch = match args.text("previous") {
        Some("stored") => image.broker(broker).map(|before| before.epoch),
        Some(epoch) => Some(epoch.parse()?),
        None => None,
    };
    if let Some(ranges) = args.text("features") {
        request.features = items(ranges, ',').map(feature).collect::<Result<_>>()?;
    }
    request.probe = match args.text("probe") {
        Some("none") => Probe::None,
        Some(name) => Probe::Endpoint(name.to_owned()),
        None => Probe::Unstated,
    };
    let flags = args.words();
    if flags.contains(&"no-endpoints") {
        request.endpoints.clear();
    }
    args.end()?;
    let plan = broker_plans::register(image, request, flags.contains(&"alive"));
    step(plan, |epoch| if image.broker(broker).is_some() { vec![format!("epoch {epoch}")] } else { Vec::new() })
}

/// `name:min:max`
pub fn feature(text: &str) -> Result<(String, VersionRange)> {
    match text.split(':').collect::<Vec<_>>()[..] {
        [name, min, max] => Ok((name.to_owned(), VersionRange { min: min.parse()?, max: max.parse()? })),
        _ => Err("a feature is name:min:max".into()),
    }
}

/// Notes the offset that a heartbeat carries.
fn report(world: &mut World, command: &Command) -> Result<()> {
    let heartbeat = read_heartbeat(world.image(), command)?;
    world.sessions.report_offset(heartbeat.broker, heartbeat.epoch, heartbeat.metadata_offset);
    Ok(())
}

fn read_heartbeat(image: &MetadataImage, command: &Command) -> Result<Heartbeat> {
    let mut args = Arguments::of(command);
    let broker = args.broker()?;
    let stored = image.broker(broker).map(|broker| broker.epoch).unwrap_or_default();
    let epoch = args.value("epoch")?.unwrap_or(stored);
    let metadata_offset = match args.text("offset") {
        Some("registration") => Offset::new(stored.get()),
        Some(offset) => offset.parse()?,
        None => image.next_offset,
    };
    let offline = args.text("offline").unwrap_or_default();
    let offline_directories = items(offline, ',').map(directory).collect();
    let wants = args.words();
    args.end()?;
    let wants = |what| wants.contains(&what);
    Ok(Heartbeat {
        broker,
        epoch,
        metadata_offset,
        want_fence: wants("want-fence"),
        want_shutdown: wants("want-shutdown"),
        offline_directories,
    })
}

fn beat(world: &World, command: &Command) -> Result<Step> {
    let request = read_heartbeat(world.image(), command)?;
    let others = awaits_others(world.image(), request.broker);
    let lowest = others.then(|| world.sessions.lowest_active_offset(world.image(), request.broker)).flatten();
    let plan = heartbeat(world.image(), &request, lowest);
    let step = step(plan, |answer| {
        let mut words = vec![if answer.fenced { "fenced" } else { "not fenced" }];
        words.push(if answer.caught_up { "caught up" } else { "catching up" });
        words.extend(answer.should_shut_down.then_some("should shut down"));
        vec![format!("answer: {}", words.join(", "))]
    })?;
    Ok(Step { goes_on: true, ..step })
}

fn on_broker(
    world: &mut World,
    args: &mut Arguments<'_>,
    plan: impl Fn(&MetadataImage, BrokerId) -> std::result::Result<Plan<()>, ApiError>,
) -> Result<Vec<String>> {
    let broker = args.broker()?;
    args.end()?;
    let lines = world.propose(|world, _| step(plan(world.image(), broker), |()| Vec::new()))?;
    world.heard(broker);
    Ok(lines)
}

/// `producer-ids BROKER [epoch=N]`
fn producer_ids(image: &MetadataImage, command: &Command) -> Result<Step> {
    let mut args = Arguments::of(command);
    let broker = args.broker()?;
    let current = image.broker(broker).map_or(BrokerEpoch::new(-1), |registered| registered.epoch);
    let epoch = args.value("epoch")?.map_or(current, BrokerEpoch::new);
    args.end()?;
    let block = producer_ids::allocate(image, broker, epoch);
    let step = step(block, |block| vec![format!("{} to {}", block.start, block.end - 1)])?;
    Ok(Step { goes_on: true, ..step })
}

/// `create NAME… [partitions=N] [rf=N] [replicas=1,2] [assignment=0:1,2;1:2,1] [KEY=VALUE…]`
fn create(image: &MetadataImage, rng: &mut Rng, command: &Command) -> Result<Step> {
    let mut args = Arguments::of(command);
    let mut partitions = args.value("partitions")?;
    let replication_factor = args.value("rf")?;
    let kind = Kind::parse(args.text("kind"))?;
    let mut assignment = Vec::new();
    if let Some(replicas) = args.text("replicas") {
        let replicas = brokers(replicas)?;
        assignment = (0..partitions.take().unwrap_or(1)).map(|id| (PartitionId::new(id), replicas.clone())).collect();
    }
    for assigned in args.text("assignment").into_iter().flat_map(|text| items(text, ';')) {
        let (id, replicas) = assigned.split_once(':').ok_or("an assignment is partition:replicas")?;
        assignment.push((id.parse()?, brokers(replicas)?));
    }
    let value = |value: &str| (value != "null").then(|| value.to_owned());
    let configs: Vec<_> = args.rest().into_iter().map(|(key, text)| (key.to_owned(), value(text))).collect();
    let request = |name: &str| CreateTopic {
        name: name.to_owned(),
        kind: kind.clone(),
        partitions,
        replication_factor,
        assignment: assignment.clone(),
        configs: configs.clone(),
    };
    let requests: Vec<_> = args.words().into_iter().map(request).collect();
    let plan = topics::create_topics(image, &requests, rng);
    step(plan, |answers| {
        let warnings = |answer: &std::result::Result<topics::CreatedTopic, ApiError>| {
            let warnings = answer.as_ref().map_or(&[][..], |created| &created.warnings);
            warnings.iter().map(|warning| format!("warning: {warning}")).collect::<Vec<_>>()
        };
        answers.iter().flat_map(|answer| refusal("", answer).into_iter().chain(warnings(answer))).collect()
    })
}

/// `expand NAME COUNT [replicas=1,2;2,3]`
fn expand(image: &MetadataImage, rng: &mut Rng, command: &Command) -> Result<Step> {
    let mut args = Arguments::of(command);
    let assignment = args.text("replicas").map(|text| items(text, ';').map(brokers).collect::<Result<Vec<_>>>());
    let assignment = assignment.transpose()?;
    let words = args.words();
    let request = |pair: &[&str]| {
        Ok(CreatePartitions { topic: pair[0].to_owned(), count: pair[1].parse()?, assignment: assignment.clone() })
    };
    let requests = words.chunks_exact(2).map(request).collect::<Result<Vec<_>>>()?;
    let plan = topics::create_partitions(image, &requests, rng);
    step(Ok(plan), |answers| answers.iter().filter_map(|answer| refusal("", answer)).collect())
}

/// `delete NAME… [id:NAME…]`
fn delete(image: &MetadataImage, command: &Command) -> Result<Step> {
    let topic = |word: &str| match word.strip_prefix("id:") {
        // A topic that is gone has an id that is unknown.
        Some(name) => TopicRef::Id(topic_id(image, name).unwrap_or_default()),
        None => TopicRef::Name(word.to_owned()),
    };
    let topics: Vec<TopicRef> = Arguments::of(command).words().into_iter().map(topic).collect();
    let plan = topics::delete_topics(image, &topics);
    step(Ok(plan), |answers| answers.iter().filter_map(|answer| refusal("", answer)).collect())
}

/// `alter PARTITION… isr=1,2@EPOCH [by=ID] [broker_epoch=N] [leader_epoch=N] [partition_epoch=N] [recovery=…] [supersedes=true]`
fn alter(image: &MetadataImage, command: &Command) -> Result<Step> {
    let mut args = Arguments::of(command);
    let ids = args.words().into_iter().map(|word| partition(image, word)).collect::<Result<Vec<_>>>()?;
    let current = image.partition(ids[0]);
    let leader = current.and_then(|partition| partition.leader);
    let broker = args.value("by")?.or(leader).unwrap_or_default();
    let stored = image.broker(broker).map(|broker| broker.epoch).unwrap_or_default();
    let isr = items(args.text("isr").unwrap_or_default(), ',').map(member).collect::<Result<Vec<_>>>()?;
    let alteration = PartitionAlteration {
        id: ids[0],
        leader_epoch: args.value("leader_epoch")?.or(current.map(|at| at.leader_epoch)).unwrap_or(LeaderEpoch::new(0)),
        partition_epoch: args
            .value("partition_epoch")?
            .or(current.map(|at| at.partition_epoch))
            .unwrap_or(PartitionEpoch::new(0)),
        isr,
        recovery: match args.text("recovery") {
            Some("recovering") => LeaderRecoveryState::Recovering,
            _ => LeaderRecoveryState::Recovered,
        },
        supersedes: args.value("supersedes")?.unwrap_or(false),
    };
    let broker_epoch = args.value("broker_epoch")?.unwrap_or(stored);
    args.end()?;
    let partitions = ids.iter().map(|&id| PartitionAlteration { id, ..alteration.clone() }).collect();
    let goes_on = alteration.supersedes;
    let plan = alter_partition(image, &AlterPartition { broker, broker_epoch, partitions }, |_| false);
    let refusals =
        |answers: Vec<_>| answers.iter().filter_map(|(id, answer)| refusal(&name(image, *id), answer)).collect();
    Ok(Step { goes_on, ..step(plan, refusals)? })
}

fn member(text: &str) -> Result<IsrMember> {
    let (broker, epoch) = text.split_once('@').map_or((text, None), |(broker, epoch)| (broker, Some(epoch)));
    let epoch = epoch.map(str::parse::<BrokerEpoch>).transpose()?;
    Ok(IsrMember { broker: broker.parse()?, epoch })
}

/// `elect preferred|unclean [PARTITION…]`: without partitions, all.
fn elect(image: &MetadataImage, command: &Command) -> Result<Step> {
    let mut args = Arguments::of(command);
    let kind = match args.word("kind")? {
        "preferred" => ElectionKind::Preferred,
        "unclean" => ElectionKind::Unclean,
        other => return Err(format!("unknown election {other}").into()),
    };
    let ids = args.words().into_iter().map(|word| partition(image, word)).collect::<Result<Vec<_>>>()?;
    let plan = elections::elect(image, kind, (!ids.is_empty()).then_some(&ids[..]));
    step(Ok(plan), |answers| answers.iter().filter_map(|(id, answer)| refusal(&name(image, *id), answer)).collect())
}

type Sweep = fn(&MetadataImage, Option<elections::Cursor>, usize) -> Plan<elections::Swept>;

fn periodic(image: &MetadataImage, command: &Command, plan: Sweep) -> Result<Step> {
    let mut args = Arguments::of(command);
    let max: Option<usize> = args.value("max")?;
    args.end()?;
    let step = step(Ok(plan(image, None, max.unwrap_or(usize::MAX))), |_| Vec::new())?;
    Ok(Step { goes_on: max.is_some(), ..step })
}

/// `config RESOURCE[,RESOURCE…] set K=V… append K=V… subtract K=V… delete K…`
fn configure(image: &MetadataImage, command: &Command) -> Result<Step> {
    let mut arguments = command.args.iter();
    let Some(Argument::Positional(resources)) = arguments.next() else { return Err("resource is missing".into()) };
    let mut verb = "set";
    let mut changes: Vec<ConfigChange> = Vec::new();
    let change = |key: &String, op: ConfigOp| ConfigChange { key: key.clone(), op, expected: None };
    for argument in arguments {
        match (argument, verb) {
            (Argument::Positional(word), _)
                if ["set", "append", "subtract", "delete", "expect"].contains(&word.as_str()) =>
            {
                verb = word;
            }
            (Argument::Positional(key), "delete") => changes.push(change(key, ConfigOp::Delete)),
            (Argument::KeyValue(key, value), "set") => changes.push(change(key, ConfigOp::Set(value.clone()))),
            (Argument::KeyValue(key, value), "append") => changes.push(change(key, ConfigOp::Append(value.clone()))),
            (Argument::KeyValue(key, value), "subtract") => {
                changes.push(change(key, ConfigOp::Subtract(value.clone())))
            }
            (Argument::KeyValue(key, value), "expect") => {
                let named = changes.iter_mut().find(|change| change.key == *key);
                named.ok_or("what is expected stands behind the change")?.expected = Some(value.clone());
            }
            (argument, verb) => return Err(format!("cannot {verb} {argument:?}").into()),
        }
    }
    let request = |text: &str| Ok(AlterConfigs { resource: resource(text)?, changes: changes.clone() });
    let requests = items(resources, ',').map(request).collect::<Result<Vec<_>>>()?;
    let plan = alter_configs(image, &requests);
    // A broker's config is written again on purpose.
    let goes_on = resources.contains("broker/");
    let step = step(Ok(plan), |answers| answers.iter().filter_map(|answer| refusal("", answer)).collect())?;
    Ok(Step { goes_on, ..step })
}

/// `effective KEY [topic=NAME] [broker=ID]`
fn effective(image: &MetadataImage, args: &mut Arguments<'_>) -> Result<Vec<String>> {
    let key = args.word("key")?;
    let found = config::effective(image, args.text("topic"), args.value("broker")?, key);
    Ok(vec![
        found.map_or_else(|| "unknown".to_owned(), |(value, source)| format!("{key} {value:?} ({})", source.as_str())),
    ])
}

fn dump(image: &MetadataImage) -> Vec<String> {
    let broker = |id: &BrokerId| format!("broker {id} {}", state(image, *id));
    let mut lines: Vec<String> = image.brokers.keys().map(broker).collect();
    let mut topics: Vec<_> = image.topics.values().collect();
    topics.sort_by_key(|topic| &topic.name);
    for (id, partition) in topics.into_iter().flat_map(|topic| topic.partitions()) {
        let (leader_epoch, partition_epoch) = (partition.leader_epoch, partition.partition_epoch);
        let named = name(image, id);
        lines.push(format!("partition {named} {} epochs {leader_epoch}/{partition_epoch}", summary(partition)));
    }
    lines.extend(image.reassignments.values().map(|reassignment| operation(image, reassignment)));
    lines
}

/// How many partitions each broker leads and hosts.
fn leaders(image: &MetadataImage) -> Vec<String> {
    let counts = |id: &BrokerId| {
        let (leads, hosts) = (image.index.led_count(*id), image.index.replica_count(*id));
        format!("broker {id} leads {leads} of {hosts}")
    };
    image.brokers.keys().map(counts).collect()
}

pub fn step<R>(plan: std::result::Result<Plan<R>, ApiError>, answer: impl FnOnce(R) -> Vec<String>) -> Result<Step> {
    Ok(match plan {
        Ok(plan) => {
            Step { records: plan.records, waiting_on: plan.waiting_on, answer: answer(plan.response), goes_on: false }
        }
        Err(refused) => Step { answer: vec![refused.to_string()], ..Step::default() },
    })
}

pub fn refusal<T>(what: &str, answer: &std::result::Result<T, ApiError>) -> Option<String> {
    let refused = answer.as_ref().err()?;
    Some(if what.is_empty() { refused.to_string() } else { format!("{what} {refused}") })
}
