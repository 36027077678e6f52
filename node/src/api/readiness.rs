//! Whether this node can be relied on: what `/readyz` and the health service say. It answers from the first moment on, with
//! the reason where it is not ready.
//!
//! A controller is ready when it can read what a majority has committed; a broker when it is unfenced and back in the
//! ISRs of its partitions, so that a restart that waits for it takes the next node only when the partitions can spare it.
//! That wait is bounded: replicas that cannot catch up must not hold up a restart for ever.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_metadata::MetadataImage;
use quorate_metadata::ids::{BrokerEpoch, BrokerId};
use tokio::time::Instant;

use super::gateway::Gateway;
use super::log::DataPlaneSlot;
use super::proxy::Controllers;

/// How long a readiness check may ask the quorum.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an unfenced broker may take to be back in the ISRs; from then on it is ready without them.
const CATCH_UP_MAX: Duration = Duration::from_secs(300);

/// Ready, or not, with what there is to say of it.
pub type Check = Result<String, String>;

#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<Parts>>);

#[derive(Default)]
struct Parts {
    /// None: the node starts.
    control: Option<Control>,
    broker: Option<Broker>,
    /// Why the broker cannot go on.
    broker_failure: Option<String>,
    is_stopping: bool,
}

#[derive(Clone)]
enum Control {
    Here(Gateway),
    Elsewhere(Controllers),
}

#[derive(Clone)]
struct Broker {
    id: BrokerId,
    slot: DataPlaneSlot,
    /// The epoch under which a check first found it unfenced, and when.
    unfenced: Option<(BrokerEpoch, Instant)>,
    /// The epoch under which it was in all its ISRs, or has had the time for it: partitions that it gets later do not make
    /// it unready.
    settled: Option<BrokerEpoch>,
}

/// What the metadata says of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    fenced: bool,
    /// Partitions that have a replica on it, and those of them in whose ISR it is.
    replicas: usize,
    in_isr: usize,
}

impl Place {
    fn of(image: &MetadataImage, broker: BrokerId, fenced: bool) -> Self {
        let (replicas, in_isr) = (image.index.replica_count(broker), image.index.isr_count(broker));
        Self { fenced, replicas, in_isr }
    }
}

impl Readiness {
    pub fn controller_started(&self, gateway: Gateway) {
        self.parts(|parts| parts.control = Some(Control::Here(gateway)));
    }

    pub fn controllers_known(&self, controllers: Controllers) {
        self.parts(|parts| parts.control = Some(Control::Elsewhere(controllers)));
    }

    /// The node has a broker as well, or nothing else.
    pub fn has_broker(&self, id: BrokerId, slot: DataPlaneSlot) {
        self.parts(|parts| parts.broker = Some(Broker { id, slot, unfenced: None, settled: None }));
    }

    /// The node goes on without its broker.
    pub fn broker_failed(&self, reason: String) {
        self.parts(|parts| parts.broker_failure = Some(reason));
    }

    /// From now on it is not ready.
    pub fn stops(&self) {
        self.parts(|parts| parts.is_stopping = true);
    }

    pub fn is_active_controller(&self) -> bool {
        let control = self.parts(|parts| parts.control.clone());
        matches!(control, Some(Control::Here(gateway)) if gateway.claimed().is_some())
    }

    pub async fn check(&self) -> Check {
        let control = self.parts(|parts| if parts.is_stopping { None } else { Some(parts.control.clone()) });
        let said = match control {
            None => return Err("the node is stopping".to_owned()),
            Some(None) => {
                return Err("the node starts: its voters have not formed a cluster yet, or it reads its log".to_owned());
            }
            Some(Some(Control::Here(gateway))) => {
                gateway.raft.read_barrier(READ_TIMEOUT).await.map_err(|error| error.to_string())?;
                format!("ready at offset {}", gateway.view.image().next_offset)
            }
            Some(Some(Control::Elsewhere(controllers))) => {
                controllers.channel().await.map_err(|error| error.message)?;
                "ready".to_owned()
            }
        };
        if let Some(reason) = self.parts(|parts| parts.broker_failure.clone()) {
            return Err(reason);
        }
        let broker = self.parts(|parts| parts.broker.as_mut().map(|broker| broker.check(Instant::now())));
        match broker.transpose()?.flatten() {
            Some(reason) => Ok(format!("{said}, although {reason}")),
            None => Ok(said),
        }
    }

