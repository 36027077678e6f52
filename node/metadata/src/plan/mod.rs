//! What shall be: pure functions from an image and a request to records and a response.
//!
//! A plan decides everything and changes nothing. Whoever proposes it replays its records on the draft first.

pub mod alter_partition;
pub mod brokers;
pub mod checkpoint;
pub mod configs;
pub mod directories;
pub mod elections;
pub mod features;
pub mod heartbeat;
pub mod partition_change;
mod probe;
pub mod producer_ids;
pub mod reassignment;
pub mod topics;
mod unregister;

use crate::record::Record;

/// Records to propose and what to answer once they are committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<R> {
    pub records: Vec<Record>,
    pub response: R,
    /// Why there is nothing to do, where there is nothing to do.
    pub waiting_on: Option<WaitingOn>,
    /// One step of a request that changes more than one step may: the same request is to be planned again on what these
    /// records lead to. The response counts with the last step.
    pub is_partial: bool,
}

/// Why a plan without records has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitingOn {
    /// The state asked for is the state that is.
    NothingToDo,
    /// Only validation was asked for.
    ValidateOnly,
    /// Every item of the request was refused.
    AllRefused,
    /// The broker has not yet replayed its own registration.
    BrokerCatchingUp,
    /// Brokers have not yet seen the moves of a controlled shutdown.
    ShutdownBarrier,
    /// No broker is eligible.
    NoEligibleBroker,
    /// A config switches this off.
    Disabled,
}

impl WaitingOn {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NothingToDo => "nothing-to-do",
            Self::ValidateOnly => "validate-only",
            Self::AllRefused => "all-refused",
            Self::BrokerCatchingUp => "broker-catching-up",
            Self::ShutdownBarrier => "shutdown-barrier",
            Self::NoEligibleBroker => "no-eligible-broker",
            Self::Disabled => "disabled",
        }
    }
}

impl<R> Plan<R> {
    pub fn new(records: Vec<Record>, response: R) -> Self {
        let waiting_on = records.is_empty().then_some(WaitingOn::NothingToDo);
        Self { records, response, waiting_on, is_partial: false }
    }

    pub fn waiting(on: WaitingOn, response: R) -> Self {
        Self { records: Vec::new(), response, waiting_on: Some(on), is_partial: false }
    }

    /// A step with more to come. Every step has records, so that the last one is reached.
    pub fn partial(records: Vec<Record>, response: R) -> Self {
        assert!(!records.is_empty(), "a step without records would be planned for ever");
        Self { records, response, waiting_on: None, is_partial: true }
    }

    /// A plan for a request of several items, each with its own answer.
    fn of_items(records: Vec<Record>, response: R, all_refused: bool) -> Self {
        if records.is_empty() && all_refused {
            return Self::waiting(WaitingOn::AllRefused, response);
        }
        Self::new(records, response)
    }

    pub fn map<S>(self, to: impl FnOnce(R) -> S) -> Plan<S> {
        let Self { records, response, waiting_on, is_partial } = self;
        Plan { records, response: to(response), waiting_on, is_partial }
    }
}
