//! What a broker's heartbeat leads to: one step of its life cycle.
//!
//! | from | condition | to |
//! |---|---|---|
//! | fenced | wants to stop | stop now |
//! | fenced | does not want to stay fenced, and has replayed its own registration | unfenced |
//! | unfenced | wants to be fenced | fenced, or stop now if it also wants to stop |
//! | unfenced | wants to stop and leads something | controlled shutdown |
//! | unfenced | wants to stop and leads nothing | stop now |
//! | controlled shutdown | leads nothing, and every active broker has replayed the moves | stop now |
//!
//! A failed log directory is dealt with first; a broker with none left is as one that wants to be fenced.
//!
//! A broker with many partitions changes its state in steps (`HeartbeatSteps`).
//!
//! "Has replayed its own registration", not "has caught up": the log of a busy cluster outruns any heartbeat.

use crate::error::{ApiError, ErrorName};
use crate::ids::{BrokerEpoch, BrokerId, DirectoryId, Offset};
use crate::image::MetadataImage;
use crate::liveness::Removal;
use crate::mutant::Mutant;
use crate::plan::brokers::{self, Departure};
use crate::plan::{Plan, WaitingOn};
use crate::record::BrokerRegistration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    pub broker: BrokerId,
    pub epoch: BrokerEpoch,
    /// The next offset it wants: it has replayed everything below.
    pub metadata_offset: Offset,
    pub want_fence: bool,
    pub want_shutdown: bool,
    /// Log directories that have failed since it registered.
    pub offline_directories: Vec<DirectoryId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    pub fenced: bool,
    /// It has replayed its own registration.
    pub caught_up: bool,
    pub should_shut_down: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fenced,
    Unfenced,
    ControlledShutdown,
    ShutdownNow,
}

impl HeartbeatAnswer {
    fn of(state: State, at: Circumstances) -> Self {
        Self {
            fenced: matches!(state, State::Fenced | State::ShutdownNow),
            caught_up: at.caught_up,
            should_shut_down: state == State::ShutdownNow,
        }
    }
}

impl State {
    fn of(broker: &BrokerRegistration) -> Self {
        match (broker.fenced, broker.in_controlled_shutdown) {
            (true, _) => Self::Fenced,
            (false, true) => Self::ControlledShutdown,
            (false, false) => Self::Unfenced,
        }
    }
}

/// What the next state depends on.
#[derive(Debug, Clone, Copy)]
struct Circumstances {
    want_fence: bool,
    want_shutdown: bool,
    caught_up: bool,
    leads: bool,
    /// Every other active broker has replayed the moves of this shutdown.
    moves_seen: bool,
}

/// Whether the answer to a heartbeat depends on what the other brokers have replayed: only while its sender is in
/// controlled shutdown and leads nothing any more. To find that out costs all brokers.
pub fn awaits_others(image: &MetadataImage, broker: BrokerId) -> bool {
    let has_barrier = image.broker(broker).is_some_and(|broker| broker.controlled_shutdown_offset.is_some());
    has_barrier && image.index.led_count(broker) == 0
}

/// Answers a heartbeat. `lowest_active_offset` is the lowest metadata offset that any other active broker reported;
/// `None` when there is no other, and where the answer does not depend on it (see `awaits_others`).
pub fn heartbeat(
    image: &MetadataImage,
    heartbeat: &Heartbeat,
    lowest_active_offset: Option<Offset>,
) -> Result<Plan<HeartbeatAnswer>, ApiError> {
    HeartbeatSteps::new(heartbeat.clone()).plan(image, lowest_active_offset)
}

/// A heartbeat that may take several steps.
#[derive(Debug)]
pub struct HeartbeatSteps {
    heartbeat: Heartbeat,
    departure: Departure,
    removal: Option<Removal>,
}

impl HeartbeatSteps {
    pub fn new(heartbeat: Heartbeat) -> Self {
        Self { heartbeat, departure: Departure::default(), removal: None }
    }

    /// Why the last planned step takes the broker out of ISRs, if it does.
    pub fn removal(&self) -> Option<Removal> {
        self.removal
    }

    /// Plans the next step. Only the answer to the last one tells the broker to stop.
    pub fn plan(
        &mut self,
        image: &MetadataImage,
        lowest_active_offset: Option<Offset>,
    ) -> Result<Plan<HeartbeatAnswer>, ApiError> {
        let heartbeat = &self.heartbeat;
        let broker = sender(image, heartbeat.broker, heartbeat.epoch)?;
        let failed = brokers::newly_failed(broker, &heartbeat.offline_directories);
        let nothing_left = !failed.is_empty() && failed.len() == broker.directories.len();
        let circumstances = Circumstances {
            want_fence: heartbeat.want_fence || nothing_left,
            want_shutdown: heartbeat.want_shutdown,
            caught_up: heartbeat.metadata_offset.get() > broker.epoch.get(),
            leads: image.index.led_count(broker.broker) > 0,
            moves_seen: moves_seen(broker, lowest_active_offset),
        };
        let current = State::of(broker);
        if !failed.is_empty() && !nothing_left {
            // What else it wants it says again.
            self.removal = Some(Removal::DirectoryFailure);
            let plan = brokers::fail_directories(image, broker, &failed);
            return Ok(plan.map(|()| HeartbeatAnswer::of(current, circumstances)));
        }
        let is_stopping = current == State::Unfenced && self.removal == Some(Removal::ControlledShutdown);
        // A shutdown that has begun stays one, even if what the broker leads was moved by others meanwhile.
        let next = if is_stopping { State::ControlledShutdown } else { next_state(current, circumstances) };
        let plan = self.transition(image, broker.broker, current, next)?;
        let mut answer = HeartbeatAnswer::of(next, circumstances);
        answer.should_shut_down &= !plan.is_partial;
        if plan.records.is_empty() {
            return Ok(Plan::waiting(waiting_on(next, circumstances), answer));
        }
        Ok(plan.map(|()| answer))
    }

