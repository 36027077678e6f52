//! Reads the arguments of commands.

use std::error::Error;
use std::str::FromStr;

use goldenscript::{ArgumentConsumer, Command};
use quorate_metadata::MetadataImage;
use quorate_metadata::ids::{BrokerId, DirectoryId, IncarnationId, PartitionId, TopicId, TopicPartition};
use quorate_metadata::record::ConfigResource;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub struct Arguments<'a>(ArgumentConsumer<'a>);

impl<'a> Arguments<'a> {
    pub fn of(command: &'a Command) -> Self {
        Self(command.consume_args())
    }

    pub fn word(&mut self, what: &str) -> Result<&'a str> {
        self.0.next_pos().ok_or_else(|| format!("{what} is missing").into())
    }

    pub fn words(&mut self) -> Vec<&'a str> {
        std::iter::from_fn(|| self.0.next_pos()).collect()
    }

    pub fn broker(&mut self) -> Result<BrokerId> {
        Ok(self.word("broker")?.parse()?)
    }

    pub fn text(&mut self, key: &str) -> Option<&'a str> {
        self.0.take_key(key)
    }

    pub fn value<T: FromStr>(&mut self, key: &str) -> Result<Option<T>>
    where
        T::Err: Error + 'static,
    {
        Ok(self.0.take_key(key).map(str::parse).transpose()?)
    }

    /// The keys not asked for.
    pub fn rest(&mut self) -> Vec<(&'a str, &'a str)> {
        std::iter::from_fn(|| self.0.next_key()).collect()
    }

    pub fn end(&self) -> Result<()> {
        self.0.reject_next()
    }
}

pub fn brokers(text: &str) -> Result<Vec<BrokerId>> {
    items(text, ',').map(|id| Ok(id.parse()?)).collect()
}

pub fn items(text: &str, separator: char) -> impl Iterator<Item = &str> {
    text.split(separator).filter(|item| !item.is_empty())
}

/// Ids made of a name, so that scripts can speak of the same one twice.
fn named(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (byte, of_name) in bytes.iter_mut().zip(name.bytes()) {
        *byte = of_name;
    }
    bytes
}

pub fn directory(name: &str) -> DirectoryId {
    if name == "reserved" { DirectoryId::UNASSIGNED } else { DirectoryId::from_bytes(named(name)) }
}

pub fn incarnation(name: &str) -> IncarnationId {
    IncarnationId::from_bytes(named(name))
}

/// `orders-0`; the partition 0 of an unknown topic id is `?-0`.
pub fn partition(image: &MetadataImage, text: &str) -> Result<TopicPartition> {
    let (topic, partition) = text.rsplit_once('-').ok_or("a partition is topic-number")?;
    let topic = topic_id(image, topic)?;
    Ok(TopicPartition::new(topic, PartitionId::new(partition.parse()?)))
}

pub fn topic_id(image: &MetadataImage, name: &str) -> Result<TopicId> {
    if name == "?" {
        return Ok(TopicId::from_bytes([9; 16]));
    }
    image.topic_named(name).map(|topic| topic.id).ok_or_else(|| format!("no topic {name}").into())
}

pub fn resource(text: &str) -> Result<ConfigResource> {
    match text.split_once('/') {
        Some(("topic", name)) => Ok(ConfigResource::Topic(name.to_owned())),
        Some(("broker", "default")) => Ok(ConfigResource::BrokerDefault),
        Some(("broker", id)) => Ok(ConfigResource::Broker(id.parse()?)),
        _ => Err(format!("{text} is not a resource").into()),
    }
}
