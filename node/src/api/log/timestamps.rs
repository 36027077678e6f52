//! The time of a record: given by its producer and checked against this broker's clock, or the time of its append
//! (`message.timestamp.type`, `message.timestamp.before.max.ms` and `message.timestamp.after.max.ms` of the topic).

use quorate_metadata::config;
use quorate_metadata::ids::BrokerId;
use quorate_metadata::{ApiError, ErrorName, MetadataImage};
use quorate_proto::log::Record;

/// What a topic wants of its records' times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timestamps {
    /// Of the producer, within bounds around the broker's clock.
    Create { before_max_ms: i64, after_max_ms: i64 },
    /// Of the append, whatever the producer says.
    Append,
}

impl Timestamps {
    pub fn of(image: &MetadataImage, broker: BrokerId, topic: &str) -> Self {
        if config::topic_value::<String>(image, broker, topic, config::TIMESTAMP_TYPE) == config::LOG_APPEND_TIME {
            return Self::Append;
        }
        Self::Create {
            before_max_ms: config::topic_value(image, broker, topic, config::TIMESTAMP_BEFORE_MAX),
            after_max_ms: config::topic_value(image, broker, topic, config::TIMESTAMP_AFTER_MAX),
        }
    }

    /// Gives each record its time. Says whether any has changed.
    pub fn apply(self, records: &mut [Record], now_ms: i64) -> Result<bool, ApiError> {
        let mut has_changed = false;
        for record in records {
            let timestamp_ms = match (self, record.timestamp_ms) {
                (Self::Append, _) | (Self::Create { .. }, None) => now_ms,
                (Self::Create { before_max_ms, after_max_ms }, Some(timestamp_ms)) => {
                    check(timestamp_ms, now_ms, before_max_ms, after_max_ms)?;
                    timestamp_ms
                }
            };
            has_changed |= record.timestamp_ms.replace(timestamp_ms) != Some(timestamp_ms);
        }
        Ok(has_changed)
    }
}

fn check(timestamp_ms: i64, now_ms: i64, before_max_ms: i64, after_max_ms: i64) -> Result<(), ApiError> {
    let (earliest, latest) = (now_ms.saturating_sub(before_max_ms).max(0), now_ms.saturating_add(after_max_ms));
    if (earliest..=latest).contains(&timestamp_ms) {
        return Ok(());
    }
    let message = format!(
        "invalid timestamp {timestamp_ms}: expected {earliest} to {latest}, by message.timestamp.before.max.ms and \
         message.timestamp.after.max.ms of the topic"
    );
    Err(ApiError::new(ErrorName::InvalidTimestamp, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_700_000_000_000;
    const BOUNDED: Timestamps = Timestamps::Create { before_max_ms: 1_000, after_max_ms: 10 };
    const UNBOUNDED: Timestamps = Timestamps::Create { before_max_ms: i64::MAX, after_max_ms: i64::MAX };

    fn given(timestamps: Timestamps, timestamp_ms: Option<i64>) -> Result<(bool, Option<i64>), ErrorName> {
        let mut records = [Record { timestamp_ms, ..Record::default() }];
        let has_changed = timestamps.apply(&mut records, NOW_MS).map_err(|error| error.name)?;
        Ok((has_changed, records[0].timestamp_ms))
    }

    #[test]
    fn a_record_without_a_time_gets_the_time_of_its_append() {
        assert_eq!(given(BOUNDED, None), Ok((true, Some(NOW_MS))));
        assert_eq!(given(Timestamps::Append, None), Ok((true, Some(NOW_MS))));
    }

    #[test]
    fn the_time_of_the_append_replaces_the_one_of_the_producer() {
        for timestamp_ms in [i64::MIN, 0, NOW_MS - 1, i64::MAX] {
            assert_eq!(given(Timestamps::Append, Some(timestamp_ms)), Ok((true, Some(NOW_MS))));
        }
        assert_eq!(given(Timestamps::Append, Some(NOW_MS)), Ok((false, Some(NOW_MS))));
    }

    #[test]
    fn a_time_of_the_producer_is_kept_within_the_bounds_and_refused_beyond() {
        for timestamp_ms in [NOW_MS - 1_000, NOW_MS, NOW_MS + 10] {
            assert_eq!(given(BOUNDED, Some(timestamp_ms)), Ok((false, Some(timestamp_ms))));
        }
        for timestamp_ms in [i64::MIN, -1, 0, NOW_MS - 1_001, NOW_MS + 11, i64::MAX] {
            assert_eq!(given(BOUNDED, Some(timestamp_ms)), Err(ErrorName::InvalidTimestamp));
        }
    }

    #[test]
    fn without_bounds_every_time_since_1970_is_taken() {
        for timestamp_ms in [0, NOW_MS, i64::MAX] {
            assert_eq!(given(UNBOUNDED, Some(timestamp_ms)), Ok((false, Some(timestamp_ms))));
        }
        for timestamp_ms in [-1, i64::MIN] {
            assert_eq!(given(UNBOUNDED, Some(timestamp_ms)), Err(ErrorName::InvalidTimestamp));
        }
    }
}
