//! Python stands in for the node: whatever it writes goes through the same calls.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::*;

struct Rig {
    folder: tempfile::TempDir,
    disk: Disk,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shim = compile_shim(folder.path()).unwrap();
        let disk = Disk::prepare(&shim, folder.path(), &folder.path().join("data")).unwrap();
        Self { folder, disk }
    }

    /// Runs it in the data directory; whether it went well.
    fn python(&self, program: &str) -> bool {
        let mut python = Command::new("python3");
        python.arg("-c").arg(format!("import os\n{program}")).current_dir(self.data());
        python.env("LD_PRELOAD", self.disk.shim()).envs(self.disk.environment()).output().unwrap().status.success()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.data().join(name)).ok()
    }
}

const SYNC_DIRECTORY: &str = "os.fsync(os.open('.', os.O_RDONLY))";

#[test]
fn a_cut_leaves_what_was_synced() {
    let rig = Rig::new();
    assert!(rig.python(&format!(
        "f = open('a', 'wb', 0); f.write(b'durable'); os.fsync(f.fileno()); f.write(b' not')\n\
         g = open('b', 'wb', 0); g.write(b'never'); {SYNC_DIRECTORY}"
    )));
    assert_eq!(rig.read("a").as_deref(), Some("durable not"), "killed, nothing is lost");
    assert_eq!(rig.disk.cut_power().unwrap(), Cut { shortened: 2, removed: 0 });
    assert_eq!((rig.read("a").as_deref(), rig.read("b").as_deref()), (Some("durable"), Some("")));
}

#[test]
fn a_file_whose_directory_was_not_synced_is_gone() {
    let rig = Rig::new();
    assert!(rig.python(&format!("open('old', 'w').close(); {SYNC_DIRECTORY}")));
    // The clock of a file system has ticks.
    assert!(
        rig.python(
            "import time; time.sleep(0.02); f = open('new', 'wb', 0); f.write(b'durable'); os.fsync(f.fileno())"
        )
    );
    assert_eq!(rig.disk.cut_power().unwrap(), Cut { shortened: 0, removed: 1 });
    assert_eq!((rig.read("old").as_deref(), rig.read("new")), (Some(""), None));
}

#[test]
fn a_file_is_known_under_its_new_name_and_an_inode_used_again_is_another_file() {
    let rig = Rig::new();
    assert!(rig.python(&format!(
        "f = open('part', 'wb', 0); f.write(b'durable'); os.fsync(f.fileno()); os.rename('part', 'whole')\n\
         g = open('gone', 'wb', 0); g.write(b'long and durable'); os.fsync(g.fileno()); g.close(); os.unlink('gone')\n\
         open('again', 'wb', 0).write(b'never synced'); {SYNC_DIRECTORY}"
    )));
    rig.disk.cut_power().unwrap();
    assert_eq!((rig.read("whole").as_deref(), rig.read("again").as_deref()), (Some("durable"), Some("")));
}

#[test]
fn a_lie_covers_nothing() {
    let rig = Rig::new();
    assert!(rig.python(&format!("open('a', 'w').close(); {SYNC_DIRECTORY}")));
    rig.disk.set(Mode::SyncLies).unwrap();
    assert!(rig.python("f = open('a', 'ab', 0); f.write(b'lost'); os.fsync(f.fileno())"));
    rig.disk.cut_power().unwrap();
    assert_eq!(rig.read("a").as_deref(), Some(""));
}

#[test]
fn after_an_fsync_that_failed_a_later_one_is_worth_nothing() {
    let rig = Rig::new();
    assert!(rig.python(&format!("open('a', 'w').close(); {SYNC_DIRECTORY}")));
    rig.disk.set(Mode::SyncFails).unwrap();
    assert!(!rig.python("f = open('a', 'ab', 0); f.write(b'lost'); os.fsync(f.fileno())"));
    rig.disk.set(Mode::Sound).unwrap();
    assert!(rig.python("f = open('a', 'ab', 0); os.fsync(f.fileno())"));
    rig.disk.cut_power().unwrap();
    assert_eq!(rig.read("a").as_deref(), Some(""));
}

#[test]
fn a_full_disk_takes_nothing_more_until_there_is_room() {
    let rig = Rig::new();
    let write = "open('a', 'ab', 0).write(b'x')";
    rig.disk.set(Mode::Full).unwrap();
    assert!(!rig.python(write));
    rig.disk.set(Mode::Sound).unwrap();
    assert!(rig.python(write));
    assert_eq!(rig.read("a").as_deref(), Some("x"));
}

#[test]
fn a_disk_that_hangs_answers_when_it_is_mended() {
    let rig = Rig::new();
    rig.disk.set(Mode::Hangs).unwrap();
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| {
            rig.python("f = open('a', 'wb', 0); open('/proc/self/comm').read(); f.write(b'x'); os.fsync(f.fileno())")
        });
        while rig.read("a").is_none() {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        std::thread::park_timeout(Duration::from_millis(100));
        assert_eq!((rig.read("a").as_deref(), writes.is_finished()), (Some(""), false));
        rig.disk.set(Mode::Sound).unwrap();
        assert!(writes.join().unwrap());
    });
    assert_eq!(rig.read("a").as_deref(), Some("x"));
}

#[test]
fn only_the_records_find_no_room_where_the_logs_are_full() {
    let rig = Rig::new();
    for folder in ["logs", "raft"] {
        fs::create_dir(rig.data().join(folder)).unwrap();
    }
    rig.disk.set(Mode::LogsFull).unwrap();
    assert!(!rig.python("open('logs/a', 'ab', 0).write(b'x')"));
    assert!(rig.python("open('raft/a', 'ab', 0).write(b'x'); open('logs.txt', 'ab', 0).write(b'x')"));
    rig.disk.set(Mode::Sound).unwrap();
    assert!(rig.python("open('logs/a', 'ab', 0).write(b'x')"));
}

#[tokio::test]
async fn who_is_killed_leaves_no_node_behind() {
    let rig = Rig::new();
    let node =
        "LD_PRELOAD=$SHIM python3 -c 'import time; open(\"runs\", \"w\").close(); time.sleep(60)' >/dev/null 2>&1 &";
    let harness = format!("{node} echo $!; until [ -e runs ]; do sleep 0.01; done; kill -9 $$");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(harness).current_dir(rig.data()).env("SHIM", rig.disk.shim()).envs(rig.disk.environment());
    let node = String::from_utf8(shell.output().unwrap().stdout).unwrap();
    // Whoever inherits it may not have heard yet that it has ended.
    let runs = || fs::read_to_string(format!("/proc/{}/stat", node.trim())).is_ok_and(|stat| !stat.contains(") Z "));
    let from = Instant::now();
    while runs() {
        assert!(from.elapsed() < Duration::from_secs(30), "process {node} has outlived its parent");
        sleep(Duration::from_millis(10)).await;
    }
}