    fn transition(
        &mut self,
        image: &MetadataImage,
        broker: BrokerId,
        current: State,
        next: State,
    ) -> Result<Plan<()>, ApiError> {
        self.removal = None;
        if current == next {
            return Ok(Plan::new(Vec::new(), ()));
        }
        match next {
            // A broker that stops is fenced by the same stroke: no ISR waits for it.
            State::Fenced | State::ShutdownNow => {
                self.removal = Some(Removal::Fencing);
                self.departure.fence(image, broker)
            }
            State::Unfenced => brokers::unfence(image, broker),
            State::ControlledShutdown => {
                self.removal = Some(Removal::ControlledShutdown);
                self.departure.begin_controlled_shutdown(image, broker)
            }
        }
    }
}

/// The sender of a request, if it is the incarnation that it says it is.
pub(super) fn sender(
    image: &MetadataImage,
    broker: BrokerId,
    epoch: BrokerEpoch,
) -> Result<&BrokerRegistration, ApiError> {
    let stale = |message| ApiError::new(ErrorName::StaleBrokerEpoch, message);
    let registration = image.broker(broker).ok_or_else(|| stale(format!("broker {broker} is not registered")))?;
    if registration.epoch != epoch && !Mutant::AnyBrokerEpoch.is_on() {
        return Err(stale(format!("broker {broker} is at epoch {}, not {epoch}", registration.epoch)));
    }
    Ok(registration)
}

fn moves_seen(broker: &BrokerRegistration, lowest_active_offset: Option<Offset>) -> bool {
    match (broker.controlled_shutdown_offset, lowest_active_offset) {
        // An offset reported is the next one wanted, so it must lie beyond the barrier.
        (Some(barrier), Some(lowest)) => lowest > barrier,
        (None, _) | (_, None) => true,
    }
}

fn next_state(current: State, at: Circumstances) -> State {
    match current {
        State::Fenced if at.want_shutdown => State::ShutdownNow,
        State::Fenced if !at.want_fence && at.caught_up => State::Unfenced,
        State::Fenced => State::Fenced,
        State::Unfenced => match (at.want_fence, at.want_shutdown) {
            (true, true) => State::ShutdownNow,
            (true, false) => State::Fenced,
            (false, true) if at.leads => State::ControlledShutdown,
            (false, true) => State::ShutdownNow,
            (false, false) => State::Unfenced,
        },
        State::ControlledShutdown if at.leads || !at.moves_seen => State::ControlledShutdown,
        State::ControlledShutdown | State::ShutdownNow => State::ShutdownNow,
    }
}

fn waiting_on(next: State, at: Circumstances) -> WaitingOn {
    match next {
        State::Fenced if !at.want_fence => WaitingOn::BrokerCatchingUp,
        State::ControlledShutdown => WaitingOn::ShutdownBarrier,
        State::Fenced | State::Unfenced | State::ShutdownNow => WaitingOn::NothingToDo,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every circumstance, in the order of the arguments of `at`.
    fn all() -> impl Iterator<Item = Circumstances> {
        (0..32u8).map(|bits| {
            let bit = |n: u8| bits & (1 << n) != 0;
            Circumstances {
                want_fence: bit(0),
                want_shutdown: bit(1),
                caught_up: bit(2),
                leads: bit(3),
                moves_seen: bit(4),
            }
        })
    }

    /// The rows of the table, first match wins: state, condition, next state.
    type Row = (State, fn(Circumstances) -> bool, State);
    const TABLE: [Row; 10] = [
        (State::Fenced, |at| at.want_shutdown, State::ShutdownNow),
        (State::Fenced, |at| !at.want_fence && at.caught_up, State::Unfenced),
        (State::Fenced, |_| true, State::Fenced),
        (State::Unfenced, |at| at.want_fence && at.want_shutdown, State::ShutdownNow),
        (State::Unfenced, |at| at.want_fence, State::Fenced),
        (State::Unfenced, |at| at.want_shutdown && at.leads, State::ControlledShutdown),
        (State::Unfenced, |at| at.want_shutdown, State::ShutdownNow),
        (State::Unfenced, |_| true, State::Unfenced),
        (State::ControlledShutdown, |at| at.leads || !at.moves_seen, State::ControlledShutdown),
        (State::ControlledShutdown, |_| true, State::ShutdownNow),
    ];

    #[test]
    fn every_state_under_every_circumstance_goes_where_the_table_says() {
        for current in [State::Fenced, State::Unfenced, State::ControlledShutdown] {
            for at in all() {
                let row = TABLE.iter().find(|(from, condition, _)| *from == current && condition(at));
                let (_, _, expected) = row.unwrap();
                assert_eq!(next_state(current, at), *expected, "{current:?} {at:?}");
            }
        }
    }

    #[test]
    fn no_heartbeat_brings_a_stopping_broker_back() {
        assert!(all().all(|at| next_state(State::ShutdownNow, at) == State::ShutdownNow));
        assert!(all().all(|at| next_state(State::ControlledShutdown, at) != State::Unfenced));
    }
}
