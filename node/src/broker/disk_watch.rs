//! Watches the disks of the log directories from beside their owners: one that does not answer takes its directory offline,
//! and directories that are offline come back when the reason is over.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_metadata::ids::DirectoryId;
use quorate_metadata::mutant::Mutant;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::error;

use super::shard::{Outage, OutageCause, ShardHandle};
use crate::disks::{Hang, LOOKS_PER_TIMEOUT, hangs};

/// How often it is looked whether directories that are offline can be used again.
const RETURN_INTERVAL: Duration = Duration::from_millis(500);

/// With so much room a directory can be opened: what its write-ahead log has is written to tables, and those take as much
/// as its memtables.
const RETURN_BYTES_MIN: u64 = 40 << 20;

/// Looks in a row that a directory has to pass: one that answers now and then would go and come with each answer.
const LOOKS_PASSED: u32 = 4;

/// Takes a directory offline whose disk has not answered for `timeout`, and reports it. Never ends.
pub async fn run(shards: Vec<ShardHandle>, timeout: Duration, report: mpsc::UnboundedSender<(DirectoryId, Outage)>) {
    if Mutant::HangingDisk.is_on() {
        std::future::pending::<()>().await;
    }
    let pause = timeout / LOOKS_PER_TIMEOUT;
    let mut watched: Vec<_> = shards.iter().map(|shard| (shard, Hang::new(shard.operations().clone()))).collect();
    loop {
        sleep(pause).await;
        for (shard, hang) in &mut watched {
            let lasted = hang.look(pause);
            if lasted >= timeout {
                take_offline(shard, lasted, &report);
            }
        }
    }
}

fn take_offline(shard: &ShardHandle, lasted: Duration, report: &mpsc::UnboundedSender<(DirectoryId, Outage)>) {
    let (path, lasted_ms) = (shard.path(), lasted.as_millis());
    let reason = format!("the disk of {path:?} has not answered for {lasted_ms} ms");
    let outage = Outage { cause: OutageCause::Hangs, reason };
    if !shard.take_offline(outage.clone()) {
        return;
    }
    hangs().inc();
    error!(directory = %shard.directory(), path = %path.display(), lasted_ms, "the disk does not answer: the log directory is offline");
    // Nobody listens when the broker is stopping.
    let _ = report.send((shard.directory(), outage));
}

/// When every directory that is offline can be used again. Never, where one is broken for good or none is offline.
pub async fn return_of(shards: &[ShardHandle], offline: &BTreeMap<DirectoryId, Outage>) {
    if offline.is_empty() || !offline.values().all(Outage::may_pass) {
        std::future::pending::<()>().await;
    }
    let mut passed = 0;
    while passed < LOOKS_PASSED {
        sleep(RETURN_INTERVAL).await;
        let is_usable = |shard: &ShardHandle| match offline.get(&shard.directory()) {
            Some(outage) => can_return(shard, outage),
            None => true,
        };
        passed = if shards.iter().all(is_usable) { passed + 1 } else { 0 };
    }
}

fn can_return(shard: &ShardHandle, outage: &Outage) -> bool {
    match outage.cause {
        OutageCause::Hangs => shard.operations().oldest().is_none(),
        OutageCause::Full => !Mutant::FullForGood.is_on() && shard.free_bytes() >= RETURN_BYTES_MIN,
        OutageCause::Broken => false,
    }
}

#[cfg(test)]
mod tests {
    use quorate_log::{Flush, LogDirectory, MemoryLogs};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(3);

    fn shard(id: u8) -> ShardHandle {
        let logs = MemoryLogs::new(DirectoryId::from_bytes([id; 16]));
        ShardHandle::new(&LogDirectory::in_memory(&logs, Flush::Os)).0
    }

    #[test]
    fn a_directory_that_breaks_after_a_hang_is_broken() {
        let shard = shard(1);
        let outage = |cause| Outage { cause, reason: format!("{cause:?}") };
        let offline = [OutageCause::Hangs, OutageCause::Full, OutageCause::Broken, OutageCause::Hangs];
        assert_eq!(offline.map(|cause| shard.take_offline(outage(cause))), [true, false, true, false]);
        assert_eq!(shard.outage().map(|outage| outage.cause), Some(OutageCause::Broken));
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_whose_disk_hangs_goes_offline_and_returns_when_it_answers() {
        let shards = vec![shard(1), shard(2)];
        let (report, mut reported) = mpsc::unbounded_channel();
        tokio::spawn(run(shards.clone(), TIMEOUT, report));
        sleep(3 * TIMEOUT).await;
        assert!(reported.try_recv().is_err(), "a disk that is idle does not hang");
        let write = shards[0].operations().begin();
        let (directory, outage) = reported.recv().await.expect("the watch goes on");
        assert_eq!((directory, outage.cause), (shards[0].directory(), OutageCause::Hangs));
        assert!(outage.reason.contains("has not answered for 3000 ms"), "{}", outage.reason);
        assert_eq!((shards[0].outage(), shards[1].outage()), (Some(outage.clone()), None));
        sleep(3 * TIMEOUT).await;
        assert!(reported.try_recv().is_err(), "it is reported once");

        let offline = BTreeMap::from([(directory, outage)]);
        let returned = tokio::time::timeout(10 * TIMEOUT, return_of(&shards, &offline)).await;
        assert!(returned.is_err(), "it does not answer yet");
        drop(write);
        return_of(&shards, &offline).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_directory_does_not_return() {
        let shards = vec![shard(1), shard(2)];
        let outage = |cause| Outage { cause, reason: String::new() };
        let mut offline = BTreeMap::from([(shards[0].directory(), outage(OutageCause::Hangs))]);
        return_of(&shards, &offline).await;
        offline.insert(shards[1].directory(), outage(OutageCause::Broken));
        let returned = tokio::time::timeout(100 * TIMEOUT, return_of(&shards, &offline)).await;
        assert!(returned.is_err(), "what is on it may not be what was written");
    }
}