    fn parts<T>(&self, with: impl FnOnce(&mut Parts) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Broker {
    /// What is not as it should be, where it is ready all the same.
    fn check(&mut self, now: Instant) -> Result<Option<String>, String> {
        let id = self.id;
        let Some(plane) = self.slot.get() else { return Err(format!("broker {id} opens its log directories")) };
        let Some(epoch) = plane.standing().epoch else {
            let refusal = plane.registration_refusal().map_or_else(String::new, |refusal| format!(": {refusal}"));
            return Err(format!("broker {id} is not registered{refusal}"));
        };
        let image = plane.metadata().image();
        let Some(known) = image.broker(id).filter(|known| known.epoch == epoch) else {
            return Err(format!("broker {id} waits for the metadata of its registration"));
        };
        self.judge(epoch, Place::of(&image, id, known.fenced), now)
    }

    fn judge(&mut self, epoch: BrokerEpoch, place: Place, now: Instant) -> Result<Option<String>, String> {
        let Place { fenced, replicas, in_isr } = place;
        if fenced {
            self.settled = None;
            self.unfenced = None;
            return Err(format!("broker {} is fenced", self.id));
        }
        let (_, since) =
            *self.unfenced.insert(self.unfenced.filter(|(known, _)| *known == epoch).unwrap_or((epoch, now)));
        if self.settled == Some(epoch) {
            return Ok(None);
        }
        if in_isr >= replicas {
            self.settled = Some(epoch);
            return Ok(None);
        }
        let reason = format!("broker {} is in the ISR of {in_isr} of its {replicas} partitions", self.id);
        if now.duration_since(since) >= CATCH_UP_MAX { Ok(Some(reason)) } else { Err(reason) }
    }
}

#[cfg(test)]
mod tests {
    use quorate_metadata::ids::{ControllerEpoch, DirectoryId, PartitionId, TopicId, TopicPartition};
    use quorate_metadata::record::{Kind, PartitionRegistration, PartitionState};
    use quorate_metadata::{Batch, Record};

    use super::*;

    const EPOCH: BrokerEpoch = BrokerEpoch::new(5);

    fn broker() -> Broker {
        Broker { id: BrokerId::new(1), slot: DataPlaneSlot::default(), unfenced: None, settled: None }
    }

    fn unfenced(in_isr: usize) -> Place {
        Place { fenced: false, replicas: 10, in_isr }
    }

    #[test]
    fn replicas_out_of_the_isr_count_as_missing() {
        let brokers = |ids: &[i32]| ids.iter().copied().map(BrokerId::new).collect::<Vec<_>>();
        let partition = |number, isr: &[i32]| {
            let state = PartitionState {
                replicas: brokers(&[1, 2, 3]),
                directories: vec![DirectoryId::UNASSIGNED; 3],
                isr: brokers(isr),
                leader: Some(BrokerId::new(1)),
                ..PartitionState::default()
            };
            let id = TopicPartition::new(TopicId::default(), PartitionId::new(number));
            Record::CreatePartition(PartitionRegistration { id, state: state.into() })
        };
        let topic = Record::CreateTopic { topic: TopicId::default(), name: "orders".to_owned(), kind: Kind::LOG };
        let records = vec![topic, partition(0, &[1, 2]), partition(1, &[1, 2, 3])];
        let mut image = MetadataImage::default();
        image
            .replay(&Batch { controller_epoch: ControllerEpoch::new(1), timestamp_ms: 0, records })
            .expect("they replay");
        let place = |broker| Place::of(&image, BrokerId::new(broker), false);
        assert_eq!(place(3), Place { fenced: false, replicas: 2, in_isr: 1 });
        assert_eq!(place(1), Place { fenced: false, replicas: 2, in_isr: 2 });
    }

    #[test]
    fn a_broker_is_ready_when_it_is_unfenced_and_in_all_its_isrs() {
        let (mut broker, now) = (broker(), Instant::now());
        let fenced = Place { fenced: true, ..unfenced(10) };
        assert_eq!(broker.judge(EPOCH, fenced, now), Err("broker 1 is fenced".to_owned()));
        let catching_up = "broker 1 is in the ISR of 9 of its 10 partitions".to_owned();
        assert_eq!(broker.judge(EPOCH, unfenced(9), now), Err(catching_up));
        assert_eq!(broker.judge(EPOCH, unfenced(10), now), Ok(None));
    }

    #[test]
    fn a_broker_that_was_in_all_its_isrs_stays_ready_until_it_is_fenced_or_another_process() {
        let (mut broker, now) = (broker(), Instant::now());
        assert_eq!(broker.judge(EPOCH, unfenced(10), now), Ok(None));
        assert_eq!(broker.judge(EPOCH, unfenced(3), now), Ok(None), "a move may have brought it more");
        assert!(broker.judge(BrokerEpoch::new(6), unfenced(3), now).is_err());
        assert_eq!(broker.judge(BrokerEpoch::new(6), unfenced(10), now), Ok(None));
        assert!(broker.judge(BrokerEpoch::new(6), Place { fenced: true, ..unfenced(10) }, now).is_err());
        assert!(broker.judge(BrokerEpoch::new(6), unfenced(3), now).is_err());
    }

    #[test]
    fn a_broker_that_cannot_catch_up_is_ready_in_the_end_and_says_so() {
        let (mut broker, now) = (broker(), Instant::now());
        assert!(broker.judge(EPOCH, unfenced(9), now).is_err());
        let late = now + CATCH_UP_MAX;
        assert!(broker.judge(BrokerEpoch::new(6), unfenced(9), late).is_err(), "another process has its own time");
        let reason = "broker 1 is in the ISR of 9 of its 10 partitions".to_owned();
        assert_eq!(broker.judge(BrokerEpoch::new(6), unfenced(9), late + CATCH_UP_MAX), Ok(Some(reason)));
    }

    #[tokio::test]
    async fn a_node_is_not_ready_while_it_starts_and_while_it_stops() {
        let readiness = Readiness::default();
        assert!(readiness.check().await.is_err_and(|reason| reason.contains("starts")));
        readiness.stops();
        assert!(readiness.check().await.is_err_and(|reason| reason.contains("stopping")));
    }
}
