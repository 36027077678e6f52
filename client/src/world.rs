//! Time of day and chance: what a process takes from its surroundings without asking anyone by name. A simulation gives
//! both to its thread, so that a seed decides them.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

/// A world in which nothing comes from outside.
struct Simulated {
    chance: SmallRng,
    wall_ms: fn() -> i64,
}

thread_local! {
    static SIMULATED: RefCell<Option<Simulated>> = const { RefCell::new(None) };
}

/// From now on this thread draws from the seed, and takes the time of day from `wall_ms`. Whatever it had before is over.
pub fn simulate(seed: u64, wall_ms: fn() -> i64) {
    let chance = SmallRng::seed_from_u64(seed);
    SIMULATED.set(Some(Simulated { chance, wall_ms }));
}

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "where the time of day comes from")]
pub fn wall_ms() -> i64 {
    if let Some(given) = SIMULATED.with_borrow(|simulated| simulated.as_ref().map(|simulated| simulated.wall_ms)) {
        return given();
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A source of chance of its own.
#[expect(clippy::disallowed_methods, reason = "where chance comes from")]
pub fn chance() -> SmallRng {
    SIMULATED.with_borrow_mut(|simulated| match simulated {
        Some(Simulated { chance, .. }) => SmallRng::from_rng(chance),
        None => SmallRng::from_rng(&mut rand::rng()),
    })
}

/// An id that no other has. Not for secrets.
pub fn uuid() -> Uuid {
    uuid::Builder::from_random_bytes(chance().random()).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_the_ids_and_the_time() {
        let drawn = |seed| {
            std::thread::spawn(move || {
                simulate(seed, || 42);
                (uuid(), uuid(), wall_ms())
            })
            .join()
            .expect("it does not panic")
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert_ne!(drawn(1).0, drawn(1).1);
        assert_eq!(drawn(1).2, 42);
    }

    #[test]
    fn without_a_simulation_ids_are_by_chance() {
        assert_ne!(uuid(), uuid());
        assert_eq!(uuid().get_version_num(), 4);
        assert!(wall_ms() > 1_700_000_000_000);
    }
}
