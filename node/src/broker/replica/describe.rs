//! What a replica tells of itself to people.

use quorate_log::{LogOffset, PartitionLog};
use quorate_metadata::ids::{BrokerId, LeaderEpoch};

use super::{Published, Replica};

#[derive(Debug, Clone)]
pub struct Description {
    pub published: Published,
    pub bytes: u64,
    pub epochs: Vec<(LeaderEpoch, LogOffset)>,
    /// Of a leader.
    pub followers: Vec<Progress>,
}

#[derive(Debug, Clone)]
pub struct Progress {
    pub broker: BrokerId,
    pub in_sync: bool,
    /// None until it has fetched from this leader.
    pub log_end: Option<LogOffset>,
    pub offsets_left: i64,
    pub bytes_left: u64,
    /// None: not measured lately.
    pub bytes_per_second: Option<u64>,
    pub caught_up_ms_ago: Option<i64>,
}

impl Replica {
    pub fn describe(&self, now_ms: i64) -> Description {
        Description {
            published: self.published.borrow().clone(),
            bytes: self.log.size_bytes(),
            epochs: self.log.epochs().starts().to_vec(),
            followers: self.progress(now_ms),
        }
    }

    fn progress(&self, now_ms: i64) -> Vec<Progress> {
        let Some(leading) = self.leading() else { return Vec::new() };
        let leadership = leading.leadership();
        let of = |broker: BrokerId| {
            let log_end = leadership.end_of(broker);
            let from = log_end.unwrap_or(self.log.log_start());
            let speed = leading.records_per_second(broker, now_ms);
            Progress {
                broker,
                in_sync: leadership.isr().contains(&broker),
                log_end,
                offsets_left: (self.log.log_end().0 - from.0).max(0),
                bytes_left: bytes_from(&self.log, from),
                bytes_per_second: speed.map(|speed| u64::try_from(speed).unwrap_or(0) * bytes_per_record(&self.log)),
                caught_up_ms_ago: leadership.caught_up_ms(broker).map(|at| now_ms - at),
            }
        };
        leadership.followers().map(of).collect()
    }
}

/// About how much of the log is there from `from` on: within a segment it is taken to be spread evenly.
fn bytes_from(log: &PartitionLog, from: LogOffset) -> u64 {
    let left = log.segments().all().map(|segment| {
        let records = u64::try_from(segment.end.0 - segment.base.0).unwrap_or(0);
        let wanted = u64::try_from(segment.end.0 - from.0.max(segment.base.0)).unwrap_or(0);
        if records == 0 { 0 } else { u128::from(segment.bytes) * u128::from(wanted) / u128::from(records) }
    });
    u64::try_from(left.sum::<u128>()).unwrap_or(u64::MAX)
}

fn bytes_per_record(log: &PartitionLog) -> u64 {
    let first = log.segments().all().next().map_or(log.log_end(), |segment| segment.base);
    let records = u64::try_from(log.log_end().0 - first.0).unwrap_or(0).max(1);
    log.size_bytes() / records
}
