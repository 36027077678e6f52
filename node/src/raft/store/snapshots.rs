//! Snapshots as files: `<index, 20 digits>-<term, 10 digits>.checkpoint`, the last two kept.
//!
//! `magic | head length u32 LE | head crc32 u32 LE | head`, then frames `length u32 LE | crc32 u32 LE | content`, ended
//! by a frame of length 0 that carries the content's length. A file gets its name only when it is whole and synced.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use prost::Message;

use quorate_log::durable::{create_directory, sync_directory};
use quorate_metadata::ids::ClusterId;
use quorate_proto::raft as proto;

use super::super::error::Corruption;
use super::super::types::SnapshotMeta;
use super::super::wire;

const MAGIC: &[u8; 8] = b"QRTSNAP\x01";
/// Content in one frame: what is checked, and sent, in one piece.
pub const FRAME_BYTES: usize = 1 << 20;
/// The one before the last is there while a follower still downloads it, and for the operator.
const KEPT: usize = 2;
/// A head is an id and a membership.
const HEAD_BYTES_MAX: u32 = 1 << 20;

const SUFFIX: &str = "checkpoint";
const UNFINISHED: &str = "part";

/// Where snapshots are kept. Cheap to clone.
#[derive(Clone)]
pub struct Snapshots {
    place: Place,
}

#[derive(Clone)]
enum Place {
    Directory(PathBuf),
    Memory(Arc<Mutex<Vec<Snapshot>>>),
}

/// In memory.
impl Default for Snapshots {
    fn default() -> Self {
        Self { place: Place::Memory(Arc::default()) }
    }
}

/// A finished snapshot.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub meta: SnapshotMeta,
    pub cluster: Option<ClusterId>,
    /// Bytes that it takes where it is kept.
    pub bytes: u64,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    File(PathBuf),
    Memory(Bytes),
}

impl Snapshots {
    /// Creates the directory, and clears what a crash left unfinished.
    pub fn directory(path: PathBuf) -> io::Result<Self> {
        create_directory(&path)?;
        for file in files(&path, UNFINISHED)? {
            fs::remove_file(file)?;
        }
        Ok(Self { place: Place::Directory(path) })
    }

    /// For those who only look.
    pub fn existing(path: PathBuf) -> Self {
        Self { place: Place::Directory(path) }
    }

    /// The newest one. A damaged head is refused by file and offset; the content is checked as it is read.
    pub fn latest(&self) -> io::Result<Option<Snapshot>> {
        match &self.place {
            Place::Memory(snapshots) => Ok(snapshots.lock().expect("no holder panics").last().cloned()),
            Place::Directory(path) => files(path, SUFFIX)?.pop().map(open).transpose(),
        }
    }

    pub fn create(&self, meta: SnapshotMeta, cluster: Option<ClusterId>) -> io::Result<SnapshotWriter> {
        let sink = match &self.place {
            Place::Memory(snapshots) => Sink::Memory(snapshots.clone(), Vec::new()),
            Place::Directory(path) => Sink::File(UnfinishedFile::create(path, &meta, cluster)?),
        };
        Ok(SnapshotWriter { meta, cluster, sink, chunk: Vec::new(), length: 0 })
    }

    /// `snapshot` if it is here already, else a copy.
    pub fn adopt(&self, snapshot: Snapshot) -> io::Result<Snapshot> {
        if let (Place::Directory(ours), Content::File(path)) = (&self.place, &snapshot.content)
            && path.parent() == Some(ours)
        {
            return Ok(snapshot);
        }
        let mut writer = self.create(snapshot.meta.clone(), snapshot.cluster)?;
        io::copy(&mut snapshot.read()?, &mut writer)?;
        writer.finish()
    }

    /// Runs `work` where it may take long: on a thread of its own if it touches files; at once in memory, since a
    /// simulation has no other threads.
    #[expect(clippy::disallowed_methods, reason = "files only: a simulated voter keeps its snapshots in memory")]
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match &self.place {
            Place::Memory(_) => work(),
            Place::Directory(_) => tokio::task::spawn_blocking(work).await.expect("snapshot work does not panic"),
        }
    }
}

fn files(directory: &Path, suffix: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == suffix) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn open(path: PathBuf) -> io::Result<Snapshot> {
    let (head, _) = read_head(&path)?;
    let damaged = |error: wire::Malformed| corrupt(&path, 0, error.to_string());
    let meta = wire::meta_in(head.meta).map_err(damaged)?;
    let cluster = wire::cluster_in(&head.cluster_id).map_err(damaged)?;
    let bytes = fs::metadata(&path)?.len();
    Ok(Snapshot { meta, cluster, bytes, content: Content::File(path) })
}

fn corrupt(path: &Path, offset: u64, reason: impl Into<String>) -> io::Error {
    Corruption { file: path.to_owned(), offset, reason: reason.into() }.into()
}

