//! What holds at every moment, whatever is broken: one rule a file, looked at after every tick.

mod broker_epochs_grow;
mod committed_is_on_a_majority;
mod committed_stays;
mod epochs_never_fall;
mod fenced_brokers_lead_nothing;
mod image_is_sound;
mod logs_match;
mod one_controller_per_epoch;
mod one_image_per_offset;
mod one_leader_per_epoch;
mod snapshot_covers_what_is_gone;

use crate::observe::Seen;

pub trait Invariant {
    fn name(&self) -> &'static str;

    /// What is wrong now, if anything. Called after each tick in which something has changed.
    fn check(&mut self, seen: &Seen) -> Result<(), String>;
}

pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<one_controller_per_epoch::OneControllerPerEpoch>::default(),
        Box::<epochs_never_fall::EpochsNeverFall>::default(),
        Box::<logs_match::LogsMatch>::default(),
        Box::<committed_stays::CommittedStays>::default(),
        Box::<committed_is_on_a_majority::CommittedIsOnAMajority>::default(),
        Box::<snapshot_covers_what_is_gone::SnapshotCoversWhatIsGone>::default(),
        Box::<one_image_per_offset::OneImagePerOffset>::default(),
        Box::<image_is_sound::ImageIsSound>::default(),
        Box::<one_leader_per_epoch::OneLeaderPerEpoch>::default(),
        Box::<broker_epochs_grow::BrokerEpochsGrow>::default(),
        Box::<fenced_brokers_lead_nothing::FencedBrokersLeadNothing>::default(),
    ]
}
