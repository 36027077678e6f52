use super::*;
use crate::image::fixture::{batch, client, feature};
use crate::image::{MetadataImage, ReplayError};

const WINDOW: u64 = limits::REQUESTS_PER_CLIENT_MAX as u64;

fn apply(image: &mut MetadataImage, from: u128, request: u64) {
    image.replay(&batch(1, &[applied(from, request)])).expect("the request is new");
}

fn applied(from: u128, request: u64) -> Record {
    let reply = request.to_be_bytes().to_vec();
    Record::RequestApplied { client: client(from), request, reply, offset: None, forgotten_up_to: None }
}

fn outcome(image: &MetadataImage, from: u128, request: u64) -> RequestOutcome<'_> {
    image.requests.look_up(client(from), request)
}

#[test]
fn a_retry_within_the_window_gets_the_first_answer() {
    let mut image = MetadataImage::default();
    (0..=WINDOW).for_each(|request| apply(&mut image, 1, request));
    let reply = 1_u64.to_be_bytes();
    assert_eq!(outcome(&image, 1, 1), RequestOutcome::Applied { offset: Offset::new(1), reply: &reply });
    assert_eq!(outcome(&image, 1, 0), RequestOutcome::Expired);
    assert_eq!(outcome(&image, 1, WINDOW + 1), RequestOutcome::New);
    assert_eq!(outcome(&image, 2, 0), RequestOutcome::New);
    assert_eq!(image.verify(), []);
}

#[test]
fn a_late_request_with_a_low_number_is_not_the_first_to_go() {
    let mut image = MetadataImage::default();
    (100..100 + WINDOW).for_each(|request| apply(&mut image, 1, request));
    apply(&mut image, 1, 50);
    assert!(matches!(outcome(&image, 1, 50), RequestOutcome::Applied { .. }));
    assert_eq!(outcome(&image, 1, 100), RequestOutcome::Expired);
    assert!(matches!(outcome(&image, 1, 101), RequestOutcome::Applied { .. }));
    // It was never seen, but it may as well have been forgotten: that cannot be told any more.
    assert_eq!(outcome(&image, 1, 51), RequestOutcome::Expired);
    assert_eq!(image.verify(), []);
}

#[test]
fn the_client_that_has_been_silent_longest_is_forgotten() {
    let mut image = MetadataImage::default();
    let clients = limits::CLIENTS_REMEMBERED_MAX as u128;
    let first: Vec<Record> = (0..clients).map(|from| applied(from, 0)).collect();
    image.replay(&batch(1, &first)).expect("the requests are new");
    (1..=WINDOW).for_each(|request| apply(&mut image, 0, request));
    apply(&mut image, clients, 0);
    assert_eq!(outcome(&image, 1, 0), RequestOutcome::New);
    assert_eq!(outcome(&image, 0, 0), RequestOutcome::Expired);
    assert!(matches!(outcome(&image, 2, 0), RequestOutcome::Applied { .. }));
    assert_eq!(image.requests.client_count(), limits::CLIENTS_REMEMBERED_MAX);
    assert_eq!(image.verify(), []);

    // Client 0 is next to go, with what it had forgotten.
    let others: Vec<Record> = (2..=clients).map(|from| applied(from, 1)).collect();
    image.replay(&batch(1, &others)).expect("the requests are new");
    apply(&mut image, clients + 1, 0);
    assert_eq!(outcome(&image, 0, 0), RequestOutcome::New);
    assert_eq!(image.verify(), []);
}

#[test]
fn a_request_cannot_be_applied_twice() {
    let mut image = MetadataImage::default();
    apply(&mut image, 1, 7);
    let refused = image.replay(&batch(1, &[applied(1, 7)]));
    assert_eq!(refused, Err(ReplayError::RequestRepeated { client: client(1), request: 7 }));
}

#[test]
fn the_window_survives_a_snapshot() {
    let mut image = MetadataImage::default();
    // Neighbours change places on their way, as requests in flight do.
    (0..WINDOW + 6).for_each(|request| apply(&mut image, 1, request ^ 1));
    apply(&mut image, 2, 1);
    let copy = MetadataImage::from_snapshot(image.header(), image.to_records());
    assert_eq!(copy, Ok(image));
}

/// Sixteen replies of this size are all that is remembered.
const LARGE: usize = limits::REMEMBERED_BYTES_MAX / 16;

