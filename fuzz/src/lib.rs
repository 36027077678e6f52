//! What reads bytes that others wrote is given bytes that nobody would write. Each module is a claim, and its `check`
//! panics where the claim does not hold; `fuzz_targets/` hands them to libFuzzer, and the test below replays the corpus.

pub mod config;
pub mod history;
pub mod largest;
pub mod log_entry;
pub mod record_batch;
pub mod requests;
pub mod snapshot;
pub mod spec;

#[cfg(test)]
mod tests {
    use std::path::Path;

    type Claim = fn(&[u8]);

    const TARGETS: [(&str, Claim); 8] = [
        ("config", crate::config::check),
        ("history", crate::history::check),
        ("largest", crate::largest::check),
        ("log_entry", crate::log_entry::check),
        ("record_batch", crate::record_batch::check),
        ("requests", crate::requests::check),
        ("snapshot", crate::snapshot::check),
        ("spec", crate::spec::check),
    ];

    #[test]
    fn the_corpus_breaks_no_claim() {
        for (target, check) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
            let files: Vec<_> = folder.read_dir().expect("every target has a corpus").collect();
            assert!(!files.is_empty(), "{target} has an empty corpus");
            for file in files {
                let path = file.expect("the folder can be read").path();
                // Shown where the check below panics.
                eprintln!("{}", path.display());
                check(&std::fs::read(path).expect("the file can be read"));
            }
        }
    }
}
