//! The lease of a broker, and the metadata that it has to read before it leads again.
//!
//! While a lease runs the controllers move no leadership away by force. After it has lapsed they may have: the first
//! reply that grants another says how far the metadata goes, and until the broker has read that far it would lead at
//! epochs that are over.

use quorate_metadata::ids::Offset;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Lease {
    until: Option<Instant>,
    /// The metadata that must be read first, if the lease was granted after a lapse.
    required_offset: Option<Offset>,
}

impl Lease {
    /// Granted by a reply of a controller whose metadata ended at `metadata_offset`.
    pub fn grant(&mut self, until: Instant, metadata_offset: Offset, now: Instant) {
        if self.until.is_none_or(|until| until <= now) {
            self.required_offset = Some(metadata_offset);
        }
        self.until = Some(self.until.map_or(until, |before| before.max(until)));
    }

    pub fn revoke(&mut self) {
        *self = Self::default();
    }

    /// Until when the broker may lead, if it has read everything below `next_offset`.
    pub fn usable_until(&mut self, next_offset: Offset) -> Option<Instant> {
        self.required_offset = self.required_offset.filter(|required| next_offset < *required);
        self.until.filter(|_| self.required_offset.is_none())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    #[test]
    fn a_lease_after_a_lapse_waits_for_the_metadata() {
        let start = Instant::now();
        let mut lease = Lease::default();
        lease.grant(start + LEASE, Offset::new(10), start);
        assert_eq!(lease.usable_until(Offset::new(9)), None);
        assert_eq!(lease.usable_until(Offset::new(10)), Some(start + LEASE));
        let later = start + LEASE;
        lease.grant(later + LEASE, Offset::new(20), later);
        assert_eq!(lease.usable_until(Offset::new(19)), None);
        assert_eq!(lease.usable_until(Offset::new(20)), Some(later + LEASE));
    }

    #[test]
    fn a_lease_that_is_renewed_in_time_waits_for_nothing_more() {
        let start = Instant::now();
        let mut lease = Lease::default();
        lease.grant(start + LEASE, Offset::new(10), start);
        lease.grant(start + 2 * LEASE, Offset::new(30), start + LEASE / 2);
        assert_eq!(lease.usable_until(Offset::new(9)), None, "the first one waits still");
        assert_eq!(lease.usable_until(Offset::new(10)), Some(start + 2 * LEASE));
    }

    #[test]
    fn a_revoked_lease_is_as_one_that_has_lapsed() {
        let start = Instant::now();
        let mut lease = Lease::default();
        lease.grant(start + LEASE, Offset::new(10), start);
        lease.revoke();
        assert_eq!(lease.usable_until(Offset::new(10)), None);
        lease.grant(start + LEASE, Offset::new(20), start);
        assert_eq!(lease.usable_until(Offset::new(10)), None);
    }

    #[test]
    fn an_older_grant_does_not_shorten_a_lease() {
        let start = Instant::now();
        let mut lease = Lease::default();
        lease.grant(start + 2 * LEASE, Offset::new(0), start);
        lease.grant(start + LEASE, Offset::new(0), start);
        assert_eq!(lease.usable_until(Offset::new(0)), Some(start + 2 * LEASE));
    }
}
