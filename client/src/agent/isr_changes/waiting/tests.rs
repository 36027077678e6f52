use quorate_metadata::ids::{BrokerId, LeaderEpoch, PartitionEpoch};
use quorate_metadata::record::LeaderRecoveryState;
use quorate_proto::broker::AlteredPartition;
use quorate_proto::error;

use super::super::super::fixture::{create, id, image, lead, remove_topic, shrink};
use super::super::wire::outcome;
use super::*;

fn change() -> IsrChange {
    change_of(0)
}

fn change_of(partition: i32) -> IsrChange {
    IsrChange {
        partition: id(partition),
        leader_epoch: LeaderEpoch::default(),
        partition_epoch: PartitionEpoch::default(),
        isr: vec![(BrokerId::new(1), None)],
        recovery: LeaderRecoveryState::Recovered,
    }
}

/// What an error of the item makes of the change.
fn verdict(name: ErrorName) -> &'static str {
    let error = Some(error::to_item(&ApiError::new(name, "refused")));
    match outcome(&AlteredPartition { error, ..Default::default() }) {
        Some(IsrOutcome::Applied { .. }) => "applied",
        Some(IsrOutcome::NotApplied(_)) => "not applied",
        Some(IsrOutcome::Pending(_)) => "pending",
        None => "again",
    }
}

#[test]
fn one_error_proves_that_nothing_was_applied_and_few_leave_it_to_the_metadata() {
    use ErrorName as N;
    let pending = [
        N::FencedLeaderEpoch,
        N::InvalidRequest,
        N::InvalidUpdateVersion,
        N::UnknownTopicOrPartition,
        N::UnknownTopicId,
        N::NewLeaderElected,
    ];
    for name in N::ALL.iter().copied() {
        let expected = match name {
            N::IneligibleReplica => "not applied",
            name if pending.contains(&name) => "pending",
            _ => "again",
        };
        assert_eq!(verdict(name), expected, "{name}");
    }
}

fn refused() -> Option<IsrOutcome> {
    Some(IsrOutcome::NotApplied(ApiError::new(ErrorName::IneligibleReplica, "broker 2 is fenced")))
}

fn applied(epoch: i32) -> Option<IsrOutcome> {
    let (isr, recovery) = (vec![BrokerId::new(1)], LeaderRecoveryState::Recovered);
    Some(IsrOutcome::Applied { partition_epoch: PartitionEpoch::new(epoch), isr, recovery })
}

fn waiting() -> Waiting {
    Waiting::new(Asked { change: change(), answer: oneshot::channel().0 }, Instant::now())
}

#[test]
fn a_refusal_of_the_only_copy_is_the_outcome() {
    assert_eq!(waiting().judge(refused()), refused());
}