impl Snapshot {
    /// The content, each frame checked before it is handed out.
    pub fn read(&self) -> io::Result<Box<dyn Read + Send>> {
        match &self.content {
            Content::Memory(bytes) => Ok(Box::new(io::Cursor::new(bytes.clone()))),
            Content::File(path) => {
                let (_, frames) = read_head(path)?;
                Ok(Box::new(frames))
            }
        }
    }

    /// A name for people.
    pub fn name(&self) -> String {
        match &self.content {
            Content::File(path) => path.display().to_string(),
            Content::Memory(_) => stem(&self.meta),
        }
    }
}

fn stem(meta: &SnapshotMeta) -> String {
    let (index, term) = meta.last_log_id.map_or((0, 0), |id| (id.index, id.leader_id.term));
    format!("{index:020}-{term:010}")
}

fn read_head(path: &Path) -> io::Result<(proto::SnapshotHead, FrameReader)> {
    let mut file = BufReader::new(File::open(path)?);
    let mut fixed = [0; 16];
    let cut = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => corrupt(path, 0, "head is cut short"),
        _ => error,
    };
    file.read_exact(&mut fixed).map_err(cut)?;
    if &fixed[..8] != MAGIC {
        return Err(corrupt(path, 0, "not a snapshot of a version known to this release"));
    }
    let word = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("four bytes"));
    let (length, checksum) = (word(8), word(12));
    if length > HEAD_BYTES_MAX {
        return Err(corrupt(path, 8, format!("head of {length} bytes")));
    }
    let mut head = vec![0; length as usize];
    file.read_exact(&mut head).map_err(cut)?;
    if crc32fast::hash(&head) != checksum {
        return Err(corrupt(path, 16, "head checksum mismatch"));
    }
    let decoded = proto::SnapshotHead::decode(&head[..]).map_err(|error| corrupt(path, 16, error.to_string()))?;
    let offset = 16 + u64::from(length);
    let frames = FrameReader { file, path: path.to_owned(), offset, frame: Vec::new(), at: 0, length: 0, ended: false };
    Ok((decoded, frames))
}

struct FrameReader {
    file: BufReader<File>,
    path: PathBuf,
    offset: u64,
    frame: Vec<u8>,
    /// Read up to here in the frame.
    at: usize,
    /// Content bytes so far.
    length: u64,
    ended: bool,
}

impl FrameReader {
    fn next_frame(&mut self) -> io::Result<()> {
        let mut head = [0; 8];
        self.fill(&mut head)?;
        let length = u32::from_le_bytes(head[..4].try_into().expect("four bytes")) as usize;
        let checksum = u32::from_le_bytes(head[4..].try_into().expect("four bytes"));
        if length > FRAME_BYTES {
            return Err(corrupt(&self.path, self.offset, format!("frame of {length} bytes")));
        }
        let mut frame = vec![0; if length == 0 { 8 } else { length }];
        self.fill(&mut frame)?;
        if crc32fast::hash(&frame) != checksum {
            return Err(corrupt(&self.path, self.offset, "frame checksum mismatch"));
        }
        self.offset += (8 + frame.len()) as u64;
        if length == 0 {
            return self.end(&frame);
        }
        self.length += length as u64;
        (self.frame, self.at) = (frame, 0);
        Ok(())
    }

    fn end(&mut self, frame: &[u8]) -> io::Result<()> {
        let length = u64::from_le_bytes(frame.try_into().expect("eight bytes"));
        if length != self.length {
            return Err(corrupt(&self.path, self.offset, format!("{} bytes of {length}", self.length)));
        }
        self.ended = true;
        self.frame.clear();
        self.at = 0;
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => corrupt(&self.path, self.offset, "file is cut short"),
            _ => error,
        })
    }
}

