//! Which of a broker's log directories gets a replica.

use crate::ids::{BrokerId, DirectoryId, TopicPartition};
use crate::image::MetadataImage;
use crate::record::BrokerRegistration;
use crate::rng::Rng;

/// The directory for a new replica on `broker`; unassigned where that is not registered. Rendezvous hashing: many replicas spread evenly, and none moves when
/// a directory comes or goes beside its own.
pub fn choose(image: &MetadataImage, broker: BrokerId, id: TopicPartition) -> DirectoryId {
    let Some(broker) = image.broker(broker) else { return DirectoryId::UNASSIGNED };
    let open: Vec<DirectoryId> = open(broker).collect();
    // Whoever asks for a replica on a cordoned broker was let through, or refused, before.
    choose_among(if open.is_empty() { &broker.directories } else { &open }, id)
}

/// Those of the broker that take new replicas: online, and not cordoned.
pub fn open(broker: &BrokerRegistration) -> impl Iterator<Item = DirectoryId> {
    let is_cordoned = |directory: &DirectoryId| broker.cordoned_directories.iter().flatten().any(|at| at == directory);
    broker.directories.iter().copied().filter(move |directory| !is_cordoned(directory))
}

/// As `choose`, of these.
pub fn choose_among(directories: &[DirectoryId], id: TopicPartition) -> DirectoryId {
    let chosen = directories.iter().max_by_key(|directory| (weight(**directory, id), **directory));
    chosen.copied().unwrap_or(DirectoryId::UNASSIGNED)
}

fn weight(directory: DirectoryId, id: TopicPartition) -> u64 {
    let halves =
        [directory.get().as_u128(), id.topic.get().as_u128()].map(|whole| [whole as u64, (whole >> 64) as u64]);
    let parts = halves.into_iter().flatten().chain([u64::from(id.partition.get().cast_unsigned())]);
    parts.fold(0, |seed, part| Rng::new(seed ^ part).next_u64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PartitionId, TopicId};

    fn directories() -> Vec<DirectoryId> {
        (1..=4).map(|n| DirectoryId::from_bytes([n; 16])).collect()
    }

    fn replicas() -> impl Iterator<Item = TopicPartition> {
        let topic = Rng::new(7).topic_id();
        // Every fourth, as with four brokers that take turns.
        (0..4_000).step_by(4).map(move |partition| TopicPartition::new(topic, PartitionId::new(partition)))
    }

    #[test]
    fn replicas_spread_evenly() {
        for directory in directories() {
            let count = replicas().filter(|id| choose_among(&directories(), *id) == directory).count();
            assert!((200..=300).contains(&count), "{count} of 1000 in one of four");
        }
    }

    #[test]
    fn only_what_was_there_moves_when_a_directory_goes() {
        let (all, fewer) = (directories(), &directories()[1..]);
        let stays = replicas().filter(|id| choose_among(&all, *id) != all[0]);
        for id in stays {
            assert_eq!(choose_among(fewer, id), choose_among(&all, id));
        }
    }

    #[test]
    fn without_a_directory_none_is_chosen() {
        let id = TopicPartition::new(TopicId::default(), PartitionId::new(0));
        assert_eq!(choose_among(&[], id), DirectoryId::UNASSIGNED);
    }
}