#[test]
fn a_change_that_is_refused_while_a_copy_is_under_way_is_taken_back() {
    let image = image(&[&[1, 2]]);
    let mut waiting = waiting();
    assert_eq!(waiting.request(&image), Some(to_wire(&change())));
    assert_eq!(waiting.judge(None), None);
    assert_eq!(waiting.request(&image), Some(to_wire(&change())));
    assert_eq!(waiting.judge(refused()), None);
    let taken_back = waiting.request(&image).unwrap();
    assert!(taken_back.supersedes);
    assert_eq!(taken_back.isr.iter().map(|member| member.broker).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(taken_back.partition_epoch, change().partition_epoch.get());
    // That this was applied says nothing of the change itself, which the metadata overtakes now.
    assert_eq!(waiting.judge(applied(1)), None);
    let mut moved = image;
    shrink(&mut moved, 0, &[1]);
    assert_eq!(waiting.request(&moved), None);
}

#[test]
fn a_controller_that_cannot_take_a_change_back_is_asked_for_it_again() {
    let image = image(&[&[1, 2]]);
    let mut waiting = waiting();
    assert_eq!([waiting.judge(None), waiting.judge(refused()), waiting.judge(applied(0))], [None, None, None]);
    assert_eq!(waiting.request(&image), Some(to_wire(&change())));
}

#[test]
fn a_change_is_overtaken_by_a_newer_partition_epoch_another_leader_and_the_end_of_the_topic() {
    let name = |image: &MetadataImage| overtaken(image, &change()).map(|error| error.name);
    let start = image(&[&[1, 2]]);
    assert_eq!(name(&start), None);
    assert_eq!(name(&MetadataImage::default()), None);
    let (mut shrunk, mut led, mut removed) = (start.clone(), start.clone(), start);
    shrink(&mut shrunk, 0, &[1]);
    assert_eq!(name(&shrunk), Some(ErrorName::InvalidUpdateVersion));
    lead(&mut led, 0, Some(2));
    assert_eq!(name(&led), Some(ErrorName::FencedLeaderEpoch));
    remove_topic(&mut removed);
    assert_eq!(name(&removed), Some(ErrorName::UnknownTopicOrPartition));
}

type Outcomes = Vec<oneshot::Receiver<IsrOutcome>>;

/// A change of each of so many partitions waits, and the metadata has those partitions.
fn many(count: i32) -> (WaitingChanges, MetadataImage, Outcomes) {
    let image = image(&vec![&[1, 2][..]; usize::try_from(count).unwrap()]);
    let mut all = WaitingChanges::default();
    all.observe(&image);
    let outcomes = (0..count).map(|partition| admit(&mut all, change_of(partition))).collect();
    (all, image, outcomes)
}

fn admit(all: &mut WaitingChanges, change: IsrChange) -> oneshot::Receiver<IsrOutcome> {
    let (answer, outcome) = oneshot::channel();
    all.admit(Asked { change, answer }, Instant::now());
    outcome
}

#[test]
fn metadata_is_compared_with_the_changes_of_changed_partitions_only() {
    let (mut all, mut image, mut outcomes) = many(1_000);
    shrink(&mut image, 700, &[1]);
    assert_eq!(all.observe(&image), 1);
    assert!(
        matches!(outcomes[700].try_recv(), Ok(IsrOutcome::Pending(error)) if error.name == ErrorName::InvalidUpdateVersion)
    );
    assert_eq!(all.len(), 999);
    assert_eq!(all.observe(&image), 0, "nothing has changed");
}

#[test]
fn the_first_metadata_is_compared_with_every_change() {
    let mut all = WaitingChanges::default();
    let (mut known, mut unknown) = (admit(&mut all, change_of(0)), admit(&mut all, change_of(5)));
    assert_eq!(all.observe(&image(&[&[1, 2]])), 2);
    assert!(known.try_recv().is_err(), "it goes on waiting");
    let gone = unknown.try_recv().unwrap();
    assert!(matches!(gone, IsrOutcome::Pending(error) if error.name == ErrorName::UnknownTopicOrPartition));
}

#[test]
fn a_change_that_the_metadata_has_overtaken_before_it_came_is_pending_at_once() {
    let (mut all, mut image, _outcomes) = many(1);
    remove_topic(&mut image);
    all.observe(&image);
    let mut late = admit(&mut all, change_of(0));
    assert!(matches!(late.try_recv(), Ok(IsrOutcome::Pending(_))));
    assert!(all.is_empty());
}

#[test]
fn a_request_takes_the_changes_that_are_due_up_to_its_bounds() {
    let (mut all, _, _outcomes) = many(i32::try_from(CHANGES_PER_REQUEST_MAX).unwrap() + 10);
    let now = Instant::now();
    let first = all.due(now);
    assert_eq!((first.ids.len(), first.alterations.len()), (CHANGES_PER_REQUEST_MAX, CHANGES_PER_REQUEST_MAX));
    all.postpone(&first.ids, now);
    assert_eq!(all.due(now).ids.len(), 10);
    assert_eq!(all.due(now + BACKOFF_MAX).ids.len(), CHANGES_PER_REQUEST_MAX);
}

#[test]
fn the_pause_before_a_change_is_asked_for_again_grows_to_a_bound() {
    let (mut all, _, _outcomes) = many(1);
    let now = Instant::now();
    let pauses = [20, 40, 80, 160, 320, 640, 1_000, 1_000].map(|_| {
        all.postpone(&[id(0)], now);
        all.next_due().unwrap() - now
    });
    assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1_000, 1_000].map(Duration::from_millis));
}

#[test]
fn a_second_change_of_a_partition_is_refused_and_the_first_goes_on() {
    let (mut all, _, mut outcomes) = many(1);
    let mut second = admit(&mut all, change_of(0));
    assert!(matches!(second.try_recv(), Ok(IsrOutcome::NotApplied(error)) if error.name == ErrorName::InvalidRequest));
    all.judge(id(0), applied(1));
    assert_eq!(outcomes[0].try_recv().ok(), applied(1));
}

#[test]
fn a_change_that_is_settled_is_due_no_more() {
    let (mut all, _, _outcomes) = many(2);
    let now = Instant::now();
    all.judge(id(0), applied(1));
    assert_eq!(all.due(now).ids, [id(1)]);
    all.postpone(&[id(1)], now);
    all.judge(id(1), applied(1));
    assert_eq!((all.next_due(), all.due(now + BACKOFF_MAX).ids), (None, Vec::new()));
}

#[test]
fn older_metadata_ends_no_change() {
    let (mut all, old, _outcomes) = many(1);
    let mut new = old.clone();
    create(&mut new, &[1, 2]);
    all.observe(&new);
    let mut created = admit(&mut all, change_of(1));
    assert_eq!(all.observe(&old), 0);
    assert!(created.try_recv().is_err(), "the older metadata does not know its partition");
}

#[test]
fn a_request_of_long_replica_lists_is_bounded_in_bytes() {
    let mut all = WaitingChanges::default();
    let isr: Vec<_> = (0..1_000).map(|id| (BrokerId::new(1_000_000 + id), None)).collect();
    let _kept: Vec<_> = (0..200).map(|id| admit(&mut all, IsrChange { isr: isr.clone(), ..change_of(id) })).collect();
    let due = all.due(Instant::now());
    let bytes: usize = due.alterations.iter().map(Message::encoded_len).sum();
    assert!(bytes <= REQUEST_BYTES_MAX && bytes > REQUEST_BYTES_MAX / 2, "{bytes} bytes");
    assert_eq!(due.ids.len(), due.alterations.len());
}