impl Read for FrameReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.frame.len() && !self.ended {
            self.next_frame()?;
        }
        let count = buffer.len().min(self.frame.len() - self.at);
        buffer[..count].copy_from_slice(&self.frame[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Dropped unfinished, it leaves nothing behind.
pub struct SnapshotWriter {
    meta: SnapshotMeta,
    cluster: Option<ClusterId>,
    sink: Sink,
    chunk: Vec<u8>,
    length: u64,
}

enum Sink {
    Memory(Arc<Mutex<Vec<Snapshot>>>, Vec<u8>),
    File(UnfinishedFile),
}

impl SnapshotWriter {
    /// Makes it durable, gives it its name, and drops the older ones.
    pub fn finish(mut self) -> io::Result<Snapshot> {
        self.write_chunk()?;
        let (path, bytes) = match self.sink {
            Sink::Memory(snapshots, bytes) => {
                let content = Content::Memory(bytes.into());
                let snapshot = Snapshot { meta: self.meta, cluster: self.cluster, bytes: self.length, content };
                let mut snapshots = snapshots.lock().expect("no holder panics");
                snapshots.push(snapshot.clone());
                snapshots.sort_by_key(|snapshot| stem(&snapshot.meta));
                let excess = snapshots.len().saturating_sub(KEPT);
                snapshots.drain(..excess);
                return Ok(snapshot);
            }
            Sink::File(file) => file.finish(&self.meta, self.length)?,
        };
        Ok(Snapshot { meta: self.meta, cluster: self.cluster, bytes, content: Content::File(path) })
    }

    fn write_chunk(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.length += self.chunk.len() as u64;
        match &mut self.sink {
            Sink::Memory(_, bytes) => bytes.append(&mut self.chunk),
            Sink::File(file) => file.write_frame(self.chunk.len(), &self.chunk)?,
        }
        self.chunk.clear();
        Ok(())
    }
}

impl Write for SnapshotWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(FRAME_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..count]);
        if self.chunk.len() == FRAME_BYTES {
            self.write_chunk()?;
        }
        Ok(count)
    }

    /// Nothing is visible before `finish`.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct UnfinishedFile {
    directory: PathBuf,
    path: PathBuf,
    file: File,
}

impl UnfinishedFile {
    fn create(directory: &Path, meta: &SnapshotMeta, cluster: Option<ClusterId>) -> io::Result<Self> {
        // One may be built while the same one is received.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{}.{number}.{UNFINISHED}", stem(meta)));
        let mut file = File::create(&path)?;
        let head = proto::SnapshotHead { cluster_id: wire::cluster_out(cluster), meta: Some(wire::meta_out(meta)) };
        let head = head.encode_to_vec();
        file.write_all(MAGIC)?;
        file.write_all(&u32::try_from(head.len()).expect("a head is small").to_le_bytes())?;
        file.write_all(&crc32fast::hash(&head).to_le_bytes())?;
        file.write_all(&head)?;
        Ok(Self { directory: directory.to_owned(), path, file })
    }

    fn write_frame(&mut self, length: usize, content: &[u8]) -> io::Result<()> {
        self.file.write_all(&u32::try_from(length).expect("a frame is small").to_le_bytes())?;
        self.file.write_all(&crc32fast::hash(content).to_le_bytes())?;
        self.file.write_all(content)
    }

    /// Where it is now, and its bytes.
    fn finish(mut self, meta: &SnapshotMeta, length: u64) -> io::Result<(PathBuf, u64)> {
        self.write_frame(0, &length.to_le_bytes())?;
        self.file.sync_all()?;
        let bytes = self.file.metadata()?.len();
        let path = self.directory.join(format!("{}.{SUFFIX}", stem(meta)));
        fs::rename(&self.path, &path)?;
        sync_directory(&self.directory)?;
        let files = files(&self.directory, SUFFIX)?;
        for old in files.iter().take(files.len().saturating_sub(KEPT)) {
            fs::remove_file(old)?;
        }
        Ok((path, bytes))
    }
}

impl Drop for UnfinishedFile {
    fn drop(&mut self) {
        // Renamed away by then, unless unfinished. What cannot be removed now is removed at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(snapshots: &Snapshots, index: u64, content: &[u8]) -> Snapshot {
        let meta = SnapshotMeta { last_log_id: Some(wire::log_id(3, index)), ..SnapshotMeta::default() };
        let mut writer = snapshots.create(meta, None).unwrap();
        writer.write_all(content).unwrap();
        writer.finish().unwrap()
    }

    fn content(snapshot: &Snapshot) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        snapshot.read()?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn the_last_two_are_kept_and_the_unfinished_are_cleared() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("x.part"), "cut").unwrap();
        let snapshots = Snapshots::directory(directory.path().to_owned()).unwrap();
        let large = vec![7; FRAME_BYTES * 2 + 5];
        for index in [1, 2, 10] {
            write(&snapshots, index, &large);
        }
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let latest = snapshots.latest().unwrap().unwrap();
        assert_eq!(latest.meta.last_log_id, Some(wire::log_id(3, 10)));
        assert_eq!(content(&latest).unwrap(), large);
    }

    #[test]
    fn each_damaged_or_missing_byte_is_refused_by_file() {
        let directory = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::directory(directory.path().to_owned()).unwrap();
        write(&snapshots, 1, b"the whole state");
        let path = files(directory.path(), SUFFIX).unwrap().remove(0);
        let good = fs::read(&path).unwrap();
        let read = || snapshots.latest().and_then(|snapshot| content(&snapshot.unwrap()));
        for byte in 0..good.len() {
            let mut damaged = good.clone();
            damaged[byte] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            assert!(read().unwrap_err().to_string().contains("offset"), "flipped {byte}");
            fs::write(&path, &good[..byte]).unwrap();
            assert!(read().unwrap_err().to_string().contains("offset"), "cut at {byte}");
        }
    }
}
