//! One byte that is not what it was.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A shorter file has its last record in the middle, which a crash may have cut.
const FILE_BYTES_MIN: u64 = 8 * 1024;

#[derive(Debug)]
pub struct Damage {
    pub file: PathBuf,
    at: u64,
}

impl Damage {
    /// In the middle of the log of writes of a database, well before its end. None where there is none that is long
    /// enough. Nobody may have it open.
    pub fn inflict(database: &Path) -> io::Result<Option<Self>> {
        for entry in fs::read_dir(database)? {
            let file = entry?.path();
            let length = fs::metadata(&file)?.len();
            if file.extension().is_some_and(|extension| extension == "log") && length >= FILE_BYTES_MIN {
                let damage = Self { file, at: length / 2 };
                damage.flip()?;
                return Ok(Some(damage));
            }
        }
        Ok(None)
    }

    /// As it was.
    pub fn mend(self) -> io::Result<()> {
        self.flip()
    }

    fn flip(&self) -> io::Result<()> {
        let file = File::options().read(true).write(true).open(&self.file)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, self.at)?;
        file.write_all_at(&[byte[0] ^ 0x40], self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_is_flipped_and_flipped_back() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Damage::inflict(folder.path()).unwrap().is_none(), "nothing is long enough");
        let file = folder.path().join("000004.log");
        let content = vec![7; 10_000];
        fs::write(&file, &content).unwrap();
        let damage = Damage::inflict(folder.path()).unwrap().expect("it is long enough");
        let differing = fs::read(&file).unwrap().iter().zip(&content).filter(|(now, before)| now != before).count();
        assert_eq!(differing, 1);
        damage.mend().unwrap();
        assert_eq!(fs::read(&file).unwrap(), content);
    }
}