/// An image at the level at which the bytes of replies are bounded.
fn bounded() -> MetadataImage {
    let mut image = MetadataImage::default();
    let level = feature("metadata.version", limits::REMEMBERED_BYTES_BOUNDED_FROM_LEVEL);
    image.replay(&batch(1, &[level])).expect("a feature level replays");
    image
}

fn apply_large(image: &mut MetadataImage, from: u128, request: u64) {
    let (client, reply) = (client(from), vec![7; LARGE]);
    let record = Record::RequestApplied { client, request, reply, offset: None, forgotten_up_to: None };
    image.replay(&batch(1, &[record])).expect("the request is new");
}

fn is_applied(image: &MetadataImage, from: u128, request: u64) -> bool {
    matches!(outcome(image, from, request), RequestOutcome::Applied { .. })
}

#[test]
fn replies_of_the_client_silent_longest_are_dropped_first() {
    let mut image = bounded();
    (1..=2).for_each(|request| apply_large(&mut image, 1, request));
    (1..=15).for_each(|request| apply_large(&mut image, 2, request));
    assert_eq!(image.requests.bytes(), limits::REMEMBERED_BYTES_MAX);
    assert_eq!(outcome(&image, 1, 1), RequestOutcome::Expired, "as if it had left the window by number");
    assert!(is_applied(&image, 1, 2) && is_applied(&image, 2, 1));
    assert_eq!(image.verify(), []);

    // Its last reply goes as well, and only then one of the other client.
    apply_large(&mut image, 2, 16);
    assert_eq!(outcome(&image, 1, 2), RequestOutcome::Expired, "it must not be applied a second time");
    assert!(is_applied(&image, 2, 1));
    apply_large(&mut image, 2, 17);
    assert_eq!(outcome(&image, 2, 1), RequestOutcome::Expired);
    assert!(is_applied(&image, 2, 2) && is_applied(&image, 2, 17));
    assert_eq!(image.requests.bytes(), limits::REMEMBERED_BYTES_MAX);
    assert_eq!(image.verify(), []);
}

#[test]
fn a_client_without_replies_goes_on_and_is_forgotten_like_any_other() {
    let mut image = bounded();
    apply_large(&mut image, 1, 1);
    (1..=16).for_each(|request| apply_large(&mut image, 2, request));
    apply(&mut image, 1, 2);
    assert_eq!(outcome(&image, 1, 1), RequestOutcome::Expired);
    assert!(is_applied(&image, 1, 2));
    let refused = image.replay(&batch(1, &[applied(1, 1)]));
    assert_eq!(refused, Err(ReplayError::RequestRepeated { client: client(1), request: 1 }));

    let mut image = bounded();
    apply_large(&mut image, 1, 1);
    (1..=17).for_each(|request| apply_large(&mut image, 2, request));
    let others: Vec<Record> = (3..=limits::CLIENTS_REMEMBERED_MAX as u128 + 1).map(|from| applied(from, 1)).collect();
    image.replay(&batch(1, &others)).expect("the requests are new");
    assert_eq!(outcome(&image, 1, 1), RequestOutcome::New, "it has been silent longest");
    assert!(is_applied(&image, 2, 17));
    assert_eq!(image.verify(), []);
}

#[test]
fn bytes_are_bounded_once_every_node_bounds_them() {
    let mut image = MetadataImage::default();
    (1..=17).for_each(|request| apply_large(&mut image, 1, request));
    assert!(is_applied(&image, 1, 1), "an older node still has it");
    let level = feature("metadata.version", limits::REMEMBERED_BYTES_BOUNDED_FROM_LEVEL);
    image.replay(&batch(1, &[level])).expect("a feature level replays");
    assert_eq!(outcome(&image, 1, 1), RequestOutcome::Expired);
    assert_eq!(image.requests.bytes(), limits::REMEMBERED_BYTES_MAX);
    assert_eq!(image.verify(), []);
}

#[test]
fn dropped_replies_survive_a_snapshot() {
    let mut image = bounded();
    apply_large(&mut image, 1, 1);
    (1..=17).for_each(|request| apply_large(&mut image, 2, request));
    apply(&mut image, 3, 1);
    let copy = MetadataImage::from_snapshot(image.header(), image.to_records()).expect("the digest is the same");
    assert_eq!(copy, image);
    assert_eq!(outcome(&copy, 1, 1), RequestOutcome::Expired);
    assert_eq!(copy.verify(), []);
}
