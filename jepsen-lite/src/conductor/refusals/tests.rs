use std::os::unix::process::ExitStatusExt;

use tokio::sync::watch;

use super::*;
use crate::checker::{Report, Verdict};
use crate::db::fixture::one_node;
use crate::generator::Tempo;
use crate::nemesis::{Fault, Target};
use crate::recorder::Recorder;

const HAS_LOG: &str =
    r#"[ -d "$data/raft" ] || grep -q new "$data/quorate.meta" || { echo "error: $data has no log" >&2; exit 1; }"#;
const IS_OURS: &str =
    r#"grep -q ours "$data/quorate.meta" || { echo "error: INCONSISTENT_CLUSTER_ID: $data" >&2; exit 1; }"#;

/// One node that checks its disk like this; what it did with a fault, which leaves its disk as it was.
async fn tried(check: &str, fault: Fault) -> (Option<String>, Report) {
    let (_folder, mut db) = one_node(check, 0);
    let data = db.data(1);
    for part in ["raft", "snapshots", "logs"] {
        fs::create_dir_all(data.join(part)).unwrap();
        fs::write(data.join(part).join("file"), part).unwrap();
    }
    fs::write(data.join(wipe::META), "node = 1\ndirectory = \"own\"\ncluster = \"ours\"\n[floors]\nindex = 7\n")
        .unwrap();
    let before = Tree::of(db.folder(1)).unwrap();
    let (recorder, tempo, mut report) = (Recorder::new(), watch::Sender::new(Tempo::Usual), Report::new("liveness"));
    let outcome = Conductor::new(&mut db, &recorder, &tempo, &mut report).try_out(1, &fault).await.unwrap();
    let changed = before.differs_from(&Tree::of(db.folder(1)).unwrap());
    assert!(changed.iter().all(|path| path.starts_with("log") || path.starts_with("data/made")), "{changed:?}");
    assert!(db.is_down(1));
    (outcome, report)
}

fn wipe(lost: Lost, unrecorded: bool) -> Fault {
    Fault::Wipe { target: Target::All, lost, unrecorded }
}

#[test]
fn a_refusal_fails_and_names_what_it_refuses() {
    let exited = |code: i32| ExitStatus::from_raw(code << 8);
    let flaw_of = |status, log: &str| flaw(status, log, "/data").unwrap_or_default();
    let refusal = "INFO starts\nerror: \"/data\" has no log\nof votes";
    assert_eq!(flaw_of(exited(1), refusal), "");
    assert!(flaw_of(exited(0), refusal).contains("instead of a refusal"));
    assert!(flaw_of(exited(101), refusal).contains("instead of a refusal"));
    assert!(flaw_of(ExitStatus::from_raw(9), refusal).contains("instead of a refusal"));
    assert_eq!(flaw_of(exited(1), "INFO /data"), "has ended without an error");
    assert_eq!(flaw_of(exited(1), "error: /data\nerror: cannot listen"), "does not name /data");
}

#[test]
fn the_cluster_of_a_disk_is_read_where_it_has_one() {
    assert_eq!(cluster_of("version = 1\ncluster = \"a-b\"\n").as_deref(), Some("a-b"));
    assert_eq!(cluster_of("version = 1\n"), None);
}

#[tokio::test]
async fn a_node_that_refuses_a_wiped_disk_is_right() {
    for lost in [Lost::Log, Lost::Both, Lost::Snapshots] {
        let (outcome, report) = tried(HAS_LOG, wipe(lost, false)).await;
        assert_eq!(report.verdict, Verdict::Valid, "{report:?}");
        assert!(outcome.unwrap().ends_with(": refused"), "{lost:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_runs_on_a_wiped_disk_is_found() {
    let (outcome, report) = tried(":", wipe(Lost::Log, false)).await;
    assert!(report.has("refuses-partial-wipe"), "{report:?}");
    assert!(outcome.unwrap().ends_with(": not refused"));
}

#[tokio::test(start_paused = true)]
async fn a_wipe_without_a_record_is_found_by_nobody_and_reported() {
    let (_, report) = tried(HAS_LOG, wipe(Lost::Both, true)).await;
    assert!(report.has("refuses-partial-wipe"), "{report:?}");
}

#[tokio::test]
async fn a_refusal_that_changes_the_disk_is_found() {
    let (_, report) = tried(&format!("touch \"$data/made\"; {HAS_LOG}"), wipe(Lost::Log, false)).await;
    assert!(report.has("refusal-changes-nothing"), "{report:?}");
}

#[tokio::test]
async fn an_end_without_a_name_is_no_refusal() {
    let (_, report) = tried("exit 1", wipe(Lost::Log, false)).await;
    assert!(report.has("refuses-by-name"), "{report:?}");
}

#[tokio::test]
async fn a_node_that_refuses_foreign_data_is_right() {
    let fault = Fault::SwapDisk { target: Target::All, disk: Foreign::Data };
    let (outcome, report) = tried(IS_OURS, fault.clone()).await;
    assert_eq!(report.verdict, Verdict::Valid, "{report:?}");
    assert!(outcome.unwrap().ends_with(": refused"));
    let (_, report) = tried(&format!("echo > \"$data/quorate.meta\"; {IS_OURS}"), fault).await;
    assert!(report.has("keeps-foreign-data"), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_runs_on_foreign_data_is_found() {
    let (_, report) = tried(":", Fault::SwapDisk { target: Target::All, disk: Foreign::Data }).await;
    assert!(report.has("refuses-foreign-disk"), "{report:?}");
}
